//! `taper export`: artefacts of what a run trained, each read back and held against it.

use super::eval::{Judged, load_trained};
use crate::cli::ExportArgs;
use crate::fault::{OrFault, user_error};
use crate::output::{print, say};
use crate::session::Session;
use std::path::PathBuf;
use taper_diagnostics::{ExitCode, list_names};
use taper_export::{ExportFormat, ExportProof, MergeOptions, ReferenceLogits, write_merged};
use taper_hub::ModelFiles;
use taper_models::LoadOptions;

/// Examples that an export is proven on, and the most tokens taken of each.
const PROOF_SEQUENCES: usize = 16;
const PROOF_TOKENS: usize = 256;

/// An artefact, and the proof that it is what was trained.
pub(crate) struct Exported {
    pub(crate) format: ExportFormat,
    pub(crate) folder: PathBuf,
    pub(crate) proof: ExportProof,
}

pub(crate) fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let session = Session::open(&args.folder)?;
    let formats = if args.format.is_empty() {
        session.run.recipe.export.formats.clone()
    } else {
        args.format.iter().map(|name| format_named(name)).collect::<anyhow::Result<_>>()?
    };
    let exported = write_formats(&session, &formats)?;
    if args.folder.recipe.common.json {
        let list: Vec<_> = exported
            .iter()
            .map(|e| serde_json::json!({ "format": e.format, "folder": e.folder, "proof": e.proof }))
            .collect();
        print(&serde_json::Value::from(list).to_string())?;
    }
    Ok(ExitCode::Passed)
}

fn format_named(name: &str) -> anyhow::Result<ExportFormat> {
    serde_json::from_value(name.into()).map_err(|_| {
        let known = [ExportFormat::Peft, ExportFormat::Merged].map(|f| f.to_string());
        user_error(
            format!("no export format is named `{name}`"),
            format!("there are {}", list_names(known, 10)),
        )
    })
}

/// Export what the recipe asks for, unless the run ends with a failed gate: what is not good enough is not shipped.
pub(crate) fn export_if_passed(session: &Session, judged: &Judged) -> anyhow::Result<Vec<Exported>> {
    if judged.exit_code() == ExitCode::Passed {
        return write_formats(session, &session.run.recipe.export.formats);
    }
    say(&format!(
        "nothing exported: the run did not pass. To export all the same:\n  {}",
        session.command("export", "")
    ));
    Ok(Vec::new())
}

fn write_formats(session: &Session, formats: &[ExportFormat]) -> anyhow::Result<Vec<Exported>> {
    if formats.is_empty() {
        return Ok(Vec::new());
    }
    let (_, mut model) = load_trained(session, None)?;
    let reference = ReferenceLogits::of(model.as_ref(), proof_sequences(session)).or_fault()?;
    let mut exported = Vec::new();
    for &format in formats {
        let (folder, dtype, written) = match format {
            // The adapter lies in its folder since it was trained, and `load_trained` has just read it from there.
            ExportFormat::Peft if session.trains_all_weights() => {
                return Err(user_error(
                    "there is no adapter to export: all weights were trained",
                    "export \"merged\", the whole model",
                ));
            }
            ExportFormat::Peft => {
                let (_, written) = load_trained(session, None)?;
                (session.path("adapter"), candle_core::DType::F32, written)
            }
            ExportFormat::Merged => {
                let folder = session.path("merged");
                let recipe = &session.run.recipe;
                let options = MergeOptions {
                    dtype: recipe.export.merged_dtype,
                    chat_template: recipe.model.chat_template.clone(),
                    ..MergeOptions::default()
                };
                let written =
                    write_merged(model.as_mut(), &session.base.files, &folder, &options).or_fault()?;
                let files = ModelFiles::of_folder(&folder).or_fault()?;
                let reread = taper_models::load(&files, LoadOptions::default()).or_fault()?;
                (folder, written.dtype, reread)
            }
        };
        let proof =
            reference.compare(written.as_ref(), dtype).and_then(ExportProof::into_result).or_fault()?;
        say(&format!("export {format}: {}; {proof}", folder.display()));
        exported.push(Exported { format, folder, proof });
    }
    Ok(exported)
}

/// Held-out examples where there are some, else training examples.
fn proof_sequences(session: &Session) -> Vec<Vec<u32>> {
    let data = &session.data;
    let examples = [&data.test, &data.valid, &data.train]
        .into_iter()
        .map(|split| &split.tokenized)
        .find(|tokenized| !tokenized.is_empty());
    let examples = examples.map(Vec::as_slice).unwrap_or_default();
    let cut = |ids: &[u32]| ids[..ids.len().min(PROOF_TOKENS)].to_vec();
    examples.iter().take(PROOF_SEQUENCES).map(|example| cut(&example.input_ids)).collect()
}
