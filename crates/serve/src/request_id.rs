//! Ids that nobody can guess: of requests, answers and tool calls.

use axum::http::{HeaderMap, HeaderValue};

/// The header that carries a request's id, both ways.
pub(crate) const HEADER: &str = "x-request-id";
const LETTERS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The client's own id where it is one that a log can take, or a new one.
pub(crate) fn of_request(headers: &HeaderMap) -> HeaderValue {
    let sound = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let given = headers.get(HEADER).filter(sound).cloned();
    given.or_else(|| HeaderValue::from_str(&random(24)).ok()).unwrap_or(HeaderValue::from_static("-"))
}

/// So many random letters and digits.
pub(crate) fn random(length: usize) -> String {
    let mut bytes = vec![0u8; length];
    // Without a source of randomness the ids are not unique, and nothing else is lost.
    let _ = getrandom::fill(&mut bytes);
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

/// A random seed.
pub(crate) fn seed() -> u64 {
    getrandom::u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_kept_only_where_a_log_can_take_it() {
        let id = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_str(given).unwrap());
            of_request(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(id("req-1_a.B"), "req-1_a.B");
        for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
            assert_eq!(id(bad).len(), 24, "{bad}");
        }
        assert_ne!(of_request(&HeaderMap::new()), of_request(&HeaderMap::new()));
    }
}
