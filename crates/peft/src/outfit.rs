//! Fitting the modules of a model with an adapter's tensors.

use crate::attach::{Values, frozen};
use crate::files::LoadMode;
use crate::methods::{LoraEmbedding, Site, TokenHead, TokenRows, lora, zeros};
use crate::modules::TrainedParameter;
use crate::plan::{Action, Planned};
use crate::{AdapterConfig, Error, PREFIX, Result};
use candle_core::{Device, Tensor, Var, bail};
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_nn::{Embedding, Linear, Parameter, ParameterKind, RmsNorm, Weight, to_device, to_vec_f32};

/// What modules are fitted with, and what came of it.
pub(crate) struct Outfit<'a> {
    config: &'a AdapterConfig,
    values: BTreeMap<String, Tensor>,
    /// `None` where the values were read.
    seed: Option<u64>,
    mode: LoadMode,
    /// The tensors that all layers share.
    shared: Vec<Tensor>,
    /// The rows of tokens, for a head that shares the table.
    tokens: Option<TokenRows>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) frozen: BTreeMap<String, Tensor>,
    pub(crate) copies: Vec<(String, String)>,
    pub(crate) beginnings: BTreeMap<String, (Tensor, Tensor)>,
    /// Where the module that is visited lies, and what is put on it.
    device: Device,
    /// An error of our own, which the visit can only tell as candle's.
    pub(crate) failed: Option<Error>,
}

impl<'a> Outfit<'a> {
    pub(crate) fn new(config: &'a AdapterConfig, values: Values, mode: LoadMode) -> Self {
        let (values, seed) = match values {
            Values::Read(values) => (values, None),
            Values::Drawn(seed) => (BTreeMap::new(), Some(seed)),
        };
        Self {
            config,
            values,
            seed,
            mode,
            shared: Vec::new(),
            tokens: None,
            parameters: Vec::new(),
            frozen: BTreeMap::new(),
            copies: Vec::new(),
            beginnings: BTreeMap::new(),
            device: Device::Cpu,
            failed: None,
        }
    }

    /// Take up the tensors that all layers share.
    pub(crate) fn share(&mut self, slots: &[TrainedParameter]) -> Result<()> {
        for slot in slots {
            let value = match self.values.remove(&slot.name) {
                Some(value) => value,
                None => self.config.method.as_dyn().initial_shared(slot)?,
            };
            self.frozen.insert(slot.name.clone(), value.clone());
            self.shared.push(value);
        }
        Ok(())
    }

    /// Keep an error of our own for the end of the visit.
    fn own<T>(&mut self, outcome: Result<T>) -> taper_nn::Result<T> {
        outcome.map_err(|error| {
            let told = candle_core::Error::Msg(error.to_string());
            self.failed = Some(error);
            told
        })
    }

    pub(crate) fn linear(&mut self, m: &mut Linear, planned: &Planned) -> taper_nn::Result<()> {
        self.device = m.device();
        match &planned.action {
            Action::Adapt { scale, .. } => self.adapt(m, planned, *scale),
            Action::TrainBias => self.bias(m, &planned.slots[0]),
            Action::TrainAll => self.whole(m, &planned.slots),
            Action::TrainTokens(_) => bail!("`{}` has no rows of tokens", m.path()),
            Action::Follow(Some(_)) => {
                let tokens = self.tokens.clone();
                m.set_adapter(tokens.map(|tokens| Arc::new(TokenHead(tokens)) as _));
                Ok(())
            }
            Action::Follow(None) => {
                let table = self.parameters.iter().map(|p| &p.name).chain(self.frozen.keys());
                if let Some(from) = table.clone().find(|name| name.ends_with("embed_tokens.weight")) {
                    let to = format!("{PREFIX}{}.weight", m.path());
                    self.values.remove(&to);
                    self.copies.push((from.clone(), to));
                }
                Ok(())
            }
            Action::Part => {
                *m = m.rebuilt(m.weight().clone(), m.bias());
                Ok(())
            }
        }
    }

    fn adapt(&mut self, m: &mut Linear, planned: &Planned, scale: f64) -> taper_nn::Result<()> {
        if m.is_tied() {
            // The adapter is over this weight, whatever becomes of the embedding's table.
            *m = m.rebuilt(m.weight().clone(), m.bias());
        }
        self.base_layer(&planned.path, m.weight())?
            .map_or(Ok(()), |weight| m.set_weight(Weight::Frozen(weight.to_device(&self.device)?)))?;
        let config = self.config;
        let (biases, slots): (Vec<_>, Vec<_>) =
            planned.slots.iter().cloned().partition(|slot| slot.kind == ParameterKind::Bias);
        for slot in &biases {
            self.bias(m, slot)?;
        }
        if let (true, Some(seed)) = (config.init_lora_weights.is_of_the_weight(), self.seed) {
            self.begin_with_the_weight(m, &slots, scale, seed)?;
        }
        let base = m.clone();
        let site = Site { config, path: &planned.path, base: &base, scale, slots: &slots };
        let mut tensors = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let value = match (self.values.remove(&slot.name), self.seed) {
                (Some(value), _) => value,
                (None, Some(seed)) => {
                    let drawn = config.method.as_dyn().initial(index, slot, &site, &tensors, seed);
                    self.own(drawn)?
                }
                (None, None) => bail!("there is no value for `{}`", slot.name),
            };
            tensors.push(self.take_up(slot, value)?);
        }
        for shared in &mut self.shared {
            *shared = to_device(shared, &self.device)?;
        }
        let layer = config.method.as_dyn().layer(&site, &tensors, &self.shared)?;
        m.set_adapter(Some(layer));
        Ok(())
    }

    /// A and B from the weight itself, whose base then lacks them.
    fn begin_with_the_weight(
        &mut self,
        m: &mut Linear,
        slots: &[TrainedParameter],
        scale: f64,
        seed: u64,
    ) -> taper_nn::Result<()> {
        let [a, b, ..] = slots else { return Ok(()) };
        let began = crate::init::begin(self.config.init_lora_weights, m, a, scale, seed);
        let began = self.own(began)?;
        if let Some(residual) = began.residual {
            m.set_weight(residual.to_device(&self.device)?)?;
            self.beginnings.insert(m.path().to_owned(), (began.a.clone(), began.b.clone()));
        }
        self.values.insert(a.name.clone(), began.a);
        self.values.insert(b.name.clone(), began.b);
        Ok(())
    }

    /// PEFT saves the table beside the adapter of an embedding or a head. It is the base's, or takes its place.
    fn base_layer(&mut self, path: &str, base: &Weight) -> taper_nn::Result<Option<taper_nn::FrozenWeight>> {
        let name = format!("{PREFIX}{path}.base_layer.weight");
        let Some(value) = self.values.remove(&name) else { return Ok(None) };
        let same = to_vec_f32(&value)? == to_vec_f32(&base.to_f32()?)?;
        let replacement = if same { None } else { Some(taper_nn::FrozenWeight::dense(&value)?) };
        self.frozen.insert(name, value);
        Ok(replacement)
    }

    /// A variable's tensor in training, a plain one in inference.
    fn take_up(&mut self, slot: &TrainedParameter, value: Tensor) -> taper_nn::Result<Tensor> {
        match self.mode {
            LoadMode::Inference => {
                let there = to_device(&value, &self.device)?;
                self.frozen.insert(slot.name.clone(), value);
                Ok(there)
            }
            LoadMode::Training => {
                let var = Var::from_tensor(&to_device(&value, &self.device)?)?;
                let tensor = var.as_tensor().clone();
                self.parameters.push(Parameter { name: slot.name.clone(), kind: slot.kind, var });
                Ok(tensor)
            }
        }
    }

    fn bias(&mut self, m: &mut Linear, slot: &TrainedParameter) -> taper_nn::Result<()> {
        match self.mode {
            LoadMode::Training => {
                let made = m.make_bias_trainable()?;
                self.train(slot, made)
            }
            LoadMode::Inference => {
                let bias = self.freeze(slot, m.bias())?;
                *m = m.rebuilt(m.weight().clone(), Some(bias));
                Ok(())
            }
        }
    }

    fn whole(&mut self, m: &mut Linear, slots: &[TrainedParameter]) -> taper_nn::Result<()> {
        // From here on the head has a weight of its own.
        *m = m.rebuilt(m.weight().clone(), m.bias());
        match self.mode {
            LoadMode::Training => {
                for (slot, made) in slots.iter().zip(m.make_trainable()?) {
                    self.train(slot, Some(made))?;
                }
            }
            LoadMode::Inference => {
                let weight = self.freeze(&slots[0], None)?;
                let bias = slots.get(1).map(|slot| self.freeze(slot, None)).transpose()?;
                *m = m.rebuilt(frozen(&weight)?, bias);
            }
        }
        Ok(())
    }

    pub(crate) fn embedding(&mut self, m: &mut Embedding, planned: &Planned) -> taper_nn::Result<()> {
        self.device = m.weight().device();
        let slot = &planned.slots[0];
        match (&planned.action, self.mode) {
            (Action::Adapt { scale, .. }, _) => self.adapt_embedding(m, planned, *scale),
            (Action::TrainTokens(ids), _) => {
                let value = match self.values.remove(&slot.name) {
                    Some(value) => value,
                    None => m
                        .weight()
                        .to_f32()?
                        .index_select(&Tensor::new(ids.as_slice(), &candle_core::Device::Cpu)?, 0)?,
                };
                let tokens = TokenRows { ids: ids.clone(), rows: self.take_up(slot, value)? };
                self.tokens = Some(tokens.clone());
                m.set_adapter(Some(Arc::new(tokens)));
                Ok(())
            }
            (_, LoadMode::Training) => {
                let made = m.make_trainable()?;
                self.train(slot, Some(made))
            }
            (_, LoadMode::Inference) => {
                let weight = self.freeze(slot, None)?;
                *m = Embedding::new(m.path(), frozen(&weight)?);
                Ok(())
            }
        }
    }

    fn adapt_embedding(&mut self, m: &mut Embedding, planned: &Planned, scale: f64) -> taper_nn::Result<()> {
        if let Some(table) = self.base_layer(&planned.path, m.weight())? {
            *m = Embedding::new(m.path(), Weight::Frozen(table.to_device(&self.device)?));
        }
        let mut factors = Vec::new();
        for slot in &planned.slots {
            let value = match (self.values.remove(&slot.name), self.seed) {
                (Some(value), _) => value,
                // As in PEFT: A is zero here and B normal.
                (None, Some(_)) if slot.kind == ParameterKind::LoraEmbeddingA => {
                    let zero = zeros(&slot.shape);
                    self.own(zero)?
                }
                (None, Some(seed)) => {
                    let drawn = lora::initial_embedding_b(seed, &slot.name, &slot.shape);
                    self.own(drawn)?
                }
                (None, None) => bail!("there is no value for `{}`", slot.name),
            };
            factors.push(self.take_up(slot, value)?);
        }
        let [a, b] = factors.as_slice() else { bail!("an adapted embedding has two factors") };
        m.set_adapter(Some(Arc::new(LoraEmbedding { a: a.clone(), b: b.clone(), scale })));
        Ok(())
    }

    pub(crate) fn norm(&mut self, m: &mut RmsNorm, slot: &TrainedParameter) -> taper_nn::Result<()> {
        self.device = m.weight().device().clone();
        match self.mode {
            LoadMode::Training => {
                let made = m.make_trainable()?;
                self.train(slot, Some(made))
            }
            LoadMode::Inference => {
                let weight = self.freeze(slot, None)?;
                m.set_weight(weight)
            }
        }
    }

    fn train(&mut self, slot: &TrainedParameter, made: Option<Parameter>) -> taper_nn::Result<()> {
        let Some(made) = made else { bail!("there is nothing to train for `{}`", slot.name) };
        if let Some(value) = self.values.remove(&slot.name) {
            made.var.set(&to_device(&value, made.var.device())?)?;
        }
        self.parameters.push(Parameter { name: slot.name.clone(), kind: slot.kind, var: made.var });
        Ok(())
    }

    fn freeze(&mut self, slot: &TrainedParameter, otherwise: Option<Tensor>) -> taper_nn::Result<Tensor> {
        let Some(value) = self.values.remove(&slot.name).or(otherwise) else {
            bail!("there is no value for `{}`", slot.name)
        };
        let there = to_device(&value, &self.device)?;
        self.frozen.insert(slot.name.clone(), value);
        Ok(there)
    }
}
