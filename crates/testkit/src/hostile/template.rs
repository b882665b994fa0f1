//! Chat templates: foreign code.

use crate::golden;
use serde_json::json;
use std::sync::OnceLock;
use taper_text::{
    ChatTemplate, Message, RenderOptions, Supervise, Tokenizer, TokenizerFiles, encode_prompt_chat,
    render_chat,
};

/// `bytes` as a Jinja template, rendered over a few conversations.
///
/// # Panics
/// When a promise is broken: token ranges outside the text, a mask of another length than the ids.
pub fn template(bytes: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(bytes) else { return false };
    let tokenizer = fixed_tokenizer();
    let Ok(template) = ChatTemplate::from_source(source, tokenizer) else { return false };
    let mut accepted = false;
    for (messages, options) in conversations() {
        // What does not render at all is not rendered in all the ways that follow.
        if template.render(messages, options).is_ok() {
            accepted |= exercise(&template, messages, options);
        }
    }
    if accepted {
        let _ = template.facts(tokenizer);
    }
    accepted
}

fn exercise(template: &ChatTemplate, messages: &[Message], options: &RenderOptions) -> bool {
    let tokenizer = fixed_tokenizer();
    let _ = encode_prompt_chat(tokenizer, template, messages, options);
    let Ok(rendered) = render_chat(tokenizer, template, messages, Supervise::AssistantTurns, options) else {
        return false;
    };
    assert_eq!(rendered.input_ids.len(), rendered.loss_mask.len());
    assert_eq!(rendered.input_ids.len(), rendered.offsets.len());
    for range in &rendered.offsets {
        assert!(rendered.text.get(range.clone()).is_some(), "{range:?} lies outside the text");
    }
    for turn in &rendered.turns {
        assert!(rendered.text.get(turn.range.clone()).is_some(), "{:?} lies outside the text", turn.range);
    }
    let _ = (rendered.facts(tokenizer), rendered.explain(tokenizer));
    true
}

fn fixed_tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let files = TokenizerFiles::in_folder(&golden("chat/tokenizer_chatml"));
        Tokenizer::load(&files).expect("a sound tokenizer")
    })
}

/// A plain conversation, one that ends with the user, and one with tools and parts.
fn conversations() -> &'static [(Vec<Message>, RenderOptions)] {
    static ALL: OnceLock<Vec<(Vec<Message>, RenderOptions)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let plain = vec![
            Message::new("system", "Be brief."),
            Message::new("user", "Is it é?"),
            Message::new("assistant", " <think>no</think> Yes.\n"),
        ];
        let prompt = vec![Message::new("user", "a"), Message::new("assistant", ""), Message::new("user", "b")];
        let tools = [
            json!({"role": "user", "content": [{"type": "text", "text": "1 + 1?"}, {"type": "image"}]}),
            json!({"role": "assistant", "content": null, "tool_calls":
                [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [1.5, true]}}}]}),
            json!({"role": "tool", "name": "add", "content": "2"}),
            json!({"role": "assistant", "content": "2", "reasoning_content": "sum"}),
        ];
        let tools: Vec<Message> =
            tools.into_iter().map(|m| Message::from_value(m).expect("a message")).collect();
        let schema = json!([{"type": "function", "function": {"name": "add", "parameters":
            {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}}}]);
        let with_tools = RenderOptions { tools: Some(schema), ..RenderOptions::default() };
        vec![
            (plain, RenderOptions::default()),
            (prompt, RenderOptions { add_generation_prompt: true, ..RenderOptions::default() }),
            (tools, with_tools),
        ]
    })
}
