//! What `cargo xtask tidy` holds the tree to: sizes, words, the files a reader looks for, recipe headers, datasets.

use crate::dataset::{self, Dataset};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Lines that a source file should not pass.
const SOFT_LINES: usize = 600;
/// Lines that it must not pass.
const HARD_LINES: usize = 700;
/// Files that a stranger looks for.
const EXPECTED: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "LOG.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
];
/// Text that shows a slip: left-overs, and paths of somebody's machine. In two halves, so that this file is clean.
const SLIPS: &[(&str, &str)] =
    &[("FIX", "ME"), ("XX", "X:"), ("/ro", "ot/"), ("/ho", "me/"), ("/wo", "rk/"), ("dbg", "!(")];
/// Names of drawers in which anything ends.
const DRAWERS: &[&str] = &["utils.rs", "util.rs", "misc.rs", "helpers.rs", "common.rs"];
/// Endings of the files whose text is looked at.
const TEXT: &[&str] = &["rs", "md", "toml", "py", "yml", "yaml", "sh"];

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// CI fails.
    pub(crate) errors: Vec<String>,
    /// Somebody should look.
    pub(crate) notices: Vec<String>,
}

/// All checks of the tree at `root`.
pub(crate) fn check(root: &Path) -> Result<Findings> {
    let mut findings = Findings::default();
    for name in EXPECTED {
        if !root.join(name).is_file() {
            findings.errors.push(format!("`{name}` is missing"));
        }
    }
    let mut files = Vec::new();
    walk(root, &mut files)?;
    for path in &files {
        check_file(root, path, &mut findings)?;
    }
    for dataset in Dataset::ALL {
        let folder = root.join("datasets").join(dataset.folder());
        if let Err(error) = dataset::check(dataset, dataset.shipped_seed(), &folder) {
            findings.errors.push(format!("{error:#}"));
        }
    }
    Ok(findings)
}

/// Every file below `folder` in the order of names, built and hidden folders and copied fixtures apart.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries = fs_err::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs_err::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !(name.starts_with('.') && name != ".ci"
                || ["target", "runs", "golden", "node_modules"].contains(&name.as_ref()))
            {
                walk(&path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(root: &Path, path: &Path, findings: &mut Findings) -> Result<()> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if !TEXT.contains(&ending) {
        return Ok(());
    }
    let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
    let text = fs_err::read_to_string(path)?;
    if ending == "rs" {
        let lines = text.lines().count();
        if lines > HARD_LINES {
            findings.errors.push(format!("`{shown}` has {lines} lines, the limit is {HARD_LINES}"));
        } else if lines > SOFT_LINES {
            findings.notices.push(format!("`{shown}` has {lines} lines, the aim is {SOFT_LINES}"));
        }
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| DRAWERS.contains(&name)) {
            findings.errors.push(format!("`{shown}` is a drawer: name a file after what it holds"));
        }
    }
    for (number, line) in (1..).zip(text.lines()) {
        for (head, tail) in SLIPS {
            if line.contains(&format!("{head}{tail}")) {
                findings.errors.push(format!("{shown}:{number}: `{head}{tail}` should not be committed"));
            }
        }
    }
    if ending == "toml" && shown.starts_with("recipes") {
        check_recipe(&shown, &text, findings);
    }
    Ok(())
}

/// A recipe opens with comments that say what it does and the command that runs it.
fn check_recipe(shown: &str, text: &str, findings: &mut Findings) {
    let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
    if header.len() < 2 {
        findings.errors.push(format!(
            "`{shown}` does not open with a comment on what it does, its command and its cost"
        ));
    } else if !header.iter().any(|line| line.contains("taper ") && line.contains(shown)) {
        findings
            .errors
            .push(format!("`{shown}` does not say the command that runs it (`taper run {shown}`)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings_for(name: &str, text: &str) -> Findings {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, text).unwrap();
        let mut findings = Findings::default();
        let mut files = Vec::new();
        walk(root.path(), &mut files).unwrap();
        for file in files {
            check_file(root.path(), &file, &mut findings).unwrap();
        }
        findings
    }

    #[test]
    fn long_files_are_noticed_and_longer_ones_refused() {
        assert_eq!(findings_for("a.rs", &"x\n".repeat(600)), Findings::default());
        assert_eq!(findings_for("a.rs", &"x\n".repeat(601)).notices.len(), 1);
        assert_eq!(findings_for("a.rs", &"x\n".repeat(701)).errors.len(), 1);
    }

    #[test]
    fn slips_and_drawers_are_found_with_their_place() {
        let slip = format!("fn a() {{}}\n// {}{}\n", "FIX", "ME");
        assert!(findings_for("src/a.rs", &slip).errors[0].starts_with("src/a.rs:2:"));
        assert_eq!(findings_for("src/utils.rs", "").errors.len(), 1);
        assert_eq!(findings_for("target/utils.rs", &slip), Findings::default());
    }

    #[test]
    fn a_recipe_needs_its_header_and_its_own_command() {
        let good = "# Trains a thing, 2 minutes.\n# taper run recipes/a/b.toml\nschema = 1\n";
        assert_eq!(findings_for("recipes/a/b.toml", good), Findings::default());
        assert_eq!(findings_for("recipes/a/c.toml", good).errors.len(), 1);
        assert_eq!(findings_for("recipes/a/b.toml", "schema = 1\n").errors.len(), 1);
        assert_eq!(findings_for("other/b.toml", "schema = 1\n"), Findings::default());
    }
}
