//! What a smoke run found, check by check: for people, for scripts, for CI.

use crate::ci;
use crate::output::{print, say};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;
use taper_diagnostics::{ExitCode, write_bytes_atomically};
use taper_eval::report::workflow_command;

/// By this file a folder is known as one that a smoke run may make anew.
pub(crate) const RECORD: &str = "smoke.json";

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Passed,
    Failed,
    NotCompared,
}

/// One check.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    name: &'static str,
    status: Status,
    /// What was found, one line.
    detail: String,
}

/// All checks of a run so far.
pub(crate) struct Checks {
    name: String,
    folder: PathBuf,
    started: Instant,
    checks: Vec<Check>,
    /// Figures of the training, for scripts.
    figures: Value,
}

impl Check {
    pub(crate) fn passed(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Passed, detail: detail.into() }
    }

    pub(crate) fn failed(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Failed, detail: detail.into() }
    }

    pub(crate) fn not_compared(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::NotCompared, detail: detail.into() }
    }
}

impl Status {
    fn for_people(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotCompared => "not compared",
        }
    }

    fn for_scripts(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotCompared => "not_compared",
        }
    }
}

impl Checks {
    /// A run that has checked nothing yet; its folder is marked as its own.
    pub(crate) fn begin(name: &str, folder: &Path, started: Instant) -> anyhow::Result<Self> {
        let (name, folder) = (name.to_owned(), folder.to_owned());
        let checks = Self { name, folder, started, checks: Vec::new(), figures: json!({}) };
        checks.write_record(&json!({ "schema": 1, "name": checks.name, "passed": null }))?;
        Ok(checks)
    }

    /// Take up a check, and tell it.
    pub(crate) fn push(&mut self, check: Check) {
        say(&format!("smoke {}: {}: {}", check.name, check.status.for_people(), check.detail));
        self.checks.push(check);
    }

    /// Take up a figure for scripts.
    pub(crate) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures[name] = value.into();
    }

    /// The exit code that the checks give: nothing that was not compared makes one fail.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let failed = self.checks.iter().any(|check| check.status == Status::Failed);
        if failed { ExitCode::GateFailed } else { ExitCode::Passed }
    }

    /// Write `smoke.json` and `junit.xml`, tell people, GitHub's runner and, with `--json`, scripts.
    pub(crate) fn finish(&self, code: ExitCode, prints_json: bool) -> anyhow::Result<()> {
        let record = self.json(code);
        self.write_record(&record)?;
        write_bytes_atomically(&self.folder.join("junit.xml"), self.junit()?.as_bytes())?;
        let failed = self.checks.iter().filter(|check| check.status == Status::Failed);
        let annotations: Vec<String> = failed
            .map(|check| workflow_command("error", &format!("{}: {}", self.name, check.name), &check.detail))
            .collect();
        ci::annotate(&annotations);
        ci::add_to_step_summary(&self.markdown(code));
        let ending = if code == ExitCode::Passed { "passed" } else { "FAILED" };
        let seconds = self.started.elapsed().as_secs_f64();
        say(&format!("smoke {}: {ending} in {seconds:.0} s (exit code {})", self.name, code as u8));
        if prints_json {
            print(&record.to_string())?;
        }
        Ok(())
    }

    fn write_record(&self, record: &Value) -> anyhow::Result<()> {
        write_bytes_atomically(&self.folder.join(RECORD), format!("{record:#}\n").as_bytes())?;
        Ok(())
    }

    fn json(&self, code: ExitCode) -> Value {
        let checks = self.checks.iter().map(|check| {
            json!({ "name": check.name, "status": check.status.for_scripts(), "detail": check.detail })
        });
        let mut record = json!({
            "schema": 1,
            "name": self.name,
            "passed": code == ExitCode::Passed,
            "exit_code": code as u8,
            "folder": self.folder,
            "seconds": (self.started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            "checks": checks.collect::<Vec<_>>(),
        });
        for (name, value) in self.figures.as_object().into_iter().flatten() {
            record[name] = value.clone();
        }
        record
    }

    /// A test case for each check.
    fn junit(&self) -> anyhow::Result<String> {
        let mut suite = TestSuite::new(self.name.as_str());
        for check in &self.checks {
            let mut status = match check.status {
                Status::Passed => TestCaseStatus::success(),
                Status::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
                Status::NotCompared => TestCaseStatus::skipped(),
            };
            if check.status != Status::Passed {
                status.set_message(check.detail.as_str());
            }
            let mut case = TestCase::new(check.name, status);
            case.set_classname(self.name.as_str());
            case.set_system_out(check.detail.as_str());
            suite.add_test_case(case);
        }
        let mut report = Report::new("taper smoke");
        report.add_test_suite(suite);
        Ok(report.to_string()?)
    }

    fn markdown(&self, code: ExitCode) -> String {
        let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
        let ending = if code == ExitCode::Passed { "passed" } else { "FAILED" };
        let mut text =
            format!("## smoke {}: {ending}\n\n| check | | found |\n| --- | --- | --- |\n", cell(&self.name));
        for check in &self.checks {
            let row =
                format!("| {} | {} | {} |\n", check.name, check.status.for_people(), cell(&check.detail));
            text.push_str(&row);
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(folder: &Path) -> Checks {
        let mut checks = Checks::begin("a<b", folder, Instant::now()).unwrap();
        checks.push(Check::passed("training", "20 steps"));
        checks.push(Check::not_compared("golden loss", "none | there"));
        checks
    }

    #[test]
    fn what_was_not_compared_is_neither_passed_nor_failed() {
        let folder = tempfile::tempdir().unwrap();
        let mut checks = checks(folder.path());
        assert_eq!(checks.exit_code(), ExitCode::Passed);
        assert!(
            checks.markdown(ExitCode::Passed).contains("| golden loss | not compared | none \\| there |\n")
        );
        let junit = checks.junit().unwrap();
        assert!(junit.contains("tests=\"2\" skipped=\"1\" errors=\"0\" failures=\"0\""), "{junit}");
        assert!(junit.contains("name=\"a&lt;b\""), "{junit}");
        checks.push(Check::failed("resume equality", "`adapter/x` differs"));
        assert_eq!(checks.exit_code(), ExitCode::GateFailed);
        checks.figure("loss", 1.5);
        let record = checks.json(ExitCode::GateFailed);
        assert_eq!((&record["passed"], &record["loss"]), (&json!(false), &json!(1.5)));
        assert_eq!(record["checks"][2]["status"], "failed");
        assert!(checks.junit().unwrap().contains("<failure message=\"`adapter/x` differs\""));
    }

    #[test]
    fn a_run_that_has_begun_has_not_passed() {
        let folder = tempfile::tempdir().unwrap();
        checks(folder.path());
        let record: Value =
            serde_json::from_str(&fs_err::read_to_string(folder.path().join(RECORD)).unwrap()).unwrap();
        assert!(record["passed"].is_null());
    }
}
