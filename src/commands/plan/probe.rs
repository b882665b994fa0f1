//! Two real steps on the longest batch, to hold the plan against.

use super::work::Work;
use crate::commands::train::{attach, first_model};
use crate::fault::{OrFault, user_error};
use crate::interrupt;
use crate::memory::{peak_bytes, reset_peak};
use candle_core::Device;
use std::time::Instant;
use taper_train::plan::{DRIVER_BYTES, PhaseName};
use taper_train::{LrSchedule, Stepper};

/// Steps that are made: the first touches every page for the first time, the last is timed.
const STEPS: u64 = 2;

/// What the steps took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Probed {
    /// What the plan says of loading and of a step: the larger.
    pub(super) predicted_bytes: u64,
    /// The most that the process held meanwhile, on a GPU its tensors, where the system says.
    pub(super) measured_bytes: Option<u64>,
    /// Whether the peak was the probe's own, and not one from before.
    pub(super) was_reset: bool,
    /// Whether it is the memory of a GPU.
    pub(super) on_gpu: bool,
    /// Of the last step.
    pub(super) seconds_per_step: f64,
    /// Tokens of the batch.
    pub(super) tokens: u64,
}

impl Probed {
    /// How far the plan is off, as a share of what was measured.
    pub(super) fn off_by(&self) -> Option<f64> {
        self.measured_bytes.map(|measured| self.predicted_bytes as f64 / measured as f64 - 1.0)
    }
}

/// Load the model, make the steps, and throw the model away. Nothing is written.
pub(super) fn probe(work: &Work<'_>, gpu: Option<&Device>) -> anyhow::Result<Probed> {
    let session = work.session;
    let recipe = &session.run.recipe;
    let memory = work.memory();
    let phases = [PhaseName::Load, PhaseName::Step];
    let predicted = phases.iter().filter_map(|name| memory.phase(*name)).map(|bytes| bytes.total()).max();
    let interrupt = interrupt::flag()?;
    let was_reset = gpu.map_or_else(reset_peak, taper_nn::reset_peak_memory);
    let mut model = first_model(session)?;
    let trained = attach(session, model.as_mut())?;
    let schedule = LrSchedule::new(&recipe.schedule, work.steps);
    let mut stepper =
        Stepper::new(trained.parameters(), &recipe.train, &recipe.optimizer, schedule).or_fault()?;
    let mut seconds_per_step = f64::NAN;
    for _ in 0..STEPS {
        let started = Instant::now();
        let made =
            stepper.step(model.as_ref(), std::slice::from_ref(&work.longest), &interrupt).or_fault()?;
        if made.is_none() {
            return Err(user_error("the probe was interrupted", "nothing was written: run it again"));
        }
        seconds_per_step = started.elapsed().as_secs_f64();
    }
    let (taken_by_driver, measured_bytes) = match gpu {
        Some(gpu) => (DRIVER_BYTES, taper_nn::memory_of(gpu).map(|memory| memory.peak as u64)),
        None => (0, peak_bytes().filter(|_| cfg!(target_os = "linux"))),
    };
    Ok(Probed {
        predicted_bytes: predicted.unwrap_or(0).saturating_sub(taken_by_driver),
        measured_bytes,
        was_reset,
        on_gpu: gpu.is_some(),
        seconds_per_step,
        tokens: work.longest.tokens() as u64,
    })
}
