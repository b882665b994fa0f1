//! Metrics and statistics against the reference libraries, against known worlds, and over odd texts.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod golden_metrics;
mod golden_statistics;
mod properties;
mod simulation;

use serde_json::Value;
use std::path::Path;

/// A file of golden numbers.
fn golden(path: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path);
    serde_json::from_str(&fs_err::read_to_string(file).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value).iter().map(number).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// Equal to `by`, relative where the numbers are above 1.
#[track_caller]
fn near(got: f64, expected: f64, by: f64, what: &str) {
    assert!((got - expected).abs() <= by * expected.abs().max(1.0), "{what}: {got} is not {expected}");
}
