//! Adapters of mlx-lm: `adapters.safetensors` beside an `adapter_config.json` with `lora_parameters`.
//!
//! A layer is `y = x W^T + scale * (x a) b` with `lora_a` `[in, r]` and `lora_b` `[r, out]`, so that A is `lora_a` and B `lora_b`
//! transposed and `alpha = scale * r`. DoRA's magnitude is `m` `[out]`; its row norms are those of `W + scale * (a b)^T`, as in PEFT. The
//! tensors carry the layer's number, so `num_layers` (counted from the end of the stack) says nothing that they do not; nor does
//! `rank`, since mlx-lm takes the tensors' own. Source: mlx-lm `tuner/lora.py`, `tuner/dora.py`, `tuner/utils.py`.

use super::{Layout, header};
use crate::{CONFIG_FILE, Error, PREFIX, Result};
use candle_core::Tensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The weights' file name.
pub(crate) const MLX_WEIGHTS: &str = "adapters.safetensors";

/// Whether an `adapter_config.json` is mlx-lm's.
pub(super) fn is_config(map: &Map<String, Value>) -> bool {
    !map.contains_key("peft_type")
        && (map.contains_key("lora_parameters") || map.contains_key("fine_tune_type"))
}

/// Tensors under PEFT's names, in PEFT's shapes.
///
/// # Errors
/// When a tensor is no part of a LoRA or DoRA on linear layers.
pub(super) fn to_peft(path: &Path, found: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in found {
        let (module, part) = name.rsplit_once('.').unwrap_or(("", &name));
        linear_only(path, &name, module, part, tensor.rank())?;
        let (renamed, tensor) = match part {
            "m" => (format!("{PREFIX}{module}.lora_magnitude_vector"), tensor),
            part => {
                let factor = if part == "lora_a" { "lora_A" } else { "lora_B" };
                let turned = tensor.t().and_then(|t| t.contiguous());
                (
                    format!("{PREFIX}{module}.{factor}.weight"),
                    turned.map_err(crate::error::doing("turn a factor of mlx"))?,
                )
            }
        };
        tensors.insert(renamed, tensor);
    }
    Ok(tensors)
}

/// Refuse what has no place in a LoRA on a linear layer.
fn linear_only(path: &Path, name: &str, module: &str, part: &str, dimensions: usize) -> Result<()> {
    let refuse = |what: String, remedy: &str| {
        Err(Error::Misfit {
            path: path.to_owned(),
            key: Some(name.to_owned()),
            what,
            remedy: remedy.to_owned(),
        })
    };
    match (part, dimensions) {
        ("lora_a" | "lora_b" | "m", _) if module.ends_with("embed_tokens") => refuse(
            format!(
                "`{module}` is an embedding with an adapter, which mlx-lm also applies to an output head that shares its table"
            ),
            FUSE,
        ),
        ("lora_a" | "lora_b", 2) | ("m", 1) => Ok(()),
        ("lora_a" | "lora_b", 3) => {
            refuse(format!("`{module}` is an adapter on a stack of experts (`SwitchLinear`)"), FUSE)
        }
        ("lora_a" | "lora_b" | "m", n) => {
            refuse(format!("`{name}` has {n} dimensions, and a factor has 2, a magnitude 1"), FUSE)
        }
        _ => refuse(
            format!("`{name}` is no factor of an adapter of mlx-lm: those are `lora_a`, `lora_b` and `m`"),
            FUSE,
        ),
    }
}

const FUSE: &str = "fuse it with mlx_lm (`mlx_lm.fuse --dequantize`) and use the fused model as the base";

/// The error for a file of mlx-lm without any factor.
pub(super) fn no_factors(path: &Path, tensors: usize) -> Error {
    Error::Misfit {
        path: path.to_owned(),
        key: None,
        what: format!(
            "none of its {tensors} tensors is a factor of an adapter: mlx-lm trained whole weights (`fine_tune_type` full)"
        ),
        remedy: FUSE.into(),
    }
}

/// PEFT's configuration in place of mlx-lm's.
///
/// # Errors
/// When the scale is missing or can be read in two ways, or the fine-tuning was none by adapters.
pub(super) fn config(folder: &Path, map: &Map<String, Value>) -> Result<Value> {
    let kind = map.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
    let old_dora = map.get("use_dora").and_then(Value::as_bool).unwrap_or(false);
    let dora = match kind {
        "lora" => old_dora,
        "dora" => true,
        "full" => {
            return Err(refuse(
                folder,
                "fine_tune_type",
                "mlx-lm trained whole weights (`fine_tune_type` is \"full\"), no adapter".into(),
                FUSE,
            ));
        }
        other => {
            let what = format!("`fine_tune_type` is \"{other}\", known are \"lora\", \"dora\" and \"full\"");
            return Err(refuse(folder, "fine_tune_type", what, FUSE));
        }
    };
    let none = Map::new();
    let parameters = map.get("lora_parameters").and_then(Value::as_object).unwrap_or(&none);
    let ranks = ranks(folder)?;
    let rank = commonest(ranks.values().copied())
        .ok_or_else(|| no_factors(&folder.join(MLX_WEIGHTS), ranks.len()))?;
    let scale = scale(folder, map, parameters, rank)?;
    let dropout = parameters.get("dropout").cloned().unwrap_or(json!(0.0));
    let others = ranks.iter().filter(|(_, r)| **r != rank);
    let patterns: Vec<(&String, usize)> = others.map(|(path, r)| (path, *r)).collect();
    let rank_pattern: Map<String, Value> = patterns.iter().map(|(p, r)| ((*p).clone(), json!(r))).collect();
    let alpha_pattern: Map<String, Value> =
        patterns.iter().map(|(p, r)| ((*p).clone(), json!(scale * *r as f64))).collect();
    Ok(json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": map.get("model").filter(|v| v.is_string()),
        "inference_mode": true,
        "r": rank,
        "lora_alpha": scale * rank as f64,
        "lora_dropout": dropout,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": ranks.keys().collect::<Vec<_>>(),
        "use_dora": dora,
    }))
}

/// The multiplier of the low-rank product.
///
/// Until the middle of 2024 it was `scale * alpha / rank`, then `scale` alone, while `alpha` went on being written. Files that have
/// `num_layers` or `fine_tune_type` are from after the change; others with an `alpha` that matters could be either.
fn scale(
    folder: &Path,
    map: &Map<String, Value>,
    parameters: &Map<String, Value>,
    rank: usize,
) -> Result<f64> {
    let key = "lora_parameters.scale";
    let number = |key: &str| parameters.get(key).and_then(Value::as_f64);
    let Some(scale) = number("scale") else {
        let what =
            "`lora_parameters` has no number `scale`, by which mlx-lm multiplies the adapter".to_owned();
        return Err(refuse(
            folder,
            key,
            what,
            "add the `scale` it was trained with; where `alpha` is meant as in PEFT, that is alpha / rank",
        ));
    };
    let after_change = map.contains_key("num_layers") || map.contains_key("fine_tune_type");
    match number("alpha") {
        Some(alpha) if !after_change && alpha != rank as f64 => {
            let what = format!(
                "the scale can be read in two ways: mlx-lm before mid-2024 used scale * alpha / rank = {}, later versions scale = {scale}",
                scale * alpha / rank as f64
            );
            Err(refuse(
                folder,
                key,
                what,
                "write the right one as `scale` and take `alpha` out of `lora_parameters`",
            ))
        }
        _ => Ok(scale),
    }
}

/// The rank of each adapted module, by its path.
fn ranks(folder: &Path) -> Result<BTreeMap<String, usize>> {
    let path = super::weights_path(folder)?;
    let header = header(&path)?;
    let layout = super::layout_of(&path, header.tensors.keys().map(String::as_str))?;
    if layout != Layout::Mlx {
        return Err(Error::Misfit {
            path,
            key: None,
            what: format!("{CONFIG_FILE} is mlx-lm's, and the tensors are named as {layout} names them"),
            remedy: "the two files belong to different adapters: take both from one folder".into(),
        });
    }
    let factors = header.tensors.iter().filter_map(|(name, info)| {
        let module = name.strip_suffix(".lora_a")?;
        Some((module.to_owned(), info.shape.last().copied()?))
    });
    Ok(factors.collect())
}

fn commonest(ranks: impl Iterator<Item = usize>) -> Option<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for rank in ranks {
        *counts.entry(rank).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(rank, _)| rank)
}

fn refuse(folder: &Path, key: &str, what: String, remedy: &str) -> Error {
    Error::Misfit {
        path: folder.join(CONFIG_FILE),
        key: Some(key.to_owned()),
        what,
        remedy: remedy.to_owned(),
    }
}
