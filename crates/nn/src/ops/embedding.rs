//! Looking up rows of a table.

use crate::storage::{Lent, filled_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use crate::{Result, Weight};
use candle_core::{Tensor, bail};
use taper_kernels::embedding as kernel;
use taper_kernels::gemm::WeightView;

/// Rows `ids` of the table `[V, H]` -> `[T, H]` f32.
///
/// # Errors
/// When an id is not below V.
pub fn embedding(ids: &[u32], table: &Weight) -> Result<Tensor> {
    let (v, h) = table.dims();
    if let Some(id) = ids.iter().find(|id| **id as usize >= v) {
        bail!("token id {id} in a vocabulary of {v}")
    }
    match table {
        Weight::Frozen(table) => {
            filled_f32((ids.len(), h), |rows| table.with_view(|t| kernel::gather(t, h, ids, rows)))
        }
        Weight::Trainable(var) => apply(Lookup { ids: ids.to_vec() }, &[var.as_tensor()]),
    }
}

struct Lookup {
    ids: Vec<u32>,
}

impl Op for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let h = inputs[0].dims2()?.1;
        let table = Lent::new(inputs[0]);
        let table = table.f32()?;
        filled_f32((self.ids.len(), h), |rows| {
            kernel::gather(WeightView::F32(table), h, &self.ids, rows);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let h = saved.shape(0).dims2()?.1;
        let g = Lent::new(g);
        let g = g.f32()?;
        to.add(0, |dtable, accumulate| {
            if !accumulate {
                dtable.fill(0.0);
            }
            kernel::scatter_add(g, &self.ids, dtable, h);
            Ok(())
        })
    }
}
