//! Batches of the fixtures, and greedy decoding in its plainest form.

use candle_core::{IndexOp, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use taper_hub::ModelFiles;
use taper_models::{CausalLm, LoadOptions, forward_logits, load};
use taper_nn::{ForwardContext, KvCache, SequenceLayout};
use taper_testkit::golden;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A fixture's model, with the configuration file of the given name.
pub(crate) fn fixture(name: &str, config: &str) -> Box<dyn CausalLm> {
    load(&fixture_files(name, config), LoadOptions::default()).unwrap()
}

pub(crate) fn fixture_files(name: &str, config: &str) -> ModelFiles {
    let mut files = ModelFiles::of_folder(&golden(&format!("models/{name}"))).unwrap();
    files.config = golden(&format!("models/{name}/{config}")).into();
    files
}

pub(crate) fn logits(model: &dyn CausalLm, ids: &[u32], layout: &SequenceLayout) -> Tensor {
    forward_logits(model, ids, &mut ForwardContext::new(layout)).unwrap()
}

/// The real tokens of a padded batch: ids in a row, the layout, and the place of each in the flattened `[B * S]`.
pub(crate) struct Batch {
    pub(crate) ids: Vec<u32>,
    pub(crate) layout: SequenceLayout,
    pub(crate) places: Vec<u32>,
}

impl Batch {
    pub(crate) fn of(tensors: &Tensors, ids: &str, mask: &str) -> Self {
        let (ids, mask) = (rows(&tensors[ids]), rows(&tensors[mask]));
        let width = mask[0].len();
        let lengths: Vec<usize> = mask.iter().map(|row| row.iter().sum::<i64>() as usize).collect();
        let real: Vec<usize> =
            mask.concat().iter().enumerate().filter(|(_, m)| **m == 1).map(|(i, _)| i).collect();
        let flat = ids.concat();
        assert_eq!(flat.len(), width * mask.len());
        Self {
            ids: real.iter().map(|&i| flat[i] as u32).collect(),
            layout: SequenceLayout::from_lengths(&lengths),
            places: real.iter().map(|&i| i as u32).collect(),
        }
    }

    /// The rows of a `[B, S, n]` tensor at real tokens: `[T, n]`.
    pub(crate) fn rows_of(&self, padded: &Tensor) -> Tensor {
        let (b, s, n) = padded.dims3().unwrap();
        let places = Tensor::new(self.places.as_slice(), padded.device()).unwrap();
        padded.reshape((b * s, n)).unwrap().index_select(&places, 0).unwrap()
    }

    /// Rows of logits and the ids that they should predict, by labels `[B, S]` where -100 is ignored.
    pub(crate) fn targets(&self, labels: &Tensor) -> (Vec<u32>, Vec<u32>) {
        let labels = rows(labels).concat();
        let (mut at, mut targets) = (Vec::new(), Vec::new());
        for segment in self.layout.segments() {
            for t in segment.start..segment.end - 1 {
                let label = labels[self.places[t + 1] as usize];
                if label != -100 {
                    at.push(t as u32);
                    targets.push(label as u32);
                }
            }
        }
        (at, targets)
    }
}

pub(crate) fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
    tensor.to_vec2::<i64>().unwrap()
}

pub(crate) fn ids(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect()
}

/// Greedy decoding that computes the whole text again for every token.
pub(crate) fn greedy_plain(model: &dyn CausalLm, prompt: &[u32], new_tokens: usize) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for _ in 0..new_tokens {
        let logits = logits(model, &text, &SequenceLayout::single(text.len()));
        text.push(argmax(&logits.i(text.len() - 1).unwrap()));
    }
    text
}

/// Greedy decoding of several prompts together, each with its cache.
pub(crate) fn greedy_cached(model: &dyn CausalLm, prompts: &[Vec<u32>], new_tokens: usize) -> Vec<Vec<u32>> {
    let mut texts = prompts.to_vec();
    let mut caches = vec![KvCache::new(model.num_blocks()); prompts.len()];
    let mut pasts = vec![0; prompts.len()];
    let switch = model.config().rope.switch_length();
    for _ in 0..new_tokens {
        for ((text, past), cache) in texts.iter().zip(&mut pasts).zip(&mut caches) {
            // Beyond this length the cached keys are of no use.
            if switch.is_some_and(|length| *past > 0 && text.len() == length + 1) {
                cache.truncate(0);
                *past = 0;
            }
        }
        let news: Vec<(usize, usize)> =
            texts.iter().zip(&pasts).map(|(text, &past)| (text.len() - past, past)).collect();
        let input: Vec<u32> =
            texts.iter().zip(&pasts).flat_map(|(text, &past)| text[past..].to_vec()).collect();
        let layout = SequenceLayout::continued(&news);
        let logits = cached_logits(model, &input, &layout, &mut caches);
        for ((text, past), segment) in texts.iter_mut().zip(&mut pasts).zip(layout.segments()) {
            *past = text.len();
            text.push(argmax(&logits.i(segment.end - 1).unwrap()));
        }
    }
    texts
}

pub(crate) fn cached_logits(
    model: &dyn CausalLm,
    ids: &[u32],
    layout: &SequenceLayout,
    caches: &mut [KvCache],
) -> Tensor {
    let mut ctx = ForwardContext::cached(layout, caches.iter_mut().collect());
    forward_logits(model, ids, &mut ctx).unwrap()
}

fn argmax(logits: &Tensor) -> u32 {
    logits.argmax(0).unwrap().to_scalar::<u32>().unwrap()
}

/// A folder with a fixture's files, whose configuration is changed.
pub(crate) fn changed_config(
    name: &str,
    folder: &Path,
    change: impl Fn(&mut serde_json::Value),
) -> ModelFiles {
    let from = golden(&format!("models/{name}"));
    fs_err::copy(from.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    let mut config = taper_testkit::read_json(&from.join("config.json"));
    change(&mut config);
    fs_err::write(folder.join("config.json"), config.to_string()).unwrap();
    ModelFiles::of_folder(folder).unwrap()
}
