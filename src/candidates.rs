//! Who is evaluated: the base, what was trained, and the candidates of the recipe.

use crate::adapters::load_adapter;
use crate::card::public_name;
use crate::commands::eval::{load_trained, trained_folder};
use crate::commands::export::gguf_file;
use crate::commands::serve::LocalServer;
use crate::fault::{OrFault, user_error};
use crate::session::Session;
use crate::workspace::Base;
use serde_json::json;
use std::path::{Path, PathBuf};
use taper_eval::remote::{Endpoint, EndpointSection};
use taper_eval::{ADAPTER, BASE, CandidateSection, EvalTask, ExportedModel, TRAINED};
use taper_hub::{Fingerprint, HashCache, InitChoice, ModelSection};
use taper_models::{CausalLm, LoadOptions};

/// One candidate.
pub(crate) struct Candidate<'s> {
    pub(crate) name: String,
    /// What it is, for people.
    pub(crate) about: String,
    /// Examples shown before a question, where it is not the evaluation's own number.
    few_shot: Option<usize>,
    kind: Kind<'s>,
}

/// Where its answers come from.
enum Kind<'s> {
    /// The recipe's base.
    Base,
    /// What the run trained.
    Trained,
    /// Another model or adapter.
    Model { base: Other<'s>, adapter: Option<PathBuf> },
    /// A model behind an address.
    Endpoint(&'s EndpointSection),
    /// A model through our own server.
    Served { base: Other<'s>, adapter: Option<PathBuf>, section: Box<ModelSection> },
}

/// The model below an adapter.
enum Other<'s> {
    /// The recipe's base.
    OfRecipe(&'s Base),
    /// One of its own, with how its weights are read.
    Own(Box<Base>, LoadOptions),
}

/// When a candidate can be evaluated in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// As soon as the training is over.
    Trained,
    /// When artefacts are exported.
    Exported,
}

/// A model that is loaded when it is first asked, and handed on where the next candidate begins with the same weights.
#[derive(Default)]
pub(crate) struct Loaded {
    base: Option<Box<dyn CausalLm>>,
    candidate: Option<Box<dyn CausalLm>>,
    server: Option<LocalServer>,
}

impl Stage {
    pub(crate) fn of(section: &CandidateSection) -> Self {
        if section.export.is_some() { Self::Exported } else { Self::Trained }
    }
}

/// The name of what a run trains.
pub(crate) fn trained_name(session: &Session) -> &'static str {
    if session.trains_all_weights() { TRAINED } else { ADAPTER }
}

/// The base's name, where there is a base to compare with.
pub(crate) fn base_name(session: &Session) -> Option<&'static str> {
    (session.run.recipe.model.init == InitChoice::Pretrained).then_some(BASE)
}

/// The base, what was trained and the recipe's candidates of a stage, those that are the base first.
pub(crate) fn candidates<'s>(session: &'s Session, stages: &[Stage]) -> anyhow::Result<Vec<Candidate<'s>>> {
    let sections = session.run.recipe.candidate.iter().filter(|section| stages.contains(&Stage::of(section)));
    let others =
        sections.map(|section| Candidate::of(section, session)).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut all, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|c| matches!(c.kind, Kind::Base));
    if stages.contains(&Stage::Trained) {
        if base_name(session).is_some() {
            let about = public_name(&session.base.source);
            all.insert(0, Candidate { name: BASE.into(), about, few_shot: None, kind: Kind::Base });
        }
        trained_folder(session)?;
        let about =
            format!("{}/ of this run", if session.trains_all_weights() { "merged" } else { "adapter" });
        let name = trained_name(session).to_owned();
        all.push(Candidate { name, about, few_shot: None, kind: Kind::Trained });
    }
    all.extend(others);
    Ok(all)
}

impl<'s> Candidate<'s> {
    fn of(section: &'s CandidateSection, session: &'s Session) -> anyhow::Result<Self> {
        let (name, few_shot) = (section.name.clone(), section.few_shot);
        if let Some(endpoint) = &section.endpoint {
            let about = format!("{} at {}", endpoint.model, endpoint.url);
            return Ok(Self {
                name,
                about: shown(about, few_shot),
                few_shot,
                kind: Kind::Endpoint(endpoint),
            });
        }
        let model = match section.export {
            Some(export) => Some(exported(session, export)?.to_string_lossy().into_owned()),
            None if section.is_served_trained() && session.trains_all_weights() => {
                Some(trained_folder(session)?.to_string_lossy().into_owned())
            }
            None => section.model.clone(),
        };
        let adapter = match section.is_served_trained() && !session.trains_all_weights() {
            true => Some(trained_folder(session)?),
            false => section.adapter.clone(),
        };
        let about = about(section, session, adapter.as_deref());
        let is_export = section.export.is_some();
        let (other, own) = match &model {
            Some(model) => {
                let section = own_section(model, is_export, session);
                let base = Base::of_recipe(&section, &session.args.recipe.common)?;
                let options = (&section).into();
                (Other::Own(Box::new(base), options), section)
            }
            None => (Other::OfRecipe(&session.base), session.run.recipe.model.clone()),
        };
        let kind = match (section.server, model.is_some() || adapter.is_some()) {
            (true, _) => Kind::Served { base: other, adapter, section: Box::new(own) },
            (false, true) => Kind::Model { base: other, adapter },
            (false, false) => Kind::Base,
        };
        Ok(Self { name, about: shown(about, few_shot), few_shot, kind })
    }

    /// How it reads text.
    fn reader<'a>(&'a self, session: &'a Session) -> &'a Base {
        match &self.kind {
            Kind::Model { base: Other::Own(base, _), .. }
            | Kind::Served { base: Other::Own(base, _), .. } => base,
            _ => &session.base,
        }
    }

    /// The tokenizer of its texts.
    pub(crate) fn tokenizer<'a>(&'a self, session: &'a Session) -> &'a taper_text::Tokenizer {
        &self.reader(session).tokenizer
    }

    /// An evaluation made ready for it; `None` where it is the one of the base.
    pub(crate) fn own_task(&self, session: &Session, index: usize) -> anyhow::Result<Option<EvalTask>> {
        let held_out = &session.tasks[index];
        let few_shot = self.few_shot.unwrap_or(held_out.task.section.few_shot);
        let is_own = matches!(
            &self.kind,
            Kind::Model { base: Other::Own(..), .. } | Kind::Served { base: Other::Own(..), .. }
        );
        if !is_own && few_shot == held_out.task.section.few_shot {
            return Ok(None);
        }
        held_out.task_for(self.reader(session), few_shot).map(Some)
    }

    /// All that its answers depend on besides the questions.
    pub(crate) fn identity(&self, session: &Session) -> anyhow::Result<String> {
        let hashes = HashCache::from_env();
        let model = &session.run.recipe.model;
        let of_base = |base: &Base| base.files.fingerprint_with(hashes.as_ref()).or_fault();
        let adapter_of = |folder: &Path| adapter_fingerprint(folder);
        let as_recipe_says = json!([
            model.dtype,
            model.quantize,
            model.double_quant,
            model.quantize_block_size,
            model.quantize_embeddings
        ]);
        let (weights, how, adapter) = match &self.kind {
            Kind::Base => (of_base(&session.base)?, as_recipe_says, None),
            Kind::Trained if session.trains_all_weights() => {
                let files = taper_hub::ModelFiles::of_folder(&trained_folder(session)?).or_fault()?;
                (files.fingerprint_with(hashes.as_ref()).or_fault()?, as_recipe_says, None)
            }
            Kind::Trained => {
                (of_base(&session.base)?, as_recipe_says, Some(adapter_of(&trained_folder(session)?)?))
            }
            Kind::Endpoint(_) => return Ok(String::new()),
            Kind::Model { base, adapter } | Kind::Served { base, adapter, .. } => {
                let adapter = adapter.as_deref().map(adapter_of).transpose()?;
                match base {
                    Other::OfRecipe(base) => (of_base(base)?, as_recipe_says, adapter),
                    Other::Own(base, options) => (of_base(base)?, json!(format!("{options:?}")), adapter),
                }
            }
        };
        let tokenizer: String =
            self.tokenizer(session).fingerprint().iter().map(|b| format!("{b:02x}")).collect();
        let adapter = adapter.as_ref().map(Fingerprint::as_str);
        Ok(json!({"weights": weights.as_str(), "as": how, "adapter": adapter, "tokenizer": tokenizer, "device": "cpu", "served": self.is_served()}).to_string())
    }

    /// Whether it is asked over HTTP through our own server.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.kind, Kind::Served { .. })
    }

    /// Whether it is what the run trained, in this process.
    pub(crate) fn is_trained(&self) -> bool {
        matches!(self.kind, Kind::Trained)
    }

    /// The address at which it is asked, where it is; our own server is started at the first call.
    pub(crate) fn endpoint(
        &self,
        session: &Session,
        loaded: &mut Loaded,
        concurrency: usize,
    ) -> anyhow::Result<Option<Endpoint>> {
        let (base, adapter, section) = match &self.kind {
            Kind::Endpoint(section) => return Endpoint::open(section).or_fault().map(Some),
            Kind::Served { base, adapter, section } => (base, adapter, section),
            _ => return Ok(None),
        };
        if loaded.server.is_none() {
            loaded.base = None;
            let common = &session.args.recipe.common;
            let reopened = match base {
                Other::OfRecipe(_) => Base::of_recipe(&session.run.recipe.model, common)?,
                Other::Own(..) => Base::of_recipe(section, common)?,
            };
            loaded.server = Some(LocalServer::start(reopened, section, adapter.as_deref(), concurrency)?);
        }
        let Some(server) = &loaded.server else { return Ok(None) };
        let section = EndpointSection {
            url: server.url.clone(),
            model: server.model.clone(),
            concurrency,
            timeout_s: 3600,
            ..EndpointSection::default()
        };
        Endpoint::open(&section).or_fault().map(Some)
    }

    /// Its model, loaded at the first call.
    pub(crate) fn model<'l>(
        &self,
        session: &Session,
        loaded: &'l mut Loaded,
    ) -> anyhow::Result<&'l dyn CausalLm> {
        if let Kind::Base = self.kind {
            if loaded.base.is_none() {
                loaded.base = Some(session.load_base()?);
            }
            return loaded.base.as_deref().ok_or_else(|| anyhow::anyhow!("the base was not loaded"));
        }
        if loaded.candidate.is_none() {
            loaded.candidate = Some(self.load(session, loaded.base.take())?);
        }
        loaded.candidate.as_deref().ok_or_else(|| anyhow::anyhow!("`{}` was not loaded", self.name))
    }

    /// `base` is the recipe's, where it is in memory already. What is not used of it is let go first.
    fn load(&self, session: &Session, base: Option<Box<dyn CausalLm>>) -> anyhow::Result<Box<dyn CausalLm>> {
        match &self.kind {
            Kind::Base => session.load_base(),
            Kind::Endpoint(_) | Kind::Served { .. } => {
                anyhow::bail!("`{}` has no model in this process", self.name)
            }
            Kind::Trained if session.trains_all_weights() => {
                drop(base);
                Ok(load_trained(session, None)?.1)
            }
            Kind::Trained => Ok(load_trained(session, base)?.1),
            Kind::Model { base: other, adapter } => {
                let mut model = match other {
                    Other::OfRecipe(_) => base.map_or_else(|| session.load_base(), Ok)?,
                    Other::Own(own, options) => {
                        drop(base);
                        own.load(*options)?
                    }
                };
                if let Some(folder) = adapter {
                    load_adapter(folder, model.as_mut())?;
                }
                Ok(model)
            }
        }
    }
}

impl Loaded {
    /// Let go of a candidate's model; the base's stays, if it is in memory.
    pub(crate) fn next(&mut self) {
        self.candidate = None;
        self.server = None;
    }
}

/// How a model that is not the recipe's base is read, with its own tokenizer and template. What was exported reads text as the run does.
fn own_section(model: &str, is_export: bool, session: &Session) -> ModelSection {
    let chat_template = session.run.recipe.model.chat_template.clone().filter(|_| is_export);
    ModelSection { base: model.to_owned(), chat_template, ..ModelSection::default() }
}

/// What a candidate is, for people.
fn about(section: &CandidateSection, session: &Session, adapter: Option<&Path>) -> String {
    let what = match (section.export, &section.model) {
        (Some(ExportedModel::Merged), _) => "merged/ of this run".to_owned(),
        (Some(ExportedModel::Gguf), _) => "gguf/ of this run".to_owned(),
        (None, Some(model)) => model.clone(),
        (None, None) if section.is_served_trained() => "what was trained".to_owned(),
        (None, None) => public_name(&session.base.source),
    };
    let adapter = adapter.filter(|_| !section.is_served_trained());
    let with = adapter.map(|folder| format!(" with {}", folder.display())).unwrap_or_default();
    let through = if section.server { ", through our own server" } else { "" };
    format!("{what}{with}{through}")
}

fn shown(about: String, few_shot: Option<usize>) -> String {
    match few_shot {
        Some(few_shot) => format!("{about}, {few_shot} examples shown"),
        None => about,
    }
}

fn exported(session: &Session, export: ExportedModel) -> anyhow::Result<PathBuf> {
    let path = match export {
        ExportedModel::Merged => session.path("merged"),
        ExportedModel::Gguf => gguf_file(session),
    };
    if path.exists() {
        return Ok(path);
    }
    Err(user_error(
        format!("`{}` does not exist: it has not been exported yet", path.display()),
        format!("export first: {}", session.command("export", "")),
    ))
}

/// A hash of an adapter's weights and settings.
pub(crate) fn adapter_fingerprint(folder: &Path) -> anyhow::Result<Fingerprint> {
    let files: Vec<PathBuf> = [taper_peft::WEIGHTS_FILE, taper_peft::CONFIG_FILE]
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.is_file())
        .collect();
    if files.is_empty() {
        return Err(user_error(
            format!("there is no adapter in `{}`", folder.display()),
            "name a folder in PEFT's format, with `adapter_config.json` and its weights",
        ));
    }
    Fingerprint::of_files_with(&files, HashCache::from_env().as_ref()).or_fault()
}
