//! What becomes of a file's tokenizer; that ids are the Hub's is tested in the crate `text`, which can encode.

use super::*;
use proptest::prelude::*;
use taper_testkit::GgufFile;

fn byte_level() -> GgufFile {
    GgufFile::new()
        .text(MODEL, "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "<s>", "<tool>", "[PAD5]", "left"])
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 3, 4, 5, 5])
        .texts("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.bos_token_id", 3)
        .u32("tokenizer.ggml.eos_token_id", 3)
}

fn sentencepiece() -> GgufFile {
    GgufFile::new()
        .text(MODEL, "llama")
        .texts(
            "tokenizer.ggml.tokens",
            &["<unk>", "<s>", "</s>", "\u{2581}", "a", "\u{2581}a", "  ", "<0x0A>", "aa"],
        )
        .f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -9.0, -8.0, -1.0, -1000.0, 0.0, -0.5])
        .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 4, 6, 1])
}

fn made(file: &GgufFile) -> (Value, Value, Value) {
    let texts = texts(&Header::parse(&file.bytes()).unwrap()).unwrap().unwrap();
    let json = |text: &str| serde_json::from_str(text).unwrap();
    (json(&texts.tokenizer), json(&texts.tokenizer_config), json(&texts.generation_config))
}

fn refused(file: &GgufFile) -> String {
    texts(&Header::parse(&file.bytes()).unwrap()).unwrap_err().to_string()
}

#[test]
fn a_byte_level_tokenizer_has_its_tokens_merges_and_split() {
    let (tokenizer, config, generation) = made(&byte_level());
    let model = &tokenizer["model"];
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "<s>": 3, "<tool>": 4, "left": 6});
    assert_eq!((&model["vocab"], &model["merges"]), (&vocab, &json!([["a", "b"]])));
    assert_eq!((&model["ignore_merges"], &model["unk_token"]), (&json!(true), &Value::Null));
    let added: Vec<_> = tokenizer["added_tokens"].as_array().unwrap().iter().collect();
    assert_eq!(added.len(), 2);
    assert_eq!((&added[0]["content"], &added[0]["special"]), (&json!("<s>"), &json!(true)));
    assert_eq!((&added[1]["id"], &added[1]["special"]), (&json!(4), &json!(false)));
    let regex = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap();
    assert!(regex.contains(r"\p{N}{1,3}"), "{regex}");
    // Llama 3 begins with BOS where the file does not say.
    assert_eq!(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    assert_eq!((&config["bos_token"], &config["add_bos_token"]), (&json!("<s>"), &json!(true)));
    assert!(config.get("chat_template").is_none() && config.get("pad_token").is_none());
    assert_eq!(generation, json!({"bos_token_id": 3, "eos_token_id": 3}));
    let (without, ..) = made(&byte_level().flag("tokenizer.ggml.add_bos_token", false));
    assert_eq!(without["post_processor"]["type"], "ByteLevel");
}

#[test]
fn sentencepieces_merges_come_from_its_scores() {
    let (tokenizer, config, _) = made(&sentencepiece());
    let model = &tokenizer["model"];
    // Two signs for two spaces come first, because a user defined them; then by score.
    let sign = "\u{2581}";
    assert_eq!(model["merges"], json!([[sign, sign], ["a", "a"], [sign, "a"]]));
    assert_eq!(model["vocab"]["\u{2581}\u{2581}"], 6);
    assert_eq!((&model["byte_fallback"], &model["unk_token"]), (&json!(true), &json!("<unk>")));
    assert_eq!(tokenizer["normalizer"]["normalizers"][0]["prepend"], sign);
    assert_eq!(tokenizer["pre_tokenizer"], Value::Null);
    let names = [&config["bos_token"], &config["eos_token"], &config["unk_token"]];
    assert_eq!(names, [&json!("<s>"), &json!("</s>"), &json!("<unk>")]);
    let single = &tokenizer["post_processor"]["single"];
    assert_eq!((single.as_array().unwrap().len(), &single[0]["SpecialToken"]["id"]), (2, &json!("<s>")));
}

#[test]
fn a_space_is_put_where_the_model_has_it() {
    let (gemma, ..) = made(&sentencepiece().flag("tokenizer.ggml.add_space_prefix", false));
    assert_eq!(gemma["normalizer"]["type"], "Replace");
    assert_eq!(gemma["decoder"]["decoders"].as_array().unwrap().len(), 3);
    let mistral = GgufFile::new()
        .text(MODEL, "llama")
        .texts("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "[INST]", "a"])
        .f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, 0.0, -1.0])
        .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 3, 1]);
    let (mistral, ..) = made(&mistral);
    assert_eq!(
        (&mistral["normalizer"], &mistral["pre_tokenizer"]["prepend_scheme"]),
        (&Value::Null, &json!("first"))
    );
    assert_eq!(mistral["model"]["byte_fallback"], false);
    let (phi, ..) = made(&sentencepiece().text("general.name", "Phi-3 mini"));
    let stripped: Vec<bool> =
        phi["added_tokens"].as_array().unwrap().iter().map(|token| token["rstrip"] == true).collect();
    assert_eq!(stripped, [false, false, true, true]);
}

#[test]
fn templates_and_the_ends_of_turns_are_carried() {
    let one = byte_level().text("tokenizer.chat_template", "{{ x }}").u32("tokenizer.ggml.eot_token_id", 4);
    let (_, config, generation) = made(&one.u32("tokenizer.ggml.padding_token_id", 3));
    assert_eq!((&config["chat_template"], &config["pad_token"]), (&json!("{{ x }}"), &json!("<s>")));
    assert_eq!(generation["eos_token_id"], json!([3, 4]));
    let named = byte_level().texts("tokenizer.chat_templates", &["tool_use"]);
    let several =
        named.clone().text("tokenizer.chat_template", "d").text("tokenizer.chat_template.tool_use", "t");
    let (_, config, _) = made(&several);
    let expected = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
    assert_eq!(config["chat_template"], expected);
    assert!(refused(&named).contains("`tokenizer.chat_template.tool_use` is missing"));
}

#[test]
fn files_from_before_the_key_have_the_split_of_their_family() {
    let old = |architecture: &str, token: &str| {
        let file = GgufFile::new()
            .text("general.architecture", architecture)
            .text(MODEL, "gpt2")
            .texts("tokenizer.ggml.tokens", &["a", token])
            .texts::<&str>("tokenizer.ggml.merges", &[]);
        made(&file.flag("tokenizer.ggml.add_bos_token", false)).0
    };
    assert_eq!(old("qwen2", "b")["normalizer"]["type"], "NFC");
    assert_eq!(old("llama", "<|begin_of_text|>")["model"]["ignore_merges"], true);
    let plain = old("llama", "b");
    assert_eq!((&plain["pre_tokenizer"]["use_regex"], &plain["normalizer"]), (&json!(true), &Value::Null));
}

#[test]
fn what_cannot_be_made_again_is_refused_by_key() {
    let with = |key: &str, value: &str| refused(&GgufFile::new().text(MODEL, "gpt2").text(key, value));
    assert!(texts(&Header::parse(&GgufFile::new().bytes()).unwrap()).unwrap().is_none());
    assert!(with("x", "y").contains("`tokenizer.ggml.tokens` is missing"));
    let other = refused(&GgufFile::new().text(MODEL, "bert"));
    assert_eq!(other, "`tokenizer.ggml.model` is `bert`, supported are `gpt2`, `llama`");
    let vocabulary = || GgufFile::new().text(MODEL, "gpt2").texts("tokenizer.ggml.tokens", &["a", "b"]);
    let unspaced = refused(&vocabulary().texts("tokenizer.ggml.merges", &["ab"]));
    assert!(unspaced.contains("wanted pairs of tokens with a space between"), "{unspaced}");
    let (cut, ..) = made(&vocabulary().texts("tokenizer.ggml.merges", &["a b"]));
    assert_eq!(cut["model"]["merges"], json!([]), "a merge that makes no token is left out");
    let split = refused(&vocabulary().text("tokenizer.ggml.pre", "kimi-k2"));
    assert!(split.contains("`tokenizer.ggml.pre` is `kimi-k2`, supported are `default`, `gpt-2`"), "{split}");
    let few = refused(&vocabulary().i32s("tokenizer.ggml.token_type", &[1]));
    assert_eq!(
        few,
        "metadata `tokenizer.ggml.token_type` is 1 of them, wanted 2 numbers, one for each token"
    );
    assert!(
        refused(&vocabulary().i32s("tokenizer.ggml.token_type", &[1, 7]))
            .contains("wanted numbers from 0 to 6")
    );
    let outside = refused(&vocabulary().u32("tokenizer.ggml.eos_token_id", 2));
    assert!(
        outside.contains("`tokenizer.ggml.eos_token_id` is 2, wanted the id of one of 2 tokens"),
        "{outside}"
    );
    let bos =
        vocabulary().texts::<&str>("tokenizer.ggml.merges", &[]).flag("tokenizer.ggml.add_bos_token", true);
    assert!(refused(&bos).contains("`tokenizer.ggml.bos_token_id` is missing"));
    let flat = GgufFile::new()
        .text(MODEL, "llama")
        .texts("tokenizer.ggml.tokens", &["a", "b"])
        .f32s("tokenizer.ggml.scores", &[-1000.0, -1000.0]);
    assert!(refused(&flat).contains("is the same for all, wanted scores that order the tokens"));
}

proptest! {
    #[test]
    fn no_change_of_a_file_makes_the_translation_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        spm in any::<bool>(),
    ) {
        let mut bytes = if spm { sentencepiece().bytes() } else { byte_level().bytes() };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(header) = Header::parse(&bytes) {
            let _ = texts(&header);
        }
    }
}

/// The file's tokenizer written again from the texts that were made of it.
fn again(file: &GgufFile, rows: usize) -> (Header, Header) {
    let header = Header::parse(&file.bytes()).unwrap();
    let texts = texts(&header).unwrap().unwrap();
    let json: Value = serde_json::from_str(&texts.tokenizer).unwrap();
    let added = json["added_tokens"].as_array().unwrap();
    let added = added.iter().map(|token| {
        let id = token["id"].as_u64().unwrap() as u32;
        (id, token["content"].as_str().unwrap(), token["special"] == true)
    });
    let parts = TokenizerParts {
        tokenizer_json: texts.tokenizer.as_bytes(),
        added: added.collect(),
        rows,
        unknown: (json["model"]["unk_token"] == "<unk>").then_some(0),
        ..TokenizerParts::default()
    };
    let written = tokenizer_keys(&parts).unwrap();
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("m.gguf");
    super::super::GgufWriter::create(&path, &written.keys, &[]).unwrap().finish().unwrap();
    (header, Header::parse(&fs_err::read(&path).unwrap()).unwrap())
}

#[test]
fn what_was_read_is_written_as_it_was() {
    let texts = |header: &Header, key: &str| -> Vec<String> {
        header.metadata.texts(key).unwrap().unwrap().iter().map(str::to_owned).collect()
    };
    for (file, rows) in [(byte_level(), 7), (sentencepiece(), 9)] {
        let (before, after) = again(&file, rows);
        let (tokens, types) = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type");
        assert_eq!(texts(&before, tokens), texts(&after, tokens));
        let kinds =
            |header: &Header| -> Vec<_> { header.metadata.numbers(types).unwrap().unwrap().iter().collect() };
        let (mut old, mut new) = (kinds(&before), kinds(&after));
        if rows == 7 {
            // An unused place that has a text of its own is a token of the table.
            assert_eq!(
                (old.pop(), new.pop()),
                (Some(crate::gguf::Value::Signed(5)), Some(crate::gguf::Value::Signed(1)))
            );
        }
        assert_eq!(old, new);
        assert_eq!(before.metadata.text(MODEL), after.metadata.text(MODEL));
    }
    let (_, after) = again(&byte_level(), 9);
    assert_eq!(texts(&after, "tokenizer.ggml.merges"), ["a b"]);
    assert_eq!(after.metadata.text("tokenizer.ggml.pre"), Ok(Some("llama-bpe")));
    assert_eq!(texts(&after, "tokenizer.ggml.tokens")[7..], ["[PAD7]", "[PAD8]"]);
}

#[test]
fn every_named_split_is_recognised_as_itself_or_its_twin() {
    let mut found = std::collections::BTreeMap::new();
    for name in split::Split::names() {
        let file = GgufFile::new()
            .text(MODEL, "gpt2")
            .text("tokenizer.ggml.pre", name)
            .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
            .texts("tokenizer.ggml.merges", &["a b"])
            .flag("tokenizer.ggml.add_bos_token", false);
        let (json, ..) = made(&file);
        let ignore = json["model"]["ignore_merges"] == true;
        let written = split::Split::name_of(&json["normalizer"], &json["pre_tokenizer"], ignore).unwrap();
        found.insert(name, written);
    }
    for (name, twin) in [
        ("default", "gpt-2"),
        ("mpt", "olmo"),
        ("llama3", "llama-bpe"),
        ("falcon3", "llama-bpe"),
        ("smaug-bpe", "dbrx"),
        ("qwen2", "qwen2"),
        ("deepseek-r1-qwen", "deepseek-r1-qwen"),
        ("pixtral", "tekken"),
        ("gpt-4o", "gpt-4o"),
        ("starcoder", "smollm"),
        ("command-r", "command-r"),
    ] {
        assert_eq!(found[name], twin, "{name}");
    }
}

fn unwritable(json: &Value, rows: usize, ends: &[u32]) -> TokenizerWriteError {
    let text = json.to_string();
    let parts = TokenizerParts { tokenizer_json: text.as_bytes(), rows, ends, ..TokenizerParts::default() };
    tokenizer_keys(&parts).unwrap_err()
}

fn small() -> Value {
    json!({
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "far": 4_000_000_000u32}, "merges": ["a b", ["b", "c"]]},
    })
}

#[test]
fn tokenizers_that_files_cannot_hold_are_named() {
    for kind in ["Unigram", "WordPiece", "WordLevel"] {
        let json = json!({"model": {"type": kind, "vocab": [["a", -1.0]]}});
        assert_eq!(unwritable(&json, 4, &[]), TokenizerWriteError::Model { given: kind.into() });
    }
    assert!(matches!(unwritable(&json!({"model": 3}), 4, &[]), TokenizerWriteError::Json(_)));
    assert!(matches!(unwritable(&json!([]), 4, &[]), TokenizerWriteError::Json(_)));
    let beyond = TokenizerWriteError::Beyond { what: "end-of-turn", id: 4, rows: 4 };
    assert_eq!(unwritable(&small(), 4, &[1, 4]), beyond);
    assert!(matches!(unwritable(&small(), usize::MAX, &[]), TokenizerWriteError::Rows(_)));
    let mut affixed = small();
    affixed["model"]["end_of_word_suffix"] = "</w>".into();
    assert!(unwritable(&affixed, 4, &[]).to_string().ends_with(", affixes"));
    let text = small().to_string();
    let parts = TokenizerParts {
        tokenizer_json: text.as_bytes(),
        rows: 4,
        ends: &[0, 1, 2, 3],
        ..TokenizerParts::default()
    };
    let written = tokenizer_keys(&parts).unwrap();
    assert_eq!(written.notes.len(), 2, "{:?}", written.notes);
    assert!(written.notes[0].starts_with("1 tokens have no row"), "{:?}", written.notes);
    assert!(written.notes[1].contains("stops at token 3"), "{:?}", written.notes);
}

proptest! {
    #[test]
    fn no_change_of_a_tokenizer_json_makes_the_writer_panic(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        rows in 0usize..12,
    ) {
        let mut text = small().to_string().into_bytes();
        let place = at.index(text.len());
        text[place] = byte;
        let added = vec![(2, "x", true), (9, "y", false)];
        let _ = tokenizer_keys(&TokenizerParts { tokenizer_json: &text, added, rows, ..TokenizerParts::default() });
    }
}
