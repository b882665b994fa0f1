//! Bounds on grammars, checked before anything is made of them.

use super::{Grammar, GrammarError};
use llguidance::api::ParserLimits;
use serde_json::Value;

/// Most bytes of a schema, a grammar or a list of choices.
const MAX_BYTES: usize = 128 << 10;
/// Most bytes of a regular expression.
const MAX_REGEX_BYTES: usize = 16 << 10;
/// Most levels of objects and lists of a schema, or of brackets of a regular expression or a grammar.
const MAX_DEPTH: usize = 64;

impl Grammar {
    /// What it is called in errors.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "grammar",
            Self::Choice(_) => "choice",
        }
    }

    /// Whether it keeps within the bounds.
    pub(super) fn check_limits(&self) -> Result<(), GrammarError> {
        let what = self.what();
        match self {
            Self::JsonObject => Ok(()),
            Self::JsonSchema(schema) => {
                check_depth(schema, &mut Vec::new())?;
                check_size(what, schema.to_string().len(), MAX_BYTES)
            }
            Self::Regex(regex) => {
                check_size(what, regex.len(), MAX_REGEX_BYTES)?;
                check_brackets(what, regex)
            }
            Self::Lark(lark) => {
                check_size(what, lark.len(), MAX_BYTES)?;
                check_brackets(what, lark)
            }
            Self::Choice(texts) => {
                check_size(what, texts.iter().map(String::len).sum(), MAX_BYTES)?;
                let wrong =
                    |message: &str| GrammarError::Invalid { what, place: None, message: message.into() };
                if texts.is_empty() {
                    return Err(wrong("it has no text to choose"));
                }
                if texts.iter().any(String::is_empty) {
                    return Err(wrong("one of its texts is empty"));
                }
                Ok(())
            }
        }
    }
}

/// What the parser may spend. Its own defaults but for the states of the lexer, a kilobyte or two each, and the size of the grammar,
/// whose defaults are for trusted schemas of megabytes.
pub(super) fn parser_limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn check_size(what: &'static str, bytes: usize, limit: usize) -> Result<(), GrammarError> {
    if bytes > limit { Err(GrammarError::TooLarge { what, bytes, limit }) } else { Ok(()) }
}

fn check_depth<'v>(value: &'v Value, path: &mut Vec<&'v str>) -> Result<(), GrammarError> {
    if path.len() > MAX_DEPTH {
        let place = format!("#/{}/...", path[..8].join("/"));
        return Err(GrammarError::TooDeep { what: "JSON schema", place, limit: MAX_DEPTH });
    }
    let children: Box<dyn Iterator<Item = (&str, &Value)>> = match value {
        Value::Object(map) => Box::new(map.iter().map(|(key, value)| (key.as_str(), value))),
        Value::Array(list) => Box::new(list.iter().map(|value| ("*", value))),
        _ => return Ok(()),
    };
    for (key, child) in children {
        path.push(key);
        check_depth(child, path)?;
        path.pop();
    }
    Ok(())
}

/// Brackets in strings and classes count too: it is a bound, not a parser.
fn check_brackets(what: &'static str, text: &str) -> Result<(), GrammarError> {
    let (mut depth, mut escaped) = (0usize, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(GrammarError::TooDeep { what, place: format!("byte {at}"), limit: MAX_DEPTH });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_too_large_or_too_deep_is_refused_before_it_is_read() {
        let nested = (0..60).fold(json!({}), |inner, _| json!({ "items": inner }));
        assert!(Grammar::JsonSchema(nested.clone()).check_limits().is_ok());
        let deeper = (0..100_000).fold(nested, |inner, _| json!({ "items": inner }));
        let error = Grammar::JsonSchema(deeper.clone()).check_limits().unwrap_err();
        assert!(error.to_string().contains("deeper than 64 levels at #/items/items"), "{error}");
        // Its own drop recurses once for each level.
        std::mem::forget(deeper);

        let large = Grammar::JsonSchema(json!({ "description": "x".repeat(MAX_BYTES) }));
        assert!(matches!(large.check_limits(), Err(GrammarError::TooLarge { .. })));
        let deep = Grammar::Regex("(".repeat(65));
        assert!(matches!(deep.check_limits(), Err(GrammarError::TooDeep { .. })));
        assert!(Grammar::Regex("(a)".repeat(100)).check_limits().is_ok());
        assert!(Grammar::Regex(r"\(".repeat(100)).check_limits().is_ok());
        assert!(Grammar::Lark("[".repeat(65)).check_limits().is_err());
    }

    #[test]
    fn a_choice_needs_texts() {
        for texts in [vec![], vec![String::new()]] {
            assert!(matches!(Grammar::Choice(texts).check_limits(), Err(GrammarError::Invalid { .. })));
        }
    }
}
