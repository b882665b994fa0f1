//! Messages to token ids with the checkpoint's own template, and the loss mask from the same walk.
//!
//! - [`Tokenizer`]: tokenizer.json and the files beside it; [`DetokenizerStream`] for ids that come one by one.
//! - [`ChatTemplate`]: the checkpoint's Jinja, in the dialect of transformers' `apply_chat_template` (blocks trimmed and
//!   left-stripped, loop controls, Python's methods and printing, `raise_exception`, `strftime_now`, `tojson`,
//!   `{% generation %}`), with bounded steps, recursion and output, and nothing to load.
//! - [`render_chat`], [`render_completion`], [`render_text`]: ids and loss mask; [`encode_prompt_chat`] and
//!   [`encode_prompt`]: what inference is given.
//! - [`TemplateFacts`], [`RenderFacts`]: what can be wrong, for `taper check`.
//!
//! # Where a turn begins and ends
//!
//! From where the generation prompt ends, through the stop token that ends the turn, without the line break behind
//! it. A template's `{% generation %}` tags decide where it has them. Else the prompt is rendered and looked up
//! in the whole text, and contents are found by private-use characters put around them; a rendering with such marks
//! counts only if it equals the unmarked one once they are taken out. So templates whose earlier turns change when
//! later ones come are right too, and where a span is not certain there is an error, not a guess.

mod contained;
mod content_hash;
mod detokenizer;
mod error;
mod facts;
mod files;
mod growth;
mod jinja;
mod marks;
mod message;
mod render;
mod spans;
mod template;
mod token_bytes;
mod tokenizer;

pub use content_hash::ContentHash;
pub use detokenizer::DetokenizerStream;
pub use error::{Error, Result};
pub use facts::{RenderFacts, TemplateFacts, first_unstable_prefix};
pub use files::TokenizerFiles;
pub use message::{Content, Message};
pub use render::{
    Rendered, Segment, Supervise, TokenInfo, Turn, encode_prompt, encode_prompt_chat, render_chat,
    render_completion, render_text,
};
pub use template::{ChatTemplate, RenderOptions};
pub use tokenizer::{Encoded, Tokenizer};
