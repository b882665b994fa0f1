//! Tools that a client offers, and the calls that a model writes: found in its text by the format that its chat template asks for.

mod format;
mod offer;
mod parser;

pub(crate) use format::ToolFormat;
pub(crate) use offer::{Offer, offered};
pub(crate) use parser::{Said, ToolCall, ToolParser};
