//! Log-probabilities in OpenAI's two layouts.

use serde_json::{Map, Value, json};
use taper_infer::WrittenToken;
use taper_text::Tokenizer;

/// The texts of single tokens.
pub(super) struct TokenTexts<'a> {
    tokenizer: &'a Tokenizer,
}

impl<'a> TokenTexts<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer }
    }

    /// The text of a token; of part of a character its bytes, written as OpenAI writes them: `bytes:\xe2\x82`.
    pub(super) fn text(&self, id: u32) -> String {
        match self.tokenizer.bytes_of(id) {
            Some(bytes) => std::str::from_utf8(bytes).map_or_else(|_| escaped(bytes), str::to_owned),
            None => self.tokenizer.decode(&[id], false).unwrap_or_default(),
        }
    }

    /// How many characters begin with a token.
    fn characters(&self, id: u32, text: &str) -> usize {
        let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
        self.tokenizer.bytes_of(id).map_or(text.chars().count(), |bytes| bytes.iter().filter(begins).count())
    }

    fn entry(&self, id: u32, logprob: f32) -> Map<String, Value> {
        let text = self.text(id);
        let bytes = self.tokenizer.bytes_of(id).unwrap_or(text.as_bytes()).to_vec();
        let mut entry = Map::new();
        entry.insert("token".into(), text.into());
        entry.insert("logprob".into(), number(logprob));
        entry.insert("bytes".into(), bytes.into());
        entry
    }

    /// Chat's layout: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
    pub(super) fn of_chat(&self, tokens: &[WrittenToken]) -> Value {
        let content: Vec<Value> = tokens
            .iter()
            .map(|token| {
                let mut entry = self.entry(token.id, token.logprob.unwrap_or(f32::NEG_INFINITY));
                let top: Vec<Value> =
                    token.top.iter().map(|(id, logprob)| self.entry(*id, *logprob).into()).collect();
                entry.insert("top_logprobs".into(), top.into());
                entry.into()
            })
            .collect();
        json!({ "content": content, "refusal": null })
    }

    /// The layout of completions; `offset` is the place of the first token in the choice's text, in characters, and goes on.
    pub(super) fn of_completion(&self, tokens: &[WrittenToken], offset: &mut usize) -> Value {
        let (mut texts, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for token in tokens {
            let text = self.text(token.id);
            offsets.push(*offset);
            *offset += self.characters(token.id, &text);
            logprobs.push(token.logprob.map_or(Value::Null, number));
            tops.push(match token.logprob {
                None => Value::Null,
                Some(own) => {
                    let mut top = Map::new();
                    for (id, logprob) in token.top.iter().chain(&[(token.id, own)]) {
                        // Two ids can have one text; the likelier comes first.
                        top.entry(self.text(*id)).or_insert_with(|| number(*logprob));
                    }
                    top.into()
                }
            });
            texts.push(text);
        }
        json!({ "tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets })
    }
}

fn escaped(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    format!("bytes:{hex}")
}

/// JSON has no infinity: what cannot be is -9999, as in OpenAI's and vLLM's answers.
fn number(logprob: f32) -> Value {
    json!(if logprob.is_finite() { f64::from(logprob) } else { -9999.0 })
}
