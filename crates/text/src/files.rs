//! Reading the files of a tokenizer folder, none larger than an honest one can be.

use crate::message::describe;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;
use taper_diagnostics::{TextSource, TooLong};

/// The largest tokenizer.json read, in bytes; those of 262k entries take 34 MB.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// The largest of the small JSON files read, in bytes; a tokenizer_config.json that lists 6000 added tokens takes 1.2 MB.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The largest chat template read, in bytes.
pub(crate) const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Where the texts of a tokenizer are. Only `tokenizer` is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// tokenizer.json.
    pub tokenizer: Option<TextSource>,
    /// tokenizer_config.json: the special tokens' names, added tokens, often the chat template.
    pub tokenizer_config: Option<TextSource>,
    /// special_tokens_map.json: the names that tokenizer_config.json does not give.
    pub special_tokens_map: Option<TextSource>,
    /// generation_config.json: `eos_token_id`, one or many.
    pub generation_config: Option<TextSource>,
    /// chat_template.jinja: comes before the template in tokenizer_config.json.
    pub chat_template: Option<TextSource>,
}

impl TokenizerFiles {
    /// The files of those names that exist in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file()).map(TextSource::from);
        Self {
            tokenizer: file("tokenizer.json"),
            tokenizer_config: file("tokenizer_config.json"),
            special_tokens_map: file("special_tokens_map.json"),
            generation_config: file("generation_config.json"),
            chat_template: file("chat_template.jinja"),
        }
    }
}

/// The bytes of a text, at most `limit` of them.
pub(crate) fn read_capped(source: &TextSource, limit: u64) -> Result<Vec<u8>> {
    source.read(limit).map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(TooLong { path, bytes, limit }) => {
            Error::TooLarge { path: path.clone(), bytes: *bytes, limit: *limit }
        }
        None => error.into(),
    })
}

/// A small JSON text with an object at its top; an absent one is an empty object.
pub(crate) fn read_config(source: Option<&TextSource>) -> Result<Map<String, Value>> {
    let Some(source) = source else {
        return Ok(Map::new());
    };
    let content = read_capped(source, MAX_CONFIG_BYTES)?;
    let path = source.path();
    let value: Value =
        serde_json::from_slice(&content).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(field(path, "(the file)", "an object", &other)),
    }
}

/// A template as text.
pub(crate) fn read_template(source: &TextSource) -> Result<String> {
    String::from_utf8(read_capped(source, MAX_TEMPLATE_BYTES)?).map_err(|_| Error::Field {
        path: source.path().to_owned(),
        key: "(the file)".into(),
        expected: "UTF-8 text",
        given: "other bytes".into(),
    })
}

/// A complaint about one value of a file.
pub(crate) fn field(path: &Path, key: &str, expected: &'static str, given: &Value) -> Error {
    Error::Field { path: path.to_owned(), key: key.to_owned(), expected, given: describe(given) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_over_its_limit_is_not_read() {
        let source = TextSource::made("big.json", "0123456789");
        assert_eq!(read_capped(&source, 10).unwrap().len(), 10);
        let error = read_capped(&source, 9).unwrap_err();
        assert_eq!(error.to_string(), "`big.json` holds 10 bytes, the limit is 9");
        assert!(matches!(error, Error::TooLarge { .. }));
    }

    #[test]
    fn a_config_that_is_no_object_is_refused_by_name() {
        let read = |text: &str| read_config(Some(&TextSource::made("tokenizer_config.json", text)));
        let error = read("[1, 2]").unwrap_err().to_string();
        assert!(error.contains("must be an object, not a list of 2"), "{error}");
        let error = read("{\n oops").unwrap_err();
        assert_eq!(taper_diagnostics::Diagnose::location(&error).unwrap().line, Some(2));
    }
}
