//! A model's tensors in a file: planned, then made and written one by one.

use super::error::GgufError;
use super::mix::{Fallback, Mix};
use crate::error::doing;
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use taper_hub::gguf::{Architecture, GgufWriter, PlannedTensor, WriteError, stored_name, unpermuted_row};
use taper_models::{CausalLm, ModelConfig};
use taper_nn::{Embedding, Linear, ModuleMut, Weight, with_f32};
use taper_quant::{BlockFormat, Bytes, GgmlType, Parts, QuantError, QuantizedTensor};

/// The tensors of a file before their numbers are made.
pub(super) struct Plan {
    /// In the order of the forward pass.
    pub(super) tensors: Vec<PlannedTensor>,
    /// Those that have another type than they should.
    pub(super) fallbacks: Vec<Fallback>,
    /// Whether the head is a tensor of its own.
    pub(super) own_head: bool,
    types: BTreeMap<String, GgmlType>,
}

/// A tensor of the model as it is held.
enum Held<'a> {
    /// A layer's weight, with what is attached to it.
    Layer(&'a Linear),
    /// A table, with what is attached to it.
    Table(&'a Embedding),
    /// A bias.
    Bias(Tensor),
    /// A norm's gain, less 1 where files of the Hub hold that.
    Gain(Tensor),
}

impl Held<'_> {
    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Layer(linear) => vec![linear.out_features(), linear.in_features()],
            Self::Table(table) => {
                let (rows, columns) = table.weight().dims();
                vec![rows, columns]
            }
            Self::Bias(vector) | Self::Gain(vector) => vector.dims().to_vec(),
        }
    }

    /// The blocks that it is held in, where nothing was done to them.
    fn blocks(&self) -> Option<(GgmlType, Bytes)> {
        let weight = match self {
            Self::Layer(linear) if linear.adapter().is_none() => linear.weight(),
            Self::Table(table) if table.adapter().is_none() => table.weight(),
            _ => return None,
        };
        let Weight::Frozen(frozen) = weight else { return None };
        match frozen.as_quantized()?.parts() {
            Parts::Ggml(ggml_type, bytes) => Some((ggml_type, bytes.clone())),
            _ => None,
        }
    }

    /// The numbers in f32, an adapter merged.
    fn values(&self) -> taper_nn::Result<Tensor> {
        match self {
            Self::Layer(linear) => match linear.adapter() {
                Some(adapter) => adapter.merged_weight(linear),
                None => linear.weight().to_f32(),
            },
            Self::Table(table) => match table.adapter() {
                Some(adapter) => adapter.merged_weight(table),
                None => table.weight().to_f32(),
            },
            Self::Bias(vector) | Self::Gain(vector) => vector.to_dtype(candle_core::DType::F32),
        }
    }
}

/// Plan every tensor of the model: a head that shares the embedding's table is left out, experts of a block are one tensor.
pub(super) fn plan(model: &mut dyn CausalLm, gguf_type: super::GgufType) -> Result<Plan> {
    let config = model.config().clone();
    let architecture = super::metadata::architecture(config.model_type);
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    each(model, |hub, held| {
        let stored = place(architecture, hub)?;
        let mut shape = held.shape();
        match stored.expert {
            Some(0) => shape.insert(0, experts(&config)),
            Some(_) => return Ok(()),
            None => {}
        }
        found.push((stored.name, shape));
        Ok(())
    })?;
    let own_head = found.iter().any(|(name, _)| name == "output.weight");
    let mix = Mix::new(gguf_type, &config, !own_head);
    let mut plan = Plan { tensors: Vec::new(), fallbacks: Vec::new(), own_head, types: BTreeMap::new() };
    for (name, shape) in found {
        let (ggml_type, fallback) = mix.choose(&name, &shape);
        plan.fallbacks.extend(fallback);
        plan.types.insert(name.clone(), ggml_type);
        plan.tensors.push(PlannedTensor { name, ggml_type, shape });
    }
    Ok(plan)
}

/// Make and write every planned tensor, one in memory at a time; its rows are coded by all threads.
pub(super) fn write(
    model: &mut dyn CausalLm,
    plan: &Plan,
    writer: &mut GgufWriter,
    failed: impl Fn(WriteError) -> Error,
) -> Result<()> {
    let config = model.config().clone();
    let architecture = super::metadata::architecture(config.model_type);
    each(model, |hub, held| {
        let stored = place(architecture, hub)?;
        let ggml_type = plan.types.get(&stored.name).copied().unwrap_or(GgmlType::F32);
        let bytes = bytes_of(&held, &stored.name, ggml_type, architecture)?;
        let bytes = match rotary_heads(architecture, &stored.name, &config) {
            Some(heads) => Bytes::new(in_pairs(&bytes, held.shape()[0], heads)),
            None => bytes,
        };
        let part = stored.expert.map_or((0, 1), |expert| (expert, experts(&config)));
        writer.push_part(&stored.name, part, &bytes).map_err(&failed)
    })
}

fn place(architecture: Architecture, hub: &str) -> Result<taper_hub::gguf::StoredName> {
    let unknown = || GgufError::Tensor { tensor: hub.to_owned(), architecture: architecture.name() };
    Ok(stored_name(architecture, hub).ok_or_else(unknown)?)
}

fn experts(config: &ModelConfig) -> usize {
    config.experts.as_ref().map_or(1, |experts| experts.num_experts)
}

/// The bytes of a tensor in its type, rows in the Hub's order.
fn bytes_of(held: &Held<'_>, name: &str, ggml_type: GgmlType, architecture: Architecture) -> Result<Bytes> {
    // What nothing was done to keeps its bits.
    if let Some((held_in, bytes)) = held.blocks()
        && held_in == ggml_type
    {
        return Ok(bytes);
    }
    let making = doing("make a tensor of the GGUF file");
    let mut values = held.values().map_err(&making)?;
    if architecture.adds_one_to_norms() && matches!(held, Held::Gain(_)) {
        values = (values + 1.0).map_err(&making)?;
    }
    let columns = values.dims().last().copied().unwrap_or(1);
    let values = values.contiguous().map_err(&making)?;
    let coded = with_f32(&values, |values| coded(values, columns, ggml_type)).map_err(&making)?;
    coded.map_err(|source| GgufError::Encode { tensor: name.to_owned(), source }.into())
}

/// Rows of numbers in a type of GGML.
pub(super) fn coded(values: &[f32], columns: usize, ggml_type: GgmlType) -> Result<Bytes, QuantError> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    let coded = QuantizedTensor::quantize(values, rows, columns, BlockFormat::Ggml(ggml_type))?;
    match coded.parts() {
        Parts::Ggml(_, bytes) => Ok(bytes.clone()),
        _ => Err(QuantError::NotEncoded { format: ggml_type }),
    }
}

/// The heads of a tensor of queries or keys whose rows go in pairs.
pub(super) fn rotary_heads(architecture: Architecture, name: &str, config: &ModelConfig) -> Option<usize> {
    if !architecture.pairs_rotary_rows() {
        return None;
    }
    match name.split('.').nth(2)? {
        "attn_q" => Some(config.num_attention_heads),
        "attn_k" => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Rows of the Hub's order in pairs, so that the two halves that a rotary embedding turns together become neighbours. Rows are whole blocks:
/// their bytes move.
pub(super) fn in_pairs(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (head_dim, row_bytes) = (rows / heads, bytes.len() / rows);
    let mut paired = vec![0; bytes.len()];
    for (row, from) in bytes.chunks_exact(row_bytes).enumerate() {
        let to = unpermuted_row(heads, head_dim, row) * row_bytes;
        paired[to..to + row_bytes].copy_from_slice(from);
    }
    paired
}

/// Show each tensor under the Hub's name.
fn each(model: &mut dyn CausalLm, mut take: impl FnMut(&str, Held<'_>) -> Result<()>) -> Result<()> {
    // The visit speaks candle's errors; ours waits outside.
    let mut failed = None;
    let mut table_is_adapted = false;
    let visited = model.visit_modules(&mut |module| {
        let path = module.path().to_owned();
        let weight = format!("{path}.weight");
        let outcome = match module {
            // A head over the embedding's table is that table, as long as nothing was added to either.
            ModuleMut::Linear(m) if m.is_tied() && m.adapter().is_none() && !table_is_adapted => Ok(()),
            ModuleMut::Linear(m) => {
                let bias = match m.adapter() {
                    Some(adapter) => adapter.merged_bias(m)?,
                    None => m.bias(),
                };
                take(&weight, Held::Layer(m)).and_then(|()| match bias {
                    Some(bias) => take(&format!("{path}.bias"), Held::Bias(bias)),
                    None => Ok(()),
                })
            }
            ModuleMut::Embedding(m) => {
                table_is_adapted = m.adapter().is_some();
                take(&weight, Held::Table(m))
            }
            ModuleMut::RmsNorm(m) => take(&weight, Held::Gain(m.weight())),
        };
        outcome.or_else(|error| {
            failed = Some(error);
            candle_core::bail!("stopped")
        })
    });
    match (failed, visited) {
        (Some(error), _) => Err(error),
        (None, visited) => visited.map_err(doing("read the model's tensors")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_in_pairs_as_the_converter_reshapes_them() {
        // Two heads of 6, a byte a row: `reshape(2, 2, 3).swapaxes(1, 2)` of 0..12.
        let rows: Vec<u8> = (0..12).collect();
        assert_eq!(in_pairs(&rows, 12, 2), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}
