//! Reading the values of a `config.json`, with every fault noted instead of the first.

use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object of a `config.json` and what was found wrong with it. `null` is the same as absent but for [`Self::is_null`].
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// What the keys stand in, for messages: empty, or for example `rope_scaling.`.
    place: &'static str,
    pub(crate) faults: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, place: "", faults: Vec::new() }
    }

    /// The object under `key`, when there is one.
    pub(crate) fn object(&mut self, key: &'static str, place: &'static str) -> Option<Fields<'a>> {
        match self.get(key)? {
            Value::Object(object) => Some(Fields { object, place, faults: Vec::new() }),
            other => {
                self.wrong(key, "an object", other);
                None
            }
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The list under `key`, when there is one.
    pub(crate) fn list(&mut self, key: &str) -> Option<&'a [Value]> {
        match self.get(key)? {
            Value::Array(list) => Some(list),
            other => {
                self.wrong(key, "a list", other);
                None
            }
        }
    }

    /// Whether the key is there and is `null`, for the few whose default is something else than none.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// Keys with a value that are not in `known`.
    pub(crate) fn refuse_unknown(&mut self, known: &[&str]) {
        for (key, value) in self.object {
            if !value.is_null() && !known.contains(&key.as_str()) {
                self.fault(format!("`{}{}` is not supported", self.place, key.escape_debug()));
            }
        }
    }

    pub(crate) fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    /// A whole number in `range`; without a default it must be there.
    pub(crate) fn size(&mut self, key: &str, default: Option<usize>, range: RangeInclusive<usize>) -> usize {
        let fallback = default.unwrap_or(*range.start());
        let Some(value) = self.get(key) else {
            if default.is_none() {
                self.fault(format!("`{}{key}` is missing", self.place));
            }
            return fallback;
        };
        // Some writers give whole numbers as floats.
        let whole = value.as_u64().or_else(|| {
            value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64)
        });
        match whole.and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n)) {
            Some(n) => n,
            None => {
                let wanted = format!("a whole number from {} to {}", range.start(), range.end());
                self.wrong(key, &wanted, value);
                fallback
            }
        }
    }

    /// A finite number in `range`, when there is one.
    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.get(key)?;
        let number = value.as_f64().filter(|x| range.contains(x));
        if number.is_none() {
            self.wrong(key, &format!("a number from {} to {}", range.start(), range.end()), value);
        }
        number
    }

    /// As [`Self::number`], and it must be there.
    pub(crate) fn required(&mut self, key: &str, range: RangeInclusive<f64>) -> f64 {
        if self.get(key).is_none() {
            self.fault(format!("`{}{key}` is missing", self.place));
        }
        let fallback = *range.start();
        self.number(key, range).unwrap_or(fallback)
    }

    /// A list of exactly `count` numbers in `range`, which must be there.
    pub(crate) fn numbers(&mut self, key: &str, count: usize, range: RangeInclusive<f64>) -> Vec<f64> {
        if self.get(key).is_none() {
            self.fault(format!("`{}{key}` is missing", self.place));
            return Vec::new();
        }
        let Some(list) = self.list(key) else { return Vec::new() };
        let numbers: Vec<f64> =
            list.iter().filter_map(Value::as_f64).filter(|number| range.contains(number)).collect();
        if list.len() != count || numbers.len() != count {
            let (low, high) = (range.start(), range.end());
            self.fault(format!(
                "`{}{key}` has {} entries, {} of them numbers from {low} to {high}, wanted {count}",
                self.place,
                list.len(),
                numbers.len()
            ));
        }
        numbers
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.get(key) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.wrong(key, "true or false", other);
                default
            }
        }
    }

    pub(crate) fn text(&mut self, key: &str) -> Option<&'a str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong(key, "a text", other);
                None
            }
        }
    }

    fn wrong(&mut self, key: &str, wanted: &str, given: &Value) {
        let shown: String = given.to_string().chars().take(40).collect();
        self.fault(format!("`{}{key}` is {shown}, wanted {wanted}", self.place));
    }
}
