//! Batches in an order that can be resumed.
//!
//! Everything is a function of the examples, the options, the epoch and the step; nothing depends on how often a method
//! was called. A state saved between two steps therefore continues exactly.

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::packing::pack;
use crate::tokenize::TokenizedExample;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use taper_kernels::rng;

/// How examples become steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataLoaderOptions {
    /// Rows per micro-batch: a row is one example, or one pack of examples.
    pub batch_size: usize,
    /// Micro-batches per optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Tokens of a packed row.
    pub max_length: usize,
    /// Whether short examples share a row.
    pub packing: bool,
    /// Whether each epoch has its own order.
    pub shuffle: bool,
    /// Key of every order.
    pub seed: u64,
    /// After how many epochs [`DataLoader::next_step`] ends; `None` is never.
    pub num_epochs: Option<u64>,
}

/// The cursor: everything a checkpoint needs to continue with the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataLoaderState {
    /// Epoch of the next step, from 0.
    pub epoch: u64,
    /// The next step inside the epoch, from 0.
    pub step_in_epoch: u64,
    /// Hash of all token ids and masks and of the options that shape the steps.
    pub fingerprint: String,
}

/// Optimiser steps over tokenised examples, epoch by epoch.
///
/// - Packs are made once, in an order drawn from the seed; each epoch shuffles the rows. So every epoch has the same
///   number of steps, known in advance.
/// - The first micro-batch of epoch 0 holds the `batch_size` longest rows: no later one can have more tokens, in no epoch,
///   so memory runs out at step 0 or never.
/// - The last step of an epoch may be smaller; nothing is left out.
#[derive(Debug, Clone)]
pub struct DataLoader {
    examples: Arc<[TokenizedExample]>,
    options: DataLoaderOptions,
    rows: Vec<Vec<u32>>,
    fingerprint: String,
    epoch: u64,
    step_in_epoch: u64,
    /// Row numbers of the current epoch in their order.
    order: Vec<u32>,
}

impl DataLoader {
    /// A loader at the first step of epoch 0.
    ///
    /// # Errors
    /// [`Error::NoExamples`], or [`Error::Zero`] for a size of 0.
    pub fn new(examples: impl Into<Arc<[TokenizedExample]>>, options: DataLoaderOptions) -> Result<Self> {
        let examples = examples.into();
        for (name, given) in [
            ("batch_size", options.batch_size),
            ("gradient_accumulation_steps", options.gradient_accumulation_steps),
            ("max_length", options.max_length),
        ] {
            if given == 0 {
                return Err(Error::Zero { name, given });
            }
        }
        if examples.is_empty() {
            return Err(Error::NoExamples);
        }
        let rows = compose_rows(&examples, &options);
        let fingerprint = fingerprint(&examples, &options);
        let mut loader =
            Self { examples, options, rows, fingerprint, epoch: 0, step_in_epoch: 0, order: Vec::new() };
        loader.order = loader.epoch_order(0);
        Ok(loader)
    }

    /// Optimiser steps of every epoch; the last one may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.len().div_ceil(self.rows_per_step()) as u64
    }

    /// Rows of every epoch: packs with packing, examples without.
    pub fn rows_per_epoch(&self) -> usize {
        self.rows.len()
    }

    /// Tokens of every epoch.
    pub fn tokens_per_epoch(&self) -> usize {
        self.examples.iter().map(|example| example.input_ids.len()).sum()
    }

    /// The most tokens that a micro-batch can hold, in any epoch: those of the first one.
    pub fn most_tokens(&self) -> usize {
        self.tokens_of(&self.longest_rows())
    }

    /// The micro-batches of the next optimiser step. `None` after `num_epochs` epochs.
    pub fn next_step(&mut self) -> Option<Vec<Batch>> {
        if self.options.num_epochs.is_some_and(|epochs| self.epoch >= epochs) {
            return None;
        }
        let first = self.step_in_epoch as usize * self.rows_per_step();
        let last = (first + self.rows_per_step()).min(self.order.len());
        let step =
            self.order[first..last].chunks(self.options.batch_size).map(|rows| self.batch(rows)).collect();
        self.step_in_epoch += 1;
        if self.step_in_epoch == self.steps_per_epoch() {
            self.epoch += 1;
            self.step_in_epoch = 0;
            self.order = self.epoch_order(self.epoch);
        }
        Some(step)
    }

    /// Micro-batches over all examples once, in the order of the files, for validation.
    pub fn in_file_order(&self) -> impl Iterator<Item = Batch> + '_ {
        self.examples.chunks(self.options.batch_size).map(Batch::new)
    }

    /// Epochs done so far, with the share of the current one.
    pub fn epochs_done(&self) -> f64 {
        self.epoch as f64 + self.step_in_epoch as f64 / self.steps_per_epoch() as f64
    }

    /// The cursor before the next step.
    pub fn state(&self) -> DataLoaderState {
        DataLoaderState {
            epoch: self.epoch,
            step_in_epoch: self.step_in_epoch,
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// Continue from a saved cursor.
    ///
    /// # Errors
    /// [`Error::Resume`] when the examples or the options are not those of the saved run, or the cursor is outside the epoch.
    pub fn restore(&mut self, state: &DataLoaderState) -> Result<()> {
        if state.fingerprint != self.fingerprint {
            let (then, now) = (state.fingerprint.clone(), self.fingerprint.clone());
            return Err(Error::Resume { what: "the training data or its order", then, now });
        }
        if state.step_in_epoch >= self.steps_per_epoch() {
            let then = format!("step {}", state.step_in_epoch);
            let now = format!("{} steps", self.steps_per_epoch());
            return Err(Error::Resume { what: "the length of an epoch", then, now });
        }
        self.epoch = state.epoch;
        self.step_in_epoch = state.step_in_epoch;
        self.order = self.epoch_order(state.epoch);
        Ok(())
    }

    fn rows_per_step(&self) -> usize {
        self.options.batch_size * self.options.gradient_accumulation_steps
    }

    fn batch(&self, rows: &[u32]) -> Batch {
        Batch::new(rows.iter().flat_map(|&row| &self.rows[row as usize]).map(|&i| &self.examples[i as usize]))
    }

    fn tokens_of(&self, rows: &[u32]) -> usize {
        let examples = rows.iter().flat_map(|&row| &self.rows[row as usize]);
        examples.map(|&i| self.examples[i as usize].input_ids.len()).sum()
    }

    fn epoch_order(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.rows.len() as u32).collect();
        if self.options.shuffle {
            rng::shuffle(self.options.seed, rng::mix(rng::stream_of("data.order"), epoch), &mut order);
        }
        if epoch == 0 {
            self.longest_first(&mut order);
        }
        order
    }

    /// Move the `batch_size` longest rows (of equals the first) to the front; the others keep their order.
    fn longest_first(&self, order: &mut Vec<u32>) {
        let longest = self.longest_rows();
        order.retain(|row| !longest.contains(row));
        order.splice(0..0, longest);
    }

    fn longest_rows(&self) -> Vec<u32> {
        let mut rows: Vec<u32> = (0..self.rows.len() as u32).collect();
        rows.sort_by_key(|&row| std::cmp::Reverse(self.tokens_of(&[row])));
        rows.truncate(self.options.batch_size);
        rows
    }
}

fn compose_rows(examples: &[TokenizedExample], options: &DataLoaderOptions) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..examples.len() as u32).collect();
    if !options.packing {
        return order.into_iter().map(|index| vec![index]).collect();
    }
    if options.shuffle {
        rng::shuffle(options.seed, rng::stream_of("data.packing"), &mut order);
    }
    let lengths: Vec<usize> = examples.iter().map(|example| example.input_ids.len()).collect();
    pack(&lengths, &order, options.max_length)
}

fn fingerprint(examples: &[TokenizedExample], options: &DataLoaderOptions) -> String {
    let shape = [
        options.batch_size as u64,
        options.gradient_accumulation_steps as u64,
        if options.packing { options.max_length as u64 } else { 0 },
        u64::from(options.shuffle),
        options.seed,
        examples.len() as u64,
    ];
    let shape = shape.into_iter().fold(rng::stream_of("data.fingerprint"), rng::mix);
    let hash = examples.iter().fold(shape, |hash, example| {
        let ids = example.input_ids.iter().zip(&example.loss_mask);
        ids.fold(rng::mix(hash, example.input_ids.len() as u64), |hash, (&id, &learned)| {
            rng::mix(hash, u64::from(id) << 1 | u64::from(learned))
        })
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::IGNORE;
    use crate::example::RowPlace;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Examples whose masks are drawn; the line is the example's number.
    fn examples(lengths_and_masks: &[Vec<bool>]) -> Vec<TokenizedExample> {
        let example = |(line, mask): (usize, &Vec<bool>)| TokenizedExample {
            input_ids: (0..mask.len() as u32).map(|t| line as u32 * 1000 + t).collect(),
            loss_mask: mask.clone(),
            source: RowPlace { file: Path::new("a.jsonl").into(), line, element: None },
        };
        lengths_and_masks.iter().enumerate().map(example).collect()
    }

    fn options() -> DataLoaderOptions {
        DataLoaderOptions {
            batch_size: 2,
            gradient_accumulation_steps: 2,
            max_length: 40,
            packing: false,
            shuffle: true,
            seed: 7,
            num_epochs: Some(2),
        }
    }

    fn some_examples(count: usize) -> Vec<TokenizedExample> {
        examples(&(0..count).map(|i| vec![true; 3 + i * 7 % 20]).collect::<Vec<_>>())
    }

    #[test]
    fn the_first_micro_batch_is_the_largest_of_all_epochs() {
        for packing in [false, true] {
            let mut loader =
                DataLoader::new(some_examples(33), DataLoaderOptions { packing, ..options() }).unwrap();
            let mut sizes = Vec::new();
            while let Some(step) = loader.next_step() {
                sizes.extend(step.iter().map(Batch::tokens));
            }
            assert_eq!(sizes.iter().max(), Some(&sizes[0]));
            assert_eq!(sizes[0], loader.most_tokens());
        }
    }

    #[test]
    fn epochs_differ_in_order_when_shuffled_and_not_otherwise() {
        let order = |shuffle, seed| {
            let options = DataLoaderOptions { shuffle, seed, num_epochs: Some(3), ..options() };
            let loader = DataLoader::new(some_examples(20), options).unwrap();
            [loader.epoch_order(1), loader.epoch_order(2)]
        };
        let [first, second] = order(true, 7);
        assert_ne!(first, second);
        assert_eq!(order(true, 7), [first.clone(), second]);
        assert_ne!(order(true, 8)[0], first);
        let [first, second] = order(false, 7);
        assert!(first == second && first.is_sorted());
    }

    #[test]
    fn other_data_or_options_are_refused_on_resume() {
        let state = DataLoader::new(some_examples(9), options()).unwrap().state();
        let refused = |examples: Vec<TokenizedExample>, options| {
            matches!(DataLoader::new(examples, options).unwrap().restore(&state), Err(Error::Resume { .. }))
        };
        assert!(!refused(some_examples(9), DataLoaderOptions { num_epochs: None, ..options() }));
        assert!(refused(some_examples(8), options()));
        assert!(refused(some_examples(9), DataLoaderOptions { seed: 8, ..options() }));
        assert!(refused(some_examples(9), DataLoaderOptions { packing: true, ..options() }));
        let mut masked = some_examples(9);
        masked[3].loss_mask[1] = false;
        assert!(refused(masked, options()));
    }

    #[test]
    fn sizes_of_zero_and_no_examples_are_errors() {
        assert!(matches!(DataLoader::new(Vec::new(), options()), Err(Error::NoExamples)));
        let zero = DataLoaderOptions { batch_size: 0, ..options() };
        assert!(matches!(
            DataLoader::new(some_examples(2), zero),
            Err(Error::Zero { name: "batch_size", .. })
        ));
    }

    fn masks() -> impl Strategy<Value = Vec<Vec<bool>>> {
        prop::collection::vec(prop::collection::vec(any::<bool>(), 1..40), 1..40)
    }

    proptest! {
        #[test]
        fn every_example_comes_once_per_epoch_in_its_own_segment_with_its_own_targets(
            masks in masks(), batch_size in 1usize..4, accumulation in 1usize..4, packing: bool, shuffle: bool,
        ) {
            let examples = examples(&masks);
            let options = DataLoaderOptions {
                batch_size, gradient_accumulation_steps: accumulation, packing, shuffle, ..options()
            };
            let mut loader = DataLoader::new(examples.clone(), options).unwrap();
            let steps = loader.steps_per_epoch();
            let mut seen: BTreeMap<(u64, usize), usize> = BTreeMap::new();
            let mut count = 0;
            while let Some(step) = loader.next_step() {
                prop_assert!(!step.is_empty() && step.len() <= accumulation);
                for batch in step {
                    check_batch(&batch, &examples, packing)?;
                    for source in &batch.sources {
                        *seen.entry((count / steps, source.line)).or_default() += 1;
                    }
                }
                count += 1;
            }
            prop_assert_eq!(count, 2 * steps);
            prop_assert_eq!(seen.len(), 2 * examples.len());
            prop_assert!(seen.values().all(|&times| times == 1));
        }

        #[test]
        fn a_loader_restored_at_any_step_continues_like_the_uninterrupted_one(
            masks in masks(), packing: bool, at in 0usize..30,
        ) {
            let new = || DataLoader::new(examples(&masks), DataLoaderOptions { packing, ..options() }).unwrap();
            let mut whole = new();
            for _ in 0..at {
                whole.next_step();
            }
            let saved = serde_json::to_string(&whole.state()).unwrap();
            let mut resumed = new();
            resumed.next_step();
            resumed.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
            loop {
                let step = whole.next_step();
                prop_assert_eq!(&step, &resumed.next_step());
                if step.is_none() {
                    break;
                }
            }
        }
    }

    fn check_batch(batch: &Batch, examples: &[TokenizedExample], packing: bool) -> Result<(), TestCaseError> {
        let mut end = 0;
        let mut learned = 0;
        for (segment, source) in batch.segments.iter().zip(&batch.sources) {
            prop_assert_eq!(segment.start, end);
            end = segment.end;
            let example = &examples[source.line];
            prop_assert_eq!(&batch.input_ids[segment.clone()], example.input_ids.as_slice());
            prop_assert!(batch.position_ids[segment.clone()].iter().copied().eq(0..segment.len() as u32));
            for (t, &target) in batch.targets[segment.clone()].iter().enumerate() {
                let next = example.loss_mask.get(t + 1).is_some_and(|&learned| learned);
                prop_assert_eq!(target, if next { example.input_ids[t + 1] } else { IGNORE });
            }
            // Packed = separate: the targets are those of the example alone.
            let alone = Batch::new([example]);
            prop_assert_eq!(&batch.targets[segment.clone()], alone.targets.as_slice());
            prop_assert_eq!(*alone.targets.last().unwrap(), IGNORE);
            learned += example.loss_mask[1..].iter().filter(|&&learned| learned).count();
        }
        prop_assert_eq!(end, batch.tokens());
        prop_assert_eq!(batch.targets.iter().filter(|&&target| target != IGNORE).count(), learned);
        prop_assert_eq!(batch.target_tokens, learned);
        prop_assert!(packing || batch.segments.len() <= 3);
        Ok(())
    }
}
