//! Rows of their own for some tokens (PEFT's `trainable_token_indices`): the rest of the table stays as it is.

use candle_core::Tensor;
use taper_nn::{Embedding, EmbeddingAdapter, ForwardContext, Linear, LinearAdapter, ops, with_f32};

/// Rows `[n, H]` f32 that take the place of the table's rows `ids`.
#[derive(Debug, Clone)]
pub(crate) struct TokenRows {
    pub(crate) ids: Vec<u32>,
    pub(crate) rows: Tensor,
}

impl TokenRows {
    /// The table with the rows in their places.
    fn merged(&self, table: &Tensor) -> taper_nn::Result<Tensor> {
        let h = table.dims2()?.1;
        let mut merged = with_f32(&table.contiguous()?, <[f32]>::to_vec)?;
        with_f32(&self.rows, |rows| {
            for (id, row) in self.ids.iter().zip(rows.chunks_exact(h)) {
                merged[*id as usize * h..][..h].copy_from_slice(row);
            }
        })?;
        Tensor::from_vec(merged, table.dims(), table.device())
    }
}

impl EmbeddingAdapter for TokenRows {
    fn forward(&self, ids: &[u32], base: &Embedding) -> taper_nn::Result<Tensor> {
        let place = |id: &u32| self.ids.iter().position(|own| own == id);
        let places: Vec<(u32, u32)> =
            (0u32..).zip(ids).filter_map(|(at, id)| Some((at, u32::try_from(place(id)?).ok()?))).collect();
        let rows = base.base_forward(ids)?;
        // Always, so that the rows are differentiated also in a batch without their tokens.
        ops::replace_rows(&rows, &self.rows, places)
    }

    fn merged_weight(&self, base: &Embedding) -> taper_nn::Result<Tensor> {
        self.merged(&base.weight().to_f32()?)
    }
}

/// The same rows in a head that shares the table.
#[derive(Debug)]
pub(crate) struct TokenHead(pub(crate) TokenRows);

impl LinearAdapter for TokenHead {
    fn forward(&self, x: &Tensor, base: &Linear, _ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        let logits = base.base_forward(x)?;
        let own = ops::linear_over(x, &self.0.rows, logits.dtype())?;
        ops::replace_columns(&logits, &own, &self.0.ids)
    }

    fn merged_weight(&self, base: &Linear) -> taper_nn::Result<Tensor> {
        self.0.merged(&base.weight().to_f32()?)
    }
}
