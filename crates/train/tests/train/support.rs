//! Models, adapters and data of the tests: the golden fixtures, and examples made by a counter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use taper_data::{Batch, DataLoader, DataLoaderOptions, IGNORE, RowPlace, TokenizedExample};
use taper_hub::{HubOptions, ModelSource};
use taper_kernels::rng::CounterRng;
use taper_models::{CausalLm, LoadOptions};
use taper_nn::{Parameter, to_vec_f32};
use taper_peft::{AdapterConfig, AdapterSection, LoadMode};
use taper_train::{RunPlace, Sections, Start, Trained, TrainingData};

/// A file or folder of the golden fixtures.
pub(crate) fn golden(name: &str) -> PathBuf {
    taper_testkit::golden(name)
}

/// A golden model.
pub(crate) fn model(name: &str) -> Box<dyn CausalLm> {
    model_in(&golden("models").join(name))
}

/// The model in a folder.
pub(crate) fn model_in(folder: &Path) -> Box<dyn CausalLm> {
    let source = ModelSource::parse(&folder.to_string_lossy()).unwrap();
    taper_models::load(&source.resolve(&HubOptions::default()).unwrap(), LoadOptions::default()).unwrap()
}

/// The adapter in a golden folder, put on `model`.
pub(crate) fn golden_adapter(folder: &str, model: &mut dyn CausalLm) -> Trained {
    Trained::adapter(taper_peft::load(&golden(folder), model, LoadMode::Training).unwrap())
}

/// A new adapter on all linear layers, with dropout, r 4.
pub(crate) fn new_adapter(model: &mut dyn CausalLm, seed: u64) -> Trained {
    adapter_with(model, seed, |_| ())
}

/// A new adapter as [`new_adapter`] makes it, changed by `change`.
pub(crate) fn adapter_with(
    model: &mut dyn CausalLm,
    seed: u64,
    change: impl FnOnce(&mut AdapterConfig),
) -> Trained {
    let section = AdapterSection { r: 4, lora_alpha: 8.0, lora_dropout: 0.1, ..AdapterSection::default() };
    let mut config = section.to_config("base");
    change(&mut config);
    Trained::adapter(taper_peft::attach(model, &config, "llama", seed).unwrap())
}

/// `count` examples of 4 to 19 tokens below 256; about two thirds of their tokens are learned.
pub(crate) fn examples(count: usize, seed: u64) -> Vec<TokenizedExample> {
    let one = |index: usize| {
        let rng = CounterRng::new(seed, index as u64);
        let length = 4 + rng.below(0, 16) as usize;
        let token = |at: u64| 1 + (rng.below(100 + at / 3, 40) * 6 + at % 3) as u32;
        TokenizedExample {
            input_ids: (0..length as u64).map(token).collect(),
            loss_mask: (0..length).map(|at| at >= length / 3).collect(),
            source: RowPlace { file: Arc::from(Path::new("made.jsonl")), line: index + 1, element: None },
        }
    };
    (0..count).map(one).collect()
}

/// A loader over [`examples`].
pub(crate) fn loader(count: usize, batch_size: usize, accumulation: usize) -> DataLoader {
    let options = DataLoaderOptions {
        batch_size,
        gradient_accumulation_steps: accumulation,
        max_length: 64,
        packing: false,
        shuffle: true,
        seed: 5,
        num_epochs: None,
    };
    DataLoader::new(examples(count, 1), options).unwrap()
}

/// Thirteen training examples in steps of 2 + 2, three for validation.
pub(crate) fn data() -> TrainingData {
    TrainingData { train: loader(13, 2, 2), valid: vec![Batch::new(&examples(3, 99))] }
}

/// A run in `folder`.
pub(crate) fn place(folder: &Path, start: Start) -> RunPlace {
    RunPlace {
        folder: folder.to_owned(),
        fingerprints: BTreeMap::from([("recipe".to_owned(), "0123".to_owned())]),
        start,
        interrupt: Arc::new(AtomicBool::new(false)),
    }
}

/// Eleven steps with everything on: warm-up, noise, clipping, validation every three steps, checkpoints every two.
pub(crate) fn sections() -> Sections {
    let mut sections = Sections::default();
    sections.train.max_steps = Some(11);
    sections.train.neftune_noise_alpha = Some(1.0);
    sections.train.logging_steps = 3;
    sections.train.eval_steps = Some(3);
    sections.train.save_steps = Some(2);
    sections.train.self_test = false;
    sections.optimizer.learning_rate = 5e-3;
    sections.schedule.warmup_steps = Some(2);
    sections
}

/// Rows of token ids with labels (-100: not learned; the label at t + 1 is what t predicts), padding cut off.
pub(crate) fn labelled_batch(rows: &[(Vec<u32>, Vec<i64>)]) -> Batch {
    let mut batch = Batch::default();
    for (ids, labels) in rows {
        let start = batch.input_ids.len();
        batch.input_ids.extend(ids);
        batch.position_ids.extend(0..ids.len() as u32);
        let next = labels[1..ids.len()].iter().map(|label| u32::try_from(*label).unwrap_or(IGNORE));
        batch.targets.extend(next.chain(std::iter::once(IGNORE)));
        batch.segments.push(start..batch.input_ids.len());
    }
    batch.target_tokens = batch.targets.iter().filter(|target| **target != IGNORE).count();
    batch
}

/// Names, shapes aside, and bits of the parameters.
pub(crate) fn bits(parameters: &[Parameter]) -> BTreeMap<String, Vec<u32>> {
    let read = |p: &Parameter| to_vec_f32(p.var.as_tensor()).unwrap().iter().map(|v| v.to_bits()).collect();
    parameters.iter().map(|p| (p.name.clone(), read(p))).collect()
}
