//! Settings with which a run fits that does not.

use super::work::{Changed, Work};
use crate::commands::train::loader_options;
use crate::fault::OrFault;
use taper_data::{DataLoader, DataLoaderOptions, TokenizedExample, Truncation};
use taper_models::Quantize;
use taper_quant::BlockFormat;
use taper_train::plan::{BatchShape, ModuleKind, WeightFormat, modules};

/// Keys of the recipe to set, and what the run would then hold at its peak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) keys: Vec<String>,
    pub(super) peak_bytes: u64,
}

/// What NF4 takes in bitsandbytes' layout.
const NF4: BlockFormat = BlockFormat::Nf4 { block_size: 64, double_quant: false };
/// Shortest `data.max_length` that is proposed.
const LEAST_LENGTH: usize = 128;

/// Single settings with which the peak is at most `available`; when there is none, all of them together if that is enough.
pub(super) fn settings_that_fit(work: &Work<'_>, available: u64) -> anyhow::Result<Vec<Setting>> {
    let peak = |changed: &Changed| work.memory_with(changed).peak().bytes.total();
    let setting =
        |keys: &[String], changed: &Changed| Setting { keys: keys.to_vec(), peak_bytes: peak(changed) };
    let mut fitting = Vec::new();
    let mut together = (Vec::new(), work.unchanged());
    let all_steps = [checkpointing(work), smaller_batches(work)?, quantised(work), shorter_texts(work)?];
    for steps in all_steps {
        // Of the steps of one setting the mildest that suffices.
        let settings: Vec<Setting> = steps.iter().map(|(keys, changed)| setting(keys, changed)).collect();
        fitting.extend(settings.into_iter().find(|setting| setting.peak_bytes <= available));
        if let Some((keys, changed)) = steps.last().filter(|(keys, _)| !keys[0].starts_with("data.")) {
            together.0.extend(keys.iter().cloned());
            merge(&mut together.1, changed, &work.unchanged());
        }
    }
    let all = setting(&together.0, &together.1);
    if fitting.is_empty() && all.peak_bytes <= available {
        fitting.push(all);
    }
    Ok(fitting)
}

type Step = (Vec<String>, Changed);

fn checkpointing(work: &Work<'_>) -> Vec<Step> {
    let mut changed = work.unchanged();
    let (mut keys, mut steps) = (Vec::new(), Vec::new());
    if !changed.train.gradient_checkpointing {
        changed.train.gradient_checkpointing = true;
        keys.push("train.gradient_checkpointing=true".to_owned());
        steps.push((keys.clone(), changed.clone()));
    }
    if work.on_gpu() && !changed.train.activation_offloading {
        changed.train.activation_offloading = true;
        keys.push("train.activation_offloading=true".to_owned());
        steps.push((keys, changed));
    }
    steps
}

/// The batch halved and halved again, as many times more of them in a step.
fn smaller_batches(work: &Work<'_>) -> anyhow::Result<Vec<Step>> {
    let options = loader_options(work.session);
    let (mut batch_size, mut accumulation) = (options.batch_size, options.gradient_accumulation_steps);
    let mut steps = Vec::new();
    while batch_size > 1 && batch_size.is_multiple_of(2) {
        (batch_size, accumulation) = (batch_size / 2, accumulation * 2);
        let options = DataLoaderOptions { batch_size, ..options.clone() };
        let batch = longest(work, work.session.data.train.tokenized.clone(), options)?;
        let keys = vec![
            format!("train.batch_size={batch_size}"),
            format!("train.gradient_accumulation_steps={accumulation}"),
        ];
        steps.push((keys, Changed { batch, ..work.unchanged() }));
    }
    Ok(steps)
}

/// The linear layers but the head in NF4; what is trained in full stays in f32, and a base that is quantised is not quantised again.
fn quantised(work: &Work<'_>) -> Vec<Step> {
    let modules = modules(&work.config);
    let is_quantised = modules.iter().any(|m| matches!(work.format(&m.path), WeightFormat::Block(_)));
    if work.session.trains_all_weights() || is_quantised {
        return Vec::new();
    }
    let (nf4, quantize) = (WeightFormat::Block(NF4), Quantize { format: NF4, embeddings: false });
    let saved: u64 = modules
        .iter()
        .map(|module| match module.kind {
            ModuleKind::Linear { n_in, n_out, .. } if quantize.applies_to(&module.path) => {
                let now = work.format(&module.path).matrix_bytes(n_out, n_in);
                now.saturating_sub(nf4.matrix_bytes(n_out, n_in))
            }
            _ => 0,
        })
        .sum();
    if saved == 0 {
        return Vec::new();
    }
    let weight_bytes = work.weight_bytes - saved;
    let changed = Changed { weight_bytes, quantize: Some(quantize), ..work.unchanged() };
    vec![(vec!["model.quantize=nf4".to_owned()], changed)]
}

/// Texts cut at half the length of the longest, and half of that.
fn shorter_texts(work: &Work<'_>) -> anyhow::Result<Vec<Step>> {
    let options = loader_options(work.session);
    let tokenized = &work.session.data.train.tokenized;
    let longest_text = tokenized.iter().map(|example| example.input_ids.len()).max().unwrap_or(0);
    let mut max_length = if options.packing { options.max_length } else { longest_text };
    let mut steps = Vec::new();
    while max_length / 2 >= LEAST_LENGTH {
        max_length /= 2;
        let cut = tokenized.iter().map(|example| cut(example, max_length)).collect();
        let batch = longest(work, cut, DataLoaderOptions { max_length, ..options.clone() })?;
        let mut keys = vec![format!("data.max_length={max_length}")];
        if work.session.run.recipe.data.truncation == Truncation::Error {
            keys.push("data.truncation=right".to_owned());
        }
        steps.push((keys, Changed { batch, ..work.unchanged() }));
    }
    Ok(steps)
}

fn cut(example: &TokenizedExample, most: usize) -> TokenizedExample {
    let mut example = example.clone();
    example.input_ids.truncate(most);
    example.loss_mask.truncate(most);
    example
}

fn longest(
    work: &Work<'_>,
    examples: Vec<TokenizedExample>,
    options: DataLoaderOptions,
) -> anyhow::Result<BatchShape> {
    let first = DataLoader::new(examples, options).or_fault()?.next_step().unwrap_or_default();
    Ok(first.first().map_or_else(|| work.unchanged().batch, BatchShape::from))
}

/// Take over what `changed` changes of `from`.
fn merge(into: &mut Changed, changed: &Changed, from: &Changed) {
    if changed.train != from.train {
        into.train = changed.train.clone();
    }
    if changed.batch != from.batch {
        into.batch = changed.batch;
    }
    if changed.weight_bytes != from.weight_bytes {
        (into.weight_bytes, into.quantize) = (changed.weight_bytes, changed.quantize);
    }
}
