//! Server-sent events as a stream of bytes carries them: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// Most bytes of a line; a server that sends more is broken.
const MAX_LINE_BYTES: u64 = 4 << 20;

/// The data of events, one after the other.
pub(super) struct Events<R> {
    reader: R,
}

impl<R: BufRead> Events<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader }
    }

    /// The data of the next event that has any; none at the end. What no empty line has closed is no event.
    pub(super) fn next_data(&mut self) -> Result<Option<String>> {
        let mut data: Option<String> = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            let Some(text) = line.strip_suffix(b"\n") else {
                // The end of the stream, or a line without one.
                return match line.len() as u64 {
                    MAX_LINE_BYTES => Err(Error::new(ErrorKind::InvalidData, "a line of more than 4 MiB")),
                    _ => Ok(None),
                };
            };
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if text.is_empty() {
                match data.take() {
                    Some(data) => return Ok(Some(data)),
                    None => continue,
                }
            }
            if let Some(value) = text.strip_prefix(b"data:") {
                let value = std::str::from_utf8(value.strip_prefix(b" ").unwrap_or(value))
                    .map_err(|_| Error::new(ErrorKind::InvalidData, "an event that is not UTF-8"))?;
                match &mut data {
                    Some(data) => *data = format!("{data}\n{value}"),
                    None => data = Some(value.to_owned()),
                }
                if data.as_ref().is_some_and(|data| data.len() as u64 > MAX_LINE_BYTES) {
                    return Err(Error::new(ErrorKind::InvalidData, "an event of more than 4 MiB"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<String> {
        // A buffer of three bytes cuts every line in pieces.
        let mut events = Events::new(std::io::BufReader::with_capacity(3, bytes));
        std::iter::from_fn(|| events.next_data().unwrap()).collect()
    }

    #[test]
    fn events_end_at_empty_lines_and_comments_are_none() {
        assert_eq!(all(b"data: {\"a\":1}\n\n: alive\n\ndata:x\r\n\r\n"), ["{\"a\":1}", "x"]);
        assert_eq!(all(b"event: note\nid: 7\ndata: one\ndata: two\n\n\n\n"), ["one\ntwo"]);
    }

    #[test]
    fn what_no_empty_line_closes_is_no_event() {
        assert_eq!(all(b"data: whole\n\ndata: cut o"), ["whole"]);
        assert_eq!(all(b"data: whole\n\ndata: cut off\n"), ["whole"]);
        assert_eq!(all(b""), [""; 0]);
    }

    #[test]
    fn endless_lines_and_bytes_that_are_no_text_are_refused() {
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert_eq!(Events::new(endless).next_data().unwrap_err().kind(), ErrorKind::InvalidData);
        let broken: &[u8] = b"data: \xff\n\n";
        assert_eq!(Events::new(broken).next_data().unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
