//! Whether an answer holds what is asked for: the expected text, or what a regular expression describes.

use super::exact::{exact_match, normalized};
use crate::Normalize;
use regex::{Regex, RegexBuilder};

/// The longest expression, in bytes.
const MOST_PATTERN_BYTES: usize = 4096;
/// The largest compiled expression, in bytes; `\w{1000}` and the like are beyond it.
const MOST_COMPILED_BYTES: usize = 1 << 20;

/// Whether `expected` stands in `output`, as far as `normalize` looks. Characters are compared, not words: `cat` is in `concatenate`.
/// Nothing contains an expected text that is empty.
pub fn contains(expected: &str, output: &str, normalize: Normalize) -> bool {
    let expected = normalized(expected, normalize);
    !expected.is_empty() && normalized(output, normalize).contains(&*expected)
}

/// How [`contains`] looks.
pub fn contains_signature(normalize: Normalize) -> String {
    format!("contains|normalize:{}|version:1", normalize.name())
}

/// An expression that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// Too long to be compiled.
    #[error("the expression has {bytes} bytes, the limit is {MOST_PATTERN_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not an expression of the `regex` crate, or too large when compiled.
    #[error(transparent)]
    Invalid(#[from] regex::Error),
}

/// A regular expression in the syntax of the `regex` crate: no look-around and no back-references, so that the time of a search is
/// bounded by the product of the lengths of expression and text, whatever they are.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
}

impl Pattern {
    /// Compile it.
    ///
    /// # Errors
    /// When it is no expression, longer than 4096 bytes, or larger than 1 MiB when compiled.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > MOST_PATTERN_BYTES {
            return Err(PatternError::TooLong { bytes: pattern.len() });
        }
        let mut builder = RegexBuilder::new(pattern);
        let regex = builder.size_limit(MOST_COMPILED_BYTES).dfa_size_limit(MOST_COMPILED_BYTES).build()?;
        Ok(Self { regex })
    }

    /// Whether it has a group that takes the answer out of the text.
    pub fn extracts(&self) -> bool {
        self.regex.captures_len() > 1
    }

    /// What the first match has in its first group, or the whole match of an expression without groups. `None` without a match, or
    /// where the group took no part in it.
    pub fn extract<'a>(&self, output: &'a str) -> Option<&'a str> {
        let found = self.regex.captures(output)?;
        found.get(usize::from(self.extracts())).map(|part| part.as_str())
    }

    /// With a group: whether what it takes out equals `expected`, as far as `normalize` looks. Without: whether there is a match.
    pub fn matches(&self, expected: &str, output: &str, normalize: Normalize) -> bool {
        match self.extract(output) {
            Some(answer) if self.extracts() => exact_match(expected, answer, normalize),
            found => found.is_some() && !self.extracts(),
        }
    }

    /// How it looks.
    pub fn signature(&self, normalize: Normalize) -> String {
        format!("regex|pattern:{:?}|normalize:{}|version:1", self.regex.as_str(), normalize.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_holds_another_as_far_as_is_looked() {
        assert!(contains("Paris", "It is Paris.", Normalize::None));
        assert!(!contains("paris", "It is Paris.", Normalize::Whitespace));
        assert!(contains("new york", "in  New-York? New York!", Normalize::Lenient));
        assert!(!contains("", "anything", Normalize::None));
        assert!(!contains("...", "anything", Normalize::Lenient));
    }

    #[test]
    fn a_group_takes_the_answer_out() {
        let pattern = Pattern::new(r"(?i)answer:\s*(\w+)").unwrap();
        assert_eq!(pattern.extract("so the Answer: B. And answer: C"), Some("B"));
        assert!(pattern.matches("b", "Answer: B", Normalize::Lenient));
        assert!(!pattern.matches("b", "Answer: C, not b", Normalize::Lenient));
        assert!(!pattern.matches("b", "b", Normalize::Lenient));
        let whole = Pattern::new(r"^\d{4}-\d{2}-\d{2}$").unwrap();
        assert!(whole.matches("whatever", "2024-02-30", Normalize::None));
        assert!(!whole.matches("whatever", "on 2024-02-30", Normalize::None));
        let optional = Pattern::new(r"x(y)?").unwrap();
        assert!(!optional.matches("", "x", Normalize::None));
    }

    #[test]
    fn an_expression_is_refused_when_wrong_or_too_large_and_ends_when_hostile() {
        assert!(Pattern::new("(").unwrap_err().to_string().contains("unclosed group"));
        assert!(Pattern::new(&"a".repeat(5000)).unwrap_err().to_string().contains("4096"));
        assert!(Pattern::new(r"(\w{50}){50}").is_err());
        assert!(Pattern::new(r"(a)\1").is_err());
        // The classic of exponential back-tracking ends at once.
        let hostile = Pattern::new("^(a+)+$").unwrap();
        assert!(!hostile.matches("", &format!("{}b", "a".repeat(50_000)), Normalize::None));
    }
}
