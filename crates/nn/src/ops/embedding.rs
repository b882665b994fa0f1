//! Looking up rows of a table.

use crate::storage::{Lent, f32_slice, filled, filled_like};
use crate::{Result, Weight};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, bail};
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
            let mut rows = vec![0f32; ids.len() * h];
            table.with_view(|t| kernel::gather(t, h, ids, &mut rows))?;
            Tensor::from_vec(rows, (ids.len(), h), &Device::Cpu)
        }
        Weight::Trainable(var) => var.as_tensor().apply_op1(Lookup { ids: ids.to_vec() }),
    }
}

struct Lookup {
    ids: Vec<u32>,
}

impl CustomOp1 for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (table, h) = (f32_slice(table, layout)?, layout.shape().dims2()?.1);
        let rows = filled(self.ids.len() * h, |rows| {
            kernel::gather(WeightView::F32(table), h, &self.ids, rows);
            Ok(())
        })?;
        Ok((rows, Shape::from((self.ids.len(), h))))
    }

    fn bwd(&self, table: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let lent = Lent::new(&g);
        let (g_s, h) = (lent.f32()?, table.dims2()?.1);
        let dtable = filled_like(table, |dtable| {
            kernel::scatter_add(g_s, &self.ids, dtable, h);
            Ok(())
        })?;
        Ok(Some(dtable))
    }
}
