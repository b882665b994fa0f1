//! The crate's public functions against golden data, real tokenizers and invariants.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod gguf;
mod golden;
mod masks;
mod properties;
mod real;
mod token_bytes;
mod tokenizer_files;

use std::path::{Path, PathBuf};
use taper_text::{ChatTemplate, Message, Rendered, Tokenizer, TokenizerFiles};

/// The folder of the chat fixtures.
fn golden_chat() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat")
}

fn golden_tokenizer(name: &str) -> Tokenizer {
    Tokenizer::load(&TokenizerFiles::in_folder(&golden_chat().join(name))).unwrap()
}

fn golden_template(name: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    ChatTemplate::from_file(&golden_chat().join(format!("templates/{name}.jinja")), tokenizer).unwrap()
}

fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

/// The text with what is supervised in `⟦ ⟧`, by the tokens of the mask.
fn marked_up(rendered: &Rendered) -> String {
    let mut out = String::new();
    let (mut at, mut inside) = (0, false);
    for (range, target) in rendered.offsets.iter().zip(&rendered.loss_mask) {
        if range.end <= at {
            continue;
        }
        if *target != inside {
            out.push(if *target { '⟦' } else { '⟧' });
            inside = *target;
        }
        out.push_str(&rendered.text[at..range.end]);
        at = range.end;
    }
    if inside {
        out.push('⟧');
    }
    out.push_str(&rendered.text[at..]);
    out
}
