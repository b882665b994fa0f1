//! `taper train`: the training part alone.

use super::export::merge_options;
use super::plan::settings_for;
use crate::adapters::load_adapter;
use crate::cli::RunArgs;
use crate::contract::{self, fingerprint_of};
use crate::fault::OrFault;
use crate::interrupt;
use crate::output::{interactive, print, say};
use crate::session::Session;
use crate::validator::validator_of;
use candle_core::DType;
use std::collections::BTreeMap;
use std::path::Path;
use taper_data::{Batch, DataLoader, DataLoaderOptions, TokenizedExample};
use taper_diagnostics::ExitCode;
use taper_hub::{HashCache, InitChoice, ModelSource};
use taper_models::{CausalLm, ModelConfig};
use taper_train::{
    Bar, CheckpointStore, Error, Lines, Outcome, ProgressSink, RunPlace, Sections, Start, Trained, Trainer,
    TrainingData,
};

pub(crate) fn train(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let session = Session::open(&args.folder)?;
    match train_session(&session, args)? {
        Outcome::Interrupted { checkpoint, .. } => Ok(tell_interrupted(&session, &checkpoint, "train")),
        Outcome::Finished { steps, best, weights_of_step, .. } => {
            if args.folder.recipe.common.json {
                let mut told = serde_json::json!({
                    "steps": steps,
                    "weights_of_step": weights_of_step,
                    "best_eval_loss": best.as_ref().map(|best| best.loss),
                    "folder": session.folder,
                });
                let device = session.base.device()?;
                if device.is_cuda() {
                    told["device"] = crate::device::figures(&device);
                }
                if let Some(metric) = best.and_then(|best| best.metric) {
                    told[format!("best_{}", metric.logged_name())] = metric.value.into();
                }
                print(&told.to_string())?;
            }
            Ok(ExitCode::Passed)
        }
    }
}

/// Train, and write what was trained: `adapter/` in PEFT's format, or with `method = "full"` the checkpoint `merged/`.
pub(crate) fn train_session(session: &Session, args: &RunArgs) -> anyhow::Result<Outcome> {
    train_watched(session, args, sink().as_mut())
}

/// [`train_session`] with somebody else to be told how it goes.
pub(crate) fn train_watched(
    session: &Session,
    args: &RunArgs,
    sink: &mut dyn ProgressSink,
) -> anyhow::Result<Outcome> {
    let validator = validator_of(session)?;
    let start = start(session, args)?;
    if start == Start::Fresh && !args.overwrite {
        session.write_resolved()?;
    }
    let recipe = &session.run.recipe;
    let mut model = first_model(session)?;
    let trained = attach(session, model.as_mut())?;
    let data = training_data(session)?;
    let sections = Sections {
        train: recipe.train.clone(),
        optimizer: recipe.optimizer.clone(),
        schedule: recipe.schedule.clone(),
    };
    let place = RunPlace {
        folder: session.folder.clone(),
        fingerprints: fingerprints(session)?,
        start,
        interrupt: interrupt::flag()?,
    };
    if args.overwrite {
        remove_earlier_run(&session.folder)?;
    }
    let with_settings = |error: Error| with_settings(error, session, &trained);
    let made = Trainer::new(model.as_ref(), &trained, data, &sections, place);
    let mut trainer = made.map_err(with_settings).or_fault()?;
    if let Some(validator) = validator {
        trainer = trainer.with_validator(validator);
    }
    trainer.prepare().or_fault()?;
    session.write_resolved()?;
    let outcome = trainer.run(sink).map_err(with_settings).or_fault()?;
    // It holds the model, which is now written.
    drop(trainer);
    if let Outcome::Finished { .. } = &outcome {
        write_trained(session, model.as_mut(), &trained)?;
    }
    Ok(outcome)
}

/// An error of a GPU whose memory is spent, with the settings that the plan says would fit.
fn with_settings(error: Error, session: &Session, trained: &Trained) -> Error {
    let device = trained.parameters().first().map(|parameter| parameter.var.device().clone());
    match (error, device) {
        (Error::OutOfDeviceMemory { doing, asked_bytes, memory, checkpoint, .. }, Some(device)) => {
            let settings = settings_for(session, &device);
            let memory = memory.or_else(|| taper_nn::memory_of(&device).map(Box::new));
            Error::OutOfDeviceMemory { doing, asked_bytes, memory, settings, checkpoint }
        }
        (error, _) => error,
    }
}

/// The model that a run starts from: the base, or random weights of its shape.
pub(crate) fn first_model(session: &Session) -> anyhow::Result<Box<dyn CausalLm>> {
    match session.run.recipe.model.init {
        InitChoice::Pretrained => session.load_base(),
        InitChoice::Random => {
            let config = ModelConfig::read(&session.base.files.config).or_fault()?;
            let seed = session.run.recipe.train.seed;
            let mut model = taper_models::init(&config, seed, Some(DType::F32)).or_fault()?;
            crate::device::place(model.as_mut(), &session.base.device()?, None)?;
            Ok(model)
        }
    }
}

/// Whether the run begins, found out before weights are loaded. One that was killed before its first checkpoint begins again.
fn start(session: &Session, args: &RunArgs) -> anyhow::Result<Start> {
    let folder = &session.folder;
    match (args.resume, CheckpointStore::new(folder).newest().or_fault()?) {
        (true, Some(_)) => Ok(Start::Resume),
        (true, None) if session.path("resolved.toml").is_file() => {
            say(&format!("no checkpoint in {} yet: beginning at step 1", folder.display()));
            Ok(Start::Fresh)
        }
        (true, None) => Err(Error::NothingToResume { folder: folder.clone() }).or_fault(),
        (false, Some(newest)) if !args.overwrite => Err(Error::CheckpointsExist { newest }).or_fault(),
        (false, _) => Ok(Start::Fresh),
    }
}

/// Give the model what is trained: an adapter, or all of its weights.
pub(crate) fn attach(session: &Session, model: &mut dyn CausalLm) -> anyhow::Result<Trained> {
    let recipe = &session.run.recipe;
    let trained = match &recipe.adapter {
        Some(section) => {
            let mut config = section.to_config(&recipe.model.base);
            // PEFT loads the base by these two.
            if let ModelSource::Hub { id, revision } = &session.base.source {
                config.base_model_name_or_path = Some(id.clone());
                config.revision = revision.clone();
            }
            let model_type = model.config().model_type.name();
            let adapter = taper_peft::attach(model, &config, model_type, recipe.train.seed).or_fault()?;
            Trained::adapter(adapter)
        }
        None => Trained::full(model).or_fault()?,
    };
    Ok(trained)
}

fn training_data(session: &Session) -> anyhow::Result<TrainingData> {
    let recipe = &session.run.recipe;
    let train = DataLoader::new(session.data.train.tokenized.clone(), loader_options(session)).or_fault()?;
    let valid = batches(&session.data.valid.tokenized, recipe.train.batch_size);
    Ok(TrainingData { train, valid })
}

pub(crate) fn loader_options(session: &Session) -> DataLoaderOptions {
    let (data, train) = (&session.run.recipe.data, &session.run.recipe.train);
    DataLoaderOptions {
        batch_size: train.batch_size,
        gradient_accumulation_steps: train.gradient_accumulation_steps,
        max_length: data.max_length,
        packing: data.packing,
        shuffle: data.shuffle,
        seed: train.seed,
        num_epochs: None,
    }
}

pub(crate) fn batches(examples: &[TokenizedExample], batch_size: usize) -> Vec<Batch> {
    examples.chunks(batch_size).map(Batch::new).collect()
}

/// What a checkpoint belongs to: with another base, other validation data or other training settings it must not be gone on from.
fn fingerprints(session: &Session) -> anyhow::Result<BTreeMap<String, String>> {
    let recipe = &session.run.recipe;
    let base = match recipe.model.init {
        InitChoice::Pretrained => {
            session.base.files.fingerprint_with(HashCache::from_env().as_ref()).or_fault()?
        }
        InitChoice::Random => session.base.files.config_fingerprint().or_fault()?,
    };
    let mut fingerprints = BTreeMap::from([("the base".to_owned(), base.as_str().to_owned())]);
    let model = &recipe.model;
    for (key, value) in [
        ("dtype", serde_json::json!(model.dtype)),
        ("quantize", serde_json::json!(model.quantize)),
        ("double_quant", serde_json::json!(model.double_quant)),
        ("quantize_block_size", serde_json::json!(model.quantize_block_size)),
        ("quantize_embeddings", serde_json::json!(model.quantize_embeddings)),
    ] {
        fingerprints.insert(format!("`model.{key}`"), value.to_string());
    }
    if !session.data.valid.tokenized.is_empty() {
        let valid = fingerprint_of(&session.data.valid.tokenized);
        fingerprints.insert("the validation data".to_owned(), valid.as_str().to_owned());
    }
    let sections = serde_json::json!({
        "adapter": recipe.adapter, "train": recipe.train, "optimizer": recipe.optimizer, "schedule": recipe.schedule,
    });
    for (section, values) in sections.as_object().into_iter().flatten() {
        for (key, value) in values.as_object().into_iter().flatten() {
            fingerprints.insert(format!("`{section}.{key}`"), value.to_string());
        }
    }
    // Checkpoints that are older than this key went by the loss, and are gone on from.
    if recipe.train.best_metric().is_none() {
        fingerprints.remove("`train.metric_for_best_model`");
    }
    Ok(fingerprints)
}

/// Bars on a terminal, `key=value` lines elsewhere.
pub(crate) fn sink() -> Box<dyn ProgressSink> {
    if interactive() { Box::new(Bar::stderr()) } else { Box::new(Lines::new(std::io::stderr())) }
}

fn write_trained(session: &Session, model: &mut dyn CausalLm, trained: &Trained) -> anyhow::Result<()> {
    match trained.as_adapter() {
        Some(adapter) => {
            let folder = session.path("adapter");
            adapter.save(&folder).or_fault()?;
            let mut saved_as = "";
            if adapter.has_beginning() {
                // What is saved is over the base as it was, and so is what the contract tells of it.
                adapter.restore_base(model).or_fault()?;
                let saved = load_adapter(&folder, model)?;
                contract::write(session, model, &saved)?;
                saved_as = ", saved with its beginning as plain LoRA of twice the rank";
            } else {
                contract::write(session, model, adapter)?;
            }
            let count = adapter.trainable_count();
            say(&format!("wrote {}: {count} parameters{saved_as}", folder.display()));
        }
        None => {
            let folder = session.path("merged");
            let options = merge_options(session);
            taper_export::write_merged(model, &session.base.files, &folder, &options).or_fault()?;
            say(&format!("wrote {}: {} parameters", folder.display(), trained.parameter_count()));
        }
    }
    Ok(())
}

/// Remove what an earlier run left in the folder, and nothing else.
pub(crate) fn remove_earlier_run(folder: &Path) -> anyhow::Result<()> {
    for name in ["checkpoints", "adapter", "merged", "gguf", "gguf-adapter", "mlx", "ollama", "eval"] {
        let path = folder.join(name);
        if path.is_dir() {
            fs_err::remove_dir_all(path)?;
        }
    }
    for name in ["metrics.jsonl", "report.md", "report.html", "junit.xml", "run.json"] {
        let path = folder.join(name);
        if path.is_file() {
            fs_err::remove_file(path)?;
        }
    }
    Ok(())
}

/// Say where the run can go on from, and how.
pub(crate) fn tell_interrupted(session: &Session, checkpoint: &Path, verb: &str) -> ExitCode {
    say(&format!("interrupted; everything up to {} is kept. To go on:", checkpoint.display()));
    say(&format!("  {}", session.command(verb, "--resume")));
    ExitCode::Interrupted
}
