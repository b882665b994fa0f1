//! From what a client sends to prompts for the service: which model, which adapters, and whether it all fits.

use crate::app::App;
use crate::catalogue::Named;
use crate::error::ApiError;
use crate::fields::Fields;
use serde_json::{Map, Value};
use taper_infer::{GenerationConfig, ScaledAdapter};

/// Factors on an adapter's delta that are more than a slip of the hand.
const LARGEST_SCALE: f64 = 100.0;
/// Bytes of a model's name.
pub(crate) const LONGEST_NAME: usize = 512;

/// Which model a request asks, and with which adapters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Asked {
    /// The model as the client says it.
    pub(crate) model: String,
    /// Adapters and the factors on their deltas.
    pub(crate) adapters: Vec<(String, f64)>,
}

impl Asked {
    /// The adapter whose chat template is used: the only or the first one.
    pub(crate) fn template_of(&self) -> Option<&str> {
        self.adapters.first().map(|(name, _)| name.as_str())
    }

    pub(crate) fn adapter_names(&self) -> Vec<String> {
        self.adapters.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// `model`, `adapter_scale`, `adapters` and llama.cpp's `lora`.
pub(crate) fn asked(app: &App, fields: &mut Fields<'_>) -> Result<Asked, ApiError> {
    let model = match fields.text("model", LONGEST_NAME) {
        Some("") | None => {
            return Err(ApiError::invalid("model", "the request must say which `model` it asks"));
        }
        Some(model) => model.to_owned(),
    };
    let scale = fields.number("adapter_scale", -LARGEST_SCALE..=LARGEST_SCALE);
    let mut adapters = stacked(app, fields, "adapters")?;
    adapters.extend(stacked(app, fields, "lora")?);
    match app.catalogue.named(&model) {
        Named::Base if scale.is_some() => {
            let message = "`adapter_scale` is for an adapter as `model`; beside the base, say `adapters`";
            fields.refuse("adapter_scale", message);
        }
        Named::Base => {}
        Named::Adapter(_) if !adapters.is_empty() => {
            let message = "`adapters` are summed over the base: name the base as `model`";
            fields.refuse("adapters", message);
        }
        Named::Adapter(name) if !exists(app, &name) => return Err(ApiError::model_not_found(&model)),
        Named::Adapter(name) => adapters.push((name, scale.unwrap_or(1.0))),
    }
    if let Some((name, _)) = adapters.iter().enumerate().find_map(|(i, adapter)| {
        adapters[..i].iter().any(|earlier| earlier.0 == adapter.0).then_some(adapter)
    }) {
        fields.refuse("adapters", format!("`adapters` has `{name}` twice"));
    }
    Ok(Asked { model, adapters })
}

fn exists(app: &App, name: &str) -> bool {
    app.service.adapters().list().iter().any(|info| info.name == name)
}

/// `[{"name": ..., "scale": ...}]`; `id` in place of `name` is the place in the list of `/lora-adapters`, as in llama.cpp.
fn stacked(app: &App, fields: &mut Fields<'_>, key: &str) -> Result<Vec<(String, f64)>, ApiError> {
    let list = fields.list(key, app.options.limits.adapters).unwrap_or_default();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let known = app.service.adapters().list();
    let mut adapters = Vec::with_capacity(list.len());
    for value in list {
        let entry = value.as_object().cloned().unwrap_or_default();
        let by_id =
            || known.get(usize::try_from(entry.get("id")?.as_u64()?).ok()?).map(|info| info.name.clone());
        let name = entry.get("name").and_then(Value::as_str).map(str::to_owned).or_else(by_id);
        let scale = match entry.get("scale") {
            None | Some(Value::Null) => Some(1.0),
            Some(scale) => scale.as_f64().filter(|scale| scale.abs() <= LARGEST_SCALE),
        };
        let (Some(name), Some(scale)) = (name, scale) else {
            let message = format!(
                "each entry of `{key}` must be an object with the `name` of an adapter and perhaps a `scale` \
                 from -{LARGEST_SCALE} to {LARGEST_SCALE}"
            );
            fields.refuse(key, message);
            return Ok(Vec::new());
        };
        if !known.iter().any(|info| info.name == name) {
            return Err(ApiError { param: Some(key.to_owned()), ..ApiError::model_not_found(&name) });
        }
        adapters.push((name, scale));
    }
    Ok(adapters)
}

/// The adapters in memory; blocks while they are read.
pub(crate) fn load(app: &App, asked: &Asked) -> Result<Vec<ScaledAdapter>, ApiError> {
    let adapters = app.service.adapters();
    asked
        .adapters
        .iter()
        .map(|(name, scale)| Ok(ScaledAdapter { adapter: adapters.get(name)?, scale: *scale }))
        .collect()
}

/// What a text may be as long as.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    /// Tokens of the answer, where the client said so.
    pub(crate) asked: Option<usize>,
    /// The same where it did not; the rest of the context without one.
    pub(crate) default: Option<usize>,
    /// The longest sequence, where the client wants a shorter one than the model's.
    pub(crate) context: Option<usize>,
    /// Whether an answer that does not fit is cut without a word, as Ollama does, or refused, as OpenAI does.
    pub(crate) cut: bool,
}

/// Set how many tokens may be written behind a prompt of so many.
pub(crate) fn fit(
    app: &App,
    config: &mut GenerationConfig,
    room: Room,
    prompt: usize,
    param: &str,
) -> Result<(), ApiError> {
    let longest = room.context.map_or(app.max_model_len, |context| context.min(app.max_model_len));
    if prompt == 0 {
        return Err(ApiError::invalid(param, "the prompt has no token"));
    }
    let left = longest.saturating_sub(prompt);
    if left == 0 {
        return Err(ApiError::too_long(
            param,
            format!("the longest sequence is {longest} tokens, answer included, and the prompt has {prompt}"),
        ));
    }
    let wanted = match room.asked {
        Some(asked) if asked > left && !room.cut => {
            return Err(ApiError::too_long(
                param,
                format!(
                    "the longest sequence is {longest} tokens; the prompt has {prompt} and {asked} are asked for, {} together",
                    prompt + asked
                ),
            ));
        }
        Some(asked) => asked,
        None => room.default.unwrap_or(left),
    };
    config.max_new_tokens = wanted.min(left);
    Ok(())
}

/// A client's settings for the chat template, within limits; names that the template is given anyway are not among them.
pub(crate) fn template_kwargs(app: &App, fields: &mut Fields<'_>) -> Map<String, Value> {
    const TAKEN: [&str; 8] = [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
        "return_dict",
    ];
    let Some(kwargs) = fields.object("chat_template_kwargs") else { return Map::new() };
    let most = app.options.limits.template_kwargs_bytes;
    if Value::Object(kwargs.clone()).to_string().len() > most {
        fields.refuse("chat_template_kwargs", format!("`chat_template_kwargs` is larger than {most} bytes"));
        return Map::new();
    }
    let special = |name: &str| app.tokenizer.special_tokens().contains_key(name);
    if let Some(name) = kwargs.keys().find(|name| TAKEN.contains(&name.as_str()) || special(name)) {
        let message =
            format!("`chat_template_kwargs` may not have `{name}`: the template is given it anyway");
        fields.refuse("chat_template_kwargs", message);
        return Map::new();
    }
    kwargs.clone()
}
