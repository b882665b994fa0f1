//! One step of AdamW over one tensor, in one pass.
//!
//! Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019; the order of operations is that of
//! `torch.optim.AdamW`, to whose golden numbers the test holds it.

use rayon::prelude::*;

const BLOCK: usize = 16 * 1024;

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: the parameter shrinks by `lr * weight_decay` of itself.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Factor on the gradient before anything else (clipping, the mean over tokens).
    pub grad_scale: f32,
}

/// Updates the parameter and both moments in place.
///
/// p -= lr wd p; m = lerp(m, g, 1 - beta1); v = beta2 v + (1 - beta2) g^2;
/// p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps).
///
/// # Panics
/// When the lengths differ or `step` is zero.
pub fn adamw_step(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: &AdamW) {
    let n = param.len();
    assert_eq!((grad.len(), m.len(), v.len()), (n, n, n), "lengths of grad, m, v against param");
    assert!(settings.step > 0, "steps count from 1");
    let constants = Constants::new(settings);
    if n <= 2 * BLOCK {
        return step_block(param, grad, m, v, constants);
    }
    let tensors = param.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK));
    let moments = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
    tensors.zip(moments).for_each(|((param, grad), (m, v))| step_block(param, grad, m, v, constants));
}

/// Scalars formed in `f64` and rounded once, as torch does.
#[derive(Clone, Copy)]
pub(crate) struct Constants {
    pub(crate) grad_scale: f32,
    pub(crate) keep: f32,
    pub(crate) one_less_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_less_beta2: f32,
    pub(crate) root_correction2: f32,
    pub(crate) eps: f32,
    pub(crate) step_size: f32,
}

impl Constants {
    pub(crate) fn new(s: &AdamW) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(s.step as f64);
        Self {
            grad_scale: s.grad_scale,
            keep: (1.0 - s.lr * s.weight_decay) as f32,
            one_less_beta1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            one_less_beta2: (1.0 - s.beta2) as f32,
            root_correction2: correction(s.beta2).sqrt() as f32,
            eps: s.eps as f32,
            step_size: (s.lr / correction(s.beta1)) as f32,
        }
    }
}

multiversion! {
    fn step_block(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], c: Constants) {
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g * c.grad_scale;
            let kept = *p * c.keep;
            *m += c.one_less_beta1 * (g - *m);
            *v = *v * c.beta2 + c.one_less_beta2 * g * g;
            let denominator = v.sqrt() / c.root_correction2 + c.eps;
            *p = kept - c.step_size * *m / denominator;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn a_step_equals_a_step_in_f64_for_any_length() {
        for n in [0usize, 1, 17, 40_000] {
            let rng = crate::rng::CounterRng::new(5, n as u64);
            let fill = |stream: u64| {
                let mut x = vec![0.0f32; n];
                rng.fill_uniform(stream * 1_000_000, 0.01, 1.0, &mut x);
                x
            };
            let (mut p, g, mut m, mut v) = (fill(0), fill(1), fill(2), fill(3));
            let s = AdamW {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                weight_decay: 0.1,
                step: 3,
                grad_scale: 0.5,
            };
            let before = (p.clone(), m.clone(), v.clone());
            adamw_step(&mut p, &g, &mut m, &mut v, &s);
            for i in 0..n {
                let g = 0.5 * f64::from(g[i]);
                let m64 = 0.9 * f64::from(before.1[i]) + 0.1 * g;
                let v64 = 0.99 * f64::from(before.2[i]) + 0.01 * g * g;
                let update =
                    s.lr / (1.0 - 0.9f64.powi(3)) * m64 / ((v64 / (1.0 - 0.99f64.powi(3))).sqrt() + s.eps);
                let want = f64::from(before.0[i]) * (1.0 - s.lr * s.weight_decay) - update;
                assert!(
                    (f64::from(p[i]) - want).abs() < 1e-6 && (f64::from(m[i]) - m64).abs() < 1e-6,
                    "{i} of {n}"
                );
            }
        }
    }

    /// 10 steps of `torch.optim.AdamW` on given gradients; the JSON file says with which settings.
    #[test]
    fn ten_steps_follow_torch() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/train");
        let bytes = fs_err::read(format!("{folder}/optimizers.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data();
            data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let text = fs_err::read_to_string(format!("{folder}/optimizers.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let number = |key: &str| json["adamw"][key].as_f64().unwrap();
        let beta = |i: usize| json["adamw"]["betas"][i].as_f64().unwrap();
        let (mut p, grads, golden) = (tensor("p0"), tensor("grads"), tensor("adamw"));
        let n = p.len();
        assert_eq!((grads.len(), golden.len()), (10 * n, 10 * n));
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for (step, (grad, want)) in grads.chunks(n).zip(golden.chunks(n)).enumerate() {
            let settings = AdamW {
                lr: number("lr"),
                beta1: beta(0),
                beta2: beta(1),
                eps: number("eps"),
                weight_decay: number("weight_decay"),
                step: step as u64 + 1,
                grad_scale: 1.0,
            };
            adamw_step(&mut p, grad, &mut m, &mut v, &settings);
            for (i, (p, want)) in p.iter().zip(want).enumerate() {
                assert!((p - want).abs() <= 2e-6, "step {}, element {i}: {p} and not {want}", step + 1);
            }
        }
    }
}
