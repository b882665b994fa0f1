//! Reading the files of a tokenizer folder, none larger than an honest one can be.

use crate::message::describe;
use crate::{Error, Result};
use fs_err as fs;
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest tokenizer.json read, in bytes; those of 262k entries take 34 MB.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// The largest of the small JSON files read, in bytes; a tokenizer_config.json that lists 6000 added tokens takes 1.2 MB.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The largest chat template read, in bytes.
pub(crate) const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Where the files of a tokenizer lie. Only `tokenizer` is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// tokenizer.json.
    pub tokenizer: Option<PathBuf>,
    /// tokenizer_config.json: the special tokens' names, added tokens, often the chat template.
    pub tokenizer_config: Option<PathBuf>,
    /// special_tokens_map.json: the names that tokenizer_config.json does not give.
    pub special_tokens_map: Option<PathBuf>,
    /// generation_config.json: `eos_token_id`, one or many.
    pub generation_config: Option<PathBuf>,
    /// chat_template.jinja: comes before the template in tokenizer_config.json.
    pub chat_template: Option<PathBuf>,
}

impl TokenizerFiles {
    /// The files of those names that exist in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        Self {
            tokenizer: file("tokenizer.json"),
            tokenizer_config: file("tokenizer_config.json"),
            special_tokens_map: file("special_tokens_map.json"),
            generation_config: file("generation_config.json"),
            chat_template: file("chat_template.jinja"),
        }
    }
}

/// The bytes of `path`, at most `limit` of them.
pub(crate) fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > limit {
        return Err(Error::TooLarge { path: path.to_owned(), bytes, limit });
    }
    // The size on the disk may grow, or be unknown (a pipe): count again.
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.to_owned(), bytes: content.len() as u64, limit });
    }
    Ok(content)
}

/// A small JSON file with an object at its top; an absent file is an empty object.
pub(crate) fn read_config(path: Option<&Path>) -> Result<Map<String, Value>> {
    let Some(path) = path else {
        return Ok(Map::new());
    };
    let content = read_capped(path, MAX_CONFIG_BYTES)?;
    let value: Value =
        serde_json::from_slice(&content).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(field(path, "(the file)", "an object", &other)),
    }
}

/// A template file as text.
pub(crate) fn read_template(path: &Path) -> Result<String> {
    String::from_utf8(read_capped(path, MAX_TEMPLATE_BYTES)?).map_err(|_| Error::Field {
        path: path.to_owned(),
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
    fn a_file_over_its_limit_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.json");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read_capped(&path, 10).unwrap().len(), 10);
        let error = read_capped(&path, 9).unwrap_err();
        assert!(error.to_string().ends_with("big.json` holds 10 bytes, the limit is 9"), "{error}");
    }

    #[test]
    fn a_config_that_is_no_object_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer_config.json");
        fs::write(&path, "[1, 2]").unwrap();
        let error = read_config(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("must be an object, not a list of 2"), "{error}");
        fs::write(&path, "{\n oops").unwrap();
        let error = read_config(Some(&path)).unwrap_err();
        assert_eq!(taper_diagnostics::Diagnose::location(&error).unwrap().line, Some(2));
    }
}
