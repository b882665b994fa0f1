//! `taper chat`: a conversation in the terminal.

use super::generate::{generation_config, open_model, stop_ids};
use crate::cli::ChatArgs;
use crate::fault::{OrFault, user_error};
use crate::output::{print, print_piece, say};
use serde_json::json;
use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use taper_diagnostics::ExitCode;
use taper_infer::{Engine, EngineOptions, GenerationConfig, Request};
use taper_text::{Message, RenderOptions};

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    let config = generation_config(&args.sampling)?;
    let (base, model) = open_model(&args.model)?;
    let Some(template) = &base.template else {
        return Err(user_error(
            "this model has no chat template",
            "`taper generate` continues plain text; or put a chat_template.jinja beside the tokenizer",
        ));
    };
    let engine = Engine::new(model.as_ref(), &base.tokenizer, EngineOptions::default());
    let mut config = GenerationConfig { stop_token_ids: stop_ids(&base), ..config };
    let json = args.model.common.json;
    let system: Vec<Message> = args.system.iter().map(|text| Message::new("system", text.as_str())).collect();
    let mut messages = system.clone();
    say("an empty line or Ctrl-D ends the chat, /new forgets it");
    while let Some(line) = read_line()? {
        match line.trim() {
            "" => break,
            "/new" => {
                messages.clone_from(&system);
                say("forgotten");
                continue;
            }
            text => messages.push(Message::new("user", text)),
        }
        let options = RenderOptions::default();
        let prompt_ids =
            taper_text::encode_prompt_chat(&base.tokenizer, template, &messages, &options).or_fault()?;
        let completions = engine
            .generate_with(&Request::numbered([prompt_ids]), &config, &mut |delta| {
                let printed = if json { Ok(()) } else { print_piece(delta.text) };
                if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .or_fault()?;
        if !json {
            print("")?;
        }
        let answer = completions.into_iter().next().map(|c| c.text).unwrap_or_default();
        messages.push(Message::new("assistant", answer));
        // Each turn draws anew, yet the same conversation repeats itself.
        config.seed = config.seed.wrapping_add(1);
    }
    if json {
        print(&json!({ "messages": messages }).to_string())?;
    }
    Ok(ExitCode::Passed)
}

/// A line of the user's; `None` at the end of the input.
fn read_line() -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        print_piece("> ")?;
    }
    let mut line = Vec::new();
    let read = std::io::stdin().lock().read_until(b'\n', &mut line)?;
    let line = String::from_utf8(line)
        .map_err(|_| user_error("the line on stdin is not UTF-8", "convert it, for example with `iconv`"))?;
    Ok((read > 0).then_some(line))
}
