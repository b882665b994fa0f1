//! A factor for each column.

use crate::Result;
use crate::storage::{Lent, filled};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
use taper_kernels::elementwise as kernel;

/// `y[t, j] = x[t, j] v[j] / d[j]`: x `[T, n]`, v of n elements in any shape, in f32, and d `[n]`, which is never differentiated, or 1; in the
/// type of x.
///
/// Gradients: `dx = g v / d`, `dv[j] = sum over t of g x / d`.
///
/// # Errors
/// When the widths differ.
pub fn scale_columns(x: &Tensor, v: &Tensor, divisors: Option<Vec<f32>>) -> Result<Tensor> {
    let n = x.dims2()?.1;
    if v.elem_count() != n || divisors.as_ref().is_some_and(|d| d.len() != n) {
        bail!("factors of {:?} for rows of {n}", v.dims())
    }
    apply(ScaleColumns { divisors }, &[x, v])
}

struct ScaleColumns {
    divisors: Option<Vec<f32>>,
}

impl ScaleColumns {
    fn divided(&self, values: &mut [f32]) {
        for (value, divisor) in values.iter_mut().zip(self.divisors.iter().flatten()) {
            *value /= divisor;
        }
    }

    fn factors(&self, v: &Tensor) -> Result<Vec<f32>> {
        let mut factors = Lent::new(v).f32()?.to_vec();
        self.divided(&mut factors);
        Ok(factors)
    }
}

impl Op for ScaleColumns {
    fn name(&self) -> &'static str {
        "scale-columns"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, v] = inputs else { bail!("takes an input and factors") };
        let factors = self.factors(v)?;
        let lent = Lent::new(x);
        let values = lent.floats()?;
        filled(x.dtype(), x.shape(), |y| {
            kernel::scale_columns(values, &factors, y);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let (x, factors) = (Lent::new(saved.input(0)?), self.factors(saved.input(1)?)?);
        let (x, g) = (x.floats()?, Lent::new(g));
        let g = g.f32()?;
        to.write(1, |dv| {
            dv.fill(0.0);
            kernel::add_column_dots(g, x, dv);
            self.divided(dv);
            Ok(())
        })?;
        to.write(0, |dx| {
            kernel::scale_columns(g, &factors, dx);
            Ok(())
        })
    }
}
