//! Ollama's own API, so that what speaks nothing else can connect.

mod info;
mod request;
mod wire;

pub(crate) use info::{ps, show, tags};
pub(crate) use request::{chat, generate};

/// A moment as Ollama writes it.
fn rfc3339(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or_default();
    let moment =
        time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    moment.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// Now, as Ollama writes it.
fn now() -> String {
    time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// Ollama's clients put `:latest` behind names without a tag.
fn without_latest(model: &str) -> &str {
    model.strip_suffix(":latest").unwrap_or(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc3339() {
        assert_eq!(rfc3339(1_721_952_000), "2024-07-26T00:00:00Z");
        assert!(now().ends_with('Z'));
        assert_eq!((without_latest("a:latest"), without_latest("a:b")), ("a", "a:b"));
    }
}
