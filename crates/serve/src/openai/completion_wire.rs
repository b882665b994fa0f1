//! Completions' answer and chunks.

use super::chat_wire::stop_reason;
use super::logprobs::TokenTexts;
use super::{Head, sse, sse_done, sse_keep_alive, usage_json};
use crate::error::{ApiError, json_response};
use crate::run::{Run, Usage, finish_reason};
use crate::wire::Wire;
use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use taper_infer::{Event, WrittenToken};
use taper_text::Tokenizer;

const OBJECT: &str = "text_completion";

/// A prompt and its ids.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PromptText {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
}

/// What is told of each text.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// The prompt stands before the text.
    pub(super) echo: bool,
    pub(super) logprobs: bool,
    /// Nothing was to be written.
    pub(super) prompt_only: bool,
    pub(super) include_usage: bool,
    /// Ids that the client stops at itself.
    pub(super) stop_ids: Vec<u32>,
}

/// The texts of a request. The choices of a prompt stand side by side.
pub(super) struct CompletionWire {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    n: usize,
    told: Told,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Clone, Default)]
struct Choice {
    /// Not yet told.
    text: String,
    tokens: Vec<WrittenToken>,
    /// Where the next token stands in the choice's text, in characters.
    offset: usize,
    end: Option<(&'static str, Value)>,
}

impl CompletionWire {
    pub(super) fn new(
        head: Head,
        tokenizer: Arc<Tokenizer>,
        prompts: &[PromptText],
        n: usize,
        told: Told,
    ) -> Self {
        let mut choices = vec![Choice::default(); prompts.len() * n];
        if told.echo {
            for (of_prompt, prompt) in choices.chunks_mut(n).zip(prompts) {
                of_prompt.iter_mut().for_each(|choice| choice.text.clone_from(&prompt.text));
            }
        }
        Self { head, tokenizer, n, told, choices, usage: Usage::default() }
    }

    /// Take an event in.
    fn take_in(&mut self, index: usize, event: Event) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        match event {
            Event::Prompt(tokens) if self.told.echo && self.told.logprobs => choice.tokens.extend(tokens),
            Event::Piece(piece) if !self.told.prompt_only => {
                choice.text.push_str(&piece.text);
                if self.told.logprobs {
                    choice.tokens.extend(piece.tokens);
                }
            }
            Event::Prompt(_) | Event::Piece(_) | Event::Failed(_) => {}
            Event::Finished(finished) => {
                let completion = &finished.completion;
                choice.end = Some(match self.told.prompt_only {
                    true => ("length", Value::Null),
                    false => (finish_reason(&finished), stop_reason(&finished, &self.told.stop_ids)),
                });
                if !self.told.prompt_only {
                    self.usage.completion += completion.completion_tokens();
                }
                // A prompt is read once, however many texts continue it.
                if index.is_multiple_of(self.n) {
                    self.usage.prompt += completion.prompt_tokens;
                    self.usage.cached += finished.cached_tokens.min(completion.prompt_tokens);
                }
            }
        }
    }

    /// What has come since the last time, as a choice.
    fn choice(&mut self, index: usize) -> Value {
        let choice = &mut self.choices[index];
        let (text, tokens) = (std::mem::take(&mut choice.text), std::mem::take(&mut choice.tokens));
        let logprobs = match self.told.logprobs {
            true => TokenTexts::new(&self.tokenizer).of_completion(&tokens, &mut choice.offset),
            false => Value::Null,
        };
        let end = choice.end.clone();
        let (reason, stop) = end.map_or((Value::Null, Value::Null), |(reason, stop)| (reason.into(), stop));
        json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": reason, "stop_reason": stop })
    }

    fn chunk(&self, choices: &[Value], usage: Value) -> Bytes {
        let mut chunk = self.head.object(OBJECT, choices);
        if self.told.include_usage {
            chunk["usage"] = usage;
        }
        sse(&chunk)
    }
}

/// Wait for all texts and tell them at once.
pub(super) async fn answer(mut run: Run, mut wire: CompletionWire) -> Result<Response<Body>, ApiError> {
    while let Some((index, event)) = run.next().await? {
        wire.take_in(index, event);
    }
    let body = whole(&mut wire);
    Ok(json_response(StatusCode::OK, &body))
}

fn whole(wire: &mut CompletionWire) -> Value {
    let choices: Vec<Value> = (0..wire.choices.len()).map(|index| wire.choice(index)).collect();
    let mut body = wire.head.object(OBJECT, &choices);
    body["usage"] = usage_json(wire.usage);
    body
}

impl Wire for CompletionWire {
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }

    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }

    fn event(&mut self, index: usize, event: Event) -> Vec<Bytes> {
        // The prompt's tokens are told with the first piece of text.
        let is_prompt = matches!(event, Event::Prompt(_));
        self.take_in(index, event);
        let Some(choice) = self.choices.get(index).filter(|_| !is_prompt) else { return Vec::new() };
        if choice.text.is_empty() && choice.end.is_none() {
            return Vec::new();
        }
        let choice = self.choice(index);
        vec![self.chunk(&[choice], Value::Null)]
    }

    fn close(&mut self) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        if self.told.include_usage {
            chunks.push(self.chunk(&[], usage_json(self.usage)));
        }
        chunks.push(sse_done());
        chunks
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![sse(&error.to_json()), sse_done()]
    }

    fn keep_alive(&self) -> Option<Bytes> {
        Some(sse_keep_alive())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_infer::{Completion, FinishReason, Finished, Piece, Times};
    use taper_testkit::golden;
    use taper_text::TokenizerFiles;

    fn tokenizer() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::load(&TokenizerFiles::in_folder(&golden("chat/tokenizer_chatml"))).unwrap())
    }

    fn token(id: u32, logprob: Option<f32>, top: &[(u32, f32)]) -> WrittenToken {
        WrittenToken { id, logprob, top: top.to_vec() }
    }

    fn finished(prompt: usize, ids: &[u32]) -> Event {
        let completion = Completion {
            text: String::new(),
            token_ids: ids.to_vec(),
            stop_token: None,
            finish_reason: FinishReason::Length,
            prompt_tokens: prompt,
        };
        Event::Finished(Finished { completion, stop: None, cached_tokens: 1, times: Times::default() })
    }

    fn wire(text: &str, told: Told) -> CompletionWire {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(text, false).unwrap();
        let head = Head { id: "cmpl-x".into(), created: 7, model: "m".into() };
        CompletionWire::new(head, tokenizer, &[PromptText { text: text.into(), ids }], 1, told)
    }

    /// What lm-evaluation-harness reads: the log-probabilities of the prompt's tokens, the first of which has none, and beside each
    /// the likeliest, so that greedy is `token_logprob == max(top)`.
    #[test]
    fn echoed_prompts_have_their_log_probabilities_and_offsets() {
        let told = Told { echo: true, logprobs: true, prompt_only: true, ..Told::default() };
        let mut wire = wire("red blue", told);
        let ids = tokenizer().encode("red blue", false).unwrap();
        assert!(ids.len() >= 2);
        let tokens: Vec<WrittenToken> = ids
            .iter()
            .enumerate()
            .map(|(i, id)| match i {
                0 => token(*id, None, &[]),
                _ => token(*id, Some(-0.5 * i as f32), &[(*id, -0.5 * i as f32)]),
            })
            .collect();
        wire.take_in(0, Event::Prompt(tokens));
        wire.take_in(
            0,
            Event::Piece(Piece { text: "never".into(), tokens: vec![token(5, Some(-1.0), &[])] }),
        );
        wire.take_in(0, finished(ids.len(), &[5]));
        let body = whole(&mut wire);
        let choice = &body["choices"][0];
        assert_eq!(choice["text"], "red blue");
        assert_eq!(choice["finish_reason"], "length");
        let logprobs = &choice["logprobs"];
        let texts: Vec<&str> =
            logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!(texts.concat(), "red blue");
        assert_eq!(logprobs["token_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        assert_eq!(logprobs["token_logprobs"][1], -0.5);
        assert_eq!(logprobs["top_logprobs"][1], json!({ texts[1]: -0.5 }));
        assert_eq!(logprobs["text_offset"][1], texts[0].chars().count());
        assert_eq!(body["usage"]["completion_tokens"], 0);
        assert_eq!(body["usage"]["prompt_tokens"], ids.len());
    }

    #[test]
    fn a_stream_tells_the_echo_first_and_nothing_without_text() {
        let mut wire = wire("red", Told { echo: true, include_usage: true, ..Told::default() });
        assert!(wire.event(0, Event::Prompt(Vec::new())).is_empty());
        let first = wire.event(0, Event::Piece(Piece { text: " x".into(), tokens: Vec::new() }));
        assert_eq!(
            String::from_utf8(first.concat()).unwrap(),
            "data: {\"id\":\"cmpl-x\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\",\"choices\":[\
             {\"text\":\"red x\",\"index\":0,\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}],\
             \"usage\":null}\n\n"
        );
        assert!(wire.event(0, Event::Piece(Piece { text: String::new(), tokens: Vec::new() })).is_empty());
        let last = String::from_utf8(wire.event(0, finished(1, &[5, 6])).concat()).unwrap();
        assert!(last.contains("\"text\":\"\"") && last.contains("\"finish_reason\":\"length\""), "{last}");
        let closed = String::from_utf8(wire.close().concat()).unwrap();
        assert!(
            closed.contains("\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2"),
            "{closed}"
        );
        assert!(closed.ends_with("data: [DONE]\n\n"));
    }

    #[test]
    fn choices_of_several_prompts_stand_side_by_side_and_each_prompt_counts_once() {
        let head = Head { id: "cmpl-x".into(), created: 7, model: "m".into() };
        let prompts = ["red", "blue"].map(|text| PromptText { text: text.into(), ids: vec![5, 6] });
        let mut wire =
            CompletionWire::new(head, tokenizer(), &prompts, 2, Told { echo: true, ..Told::default() });
        for index in 0..4 {
            wire.take_in(index, finished(2, &[7]));
        }
        let body = whole(&mut wire);
        let texts: Vec<&str> =
            body["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(texts, ["red", "red", "blue", "blue"]);
        assert_eq!(body["usage"]["prompt_tokens"], 4);
        assert_eq!(body["usage"]["completion_tokens"], 4);
        assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
    }
}
