//! The learning rate over a run.
//!
//! Formulas and step counting are those of `transformers.get_scheduler`: the factor of step n counts from n = 0, so with
//! warm-up the first step has the rate 0. Supported of its shapes: `constant`, `constant_with_warmup` (constant with warm-up
//! steps), `linear`, `cosine`, `cosine_with_min_lr` (cosine with `min_lr_ratio`), `warmup_stable_decay` with a cosine decay.
//! Not supported: `cosine_with_restarts`, `polynomial`, `inverse_sqrt`, a cosine of other than half a cycle. Where transformers
//! lets the warm-up of `warmup_stable_decay` start at its lowest rate, ours starts at 0 as everywhere else.

use crate::{ScheduleSection, SchedulerType};
use std::f64::consts::PI;

/// A factor on the learning rate for every step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LrSchedule {
    shape: SchedulerType,
    total_steps: u64,
    warmup_steps: u64,
    decay_steps: u64,
    min_lr_ratio: f64,
}

impl LrSchedule {
    /// The schedule of a run of `total_steps`.
    pub fn new(section: &ScheduleSection, total_steps: u64) -> Self {
        let share = |ratio: f64| (ratio * total_steps as f64).ceil() as u64;
        Self {
            shape: section.lr_scheduler_type,
            total_steps,
            warmup_steps: section.warmup_steps.unwrap_or_else(|| share(section.warmup_ratio.unwrap_or(0.0))),
            decay_steps: share(section.decay_ratio.unwrap_or(0.1)),
            min_lr_ratio: section.min_lr_ratio.unwrap_or(0.0),
        }
    }

    /// Steps of the run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Steps in which the rate rises.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps
    }

    /// The factor of step `step`, counted from 0. Behind the last step it stays where it ended.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let shape = match self.shape {
            SchedulerType::Constant => return 1.0,
            SchedulerType::Linear => 1.0 - progress(step, self.warmup_steps, self.total_steps),
            SchedulerType::Cosine => half_cosine(progress(step, self.warmup_steps, self.total_steps)),
            SchedulerType::WarmupStableDecay => {
                let stable_until = self.total_steps.saturating_sub(self.decay_steps).max(self.warmup_steps);
                half_cosine(progress(step, stable_until, self.total_steps))
            }
        };
        shape * (1.0 - self.min_lr_ratio) + self.min_lr_ratio
    }
}

/// How far `step` is on the way from `from` to `to`, 0 to 1.
fn progress(step: u64, from: u64, to: u64) -> f64 {
    let length = to.saturating_sub(from).max(1) as f64;
    (step.saturating_sub(from) as f64 / length).min(1.0)
}

fn half_cosine(progress: f64) -> f64 {
    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(kind: &str) -> (u64, Vec<f64>) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/train/schedules.json");
        let all: serde_json::Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        let rates = all[kind]["lr"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(all[kind]["training_steps"], 40);
        (all[kind]["warmup_steps"].as_u64().unwrap(), rates)
    }

    #[test]
    fn factors_are_those_of_transformers() {
        use SchedulerType::{Constant, Cosine, Linear, WarmupStableDecay};
        let cases = [
            ("constant", Constant, None, None),
            ("constant_with_warmup", Constant, None, None),
            ("linear", Linear, None, None),
            ("cosine", Cosine, None, None),
            ("cosine_with_min_lr", Cosine, Some(0.1), None),
            ("warmup_stable_decay", WarmupStableDecay, None, Some(0.25)),
        ];
        for (kind, lr_scheduler_type, min_lr_ratio, decay_ratio) in cases {
            let (warmup, want) = golden(kind);
            let section = ScheduleSection {
                lr_scheduler_type,
                warmup_steps: Some(warmup),
                warmup_ratio: None,
                min_lr_ratio,
                decay_ratio,
            };
            let schedule = LrSchedule::new(&section, 40);
            // Behind step 40 transformers' cosines rise again; a run ends there.
            for (step, want) in want.iter().enumerate().take(41) {
                let got = schedule.factor(step as u64);
                assert!((got - want).abs() < 1e-9, "{kind} at step {step}: {got} against {want}");
            }
        }
    }

    #[test]
    fn shares_of_the_run_are_rounded_up_as_in_transformers() {
        let section = ScheduleSection { warmup_ratio: Some(0.1), ..ScheduleSection::default() };
        let schedule = LrSchedule::new(&section, 21);
        assert_eq!(schedule.factor(2), 2.0 / 3.0);
        assert_eq!(schedule.factor(3), 1.0);
        assert_eq!(schedule.factor(21), 0.0);
        assert_eq!(schedule.factor(1000), 0.0);
    }

    #[test]
    fn a_run_of_one_step_and_a_decay_over_all_of_it_are_finite() {
        for lr_scheduler_type in
            [SchedulerType::Linear, SchedulerType::Cosine, SchedulerType::WarmupStableDecay]
        {
            for warmup_steps in [0, 1, 5] {
                let section = ScheduleSection {
                    lr_scheduler_type,
                    warmup_steps: Some(warmup_steps),
                    decay_ratio: Some(1.0),
                    ..ScheduleSection::default()
                };
                let schedule = LrSchedule::new(&section, 1);
                assert!((0..4).all(|step| (0.0..=1.0).contains(&schedule.factor(step))));
            }
        }
    }
}
