//! Held-out examples that were trained on, or nearly: by the input, to the byte, but for case and white space, or in nearly the
//! same words.
//!
//! Two inputs are near when the sets of their shingles (three words in a row, see `sketch`) have a Jaccard similarity of
//! [`NEAR_SIMILARITY`] or more: |A and B| / |A or B|. What a tenth of the training rows say (an instruction that stands in every prompt)
//! is not counted on either side, so that rows of one task are not alike for their instruction.
//!
//! Texts of up to 130 words are compared exactly. Of longer ones a sample of 128 shingles is kept, and the similarity is estimated
//! from it: the standard error is sqrt(s (1 - s) / 128) or less, 0.035 at s = 0.8. Where what a tenth says leaves fewer than 32 of the sample,
//! nothing is said.
//!
//! Pairs are found without comparing all: two sorted lists of n and m hashes that are alike at s share one of the first
//! (1 - s) n + 1 and (1 - s) m + 1 (the prefix filter of Chaudhuri, Ganti and Kaushik, 2006), so only those are looked up. None is
//! missed. Memory beside the keys is some 100 bytes for each hash of a held-out prefix (26 or fewer) and 24 bytes a held-out example and
//! chunk of training rows.

use crate::overlap::{ExampleKeys, duplicates_of, short};
use crate::sketch::Sketch;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use taper_diagnostics::Problem;

/// Least similarity of a near-duplicate. It is what corpora are cleaned of near-duplicates with (Lee et al., "Deduplicating training
/// data makes language models better", 2022, use it with five words in a row): nine of ten shingles of each text are in the other.
pub const NEAR_SIMILARITY: f64 = 0.8;
/// The same as a fraction, to compare counts with.
const NEAR: (usize, usize) = (4, 5);
/// Shingles that two texts which are held whole must have together, those that are common not counted: as many as eight words have.
const LEAST_SHINGLES: usize = 6;
/// And where one of them is held as a sample: below, the standard error is above 0.07.
const LEAST_SAMPLE: usize = 32;
/// A shingle is common when it stands in more than one of so many training rows ...
const COMMON_SHARE: usize = 10;
/// ... and in more than so many: in a few rows a tenth is one.
const LEAST_COMMON: usize = 10;
/// Training rows in which common shingles are counted, evenly spread: a share of a tenth is known to a hundredth.
const ROWS_COUNTED: usize = 1024;
/// Training rows that are compared by one thread at a time.
const CHUNK_ROWS: usize = 4096;
/// Pairs that a message names.
const PAIRS_NAMED: usize = 3;

/// How an input is like one that was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TouchKind {
    /// The same bytes.
    Exact,
    /// The same but for case and white space.
    Normalised,
    /// Nearly the same words.
    Near,
}

/// A held-out example that training has touched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Touched {
    /// Its index.
    pub held_out_index: usize,
    /// The index of the training example: the most similar one, of several the first.
    pub train_index: usize,
    /// In what way.
    pub kind: TouchKind,
    /// Jaccard similarity of the shingles; 1 for inputs that are the same.
    pub similarity: f64,
}

/// The examples of `held_out` whose input is that of an answer in `train`, or nearly, each with the most similar one there, in the
/// order of `held_out`.
pub fn touched(train: &[ExampleKeys], held_out: &[ExampleKeys]) -> Vec<Touched> {
    let mut found = near(train, held_out);
    for (held_out_index, train_index, is_exact) in duplicates_of(train, held_out) {
        let kind = if is_exact { TouchKind::Exact } else { TouchKind::Normalised };
        found[held_out_index] = Some(Touched { held_out_index, train_index, kind, similarity: 1.0 });
    }
    found.into_iter().flatten().collect()
}

/// The near ones among `touched` as a warning, or `None` when there are none.
pub fn near_duplicates(
    touched: &[Touched],
    (name, held_out): (&str, &[ExampleKeys]),
    (other, train): (&str, &[ExampleKeys]),
) -> Option<Problem> {
    let near: Vec<&Touched> = touched.iter().filter(|found| found.kind == TouchKind::Near).collect();
    let first = near.first()?;
    let pair = |found: &&&Touched| {
        let (of, with) = (&held_out[found.held_out_index].place, &train[found.train_index].place);
        format!("{} ~ {} ({:.2})", short(of), short(with), found.similarity)
    };
    let named: Vec<String> = near.iter().take(PAIRS_NAMED).map(|found| pair(&found)).collect();
    let message = format!(
        "{} of {} inputs of `{name}` are nearly those of rows of `{other}` (similarity {NEAR_SIMILARITY} or more): {}",
        near.len(),
        held_out.len(),
        named.join(", ")
    );
    let hint = "what is measured on them is in part what was trained on; look at them, and take them out of one file unless \
                they are what the model will meet";
    let at = held_out[first.held_out_index].place.location();
    Some(Problem::warning("near-duplicates", message).at(at).hint(hint))
}

/// For each held-out example its most similar training example, if one is near.
fn near(train: &[ExampleKeys], held_out: &[ExampleKeys]) -> Vec<Option<Touched>> {
    let common = common_shingles(train);
    let asked: Vec<Counted> =
        held_out.iter().map(|keys| Counted::of(keys.sketches().last(), &common)).collect();
    let mut with: HashMap<u32, Vec<usize>> = HashMap::new();
    for (index, sketch) in asked.iter().enumerate() {
        for &hash in sketch.prefix() {
            with.entry(hash).or_default().push(index);
        }
    }
    let none = || vec![None; held_out.len()];
    if with.is_empty() {
        return none();
    }
    let chunks = train.par_chunks(CHUNK_ROWS).enumerate();
    let best_of_chunk = chunks.map(|(chunk, rows)| {
        let mut best = none();
        for (at, row) in rows.iter().enumerate() {
            for sketch in row.sketches().all() {
                let trained = Counted::of(sketch, &common);
                for held_out_index in candidates(&trained, &with) {
                    if let Some(similarity) = trained.similarity(&asked[held_out_index]) {
                        let train_index = chunk * CHUNK_ROWS + at;
                        let found =
                            Touched { held_out_index, train_index, kind: TouchKind::Near, similarity };
                        keep_better(&mut best[held_out_index], Some(found));
                    }
                }
            }
        }
        best
    });
    best_of_chunk.reduce(none, |mut best, other| {
        best.iter_mut().zip(other).for_each(|(best, found)| keep_better(best, found));
        best
    })
}

/// The more similar one, of equals the earlier one: the same whatever the order in which they come.
fn keep_better(best: &mut Option<Touched>, found: Option<Touched>) {
    let Some(found) = found else { return };
    let is_better = best.is_none_or(|best| {
        let order = found.similarity.total_cmp(&best.similarity);
        order.then(best.train_index.cmp(&found.train_index)).is_gt()
    });
    if is_better {
        *best = Some(found);
    }
}

/// Held-out examples that share a hash of the prefix.
fn candidates(trained: &Counted, with: &HashMap<u32, Vec<usize>>) -> Vec<usize> {
    let mut found: Vec<usize> =
        trained.prefix().iter().filter_map(|hash| with.get(hash)).flatten().copied().collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The hashes of a sketch that count.
struct Counted {
    hashes: Vec<u32>,
    horizon: u32,
}

impl Counted {
    fn of(sketch: &Sketch, common: &HashSet<u32>) -> Self {
        let counts = |hash: &u32| !common.contains(hash);
        Self { hashes: sketch.hashes().iter().copied().filter(counts).collect(), horizon: sketch.horizon() }
    }

    /// Of these another list must have one to be near.
    fn prefix(&self) -> &[u32] {
        let (part, whole) = NEAR;
        let length = self.hashes.len() * (whole - part) / whole + 1;
        &self.hashes[..length.min(self.hashes.len())]
    }

    /// The similarity, where it is that of near-duplicates and enough is known to say so.
    fn similarity(&self, other: &Self) -> Option<f64> {
        let horizon = self.horizon.min(other.horizon);
        let known = |hashes: &Vec<u32>| hashes.partition_point(|&hash| hash <= horizon);
        let (a, b) = (&self.hashes[..known(&self.hashes)], &other.hashes[..known(&other.hashes)]);
        let shared = shared(a, b);
        let union = a.len() + b.len() - shared;
        let least = if horizon == u32::MAX { LEAST_SHINGLES } else { LEAST_SAMPLE };
        let (part, whole) = NEAR;
        (union >= least && shared * whole >= union * part).then(|| shared as f64 / union as f64)
    }
}

/// How many numbers two ascending lists share.
fn shared(a: &[u32], b: &[u32]) -> usize {
    let (mut i, mut j, mut count) = (0, 0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        i += usize::from(x <= y);
        j += usize::from(y <= x);
        count += usize::from(x == y);
    }
    count
}

/// The shingles that say nothing, since a tenth of the training rows has them. A row counts for those up to its horizon.
fn common_shingles(train: &[ExampleKeys]) -> HashSet<u32> {
    let every = train.len().div_ceil(ROWS_COUNTED).max(1);
    let sketches = train.iter().step_by(every).map(|keys| keys.sketches().last());
    let sketches: Vec<&Sketch> = sketches.filter(|sketch| !sketch.hashes().is_empty()).collect();
    let mut horizons: Vec<u32> = sketches.iter().map(|sketch| sketch.horizon()).collect();
    horizons.sort_unstable();
    let mut rows_with: HashMap<u32, usize> = HashMap::new();
    sketches
        .iter()
        .flat_map(|sketch| sketch.hashes())
        .for_each(|&hash| *rows_with.entry(hash).or_default() += 1);
    let is_common = |&(hash, rows): &(u32, usize)| {
        let known_in = horizons.len() - horizons.partition_point(|&horizon| horizon < hash);
        rows > LEAST_COMMON && rows * COMMON_SHARE > known_in
    };
    rows_with.into_iter().filter(is_common).map(|(hash, _)| hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{Example, ExampleKind, RowPlace};
    use std::collections::BTreeSet;
    use std::path::Path;
    use taper_kernels::rng::CounterRng;

    fn keys(texts: &[String]) -> Vec<ExampleKeys> {
        let one = |(at, text): (usize, &String)| {
            let place = RowPlace { file: Path::new("d/rows.jsonl").into(), line: at + 1, element: None };
            let completion = "answer".to_owned();
            ExampleKeys::of(&Example::new(
                place,
                ExampleKind::Completion { prompt: text.clone(), completion },
            ))
        };
        texts.iter().enumerate().map(one).collect()
    }

    /// Words drawn from a vocabulary of 5000.
    fn words(rng: CounterRng, count: usize) -> Vec<String> {
        (0..count as u64).map(|at| format!("w{}", rng.below(at, 5000))).collect()
    }

    /// The text with one word in `every` replaced.
    fn changed(words: &[String], rng: CounterRng, every: u64) -> Vec<String> {
        let word = |(at, word): (usize, &String)| match rng.below(at as u64, every) {
            0 => format!("x{at}"),
            _ => word.clone(),
        };
        words.iter().enumerate().map(word).collect()
    }

    fn shingles(text: &str) -> BTreeSet<Vec<&str>> {
        let words: Vec<&str> = text.split(' ').collect();
        words.windows(3).map(<[&str]>::to_vec).collect()
    }

    fn jaccard(a: &str, b: &str) -> f64 {
        let (a, b) = (shingles(a), shingles(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    /// So many texts of `length` words and sixty changed ones of them, more or less.
    fn drawn(texts: u64, length: usize) -> (Vec<String>, Vec<String>) {
        let train: Vec<Vec<String>> = (0..texts).map(|at| words(CounterRng::new(1, at), length)).collect();
        let held_out = (0..60).map(|at| {
            let rng = CounterRng::new(2, at as u64);
            let every = [10, 20, 40, 80, 1000][at % 5];
            changed(&train[rng.below(9999, texts) as usize], rng, every).join(" ")
        });
        (train.iter().map(|words| words.join(" ")).collect(), held_out.collect())
    }

    #[test]
    fn of_texts_that_are_held_whole_exactly_those_are_found_that_all_pairs_by_hand_give() {
        for length in [9, 30, 100, 130] {
            let (train, held_out) = drawn(150, length);
            let mut want = Vec::new();
            for (at, text) in held_out.iter().enumerate() {
                let pairs = train.iter().enumerate().map(|(other, twin)| (jaccard(text, twin), other));
                let best = pairs.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))).unwrap();
                want.extend((best.0 >= NEAR_SIMILARITY).then_some((at, best.1, best.0)));
            }
            let (train, held_out) = (keys(&train), keys(&held_out));
            let found = touched(&train, &held_out);
            let got: Vec<_> =
                found.iter().map(|one| (one.held_out_index, one.train_index, one.similarity)).collect();
            assert_eq!(got, want);
            let near = found.iter().filter(|one| one.kind == TouchKind::Near).count();
            assert!(found.len() < 60 && (length == 9 || near > 5), "{near} of {}", found.len());
        }
    }

    #[test]
    fn of_longer_texts_the_similarity_is_estimated_within_its_error() {
        let (train, held_out) = drawn(40, 1000);
        let found = touched(&keys(&train), &keys(&held_out));
        let (mut errors, mut missed) = (Vec::new(), 0);
        for (at, text) in held_out.iter().enumerate() {
            let truth = train.iter().map(|twin| jaccard(text, twin)).fold(0.0, f64::max);
            match found.iter().find(|one| one.held_out_index == at) {
                Some(one) if one.kind == TouchKind::Near => {
                    assert!(truth > NEAR_SIMILARITY - 4.0 * 0.036, "{truth}");
                    let error = (truth * (1.0 - truth) / 128.0).sqrt();
                    errors.push((one.similarity - truth) / error.max(1e-9));
                }
                Some(one) => assert_eq!((one.similarity, truth), (1.0, 1.0)),
                None => missed += usize::from(truth > NEAR_SIMILARITY + 4.0 * 0.036),
            }
        }
        assert_eq!(missed, 0);
        let mean_square = errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64;
        assert!(errors.len() > 20 && (0.4..2.0).contains(&mean_square), "{} {mean_square}", errors.len());
    }

    #[test]
    fn the_kinds_are_told_apart_and_a_short_text_is_never_near() {
        let long = |end: &str| format!("the quick brown fox jumps over the lazy dog and runs away {end}");
        let train =
            keys(&[long("today"), "do it now please dear friend of mine".into(), "one two three".into()]);
        let held_out = keys(&[
            long("today"),
            long("Today ").replace(' ', "\n"),
            long("today again"),
            long("from all of us here"),
            "one two three four".into(),
            "do it now please dear friend of mine ok".into(),
        ]);
        let found: Vec<_> =
            touched(&train, &held_out).iter().map(|t| (t.held_out_index, t.train_index, t.kind)).collect();
        let want = [
            (0, 0, TouchKind::Exact),
            (1, 0, TouchKind::Normalised),
            (2, 0, TouchKind::Near),
            (5, 1, TouchKind::Near),
        ];
        assert_eq!(found, want);
        let all = touched(&train, &held_out);
        let problem = near_duplicates(&all, ("test", &held_out), ("train", &train)).unwrap();
        assert_eq!(
            problem.message,
            "2 of 6 inputs of `test` are nearly those of rows of `train` (similarity 0.8 or more): \
             rows.jsonl:3 ~ rows.jsonl:1 (0.92), rows.jsonl:6 ~ rows.jsonl:2 (0.86)"
        );
        assert_eq!(near_duplicates(&all[..2], ("test", &held_out), ("train", &train)), None);
    }

    #[test]
    fn an_instruction_in_every_prompt_makes_no_two_rows_alike() {
        for instruction_words in [60, 400] {
            let instruction = words(CounterRng::new(7, 7), instruction_words).join(" ");
            let row = |seed: u64, at: u64| {
                let body = words(CounterRng::new(seed, at), if instruction_words == 60 { 12 } else { 300 });
                format!("{instruction} {}", body.join(" "))
            };
            let train: Vec<String> = (0..200).map(|at| row(1, at)).collect();
            let mut held_out: Vec<String> = (0..20).map(|at| row(2, at)).collect();
            assert!(instruction_words > 60 || jaccard(&train[0], &held_out[0]) > 0.6);
            held_out.push(train[17].clone() + " really");
            let found = touched(&keys(&train), &keys(&held_out));
            let found: Vec<_> = found.iter().map(|one| (one.held_out_index, one.train_index)).collect();
            assert_eq!(found, [(20, 17)]);
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (train, held_out) = drawn(300, 40);
        let train = keys(&vec![train; 30].concat());
        let held_out = keys(&held_out);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| touched(&train, &held_out))
        };
        assert!(!with(1).is_empty());
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn of_the_shipped_data_sets_no_held_out_input_is_near_a_trained_one() {
        let section = crate::DataSection::default();
        for set in ["clinical-deid", "ticket-triage"] {
            let [train, valid, test] = ["train", "valid", "test"].map(|name| {
                let path = format!("{}/../../datasets/{set}/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
                let examples = crate::load(&[path.into()], &section).unwrap().examples;
                examples.iter().map(ExampleKeys::of).collect::<Vec<_>>()
            });
            assert_eq!((touched(&train, &valid), touched(&train, &test)), (Vec::new(), Vec::new()));
            let is_compared = |keys: &&ExampleKeys| !keys.sketches().last().hashes().is_empty();
            assert!(test.iter().filter(is_compared).count() > 190);
        }
    }
}
