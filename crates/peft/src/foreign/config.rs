//! Configurations of others, and of older versions of PEFT, as today's `adapter_config.json`.
//!
//! Only what says nothing about the forward pass is taken out, each key by name with the reason. Every other unknown key stays, and
//! is refused by the reader.

use super::{Layout, mlx, torchtune};
use crate::{CONFIG_FILE, Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Keys that say nothing about the forward pass of a trained adapter over a linear layer, and why.
pub(crate) const HARMLESS: [(&str, &str); 6] = [
    ("merge_weights", "PEFT before 0.3: whether `eval()` merges; the result is the same"),
    ("runtime_config", "PEFT: where the first values are computed; not meant to be saved"),
    (
        "fan_in_fan_out",
        "the order of GPT-2's weights; over linear layers, and these bases have no others, PEFT itself sets it to false",
    ),
    ("lora_dtype", "ms-swift: the precision of the factors in training"),
    ("lorap_lr_ratio", "ms-swift: LoRA+'s ratio of learning rates"),
    ("lorap_emb_lr", "ms-swift: LoRA+'s learning rate of embeddings"),
];

/// The text of an `adapter_config.json` in PEFT's words; the same text where nothing has to change, so that places in it stay.
///
/// # Errors
/// When it is another tool's and cannot be said in PEFT's words.
pub(crate) fn peft_text(folder: &Path, text: String) -> Result<String> {
    // What is no JSON object is told by the reader.
    let Ok(Value::Object(mut map)) = serde_json::from_str(text.trim_start_matches('\u{feff}')) else {
        return Ok(text);
    };
    if mlx::is_config(&map) {
        return Ok(mlx::config(folder, &map)?.to_string());
    }
    merged_linear(folder, &map)?;
    let mut changed = false;
    for (key, _) in HARMLESS {
        changed |= map.shift_remove(key).is_some();
    }
    // torchtune's trainers wrote no `peft_type` at first.
    if !map.contains_key("peft_type") && map.contains_key("r") && map.contains_key("lora_alpha") {
        map.insert("peft_type".into(), json!("LORA"));
        changed = true;
    }
    changed |= torchtune_targets(folder, &mut map);
    Ok(if changed { Value::Object(map).to_string() } else { text })
}

/// PEFT 0.2 had a layer for fused query, key and value, whose B is a grouped convolution.
fn merged_linear(folder: &Path, map: &Map<String, Value>) -> Result<()> {
    match map.get("enable_lora") {
        None | Some(Value::Null) => Ok(()),
        Some(given) => Err(Error::Misfit {
            path: folder.join(CONFIG_FILE),
            key: Some("enable_lora".into()),
            what: format!(
                "`enable_lora` is {given}: parts of a fused layer are adapted, as PEFT did before 0.3 (`MergedLinear`)"
            ),
            remedy: "merge it with that version of PEFT and use the merged model as the base".into(),
        }),
    }
}

/// Target names of torchtune, where the tensors are named so too.
fn torchtune_targets(folder: &Path, map: &mut Map<String, Value>) -> bool {
    let Some(Value::Array(targets)) = map.get_mut("target_modules") else { return false };
    let known = |v: &Value| v.as_str().is_some_and(|name| torchtune::target(name) != name);
    if !targets.iter().any(known) || layout(folder) != Some(Layout::Torchtune) {
        return false;
    }
    for target in targets {
        if let Some(name) = target.as_str() {
            *target = json!(torchtune::target(name));
        }
    }
    true
}

/// The layout of a folder's weights, where they can be read; what is wrong with them is told when they are.
fn layout(folder: &Path) -> Option<Layout> {
    let path = super::weights_path(folder).ok()?;
    let header = super::header(&path).ok()?;
    super::layout_of(&path, header.tensors.keys().map(String::as_str)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AdapterConfig;

    fn read(text: &str) -> Result<AdapterConfig> {
        let folder = tempfile::tempdir().unwrap();
        AdapterConfig::from_json(&peft_text(folder.path(), text.to_owned())?)
    }

    #[test]
    fn what_pefts_versions_wrote_since_0_2_is_read() {
        // 0.2, 0.3, 0.5, 0.7, as they lie on the Hub.
        for text in [
            r#"{"base_model_name_or_path": "b", "bias": "none", "enable_lora": null, "fan_in_fan_out": false, "inference_mode": true, "lora_alpha": 16, "lora_dropout": 0.05, "merge_weights": false, "modules_to_save": null, "peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}"#,
            r#"{"base_model_name_or_path": "b", "bias": "none", "fan_in_fan_out": true, "inference_mode": true, "init_lora_weights": true, "lora_alpha": 16, "lora_dropout": 0.05, "merge_weights": true, "modules_to_save": null, "peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}"#,
            r#"{"auto_mapping": null, "base_model_name_or_path": "b", "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null, "lora_alpha": 16.0, "lora_dropout": 0.05, "modules_to_save": null, "peft_type": "LORA", "r": 8, "revision": null, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}"#,
            r#"{"alpha_pattern": {}, "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama", "unsloth_fixed": true}, "base_model_name_or_path": "b", "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 16, "lora_dropout": 0, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": 8, "rank_pattern": {}, "revision": "unsloth", "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "runtime_config": {"ephemeral_gpu_offload": false}, "lora_dtype": null, "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-06}"#,
        ] {
            let config = read(text).unwrap();
            assert_eq!((config.r, config.lora_alpha), (8, 16.0));
        }
    }

    #[test]
    fn parts_of_fused_layers_and_unknown_keys_stay_refused() {
        let error = read(
            r#"{"peft_type": "LORA", "r": 8, "enable_lora": [true, false, true], "target_modules": ["c_attn"]}"#,
        );
        assert!(error.unwrap_err().to_string().contains("MergedLinear"));
        read(r#"{"peft_type": "LORA", "r": 8, "target_modules": ["q"], "use_doraa": true}"#).unwrap_err();
    }

    #[test]
    fn nothing_is_written_anew_that_need_not_be() {
        let text = "{\n \"peft_type\": \"LORA\", \"r\": 4 }";
        let folder = tempfile::tempdir().unwrap();
        for text in [text, "[]", "{", "null", ""] {
            assert_eq!(peft_text(folder.path(), text.to_owned()).unwrap(), text);
        }
    }
}
