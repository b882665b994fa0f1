//! What a load showed: counts, rates, times; as a table and as JSON.

use super::client::{Answer, Outcome, Usage};
use super::load::{Load, Sample};
use super::statistics::Summary;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// A request that is sent so much after it was due was held up by the load generator: all its clients were busy.
const LATE: Duration = Duration::from_millis(10);

/// The figures of some requests.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) answered: usize,
    /// By status.
    refused: BTreeMap<u16, usize>,
    /// By kind: how often, and what the first one said.
    failed: BTreeMap<String, (usize, String)>,
    seconds: f64,
    tokens: Tokens,
    time_to_first_token: Option<Summary>,
    time_per_output_token: Option<Summary>,
    inter_token_latency: Option<Summary>,
    end_to_end: Option<Summary>,
    sent_late: usize,
}

/// Tokens of the answered requests.
#[derive(Debug, PartialEq)]
struct Tokens {
    /// Where the server counts them.
    input: Option<u64>,
    output: u64,
    /// Whether the server counts `output`; else it is the number of chunks with text.
    by_usage: bool,
    /// Answers with fewer tokens than were asked for.
    short: usize,
}

impl Figures {
    /// The figures of all requests.
    pub(super) fn of_all(load: &Load, tokens: usize) -> Self {
        Self::of(load.samples.iter(), load.elapsed, tokens)
    }

    /// The figures of the requests to one model.
    pub(super) fn of_model(load: &Load, model: usize, tokens: usize) -> Self {
        Self::of(load.samples.iter().filter(|sample| sample.model == model), load.elapsed, tokens)
    }

    fn of<'a>(samples: impl Iterator<Item = &'a Sample>, elapsed: Duration, asked: usize) -> Self {
        let (mut refused, mut failed) = (BTreeMap::new(), BTreeMap::new());
        let mut answers = Vec::new();
        let mut sent_late = 0;
        for sample in samples {
            sent_late += usize::from(sample.sent.saturating_duration_since(sample.due) > LATE);
            match &sample.outcome {
                Outcome::Answered(answer) => answers.push((sample.due, answer)),
                Outcome::Refused { status } => *refused.entry(*status).or_insert(0) += 1,
                Outcome::Failed { kind, message } => {
                    failed.entry(kind.clone()).or_insert_with(|| (0, message.clone())).0 += 1;
                }
            }
        }
        let (first, per_token, between, whole) = times(&answers);
        Self {
            answered: answers.len(),
            refused,
            failed,
            seconds: elapsed.as_secs_f64(),
            tokens: Tokens::of(answers.iter().map(|(_, answer)| *answer), asked),
            time_to_first_token: Summary::of(first),
            time_per_output_token: Summary::of(per_token),
            inter_token_latency: Summary::of(between),
            end_to_end: Summary::of(whole),
            sent_late,
        }
    }

    /// What the first failure said.
    pub(super) fn first_failure(&self) -> Option<String> {
        self.failed.iter().next().map(|(kind, (_, message))| format!("{kind}: {message}"))
    }

    /// As an object; times in milliseconds.
    pub(super) fn json(&self) -> Value {
        let per_second = |count: u64| count as f64 / self.seconds;
        let refused: BTreeMap<String, usize> =
            self.refused.iter().map(|(s, n)| (s.to_string(), *n)).collect();
        let failed: BTreeMap<&str, usize> = self.failed.iter().map(|(k, (n, _))| (k.as_str(), *n)).collect();
        json!({
            "answered": self.answered, "refused": refused, "failed": failed, "first_failure": self.first_failure(),
            "seconds": self.seconds,
            "requests_per_second": per_second(self.answered as u64),
            "output_tokens": self.tokens.output, "output_tokens_per_second": per_second(self.tokens.output),
            "output_tokens_counted_by": if self.tokens.by_usage { "usage" } else { "chunks" },
            "input_tokens": self.tokens.input, "input_tokens_per_second": self.tokens.input.map(per_second),
            "short_answers": self.tokens.short, "sent_late": self.sent_late,
            "time_to_first_token_ms": Summary::json(self.time_to_first_token),
            "time_per_output_token_ms": Summary::json(self.time_per_output_token),
            "inter_token_latency_ms": Summary::json(self.inter_token_latency),
            "end_to_end_ms": Summary::json(self.end_to_end),
        })
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_counts(&mut text);
        let _ = self.write_times(&mut text);
        text
    }

    /// One line of the table of models.
    pub(super) fn model_row(&self, model: &str, width: usize) -> String {
        let median = |summary: Option<Summary>| summary.map_or("-".into(), |s| format!("{:.1}", s.p50));
        format!(
            "{model:width$}  {:>8}  {:>8}  {:>9.1}  {:>10}  {:>13}",
            self.answered,
            self.refused.values().sum::<usize>() + self.failed.values().map(|(n, _)| n).sum::<usize>(),
            self.tokens.output as f64 / self.seconds,
            median(self.time_to_first_token),
            median(self.time_per_output_token),
        )
    }

    fn write_counts(&self, text: &mut String) -> std::fmt::Result {
        let refused = listed(self.refused.iter().map(|(status, n)| (status.to_string(), *n)));
        let failed = listed(self.failed.iter().map(|(kind, (n, _))| (kind.clone(), *n)));
        writeln!(text, "requests  {} answered, {refused} refused, {failed} failed", self.answered)?;
        for (kind, (_, message)) in &self.failed {
            writeln!(text, "          first \"{kind}\": {message}")?;
        }
        let rate = self.answered as f64 / self.seconds;
        writeln!(text, "time      {:.2} s, {rate:.3} answers/s", self.seconds)?;
        let by = if self.tokens.by_usage { "counted by usage" } else { "counted by chunks: no usage given" };
        let output = self.tokens.output;
        writeln!(text, "output    {output} tokens, {:.1} tokens/s ({by})", output as f64 / self.seconds)?;
        if let Some(input) = self.tokens.input {
            let each = input as f64 / self.answered as f64;
            let rate = input as f64 / self.seconds;
            writeln!(text, "input     {input} tokens ({each:.1} a request), {rate:.1} tokens/s")?;
        }
        if self.tokens.short > 0 {
            let short = self.tokens.short;
            writeln!(
                text,
                "note      {short} answers have fewer tokens than asked: the server ends them by itself"
            )?;
        }
        if self.sent_late > 0 {
            let late = self.sent_late;
            writeln!(
                text,
                "note      {late} requests were sent late: every client was busy (times count from when they were due)"
            )?;
        }
        Ok(())
    }

    fn write_times(&self, text: &mut String) -> std::fmt::Result {
        let heads = ["mean", "p50", "p90", "p95", "p99", "max"].map(|head| format!("{head:>10}")).concat();
        writeln!(text, "\n{:22}{heads}", "milliseconds")?;
        for (name, summary) in [
            ("time to first token", self.time_to_first_token),
            ("time per output token", self.time_per_output_token),
            ("inter-token latency", self.inter_token_latency),
            ("end to end", self.end_to_end),
        ] {
            if let Some(summary) = summary {
                let numbers = summary.numbers().map(|number| format!("{number:>10.1}")).concat();
                writeln!(text, "{name:22}{numbers}")?;
            }
        }
        Ok(())
    }
}

impl Tokens {
    fn of<'a>(answers: impl Iterator<Item = &'a Answer> + Clone, asked: usize) -> Self {
        let usages: Option<Vec<Usage>> = answers.clone().map(|answer| answer.usage).collect();
        match usages {
            Some(usages) => Self {
                input: Some(usages.iter().map(|usage| usage.prompt_tokens).sum()),
                output: usages.iter().map(|usage| usage.completion_tokens).sum(),
                by_usage: true,
                short: usages.iter().filter(|usage| usage.completion_tokens < asked as u64).count(),
            },
            // A chunk may carry several tokens: fewer chunks than tokens prove nothing.
            None => Self {
                input: None,
                output: answers.map(|answer| answer.chunks.len() as u64).sum(),
                by_usage: false,
                short: 0,
            },
        }
    }
}

/// To the first chunk; from the first to the last one over the tokens after the first; between chunks; to the end.
type Times = (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>);

fn times(answers: &[(Instant, &Answer)]) -> Times {
    let mut times = Times::default();
    for (due, answer) in answers {
        let [first, .., last] = answer.chunks.as_slice() else {
            times.0.extend(answer.chunks.first().map(|first| milliseconds(*due, *first)));
            times.3.push(milliseconds(*due, answer.ended));
            continue;
        };
        let tokens = answer.usage.map_or(answer.chunks.len() as u64, |usage| usage.completion_tokens);
        times.0.push(milliseconds(*due, *first));
        if tokens > 1 {
            times.1.push(milliseconds(*first, *last) / (tokens - 1) as f64);
        }
        times.2.extend(answer.chunks.windows(2).map(|pair| milliseconds(pair[0], pair[1])));
        times.3.push(milliseconds(*due, answer.ended));
    }
    times
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

/// `3 (429: 2, 503: 1)`, or `0`.
fn listed(counts: impl Iterator<Item = (String, usize)> + Clone) -> String {
    let total: usize = counts.clone().map(|(_, n)| n).sum();
    let each: Vec<String> = counts.map(|(name, n)| format!("{name}: {n}")).collect();
    if each.is_empty() { "0".to_owned() } else { format!("{total} ({})", each.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer whose chunks came so many milliseconds after `due`, and that ended 5 ms after the last.
    fn answered(due: Instant, model: usize, chunks: &[u64], usage: Option<Usage>) -> Sample {
        let chunks: Vec<Instant> = chunks.iter().map(|at| due + Duration::from_millis(*at)).collect();
        let ended = *chunks.last().unwrap() + Duration::from_millis(5);
        let outcome = Outcome::Answered(Answer { chunks, ended, usage });
        Sample { model, due, sent: due, outcome }
    }

    fn usage(prompt_tokens: u64, completion_tokens: u64) -> Option<Usage> {
        Some(Usage { prompt_tokens, completion_tokens })
    }

    #[test]
    fn times_and_tokens_are_those_of_a_worked_example() {
        let due = Instant::now();
        let samples = vec![
            answered(due, 0, &[100, 110, 140], usage(7, 5)),
            answered(due, 1, &[300], usage(9, 1)),
            Sample {
                model: 1,
                due,
                sent: due + Duration::from_secs(1),
                outcome: Outcome::Refused { status: 429 },
            },
        ];
        let load = Load { samples, elapsed: Duration::from_secs(2) };
        let figures = Figures::of_all(&load, 5).json();
        assert_eq!((&figures["answered"], &figures["refused"]), (&json!(2), &json!({"429": 1})));
        assert_eq!((&figures["output_tokens"], &figures["input_tokens"]), (&json!(6), &json!(16)));
        assert_eq!(figures["output_tokens_per_second"], json!(3.0));
        assert_eq!(figures["time_to_first_token_ms"]["mean"], json!(200.0));
        // Five tokens in three chunks: four gaps in 40 ms.
        assert_eq!(figures["time_per_output_token_ms"]["max"], json!(10.0));
        assert_eq!(figures["inter_token_latency_ms"]["max"], json!(30.0));
        assert_eq!(figures["end_to_end_ms"]["max"], json!(305.0));
        assert_eq!((&figures["short_answers"], &figures["sent_late"]), (&json!(1), &json!(1)));
        let second = Figures::of_model(&load, 1, 5).json();
        assert_eq!((&second["answered"], &second["output_tokens"]), (&json!(1), &json!(1)));
        assert_eq!(second["time_per_output_token_ms"], Value::Null);
    }

    #[test]
    fn without_usage_everywhere_chunks_are_counted_and_said_to_be() {
        let due = Instant::now();
        let samples = vec![answered(due, 0, &[1, 2], usage(7, 5)), answered(due, 0, &[1, 2, 3], None)];
        let figures = Figures::of_all(&Load { samples, elapsed: Duration::from_secs(1) }, 5);
        assert_eq!(figures.tokens, Tokens { input: None, output: 5, by_usage: false, short: 0 });
        assert!(figures.table().contains("counted by chunks"), "{}", figures.table());
    }

    #[test]
    fn failures_are_listed_by_kind_with_what_the_first_one_said() {
        let due = Instant::now();
        let failed = |kind: &str, message: &str| Sample {
            model: 0,
            due,
            sent: due,
            outcome: Outcome::Failed { kind: kind.into(), message: message.into() },
        };
        let samples =
            vec![failed("status 400", "one"), failed("status 400", "two"), failed("timeout", "three")];
        let table = Figures::of_all(&Load { samples, elapsed: Duration::from_secs(1) }, 5).table();
        assert!(table.contains("0 answered, 0 refused, 3 (status 400: 2, timeout: 1) failed"), "{table}");
        assert!(table.contains("first \"status 400\": one"), "{table}");
    }
}
