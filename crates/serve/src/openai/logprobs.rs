//! Log-probabilities in OpenAI's two layouts.

use serde_json::{Map, Value, json};
use std::collections::HashMap;
use taper_infer::WrittenToken;
use taper_text::Tokenizer;

/// The texts of single tokens, each looked up once.
pub(super) struct TokenTexts<'a> {
    tokenizer: &'a Tokenizer,
    known: HashMap<u32, String>,
}

impl<'a> TokenTexts<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, known: HashMap::new() }
    }

    pub(super) fn text(&mut self, id: u32) -> &str {
        let tokenizer = self.tokenizer;
        self.known.entry(id).or_insert_with(|| {
            let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
            let alone = decode(&[id]);
            // Sentencepiece leaves out a text's first space, which is the token's own: behind itself it shows.
            let twice = decode(&[id, id]);
            match twice.strip_prefix(&alone) {
                Some(second) if !second.contains('\u{fffd}') && !second.is_empty() => second.to_owned(),
                _ => alone,
            }
        })
    }

    fn entry(&mut self, id: u32, logprob: f32) -> Map<String, Value> {
        let text = self.text(id).to_owned();
        // Part of a character has no text of its own, and its bytes are not known here.
        let bytes = (!text.contains('\u{fffd}')).then(|| text.as_bytes().to_vec());
        let mut entry = Map::new();
        entry.insert("token".into(), text.into());
        entry.insert("logprob".into(), number(logprob));
        entry.insert("bytes".into(), bytes.into());
        entry
    }

    /// Chat's layout: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
    pub(super) fn of_chat(&mut self, tokens: &[WrittenToken]) -> Value {
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
    pub(super) fn of_completion(&mut self, tokens: &[WrittenToken], offset: &mut usize) -> Value {
        let (mut texts, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for token in tokens {
            let text = self.text(token.id).to_owned();
            offsets.push(*offset);
            *offset += text.chars().count();
            logprobs.push(token.logprob.map_or(Value::Null, number));
            tops.push(match token.logprob {
                None => Value::Null,
                Some(own) => {
                    let mut top = Map::new();
                    for (id, logprob) in token.top.iter().chain(&[(token.id, own)]) {
                        // Two ids can have one text; the likelier comes first.
                        top.entry(self.text(*id).to_owned()).or_insert_with(|| number(*logprob));
                    }
                    top.into()
                }
            });
            texts.push(text);
        }
        json!({ "tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets })
    }
}

/// JSON has no infinity: what cannot be is -9999, as in OpenAI's and vLLM's answers.
fn number(logprob: f32) -> Value {
    json!(if logprob.is_finite() { f64::from(logprob) } else { -9999.0 })
}
