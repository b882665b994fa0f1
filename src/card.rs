//! The model cards of what a run leaves.

use crate::commands::export::Exported;
use crate::contract::scores;
use crate::fault::OrFault;
use crate::session::{Session, shell_word};
use taper_eval::Verdict;
use taper_export::{BaseTerms, CardData, CardKind, ExportFormat, ModelCard, write_card};
use taper_hub::{Fingerprint, HashCache, ModelSource};
use taper_peft::{AdapterSection, Bias, PeftType};

/// Write the cards of the adapter and of the folders that were exported.
pub(crate) fn write(session: &Session, exported: &[Exported]) -> anyhow::Result<()> {
    if session.run.recipe.adapter.is_some() && session.path("adapter").is_dir() {
        write_card(&session.path("adapter"), &card(session, CardKind::Adapter, exported)?).or_fault()?;
    }
    for export in exported.iter().filter(|export| export.format == ExportFormat::Merged) {
        write_card(&export.folder, &card(session, CardKind::Model, exported)?).or_fault()?;
    }
    Ok(())
}

fn card(session: &Session, kind: CardKind, exported: &[Exported]) -> anyhow::Result<ModelCard> {
    let recipe = &session.run.recipe;
    let base_hub_id = match &session.base.source {
        ModelSource::Hub { id, .. } | ModelSource::HubGguf { id, .. } => Some(id.clone()),
        ModelSource::Folder(_) | ModelSource::Gguf(_) => None,
    };
    let terms = match session.base.files.gguf {
        // What lies beside a GGUF file is not its own.
        Some(_) => BaseTerms::default(),
        None => BaseTerms::of_folder(&session.base.files.root),
    };
    let (scores, verdict) = scores(session)?;
    Ok(ModelCard {
        title: session.run.name.clone(),
        description: recipe.description.clone(),
        method: method(session),
        tags: recipe.adapter.iter().map(|a| a.method_name().to_lowercase()).collect(),
        base: public_name(&session.base.source),
        base_hub_id,
        terms,
        held_out: !session.data.test.tokenized.is_empty() || !session.data.valid.tokenized.is_empty(),
        training: training(session),
        data: data(session)?,
        scores,
        verdict: verdict.map(|verdict| match verdict {
            Verdict::Better | Verdict::Worse => {
                format!("On held-out data it is **{verdict}** than the base.")
            }
            Verdict::Inconclusive => {
                "There is not enough held-out data to say whether it is better than the base.".into()
            }
        }),
        proofs: exported.iter().map(|export| (export.format.to_string(), export.proof)).collect(),
        usage: usage(session, &kind),
        kind,
    })
}

/// The base as others may read it: a hub id, a relative path, and of a path from the root of this machine its last part.
pub(crate) fn public_name(source: &ModelSource) -> String {
    match source {
        ModelSource::Folder(path) | ModelSource::Gguf(path) if path.is_absolute() => {
            let canonical = path.canonicalize().unwrap_or_else(|_| path.clone());
            canonical.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
        other => other.to_string(),
    }
}

/// The method in words.
pub(crate) fn method(session: &Session) -> String {
    match &session.run.recipe.adapter {
        Some(a) => match a.peft_type {
            PeftType::Ia3 => a.method_name().to_owned(),
            PeftType::Vera => format!("{}, r = {}", a.method_name(), a.r),
            _ => format!("{}, r = {}, lora_alpha = {}", a.method_name(), a.r, a.lora_alpha),
        },
        None => "all weights".to_owned(),
    }
}

fn training(session: &Session) -> Vec<(String, String)> {
    let recipe = &session.run.recipe;
    let (train, optimizer) = (&recipe.train, &recipe.optimizer);
    let length = match train.max_steps {
        Some(steps) => format!("{steps} steps"),
        None => format!("{} epochs", train.num_train_epochs),
    };
    let word = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rows = vec![("method", method(session)), ("length", length)];
    if let Some(adapter) = &recipe.adapter {
        rows.push(("target modules", word(serde_json::json!(adapter.target_modules))));
        rows.push(("dropout", adapter.lora_dropout.to_string()));
    }
    if let Some(format) = recipe.model.quantize {
        rows.push(("base quantised to", word(serde_json::json!(format))));
    }
    rows.extend([
        ("batch", format!("{} x {}", train.batch_size, train.gradient_accumulation_steps)),
        ("longest example", format!("{} tokens", recipe.data.max_length)),
        ("optimizer", word(serde_json::json!(optimizer.name))),
        ("learning rate", optimizer.learning_rate.to_string()),
        ("weight decay", optimizer.weight_decay.to_string()),
        ("schedule", word(serde_json::json!(recipe.schedule.lr_scheduler_type))),
        ("seed", train.seed.to_string()),
        ("taper", env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn data(session: &Session) -> anyhow::Result<Vec<CardData>> {
    let (section, hashes) = (&session.run.recipe.data, HashCache::from_env());
    let mut rows = Vec::new();
    for split in session.data.splits() {
        let paths = match split.name {
            "valid" => &section.valid,
            "test" => &section.test,
            _ => &section.train,
        };
        for path in paths.paths() {
            rows.push(CardData {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                split: split.name.to_owned(),
                examples: split.tokenized.len(),
                sha256: Fingerprint::of_file_with(path, hashes.as_ref()).or_fault()?.to_string(),
            });
        }
    }
    Ok(rows)
}

fn usage(session: &Session, kind: &CardKind) -> Vec<(String, &'static str, String)> {
    let base = public_name(&session.base.source);
    let title = &session.run.name;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut usage = Vec::new();
    let mut add = |with: &str, language, text: String| usage.push((with.to_owned(), language, text));
    match (kind, &session.run.recipe.adapter) {
        (CardKind::Adapter, Some(adapter)) => {
            let base_word = shell_word(&base);
            add("With taper, in this folder", "sh", format!("taper chat --model {base_word} --adapter ."));
            let base = quoted(&base);
            let python = format!(
                "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), \".\")\n\
                 tokenizer = AutoTokenizer.from_pretrained({base})"
            );
            add("With PEFT", "python", python);
            if vllm_reads(adapter) {
                // A beginning made from the weights is saved beside what was trained.
                let times = if adapter.init_lora_weights.is_of_the_weight() { 2 } else { 1 };
                let (r, name) = (times * adapter.r, shell_word(title));
                let command = format!(
                    "vllm serve {base_word} --enable-lora --max-lora-rank {r} --lora-modules {name}=."
                );
                add("With vLLM", "sh", command);
            }
        }
        _ => {
            add("With taper, in this folder", "sh", "taper chat --model .".into());
            let python = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                          model = AutoModelForCausalLM.from_pretrained(\".\")\ntokenizer = AutoTokenizer.from_pretrained(\".\")";
            add("With transformers", "python", python.into());
            add("With vLLM", "sh", "vllm serve .".into());
        }
    }
    usage
}

/// vLLM takes one rank and one alpha for all layers, and nothing but low-rank deltas.
fn vllm_reads(adapter: &AdapterSection) -> bool {
    adapter.rank_pattern.is_empty()
        && adapter.alpha_pattern.is_empty()
        && adapter.modules_to_save.is_empty()
        && adapter.bias == Bias::None
        && adapter.method_name() == "LoRA"
        && !adapter.lora_bias
        && adapter.trainable_token_indices.is_none()
}
