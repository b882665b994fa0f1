//! The Go templates of Modelfiles write what the families' Jinja templates write.
//!
//! `tests/golden/ollama/rendered.json` holds what Go's own `text/template` makes of them.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use serde_json::Value;
use taper_export::TemplateFamily;
use taper_testkit::{golden, read_json};
use taper_text::{ChatTemplate, Message, RenderOptions, Tokenizer, TokenizerFiles};

/// A family, its Jinja template and a tokenizer with its special tokens.
fn family(name: &str) -> (TemplateFamily, &'static str, &'static str) {
    match name {
        "chatml" => (TemplateFamily::ChatMl, "chatml.jinja", "tokenizer_chatml"),
        "llama3" => (TemplateFamily::Llama3, "llama3.jinja", "tokenizer_llama3"),
        "mistral" => (TemplateFamily::Mistral, "mistral.jinja", "tokenizer_mistral"),
        "mistral_v1" => (TemplateFamily::MistralV1, "mistral.jinja", "tokenizer_mistral"),
        "gemma" => (TemplateFamily::Gemma, "gemma.jinja", "tokenizer_gemma"),
        "phi3" => (TemplateFamily::Phi3, "phi3.jinja", "tokenizer_phi3"),
        "zephyr" => (TemplateFamily::Zephyr, "zephyr_whitespace.jinja", "tokenizer_mistral"),
        other => panic!("{other}"),
    }
}

fn rendered(source: &str, tokenizer: &str, messages: &[Message]) -> String {
    let files = TokenizerFiles::in_folder(&golden("chat").join(tokenizer));
    let tokenizer = Tokenizer::load(&files).unwrap();
    let template = ChatTemplate::from_source(source, &tokenizer).unwrap();
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let text = template.render(messages, &options).unwrap();
    // BOS is the tokenizer's to put.
    let bos = tokenizer.bos_id().and_then(|id| tokenizer.token(id)).unwrap_or_default();
    let chatml = bos == "<|im_start|>";
    if chatml { text } else { text.strip_prefix(&bos).unwrap_or(&text).to_owned() }
}

/// What Llama 3.1 puts into every system message.
const DATES: &str = "Today Date: 26 Jul 2024\n\n";

#[test]
fn go_templates_write_what_the_jinja_templates_write() {
    let cases = read_json(&golden("ollama/rendered.json"));
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 7 * 3);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let (family, jinja, tokenizer) = family(name);
        assert_eq!(case["template"], family.go_template(), "{name}: run render.go again");
        let given = case["text"].as_str().unwrap();
        let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
        let mut messages: Vec<(String, String)> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (text(m, "role"), text(m, "content")))
            .collect();
        let has_system = messages[0].0 == "system";
        // Gemma's template has no system message; its Go template puts one before the first question.
        if name == "gemma" && has_system {
            let (_, system) = messages.remove(0);
            messages[0].1 = format!("{system}\n\n{}", messages[0].1);
        }
        let messages: Vec<Message> =
            messages.into_iter().map(|(role, content)| Message::new(role, content)).collect();
        let mut source = fs_err::read_to_string(golden("chat/templates").join(jinja)).unwrap();
        if name == "mistral_v1" {
            source = source.replace("[/INST]", " [/INST]");
        }
        let mut expected = rendered(&source, tokenizer, &messages);
        match name {
            // SYSTEM in the Modelfile says it.
            "chatml" if !has_system => {
                let default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n";
                expected = expected.strip_prefix(default).unwrap().to_owned();
            }
            "llama3" => {
                assert!(expected.contains(DATES), "{expected}");
                expected = expected.replace(DATES, "");
                if !has_system {
                    let empty = "<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>";
                    expected = expected.strip_prefix(empty).unwrap().to_owned();
                }
            }
            _ => {}
        }
        assert_eq!(given, expected, "{name}");
        // After an answer comes what generation stops at.
        if let Some((_, behind)) = expected.split_once("Hello!") {
            assert!(family.stops().iter().any(|stop| behind.starts_with(stop)), "{name}");
        }
    }
}
