//! The best checkpoint by a metric that is measured beside the validation loss.

use crate::support::{bits, data, model, new_adapter, place, sections};
use fs_err as fs;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use taper_data::Batch;
use taper_diagnostics::Diagnose;
use taper_models::CausalLm;
use taper_train::{
    BestValidation, CheckpointStore, Error, Event, LOGITS_BYTES, Outcome, ProgressSink, Sections, Silent,
    Start, Trainer, TrainingData, Validator, ValidatorError, evaluate_loss,
};

/// Scores that stand for the answers of a model: by the step.
struct Scripted {
    name: &'static str,
    higher_is_better: bool,
    score: fn(u64) -> f64,
}

impl Validator for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn higher_is_better(&self) -> bool {
        self.higher_is_better
    }

    fn score(&mut self, _: &dyn CausalLm, step: u64) -> Result<f64, ValidatorError> {
        Ok((self.score)(step))
    }
}

/// The validation loss with its sign turned, measured on the model that comes.
struct NegativeLoss(Vec<Batch>);

impl Validator for NegativeLoss {
    fn name(&self) -> &str {
        "negative_loss"
    }

    fn higher_is_better(&self) -> bool {
        true
    }

    fn score(&mut self, model: &dyn CausalLm, _: u64) -> Result<f64, ValidatorError> {
        let (sum, targets) = evaluate_loss(model, &self.0[0], LOGITS_BYTES)?;
        Ok(-sum / targets as f64)
    }
}

/// A validator that cannot.
struct Failing;

impl Validator for Failing {
    fn name(&self) -> &str {
        "f1"
    }

    fn higher_is_better(&self) -> bool {
        true
    }

    fn score(&mut self, _: &dyn CausalLm, _: u64) -> Result<f64, ValidatorError> {
        Err("no answer".into())
    }
}

fn f1(score: fn(u64) -> f64) -> Option<Box<dyn Validator>> {
    Some(Box::new(Scripted { name: "f1", higher_is_better: true, score }))
}

/// Best after step 6, and again as good at the end.
fn peak_at_six(step: u64) -> f64 {
    [(3, 0.2), (6, 0.9), (9, 0.5), (11, 0.9)].into_iter().find(|(at, _)| *at == step).unwrap().1
}

fn by(metric: &str) -> Sections {
    let mut sections = sections();
    sections.train.metric_for_best_model = metric.to_owned();
    sections
}

/// What a run leaves: its outcome, the bits of what was trained, the files of the newest checkpoint and the log without the speed.
#[derive(Debug, PartialEq)]
struct Left {
    best: Option<BestValidation>,
    ended: (u64, u64, bool),
    parameters: BTreeMap<String, Vec<u32>>,
    checkpoint: BTreeMap<String, Vec<u8>>,
    metrics: Vec<serde_json::Map<String, serde_json::Value>>,
}

fn left(folder: &Path, outcome: Outcome, parameters: BTreeMap<String, Vec<u32>>) -> Left {
    let Outcome::Finished { steps, stopped_early, best, weights_of_step, checkpoint } = outcome else {
        panic!("{outcome:?}")
    };
    let files = fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
        line.remove("tokens_per_second");
        line
    };
    Left {
        best,
        ended: (steps, weights_of_step, stopped_early),
        parameters,
        checkpoint: files.map(|path| (name(&path), fs::read(&path).unwrap())).collect(),
        metrics: metrics.lines().map(line).collect(),
    }
}

fn run_with(
    (sections, data): (&Sections, TrainingData),
    validator: Option<Box<dyn Validator>>,
    (folder, start): (&Path, Start),
    (sink, interrupt): (&mut dyn ProgressSink, &Arc<AtomicBool>),
) -> Result<(Outcome, BTreeMap<String, Vec<u32>>), Error> {
    let mut base = model("llama_untied");
    let trained = new_adapter(base.as_mut(), 1);
    let mut place = place(folder, start);
    place.interrupt = Arc::clone(interrupt);
    let mut trainer = Trainer::new(base.as_ref(), &trained, data, sections, place)?;
    if let Some(validator) = validator {
        trainer = trainer.with_validator(validator);
    }
    let outcome = trainer.run(sink)?;
    drop(trainer);
    Ok((outcome, bits(trained.parameters())))
}

fn run(
    sections: &Sections,
    validator: Option<Box<dyn Validator>>,
    folder: &Path,
    start: Start,
) -> Result<Left, Error> {
    let quiet = (&mut Silent as &mut dyn ProgressSink, &Arc::default());
    let (outcome, parameters) = run_with((sections, data()), validator, (folder, start), quiet)?;
    Ok(left(folder, outcome, parameters))
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_best_validation_is_the_one_with_the_best_score_and_no_step_is_another() {
    let (plain_folder, folder) = (temporary(), temporary());
    let plain = run(&sections(), None, plain_folder.path(), Start::Fresh).unwrap();
    let by_metric = run(&by("eval_f1"), f1(peak_at_six), folder.path(), Start::Fresh).unwrap();
    let best = by_metric.best.clone().unwrap();
    assert_eq!((best.step, best.metric_name(), best.metric.unwrap().value), (6, "eval_f1".to_owned(), 0.9));
    assert_eq!(by_metric.ended, (11, 6, false));
    for file in ["adapter_model.safetensors", "optimizer.safetensors"] {
        assert_eq!(by_metric.checkpoint[file], plain.checkpoint[file], "{file}");
    }
    let mut lines = by_metric.metrics.clone();
    let scores: Vec<f64> = lines
        .iter_mut()
        .filter_map(|line| line.remove("eval_f1"))
        .map(|score| score.as_f64().unwrap())
        .collect();
    assert_eq!(scores, [0.2, 0.9, 0.5, 0.9]);
    assert_eq!(lines, plain.metrics);
    let of_step_6 = |line: &&serde_json::Map<String, serde_json::Value>| {
        line["step"] == 6 && line.contains_key("eval_loss")
    };
    assert_eq!(lines.iter().find(of_step_6).unwrap()["eval_loss"], best.loss);
    let adapter = |step: u64| {
        let path = CheckpointStore::new(folder.path()).path(step).join("adapter_model.safetensors");
        fs::read(path).unwrap()
    };
    assert_ne!(adapter(6), adapter(11));
    let resumed = run(&by("f1"), f1(peak_at_six), folder.path(), Start::Resume).unwrap();
    assert_eq!(resumed, by_metric, "the weights of step 6 are found again");
}

#[test]
fn lower_can_be_better_and_a_score_that_is_not_finite_never_is() {
    let lower = |score| {
        let validator = Scripted { name: "errors", higher_is_better: false, score };
        run(&by("errors"), Some(Box::new(validator)), temporary().path(), Start::Fresh).unwrap()
    };
    assert_eq!(lower(peak_at_six).ended, (11, 3, false));
    let poisoned = lower(|step| if step == 9 { 7.0 } else { f64::NEG_INFINITY });
    assert_eq!(poisoned.ended, (11, 9, false));
    let none = lower(|_| f64::NAN);
    assert_eq!((none.best, none.ended), (None, (11, 11, false)));
}

#[test]
fn the_validator_sees_the_model_as_it_is_trained() {
    let plain = run(&sections(), None, temporary().path(), Start::Fresh).unwrap();
    let validator = Box::new(NegativeLoss(data().valid));
    let by_score = run(&by("eval_negative_loss"), Some(validator), temporary().path(), Start::Fresh).unwrap();
    let (best, want) = (by_score.best.unwrap(), plain.best.unwrap());
    assert_eq!((best.step, best.loss, best.metric.unwrap().value), (want.step, want.loss, -want.loss));
    assert_eq!(by_score.parameters, plain.parameters);
    // Measured beside the loss, and the loss decides.
    let beside = run(&sections(), f1(peak_at_six), temporary().path(), Start::Fresh).unwrap();
    assert_eq!((&beside.ended, &beside.best), (&plain.ended, &Some(want)));
    assert_eq!(beside.metrics.iter().filter(|line| line.contains_key("eval_f1")).count(), 4);
}

#[test]
fn patience_goes_by_the_score() {
    let mut sections = by("f1");
    sections.train.max_steps = Some(40);
    sections.train.eval_steps = Some(1);
    sections.train.early_stopping_patience = Some(3);
    let folder = temporary();
    let score = |step: u64| if step <= 4 { step as f64 } else { 0.0 };
    let stopped = run(&sections, f1(score), folder.path(), Start::Fresh).unwrap();
    assert_eq!(stopped.ended, (7, 4, true));
    assert_eq!(run(&sections, f1(score), folder.path(), Start::Resume).unwrap(), stopped);
}

/// Sets the flag at the event with this number.
struct InterruptAt(usize, Arc<AtomicBool>);

impl ProgressSink for InterruptAt {
    fn event(&mut self, _: &Event<'_>) {
        if self.0 == 0 {
            self.1.store(true, Ordering::Relaxed);
        }
        self.0 = self.0.wrapping_sub(1);
    }
}

#[test]
fn invariant_4_a_run_by_a_metric_that_is_interrupted_and_resumed_ends_as_the_uninterrupted_one() {
    let sections = by("f1");
    let want = run(&sections, f1(peak_at_six), temporary().path(), Start::Fresh).unwrap();
    for events in [1, 4, 7, 10, 13, 16] {
        let (folder, flag) = (temporary(), Arc::default());
        let mut sink = InterruptAt(events, Arc::clone(&flag));
        let place = (folder.path(), Start::Fresh);
        let (outcome, _) = run_with((&sections, data()), f1(peak_at_six), place, (&mut sink, &flag)).unwrap();
        assert!(matches!(outcome, Outcome::Interrupted { .. }), "{outcome:?}");
        let resumed = run(&sections, f1(peak_at_six), folder.path(), Start::Resume).unwrap();
        assert_eq!(resumed, want, "interrupted after {events} events");
    }
}

#[test]
fn what_is_not_measured_and_another_metric_are_refused() {
    let folder = temporary();
    let go = |metric, validator, start| run(&by(metric), validator, folder.path(), start).unwrap_err();
    let error = go("rouge1", None, Start::Fresh);
    assert_eq!(
        error.to_string(),
        "the best checkpoint is to be chosen by `rouge1`, and what is measured is `eval_loss`"
    );
    let error = go("eval_rouge1", f1(peak_at_six), Start::Fresh);
    assert!(error.to_string().ends_with("what is measured is `eval_loss`, `eval_f1`"), "{error}");
    let nothing = TrainingData { valid: Vec::new(), ..data() };
    let quiet = (&mut Silent as &mut dyn ProgressSink, &Arc::default());
    let place = (folder.path(), Start::Fresh);
    let error = run_with((&by("f1"), nothing), f1(peak_at_six), place, quiet).err().unwrap();
    assert!(matches!(error, Error::NothingToValidate { .. }) && error.hint().unwrap().contains("data.valid"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was begun");
    let error = go("f1", Some(Box::new(Failing)), Start::Fresh);
    assert_eq!(error.to_string(), "failed to measure `f1` after step 3");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no answer");
    // The steps before it are in the checkpoint of step 2, and the run goes on with a validator that can.
    let sections = by("f1");
    let want = run(&sections, f1(peak_at_six), temporary().path(), Start::Fresh).unwrap();
    assert_eq!(run(&sections, f1(peak_at_six), folder.path(), Start::Resume).unwrap(), want);
    let error = run(&self::sections(), None, folder.path(), Start::Resume).unwrap_err().to_string();
    assert!(error.contains("the metric of the best checkpoint was `eval_f1`, is `eval_loss`"), "{error}");
}
