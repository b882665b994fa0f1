//! Where fixtures lie, and how they are read.

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A path in `tests/golden`, for example `models/llama_untied`.
///
/// # Panics
/// When it is not there.
pub fn golden(path: &str) -> PathBuf {
    let full = workspace().join("tests/golden").join(path);
    assert!(full.exists(), "no golden fixture `{}`: see tests/golden/README.md", full.display());
    full
}

/// The folder of real files that are not part of the repository: `TAPER_REAL_DATA`, or `../shared/real` beside the workspace.
///
/// # Panics
/// When the variable names a folder that is not there.
pub fn real_data() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TAPER_REAL_DATA").map(PathBuf::from) {
        assert!(named.is_dir(), "TAPER_REAL_DATA is `{}`, which is no folder", named.display());
        return Some(named);
    }
    let beside = workspace().join("../shared/real");
    beside.is_dir().then_some(beside)
}

/// [`real_data`], with a line on stderr that says what is not tested when there is none.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub fn real_data_or_skip(what: &str) -> Option<PathBuf> {
    let found = real_data();
    if found.is_none() {
        eprintln!("SKIPPED {what}: no real files; set TAPER_REAL_DATA to their folder");
    }
    found
}

/// All tensors of a safetensors file, in the types they are stored in.
///
/// # Panics
/// When the file cannot be read.
pub fn read_safetensors(path: &Path) -> BTreeMap<String, Tensor> {
    match candle_core::safetensors::load(path, &Device::Cpu) {
        Ok(tensors) => tensors.into_iter().collect(),
        Err(error) => panic!("cannot read `{}`: {error}", path.display()),
    }
}

/// A JSON file.
///
/// # Panics
/// When the file cannot be read.
pub fn read_json(path: &Path) -> serde_json::Value {
    let text = fs_err::read_to_string(path).expect("a fixture that can be read");
    match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(error) => panic!("cannot read `{}`: {error}", path.display()),
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
