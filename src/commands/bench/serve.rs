//! `taper bench serve`: a load on a running server, and what it shows.

mod client;
mod events;
mod load;
mod report;
mod statistics;
mod traffic;

use crate::cli::{Api, BenchServeArgs, Spread};
use crate::fault::user_error;
use crate::output::{print, say};
use client::{Client, Outcome, Usage};
use load::Pace;
use report::Figures;
use serde_json::json;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::Duration;
use taper_diagnostics::ExitCode;
use traffic::{Prompts, Traffic};

/// Measured requests when nothing is said.
const REQUESTS: usize = 64;
/// Arrivals a second that can be asked for.
const RATES: RangeInclusive<f64> = 0.001..=100_000.0;
/// The first number of the requests that find out how many words a prompt takes: none of the load's.
const SIZING: u64 = 1 << 62;

pub(super) fn serve(args: &BenchServeArgs) -> anyhow::Result<ExitCode> {
    check(args)?;
    let clients = if args.rate.is_some() { args.max_in_flight } else { args.concurrency };
    let client = Client::new(&args.url, args.api, clients, Duration::from_secs(args.timeout));
    let mut traffic = Traffic {
        models: models(args, &client)?,
        spread: args.adapters,
        prompts: prompts(args)?,
        seed: args.seed,
    };
    size_prompts(args, &client, &mut traffic)?;
    let warmed = warm_up(args, &client, &traffic)?;
    let requests = args.requests.or(args.duration.is_none().then_some(REQUESTS));
    let pace = Pace { requests, duration: args.duration.map(Duration::from_secs), rate: args.rate };
    let load = load::run(&client, &traffic, args.tokens, clients, warmed, pace)?;
    let all = Figures::of_all(&load, args.tokens);
    let of_models: Vec<Figures> =
        (0..traffic.models.len()).map(|model| Figures::of_model(&load, model, args.tokens)).collect();
    if args.json {
        print(&as_json(args, &client, &traffic, &all, &of_models).to_string())?;
    } else {
        print(as_table(args, &client, &traffic, &all, &of_models).trim_end())?;
    }
    Ok(if all.answered > 0 { ExitCode::Passed } else { ExitCode::NothingEvaluated })
}

fn check(args: &BenchServeArgs) -> anyhow::Result<()> {
    if !args.url.starts_with("http://") && !args.url.starts_with("https://") {
        return Err(user_error(
            format!("`--url {}` is no address", args.url),
            "it begins with http:// or https://, as http://127.0.0.1:8080",
        ));
    }
    if let Some(rate) = args.rate
        && !RATES.contains(&rate)
    {
        return Err(user_error(
            format!("`--rate {rate}` is out of range"),
            "it takes 0.001 to 100000 a second",
        ));
    }
    if args.shared_prefix > args.prompt_tokens {
        return Err(user_error(
            format!(
                "`--shared-prefix {}` is more than `--prompt-tokens {}`",
                args.shared_prefix, args.prompt_tokens
            ),
            "the shared prefix is part of the prompt",
        ));
    }
    Ok(())
}

/// The models that were named, or the first one that the server lists.
fn models(args: &BenchServeArgs, client: &Client) -> anyhow::Result<Vec<String>> {
    if !args.model.is_empty() {
        return Ok(args.model.clone());
    }
    let listed = client.models().map_err(|error| {
        user_error(
            format!("{} does not tell its models: {error}", client.base()),
            "start the server, or name a model with `--model` (a key is taken from TAPER_API_KEY)",
        )
    })?;
    match listed.into_iter().next() {
        Some(model) => Ok(vec![model]),
        None => Err(user_error(format!("{} lists no model", client.base()), "name one with `--model`")),
    }
}

fn prompts(args: &BenchServeArgs) -> anyhow::Result<Prompts> {
    Ok(match &args.prompts {
        Some(path) => Prompts::Rows(traffic::read_prompts(path, args.api)?),
        None => Prompts::Words { words: args.prompt_tokens, shared: args.shared_prefix },
    })
}

/// Make random prompts as long as was asked for: the server counts the tokens of two, and tokens are about `a + b words`.
///
/// A server that does not count leaves the number of words at the number of tokens. This is the first that is heard of the server,
/// so what is wrong with address, key or model ends here.
fn size_prompts(args: &BenchServeArgs, client: &Client, traffic: &mut Traffic) -> anyhow::Result<()> {
    let Prompts::Words { words, .. } = traffic.prompts else {
        return count_tokens(client, traffic).map(|_| ());
    };
    let long = count_tokens(client, traffic)?;
    traffic.prompts = Prompts::Words { words: words.div_ceil(2), shared: 0 };
    let short = count_tokens(client, traffic)?;
    let fitted = match (short, long) {
        (Some(short), Some(long)) => fitted_words(words, short, long),
        _ => None,
    };
    let (words, tokens_per_word) = fitted.unwrap_or((words, 1.0));
    let shared = (args.shared_prefix as f64 / tokens_per_word).round() as usize;
    traffic.prompts = Prompts::Words { words, shared: shared.min(words) };
    Ok(())
}

/// The words of a prompt of `wanted` tokens, and tokens a word, when `wanted` words are `long` tokens and half of them `short`.
fn fitted_words(wanted: usize, short: u64, long: u64) -> Option<(usize, f64)> {
    let half = wanted.div_ceil(2);
    let slope = (long as f64 - short as f64) / (wanted - half) as f64;
    if !slope.is_finite() || slope < 0.5 {
        return None;
    }
    let template = long as f64 - slope * wanted as f64;
    let words = ((wanted as f64 - template) / slope).round().max(1.0);
    Some((words as usize, slope))
}

/// The tokens of one prompt, where the server counts them.
fn count_tokens(client: &Client, traffic: &Traffic) -> anyhow::Result<Option<u64>> {
    match client.ask(&traffic.models[0], &traffic.prompt(SIZING), 1) {
        Outcome::Answered(answer) => Ok(answer.usage.map(|Usage { prompt_tokens, .. }| prompt_tokens)),
        // One token may be half a character, which is no text yet.
        Outcome::Failed { kind, .. } if kind == "no text" => Ok(None),
        Outcome::Refused { status } => Err(user_error(
            format!("{} refused the first request: status {status}", client.base()),
            "is it loading?",
        )),
        Outcome::Failed { kind, message } => Err(user_error(
            format!("the first request to {} failed ({kind}): {message}", client.base()),
            "see that the server runs, and `--url`, `--model`, `--api` and the key in TAPER_API_KEY",
        )),
    }
}

/// The number of the first request after the warm-up, which asks every model in turn.
fn warm_up(args: &BenchServeArgs, client: &Client, traffic: &Traffic) -> anyhow::Result<u64> {
    let clients = if args.rate.is_some() { 1 } else { args.concurrency };
    let requests = args.warmup.unwrap_or(clients.max(traffic.models.len()));
    let in_turn = Traffic { spread: Spread::Distinct, ..traffic.clone() };
    let pace = Pace { requests: Some(requests), duration: None, rate: None };
    let load = load::run(client, &in_turn, args.tokens, clients, 0, pace)?;
    let figures = Figures::of_all(&load, args.tokens);
    if let Some(failure) = figures.first_failure() {
        say(&format!("warning: a request before the measured ones failed: {failure}"));
    }
    Ok(requests as u64)
}

fn as_json(
    args: &BenchServeArgs,
    client: &Client,
    traffic: &Traffic,
    all: &Figures,
    of_models: &[Figures],
) -> serde_json::Value {
    let mut object = json!({
        "bench": "serve", "url": client.base(), "api": api_name(args.api), "models": traffic.models,
        "adapters": spread_name(args.adapters), "loop": if args.rate.is_some() { "open" } else { "closed" },
        "concurrency": args.rate.is_none().then_some(args.concurrency), "rate": args.rate,
        "prompt_tokens": args.prompts.is_none().then_some(args.prompt_tokens),
        "shared_prefix": args.shared_prefix, "prompts": args.prompts, "tokens": args.tokens, "seed": args.seed,
    });
    if let (Some(object), serde_json::Value::Object(figures)) = (object.as_object_mut(), all.json()) {
        object.extend(figures);
        if of_models.len() > 1 {
            let named = traffic.models.iter().zip(of_models).map(|(model, figures)| {
                let mut figures = figures.json();
                figures["model"] = json!(model);
                figures
            });
            object.insert("per_model".into(), named.collect());
        }
    }
    object
}

fn as_table(
    args: &BenchServeArgs,
    client: &Client,
    traffic: &Traffic,
    all: &Figures,
    of_models: &[Figures],
) -> String {
    let how = match args.rate {
        Some(rate) => format!("open loop, {rate} arrivals/s"),
        None => format!("closed loop, {} clients", args.concurrency),
    };
    let what = match &traffic.models[..] {
        [model] => format!("model {model}"),
        models => format!("{} models ({})", models.len(), spread_name(args.adapters)),
    };
    let mut text = format!("{}: {what}, {}, {how}\n{}", client.base(), api_name(args.api), all.table());
    if of_models.len() > 1 {
        let width = traffic.models.iter().map(|model| model.chars().count()).max().unwrap_or(0).max(5);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{:width$}  {:>8}  {:>8}  {:>9}  {:>10}  {:>13}",
            "model", "answered", "others", "tokens/s", "first (ms)", "a token (ms)"
        );
        for (model, figures) in traffic.models.iter().zip(of_models) {
            let _ = writeln!(text, "{}", figures.model_row(model, width));
        }
    }
    text
}

fn api_name(api: Api) -> &'static str {
    match api {
        Api::Chat => "chat",
        Api::Completions => "completions",
    }
}

fn spread_name(spread: Spread) -> &'static str {
    match spread {
        Spread::Distinct => "distinct",
        Spread::Uniform => "uniform",
        Spread::Skewed => "skewed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_fitted_to_the_tokens_that_the_server_counts() {
        // A template of 30 tokens and 1.5 tokens a word: 128 words are 222 tokens, 64 are 126.
        assert_eq!(fitted_words(128, 126, 222), Some((65, 1.5)));
        // No room beside the template: one word at least.
        assert_eq!(fitted_words(10, 105, 110), Some((1, 1.0)));
        // One word has no half; a server that counts the same for both knows nothing.
        assert_eq!(fitted_words(1, 5, 5), None);
        assert_eq!(fitted_words(128, 100, 100), None);
    }
}
