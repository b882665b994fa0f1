//! The bytes of tokens, joined, are the text that the tokenizer decodes to.

use crate::real::real;
use crate::{golden_chat, golden_tokenizer};
use taper_text::{Tokenizer, TokenizerFiles};

const TEXTS: [&str; 6] = [
    "hello  world",
    "{\"a\": [1, 2.5e-3, null],\n\t\"b\": \"\\u00e9\"}",
    "Ça va — 好的 🦀 naïve",
    " leading and trailing ",
    "<0x41> ▁x Ġy",
    "",
];

/// Behind a first token, so that none loses its leading space.
fn joined_equals_decoded(name: &str, tokenizer: &Tokenizer) {
    let bytes = tokenizer.token_bytes(tokenizer.vocab_size()).unwrap();
    assert_eq!(bytes.len(), tokenizer.vocab_size());
    let first = tokenizer.encode("a", false).unwrap();
    for text in TEXTS {
        let ids = [first.clone(), tokenizer.encode(text, false).unwrap()].concat();
        let decoded = tokenizer.decode(&ids, true).unwrap();
        let joined: Vec<u8> = ids.iter().flat_map(|id| bytes[*id as usize].clone()).collect();
        let joined = String::from_utf8_lossy(&joined);
        // A tokenizer that puts a space before a text has it in the bytes of the first token, and takes it off when decoding.
        let joined = if tokenizer.adds_prefix_space() { joined.trim_start_matches(' ') } else { &joined };
        assert_eq!(joined, decoded, "{name}: {text:?}");
    }
    for (id, _) in tokenizer.added_tokens().filter(|(id, _)| tokenizer.is_special(*id)) {
        assert!(bytes[id as usize].is_empty(), "{name}: special token {id}");
    }
}

#[test]
fn joined_bytes_are_the_decoded_text_for_every_golden_tokenizer() {
    for name in ["chatml", "gemma", "llama3", "mistral", "phi3", "spm"] {
        joined_equals_decoded(name, &golden_tokenizer(&format!("tokenizer_{name}")));
    }
}

#[test]
fn joined_bytes_are_the_decoded_text_for_every_real_tokenizer() {
    let Some(folder) = real() else { return };
    for entry in fs_err::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let files = TokenizerFiles::in_folder(&path);
        if files.tokenizer.is_some() {
            joined_equals_decoded(&path.display().to_string(), &Tokenizer::load(&files).unwrap());
        }
    }
}

#[test]
fn rows_behind_the_vocabulary_have_no_bytes_and_ids_behind_the_rows_are_left_out() {
    let tokenizer = golden_tokenizer("tokenizer_chatml");
    let v = tokenizer.vocab_size();
    let padded = tokenizer.token_bytes(v + 5).unwrap();
    assert!(padded[v..].iter().all(Vec::is_empty));
    assert!(padded[..v].iter().filter(|bytes| bytes.is_empty()).count() < 10);
    assert_eq!(tokenizer.token_bytes(100).unwrap(), padded[..100]);
}

#[test]
fn a_decoder_that_looks_at_neighbours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs_err::read_to_string(golden_chat().join("tokenizer_chatml/tokenizer.json")).unwrap();
    for (decoder, named) in [
        (serde_json::json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }), "WordPiece"),
        (serde_json::Value::Null, "none"),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["decoder"] = decoder;
        fs_err::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let tokenizer = Tokenizer::load(&TokenizerFiles::in_folder(folder.path())).unwrap();
        let error = tokenizer.token_bytes(10).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
