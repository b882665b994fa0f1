//! Work on the tree itself: the generators of everything that ships and was not written by hand, and the tidy checks.

mod corpus;
mod dataset;
mod deid;
mod dice;
mod grammar;
mod names;
mod schema;
mod tickets;
mod tidy;
mod tokenizer;
mod values;
mod words;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use dataset::Dataset;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokenizer::{Counter, Lengths};

/// Generators and checks of the taper repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write the corpus of the shipped base: {train,valid}-{text,chat}.jsonl.
    Corpus {
        /// The folder to write to.
        #[arg(long)]
        out: PathBuf,
        /// About how many tokens.
        #[arg(long, default_value_t = 6_000_000)]
        tokens: usize,
        /// The seed: the same seed writes the same bytes.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Train the tokenizer of the shipped base on a corpus; write it with the configuration files.
    Tokenizer {
        /// The folder that `corpus` wrote.
        #[arg(long)]
        corpus: PathBuf,
        /// The model folder to write to.
        #[arg(long, default_value = "models/tiny-base")]
        out: PathBuf,
    },
    /// Write a task dataset, or check all that ship.
    Dataset {
        /// Which.
        #[arg(required_unless_present = "check")]
        dataset: Option<Dataset>,
        /// The seed; the shipped one if not given.
        #[arg(long)]
        seed: Option<u64>,
        /// The folder to write to; the shipped one if not given.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Write nothing; fail if the shipped files are not what the generators write.
        #[arg(long, conflicts_with_all = ["dataset", "seed", "out"])]
        check: bool,
    },
    /// Print how many tokens the rows of JSONL files have.
    Lengths {
        /// The folder with the tokenizer.
        #[arg(long, default_value = "models/tiny-base")]
        model: PathBuf,
        /// JSONL files with `messages` or `text`.
        files: Vec<PathBuf>,
    },
    /// Write the JSON Schema of recipes, for editors.
    Schema,
    /// Check sizes, words, recipe headers, expected files and datasets.
    Tidy,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::Corpus { out, tokens, seed } => corpus::write(&out, tokens, seed),
        Verb::Tokenizer { corpus, out } => tokenizer::write(&corpus, &out),
        Verb::Dataset { check: true, .. } => check_datasets(),
        Verb::Dataset { dataset: Some(dataset), seed, out, .. } => {
            let out = out.unwrap_or_else(|| root().join("datasets").join(dataset.folder()));
            dataset::write(dataset, seed.unwrap_or_else(|| dataset.shipped_seed()), &out)
        }
        Verb::Dataset { dataset: None, .. } => bail!("name a dataset, or give `--check`"),
        Verb::Lengths { model, files } => lengths(&model, &files),
        Verb::Schema => schema::write(root()),
        Verb::Tidy => return tidy_tree(),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

fn check_datasets() -> Result<()> {
    for dataset in Dataset::ALL {
        dataset::check(dataset, dataset.shipped_seed(), &root().join("datasets").join(dataset.folder()))?;
    }
    Ok(())
}

fn lengths(model: &Path, files: &[PathBuf]) -> Result<()> {
    let counter = Counter::load(model)?;
    let mut out = std::io::stdout().lock();
    for file in files {
        let [prompt, whole] = counter.rows(file)?;
        let mean = |length: Lengths| length.total / length.count.max(1);
        writeln!(
            out,
            "{}: {} rows, {} tokens; mean {} (prompt {}, answer {}), longest {}",
            file.display(),
            whole.count,
            whole.total,
            mean(whole),
            mean(prompt),
            mean(whole) - mean(prompt),
            whole.longest
        )?;
    }
    Ok(())
}

/// Print what is not tidy; one error fails.
fn tidy_tree() -> Result<ExitCode> {
    let findings = tidy::check(root())?;
    let mut out = std::io::stderr().lock();
    for notice in &findings.notices {
        writeln!(out, "notice: {notice}")?;
    }
    for error in &findings.errors {
        writeln!(out, "error: {error}")?;
    }
    Ok(if findings.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
