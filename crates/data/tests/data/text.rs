//! The checkpoint's own tokenizer and template, over the chat fixtures that ship with the tests.

use crate::fake::place;
use fs_err as fs;
use std::path::PathBuf;
use taper_data::{DataSection, Encode, Example, ExampleKind, Supervision, TextEncoder, explain, prepare};
use taper_diagnostics::{Diagnose, Severity};
use taper_text::{ChatTemplate, Message, Tokenizer, TokenizerFiles};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/chat"))
}

fn load(tokenizer: &str, template: &str) -> (Tokenizer, ChatTemplate) {
    let tokenizer = Tokenizer::load(&TokenizerFiles::in_folder(&folder().join(tokenizer))).unwrap();
    let path = folder().join("templates").join(template);
    let template = ChatTemplate::from_file(&path, &tokenizer).unwrap();
    (tokenizer, template)
}

fn chat(last_turn_only: bool) -> Example {
    let turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")];
    let messages = turns.map(|(role, text)| Message::new(role, text)).to_vec();
    Example::new(place(1), ExampleKind::Chat { messages, tools: Vec::new(), last_turn_only })
}

/// The text of the learned tokens.
fn learned(encoder: &TextEncoder<'_>, example: &Example) -> String {
    let explanation = explain(std::slice::from_ref(example), 0, encoder, 100).unwrap();
    let tokens = explanation.tokens.iter().filter(|token| token.supervised);
    tokens.map(|token| token.token.as_str()).collect()
}

#[test]
fn what_is_learned_follows_the_recipe_and_the_row() {
    let (tokenizer, template) = load("tokenizer_chatml", "chatml.jinja");
    let encoder = |supervise| TextEncoder::new(&tokenizer, Some(&template), supervise);
    assert_eq!(learned(&encoder(Supervision::Assistant), &chat(false)), "two<|im_end|>four<|im_end|>");
    assert_eq!(learned(&encoder(Supervision::Assistant), &chat(true)), "four<|im_end|>");
    assert_eq!(learned(&encoder(Supervision::LastAssistant), &chat(false)), "four<|im_end|>");
    assert!(learned(&encoder(Supervision::All), &chat(false)).contains("user\none<|im_end|>"));
}

#[test]
fn training_ids_begin_with_the_ids_that_generation_is_given() {
    let (tokenizer, template) = load("tokenizer_chatml", "chatml.jinja");
    let encoder = TextEncoder::new(&tokenizer, Some(&template), Supervision::LastAssistant);
    let completion = ExampleKind::Completion { prompt: "one ".into(), completion: "two".into() };
    for example in [chat(false), Example::new(place(1), completion)] {
        let prompt = encoder.encode_prompt(&example).unwrap().unwrap();
        let encoded = encoder.encode(&example).unwrap();
        assert!(encoded.input_ids.starts_with(&prompt));
        assert_eq!(encoded.loss_mask.iter().position(|&learned| learned), Some(prompt.len()));
        assert_eq!((encoded.facts.answers, encoded.facts.answers_without_stop), (1, 0));
    }
    let text = Example::new(place(1), ExampleKind::Text("one".into()));
    assert_eq!(encoder.encode_prompt(&text).unwrap(), None);
}

#[test]
fn a_template_that_refuses_a_conversation_is_told_with_its_row() {
    let (tokenizer, _) = load("tokenizer_chatml", "chatml.jinja");
    let template = ChatTemplate::from_source("{{ raise_exception('not today') }}", &tokenizer).unwrap();
    let encoder = TextEncoder::new(&tokenizer, Some(&template), Supervision::Assistant);
    let error = encoder.encode(&chat(false)).unwrap_err();
    assert!(error.to_string().contains("not today"), "{error}");
    assert_eq!(error.location().unwrap().line, Some(1));
    assert!(error.hint().is_some());
}

/// Files of two rows, prepared with a template given as source.
fn prepared(source: &str, rows: &str) -> Vec<(Severity, &'static str)> {
    let (tokenizer, _) = load("tokenizer_chatml", "chatml.jinja");
    let template = ChatTemplate::from_source(source, &tokenizer).unwrap();
    let encoder = TextEncoder::new(&tokenizer, Some(&template), Supervision::Assistant);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train.jsonl"), rows).unwrap();
    let section = DataSection { train: ["train.jsonl"].into_iter().collect(), ..DataSection::default() };
    let data = prepare(&section, folder.path(), 1, &encoder);
    data.problems.iter().map(|problem| (problem.severity, problem.code)).collect()
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const ROWS: &str =
    "{\"prompt\": \"one\", \"completion\": \"two\"}\n{\"prompt\": \"three\", \"completion\": \"four\"}\n";

#[test]
fn real_templates_get_the_check_that_names_their_fault() {
    assert_eq!(prepared(CHATML, ROWS), []);
    let no_stop = CHATML.replace("<|im_end|>", "");
    assert_eq!(prepared(&no_stop, ROWS), [(Severity::Error, "stop-token-not-supervised")]);
    let special = ROWS.replace("three", "<|im_start|>");
    assert_eq!(prepared(CHATML, &special), [(Severity::Warning, "special-token-in-content")]);
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_named_when_they_are_learned() {
    // The marker stands only before the last message: an earlier answer was generated without it.
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' and loop.index0 >= messages|length - 2 %}now: {% endif %}\
                  {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let rows = "{\"instruction\": \"i\", \"output\": \"o\", \"history\": [[\"a\", \"b\"]]}\n";
    assert_eq!(prepared(source, rows), [(Severity::Warning, "template-not-prefix-preserving")]);
    assert_eq!(prepared(source, ROWS), []);
}
