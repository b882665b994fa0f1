//! Task datasets: rows, splits, files, and the check that the files are what the generator writes.

use crate::dice::Dice;
use crate::grammar::{Grammar, Scene};
use crate::names::Pool;
use crate::{deid, tickets};
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;

/// Rows of each split.
pub(crate) const TRAIN_ROWS: usize = 1500;
/// Rows for validation while training.
pub(crate) const VALID_ROWS: usize = 100;
/// Rows for the verdict.
pub(crate) const TEST_ROWS: usize = 200;

/// The shipped datasets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dataset {
    /// Clinical notes without their identifiers.
    Deid,
    /// Support messages as one line of JSON.
    Tickets,
}

impl Dataset {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Deid, Self::Tickets];

    /// The folder in `datasets/`.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::Deid => "clinical-deid",
            Self::Tickets => "ticket-triage",
        }
    }

    /// The seed of the rows that ship.
    pub(crate) fn shipped_seed(self) -> u64 {
        match self {
            Self::Deid => 11,
            Self::Tickets => 12,
        }
    }

    /// All rows.
    pub(crate) fn rows(self, seed: u64) -> Splits {
        match self {
            Self::Deid => deid::rows(seed),
            Self::Tickets => tickets::rows(seed),
        }
    }
}

/// One example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// The standing instruction.
    pub(crate) system: String,
    /// The input.
    pub(crate) user: String,
    /// The right answer.
    pub(crate) assistant: String,
}

impl Row {
    /// The row as a line of JSONL.
    pub(crate) fn line(&self) -> String {
        json!({"messages": [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.user},
            {"role": "assistant", "content": self.assistant},
        ]})
        .to_string()
    }
}

/// Rows by what they are for.
pub(crate) struct Splits {
    /// To learn from.
    pub(crate) train: Vec<Row>,
    /// To watch while learning.
    pub(crate) valid: Vec<Row>,
    /// To judge by.
    pub(crate) test: Vec<Row>,
}

impl Splits {
    /// Draw rows; an input that was drawn before, in any split, is drawn again.
    ///
    /// Training rows use the training pool alone. Of the others, every fifth uses held-out phrasings, and every second
    /// names and codes that no training row has.
    pub(crate) fn draw(
        grammar: &Grammar,
        name: &str,
        seed: u64,
        make: impl Fn(&mut Scene<'_>) -> Row,
    ) -> Self {
        let mut seen = BTreeSet::new();
        let mut split = |part: &str, n: usize| {
            let mut rows = Vec::with_capacity(n);
            let mut index = 0;
            while rows.len() < n {
                let held_out = part != "train";
                let values = if held_out && index % 2 == 0 { Pool::HeldOut } else { Pool::Train };
                let mut scene =
                    Scene::new(grammar, Dice::new(seed, &format!("{name}-{part}"), index), values);
                scene.held_out_phrases = held_out && index % 5 == 0;
                index += 1;
                let row = make(&mut scene);
                if seen.insert(row.user.clone()) {
                    rows.push(row);
                }
            }
            rows
        };
        Self {
            train: split("train", TRAIN_ROWS),
            valid: split("valid", VALID_ROWS),
            test: split("test", TEST_ROWS),
        }
    }

    /// File names with their rows.
    fn files(&self) -> [(&'static str, &[Row]); 3] {
        [("train.jsonl", &self.train), ("valid.jsonl", &self.valid), ("test.jsonl", &self.test)]
    }
}

fn text_of(rows: &[Row]) -> String {
    rows.iter().map(|row| row.line() + "\n").collect()
}

/// Write the three files of a dataset.
pub(crate) fn write(dataset: Dataset, seed: u64, out: &Path) -> Result<()> {
    fs_err::create_dir_all(out)?;
    for (name, rows) in dataset.rows(seed).files() {
        fs_err::write(out.join(name), text_of(rows))?;
    }
    Ok(())
}

/// Compare the files in `folder` with what the generator writes.
pub(crate) fn check(dataset: Dataset, seed: u64, folder: &Path) -> Result<()> {
    for (name, rows) in dataset.rows(seed).files() {
        let path = folder.join(name);
        if fs_err::read_to_string(&path)? != text_of(rows) {
            bail!("`{}` is not what the generator writes with seed {seed}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_are_what_the_generators_write() {
        for dataset in Dataset::ALL {
            let folder = crate::root().join("datasets").join(dataset.folder());
            check(dataset, dataset.shipped_seed(), &folder).unwrap();
            let readme = fs_err::read_to_string(folder.join("README.md")).unwrap();
            let example = dataset.rows(dataset.shipped_seed()).test[1].line();
            assert!(readme.contains(&example), "the README shows the second row of test.jsonl: {example}");
        }
    }

    #[test]
    fn no_input_stands_in_two_rows_and_counts_are_as_stated() {
        for dataset in Dataset::ALL {
            let splits = dataset.rows(3);
            assert_eq!([splits.train.len(), splits.valid.len(), splits.test.len()], [1500, 100, 200]);
            let all: Vec<&Row> = splits.train.iter().chain(&splits.valid).chain(&splits.test).collect();
            let inputs: BTreeSet<&str> = all.iter().map(|row| row.user.as_str()).collect();
            assert_eq!(inputs.len(), all.len());
            assert!(all.iter().all(|row| row.user != row.assistant && !row.assistant.is_empty()));
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_rows_and_another_seed_others() {
        for dataset in Dataset::ALL {
            assert_eq!(dataset.rows(3).test, dataset.rows(3).test);
            assert_ne!(dataset.rows(3).test, dataset.rows(4).test);
        }
    }

    #[test]
    fn a_changed_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        write(Dataset::Tickets, 3, folder.path()).unwrap();
        check(Dataset::Tickets, 3, folder.path()).unwrap();
        assert!(check(Dataset::Tickets, 4, folder.path()).unwrap_err().to_string().contains("train.jsonl"));
    }
}
