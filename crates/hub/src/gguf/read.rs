//! Reading a header's bytes: every length is checked against what is left before anything is kept.

use super::GgufError;
use super::metadata::{Array, NumberType, Numbers, Texts, Value};

/// The longest header that is read; the largest vocabularies with their merges take 20 MB.
pub const MAX_HEADER_BYTES: usize = 1 << 28;
/// The longest key; the format's own limit.
const MAX_KEY_BYTES: u64 = 65_535;
/// The longest name of a tensor; the format says 64, and builds of GGML with a larger limit exist.
const MAX_NAME_BYTES: u64 = 256;
/// The longest text; a chat template takes some thousands, a whole tokenizer.json 20 millions.
const MAX_TEXT_BYTES: u64 = 1 << 26;
/// How deep arrays may lie in arrays; no known file has any.
const MAX_DEPTH: u32 = 3;
/// The most arrays in an array.
const MAX_ARRAYS: u64 = 1 << 16;
/// The numbers of the two types that are not of fixed size.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// A place in a header, of which the beginning of the file is at hand.
pub(super) struct Reader<'a> {
    start: &'a [u8],
    /// Bytes of the whole file.
    file_len: usize,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(start: &'a [u8], file_len: usize, at: usize) -> Self {
        Self { start, file_len, at }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes between here and the end of what is at hand, or of the longest header.
    fn left(&self) -> u64 {
        self.start.len().min(MAX_HEADER_BYTES).saturating_sub(self.at) as u64
    }

    fn take(&mut self, bytes: u64, what: impl Fn() -> String) -> Result<&'a [u8], GgufError> {
        let end = (self.at as u64).saturating_add(bytes);
        if end > self.start.len() as u64 {
            return Err(GgufError::HeaderCutOff { what: what(), end, bytes: self.file_len });
        }
        if end > MAX_HEADER_BYTES as u64 {
            return Err(GgufError::TooMuch {
                what: format!("the length of the header up to {}", what()),
                given: end,
                limit: MAX_HEADER_BYTES as u64,
            });
        }
        // `end` is at most the length of what is at hand.
        let taken = &self.start[self.at..end as usize];
        self.at = end as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: impl Fn() -> String) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: impl Fn() -> String) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: impl Fn() -> String) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take at least `smallest` bytes each.
    pub(super) fn count(&mut self, what: &str, smallest: u64, limit: u64) -> Result<u64, GgufError> {
        let count = self.u64(|| format!("the number of {what}"))?;
        self.check_count(count, smallest, limit, || what.to_owned())?;
        Ok(count)
    }

    fn check_count(
        &self,
        count: u64,
        smallest: u64,
        limit: u64,
        what: impl Fn() -> String,
    ) -> Result<(), GgufError> {
        if count > limit {
            return Err(GgufError::TooMuch {
                what: format!("the number of {}", what()),
                given: count,
                limit,
            });
        }
        let needed = count.saturating_mul(smallest);
        if needed > self.left() {
            let end = (self.at as u64).saturating_add(needed);
            return Err(GgufError::HeaderCutOff { what: what(), end, bytes: self.file_len });
        }
        Ok(())
    }

    fn text(&mut self, limit: u64, what: impl Fn() -> String) -> Result<&'a str, GgufError> {
        let length = self.u64(|| format!("the length of {}", what()))?;
        if length > limit {
            return Err(GgufError::TooMuch {
                what: format!("the length of {}", what()),
                given: length,
                limit,
            });
        }
        std::str::from_utf8(self.take(length, &what)?).map_err(|_| GgufError::NotText { what: what() })
    }

    /// A key of the metadata, ready for messages and for keeping.
    pub(super) fn key(&mut self) -> Result<&'a str, GgufError> {
        let at = self.at;
        self.text(MAX_KEY_BYTES, || format!("the key at byte {at}"))
    }

    /// The name of a tensor.
    pub(super) fn name(&mut self) -> Result<&'a str, GgufError> {
        let at = self.at;
        self.text(MAX_NAME_BYTES, || format!("the tensor's name at byte {at}"))
    }

    /// A value behind its type.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let id = self.u32(|| format!("the type of `{}`", shown(key)))?;
        if let Some(number_type) = NumberType::from_id(id) {
            let bytes = self.numbers(number_type, 1, key)?;
            return Ok(number_type.value(bytes));
        }
        match id {
            TEXT => {
                let text = self.text(MAX_TEXT_BYTES, || format!("metadata `{}`", shown(key)))?;
                Ok(Value::Text(text.to_owned()))
            }
            ARRAY => self.values(key, MAX_DEPTH).map(Value::Array),
            id => Err(GgufError::ValueType { key: shown(key), id }),
        }
    }

    /// An array: the type of its values, how many, the values.
    fn values(&mut self, key: &str, depth: u32) -> Result<Array, GgufError> {
        let id = self.u32(|| format!("the type of `{}`", shown(key)))?;
        let count = self.u64(|| format!("the length of `{}`", shown(key)))?;
        let what = || format!("values of `{}`", shown(key));
        if let Some(number_type) = NumberType::from_id(id) {
            let bytes = self.numbers(number_type, count, key)?.to_vec();
            return Ok(Array::Numbers(Numbers { number_type, bytes }));
        }
        match id {
            TEXT => {
                self.check_count(count, 8, u64::MAX, what)?;
                let mut texts = Texts::default();
                for _ in 0..count {
                    let text = self.text(MAX_TEXT_BYTES, || format!("a text of `{}`", shown(key)))?;
                    texts.joined.push_str(text);
                    texts.ends.push(texts.joined.len());
                }
                Ok(Array::Texts(texts))
            }
            ARRAY if depth == 0 => Err(GgufError::TooMuch {
                what: format!("the depth of arrays in `{}`", shown(key)),
                given: u64::from(MAX_DEPTH) + 1,
                limit: MAX_DEPTH.into(),
            }),
            ARRAY => {
                self.check_count(count, 12, MAX_ARRAYS, what)?;
                let arrays = (0..count).map(|_| self.values(key, depth - 1));
                arrays.collect::<Result<_, _>>().map(Array::Arrays)
            }
            id => Err(GgufError::ValueType { key: shown(key), id }),
        }
    }

    fn numbers(&mut self, number_type: NumberType, count: u64, key: &str) -> Result<&'a [u8], GgufError> {
        // A product beyond 64 bits is beyond any file.
        let bytes = count.saturating_mul(number_type.bytes() as u64);
        let bytes = self.take(bytes, || format!("metadata `{}`", shown(key)))?;
        match bytes.iter().find(|byte| **byte > 1) {
            Some(given) if number_type == NumberType::Bool => {
                Err(GgufError::Truth { key: shown(key), given: *given })
            }
            _ => Ok(bytes),
        }
    }
}

/// A stranger's text, for a message.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(128).collect();
    short.escape_debug().to_string()
}
