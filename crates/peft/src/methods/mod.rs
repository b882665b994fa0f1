//! The methods, one file each: what their configuration adds, which tensors they train of a layer, with which values they begin, and what they
//! do to the layer.

mod dora;
mod embedding;
mod ia3;
mod loha;
mod lokr;
pub(crate) mod lora;
mod tokens;
mod vera;

pub use ia3::Ia3;
pub use loha::Loha;
pub use lokr::Lokr;
pub use lora::LoraLayer;
pub use vera::Vera;

pub(crate) use dora::DoraLayer;
pub(crate) use embedding::LoraEmbedding;
pub(crate) use tokens::{TokenHead, TokenRows};

use crate::keys::Reader;
use crate::modules::{ModuleShape, TrainedParameter};
use crate::plan::{Action, Planned};
use crate::sizes::Sizes;
use crate::{AdapterConfig, Error, PREFIX, Result};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_nn::{ForwardContext, Linear, LinearAdapter, ParameterKind, ops};

/// How layers are adapted.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Method {
    /// Low-rank adaptation and what it is combined with: rsLoRA, DoRA, adapted embeddings.
    #[default]
    Lora,
    /// Vector-based random matrix adaptation.
    Vera(Vera),
    /// Infused adapter by inhibiting and amplifying inner activations.
    Ia3(Ia3),
    /// Low-rank Hadamard products.
    Loha(Loha),
    /// Low-rank Kronecker products.
    Lokr(Lokr),
}

impl Method {
    pub(crate) fn as_dyn(&self) -> &dyn AdapterMethod {
        match self {
            Self::Lora => &lora::Lora,
            Self::Vera(method) => method,
            Self::Ia3(method) => method,
            Self::Loha(method) => method,
            Self::Lokr(method) => method,
        }
    }

    /// PEFT's name of it, as `peft_type` says it.
    pub fn peft_type(&self) -> &'static str {
        self.as_dyn().peft_type()
    }

    /// The method that `peft_type` names, with its own settings as PEFT has them.
    pub(crate) fn named(peft_type: &str) -> Option<Self> {
        let all = [
            Self::Lora,
            Self::Vera(Vera::default()),
            Self::Ia3(Ia3::default()),
            Self::Loha(Loha::default()),
            Self::Lokr(Lokr::default()),
        ];
        all.into_iter().find(|method| method.peft_type().eq_ignore_ascii_case(peft_type))
    }
}

/// A layer as a method sees it.
pub(crate) struct Site<'a> {
    pub(crate) config: &'a AdapterConfig,
    pub(crate) path: &'a str,
    pub(crate) base: &'a Linear,
    pub(crate) scale: f64,
    /// The tensors of the layer, in their order.
    pub(crate) slots: &'a [TrainedParameter],
}

/// What a method is.
pub(crate) trait AdapterMethod {
    fn peft_type(&self) -> &'static str;

    /// Reads the keys that are its own.
    fn read(&mut self, config: &mut AdapterConfig, reader: &mut Reader);

    /// The keys beyond those that all methods have, as PEFT writes them.
    fn write(&self, config: &AdapterConfig) -> BTreeMap<&'static str, Value>;

    /// What is wrong with its settings: key, fault, remedy.
    fn faults(&self, _config: &AdapterConfig) -> Vec<(&'static str, String, &'static str)> {
        Vec::new()
    }

    /// The tensors of a target.
    ///
    /// # Errors
    /// When it cannot be one.
    fn adapt(&self, config: &AdapterConfig, sizes: &Sizes<'_>, module: &ModuleShape) -> Result<Planned>;

    /// Tensors that all layers share, and that are not trained.
    fn shared(&self, _config: &AdapterConfig, _targets: &[&ModuleShape]) -> Vec<TrainedParameter> {
        Vec::new()
    }

    /// The first values of tensor `index` of a layer, of which those before it are made.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn initial(
        &self,
        index: usize,
        slot: &TrainedParameter,
        site: &Site<'_>,
        made: &[Tensor],
        seed: u64,
    ) -> Result<Tensor>;

    /// The first values of a shared tensor.
    ///
    /// # Errors
    /// What the tensor's construction says.
    fn initial_shared(&self, slot: &TrainedParameter) -> Result<Tensor> {
        zeros(&slot.shape)
    }

    /// The layer's adapter, from its tensors and the shared ones in their orders.
    ///
    /// # Errors
    /// What the arithmetic says.
    fn layer(
        &self,
        site: &Site<'_>,
        tensors: &[Tensor],
        shared: &[Tensor],
    ) -> taper_nn::Result<Arc<dyn LinearAdapter>>;
}

/// Width in, width out, and whether there is a bias, of a linear layer that may become a target.
pub(crate) fn linear_target(module: &ModuleShape) -> Result<(usize, usize, bool)> {
    use crate::modules::ModuleKind;
    let path = &module.path;
    let not_linear = |what| Err(Error::NotLinear { path: path.clone(), what });
    match module.kind {
        ModuleKind::Linear { occupied: true, .. } => Err(Error::Occupied { path: path.clone() }),
        ModuleKind::Linear { n_in, n_out, bias, .. } => Ok((n_in, n_out, bias)),
        ModuleKind::Embedding { .. } => not_linear("an embedding"),
        ModuleKind::RmsNorm { .. } => not_linear("a norm"),
    }
}

/// A tensor of the module at `path`.
pub(crate) fn slot(path: &str, name: &str, shape: &[usize], kind: ParameterKind) -> TrainedParameter {
    TrainedParameter { name: format!("{PREFIX}{path}.{name}"), shape: shape.to_vec(), kind }
}

/// The plan of an adapted layer.
pub(crate) fn adapted(
    sizes: &Sizes<'_>,
    module: &ModuleShape,
    slots: Vec<TrainedParameter>,
) -> Result<Planned> {
    let path = &module.path;
    let action = Action::Adapt {
        rank: sizes.rank_of(path)?,
        alpha: sizes.alpha_of(path)?,
        scale: sizes.scale_of(path)?,
    };
    Ok(Planned { path: path.clone(), action, slots })
}

pub(crate) fn zeros(shape: &[usize]) -> Result<Tensor> {
    values(vec![0.0; shape.iter().product()], shape)
}

pub(crate) fn values(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
        .map_err(|source| Error::Arithmetic { doing: "make the adapter's first values", source })
}

/// The dropout of a layer's input in this pass, when there is one.
pub(crate) fn input_dropout(p: f64, path: &str, ctx: &ForwardContext<'_>) -> Option<ops::LoraDropout> {
    ctx.random()
        .filter(|_| p > 0.0)
        .map(|key| ops::LoraDropout { p: p as f32, rng: key.rng(&format!("{path}.lora_dropout")) })
}
