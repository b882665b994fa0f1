//! How numbers and verdicts are told to people; the same words in every report.

use crate::statistics::Interval;
use crate::{Comparison, EffectKind, Evaluation, Measured, Metric, Scale, Verdict};

/// A metric's value.
pub fn value(metric: Metric, value: f64) -> String {
    match metric.scale() {
        Scale::Share => format!("{:.1} %", tenths(100.0 * value)),
        Scale::Percent => format!("{:.1}", tenths(value)),
        Scale::Plain if value < 100.0 => format!("{value:.3}"),
        Scale::Plain => format!("{value:.1}"),
    }
}

/// An interval of a metric's value.
pub fn range(metric: Metric, interval: Interval) -> String {
    format!("{} to {}", value(metric, interval.low), value(metric, interval.high))
}

/// The effect of a comparison.
pub fn effect(comparison: &Comparison) -> String {
    match comparison.effect_kind {
        EffectKind::Difference => format!("{} points", points(comparison.metric, comparison.effect)),
        EffectKind::Ratio => format!("ratio {:.3}", comparison.effect),
    }
}

/// The interval of the effect of a comparison; empty where there is none.
pub fn effect_range(comparison: &Comparison) -> String {
    let Some(Interval { low, high }) = comparison.interval else { return String::new() };
    match comparison.effect_kind {
        EffectKind::Difference => {
            format!("{} to {}", points(comparison.metric, low), points(comparison.metric, high))
        }
        EffectKind::Ratio => format!("{low:.3} to {high:.3}"),
    }
}

/// A difference in points of a hundred, without a minus before a zero.
fn points(metric: Metric, difference: f64) -> String {
    let factor = if metric.scale() == Scale::Share { 100.0 } else { 1.0 };
    let points = tenths(factor * difference);
    format!("{:+.1}", if points == 0.0 { 0.0 } else { points })
}

/// Rounded to tenths, halves away from 0: a value and its change then round alike.
fn tenths(value: f64) -> f64 {
    (10.0 * value).round() / 10.0
}

/// A p-value.
pub fn p_value(p: f64) -> String {
    if p < 0.001 { "p < 0.001".into() } else { format!("p = {p:.3}") }
}

/// A candidate as the subject of a sentence.
fn who(name: &str) -> String {
    match name {
        crate::BASE => "the base".into(),
        crate::ADAPTER => "the adapter".into(),
        crate::TRAINED => "the trained model".into(),
        other => format!("`{other}`"),
    }
}

/// What can be said, in a sentence: the verdict, by how much, and on what it stands.
pub fn headline(evaluation: &Evaluation) -> String {
    match (evaluation.reference.as_deref(), evaluation.decisive()) {
        (Some(base), Some(comparison)) => {
            let (trained, base) = (who(&evaluation.trained), who(base));
            let verdict = match comparison.verdict {
                Verdict::Better => format!("{trained} is better than {base}"),
                Verdict::Worse => format!("{trained} is worse than {base}"),
                Verdict::Inconclusive => {
                    format!("not enough data to say whether {trained} is better than {base}")
                }
            };
            capitalised(&format!("{verdict}: {}", evidence(comparison)))
        }
        _ => {
            let measured =
                evaluation.trained().map(|trained| trained.measured.as_slice()).unwrap_or_default();
            let all: Vec<String> = measured.iter().map(told).collect();
            match all.is_empty() {
                true => "Nothing was measured.".into(),
                false => capitalised(&format!("{} (n = {}).", all.join(", "), evaluation.n)),
            }
        }
    }
}

fn told(measured: &Measured) -> String {
    let interval = measured.interval.map(|i| format!(" ({})", range(measured.metric, i))).unwrap_or_default();
    format!("{} is {}{interval}", measured.metric.title(), value(measured.metric, measured.value))
}

/// On what a verdict stands.
fn evidence(comparison: &Comparison) -> String {
    let Comparison { metric, base, value: of, n, .. } = comparison;
    let (from, to) = (self::value(*metric, *base), self::value(*metric, *of));
    let moved = match (of - base).total_cmp(&0.0) {
        std::cmp::Ordering::Greater => format!("rose from {from} to {to}"),
        std::cmp::Ordering::Less => format!("fell from {from} to {to}"),
        std::cmp::Ordering::Equal => format!("stayed at {to}"),
    };
    let interval = effect_range(comparison);
    let interval = if interval.is_empty() { String::new() } else { format!(", 95 % interval {interval}") };
    let needed = comparison.items_to_take();
    let needed =
        needed.map(|n| format!(" About {n} items would show an effect of this size.")).unwrap_or_default();
    format!(
        "{} {moved} ({}{interval}, n = {n}, {} {}).{needed}",
        metric.title(),
        effect(comparison),
        comparison.test,
        p_value(comparison.adjusted_p_value),
    )
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(points(Metric::ExactMatch, 0.705), "+70.5");
        assert_eq!(points(Metric::Bleu, -0.000_01), "+0.0");
        assert_eq!((p_value(0.03125), p_value(1e-9)), ("p = 0.031".into(), "p < 0.001".into()));
        assert_eq!(value(Metric::Chrf, 45.25), "45.3");
        assert_eq!(capitalised("éa"), "Éa");
    }
}
