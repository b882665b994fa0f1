//! LoRA of an embedding: `y_t = E[id_t] + s B A[:, id_t]`.

use candle_core::Tensor;
use taper_kernels::gemm;
use taper_nn::{Embedding, EmbeddingAdapter, ops, with_f32};

/// A `[r, V]` and B `[H, r]`, f32. There is no dropout, as in PEFT.
#[derive(Debug)]
pub(crate) struct LoraEmbedding {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) scale: f64,
}

impl EmbeddingAdapter for LoraEmbedding {
    fn forward(&self, ids: &[u32], base: &Embedding) -> taper_nn::Result<Tensor> {
        let low = ops::embedding_columns(ids, &self.a)?;
        let delta = ops::linear_over(&low, &self.b, low.dtype())?;
        ops::add(&base.base_forward(ids)?, &ops::scale(&delta, self.scale)?)
    }

    /// `E + s (B A)^T`.
    fn merged_weight(&self, base: &Embedding) -> taper_nn::Result<Tensor> {
        let ((r, v), h) = (self.a.dims2()?, self.b.dims2()?.0);
        let mut merged = vec![0f32; v * h];
        with_f32(&self.a, |a| {
            with_f32(&self.b, |b| gemm::matmul(&mut merged, a, b, v, r, h, true, true, 1.0, false))
        })??;
        with_f32(&base.weight().to_f32()?, |table| {
            for (m, w) in merged.iter_mut().zip(table) {
                *m = w + *m * self.scale as f32;
            }
        })?;
        Tensor::from_vec(merged, (v, h), self.a.device())
    }
}
