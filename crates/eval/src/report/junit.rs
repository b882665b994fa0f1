//! `junit.xml`: a test case for each gate, for the test views of CI systems.

use super::Report;
use crate::{Error, Evaluation, GateOutcome, GateStatus, Result};
use quick_junit::{NonSuccessKind, Report as JunitReport, TestCase, TestCaseStatus, TestSuite};

/// A suite an evaluation: its gates, and whether it measured anything. Without gates the latter alone is told.
pub(super) fn render(report: &Report<'_>) -> Result<String> {
    let mut junit = JunitReport::new(report.facts.title.as_str());
    for evaluation in report.evaluations {
        let mut suite = TestSuite::new(evaluation.name.as_str());
        suite.add_test_case(measured(evaluation));
        let gates = report.gates.iter().filter(|gate| gate.eval.as_deref() == Some(&evaluation.name));
        suite.add_test_cases(gates.map(case));
        junit.add_test_suite(suite);
    }
    let mut elsewhere = report.gates.iter().filter(|gate| {
        !report.evaluations.iter().any(|evaluation| gate.eval.as_deref() == Some(&evaluation.name))
    });
    if let Some(first) = elsewhere.next() {
        let mut suite = TestSuite::new("gates");
        suite.add_test_cases(std::iter::once(first).chain(elsewhere).map(case));
        junit.add_test_suite(suite);
    }
    junit.to_string().map_err(|error| Error::Write(std::io::Error::other(error)))
}

fn measured(evaluation: &Evaluation) -> TestCase {
    let anything = evaluation.trained().is_some_and(|trained| !trained.measured.is_empty());
    let mut status = match anything {
        true => TestCaseStatus::success(),
        false => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    if !anything {
        status.set_message("nothing was measured");
    }
    let mut case = TestCase::new("measured", status);
    case.set_classname(evaluation.name.as_str());
    case.set_system_out(evaluation.headline.as_str());
    case
}

/// A gate that is not kept, or not decided, is a failure; one that had nothing to look at is an error.
fn case(gate: &GateOutcome) -> TestCase {
    let kind = match gate.status {
        GateStatus::Passed => None,
        GateStatus::Failed | GateStatus::Inconclusive => Some(NonSuccessKind::Failure),
        GateStatus::NothingEvaluated => Some(NonSuccessKind::Error),
    };
    let mut status = kind.map_or_else(TestCaseStatus::success, TestCaseStatus::non_success);
    if kind.is_some() {
        status.set_type(gate.status.to_string());
        status.set_message(format!("{}: {}", gate.status, gate.detail));
    }
    let mut case = TestCase::new(gate.text.as_str(), status);
    case.set_classname(gate.eval.as_deref().unwrap_or("gates"));
    case.set_system_out(gate.detail.as_str());
    case
}
