//! What llama.cpp and Ollama take.

use super::{Artefact, read_back, trained_on_disk};
use crate::adapters::load_adapter;
use crate::card;
use crate::fault::OrFault;
use crate::output::say;
use crate::session::Session;
use candle_core::DType;
use std::path::{Path, PathBuf};
use taper_export::{
    Exactness, GgufAdapterOptions, GgufOptions, Modelfile, ModelfileSource, WrittenGguf, chat_texts,
    read_gguf_adapter, write_gguf, write_gguf_adapter, write_modelfile,
};
use taper_hub::ModelFiles;
use taper_models::CausalLm;
use taper_peft::LoadMode;

/// Where the whole model lies.
pub(super) fn model_file(session: &Session) -> PathBuf {
    let name = format!("{}-{}.gguf", session.run.name, session.run.recipe.export.gguf_type);
    session.path("gguf").join(name)
}

/// The whole model in one file.
pub(super) fn model(session: &Session) -> anyhow::Result<Artefact> {
    made(session, "gguf")?;
    let file = model_file(session);
    let (exactness, model) = whole(session, &file)?;
    Ok(Artefact { folder: file, exactness, model })
}

/// The adapter in one file, read back over the base as llama.cpp reads it.
pub(super) fn adapter(session: &Session) -> anyhow::Result<Artefact> {
    let file = made(session, "gguf-adapter")?.join(format!("{}.gguf", session.run.name));
    let model = adapter_file(session, &file)?;
    Ok(Artefact { folder: file, exactness: DType::F32.into(), model })
}

/// A folder for `ollama create`: the whole model, or the adapter for a base that Ollama has.
pub(super) fn ollama(session: &Session) -> anyhow::Result<Artefact> {
    let recipe = &session.run.recipe;
    let folder = made(session, "ollama")?;
    let (source, exactness, model) = match &recipe.export.ollama_base {
        None => {
            let file = "model.gguf".to_owned();
            let (exactness, model) = whole(session, &folder.join(&file))?;
            (ModelfileSource::Model { file }, exactness, model)
        }
        Some(base) => {
            let file = "adapter.gguf".to_owned();
            let model = adapter_file(session, &folder.join(&file))?;
            (ModelfileSource::Adapter { base: base.clone(), file }, DType::F32.into(), model)
        }
    };
    let texts = chat_texts(&session.base.files, recipe.model.chat_template.as_deref()).or_fault()?;
    let modelfile = Modelfile {
        source,
        chat_template: texts.template.as_deref(),
        stops: texts.stops,
        system: recipe.export.ollama_system.clone(),
    };
    let written = write_modelfile(&folder.join("Modelfile"), &modelfile).or_fault()?;
    notes(&written.path, &written.notes);
    Ok(Artefact { folder, exactness, model })
}

fn made(session: &Session, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let folder = session.path(name);
    fs_err::create_dir_all(&folder)?;
    Ok(folder)
}

fn whole(session: &Session, file: &Path) -> anyhow::Result<(Exactness, Box<dyn CausalLm>)> {
    let recipe = &session.run.recipe;
    let options = GgufOptions {
        gguf_type: recipe.export.gguf_type,
        name: Some(session.run.name.clone()),
        chat_template: recipe.model.chat_template.clone(),
    };
    let mut model = trained_on_disk(session)?;
    let written = write_gguf(model.as_mut(), &session.base.files, file, &options).or_fault()?;
    drop(model);
    tell(&written);
    let model = read_back(&ModelFiles::of_gguf(file).or_fault()?, file, written.bytes)?;
    // A row that its type does not divide may have become one with fewer bits.
    let exactness =
        if written.fallbacks.is_empty() { written.gguf_type.into() } else { Exactness::Quantized };
    Ok((exactness, model))
}

fn adapter_file(session: &Session, file: &Path) -> anyhow::Result<Box<dyn CausalLm>> {
    let mut model = session.load_base()?;
    let adapter = load_adapter(&session.path("adapter"), model.as_mut())?;
    let options = GgufAdapterOptions {
        name: Some(session.run.name.clone()),
        base_name: Some(card::public_name(&session.base.source)),
        ..GgufAdapterOptions::default()
    };
    write_gguf_adapter(model.as_mut(), &adapter, &session.base.files, file, &options).or_fault()?;
    adapter.detach(model.as_mut()).or_fault()?;
    let (config, weights) = read_gguf_adapter(file, model.as_mut()).or_fault()?;
    taper_peft::load_parts(&config, weights, model.as_mut(), LoadMode::Inference).or_fault()?;
    Ok(model)
}

/// What people should know of a file: tensors of another type than asked for, and what llama.cpp does otherwise.
fn tell(written: &WrittenGguf) {
    if let Some(first) = written.fallbacks.first() {
        say(&format!(
            "  {} of {} tensors have rows that {} does not divide, and are stored otherwise: `{}` ({} numbers a row) as {:?}",
            written.fallbacks.len(),
            written.tensors,
            written.gguf_type,
            first.tensor,
            first.columns,
            first.used,
        ));
    }
    notes(&written.path, &written.notes);
}

fn notes(path: &Path, notes: &[String]) {
    for note in notes {
        say(&format!("  {}: {note}", path.display()));
    }
}
