//! What can be wrong with coded bytes, or with values that are to be coded.

use crate::GgmlType;

/// Why a matrix cannot be coded, or coded bytes are none.
#[derive(Debug, thiserror::Error)]
pub enum QuantError {
    /// A buffer is not as long as the shape needs.
    #[error("{given} {what} for a matrix of {rows} x {columns}, which needs {needed}")]
    Length {
        /// Which buffer, and in what it is counted.
        what: &'static str,
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// As given.
        given: usize,
        /// As needed.
        needed: usize,
    },
    /// Rows that are no whole blocks.
    #[error("rows of {columns} are no whole blocks of {block} elements, which {format} needs")]
    Blocks {
        /// Elements of a row.
        columns: usize,
        /// Elements of a block.
        block: usize,
        /// The type.
        format: GgmlType,
    },
    /// More elements, or more bytes, than can be counted.
    #[error("a matrix of {rows} x {columns} is larger than this machine can address")]
    TooLarge {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// A block size that bitsandbytes does not have.
    #[error("blocks of {given} elements: the size must be a power of two from 16 to 65536")]
    BlockSize {
        /// As given.
        given: usize,
    },
    /// A type of GGML that is read but not written.
    #[error("{format} can be read, but not made")]
    NotEncoded {
        /// The type.
        format: GgmlType,
    },
    /// A value that no block format can hold.
    #[error("element {index} is {value}, which a block format cannot hold")]
    NotFinite {
        /// Its index in the flattened matrix.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// Values beyond the half-precision scale of their block.
    #[error("elements from {index} on are too large for {format}, whose scales are in half precision")]
    Range {
        /// The first element of the block, in the flattened matrix.
        index: usize,
        /// The type.
        format: GgmlType,
    },
}
