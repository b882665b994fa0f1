//! How a client wants its text sampled.

use crate::app::App;
use crate::fields::Fields;
use crate::request_id;
use serde_json::Value;
use std::collections::BTreeMap;
use taper_infer::GenerationConfig;

/// OpenAI's and vLLM's fields. Without a word it is temperature 1 over the model's own distribution, as OpenAI's clients expect; the
/// checkpoint's generation_config.json is not asked. `stop_ids`: ids that end an answer by themselves.
pub(crate) fn openai(app: &App, fields: &mut Fields<'_>, stop_ids: &[u32]) -> GenerationConfig {
    let limits = &app.options.limits;
    let mut config = GenerationConfig {
        temperature: fields.number("temperature", 0.0..=2.0).unwrap_or(1.0),
        top_p: top_p(fields).unwrap_or(1.0),
        top_k: top_k(fields).unwrap_or(0),
        min_p: fields.number("min_p", 0.0..=1.0).unwrap_or(0.0),
        repetition_penalty: penalty(fields, "repetition_penalty").unwrap_or(1.0),
        seed: seed(fields),
        stop: fields.strings("stop", limits.stops, limits.stop_bytes),
        stop_token_ids: fields.token_ids("stop_token_ids", limits.stop_ids, app.vocab_size),
        ..GenerationConfig::default()
    };
    config.presence_penalty = fields.number("presence_penalty", -2.0..=2.0).unwrap_or(0.0);
    config.frequency_penalty = fields.number("frequency_penalty", -2.0..=2.0).unwrap_or(0.0);
    config.logit_bias = logit_bias(app, fields);
    config.min_new_tokens = fields.count("min_tokens", 0..=app.max_model_len).unwrap_or(0);
    config.ignore_eos = fields.boolean("ignore_eos").unwrap_or(false);
    if config.ignore_eos && !config.stop_token_ids.is_empty() {
        fields
            .refuse("ignore_eos", "`ignore_eos` writes on over `stop_token_ids` too: leave one of them out");
    }
    config.stop_token_ids.extend(stop_ids);
    config
}

/// Ollama's `options`, with its defaults: temperature 0.8, top_k 40, top_p 0.9.
///
/// Its `repeat_penalty` looks at the last 64 tokens; ours at all, so without a word it is off.
pub(crate) fn ollama(app: &App, fields: &mut Fields<'_>, stop_ids: &[u32]) -> GenerationConfig {
    let limits = &app.options.limits;
    let mut config = GenerationConfig {
        temperature: fields.number("temperature", 0.0..=100.0).unwrap_or(0.8),
        top_p: top_p(fields).unwrap_or(0.9),
        top_k: top_k(fields).unwrap_or(40),
        min_p: fields.number("min_p", 0.0..=1.0).unwrap_or(0.0),
        repetition_penalty: penalty(fields, "repeat_penalty").unwrap_or(1.0),
        seed: seed(fields),
        stop: fields.strings("stop", limits.stops, limits.stop_bytes),
        ..GenerationConfig::default()
    };
    config.presence_penalty = fields.number("presence_penalty", -2.0..=2.0).unwrap_or(0.0);
    config.frequency_penalty = fields.number("frequency_penalty", -2.0..=2.0).unwrap_or(0.0);
    config.stop_token_ids.extend(stop_ids);
    for (key, neutral) in [
        ("mirostat", vec![0.into()]),
        ("tfs_z", vec![1.into(), 1.0.into()]),
        ("typical_p", vec![1.into(), 1.0.into()]),
        // The whole text.
        ("repeat_last_n", vec![(-1).into()]),
        ("penalize_newline", vec![true.into()]),
    ] {
        fields.unserved(key, &neutral, "");
    }
    config
}

fn top_p(fields: &mut Fields<'_>) -> Option<f64> {
    fields.number_where("top_p", "a number above 0, up to 1", |p| p > 0.0 && p <= 1.0)
}

fn penalty(fields: &mut Fields<'_>, key: &str) -> Option<f64> {
    fields.number_where(key, "a number above 0, up to 10", |p| p > 0.0 && p <= 10.0)
}

/// vLLM says -1, the others 0, for all tokens.
fn top_k(fields: &mut Fields<'_>) -> Option<usize> {
    let k = fields.integer("top_k", -1..=i64::from(i32::MAX))?;
    Some(usize::try_from(k).unwrap_or(0))
}

/// Any integer; none is another each time.
fn seed(fields: &mut Fields<'_>) -> u64 {
    match fields.get("seed") {
        Some(Value::Number(number)) if number.is_u64() => number.as_u64().unwrap_or_default(),
        // Ollama and llama.cpp say -1 for another each time.
        Some(value) if value.as_i64() == Some(-1) => request_id::seed(),
        _ => match fields.integer("seed", i64::MIN..=i64::MAX) {
            Some(seed) => seed.cast_unsigned(),
            None => request_id::seed(),
        },
    }
}

/// `{"id": bias}`, biases from -100 to 100.
fn logit_bias(app: &App, fields: &mut Fields<'_>) -> BTreeMap<u32, f64> {
    let Some(given) = fields.object("logit_bias") else { return BTreeMap::new() };
    let most = app.options.limits.logit_biases;
    if given.len() > most {
        fields.refuse("logit_bias", format!("`logit_bias` may have {most} entries at most"));
        return BTreeMap::new();
    }
    let mut biases = BTreeMap::new();
    for (id, bias) in given {
        let id = id.parse::<u32>().ok().filter(|id| (*id as usize) < app.vocab_size);
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let (Some(id), Some(bias)) = (id, bias) else {
            let message = format!(
                "`logit_bias` must map token ids below {} to numbers from -100 to 100",
                app.vocab_size
            );
            fields.refuse("logit_bias", message);
            return BTreeMap::new();
        };
        biases.insert(id, bias);
    }
    biases
}
