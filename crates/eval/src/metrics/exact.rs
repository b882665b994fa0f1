//! Exact match, and what is overlooked in it.

use crate::Normalize;
use std::borrow::Cow;

/// Whether `output` equals `expected`, as far as `normalize` looks.
pub fn exact_match(expected: &str, output: &str, normalize: Normalize) -> bool {
    normalized(expected, normalize) == normalized(output, normalize)
}

/// The answer in `output`, without what a reasoning model thought before it: a first `<think>` block. Where the expected
/// answer has such a block itself, or the thoughts do not end, nothing is taken out.
pub fn without_thoughts<'a>(output: &'a str, expected: &str) -> &'a str {
    let thoughts = |text: &'a str| text.trim_start().strip_prefix("<think>")?.split_once("</think>");
    match thoughts(output) {
        Some((_, answer)) if !expected.trim_start().starts_with("<think>") => answer.trim_start(),
        _ => output,
    }
}

/// A text with what is overlooked taken out.
pub fn normalized(text: &str, normalize: Normalize) -> Cow<'_, str> {
    match normalize {
        Normalize::None => Cow::Borrowed(text),
        Normalize::Whitespace => Cow::Owned(one_space(text)),
        Normalize::Lenient => {
            let bare: String =
                text.chars().filter(|c| !c.is_ascii_punctuation()).flat_map(char::to_lowercase).collect();
            Cow::Owned(one_space(&bare))
        }
    }
}

fn one_space(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_match_as_far_as_is_looked() {
        use Normalize::{Lenient, None, Whitespace};
        for (expected, output, none, whitespace, lenient) in [
            ("a b", "a b", true, true, true),
            ("a b", " a \n b\t", false, true, true),
            ("a b", "A, b!", false, false, true),
            ("a b", "ab", false, false, false),
            ("", "  ", false, true, true),
            ("Öl", "öl", false, false, true),
        ] {
            let got = [None, Whitespace, Lenient].map(|n| exact_match(expected, output, n));
            assert_eq!(got, [none, whitespace, lenient], "{expected:?} {output:?}");
        }
    }

    #[test]
    fn what_is_thought_before_an_answer_is_not_the_answer() {
        for (expected, output, answer) in [
            ("yes", "<think>\n\n</think>\n\nyes", "yes"),
            ("yes", "\n<think>is it? </think> yes", "yes"),
            // Thoughts that never end, tags inside an answer, and thoughts that are expected stay.
            ("yes", "<think>yes", "<think>yes"),
            ("yes", "yes <think>x</think>", "yes <think>x</think>"),
            ("<think>a</think>yes", "<think>a</think>yes", "<think>a</think>yes"),
        ] {
            assert_eq!(without_thoughts(output, expected), answer, "{output:?}");
        }
    }
}
