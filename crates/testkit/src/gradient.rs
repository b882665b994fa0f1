//! Gradients against finite differences.

use candle_core::{Result, Tensor, Var};
use std::rc::Rc;
use taper_nn::tape::{CollectedGradients, record};
use taper_nn::to_vec_f32;

/// How a gradient is checked.
#[derive(Debug, Clone, Copy)]
pub struct GradientCheck {
    /// h of the central difference `(f(x + h) - f(x - h)) / 2h`. In f32 the error is about `h^2 + 1e-7 |f| / h`, smallest near 1e-2.
    pub step: f32,
    /// At most so many entries of each variable are checked, spread evenly.
    pub entries: usize,
}

impl Default for GradientCheck {
    fn default() -> Self {
        Self { step: 1e-2, entries: 32 }
    }
}

/// For each variable, the largest difference between the recorded gradient of the loss `<weights, f()>` and finite differences, relative to
/// the largest entry of the gradient in either. A variable without a gradient has 1 when finite differences find one.
///
/// The variables are as they were when this returns.
///
/// # Errors
/// What `f` says.
pub fn gradient_check(
    vars: &[Var],
    options: GradientCheck,
    weights: &Tensor,
    f: impl Fn() -> Result<Tensor>,
) -> Result<Vec<f64>> {
    let (y, tape) = record(&[], &f)?;
    let mut gradients = CollectedGradients::default();
    tape.backward(&y, Rc::new(weights.clone()), [], &mut gradients)?;
    let value = || Ok(f64::from((f()? * weights)?.sum_all()?.to_scalar::<f32>()?));
    let mut errors = Vec::with_capacity(vars.len());
    for var in vars {
        let analytic = match gradients.get(var)? {
            Some(gradient) => to_vec_f32(&gradient)?,
            None => vec![0.0; var.elem_count()],
        };
        errors.push(check_one(var, &analytic, options, &value)?);
    }
    Ok(errors)
}

fn check_one(
    var: &Var,
    analytic: &[f32],
    options: GradientCheck,
    value: &impl Fn() -> Result<f64>,
) -> Result<f64> {
    // A copy with storage of its own: `set` below writes into the variable's.
    let original = to_vec_f32(var.as_tensor())?;
    let set = |values: &[f32]| var.set(&Tensor::from_slice(values, var.shape(), var.device())?);
    let stride = original.len().div_ceil(options.entries.max(1)).max(1);
    let mut largest = analytic.iter().fold(0.0f64, |m, g| m.max(f64::from(g.abs())));
    let mut worst = 0.0f64;
    for at in (0..original.len()).step_by(stride) {
        let mut moved = original.clone();
        let mut at_offset = |h: f32| {
            moved[at] = original[at] + h;
            set(&moved)?;
            Ok::<_, candle_core::Error>((value()?, f64::from(moved[at])))
        };
        let ((above, x_above), (below, x_below)) = (at_offset(options.step)?, at_offset(-options.step)?);
        let numeric = (above - below) / (x_above - x_below);
        largest = largest.max(numeric.abs());
        let difference = (numeric - f64::from(analytic[at])).abs();
        worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
    }
    set(&original)?;
    Ok(if worst == 0.0 { 0.0 } else { worst / largest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use taper_nn::ops::{self, Gate};

    fn var() -> Var {
        Var::new(&[[0.5f32, -1.0, 2.0], [0.1, 0.7, -0.3]], &Device::Cpu).unwrap()
    }

    fn weights() -> Tensor {
        Tensor::new(&[[1.0f32, 0.5, -1.0], [2.0, -0.7, 0.3]], &Device::Cpu).unwrap()
    }

    #[test]
    fn a_right_gradient_passes_and_the_variable_is_put_back() {
        let x = var();
        let f = || ops::gated(&x, &x, Gate::Silu);
        let error =
            gradient_check(std::slice::from_ref(&x), GradientCheck::default(), &weights(), f).unwrap();
        assert!(error[0] < 1e-3, "{error:?}");
        assert_eq!(to_vec_f32(x.as_tensor()).unwrap(), to_vec_f32(var().as_tensor()).unwrap());
    }

    #[test]
    fn a_gradient_that_is_cut_or_wrong_is_seen() {
        let x = var();
        let cut = gradient_check(std::slice::from_ref(&x), GradientCheck::default(), &weights(), || {
            ops::scale(&x.as_detached_tensor(), 2.0)
        });
        assert_eq!(cut.unwrap(), [1.0]);
        // Half of what it should be: the other factor is constant.
        let half = gradient_check(std::slice::from_ref(&x), GradientCheck::default(), &weights(), || {
            ops::gated(&x.as_detached_tensor(), &x, Gate::Silu)
        });
        assert!(half.unwrap()[0] > 0.3);
    }
}
