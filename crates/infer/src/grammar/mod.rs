//! Texts that have to be of a form: JSON, JSON by a schema, a regular expression, a grammar, one of several texts.
//!
//! [`GrammarCompiler`] knows the bytes of a tokenizer's tokens; [`GrammarCompiler::compile`] makes a [`CompiledGrammar`] of a
//! [`Grammar`], within bounds since grammars come from outside; and a [`GrammarMatcher`] of it follows one text and tells which tokens
//! may come next. The work is done by the `llguidance` crate (an Earley parser over a lexer of derivatives of regular expressions,
//! run over a trie of the vocabulary).

mod compiler;
mod limits;
mod mask;
mod matcher;
mod place;

pub use compiler::{CompiledGrammar, GrammarCompiler};
pub use mask::TokenMask;
pub use matcher::GrammarMatcher;

use serde_json::Value;
use std::time::Duration;

/// The form of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON object.
    JsonObject,
    /// A JSON value by a JSON Schema. What a schema may say is what can be held to token by token (draft 2020-12 and older: types,
    /// `enum`, `const`, bounds, `pattern`, most of `format`, objects and arrays, `anyOf`, `allOf`, `$ref` inside the schema, `oneOf` of
    /// schemas that exclude one another); other keywords of the draft are refused, unknown ones mean nothing.
    JsonSchema(Value),
    /// All of the text matches a regular expression, in the syntax of the `regex` crate, without look-around.
    Regex(String),
    /// A context-free grammar in llguidance's kind of Lark syntax.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// Why a grammar is refused, or a text cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// It is larger than any honest one.
    #[error("the {what} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The most.
        limit: usize,
    },
    /// It is nested deeper than any honest one.
    #[error("the {what} is nested deeper than {limit} levels at {place}")]
    TooDeep {
        /// What it is.
        what: &'static str,
        /// Where: a JSON Pointer (`#/properties/name`), or a byte.
        place: String,
        /// The most.
        limit: usize,
    },
    /// It is wrong, or says what cannot be held to.
    #[error("the {what} cannot be used{}: {message}", at(place))]
    Invalid {
        /// What it is.
        what: &'static str,
        /// The JSON Pointer of the innermost schema that is at fault, where that could be found.
        place: Option<String>,
        /// Why.
        message: String,
    },
    /// It takes too long to prepare.
    #[error("the {what} took more than {} s to prepare", limit.as_secs_f64())]
    TooSlow {
        /// What it is.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// As many grammars are being prepared as may.
    #[error("{running} grammars are being prepared already")]
    Busy {
        /// How many.
        running: usize,
    },
    /// The tokenizer cannot be used with grammars.
    #[error("this model's tokenizer cannot write by a grammar: {0}")]
    Tokenizer(String),
    /// The text cannot go on: a token that is not allowed, or a grammar that became too large on the way.
    #[error("the text cannot go on by its grammar: {0}")]
    Matching(String),
}

fn at(place: &Option<String>) -> String {
    place.as_ref().map(|place| format!(" at {place}")).unwrap_or_default()
}
