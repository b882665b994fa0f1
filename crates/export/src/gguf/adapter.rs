//! A low-rank adapter as a GGUF file, for a base in that format.
//!
//! A file has one `adapter.lora.alpha` for all tensors, and an engine multiplies each product by alpha over the tensor's own rank. So the
//! exact scale of a tensor, whatever rsLoRA, `rank_pattern` or `alpha_pattern` made of it, is that with the rest of it multiplied into B.
//! Source: `llama-adapter.cpp` of llama.cpp, and its `convert_lora_to_gguf.py`, which writes the same tensors and drops those scales.

use super::error::GgufError;
use super::metadata::architecture;
use super::tensors::{coded, in_pairs, rotary_heads};
use crate::error::doing;
use crate::{Error, MergedDtype, Result};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use taper_hub::ModelFiles;
use taper_hub::gguf::{Architecture, GgufWriter, Keys, PlannedTensor, WriteError, stored_name};
use taper_models::CausalLm;
use taper_nn::{Checkpoint, to_vec_f32, with_f32};
use taper_peft::{Adapter, PREFIX};
use taper_quant::{Bytes, GgmlType};

/// How an adapter is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GgufAdapterOptions {
    /// The type of the factors; "auto" is f32, in which they were trained.
    pub dtype: MergedDtype,
    /// The adapter's name for people.
    pub name: Option<String>,
    /// The base's name for people.
    pub base_name: Option<String>,
}

/// An adapter that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenGgufAdapter {
    /// The file.
    pub path: PathBuf,
    /// Layers with a delta.
    pub layers: usize,
    /// Its length.
    pub bytes: u64,
    /// `adapter.lora.alpha`.
    pub alpha: f32,
    /// Layers into whose B a part of the scale was multiplied.
    pub folded: usize,
}

/// The two factors of a layer, A `[r, in]` and B `[out, r]`, and what their product is multiplied by.
struct Pair<'a> {
    /// The name of the weight in the base's file.
    weight: String,
    a: &'a Tensor,
    b: &'a Tensor,
    scale: f64,
    /// A table's look-up: A is `[r, V]`, B `[H, r]`.
    of_table: bool,
}

impl Pair<'_> {
    fn rank(&self) -> usize {
        self.a.dims()[0]
    }
}

/// Write the low-rank factors of an adapter that sits on `model`, as it was loaded from its folder.
///
/// # Errors
/// When the adapter holds something that the format has no word for (whole modules, biases, magnitudes, an adapter on a head that is the
/// embedding's table), a number does not fit the type, or the disk fails.
pub fn write_gguf_adapter(
    model: &mut dyn CausalLm,
    adapter: &Adapter,
    base: &ModelFiles,
    path: &Path,
    options: &GgufAdapterOptions,
) -> Result<WrittenGgufAdapter> {
    // What such a one took off the base is put back when it is saved.
    if !adapter.parameters.is_empty() && adapter.config.init_lora_weights.is_of_the_weight() {
        let what = "an adapter in training that began with a part of the base's weights; load it from where it was saved";
        return Err(GgufError::Adapter { what: what.into() }.into());
    }
    let config = model.config().clone();
    let architecture = architecture(config.model_type);
    let weights = adapter.weights();
    let mut tensors: BTreeMap<&str, &Tensor> = weights.iter().collect();
    leave_out_copies(&mut tensors, base)?;
    let scales: BTreeMap<&str, f64> = adapter.layers.iter().map(|l| (l.path.as_str(), l.scale)).collect();
    let pairs = pairs(&tensors, &scales, architecture, config.tie_word_embeddings)?;
    // The first layer's own alpha: where all have the same scale and rank, nothing is multiplied into B.
    let alpha = pairs.first().map_or(1.0, |pair| pair.scale * pair.rank() as f64) as f32;
    // With an alpha of 0 engines leave the scale out.
    let alpha = if alpha == 0.0 { 1.0 } else { alpha };

    let ggml_type = match options.dtype.dtype() {
        Some(DType::F16) => GgmlType::F16,
        Some(DType::BF16) => GgmlType::BF16,
        _ => GgmlType::F32,
    };
    let planned: Vec<PlannedTensor> = pairs.iter().flat_map(|pair| planned(pair, ggml_type)).collect();
    let failed = |source: WriteError| Error::from(GgufError::Write { path: path.to_owned(), source });
    let keys = keys(architecture, alpha, options);
    let mut writer = GgufWriter::create(path, &keys, &planned).map_err(failed)?;
    let mut folded = 0;
    for pair in &pairs {
        let factor = (pair.scale * pair.rank() as f64 / f64::from(alpha)) as f32;
        folded += usize::from(factor != 1.0);
        let [a_name, b_name] = names(&pair.weight);
        writer.push(&a_name, &factor_a(pair, &a_name, ggml_type)?).map_err(failed)?;
        let b = bytes(pair.b, factor, &b_name, ggml_type)?;
        let b = match rotary_heads(architecture, &pair.weight, &config) {
            Some(heads) => Bytes::new(in_pairs(&b, pair.b.dims()[0], heads)),
            None => b,
        };
        writer.push(&b_name, &b).map_err(failed)?;
    }
    let bytes = writer.finish().map_err(failed)?;
    Ok(WrittenGgufAdapter { path: path.to_owned(), layers: pairs.len(), bytes, alpha, folded })
}

/// PEFT saves the table beside the adapter of an embedding or a head. One that is the base's is left out; another has no place in the format.
fn leave_out_copies(tensors: &mut BTreeMap<&str, &Tensor>, base: &ModelFiles) -> Result<()> {
    let path_of = |key: &str| Some(key.strip_prefix(PREFIX)?.strip_suffix(".base_layer.weight")?.to_owned());
    let copies: Vec<(String, String)> =
        tensors.keys().filter_map(|key| Some(((*key).to_owned(), path_of(key)?))).collect();
    if copies.is_empty() {
        return Ok(());
    }
    let reading = doing("read the base's table");
    let outside = |error: taper_nn::CheckpointError| reading(candle_core::Error::wrap(error));
    let checkpoint = match &base.gguf {
        Some(path) => Checkpoint::open_gguf(path).map_err(outside)?,
        None => Checkpoint::open(&base.weights, base.index.as_deref()).map_err(outside)?,
    };
    for (key, path) in copies {
        let Some(copy) = tensors.get(key.as_str()) else { continue };
        let own = format!("{path}.weight");
        // A head without a tensor of its own has the embedding's.
        let name = if checkpoint.contains(&own) { own.as_str() } else { "model.embed_tokens.weight" };
        let (rows, columns) = copy.dims2().map_err(&reading)?;
        let stored = checkpoint.matrix(name, [rows, columns], None).map_err(outside)?;
        let same = to_vec_f32(copy).map_err(&reading)?
            == to_vec_f32(&stored.to_f32().map_err(&reading)?).map_err(&reading)?;
        if !same {
            return Err(
                GgufError::Adapter { what: format!("a table that is not the base's, `{key}`") }.into()
            );
        }
        tensors.remove(key.as_str());
    }
    Ok(())
}

fn keys(architecture: Architecture, alpha: f32, options: &GgufAdapterOptions) -> Keys {
    let mut keys = Keys::new();
    keys.text("general.architecture", architecture.name());
    keys.text("general.type", "adapter");
    keys.text("adapter.type", "lora");
    keys.number("adapter.lora.alpha", alpha);
    if let Some(name) = &options.name {
        keys.text("general.name", name);
    }
    if let Some(base) = &options.base_name {
        keys.number("general.base_model.count", 1u32);
        keys.text("general.base_model.0.name", base);
    }
    keys
}

/// The factors by the names of the weights that they belong to.
fn pairs<'a>(
    tensors: &BTreeMap<&str, &'a Tensor>,
    scales: &BTreeMap<&str, f64>,
    architecture: Architecture,
    tied: bool,
) -> Result<Vec<Pair<'a>>, GgufError> {
    let cannot = |what: String| GgufError::Adapter { what };
    let mut pairs = Vec::new();
    for (key, tensor) in tensors {
        let name = key.strip_prefix(PREFIX).unwrap_or(key);
        let (path, other, of_table) = if let Some(path) = name.strip_suffix(".lora_A.weight") {
            (path, format!("{PREFIX}{path}.lora_B.weight"), false)
        } else if let Some(path) = name.strip_suffix(".lora_embedding_A") {
            (path, format!("{PREFIX}{path}.lora_embedding_B"), true)
        } else if name.ends_with(".lora_B.weight") || name.ends_with(".lora_embedding_B") {
            continue;
        } else {
            return Err(cannot(refused(name)));
        };
        let (Some(b), Some(scale)) = (tensors.get(other.as_str()), scales.get(path)) else {
            return Err(cannot(format!("`{key}` without its `{other}`")));
        };
        if tied && (path == "lm_head" || of_table) {
            return Err(cannot(format!(
                "an adapter on `{path}`, which shares its table with another module"
            )));
        }
        let stored = stored_name(architecture, &format!("{path}.weight"));
        let stored = stored.ok_or_else(|| cannot(format!("an adapter on `{path}`")))?;
        if stored.expert.is_some() {
            return Err(cannot(format!("an adapter on a single expert, `{path}`")));
        }
        pairs.push(Pair { weight: stored.name, a: tensor, b, scale: *scale, of_table });
    }
    if pairs.is_empty() {
        return Err(cannot("an adapter without low-rank factors".into()));
    }
    Ok(pairs)
}

/// What a key of PEFT's stands for that the format has no word for.
fn refused(name: &str) -> String {
    let what = if name.ends_with(".lora_magnitude_vector") {
        "DoRA's magnitudes"
    } else if name.ends_with(".lora_B.bias") {
        "a bias on B"
    } else if name.ends_with(".bias") {
        "a trained bias"
    } else if name.contains("trainable_tokens") {
        "trained rows of an embedding"
    } else if name.ends_with(".weight") && !name.contains(".lora_") {
        "a module that was trained as a whole"
    } else {
        "anything but low-rank factors"
    };
    format!("{what}, `{name}`")
}

fn names(weight: &str) -> [String; 2] {
    [format!("{weight}.lora_a"), format!("{weight}.lora_b")]
}

fn planned(pair: &Pair<'_>, ggml_type: GgmlType) -> [PlannedTensor; 2] {
    let [a, b] = names(&pair.weight);
    let mut shape = pair.a.dims().to_vec();
    // Rows of a table's A are looked up.
    if pair.of_table {
        shape.reverse();
    }
    let tensor = |name, shape| PlannedTensor { name, ggml_type, shape };
    [tensor(a, shape), tensor(b, pair.b.dims().to_vec())]
}

fn factor_a(pair: &Pair<'_>, name: &str, ggml_type: GgmlType) -> Result<Bytes> {
    if !pair.of_table {
        return bytes(pair.a, 1.0, name, ggml_type);
    }
    let turned = pair.a.t().map_err(doing("turn a factor round"))?;
    bytes(&turned, 1.0, name, ggml_type)
}

fn bytes(tensor: &Tensor, factor: f32, name: &str, ggml_type: GgmlType) -> Result<Bytes> {
    let making = doing("read a factor of the adapter");
    let tensor = tensor.to_dtype(DType::F32).and_then(|t| t.contiguous()).map_err(&making)?;
    let columns = tensor.dims().last().copied().unwrap_or(1);
    let coded = with_f32(&tensor, |values| {
        let values: Vec<f32> = values.iter().map(|v| v * factor).collect();
        coded(&values, columns, ggml_type)
    });
    let coded = coded.map_err(&making)?;
    coded.map_err(|source| GgufError::Encode { tensor: name.to_owned(), source }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn found(
        keys: &[(&str, &[usize])],
        architecture: Architecture,
        tied: bool,
    ) -> Result<Vec<(String, bool)>, String> {
        let tensors: BTreeMap<String, Tensor> = keys
            .iter()
            .map(|(key, shape)| {
                (format!("{PREFIX}{key}"), Tensor::zeros(*shape, DType::F32, &Device::Cpu).unwrap())
            })
            .collect();
        let tensors = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
        let paths = [
            "lm_head",
            "model.embed_tokens",
            Q,
            "model.layers.0.mlp.experts.1.up_proj",
            "model.layers.0.mlp.gate",
        ];
        let scales = paths.into_iter().map(|path| (path, 2.0)).collect();
        pairs(&tensors, &scales, architecture, tied)
            .map(|pairs| pairs.into_iter().map(|pair| (pair.weight, pair.of_table)).collect())
            .map_err(|error| error.to_string())
    }

    const Q: &str = "model.layers.0.self_attn.q_proj";

    fn of(path: &str) -> [(String, &'static [usize]); 2] {
        [(format!("{path}.lora_A.weight"), &[2, 8]), (format!("{path}.lora_B.weight"), &[8, 2])]
    }

    fn one(path: &str, architecture: Architecture, tied: bool) -> Result<Vec<(String, bool)>, String> {
        let [a, b] = of(path);
        found(&[(&a.0, a.1), (&b.0, b.1)], architecture, tied)
    }

    #[test]
    fn factors_belong_to_the_bases_tensors() {
        let name = |name: &str| Ok(vec![(name.to_owned(), false)]);
        assert_eq!(one(Q, Architecture::Llama, true), name("blk.0.attn_q.weight"));
        assert_eq!(one("lm_head", Architecture::Llama, false), name("output.weight"));
        assert_eq!(
            one("model.layers.0.mlp.gate", Architecture::Qwen3Moe, false),
            name("blk.0.ffn_gate_inp.weight")
        );
        let table = "model.embed_tokens.lora_embedding_";
        let keys: [(String, &[usize]); 2] = [(format!("{table}A"), &[2, 8]), (format!("{table}B"), &[4, 2])];
        let table = [(keys[0].0.as_str(), keys[0].1), (keys[1].0.as_str(), keys[1].1)];
        assert_eq!(found(&table, Architecture::Llama, false), Ok(vec![("token_embd.weight".into(), true)]));
        assert!(found(&table, Architecture::Llama, true).unwrap_err().contains("shares its table"));
    }

    #[test]
    fn what_has_no_tensor_there_is_refused() {
        let refused = |path: &str, tied| one(path, Architecture::Qwen3Moe, tied).unwrap_err();
        assert!(refused("lm_head", true).contains("an adapter on `lm_head`, which shares its table"));
        assert!(refused("model.layers.0.mlp.experts.1.up_proj", false).contains("a single expert"));
        let [a, b] = of(Q);
        let magnitude = format!("{Q}.lora_magnitude_vector");
        let dora =
            found(&[(&a.0, a.1), (&b.0, b.1), (&magnitude, &[8])], Architecture::Llama, false).unwrap_err();
        assert!(dora.contains("cannot hold DoRA's magnitudes, `model.layers.0"), "{dora}");
        let alone = found(&[(&a.0, a.1)], Architecture::Llama, false).unwrap_err();
        assert!(
            alone.contains("without its `base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight`"),
            "{alone}"
        );
        assert!(found(&[], Architecture::Llama, false).unwrap_err().contains("without low-rank factors"));
        for (key, what) in [
            (format!("{Q}.lora_B.bias"), "a bias on B"),
            (
                "model.embed_tokens.token_adapter.trainable_tokens_delta".into(),
                "trained rows of an embedding",
            ),
            (format!("{Q}.ia3_l"), "anything but low-rank factors"),
        ] {
            let error = found(&[(&key, &[8])], Architecture::Llama, false).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
