//! How far an adapter moves a base's logits.

use crate::Result;
use crate::reference::{ReferenceLogits, argmax, kl_divergence};
use serde::Serialize;
use taper_models::CausalLm;

/// The difference of two models' logits over some texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LogitShift {
    /// Token positions that were compared.
    pub positions: usize,
    /// The largest difference of two logits.
    pub max_abs: f64,
    /// The mean difference of two logits, without its sign.
    pub mean_abs: f64,
    /// Mean over the positions of `KL(base || adapted)`, in nats.
    pub mean_kl: f64,
    /// Share of the positions at which another token is the likeliest.
    pub top1_changed: f64,
    /// Logits of the adapted model that are NaN or infinite; the other figures leave them out.
    pub not_finite: usize,
}

impl ReferenceLogits {
    /// How far `adapted` is from the model of these logits.
    ///
    /// # Errors
    /// When the arithmetic fails.
    pub fn shift(&self, adapted: &dyn CausalLm) -> Result<LogitShift> {
        let mut shift = LogitShift::default();
        let (mut values, mut kl, mut changed, mut whole) = (0usize, 0.0, 0usize, 0usize);
        self.each_row(adapted, &mut |p, q| {
            shift.positions += 1;
            let broken = q.iter().filter(|x| !x.is_finite()).count();
            shift.not_finite += broken;
            if broken > 0 {
                return;
            }
            whole += 1;
            kl += kl_divergence(p, q);
            changed += usize::from(argmax(p) != argmax(q));
            for (a, b) in p.iter().zip(q) {
                let off = f64::from((a - b).abs());
                shift.max_abs = shift.max_abs.max(off);
                shift.mean_abs += off;
                values += 1;
            }
        })?;
        if whole > 0 {
            shift.mean_abs /= values as f64;
            shift.mean_kl = kl / whole as f64;
            shift.top1_changed = changed as f64 / whole as f64;
        }
        Ok(shift)
    }
}
