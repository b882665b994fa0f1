//! The `[smoke]` section of a recipe: how `taper smoke` makes a run of minutes out of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use taper_diagnostics::{Location, Problem, Problems};

/// The smoke tier of a recipe, which `taper smoke` runs on a CPU for each change: the same data, adapter and settings over a small base
/// for a few steps. It proves that the recipe works, not that what it trains is good; that is for the full run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SmokeSection {
    /// A small model that stands for `model.base`, written as that is: a folder relative to the recipe, a GGUF file, a hub id. Left out,
    /// the recipe's own base.
    pub base: Option<String>,
    /// Optimiser steps; the training is interrupted after half of them and gone on with. At least 2.
    pub max_steps: u64,
    /// The training loss at the last of these steps, as an earlier `taper smoke` printed it. Left out, it is printed and not compared.
    pub golden_loss: Option<f64>,
    /// How far the loss may be from `golden_loss`, as a share of it. The same processor gives the same bits; another one sums in another
    /// order, and each step carries its last bits on.
    pub tolerance: f64,
    /// Most items of each evaluation.
    pub limit: usize,
}

impl Default for SmokeSection {
    fn default() -> Self {
        Self { base: None, max_steps: 20, golden_loss: None, tolerance: 1e-3, limit: 8 }
    }
}

impl SmokeSection {
    /// Everything about the section that can be known from itself.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::new();
        let mut require = |holds: bool, key: &str, message: String, hint: &str| {
            if !holds {
                let at = Location::default().with_key(format!("smoke.{key}"));
                problems.push(Problem::error("out-of-range", message).at(at).hint(hint));
            }
        };
        let named = self.base.as_deref().is_none_or(|base| !base.trim().is_empty());
        require(named, "base", "`base` is empty".to_owned(), "leave the key out for the recipe's own base");
        let message = format!("`max_steps` is {}, at least 2 are needed", self.max_steps);
        require(
            self.max_steps >= 2,
            "max_steps",
            message,
            "the training is interrupted in their middle; 20 are usual",
        );
        if let Some(loss) = self.golden_loss {
            let message = format!("`golden_loss` is {loss}, allowed is a number above 0");
            let hint = "leave the key out, and `taper smoke` prints the one that it finds";
            require(loss.is_finite() && loss > 0.0, "golden_loss", message, hint);
        }
        let message = format!("`tolerance` is {}, allowed is 0 to below 1", self.tolerance);
        require(
            (0.0..1.0).contains(&self.tolerance),
            "tolerance",
            message,
            "1e-3 is a thousandth of `golden_loss`",
        );
        require(self.limit >= 1, "limit", "`limit` is 0, allowed is 1 or more".to_owned(), "8 are usual");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_has_no_fault_and_all_faults_are_told_at_once() {
        assert!(SmokeSection::default().check().is_empty());
        let text = "base = \" \"\nmax_steps = 1\ngolden_loss = 0.0\ntolerance = 1.0\nlimit = 0";
        let section: SmokeSection = toml::from_str(text).unwrap();
        let keys: Vec<_> = section.check().iter().filter_map(|p| p.location.clone()?.key).collect();
        assert_eq!(
            keys,
            ["smoke.base", "smoke.max_steps", "smoke.golden_loss", "smoke.tolerance", "smoke.limit"]
        );
    }
}
