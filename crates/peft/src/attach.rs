//! Adapters on a model: put on, counted, taken off, merged.

use crate::error::doing;
use crate::files::{AdapterWeights, LoadMode};
use crate::modules::inventory;
use crate::outfit::Outfit;
use crate::plan::{Action, Author, Plan, Planned, plan};
use crate::{AdapterConfig, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use taper_nn::{
    Embedding, FrozenWeight, Linear, ModuleMut, Parameter, RmsNorm, VisitModules, Weight, to_device,
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
    pub config: AdapterConfig,
    /// What is trained, in the order of the forward pass, named as in the saved file. Empty after [`LoadMode::Inference`].
    pub parameters: Vec<Parameter>,
    /// The layers with a delta, in the order of the forward pass.
    pub layers: Vec<AdaptedLayer>,
    /// Tensors of the file that are not trained.
    pub(crate) frozen: BTreeMap<String, Tensor>,
    /// Tensors that lie in the file a second time, under the name of the head that shares them: from, to.
    copies: Vec<(String, String)>,
    /// What A and B of a layer began with, where that was taken off the base.
    pub(crate) beginnings: BTreeMap<String, (Tensor, Tensor)>,
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
    config: &AdapterConfig,
    model_type: &str,
    seed: u64,
) -> Result<Adapter> {
    let modules = inventory(model)?;
    let plan = plan(config, &modules, Some(model_type), Author::User)?;
    apply(model, &plan, Values::Drawn(seed), LoadMode::Training)
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
        let mut tensors: BTreeMap<String, Tensor> = self.frozen.clone().into_iter().chain(trained).collect();
        for (from, to) in &self.copies {
            if let Some(tensor) = tensors.get(from).cloned() {
                tensors.insert(to.clone(), tensor);
            }
        }
        AdapterWeights { tensors }
    }

    /// Take the adapter off: the model is the base again, bit for bit.
    ///
    /// # Errors
    /// What the visit says.
    pub fn detach(self, model: &mut dyn VisitModules) -> Result<()> {
        self.restore_base(model)
    }

    /// The same for one that is still needed: its parameters keep their values.
    ///
    /// # Errors
    /// What the visit says.
    pub fn restore_base(&self, model: &mut dyn VisitModules) -> Result<()> {
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
                    // It gets its weight from the embedding.
                    ModuleMut::Linear(m) if m.is_tied() && follows(m) => m.set_adapter(None),
                    ModuleMut::Linear(m) => {
                        let (weight, bias) = match m.adapter() {
                            Some(adapter) => (adapter.merged_weight(m)?, adapter.merged_bias(m)?),
                            None => (m.weight().to_f32()?.copy()?, m.bias()),
                        };
                        let weight = to_device(&weight, &m.weight().device())?;
                        *m = m.rebuilt(frozen(&weight)?, bias.map(|b| b.copy()).transpose()?);
                    }
                    ModuleMut::Embedding(m) => {
                        let weight = match m.adapter() {
                            Some(adapter) => adapter.merged_weight(m)?,
                            None => m.weight().to_f32()?.copy()?,
                        };
                        let weight = to_device(&weight, &m.weight().device())?;
                        *m = Embedding::new(m.path(), frozen(&weight)?);
                    }
                    ModuleMut::RmsNorm(m) => m.set_weight(m.weight().copy()?)?,
                }
                Ok(())
            })
            .map_err(doing("merge the adapter into the model"))
    }
}

/// Whether a head that shares the embedding's table is changed with it, or not at all.
fn follows(head: &Linear) -> bool {
    head.adapter().is_none_or(|adapter| adapter.follows_embedding())
}

pub(crate) fn frozen(weight: &Tensor) -> taper_nn::Result<Weight> {
    Ok(Weight::Frozen(FrozenWeight::dense(weight)?))
}

/// Where the adapter's values come from.
pub(crate) enum Values {
    /// From a file, by their names in it.
    Read(BTreeMap<String, Tensor>),
    /// Drawn, by this seed and the names.
    Drawn(u64),
}

/// Do what the plan says with the values given; what is trained and has no value keeps the base's.
pub(crate) fn apply(
    model: &mut dyn VisitModules,
    plan: &Plan,
    values: Values,
    mode: LoadMode,
) -> Result<Adapter> {
    let by_path: BTreeMap<&str, &Planned> = plan.modules.iter().map(|p| (p.path.as_str(), p)).collect();
    let mut outfit = Outfit::new(&plan.config, values, mode);
    outfit.share(&plan.shared)?;
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
                outfit.embedding(m, planned)
            }
            ModuleMut::RmsNorm(m) => {
                originals.insert(path, Original::RmsNorm(m.clone()));
                outfit.norm(m, &planned.slots[0])
            }
        }
    });
    if let Err(error) = outcome {
        restore(model, &originals)?;
        return Err(outfit.failed.take().unwrap_or_else(|| doing("put the adapter on the model")(error)));
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
        copies: outfit.copies,
        beginnings: outfit.beginnings,
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

    fn config(json: &str) -> AdapterConfig {
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
