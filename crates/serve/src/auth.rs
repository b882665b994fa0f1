//! API keys, compared in constant time.

use crate::Error;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::path::Path;
use subtle::{Choice, ConstantTimeEq};

/// The environment variable that keys can be given in, comma-separated.
pub const API_KEYS_VARIABLE: &str = "TAPER_API_KEYS";
/// A key that is shorter can be guessed.
const SHORTEST: usize = 8;

/// The keys of which a request must bring one; none is asked for where there is none.
///
/// Their hashes are kept, so that all comparisons are over 32 bytes and take as long whatever was given.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

impl ApiKeys {
    /// Keys of `file`, one a line (empty lines and those with `#` are passed over), and of `variable`, comma-separated.
    ///
    /// # Errors
    /// When the file cannot be read or has no key, or a key is shorter than 8 characters or has characters that a header cannot have.
    pub fn read(file: Option<&Path>, variable: Option<&str>) -> Result<Self, Error> {
        let mut keys = Self::default();
        if let Some(path) = file {
            let text = fs_err::read_to_string(path).map_err(Error::Io)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            for key in lines {
                keys.add(key, &format!("`{}`", path.display()))?;
            }
            if keys.is_empty() {
                return Err(Error::NoKey { path: path.to_owned() });
            }
        }
        let given = variable.unwrap_or_default().split(',').map(str::trim).filter(|key| !key.is_empty());
        for key in given {
            keys.add(key, API_KEYS_VARIABLE)?;
        }
        Ok(keys)
    }

    fn add(&mut self, key: &str, origin: &str) -> Result<(), Error> {
        let bad = |what| Err(Error::BadKey { origin: origin.to_owned(), what });
        if key.len() < SHORTEST {
            return bad("is shorter than 8 characters");
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return bad("has characters that a header cannot have");
        }
        self.0.push(hashed(key.as_bytes()));
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request may pass: it has exactly one `Authorization: Bearer KEY` with one of the keys.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        if self.is_empty() {
            return true;
        }
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else { return false };
        let Some((scheme, key)) = value.as_bytes().split_at_checked(7) else { return false };
        let key = hashed(key.trim_ascii());
        let known = self.0.iter().fold(Choice::from(0), |known, one| known | one.ct_eq(&key));
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(known)
    }
}

fn hashed(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn with(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn one_of_the_keys_is_needed_and_nothing_else_passes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        fs_err::write(&file, "# for the team\n\nfirst-key-1\n second-key-2 \n").unwrap();
        let keys = ApiKeys::read(Some(&file), Some("third-key-3, ")).unwrap();
        for good in ["Bearer first-key-1", "bearer second-key-2", "Bearer  third-key-3"] {
            assert!(keys.admit(&with(&[good])), "{good}");
        }
        for bad in [
            "first-key-1",
            "Basic first-key-1",
            "Bearer ",
            "Bearer first-key-",
            "Bearer first-key-1x",
            "Bearer first-key-1,second-key-2",
            "Bearer # for the team",
        ] {
            assert!(!keys.admit(&with(&[bad])), "{bad}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
        assert!(!keys.admit(&with(&["Bearer first-key-1", "Bearer first-key-1"])));
        assert!(ApiKeys::default().admit(&HeaderMap::new()));
    }

    #[test]
    fn keys_that_protect_nothing_are_refused_without_being_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        fs_err::write(&file, "# none\n").unwrap();
        assert!(matches!(ApiKeys::read(Some(&file), None), Err(Error::NoKey { .. })));
        assert!(matches!(ApiKeys::read(Some(&folder.path().join("absent")), None), Err(Error::Io(_))));
        for (key, says) in [("brief", "shorter"), ("with a space", "a header cannot")] {
            let error = ApiKeys::read(None, Some(key)).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains(key), "{error}");
        }
        assert_eq!(format!("{:?}", ApiKeys::read(None, Some("secret-key")).unwrap()), "ApiKeys(1)");
    }
}
