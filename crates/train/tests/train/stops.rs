//! What stops a run, and what is kept then.

use crate::support::{data, golden, labelled_batch, model, new_adapter, place, sections};
use candle_core::{Device, Tensor};
use fs_err as fs;
use std::path::Path;
use taper_data::{Batch, DataLoader, DataLoaderOptions, TokenizedExample};
use taper_diagnostics::Diagnose;
use taper_models::CausalLm;
use taper_train::{
    CheckpointStore, Error, LOGITS_BYTES, Outcome, Sections, Silent, Start, Trainer, TrainingData,
    evaluate_loss,
};

/// A run with a new adapter on `model`, which has none.
fn run(
    mut model: Box<dyn CausalLm>,
    data: TrainingData,
    sections: &Sections,
    folder: &Path,
    start: Start,
) -> Result<(Outcome, Box<dyn CausalLm>), Error> {
    let trained = new_adapter(model.as_mut(), 1);
    let outcome =
        Trainer::new(model.as_ref(), &trained, data, sections, place(folder, start))?.run(&mut Silent)?;
    Ok((outcome, model))
}

/// llama_untied with an embedding of NaN for token 255.
fn model_with_a_poisoned_token(folder: &Path) -> Box<dyn CausalLm> {
    let source = golden("models/llama_untied");
    let mut weights = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let table = &weights["model.embed_tokens.weight"];
    let width = table.dims2().unwrap().1;
    let poison = Tensor::full(f32::NAN, (1, width), &Device::Cpu).unwrap();
    let table = Tensor::cat(&[&table.narrow(0, 0, 255).unwrap(), &poison], 0).unwrap();
    weights.insert("model.embed_tokens.weight".into(), table);
    candle_core::safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
    fs::copy(source.join("config.json"), folder.join("config.json")).unwrap();
    crate::support::model_in(folder)
}

/// One example a step in the order given; the sixth has token 255.
fn poisoned_data() -> TrainingData {
    let mut examples: Vec<TokenizedExample> = crate::support::examples(8, 1);
    examples.iter_mut().for_each(|example| example.input_ids.truncate(8));
    examples.iter_mut().for_each(|example| example.loss_mask.truncate(8));
    examples.sort_by_key(|example| std::cmp::Reverse(example.input_ids.len()));
    examples[5].input_ids[1] = 255;
    let options = DataLoaderOptions {
        batch_size: 1,
        gradient_accumulation_steps: 1,
        max_length: 64,
        packing: false,
        shuffle: false,
        seed: 1,
        num_epochs: None,
    };
    TrainingData { train: DataLoader::new(examples, options).unwrap(), valid: Vec::new() }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_the_last_good_state() {
    let weights = tempfile::tempdir().unwrap();
    let base = || model_with_a_poisoned_token(weights.path());
    let mut sections = sections();
    sections.train.save_steps = Some(100);
    let folder = tempfile::tempdir().unwrap();
    let error = run(base(), poisoned_data(), &sections, folder.path(), Start::Fresh).err().unwrap();
    let Error::LossNotFinite { step: 6, checkpoint: Some(path), .. } = &error else { panic!("{error}") };
    assert!(path.ends_with("step-5"));
    assert!(error.hint().unwrap().contains("step-5"));
    let state = CheckpointStore::new(folder.path()).state(path).unwrap();
    assert_eq!((state.step, state.data.step_in_epoch), (5, 5));
    // Resuming meets the same example again.
    let error = run(base(), poisoned_data(), &sections, folder.path(), Start::Resume).err().unwrap();
    assert!(matches!(error, Error::LossNotFinite { step: 6, .. }));
}

#[test]
fn validation_that_gets_no_better_stops_the_run_with_the_best_weights() {
    let mut sections = sections();
    sections.train.max_steps = Some(40);
    sections.train.eval_steps = Some(1);
    sections.train.logging_steps = 100;
    sections.train.early_stopping_patience = Some(2);
    sections.train.max_grad_norm = 0.0;
    sections.optimizer.learning_rate = 0.3;
    let folder = tempfile::tempdir().unwrap();
    let data = data();
    let (outcome, trained) =
        run(model("llama_untied"), data.clone(), &sections, folder.path(), Start::Fresh).unwrap();
    let Outcome::Finished { steps, stopped_early: true, best: Some(best), weights_of_step, .. } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!((weights_of_step, best.step), (steps - 2, steps - 2));
    let (sum, targets) = evaluate_loss(trained.as_ref(), &data.valid[0], LOGITS_BYTES).unwrap();
    assert_eq!(sum / targets as f64, best.loss, "the model has the weights of the best validation");
    let metrics = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    let logged = metrics.lines().rfind(|line| line.contains("\"loss\"")).unwrap().to_owned();
    assert!(logged.starts_with(&format!("{{\"step\":{steps},")), "the last steps are in the log: {metrics}");
    // Resuming a run that stopped early stays stopped.
    let (again, _) = run(model("llama_untied"), data, &sections, folder.path(), Start::Resume).unwrap();
    assert!(matches!(again, Outcome::Finished { steps: s, stopped_early: true, .. } if s == steps));
}

#[test]
fn a_validation_that_is_not_finite_is_never_the_best() {
    let weights = tempfile::tempdir().unwrap();
    let mut poisoned = crate::support::examples(3, 99);
    poisoned[0].input_ids[1] = 255;
    let data = TrainingData { valid: vec![Batch::new(&poisoned)], ..data() };
    let folder = tempfile::tempdir().unwrap();
    let base = model_with_a_poisoned_token(weights.path());
    let (outcome, _) = run(base, data, &sections(), folder.path(), Start::Fresh).unwrap();
    let Outcome::Finished { steps: 11, best: None, weights_of_step: 11, .. } = outcome else {
        panic!("{outcome:?}")
    };
    let state = CheckpointStore::new(folder.path());
    assert_eq!(state.state(&state.path(11)).unwrap().validations_since_best, 4);
}

#[test]
fn a_run_is_not_begun_over_another_and_not_resumed_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let sections = sections();
    let go = |start, sections: &Sections, data| {
        run(model("llama_untied"), data, sections, folder.path(), start).err()
    };
    let nothing = go(Start::Resume, &sections, data()).unwrap();
    assert!(matches!(nothing, Error::NothingToResume { .. }));
    assert!(go(Start::Fresh, &sections, data()).is_none());
    let over = go(Start::Fresh, &sections, data()).unwrap();
    assert!(matches!(over, Error::CheckpointsExist { .. }) && over.hint().unwrap().contains("--resume"));
    let mut longer = sections.clone();
    longer.train.max_steps = Some(12);
    let error = go(Start::Resume, &longer, data()).unwrap().to_string();
    assert!(error.contains("the number of steps was `11`, is `12`"), "{error}");
    let other = TrainingData { train: crate::support::loader(14, 2, 2), valid: Vec::new() };
    let error = go(Start::Resume, &sections, other).unwrap().to_string();
    assert!(error.contains("the order of the data"), "{error}");
}

#[test]
fn a_step_without_a_target_and_a_run_without_a_step_are_errors() {
    let mut base = model("llama_untied");
    let trained = new_adapter(base.as_mut(), 1);
    let sections = sections();
    let schedule = taper_train::LrSchedule::new(&sections.schedule, 1);
    let mut stepper =
        taper_train::Stepper::new(trained.parameters(), &sections.train, &sections.optimizer, schedule)
            .unwrap();
    let batch = labelled_batch(&[(vec![1, 2, 3], vec![-100, -100, -100])]);
    let error = stepper.step(base.as_ref(), &[batch], &Default::default()).unwrap_err();
    assert!(matches!(error, Error::NoTargets { step: 1 }));
    let mut none = sections.clone();
    none.train.max_steps = Some(0);
    let folder = tempfile::tempdir().unwrap();
    let error = run(model("llama_untied"), data(), &none, folder.path(), Start::Fresh).err().unwrap();
    assert!(matches!(error, Error::NoSteps { .. }));
}

#[test]
fn a_run_that_is_all_warm_up_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut sections = sections();
    sections.train.max_steps = Some(1);
    sections.schedule.warmup_steps = None;
    // Rounded up this is one step, whose rate is 0.
    sections.schedule.warmup_ratio = Some(0.05);
    let error = run(model("llama_untied"), data(), &sections, folder.path(), Start::Fresh).err().unwrap();
    assert!(matches!(error, Error::OnlyWarmUp { warmup_steps: 1, steps: 1 }), "{error}");
}
