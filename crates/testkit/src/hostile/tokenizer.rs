//! The files of a tokenizer's folder.

use taper_diagnostics::TextSource;
use taper_text::{
    ChatTemplate, Message, RenderOptions, Supervise, Tokenizer, TokenizerFiles, render_chat,
    render_completion, render_text,
};

/// Stands between tokenizer.json, tokenizer_config.json and generation_config.json; the latter two may be left out.
const SEPARATOR: &str = "\n=====\n";

const TEMPLATE: &str =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

const TEXTS: [&str; 7] = [
    "",
    " ",
    "Hello, world! It's 12345 o'clock\n\n  in  Z\u{fc}rich.",
    "<|im_start|>user\n\u{5317}\u{4eac}\u{1f600}\u{200d}\u{2581}x</s><unk>[CLS]",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
    "\u{0}\u{7f}\r\n\t\u{301}e\u{301}\u{fb01}\u{1e9b}\u{323}\u{feff}",
    "def f(x):\n    return {'a': [x, \"\\\\\"]} # \u{fffd}",
];

/// `bytes` as the files of a tokenizer, which then encodes a few texts and decodes what comes of it.
///
/// # Panics
/// When a promise is broken: a range outside the text, ids and ranges of different number, a mask of another length.
pub fn tokenizer(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut parts = text.split(SEPARATOR);
    let mut made = |name: &str| parts.next().map(|text| TextSource::made(name, text));
    load_and_use(&TokenizerFiles {
        tokenizer: made("tokenizer.json"),
        tokenizer_config: made("tokenizer_config.json"),
        generation_config: made("generation_config.json"),
        ..TokenizerFiles::default()
    })
}

/// Encodes a few texts and decodes what comes of it; in a thread of its own, since `tokenizers` keeps a cache for every
/// BPE until the thread ends.
pub(super) fn load_and_use(files: &TokenizerFiles) -> bool {
    let used = std::thread::scope(|scope| scope.spawn(|| use_here(files)).join());
    used.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn use_here(files: &TokenizerFiles) -> bool {
    let Ok(tokenizer) = Tokenizer::load(files) else { return false };
    let vocabulary = tokenizer.vocab_size();
    for text in TEXTS {
        for add_special in [false, true] {
            let Ok(encoded) = tokenizer.encode_with_offsets(text, add_special) else { continue };
            assert_eq!(encoded.ids.len(), encoded.offsets.len());
            for range in &encoded.offsets {
                assert!(text.get(range.clone()).is_some(), "{range:?} lies outside {text:?}");
            }
            decode(&tokenizer, &encoded.ids);
        }
        let _ = render_text(&tokenizer, text);
        let _ = render_completion(&tokenizer, text, "yes\n");
    }
    decode(&tokenizer, &[0, 1, vocabulary as u32, u32::MAX, 2, 0]);
    chat(&tokenizer, files);
    true
}

fn decode(tokenizer: &Tokenizer, ids: &[u32]) {
    let _ = tokenizer.decode(ids, true);
    let _ = tokenizer.decode(ids, false);
    let mut stream = tokenizer.detokenizer(false);
    for id in ids {
        let _ = stream.push(*id);
    }
    let _ = stream.finish();
}

fn chat(tokenizer: &Tokenizer, files: &TokenizerFiles) {
    let own = ChatTemplate::load(files, tokenizer);
    let given = ChatTemplate::from_source(TEMPLATE, tokenizer).expect("a sound template");
    let messages = [Message::new("user", TEXTS[2]), Message::new("assistant", TEXTS[3])];
    for template in own.into_iter().flatten().chain([given]) {
        let _ = template.facts(tokenizer);
        let options = RenderOptions::default();
        if let Ok(rendered) = render_chat(tokenizer, &template, &messages, Supervise::All, &options) {
            assert_eq!(rendered.input_ids.len(), rendered.loss_mask.len());
            let _ = (rendered.facts(tokenizer), rendered.explain(tokenizer));
        }
    }
}
