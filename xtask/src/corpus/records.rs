//! Records: keys with values, and the many ways to write one.

use crate::grammar::Scene;
use crate::names::capitalised;
use serde_json::{Map, Value};

/// Keys and the kinds of their values. The keys of the tasks' answers are not among them.
const FIELDS: &[(&str, &str)] = &[
    ("item", "item"),
    ("colour", "colour"),
    ("size", "adj"),
    ("owner", "person"),
    ("maker", "org"),
    ("town", "town"),
    ("day", "weekday"),
    ("price", "amount"),
    ("number", "long"),
    ("team", "nonsense"),
    ("code", "code"),
    ("job", "job"),
    ("title", "title"),
    ("count", "small"),
    ("room", "room"),
    ("contact", "person"),
    ("phone", "phone"),
    ("date", "date"),
    ("time", "time"),
    ("material", "material"),
    ("food", "food"),
    ("animal", "animal"),
    ("device", "device"),
    ("label", "nonsense"),
    ("month", "month"),
    ("drug", "drug"),
    ("dose", "dose"),
    ("test", "test"),
    ("weight", "num"),
    ("ref", "code"),
    ("sender", "surname"),
    ("receiver", "first"),
    ("part", "code"),
    ("release", "version"),
    ("brand", "made"),
    ("reason", "complaint"),
    ("topic", "feature"),
    ("shelf", "small"),
    ("nickname", "nonsense"),
    ("street", "surname"),
    ("name", "person"),
    ("place", "town"),
    ("id", "code"),
    ("note", "common"),
];

/// Keys with their values, in order.
pub(super) struct Record(pub(super) Vec<(String, String)>);

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `Key: value` by lines.
    Colon,
    /// `key=value; key=value`.
    Equals,
    /// `{"key":"value"}`.
    Json,
    /// `{"key": "value"}`.
    SpacedJson,
    /// `key | value` by lines.
    Bar,
    /// `KEY - value` by lines.
    Upper,
    /// `<key>value</key>`.
    Tags,
    /// `[key] value`.
    Brackets,
    /// `- key: value` by lines.
    List,
}

impl Form {
    /// All of them.
    pub(super) const ALL: &'static [Self] = &[
        Self::Colon,
        Self::Equals,
        Self::Json,
        Self::SpacedJson,
        Self::Bar,
        Self::Upper,
        Self::Tags,
        Self::Brackets,
        Self::List,
    ];

    /// What a person would call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Colon => "lines with a colon",
            Self::Equals => "key=value pairs",
            Self::Json => "JSON",
            Self::SpacedJson => "JSON with spaces",
            Self::Bar => "a table with bars",
            Self::Upper => "capital keys",
            Self::Tags => "tags",
            Self::Brackets => "brackets",
            Self::List => "a list",
        }
    }

    /// One of the forms.
    pub(super) fn draw(scene: &mut Scene<'_>) -> Self {
        Self::ALL[scene.dice.below(Self::ALL.len())]
    }
}

impl Record {
    /// A record of `n` different keys.
    pub(super) fn draw(scene: &mut Scene<'_>, n: usize) -> Self {
        let mut fields: Vec<usize> = (0..FIELDS.len()).collect();
        scene.dice.shuffle(&mut fields);
        let pairs = fields.into_iter().take(n).map(|field| {
            let (key, kind) = FIELDS[field];
            (key.to_owned(), scene.fill(&format!("{{{kind}}}")))
        });
        Self(pairs.collect())
    }

    /// The record with the keys at `places` alone, in that order.
    pub(super) fn only(&self, places: &[usize]) -> Self {
        Self(places.iter().map(|&place| self.0[place].clone()).collect())
    }

    /// The record written down.
    pub(super) fn write(&self, form: Form) -> String {
        match form {
            Form::Colon => self.lines("\n", |key, value| format!("{}: {value}", capitalised(key))),
            Form::Equals => self.lines("; ", |key, value| format!("{key}={value}")),
            Form::Json => self.json(),
            Form::SpacedJson => {
                format!(
                    "{{{}}}",
                    self.lines(", ", |key, value| format!("{}: {}", quoted(key), quoted(value)))
                )
            }
            Form::Bar => self.lines("\n", |key, value| format!("{key} | {value}")),
            Form::Upper => self.lines("\n", |key, value| format!("{} - {value}", key.to_uppercase())),
            Form::Tags => self.lines("", |key, value| format!("<{key}>{value}</{key}>")),
            Form::Brackets => self.lines(" ", |key, value| format!("[{key}] {value}")),
            Form::List => self.lines("\n", |key, value| format!("- {key}: {value}")),
        }
    }

    fn lines(&self, between: &str, one: impl Fn(&str, &str) -> String) -> String {
        self.0.iter().map(|(key, value)| one(key, value)).collect::<Vec<_>>().join(between)
    }

    fn json(&self) -> String {
        let map: Map<String, Value> =
            self.0.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect();
        Value::Object(map).to_string()
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_the_same_in_every_form() {
        let record = Record(vec![("item".into(), "red lamp".into()), ("count".into(), "3".into())]);
        let forms: Vec<_> = Form::ALL.iter().map(|form| record.write(*form)).collect();
        assert_eq!(forms[0], "Item: red lamp\nCount: 3");
        assert_eq!(forms[2], r#"{"item":"red lamp","count":"3"}"#);
        assert_eq!(forms[3], r#"{"item": "red lamp", "count": "3"}"#);
        assert_eq!(forms[6], "<item>red lamp</item><count>3</count>");
    }
}
