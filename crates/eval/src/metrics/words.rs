//! What the reference scripts, all written in Python, take for white space, for a word and for punctuation.

use regex::Regex;
use std::sync::LazyLock;

/// Whether Python's `str.split` parts words at it: Unicode white space and the four ASCII separators.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The words of `str.split()`.
pub(crate) fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// The words of `str.split()` with one space between them.
pub(crate) fn one_space(text: &str) -> String {
    split_words(text).collect::<Vec<_>>().join(" ")
}

/// Runs of what Python's `\w` matches. Rust's own `\w` takes combining marks too, Python's does not.
pub(crate) fn word_runs() -> &'static Regex {
    static RUNS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("the pattern is constant"));
    &RUNS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_python() {
        // [*"a\x1cb\u00a0c\u200bd\ne".split()]
        let words: Vec<&str> = split_words("a\u{1c}b\u{a0}c\u{200b}d\ne").collect();
        assert_eq!(words, ["a", "b", "c\u{200b}d", "e"]);
        assert_eq!(one_space(" \t a  b\r\n"), "a b");
    }
}
