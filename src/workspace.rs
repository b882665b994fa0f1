//! What several verbs need: the recipe, the base's files and tokenizer, the data, the run's folder.

use crate::cli::{CommonArgs, FolderArgs, ModelArgs, QuantizeArgs, RecipeArgs};
use crate::contract::TEMPLATE_FILE;
use crate::fault::{OrFault, user_error};
use crate::output::say;
use crate::tasks::{HeldOut, prepare_tasks};
use candle_core::Device;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taper_data::{DataSection, PrepareOptions, PreparedData, TextEncoder, TokenCache};
use taper_hub::{HubOptions, ModelFiles, ModelSection, ModelSource};
use taper_models::{CausalLm, LoadOptions};
use taper_recipe::ResolvedRun;
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};

/// A resolved recipe, with its warnings told.
pub(crate) fn resolve(args: &RecipeArgs) -> anyhow::Result<ResolvedRun> {
    let run = taper_recipe::resolve(&args.recipe, &args.sets).or_fault()?;
    if !run.warnings.is_empty() {
        say(&run.warnings.to_string());
    }
    Ok(run)
}

/// The folder that a run writes to.
pub(crate) fn run_folder(args: &FolderArgs, run: &ResolvedRun) -> PathBuf {
    args.out.clone().unwrap_or_else(|| Path::new("runs").join(&run.name))
}

/// The date that chat templates see in a run of a recipe, seconds since 1970: 26 July 2024, which Llama 3's template writes when it is
/// given no clock. With today's, the same recipe would train on other texts tomorrow (invariant 4).
const DATE_OF_RUNS: u64 = 1_721_952_000;

/// The base's files and how it reads text.
pub(crate) struct Base {
    pub(crate) source: ModelSource,
    pub(crate) files: ModelFiles,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    common: CommonArgs,
    /// The most that the weights may take of a device's memory.
    max_memory: Option<u64>,
}

impl Base {
    /// Find the files and open the tokenizer; loads no weights.
    fn open(section: &ModelSection, common: &CommonArgs) -> anyhow::Result<Self> {
        if let Some(path) = section.chat_template.as_ref().filter(|path| !path.is_file()) {
            return Err(user_error(
                format!("there is no chat template `{}`", path.display()),
                "`model.chat_template` is relative to the recipe file that says it",
            ));
        }
        let source = ModelSource::of_section(section, Path::new("")).or_fault()?;
        let mut options = HubOptions { progress: crate::output::interactive(), ..HubOptions::from_env() };
        options.offline |= common.offline;
        let files = source.resolve(&options).or_fault()?;
        let tokenizer_files = TokenizerFiles {
            tokenizer: files.tokenizer.clone(),
            tokenizer_config: files.tokenizer_config.clone(),
            special_tokens_map: files.special_tokens_map.clone(),
            generation_config: files.generation_config.clone(),
            chat_template: section
                .chat_template
                .clone()
                .map(Into::into)
                .or_else(|| files.chat_template.clone()),
        };
        let tokenizer = Arc::new(Tokenizer::load(&tokenizer_files).or_fault()?);
        let template = ChatTemplate::load(&tokenizer_files, &tokenizer).or_fault()?;
        Ok(Self {
            source,
            files,
            tokenizer,
            template,
            common: common.clone(),
            max_memory: section.max_memory_bytes(),
        })
    }

    /// The base of a recipe, whose template sees the same date in every run.
    pub(crate) fn of_recipe(section: &ModelSection, common: &CommonArgs) -> anyhow::Result<Self> {
        let mut base = Self::open(section, common)?;
        let fixed = base.template.take().map(|t| t.with_fixed_clock(DATE_OF_RUNS, &base.tokenizer));
        base.template = fixed.transpose().or_fault()?;
        Ok(base)
    }

    /// A model that was trained whole, with the date of its run.
    pub(crate) fn of_trained(
        folder: &Path,
        section: &ModelSection,
        common: &CommonArgs,
    ) -> anyhow::Result<Self> {
        let base = folder.to_string_lossy().into_owned();
        Self::of_recipe(&ModelSection { base, revision: None, ..section.clone() }, common)
    }

    /// The base that `--model` names, with its own template.
    pub(crate) fn of_name(section: &ModelSection, common: &CommonArgs) -> anyhow::Result<Self> {
        Self::open(section, common)
    }

    /// The base that `--model` names with the chat template of its adapter, and how the flags beside it ask for its weights.
    pub(crate) fn named(args: &ModelArgs) -> anyhow::Result<(Self, LoadOptions)> {
        let mut section = model_section(&args.quantize, &args.model, "auto")?;
        // An adapter that was trained with a template of its own has it beside it.
        let mut templates = args.adapter.iter().map(|adapter| adapter.folder.join(TEMPLATE_FILE));
        section.chat_template = templates.find(|path| path.is_file());
        Ok((Self::open(&section, &args.common)?, (&section).into()))
    }

    /// How examples become tokens.
    pub(crate) fn encoder<'a>(&'a self, section: &DataSection) -> TextEncoder<'a> {
        TextEncoder::new(&self.tokenizer, self.template.as_ref(), section.supervise)
    }

    /// The weights, on the device that is asked for.
    pub(crate) fn load(&self, options: LoadOptions) -> anyhow::Result<Box<dyn CausalLm>> {
        let device = self.device()?;
        let mut model = taper_models::load(&self.files, options).or_fault()?;
        crate::device::place(model.as_mut(), &device, self.max_memory)?;
        Ok(model)
    }

    /// Where models are computed.
    pub(crate) fn device(&self) -> anyhow::Result<Device> {
        crate::device::open(&self.common)
    }
}

/// What a recipe's `[model]` would say in place of the flags.
pub(crate) fn model_section(args: &QuantizeArgs, base: &str, dtype: &str) -> anyhow::Result<ModelSection> {
    let section: ModelSection = serde_json::from_value(serde_json::json!({
        "base": base, "dtype": dtype, "quantize": args.quantize, "double_quant": args.double_quant,
    }))?;
    section.check().into_result().or_fault()?;
    Ok(section)
}

/// Read, tokenise and check the data of a recipe and of its evaluations; warnings are told, errors end the verb.
pub(crate) fn prepare(run: &ResolvedRun, base: &Base) -> anyhow::Result<(PreparedData, Vec<HeldOut>)> {
    let mut data = read_data(run, base);
    tell_data(&data);
    let (tasks, problems) = prepare_tasks(run, base, &data);
    data.problems.extend(problems);
    if data.problems.has_errors() {
        return Err(taper_data::Error::Problems(data.problems)).or_fault();
    }
    if !data.problems.is_empty() {
        say(&data.problems.to_string());
    }
    Ok((data, tasks))
}

/// Read, tokenise and check the data of a recipe.
pub(crate) fn read_data(run: &ResolvedRun, base: &Base) -> PreparedData {
    let section = &run.recipe.data;
    let (seed, cache) = (run.recipe.train.seed, TokenCache::from_env());
    let fields: Vec<String> = run.recipe.eval.iter().flat_map(|eval| eval.fields()).collect();
    let options = PrepareOptions { cache: cache.as_ref(), fields: &fields };
    taper_data::prepare_with(section, Path::new(""), seed, &base.encoder(section), options)
}

fn tell_data(data: &PreparedData) {
    for split in data.splits() {
        say(&format!("{:<5}  {}", split.name, split.stats()));
        if !split.report.skipped.is_empty() {
            say(split.report.to_string().trim_end());
        }
    }
    tell_reused(data);
}

/// Say where an earlier run saved work.
pub(crate) fn tell_reused(data: &PreparedData) {
    if data.reused > 0 {
        say(&format!("tokens of {} examples are those that an earlier run kept", data.reused));
    }
}
