//! Tokenizers and chat templates in a file are those of the folder.

use crate::support::{with_tokenizer, write};
use serde_json::{Value, json};
use std::path::Path;
use taper_diagnostics::Diagnose;
use taper_export::{ChatTexts, GgufOptions, GgufType, chat_texts, write_gguf};
use taper_hub::ModelFiles;
use taper_hub::gguf::{Header, read_header};
use taper_testkit::{golden, read_json, real_data_or_skip};
use taper_text::{ChatTemplate, Message, RenderOptions, Tokenizer, TokenizerFiles};

const TEXTS: [&str; 6] = [
    "The cat sat on the mat.",
    "  two spaces\n\tand a tab, 12345 and don't",
    "naïve Straße 你好 🦀",
    "",
    "ends in a space ",
    "def f(a):\n        return a[b] != 'c'\n\n\n",
];

fn texts_of(files: &ModelFiles) -> TokenizerFiles {
    TokenizerFiles {
        tokenizer: files.tokenizer.clone(),
        tokenizer_config: files.tokenizer_config.clone(),
        special_tokens_map: files.special_tokens_map.clone(),
        generation_config: files.generation_config.clone(),
        chat_template: files.chat_template.clone(),
    }
}

fn conversation() -> Vec<Message> {
    vec![Message::new("user", "Hi there"), Message::new("assistant", "Hello"), Message::new("user", "Bye?")]
}

fn tokens(folder: &Path) -> usize {
    let json = read_json(&folder.join("tokenizer.json"));
    let words = json["model"]["vocab"].as_object().unwrap().values();
    let added = json["added_tokens"].as_array().unwrap().iter().map(|token| &token["id"]);
    words.chain(added).filter_map(Value::as_u64).max().unwrap() as usize + 1
}

/// Written with some rows more than tokens, and read back. Gives the file's header.
fn round_trip(folder: &Path) -> Header {
    let here = tempfile::tempdir().unwrap();
    let rows = tokens(folder) + 5;
    let (mut model, files) = with_tokenizer(folder, rows, 8, &here.path().join("base"));
    let path = here.path().join("m.gguf");
    let written = write(model.as_mut(), &files, &path, GgufType::F32);
    let what = folder.display();
    // Mistral's alone: llama.cpp puts a space before a text that begins with one.
    let mistral = folder.ends_with("mistral-7b-v0.3");
    assert_eq!(written.notes.len(), usize::from(mistral), "{what}: {:?}", written.notes);
    let read = ModelFiles::of_gguf(&path).unwrap();
    let (own, made) =
        (Tokenizer::load(&texts_of(&files)).unwrap(), Tokenizer::load(&texts_of(&read)).unwrap());
    let specials: Vec<String> =
        own.added_tokens().take(12).map(|(_, token)| format!("a {token}b {token} c")).collect();
    for text in
        TEXTS.into_iter().map(str::to_owned).chain(specials.into_iter().filter(|t| !t.contains("<0x")))
    {
        let (ours, theirs) = (made.encode(&text, true).unwrap(), own.encode(&text, true).unwrap());
        assert_eq!(ours, theirs, "{what}: {text:?}");
        assert_eq!(
            made.decode(&ours, false).unwrap(),
            own.decode(&theirs, false).unwrap(),
            "{what}: {text:?}"
        );
    }
    assert_eq!(
        (made.bos_id().is_some(), made.eos_id()),
        (own.bos_id().is_some() || made.bos_id().is_some(), own.eos_id())
    );
    assert_eq!(made.adds_bos(), own.adds_bos(), "{what}");
    let own_template = ChatTemplate::load(&texts_of(&files), &own).unwrap();
    let made_template = ChatTemplate::load(&texts_of(&read), &made).unwrap();
    assert_eq!(own_template.is_some(), made_template.is_some(), "{what}");
    if let (Some(ours), Some(theirs)) = (made_template, own_template) {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let render = |template: &ChatTemplate| template.render(&conversation(), &options).unwrap();
        assert_eq!(render(&ours), render(&theirs), "{what}");
        assert_eq!(
            made.encode(&render(&ours), false).unwrap(),
            own.encode(&render(&ours), false).unwrap(),
            "{what}"
        );
        assert_eq!(ours.stop_ids(&made), theirs.stop_ids(&own), "{what}");
    }
    let header = read_header(&path).unwrap();
    let named = header.metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(named.len(), rows);
    assert_eq!(named.get(rows - 1), Some(format!("[PAD{}]", rows - 1).as_str()));
    header
}

#[test]
fn the_golden_tokenizers_come_back_with_their_templates() {
    for (name, model) in [
        ("tokenizer_chatml", "gpt2"),
        ("tokenizer_gemma", "gpt2"),
        ("tokenizer_llama3", "gpt2"),
        ("tokenizer_mistral", "gpt2"),
        ("tokenizer_phi3", "gpt2"),
        ("tokenizer_spm", "llama"),
    ] {
        let header = round_trip(&golden("chat").join(name));
        assert_eq!(header.metadata.text("tokenizer.ggml.model"), Ok(Some(model)), "{name}");
        let pre = if model == "gpt2" { "gpt-2" } else { "default" };
        assert_eq!(header.metadata.text("tokenizer.ggml.pre"), Ok(Some(pre)), "{name}");
        assert_eq!(
            header.metadata.flag("tokenizer.ggml.add_bos_token"),
            Ok(Some(model == "llama")),
            "{name}"
        );
    }
}

#[test]
fn tokenizers_of_real_models_come_back() {
    let Some(real) = real_data_or_skip("real tokenizers written to GGUF") else { return };
    for (name, pre) in [
        ("qwen2.5-0.5b-instruct", "qwen2"),
        ("smollm2-360m-instruct", "gpt-2"),
        ("torchtune-small", "llama-bpe"),
        ("tinyllama-1.1b-chat", "default"),
        ("mistral-7b-v0.3", "default"),
        ("phi-3-mini", "default"),
    ] {
        let header = round_trip(&real.join("tokenizers").join(name));
        assert_eq!(header.metadata.text("tokenizer.ggml.pre"), Ok(Some(pre)), "{name}");
        let says_phi = header.metadata.text("general.name").unwrap().unwrap().contains("phi-3");
        assert_eq!(says_phi, name == "phi-3-mini");
    }
}

#[test]
fn a_gguf_base_whose_name_lets_tokens_strip_keeps_that_part_of_it() {
    let name_of = |path: &Path| {
        let header = read_header(path).unwrap();
        header.metadata.text("general.name").unwrap().unwrap().to_owned()
    };
    let here = tempfile::tempdir().unwrap();
    let folder = golden("chat/tokenizer_spm");
    let (mut model, files) = with_tokenizer(&folder, tokens(&folder), 8, &here.path().join("base"));
    let named = |name: &str| GgufOptions { name: Some(name.into()), ..GgufOptions::default() };
    let (first, second) = (here.path().join("first.gguf"), here.path().join("second.gguf"));
    for (name, strips) in [("phi-3", true), ("other", false)] {
        write_gguf(model.as_mut(), &files, &first, &named("other")).unwrap();
        // Ours would be named so only with such a tokenizer: files of others have the name alone.
        let mut bytes = fs_err::read(&first).unwrap();
        let at = bytes.windows(5).position(|piece| piece == b"other").unwrap();
        bytes[at..at + 5].copy_from_slice(name.as_bytes());
        fs_err::write(&first, bytes).unwrap();
        assert_eq!(name_of(&first), name);
        let base = ModelFiles::of_gguf(&first).unwrap();
        write_gguf(model.as_mut(), &base, &second, &named("tickets")).unwrap();
        assert_eq!(name_of(&second).contains("phi-3"), strips, "{}", name_of(&second));
    }
}

fn with_steps(change: impl Fn(&mut Value)) -> Result<Header, taper_export::Error> {
    let here = tempfile::tempdir().unwrap();
    let folder = golden("chat/tokenizer_chatml");
    let (mut model, files) = with_tokenizer(&folder, tokens(&folder), 8, here.path());
    let mut json = read_json(&here.path().join("tokenizer.json"));
    change(&mut json);
    fs_err::write(here.path().join("tokenizer.json"), json.to_string()).unwrap();
    let path = here.path().join("m.gguf");
    write_gguf(model.as_mut(), &files, &path, &GgufOptions::default())?;
    Ok(read_header(&path).unwrap())
}

#[test]
fn a_way_to_split_has_its_name() {
    let digits = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    ]});
    let nfc = json!({"type": "NFC"});
    for (normalizer, pre_tokenizer, name) in [
        (None, Some(&digits), "smollm"),
        (Some(&nfc), Some(&digits), "command-r"),
        (Some(&nfc), None, "olmo"),
    ] {
        let header = with_steps(|json| {
            if let Some(step) = normalizer {
                json["normalizer"] = step.clone();
            }
            if let Some(step) = pre_tokenizer {
                json["pre_tokenizer"] = step.clone();
            }
        });
        assert_eq!(header.unwrap().metadata.text("tokenizer.ggml.pre"), Ok(Some(name)));
    }
}

#[test]
fn a_tokenizer_without_a_name_is_refused_with_what_it_does() {
    for (key, step, part) in [
        ("normalizer", json!({"type": "Lowercase"}), "normalizer {\"type\":\"Lowercase\"}"),
        ("pre_tokenizer", json!({"type": "Whitespace"}), "pre-tokenizer {\"type\":\"Whitespace\"}"),
    ] {
        let error = with_steps(|json| json[key] = step.clone()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap().contains("\"merged\""), "{error:?}");
    }
    let error = with_steps(|json| json["model"]["ignore_merges"] = true.into()).unwrap_err();
    assert!(error.to_string().ends_with(", ignore_merges"), "{error}");
}

#[test]
fn a_template_of_the_training_takes_the_place_of_the_bases_and_brings_its_stop() {
    let here = tempfile::tempdir().unwrap();
    let folder = golden("chat/tokenizer_chatml");
    let (mut model, files) = with_tokenizer(&folder, tokens(&folder), 8, &here.path().join("base"));
    // A base whose generations end with a text, and a template that ends turns.
    let mut config = read_json(&here.path().join("base/tokenizer_config.json"));
    config["eos_token"] = "<|endoftext|>".into();
    fs_err::write(here.path().join("base/tokenizer_config.json"), config.to_string()).unwrap();
    let template = here.path().join("mine.jinja");
    let source = "{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}";
    fs_err::write(&template, source).unwrap();
    let options =
        GgufOptions { chat_template: Some(template), name: Some("mine".into()), gguf_type: GgufType::F16 };
    let path = here.path().join("m.gguf");
    write_gguf(model.as_mut(), &files, &path, &options).unwrap();
    let texts = chat_texts(&files, options.chat_template.as_deref()).unwrap();
    let expected =
        ChatTexts { template: Some(source.into()), stops: vec!["<|endoftext|>".into(), "<|im_end|>".into()] };
    assert_eq!(texts, expected);
    let header = read_header(&path).unwrap();
    assert_eq!(header.metadata.text("tokenizer.chat_template"), Ok(Some(source)));
    assert_eq!(header.metadata.text("general.name"), Ok(Some("mine")));
    assert_eq!(header.metadata.size("tokenizer.ggml.eos_token_id"), Ok(Some(0)));
    assert_eq!(header.metadata.size("tokenizer.ggml.eot_token_id"), Ok(Some(2)));
    let read = ModelFiles::of_gguf(&path).unwrap();
    assert_eq!(Tokenizer::load(&texts_of(&read)).unwrap().eos_ids(), [0, 2]);
}

#[test]
fn named_templates_keep_their_names() {
    let here = tempfile::tempdir().unwrap();
    let folder = golden("chat/tokenizer_llama3");
    let (mut model, files) = with_tokenizer(&folder, tokens(&folder), 8, &here.path().join("base"));
    let mut config = read_json(&here.path().join("base/tokenizer_config.json"));
    let default = config["chat_template"].clone();
    config["chat_template"] =
        json!([{"name": "default", "template": default}, {"name": "rag", "template": "{{ messages }}"}]);
    fs_err::write(here.path().join("base/tokenizer_config.json"), config.to_string()).unwrap();
    let path = here.path().join("m.gguf");
    write(model.as_mut(), &files, &path, GgufType::F32);
    let metadata = read_header(&path).unwrap().metadata;
    assert_eq!(metadata.text("tokenizer.chat_template"), Ok(default.as_str()));
    assert_eq!(metadata.text("tokenizer.chat_template.rag"), Ok(Some("{{ messages }}")));
    assert_eq!(
        metadata.texts("tokenizer.chat_templates").unwrap().unwrap().iter().collect::<Vec<_>>(),
        ["rag"]
    );
}
