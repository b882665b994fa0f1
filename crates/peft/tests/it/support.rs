//! Golden models, batches and the loss.

use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use taper_hub::ModelFiles;
use taper_models::{CausalLm, LoadOptions};
use taper_nn::tape::{CollectedGradients, record};
use taper_nn::{ForwardContext, ModuleMut, RandomKey, SequenceLayout, ops, to_vec_f32};
use taper_peft::Adapter;

pub(crate) type Tensors = HashMap<String, Tensor>;

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn golden(path: &str) -> PathBuf {
    workspace().join("tests/golden").join(path)
}

pub(crate) fn tensors(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub(crate) fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

/// `base` as golden.json has it, for example `models/llama_untied`.
pub(crate) fn model(base: &str) -> Box<dyn CausalLm> {
    let files = ModelFiles::of_folder(&golden(base)).unwrap();
    taper_models::load(&files, LoadOptions::default()).unwrap()
}

/// The golden batch without its padding.
pub(crate) struct Batch {
    pub(crate) ids: Vec<u32>,
    pub(crate) layout: SequenceLayout,
    /// `(row of the flat batch, its target)`.
    pub(crate) targets: Vec<(usize, u32)>,
    /// Row of the flat batch → row of `[3 * 24]`.
    rows: Vec<u32>,
}

pub(crate) fn batch() -> Batch {
    let file = tensors(&golden("peft/batch.safetensors"));
    let rows = |name: &str| file[name].to_vec2::<i64>().unwrap();
    let (ids, mask, labels) = (rows("input_ids"), rows("attention_mask"), rows("labels"));
    let width = ids[0].len();
    let mut batch = Batch { ids: vec![], layout: SequenceLayout::single(0), targets: vec![], rows: vec![] };
    let mut lengths = Vec::new();
    for row in 0..ids.len() {
        let length = mask[row].iter().filter(|&&m| m == 1).count();
        for at in 0..length {
            if at + 1 < length && labels[row][at + 1] != -100 {
                batch.targets.push((batch.ids.len(), labels[row][at + 1] as u32));
            }
            batch.ids.push(ids[row][at] as u32);
            batch.rows.push((row * width + at) as u32);
        }
        lengths.push(length);
    }
    batch.layout = SequenceLayout::from_lengths(&lengths);
    batch
}

impl Batch {
    /// `[3, 24, V]` of a golden file as `[T, V]`.
    pub(crate) fn unpadded(&self, logits: &Tensor) -> Tensor {
        let index = Tensor::new(self.rows.as_slice(), &Device::Cpu).unwrap();
        logits.flatten(0, 1).unwrap().index_select(&index, 0).unwrap()
    }

    pub(crate) fn logits(&self, model: &dyn CausalLm) -> Tensor {
        let mut ctx = ForwardContext::new(&self.layout);
        taper_models::forward_logits(model, &self.ids, &mut ctx).unwrap()
    }

    /// The mean loss over the targets and the gradients of everything trained.
    pub(crate) fn loss_and_gradients(
        &self,
        model: &dyn CausalLm,
        key: Option<RandomKey>,
    ) -> (f64, CollectedGradients) {
        let mut ctx = match key {
            None => ForwardContext::new(&self.layout),
            Some(key) => ForwardContext::training(&self.layout, key),
        };
        let forward = || taper_models::forward_logits(model, &self.ids, &mut ctx);
        let (logits, tape) = record(&[], forward).unwrap();
        let rows: Vec<u32> = self.targets.iter().map(|t| t.0 as u32).collect();
        let ids: Vec<u32> = self.targets.iter().map(|t| t.1).collect();
        let index = Tensor::new(rows.as_slice(), &Device::Cpu).unwrap();
        let picked = logits.detach().index_select(&index, 0).unwrap();
        let (losses, gradient) = ops::cross_entropy_with_gradient(picked, &ids).unwrap();
        let n = rows.len() as f64;
        let zeros = Tensor::zeros(logits.dims(), DType::F32, &Device::Cpu).unwrap();
        let gradient = zeros.index_add(&index, &(gradient / n).unwrap(), 0).unwrap();
        let mut gradients = CollectedGradients::default();
        tape.backward(&logits, Rc::new(gradient), [], &mut gradients).unwrap();
        (losses.sum().unwrap() / n, gradients)
    }
}

pub(crate) fn furthest(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (to_vec_f32(a).unwrap(), to_vec_f32(b).unwrap());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { d } else { m.max(d) })
}

pub(crate) fn largest(a: &Tensor) -> f32 {
    to_vec_f32(a).unwrap().iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Every weight and bias of the model by its name in the checkpoint, f32.
pub(crate) fn state(model: &mut dyn CausalLm) -> Tensors {
    let mut state = Tensors::new();
    model
        .visit_modules(&mut |module| {
            let path = module.path().to_owned();
            let weight = match &module {
                ModuleMut::Linear(m) => {
                    if let Some(bias) = m.bias() {
                        state.insert(format!("{path}.bias"), bias.copy()?);
                    }
                    m.weight().to_f32()?
                }
                ModuleMut::Embedding(m) => m.weight().to_f32()?,
                ModuleMut::RmsNorm(m) => m.weight(),
            };
            state.insert(format!("{path}.weight"), weight.copy()?);
            Ok(())
        })
        .unwrap();
    state
}

/// Give every parameter a value that matters (B begins at zero).
pub(crate) fn disturb(adapter: &Adapter) {
    for parameter in &adapter.parameters {
        let mut noise = vec![0f32; parameter.var.elem_count()];
        let stream = taper_kernels::rng::stream_of(&parameter.name);
        taper_kernels::rng::CounterRng::new(11, stream).fill_normal(0, 0.05, &mut noise);
        let noise = Tensor::from_vec(noise, parameter.var.shape(), &Device::Cpu).unwrap();
        parameter.var.set(&parameter.var.as_detached_tensor().add(&noise).unwrap()).unwrap();
    }
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    to_vec_f32(tensor).unwrap().iter().map(|v| v.to_bits()).collect()
}
