//! torchtune's native names and its order of rows in query and key.
//!
//! torchtune's rotary embedding turns neighbouring elements of a head, `(0, 1), (2, 3), …`, Hugging Face's turns the halves, `(0, D/2),
//! (1, D/2 + 1), …`. So the rows of `q_proj` and `k_proj` lie in another order: HF's row `h D + p D/2 + i` is torchtune's
//! `h D + 2 i + p` (p in 0, 1). Of an adapter that moves the rows of B and of DoRA's magnitude, not A. torchtune's Qwen models turn halves, as HF
//! does, and keep the order. Its trainer writes adapters in PEFT's format too; what is native is the pickle beside it, which is read
//! once it has been saved as safetensors. Source: torchtune 0.6.1 `models/convert_weights.py` (`_FROM_HF`, `tune_to_peft_adapter_weights`).
//!
//! By reading its source, what its trainer writes as PEFT is off in two cases, and nothing in the file shows it: rows of query and key are
//! reordered for Qwen 2 too, whose base it does not reorder, and those of DoRA's magnitude are not reordered for the others.

use crate::{Error, PREFIX, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// How torchtune orders the rows of query and key in the base's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadLayout {
    /// As in Hugging Face's checkpoints (Qwen).
    Halves,
    /// Neighbouring rows belong to one rotation (Llama, Mistral, Gemma): N query heads, K key heads.
    Interleaved {
        /// N.
        query: usize,
        /// K.
        key: usize,
    },
}

/// torchtune's modules and HF's.
const MODULES: [(&str, &str); 7] = [
    ("attn.q_proj", "self_attn.q_proj"),
    ("attn.k_proj", "self_attn.k_proj"),
    ("attn.v_proj", "self_attn.v_proj"),
    ("attn.output_proj", "self_attn.o_proj"),
    ("mlp.w1", "mlp.gate_proj"),
    ("mlp.w2", "mlp.down_proj"),
    ("mlp.w3", "mlp.up_proj"),
];

/// HF's name of a target module that torchtune's configuration names.
pub(super) fn target(name: &str) -> &str {
    let of = |module: &'static str| module.rsplit('.').next().unwrap_or(module);
    match name {
        "output" => "lm_head",
        _ => MODULES.iter().find(|(tune, _)| of(tune) == name).map_or(name, |(_, hf)| of(hf)),
    }
}

/// Tensors under PEFT's names; rows stay as they are.
///
/// # Errors
/// When a name is none of torchtune's.
pub(super) fn to_peft(path: &Path, found: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in found {
        let Some(renamed) = rename(&name) else {
            return Err(Error::Misfit {
                path: path.to_owned(),
                key: Some(name.clone()),
                what: format!("`{name}` is no tensor of an adapter as torchtune names them"),
                remedy: "the names are like `layers.0.attn.q_proj.lora_a.weight`; save the adapter through torchtune's HF checkpointer, which writes PEFT's format".into(),
            });
        };
        tensors.insert(renamed, tensor);
    }
    Ok(tensors)
}

fn rename(name: &str) -> Option<String> {
    let (module, parameter) = [
        (".lora_a.weight", "lora_A.weight"),
        (".lora_b.weight", "lora_B.weight"),
        (".magnitude", "lora_magnitude_vector"),
    ]
    .into_iter()
    .find_map(|(tune, peft)| Some((name.strip_suffix(tune)?, peft)))?;
    let module = if module == "output" {
        "lm_head".to_owned()
    } else {
        let (layer, inside) = module.strip_prefix("layers.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let (_, hf) = MODULES.iter().find(|(tune, _)| *tune == inside)?;
        format!("model.layers.{layer}.{hf}")
    };
    Some(format!("{PREFIX}{module}.{parameter}"))
}

/// Bring the rows of query and key into HF's order.
///
/// # Errors
/// When the order is unknown, or the number of rows is none of whole heads.
pub(super) fn reorder_rows(
    path: &Path,
    tensors: &mut BTreeMap<String, Tensor>,
    heads: Option<HeadLayout>,
) -> Result<()> {
    for (name, tensor) in tensors.iter_mut() {
        let query = name.contains(".q_proj.");
        let by_rows = name.ends_with("lora_B.weight") || name.ends_with("lora_magnitude_vector");
        if !by_rows || !(query || name.contains(".k_proj.")) {
            continue;
        }
        let heads = match heads {
            Some(HeadLayout::Halves) => continue,
            Some(HeadLayout::Interleaved { query: n, key: k }) => {
                if query {
                    n
                } else {
                    k
                }
            }
            None => return Err(unknown_order(path, name)),
        };
        *tensor = halves(tensor, heads).map_err(crate::error::doing("reorder rows"))?.ok_or_else(|| {
            Error::Misfit {
                path: path.to_owned(),
                key: Some(name.clone()),
                what: format!(
                    "`{name}` has {:?} rows, which are not {heads} heads of even size",
                    tensor.dims().first()
                ),
                remedy: "the adapter belongs to another base: its heads differ".into(),
            }
        })?;
    }
    Ok(())
}

fn unknown_order(path: &Path, name: &str) -> Error {
    Error::Misfit {
        path: path.to_owned(),
        key: Some(name.to_owned()),
        what: "torchtune orders the rows of query and key by the base's architecture, and for this base the order is not known".into(),
        remedy: "save the adapter through torchtune's HF checkpointer, which writes PEFT's format".into(),
    }
}

/// Rows `[heads, D/2, 2, …]` as `[heads, 2, D/2, …]`; `None` when they do not divide so.
fn halves(tensor: &Tensor, heads: usize) -> candle_core::Result<Option<Tensor>> {
    let dims = tensor.dims().to_vec();
    let rows = dims.first().copied().unwrap_or(0);
    if heads == 0 || rows == 0 || rows % (2 * heads) != 0 {
        return Ok(None);
    }
    let rest: usize = dims[1..].iter().product();
    let turned = tensor.reshape((heads, rows / heads / 2, 2, rest))?.transpose(1, 2)?.contiguous()?;
    Ok(Some(turned.reshape(dims)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn names_are_hfs_and_unknown_ones_are_refused() {
        for (given, expected) in [
            (
                "layers.3.attn.output_proj.lora_a.weight",
                "base_model.model.model.layers.3.self_attn.o_proj.lora_A.weight",
            ),
            ("layers.0.mlp.w1.lora_b.weight", "base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight"),
            ("layers.0.mlp.w2.lora_b.weight", "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"),
            (
                "layers.0.mlp.w3.magnitude",
                "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
            ),
            ("output.lora_a.weight", "base_model.model.lm_head.lora_A.weight"),
        ] {
            assert_eq!(rename(given).as_deref(), Some(expected));
        }
        for wrong in
            ["layers.x.attn.q_proj.lora_a.weight", "layers.0.attn.wq.lora_a.weight", "layers.0.mlp.w1.weight"]
        {
            assert_eq!(rename(wrong), None);
        }
        assert_eq!(
            ["output_proj", "w1", "w2", "w3", "output", "q_proj"].map(target),
            ["o_proj", "gate_proj", "down_proj", "up_proj", "lm_head", "q_proj"]
        );
    }

    /// By the definition: HF's row h D + p D/2 + i is torchtune's h D + 2 i + p.
    #[test]
    fn rows_of_interleaved_heads_become_halves() {
        let rows: Vec<f32> = (0..24).map(|row| row as f32).collect();
        let b = Tensor::from_vec(rows, (12, 2), &Device::Cpu).unwrap();
        let turned = halves(&b, 2).unwrap().unwrap().to_vec2::<f32>().unwrap();
        for (h, p, i) in (0..2).flat_map(|h| (0..2).flat_map(move |p| (0..3).map(move |i| (h, p, i)))) {
            let from = (h * 6 + 2 * i + p) as f32;
            assert_eq!(turned[h * 6 + p * 3 + i], [2.0 * from, 2.0 * from + 1.0]);
        }
        assert!(halves(&b, 5).unwrap().is_none() && halves(&b, 0).unwrap().is_none());
        assert!(halves(&b, 12).unwrap().is_none());
    }
}
