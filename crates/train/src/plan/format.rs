//! Bytes of a frozen matrix by what it is held in.

use candle_core::DType;
use taper_models::ModelConfig;
use taper_nn::StoredFormat;
use taper_quant::BlockFormat;

use super::graph::{ModuleKind, ModuleShape};

/// What the elements of a frozen matrix are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// The upper halves of 32-bit floats.
    BF16,
    /// IEEE half precision.
    F16,
    /// Coded in blocks.
    Block(BlockFormat),
}

impl From<StoredFormat> for WeightFormat {
    fn from(stored: StoredFormat) -> Self {
        match stored {
            StoredFormat::Dense(DType::BF16) => Self::BF16,
            StoredFormat::Dense(DType::F16) => Self::F16,
            StoredFormat::Dense(_) => Self::F32,
            StoredFormat::Blocks(format) => Self::Block(format),
        }
    }
}

impl WeightFormat {
    /// A short name, as a recipe or a GGUF file says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::Block(BlockFormat::Nf4 { double_quant: true, .. }) => "nf4 (double-quantised)",
            Self::Block(BlockFormat::Nf4 { .. }) => "nf4",
            Self::Block(BlockFormat::Fp4 { double_quant: true, .. }) => "fp4 (double-quantised)",
            Self::Block(BlockFormat::Fp4 { .. }) => "fp4",
            Self::Block(BlockFormat::Int8) => "int8",
            Self::Block(BlockFormat::Ggml(ggml_type)) => ggml_type.name(),
        }
    }

    /// Bytes that a matrix `[rows, columns]` takes, codes and scales together.
    ///
    /// A 4-bit matrix of n elements has n / 2 bytes of codes and an f32 scale for each block; with `double_quant` a scale is a byte, and 256
    /// of them share an f32 of their own beside one offset (Dettmers et al. 2023, section 3). int8 has a byte an element and an f32 a row.
    pub fn matrix_bytes(self, rows: usize, columns: usize) -> u64 {
        let elements = rows as u64 * columns as u64;
        match self {
            Self::F32 => 4 * elements,
            Self::BF16 | Self::F16 => 2 * elements,
            Self::Block(
                BlockFormat::Nf4 { block_size, double_quant } | BlockFormat::Fp4 { block_size, double_quant },
            ) => {
                let scales = elements.div_ceil(block_size.max(1) as u64);
                let of_scales = if double_quant { scales + 4 * scales.div_ceil(256) + 4 } else { 4 * scales };
                elements.div_ceil(2) + of_scales
            }
            Self::Block(BlockFormat::Int8) => elements + 4 * rows as u64,
            Self::Block(BlockFormat::Ggml(ggml)) => {
                elements.div_ceil(ggml.block_len() as u64) * ggml.block_bytes() as u64
            }
        }
    }
}

/// Bytes that the frozen weights of a model take: each matrix in the format that `format` gives for its path, norms and biases in f32, the
/// table of a tied head once.
pub fn weight_bytes(config: &ModelConfig, format: impl Fn(&str) -> WeightFormat) -> u64 {
    super::modules(config).iter().map(|module| module_bytes(module, &format)).sum()
}

fn module_bytes(module: &ModuleShape, format: impl Fn(&str) -> WeightFormat) -> u64 {
    match module.kind {
        ModuleKind::Linear { tied: true, .. } => 0,
        ModuleKind::Linear { n_in, n_out, bias, .. } => {
            format(&module.path).matrix_bytes(n_out, n_in) + if bias { 4 * n_out as u64 } else { 0 }
        }
        ModuleKind::Embedding { rows, width } => format(&module.path).matrix_bytes(rows, width),
        ModuleKind::RmsNorm { width } => 4 * width as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_quant::GgmlType;

    #[test]
    fn bytes_of_a_matrix_are_those_that_can_be_counted() {
        let bytes = |format: WeightFormat| format.matrix_bytes(512, 1024);
        assert_eq!(bytes(WeightFormat::F32), 2 << 20);
        assert_eq!(bytes(WeightFormat::BF16), 1 << 20);
        assert_eq!(bytes(WeightFormat::F16), 1 << 20);
        // 4 bits, and 32 for 64 elements: 4.5 bits an element.
        let nf4 = |double_quant| WeightFormat::Block(BlockFormat::Nf4 { block_size: 64, double_quant });
        assert_eq!(bytes(nf4(false)), (512 * 1024 * 9) / 16);
        // 8192 scales of a byte, 32 groups of them, one offset.
        assert_eq!(bytes(nf4(true)), 256 * 1024 + 8192 + 4 * 32 + 4);
        assert_eq!(bytes(WeightFormat::Block(BlockFormat::Int8)), 512 * 1024 + 4 * 512);
        // A scale of 2 bytes and 32 codes of one.
        assert_eq!(bytes(WeightFormat::Block(BlockFormat::Ggml(GgmlType::Q8_0))), 512 * 1024 / 32 * 34);
    }
}
