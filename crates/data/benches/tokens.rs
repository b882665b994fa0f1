//! From JSONL to packed rows: tokens a second on one and two threads, over 20,000 conversations made of the shipped datasets, with the
//! shipped base's tokenizer and template, or those of the folder that `TAPER_BENCH_BASE` names.
//!
//! `cargo bench -p taper-data`, on an otherwise idle machine.

use divan::Bencher;
use divan::counter::ItemsCount;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use taper_data::{
    DataLoader, DataLoaderOptions, DataSection, PrepareOptions, PreparedData, Supervision, TextEncoder,
    TokenCache, prepare_with,
};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};

const THREADS: [usize; 2] = [1, 2];
const ROWS: usize = 20_000;

fn main() {
    divan::main();
}

/// A data file, and what makes tokens of it.
struct Setup {
    folder: tempfile::TempDir,
    section: DataSection,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Setup {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let base = std::env::var_os("TAPER_BENCH_BASE").map_or(root.join("models/tiny-base"), PathBuf::from);
        let files = TokenizerFiles::in_folder(&base);
        let tokenizer = Tokenizer::load(&files).expect("a tokenizer");
        let template = ChatTemplate::load(&files, &tokenizer).expect("a template").expect("a chat template");
        let template = template.with_fixed_clock(0, &tokenizer).expect("a template");
        let folder = tempfile::tempdir().expect("a folder");
        fs_err::write(folder.path().join("train.jsonl"), rows(&root)).expect("a file");
        let section = DataSection { train: ["train.jsonl"].into_iter().collect(), ..DataSection::default() };
        Self { folder, section, tokenizer, template }
    }

    fn prepare(&self, cache: Option<&TokenCache>) -> PreparedData {
        let encoder = TextEncoder::new(&self.tokenizer, Some(&self.template), Supervision::Assistant);
        prepare_with(&self.section, self.folder.path(), 1, &encoder, PrepareOptions { cache, fields: &[] })
    }
}

/// Rows of both datasets in turn, each with a number of its own, so that none is a copy.
fn rows(root: &Path) -> String {
    let read = |name: &str| fs_err::read_to_string(root.join(format!("datasets/{name}/train.jsonl")));
    let texts = ["clinical-deid", "ticket-triage"].map(|name| read(name).expect("a dataset"));
    let mut lines = texts[0].lines().zip(texts[1].lines()).flat_map(|(one, other)| [one, other]).cycle();
    let mut rows = String::new();
    for number in 0..ROWS {
        let line = lines.next().expect("a row");
        let numbered = line.replacen(
            "\"role\":\"user\",\"content\":\"",
            &format!("\"role\":\"user\",\"content\":\"{number}: "),
            1,
        );
        writeln!(rows, "{numbered}").expect("a string");
    }
    rows
}

fn tokens(data: &PreparedData) -> usize {
    assert_eq!(data.train.tokenized.len(), ROWS, "{}", data.problems);
    data.train.stats().tokens
}

fn bench(bencher: Bencher<'_, '_>, threads: usize, tokens: usize, f: impl Fn() + Send + Sync) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    bencher.counter(ItemsCount::new(tokens)).bench_local(|| pool.install(&f));
}

/// Read, render, tokenise, check.
#[divan::bench(args = THREADS, sample_count = 5, sample_size = 1)]
fn tokenise(bencher: Bencher<'_, '_>, threads: usize) {
    let setup = Setup::new();
    bench(bencher, threads, tokens(&setup.prepare(None)), || drop(setup.prepare(None)));
}

/// The same in a second run.
#[divan::bench(args = THREADS, sample_count = 5, sample_size = 1)]
fn tokens_that_were_kept(bencher: Bencher<'_, '_>, threads: usize) {
    let setup = Setup::new();
    let cache = TokenCache::new(setup.folder.path().join("cache"));
    let tokens = tokens(&setup.prepare(Some(&cache)));
    bench(bencher, threads, tokens, || assert_eq!(setup.prepare(Some(&cache)).reused, ROWS));
}

/// Tokens to packed rows, and the fingerprint of the whole.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn packing(bencher: Bencher<'_, '_>) {
    let setup = Setup::new();
    let data = setup.prepare(None);
    let options = DataLoaderOptions {
        batch_size: 4,
        gradient_accumulation_steps: 1,
        max_length: 2048,
        packing: true,
        shuffle: true,
        seed: 1,
        num_epochs: None,
    };
    let counter = ItemsCount::new(tokens(&data));
    bencher.counter(counter).bench_local(|| DataLoader::new(data.train.tokenized.clone(), options.clone()));
}
