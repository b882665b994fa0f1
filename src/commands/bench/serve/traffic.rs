//! What is asked, of which model, and when: all of it follows from the seed and the number of the request.

use super::client::Prompt;
use crate::cli::{Api, Spread};
use crate::fault::user_error;
use serde_json::Value;
use std::path::Path;
use taper_kernels::rng::{CounterRng, mix, stream_of};

/// Words that most tokenizers have whole, so that their number says about how many tokens they are.
const WORDS: &str = "time people way day man thing woman life child world school state family student group country problem hand part \
    place case week company system program question work government number night point home water room mother area money story fact \
    month lot right study book eye job word business issue side kind head house service friend father power hour game line end member \
    law car city community name president team minute idea body information back parent face others level office door health person \
    art war history party result change morning reason research girl guy moment air teacher force education foot boy age policy \
    music market process road paper space river table animal garden summer winter letter colour bridge island machine window";

/// Requests by their number.
#[derive(Clone)]
pub(super) struct Traffic {
    pub(super) models: Vec<String>,
    pub(super) spread: Spread,
    pub(super) prompts: Prompts,
    pub(super) seed: u64,
}

/// Where prompts come from.
#[derive(Clone)]
pub(super) enum Prompts {
    /// Words at random, the first `shared` of them the same in every prompt.
    Words { words: usize, shared: usize },
    /// Those of a file, in turn.
    Rows(Vec<Prompt>),
}

impl Traffic {
    /// The prompt of a request.
    pub(super) fn prompt(&self, number: u64) -> Prompt {
        match &self.prompts {
            Prompts::Words { words, shared } => {
                Prompt::Text(random_words(self.seed, number, *words, *shared))
            }
            Prompts::Rows(rows) => rows[(number % rows.len() as u64) as usize].clone(),
        }
    }

    /// Which of the models a request asks.
    pub(super) fn model(&self, number: u64) -> usize {
        let rng = CounterRng::new(self.seed, stream_of("model"));
        let models = self.models.len() as u64;
        match self.spread {
            Spread::Distinct => (number % models) as usize,
            Spread::Uniform => rng.below(number, models) as usize,
            Spread::Skewed => zipf(rng.uniform_f64_at(number), self.models.len()),
        }
    }
}

/// Seconds between arrival `number - 1` and arrival `number` of a Poisson process of `rate` a second.
pub(super) fn arrival_gap(seed: u64, number: u64, rate: f64) -> f64 {
    let u = CounterRng::new(seed, stream_of("arrivals")).uniform_f64_at(number);
    -(1.0 - u).ln() / rate
}

/// The rows of a JSONL file as prompts.
pub(super) fn read_prompts(path: &Path, api: Api) -> anyhow::Result<Vec<Prompt>> {
    let text = fs_err::read_to_string(path)?;
    let mut prompts = Vec::new();
    for (line, row) in (1..).zip(text.lines()).filter(|(_, row)| !row.trim().is_empty()) {
        let wrong = |what: &str, help: &str| user_error(format!("{}:{line}: {what}", path.display()), help);
        let row: Value =
            serde_json::from_str(row).map_err(|error| wrong(&error.to_string(), "one JSON object a line"))?;
        prompts.push(match (&row["messages"], row["prompt"].as_str()) {
            (Value::Null, Some(prompt)) => Prompt::Text(prompt.to_owned()),
            (messages @ Value::Array(_), None) if api == Api::Chat => Prompt::Messages(messages.clone()),
            (Value::Array(_), None) => {
                return Err(wrong(
                    "`messages` are a chat",
                    "leave out `--api completions`, or give `prompt`",
                ));
            }
            _ => {
                return Err(wrong(
                    "no prompt",
                    "each row has either `messages` (a list) or `prompt` (a text)",
                ));
            }
        });
    }
    if prompts.is_empty() {
        return Err(user_error(format!("{} has no rows", path.display()), "each row is a prompt"));
    }
    Ok(prompts)
}

fn random_words(seed: u64, number: u64, words: usize, shared: usize) -> String {
    let list: Vec<&str> = WORDS.split_whitespace().collect();
    let own = CounterRng::new(mix(seed, number), stream_of("words"));
    let common = CounterRng::new(seed, stream_of("shared words"));
    let mut text = String::with_capacity(words * 8);
    for i in 0..words {
        let rng = if i < shared { common } else { own };
        if i > 0 {
            text.push(' ');
        }
        text.push_str(list[rng.below(i as u64, list.len() as u64) as usize]);
    }
    text
}

/// Which of `n` a uniform number in [0, 1) falls on when the k-th has weight 1/k.
fn zipf(u: f64, n: usize) -> usize {
    let total: f64 = (1..=n).map(|k| 1.0 / k as f64).sum();
    let mut sum = 0.0;
    for k in 1..n {
        sum += 1.0 / k as f64;
        if u * total < sum {
            return k - 1;
        }
    }
    n - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn traffic(spread: Spread, models: usize) -> Traffic {
        Traffic {
            models: (0..models).map(|i| i.to_string()).collect(),
            spread,
            prompts: Prompts::Words { words: 12, shared: 0 },
            seed: 3,
        }
    }

    fn shares(spread: Spread) -> Vec<f64> {
        let traffic = traffic(spread, 4);
        let mut counts = [0.0; 4];
        (0..20_000).for_each(|number| counts[traffic.model(number)] += 1.0 / 20_000.0);
        counts.to_vec()
    }

    fn close(found: &[f64], wanted: &[f64]) {
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.015), "{found:?} {wanted:?}");
    }

    #[test]
    fn models_are_taken_in_turn_evenly_or_by_zipf() {
        assert_eq!(
            (0..6).map(|n| traffic(Spread::Distinct, 4).model(n)).collect::<Vec<_>>(),
            [0, 1, 2, 3, 0, 1]
        );
        close(&shares(Spread::Uniform), &[0.25; 4]);
        // 1, 1/2, 1/3, 1/4 over their sum, 25/12.
        close(&shares(Spread::Skewed), &[0.48, 0.24, 0.16, 0.12]);
        assert_eq!([zipf(0.0, 4), zipf(0.999_999, 4), zipf(0.5, 1)], [0, 3, 0]);
    }

    #[test]
    fn arrivals_are_a_poisson_process() {
        let gaps: Vec<f64> = (0..20_000).map(|n| arrival_gap(1, n, 5.0)).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // The exponential distribution: its standard deviation is its mean, and 1 - 1/e of it lies below the mean.
        assert!((mean - 0.2).abs() < 0.005 && (variance.sqrt() - 0.2).abs() < 0.01, "{mean} {variance}");
        let below = gaps.iter().filter(|gap| **gap < 0.2).count() as f64 / gaps.len() as f64;
        assert!((below - 0.632).abs() < 0.015, "{below}");
        assert!(gaps.iter().all(|gap| gap.is_finite() && *gap >= 0.0));
        assert_eq!(gaps[7], arrival_gap(1, 7, 5.0));
        assert_ne!(gaps[7], arrival_gap(2, 7, 5.0));
    }

    #[test]
    fn prompts_differ_from_the_first_words_on_but_for_a_shared_beginning() {
        let text = |number, shared| random_words(9, number, 12, shared);
        let prompts: HashSet<String> = (0..500).map(|number| text(number, 0)).collect();
        assert_eq!(prompts.len(), 500);
        assert!(prompts.iter().all(|prompt| prompt.split(' ').count() == 12));
        let first = |text: String, n| text.split(' ').take(n).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(first(text(1, 8), 8), first(text(2, 8), 8));
        assert_ne!(text(1, 8), text(2, 8));
        assert_eq!(text(1, 12), text(2, 12));
    }

    #[test]
    fn prompts_of_a_file_are_asked_in_turn_and_wrong_rows_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        let read = |text: &str, api| {
            fs_err::write(&path, text).unwrap();
            read_prompts(&path, api)
        };
        let rows =
            read("{\"prompt\":\"a\"}\n\n{\"messages\":[{\"role\":\"user\",\"content\":\"b\"}]}\n", Api::Chat)
                .unwrap();
        assert_eq!(rows.len(), 2);
        let traffic = Traffic { prompts: Prompts::Rows(rows), ..traffic(Spread::Distinct, 1) };
        assert_eq!(traffic.prompt(0), Prompt::Text("a".into()));
        assert_eq!(traffic.prompt(3), traffic.prompt(1));
        for (text, api, told) in [
            ("{\"prompt\":\"a\"}\n{\"text\":\"b\"}", Api::Chat, ":2: no prompt"),
            ("{\"prompt\":\"a\"}\nnonsense", Api::Chat, ":2: expected"),
            ("{\"messages\":[]}", Api::Completions, ":1: `messages` are a chat"),
            ("\n", Api::Chat, "has no rows"),
        ] {
            let error = read(text, api).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
