//! `report.md`: the verdict first, then the numbers, then examples.

use crate::report::CurvePoint;
use crate::{Comparison, EvalResult, Evaluation, GateOutcome, Measured, Metric, Report, Verdict};
use crate::{EffectKind, Interval, SampleRecord};
use std::fmt::Write;

/// Examples shown of each kind.
const EXAMPLES: usize = 5;
/// Characters shown of a text.
const MOST_CHARS: usize = 600;
/// Rows of the training table.
const CURVE_ROWS: usize = 10;
/// Heights of the bars of a spark line.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub(crate) fn render(report: &Report<'_>) -> String {
    let facts = report.facts;
    let mut out = format!("# {}\n\n{}\n", facts.title, headline(report));
    if let Some(description) = &facts.description {
        paragraph(&mut out, description);
    }
    for evaluation in report.evaluations {
        scores(&mut out, evaluation);
    }
    gates(&mut out, report.gates);
    if let Some(evaluation) = report.evaluations.first() {
        examples(&mut out, evaluation);
    }
    pairs(&mut out, "Setup", &facts.setup);
    pairs(&mut out, "Data", &facts.data);
    curve(&mut out, &facts.curve);
    pairs(&mut out, "Files", &facts.files);
    if !facts.usage.is_empty() {
        out.push_str("\n## Use it\n\n");
        out.push_str(&fenced(&facts.usage.join("\n"), "sh"));
    }
    if !facts.notes.is_empty() {
        out.push_str("\n## Notes\n\n");
        for note in &facts.notes {
            let _ = writeln!(out, "- {note}");
        }
    }
    out
}

/// One sentence an evaluation.
fn headline(report: &Report<'_>) -> String {
    if report.evaluations.is_empty() {
        return "**Nothing was evaluated.**".into();
    }
    let sentences: Vec<String> = report.evaluations.iter().map(sentence).collect();
    sentences.join("\n\n")
}

fn sentence(evaluation: &Evaluation) -> String {
    let name = &evaluation.name;
    match (evaluation.verdict, evaluation.decisive()) {
        (Some(verdict), Some(comparison)) => {
            let word = match verdict {
                Verdict::Better => "Better than the base.",
                Verdict::Worse => "Worse than the base.",
                Verdict::Inconclusive => "Inconclusive: not enough data to say.",
            };
            format!(
                "**{word}** On `{name}`, {} went from {} to {} ({}).",
                comparison.metric.title(),
                value(comparison.metric, comparison.base),
                value(comparison.metric, comparison.candidate),
                evidence(comparison),
            )
        }
        _ => {
            let all: Vec<String> = evaluation.candidate.measured.iter().map(measured).collect();
            match all.is_empty() {
                true => format!("**Nothing was measured** on `{name}`."),
                false => format!("On `{name}` (n = {}), {}.", evaluation.n, all.join(", ")),
            }
        }
    }
}

fn measured(measured: &Measured) -> String {
    let interval = measured.interval.map(|i| format!(" ({})", range(measured.metric, i))).unwrap_or_default();
    format!("{} is {}{interval}", measured.metric.title(), value(measured.metric, measured.value))
}

fn evidence(comparison: &Comparison) -> String {
    let interval = match (comparison.interval, comparison.effect_kind) {
        (None, _) => String::new(),
        (Some(i), EffectKind::Difference) => {
            format!(", 95 % interval {} to {}", signed_points(i.low), signed_points(i.high))
        }
        (Some(i), EffectKind::Ratio) => format!(", 95 % interval {:.3} to {:.3}", i.low, i.high),
    };
    let test = if comparison.metric == Metric::ExactMatch { "exact McNemar" } else { "sign test" };
    let n = comparison.n;
    format!("{}{interval}, n = {n}, {test} {}", effect(comparison), p_value(comparison.p_value))
}

fn effect(comparison: &Comparison) -> String {
    match comparison.effect_kind {
        EffectKind::Difference => format!("{} points", signed_points(comparison.effect)),
        EffectKind::Ratio => format!("ratio {:.3}", comparison.effect),
    }
}

fn scores(out: &mut String, evaluation: &Evaluation) {
    let Evaluation { name, n, candidate, base, .. } = evaluation;
    let _ = write!(out, "\n## Scores on `{name}` (n = {n})\n\n");
    let cell = |result: &EvalResult, metric| match result.measured(metric) {
        Some(m) => match m.interval {
            Some(interval) => format!("{} ({})", value(metric, m.value), range(metric, interval)),
            None => value(metric, m.value),
        },
        None => "not measured".into(),
    };
    let Some(base) = base else {
        let _ = writeln!(out, "| metric | {} |\n| --- | --- |", candidate.candidate);
        for &metric in &evaluation.metrics {
            let _ = writeln!(out, "| {} | {} |", metric.title(), cell(candidate, metric));
        }
        out.push_str("\nIn brackets: 95 % intervals.\n");
        return;
    };
    let names = (&base.candidate, &candidate.candidate);
    let _ = writeln!(out, "| metric | {} | {} | change | won / lost | p | verdict |", names.0, names.1);
    out.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
    for &metric in &evaluation.metrics {
        let (before, after) = (cell(base, metric), cell(candidate, metric));
        let rest = match evaluation.comparisons.iter().find(|c| c.metric == metric) {
            Some(c) => {
                format!("{} | {} / {} | {} | {}", effect(c), c.won, c.lost, p_value(c.p_value), c.verdict)
            }
            None => "- | - | - | -".into(),
        };
        let _ = writeln!(out, "| {} | {before} | {after} | {rest} |", metric.title());
    }
    out.push_str(
        "\nIn brackets: 95 % intervals (Wilson for exact match, else bootstrap over examples). Won and lost: examples on which \
         one did better than the other; p: exact sign test over them.\n",
    );
}

fn gates(out: &mut String, gates: &[GateOutcome]) {
    if gates.is_empty() {
        return;
    }
    out.push_str(
        "\n## Gates\n\n| gate | evaluation | limit | measured | result |\n| --- | --- | --- | --- | --- |\n",
    );
    for gate in gates {
        let sign = if gate.is_minimum { "≥" } else { "≤" };
        let value = gate.value.map_or("-".into(), |value| format!("{value:.4}"));
        let _ = writeln!(
            out,
            "| `{}` | {} | {sign} {} | {value} | **{}** |",
            gate.name,
            cell_text(&gate.eval),
            gate.limit,
            gate.status
        );
    }
}

/// Where the candidate won and where it lost, side by side with the base; without a base its first answers.
fn examples(out: &mut String, evaluation: &Evaluation) {
    let Some(base) = &evaluation.base else {
        let all: Vec<usize> = (0..evaluation.items().len()).collect();
        return example_list(out, evaluation, "Examples", "The first answers.", &all);
    };
    let right = |record: &SampleRecord| {
        record.exact_match.or_else(|| record.json_fields.map(|f| f.expected + f.given == 2 * f.equal))
    };
    let of = |wanted: (bool, bool)| -> Vec<usize> {
        let pairs = base.records.iter().zip(&evaluation.candidate.records);
        let hits =
            pairs.enumerate().filter(|(_, (a, b))| (right(a), right(b)) == (Some(wanted.0), Some(wanted.1)));
        hits.map(|(index, _)| index).collect()
    };
    if base.records.iter().all(|record| right(record).is_none()) {
        return;
    }
    let kinds = [
        ("Won", "The base was wrong, the trained model is right", (false, true)),
        ("Lost", "The base was right, the trained model is wrong", (true, false)),
        ("Still wrong", "Both are wrong", (false, false)),
    ];
    for (title, says, wanted) in kinds {
        let indices = of(wanted);
        let shown = indices.len().min(EXAMPLES);
        let says = format!("{says}: {} of {} examples, {shown} shown.", indices.len(), evaluation.n);
        example_list(out, evaluation, title, &says, &indices);
    }
}

fn example_list(out: &mut String, evaluation: &Evaluation, title: &str, says: &str, indices: &[usize]) {
    let _ = write!(out, "\n## {title}\n\n{says}\n");
    for &index in indices.iter().take(EXAMPLES) {
        let Some(item) = evaluation.items().get(index) else { continue };
        let _ = write!(out, "\n### `{}`\n", item.id);
        let mut part = |name: &str, text: &str| {
            let _ = write!(out, "\n{name}:\n\n{}", fenced(&shortened(text), "text"));
        };
        part("asked", &item.input);
        if let Some(expected) = &item.expected {
            part("expected", expected);
        }
        for result in evaluation.base.iter().chain([&evaluation.candidate]) {
            if let Some(output) = result.records.get(index).and_then(|r| r.output.as_deref()) {
                part(&result.candidate, output);
            }
        }
    }
}

fn pairs(out: &mut String, title: &str, pairs: &[(String, String)]) {
    if pairs.is_empty() {
        return;
    }
    let _ = write!(out, "\n## {title}\n\n| | |\n| --- | --- |\n");
    for (name, value) in pairs {
        let _ = writeln!(out, "| {} | {} |", cell_text(name), cell_text(value));
    }
}

fn curve(out: &mut String, curve: &[CurvePoint]) {
    let losses: Vec<f64> = curve.iter().filter_map(|p| p.loss).filter(|l| l.is_finite()).collect();
    if losses.is_empty() {
        return;
    }
    out.push_str("\n## Training\n\n");
    let _ = writeln!(out, "loss {} {:.4} to {:.4}\n", spark(&losses), losses[0], losses[losses.len() - 1]);
    out.push_str("| step | loss | validation loss |\n| ---: | ---: | ---: |\n");
    let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.4}"));
    for index in spread(curve.len(), CURVE_ROWS) {
        let point = &curve[index];
        let _ = writeln!(out, "| {} | {} | {} |", point.step, number(point.loss), number(point.valid_loss));
    }
}

/// `most` indices below `n`, evenly spread, first and last among them.
fn spread(n: usize, most: usize) -> Vec<usize> {
    if n <= most {
        return (0..n).collect();
    }
    (0..most).map(|i| i * (n - 1) / (most - 1)).collect()
}

/// At most 40 bars between the lowest and the highest value.
fn spark(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let height = |value: f64| match high > low {
        true => ((value - low) / (high - low) * 7.0).round() as usize,
        false => 0,
    };
    spread(values.len(), 40).into_iter().map(|i| BARS[height(values[i]).min(7)]).collect()
}

fn paragraph(out: &mut String, text: &str) {
    let _ = write!(out, "\n{}\n", text.trim());
}

/// A block whose fence no line of the text can close.
fn fenced(text: &str, language: &str) -> String {
    let (mut longest, mut run) = (0, 0);
    for c in text.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let fence = "`".repeat(3.max(longest + 1));
    format!("{fence}{language}\n{text}\n{fence}\n")
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARS) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text.to_owned(),
    }
}

fn cell_text(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn value(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Perplexity if value < 100.0 => format!("{value:.3}"),
        Metric::Perplexity => format!("{value:.1}"),
        Metric::ExactMatch | Metric::JsonFields => format!("{:.1} %", 100.0 * value),
    }
}

fn range(metric: Metric, interval: Interval) -> String {
    format!("{} to {}", value(metric, interval.low), value(metric, interval.high))
}

/// A difference of shares in points of a hundred, without a minus before a zero.
fn signed_points(difference: f64) -> String {
    let points = (1000.0 * difference).round() / 10.0;
    format!("{:+.1}", if points == 0.0 { 0.0 } else { points })
}

fn p_value(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".into() } else { format!("p = {p:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_longer_than_any_in_the_text() {
        assert_eq!(fenced("a", "text"), "```text\na\n```\n");
        assert!(fenced("x ```` y", "text").starts_with("`````text\n"));
    }

    #[test]
    fn curves_are_thinned_with_both_ends_kept() {
        assert_eq!(spread(3, 10), [0, 1, 2]);
        let rows = spread(101, 10);
        assert_eq!((rows.len(), rows[0], rows[9]), (10, 0, 100));
        assert_eq!(spark(&[1.0, 2.0, 3.0]), "▁▅█");
        assert_eq!(spark(&[1.0, 1.0]), "▁▁");
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(signed_points(0.705), "+70.5");
        assert_eq!(signed_points(-0.000_01), "+0.0");
        assert_eq!(p_value(0.03125), "p = 0.0312");
        assert_eq!(p_value(1e-9), "p < 0.0001");
        assert_eq!(shortened(&"é".repeat(601)).chars().count(), 602);
    }
}
