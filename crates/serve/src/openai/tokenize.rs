//! vLLM's `/tokenize` and `/detokenize`.

use super::chat::{render_prompt, unreadable};
use super::{MessageStyle, messages};
use crate::app::App;
use crate::body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::prompt;
use crate::tools::offered;
use axum::body::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use taper_text::RenderOptions;

/// The ids of a `prompt`, or of `messages` as the chat template writes them.
pub(crate) async fn tokenize(app: Arc<App>, bytes: Bytes) -> Result<Value, ApiError> {
    app.blocking(move |app| {
        let object = body::object(&bytes)?;
        let mut fields = Fields::new(&object);
        let asked = prompt::asked(app, &mut fields)?;
        let special = fields.boolean("add_special_tokens");
        let with_texts = fields.boolean("return_token_strs").unwrap_or(false);
        let ids = match fields.get("messages") {
            Some(_) => {
                let format = app.catalogue.chat_format(asked.template_of())?;
                let limits = &app.options.limits;
                let conversation = messages(&mut fields, limits, &format, MessageStyle::OpenAi);
                let offer = offered(&mut fields, limits);
                let options = RenderOptions {
                    add_generation_prompt: fields.boolean("add_generation_prompt").unwrap_or(true),
                    tools: offer.map(|offer| Value::Array(offer.tools)),
                    kwargs: prompt::template_kwargs(app, &mut fields),
                    ..RenderOptions::default()
                };
                fields.finish()?;
                let text = render_prompt(&format, &conversation, &options)?;
                app.tokenizer.encode(&text, special.unwrap_or(false))
            }
            None => {
                let text = fields.text("prompt", usize::MAX).map(str::to_owned);
                fields.finish()?;
                let text = text.ok_or_else(|| {
                    ApiError::invalid("prompt", "the request must have a `prompt` or `messages`")
                })?;
                match special.unwrap_or(true) {
                    true => taper_text::encode_prompt(&app.tokenizer, &text),
                    false => app.tokenizer.encode(&text, false),
                }
            }
        };
        let ids = ids.map_err(unreadable)?;
        let texts = with_texts
            .then(|| ids.iter().map(|id| app.tokenizer.token(*id).unwrap_or_default()).collect::<Vec<_>>());
        Ok(json!({
            "count": ids.len(), "max_model_len": app.max_model_len, "tokens": ids, "token_strs": texts,
        }))
    })
    .await
}

/// The text of `tokens`.
pub(crate) async fn detokenize(app: Arc<App>, bytes: Bytes) -> Result<Value, ApiError> {
    app.blocking(move |app| {
        let object = body::object(&bytes)?;
        let mut fields = Fields::new(&object);
        prompt::asked(app, &mut fields)?;
        if fields.get("tokens").is_none() {
            fields.refuse("tokens", "the request has no `tokens`");
        }
        let ids = fields.token_ids("tokens", usize::MAX, app.vocab_size);
        fields.finish()?;
        Ok(json!({ "prompt": app.tokenizer.decode(&ids, false).map_err(unreadable)? }))
    })
    .await
}
