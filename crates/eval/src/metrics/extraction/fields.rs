//! Two JSON values field by field.

use super::assign::best_pairing;
use super::dates::read_date;
use super::schema::{Comparator, FieldSchema, TEXT, comparator};
use crate::metrics::exact::exact_match;
use crate::metrics::numeric::{NumberPlace, Numeric, Tolerance};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Items of a list up to which the best pairing is looked for; longer lists are paired by position.
pub(crate) const MOST_PAIRED: usize = 200;

/// What stands in a path for a key that is neither expected nor in the schema. Such a key is the model's own text: it has no place in a
/// table of fields, of which there would be no end.
const UNKNOWN: &str = "*";

/// What became of one field of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Expected and given, equal.
    Equal,
    /// Expected and given, not equal.
    Wrong,
    /// Expected and not given.
    Missing,
    /// Given and not expected.
    Invented,
}

/// Fields met so far, each by the number of its path. The places in a list share one path.
pub(crate) struct Walk<'a> {
    schema: &'a FieldSchema,
    tolerance: Tolerance,
    null_is_absent: bool,
    names: Vec<String>,
    numbers: HashMap<(usize, String), usize>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(schema: &'a FieldSchema, tolerance: Tolerance, null_is_absent: bool) -> Self {
        let (names, numbers) = (vec![String::new()], HashMap::new());
        Self { schema, tolerance, null_is_absent, names, numbers }
    }

    /// The outcome of every field, each with its path.
    pub(crate) fn compare(&mut self, expected: &Value, given: Option<&Value>) -> Vec<(String, Outcome)> {
        let root = self.schema.described(self.schema.root());
        let mut outcomes = Vec::new();
        self.value(Some(root), 0, Some(expected), given, &mut outcomes);
        outcomes.into_iter().map(|(path, outcome)| (self.names[path].clone(), outcome)).collect()
    }

    fn value(
        &mut self,
        schema: Option<&'a Value>,
        path: usize,
        expected: Option<&Value>,
        given: Option<&Value>,
        outcomes: &mut Vec<(usize, Outcome)>,
    ) {
        let is_there = |value: &&Value| !(self.null_is_absent && value.is_null());
        match (expected.filter(is_there), given.filter(is_there)) {
            (None, None) => {}
            (Some(Value::Object(expected)), Some(Value::Object(given))) => {
                self.object(schema, path, expected, given, outcomes);
            }
            (Some(Value::Array(expected)), Some(Value::Array(given))) => {
                self.list(schema, path, expected, given, outcomes);
            }
            (Some(expected), Some(given)) if is_leaf(expected) && is_leaf(given) => {
                let equal = equal_leaf(comparator(schema, self.tolerance), expected, given);
                outcomes.push((path, if equal { Outcome::Equal } else { Outcome::Wrong }));
            }
            (expected, given) => {
                for (side, outcome) in [(expected, Outcome::Missing), (given, Outcome::Invented)] {
                    if let Some(value) = side {
                        self.alone(schema, path, value, outcome, outcomes);
                    }
                }
            }
        }
    }

    /// Every field of a value that has nothing beside it.
    fn alone(
        &mut self,
        schema: Option<&'a Value>,
        path: usize,
        value: &Value,
        outcome: Outcome,
        outcomes: &mut Vec<(usize, Outcome)>,
    ) {
        match value {
            Value::Null if self.null_is_absent => {}
            Value::Object(object) => {
                for (key, value) in object {
                    let inner = self.schema.property(schema, key);
                    let is_known = inner.is_some() || outcome == Outcome::Missing;
                    let path = self.path_of(path, if is_known { key } else { UNKNOWN });
                    self.alone(inner, path, value, outcome, outcomes);
                }
            }
            Value::Array(list) => {
                let path = self.path_of(path, "[]");
                let items = self.schema.items(schema);
                list.iter().for_each(|inner| self.alone(items, path, inner, outcome, outcomes));
            }
            _ => outcomes.push((path, outcome)),
        }
    }

    fn object(
        &mut self,
        schema: Option<&'a Value>,
        path: usize,
        expected: &Map<String, Value>,
        given: &Map<String, Value>,
        outcomes: &mut Vec<(usize, Outcome)>,
    ) {
        let extra = given.keys().filter(|key| !expected.contains_key(*key));
        for key in expected.keys().chain(extra) {
            let inner = self.schema.property(schema, key);
            let is_known = inner.is_some() || expected.contains_key(key);
            let path = self.path_of(path, if is_known { key } else { UNKNOWN });
            self.value(inner, path, expected.get(key), given.get(key), outcomes);
        }
    }

    fn list(
        &mut self,
        schema: Option<&'a Value>,
        path: usize,
        expected: &[Value],
        given: &[Value],
        outcomes: &mut Vec<(usize, Outcome)>,
    ) {
        let path = self.path_of(path, "[]");
        let items = self.schema.items(schema);
        let alignment = comparator(schema, self.tolerance);
        if alignment == Comparator::Ordered || expected.len().max(given.len()) > MOST_PAIRED {
            for at in 0..expected.len().max(given.len()) {
                self.value(items, path, expected.get(at), given.get(at), outcomes);
            }
            return;
        }
        let all = |values: &'_ [Value]| (0..values.len()).collect::<Vec<_>>();
        let (wanted, offered) = match alignment {
            Comparator::Set => (firsts(expected), firsts(given)),
            _ => (all(expected), all(given)),
        };
        // Each pair is looked at once: nested lists would else double the work at every level.
        let mut pairs: Vec<Vec<(usize, Outcome)>> = Vec::with_capacity(wanted.len() * offered.len());
        for &row in &wanted {
            for &column in &offered {
                let mut found = Vec::new();
                self.value(items, path, Some(&expected[row]), Some(&given[column]), &mut found);
                pairs.push(found);
            }
        }
        let equal: Vec<i64> = pairs
            .iter()
            .map(|pair| pair.iter().filter(|(_, outcome)| *outcome == Outcome::Equal).count() as i64)
            .collect();
        let width = offered.len();
        let mut is_paired = vec![false; width];
        let pairing = best_pairing(wanted.len(), width, &|row, column| equal[row * width + column]);
        for (row, column) in pairing.into_iter().enumerate() {
            // Items that have nothing in common are not the same item: one is missing and one invented.
            match column.filter(|column| equal[row * width + column] > 0) {
                Some(column) => {
                    is_paired[column] = true;
                    outcomes.append(&mut pairs[row * width + column]);
                }
                None => self.alone(items, path, &expected[wanted[row]], Outcome::Missing, outcomes),
            }
        }
        for (column, _) in is_paired.into_iter().enumerate().filter(|(_, paired)| !paired) {
            self.alone(items, path, &given[offered[column]], Outcome::Invented, outcomes);
        }
    }

    fn path_of(&mut self, parent: usize, key: &str) -> usize {
        if let Some(path) = self.numbers.get(&(parent, key.to_owned())) {
            return *path;
        }
        let dot = if self.names[parent].is_empty() || key == "[]" { "" } else { "." };
        self.names.push(format!("{}{dot}{key}", self.names[parent]));
        self.numbers.insert((parent, key.to_owned()), self.names.len() - 1);
        self.names.len() - 1
    }
}

fn is_leaf(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

/// The places of the items that no earlier item equals.
fn firsts(values: &[Value]) -> Vec<usize> {
    (0..values.len()).filter(|&at| !values[..at].contains(&values[at])).collect()
}

fn equal_leaf(comparator: Comparator, expected: &Value, given: &Value) -> bool {
    if equal_exactly(expected, given) {
        return true;
    }
    let texts = expected.as_str().zip(given.as_str());
    match comparator {
        Comparator::Number { absolute, relative } => {
            let tolerance = Tolerance { absolute, relative };
            // Whole numbers above 2^53 share a double; without a tolerance they have just been found to differ.
            let is_exact = absolute == 0.0 && relative == 0.0 && expected.is_number();
            // A string is never equal to a number: whoever reads the answer would find the wrong type.
            let same_type = expected.is_number() == given.is_number();
            let pair = number_of(expected).zip(number_of(given)).filter(|_| same_type && !is_exact);
            pair.is_some_and(|(expected, given)| tolerance.holds(expected, given))
        }
        Comparator::Date { day_first } => texts
            .and_then(|(a, b)| read_date(a, day_first).zip(read_date(b, day_first)))
            .is_some_and(|(a, b)| a.is_same_as(b)),
        Comparator::Text => texts.is_some_and(|(a, b)| exact_match(a, b, TEXT)),
        Comparator::Exact | Comparator::Ordered | Comparator::Assigned | Comparator::Set => false,
    }
}

/// As doubles only where one is not whole: large whole numbers share a double.
fn equal_exactly(a: &Value, b: &Value) -> bool {
    let has_fraction = a.is_f64() || b.is_f64();
    a == b || (has_fraction && a.as_f64().is_some() && a.as_f64() == b.as_f64())
}

fn number_of(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => Numeric { place: NumberPlace::Only, ..Numeric::default() }.find(text),
        _ => None,
    }
}
