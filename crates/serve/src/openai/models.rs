//! `/v1/models` and llama.cpp's `/lora-adapters`.

use crate::app::App;
use crate::catalogue::Named;
use crate::error::ApiError;
use serde_json::{Value, json};
use taper_infer::AdapterInfo;

/// The base's names and the adapters.
pub(crate) fn list_models(app: &App) -> Value {
    let bases = app.catalogue.base.iter().map(|name| base(app, name));
    let adapters = app.service.adapters().list();
    let data: Vec<Value> = bases.chain(adapters.iter().map(|info| adapter(app, info))).collect();
    json!({ "object": "list", "data": data })
}

/// One of them.
pub(crate) fn one_model(app: &App, name: &str) -> Result<Value, ApiError> {
    match app.catalogue.named(name) {
        Named::Base => Ok(base(app, name)),
        Named::Adapter(adapter_name) => {
            let list = app.service.adapters().list();
            let info = list.iter().find(|info| info.name == adapter_name);
            info.map(|info| adapter(app, info)).ok_or_else(|| ApiError::model_not_found(name))
        }
    }
}

fn base(app: &App, name: &str) -> Value {
    json!({
        "id": name, "object": "model", "created": app.started, "owned_by": "taper",
        "root": name, "parent": null, "max_model_len": app.max_model_len,
    })
}

fn adapter(app: &App, info: &AdapterInfo) -> Value {
    json!({
        "id": info.name, "object": "model", "created": info.created, "owned_by": "taper",
        "root": info.name, "parent": app.catalogue.base_name(), "max_model_len": app.max_model_len,
        "peft_type": info.peft_type, "sha256": info.sha256,
    })
}

/// Places in this list are what `lora: [{"id": ...}]` means.
pub(crate) fn lora_adapters(app: &App) -> Value {
    let list = app.service.adapters().list();
    let entry = |(id, info): (usize, &AdapterInfo)| json!({ "id": id, "path": info.name, "scale": 0.0 });
    list.iter().enumerate().map(entry).collect::<Vec<_>>().into()
}
