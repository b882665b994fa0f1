//! Tokenizers that were made from GGUF files give the ids of the Hub's own.
//!
//! Files of most models are too large for tests, so their headers are made here from the Hub's tokenizer as llama.cpp's converter would
//! write them.

use crate::golden_tokenizer;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use taper_hub::ModelFiles;
use taper_testkit::{GgufFile, golden, read_json, real_data_or_skip};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};

/// Texts that are split, normalised and merged in every way that tokenizers differ in.
const TEXTS: [&str; 34] = [
    "",
    " ",
    "  ",
    "   three spaces   and   more    ",
    "\n",
    "\n\n\n",
    " \n \t\n\t\t x\r\n\r\ny",
    "Hello, world!",
    " Hello  World!!!",
    "Don't you'll he'S they'RE I'd we've 'tis",
    "0 1 12 123 1234 12345 123456 3.14159 1,000,000 2²³ ½ ٣٤٥",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case x2y3z",
    "fn main() {\n    let x: Vec<u32> = vec![1, 2];\n\tprintln!(\"{x:?}\");\n}\n",
    "def f(a, b=None):\n        return a[b] != 'c' # comment\n\n\nclass A: pass",
    "<html><body class=\"a\">&amp;</body></html>",
    "https://example.com/a/b?c=d&e=f#g user@example.org /usr/bin:/bin C:\\dir\\file",
    "naïve café Ünïcödé Straße ŁÓDŹ ĲSSEL ﬁne",
    "cafe\u{301} n\u{303}o A\u{30a} \u{1e9b}\u{323}",
    "Быстрая коричневая лиса — «прыгает»",
    "你好，世界。今天天气怎么样？",
    "日本語とカタカナとひらがな、漢字１２３",
    "한국어 문장입니다. \u{1112}\u{1161}\u{11ab}",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "مرحبا بالعالم שלום עולם",
    "🦀 🦙.cpp 👨‍👩‍👧‍👦 🇩🇪 👍🏽",
    "\u{0}\u{1}\u{7f}\u{80}\u{a0}\u{200b}\u{feff}\u{2028}",
    "\u{2581}already \u{2581}\u{2581} there",
    "<0x0A> <0xFF> <unk> <s> </s> <|im_start|>",
    "ends in a space ",
    "\ttab first",
    "a  b   c    d     e      f       g        h",
    "!!!??? ... ;;; --- === ### *** ~~~ @@@ $$$ %%% ^^^ &&& ((([[[{{{}}}]]])))",
    "\u{3000}ideographic\u{3000}spaces\u{2003}em",
    "<|user|>\nHi<|end|>\n<|assistant|> there </s>  x",
];

fn of_file(path: &Path) -> Tokenizer {
    let files = ModelFiles::of_gguf(path).unwrap();
    Tokenizer::load(&texts_of(&files)).unwrap()
}

fn texts_of(files: &ModelFiles) -> TokenizerFiles {
    TokenizerFiles {
        tokenizer: files.tokenizer.clone(),
        tokenizer_config: files.tokenizer_config.clone(),
        special_tokens_map: files.special_tokens_map.clone(),
        generation_config: files.generation_config.clone(),
        chat_template: files.chat_template.clone(),
    }
}

fn of_folder(folder: &Path) -> Tokenizer {
    Tokenizer::load(&TokenizerFiles::in_folder(folder)).unwrap()
}

/// The corpus, and the corpus with each of the original's special tokens put into it.
fn corpus(original: &Tokenizer, special_inside: bool) -> Vec<String> {
    let mut texts: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    texts.push(TEXTS.join("\n"));
    let specials: Vec<&str> = original.added_tokens().map(|(_, token)| token).take(40).collect();
    if special_inside {
        for (token, text) in specials.iter().zip(TEXTS.iter().cycle().skip(7)) {
            texts.extend([
                format!("{token}{text}"),
                format!("{text} {token} {text}"),
                format!("a{token}{token}b"),
            ]);
        }
    }
    texts
}

fn assert_same(made: &Tokenizer, original: &Tokenizer, special_inside: bool) {
    for text in corpus(original, special_inside) {
        let (ours, theirs) = (made.encode(&text, false).unwrap(), original.encode(&text, false).unwrap());
        assert_eq!(ours, theirs, "{text:?}");
        assert_eq!(made.encode(&text, true).unwrap(), original.encode(&text, true).unwrap(), "{text:?}");
        assert_eq!(made.decode(&ours, false).unwrap(), original.decode(&theirs, false).unwrap(), "{text:?}");
        assert_eq!(made.decode(&ours, true).unwrap(), original.decode(&theirs, true).unwrap(), "{text:?}");
    }
}

/// What the converter makes of a tokenizer.json.
struct Converted {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<(String, String)>,
}

impl Converted {
    fn of(tokenizer: &Value) -> Self {
        let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
        let added = tokenizer["added_tokens"].as_array().unwrap();
        let ids = vocab.values().chain(added.iter().map(|token| &token["id"])).map(|id| id.as_u64().unwrap());
        // Some rows more than tokens, as an embedding has them.
        let count = ids.max().unwrap() as usize + 4;
        let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![5; count];
        for (token, id) in vocab {
            let id = id.as_u64().unwrap() as usize;
            tokens[id] = token.clone();
            types[id] = if token.starts_with("<0x") && token.len() == 6 { 6 } else { 1 };
        }
        for token in added {
            let id = token["id"].as_u64().unwrap() as usize;
            tokens[id] = token["content"].as_str().unwrap().to_owned();
            types[id] = if token["special"] == true { 3 } else { 4 };
        }
        let merge = |merge: &Value| match merge {
            Value::String(pair) => {
                let (left, right) = pair.split_once(' ').unwrap();
                (left.to_owned(), right.to_owned())
            }
            pair => (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned()),
        };
        let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
        Self { tokens, types, merges }
    }

    /// SentencePiece's scores fall with the place of a piece; the merges have kept their order.
    fn scores(&self) -> Vec<f32> {
        let mut first = HashMap::new();
        for (place, (left, right)) in self.merges.iter().enumerate() {
            first.entry(format!("{left}{right}")).or_insert(place);
        }
        self.tokens.iter().map(|token| first.get(token).map_or(-1e6, |place| -(*place as f32))).collect()
    }

    fn file(&self, model: &str) -> GgufFile {
        let file = GgufFile::new()
            .text("general.architecture", "llama")
            .u32("llama.context_length", 64)
            .u32("llama.embedding_length", 8)
            .u32("llama.block_count", 1)
            .u32("llama.feed_forward_length", 8)
            .u32("llama.attention.head_count", 2)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .text("tokenizer.ggml.model", model)
            .texts("tokenizer.ggml.tokens", &self.tokens)
            .i32s("tokenizer.ggml.token_type", &self.types);
        if model == "llama" {
            return file.f32s("tokenizer.ggml.scores", &self.scores());
        }
        let merges: Vec<String> = self.merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        file.texts("tokenizer.ggml.merges", &merges)
    }

    fn id(&self, token: &str) -> u32 {
        self.tokens.iter().position(|other| other == token).unwrap() as u32
    }
}

fn written(here: &tempfile::TempDir, file: &GgufFile) -> PathBuf {
    let path = here.path().join("m.gguf");
    fs_err::write(&path, file.bytes()).unwrap();
    path
}

#[test]
fn byte_level_tokenizers_of_real_models() {
    let Some(real) = real_data_or_skip("byte-level tokenizers through GGUF") else { return };
    let here = tempfile::tempdir().unwrap();
    for (name, pre) in [
        ("qwen2.5-0.5b-instruct", "qwen2"),
        // The real SmolLM 2 splits digits, this copy of it does not.
        ("smollm2-360m-instruct", "gpt-2"),
        ("torchtune-small", "llama-bpe"),
    ] {
        let folder = real.join("tokenizers").join(name);
        let converted = Converted::of(&read_json(&folder.join("tokenizer.json")));
        let file = converted.file("gpt2").text("tokenizer.ggml.pre", pre);
        let made = of_file(&written(&here, &file.flag("tokenizer.ggml.add_bos_token", false)));
        // Without truncation and the like that the folder's other files may ask for.
        let original = Tokenizer::load(&TokenizerFiles {
            tokenizer: Some(folder.join("tokenizer.json").into()),
            ..TokenizerFiles::default()
        });
        assert_same(&made, &original.unwrap(), true);
    }
}

#[test]
fn digits_are_split_where_the_name_says_so() {
    let Some(real) = real_data_or_skip("a tokenizer that splits digits through GGUF") else { return };
    let here = tempfile::tempdir().unwrap();
    let mut tokenizer = read_json(&real.join("tokenizers/smollm2-360m-instruct/tokenizer.json"));
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    ]});
    fs_err::write(here.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let original = of_folder(here.path());
    let converted = Converted::of(&tokenizer);
    for pre in ["smollm", "refact"] {
        let file = converted.file("gpt2").text("tokenizer.ggml.pre", pre);
        assert_same(&of_file(&written(&here, &file)), &original, true);
    }
}

#[test]
fn sentencepiece_tokenizers_of_real_models() {
    let Some(real) = real_data_or_skip("SentencePiece tokenizers through GGUF") else { return };
    let here = tempfile::tempdir().unwrap();
    for name in ["tinyllama-1.1b-chat", "mistral-7b-v0.3"] {
        let folder = real.join("tokenizers").join(name);
        let converted = Converted::of(&read_json(&folder.join("tokenizer.json")));
        let file = converted
            .file("llama")
            .u32("tokenizer.ggml.bos_token_id", converted.id("<s>"))
            .u32("tokenizer.ggml.eos_token_id", converted.id("</s>"))
            .u32("tokenizer.ggml.unknown_token_id", converted.id("<unk>"));
        let made = of_file(&written(&here, &file));
        let original = of_folder(&folder);
        assert_same(&made, &original, true);
        assert_eq!((made.bos_id(), made.eos_id(), made.adds_bos()), (Some(1), Some(2), true));
        assert_eq!(made.notes(), [] as [String; 0]);
    }
}

#[test]
fn the_files_of_a_real_tiny_model_have_the_tokenizer_of_its_folder() {
    let Some(real) = real_data_or_skip("the tokenizer of stories260K") else { return };
    let original = of_folder(&real.join("models/stories260K-hf"));
    for kind in ["f32", "f16", "q8_0", "q4_0"] {
        let made = of_file(&real.join(format!("gguf/stories260K-{kind}.gguf")));
        assert_same(&made, &original, true);
    }
}

#[test]
fn phi3s_own_file_gives_the_ids_of_its_golden_texts_and_of_its_folder() {
    let Some(real) = real_data_or_skip("the tokenizer of Phi 3") else { return };
    let path = real.join("gguf/vocab/ggml-vocab-phi-3.gguf");
    let made = of_file(&path);
    let (inputs, outputs) = (path.with_extension("gguf.inp"), path.with_extension("gguf.out"));
    let inputs = fs_err::read_to_string(inputs).unwrap();
    let outputs = fs_err::read_to_string(outputs).unwrap();
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<&str> = outputs.lines().collect();
    let mut compared = 0;
    for (input, output) in inputs.iter().zip(&outputs) {
        let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(made.encode(input, false).unwrap(), expected, "{input:?}");
        compared += 1;
    }
    assert!(compared > 40, "{compared} texts");

    let original = of_folder(&real.join("tokenizers/phi-3-mini"));
    for text in corpus(&original, true) {
        assert_eq!(made.encode(&text, false).unwrap(), original.encode(&text, false).unwrap(), "{text:?}");
    }
    let template =
        ChatTemplate::load(&texts_of(&ModelFiles::of_gguf(&path).unwrap()), &made).unwrap().unwrap();
    assert!(template.source().contains("<|assistant|>"));
    assert_eq!(template.origin(), format!("`chat_template` in `{}`", path.display()));
}

/// The golden file has the first 256 tokens of a vocabulary that another fixture has whole: the bytes, and no token that a merge makes.
#[test]
fn the_golden_files_tokenizer_is_the_beginning_of_its_original() {
    let made = of_file(&golden("gguf/llama_q8_0.gguf"));
    let original = golden_tokenizer("tokenizer_chatml");
    for text in ["The cat", "it's 42 (x)!", "a  b\n\tc", "naïve"] {
        let bytes: Vec<u32> =
            text.chars().flat_map(|c| original.encode(&c.to_string(), false).unwrap()).collect();
        assert_eq!(made.encode(text, false).unwrap(), bytes, "{text:?}");
        assert_eq!(made.decode(&bytes, false).unwrap(), text);
    }
    assert_eq!((made.bos_id(), made.eos_id(), made.pad_id()), (Some(1), Some(2), Some(0)));
}
