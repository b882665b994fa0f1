//! What a folder is in which an adapter was looked for and not found.

use crate::{CONFIG_FILE, Error, WEIGHTS_FILE};
use std::path::{Path, PathBuf};
use taper_diagnostics::list_names;

/// Files that are run when they are read, or that no reader here knows.
const PICKLES: [(&str, &str); 5] = [
    ("adapter_model.bin", "load it with PEFT and save it again, which writes safetensors"),
    (
        "adapter_model.pt",
        "save its state dictionary with `safetensors.torch.save_file`; torchtune's names are read",
    ),
    (
        "adapter_0.pt",
        "save its state dictionary with `safetensors.torch.save_file`; torchtune's names are read",
    ),
    ("adapter.pt", "save its state dictionary with `safetensors.torch.save_file`"),
    (
        "adapters.npz",
        "load it with `mlx.core.load` and save it with `mlx.core.save_safetensors` as adapters.safetensors",
    ),
];

/// Entries of a folder that are looked at, so that a folder of a million files takes no time.
const MOST_ENTRIES: usize = 2000;

/// The weights' file is not there: what is there instead?
pub(crate) fn absent(folder: &Path) -> Error {
    let refuse = |path: &Path, what: String, remedy: String| Error::Misfit {
        path: path.to_owned(),
        key: None,
        what,
        remedy,
    };
    if folder.is_file() {
        let name = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return refuse(
            folder,
            "it is a file, and an adapter is a folder".into(),
            format!(
                "name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}, perhaps `{}`",
                name.display()
            ),
        );
    }
    for (name, how) in PICKLES {
        if folder.join(name).is_file() {
            let what = if name.ends_with(".npz") {
                format!("the weights are an archive of NumPy (`{name}`), as mlx wrote at first")
            } else {
                format!("the weights are a pickle (`{name}`), which can run any code when it is read")
            };
            return refuse(folder, what, format!("convert it where you trust it: {how}"));
        }
    }
    let inside = adapters_inside(folder);
    if !inside.is_empty() {
        return refuse(
            folder,
            format!("there is no `{WEIGHTS_FILE}` in the folder, but there are adapters inside it"),
            format!("name one of them: {}", list_names(&inside, 8)),
        );
    }
    if folder.join("config.json").is_file() {
        return refuse(
            folder,
            "this is the folder of a model (`config.json`), not of an adapter".into(),
            format!(
                "a base goes with `--model` or `--base`; an adapter's folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"
            ),
        );
    }
    let what = if folder.is_dir() {
        format!("there is no `{WEIGHTS_FILE}` in the folder")
    } else {
        format!("there is no such folder, and so no `{WEIGHTS_FILE}`")
    };
    refuse(folder, what, format!("name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}"))
}

/// Folders inside, one or two deep, that hold an adapter: checkpoints of a trainer, an adapter under its own name.
fn adapters_inside(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for child in folders(folder) {
        for candidate in std::iter::once(child.clone()).chain(folders(&child)) {
            if [WEIGHTS_FILE, super::MLX_WEIGHTS].iter().any(|name| candidate.join(name).is_file()) {
                found.push(candidate.display().to_string());
            }
        }
    }
    found.sort();
    found
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir(folder) else { return Vec::new() };
    entries.take(MOST_ENTRIES).flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_diagnostics::Diagnose;

    fn told(files: &[&str], at: &str) -> String {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "x").unwrap();
        }
        let error = absent(&root.path().join(at));
        assert!(error.location().is_some());
        format!("{error}; {}", error.hint().unwrap())
    }

    #[test]
    fn whatever_lies_there_is_named() {
        for (files, at, expected) in [
            (&["a/adapter_model.safetensors"][..], "a/adapter_model.safetensors", "it is a file"),
            (&["adapter_model.bin", CONFIG_FILE], "", "pickle (`adapter_model.bin`)"),
            (&["epoch_0/adapter_0.pt"], "epoch_0", "torchtune's names are read"),
            (&["adapters.npz"], "", "archive of NumPy"),
            (&["checkpoint-180/adapter_model.safetensors", "trainer_state.json"], "", "checkpoint-180"),
            (&["run/best/adapter_model.safetensors"], "", "run/best"),
            (&["default/adapters.safetensors"], "", "name one of them"),
            (&["config.json", "model.safetensors"], "", "folder of a model"),
            (&[CONFIG_FILE], "", "there is no `adapter_model.safetensors` in the folder"),
            (&[], "nowhere", "no such folder"),
        ] {
            let text = told(files, at);
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}
