//! What the CUDA path takes of a device's memory where it differs from the CPU: where weights lie, and what products need beside their operands.

use super::format::WeightFormat;
use super::graph::{ModuleKind, modules};
use std::collections::BTreeMap;
use taper_models::ModelConfig;
use taper_quant::{BlockFormat, GgmlType};

/// What the driver, cuBLAS and the code of the kernels take of a device before the first tensor: an estimate, half a GiB. Cards and drivers differ.
pub const DRIVER_BYTES: u64 = 512 << 20;
/// Elements that each tensor's start is a multiple of in the flat buffers of gradients and moments.
const ALIGNMENT: u64 = 64;
/// Bytes of a weight that are decoded, or brought into the type of a product, at a time.
const DECODED_BYTES: u64 = 64 << 20;
/// What the nibbles of a matrix stand for, and its coded scales, as it lies on a device: 16, 256 and 1 numbers in f32.
const TABLE_BYTES: u64 = 4 * (16 + 256 + 1);
/// Rows of a tile of attention, each of which has a place in the table of the batch.
const TILE_ROWS: u64 = 64;

/// The frozen weights of a model as `taper_nn::move_to` places them.
#[derive(Debug, Clone, Default)]
pub struct GpuWeights {
    matrices: BTreeMap<String, Matrix>,
    /// Bytes on the device.
    pub device_bytes: u64,
    /// Bytes of blocks on the host beside the device's copy of them: pages of a mapped file where they were stored so.
    pub copied_bytes: u64,
    /// Bytes of layers that stay on the host and are copied whenever they are used.
    pub streamed_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Matrix {
    format: WeightFormat,
    rows: u64,
    columns: u64,
    is_streamed: bool,
}

impl GpuWeights {
    /// Weights in the formats that `format` gives for their paths. Of `max_memory` bytes the embedding takes its part first; linear layers
    /// that then do not fit stay on the host.
    pub fn new(config: &ModelConfig, format: impl Fn(&str) -> WeightFormat, max_memory: Option<u64>) -> Self {
        let (mut placed, mut left) = (Self::default(), max_memory.unwrap_or(u64::MAX));
        for module in modules(config) {
            let (rows, columns, is_linear) = match module.kind {
                ModuleKind::Linear { tied: true, .. } => continue,
                ModuleKind::Linear { n_in, n_out, bias, .. } => {
                    placed.device_bytes += if bias { 4 * n_out as u64 } else { 0 };
                    (n_out, n_in, true)
                }
                ModuleKind::Embedding { rows, width } => (rows, width, false),
                ModuleKind::RmsNorm { width } => {
                    placed.device_bytes += 4 * width as u64;
                    continue;
                }
            };
            let format = format(&module.path);
            let bytes = format.matrix_bytes(rows, columns);
            let is_streamed = is_linear && bytes > left;
            if is_streamed {
                placed.streamed_bytes += bytes;
            } else {
                left = left.saturating_sub(bytes);
                placed.device_bytes += format.device_bytes(rows, columns);
                placed.copied_bytes += if matches!(format, WeightFormat::Block(_)) { bytes } else { 0 };
            }
            let (rows, columns) = (rows as u64, columns as u64);
            placed.matrices.insert(module.path, Matrix { format, rows, columns, is_streamed });
        }
        placed
    }

    /// Bytes that a product with the weight at `path` takes beside its operands, in a type of `width` bytes: its copy where it is streamed, and
    /// the part of it that is decoded.
    pub(super) fn scratch(&self, path: &str, width: u64) -> u64 {
        let Some(matrix) = self.matrices.get(path) else { return 0 };
        let copy = match matrix.is_streamed {
            true => matrix.format.device_bytes(matrix.rows as usize, matrix.columns as usize),
            false => 0,
        };
        let is_as_it_lies =
            matches!((matrix.format, width), (WeightFormat::F32, 4) | (WeightFormat::BF16, 2));
        copy + if is_as_it_lies { 0 } else { decoded_bytes(matrix.rows, matrix.columns, width) }
    }
}

impl WeightFormat {
    /// [`Self::matrix_bytes`] on a device, which has what codes stand for beside them.
    pub fn device_bytes(self, rows: usize, columns: usize) -> u64 {
        let tables = match self {
            Self::Block(BlockFormat::Nf4 { .. } | BlockFormat::Fp4 { .. })
            | Self::Block(BlockFormat::Ggml(GgmlType::Iq4Nl | GgmlType::Iq4Xs)) => TABLE_BYTES,
            _ => 0,
        };
        self.matrix_bytes(rows, columns) + tables
    }
}

/// Bytes of the largest part of a matrix that is decoded at once.
pub(super) fn decoded_bytes(rows: u64, columns: u64, width: u64) -> u64 {
    let row = (columns * width).max(1);
    row * (DECODED_BYTES / row).clamp(1, rows.max(1))
}

/// Elements of a flat buffer of these tensors.
pub(super) fn flat_elements(tensors: impl Iterator<Item = u64>) -> u64 {
    tensors.fold(0, |len, elements| (len + elements).next_multiple_of(ALIGNMENT))
}

/// Bytes of the table that tells attention where the texts of a batch begin and end.
pub(super) fn segments_bytes(tokens: u64) -> u64 {
    8 * tokens + 12 * tokens.div_ceil(TILE_ROWS)
}

/// Whether attention over heads of this size is the kernel of the tensor cores, which rounds the gradient to bf16 first.
pub(super) fn is_flash(head_dim: usize, width: u64) -> bool {
    width == 2 && [64, 96, 128, 256].contains(&head_dim)
}

/// What a layer with A and B needs beside its operands: bytes of the forward, and of the backward beside the gradients that it gives.
///
/// `rows` are those of the input; `width` the bytes of its elements; `weight` what [`GpuWeights::scratch`] says. In bf16 the factors, h = x A^T
/// and the gradient are rounded copies; h, the gradient and that of h live as long as the backward of the layer does.
pub(super) fn adapted_scratch(
    rows: u64,
    (n_in, n_out, rank): (u64, u64, u64),
    width: u64,
    weight: u64,
    dropout: bool,
) -> (u64, u64) {
    let rounded = |elements: u64| if width == 2 { 2 * elements } else { 0 };
    let (a, b, low) = (rounded(rank * n_in), rounded(rank * n_out), rounded(rows * rank));
    let dropped = if dropout { width * rows * n_in } else { 0 };
    let forward = dropped + a + weight.max(low + b);
    let kept = rounded(rows * n_out) + 2 * low + 4 * rows * rank;
    // With dropout the low-rank part is made apart before it is masked.
    let apart = if dropout { 4 * rows * n_in } else { 0 };
    (forward, kept + a.max(b).max(apart).max(weight).max(dropped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_matrix_is_decoded_in_parts_and_a_small_one_at_once() {
        assert_eq!(decoded_bytes(256, 64, 2), 256 * 64 * 2);
        assert_eq!(decoded_bytes(151_936, 4096, 2), 64 << 20);
        assert_eq!(decoded_bytes(3, 64 << 20, 2), 128 << 20, "a row at least");
    }

    #[test]
    fn tensors_begin_at_multiples_of_64_elements() {
        assert_eq!(flat_elements([1, 64, 65].into_iter()), 64 + 64 + 128);
        assert_eq!(flat_elements(std::iter::empty()), 0);
    }

    #[test]
    fn what_fits_in_max_memory_lies_on_the_device_and_the_rest_is_streamed() {
        let config = ModelConfig::parse(
            r#"{"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": true}"#,
        )
        .unwrap();
        let dense = |_: &str| WeightFormat::BF16;
        let all = GpuWeights::new(&config, dense, None);
        assert_eq!(all.device_bytes, super::super::weight_bytes(&config, dense));
        assert_eq!((all.streamed_bytes, all.copied_bytes), (0, 0));
        assert_eq!((all.scratch("model.layers.0.mlp.up_proj", 2), all.scratch("none", 2)), (0, 0));
        assert_eq!(all.scratch("model.layers.0.mlp.up_proj", 4), 4 * 64 * 128);
        let none = GpuWeights::new(&config, dense, Some(0));
        let norms = 4 * 64 * 5;
        assert_eq!(none.device_bytes, 2 * 100 * 64 + norms, "the embedding is there always");
        assert_eq!(none.device_bytes + none.streamed_bytes, all.device_bytes);
        assert_eq!(none.scratch("model.layers.0.mlp.up_proj", 2), 2 * 64 * 128);
        let nf4 = |_: &str| WeightFormat::Block(BlockFormat::Nf4 { block_size: 64, double_quant: false });
        let coded = GpuWeights::new(&config, nf4, None);
        let matrices = 1 + 2 * 7;
        assert_eq!(coded.device_bytes, coded.copied_bytes + norms + matrices * TABLE_BYTES);
    }
}
