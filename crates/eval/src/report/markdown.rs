//! `report.md`: the verdict first, then the numbers; fit for a pull request. What it says of single items is at most where they stand.

use super::words::{effect, effect_range, p_value, range, value};
use super::{CurvePoint, Report};
use crate::cost::CostReport;
use crate::{Comparison, EvalResult, Evaluation, GateOutcome, Metric, Part, SharedLevel, Verdict};
use std::fmt::Write;

/// Rows of the training table.
const CURVE_ROWS: usize = 10;
/// Rows of a table of fields, labels or slices.
const MOST_ROWS: usize = 30;
/// Items that are named of each kind.
const ITEMS_NAMED: usize = 10;
/// Heights of the bars of a spark line.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// How often a test set may be chosen by before that is told.
const MANY_USES: u64 = 10;

pub(super) fn render(report: &Report<'_>) -> String {
    let facts = report.facts;
    let mut out = format!("# {}\n", facts.title);
    if report.evaluations.is_empty() {
        out.push_str("\n**Nothing was evaluated.**\n");
    }
    for evaluation in report.evaluations {
        let _ = write!(
            out,
            "\n{} **{}:** {}\n",
            mark(evaluation),
            cell_text(&evaluation.name),
            evaluation.headline
        );
    }
    if let Some(description) = &facts.description {
        paragraph(&mut out, description);
    }
    gates(&mut out, report.gates);
    for (index, evaluation) in report.evaluations.iter().enumerate() {
        scores(&mut out, evaluation);
        uses(&mut out, report.uses.get(index).copied().flatten());
        fields(&mut out, evaluation);
        classes(&mut out, evaluation);
        slices(&mut out, evaluation);
        overlap(&mut out, evaluation);
        if report.section.shared == SharedLevel::Hashed {
            items(&mut out, evaluation);
        }
    }
    cost(&mut out, report.cost);
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

fn mark(evaluation: &Evaluation) -> &'static str {
    match evaluation.verdict {
        Some(Verdict::Better) => "✅",
        Some(Verdict::Worse) => "❌",
        Some(Verdict::Inconclusive) => "⚠️",
        None => "ℹ️",
    }
}

fn cell(measured: Option<&crate::Measured>) -> String {
    match measured {
        Some(m) => match m.interval {
            Some(interval) => format!("{} ({})", value(m.metric, m.value), range(m.metric, interval)),
            None => value(m.metric, m.value),
        },
        None => "not measured".into(),
    }
}

fn scores(out: &mut String, evaluation: &Evaluation) {
    let _ = write!(out, "\n## {} (n = {})\n\n", evaluation.name, evaluation.n);
    let names: Vec<String> = evaluation.candidates.iter().map(|c| cell_text(&c.candidate)).collect();
    let _ = writeln!(out, "| metric | {} |\n| --- |{}", names.join(" | "), " --- |".repeat(names.len()));
    for metric in evaluation.metrics() {
        let cells: Vec<String> = evaluation.candidates.iter().map(|c| cell(c.measured(metric))).collect();
        let _ = writeln!(out, "| {} | {} |", metric.title(), cells.join(" | "));
    }
    if !evaluation.comparisons.is_empty() {
        out.push_str("\n| | against | metric | change | 95 % interval | won / lost | p | verdict |\n");
        out.push_str("| --- | --- | --- | --- | --- | --- | --- | --- |\n");
        for comparison in &evaluation.comparisons {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} / {} | {} | {} |",
                cell_text(&comparison.candidate),
                cell_text(&comparison.reference),
                comparison.metric.title(),
                effect(comparison),
                effect_range(comparison),
                comparison.won,
                comparison.lost,
                p_value(comparison.adjusted_p_value),
                verdict(comparison),
            );
        }
        out.push_str(
            "\nIn brackets and beside: 95 % intervals. Won and lost: items on which one did better than the other. p: two-sided, adjusted by Holm for \
             the metrics of a pair; the verdict goes by it.\n",
        );
    }
    usage(out, &evaluation.candidates);
}

fn uses(out: &mut String, uses: Option<u64>) {
    if let Some(uses) = uses.filter(|uses| *uses > MANY_USES) {
        let _ = write!(
            out,
            "\n> {uses} candidates have been evaluated on this data on this machine. Whoever chooses by a test set that often fits to it: \
             take fresh data for a final word.\n"
        );
    }
}

fn verdict(comparison: &Comparison) -> String {
    match comparison.items_to_take() {
        Some(needed) => format!("**{}** (n needed: about {needed})", comparison.verdict),
        None => format!("**{}**", comparison.verdict),
    }
}

fn cost(out: &mut String, cost: Option<&CostReport>) {
    let Some(cost) = cost else { return };
    let _ = write!(out, "\n## Cost\n\n{}\n\n", cost.sentence);
    let _ = writeln!(
        out,
        "| candidate | per 1000 items, {0} | per right answer, {0} | right |",
        cell_text(&cost.currency)
    );
    out.push_str("| --- | ---: | ---: | ---: |\n");
    for candidate in &cost.candidates {
        let amount = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let right = candidate.accuracy.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {right} |",
            cell_text(&candidate.name),
            amount(candidate.per_1000),
            amount(candidate.per_correct)
        );
    }
    if !cost.assumptions.is_empty() {
        let told: Vec<String> =
            cost.assumptions.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let _ = write!(out, "\nAssumed: {}.\n", told.join("; "));
    }
}

fn usage(out: &mut String, candidates: &[EvalResult]) {
    let is_told = |c: &&EvalResult| c.errors > 0 || c.usage.latency_p95_ms.is_some();
    for candidate in candidates.iter().filter(is_told) {
        let mut told = Vec::new();
        if let (Some(p50), Some(p95)) = (candidate.usage.latency_p50_ms, candidate.usage.latency_p95_ms) {
            told.push(format!("answers took {p50:.0} ms (median) and {p95:.0} ms (95 %)"));
        }
        if candidate.errors > 0 {
            told.push(format!("{} items have no answer and are not scored", candidate.errors));
        }
        let _ = write!(out, "\n{}: {}.\n", cell_text(&candidate.candidate), told.join("; "));
    }
}

fn fields(out: &mut String, evaluation: &Evaluation) {
    for result in &evaluation.candidates {
        let Some(table) = &result.fields else { continue };
        let _ = write!(
            out,
            "\n### Fields, {}\n\n{} of {} answers are JSON, {} valid by the schema, {} right as a whole.\n\n",
            cell_text(&result.candidate),
            table.json,
            table.documents,
            table.valid,
            table.correct
        );
        out.push_str("| field | precision | recall | F1 | equal | wrong | missing | invented |\n");
        out.push_str("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
        for (path, counts) in table.fields.iter().take(MOST_ROWS) {
            let share = |value: f64| format!("{:.1} %", 100.0 * value);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                cell_text(path),
                share(counts.precision()),
                share(counts.recall()),
                share(counts.f1()),
                counts.equal,
                counts.wrong,
                counts.missing,
                counts.invented
            );
        }
        more(out, table.fields.len());
    }
}

fn classes(out: &mut String, evaluation: &Evaluation) {
    for result in &evaluation.candidates {
        let Some(classes) = &result.classes else { continue };
        let _ = write!(out, "\n### Labels, {}\n\n", cell_text(&result.candidate));
        out.push_str("| label | precision | recall | F1 | items |\n| --- | ---: | ---: | ---: | ---: |\n");
        for (label, class) in classes.labels.iter().zip(&classes.by_class).take(MOST_ROWS) {
            let _ = writeln!(
                out,
                "| {} | {:.1} % | {:.1} % | {:.1} % | {} |",
                cell_text(label),
                100.0 * class.precision,
                100.0 * class.recall,
                100.0 * class.f1,
                class.support
            );
        }
        more(out, classes.labels.len());
    }
}

fn slices(out: &mut String, evaluation: &Evaluation) {
    if evaluation.slices.is_empty() {
        return;
    }
    let Some(metric) = evaluation.metrics().next() else { return };
    let names: Vec<&str> = evaluation.candidates.iter().map(|c| c.candidate.as_str()).collect();
    let heads: Vec<String> = names.iter().map(|name| cell_text(name)).collect();
    let _ = write!(out, "\n### Slices, {}\n\n", metric.title());
    let _ = writeln!(
        out,
        "| slice | n | {} | verdict |\n| --- | ---: |{} --- |",
        heads.join(" | "),
        " --- |".repeat(names.len())
    );
    for slice in evaluation.slices.iter().take(MOST_ROWS) {
        let cells = cells_of(&slice.part, &names, metric);
        let verdict =
            slice.part.comparisons.iter().find(|c| c.metric == metric).map(verdict).unwrap_or_default();
        let label = cell_text(&format!("{} = {}", slice.field, slice.value));
        let _ = writeln!(out, "| {label} | {} | {cells} | {verdict} |", slice.part.n);
    }
    more(out, evaluation.slices.len());
}

fn cells_of(part: &Part, names: &[&str], metric: Metric) -> String {
    let of =
        |name: &&str| cell(part.measured.get(*name).and_then(|all| all.iter().find(|m| m.metric == metric)));
    names.iter().map(of).collect::<Vec<_>>().join(" | ")
}

fn overlap(out: &mut String, evaluation: &Evaluation) {
    let overlap = &evaluation.overlap;
    if overlap.touched == 0 {
        return;
    }
    let _ = write!(
        out,
        "\n### Overlap with the training data\n\n{} of {} items have an input that was trained on: {} to the byte, {} but for case and white \
         space, {} nearly.\n",
        overlap.touched, evaluation.n, overlap.exact, overlap.normalised, overlap.near
    );
    let Some(without) = &overlap.without else { return };
    let names: Vec<&str> = evaluation.candidates.iter().map(|c| c.candidate.as_str()).collect();
    let heads: Vec<String> = names.iter().map(|name| cell_text(name)).collect();
    let _ = write!(
        out,
        "\nWithout them (n = {}):\n\n| metric | {} |\n| --- |{}\n",
        without.n,
        heads.join(" | "),
        " --- |".repeat(names.len())
    );
    for metric in evaluation.metrics() {
        let _ = writeln!(out, "| {} | {} |", metric.title(), cells_of(without, &names, metric));
    }
}

/// Items that were won and lost, by where they stand.
fn items(out: &mut String, evaluation: &Evaluation) {
    let (Some(base), Some(trained), Some(metric)) =
        (evaluation.base(), evaluation.trained(), evaluation.metrics().next())
    else {
        return;
    };
    let value = |result: &EvalResult, index: usize| {
        let tally = result.records.get(index)?.score.tallies.get(&metric)?;
        Some(if metric.higher_is_better() { tally.value(metric) } else { -tally.value(metric) })
    };
    let of = |won: bool| -> Vec<&str> {
        let is = |index: &usize| match (value(base, *index), value(trained, *index)) {
            (Some(a), Some(b)) => {
                if won {
                    b > a
                } else {
                    b < a
                }
            }
            _ => false,
        };
        (0..evaluation.n).filter(is).map(|index| evaluation.items()[index].id.as_str()).collect()
    };
    for (title, ids) in [("Won", of(true)), ("Lost", of(false))] {
        if !ids.is_empty() {
            let named: Vec<String> = ids.iter().take(ITEMS_NAMED).map(|id| format!("`{id}`")).collect();
            let _ = write!(
                out,
                "\n{title} ({}): {}{}\n",
                ids.len(),
                named.join(", "),
                if ids.len() > ITEMS_NAMED { ", …" } else { "" }
            );
        }
    }
}

fn more(out: &mut String, rows: usize) {
    if rows > MOST_ROWS {
        let _ = write!(out, "\n… and {} more in `eval/results.json`.\n", rows - MOST_ROWS);
    }
}

fn gates(out: &mut String, gates: &[GateOutcome]) {
    if gates.is_empty() {
        return;
    }
    out.push_str("\n## Gates\n\n| gate | evaluation | found | result |\n| --- | --- | --- | --- |\n");
    for gate in gates {
        let eval = gate.eval.as_deref().unwrap_or("-");
        let (text, detail) = (cell_text(&gate.text), cell_text(&gate.detail));
        let _ = writeln!(out, "| `{text}` | {} | {detail} | **{}** |", cell_text(eval), gate.status);
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

fn cell_text(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
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
}
