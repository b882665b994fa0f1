//! `taper generate`: one prompt, answered on stdout as it is written.

use crate::adapters::put_on;
use crate::cli::{GenerateArgs, ModelArgs, SamplingArgs};
use crate::contract;
use crate::device;
use crate::fault::{OrFault, user_error};
use crate::output::{print, print_piece};
use crate::workspace::Base;
use serde_json::json;
use std::io::Read;
use std::ops::ControlFlow;
use taper_diagnostics::{ExitCode, Location, Problems};
use taper_infer::{Engine, EngineOptions, GenerationConfig, Request};
use taper_models::CausalLm;
use taper_text::{Message, RenderOptions};

pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let config = generation_config(&args.sampling)?;
    let prompt = read_prompt(&args.prompt)?;
    let (base, model) = open_model(&args.model)?;
    let prompt_ids = match (&base.template, args.raw) {
        (Some(template), false) => {
            let system = args.system.iter().map(|text| Message::new("system", text.as_str()));
            let messages: Vec<Message> = system.chain([Message::new("user", prompt.as_str())]).collect();
            taper_text::encode_prompt_chat(&base.tokenizer, template, &messages, &RenderOptions::default())
                .or_fault()?
        }
        _ => {
            if args.system.is_some() {
                return Err(user_error(
                    "`--system` needs a chat template, and none is used",
                    "drop `--raw`, or write the system message into the prompt",
                ));
            }
            taper_text::encode_prompt(&base.tokenizer, &prompt).or_fault()?
        }
    };
    let config = GenerationConfig { stop_token_ids: stop_ids(&base), ..config };
    let engine = Engine::new(model.as_ref(), &base.tokenizer, EngineOptions::default());
    let requests = Request::numbered([prompt_ids]);
    let json = args.model.common.json;
    let mut failed = None;
    let completions = engine
        .generate_with(&requests, &config, &mut |delta| match if json {
            Ok(())
        } else {
            print_piece(delta.text)
        } {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })
        .or_fault()?;
    if let Some(error) = failed {
        return Err(error);
    }
    let Some(completion) = completions.first() else { anyhow::bail!("no completion") };
    if json {
        print(&json!({
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "usage": { "prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens() },
        }).to_string())?;
    } else {
        print("")?;
    }
    Ok(ExitCode::Passed)
}

fn read_prompt(given: &str) -> anyhow::Result<String> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| {
        user_error("the prompt on stdin is not UTF-8", "convert it, for example with `iconv`")
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The model of the flags, its adapter attached for inference.
pub(crate) fn open_model(args: &ModelArgs) -> anyhow::Result<(Base, Box<dyn CausalLm>)> {
    device::check(&args.common)?;
    let (base, options) = Base::named(args)?;
    for adapter in &args.adapter {
        contract::hold(&adapter.folder, &base, args.force)?;
    }
    let mut model = base.load(options)?;
    put_on(&args.adapter, model.as_mut())?;
    Ok((base, model))
}

/// An answer ends where the chat template ends a turn.
pub(crate) fn stop_ids(base: &Base) -> Vec<u32> {
    base.template.as_ref().map(|t| t.stop_ids(&base.tokenizer)).unwrap_or_default()
}

/// The flags as the engine takes them, in their ranges.
pub(crate) fn generation_config(args: &SamplingArgs) -> anyhow::Result<GenerationConfig> {
    let config = GenerationConfig {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        seed: args.seed,
        stop: args.stop.clone(),
        ..GenerationConfig::default()
    };
    let mut problems = Problems::new();
    for problem in config.check().iter() {
        let key = problem.location.as_ref().and_then(|location| location.key.clone()).unwrap_or_default();
        let flag = format!("--{}", key.replace('_', "-"));
        problems.push(problem.clone().at(Location::default().with_key(flag)));
    }
    problems.into_result().or_fault()?;
    Ok(config)
}
