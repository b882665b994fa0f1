//! Recipes in a folder of their own, and what is told of them.

use std::path::{Path, PathBuf};
use taper_recipe::{RecipeError, ResolvedRun, resolve};
use tempfile::TempDir;

/// The least recipe there is, to be gone on with: seven lines, in no section but `[adapter]`.
pub(crate) const LEAST: &str = "\
schema = 1
[model]
base = \"owner/name\"
[data]
train = \"train.jsonl\"
[adapter]
";

/// A folder with a file `recipe.toml`.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn with(recipe: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.write("recipe.toml", recipe);
        place
    }

    /// Write a file, with the folders on the way.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, text).unwrap();
        path
    }

    /// The folder, without the links that a system's temporary folder may have.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    pub(crate) fn resolve(&self, sets: &[&str]) -> Result<ResolvedRun, RecipeError> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        resolve(&self.path().join("recipe.toml"), &sets)
    }

    /// What is wrong, a line each: `line key code: message | hint`.
    pub(crate) fn problems(&self, sets: &[&str]) -> Vec<String> {
        match self.resolve(sets) {
            Err(RecipeError::Problems(problems)) => problems.iter().map(told).collect(),
            Err(error) => panic!("{error}"),
            Ok(_) => Vec::new(),
        }
    }
}

/// What is wrong with a recipe of this text.
pub(crate) fn problems(recipe: &str) -> Vec<String> {
    Place::with(recipe).problems(&[])
}

/// The run of a recipe of this text.
pub(crate) fn run(recipe: &str) -> ResolvedRun {
    Place::with(recipe).resolve(&[]).unwrap()
}

/// `line key code: message | hint`; the file's name before the line where it is another than `recipe.toml`.
pub(crate) fn told(problem: &taper_diagnostics::Problem) -> String {
    let location = problem.location.clone().unwrap_or_default();
    let file =
        location.file.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let mut text = match (file.as_deref(), location.line) {
        (None, _) => String::new(),
        (Some("recipe.toml"), Some(line)) => format!("{line} "),
        (Some("recipe.toml"), None) => "recipe ".to_owned(),
        (Some(file), line) => format!("{file}:{} ", line.unwrap_or_default()),
    };
    if let Some(key) = &location.key {
        text.push_str(&format!("{key} "));
    }
    text.push_str(&format!("{}: {}", problem.code, problem.message));
    if let Some(hint) = &problem.hint {
        text.push_str(&format!(" | {hint}"));
    }
    text
}
