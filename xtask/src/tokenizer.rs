//! The tokenizer and the configuration files of the shipped base: byte-level BPE, digits one by one, ChatML.

use crate::corpus::{COMMON, contents};
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use std::io::BufRead;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    TokenizerImpl,
};

/// Entries of the vocabulary, special tokens included.
const VOCAB_SIZE: usize = 2048;
/// Special tokens; the place in the list is the id.
const SPECIAL: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"];
const END_OF_TEXT: usize = 0;
const TURN_END: usize = 2;
const PAD: usize = 3;
/// How often each common word is added to the training text: a few hundred pieces for plain English, which the corpus's many
/// names and codes would else take.
const WORD_WEIGHT: usize = 1500;
/// Longest sequence of the base, in tokens.
const MAX_POSITIONS: usize = 1024;

const CHAT_TEMPLATE: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

type ByteBpe =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Train on the training files of a corpus and write the folder of the base, weights apart.
pub(crate) fn write(corpus: &Path, out: &Path) -> Result<()> {
    let texts = corpus_texts(corpus)?;
    fs_err::create_dir_all(out)?;
    train(&texts)?
        .save(out.join("tokenizer.json"), false)
        .map_err(|e| anyhow!("failed to write `tokenizer.json`: {e}"))?;
    fs_err::write(out.join("chat_template.jinja"), CHAT_TEMPLATE)?;
    for (name, value) in [
        ("tokenizer_config.json", tokenizer_config()),
        ("config.json", config()),
        ("generation_config.json", generation_config()),
    ] {
        fs_err::write(out.join(name), serde_json::to_string_pretty(&value)? + "\n")?;
    }
    Ok(())
}

/// Mean and largest number of tokens of a list of texts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    /// Tokens in all.
    pub(crate) total: usize,
    /// Texts.
    pub(crate) count: usize,
    /// The longest.
    pub(crate) longest: usize,
}

/// A trained tokenizer, for counting.
pub(crate) struct Counter(Tokenizer);

impl Counter {
    /// The tokenizer of a model folder.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        Tokenizer::from_file(&path).map(Self).map_err(|e| anyhow!("failed to read `{}`: {e}", path.display()))
    }

    /// Tokens of a text.
    pub(crate) fn count(&self, text: &str) -> Result<usize> {
        let encoding = self.0.encode(text, false).map_err(|e| anyhow!("failed to encode: {e}"))?;
        Ok(encoding.get_ids().len())
    }

    /// Lengths of rows of the `messages` or `text` form: of the prompt (up to the last answer) and of the whole.
    pub(crate) fn rows(&self, path: &Path) -> Result<[Lengths; 2]> {
        let mut lengths = [Lengths { total: 0, count: 0, longest: 0 }; 2];
        for row in read_rows(path)? {
            let row = row?;
            let prompt = self.count(&rendered(&row, true))?;
            let whole = self.count(&rendered(&row, false))?;
            for (length, n) in lengths.iter_mut().zip([prompt, whole]) {
                length.total += n;
                length.count += 1;
                length.longest = length.longest.max(n);
            }
        }
        Ok(lengths)
    }
}

/// A row in ChatML; without its last answer if `prompt`.
fn rendered(row: &Value, prompt: bool) -> String {
    let Some(messages) = row.get("messages").and_then(Value::as_array) else {
        return if prompt {
            String::new()
        } else {
            row["text"].as_str().unwrap_or_default().to_owned() + SPECIAL[TURN_END]
        };
    };
    let shown = if prompt { &messages[..messages.len().saturating_sub(1)] } else { &messages[..] };
    let turn = |m: &Value| {
        let (role, content) =
            (m["role"].as_str().unwrap_or_default(), m["content"].as_str().unwrap_or_default());
        format!("<|im_start|>{role}\n{content}<|im_end|>\n")
    };
    let mut text: String = shown.iter().map(turn).collect();
    if prompt {
        text.push_str("<|im_start|>assistant\n");
    }
    text
}

fn read_rows(path: &Path) -> Result<impl Iterator<Item = Result<Value>>> {
    let named = path.display().to_string();
    let lines = std::io::BufReader::new(fs_err::File::open(path)?).lines();
    Ok(lines.map(move |line| {
        let line = line.with_context(|| format!("failed to read `{named}`"))?;
        serde_json::from_str(&line).with_context(|| format!("`{named}` has a line that is not JSON"))
    }))
}

/// Every text of the training files; roles too, which the chat form writes before each message.
fn corpus_texts(corpus: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for file in crate::corpus::FILES.iter().filter(|file| file.starts_with("train")) {
        for row in read_rows(&corpus.join(file))? {
            let row = row?;
            for message in row["messages"].as_array().into_iter().flatten() {
                texts.push(format!("{}\n", message["role"].as_str().unwrap_or_default()));
            }
            texts.extend(contents(&row).into_iter().map(str::to_owned));
        }
    }
    for word in COMMON {
        texts.extend(std::iter::repeat_n(format!(" {word}"), WORD_WEIGHT));
    }
    Ok(texts)
}

fn train(texts: &[String]) -> Result<ByteBpe> {
    let specials = SPECIAL.map(|token| AddedToken::from(token, true));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB_SIZE)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials.to_vec())
        .build();
    let mut tokenizer = ByteBpe::new(BPE::default());
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(byte_level),
    ]))));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)));
    tokenizer
        .train(&mut trainer, texts.iter().map(String::as_str))
        .map_err(|e| anyhow!("failed to train the tokenizer: {e}"))?;
    Ok(tokenizer)
}

fn tokenizer_config() -> Value {
    let decoder: serde_json::Map<String, Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            let entry = json!({
                "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
                "special": true,
            });
            (id.to_string(), entry)
        })
        .collect();
    json!({
        "add_prefix_space": false,
        "added_tokens_decoder": decoder,
        "bos_token": null,
        "clean_up_tokenization_spaces": false,
        "eos_token": SPECIAL[TURN_END],
        "model_max_length": MAX_POSITIONS,
        "pad_token": SPECIAL[PAD],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": null,
    })
}

/// In the layout of transformers 4, which transformers 5 reads too.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": null,
        "eos_token_id": TURN_END,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.07,
        "intermediate_size": 512,
        "max_position_embeddings": MAX_POSITIONS,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "pad_token_id": PAD,
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": VOCAB_SIZE,
    })
}

fn generation_config() -> Value {
    json!({
        "eos_token_id": [TURN_END, END_OF_TEXT],
        "pad_token_id": PAD,
        "do_sample": false,
        "max_new_tokens": 256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;

    fn shipped() -> Tokenizer {
        Counter::load(&crate::root().join("models/tiny-base")).unwrap().0
    }

    #[test]
    fn the_shipped_tokenizer_gives_back_every_task_text_and_strange_ones() {
        let tokenizer = shipped();
        assert_eq!(tokenizer.get_vocab_size(true), VOCAB_SIZE);
        let mut texts: Vec<String> = vec!["naïve 💡 \t\n  日本 \"x\": [1]".into(), String::new()];
        for dataset in Dataset::ALL {
            texts.extend(
                dataset
                    .rows(dataset.shipped_seed())
                    .test
                    .into_iter()
                    .flat_map(|row| [row.user, row.assistant]),
            );
        }
        for text in texts {
            let ids = tokenizer.encode(text.as_str(), false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), text);
        }
    }

    #[test]
    fn digits_are_tokens_of_their_own_and_special_tokens_have_their_ids() {
        let tokenizer = shipped();
        let encoding = tokenizer.encode("code 40931", false).unwrap();
        let tokens = encoding.get_tokens();
        assert_eq!(&tokens[tokens.len() - 5..], ["4", "0", "9", "3", "1"]);
        for (token, id) in SPECIAL.iter().zip(0..) {
            assert_eq!(tokenizer.token_to_id(token), Some(id));
        }
        assert_eq!(tokenizer.encode("<|im_end|>", false).unwrap().get_ids(), [2]);
    }

    #[test]
    fn the_same_corpus_trains_the_same_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        crate::corpus::write(folder.path(), 60_000, 2).unwrap();
        let texts = corpus_texts(folder.path()).unwrap();
        let once = train(&texts).unwrap().to_string(false).unwrap();
        assert_eq!(once, train(&texts).unwrap().to_string(false).unwrap());
    }

    #[test]
    fn rows_of_the_tasks_are_short() {
        let counter = Counter(shipped());
        for dataset in Dataset::ALL {
            let path = crate::root().join("datasets").join(dataset.folder()).join("train.jsonl");
            let [_, whole] = counter.rows(&path).unwrap();
            assert!(whole.longest <= 220 && whole.total / whole.count <= 130, "{whole:?}");
        }
    }
}
