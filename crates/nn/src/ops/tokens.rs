//! Parts of a vocabulary: columns of a factor by token, and rows of a table, or columns of logits, that other rows take the place of.

use crate::Result;
use crate::storage::{Lent, filled, filled_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
use taper_kernels::{embedding as kernel, floats};

/// Columns `ids` of the matrix `[r, V]` -> `[T, r]` f32: the A of an embedding's adapter.
///
/// # Errors
/// When an id is not below V.
pub fn embedding_columns(ids: &[u32], matrix: &Tensor) -> Result<Tensor> {
    let v = matrix.dims2()?.1;
    if let Some(id) = ids.iter().find(|id| **id as usize >= v) {
        bail!("token id {id} in a vocabulary of {v}")
    }
    apply(EmbeddingColumns { ids: ids.to_vec() }, &[matrix])
}

struct EmbeddingColumns {
    ids: Vec<u32>,
}

impl Op for EmbeddingColumns {
    fn name(&self) -> &'static str {
        "embedding-columns"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (r, v) = inputs[0].dims2()?;
        let matrix = Lent::new(inputs[0]);
        let matrix = matrix.f32()?;
        filled_f32((self.ids.len(), r), |out| {
            kernel::gather_columns(matrix, v, &self.ids, out);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let v = saved.shape(0).dims2()?.1;
        let g = Lent::new(g);
        let g = g.f32()?;
        to.add(0, |dmatrix, accumulate| {
            if !accumulate {
                dmatrix.fill(0.0);
            }
            kernel::scatter_add_columns(g, &self.ids, dmatrix, v);
            Ok(())
        })
    }
}

/// x `[T, H]` with the rows in `places` (row of x, row of `rows`) replaced by rows of `rows` `[n, H]`, in the type of x.
///
/// Gradients: that of a replaced row goes to the row that replaced it.
///
/// # Errors
/// When a place is outside, or the widths differ.
pub fn replace_rows(x: &Tensor, rows: &Tensor, places: Vec<(u32, u32)>) -> Result<Tensor> {
    let ((t, h), (n, width)) = (x.dims2()?, rows.dims2()?);
    if h != width || places.iter().any(|(at, from)| *at as usize >= t || *from as usize >= n) {
        bail!("rows of {:?} in {:?}", rows.dims(), x.dims())
    }
    apply(ReplaceRows { places }, &[x, rows])
}

struct ReplaceRows {
    places: Vec<(u32, u32)>,
}

impl Op for ReplaceRows {
    fn name(&self) -> &'static str {
        "replace-rows"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, rows] = inputs else { bail!("takes two tensors") };
        let h = x.dims2()?.1;
        let (x_lent, rows) = (Lent::new(x), Lent::new(rows));
        let (x_s, rows) = (x_lent.floats()?, rows.f32()?);
        let mut wide = floats::buffer(x.elem_count());
        taper_kernels::elementwise::scale(x_s, 1.0, &mut wide[..]);
        for (at, from) in &self.places {
            let (at, from) = (*at as usize * h, *from as usize * h);
            wide[at..at + h].copy_from_slice(&rows[from..from + h]);
        }
        filled(x.dtype(), x.shape(), |y| {
            taper_kernels::elementwise::scale(&wide, 1.0, y);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let h = saved.shape(0).dims2()?.1;
        let g = Lent::new(g);
        let g = g.f32()?;
        to.add(1, |drows, accumulate| {
            if !accumulate {
                drows.fill(0.0);
            }
            for (at, from) in &self.places {
                let (at, from) = (*at as usize * h, *from as usize * h);
                for (d, g) in drows[from..from + h].iter_mut().zip(&g[at..at + h]) {
                    *d += g;
                }
            }
            Ok(())
        })?;
        to.write(0, |dx| {
            dx.copy_from_slice(g);
            for (at, _) in &self.places {
                dx[*at as usize * h..][..h].fill(0.0);
            }
            Ok(())
        })
    }
}

/// x `[T, V]` with columns `ids` replaced by the columns of y `[T, n]`, both f32: logits of tokens that have a row of their own.
///
/// # Errors
/// When the shapes do not fit, or an id is not below V.
pub fn replace_columns(x: &Tensor, y: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let ((t, v), (rows, n)) = (x.dims2()?, y.dims2()?);
    if t != rows || n != ids.len() || ids.iter().any(|id| *id as usize >= v) {
        bail!("columns of {:?} in {:?}", y.dims(), x.dims())
    }
    apply(ReplaceColumns { ids: ids.to_vec() }, &[x, y])
}

struct ReplaceColumns {
    ids: Vec<u32>,
}

impl Op for ReplaceColumns {
    fn name(&self) -> &'static str {
        "replace-columns"
    }

    fn keeps_input(&self, _index: usize) -> bool {
        false
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, y] = inputs else { bail!("takes two tensors") };
        let v = x.dims2()?.1;
        let (x_lent, y) = (Lent::new(x), Lent::new(y));
        let (x_s, y) = (x_lent.f32()?, y.f32()?);
        filled_f32(x.shape(), |out| {
            out.copy_from_slice(x_s);
            for (out, y) in out.chunks_exact_mut(v).zip(y.chunks_exact(self.ids.len())) {
                for (id, y) in self.ids.iter().zip(y) {
                    out[*id as usize] = *y;
                }
            }
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let v = saved.shape(0).dims2()?.1;
        let g = Lent::new(g);
        let g = g.f32()?;
        to.write(1, |dy| {
            for (dy, g) in dy.chunks_exact_mut(self.ids.len()).zip(g.chunks_exact(v)) {
                for (id, dy) in self.ids.iter().zip(dy) {
                    *dy = g[*id as usize];
                }
            }
            Ok(())
        })?;
        to.write(0, |dx| {
            dx.copy_from_slice(g);
            for dx in dx.chunks_exact_mut(v) {
                self.ids.iter().for_each(|id| dx[*id as usize] = 0.0);
            }
            Ok(())
        })
    }
}
