//! The loop: batch, forward, loss, backward, clip, step, log, validate, checkpoint.

use crate::checkpoint::{BestValidation, CheckpointStore, LogWindow, OPTIMIZER_FILE, TrainerState};
use crate::driver::{LOGITS_BYTES, evaluate_loss};
use crate::error::{Error, Result};
use crate::metrics::{Metrics, MetricsFile};
use crate::progress::{Event, ProgressSink};
use crate::self_test::{self_test, shortest_example};
use crate::step::{StepReport, Stepper};
use crate::tensor_file::{self, TensorFile};
use crate::trained::Trained;
use crate::validator::{EVAL_LOSS, MetricValue, PREFIX, Validator};
use crate::{LrSchedule, OptimizerSection, ScheduleSection, TrainSection};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use taper_data::{Batch, DataLoader};
use taper_models::CausalLm;
use taper_nn::{DeviceMemory, memory_of};

/// How to train.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sections {
    /// `[train]`.
    pub train: TrainSection,
    /// `[optimizer]`.
    pub optimizer: OptimizerSection,
    /// `[schedule]`.
    pub schedule: ScheduleSection,
}

impl Sections {
    /// Steps of a run over data with `steps_per_epoch` steps.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        let by_epochs = (self.train.num_train_epochs * steps_per_epoch as f64).ceil() as u64;
        self.train.max_steps.unwrap_or(by_epochs)
    }
}

/// What to learn from.
#[derive(Debug, Clone)]
pub struct TrainingData {
    /// Training data, at its beginning. It must not end by itself (`num_epochs` is `None`): the trainer counts.
    pub train: DataLoader,
    /// Validation data; empty when there is none.
    pub valid: Vec<Batch>,
}

/// Where the run lies and what it belongs to.
#[derive(Debug, Clone)]
pub struct RunPlace {
    /// The run's folder: `checkpoints/` and `metrics.jsonl` are made in it.
    pub folder: PathBuf,
    /// Hashes of what the run is made from, by name; a checkpoint with others is not resumed from.
    pub fingerprints: BTreeMap<String, String>,
    /// Whether to begin, or to go on.
    pub start: Start,
    /// Set by whoever wants the run to end at the next step boundary, for example on Ctrl-C.
    pub interrupt: Arc<AtomicBool>,
}

/// Whether a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From step 1. Checkpoints of an earlier run are an error.
    Fresh,
    /// From the newest complete checkpoint. That there is none is an error.
    Resume,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps were made, or early stopping ended it. The model has the weights that the run is for.
    Finished {
        /// Steps made.
        steps: u64,
        /// Whether early stopping ended it.
        stopped_early: bool,
        /// The best validation: by the loss, or by the metric that the run goes by.
        best: Option<BestValidation>,
        /// The step whose weights the model has: the last one, or the best one.
        weights_of_step: u64,
        /// The newest checkpoint.
        checkpoint: PathBuf,
    },
    /// The interrupt flag was set; nothing of the completed steps is lost.
    Interrupted {
        /// Steps made.
        steps: u64,
        /// Where to resume from.
        checkpoint: PathBuf,
    },
}

/// A run of training.
pub struct Trainer<'m> {
    model: &'m dyn CausalLm,
    trained: &'m Trained,
    data: TrainingData,
    train: TrainSection,
    stepper: Stepper,
    store: CheckpointStore,
    place: RunPlace,
    state: TrainerState,
    validator: Option<Box<dyn Validator + 'm>>,
    is_prepared: bool,
}

impl<'m> Trainer<'m> {
    /// A run that has made no step. The model's parameters must be those of `trained`.
    ///
    /// # Errors
    /// When nothing would be trained, no step made, or none outside the warm-up.
    pub fn new(
        model: &'m dyn CausalLm,
        trained: &'m Trained,
        data: TrainingData,
        sections: &Sections,
        place: RunPlace,
    ) -> Result<Self> {
        let total_steps = sections.total_steps(data.train.steps_per_epoch());
        if total_steps == 0 {
            let (rows, epochs) = (data.train.rows_per_epoch(), sections.train.num_train_epochs);
            return Err(Error::NoSteps { rows, epochs });
        }
        let schedule = LrSchedule::new(&sections.schedule, total_steps);
        if schedule.warmup_steps() >= total_steps {
            return Err(Error::OnlyWarmUp { warmup_steps: schedule.warmup_steps(), steps: total_steps });
        }
        let stepper = Stepper::new(trained.parameters(), &sections.train, &sections.optimizer, schedule)?;
        let state = TrainerState {
            schema: 1,
            step: 0,
            total_steps,
            seed: sections.train.seed,
            data: data.train.state(),
            fingerprints: place.fingerprints.clone(),
            tokens: 0,
            window: LogWindow::default(),
            best: None,
            validations_since_best: 0,
            files: BTreeMap::new(),
        };
        let store = CheckpointStore::new(&place.folder);
        Ok(Self {
            model,
            trained,
            data,
            train: sections.train.clone(),
            stepper,
            store,
            place,
            state,
            validator: None,
            is_prepared: false,
        })
    }

    /// Measure a metric at each validation, beside the loss. Where `train.metric_for_best_model` names it, the best validation is the
    /// one with the best score. Each step stays the same, bit for bit.
    #[must_use]
    pub fn with_validator(mut self, validator: Box<dyn Validator + 'm>) -> Self {
        self.validator = Some(validator);
        self
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.state.total_steps
    }

    /// Hold the run's folder against the start that is asked for, and take up the state of the newest checkpoint when the run
    /// goes on. Nothing is written. [`Self::run`] does this when it was not done.
    ///
    /// # Errors
    /// When a new run finds checkpoints, or one that goes on finds none or one of another run; when what is to choose the best
    /// checkpoint is not measured.
    pub fn prepare(&mut self) -> Result<()> {
        if !self.is_prepared {
            self.check_metric()?;
            match self.place.start {
                Start::Fresh => self.check_fresh()?,
                Start::Resume => self.resume()?,
            }
            self.is_prepared = true;
        }
        Ok(())
    }

    /// Train to the end, or until interrupted.
    ///
    /// # Errors
    /// When the run cannot start or go on. A loss or gradient that is not finite stops it before the step is made; the state
    /// before it is then in a checkpoint, which the error names. So it is when the memory of a device is spent.
    pub fn run(&mut self, sink: &mut dyn ProgressSink) -> Result<Outcome> {
        self.prepare()?;
        self.run_prepared(sink).map_err(|error| self.with_last_good(error, sink))
    }

    /// The memory of the device that parameters lie on; `None` for the CPU.
    fn device_memory(&self) -> Option<DeviceMemory> {
        self.trained.parameters().first().and_then(|parameter| memory_of(parameter.var.device()))
    }

    /// An error of a device whose memory is spent: with what it has, and a checkpoint of the steps that were made.
    fn with_last_good(&mut self, error: Error, sink: &mut dyn ProgressSink) -> Error {
        match error {
            Error::OutOfDeviceMemory { doing, asked_bytes, settings, .. } => {
                let (memory, checkpoint) =
                    (self.device_memory().map(Box::new), self.last_good(sink).ok().flatten());
                Error::OutOfDeviceMemory { doing, asked_bytes, memory, settings, checkpoint }
            }
            other => other,
        }
    }

    fn run_prepared(&mut self, sink: &mut dyn ProgressSink) -> Result<Outcome> {
        // A kill may have come between a checkpoint and the removal of those that it replaces.
        self.store.remove_unfinished()?;
        self.store.rotate(self.train.save_total_limit, self.best_step())?;
        let metrics = MetricsFile::open(&self.place.folder, self.state.step)?;
        let parameters = self.trained.parameter_count();
        let total_steps = self.state.total_steps;
        sink.event(&Event::Started { step: self.state.step, total_steps, parameters });
        if self.train.self_test && self.state.step == 0 {
            self.self_test(sink)?;
        }
        while !self.is_done() {
            let Some(report) = self.step(sink)? else { return self.interrupted(sink) };
            sink.event(&Event::Stepped(&report));
            self.note(&report);
            if self.is_last_step() || report.step.is_multiple_of(self.train.logging_steps) {
                self.log(&report, &metrics, sink)?;
            }
            let new_best = self.validate(&metrics, sink)?;
            // Only the validation tells that this was the last step.
            if self.stops_early() && self.state.window.target_tokens > 0 {
                self.log(&report, &metrics, sink)?;
            }
            if self.save_is_due(new_best) {
                self.save(sink)?;
            }
        }
        self.finish(sink)
    }

    /// Whether what the best validation is chosen by is measured, and on something.
    fn check_metric(&self) -> Result<()> {
        let Some(name) = self.train.best_metric() else { return Ok(()) };
        let asked = self.train.metric_for_best_model.clone();
        let measured = self.validator.as_ref().map(|validator| validator.name());
        if measured != Some(name) {
            let measured = measured.map(|name| format!("{PREFIX}{name}"));
            let measured = std::iter::once(EVAL_LOSS.to_owned()).chain(measured).collect();
            return Err(Error::NotMeasured { asked, measured });
        }
        if self.data.valid.is_empty() {
            return Err(Error::NothingToValidate { asked });
        }
        Ok(())
    }

    fn check_fresh(&self) -> Result<()> {
        match self.store.newest()? {
            Some(newest) => Err(Error::CheckpointsExist { newest }),
            None => Ok(()),
        }
    }

    fn resume(&mut self) -> Result<()> {
        let newest = self.store.newest()?;
        let path = newest.ok_or_else(|| Error::NothingToResume { folder: self.place.folder.clone() })?;
        let state = self.store.state(&path)?;
        state.check_same_run(&path, &self.state)?;
        self.check_same_metric(&path, &state)?;
        self.data.train.restore(&state.data)?;
        self.trained.restore(&path)?;
        let moments = TensorFile::open(&path.join(OPTIMIZER_FILE))?;
        self.stepper.optimizer.restore(&moments, state.step)?;
        self.state = state;
        Ok(())
    }

    /// Values of two metrics cannot be compared.
    fn check_same_metric(&self, path: &Path, state: &TrainerState) -> Result<()> {
        let now =
            self.train.best_metric().map_or_else(|| EVAL_LOSS.to_owned(), |name| format!("{PREFIX}{name}"));
        match state.best.as_ref().map(BestValidation::metric_name) {
            Some(then) if then != now => {
                let difference = format!("the metric of the best checkpoint was `{then}`, is `{now}`");
                Err(Error::OtherRun { path: path.to_owned(), differences: vec![difference] })
            }
            _ => Ok(()),
        }
    }

    fn self_test(&self, sink: &mut dyn ProgressSink) -> Result<()> {
        let first = self.data.train.clone().next_step().unwrap_or_default();
        let Some(example) = shortest_example(&first) else { return Ok(()) };
        let report = self_test(self.model, self.trained, &example, self.train.seed)?;
        sink.event(&Event::SelfTested(&report));
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.state.step >= self.state.total_steps || self.stops_early()
    }

    fn stops_early(&self) -> bool {
        self.train
            .early_stopping_patience
            .is_some_and(|patience| self.state.validations_since_best >= patience)
    }

    /// One step. When it is interrupted (`None`) or fails, the data is back where it was, and a failure that keeps the state
    /// intact is followed by a checkpoint of it.
    fn step(&mut self, sink: &mut dyn ProgressSink) -> Result<Option<StepReport>> {
        let before = self.data.train.state();
        let batches = self.data.train.next_step().unwrap_or_default();
        let made = self.stepper.step(self.model, &batches, &self.place.interrupt);
        if !matches!(made, Ok(Some(_))) {
            self.data.train.restore(&before)?;
        }
        match made {
            Err(Error::LossNotFinite { step, loss, .. }) => {
                let checkpoint = self.last_good(sink)?;
                Err(Error::LossNotFinite { step, loss, checkpoint })
            }
            Err(Error::GradientNotFinite { step, parameters, .. }) => {
                let checkpoint = self.last_good(sink)?;
                Err(Error::GradientNotFinite { step, parameters, checkpoint })
            }
            other => other,
        }
    }

    /// The checkpoint of the state as it is, made when it is not there; an older one when this state cannot be saved, since
    /// its weights are not finite either; none before the first step.
    fn last_good(&mut self, sink: &mut dyn ProgressSink) -> Result<Option<PathBuf>> {
        if self.state.step == 0 {
            return Ok(None);
        }
        self.saved(sink).map(Some).or_else(|_| self.store.newest())
    }

    fn note(&mut self, report: &StepReport) {
        self.state.step = report.step;
        self.state.data = self.data.train.state();
        self.state.tokens += report.tokens as u64;
        let window = &mut self.state.window;
        window.loss_sum += report.loss_sum;
        window.target_tokens += report.target_tokens as u64;
        window.tokens += report.tokens as u64;
        window.seconds += report.seconds;
    }

    /// A line about the steps since the last one.
    fn log(&mut self, report: &StepReport, file: &MetricsFile, sink: &mut dyn ProgressSink) -> Result<()> {
        let window = std::mem::take(&mut self.state.window);
        let metrics = Metrics {
            step: report.step,
            epoch: self.data.train.epochs_done(),
            loss: Some(window.loss_sum / window.target_tokens as f64),
            grad_norm: Some(report.grad_norm),
            learning_rate: Some(report.learning_rate),
            tokens: Some(self.state.tokens),
            tokens_per_second: Some(window.tokens as f64 / window.seconds.max(1e-9)),
            ..Metrics::default()
        };
        let metrics = metrics.with_memory(self.device_memory());
        file.append(&metrics)?;
        sink.event(&Event::Logged(&metrics));
        Ok(())
    }

    /// Validate when it is due; true when it is a new best. A loss or a score that is not finite is no better than any other.
    fn validate(&mut self, file: &MetricsFile, sink: &mut dyn ProgressSink) -> Result<bool> {
        if self.data.valid.is_empty() || !(self.is_last_step() || self.falls_on(self.train.eval_steps)) {
            return Ok(false);
        }
        let loss = self.validation_loss()?;
        let step = self.state.step;
        let metric = self.score(step)?;
        let new_best = self.is_better(loss, metric.as_ref());
        if new_best {
            let metric = metric.clone().filter(|_| self.train.best_metric().is_some());
            self.state.best = Some(BestValidation { step, loss, metric });
            self.state.validations_since_best = 0;
        } else {
            self.state.validations_since_best += 1;
        }
        let epoch = self.data.train.epochs_done();
        let metrics =
            Metrics { step, epoch, eval_loss: Some(loss), eval_metric: metric, ..Metrics::default() };
        file.append(&metrics)?;
        sink.event(&Event::Validated { metrics: &metrics, best: self.state.best.as_ref() });
        Ok(new_best)
    }

    /// What the validator says of the model as it is.
    fn score(&mut self, step: u64) -> Result<Option<MetricValue>> {
        let Some(validator) = &mut self.validator else { return Ok(None) };
        let name = validator.name().to_owned();
        match validator.score(self.model, step) {
            Ok(value) => Ok(Some(MetricValue { name, value })),
            Err(source) => Err(Error::Score { metric: name, step, source }),
        }
    }

    /// Whether a validation is better than the best one so far, by the loss or by the metric that the run goes by.
    fn is_better(&self, loss: f64, metric: Option<&MetricValue>) -> bool {
        let best = self.state.best.as_ref();
        let metric = metric.filter(|_| self.train.best_metric().is_some());
        match (metric, &self.validator) {
            (Some(metric), Some(validator)) => {
                let best = best.and_then(|best| best.metric.as_ref());
                let beats = |best: &MetricValue| match validator.higher_is_better() {
                    true => metric.value > best.value,
                    false => metric.value < best.value,
                };
                metric.value.is_finite() && best.is_none_or(beats)
            }
            _ => loss.is_finite() && best.is_none_or(|best| loss < best.loss),
        }
    }

    fn best_step(&self) -> Option<u64> {
        self.state.best.as_ref().map(|best| best.step)
    }

    /// Mean loss over the targets of all validation data.
    fn validation_loss(&self) -> Result<f64> {
        let (mut sum, mut targets) = (0.0, 0);
        for batch in &self.data.valid {
            let (loss_sum, count) = evaluate_loss(self.model, batch, LOGITS_BYTES)?;
            sum += loss_sum;
            targets += count;
        }
        Ok(sum / targets.max(1) as f64)
    }

    fn is_last_step(&self) -> bool {
        self.state.step == self.state.total_steps
    }

    /// Whether something that happens every so many steps (`None`: at the end of an epoch) happens now.
    fn falls_on(&self, every: Option<u64>) -> bool {
        every.map_or(self.state.data.step_in_epoch == 0, |every| self.state.step.is_multiple_of(every))
    }

    fn save_is_due(&self, new_best: bool) -> bool {
        let kept_for_the_end = new_best && self.train.load_best_model_at_end;
        self.is_done() || kept_for_the_end || self.falls_on(self.train.save_steps)
    }

    /// Write the checkpoint of the state as it is.
    fn save(&mut self, sink: &mut dyn ProgressSink) -> Result<PathBuf> {
        let path = self.store.write(&self.state, |folder| self.fill(folder))?;
        self.store.rotate(self.train.save_total_limit, self.best_step())?;
        sink.event(&Event::Saved { path: &path });
        Ok(path)
    }

    fn fill(&self, folder: &Path) -> Result<()> {
        self.trained.save(folder)?;
        tensor_file::write(&folder.join(OPTIMIZER_FILE), &self.stepper.optimizer.state()?.0)
    }

    /// The checkpoint of the state as it is, written unless it is there.
    fn saved(&mut self, sink: &mut dyn ProgressSink) -> Result<PathBuf> {
        let is_there = self.store.steps()?.last() == Some(&self.state.step);
        if is_there { Ok(self.store.path(self.state.step)) } else { self.save(sink) }
    }

    fn interrupted(&mut self, sink: &mut dyn ProgressSink) -> Result<Outcome> {
        let checkpoint = self.saved(sink)?;
        sink.event(&Event::Ended { step: self.state.step, memory: self.device_memory() });
        Ok(Outcome::Interrupted { steps: self.state.step, checkpoint })
    }

    fn finish(&mut self, sink: &mut dyn ProgressSink) -> Result<Outcome> {
        let checkpoint = self.saved(sink)?;
        let mut weights_of_step = self.state.step;
        let best = self.best_step().filter(|_| self.train.load_best_model_at_end);
        if let Some(best) = best.filter(|best| *best != weights_of_step) {
            self.trained.restore(&self.store.path(best))?;
            weights_of_step = best;
        }
        sink.event(&Event::Ended { step: self.state.step, memory: self.device_memory() });
        Ok(Outcome::Finished {
            steps: self.state.step,
            stopped_early: self.state.step < self.state.total_steps,
            best: self.state.best.clone(),
            weights_of_step,
            checkpoint,
        })
    }
}
