//! Compiles the kernels for NVIDIA GPUs (`cuda/*.cu`) to PTX where the feature `cuda` is on.
//!
//! The compiler is `TAPER_NVCC`, else `NVCC`, else that of `CUDA_HOME`, else `nvcc`. With `TAPER_NVCC=check` nothing is compiled: enough for
//! `cargo check` and `cargo clippy`.

#![expect(clippy::disallowed_methods, reason = "without a dependency for it; the messages name the files")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The least capability that the kernels run on; the driver compiles PTX on for later ones.
const ARCHITECTURE: &str = "compute_80";

fn main() {
    for variable in ["TAPER_NVCC", "NVCC", "CUDA_HOME", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(message) = compile() {
        println!("cargo::error={message}");
        std::process::exit(1);
    }
}

fn compile() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let nvcc = nvcc();
    let mut sources: Vec<PathBuf> = std::fs::read_dir("cuda")
        .map_err(|e| format!("crates/kernels/cuda: {e}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    let jobs: Vec<_> = sources
        .into_iter()
        .map(|source| {
            let (out, nvcc) = (out.clone(), nvcc.clone());
            std::thread::spawn(move || ptx_of(&source, &out, &nvcc))
        })
        .collect();
    jobs.into_iter()
        .try_for_each(|job| job.join().unwrap_or_else(|_| Err("a compiler's thread panicked".into())))
}

fn nvcc() -> PathBuf {
    let of = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("TAPER_NVCC")
        .or_else(|| of("NVCC"))
        .or_else(|| of("CUDA_HOME").map(|home| home.join("bin/nvcc")))
        .unwrap_or_else(|| "nvcc".into())
}

fn ptx_of(source: &Path, out: &Path, nvcc: &Path) -> Result<(), String> {
    let ptx = out.join(source.with_extension("ptx").file_name().ok_or("a source without a name")?);
    if nvcc == Path::new("check") {
        return std::fs::write(&ptx, "").map_err(|e| format!("{}: {e}", ptx.display()));
    }
    let mut command = Command::new(nvcc);
    command.args(["-O3", "-std=c++17", "--ptx", "-arch", ARCHITECTURE, "-o"]).arg(&ptx).arg(source);
    if let Some(host_compiler) = std::env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(host_compiler);
    }
    let output = command.output().map_err(|e| {
        format!(
            "`{}` does not start: {e}. The feature `cuda` needs nvcc: see docs/gpu.md (scripts/cuda-toolkit.sh installs one)",
            nvcc.display()
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
    Err(format!("nvcc cannot compile {}: {messages}", source.display()))
}
