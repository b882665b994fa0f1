//! A base held against a contract: what differs, by name.

use super::observed::{BaseInUse, file_facts, name_of};
use super::{BaseFacts, Contract, FileFacts, TemplateText, TokenizerFacts};
use crate::Result;
use serde_json::Value;
use std::fmt;
use taper_diagnostics::list_names;

/// Keys of `config.json` that do not change what a model computes: who wrote the file, in which type it is loaded.
const IDLE_KEYS: [&str; 8] = [
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "use_cache",
    "architectures",
    "quantization_config",
    "initializer_range",
];

/// One thing that is not as the adapter was trained with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which part: `base`, `tokenizer` or `chat template`.
    pub part: &'static str,
    /// What differs, with both values.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.what)
    }
}

impl Contract {
    /// What of a base is not as the adapter was trained with; empty when all is. Lengths are looked at before hashes, so that another
    /// base of gigabytes is refused without being read. Where a base lies, how its files are named, and what it is quantised to while
    /// it is loaded make no difference.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn differences(&self, base: &BaseInUse<'_>) -> Result<Vec<Difference>> {
        let mut found = Vec::new();
        let mut note = |part, what: Option<String>| found.extend(what.map(|what| Difference { part, what }));
        note("base", weights(&self.base, base)?);
        note("base", config(&self.base, base)?);
        note("tokenizer", tokenizer(&self.tokenizer, &base.tokenizer_facts()?));
        note("chat template", template(self.chat_template.as_ref(), base.template_text().as_ref()));
        Ok(found)
    }
}

fn weights(trained: &BaseFacts, base: &BaseInUse<'_>) -> Result<Option<String>> {
    let files = base.files.weight_files();
    let trained_names = || list_names(trained.weights.iter().map(|f| &f.file), 5);
    let is_gguf = |name: &str| name.to_lowercase().ends_with(".gguf");
    let trained_gguf = trained.weights.iter().any(|file| is_gguf(&file.file));
    if trained_gguf != base.files.gguf.is_some() && !files.is_empty() {
        let here = list_names(files.iter().map(|path| name_of(path)), 5);
        return Ok(Some(format!(
            "the adapter was trained over {}, and this is {here}: files of two kinds, of which no hash can tell that they hold one model",
            trained_names()
        )));
    }
    if files.len() != trained.weights.len() {
        let here = files.len();
        let there = trained.weights.len();
        return Ok(Some(format!(
            "{here} files of weights, the adapter was trained over {there}: {}",
            trained_names()
        )));
    }
    // Any file of another length settles it before the first hash.
    let mut lengths = Vec::new();
    for path in files {
        let read = |source| crate::Error::Read { path: path.clone(), source };
        lengths.push((fs_err::metadata(path).map_err(read)?.len(), name_of(path)));
    }
    for (bytes, name) in &lengths {
        if !trained.weights.iter().any(|file| file.bytes == *bytes) {
            let there = expected(trained, name).map(|file| file.bytes.to_string());
            let there = there.unwrap_or_else(|| "of other lengths".into());
            return Ok(Some(format!("`{name}` has {bytes} bytes, the adapter was trained over {there}")));
        }
    }
    let mut missing: Vec<&FileFacts> = trained.weights.iter().collect();
    for path in files {
        let here = file_facts(path, base.hashes)?;
        match missing.iter().position(|file| file.sha256 == here.sha256) {
            Some(at) => {
                missing.remove(at);
            }
            None => {
                let there = expected(trained, &here.file).map_or(&trained.weights[0], |file| file);
                let (here, file, there) = (&here.sha256, &here.file, &there.sha256);
                return Ok(Some(format!(
                    "`{file}` has the SHA-256 {here}, the adapter was trained over {there}"
                )));
            }
        }
    }
    Ok(None)
}

fn expected<'a>(trained: &'a BaseFacts, name: &str) -> Option<&'a FileFacts> {
    trained.weights.iter().find(|file| file.file == name)
}

fn config(trained: &BaseFacts, base: &BaseInUse<'_>) -> Result<Option<String>> {
    let here = base.config()?;
    let keys = trained.config.keys().chain(here.keys()).filter(|key| !IDLE_KEYS.contains(&key.as_str()));
    for key in keys {
        // A key that is not there and one that is null are the same to every reader.
        let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
        let (here, there) = (value(&here), value(&trained.config));
        if here != there {
            return Ok(Some(format!(
                "`{key}` in config.json is {here}, the adapter was trained with {there}"
            )));
        }
    }
    Ok(None)
}

fn tokenizer(trained: &TokenizerFacts, here: &TokenizerFacts) -> Option<String> {
    let names = trained.special_tokens.keys().chain(here.special_tokens.keys());
    let shown = |token: Option<&super::SpecialToken>| match token {
        None => "not there".to_owned(),
        Some(token) => match token.id {
            Some(id) => format!("`{}` ({id})", token.content),
            None => format!("`{}` (not in the vocabulary)", token.content),
        },
    };
    for name in names {
        let (one, other) = (here.special_tokens.get(name), trained.special_tokens.get(name));
        if one != other {
            let (one, other) = (shown(one), shown(other));
            return Some(format!(
                "the special token `{name}` is {one}, the adapter was trained with {other}"
            ));
        }
    }
    if here.vocab_size != trained.vocab_size {
        let (one, other) = (here.vocab_size, trained.vocab_size);
        return Some(format!("the vocabulary has {one} tokens, the adapter was trained with {other}"));
    }
    if here.sha256 != trained.sha256 {
        let (one, other) = (&here.sha256, &trained.sha256);
        return Some(format!(
            "`tokenizer.json` has the SHA-256 {one}, the adapter was trained with {other}: the same text may become other tokens"
        ));
    }
    if here.adds_bos != trained.adds_bos {
        let (one, other) = (here.adds_bos, trained.adds_bos);
        return Some(format!("beginning a text with BOS is {one}, the adapter was trained with {other}"));
    }
    if here.stop_ids != trained.stop_ids {
        let (one, other) = (&here.stop_ids, &trained.stop_ids);
        return Some(format!("an answer ends at the ids {one:?}, the adapter was trained with {other:?}"));
    }
    None
}

fn template(trained: Option<&TemplateText>, here: Option<&TemplateText>) -> Option<String> {
    let (trained, here) = match (trained, here) {
        (None, None) => return None,
        (Some(_), None) => return Some("there is none, and the adapter was trained with one".into()),
        (None, Some(_)) => return Some("there is one, and the adapter was trained without".into()),
        (Some(trained), Some(here)) => (&trained.source, &here.source),
    };
    if trained == here {
        return None;
    }
    let (mut there, mut now) = (trained.lines(), here.lines());
    for number in 1.. {
        let (there, now) = (there.next(), now.next());
        if there.is_none() && now.is_none() {
            break;
        }
        if there != now {
            let shown =
                |line: Option<&str>| line.map_or("not there".to_owned(), |line| format!("`{}`", cut(line)));
            let (now, there) = (shown(now), shown(there));
            return Some(format!("line {number} is {now}, the adapter was trained with {there}"));
        }
    }
    Some("it ends otherwise or has other line ends than the one the adapter was trained with".into())
}

/// A line that a message has room for; a template is often one line of thousands.
fn cut(line: &str) -> String {
    const MOST: usize = 160;
    match line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::contract;
    use super::*;
    use taper_hub::Fingerprint;

    #[test]
    fn the_first_special_token_that_differs_is_named() {
        let trained = contract().tokenizer;
        assert_eq!(tokenizer(&trained, &trained), None);
        let mut other = trained.clone();
        other.special_tokens.get_mut("eos_token").unwrap().id = Some(3);
        let what = tokenizer(&trained, &other).unwrap();
        assert_eq!(
            what,
            "the special token `eos_token` is `</s>` (3), the adapter was trained with `</s>` (2)"
        );
        other.special_tokens.clear();
        assert!(tokenizer(&trained, &other).unwrap().contains("is not there"));
        for (changed, part) in [
            (TokenizerFacts { vocab_size: 101, ..trained.clone() }, "101 tokens"),
            (TokenizerFacts { sha256: Fingerprint::of_bytes(b"y"), ..trained.clone() }, "tokenizer.json"),
            (TokenizerFacts { adds_bos: true, ..trained.clone() }, "BOS is true"),
            (TokenizerFacts { stop_ids: vec![2, 5], ..trained.clone() }, "[2, 5]"),
        ] {
            let what = tokenizer(&trained, &changed).unwrap();
            assert!(what.contains(part), "{what}");
        }
    }

    #[test]
    fn the_first_line_of_a_template_that_differs_is_named() {
        let text = |source: &str| {
            Some(TemplateText { sha256: Fingerprint::of_bytes(source.as_bytes()), source: source.into() })
        };
        let differs = |one: &str, other: &str| template(text(one).as_ref(), text(other).as_ref());
        assert_eq!(differs("a\nb", "a\nb"), None);
        assert_eq!(differs("a\nb", "a\nc").unwrap(), "line 2 is `c`, the adapter was trained with `b`");
        assert_eq!(differs("a", "a\nc").unwrap(), "line 2 is `c`, the adapter was trained with not there");
        assert!(differs("a\n", "a").unwrap().contains("ends otherwise"));
        let long = differs("x", &"é".repeat(1000)).unwrap();
        assert!(long.chars().count() < 250 && long.contains("..."), "{long}");
        assert!(template(None, text("a").as_ref()).is_some() && template(text("a").as_ref(), None).is_some());
        assert_eq!(template(None, None), None);
    }
}
