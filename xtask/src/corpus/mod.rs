//! The corpus of the shipped base: plain documents and chats that teach English-like sentences, chat form, JSON, and above
//! all to copy from the prompt. The tasks themselves are not in it: no instruction, answer key, label or sentence of
//! theirs, and no built name or code (see [`crate::names::Pool`]).

mod chat;
mod copying;
mod drill;
mod prose;
mod reading;
mod records;
mod reshaping;
mod text;
mod vocabulary;

use crate::dice::Dice;
use crate::grammar::{Grammar, Scene};
use crate::names::Pool;
use crate::words::WORDS;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
pub(crate) use vocabulary::COMMON;

/// Characters in ten tokens of the shipped tokenizer, over the whole corpus, chat form included (measured; `--tokens` is
/// turned into characters by it, so that the corpus does not depend on the tokenizer that is trained on it).
const CHARACTERS_PER_TEN_TOKENS: usize = 25;
/// Of 100 characters, how many stand in chats.
const CHAT_PERCENT: usize = 64;
/// Of 100 characters, how many stand in drills. The rest is plain text.
const DRILL_PERCENT: usize = 22;
/// One document in this many is set aside for validation.
const VALID_EVERY: u64 = 100;

/// The files that [`write()`] makes.
pub(crate) const FILES: [&str; 6] = [
    "train-text.jsonl",
    "train-chat.jsonl",
    "train-drill.jsonl",
    "valid-text.jsonl",
    "valid-chat.jsonl",
    "valid-drill.jsonl",
];

/// The grammar of the corpus.
pub(crate) fn grammar() -> Grammar {
    Grammar::new(&[WORDS, vocabulary::VOCABULARY, prose::PROSE])
}

/// Plain document `index` as a `{"text": ...}` row.
pub(crate) fn text_row(grammar: &Grammar, seed: u64, index: u64) -> Value {
    let mut scene = Scene::new(grammar, Dice::new(seed, "corpus-text", index), Pool::Corpus);
    json!({ "text": text::document(&mut scene) })
}

/// Chat `index` as a `{"messages": [...]}` row.
pub(crate) fn chat_row(grammar: &Grammar, seed: u64, index: u64) -> Value {
    let mut scene = Scene::new(grammar, Dice::new(seed, "corpus-chat", index), Pool::Corpus);
    json!({ "messages": chat::conversation(&mut scene) })
}

/// Drill `index` as a `{"prompt": ..., "completion": ...}` row.
pub(crate) fn drill_row(seed: u64, index: u64) -> Value {
    drill::row(Dice::new(seed, "corpus-drill", index))
}

/// Write the six files of a corpus of about `tokens` tokens.
pub(crate) fn write(out: &Path, tokens: usize, seed: u64) -> Result<()> {
    let grammar = grammar();
    let characters = tokens * CHARACTERS_PER_TEN_TOKENS / 10;
    let chats = characters * CHAT_PERCENT / 100;
    let drills = characters * DRILL_PERCENT / 100;
    fs_err::create_dir_all(out)?;
    fill(out, "text", characters - chats - drills, |index| text_row(&grammar, seed, index))?;
    fill(out, "chat", chats, |index| chat_row(&grammar, seed, index))?;
    fill(out, "drill", drills, |index| drill_row(seed, index))
}

/// Rows until `characters` of content are reached, every hundredth to the validation file.
fn fill(out: &Path, kind: &str, characters: usize, row: impl Fn(u64) -> Value) -> Result<()> {
    let open = |part: &str| -> Result<_> {
        Ok(std::io::BufWriter::new(fs_err::File::create(out.join(format!("{part}-{kind}.jsonl")))?))
    };
    let (mut train, mut valid) = (open("train")?, open("valid")?);
    let mut written = 0;
    let mut index = 0;
    while written < characters {
        let row = row(index);
        written += contents(&row).iter().map(|text| text.len()).sum::<usize>();
        let file = if index % VALID_EVERY == VALID_EVERY - 1 { &mut valid } else { &mut train };
        writeln!(file, "{row}").context("failed to write the corpus")?;
        index += 1;
    }
    train.flush()?;
    valid.flush()?;
    Ok(())
}

/// The texts of a row of any form.
pub(crate) fn contents(row: &Value) -> Vec<&str> {
    match row.get("messages").and_then(Value::as_array) {
        Some(messages) => messages.iter().filter_map(|m| m["content"].as_str()).collect(),
        None => ["text", "prompt", "completion"].iter().filter_map(|key| row[key].as_str()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deid;
    use crate::tickets;
    use std::collections::BTreeSet;

    #[test]
    fn every_rule_of_the_corpus_expands() {
        let grammar = grammar();
        let mut scene = Scene::new(&grammar, Dice::new(1, "all", 0), Pool::Corpus);
        for name in grammar.names() {
            for template in grammar.rule(name).options {
                let text = scene.fill(template);
                assert!(!text.contains(['{', '}']) || text.starts_with('{'), "{text}");
                scene.forget();
            }
        }
    }

    #[test]
    fn the_same_seed_writes_the_same_bytes_and_another_seed_others() {
        let (a, b, c) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(a.path(), 80_000, 5).unwrap();
        write(b.path(), 80_000, 5).unwrap();
        write(c.path(), 80_000, 6).unwrap();
        for file in FILES {
            let read = |folder: &Path| fs_err::read_to_string(folder.join(file)).unwrap();
            assert!(!read(a.path()).is_empty(), "{file}");
            assert_eq!(read(a.path()), read(b.path()), "{file}");
            assert_ne!(read(a.path()), read(c.path()), "{file}");
        }
    }

    /// Windows of seven words, without digits and case.
    fn windows(text: &str) -> BTreeSet<String> {
        let words: Vec<String> = text
            .split(|c: char| !c.is_alphabetic())
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        words.windows(7).map(|window| window.join(" ")).collect()
    }

    #[test]
    fn no_seven_words_of_a_task_stand_in_a_row_in_the_corpus() {
        let corpus_grammar = grammar();
        let mut seen = BTreeSet::new();
        for index in 0..8000 {
            let rows = [
                text_row(&corpus_grammar, 1, index),
                chat_row(&corpus_grammar, 1, index),
                drill_row(1, index),
            ];
            for row in rows {
                for text in contents(&row) {
                    for mark in
                        ["[NAME]", "[DATE]", "[PHONE]", "[ID]", "[PLACE]", "\"priority\"", "\"customer\""]
                    {
                        assert!(!text.contains(mark), "{text}");
                    }
                    seen.extend(windows(text));
                }
            }
        }
        assert!(seen.len() > 100_000);
        for split in [deid::rows(1), tickets::rows(1)] {
            for row in split.test.iter().chain(&split.train) {
                for text in [&row.system, &row.user, &row.assistant] {
                    let shared: Vec<_> = windows(text).intersection(&seen).cloned().collect();
                    assert!(shared.is_empty(), "{shared:?}");
                }
            }
        }
    }
}
