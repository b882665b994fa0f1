//! Folders that are odd or broken.

use crate::golden_chat;
use fs_err as fs;
use serde_json::{Value, json};
use std::path::Path;
use taper_text::{ChatTemplate, Error, RenderOptions, Tokenizer, TokenizerFiles};

/// A copy of the chatml fixture, changed.
fn folder(change: impl FnOnce(&Path)) -> (tempfile::TempDir, TokenizerFiles) {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(golden_chat().join("tokenizer_chatml").join(file), folder.path().join(file)).unwrap();
    }
    change(folder.path());
    let files = TokenizerFiles::in_folder(folder.path());
    (folder, files)
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn saved_truncation_padding_and_dropout_are_switched_off_and_said() {
    let (_keep, files) = folder(|path| {
        edit(&path.join("tokenizer.json"), |t| {
            t["truncation"] =
                json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
            t["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                                  "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
            t["model"]["dropout"] = json!(0.9);
        });
    });
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert_eq!(tokenizer.notes().len(), 3, "{:?}", tokenizer.notes());
    let plain = crate::golden_tokenizer("tokenizer_chatml");
    let text = "Hello, world! This is longer than four tokens.";
    for _ in 0..5 {
        assert_eq!(tokenizer.encode(text, true).unwrap(), plain.encode(text, true).unwrap());
    }
}

#[test]
fn the_fingerprint_is_that_of_the_texts_wherever_they_lie() {
    let of = |change: fn(&Path)| {
        let (_keep, files) = folder(change);
        Tokenizer::load(&files).unwrap().fingerprint()
    };
    let plain = of(|_| {});
    assert_eq!(plain, of(|_| {}));
    let changes: [fn(&Path); 4] = [
        |path| edit(&path.join("tokenizer.json"), |t| t["model"]["dropout"] = json!(0.5)),
        |path| edit(&path.join("tokenizer_config.json"), |c| c["pad_token"] = json!("<|im_end|>")),
        |path| fs::write(path.join("generation_config.json"), "{\"eos_token_id\": [1, 2]}").unwrap(),
        |path| fs::write(path.join("special_tokens_map.json"), "{\"mask_token\": \"<|im_end|>\"}").unwrap(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert_ne!(of(change), plain, "change {index}");
    }
}

#[test]
fn a_template_has_the_fingerprint_of_its_text_and_its_clock_and_none_with_todays_date() {
    let tokenizer = crate::golden_tokenizer("tokenizer_chatml");
    let template = |source: &str| ChatTemplate::from_source(source, &tokenizer).unwrap();
    assert_eq!(template("a").fingerprint(), None);
    let of =
        |source: &str, clock| template(source).with_fixed_clock(clock, &tokenizer).unwrap().fingerprint();
    assert!(of("a", 1).is_some() && of("a", 1) == of("a", 1));
    assert!(of("a", 1) != of("a", 2) && of("a", 1) != of("b", 1));
    let other = crate::golden_tokenizer("tokenizer_llama3");
    let of_other = template("a").with_fixed_clock(1, &other).unwrap();
    assert_ne!(of_other.fingerprint(), of("a", 1), "its special tokens are others");
}

#[test]
fn eos_ids_are_the_tokenizers_and_then_the_generation_configs() {
    for (given, expected) in [
        (json!(0), vec![2, 0]),
        (json!([2, 0, 7]), vec![2, 0, 7]),
        (json!(null), vec![2]),
        (json!(2), vec![2]),
    ] {
        let (_keep, files) = folder(|path| {
            let config = json!({"eos_token_id": given}).to_string();
            fs::write(path.join("generation_config.json"), config).unwrap();
        });
        let tokenizer = Tokenizer::load(&files).unwrap();
        assert_eq!(tokenizer.id("<|im_end|>"), Some(2));
        assert_eq!(tokenizer.eos_ids(), expected);
        assert_eq!(tokenizer.eos_id(), Some(2));
    }
    let (_keep, files) = folder(|path| {
        fs::write(path.join("generation_config.json"), r#"{"eos_token_id": "</s>"}"#).unwrap();
    });
    let error = Tokenizer::load(&files).unwrap_err().to_string();
    assert!(error.contains("`eos_token_id`") && error.contains("not `</s>`"), "{error}");
}

#[test]
fn special_tokens_come_as_strings_or_objects_and_from_the_map_when_the_config_has_none() {
    let (_keep, files) = folder(|path| {
        edit(&path.join("tokenizer_config.json"), |c| {
            c["eos_token"] = json!({"content": "<|im_end|>", "lstrip": false});
            c["bos_token"] = Value::Null;
            c.as_object_mut().unwrap().shift_remove("pad_token");
        });
        fs::write(
            path.join("special_tokens_map.json"),
            r#"{"pad_token": "<|endoftext|>", "eos_token": "x"}"#,
        )
        .unwrap();
    });
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (None, Some(2), Some(0)));
}

#[test]
fn tokens_of_the_config_alone_are_added_with_their_ids_or_refused() {
    let with = |id: u32| {
        folder(|path| {
            edit(&path.join("tokenizer_config.json"), |c| {
                c["added_tokens_decoder"] = json!({id.to_string(): {"content": "<|new|>", "special": true}});
            });
        })
    };
    let next = crate::golden_tokenizer("tokenizer_chatml").vocab_size() as u32;
    let (_keep, files) = with(next);
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert_eq!(tokenizer.encode("<|new|>", false).unwrap(), [next]);
    assert!(tokenizer.is_special(next) && tokenizer.notes().len() == 1);
    let (_keep, files) = with(next + 5);
    assert!(Tokenizer::load(&files).unwrap_err().to_string().contains("<|new|>"));
}

#[test]
fn a_named_token_outside_the_vocabulary_is_said_and_not_used() {
    let (_keep, files) = folder(|path| {
        edit(&path.join("tokenizer_config.json"), |c| c["bos_token"] = json!("<|nowhere|>"));
    });
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert_eq!(tokenizer.bos_id(), None);
    assert!(tokenizer.notes()[0].contains("<|nowhere|>"));
}

#[test]
fn templates_in_a_list_are_chosen_by_name_and_by_tools() {
    let (_keep, files) = folder(|path| {
        fs::remove_file(path.join("chat_template.jinja")).unwrap();
        edit(&path.join("tokenizer_config.json"), |c| {
            c["chat_template"] =
                json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
        });
    });
    let tokenizer = Tokenizer::load(&files).unwrap();
    let template = ChatTemplate::load(&files, &tokenizer).unwrap().unwrap();
    let mut options = RenderOptions::default();
    assert_eq!(template.render(&[], &options).unwrap(), "plain");
    options.tools = Some(json!([]));
    assert_eq!(template.render(&[], &options).unwrap(), "tools");

    let (_keep, files) = folder(|path| {
        fs::remove_file(path.join("chat_template.jinja")).unwrap();
        edit(&path.join("tokenizer_config.json"), |c| {
            c["chat_template"] = json!([{"name": "rag", "template": "x"}]);
        });
    });
    let tokenizer = Tokenizer::load(&files).unwrap();
    let error = ChatTemplate::load(&files, &tokenizer).unwrap_err();
    assert_eq!(error.to_string(), "there is no chat template named `default`, only `rag`");
}

#[test]
fn broken_files_are_named() {
    let (_keep, files) = folder(|path| fs::write(path.join("tokenizer.json"), "{}").unwrap());
    assert!(matches!(Tokenizer::load(&files), Err(Error::BadTokenizer { .. })));
    let (_keep, files) = folder(|path| fs::write(path.join("tokenizer_config.json"), "{\"a\": ").unwrap());
    let error = Tokenizer::load(&files).unwrap_err();
    assert!(matches!(error, Error::Json { .. }) && error.to_string().contains("tokenizer_config.json"));
    assert!(matches!(Tokenizer::load(&TokenizerFiles::default()), Err(Error::NoTokenizer)));
    let missing = TokenizerFiles { tokenizer: Some("/nowhere/tokenizer.json".into()), ..Default::default() };
    assert!(Tokenizer::load(&missing).unwrap_err().to_string().contains("/nowhere/tokenizer.json"));
}

fn refused(change: impl Fn(&mut Value)) -> String {
    let (_keep, files) = folder(|path| edit(&path.join("tokenizer.json"), &change));
    Tokenizer::load(&files).unwrap_err().to_string()
}

#[test]
fn a_panic_of_the_library_over_a_hostile_file_is_an_error() {
    let error = refused(|t| t["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}));
    assert!(error.contains("it panicked"), "{error}");
    let error =
        refused(|t| t["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}));
    assert!(error.contains("it panicked"), "{error}");
}

#[test]
fn a_tokenizer_that_makes_a_text_grow_without_bound_is_refused() {
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let many = |step: &Value| Value::Array(vec![step.clone(); 40]);
    let error = refused(|t| t["normalizer"] = json!({"type": "Sequence", "normalizers": many(&doubling)}));
    assert!(
        error.contains("its normalizer and pre-tokenizer can make a text 2199023255552 times longer"),
        "{error}"
    );
    let error = refused(|t| t["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": many(&bytes)}));
    assert!(error.contains("times longer, the limit is 4096"), "{error}");
    let error = refused(|t| t["decoder"] = json!({"type": "Sequence", "decoders": many(&doubling)}));
    assert!(error.contains("its decoder can make"), "{error}");
}
