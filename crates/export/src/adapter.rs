//! The adapter's folder, as others read it: PEFT's two files and a model card.

use crate::folder::NewFolder;
use crate::merged::{copy, names, write};
use crate::{Error, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use taper_peft::{CONFIG_FILE, WEIGHTS_FILE};

/// What the card tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelCard {
    /// The run's name.
    pub title: String,
    /// What it is for.
    pub description: Option<String>,
    /// The base as a reader knows it.
    pub base: String,
    /// The base's hub id, when it has one; it goes into the card's metadata.
    pub base_hub_id: Option<String>,
    /// Training data: name and value, for example its hash and its rows.
    pub data: Vec<(String, String)>,
    /// Scores: metric, base, adapter.
    pub scores: Vec<(String, String, String)>,
    /// The verdict in a sentence.
    pub verdict: Option<String>,
    /// Commands that use it.
    pub usage: Vec<String>,
}

/// Put the adapter in `source` into `folder` with a card (`README.md`). The folder appears as a whole, and takes the place of one that was
/// there.
///
/// # Errors
/// When `source` lacks one of PEFT's files, or the disk fails.
pub fn place_adapter(source: &Path, folder: &Path, card: &ModelCard) -> Result<PathBuf> {
    let new = NewFolder::new(folder)?;
    for name in [CONFIG_FILE, WEIGHTS_FILE] {
        copy(&source.join(name), &new.path().join(name))?;
    }
    write(&new.path().join("README.md"), card.to_markdown().as_bytes())?;
    new.place()
}

/// Write the card alone into a folder that is there, whole or not at all.
///
/// # Errors
/// When the disk fails.
pub fn write_card(folder: &Path, card: &ModelCard) -> Result<PathBuf> {
    names(folder)?;
    let path = folder.join("README.md");
    taper_diagnostics::write_bytes_atomically(&path, card.to_markdown().as_bytes())
        .map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}

impl ModelCard {
    /// The card in the Hub's format: metadata between lines of dashes, then Markdown.
    pub fn to_markdown(&self) -> String {
        let mut out = String::from("---\n");
        if let Some(id) = &self.base_hub_id {
            let _ = writeln!(out, "base_model: {}", quoted(id));
        }
        out.push_str("library_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- taper\n---\n\n");
        let _ = writeln!(out, "# {}\n", self.title);
        let _ = writeln!(out, "A LoRA adapter for {}, in PEFT's format.", code(&self.base));
        for text in [&self.description, &self.verdict].into_iter().flatten() {
            let _ = write!(out, "\n{}\n", text.trim());
        }
        if !self.scores.is_empty() {
            out.push_str(
                "\n## Scores on held-out data\n\n| metric | base | adapter |\n| --- | --- | --- |\n",
            );
            for (metric, base, adapter) in &self.scores {
                let _ = writeln!(out, "| {} | {} | {} |", cell(metric), cell(base), cell(adapter));
            }
        }
        if !self.data.is_empty() {
            out.push_str("\n## Training data\n\n| | |\n| --- | --- |\n");
            for (name, value) in &self.data {
                let _ = writeln!(out, "| {} | {} |", cell(name), cell(value));
            }
        }
        if !self.usage.is_empty() {
            let _ = write!(out, "\n## Use it\n\n```sh\n{}\n```\n", self.usage.join("\n"));
        }
        out
    }
}

/// A JSON string is a YAML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace('`', "'"))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> ModelCard {
        ModelCard {
            title: "tickets".into(),
            base: "models/tiny".into(),
            scores: vec![("exact match".into(), "1.0 %".into(), "90.0 % | n = 100".into())],
            data: vec![("sha256".into(), "abc".into())],
            usage: vec!["taper chat --model models/tiny --adapter adapter".into()],
            ..ModelCard::default()
        }
    }

    #[test]
    fn the_card_has_the_hubs_metadata_and_what_was_given() {
        let local = card().to_markdown();
        assert!(local.starts_with("---\nlibrary_name: peft\n"), "{local}");
        for part in ["# tickets", "`models/tiny`", "90.0 % \\| n = 100", "| sha256 | abc |", "taper chat"] {
            assert!(local.contains(part), "{part}: {local}");
        }
        let hub = ModelCard { base_hub_id: Some("a/b: \"c\"".into()), ..card() };
        assert!(hub.to_markdown().starts_with("---\nbase_model: \"a/b: \\\"c\\\"\"\n"));
    }

    #[test]
    fn an_adapter_is_placed_whole_or_not_at_all() {
        let here = tempfile::tempdir().unwrap();
        let (source, target) = (here.path().join("best"), here.path().join("adapter"));
        fs_err::create_dir(&source).unwrap();
        fs_err::write(source.join(CONFIG_FILE), "{}").unwrap();
        let error = place_adapter(&source, &target, &card()).unwrap_err();
        assert!(error.to_string().contains(WEIGHTS_FILE), "{error}");
        assert!(!target.exists());
        fs_err::write(source.join(WEIGHTS_FILE), "x").unwrap();
        place_adapter(&source, &target, &card()).unwrap();
        assert_eq!(names(&target).unwrap(), ["README.md", CONFIG_FILE, WEIGHTS_FILE]);
        assert_eq!(names(here.path()).unwrap(), ["adapter", "best"]);
        write_card(&target, &ModelCard { title: "other".into(), ..card() }).unwrap();
        assert!(fs_err::read_to_string(target.join("README.md")).unwrap().contains("# other"));
        assert!(write_card(&here.path().join("nowhere"), &card()).is_err());
    }
}
