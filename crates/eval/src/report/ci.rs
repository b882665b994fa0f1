//! What CI systems read: annotations and the step summary of GitHub, OpenMetrics for GitLab's merge requests.

use super::Report;
use crate::{GateStatus, Verdict};
use std::fmt::Write;

/// The longest step summary that GitHub takes, in bytes.
const MOST_SUMMARY_BYTES: usize = 1024 * 1024;
/// Annotations of a kind that GitHub shows of one step.
const MOST_ANNOTATIONS: usize = 10;

/// Workflow commands of GitHub Actions, a line each: an error for a gate that failed or had nothing to look at, a warning for one that was
/// not decided, a notice with the verdict of each evaluation.
pub fn github_annotations(report: &Report<'_>) -> Vec<String> {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for gate in report.gates {
        let eval = gate.eval.as_deref().map(|eval| format!("{eval}: ")).unwrap_or_default();
        let text = format!("{eval}{}: {}", gate.text, gate.detail);
        match gate.status {
            GateStatus::Passed => {}
            GateStatus::Inconclusive => warnings.push(command("warning", "gate not decided", &text)),
            GateStatus::Failed => errors.push(command("error", "gate failed", &text)),
            GateStatus::NothingEvaluated => errors.push(command("error", "nothing evaluated", &text)),
        }
    }
    let notices = report.evaluations.iter().map(|evaluation| {
        let title = match evaluation.verdict {
            Some(Verdict::Better) => "better",
            Some(Verdict::Worse) => "worse",
            Some(Verdict::Inconclusive) => "not enough data",
            None => "measured",
        };
        command("notice", &format!("{}: {title}", evaluation.name), &evaluation.headline)
    });
    let few = |list: Vec<String>| list.into_iter().take(MOST_ANNOTATIONS);
    few(errors).chain(few(warnings)).chain(notices.take(MOST_ANNOTATIONS)).collect()
}

/// A workflow command; what would end or open one is escaped.
pub fn command(kind: &str, title: &str, text: &str) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    format!("::{kind} title={}::{}", property(title), data(text))
}

/// The report for a step summary, no longer than GitHub takes.
pub fn step_summary(markdown: &str) -> String {
    if markdown.len() <= MOST_SUMMARY_BYTES {
        return markdown.to_owned();
    }
    let note = "\n\n… cut; see report.md\n";
    let mut end = MOST_SUMMARY_BYTES - note.len();
    while !markdown.is_char_boundary(end) {
        end -= 1;
    }
    // Not within a line: a table or a fence that is cut reads badly.
    let end = markdown[..end].rfind('\n').unwrap_or(end);
    format!("{}{note}", &markdown[..end])
}

/// The values in the OpenMetrics text format, which GitLab compares with those of the target branch.
pub fn open_metrics(report: &Report<'_>) -> String {
    let mut text = String::from("# TYPE taper_eval gauge\n");
    let label = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    for evaluation in report.evaluations {
        for candidate in &evaluation.candidates {
            for measured in &candidate.measured {
                let _ = writeln!(
                    text,
                    "taper_eval{{eval=\"{}\",candidate=\"{}\",metric=\"{}\"}} {}",
                    label(&evaluation.name),
                    label(&candidate.candidate),
                    measured.metric,
                    measured.value
                );
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_command_is_escaped() {
        assert_eq!(command("error", "a: b, c", "50 %\n::x"), "::error title=a%3A b%2C c::50 %25%0A::x");
    }

    #[test]
    fn a_summary_is_cut_at_a_line() {
        let long = "é line\n".repeat(MOST_SUMMARY_BYTES / 7);
        let cut = step_summary(&long);
        assert!(cut.len() <= MOST_SUMMARY_BYTES && cut.ends_with("see report.md\n"));
        assert!(cut.contains("é line\n\n…"));
        assert_eq!(step_summary("short"), "short");
    }
}
