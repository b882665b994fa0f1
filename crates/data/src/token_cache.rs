//! Tokens that an earlier run made, kept on the disk by what they were made from.
//!
//! The name of a file is a hash of all that its tokens depend on: each example of a chunk, word for word as the encoder gets it
//! (so whatever key of `[data]`, or byte of a data file, changes an example changes the name), the tokenizer, the chat template,
//! what is learned, and the version of the rules that make tokens. `max_length` and `truncation` are applied to what is read, so
//! that another length needs no other file. Rows are read and checked in every run: what is told of them is the same.

use crate::encode::{Encode, Encoded};
use crate::error::Result;
use crate::example::ExampleKind;
use crate::token_file::{self, ChunkKey, MAX_FILE_BYTES};
use serde_json::Value;
use std::path::{Path, PathBuf};
use taper_diagnostics::{KeptFiles, Location, Problem, Problems};
use taper_text::{Content, ContentHash};

/// Raise it with every change of what tokens, mask or facts an example becomes, and of the file's layout. A test holds the
/// tokens of some examples against it.
const RULES: u64 = 1;
/// Bytes of all files together; of more, those that were not used for the longest time are removed. A billion tokens.
const MAX_BYTES: u64 = 4 << 30;
/// What their names end with.
const EXTENSION: &str = "tokens";
/// Broken files that are told one by one.
const MOST_TOLD: usize = 3;

/// The folder in which tokens are kept: as confidential as the text they stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCache {
    files: KeptFiles,
}

impl TokenCache {
    /// A cache in `folder`, which is the cache's own: old files in it are removed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { files: KeptFiles::new(folder, EXTENSION, MAX_FILE_BYTES) }
    }

    /// `tokens` in the folder that `TAPER_CACHE_DIR` names, else in `taper` in the user's cache folder (`XDG_CACHE_HOME`, else
    /// `.cache` at home). `None` for a user who has no home.
    pub fn from_env() -> Option<Self> {
        KeptFiles::from_env("tokens", EXTENSION, MAX_FILE_BYTES).map(|files| Self { files })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.files.folder()
    }
}

/// The name of a chunk's file.
fn name(key: &ChunkKey) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a run takes from the cache and adds to it.
pub(crate) struct Reuse<'a> {
    /// The cache, and what the encoder's tokens depend on.
    cache: Option<(&'a TokenCache, [u8; 32])>,
    reused: usize,
    broken: usize,
    /// Whether something was added.
    grew: bool,
    problems: Problems,
}

impl<'a> Reuse<'a> {
    pub(crate) fn new(cache: Option<&'a TokenCache>, encoder: &dyn Encode) -> Self {
        let cache = cache.zip(encoder.fingerprint());
        Self { cache, reused: 0, broken: 0, grew: false, problems: Problems::new() }
    }

    /// The name of a chunk, before its first example. `None` when nothing is kept.
    pub(crate) fn hash(&self) -> Option<ChunkHash> {
        self.cache.map(|(_, encoder)| ChunkHash::new(&encoder))
    }

    /// What was kept of a chunk.
    pub(crate) fn take(&mut self, key: &ChunkKey, examples: usize) -> Option<Vec<Option<Encoded>>> {
        let (cache, _) = self.cache?;
        let bytes = match cache.files.read(&name(key)) {
            Ok(bytes) => bytes?,
            Err(error) => {
                self.tell_broken(&cache.files.path(&name(key)), &format!("cannot be read: {error}"));
                return None;
            }
        };
        match token_file::read(&bytes, key, examples) {
            Ok(kept) => {
                self.reused += kept.iter().flatten().count();
                cache.files.touch(&name(key));
                Some(kept)
            }
            Err(what) => {
                self.tell_broken(&cache.files.path(&name(key)), what);
                None
            }
        }
    }

    /// Keep a chunk for later runs. After the first failure nothing more is tried.
    pub(crate) fn keep(&mut self, key: &ChunkKey, encoded: &[Result<Encoded>]) {
        let Some((cache, _)) = self.cache else { return };
        let Some(bytes) = token_file::write(key, encoded) else { return };
        match cache.files.write(&name(key), &bytes) {
            Ok(()) => self.grew = true,
            Err(error) => {
                let message = format!("the tokens cannot be kept for the next run: {error}");
                let hint = "name another folder with `TAPER_CACHE_DIR`, or set `data.cache = false`";
                self.problems.push(Problem::warning("token-cache", message).hint(hint));
                self.cache = None;
            }
        }
    }

    /// Keep the folder within its bounds. Gives the number of examples that need not be encoded, and what was wrong.
    pub(crate) fn finish(mut self) -> (usize, Problems) {
        if let Some((cache, _)) = self.cache.filter(|_| self.grew)
            && let Err(error) = cache.files.sweep(MAX_BYTES)
        {
            let message = format!("old tokens cannot be removed: {error}");
            self.problems.push(Problem::warning("token-cache", message));
        }
        (self.reused, self.problems)
    }

    fn tell_broken(&mut self, path: &Path, what: &str) {
        self.broken += 1;
        if self.broken <= MOST_TOLD {
            let message = format!("a file of kept tokens {what}; it is not used");
            let hint = "the tokens were made again and kept anew";
            let problem = Problem::warning("token-cache", message).at(Location::file(path)).hint(hint);
            self.problems.push(problem);
        }
    }
}

/// The name of a chunk in the making.
pub(crate) struct ChunkHash(ContentHash);

impl ChunkHash {
    fn new(encoder: &[u8; 32]) -> Self {
        let mut hash = ContentHash::new("taper tokens");
        hash.add(env!("CARGO_PKG_VERSION").as_bytes());
        hash.add_number(RULES);
        hash.add(encoder);
        Self(hash)
    }

    /// Add an example: all that an encoder sees of it.
    pub(crate) fn add(&mut self, kind: &ExampleKind) {
        let Self(hash) = self;
        match kind {
            ExampleKind::Chat { messages, tools, last_turn_only } => {
                hash.add(b"chat");
                hash.add_number(u64::from(*last_turn_only));
                hash.add_number(messages.len() as u64);
                for message in messages {
                    hash.add(message.role.as_bytes());
                    add_content(hash, &message.content);
                    add_json(hash, message.extra.iter());
                }
                add_json(hash, tools.iter().map(|tool| ("", tool)));
            }
            ExampleKind::Completion { prompt, completion } => {
                hash.add(b"completion");
                hash.add(prompt.as_bytes());
                hash.add(completion.as_bytes());
            }
            ExampleKind::Text(text) => {
                hash.add(b"text");
                hash.add(text.as_bytes());
            }
        }
    }

    pub(crate) fn finish(self) -> ChunkKey {
        self.0.finish()
    }
}

fn add_content(hash: &mut ContentHash, content: &Content) {
    match content {
        Content::Absent => hash.add_number(0),
        Content::Null => hash.add_number(1),
        Content::Text(text) => {
            hash.add_number(2);
            hash.add(text.as_bytes());
        }
        Content::Parts(parts) => {
            hash.add_number(3);
            add_json(hash, parts.iter().map(|part| ("", part)));
        }
    }
}

/// Values with their keys, in their order, which a template may print.
fn add_json<'v, K: AsRef<str>>(
    hash: &mut ContentHash,
    values: impl ExactSizeIterator<Item = (K, &'v Value)>,
) {
    hash.add_number(values.len() as u64);
    for (key, value) in values {
        hash.add(key.as_ref().as_bytes());
        hash.add(value.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::TextEncoder;
    use crate::example::{Example, RowPlace};
    use crate::section::Supervision;
    use serde_json::json;
    use std::collections::BTreeSet;
    use taper_text::{ChatTemplate, Message, Tokenizer, TokenizerFiles};

    fn message(value: Value) -> Message {
        serde_json::from_value(value).unwrap()
    }

    fn chat(messages: Vec<Value>, tools: Vec<Value>, last_turn_only: bool) -> ExampleKind {
        ExampleKind::Chat { messages: messages.into_iter().map(message).collect(), tools, last_turn_only }
    }

    /// Examples of which no two have the same words in the same places.
    fn examples() -> Vec<ExampleKind> {
        let user = json!({"role": "user", "content": "one two"});
        let answer = json!({"role": "assistant", "content": "three"});
        let call = json!({"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]});
        let pair = || vec![user.clone(), answer.clone()];
        let completion = |prompt: &str, completion: &str| ExampleKind::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        vec![
            chat(pair(), vec![], false),
            chat(pair(), vec![], true),
            chat([pair(), pair()].concat(), vec![], false),
            chat([pair(), pair()].concat(), vec![], true),
            chat(pair(), vec![json!({"type": "function", "function": {"name": "f"}})], false),
            chat(pair(), vec![json!({"type": "function", "function": {"name": "g"}})], false),
            chat(
                vec![json!({"role": "system", "content": "s"}), user.clone(), answer.clone()],
                vec![],
                false,
            ),
            chat(
                vec![user.clone(), call, json!({"role": "tool", "content": "4"}), answer.clone()],
                vec![],
                false,
            ),
            chat(
                vec![user.clone(), json!({"role": "assistant", "content": "three", "b": 1, "a": 2})],
                vec![],
                false,
            ),
            chat(
                vec![user.clone(), json!({"role": "assistant", "content": "three", "a": 2, "b": 1})],
                vec![],
                false,
            ),
            chat(vec![user.clone(), json!({"role": "assistant", "content": null})], vec![], false),
            chat(vec![user.clone(), json!({"role": "assistant"})], vec![], false),
            chat(
                vec![user, json!({"role": "assistant", "content": [{"type": "text", "text": "three"}]})],
                vec![],
                false,
            ),
            chat(vec![json!({"role": "useron", "content": "e two"}), answer], vec![], false),
            completion("one ", "two"),
            completion("one", " two"),
            ExampleKind::Text("one two".into()),
        ]
    }

    fn key<'e>(encoder: [u8; 32], examples: impl IntoIterator<Item = &'e ExampleKind>) -> ChunkKey {
        let mut hash = ChunkHash::new(&encoder);
        examples.into_iter().for_each(|example| hash.add(example));
        hash.finish()
    }

    #[test]
    fn every_part_of_an_example_their_order_and_the_encoder_count() {
        let examples = examples();
        let mut keys: BTreeSet<ChunkKey> = examples.iter().map(|one| key([0; 32], [one])).collect();
        keys.insert(key([1; 32], [&examples[0]]));
        keys.insert(key([0; 32], [&examples[0], &examples[1]]));
        keys.insert(key([0; 32], [&examples[1], &examples[0]]));
        assert_eq!(keys.len(), examples.len() + 3);
        assert_eq!(key([0; 32], &examples), key([0; 32], &examples.clone()));
    }

    /// When this fails, examples become other tokens than before: raise [`RULES`], so that none that were kept are used,
    /// and write the new hash here.
    #[test]
    fn the_rules_that_make_tokens_are_those_of_their_number() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat");
        let mut hash = ContentHash::new("rules");
        for (tokenizer, template) in [
            ("chatml", "chatml"),
            ("chatml", "chatml_generation"),
            ("chatml", "chatml_tools"),
            ("llama3", "llama3"),
            ("mistral", "mistral"),
            ("phi3", "phi3"),
            ("gemma", "gemma"),
            ("spm", "zephyr_whitespace"),
        ] {
            let files = TokenizerFiles::in_folder(&golden.join(format!("tokenizer_{tokenizer}")));
            let tokenizer = Tokenizer::load(&files).unwrap();
            let path = golden.join(format!("templates/{template}.jinja"));
            let template = ChatTemplate::from_file(&path, &tokenizer).unwrap();
            let template = template.with_fixed_clock(0, &tokenizer).unwrap();
            for supervise in [Supervision::Assistant, Supervision::LastAssistant, Supervision::All] {
                let encoder = TextEncoder::new(&tokenizer, Some(&template), supervise);
                for kind in examples() {
                    let place = RowPlace { file: Path::new("a.jsonl").into(), line: 1, element: None };
                    let encoded = encoder.encode(&Example::new(place, kind));
                    hash.add(&token_file::write(&[0; 32], &[encoded]).unwrap());
                }
            }
        }
        let found: String = hash.finish().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            (RULES, found.as_str()),
            (1, "82638249bde5a85104f83b5594bb6bac22d5218a635692a075278668cb929a03")
        );
    }
}
