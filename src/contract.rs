//! The contract beside an adapter: written when it has been trained, held against the base whenever it is used.

use crate::card::public_name;
use crate::fault::{OrFault, user_error};
use crate::output::say;
use crate::session::Session;
use crate::workspace::Base;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use taper_data::TokenizedExample;
use taper_eval::{Evaluation, Verdict};
use taper_export::{
    BaseInUse, CONTRACT_FILE, CONTRACT_SCHEMA, Contract, DataFacts, FileFacts, GoldenPrompt, LayerScale,
    ScaleFacts, Score,
};
use taper_hub::{Fingerprint, HashCache};
use taper_models::CausalLm;
use taper_peft::{Adapter, Method};

/// The template of an adapter that was trained with another than the base's, beside it.
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";
/// What logits of a golden prompt may be off by over the same base on another machine.
const GOLDEN_TOLERANCE: f64 = 0.01;

/// Write the contract of an adapter that sits on `model`, and the chat template beside it where it is the recipe's own.
pub(crate) fn write(session: &Session, model: &dyn CausalLm, adapter: &Adapter) -> anyhow::Result<()> {
    let folder = session.path("adapter");
    let contract = make(session, model, adapter)?;
    let template = folder.join(TEMPLATE_FILE);
    match &session.run.recipe.model.chat_template {
        Some(path) => drop(fs_err::copy(path, template)?),
        None if template.is_file() => fs_err::remove_file(template)?,
        None => {}
    }
    contract.write(&folder).or_fault()
}

fn make(session: &Session, model: &dyn CausalLm, adapter: &Adapter) -> anyhow::Result<Contract> {
    let hashes = HashCache::from_env();
    let name = public_name(&session.base.source);
    let base = in_use(&session.base, &name, hashes.as_ref());
    Ok(Contract {
        schema: CONTRACT_SCHEMA,
        taper: env!("CARGO_PKG_VERSION").to_owned(),
        base: base.base_facts(quantized(session)).or_fault()?,
        tokenizer: base.tokenizer_facts().or_fault()?,
        chat_template: base.template_text(),
        scale: scale(adapter),
        data: data(session, hashes.as_ref())?,
        evaluation: scores(session)?.0,
        golden: GoldenPrompt::ask(model, &base).or_fault()?,
    })
}

fn in_use<'a>(base: &'a Base, name: &'a str, hashes: Option<&'a HashCache>) -> BaseInUse<'a> {
    BaseInUse {
        name,
        files: &base.files,
        tokenizer: &base.tokenizer,
        template: base.template.as_ref(),
        hashes,
    }
}

fn quantized(session: &Session) -> Option<String> {
    let model = &session.run.recipe.model;
    let format = serde_json::to_value(model.quantize?).ok()?.as_str()?.to_owned();
    Some(if model.double_quant { format!("{format}, double quantised") } else { format })
}

fn scale(adapter: &Adapter) -> ScaleFacts {
    let divisor = if adapter.config.use_rslora { "sqrt(r)" } else { "r" };
    let layers = adapter.layers.iter().map(|layer| {
        let scale = LayerScale { r: layer.rank, lora_alpha: layer.alpha, scale: layer.scale };
        (layer.path.clone(), scale)
    });
    let meaning = match &adapter.config.method {
        Method::Lora if adapter.config.use_dora => format!(
            "a layer listed here gives m / n (W x + scale * B (A x)), n the lengths of the rows of W + scale * B A, with scale = lora_alpha / {divisor}"
        ),
        Method::Lora => format!(
            "a layer listed here gives W x + scale * B (A x), with scale = lora_alpha / {divisor}; an engine that computes another \
             scale from adapter_config.json runs another adapter"
        ),
        Method::Loha(_) | Method::Lokr(_) => {
            "a layer listed here gives W x + scale * D x, D made of its factors, with scale = alpha / r"
                .to_owned()
        }
        Method::Vera(_) | Method::Ia3(_) => "the method has no scale".to_owned(),
    };
    let has_scale = !matches!(adapter.config.method, Method::Vera(_) | Method::Ia3(_));
    ScaleFacts { meaning, layers: layers.filter(|_| has_scale).collect::<BTreeMap<_, _>>() }
}

fn data(session: &Session, hashes: Option<&HashCache>) -> anyhow::Result<Vec<DataFacts>> {
    let section = &session.run.recipe.data;
    let mut facts = Vec::new();
    for split in session.data.splits() {
        let paths = match split.name {
            "valid" => &section.valid,
            "test" => &section.test,
            _ => &section.train,
        };
        let files = paths.paths().iter().map(|path| FileFacts::of(path, hashes).or_fault());
        facts.push(DataFacts {
            split: split.name.to_owned(),
            examples: split.tokenized.len(),
            tokens_sha256: fingerprint_of(&split.tokenized),
            files: files.collect::<anyhow::Result<_>>()?,
        });
    }
    Ok(facts)
}

/// A hash over the token ids of examples and which of them are learned.
pub(crate) fn fingerprint_of(examples: &[TokenizedExample]) -> Fingerprint {
    let mut bytes = Vec::new();
    for example in examples {
        bytes.extend((example.input_ids.len() as u64).to_le_bytes());
        for (id, learned) in example.input_ids.iter().zip(&example.loss_mask) {
            bytes.extend(id.to_le_bytes());
            bytes.push(u8::from(*learned));
        }
    }
    Fingerprint::of_bytes(&bytes)
}

/// The scores that the run's newest evaluation left in `eval/results.json`, and its verdict; none before the first.
pub(crate) fn scores(session: &Session) -> anyhow::Result<(Vec<Score>, Option<Verdict>)> {
    let path = session.path("eval").join("results.json");
    if !path.is_file() {
        return Ok((Vec::new(), None));
    }
    let broken = |reason: String| {
        user_error(
            format!("`{}` is no result of an evaluation: {reason}", path.display()),
            format!("evaluate again: {}", session.command("eval", "")),
        )
    };
    let results: serde_json::Value =
        serde_json::from_slice(&fs_err::read(&path)?).map_err(|e| broken(e.to_string()))?;
    let mut scores = Vec::new();
    let evaluations: Vec<Evaluation> =
        serde_json::from_value(results["evaluations"].clone()).map_err(|e| broken(e.to_string()))?;
    for evaluation in &evaluations {
        for measured in evaluation.trained().into_iter().flat_map(|result| &result.measured) {
            scores.push(Score {
                evaluation: evaluation.name.clone(),
                metric: measured.metric.name().to_owned(),
                base: evaluation.base().and_then(|base| base.measured(measured.metric)).map(|m| m.value),
                adapter: measured.value,
                n: measured.n,
            });
        }
    }
    let verdict = serde_json::from_value(results["verdict"].clone()).map_err(|e| broken(e.to_string()))?;
    Ok((scores, verdict))
}

/// Put the newest scores into the contract of the run's adapter, where it has one; forced, one that cannot be read is left.
pub(crate) fn add_scores(session: &Session, force: bool) -> anyhow::Result<()> {
    let folder = session.path("adapter");
    let contract = match Contract::read(&folder).or_fault() {
        Err(_) if force => return Ok(()),
        other => other?,
    };
    if let Some(contract) = contract {
        Contract { evaluation: scores(session)?.0, ..contract }.write(&folder).or_fault()?;
    }
    Ok(())
}

fn listed(contract: &Contract, base: &Base) -> anyhow::Result<Vec<String>> {
    let (name, hashes) = (base.source.to_string(), HashCache::from_env());
    let differences = contract.differences(&in_use(base, &name, hashes.as_ref())).or_fault()?;
    Ok(differences.iter().map(ToString::to_string).collect())
}

/// In what a base is not the one that the adapter in `folder` was trained over, as far as the adapter says.
pub(crate) fn differences(folder: &Path, base: &Base) -> anyhow::Result<Vec<String>> {
    match Contract::read(folder).or_fault()? {
        Some(contract) => listed(&contract, base),
        None => Ok(Vec::new()),
    }
}

/// Refuse a base on which the adapter in `folder` was not trained, with what differs; with `force` say it and go on. An adapter
/// without a contract passes, and that nothing was checked is said.
pub(crate) fn hold(folder: &Path, base: &Base, force: bool) -> anyhow::Result<()> {
    if !folder.is_dir() {
        // Who loads the adapter says that better.
        return Ok(());
    }
    let contract = match Contract::read(folder).or_fault() {
        Err(error) if force => {
            say(&format!("warning: {error:#}\n  `--force`: the adapter is used unchecked"));
            return Ok(());
        }
        other => other?,
    };
    let Some(contract) = contract else {
        say(&format!(
            "adapter {}: no {CONTRACT_FILE}, so whether it was trained over this base cannot be checked",
            folder.display()
        ));
        return Ok(());
    };
    let (name, differences) = (base.source.to_string(), listed(&contract, base)?);
    if differences.is_empty() {
        return Ok(());
    }
    let listed: String = differences.iter().map(|difference| format!("\n  {difference}")).collect();
    let what = format!("the adapter `{}` was not trained over `{name}` as it is{listed}", folder.display());
    if force {
        say(&format!("warning: {what}\n  `--force`: it is used all the same"));
        return Ok(());
    }
    let trained = &contract.base.name;
    Err(user_error(
        what,
        format!(
            "use the base that it was trained over, `{trained}` there; `--force` uses this one all the same"
        ),
    ))
}

/// Compute the golden prompts of the run's adapter again over what was read from the disk. An adapter without a contract, as earlier
/// versions left it, gets one now.
pub(crate) fn prove(session: &Session, model: &dyn CausalLm, adapter: &Adapter) -> anyhow::Result<PathBuf> {
    let folder = session.path("adapter");
    let Some(contract) = Contract::read(&folder).or_fault()? else {
        write(session, model, adapter)?;
        return Ok(folder);
    };
    let outcome = contract.verify(model, &session.base.tokenizer).or_fault()?;
    // Quantised otherwise than in training, the base gives other logits, and the proof against it stands alone.
    if contract.base.quantized == quantized(session) && !outcome.passed(GOLDEN_TOLERANCE) {
        return Err(user_error(
            format!(
                "the adapter in `{}` does not give what was trained: {} of {} golden prompts have the same tokens, a logit is off by {:.2e}",
                folder.display(),
                outcome.same_tokens,
                outcome.prompts,
                outcome.max_abs_diff
            ),
            "its files were changed after the training, or its base was: train again, or bring them back",
        ));
    }
    say(&format!(
        "golden prompts of {CONTRACT_FILE}: {} of {} with the same likeliest token, largest logit difference {:.2e}",
        outcome.same_top1, outcome.prompts, outcome.max_abs_diff
    ));
    Ok(folder)
}
