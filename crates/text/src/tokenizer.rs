//! Text to token ids and back, with the checkpoint's own tokenizer.json.
//!
//! Two things that such a file may carry are switched off, and said in [`Tokenizer::notes`], because they would spoil
//! training data silently: truncation and padding saved from somebody's run, and BPE dropout, which is random.

use crate::contained::contained;
use crate::files::{MAX_TOKENIZER_BYTES, TokenizerFiles, field, read_capped, read_config};
use crate::{ContentHash, DetokenizerStream, Error, Result, growth};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use taper_diagnostics::TextSource;
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// The names under which a special token can be given, as transformers has them.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Token ids with the piece of text that each came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// Byte range of each token in the text. Several tokens of one character all have the whole character.
    pub offsets: Vec<Range<usize>>,
}

/// A tokenizer and the special tokens that its folder names.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
    specials: Map<String, Value>,
    added: BTreeMap<u32, AddedToken>,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    adds_bos: bool,
    adds_prefix_space: bool,
    notes: Vec<String>,
    fingerprint: [u8; 32],
    /// The bytes of all tokens, once somebody has asked for one's; `None` where the decoder gives tokens none of their own.
    bytes: OnceLock<Option<Vec<Vec<u8>>>>,
}

impl Tokenizer {
    /// Read a tokenizer folder's files.
    ///
    /// # Errors
    /// When there is no tokenizer.json, or a file is too large, not JSON, or of another shape.
    pub fn load(files: &TokenizerFiles) -> Result<Self> {
        let source = files.tokenizer.as_ref().ok_or(Error::NoTokenizer)?;
        contained(|| Self::load_from(source, files)).unwrap_or_else(|panic| {
            Err(Error::BadTokenizer { path: source.path().to_owned(), message: panic })
        })
    }

    fn load_from(source: &TextSource, files: &TokenizerFiles) -> Result<Self> {
        let bytes = read_capped(source, MAX_TOKENIZER_BYTES)?;
        let bad = |message: String| Error::BadTokenizer { path: source.path().to_owned(), message };
        let mut inner = Inner::from_bytes(&bytes).map_err(|e| bad(e.to_string()))?;
        growth::check(&inner).map_err(bad)?;
        let mut notes = Vec::new();
        switch_off_saved_state(&mut inner, &mut notes).map_err(bad)?;

        let config = read_config(files.tokenizer_config.as_ref())?;
        if let Some(from) = &files.tokenizer_config {
            add_missing_tokens(&mut inner, &config, from.path(), &mut notes)?;
        }
        let specials = special_tokens(&config, files)?;
        make_specials_atomic(&mut inner, &specials, &mut notes).map_err(bad)?;

        let id = |name: &str| inner.token_to_id(specials.get(name)?.as_str()?);
        let (bos, pad, unk) = (id("bos_token"), id("pad_token"), id("unk_token"));
        let eos = eos_ids(id("eos_token"), files.generation_config.as_ref())?;
        let fingerprint = fingerprint(&bytes, &config, &specials, &eos);
        let added = inner.get_added_tokens_decoder().into_iter().collect();
        let mut tokenizer = Self {
            inner,
            specials,
            added,
            bos,
            eos,
            pad,
            unk,
            adds_bos: false,
            adds_prefix_space: false,
            notes,
            fingerprint,
            bytes: OnceLock::new(),
        };
        tokenizer.observe(&config)?;
        Ok(tokenizer)
    }

    /// Token ids of `text`; with `add_special`, also what tokenizer.json's post-processor puts around it.
    ///
    /// Special tokens that stand in the text become their ids, as in transformers.
    ///
    /// # Errors
    /// When the tokenizer has no token for a piece of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, add_special)?.ids)
    }

    /// Token ids of `text`, each with its byte range in the text.
    ///
    /// # Errors
    /// When the tokenizer has no token for a piece of the text.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoded> {
        let failed = |message: String| Error::Encode { bytes: text.len(), message };
        let encoding = contained(|| self.inner.encode(text, add_special))
            .map_err(failed)?
            .map_err(|e| failed(e.to_string()))?;
        let offsets = encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets })
    }

    /// The text of `ids`; with `skip_special`, without special tokens.
    ///
    /// # Errors
    /// When the decoder refuses. An id outside the vocabulary is passed over, as in transformers.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let failed = |message: String| Error::Decode { tokens: ids.len(), message };
        contained(|| self.inner.decode(ids, skip_special)).map_err(failed)?.map_err(|e| failed(e.to_string()))
    }

    /// A decoder for ids that come one by one.
    pub fn detokenizer(&self, skip_special: bool) -> DetokenizerStream<'_> {
        DetokenizerStream::new(self, skip_special)
    }

    /// The token of an id, as it stands in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that an id adds to a text, by [`Self::token_bytes`]: parts of a character too. `None` for special tokens, for ids without a
    /// token, and where tokens have no bytes of their own.
    pub fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        let ids = || self.inner.get_vocab(true).into_values().max().map_or(0, |most| most as usize + 1);
        let all = self.bytes.get_or_init(|| self.token_bytes(ids()).ok()).as_ref()?;
        all.get(id as usize).map(Vec::as_slice).filter(|bytes| !bytes.is_empty())
    }

    /// Number of tokens, added ones included. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id that begins a sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The id of tokenizer_config.json's `eos_token`, the one to end an example with.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos.first().copied()
    }

    /// Every id that ends a generation: `eos_token`, then generation_config.json's `eos_token_id`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The id for padding. Nothing here pads; others ask.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The id for what has no token.
    pub fn unk_id(&self) -> Option<u32> {
        self.unk
    }

    /// Whether the tokenizer by itself begins a text with BOS.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether a text by itself gets a space before its first word, as sentencepiece does.
    pub fn adds_prefix_space(&self) -> bool {
        self.adds_prefix_space
    }

    /// Whether the id is a special token: skipped when decoding, never split.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|token| token.special)
    }

    /// The tokens that are found in a text before all else, with their ids.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.added.iter().map(|(id, token)| (*id, token.content.as_str()))
    }

    /// The special tokens by name (`bos_token`, ...), as a chat template sees them.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.specials
    }

    /// What was changed or found odd on loading, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A hash of everything that it was made from: equal ones give equal ids for equal texts.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// What the tokenizer does by itself is asked of it, since its file can say it in many ways.
    fn observe(&mut self, config: &Map<String, Value>) -> Result<()> {
        let probe = self.encode("a", true)?;
        let bare = self.encode("a", false)?;
        self.adds_bos = self.bos.is_some() && probe.first() == self.bos.as_ref() && probe.len() > bare.len();
        let first = bare.first().and_then(|id| self.token(*id)).unwrap_or_default();
        self.adds_prefix_space = first.starts_with('\u{2581}') || first.starts_with('Ġ');
        if let Some(Value::Bool(says)) = config.get("add_bos_token")
            && self.bos.is_some()
            && *says != self.adds_bos
        {
            let does = if self.adds_bos { "adds" } else { "does not add" };
            self.notes.push(format!(
                "tokenizer_config.json says `add_bos_token`: {says}, but tokenizer.json {does} it; tokenizer.json is followed"
            ));
        }
        Ok(())
    }
}

/// Of the texts as they were read: nothing else goes into a tokenizer.
fn fingerprint(
    tokenizer: &[u8],
    config: &Map<String, Value>,
    specials: &Map<String, Value>,
    eos: &[u32],
) -> [u8; 32] {
    let mut hash = ContentHash::new("tokenizer");
    hash.add(tokenizer);
    for map in [config, specials] {
        hash.add(Value::Object(map.clone()).to_string().as_bytes());
    }
    eos.iter().for_each(|id| hash.add_number(u64::from(*id)));
    hash.finish()
}

/// Saved truncation cuts examples, saved padding fills them, dropout makes each encoding another one.
fn switch_off_saved_state(inner: &mut Inner, notes: &mut Vec<String>) -> std::result::Result<(), String> {
    if let Some(truncation) = inner.get_truncation() {
        notes.push(format!(
            "tokenizer.json carries truncation to {} tokens from an earlier run; switched off",
            truncation.max_length
        ));
        inner.with_truncation(None).map_err(|e| e.to_string())?;
    }
    if inner.get_padding().is_some() {
        notes.push("tokenizer.json carries padding from an earlier run; switched off".into());
        inner.with_padding(None);
    }
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && let Some(dropout) = bpe.dropout.filter(|p| *p > 0.0)
    {
        notes.push(format!("tokenizer.json has BPE dropout {dropout}, which is random; switched off"));
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        inner.with_model(ModelWrapper::BPE(bpe));
    }
    Ok(())
}

/// Tokens that tokenizer_config.json lists under `added_tokens_decoder` and tokenizer.json lacks.
fn add_missing_tokens(
    inner: &mut Inner,
    config: &Map<String, Value>,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<()> {
    let listed = match config.get("added_tokens_decoder") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(listed)) => listed,
        Some(other) => return Err(field(path, "added_tokens_decoder", "an object", other)),
    };
    let mut missing = BTreeMap::new();
    for (id, token) in listed {
        let key = format!("added_tokens_decoder.{id}");
        let number: u32 =
            id.parse().map_err(|_| field(path, &key, "keyed by a token id", &Value::String(id.clone())))?;
        let content = token
            .get("content")
            .and_then(Value::as_str)
            .ok_or_else(|| field(path, &key, "an object with `content`", token))?;
        if inner.token_to_id(content).is_none() {
            missing.insert(number, added_token(content, token));
        }
    }
    for (id, token) in missing {
        let content = token.content.clone();
        inner.add_tokens([token]).map_err(|e| field_error(path, &content, &e.to_string()))?;
        if inner.token_to_id(&content) != Some(id) {
            let given = format!("the id {id}, where the vocabulary of tokenizer.json continues elsewhere");
            return Err(field_error(path, &content, &given));
        }
        notes.push(format!("`{content}` is in tokenizer_config.json alone; added as id {id}"));
    }
    Ok(())
}

fn field_error(path: &Path, token: &str, given: &str) -> Error {
    Error::Field {
        path: path.to_owned(),
        key: format!("added_tokens_decoder (`{token}`)"),
        expected: "a token that tokenizer.json has or can take",
        given: given.to_owned(),
    }
}

fn added_token(content: &str, flags: &Value) -> AddedToken {
    let flag = |name: &str, default| flags.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", false);
    AddedToken::from(content, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .normalized(flag("normalized", !special))
}

/// `bos_token` and its like: tokenizer_config.json first, special_tokens_map.json for what it leaves open.
fn special_tokens(config: &Map<String, Value>, files: &TokenizerFiles) -> Result<Map<String, Value>> {
    let fallback = read_config(files.special_tokens_map.as_ref())?;
    let mut specials = Map::new();
    for name in SPECIAL_NAMES {
        let (value, source) = match (config.get(name), fallback.get(name)) {
            (Some(value), _) if !value.is_null() => (value, &files.tokenizer_config),
            (_, Some(value)) if !value.is_null() => (value, &files.special_tokens_map),
            _ => continue,
        };
        let path = source.as_ref().map_or(Path::new("tokenizer_config.json"), TextSource::path);
        let text = value.get("content").unwrap_or(value);
        let Some(text) = text.as_str() else {
            return Err(field(path, name, "a string or an object with `content`", value));
        };
        specials.insert(name.to_owned(), Value::String(text.to_owned()));
    }
    Ok(specials)
}

/// A named special token is found in a text as a whole, even where tokenizer.json has it as an ordinary entry.
fn make_specials_atomic(
    inner: &mut Inner,
    specials: &Map<String, Value>,
    notes: &mut Vec<String>,
) -> std::result::Result<(), String> {
    for (name, token) in specials {
        let Some(text) = token.as_str().filter(|text| !text.is_empty()) else {
            continue;
        };
        match inner.token_to_id(text) {
            None => notes
                .push(format!("`{name}` is `{text}`, which the vocabulary does not have; it is not used")),
            Some(id) if !inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) => {
                inner.add_special_tokens([AddedToken::from(text, true)]).map_err(|e| e.to_string())?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// `eos_token`, then `eos_token_id` of generation_config.json: a number or a list.
fn eos_ids(first: Option<u32>, generation: Option<&TextSource>) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = first.into_iter().collect();
    let config = read_config(generation)?;
    let (Some(source), Some(value)) = (generation, config.get("eos_token_id")) else {
        return Ok(ids);
    };
    let listed: &[Value] = match value {
        Value::Null => &[],
        Value::Array(many) => many,
        one => std::slice::from_ref(one),
    };
    for value in listed {
        let id = value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| field(source.path(), "eos_token_id", "a token id or a list of them", value))?;
        // An id that only the model knows (its embedding may be larger) can still be generated.
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
