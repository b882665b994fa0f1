//! What a judge said, and what two verdicts on one pair are worth.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most bytes at the end of a judge's text that are looked at.
const MAX_TAIL_BYTES: usize = 4096;

/// The answer that a judge holds to be better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The one that was shown first.
    A,
    /// The one that was shown second.
    B,
    /// Neither.
    Tie,
}

/// What became of the first answer of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is better, whichever is shown first.
    Win,
    /// It is worse, whichever is shown first.
    Loss,
    /// Neither: the judge said so, or it depends on which is shown first.
    Tie,
}

/// The verdicts on one pair of answers. `None` is a verdict that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// With the first answer as A.
    pub first: Option<Choice>,
    /// With the second answer as A.
    pub swapped: Option<Choice>,
}

impl Judged {
    /// What became of the first answer. `None` where one of the verdicts could not be read: the pair is not scored.
    pub fn outcome(self) -> Option<Outcome> {
        Some(match (self.first?, self.swapped?) {
            (Choice::A, Choice::B) => Outcome::Win,
            (Choice::B, Choice::A) => Outcome::Loss,
            _ => Outcome::Tie,
        })
    }
}

/// How often it was the place that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PositionBias {
    /// Pairs with two verdicts, of which at least one is no tie.
    pub decided: usize,
    /// Of these, pairs in which the answer shown first won both times.
    pub first_place: usize,
    /// Of these, pairs in which the answer shown second won both times.
    pub second_place: usize,
}

impl PositionBias {
    /// The share of pairs that turned round with the order. `None` without any.
    pub fn share(self) -> Option<f64> {
        let turned = self.first_place + self.second_place;
        (self.decided > 0).then(|| turned as f64 / self.decided as f64)
    }
}

/// How often the place of an answer decided. With much of it the judge's verdicts are mostly ties here, and say little.
pub fn position_bias(judged: &[Judged]) -> PositionBias {
    let mut bias = PositionBias::default();
    for pair in judged {
        let (Some(first), Some(swapped)) = (pair.first, pair.swapped) else { continue };
        if (first, swapped) == (Choice::Tie, Choice::Tie) {
            continue;
        }
        bias.decided += 1;
        match (first, swapped) {
            (Choice::A, Choice::A) => bias.first_place += 1,
            (Choice::B, Choice::B) => bias.second_place += 1,
            _ => {}
        }
    }
    bias
}

/// The verdict in a judge's text: the last JSON object with a `verdict`, else a last line that is a verdict and nothing else. What a
/// reasoning model thinks first does not count.
pub(super) fn read_verdict(text: &str) -> Option<Choice> {
    let said = text.rsplit_once("</think>").map_or(text, |(_, said)| said).trim();
    let tail = &said[said.ceil_char_boundary(said.len().saturating_sub(MAX_TAIL_BYTES))..];
    for (at, _) in tail.rmatch_indices('{') {
        let value = serde_json::Deserializer::from_str(&tail[at..]).into_iter::<Value>().next();
        if let Some(Ok(value)) = value
            && let Some(verdict) = value.get("verdict")
        {
            return choice(verdict.as_str()?);
        }
    }
    let line = tail.lines().next_back()?.to_lowercase();
    // An object that was cut off is no line of words.
    if line.contains('{') {
        return None;
    }
    let words = line.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.skip_while(|word| ["final", "verdict", "answer"].contains(word)).collect();
    match words[..] {
        [word] => choice(word),
        _ => None,
    }
}

fn choice(word: &str) -> Option<Choice> {
    match word.trim().to_lowercase().as_str() {
        "a" => Some(Choice::A),
        "b" => Some(Choice::B),
        "tie" => Some(Choice::Tie),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_an_object_or_a_last_line() {
        for (text, expected) in [
            (r#"{"verdict": "A"}"#, Choice::A),
            ("A is short.\n```json\n{\"reason\": \"x {y}\", \"verdict\": \"b\"}\n```\n", Choice::B),
            (r#"{"verdict": "A"} no, wait: {"verdict": "tie"}"#, Choice::Tie),
            ("<think>{\"verdict\": \"A\"}</think>{\"verdict\": \"B\"}", Choice::B),
            ("Both are right.\ntie", Choice::Tie),
            ("Reasons.\n**Verdict: A**\n", Choice::A),
            ("Reasons.\n[[B]].", Choice::B),
            ("Final answer: \"B\"", Choice::B),
        ] {
            assert_eq!(read_verdict(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_verdict() {
        for text in [
            "",
            "  \n",
            "C",
            "A or B",
            "A\nI am not sure",
            "this is a",
            r#"{"verdict": "neither"}"#,
            r#"{"verdict": 1}"#,
            r#"{"verdict": null}"#,
            r#"{"winner": "A"}"#,
            "{\"verdict\": \"A",
            "<think>A</think>",
        ] {
            assert_eq!(read_verdict(text), None, "{text}");
        }
        let long = format!("{{\"verdict\": \"A\"}}{}", "{".repeat(100_000));
        assert_eq!(read_verdict(&long), None);
        assert_eq!(read_verdict(&format!("{}\nB", "é".repeat(100_000))), Some(Choice::B));
    }

    #[test]
    fn only_verdicts_that_outlast_the_swap_count() {
        use Choice::{A, B, Tie};
        let of = |first, swapped| Judged { first, swapped }.outcome();
        assert_eq!(of(Some(A), Some(B)), Some(Outcome::Win));
        assert_eq!(of(Some(B), Some(A)), Some(Outcome::Loss));
        for (first, swapped) in [(A, A), (B, B), (Tie, Tie), (A, Tie), (Tie, A), (B, Tie), (Tie, B)] {
            assert_eq!(of(Some(first), Some(swapped)), Some(Outcome::Tie));
        }
        for (first, swapped) in [(None, Some(A)), (Some(A), None), (None, None)] {
            assert_eq!(of(first, swapped), None);
        }
    }

    #[test]
    fn the_places_share_is_of_the_decided_pairs() {
        use Choice::{A, B, Tie};
        let pair = |first, swapped| Judged { first, swapped };
        let judged = [
            pair(Some(A), Some(B)),
            pair(Some(A), Some(A)),
            pair(Some(A), Some(A)),
            pair(Some(B), Some(B)),
            pair(Some(Tie), Some(A)),
            pair(Some(Tie), Some(Tie)),
            pair(None, Some(A)),
        ];
        let bias = position_bias(&judged);
        assert_eq!(bias, PositionBias { decided: 5, first_place: 2, second_place: 1 });
        assert_eq!(bias.share(), Some(0.6));
        assert_eq!(position_bias(&[]).share(), None);
    }
}
