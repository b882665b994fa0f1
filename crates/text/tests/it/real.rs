//! Tokenizers and templates of real models, where `TAPER_REAL_DATA` (or `../shared/real` beside the workspace) has them.

use crate::{chat, marked_up};
use serde_json::json;
use std::path::{Path, PathBuf};
use taper_text::{
    ChatTemplate, Content, Message, RenderOptions, Supervise, Tokenizer, TokenizerFiles, encode_prompt_chat,
    render_chat, render_completion,
};

#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
pub(crate) fn real() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/real");
    let folder = std::env::var_os("TAPER_REAL_DATA").map_or_else(default, PathBuf::from).join("tokenizers");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no real tokenizers in `{}`; set TAPER_REAL_DATA to try them", folder.display());
    None
}

fn load(folder: &Path, name: &str) -> (Tokenizer, ChatTemplate) {
    let files = TokenizerFiles::in_folder(&folder.join(name));
    let tokenizer = Tokenizer::load(&files).unwrap();
    let template = ChatTemplate::load(&files, &tokenizer).unwrap().unwrap();
    (tokenizer, template)
}

fn two_turns() -> Vec<Message> {
    chat(&[
        ("system", "Be terse."),
        ("user", "What is  2+2?\n"),
        ("assistant", "It is 4."),
        ("user", "And naïve 你好 🦀?"),
        ("assistant", "Ça va — 好的 🦀"),
    ])
}

#[test]
fn every_real_tokenizer_loads_without_its_saved_truncation() {
    let Some(folder) = real() else { return };
    let mut seen = 0;
    for entry in fs_err::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let files = TokenizerFiles::in_folder(&path);
        if files.tokenizer.is_none() {
            continue;
        }
        let tokenizer = Tokenizer::load(&files).unwrap();
        let long = "word ".repeat(5000);
        assert!(tokenizer.encode(&long, true).unwrap().len() >= 5000, "{}", path.display());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let truncated = ["smollm2-360m-instruct", "tinyllama-1.1b-chat"].contains(&name.as_str());
        let said = tokenizer.notes().iter().any(|note| note.contains("truncation to 512"));
        assert_eq!(said, truncated, "{name}: {:?}", tokenizer.notes());
        let text = "Ça va — 好的 🦀\n\tx  y";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
        let mut stream = tokenizer.detokenizer(true);
        let mut streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        streamed.push_str(&stream.finish().unwrap());
        assert_eq!(streamed, text, "{name}");
        seen += 1;
    }
    assert!(seen >= 6, "{seen} tokenizers");
}

#[test]
fn real_chats_supervise_the_answers_and_their_stop_tokens() {
    let Some(folder) = real() else { return };
    let chatml = "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nWhat is  2+2?\n<|im_end|>\n<|im_start|>assistant\n\
                  ⟦It is 4.<|im_end|>⟧\n<|im_start|>user\nAnd naïve 你好 🦀?<|im_end|>\n<|im_start|>assistant\n\
                  ⟦Ça va — 好的 🦀<|im_end|>⟧\n";
    let tinyllama = "<|system|>\nBe terse.</s>\n<|user|>\nWhat is  2+2?\n</s>\n<|assistant|>\n⟦It is 4.</s>⟧\n\
                     <|user|>\nAnd naïve 你好 🦀?</s>\n<|assistant|>\n⟦Ça va — 好的 🦀</s>⟧\n";
    // `<|end|>` takes the line break behind it into its own token.
    let phi3 = "<|system|>\nBe terse.<|end|>\n<|user|>\nWhat is  2+2?\n<|end|>\n<|assistant|>\n⟦It is 4.<|end|>\n⟧\
                <|user|>\nAnd naïve 你好 🦀?<|end|>\n<|assistant|>\n⟦Ça va — 好的 🦀<|end|>\n⟧<|endoftext|>";
    for (name, expected) in [
        ("qwen2.5-0.5b-instruct", chatml),
        ("smollm2-360m-instruct", chatml),
        ("tinyllama-1.1b-chat", tinyllama),
        ("phi-3-mini", phi3),
    ] {
        let (tokenizer, template) = load(&folder, name);
        let options = RenderOptions::default();
        let messages = two_turns();
        let rendered =
            render_chat(&tokenizer, &template, &messages, Supervise::AssistantTurns, &options).unwrap();
        assert_eq!(marked_up(&rendered), expected, "{name}");
        let facts = rendered.facts(&tokenizer);
        assert!(
            facts.unsupervised_stops.is_empty() && facts.unstable_prompts.is_empty(),
            "{name}: {facts:?}"
        );
        for turn in &rendered.turns {
            let before = &messages[..turn.message.unwrap()];
            let prompt = encode_prompt_chat(&tokenizer, &template, before, &options).unwrap();
            assert_eq!(rendered.input_ids[..turn.tokens.start], prompt, "{name}");
        }
    }
}

#[test]
fn mistrals_template_merges_and_moves_and_the_mask_follows() {
    let Some(folder) = real() else { return };
    let (tokenizer, template) = load(&folder, "mistral-7b-v0.3");
    let options = RenderOptions::default();
    let rendered =
        render_chat(&tokenizer, &template, &two_turns(), Supervise::AssistantTurns, &options).unwrap();
    let marked = marked_up(&rendered);
    assert!(marked.starts_with("<s>[INST]"), "{marked}");
    assert!(marked.contains("It is 4.</s>⟧") && marked.ends_with("Ça va — 好的 🦀</s>⟧"), "{marked}");
    assert_eq!(marked.matches('⟦').count(), 2, "{marked}");
    assert_eq!(rendered.facts(&tokenizer).leading_bos, 1);
}

#[test]
fn mistrals_own_samples_give_its_own_tokens() {
    let Some(folder) = real() else { return };
    let (tokenizer, template) = load(&folder, "mistral-7b-v0.3");
    let samples = folder.join("mistral-spm/goldens/samples");
    let read = |file: &str| fs_err::read_to_string(samples.join("no_tools").join(file)).unwrap();
    let sample: serde_json::Value = serde_json::from_str(&read("sample.json")).unwrap();
    let Some(listed) = sample.get("messages").or_else(|| sample.pointer("/request/messages")) else {
        panic!("the sample has no messages: {sample}");
    };
    let messages: Vec<Message> = serde_json::from_value(listed.clone()).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&read("tokens_v3.json")).unwrap();
    let expected: Vec<u32> =
        serde_json::from_value(expected.get("tokens").unwrap_or(&expected).clone()).unwrap();
    let text = template.render(&messages, &RenderOptions::default()).unwrap();
    assert_eq!(tokenizer.encode(&text, false).unwrap(), expected, "{text}");
}

#[test]
fn qwens_tool_calls_are_supervised() {
    let Some(folder) = real() else { return };
    let (tokenizer, template) = load(&folder, "qwen2.5-0.5b-instruct");
    let mut call = Message { role: "assistant".into(), content: Content::Absent, ..Message::default() };
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": {"city": "Köln"}}}]);
    call.extra.insert("tool_calls".into(), calls);
    let messages =
        [chat(&[("user", "Weather?")]), vec![call], chat(&[("tool", "21"), ("assistant", "Warm.")])].concat();
    let options = RenderOptions { tools: Some(json!([{"name": "f"}])), ..RenderOptions::default() };
    let rendered =
        render_chat(&tokenizer, &template, &messages, Supervise::AssistantTurns, &options).unwrap();
    let marked = marked_up(&rendered);
    let tail = "user\nWeather?<|im_end|>\n<|im_start|>assistant\n⟦<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call><|im_end|>⟧\n<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦Warm.<|im_end|>⟧\n";
    assert!(marked.contains(tail), "{marked}");
}

#[test]
fn a_sentencepiece_completion_has_no_space_that_nobody_wrote() {
    let Some(folder) = real() else { return };
    let files = TokenizerFiles::in_folder(&folder.join("tinyllama-1.1b-chat"));
    let tokenizer = Tokenizer::load(&files).unwrap();
    for (prompt, completion) in [("Answer: ", "yes"), ("Answer:", " yes"), ("Ans", "wer"), ("x\n", "y")] {
        let rendered = render_completion(&tokenizer, prompt, completion).unwrap();
        let text = tokenizer.decode(&rendered.input_ids, true).unwrap();
        assert_eq!(text, format!("{prompt}{completion}"));
    }
}
