//! Requirements as they are written in `gate.require`:
//!
//! - `[eval.][candidate.]quantity >= number` (or `<=`, `>`, `<`);
//! - `[eval.][candidate][.metric] better than candidate [by number] [on metric]`;
//! - `[eval.][candidate][.metric] not worse than candidate by number [on metric]`.
//!
//! A name with spaces stands in double quotes.

use super::requirement::{Ask, Quantity, Requirement, Subject};
use crate::Metric;
use taper_diagnostics::{did_you_mean, list_names};

/// A requirement that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be read: {reason}")]
pub struct ParseError {
    /// As it was written.
    pub text: String,
    /// What is wrong.
    pub reason: String,
}

/// The names that a requirement may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) evals: &'a [&'a str],
    pub(crate) candidates: &'a [&'a str],
}

/// Read a requirement. Which of its names is an evaluation and which a candidate follows from those there are.
pub(crate) fn parse(text: &str, names: Names<'_>) -> Result<Requirement, ParseError> {
    let fail = |reason: String| ParseError { text: text.to_owned(), reason };
    let words = words(text).map_err(&fail)?;
    let mut words = words.iter().map(String::as_str).peekable();
    let first = words.next().ok_or_else(|| fail("it is empty".into()))?;
    let next =
        words.next().ok_or_else(|| fail("what it asks for is missing, for example `>= 0.8`".into()))?;
    let number = |word: Option<&str>| -> Result<f64, ParseError> {
        let word = word.ok_or_else(|| fail("a number is missing".into()))?;
        let number = word.parse::<f64>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| fail(format!("`{word}` is no number")))
    };
    let (subject, quantity) = subject(first, names).map_err(&fail)?;
    let ask = match next {
        ">=" | "<=" | ">" | "<" => {
            let quantity = quantity.ok_or_else(|| fail(format!("`{first}` names no metric")))?;
            let value = number(words.next())?;
            Ask::Limit { quantity, at_least: next.starts_with('>'), strict: next.len() == 1, value }
        }
        "better" | "not" => {
            let is_not_worse = next == "not";
            let expected: &[&str] = if is_not_worse { &["worse", "than"] } else { &["than"] };
            for word in expected {
                if words.next() != Some(word) {
                    return Err(fail(format!("`{word}` is missing after `{next}`")));
                }
            }
            let other = words.next().ok_or_else(|| fail("a candidate is missing after `than`".into()))?;
            let other = known(other, names.candidates, "candidate").map_err(&fail)?;
            let mut by = None;
            let mut metric = match quantity {
                Some(Quantity::Metric(metric)) => Some(metric),
                Some(quantity) => {
                    return Err(fail(format!("`{}` is held by a limit, not compared", quantity.name())));
                }
                None => None,
            };
            while let Some(word) = words.next() {
                match word {
                    "by" if by.is_none() => by = Some(number(words.next())?),
                    "on" if metric.is_none() => {
                        let name =
                            words.next().ok_or_else(|| fail("a metric is missing after `on`".into()))?;
                        metric = Some(Metric::of_name(name).ok_or_else(|| fail(unknown_metric(name)))?);
                    }
                    other => return Err(fail(format!("`{other}` is not expected there"))),
                }
            }
            match (is_not_worse, by) {
                (true, None) => {
                    return Err(fail("how much worse is accepted is missing, for example `by 0.02`".into()));
                }
                (true, Some(by)) if by <= 0.0 => {
                    return Err(fail(
                        "the accepted loss must be above 0: no data shows that nothing was lost".into(),
                    ));
                }
                (true, Some(by)) => Ask::NotWorseThan { other, metric, by },
                (false, Some(by)) if by < 0.0 => {
                    return Err(fail("the gain is below 0: `not worse than ... by` accepts a loss".into()));
                }
                (false, by) => Ask::BetterThan { other, metric, by: by.unwrap_or(0.0) },
            }
        }
        other => {
            return Err(fail(format!(
                "`{other}` is none of `>=`, `<=`, `>`, `<`, `better than`, `not worse than`"
            )));
        }
    };
    if let Some(extra) = words.next() {
        return Err(fail(format!("`{extra}` is not expected there")));
    }
    Ok(Requirement { text: text.trim().to_owned(), key: "require".into(), subject, ask })
}

/// What the first word names: of its parts the last may be a quantity, the others are an evaluation and a candidate.
fn subject(word: &str, names: Names<'_>) -> Result<(Subject, Option<Quantity>), String> {
    let mut parts = split(word);
    let last = parts.last().map(|part| part.to_owned()).unwrap_or_default();
    let is_name = parts.len() == 1
        && (names.candidates.contains(&last.as_str()) || names.evals.contains(&last.as_str()));
    let quantity = Quantity::of_name(&last).filter(|_| !is_name);
    if quantity.is_some() {
        parts.pop();
    }
    let mut subject = Subject::default();
    for part in &parts {
        let is_eval = names.evals.contains(&part.as_str());
        let is_candidate = names.candidates.contains(&part.as_str());
        if is_candidate
            && subject.candidate.is_none()
            && (!is_eval || subject.eval.is_some() || parts.len() == 1)
        {
            subject.candidate = Some(part.clone());
        } else if is_eval && subject.eval.is_none() {
            subject.eval = Some(part.clone());
        } else if !is_eval && !is_candidate {
            let all: Vec<&str> = names.evals.iter().chain(names.candidates).copied().collect();
            return Err(match did_you_mean(part, all.iter().copied()) {
                Some(near) => format!("there is no `{part}`; did you mean `{near}`?"),
                None if quantity.is_none() && part == &last => unknown_metric(part),
                None => {
                    format!("`{part}` is no evaluation and no candidate; there are {}", list_names(&all, 10))
                }
            });
        } else {
            return Err(format!("`{part}` is one name too many"));
        }
    }
    Ok((subject, quantity))
}

fn known(name: &str, all: &[&str], what: &str) -> Result<String, String> {
    let name = name.trim_matches('"');
    if all.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(match did_you_mean(name, all.iter().copied()) {
        Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
        None => format!("there is no {what} `{name}`; there are {}", list_names(all, 10)),
    })
}

fn unknown_metric(name: &str) -> String {
    let all: Vec<&str> = Metric::ALL
        .iter()
        .map(|metric| metric.name())
        .chain(Quantity::MEASURES.map(Quantity::name))
        .collect();
    match did_you_mean(name, all.iter().copied()) {
        Some(near) => format!("there is no metric `{name}`; did you mean `{near}`?"),
        None => format!("there is no metric `{name}`; there are {}", list_names(&all, all.len())),
    }
}

/// The words of a requirement; comparison signs are words of their own, and what stands in quotes is no place to cut.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.push(c);
            }
            _ if quoted => word.push(c),
            '<' | '>' => {
                words.push(std::mem::take(&mut word));
                let sign = if chars.next_if_eq(&'=').is_some() { format!("{c}=") } else { c.to_string() };
                words.push(sign);
            }
            c if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    if quoted { Err("a quote is not closed".into()) } else { Ok(words) }
}

/// The parts of a name with points, without their quotes.
fn split(word: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in word.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names<'static> =
        Names { evals: &["held-out notes", "forgetting"], candidates: &["base", "adapter", "gpt"] };

    fn read(text: &str) -> Requirement {
        parse(text, NAMES).unwrap()
    }

    #[test]
    fn requirements_are_read_as_they_are_said() {
        let limit = read("adapter.exact_match>=0.8");
        assert_eq!(limit.subject, Subject { eval: None, candidate: Some("adapter".into()) });
        let quantity = Quantity::Metric(Metric::ExactMatch);
        assert_eq!(limit.ask, Ask::Limit { quantity, at_least: true, strict: false, value: 0.8 });
        assert_eq!(read("p95_latency_ms <= 300").subject, Subject::default());
        let full = read("\"held-out notes\".gpt.error_rate < 0.01");
        assert_eq!(
            full.subject,
            Subject { eval: Some("held-out notes".into()), candidate: Some("gpt".into()) }
        );
        let better = read("adapter better than base on exact_match");
        let metric = Some(Metric::ExactMatch);
        assert_eq!(better.ask, Ask::BetterThan { other: "base".into(), metric, by: 0.0 });
        let kept = read("forgetting.accuracy not worse than base by 0.02");
        assert_eq!(kept.subject, Subject { eval: Some("forgetting".into()), candidate: None });
        let metric = Some(Metric::Accuracy);
        assert_eq!(kept.ask, Ask::NotWorseThan { other: "base".into(), metric, by: 0.02 });
        assert_eq!(
            read("gpt better than adapter by 0.1").ask,
            Ask::BetterThan { other: "adapter".into(), metric: None, by: 0.1 }
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_with_a_way_out() {
        for (text, word) in [
            ("", "empty"),
            ("adapter", "missing"),
            ("adapter.exact_mach >= 0.8", "exact_match"),
            ("adaptor.exact_match >= 0.8", "did you mean `adapter`"),
            ("adapter >= 0.8", "names no metric"),
            ("adapter.exact_match >= much", "no number"),
            ("adapter.exact_match = 0.8", "none of"),
            ("adapter better base", "`than` is missing"),
            ("adapter better than bass", "did you mean `base`"),
            ("adapter not worse than base", "by 0.02"),
            ("adapter not worse than base by 0", "above 0"),
            ("adapter better than base by -1", "below 0"),
            ("adapter better than base on exact_match twice", "not expected"),
            ("p95_latency_ms better than base", "limit"),
            ("\"held-out.gpt.acc >= 1", "quote"),
            ("adapter.exact_match >= 0.8 0.9", "not expected"),
            ("base.adapter.exact_match >= 0.8", "too many"),
        ] {
            let error = parse(text, NAMES).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
