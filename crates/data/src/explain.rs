//! An example as the model will see it, for people.

use crate::encode::Encode;
use crate::error::{Error, Result};
use crate::example::{Example, RowPlace};
use serde::Serialize;
use std::fmt::Write as _;

/// One token of an explained example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedToken {
    /// The token id.
    pub id: u32,
    /// The token as a person reads it; white space is made visible by [`Explanation::table`].
    pub token: String,
    /// Whose it is: a role, `template`, `prompt`, `completion` or `text`.
    pub role: String,
    /// Whether it is learned.
    pub supervised: bool,
}

/// An example, token by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The row.
    pub place: RowPlace,
    /// The text that was tokenised.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<ExplainedToken>,
    /// Tokens allowed by `data.max_length`; those after it are cut or the example is left out.
    pub max_length: usize,
}

/// Explain sample `index` (from 0).
///
/// # Errors
/// [`Error::NoSuchSample`], or what the encoder says.
pub fn explain(
    examples: &[Example],
    index: usize,
    encoder: &dyn Encode,
    max_length: usize,
) -> Result<Explanation> {
    let count = examples.len();
    let example = examples.get(index).ok_or(Error::NoSuchSample { index, count })?;
    let (text, mut tokens) = encoder.explain(example)?;
    if let Some(first) = tokens.first_mut() {
        // Nothing predicts the first token.
        first.supervised = false;
    }
    Ok(Explanation { place: example.place.clone(), text, tokens, max_length })
}

impl Explanation {
    /// Tokens that are learned.
    pub fn supervised(&self) -> usize {
        self.tokens.iter().filter(|token| token.supervised).count()
    }

    /// A table in plain text: position, id, token, role, and `*` where the token is learned.
    pub fn table(&self) -> String {
        let shown: Vec<String> = self.tokens.iter().map(|token| visible(&token.token)).collect();
        let width = shown.iter().map(|token| token.chars().count()).max().unwrap_or(0).clamp(5, 24);
        let roles = self.tokens.iter().map(|token| token.role.len()).max().unwrap_or(0).max(4);
        let mut table =
            format!("{:>5}  {:>7}  {:<width$}  {:<roles$}  learned\n", "at", "id", "token", "role");
        for (at, (token, shown)) in self.tokens.iter().zip(&shown).enumerate() {
            let mark = match (token.supervised, at < self.max_length) {
                (_, false) => "over max_length",
                (true, true) => "*",
                (false, true) => "",
            };
            let line = format!("{at:>5}  {:>7}  {shown:<width$}  {:<roles$}  {mark}", token.id, token.role);
            table.push_str(line.trim_end());
            table.push('\n');
        }
        let (tokens, learned) = (self.tokens.len(), self.supervised());
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{}: {tokens} tokens, {learned} learned", self.place);
        table
    }
}

/// Control characters as escapes, a blank as `␣`.
fn visible(token: &str) -> String {
    token
        .chars()
        .flat_map(|c| match c {
            ' ' => vec!['␣'],
            c if c.is_control() => c.escape_default().collect(),
            c => vec![c],
        })
        .collect()
}
