//! One optimiser step: forward and backward of its micro-batches, clip, step.

use crate::driver::{PassOptions, forward_backward};
use crate::error::{Error, Result};
use crate::gradients::{Gradients, clip_factor};
use crate::{AdamW, LrSchedule, OptimizerSection, TrainSection};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use taper_data::Batch;
use taper_models::CausalLm;
use taper_nn::{Parameter, RandomKey};

/// The state that a step changes.
#[derive(Debug)]
pub struct Stepper {
    /// The optimiser.
    pub optimizer: AdamW,
    gradients: Gradients,
    schedule: LrSchedule,
    options: PassOptions,
    learning_rate: f64,
    max_grad_norm: f64,
    seed: u64,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// Sum of the cross-entropies over the targets, in nats.
    pub loss_sum: f64,
    /// Targets.
    pub target_tokens: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Norm of the gradient of the mean loss, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step (of A, under LoRA+).
    pub learning_rate: f64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl StepReport {
    /// Mean cross-entropy over the targets of the step, in nats.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.target_tokens as f64
    }
}

impl Stepper {
    /// A stepper that has made no step.
    ///
    /// # Errors
    /// When there is no parameter, or two have one name.
    pub fn new(
        parameters: &[Parameter],
        train: &TrainSection,
        optimizer: &OptimizerSection,
        schedule: LrSchedule,
    ) -> Result<Self> {
        Ok(Self {
            optimizer: AdamW::new(parameters, optimizer)?,
            gradients: Gradients::new(parameters)?,
            schedule,
            options: PassOptions {
                gradient_checkpointing: train.gradient_checkpointing,
                activation_offloading: train.activation_offloading,
                neftune_noise_alpha: train.neftune_noise_alpha,
                ..PassOptions::default()
            },
            learning_rate: optimizer.learning_rate,
            max_grad_norm: train.max_grad_norm,
            seed: train.seed,
        })
    }

    /// Make the next step from its micro-batches. `None` when `interrupt` was set in between: nothing has then changed.
    ///
    /// The gradient is that of the sum of all losses over the number of all targets, whatever the cut into micro-batches
    /// (invariant 5).
    ///
    /// # Errors
    /// When there is no target, or the loss or a gradient is not finite; nothing has then changed.
    pub fn step(
        &mut self,
        model: &dyn CausalLm,
        micro_batches: &[Batch],
        interrupt: &AtomicBool,
    ) -> Result<Option<StepReport>> {
        let started = Instant::now();
        let step = self.optimizer.steps();
        let target_tokens: usize = micro_batches.iter().map(|batch| batch.target_tokens).sum();
        if target_tokens == 0 {
            return Err(Error::NoTargets { step: step + 1 });
        }
        self.gradients.clear()?;
        let mut loss_sum = 0.0;
        for (index, batch) in micro_batches.iter().enumerate() {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let key = RandomKey { seed: self.seed, step, micro_batch: index as u64 };
            let pass = forward_backward(model, batch, Some(key), &self.options, &mut self.gradients)?;
            loss_sum += pass.loss_sum;
        }
        let grad_norm = self.checked_norm(loss_sum, target_tokens)?;
        let learning_rate = self.learning_rate * self.schedule.factor(step);
        let grad_scale = clip_factor(grad_norm, self.max_grad_norm) / target_tokens as f64;
        self.optimizer.step(&self.gradients, learning_rate, grad_scale)?;
        Ok(Some(StepReport {
            step: step + 1,
            loss_sum,
            target_tokens,
            tokens: micro_batches.iter().map(Batch::tokens).sum(),
            grad_norm,
            learning_rate,
            seconds: started.elapsed().as_secs_f64(),
        }))
    }

    /// The norm of the mean loss's gradient, when it and the loss are finite.
    fn checked_norm(&self, loss_sum: f64, target_tokens: usize) -> Result<f64> {
        let step = self.optimizer.steps() + 1;
        let loss = loss_sum / target_tokens as f64;
        if !loss.is_finite() {
            return Err(Error::LossNotFinite { step, loss, checkpoint: None });
        }
        let norm = self.gradients.norm()? / target_tokens as f64;
        let parameters = if norm.is_finite() { Vec::new() } else { self.gradients.not_finite()? };
        if norm.is_finite() && parameters.is_empty() {
            return Ok(norm);
        }
        Err(Error::GradientNotFinite { step, parameters, checkpoint: None })
    }
}
