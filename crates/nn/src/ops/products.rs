//! Products of small matrices that make a weight: of two factors, element by element, and Kronecker's.

use crate::Result;
use crate::storage::{Lent, filled_f32};
use crate::tape::{Gradient, Op, Receiver, Saved, apply};
use candle_core::{Tensor, bail};
use taper_kernels::kronecker::{self, KroneckerShape};
use taper_kernels::{elementwise, gemm};

/// a `[m, k]` times b `[k, n]`, f32.
///
/// Gradients: `da = g b^T`, `db = a^T g`.
///
/// # Errors
/// When the shapes do not fit.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims2()?.1 != b.dims2()?.0 {
        bail!("a product of {:?} and {:?}", a.dims(), b.dims())
    }
    apply(MatMul, &[a, b])
}

struct MatMul;

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [a, b] = inputs else { bail!("takes two matrices") };
        let ((m, k), n) = (a.dims2()?, b.dims2()?.1);
        let (a, b) = (Lent::new(a), Lent::new(b));
        let (a, b) = (a.f32()?, b.f32()?);
        filled_f32((m, n), |c| {
            gemm::matmul(c, a, b, m, k, n, false, false, 1.0, false);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let (a, b) = (saved.input(0)?, saved.input(1)?);
        let ((m, k), n) = (a.dims2()?, b.dims2()?.1);
        let (a, b, g) = (Lent::new(a), Lent::new(b), Lent::new(g));
        let (a, b, g) = (a.f32()?, b.f32()?, g.f32()?);
        to.add(0, |da, accumulate| {
            gemm::matmul(da, g, b, m, n, k, false, true, 1.0, accumulate);
            Ok(())
        })?;
        to.add(1, |db, accumulate| {
            gemm::matmul(db, a, g, k, m, n, true, false, 1.0, accumulate);
            Ok(())
        })
    }
}

/// `x y`, element by element, f32, of one shape.
///
/// # Errors
/// When the shapes differ.
pub fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("{:?} and {:?} differ in shape", x.dims(), y.dims())
    }
    apply(Multiply, &[x, y])
}

struct Multiply;

impl Op for Multiply {
    fn name(&self) -> &'static str {
        "multiply"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [x, y] = inputs else { bail!("takes two tensors") };
        times(x, y)
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        for (index, other) in [(0, saved.input(1)?), (1, saved.input(0)?)] {
            if to.wants(index) {
                to.pass(index, &Gradient::new(times(g, other)?))?;
            }
        }
        Ok(())
    }
}

fn times(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (x_lent, y) = (Lent::new(x), Lent::new(y));
    let (x_s, y) = (x_lent.f32()?, y.f32()?);
    filled_f32(x.shape(), |out| {
        elementwise::multiply(x_s, y, out);
        Ok(())
    })
}

/// Kronecker's product of a `[m, n]` and b `[p, q]` -> `[m p, n q]`, f32.
///
/// # Errors
/// When they are no matrices.
pub fn kronecker(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let shape = KroneckerShape { a: a.dims2()?, b: b.dims2()? };
    apply(Kronecker(shape), &[a, b])
}

struct Kronecker(KroneckerShape);

impl Op for Kronecker {
    fn name(&self) -> &'static str {
        "kronecker"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let [a, b] = inputs else { bail!("takes two matrices") };
        let (a, b) = (Lent::new(a), Lent::new(b));
        let (a, b) = (a.f32()?, b.f32()?);
        filled_f32(self.0.out(), |out| {
            kronecker::kronecker(a, b, out, self.0);
            Ok(())
        })
    }

    fn backward(&self, saved: &Saved<'_>, g: &Gradient, to: &mut Receiver<'_>) -> Result<()> {
        let (a, b, g) = (Lent::new(saved.input(0)?), Lent::new(saved.input(1)?), Lent::new(g));
        let (a, b, g) = (a.f32()?, b.f32()?, g.f32()?);
        to.add(0, |da, accumulate| {
            if !accumulate {
                da.fill(0.0);
            }
            kronecker::add_gradient_a(g, b, da, self.0);
            Ok(())
        })?;
        to.add(1, |db, accumulate| {
            if !accumulate {
                db.fill(0.0);
            }
            kronecker::add_gradient_b(g, a, db, self.0);
            Ok(())
        })
    }
}
