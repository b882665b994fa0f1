//! What Ollama's clients ask of the models before they use them.

use super::{rfc3339, without_latest};
use crate::app::App;
use crate::body;
use crate::catalogue::Named;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::prompt::LONGEST_NAME;
use serde_json::{Value, json};
use taper_infer::AdapterInfo;

/// `/api/tags`: everything that can be asked.
pub(crate) fn tags(app: &App) -> Value {
    let bases = app.catalogue.base.iter().map(|name| base_entry(app, name));
    let adapters = app.service.adapters().list();
    let models: Vec<Value> = bases.chain(adapters.iter().map(|info| adapter_entry(app, info))).collect();
    json!({ "models": models })
}

/// `/api/ps`: what is in memory.
pub(crate) fn ps(app: &App) -> Value {
    let adapters = app.service.adapters().list();
    let resident = adapters.iter().filter(|info| info.is_resident);
    let bases = std::iter::once(base_entry(app, app.catalogue.base_name()));
    let models: Vec<Value> = bases
        .chain(resident.map(|info| adapter_entry(app, info)))
        .map(|mut entry| {
            // It stays; Ollama's clients want a date all the same.
            entry["expires_at"] = "9999-12-31T23:59:59Z".into();
            entry["size_vram"] = 0.into();
            entry["context_length"] = app.max_model_len.into();
            entry
        })
        .collect();
    json!({ "models": models })
}

/// `/api/show`.
pub(crate) fn show(app: &App, bytes: &[u8]) -> Result<Value, ApiError> {
    let object = body::object(bytes)?;
    let mut fields = Fields::new(&object);
    let name = fields.text("model", LONGEST_NAME).or_else(|| fields.text("name", LONGEST_NAME));
    fields.finish()?;
    let Some(name) = name.map(without_latest) else {
        return Err(ApiError::invalid("model", "the request must say which `model` it asks about"));
    };
    let adapter = match app.catalogue.named(name) {
        Named::Base => None,
        Named::Adapter(adapter) => {
            let list = app.service.adapters().list();
            Some(
                list.into_iter()
                    .find(|i| i.name == adapter)
                    .ok_or_else(|| ApiError::model_not_found(name))?,
            )
        }
    };
    let format = app.catalogue.format(adapter.as_ref().map(|info| info.name.as_str()));
    let mut capabilities = vec!["completion"];
    if format.as_ref().is_some_and(|format| format.tools.is_some()) {
        capabilities.push("tools");
    }
    let family = &app.facts.family;
    Ok(json!({
        "modelfile": "",
        "parameters": "",
        "template": format.as_ref().map_or("", |format| format.template.source()),
        "details": details(app, adapter.is_some()),
        "model_info": {
            "general.architecture": family,
            format!("{family}.context_length"): app.max_model_len,
            format!("{family}.vocab_size"): app.vocab_size,
        },
        "capabilities": capabilities,
        "modified_at": rfc3339(adapter.map_or(app.started, |info| info.created)),
    }))
}

fn base_entry(app: &App, name: &str) -> Value {
    json!({
        "name": name, "model": name, "modified_at": rfc3339(app.started), "size": app.facts.size,
        "digest": app.facts.sha256, "details": details(app, false),
    })
}

fn adapter_entry(app: &App, info: &AdapterInfo) -> Value {
    json!({
        "name": info.name, "model": info.name, "modified_at": rfc3339(info.created),
        "size": info.bytes, "digest": info.sha256, "details": details(app, true),
    })
}

fn details(app: &App, is_adapter: bool) -> Value {
    let facts = &app.facts;
    json!({
        "parent_model": if is_adapter { app.catalogue.base_name() } else { "" },
        "format": "safetensors",
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": facts.parameter_size,
        "quantization_level": facts.quantization_level,
    })
}
