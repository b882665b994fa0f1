//! The API key: read once, sent in a header, shown nowhere.

use super::{Error, Result};
use std::fmt;
use ureq::http::HeaderValue;

/// A key and the variable it came from.
#[derive(Clone)]
pub(super) struct Key {
    variable: String,
    secret: String,
    header: HeaderValue,
}

impl Key {
    /// The value of `variable`, without white space around it.
    pub(super) fn new(variable: &str, value: Option<String>) -> Result<Self> {
        let wrong = |what| Error::Key { variable: variable.to_owned(), what };
        let value = value.ok_or_else(|| wrong("not set, or not Unicode"))?;
        let secret = value.trim();
        if secret.is_empty() {
            return Err(wrong("empty"));
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {secret}"))
            .map_err(|_| wrong("not a key: it has characters that no header can carry"))?;
        header.set_sensitive(true);
        Ok(Self { variable: variable.to_owned(), secret: secret.to_owned(), header })
    }

    pub(super) fn variable(&self) -> &str {
        &self.variable
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// A text without the key.
    pub(super) fn scrubbed(&self, text: &str) -> String {
        text.replace(&self.secret, "[key]")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(from `{}`)", self.variable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_trimmed_and_not_shown() {
        let key = Key::new("MY_KEY", Some(" secret-1\n".into())).unwrap();
        assert_eq!(key.header().to_str().unwrap(), "Bearer secret-1");
        assert_eq!(format!("{key:?}"), "Key(from `MY_KEY`)");
        assert!(!format!("{:?}", key.header()).contains("secret"));
        assert_eq!(key.scrubbed("wrong key secret-1!"), "wrong key [key]!");
    }

    #[test]
    fn a_key_that_cannot_be_sent_is_told_by_its_variable() {
        for value in [None, Some(" \n"), Some("secret\u{7}1")] {
            let error = Key::new("MY_KEY", value.map(str::to_owned)).unwrap_err().to_string();
            assert!(error.contains("`MY_KEY`") && !error.contains("secret"), "{error}");
        }
    }
}
