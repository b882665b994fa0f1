//! The metadata of a GGUF file, and getters that say what is wrong with a value.

use super::GgufError;
use std::collections::BTreeMap;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number of 8 to 64 bits without a sign.
    Unsigned(u64),
    /// A whole number of 8 to 64 bits with a sign.
    Signed(i64),
    /// Single precision.
    F32(f32),
    /// Double precision.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Many values of one type.
    Array(Array),
}

/// Many values of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Numbers or truth values, as they lie in the file.
    Numbers(Numbers),
    /// Texts.
    Texts(Texts),
    /// Arrays.
    Arrays(Vec<Array>),
}

/// Types of fixed size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberType {
    /// Unsigned 8 bits.
    U8,
    /// Signed 8 bits.
    I8,
    /// Unsigned 16 bits.
    U16,
    /// Signed 16 bits.
    I16,
    /// Unsigned 32 bits.
    U32,
    /// Signed 32 bits.
    I32,
    /// Single precision.
    F32,
    /// A byte that is 0 or 1.
    Bool,
    /// Unsigned 64 bits.
    U64,
    /// Signed 64 bits.
    I64,
    /// Double precision.
    F64,
}

impl NumberType {
    /// By the number of the type in a file; 8 is text and 9 an array.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// The number of the type in a file.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::U8 => 0,
            Self::I8 => 1,
            Self::U16 => 2,
            Self::I16 => 3,
            Self::U32 => 4,
            Self::I32 => 5,
            Self::F32 => 6,
            Self::Bool => 7,
            Self::U64 => 10,
            Self::I64 => 11,
            Self::F64 => 12,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "truth values",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// A value from its bytes, of which there must be [`Self::bytes`]; missing ones count as 0.
    pub(super) fn value(self, bytes: &[u8]) -> Value {
        let mut wide = [0u8; 8];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = *from;
        }
        let [a, b, c, d, ..] = wide;
        let all = u64::from_le_bytes(wide);
        match self {
            Self::Bool => Value::Bool(a == 1),
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(all),
            Self::I8 => Value::Signed(i8::from_le_bytes([a]).into()),
            Self::I16 => Value::Signed(i16::from_le_bytes([a, b]).into()),
            Self::I32 => Value::Signed(i32::from_le_bytes([a, b, c, d]).into()),
            Self::I64 => Value::Signed(i64::from_le_bytes(wide)),
            Self::F32 => Value::F32(f32::from_le_bytes([a, b, c, d])),
            Self::F64 => Value::F64(f64::from_le_bytes(wide)),
        }
    }
}

/// An array of numbers or truth values, in the bytes of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    pub(super) number_type: NumberType,
    pub(super) bytes: Vec<u8>,
}

impl Numbers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.number_type.bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The values in order.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        self.bytes.chunks_exact(self.number_type.bytes()).map(|bytes| self.number_type.value(bytes))
    }
}

/// An array of texts, one behind the other: the tokens of a model are hundreds of thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    pub(super) joined: String,
    pub(super) ends: Vec<usize>,
}

impl Texts {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let start = if index == 0 { 0 } else { *self.ends.get(index - 1)? };
        self.joined.get(start..*self.ends.get(index)?)
    }

    /// The texts in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| self.joined.get(*start..*end).unwrap_or_default())
    }
}

/// The metadata by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub(super) BTreeMap<String, Value>);

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All of it, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A text.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number that is not negative, of any width.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "a whole number", whole)
    }

    /// A finite number. One of single precision is the shortest decimal that means it: 1e-5, not 9.999999747e-6.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite number", finite)
    }

    /// A truth value.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array of texts.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn texts(&self, key: &str) -> Result<Option<&Texts>, GgufError> {
        self.typed(key, "an array of texts", |value| match value {
            Value::Array(Array::Texts(texts)) => Some(texts),
            _ => None,
        })
    }

    /// An array of numbers.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn numbers(&self, key: &str) -> Result<Option<&Numbers>, GgufError> {
        self.typed(key, "an array of numbers", |value| match value {
            Value::Array(Array::Numbers(numbers)) => Some(numbers),
            _ => None,
        })
    }

    /// A whole number that is given once, or once for each block and always the same.
    ///
    /// # Errors
    /// When the value is something else, or differs between blocks.
    pub fn uniform_size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "a whole number, the same for all blocks", |value| match value {
            Value::Array(Array::Numbers(numbers)) => {
                let mut all = numbers.iter().map(|one| whole(&one));
                let first = all.next()??;
                all.all(|other| other == Some(first)).then_some(first)
            }
            one => whole(one),
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        take: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match take(value) {
            Some(taken) => Ok(Some(taken)),
            None => Err(GgufError::Value {
                key: key.to_owned(),
                expected: expected.to_owned(),
                given: described(value),
            }),
        }
    }
}

/// Turn what may be absent into what must be there.
pub(super) fn required<T>(found: Option<T>, key: &str, expected: &'static str) -> Result<T, GgufError> {
    found.ok_or_else(|| GgufError::Missing { key: key.to_owned(), expected })
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Unsigned(n) => Some(*n),
        Value::Signed(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

pub(super) fn finite(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Unsigned(n) => *n as f64,
        Value::Signed(n) => *n as f64,
        Value::F32(x) => shortest(*x),
        Value::F64(x) => *x,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// The shortest decimal that reads as `x` in single precision.
pub(super) fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| x.into())
}

/// For people: what a value is.
fn described(value: &Value) -> String {
    match value {
        Value::Unsigned(n) => n.to_string(),
        Value::Signed(n) => n.to_string(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Text(text) => {
            let short: String = text.chars().take(40).collect();
            format!("the text `{}`", short.escape_debug())
        }
        Value::Array(Array::Numbers(numbers)) => {
            format!("an array of {} {}", numbers.len(), numbers.number_type.name())
        }
        Value::Array(Array::Texts(texts)) => format!("an array of {} texts", texts.len()),
        Value::Array(Array::Arrays(arrays)) => format!("an array of {} arrays", arrays.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(value: Value) -> Metadata {
        Metadata(BTreeMap::from([("k".to_owned(), value)]))
    }

    fn numbers(number_type: NumberType, bytes: &[u8]) -> Value {
        Value::Array(Array::Numbers(Numbers { number_type, bytes: bytes.to_vec() }))
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_key_and_with_what_it_is() {
        let text = metadata(Value::Text("two\n".into()));
        let said = text.size("k").unwrap_err().to_string();
        assert_eq!(said, "metadata `k` is the text `two\\n`, wanted a whole number");
        assert_eq!(text.text("k"), Ok(Some("two\n")));
        assert_eq!(text.size("other"), Ok(None));
        let said = metadata(Value::Signed(-3)).size("k").unwrap_err().to_string();
        assert_eq!(said, "metadata `k` is -3, wanted a whole number");
        let said = metadata(numbers(NumberType::I32, &[0; 8])).texts("k").unwrap_err().to_string();
        assert_eq!(said, "metadata `k` is an array of 2 i32, wanted an array of texts");
        assert!(metadata(Value::F32(f32::NAN)).number("k").is_err());
    }

    #[test]
    fn single_precision_reads_as_the_decimal_that_was_meant() {
        assert_eq!(metadata(Value::F32(1e-5)).number("k"), Ok(Some(1e-5)));
        assert_eq!(metadata(Value::F64(0.1)).number("k"), Ok(Some(0.1)));
        assert_eq!(metadata(Value::Unsigned(7)).number("k"), Ok(Some(7.0)));
    }

    #[test]
    fn a_number_for_each_block_must_be_the_same_for_all() {
        assert_eq!(metadata(numbers(NumberType::U8, &[4, 4, 4])).uniform_size("k"), Ok(Some(4)));
        assert_eq!(metadata(Value::Signed(4)).uniform_size("k"), Ok(Some(4)));
        assert!(metadata(numbers(NumberType::U8, &[4, 8])).uniform_size("k").is_err());
        assert!(metadata(numbers(NumberType::U8, &[])).uniform_size("k").is_err());
    }
}
