//! `taper export`: artefacts of what a run trained, each read back and held against it.

mod gguf;

use super::eval::{Judged, load_trained, trained_folder};
use crate::adapters::load_adapter;
use crate::cli::ExportArgs;
use crate::fault::{OrFault, exit_code, user_error};
use crate::memory::available_bytes;
use crate::output::{print, say};
use crate::session::Session;
use crate::{card, contract};
use candle_core::DType;
use std::path::{Path, PathBuf};
use taper_diagnostics::{ExitCode, list_names, write_bytes_atomically};
use taper_export::{
    Exactness, ExportFormat, ExportProof, MergeOptions, ProofText, ReferenceLogits, SupervisedLosses,
    declared_dtype, write_merged, write_mlx_adapter,
};
use taper_hub::{InitChoice, ModelFiles};
use taper_models::{CausalLm, LoadOptions};
use taper_peft::LoadMode;

/// Examples that an export is proven on, and the most tokens taken of each.
const PROOF_SEQUENCES: usize = 16;
const PROOF_TOKENS: usize = 256;

/// An artefact, and how near it is to what was trained.
pub(crate) struct Exported {
    pub(crate) format: ExportFormat,
    pub(crate) folder: PathBuf,
    pub(crate) proof: ExportProof,
}

impl Exported {
    /// One as [`Exports::to_json`] lists it; `None` of anything else.
    fn of_json(value: &serde_json::Value) -> Option<Self> {
        Some(Self {
            format: serde_json::from_value(value["format"].clone()).ok()?,
            folder: serde_json::from_value(value["folder"].clone()).ok()?,
            proof: serde_json::from_value(value["proof"].clone()).ok()?,
        })
    }
}

/// What was exported, up to the first artefact that could not be written or did not pass its proof; that one is the last.
#[derive(Default)]
pub(crate) struct Exports {
    pub(crate) done: Vec<Exported>,
    pub(crate) failure: Option<anyhow::Error>,
}

impl Exports {
    /// How a run with these ends, which would end with `otherwise`.
    pub(crate) fn exit_code(&self, otherwise: ExitCode) -> ExitCode {
        self.failure.as_ref().map_or(otherwise, exit_code)
    }

    /// The artefacts with their proofs, for scripts.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        listed(&self.done)
    }
}

fn listed(exports: &[Exported]) -> serde_json::Value {
    let list = exports.iter().map(|e| {
        let passed = e.proof.passed();
        serde_json::json!({ "format": e.format, "folder": e.folder, "passed": passed, "proof": e.proof })
    });
    list.collect::<Vec<_>>().into()
}

/// What was written, as a format's arm hands it to the proof.
struct Artefact {
    folder: PathBuf,
    exactness: Exactness,
    /// Read back from the disk by our own engine.
    model: Box<dyn CausalLm>,
}

pub(crate) fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let mut folder = args.folder.clone();
    if !args.format.is_empty() {
        let formats =
            args.format.iter().map(|name| format_named(name)).collect::<anyhow::Result<Vec<_>>>()?;
        // As if the recipe said it, so that what is checked together with the formats is checked with these.
        folder.recipe.sets.push(format!("export.formats={}", serde_json::to_string(&formats)?));
    }
    if let Some(name) = &args.gguf_type {
        folder.recipe.sets.push(format!("export.gguf_type={}", serde_json::to_string(&name.to_lowercase())?));
    }
    let session = Session::open(&folder)?;
    trained_folder(&session)?;
    if !session.trains_all_weights() {
        contract::hold(&session.path("adapter"), &session.base, args.force)?;
    }
    let mut exports = write_formats(&session)?;
    if args.folder.recipe.common.json {
        print(&exports.to_json().to_string())?;
    }
    record(&session, &mut exports)?;
    exports.failure.map_or(Ok(ExitCode::Passed), Err)
}

fn format_named(name: &str) -> anyhow::Result<ExportFormat> {
    serde_json::from_value(name.into()).map_err(|_| {
        user_error(
            format!("no export format is named `{name}`"),
            format!("there are {}", list_names(ExportFormat::ALL.iter().map(ToString::to_string), 10)),
        )
    })
}

/// Where a whole model in one file lies.
pub(crate) fn gguf_file(session: &Session) -> PathBuf {
    gguf::model_file(session)
}

/// Export what the recipe asks for, unless the run ends with a failed gate: what is not good enough is not shipped.
pub(crate) fn export_if_passed(session: &Session, judged: &Judged) -> anyhow::Result<Exports> {
    if judged.exit_code() == ExitCode::Passed {
        return write_formats(session);
    }
    say(&format!(
        "nothing exported: the run did not pass. To export all the same:\n  {}",
        session.command("export", "")
    ));
    Ok(Exports::default())
}

/// Write every format of the recipe and prove it. One model is in memory at a time: the base, the base with its adapter, then each
/// artefact as it is read back.
fn write_formats(session: &Session) -> anyhow::Result<Exports> {
    let export = &session.run.recipe.export;
    let mut exports = Exports::default();
    if export.formats.is_empty() {
        return Ok(exports);
    }
    let reference = reference(session)?;
    for &format in &export.formats {
        // What fails is told at the end: the formats before it are done, and a run has more to tell than its exports.
        let proven = write_format(session, format).and_then(|artefact| {
            let proof = reference.compare(artefact.model.as_ref(), artefact.exactness).or_fault()?;
            Ok((proof.holding(export.min_gain_kept), artefact.folder))
        });
        let outcome = proven.and_then(|(proof, folder)| {
            say(&format!("export {format}: {}; {proof}", folder.display()));
            exports.done.push(Exported { format, folder, proof });
            proof.into_result().or_fault()
        });
        if let Err(error) = outcome {
            exports.failure = Some(error);
            break;
        }
    }
    Ok(exports)
}

fn write_format(session: &Session, format: ExportFormat) -> anyhow::Result<Artefact> {
    match format {
        ExportFormat::Peft => peft(session),
        ExportFormat::Merged => merged(session),
        ExportFormat::Gguf => gguf::model(session),
        ExportFormat::GgufAdapter => gguf::adapter(session),
        ExportFormat::Mlx => mlx(session),
        ExportFormat::Ollama => gguf::ollama(session),
    }
}

/// What the trained model says on held-out examples, and the losses of the base on them.
fn reference(session: &Session) -> anyhow::Result<ReferenceLogits> {
    let texts = proof_texts(session);
    let mut base = match session.run.recipe.model.init {
        InitChoice::Pretrained => Some(session.load_base()?),
        InitChoice::Random => None,
    };
    let losses =
        base.as_ref().map(|base| SupervisedLosses::of(base.as_ref(), &texts)).transpose().or_fault()?;
    if session.trains_all_weights() {
        base = None;
    }
    let (_, trained) = load_trained(session, base)?;
    let reference = ReferenceLogits::of(trained.as_ref(), texts).or_fault()?;
    Ok(match losses {
        Some(losses) => reference.against(losses),
        None => reference,
    })
}

/// The adapter lies in its folder since it was trained; its contract knows what it answered then.
fn peft(session: &Session) -> anyhow::Result<Artefact> {
    let mut model = session.load_base()?;
    let adapter =
        taper_peft::load(&session.path("adapter"), model.as_mut(), LoadMode::Inference).or_fault()?;
    let folder = contract::prove(session, model.as_ref(), &adapter)?;
    Ok(Artefact { folder, exactness: DType::F32.into(), model })
}

/// A whole model, merged matrix by matrix from the files of the base: the model is never in memory.
fn merged(session: &Session) -> anyhow::Result<Artefact> {
    let folder = session.path("merged");
    let options = merge_options(session);
    if session.trains_all_weights() {
        return trained_in_full(&folder, &options);
    }
    let mut model = trained_on_disk(session)?;
    let written = write_merged(model.as_mut(), &session.base.files, &folder, &options).or_fault()?;
    drop(model);
    let model = read_back(&ModelFiles::of_folder(&folder).or_fault()?, &folder, written.weight_bytes)?;
    Ok(Artefact { folder, exactness: written.dtype.into(), model })
}

/// Trained in full, the model lies in its folder since the training, its only copy: nothing is written over it.
fn trained_in_full(folder: &Path, options: &MergeOptions) -> anyhow::Result<Artefact> {
    let files = ModelFiles::of_folder(folder).or_fault()?;
    let sizes = files.weights.iter().map(|path| Ok(fs_err::metadata(path)?.len()));
    let weight_bytes = sizes.sum::<std::io::Result<u64>>()?;
    let dtype = declared_dtype(&files).or_fault()?;
    if let Some(asked) = options.dtype.dtype().filter(|asked| *asked != dtype) {
        return Err(user_error(
            format!(
                "`{}` holds the trained weights in {}, and `export.merged_dtype` asks for {}",
                folder.display(),
                dtype.as_str(),
                asked.as_str()
            ),
            "they are the only copy and are not written over: train with that type, or export \"gguf\" with a `gguf_type`",
        ));
    }
    let model = read_back(&files, folder, weight_bytes)?;
    Ok(Artefact { folder: folder.to_owned(), exactness: DType::F32.into(), model })
}

/// The adapter in mlx-lm's layout, read back over the base.
fn mlx(session: &Session) -> anyhow::Result<Artefact> {
    let (folder, mut model) = (session.path("mlx"), session.load_base()?);
    let mut adapter = load_adapter(&session.path("adapter"), model.as_mut())?;
    adapter.config.base_model_name_or_path = Some(card::public_name(&session.base.source));
    write_mlx_adapter(&adapter, &folder).or_fault()?;
    adapter.detach(model.as_mut()).or_fault()?;
    load_adapter(&folder, model.as_mut())?;
    Ok(Artefact { folder, exactness: DType::F32.into(), model })
}

/// The trained model, read from its files as it is written.
fn trained_on_disk(session: &Session) -> anyhow::Result<Box<dyn CausalLm>> {
    let load_options = LoadOptions::from(&session.run.recipe.model);
    if session.trains_all_weights() {
        let files = ModelFiles::of_folder(&trained_folder(session)?).or_fault()?;
        return taper_models::load_on_disk(&files, load_options).or_fault();
    }
    let mut model = taper_models::load_on_disk(&session.base.files, load_options).or_fault()?;
    load_adapter(&session.path("adapter"), model.as_mut())?;
    Ok(model)
}

/// The model in a folder, for its proof. A base that was quantised to fit may be written in more than the memory there is; its matrices
/// are then read from the disk for each text.
fn read_back(files: &ModelFiles, path: &Path, weight_bytes: u64) -> anyhow::Result<Box<dyn CausalLm>> {
    if fits(weight_bytes, available_bytes()) {
        return taper_models::load(files, LoadOptions::default()).or_fault();
    }
    say(&format!(
        "{} takes more memory than is free: it is proven from the disk, which takes longer",
        path.display()
    ));
    taper_models::load_on_disk(files, LoadOptions::default()).or_fault()
}

/// Whether a model of that many bytes can be held, with a quarter more for what is computed. Where the system does not say what is
/// free, it is tried.
fn fits(weight_bytes: u64, available: Option<u64>) -> bool {
    available.is_none_or(|free| weight_bytes.saturating_add(weight_bytes / 4) <= free)
}

/// How the recipe asks for a whole model, with the chat format of the training.
pub(crate) fn merge_options(session: &Session) -> MergeOptions {
    let (recipe, base) = (&session.run.recipe, &session.base);
    MergeOptions {
        dtype: recipe.export.merged_dtype,
        chat_template: recipe.model.chat_template.clone(),
        stop_ids: base.template.as_ref().map(|t| t.stop_ids(&base.tokenizer)).unwrap_or_default(),
        ..MergeOptions::default()
    }
}

/// Held-out examples where there are some, else training examples.
fn proof_texts(session: &Session) -> Vec<ProofText> {
    let data = &session.data;
    let examples = [&data.test, &data.valid, &data.train]
        .into_iter()
        .map(|split| &split.tokenized)
        .find(|tokenized| !tokenized.is_empty());
    let examples = examples.map(Vec::as_slice).unwrap_or_default().iter().take(PROOF_SEQUENCES);
    examples.map(|example| ProofText::new(&example.input_ids, &example.loss_mask, PROOF_TOKENS)).collect()
}

/// Put the proofs into the cards and, where a run left one, into `run.json`; those of other formats stay.
fn record(session: &Session, exports: &mut Exports) -> anyhow::Result<()> {
    let path = session.path("run.json");
    let known = path.is_file().then(|| fs_err::read(&path)).transpose()?;
    let known = known.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let Some(serde_json::Value::Object(mut run)) = known else {
        return card::write(session, &exports.done);
    };
    let earlier = run.get("exports").and_then(serde_json::Value::as_array).into_iter().flatten();
    let earlier = earlier.filter_map(Exported::of_json);
    let is_new = |one: &Exported| exports.done.iter().all(|done| done.format != one.format);
    let mut all: Vec<Exported> = earlier.filter(|one| one.folder.exists() && is_new(one)).collect();
    all.append(&mut exports.done);
    card::write(session, &all)?;
    run.insert("exports".into(), listed(&all));
    let text = format!("{:#}\n", serde_json::Value::Object(run));
    Ok(write_bytes_atomically(&path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_model_fits_with_a_quarter_more_than_its_weights() {
        assert!(fits(8, Some(10)) && !fits(9, Some(10)) && fits(u64::MAX, None) && !fits(u64::MAX, Some(1)));
    }
}
