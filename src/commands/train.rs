//! `taper train`: the training part alone.

use crate::cli::RunArgs;
use crate::fault::OrFault;
use crate::interrupt;
use crate::output::{interactive, print, say};
use crate::session::Session;
use candle_core::DType;
use std::collections::BTreeMap;
use std::path::Path;
use taper_data::{Batch, DataLoader, DataLoaderOptions, TokenizedExample};
use taper_diagnostics::ExitCode;
use taper_export::MergeOptions;
use taper_hub::{Fingerprint, InitChoice};
use taper_models::{CausalLm, ModelConfig};
use taper_train::{
    Bar, Lines, Outcome, ProgressSink, RunPlace, Sections, Start, Trained, Trainer, TrainingData,
};

pub(crate) fn train(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let session = Session::open(&args.recipe)?;
    match train_session(&session, args)? {
        Outcome::Interrupted { checkpoint, .. } => Ok(tell_interrupted(&session, &checkpoint, "train")),
        Outcome::Finished { steps, best, weights_of_step, .. } => {
            if args.recipe.common.json {
                print(
                    &serde_json::json!({
                        "steps": steps,
                        "weights_of_step": weights_of_step,
                        "best_eval_loss": best.map(|b| b.loss),
                        "folder": session.folder,
                    })
                    .to_string(),
                )?;
            }
            Ok(ExitCode::Passed)
        }
    }
}

/// Train, and write what was trained: `adapter/` in PEFT's format, or with `method = "full"` the checkpoint `merged/`.
pub(crate) fn train_session(session: &Session, args: &RunArgs) -> anyhow::Result<Outcome> {
    if args.overwrite {
        remove_earlier_run(&session.folder)?;
    }
    let recipe = &session.run.recipe;
    let mut model = match recipe.model.init {
        InitChoice::Pretrained => session.load_base()?,
        InitChoice::Random => {
            let config = ModelConfig::read(&session.base.files.config).or_fault()?;
            taper_models::init(&config, recipe.train.seed, Some(DType::F32)).or_fault()?
        }
    };
    let trained = attach(session, model.as_mut())?;
    let data = training_data(session)?;
    let sections = Sections {
        train: recipe.train.clone(),
        optimizer: recipe.optimizer.clone(),
        schedule: recipe.schedule.clone(),
    };
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    let place = RunPlace {
        folder: session.folder.clone(),
        fingerprints: fingerprints(session)?,
        start,
        interrupt: interrupt::flag()?,
    };
    let outcome = Trainer::new(model.as_ref(), &trained, data, &sections, place)
        .and_then(|mut trainer| trainer.run(sink().as_mut()))
        .or_fault()?;
    if let Outcome::Finished { .. } = &outcome {
        write_trained(session, model.as_mut(), &trained)?;
    }
    Ok(outcome)
}

/// Give the model what is trained: an adapter, or all of its weights.
fn attach(session: &Session, model: &mut dyn CausalLm) -> anyhow::Result<Trained> {
    let recipe = &session.run.recipe;
    let trained = match &recipe.adapter {
        Some(section) => {
            let config = section.to_config(&recipe.model.base);
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

fn loader_options(session: &Session) -> DataLoaderOptions {
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

fn batches(examples: &[TokenizedExample], batch_size: usize) -> Vec<Batch> {
    examples.chunks(batch_size).map(Batch::new).collect()
}

/// What a checkpoint belongs to: with another base or other training settings it must not be gone on from.
fn fingerprints(session: &Session) -> anyhow::Result<BTreeMap<String, String>> {
    let recipe = &session.run.recipe;
    let base = match recipe.model.init {
        InitChoice::Pretrained => session.base.files.fingerprint().or_fault()?,
        InitChoice::Random => Fingerprint::of_file(&session.base.files.config).or_fault()?,
    };
    let settings = serde_json::json!([recipe.adapter, recipe.train, recipe.optimizer, recipe.schedule]);
    let settings = Fingerprint::of_bytes(settings.to_string().as_bytes());
    Ok(BTreeMap::from([
        ("base".to_owned(), base.as_str().to_owned()),
        (
            "the recipe's [adapter], [train], [optimizer] and [schedule]".to_owned(),
            settings.as_str().to_owned(),
        ),
    ]))
}

/// Bars on a terminal, `key=value` lines elsewhere.
fn sink() -> Box<dyn ProgressSink> {
    if interactive() { Box::new(Bar::stderr()) } else { Box::new(Lines::new(std::io::stderr())) }
}

fn write_trained(session: &Session, model: &mut dyn CausalLm, trained: &Trained) -> anyhow::Result<()> {
    match trained.as_adapter() {
        Some(adapter) => {
            let folder = session.path("adapter");
            adapter.save(&folder).or_fault()?;
            say(&format!("wrote {}: {} parameters", folder.display(), adapter.trainable_count()));
        }
        None => {
            let folder = session.path("merged");
            let options =
                MergeOptions { dtype: session.run.recipe.export.merged_dtype, ..MergeOptions::default() };
            taper_export::write_merged(model, &session.base.files, &folder, &options).or_fault()?;
            say(&format!("wrote {}: {} parameters", folder.display(), trained.parameter_count()));
        }
    }
    Ok(())
}

/// Remove what an earlier run left in the folder, and nothing else.
fn remove_earlier_run(folder: &Path) -> anyhow::Result<()> {
    for name in ["checkpoints", "adapter", "merged", "eval"] {
        let path = folder.join(name);
        if path.is_dir() {
            fs_err::remove_dir_all(path)?;
        }
    }
    for name in ["metrics.jsonl", "report.md", "run.json"] {
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
