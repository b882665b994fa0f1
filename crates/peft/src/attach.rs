//! Adapters on a model: put on, counted, taken off, merged.

use crate::error::doing;
use crate::files::{AdapterWeights, LoadMode};
use crate::lora::{LoraLayer, initial_a, initial_b};
use crate::modules::{TrainedParameter, inventory};
use crate::plan::{Action, Author, Plan, Planned, plan};
use crate::{LoraConfig, Result};
use candle_core::{Tensor, Var};
use std::collections::BTreeMap;
use std::sync::Arc;
use taper_nn::{
    Embedding, FrozenWeight, Linear, ModuleMut, Parameter, ParameterKind, RmsNorm, VisitModules, Weight,
};

/// One linear layer with an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedLayer {
    /// The layer's path, without PEFT's prefix.
    pub path: String,
    /// r.
    pub rank: usize,
    /// `lora_alpha` after the patterns.
    pub alpha: f64,
    /// What the low-rank product is multiplied by.
    pub scale: f64,
}

/// An adapter that sits on a model.
#[derive(Debug)]
pub struct Adapter {
    /// The configuration, its targets spelled out as PEFT saves them.
    pub config: LoraConfig,
    /// What is trained, in the order of the forward pass, named as in the saved file. Empty after [`LoadMode::Inference`].
    pub parameters: Vec<Parameter>,
    /// The layers with a delta, in the order of the forward pass.
    pub layers: Vec<AdaptedLayer>,
    frozen: BTreeMap<String, Tensor>,
    originals: BTreeMap<String, Original>,
}

/// A module as it was before the adapter came. Weights are shared, not copied.
#[derive(Debug, Clone)]
enum Original {
    Linear(Linear),
    Embedding(Embedding),
    RmsNorm(RmsNorm),
}

/// Put a new adapter on `model`, its first values drawn by `seed` and the parameters' names.
///
/// Whatever `config` names must exist in the model (invariant 7). `model_type` is asked only when `target_modules` is null.
///
/// # Errors
/// When the configuration does not fit the model; the model is then as it was.
pub fn attach(
    model: &mut dyn VisitModules,
    config: &LoraConfig,
    model_type: &str,
    seed: u64,
) -> Result<Adapter> {
    let modules = inventory(model)?;
    let plan = plan(config, &modules, Some(model_type), Author::User)?;
    let values = initial_values(&plan, seed)?;
    apply(model, &plan, values, LoadMode::Training)
}

/// The weight of a layer with its adapter merged into it, f32 `[out, in]`; without an adapter, the weight.
///
/// # Errors
/// What the arithmetic says.
pub fn merged_weight(linear: &Linear) -> Result<Tensor> {
    match linear.adapter() {
        Some(adapter) => adapter.merged_weight(linear),
        None => linear.weight().to_f32(),
    }
    .map_err(doing("merge an adapter into its weight"))
}

impl Adapter {
    /// How many numbers are trained.
    pub fn trainable_count(&self) -> usize {
        self.parameters.iter().map(|p| p.var.elem_count()).sum()
    }

    /// Every tensor of the adapter by its name in the file. They share memory with the parameters.
    pub fn weights(&self) -> AdapterWeights {
        let trained = self.parameters.iter().map(|p| (p.name.clone(), p.var.as_detached_tensor()));
        AdapterWeights { tensors: self.frozen.clone().into_iter().chain(trained).collect() }
    }

    /// Take the adapter off: the model is the base again, bit for bit.
    ///
    /// # Errors
    /// What the visit says.
    pub fn detach(self, model: &mut dyn VisitModules) -> Result<()> {
        restore(model, &self.originals)
    }

    /// Put the adapter into the weights of the model it sits on, in f32: `W + s B A`, trained biases and modules in place of
    /// the base's. The slots are free and nothing is trainable afterwards; [`Adapter::detach`] still restores the base.
    ///
    /// # Errors
    /// What the arithmetic says.
    pub fn merge_into(&self, model: &mut dyn VisitModules) -> Result<()> {
        model
            .visit_modules(&mut |module| {
                if !self.originals.contains_key(module.path()) {
                    return Ok(());
                }
                match module {
                    ModuleMut::Linear(m) => {
                        let weight = match m.adapter() {
                            Some(adapter) => adapter.merged_weight(m)?,
                            None => m.weight().to_f32()?.copy()?,
                        };
                        let bias = m.bias().map(|b| b.copy()).transpose()?;
                        *m = Linear::new(m.path(), frozen(&weight)?, bias);
                    }
                    ModuleMut::Embedding(m) => {
                        *m = Embedding::new(m.path(), frozen(&m.weight().to_f32()?.copy()?)?);
                    }
                    ModuleMut::RmsNorm(m) => m.set_weight(m.weight().copy()?)?,
                }
                Ok(())
            })
            .map_err(doing("merge the adapter into the model"))
    }
}

fn frozen(weight: &Tensor) -> taper_nn::Result<Weight> {
    Ok(Weight::Frozen(FrozenWeight::dense(weight)?))
}

fn initial_values(plan: &Plan, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let init = plan.config.init_lora_weights;
    let mut values = BTreeMap::new();
    for slot in plan.slots() {
        let value = match (slot.kind, slot.shape.as_slice()) {
            (ParameterKind::LoraA, &[r, n_in]) => initial_a(init, seed, &slot.name, r, n_in)?,
            (ParameterKind::LoraB, &[n_out, r]) => initial_b(init, seed, &slot.name, n_out, r)?,
            // Everything else begins as the base has it.
            _ => continue,
        };
        values.insert(slot.name.clone(), value);
    }
    Ok(values)
}

/// Do what the plan says with the values given; what is trained and has no value keeps the base's.
pub(crate) fn apply(
    model: &mut dyn VisitModules,
    plan: &Plan,
    values: BTreeMap<String, Tensor>,
    mode: LoadMode,
) -> Result<Adapter> {
    let by_path: BTreeMap<&str, &Planned> = plan.modules.iter().map(|p| (p.path.as_str(), p)).collect();
    let mut outfit = Outfit {
        values,
        mode,
        dropout: plan.config.lora_dropout,
        parameters: Vec::new(),
        frozen: BTreeMap::new(),
    };
    let mut originals = BTreeMap::new();
    let outcome = model.visit_modules(&mut |module| {
        let Some(planned) = by_path.get(module.path()) else { return Ok(()) };
        let path = planned.path.clone();
        match module {
            ModuleMut::Linear(m) => {
                originals.insert(path, Original::Linear(m.clone()));
                outfit.linear(m, planned)
            }
            ModuleMut::Embedding(m) => {
                originals.insert(path, Original::Embedding(m.clone()));
                outfit.embedding(m, &planned.slots[0])
            }
            ModuleMut::RmsNorm(m) => {
                originals.insert(path, Original::RmsNorm(m.clone()));
                outfit.norm(m, &planned.slots[0])
            }
        }
    });
    if let Err(error) = outcome {
        restore(model, &originals)?;
        return Err(doing("put the adapter on the model")(error));
    }
    let layers = plan.modules.iter().filter_map(|p| match p.action {
        Action::Adapt { rank, alpha, scale } => {
            Some(AdaptedLayer { path: p.path.clone(), rank, alpha, scale })
        }
        _ => None,
    });
    Ok(Adapter {
        config: plan.config.clone(),
        parameters: outfit.parameters,
        layers: layers.collect(),
        frozen: outfit.frozen,
        originals,
    })
}

fn restore(model: &mut dyn VisitModules, originals: &BTreeMap<String, Original>) -> Result<()> {
    model
        .visit_modules(&mut |module| {
            match (originals.get(module.path()), module) {
                (Some(Original::Linear(original)), ModuleMut::Linear(m)) => *m = original.clone(),
                (Some(Original::Embedding(original)), ModuleMut::Embedding(m)) => *m = original.clone(),
                (Some(Original::RmsNorm(original)), ModuleMut::RmsNorm(m)) => *m = original.clone(),
                _ => {}
            }
            Ok(())
        })
        .map_err(doing("take the adapter off the model"))
}

/// What modules are fitted with, and what came of it.
struct Outfit {
    values: BTreeMap<String, Tensor>,
    mode: LoadMode,
    dropout: f64,
    parameters: Vec<Parameter>,
    frozen: BTreeMap<String, Tensor>,
}

impl Outfit {
    fn linear(&mut self, m: &mut Linear, planned: &Planned) -> taper_nn::Result<()> {
        match planned.action {
            Action::Adapt { scale, .. } => {
                if let Some(slot) = planned.slots.get(2) {
                    self.bias(m, slot)?;
                }
                let (a, b) = (self.factor(&planned.slots[0])?, self.factor(&planned.slots[1])?);
                m.set_adapter(Some(Arc::new(LoraLayer::new(&planned.path, a, b, scale, self.dropout))));
                Ok(())
            }
            Action::TrainBias => self.bias(m, &planned.slots[0]),
            Action::TrainAll => self.whole(m, &planned.slots),
        }
    }

    /// A or B: a variable's tensor in training, a plain one in inference.
    fn factor(&mut self, slot: &TrainedParameter) -> taper_nn::Result<Tensor> {
        let Some(value) = self.values.remove(&slot.name) else {
            candle_core::bail!("there is no value for `{}`", slot.name)
        };
        match self.mode {
            LoadMode::Inference => {
                self.frozen.insert(slot.name.clone(), value.clone());
                Ok(value)
            }
            LoadMode::Training => {
                let var = Var::from_tensor(&value)?;
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
                *m = Linear::new(m.path(), m.weight().clone(), Some(bias));
                Ok(())
            }
        }
    }

    fn whole(&mut self, m: &mut Linear, slots: &[TrainedParameter]) -> taper_nn::Result<()> {
        match self.mode {
            LoadMode::Training => {
                for (slot, made) in slots.iter().zip(m.make_trainable()?) {
                    self.train(slot, Some(made))?;
                }
            }
            LoadMode::Inference => {
                let weight = self.freeze(&slots[0], None)?;
                let bias = slots.get(1).map(|slot| self.freeze(slot, None)).transpose()?;
                *m = Linear::new(m.path(), frozen(&weight)?, bias);
            }
        }
        Ok(())
    }

    fn embedding(&mut self, m: &mut Embedding, slot: &TrainedParameter) -> taper_nn::Result<()> {
        match self.mode {
            LoadMode::Training => {
                let made = m.make_trainable()?;
                self.train(slot, Some(made))
            }
            LoadMode::Inference => {
                let weight = self.freeze(slot, None)?;
                *m = Embedding::new(m.path(), frozen(&weight)?);
                Ok(())
            }
        }
    }

    fn norm(&mut self, m: &mut RmsNorm, slot: &TrainedParameter) -> taper_nn::Result<()> {
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
        let Some(made) = made else { candle_core::bail!("there is nothing to train for `{}`", slot.name) };
        if let Some(value) = self.values.remove(&slot.name) {
            made.var.set(&value)?;
        }
        self.parameters.push(Parameter { name: slot.name.clone(), kind: slot.kind, var: made.var });
        Ok(())
    }

    fn freeze(&mut self, slot: &TrainedParameter, otherwise: Option<Tensor>) -> taper_nn::Result<Tensor> {
        let Some(value) = self.values.remove(&slot.name).or(otherwise) else {
            candle_core::bail!("there is no value for `{}`", slot.name)
        };
        self.frozen.insert(slot.name.clone(), value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdapterSection, Error, load};
    use candle_core::Device;
    use taper_kernels::rng::CounterRng;
    use taper_nn::{ForwardContext, RandomKey, SequenceLayout, to_vec_f32};

    /// `norm`, two linear layers with biases, a head: enough of a model for slots, names and restoration.
    struct Tiny {
        embedding: Embedding,
        norm: RmsNorm,
        linears: Vec<Linear>,
    }

    const WIDTH: usize = 6;

    fn random(stream: u64, shape: &[usize]) -> Tensor {
        let mut values = vec![0f32; shape.iter().product()];
        CounterRng::new(3, stream).fill_normal(0, 0.5, &mut values);
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn tiny() -> Tiny {
        let weight = |stream| frozen(&random(stream, &[WIDTH, WIDTH])).unwrap();
        let linear = |i: u64, path: &str| Linear::new(path, weight(i), Some(random(i + 50, &[WIDTH])));
        Tiny {
            embedding: Embedding::new("model.embed_tokens", weight(90)),
            norm: RmsNorm::new("model.norm", random(91, &[WIDTH]), 1e-6, 0.0),
            linears: vec![
                linear(1, "model.layers.0.mlp.up_proj"),
                linear(2, "model.layers.0.mlp.down_proj"),
                Linear::new("lm_head", weight(3), None),
            ],
        }
    }

    impl VisitModules for Tiny {
        fn visit_modules(
            &mut self,
            visit: &mut dyn FnMut(ModuleMut<'_>) -> taper_nn::Result<()>,
        ) -> taper_nn::Result<()> {
            visit(ModuleMut::Embedding(&mut self.embedding))?;
            for linear in &mut self.linears[..2] {
                visit(ModuleMut::Linear(linear))?;
            }
            visit(ModuleMut::RmsNorm(&mut self.norm))?;
            visit(ModuleMut::Linear(&mut self.linears[2]))
        }
    }

    impl Tiny {
        fn forward(&self, key: Option<RandomKey>) -> Vec<f32> {
            let layout = SequenceLayout::single(4);
            let ctx = key
                .map_or_else(|| ForwardContext::new(&layout), |key| ForwardContext::training(&layout, key));
            let mut x = self.embedding.forward(&[1, 5, 0, 2]).unwrap();
            for linear in &self.linears[..2] {
                x = linear.forward(&x, &ctx).unwrap();
            }
            let x = self.norm.forward(&x).unwrap();
            to_vec_f32(&self.linears[2].forward(&x, &ctx).unwrap()).unwrap()
        }
    }

    fn config(json: &str) -> LoraConfig {
        serde_json::from_str::<AdapterSection>(json).unwrap().to_config("base")
    }

    fn disturb(adapter: &Adapter) {
        for (i, parameter) in adapter.parameters.iter().enumerate() {
            let noise = random(200 + i as u64, parameter.var.dims());
            parameter.var.set(&parameter.var.add(&noise).unwrap()).unwrap();
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn furthest(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    const EVERYTHING: &str = r#"{"r": 2, "bias": "all", "target_modules": ["up_proj"], "modules_to_save": ["embed_tokens", "norm", "lm_head"], "lora_dropout": 0.5}"#;

    #[test]
    fn zero_b_leaves_the_output_and_detaching_restores_it_bit_for_bit() {
        let mut model = tiny();
        let base = model.forward(None);
        let adapter = attach(&mut model, &config(r#"{"r": 3}"#), "llama", 1).unwrap();
        assert_eq!(bits(&model.forward(None)), bits(&base));
        disturb(&adapter);
        assert_ne!(bits(&model.forward(None)), bits(&base));
        adapter.detach(&mut model).unwrap();
        assert_eq!(bits(&model.forward(None)), bits(&base));
        assert!(model.linears.iter().all(|l| l.adapter().is_none()));

        let adapter = attach(&mut model, &config(EVERYTHING), "llama", 1).unwrap();
        assert_eq!(bits(&model.forward(None)), bits(&base));
        disturb(&adapter);
        assert_ne!(bits(&model.forward(None)), bits(&base));
        adapter.detach(&mut model).unwrap();
        assert_eq!(bits(&model.forward(None)), bits(&base));
    }

    #[test]
    fn names_kinds_and_order_are_those_of_the_file_and_the_forward_pass() {
        let adapter = attach(&mut tiny(), &config(EVERYTHING), "llama", 1).unwrap();
        let names: Vec<&str> =
            adapter.parameters.iter().map(|p| p.name.trim_start_matches(crate::PREFIX)).collect();
        assert_eq!(
            names,
            [
                "model.embed_tokens.weight",
                "model.layers.0.mlp.up_proj.base_layer.bias",
                "model.layers.0.mlp.up_proj.lora_A.weight",
                "model.layers.0.mlp.up_proj.lora_B.weight",
                "model.layers.0.mlp.down_proj.bias",
                "model.norm.weight",
                "lm_head.weight",
            ]
        );
        assert_eq!(adapter.trainable_count(), 36 + 6 + 12 + 12 + 6 + 6 + 36);
        assert_eq!(adapter.layers[0].scale, 4.0);
    }

    #[test]
    fn merging_keeps_the_output_frees_the_slots_and_can_be_undone() {
        let mut model = tiny();
        let base = model.forward(None);
        let adapter = attach(&mut model, &config(EVERYTHING), "llama", 1).unwrap();
        disturb(&adapter);
        let adapted = model.forward(None);
        adapter.merge_into(&mut model).unwrap();
        let merged = model.forward(None);
        assert!(furthest(&adapted, &merged) < 2e-5);
        assert!(model.linears.iter().all(|l| l.adapter().is_none()));
        // What is merged is not the trained memory: it stays when training goes on.
        disturb(&adapter);
        assert_eq!(bits(&model.forward(None)), bits(&merged));
        adapter.detach(&mut model).unwrap();
        assert_eq!(bits(&model.forward(None)), bits(&base));
    }

    #[test]
    fn saved_and_loaded_it_gives_the_same_output_and_the_same_bytes_in_both_modes() {
        let folder = tempfile::tempdir().unwrap();
        let again = tempfile::tempdir().unwrap();
        let mut model = tiny();
        let adapter = attach(&mut model, &config(EVERYTHING), "llama", 1).unwrap();
        disturb(&adapter);
        adapter.save(folder.path()).unwrap();
        for mode in [LoadMode::Inference, LoadMode::Training] {
            let mut other = tiny();
            let loaded = load(folder.path(), &mut other, mode).unwrap();
            if mode == LoadMode::Training {
                assert_eq!(bits(&other.forward(None)), bits(&model.forward(None)));
            }
            // A frozen bias is added before the delta, a trained one behind it.
            assert!(furthest(&other.forward(None), &model.forward(None)) < 1e-5);
            assert_eq!(loaded.parameters.is_empty(), mode == LoadMode::Inference);
            loaded.save(again.path()).unwrap();
            for file in [crate::CONFIG_FILE, crate::WEIGHTS_FILE] {
                let read = |folder: &tempfile::TempDir| fs_err::read(folder.path().join(file)).unwrap();
                assert_eq!(read(&folder), read(&again), "{file} {mode:?}");
            }
            loaded.detach(&mut other).unwrap();
            assert_eq!(bits(&other.forward(None)), bits(&tiny().forward(None)));
        }
    }

    #[test]
    fn inference_records_nothing() {
        let folder = tempfile::tempdir().unwrap();
        attach(&mut tiny(), &config(EVERYTHING), "llama", 1).unwrap().save(folder.path()).unwrap();
        let mut model = tiny();
        let _adapter = load(folder.path(), &mut model, LoadMode::Inference).unwrap();
        let layout = SequenceLayout::single(2);
        let ctx = ForwardContext::new(&layout);
        let forward = || {
            let x = model.linears[0].forward(&model.embedding.forward(&[1, 2])?, &ctx)?;
            let x = model.norm.forward(&model.linears[1].forward(&x, &ctx)?)?;
            model.linears[2].forward(&x, &ctx)
        };
        let (y, tape) = taper_nn::tape::record(&[], forward).unwrap();
        assert!(!tape.tracks(&y));
    }

    #[test]
    fn dropout_acts_in_training_only_and_depends_on_the_key_alone() {
        let mut model = tiny();
        let adapter = attach(&mut model, &config(r#"{"r": 3, "lora_dropout": 0.5}"#), "llama", 1).unwrap();
        disturb(&adapter);
        let key = RandomKey { seed: 1, step: 2, micro_batch: 3 };
        let dropped = model.forward(Some(key));
        assert_ne!(bits(&dropped), bits(&model.forward(None)));
        assert_eq!(bits(&dropped), bits(&model.forward(Some(key))));
        assert_ne!(bits(&dropped), bits(&model.forward(Some(RandomKey { step: 3, ..key }))));
    }

    #[test]
    fn a_second_adapter_and_a_wrong_configuration_leave_the_model_as_it_was() {
        let mut model = tiny();
        let adapter = attach(&mut model, &config("{}"), "llama", 1).unwrap();
        let before = model.forward(None);
        assert!(matches!(attach(&mut model, &config("{}"), "llama", 1), Err(Error::Occupied { .. })));
        assert_eq!(bits(&model.forward(None)), bits(&before));
        adapter.detach(&mut model).unwrap();
        attach(&mut model, &config(r#"{"target_modules": ["gate_proj"]}"#), "llama", 1).unwrap_err();
        assert!(model.linears.iter().all(|l| l.adapter().is_none()));
    }
}
