//! Files to examples to packed batches, in an order that can be resumed; no tensors.
//!
//! The way of the data: [`JsonlReader`] cuts a file into rows, [`DatasetFormat`] makes an [`Example`] of each, an
//! [`Encode`] renders it to token ids and a loss mask, [`DataLoader`] makes [`Batch`]es. [`prepare`] walks the first three
//! for a whole `[data]` section and finds everything that is wrong with it; [`explain`] shows one example token by token.

mod batch;
mod check;
mod encode;
mod error;
mod example;
mod explain;
mod fault;
mod fields;
mod format;
mod jsonl;
mod load;
mod loader;
mod messages;
mod near;
mod overlap;
mod packing;
mod prepare;
mod section;
mod sketch;
mod source;
mod stats;
mod stream;
mod strict;
mod token_cache;
mod token_file;
mod tokenize;
mod uses;

pub use batch::{Batch, IGNORE};
pub use check::check_dataset;
pub use encode::{Encode, Encoded, EncodedFacts, TextEncoder};
pub use error::{Error, Result};
pub use example::{Example, ExampleKind, Prompt, RowPlace};
pub use explain::{ExplainedToken, Explanation, explain};
pub use fault::{ROLES, RowFault, SHAREGPT_ROLES};
pub use format::DatasetFormat;
pub use jsonl::{JsonlReader, MAX_ROW_BYTES, Row};
pub use load::{Dataset, FileReport, LoadReport, MOST_PROBLEMS, load, load_with_fields};
pub use loader::{DataLoader, DataLoaderOptions, DataLoaderState};
pub use near::{NEAR_SIMILARITY, TouchKind, Touched, near_duplicates, touched};
pub use overlap::{ExampleKeys, Overlap, overlap};
pub use packing::{PACKING_WINDOW, pack};
pub use prepare::{PrepareOptions, PreparedData, Split, prepare, prepare_with};
pub use section::{
    COLUMNS, DataSection, FormatChoice, OnError, OverlapChoice, PathList, Supervision, Truncation,
};
pub use stats::DatasetStats;
pub use token_cache::TokenCache;
pub use tokenize::TokenizedExample;
pub use uses::{TestUses, Uses};
