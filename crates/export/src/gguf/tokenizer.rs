//! The tokenizer and the chat template in a file, and that they are the model's own.

use super::error::GgufError;
use crate::Result;
use serde_json::Value;
use std::path::Path;
use taper_diagnostics::{TextSource, list_names};
use taper_hub::ModelFiles;
use taper_hub::gguf::{self, Keys, TokenizerParts};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};

/// The longest tokenizer.json that is read.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// The longest of the other texts.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// The key of the chat template.
const TEMPLATE: &str = "tokenizer.chat_template";
/// How many added tokens the check puts into texts.
const MARKERS: usize = 40;

/// Texts that tokenizers differ in: spaces, digits, cases, marks of punctuation, scripts, what has no token.
const PROBES: [&str; 14] = [
    "Hello, world!",
    "   three spaces   and   more    ",
    " \n \t\n\t\t x\r\n\r\ny\n\n\n",
    "Don't you'll he'S they'RE I'd we've 'tis",
    "0 1 12 123 1234 12345 3.14159 1,000,000 2²³ ½",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case x2y3z",
    "fn main() {\n    let x: Vec<u32> = vec![1, 2];\n\tprintln!(\"{x:?}\");\n}\n",
    "https://example.com/a/b?c=d&e=f#g user@example.org C:\\dir",
    "naïve café Ünïcödé Straße ŁÓDŹ e\u{301}",
    "Быстрая лиса — «прыгает»",
    "你好，世界。日本語とカタカナ、漢字１２３",
    "한국어 नमस्ते สวัสดี مرحبا",
    "🦀 👨\u{200d}👩\u{200d}👧 🇩🇪 👍🏽",
    "!!!??? ... ;;; --- === ### ((([[[{{{}}}]]])))",
];

/// A tokenizer in a file's words, with its template.
pub(super) struct Written {
    pub(super) keys: Keys,
    /// Whether special tokens take the space behind them along.
    pub(super) strips_right: bool,
    pub(super) notes: Vec<String>,
}

/// What a Modelfile takes from a base.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTexts {
    /// The text of the chat template, where there is one.
    pub template: Option<String>,
    /// The texts of the tokens at which a generation stops.
    pub stops: Vec<String>,
}

/// The text of the base's chat template, or of the one that takes its place, and of the tokens at which a generation stops.
///
/// # Errors
/// When the tokenizer or the template cannot be read.
pub fn chat_texts(base: &ModelFiles, template: Option<&Path>) -> Result<ChatTexts> {
    if base.tokenizer.is_none() {
        return Ok(ChatTexts::default());
    }
    let tokenizer = Tokenizer::load(&texts(base)).map_err(GgufError::from)?;
    let chat = chat(base, template, &tokenizer)?;
    let ends = chat.as_ref().map_or_else(|| tokenizer.eos_ids().to_vec(), |chat| chat.stop_ids(&tokenizer));
    let stops = ends.iter().filter_map(|id| tokenizer.token(*id)).collect();
    Ok(ChatTexts { template: chat.map(|chat| chat.source().to_owned()), stops })
}

fn chat(
    base: &ModelFiles,
    template: Option<&Path>,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>, GgufError> {
    Ok(match template {
        Some(path) => Some(ChatTemplate::from_file(path, tokenizer)?),
        None => ChatTemplate::load(&texts(base), tokenizer)?,
    })
}

/// The texts of a base's tokenizer.
pub(super) fn texts(base: &ModelFiles) -> TokenizerFiles {
    TokenizerFiles {
        tokenizer: base.tokenizer.clone(),
        tokenizer_config: base.tokenizer_config.clone(),
        special_tokens_map: base.special_tokens_map.clone(),
        generation_config: base.generation_config.clone(),
        chat_template: base.chat_template.clone(),
    }
}

/// The keys of the base's tokenizer and of its chat template, or the one that takes its place; `None` for a base without a tokenizer.
pub(super) fn keys(
    base: &ModelFiles,
    rows: usize,
    template: Option<&Path>,
) -> Result<Option<Written>, GgufError> {
    let Some(source) = &base.tokenizer else { return Ok(None) };
    let tokenizer = Tokenizer::load(&texts(base))?;
    let chat = chat(base, template, &tokenizer)?;
    let ends = chat.as_ref().map_or_else(|| tokenizer.eos_ids().to_vec(), |chat| chat.stop_ids(&tokenizer));
    let mut written = match &base.gguf {
        Some(path) => copied(path, &tokenizer, &ends, template.is_none())?,
        None => made(&read(source, MAX_TOKENIZER_BYTES)?, &tokenizer, rows, &ends)?,
    };
    match (template, &chat) {
        (Some(_), Some(chat)) => written.keys.text(TEMPLATE, chat.source()),
        _ if base.gguf.is_none() => base_template(base, &mut written.keys)?,
        _ => {}
    }
    Ok(Some(written))
}

/// From tokenizer.json.
fn made(json: &[u8], tokenizer: &Tokenizer, rows: usize, ends: &[u32]) -> Result<Written, GgufError> {
    let added = tokenizer.added_tokens().map(|(id, token)| (id, token, tokenizer.is_special(id))).collect();
    let (bare, whole) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let adds_eos = whole.len() > bare.len()
        && tokenizer.eos_id().is_some()
        && whole.last().copied() == tokenizer.eos_id();
    let written = gguf::tokenizer_keys(&TokenizerParts {
        tokenizer_json: json,
        added,
        rows,
        bos: tokenizer.bos_id(),
        ends,
        unknown: tokenizer.unk_id(),
        padding: tokenizer.pad_id(),
        adds_bos: tokenizer.adds_bos(),
        adds_eos,
    })?;
    Ok(Written { keys: written.keys, strips_right: !written.strips_right.is_empty(), notes: written.notes })
}

/// A base that is a GGUF file has them already; a template that ends a turn otherwise adds its token.
fn copied(
    path: &Path,
    tokenizer: &Tokenizer,
    ends: &[u32],
    with_template: bool,
) -> Result<Written, GgufError> {
    let header = gguf::read_header(path)?;
    let mut keys = Keys::new();
    let wanted = |key: &str| key.starts_with("tokenizer.") && (with_template || !key.starts_with(TEMPLATE));
    for (key, value) in header.metadata.iter().filter(|(key, _)| wanted(key)) {
        keys.value(key, value);
    }
    if let Some(id) = ends.iter().find(|id| !tokenizer.eos_ids().contains(id)) {
        keys.number("tokenizer.ggml.eot_token_id", *id);
    }
    let strips_right =
        gguf::strips_right(&header).map_err(|source| taper_hub::Error::Gguf { path: path.into(), source })?;
    Ok(Written { keys, strips_right, notes: Vec::new() })
}

/// The template of a folder: `chat_template.jinja`, or one or several named ones in tokenizer_config.json.
fn base_template(base: &ModelFiles, keys: &mut Keys) -> Result<(), GgufError> {
    if let Some(source) = &base.chat_template {
        keys.text(TEMPLATE, &String::from_utf8_lossy(&read(source, MAX_TEXT_BYTES)?));
        return Ok(());
    }
    let Some(source) = &base.tokenizer_config else { return Ok(()) };
    // It was read as JSON just before.
    let config: Value = serde_json::from_slice(&read(source, MAX_TEXT_BYTES)?).unwrap_or_default();
    match &config["chat_template"] {
        Value::String(template) => keys.text(TEMPLATE, template),
        Value::Array(named) => {
            let named =
                named.iter().filter_map(|one| Some((one["name"].as_str()?, one["template"].as_str()?)));
            let (default, others): (Vec<_>, Vec<_>) = named.partition(|(name, _)| *name == "default");
            if let Some((_, template)) = default.first() {
                keys.text(TEMPLATE, template);
            }
            for (name, template) in &others {
                keys.text(&format!("{TEMPLATE}.{name}"), template);
            }
            if !others.is_empty() {
                keys.texts("tokenizer.chat_templates", others.iter().map(|(name, _)| *name));
            }
        }
        _ => {}
    }
    Ok(())
}

fn read(source: &TextSource, limit: u64) -> Result<Vec<u8>, GgufError> {
    source.read(limit).map_err(|error| GgufError::Text(error.into()))
}

/// Hold the tokenizer of the file at `path` against the base's; gives notes on added tokens inside texts that it finds otherwise.
///
/// # Errors
/// When a text without added tokens gets other ids.
pub(super) fn check(base: &ModelFiles, path: &Path) -> Result<Vec<String>, GgufError> {
    let own = Tokenizer::load(&texts(base))?;
    let made = gguf::read_companions(path)?;
    let source = |text: Option<String>| text.map(|text| TextSource::made(path, text));
    let written = Tokenizer::load(&TokenizerFiles {
        tokenizer: source(made.tokenizer),
        tokenizer_config: source(made.tokenizer_config),
        generation_config: source(made.generation_config),
        ..TokenizerFiles::default()
    })?;
    for text in PROBES {
        let (given, expected) = (written.encode(text, true)?, own.encode(text, true)?);
        if given != expected {
            return Err(GgufError::TokenizerDiffers { text: text.to_owned(), given, expected });
        }
    }
    let mut other = Vec::new();
    for (_, token) in own.added_tokens().filter(|(_, token)| !gguf::is_byte_token(token)).take(MARKERS) {
        let text = format!("a {token} b{token}c");
        if written.encode(&text, true)? != own.encode(&text, true)? {
            other.push(token.to_owned());
        }
    }
    if other.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![format!("inside a text these tokens get other ids from the file: {}", list_names(&other, 8))])
}
