//! Looking up rows of a table.

#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, SliceMut, failed};
use crate::storage::{Lent, filled_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use crate::{Result, Weight};
#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Tensor, bail};
#[cfg(feature = "cuda")]
use taper_kernels::cuda::{decode, elementwise, linear::GpuWeight};
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
        #[cfg(feature = "cuda")]
        Weight::Frozen(table) if table.device().is_cuda() => looked_up(ids, table, h),
        Weight::Frozen(table) => {
            filled_f32((ids.len(), h), |rows| table.with_view(|t| kernel::gather(t, h, ids, rows)))
        }
        Weight::Trainable(var) => apply(Lookup { ids: ids.to_vec() }, &[var.as_tensor()]),
    }
}

#[cfg(feature = "cuda")]
fn looked_up(ids: &[u32], table: &crate::FrozenWeight, h: usize) -> Result<Tensor> {
    let Some(place) = Place::on(&table.device()) else { bail!("expected a table on the GPU") };
    let ids_there = place.upload_ids(ids)?;
    place.filled(DType::F32, (ids.len(), h), |rows| {
        table.with_gpu(&place, |table| {
            match table {
                GpuWeight::Dense(table) => decode::gather_dense(&place, table, h, &ids_there, rows),
                GpuWeight::Quantized(table) => decode::gather_rows(&place, table, &ids_there, rows),
            }
            .map_err(failed)
        })
    })
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

    #[cfg(feature = "cuda")]
    fn forward_cuda(&self, place: &Place, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
        let h = inputs[0].dims2()?.1;
        let (table, ids) = (GpuLent::new(place, inputs[0]), place.upload_ids(&self.ids)?);
        let table = table.f32()?;
        let fill =
            |rows: &mut SliceMut<'_>| elementwise::take_rows(place, table, &ids, rows, h).map_err(failed);
        place.filled(DType::F32, (self.ids.len(), h), fill).map(Some)
    }

    #[cfg(feature = "cuda")]
    fn backward_cuda(
        &self,
        place: &Place,
        saved: &Saved<'_>,
        g: &Gradient,
        to: &mut Receiver<'_>,
    ) -> Result<bool> {
        let h = saved.shape(0).dims2()?.1;
        let g = GpuLent::new(place, g);
        let g = g.f32()?;
        to.add_on(place, 0, |table, accumulate| {
            if !accumulate {
                elementwise::fill_zeros(place, table).map_err(failed)?;
            }
            elementwise::scatter_add(place, g, &self.ids, table, h).map_err(failed)
        })?;
        Ok(true)
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
