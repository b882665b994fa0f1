//! Files to tokenised rows, a chunk at a time.
//!
//! The rows of a file are read one after the other, gathered in chunks, and encoded by all threads. Of an example that has
//! become tokens only its keys are kept (see [`ExampleKeys`]), so that memory is one chunk and the tokens, whatever the
//! size of the files. Neither the chunks nor the number of threads change what comes out.

use crate::encode::{Encode, Encoded};
use crate::error::Result;
use crate::example::{Example, ExampleKind};
use crate::load::{LoadReport, read};
use crate::overlap::{ExampleKeys, Keyed};
use crate::section::DataSection;
use crate::token_cache::{ChunkHash, Reuse};
use crate::tokenize::{Outcome, outcome};
use rayon::prelude::*;
use std::path::PathBuf;

/// Examples of a chunk, at most.
const CHUNK_EXAMPLES: usize = 4096;
/// Bytes of its examples after which a chunk is full; a single row has up to 8 MiB.
const CHUNK_BYTES: u64 = 16 << 20;

/// One example that was read and encoded.
pub(crate) struct StreamedRow {
    pub(crate) keys: ExampleKeys,
    pub(crate) outcome: Outcome,
    /// Its words, where an evaluation will ask for them.
    pub(crate) example: Option<Box<Example>>,
}

impl Keyed for StreamedRow {
    fn keys(&self) -> &ExampleKeys {
        &self.keys
    }
}

/// The rows of one set.
#[derive(Default)]
pub(crate) struct Streamed {
    pub(crate) rows: Vec<StreamedRow>,
    pub(crate) report: LoadReport,
}

/// How rows become tokens.
pub(crate) struct Stream<'a> {
    pub(crate) section: &'a DataSection,
    pub(crate) encoder: &'a dyn Encode,
    pub(crate) reuse: Reuse<'a>,
}

impl Stream<'_> {
    /// Read and encode the files of one set. `keep_words`: whether the examples themselves are kept, with their `fields`; where
    /// they are not, the names only say which columns are no surprise.
    ///
    /// # Errors
    /// As for [`crate::load()`].
    pub(crate) fn read(
        &mut self,
        paths: &[PathBuf],
        fields: &[String],
        keep_words: bool,
    ) -> Result<Streamed> {
        let mut rows = Vec::new();
        let mut chunk = Chunk::new(&self.reuse);
        let report = read(paths, self.section, fields, &mut |mut example| {
            if !keep_words {
                example.fields.clear();
            }
            chunk.push(example);
            if chunk.is_full() {
                let full = std::mem::replace(&mut chunk, Chunk::new(&self.reuse));
                self.encode(full, keep_words, &mut rows);
            }
        })?;
        self.encode(chunk, keep_words, &mut rows);
        Ok(Streamed { rows, report })
    }

    fn encode(&mut self, chunk: Chunk, keep_words: bool, rows: &mut Vec<StreamedRow>) {
        if chunk.examples.is_empty() {
            return;
        }
        let encoded = self.encoded(&chunk.examples, chunk.hash);
        let row = |(example, encoded): (Example, Result<Encoded>)| StreamedRow {
            keys: ExampleKeys::of(&example),
            outcome: self.outcome(&example, encoded),
            example: keep_words.then(|| Box::new(example)),
        };
        rows.par_extend(chunk.examples.into_par_iter().zip(encoded).map(row));
    }

    /// The examples encoded: from an earlier run what it kept, the rest now.
    fn encoded(&mut self, examples: &[Example], hash: Option<ChunkHash>) -> Vec<Result<Encoded>> {
        let key = hash.map(ChunkHash::finish);
        if let Some(kept) = key.as_ref().and_then(|key| self.reuse.take(key, examples.len())) {
            let encode = |(example, kept): (&Example, Option<Encoded>)| {
                kept.map_or_else(|| self.encoder.encode(example), Ok)
            };
            return examples.par_iter().zip(kept).map(encode).collect();
        }
        let encoded: Vec<_> = examples.par_iter().map(|example| self.encoder.encode(example)).collect();
        if let Some(key) = key {
            self.reuse.keep(&key, &encoded);
        }
        encoded
    }

    fn outcome(&self, example: &Example, encoded: Result<Encoded>) -> Outcome {
        if matches!(example.kind, ExampleKind::Chat { .. }) && !self.encoder.has_chat_template() {
            return Outcome::NoTemplate(example.place.clone());
        }
        outcome(example, encoded, self.section)
    }
}

/// Examples that are encoded together.
struct Chunk {
    examples: Vec<Example>,
    /// What names their tokens in the cache; `None` without one.
    hash: Option<ChunkHash>,
    bytes: u64,
}

impl Chunk {
    fn new(reuse: &Reuse<'_>) -> Self {
        Self { examples: Vec::new(), hash: reuse.hash(), bytes: 0 }
    }

    fn push(&mut self, example: Example) {
        self.bytes += example.size_bytes();
        if let Some(hash) = &mut self.hash {
            hash.add(&example.kind);
        }
        self.examples.push(example);
    }

    fn is_full(&self) -> bool {
        self.examples.len() >= CHUNK_EXAMPLES || self.bytes >= CHUNK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::RowPlace;
    use serde_json::json;
    use std::path::Path;
    use taper_text::Message;

    fn example(kind: ExampleKind) -> Example {
        let place = RowPlace { file: Path::new("a.jsonl").into(), line: 1, element: None };
        Example::new(place, kind)
    }

    /// How many of these examples fill a chunk.
    fn fill(kind: &ExampleKind) -> usize {
        let mut chunk = Chunk { examples: Vec::new(), hash: None, bytes: 0 };
        while !chunk.is_full() {
            chunk.push(example(kind.clone()));
        }
        chunk.examples.len()
    }

    #[test]
    fn a_chunk_is_bounded_in_examples_and_in_bytes_wherever_they_stand() {
        assert_eq!(fill(&ExampleKind::Text("short".into())), CHUNK_EXAMPLES);
        let long = "x".repeat(1 << 20);
        assert_eq!(fill(&ExampleKind::Text(long.clone())), 16);
        assert_eq!(fill(&ExampleKind::Completion { prompt: long.clone(), completion: "x".into() }), 16);
        let chat = |message: Message, tools| ExampleKind::Chat {
            messages: vec![message],
            tools,
            last_turn_only: false,
        };
        assert_eq!(fill(&chat(Message::new("user", long.as_str()), Vec::new())), 16);
        assert_eq!(fill(&chat(Message::new("user", "x"), vec![json!({"a": [long.as_str()]})])), 16);
        let mut with_key = Message::new("user", "x");
        with_key.extra.insert("thoughts".into(), json!({ "deep": long }));
        assert_eq!(fill(&chat(with_key, Vec::new())), 16);
    }
}
