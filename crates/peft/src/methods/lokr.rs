//! LoKr (Yeh et al. 2023, "LyCORIS"): the delta is a Kronecker product, of whose factors a large one is low-rank.

use super::loha::{Delta, DeltaLayer, kaiming};
use super::{AdapterMethod, Site, adapted, linear_target, slot, zeros};
use crate::keys::Reader;
use crate::modules::{ModuleShape, TrainedParameter};
use crate::plan::Planned;
use crate::sizes::Sizes;
use crate::{AdapterConfig, Result};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_nn::{LinearAdapter, ParameterKind, ops};

/// What is LoKr's own in its configuration, beside what it shares with LoHa.
#[derive(Debug, Clone, PartialEq)]
pub struct Lokr {
    /// How the adapter begins.
    pub init_weights: LokrInit,
    /// Whether the left factor is low-rank too, where it is large.
    pub decompose_both: bool,
    /// One size of the left factor, or -1 for about the root of the layer's.
    pub decompose_factor: i64,
}

/// With which values LoKr begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LokrInit {
    /// `true`: the left factor is zero.
    #[default]
    Default,
    /// `false`: noise.
    Random,
    /// `"lycoris"`: the right factor is zero.
    Lycoris,
}

impl LokrInit {
    fn to_value(self) -> Value {
        match self {
            Self::Default => json!(true),
            Self::Random => json!(false),
            Self::Lycoris => json!("lycoris"),
        }
    }

    fn of(value: &Value) -> Option<Self> {
        [Self::Default, Self::Random, Self::Lycoris].into_iter().find(|init| init.to_value() == *value)
    }
}

impl Default for Lokr {
    fn default() -> Self {
        Self { init_weights: LokrInit::Default, decompose_both: false, decompose_factor: -1 }
    }
}

impl AdapterMethod for Lokr {
    fn peft_type(&self) -> &'static str {
        "LOKR"
    }

    fn read(&mut self, config: &mut AdapterConfig, reader: &mut Reader) {
        reader.lycoris(config);
        reader.inert("rank_dropout_scale", &[json!(false), json!(true)]);
        self.init_weights =
            reader.take("init_weights", "a boolean or \"lycoris\"", LokrInit::of).unwrap_or_default();
        self.decompose_both = reader.take("decompose_both", "a boolean", Value::as_bool).unwrap_or(false);
        self.decompose_factor =
            reader.take("decompose_factor", "a whole number", Value::as_i64).unwrap_or(-1);
    }

    fn write(&self, config: &AdapterConfig) -> BTreeMap<&'static str, Value> {
        let mut map = config.lycoris_keys();
        map.extend([
            ("decompose_both", json!(self.decompose_both)),
            ("decompose_factor", json!(self.decompose_factor)),
            ("init_weights", self.init_weights.to_value()),
            ("rank_dropout_scale", json!(false)),
        ]);
        map
    }

    fn faults(&self, _config: &AdapterConfig) -> Vec<(&'static str, String, &'static str)> {
        let given = self.decompose_factor;
        let sound = given == -1 || given > 0;
        let fault = ("decompose_factor", format!("`decompose_factor` is {given}"), "-1, or a number above 0");
        if sound { Vec::new() } else { vec![fault] }
    }

    fn adapt(&self, _config: &AdapterConfig, sizes: &Sizes<'_>, module: &ModuleShape) -> Result<Planned> {
        let (path, (n_in, n_out, _)) = (&module.path, linear_target(module)?);
        let rank = sizes.rank_of(path)?;
        let ((in_left, in_right), (out_left, out_right)) = (self.factors_of(n_in), self.factors_of(n_out));
        let mut slots = Vec::new();
        let mut factor = |name: &str, rows: usize, columns: usize, is_whole: bool| {
            let mut push = |name: String, shape: [usize; 2]| {
                slots.push(slot(path, &name, &shape, ParameterKind::Factor));
            };
            if is_whole {
                push(name.to_owned(), [rows, columns]);
            } else {
                push(format!("{name}_a"), [rows, rank]);
                push(format!("{name}_b"), [rank, columns]);
            }
        };
        let is_large = |a: usize, b: usize| 2 * rank < a.max(b);
        factor("lokr_w1", out_left, in_left, !(self.decompose_both && is_large(out_left, in_left)));
        factor("lokr_w2", out_right, in_right, !is_large(out_right, in_right));
        adapted(sizes, module, slots)
    }

    fn initial(
        &self,
        _index: usize,
        slot: &TrainedParameter,
        _site: &Site<'_>,
        _made: &[Tensor],
        seed: u64,
    ) -> Result<Tensor> {
        let zero: &[&str] = match self.init_weights {
            LokrInit::Default => &["lokr_w1", "lokr_w1_a"],
            LokrInit::Lycoris => &["lokr_w2", "lokr_w2_b"],
            LokrInit::Random => &[],
        };
        let name = slot.name.rsplit('.').next().unwrap_or_default();
        if zero.contains(&name) { zeros(&slot.shape) } else { kaiming(slot, seed) }
    }

    fn layer(
        &self,
        site: &Site<'_>,
        tensors: &[Tensor],
        _shared: &[Tensor],
    ) -> taper_nn::Result<Arc<dyn LinearAdapter>> {
        let of = |name: &str| -> Vec<Tensor> {
            let named = site.slots.iter().zip(tensors).filter(|(slot, _)| slot.name.contains(name));
            named.map(|(_, tensor)| tensor.clone()).collect()
        };
        let (left, right) = (of(".lokr_w1"), of(".lokr_w2"));
        Ok(Arc::new(DeltaLayer { delta: LokrDelta { left, right }, scale: site.scale }))
    }
}

impl Lokr {
    /// `(m, n)` with `m n` the size: `decompose_factor` and what is left where it divides it, else the divisors that lie nearest to each other
    /// with m at most that.
    fn factors_of(&self, size: usize) -> (usize, usize) {
        let factor = usize::try_from(self.decompose_factor).ok();
        if let Some(factor) = factor.filter(|f| *f > 0 && size.is_multiple_of(*f)) {
            return (factor, size / factor);
        }
        let most = factor.unwrap_or(size);
        let divisors = (1..=size.isqrt()).filter(|m| size.is_multiple_of(*m) && *m <= most);
        let m = divisors.max().unwrap_or(1);
        (m, size / m)
    }
}

/// A factor each, whole or as a product of two.
#[derive(Debug)]
struct LokrDelta {
    left: Vec<Tensor>,
    right: Vec<Tensor>,
}

impl Delta for LokrDelta {
    fn weight(&self) -> taper_nn::Result<Tensor> {
        let whole = |factor: &[Tensor]| match factor {
            [whole] => Ok(whole.clone()),
            [a, b] => ops::matmul(a, b),
            _ => candle_core::bail!("a factor is whole or a product of two"),
        };
        ops::kronecker(&whole(&self.left)?, &whole(&self.right)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of PEFT's documentation, and sizes of models.
    #[test]
    fn a_size_is_split_as_peft_splits_it() {
        let of = |size, decompose_factor| Lokr { decompose_factor, ..Lokr::default() }.factors_of(size);
        assert_eq!(of(256, -1), (16, 16));
        assert_eq!(of(128, -1), (8, 16));
        assert_eq!(of(127, -1), (1, 127));
        assert_eq!(of(128, 4), (4, 32));
        assert_eq!(of(96, 5), (4, 24));
        assert_eq!(of(32, 64), (4, 8));
        assert_eq!(of(576, -1), (24, 24));
        assert_eq!(of(1536, -1), (32, 48));
    }
}
