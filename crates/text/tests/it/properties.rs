//! What holds for any conversation and any ids.

use crate::{golden_template, golden_tokenizer};
use proptest::prelude::*;
use std::sync::LazyLock;
use taper_text::{
    ChatTemplate, Message, RenderOptions, Supervise, Tokenizer, encode_prompt, render_chat, render_completion,
};

static FAMILIES: LazyLock<Vec<(Tokenizer, ChatTemplate)>> = LazyLock::new(|| {
    [
        ("tokenizer_chatml", "chatml"),
        ("tokenizer_chatml", "chatml_tools"),
        ("tokenizer_phi3", "phi3"),
        ("tokenizer_gemma", "gemma"),
    ]
    .map(|(tokenizer, template)| {
        let tokenizer = golden_tokenizer(tokenizer);
        let template = golden_template(template, &tokenizer);
        (tokenizer, template)
    })
    .into()
});

static SPM: LazyLock<Tokenizer> = LazyLock::new(|| golden_tokenizer("tokenizer_spm"));

/// Words, whitespace, other scripts, think blocks and pieces of templates.
fn content() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ \n\ta-zA-Z0-9.,é你🦀]{0,12}",
        Just("<|im_end|>".to_owned()),
        Just("<|end|>\n".to_owned()),
        Just("<think>\nhm\n</think>\n\n".to_owned()),
        Just("<end_of_turn>".to_owned()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_mask_never_covers_what_a_user_says(
        family in 0..4usize,
        turns in prop::collection::vec((content(), content()), 1..4),
    ) {
        let (tokenizer, template) = &FAMILIES[family];
        let mut messages = Vec::new();
        for (i, (asked, said)) in turns.iter().enumerate() {
            // A word of its own in each message shows where it went.
            messages.push(Message::new("user", format!("usr{i} {asked} ask{i}")));
            messages.push(Message::new("assistant", format!("{said} ast{i}")));
        }
        let options = RenderOptions::default();
        let rendered = match render_chat(tokenizer, template, &messages, Supervise::AssistantTurns, &options) {
            Ok(rendered) => rendered,
            // An exact error is allowed; a wrong mask is not.
            Err(error) => {
                prop_assert!(matches!(error, taper_text::Error::UncertainSpan { .. }), "{error}");
                return Ok(());
            }
        };
        prop_assert_eq!(&rendered.text, &template.render(&messages, &options).unwrap());
        prop_assert_eq!(rendered.turns.len(), turns.len());
        let covered = |needle: &str| {
            let at = rendered.text.find(needle).unwrap();
            let inside = rendered.offsets.iter().zip(&rendered.loss_mask);
            inside.filter(|(r, _)| r.start < at + needle.len() && r.end > at).map(|(_, m)| *m).collect::<Vec<_>>()
        };
        for i in 0..turns.len() {
            let usr = format!("usr{i}");
            prop_assert!(covered(&usr).iter().all(|m| !m));
            let ask = format!("ask{i}");
            prop_assert!(covered(&ask).iter().all(|m| !m));
            let ast = format!("ast{i}");
            prop_assert!(covered(&ast).iter().all(|m| *m));
            prop_assert!(rendered.turns[i].stop_supervised);
        }
    }

    #[test]
    fn a_stream_of_ids_gives_the_text_of_all_ids(seed in prop::collection::vec(0..5000u32, 0..40), skip in any::<bool>()) {
        let (tokenizer, _) = &FAMILIES[0];
        let size = tokenizer.vocab_size() as u32;
        let ids: Vec<u32> = seed.iter().map(|n| n % size).collect();
        check_stream(tokenizer, &ids, skip)?;
    }

    #[test]
    fn a_stream_of_sentencepiece_ids_gives_the_text_of_all_ids(text in content(), skip in any::<bool>()) {
        check_stream(&SPM, &SPM.encode(&text, true).unwrap(), skip)?;
    }

    #[test]
    fn a_completion_begins_with_the_ids_of_its_prompt(prompt in content(), completion in content(), spm in any::<bool>()) {
        let tokenizer = if spm { &*SPM } else { &FAMILIES[0].0 };
        let rendered = render_completion(tokenizer, &prompt, &completion).unwrap();
        let given = encode_prompt(tokenizer, &prompt).unwrap();
        prop_assert!(rendered.input_ids.starts_with(&given));
        prop_assert!(rendered.loss_mask[..given.len()].iter().all(|m| !m));
        prop_assert!(rendered.loss_mask[given.len()..].iter().all(|m| *m));
        prop_assert_eq!(rendered.input_ids.len(), rendered.offsets.len());
    }
}

fn check_stream(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Result<(), TestCaseError> {
    let mut stream = tokenizer.detokenizer(skip);
    let mut text = String::new();
    for id in ids {
        let piece = stream.push(*id).unwrap();
        let half = piece.ends_with(char::REPLACEMENT_CHARACTER);
        prop_assert!(!half);
        text.push_str(&piece);
    }
    text.push_str(&stream.finish().unwrap());
    prop_assert_eq!(text, tokenizer.decode(ids, skip).unwrap());
    Ok(())
}

#[test]
fn a_template_as_deep_as_it_is_long_neither_overflows_the_stack_nor_renders_forever() {
    let tokenizer = crate::golden_tokenizer("tokenizer_chatml");
    let many = |part: &str, count: usize| part.repeat(count);
    let nested =
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    // Until the steps are used up: the error must not carry what was built to a smaller stack.
    let endless = nested
        .replace("{% set ns.x", "{% for j in range(100000) %}{% set ns.x")
        .replace("{% endfor", "{% endfor %}{% endfor");
    let sources = [
        format!("{{{{ {}1 }}}}", many("not ", 200_000)),
        format!("{{{{ {}1 }}}}", many("-", 200_000)),
        format!("{{{{ messages{} }}}}", many("|d", 200_000)),
        format!("{{% if a %}}{}{{% endif %}}", many("{% elif a %}", 50_000)),
        many("{% set x = [x] %}", 50_000),
        nested.to_owned(),
        endless,
        format!("{nested}{{% if ns.x == [ns.x] %}}{{% endif %}}"),
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
    ];
    for source in sources {
        // Refused or rendered: it comes back.
        if let Ok(template) = taper_text::ChatTemplate::from_source(&source, &tokenizer) {
            let _ = template.render(&[], &taper_text::RenderOptions::default());
        }
    }
}
