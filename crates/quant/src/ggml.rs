//! The element types of GGML, as GGUF files number them.
//!
//! Source: the `ggml_type` enumeration of GGML and the sizes of its block structures.

use std::fmt;

/// How the elements of a GGUF tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// 32 codes of 4 bits, one scale.
    Q4_0,
    /// 32 codes of 4 bits, scale and minimum.
    Q4_1,
    /// 32 codes of 5 bits, one scale.
    Q5_0,
    /// 32 codes of 5 bits, scale and minimum.
    Q5_1,
    /// 32 codes of 8 bits, one scale.
    Q8_0,
    /// 256 codes of 2 bits, 16 sub-blocks.
    Q2K,
    /// 256 codes of 3 bits, 16 sub-blocks.
    Q3K,
    /// 256 codes of 4 bits, 8 sub-blocks with scale and minimum.
    Q4K,
    /// 256 codes of 5 bits, 8 sub-blocks with scale and minimum.
    Q5K,
    /// 256 codes of 6 bits, 16 sub-blocks.
    Q6K,
    /// 32 codes of 4 bits into a table that is not uniform.
    Iq4Nl,
    /// 256 codes of 4 bits into that table, 8 sub-blocks.
    Iq4Xs,
}

impl GgmlType {
    /// All that are read.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// The type of this number in a GGUF file, where it is one that is read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.id() == id)
    }

    /// The number in a GGUF file.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
            Self::Iq4Xs => 23,
            Self::BF16 => 30,
        }
    }

    /// GGML's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
        }
    }

    /// Whether elements are coded in blocks, rather than floats by themselves.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Elements of a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// Bytes of `elements`; `None` when they are no whole blocks, or the product is beyond all reason.
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let (len, bytes) = (self.block_len() as u64, self.block_bytes() as u64);
        elements.is_multiple_of(len).then(|| (elements / len).checked_mul(bytes))?
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_name_their_types() {
        for t in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(t.id()), Some(t));
        }
        assert_eq!(GgmlType::from_id(4), None);
        assert_eq!(GgmlType::Q4K.bytes_of(512), Some(288));
        assert_eq!(GgmlType::Q4K.bytes_of(500), None);
        assert_eq!(GgmlType::F32.bytes_of(u64::MAX), None);
    }
}
