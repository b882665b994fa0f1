//! A GGUF adapter, read as an engine reads it, so that what was written can be held against what was trained.

use super::GgufError;
use super::tensors::rotary_heads;
use crate::error::doing;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use taper_hub::gguf::{Header, TensorInfo, stored_name};
use taper_models::CausalLm;
use taper_nn::ModuleMut;
use taper_peft::{AdapterConfig, AdapterWeights, PREFIX, TargetModules};
use taper_quant::{Bytes, QuantizedTensor};

/// The adapter in a GGUF file in PEFT's names, for a model that it fits: `alpha / r` of each tensor's own rank is its scale, as llama.cpp takes it.
///
/// # Errors
/// When the file is no GGUF adapter, is for another architecture, lacks a factor, or holds one for what the model does not have.
pub fn read_gguf_adapter(path: &Path, model: &mut dyn CausalLm) -> Result<(AdapterConfig, AdapterWeights)> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let bytes = fs_err::read(path).map_err(read)?;
    let header = Header::parse(&bytes).map_err(|source| unreadable(path, &source.to_string()))?;
    let word = |key: &str| header.metadata.text(key).ok().flatten().unwrap_or("nothing").to_owned();
    let config = model.config().clone();
    let architecture = super::metadata::architecture(config.model_type);
    for (key, wanted) in
        [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture.name())]
    {
        let given = word(key);
        if given != wanted {
            return Err(unreadable(path, &format!("`{key}` is {given}, and not {wanted}")));
        }
    }
    let alpha = header.metadata.number("adapter.lora.alpha").ok().flatten();
    let Some(alpha) = alpha.filter(|alpha| alpha.is_finite() && *alpha != 0.0) else {
        return Err(unreadable(path, "`adapter.lora.alpha` is missing or zero"));
    };
    let mut left: BTreeMap<String, TensorInfo> = header.tensors.into_iter().collect();
    let (mut tensors, mut ranks) = (BTreeMap::new(), Vec::new());
    for (module, is_table) in modules(model)? {
        let Some(stored) = stored_name(architecture, &format!("{module}.weight")) else { continue };
        let take = |left: &mut BTreeMap<String, TensorInfo>, half: &str| {
            left.remove(&format!("{}.{half}", stored.name))
        };
        let (a, b) = match (take(&mut left, "lora_a"), take(&mut left, "lora_b")) {
            (None, None) => continue,
            (Some(a), Some(b)) => (a, b),
            _ => return Err(unreadable(path, &format!("`{}` has one factor of two", stored.name))),
        };
        let factors = || -> std::result::Result<[Tensor; 2], String> {
            let (a, b) = (matrix(&bytes, &a)?, matrix(&bytes, &b)?);
            let b = match rotary_heads(architecture, &stored.name, &config) {
                Some(heads) => halved(&b, heads).map_err(|e| e.to_string())?,
                None => b,
            };
            // Rows of a table's A are looked up.
            let a =
                if is_table { a.t().and_then(|a| a.contiguous()).map_err(|e| e.to_string())? } else { a };
            Ok([a, b])
        };
        let [a, b] = factors().map_err(|what| unreadable(path, &format!("`{}`: {what}", stored.name)))?;
        ranks.push((module.clone(), a.dims()[0]));
        let names = if is_table {
            ["lora_embedding_A", "lora_embedding_B"]
        } else {
            ["lora_A.weight", "lora_B.weight"]
        };
        for (name, tensor) in names.into_iter().zip([a, b]) {
            tensors.insert(format!("{PREFIX}{module}.{name}"), tensor);
        }
    }
    if let Some(name) = left.keys().next() {
        return Err(unreadable(path, &format!("`{name}` is for nothing in the model")));
    }
    let Some(first) = ranks.first().map(|(_, rank)| *rank) else {
        return Err(unreadable(path, "there is no tensor in it"));
    };
    let exactly = |module: &str| format!("^{}", module.replace('.', "\\."));
    let config = AdapterConfig {
        r: first,
        lora_alpha: alpha,
        rank_pattern: ranks.iter().filter(|(_, r)| *r != first).map(|(m, r)| (exactly(m), *r)).collect(),
        target_modules: Some(TargetModules::List(ranks.into_iter().map(|(module, _)| module).collect())),
        task_type: Some("CAUSAL_LM".to_owned()),
        ..AdapterConfig::default()
    };
    Ok((config, AdapterWeights::from_tensors(tensors)))
}

fn unreadable(path: &Path, what: &str) -> Error {
    GgufError::UnreadableAdapter { path: path.to_owned(), what: what.to_owned() }.into()
}

/// The paths of what can have an adapter, and whether it is a table.
fn modules(model: &mut dyn CausalLm) -> Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    let visited = model.visit_modules(&mut |module| {
        match &module {
            ModuleMut::Linear(m) => found.push((m.path().to_owned(), false)),
            ModuleMut::Embedding(m) => found.push((m.path().to_owned(), true)),
            ModuleMut::RmsNorm(_) => {}
        }
        Ok(())
    });
    visited.map_err(doing("list the model's modules"))?;
    Ok(found)
}

fn matrix(bytes: &[u8], info: &TensorInfo) -> std::result::Result<Tensor, String> {
    let &[rows, columns] = info.shape.as_slice() else { return Err(format!("a shape of {:?}", info.shape)) };
    let held = bytes.get(info.range.clone()).ok_or("its bytes are not there")?;
    let coded = QuantizedTensor::ggml(rows, columns, info.ggml_type, Bytes::new(held.to_vec()));
    let mut values = vec![0f32; rows * columns];
    coded.map_err(|e| e.to_string())?.decode(0, &mut values);
    if values.iter().any(|v| !v.is_finite()) {
        return Err("it holds NaN or infinity".into());
    }
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).map_err(|e| e.to_string())
}

/// Rows in pairs back in the Hub's order: the halves of each head apart.
fn halved(b: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, rank) = b.dims2()?;
    if heads == 0 || rows % (2 * heads) != 0 {
        candle_core::bail!("{rows} rows for {heads} heads")
    }
    b.reshape((heads, rows / heads / 2, 2, rank))?.transpose(1, 2)?.contiguous()?.reshape((rows, rank))
}
