//! `tests/golden/chat`: what transformers' `apply_chat_template` and tokenizers give.

use crate::{golden_chat, golden_template, golden_tokenizer};
use serde_json::Value;
use std::collections::BTreeMap;
use taper_text::{
    ChatTemplate, Message, RenderOptions, Supervise, Tokenizer, TokenizerFiles, encode_prompt_chat,
    render_chat,
};

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs_err::read(golden_chat().join(name)).unwrap()).unwrap()
}

struct Case {
    name: String,
    value: Value,
    messages: Vec<Message>,
    options: RenderOptions,
}

fn cases(golden: &Value) -> Vec<Case> {
    let listed = golden["cases"].as_array().unwrap();
    listed
        .iter()
        .map(|case| {
            let mut options = RenderOptions::default();
            for (key, value) in case["options"].as_object().unwrap() {
                match key.as_str() {
                    "add_generation_prompt" => options.add_generation_prompt = value.as_bool().unwrap(),
                    "continue_final_message" => options.continue_final_message = value.as_bool().unwrap(),
                    "tools" => options.tools = Some(golden["tools"].clone()),
                    _ => drop(options.kwargs.insert(key.clone(), value.clone())),
                }
            }
            let chat = case["chat"].as_str().unwrap();
            let messages = serde_json::from_value(golden["messages"][chat].clone()).unwrap();
            let name = format!("{} {chat} {}", case["template"].as_str().unwrap(), case["options"]);
            Case { name, value: case.clone(), messages, options }
        })
        .collect()
}

fn templates(golden: &Value) -> BTreeMap<String, (Tokenizer, ChatTemplate)> {
    let listed = golden["templates"].as_object().unwrap();
    listed
        .iter()
        .map(|(name, template)| {
            let tokenizer = golden_tokenizer(template["tokenizer"].as_str().unwrap());
            let template = golden_template(name, &tokenizer);
            (name.clone(), (tokenizer, template))
        })
        .collect()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn every_chat_case_renders_as_in_transformers() {
    let golden = json("cases.json");
    let templates = templates(&golden);
    let (mut texts, mut errors, mut wrong) = (0, 0, Vec::new());
    for case in cases(&golden) {
        let (tokenizer, template) = &templates[case.value["template"].as_str().unwrap()];
        match (template.render(&case.messages, &case.options), case.value["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {
                texts += 1;
                let encoded = tokenizer.encode(&text, false).unwrap();
                if encoded != ids(&case.value["input_ids"]) {
                    wrong.push(format!("{}: other ids", case.name));
                }
            }
            (Err(_), None) => errors += 1,
            (given, expected) => wrong.push(format!("{}:\n  {given:?}\n  {expected:?}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!((texts, errors), (257, 41));
}

#[test]
fn inference_prompts_are_the_golden_ids() {
    let golden = json("cases.json");
    let templates = templates(&golden);
    let mut seen = 0;
    for case in cases(&golden) {
        let prompts = case.options.add_generation_prompt || case.options.continue_final_message;
        if prompts && case.value["text"].is_string() {
            let (tokenizer, template) = &templates[case.value["template"].as_str().unwrap()];
            let given = encode_prompt_chat(tokenizer, template, &case.messages, &case.options).unwrap();
            assert_eq!(given, ids(&case.value["input_ids"]), "{}", case.name);
            seen += 1;
        }
    }
    assert_eq!(seen, 164);
}

#[test]
fn generation_tags_give_the_assistant_mask_of_transformers() {
    let golden = json("cases.json");
    let templates = templates(&golden);
    let mut seen = 0;
    for case in cases(&golden).iter().filter(|case| case.value["assistant_masks"].is_array()) {
        if case.options.add_generation_prompt {
            // Training renders without it; what is before it has the same mask.
            continue;
        }
        let (tokenizer, template) = &templates[case.value["template"].as_str().unwrap()];
        let rendered =
            render_chat(tokenizer, template, &case.messages, Supervise::AssistantTurns, &case.options)
                .unwrap();
        let expected: Vec<bool> = ids(&case.value["assistant_masks"]).iter().map(|m| *m == 1).collect();
        assert_eq!(rendered.loss_mask, expected, "{}", case.name);
        assert_eq!(rendered.input_ids, ids(&case.value["input_ids"]), "{}", case.name);
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn a_template_without_tags_gets_the_mask_of_its_twin_with_tags() {
    // chatml_generation and chatml differ in the default system prompt alone.
    let golden = json("cases.json");
    let tokenizer = golden_tokenizer("tokenizer_chatml");
    let tagged = golden_template("chatml_generation", &tokenizer);
    let untagged = tagged.source().replace("{% generation %}", "").replace("{% endgeneration %}", "");
    let untagged = ChatTemplate::from_source(&untagged, &tokenizer).unwrap();
    assert!(tagged.has_generation_tags() && !untagged.has_generation_tags());
    let mut seen = 0;
    for (name, messages) in golden["messages"].as_object().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
        let options = RenderOptions::default();
        for supervise in [Supervise::AssistantTurns, Supervise::LastAssistantTurn] {
            let Ok(with) = render_chat(&tokenizer, &tagged, &messages, supervise, &options) else {
                assert_eq!(name, "parts");
                continue;
            };
            let without = render_chat(&tokenizer, &untagged, &messages, supervise, &options).unwrap();
            assert_eq!(with.input_ids, without.input_ids, "{name}");
            assert_eq!(with.loss_mask, without.loss_mask, "{name} {supervise:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 20);
}

#[test]
fn every_golden_conversation_gets_a_mask_or_an_exact_error() {
    let golden = json("cases.json");
    let templates = templates(&golden);
    let mut masks = 0;
    for case in cases(&golden).iter().filter(|case| case.value["options"] == serde_json::json!({})) {
        let (tokenizer, template) = &templates[case.value["template"].as_str().unwrap()];
        let result =
            render_chat(tokenizer, template, &case.messages, Supervise::AssistantTurns, &case.options);
        let printed = case.value["template"] != "jinja_features";
        match result {
            Ok(rendered) if printed => {
                let asked = case.messages.iter().any(Message::is_assistant);
                assert_eq!(rendered.supervised_tokens() > 0, asked, "{}", case.name);
                assert!(
                    rendered.facts(tokenizer).unsupervised_stops.is_empty(),
                    "{}: {rendered:?}",
                    case.name
                );
                masks += 1;
            }
            Ok(_) => {}
            Err(error) => {
                // Three empty messages, whose prompt depends on how many there are: nothing can be located.
                let empty = case.name.starts_with("mistral empty_content");
                let honest = case.value["error"].is_string() || !printed || empty;
                assert!(honest, "{}: {error}", case.name);
            }
        }
    }
    assert_eq!(masks, 82);
}

#[test]
fn encodings_offsets_and_decodings_are_those_of_tokenizers() {
    let mut seen = 0;
    for family in ["chatml", "gemma", "llama3", "mistral", "phi3"] {
        let tokenizer = golden_tokenizer(&format!("tokenizer_{family}"));
        for case in json(&format!("tokenizer_{family}/encodings.json")).as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let encoded = tokenizer.encode_with_offsets(text, true).unwrap();
            assert_eq!(encoded.ids, ids(&case["ids"]), "{family} {text:?}");
            let chars = |byte: usize| text[..byte].chars().count();
            let offsets: Vec<[usize; 2]> =
                encoded.offsets.iter().map(|r| [chars(r.start), chars(r.end)]).collect();
            assert_eq!(serde_json::json!(offsets), case["offsets"], "{family} {text:?}");
            assert_eq!(tokenizer.decode(&encoded.ids, false).unwrap(), case["decoded"].as_str().unwrap());
            let skipped = tokenizer.decode(&encoded.ids, true).unwrap();
            assert_eq!(skipped, case["decoded_skip_special"].as_str().unwrap());
            seen += 1;
        }
    }
    assert!(seen >= 5 * 4, "{seen}");
}

#[test]
fn the_sentencepiece_like_tokenizer_adds_one_bos_and_decodes() {
    let tokenizer = golden_tokenizer("tokenizer_spm");
    assert!(tokenizer.adds_bos() && tokenizer.adds_prefix_space());
    for case in json("tokenizer_spm/encodings.json").as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
        let bare = tokenizer.encode(text, false).unwrap();
        assert_eq!(bare, ids(&case["ids_no_special"]), "{text:?}");
        assert_eq!(tokenizer.decode(&bare, false).unwrap(), case["decoded"].as_str().unwrap());
    }
}

#[test]
fn each_folder_loads_its_own_template_from_where_it_has_it() {
    for family in ["chatml", "gemma", "llama3", "mistral", "phi3"] {
        let files = TokenizerFiles::in_folder(&golden_chat().join(format!("tokenizer_{family}")));
        let tokenizer = Tokenizer::load(&files).unwrap();
        let template = ChatTemplate::load(&files, &tokenizer).unwrap().unwrap();
        assert_eq!(files.chat_template.is_none(), family == "llama3");
        assert!(template.turn_end_id().is_some(), "{family}");
    }
    let files = TokenizerFiles::in_folder(&golden_chat().join("tokenizer_spm"));
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert!(ChatTemplate::load(&files, &tokenizer).unwrap().is_none());
}
