//! How likely a server holds a text to be after another.

use super::reply::first_choice;
use super::{Endpoint, Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;

const PATH: &str = "completions";

/// How likely a text is after its context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogLikelihood {
    /// The sum of the natural logarithms of the probabilities of its tokens.
    pub sum: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Its first token begins in the context, as where that ends with a space: what of it belongs to the context is counted in.
    pub shares_a_token: bool,
}

impl Endpoint {
    /// The log-probability of `continuation` after `context`: the text of both is sent to `/completions` with `echo`, `logprobs` 1 and
    /// `max_tokens` 0, and the last tokens are summed that spell the continuation. vLLM and `taper serve` answer this. No template
    /// is put around the text; what the tokenizer puts before a text it does put.
    ///
    /// # Errors
    /// When the server does not tell log-probabilities of a prompt, or the continuation is empty, or there is no answer.
    pub fn log_likelihood(&self, context: &str, continuation: &str) -> Result<LogLikelihood> {
        let missing = |reason: String| Error::NoLogProbabilities { endpoint: self.name().to_owned(), reason };
        if continuation.is_empty() {
            return Err(self.unreadable("nothing was asked: the continuation is empty"));
        }
        let prompt = format!("{context}{continuation}");
        let mut body = json!({
            "model": self.section().model, "prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 0,
            "temperature": 0, "stream": false,
        });
        for (key, value) in &self.section().extra {
            body[key] = value.clone();
        }
        let answered = self.post(PATH, &body).map_err(|error| match error {
            Error::Status { status: status @ (400 | 404 | 405 | 422 | 501), message, .. } => {
                missing(format!("`/{PATH}` with `echo` answered with status {status}: {message}"))
            }
            other => other,
        })?;
        let choice = first_choice(&answered.body).map_err(|what| self.unreadable(what))?;
        let told = Told::read(choice).map_err(missing)?;
        told.of_end(&prompt, continuation).map_err(|what| self.unreadable(what))
    }
}

/// Tokens of the prompt, in order, with what stands beside them.
struct Told<'a> {
    text: &'a str,
    tokens: Vec<Cow<'a, [u8]>>,
    /// Characters of the last one.
    last_chars: u64,
    log_probabilities: Vec<Option<f64>>,
    offsets: Option<Vec<u64>>,
}

impl<'a> Told<'a> {
    fn read(choice: &'a Value) -> Result<Self, String> {
        let told = &choice["logprobs"];
        let list = |key: &str| told[key].as_array();
        let (Some(tokens), Some(numbers)) = (list("tokens"), list("token_logprobs")) else {
            return Err("the answer has no `logprobs` with `tokens` and `token_logprobs`".into());
        };
        let tokens: Option<Vec<&str>> = tokens.iter().map(Value::as_str).collect();
        let tokens = tokens.ok_or("a token in its `logprobs` is no text")?;
        if tokens.len() != numbers.len() {
            return Err(format!("there are {} tokens and {} log-probabilities", tokens.len(), numbers.len()));
        }
        let offsets: Option<Vec<u64>> =
            list("text_offset").and_then(|offsets| offsets.iter().map(Value::as_u64).collect());
        Ok(Self {
            text: choice["text"].as_str().unwrap_or_default(),
            log_probabilities: numbers.iter().map(Value::as_f64).collect(),
            offsets: offsets.filter(|offsets| offsets.len() == tokens.len()),
            last_chars: tokens.last().map_or(0, |token| token.chars().count() as u64),
            tokens: tokens.into_iter().map(bytes_of).collect(),
        })
    }

    /// The last tokens of the prompt, as many as spell its end. Some servers put a token before the prompt or one behind it, or count
    /// the text of that token into the offsets: so it is spelled from the end, and offsets are asked only where characters are
    /// split between tokens.
    fn of_end(&self, prompt: &str, continuation: &str) -> Result<LogLikelihood, String> {
        let written = self.text.strip_prefix(prompt).unwrap_or_default();
        let end =
            self.spelled(self.tokens.len(), written.as_bytes()).map_or(self.tokens.len(), |(end, _)| end);
        let found =
            self.spelled(end, continuation.as_bytes()).or_else(|| self.by_offsets(prompt, continuation));
        let (first, shares_a_token) =
            found.ok_or("its tokens do not spell the text that was asked, which may not have been echoed")?;
        let numbers = &self.log_probabilities[first..end];
        let sum = numbers.iter().copied().sum::<Option<f64>>().filter(|sum| sum.is_finite());
        let sum = sum.ok_or("a token has no log-probability, as the first of a text has none")?;
        Ok(LogLikelihood { sum, tokens: numbers.len(), shares_a_token })
    }

    /// Where the tokens before `end` begin to spell `text`, and whether the first of them begins before it. Tokens without a text
    /// begin a character that the next one ends; the very first one stands for the beginning.
    fn spelled(&self, end: usize, text: &[u8]) -> Option<(usize, bool)> {
        let (mut first, mut left) = (end, text);
        while !left.is_empty() {
            first = first.checked_sub(1)?;
            match left.strip_suffix(&*self.tokens[first]) {
                Some(rest) => left = rest,
                None if self.tokens[first].ends_with(left) => return Some((first, true)),
                None => return None,
            }
        }
        while first > 1 && first < end && self.tokens[first - 1].is_empty() {
            first -= 1;
        }
        Some((first, false))
    }

    /// Where the continuation begins by the offsets (in characters), where these begin with the prompt.
    fn by_offsets(&self, prompt: &str, continuation: &str) -> Option<(usize, bool)> {
        let offsets = self.offsets.as_deref()?;
        let whole = prompt.chars().count() as u64;
        let start = whole - continuation.chars().count() as u64;
        let is_plain = self.text.chars().count() as u64 == whole
            && offsets.first() == Some(&0)
            && offsets.is_sorted()
            && offsets.last().is_some_and(|last| last.checked_add(self.last_chars) == Some(whole));
        // Of tokens that share an offset all but the last have no text of their own yet: they begin the same character.
        let first = offsets.iter().position(|offset| *offset >= start)?;
        match is_plain {
            true if offsets[first] == start => Some((first, false)),
            true if first > 0 => Some((first - 1, true)),
            _ => None,
        }
    }
}

/// The bytes of a token. Of a part of a character OpenAI and `taper serve` write them as `bytes:\xe2\x82`; others put a replacement
/// character, which spells nothing.
fn bytes_of(token: &str) -> Cow<'_, [u8]> {
    let escaped = token.strip_prefix("bytes:").and_then(|mut rest| {
        let mut bytes = Vec::new();
        while let Some(byte) = rest.bytes().next() {
            let code = rest.strip_prefix("\\x").and_then(|code| code.get(..2));
            bytes.push(code.map_or(Some(byte), |code| u8::from_str_radix(code, 16).ok())?);
            rest = rest.get(if code.is_some() { 4 } else { 1 }..)?;
        }
        std::str::from_utf8(&bytes).is_err().then_some(bytes)
    });
    escaped.map_or(Cow::Borrowed(token.as_bytes()), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(choice: &Value, prompt: &str, continuation: &str) -> Result<LogLikelihood, String> {
        Told::read(choice)?.of_end(prompt, continuation)
    }

    fn choice(text: &str, tokens: &[&str], numbers: &Value) -> Value {
        json!({"text": text, "logprobs": {"tokens": tokens, "token_logprobs": numbers}})
    }

    #[test]
    fn the_tokens_of_the_continuation_are_summed() {
        let two = choice("a b c", &["a", " b", " c"], &json!([null, -0.5, -0.25]));
        let both = LogLikelihood { sum: -0.75, tokens: 2, shares_a_token: false };
        assert_eq!(of(&two, "a b c", " b c"), Ok(both));
        let shared = LogLikelihood { sum: -0.25, tokens: 1, shares_a_token: true };
        assert_eq!(of(&two, "a b c", "c"), Ok(shared));
        // The first token of a text has no probability.
        assert!(of(&two, "a b c", "a b c").unwrap_err().contains("log-probability"));
    }

    #[test]
    fn what_a_server_puts_before_and_behind_is_not_counted() {
        let with_bos = choice("a b", &["<s>", "a", " b"], &json!([null, -3.0, -0.5]));
        let whole = LogLikelihood { sum: -3.5, tokens: 2, shares_a_token: false };
        assert_eq!(of(&with_bos, "a b", "a b"), Ok(whole));
        let written = choice("a b more", &["a", " b", " mo", "re"], &json!([null, -0.5, -9.0, -9.0]));
        let only = LogLikelihood { sum: -0.5, tokens: 1, shares_a_token: false };
        assert_eq!(of(&written, "a b", " b"), Ok(only));
    }

    #[test]
    fn characters_that_are_split_are_found_by_their_offsets() {
        let mut split =
            choice("a \u{1f600}", &["a", " ", "\u{fffd}", "\u{fffd}"], &json!([null, -1.0, -2.0, -4.0]));
        split["logprobs"]["text_offset"] = json!([0, 1, 2, 2]);
        let smile = LogLikelihood { sum: -6.0, tokens: 2, shares_a_token: false };
        assert_eq!(of(&split, "a \u{1f600}", "\u{1f600}"), Ok(smile));
        let in_vllm = choice("a \u{1f600}", &["", " ", "", "\u{1f600}"], &json!([null, -1.0, -2.0, -4.0]));
        assert_eq!(of(&in_vllm, "a \u{1f600}", "\u{1f600}"), Ok(smile));
        split["logprobs"]["text_offset"] = json!([3, 1, 2, 2]);
        assert!(of(&split, "a \u{1f600}", "\u{1f600}").is_err());
    }

    /// As `taper serve` tells them.
    #[test]
    fn characters_that_are_split_are_spelled_by_their_bytes() {
        let tokens = ["a", " ", r"bytes:\xc3", r"bytes:\xa9", r"bytes: \xf0\x9f", r"bytes:\x98\x80"];
        let split = choice("a é \u{1f600}", &tokens, &json!([null, -1.0, -2.0, -4.0, -8.0, -16.0]));
        let both = LogLikelihood { sum: -30.0, tokens: 4, shares_a_token: false };
        assert_eq!(of(&split, "a é \u{1f600}", "é \u{1f600}"), Ok(both));
        let shared = LogLikelihood { sum: -24.0, tokens: 2, shares_a_token: true };
        assert_eq!(of(&split, "a é \u{1f600}", "\u{1f600}"), Ok(shared));
        for plain in ["bytes", "bytes:", "bytes:x", r"bytes:\xzz", r"bytes:\x41", "bytes:\\xé", "bytes:\\x"]
        {
            assert_eq!(&*bytes_of(plain), plain.as_bytes());
        }
    }

    #[test]
    fn any_json_is_an_answer_or_an_error() {
        for choice in [
            json!(null),
            json!({"text": "ab"}),
            json!({"text": "ab", "logprobs": null}),
            json!({"text": "ab", "logprobs": {"tokens": [1], "token_logprobs": [null]}}),
            json!({"text": "ab", "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0]}}),
            json!({"text": "ab", "logprobs": {"tokens": [], "token_logprobs": []}}),
            json!({"text": "ab", "logprobs": {"tokens": ["", ""], "token_logprobs": [0, 0], "text_offset": [9, 9]}}),
            json!({"text": "ab", "logprobs": {"tokens": ["x", "b"], "token_logprobs": [null, "y"]}}),
            // Written, but not echoed.
            json!({"text": "zz", "logprobs": {"tokens": ["z", "z"], "token_logprobs": [-1, -1]}}),
        ] {
            assert!(of(&choice, "ab", "b").is_err(), "{choice}");
        }
    }
}
