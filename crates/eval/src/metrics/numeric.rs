//! Numbers in answers, equal within a tolerance.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which number of a text is its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NumberPlace {
    /// The last one: where an answer comes after its reasoning.
    #[default]
    Last,
    /// The first one.
    First,
    /// The only one; a text with several has no answer.
    Only,
}

/// How far two numbers may lie apart and still be equal: `|a - b| <= max(absolute, relative |expected|)`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Tolerance {
    /// In the unit of the numbers.
    pub absolute: f64,
    /// As a share of the expected number.
    pub relative: f64,
}

impl Tolerance {
    /// Whether the numbers are equal within it. What is not finite equals nothing.
    pub fn holds(self, expected: f64, given: f64) -> bool {
        expected.is_finite()
            && given.is_finite()
            && (expected - given).abs() <= self.absolute.max(self.relative * expected.abs())
    }

    /// Whether it can be used: two finite numbers, none below 0.
    pub fn is_valid(self) -> bool {
        [self.absolute, self.relative].iter().all(|part| part.is_finite() && *part >= 0.0)
    }
}

/// How a number is found and compared.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Numeric {
    /// Which number of the answer.
    pub place: NumberPlace,
    /// How near it must be.
    pub tolerance: Tolerance,
}

impl Numeric {
    /// Whether the numbers found in both texts are equal within the tolerance. `None` where the expected text has none.
    pub fn matches(self, expected: &str, output: &str) -> Option<bool> {
        let expected = self.find(expected)?;
        Some(self.find(output).is_some_and(|given| self.tolerance.holds(expected, given)))
    }

    /// The number of a text; see [`numbers`].
    pub fn find(self, text: &str) -> Option<f64> {
        let found = numbers(text);
        match self.place {
            NumberPlace::Last => found.last().copied(),
            NumberPlace::First => found.first().copied(),
            NumberPlace::Only => found.first().copied().filter(|_| found.len() == 1),
        }
    }

    /// How it finds and compares.
    pub fn signature(self) -> String {
        let place = match self.place {
            NumberPlace::Last => "last",
            NumberPlace::First => "first",
            NumberPlace::Only => "only",
        };
        let Tolerance { absolute, relative } = self.tolerance;
        format!("numeric|place:{place}|abs:{absolute}|rel:{relative}|decimal:point|version:1")
    }
}

/// Every number in a text, in order.
///
/// A number is ASCII digits, then perhaps groups of exactly three digits after commas (`1,234,567`), a point and digits (`3.14`; `.5`
/// too) and an exponent (`1e-3`). A sign (`+`, `-` or U+2212) belongs to it unless a letter, digit, `)` or `]` stands right before the
/// sign (`3-5` is 3 and 5, `COVID-19` is 19). The comma is never a decimal mark. Units, currency and percent signs are overlooked:
/// `50 %` is 50, not 0.5. A letter right before the digits does not matter (`x2` holds 2).
pub fn numbers(text: &str) -> Vec<f64> {
    let chars: Vec<char> = text.chars().collect();
    let digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let starts = digit(at) || (chars[at] == '.' && digit(at + 1));
        if !starts {
            at += 1;
            continue;
        }
        let mut literal = String::new();
        if is_negative(&chars, at) {
            literal.push('-');
        }
        at = take_digits(&chars, at, &mut literal);
        let is_grouped =
            |at: usize| chars.get(at) == Some(&',') && (1..=3).all(|k| digit(at + k)) && !digit(at + 4);
        // Groups follow one to three digits only: `1234,567` is two numbers.
        let whole_digits = literal.trim_start_matches('-').len();
        if (1..=3).contains(&whole_digits) {
            while is_grouped(at) {
                at = take_digits(&chars, at + 1, &mut literal);
            }
        }
        if chars.get(at) == Some(&'.') && digit(at + 1) {
            literal.push('.');
            at = take_digits(&chars, at + 1, &mut literal);
        }
        if matches!(chars.get(at), Some('e' | 'E')) {
            let signed = matches!(chars.get(at + 1), Some('+' | '-'));
            let first = at + 1 + usize::from(signed);
            if digit(first) {
                literal.push('e');
                literal.extend(signed.then(|| chars[at + 1]));
                at = take_digits(&chars, first, &mut literal);
            }
        }
        found.extend(literal.parse::<f64>().ok().filter(|number| number.is_finite()));
    }
    found
}

fn is_negative(chars: &[char], first: usize) -> bool {
    let sign = first.checked_sub(1).map(|before| chars[before]);
    let before_sign = first.checked_sub(2).map(|before| chars[before]);
    matches!(sign, Some('-' | '\u{2212}'))
        && !before_sign.is_some_and(|c| c.is_alphanumeric() || c == ')' || c == ']')
}

fn take_digits(chars: &[char], mut at: usize, literal: &mut String) -> usize {
    while let Some(c) = chars.get(at).filter(|c| c.is_ascii_digit()) {
        literal.push(*c);
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_as_said() {
        for (text, expected) in [
            ("1,234.50 EUR and -3", vec![1234.5, -3.0]),
            ("3-5, COVID-19, (2)-1", vec![3.0, 5.0, 19.0, 2.0, 1.0]),
            ("\u{2212}7.5e-3.", vec![-0.0075]),
            ("1234,567 and 1,23 and 1,2345", vec![1234.0, 567.0, 1.0, 23.0, 1.0, 2345.0]),
            (".5 +2 5. v1.2.3", vec![0.5, 2.0, 5.0, 1.2, 0.3]),
            ("1e5 2e 1e999 ٣", vec![100_000.0, 2.0]),
            ("none", vec![]),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }

    #[test]
    fn a_number_matches_within_the_wider_tolerance() {
        let near = Numeric { tolerance: Tolerance { absolute: 0.01, relative: 0.05 }, ..Numeric::default() };
        assert_eq!(near.matches("200", "first 3, so 190"), Some(true));
        assert_eq!(near.matches("200", "189.9"), Some(false));
        assert_eq!(near.matches("0", "0.01"), Some(true));
        assert_eq!(near.matches("0", "nothing"), Some(false));
        assert_eq!(near.matches("none", "1"), None);
        let only = Numeric { place: NumberPlace::Only, ..Numeric::default() };
        assert_eq!(only.matches("5", "5 or 6"), Some(false));
        assert!(!Tolerance { absolute: -1.0, relative: 0.0 }.is_valid());
        assert!(!Tolerance { absolute: f64::INFINITY, relative: 0.0 }.holds(f64::NAN, 1.0));
    }
}
