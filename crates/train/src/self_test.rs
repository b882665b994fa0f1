//! Before step 1: does the real model, on a real example, train what it is asked to train?
//!
//! candle has operations that cut the gradient in silence; a wrong backward is as silent. The test makes B of every adapter
//! non-zero for its duration (with B = 0 the gradient of A is zero by nature), and afterwards restores every value bit for bit.
//!
//! The last check compares the gradient g with a finite difference of the loss L along a direction d that mixes all
//! parameters: (L(p + d) - L(p - d)) / 2 against <g, d>. Each tensor's part of d is its own gradient, normalised, times a random
//! weight in [0.5, 1), so that the difference stands above the rounding of f32 and a wrong length or sign of any tensor counts.
//!
//! Activations are f32 during the test, whatever the model computes in: in bf16 the difference would drown in rounding.
//!
//! Where a model has experts, no token of the example may go to some of them, or in the last block none with a target; what is trained
//! there gets no gradient, or zero, as it should. So the tensors of one name in all experts of a block are held to it together: one of them
//! at least must get a gradient, and none an unsound one.

use crate::driver::{LOGITS_BYTES, PassOptions, evaluate_loss, forward_backward};
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::trained::Trained;
use std::collections::BTreeSet;
use taper_data::{Batch, IGNORE};
use taper_diagnostics::list_names;
use taper_kernels::reduce::sum_of_squares;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_models::CausalLm;
use taper_nn::{Parameter, with_constants_held, with_f32_activations};

/// Relative difference allowed between the gradient and the finite difference, at the best of three step sizes.
pub const TOLERANCE: f64 = 0.02;
/// Changes of the mean loss, in nats, that the finite differences aim at: large ones are bent, small ones are rounded.
const CHANGES: [f64; 3] = [0.01, 0.03, 0.003];
/// Most tokens of the example.
const LONGEST: usize = 48;
/// Standard deviation of B during the test.
const B_STD: f32 = 0.02;

/// What the test measured.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTestReport {
    /// Parameters that were looked at.
    pub parameters: usize,
    /// Tokens of the example.
    pub tokens: usize,
    /// Relative difference between the gradient and the finite difference.
    pub difference: f64,
}

/// Run the test on `batch`, and leave every parameter as it was.
///
/// # Errors
/// [`Error::SelfTest`] naming the tensors, or what the arithmetic says.
pub fn self_test(
    model: &dyn CausalLm,
    trained: &Trained,
    batch: &Batch,
    seed: u64,
) -> Result<SelfTestReport> {
    let before = trained.values()?;
    let found = with_f32_activations(|| examine(model, trained, &before, batch, seed));
    trained.set_values(&before)?;
    found
}

/// The shortest example of `batches` that shows the gradients of attention: one with a target behind its first token. Of a long one a part
/// around that target.
pub fn shortest_example(batches: &[Batch]) -> Option<Batch> {
    let segments =
        batches.iter().flat_map(|batch| batch.segments.iter().map(move |segment| (batch, segment)));
    let useful = segments.filter(|(batch, segment)| {
        batch.targets[segment.start..segment.end].iter().skip(1).any(|target| *target != IGNORE)
    });
    useful.min_by_key(|(_, segment)| segment.len()).map(|(batch, segment)| {
        let targets = &batch.targets[segment.start..segment.end];
        let window = window_of(targets);
        let targets = targets[window.clone()].to_vec();
        let ids = &batch.input_ids[segment.start..segment.end];
        Batch {
            input_ids: ids[window.clone()].to_vec(),
            position_ids: (0..window.len() as u32).collect(),
            target_tokens: targets.iter().filter(|target| **target != IGNORE).count(),
            targets,
            segments: std::iter::once(0..window.len()).collect(),
            sources: Vec::new(),
        }
    })
}

/// The part of a long example that is taken: its first target behind the first token in the middle. The test's work goes with its tokens, and
/// gradients do not wait for a text to be long.
fn window_of(targets: &[u32]) -> std::ops::Range<usize> {
    let first = targets.iter().skip(1).position(|target| *target != IGNORE).map_or(0, |at| at + 1);
    let start = first.saturating_sub(LONGEST / 2).min(targets.len().saturating_sub(LONGEST));
    start..targets.len().min(start + LONGEST)
}

fn examine(
    model: &dyn CausalLm,
    trained: &Trained,
    before: &[Vec<f32>],
    batch: &Batch,
    seed: u64,
) -> Result<SelfTestReport> {
    check_received(&gradients_at(model, trained, batch)?)?;
    let mut values = before.to_vec();
    for (parameter, values) in trained.parameters().iter().zip(&mut values) {
        // What is zero (B, and what takes its place) hides the gradients of its partners.
        if values.iter().all(|v| *v == 0.0) {
            CounterRng::new(seed, stream_of(&parameter.name)).fill_normal(0, B_STD, values);
        }
    }
    trained.set_values(&values)?;
    with_constants_held(|| {
        let gradients = gradients_at(model, trained, batch)?;
        check_received(&gradients)?;
        let sums = gradients.to_vecs()?;
        let zero = lacking(&gradients, |at| sums[at].iter().any(|g| *g != 0.0));
        if !zero.is_empty() {
            return Err(failed("gets a gradient of zero", &zero));
        }
        let difference = compare_with_difference(model, trained, &values, &gradients, batch, seed)?;
        Ok(SelfTestReport { parameters: trained.parameters().len(), tokens: batch.tokens(), difference })
    })
}

fn gradients_at(model: &dyn CausalLm, trained: &Trained, batch: &Batch) -> Result<Gradients> {
    let mut gradients = Gradients::new(trained.parameters())?;
    let pass = forward_backward(model, batch, None, &PassOptions::default(), &mut gradients)?;
    if !pass.stray.is_empty() {
        return Err(failed("is frozen, yet differentiated", &pass.stray));
    }
    if !pass.loss_sum.is_finite() {
        return Err(Error::SelfTest { what: format!("the loss of the first example is {}", pass.loss_sum) });
    }
    Ok(gradients)
}

fn check_received(gradients: &Gradients) -> Result<()> {
    let missing = lacking(gradients, |at| gradients.received()[at]);
    if !missing.is_empty() {
        return Err(failed("gets no gradient", &missing));
    }
    let bad = gradients.not_finite()?;
    if bad.is_empty() { Ok(()) } else { Err(failed("gets a gradient that is not finite", &bad)) }
}

/// The names of those that `has` does not hold for, but for tensors of experts for which it holds in another expert of the block.
fn lacking(gradients: &Gradients, has: impl Fn(usize) -> bool) -> Vec<String> {
    let all = || gradients.parameters().iter().enumerate();
    let had: BTreeSet<(&str, &str)> =
        all().filter(|(at, _)| has(*at)).filter_map(|(_, p)| in_all_experts(&p.name)).collect();
    let excused = |name: &str| in_all_experts(name).is_some_and(|place| had.contains(&place));
    let lacking = all().filter(|(at, p)| !has(*at) && !excused(&p.name));
    lacking.map(|(_, p)| p.name.clone()).collect()
}

/// What stands before and behind the expert's number in a name such as `...layers.3.mlp.experts.7.up_proj...`.
fn in_all_experts(name: &str) -> Option<(&str, &str)> {
    let (block, rest) = name.split_once(".experts.")?;
    let (number, tensor) = rest.split_once('.')?;
    number.parse::<usize>().is_ok().then_some((block, tensor))
}

fn failed(what: &str, names: &[String]) -> Error {
    Error::SelfTest { what: format!("{what}: {}", list_names(names, 6)) }
}

/// The smallest relative difference over [`CHANGES`]; an error when it is over [`TOLERANCE`].
fn compare_with_difference(
    model: &dyn CausalLm,
    trained: &Trained,
    values: &[Vec<f32>],
    gradients: &Gradients,
    batch: &Batch,
    seed: u64,
) -> Result<f64> {
    let sums = gradients.to_vecs()?;
    let parts = parts_in_order(trained.parameters(), gradients, &sums, seed);
    let slope: f64 = parts.iter().map(|part| part.weight * part.norm).sum();
    let mut best = f64::INFINITY;
    for change in CHANGES {
        let scale = change * batch.target_tokens as f64 / slope;
        let expected: f64 = parts.iter().zip(values).map(|(part, values)| part.slope(values, scale)).sum();
        let loss_at = |scale: f64| -> Result<f64> {
            let moved = |(part, values): (&Part<'_>, &Vec<f32>)| part.moved(values, scale).collect();
            trained.set_values(&parts.iter().zip(values).map(moved).collect::<Vec<_>>())?;
            Ok(evaluate_loss(model, batch, LOGITS_BYTES)?.0)
        };
        let measured = loss_at(scale)? - loss_at(-scale)?;
        best = best.min((measured - expected).abs() / expected.abs());
        if best <= TOLERANCE {
            return Ok(best);
        }
    }
    let what = format!(
        "the gradient is off by {:.1} % from a finite difference over all {} parameters, allowed are {:.0} %",
        100.0 * best,
        parts.len(),
        100.0 * TOLERANCE
    );
    Err(Error::SelfTest { what })
}

/// One tensor's part of the direction.
struct Part<'a> {
    gradient: &'a [f32],
    norm: f64,
    weight: f64,
}

impl Part<'_> {
    /// The values moved by `scale` in this part's direction.
    fn moved(&self, values: &[f32], scale: f64) -> impl Iterator<Item = f32> {
        // A tensor of an expert that no token went to has no direction.
        let factor = if self.norm > 0.0 { scale * self.weight / self.norm } else { 0.0 };
        values.iter().zip(self.gradient).map(move |(v, g)| (f64::from(*v) + factor * f64::from(*g)) as f32)
    }

    /// What the gradient says of the change of the loss from `-scale` to `scale`. What rounding left of the direction is the
    /// direction that is walked.
    fn slope(&self, values: &[f32], scale: f64) -> f64 {
        let walked = self.moved(values, scale).zip(self.moved(values, -scale));
        let steps = walked.map(|(up, down)| f64::from(up) - f64::from(down));
        self.gradient.iter().zip(steps).map(|(g, step)| f64::from(*g) * step).sum()
    }
}

/// The parts in the order of the trained parameters; the gradients are in the order of their names.
fn parts_in_order<'a>(
    parameters: &[Parameter],
    gradients: &Gradients,
    sums: &'a [Vec<f32>],
    seed: u64,
) -> Vec<Part<'a>> {
    let rng = CounterRng::new(seed, stream_of("self-test"));
    let sum_of = |name: &str| {
        let at = gradients.parameters().iter().position(|p| p.name == name);
        at.map_or(&[][..], |at| &sums[at])
    };
    let part = |(i, p): (usize, &Parameter)| {
        let gradient = sum_of(&p.name);
        let weight = 0.5 + 0.5 * f64::from(rng.uniform_at(i as u64));
        Part { gradient, norm: sum_of_squares(gradient).sqrt(), weight }
    };
    parameters.iter().enumerate().map(part).collect()
}
