//! An adapter in mlx-lm's layout: `adapters.safetensors` and `adapter_config.json`, for `mlx_lm.generate --adapter-path`.
//!
//! A layer there is `x W^T + scale * (x a) b`: `lora_a` `[in, r]` and `lora_b` `[r, out]` are A and B transposed, `m` is DoRA's magnitude.
//! The file has one `scale`, the multiplier itself; a module that was trained with another has the quotient multiplied into its `lora_b`,
//! so that rsLoRA and patterns arrive. It has one `rank` too, to whose shapes mlx-lm holds every tensor, so that smaller factors are filled up
//! with zeros, which change no product. `num_layers` is -1, every layer: one without tensors keeps mlx-lm's
//! first values, whose `lora_b` is zero, and so does nothing. Source: mlx-lm `tuner/utils.py` (`load_adapters`), `tuner/lora.py`, `tuner/dora.py`.

use crate::error::doing;
use crate::folder::NewFolder;
use crate::merged::write;
use crate::{Error, Result};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use taper_peft::{AdaptedLayer, Adapter, AdapterWeights, CONFIG_FILE, PREFIX};

/// mlx-lm's name for the weights.
const WEIGHTS: &str = "adapters.safetensors";

/// Write `adapter` to `folder` as mlx-lm reads it. The folder appears as a whole, and takes the place of one that was there.
///
/// # Errors
/// [`Error::NotInMlx`] for what the layout cannot say (modules trained in full, biases, experts, embeddings, other methods), or when the
/// disk fails.
pub fn write_mlx_adapter(adapter: &Adapter, folder: &Path) -> Result<PathBuf> {
    if adapter.has_beginning() {
        return Err(not_in_mlx(
            "lora_A",
            "its beginning was taken off the base's weights: save it, and write what is loaded again",
        ));
    }
    let scale = commonest_scale(&adapter.layers)?;
    let scales: BTreeMap<&str, f64> = adapter.layers.iter().map(|l| (l.path.as_str(), l.scale)).collect();
    let rank = adapter.layers.iter().map(|layer| layer.rank).max().unwrap_or(0);
    let (mut tensors, mut dora) = (BTreeMap::new(), false);
    for (name, tensor) in adapter.weights().iter() {
        let (path, part) = part_of(name)?;
        let own =
            scales.get(path).ok_or_else(|| not_in_mlx(name, "it belongs to no layer with an adapter"))?;
        let tensor = match part {
            Part::Magnitude => {
                dora = true;
                tensor.clone()
            }
            Part::A => filled(&turned(tensor, 1.0)?, 1, rank)?,
            Part::B => filled(&turned(tensor, own / scale)?, 0, rank)?,
        };
        tensors.insert(format!("{path}.{}", part.name()), tensor);
    }
    let config = config(adapter, scale, rank, dora);
    let bytes =
        AdapterWeights::from_tensors(tensors).to_bytes().map_err(|source| Error::Adapter { source })?;
    let new = NewFolder::new(folder)?;
    write(&new.path().join(WEIGHTS), &bytes)?;
    write(&new.path().join(CONFIG_FILE), format!("{config:#}\n").as_bytes())?;
    new.place()
}

/// A tensor's part in a layer.
#[derive(Clone, Copy)]
enum Part {
    A,
    B,
    Magnitude,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::A => "lora_a",
            Self::B => "lora_b",
            Self::Magnitude => "m",
        }
    }
}

/// The module's path and the tensor's part in it.
fn part_of(name: &str) -> Result<(&str, Part)> {
    let inside = name.strip_prefix(PREFIX).unwrap_or(name);
    let parts = [
        (".lora_A.weight", Part::A),
        (".lora_B.weight", Part::B),
        (".lora_magnitude_vector", Part::Magnitude),
    ];
    let found = parts.into_iter().find_map(|(suffix, part)| Some((inside.strip_suffix(suffix)?, part)));
    match found {
        Some((path, _)) if path.split('.').any(|segment| segment == "experts") => {
            Err(not_in_mlx(name, "mlx-lm keeps the experts of a layer in one stack"))
        }
        Some(found) => Ok(found),
        None if inside.contains(".lora_embedding_") => {
            Err(not_in_mlx(name, "over a tied base mlx-lm would apply it to the output head as well"))
        }
        None if inside.ends_with(".bias") => Err(not_in_mlx(name, "its adapters have no biases")),
        None if inside.ends_with(".weight") => {
            Err(not_in_mlx(name, "it is a module that was trained in full"))
        }
        None => Err(not_in_mlx(name, "it is of a method that mlx-lm does not have")),
    }
}

fn not_in_mlx(tensor: &str, why: &'static str) -> Error {
    Error::NotInMlx { tensor: tensor.to_owned(), why }
}

/// The scale of most layers, so that most tensors stay as they are, bit for bit.
fn commonest_scale(layers: &[AdaptedLayer]) -> Result<f64> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for layer in layers {
        *counts.entry(layer.scale.to_bits()).or_default() += 1;
    }
    let commonest = counts.into_iter().max_by_key(|(_, count)| *count);
    commonest
        .map(|(bits, _)| f64::from_bits(bits))
        .ok_or_else(|| not_in_mlx("", "the adapter has no low-rank layer"))
}

/// A factor transposed and multiplied; by 1 its bits stay.
fn turned(factor: &Tensor, times: f64) -> Result<Tensor> {
    let turned = factor.t().and_then(|t| t.contiguous());
    let turned = if times == 1.0 { turned } else { turned.and_then(|t| t * times) };
    turned.map_err(doing("turn a factor of the adapter"))
}

/// A factor with its dimension `dim` filled up to `rank` with zeros.
fn filled(factor: &Tensor, dim: usize, rank: usize) -> Result<Tensor> {
    let has = factor.dims().get(dim).copied().unwrap_or(rank);
    let filled = factor.pad_with_zeros(dim, 0, rank.saturating_sub(has));
    filled.map_err(doing("fill up a factor of the adapter"))
}

/// `keys` name modules inside a layer, or by their whole path outside of the layers.
fn config(adapter: &Adapter, scale: f64, rank: usize, dora: bool) -> Value {
    let keys: BTreeSet<&str> = adapter.layers.iter().map(|layer| key_of(&layer.path)).collect();
    json!({
        "fine_tune_type": if dora { "dora" } else { "lora" },
        "lora_parameters": {
            "dropout": adapter.config.lora_dropout,
            "keys": keys,
            "rank": rank,
            "scale": scale,
        },
        "model": adapter.config.base_model_name_or_path,
        "num_layers": -1,
    })
}

fn key_of(path: &str) -> &str {
    let numbered = path.split_once(".layers.").and_then(|(_, rest)| rest.split_once('.'));
    match numbered {
        Some((number, inside)) if number.bytes().all(|b| b.is_ascii_digit()) => inside,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_mlx_matches_them() {
        assert_eq!(key_of("model.layers.12.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(key_of("lm_head"), "lm_head");
        assert_eq!(key_of("model.layers.norm.x"), "model.layers.norm.x");
    }

    #[test]
    fn what_the_layout_cannot_say_is_refused_by_name() {
        for (name, why) in [
            ("model.layers.0.mlp.experts.3.up_proj.lora_A.weight", "experts"),
            ("model.embed_tokens.lora_embedding_A", "tied base"),
            ("model.layers.0.self_attn.q_proj.lora_B.bias", "biases"),
            ("lm_head.weight", "trained in full"),
            ("model.layers.0.self_attn.q_proj.ia3_l", "method"),
        ] {
            let name = format!("{PREFIX}{name}");
            let Err(Error::NotInMlx { tensor, why: given }) = part_of(&name) else { panic!("{name}") };
            assert!(tensor == name && given.contains(why), "{name}: {given}");
        }
    }
}
