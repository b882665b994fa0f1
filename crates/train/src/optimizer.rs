//! AdamW over named parameters, with a state that can be saved.
//!
//! Decoupled weight decay (Loshchilov and Hutter 2019) in the order of operations of `torch.optim.AdamW`; groups as the
//! Trainer of transformers forms them (no decay on biases and norms), and those of LoRA+ (Hayou et al. 2024) as
//! `peft.optimizers.create_loraplus_optimizer` does: B, biases and norms learn at `loraplus_lr_ratio` times A's rate.

use crate::OptimizerSection;
use crate::error::{Doing, Error, Result};
use crate::gradients::{Gradients, ordered};
use crate::tensor_file::{NamedTensor, TensorFile};
use taper_kernels::adamw::AdamW as Settings;
use taper_nn::{Moments, Parameter, ParameterKind};

/// The optimiser's parameters, moments and step count.
#[derive(Debug)]
pub struct AdamW {
    section: OptimizerSection,
    parameters: Vec<Parameter>,
    groups: Vec<Group>,
    moments: Moments,
    step: u64,
}

/// How one parameter learns.
#[derive(Debug)]
struct Group {
    lr_ratio: f64,
    weight_decay: f64,
}

impl AdamW {
    /// An optimiser that has made no step; the moments take 8 bytes an element.
    ///
    /// # Errors
    /// When there is no parameter, or two have one name.
    pub fn new(parameters: &[Parameter], section: &OptimizerSection) -> Result<Self> {
        let parameters = ordered(parameters)?;
        let groups = parameters.iter().map(|p| Group::of(p.kind, section)).collect();
        let moments = Moments::new(&parameters).doing(|| "make room for the optimiser".into())?;
        Ok(Self { section: section.clone(), parameters, groups, moments, step: 0 })
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Move every parameter by its gradient, which is first multiplied by `grad_scale`, at the learning rate `lr` (of A,
    /// under LoRA+).
    ///
    /// # Errors
    /// When a parameter's storage is not a plain f32 buffer.
    ///
    /// # Panics
    /// When `gradients` are not those of the optimiser's parameters: a fault of the caller.
    pub fn step(&mut self, gradients: &Gradients, lr: f64, grad_scale: f64) -> Result<()> {
        assert_eq!(gradients.parameters().len(), self.parameters.len(), "gradients of other parameters");
        self.step += 1;
        let settings = |group: &Group| Settings {
            lr: lr * group.lr_ratio,
            beta1: self.section.adam_beta1,
            beta2: self.section.adam_beta2,
            eps: self.section.adam_epsilon,
            weight_decay: group.weight_decay,
            step: self.step,
            grad_scale: grad_scale as f32,
        };
        let settings: Vec<Settings> = self.groups.iter().map(settings).collect();
        let stepped = self.moments.step(&self.parameters, gradients.sums(), &settings);
        stepped.doing(|| "update the parameters".into())
    }

    /// The moments as tensors `<name>.exp_avg` and `<name>.exp_avg_sq`, with the step count beside them.
    ///
    /// # Errors
    /// What the device says.
    pub fn state(&self) -> Result<(Vec<NamedTensor<'_>>, u64)> {
        let moments = self.moments.to_vecs().doing(|| "read the moments".into())?;
        let tensors = self.parameters.iter().zip(moments).flat_map(|(p, [first, second])| {
            let tensor = |kind: &str, values: Vec<f32>| NamedTensor {
                name: format!("{}.{kind}", p.name),
                shape: p.var.dims().to_vec(),
                values: values.into(),
            };
            [tensor("exp_avg", first), tensor("exp_avg_sq", second)]
        });
        Ok((tensors.collect(), self.step))
    }

    /// Go on from a saved state.
    ///
    /// # Errors
    /// When a moment is missing from `file` or has another shape.
    pub fn restore(&mut self, file: &TensorFile, step: u64) -> Result<()> {
        if file.names().count() != 2 * self.parameters.len() {
            return Err(Error::Checkpoint {
                path: file.path().to_owned(),
                what: format!("{} moments for {} parameters", file.names().count(), self.parameters.len()),
            });
        }
        let moments = |p: &Parameter| {
            let (name, dims) = (&p.name, p.var.dims());
            Ok([
                file.values(&format!("{name}.exp_avg"), dims)?,
                file.values(&format!("{name}.exp_avg_sq"), dims)?,
            ])
        };
        let moments = self.parameters.iter().map(moments).collect::<Result<_>>()?;
        self.moments.set(moments).doing(|| "go on from saved moments".into())?;
        self.step = step;
        Ok(())
    }
}

impl Group {
    fn of(kind: ParameterKind, section: &OptimizerSection) -> Self {
        let vector = matches!(kind, ParameterKind::Bias | ParameterKind::LoraBias | ParameterKind::Norm);
        let fast = vector
            || matches!(kind, ParameterKind::LoraB | ParameterKind::LoraBias | ParameterKind::LoraEmbeddingB);
        Self {
            lr_ratio: if fast { section.loraplus_lr_ratio.unwrap_or(1.0) } else { 1.0 },
            weight_decay: if vector { 0.0 } else { section.weight_decay },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor, Var};
    use std::path::Path;
    use std::rc::Rc;
    use taper_nn::tape::record;
    use taper_nn::{ops, to_vec_f32, update_f32};

    fn parameter(name: &str, kind: ParameterKind, values: Vec<f32>, dims: &[usize]) -> Parameter {
        let var = Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap();
        Parameter { name: name.into(), kind, var }
    }

    /// Gradients that are the given values.
    fn gradients_of(parameters: &[Parameter], values: &[f32]) -> Gradients {
        let mut gradients = Gradients::new(parameters).unwrap();
        for p in parameters {
            let given = Tensor::from_vec(values.to_vec(), p.var.dims(), &Device::Cpu).unwrap();
            let (y, tape) = record(&[], || ops::scale(&p.var, 1.0)).unwrap();
            tape.backward(&y, Rc::new(given), [], &mut gradients).unwrap();
        }
        gradients
    }

    #[test]
    fn ten_steps_on_given_gradients_are_those_of_torch() {
        let path = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/train/optimizers.safetensors"
        ));
        let file = TensorFile::open(path).unwrap();
        let section =
            OptimizerSection { learning_rate: 0.01, weight_decay: 0.1, ..OptimizerSection::default() };
        let start = file.values("p0", &[4, 6]).unwrap();
        let p = parameter("p", ParameterKind::Weight, start, &[4, 6]);
        let all_gradients = file.values("grads", &[10, 4, 6]).unwrap();
        let want = file.values("adamw", &[10, 4, 6]).unwrap();
        let mut optimizer = AdamW::new(std::slice::from_ref(&p), &section).unwrap();
        let mut worst = 0f32;
        for (gradient, want) in all_gradients.chunks(24).zip(want.chunks(24)) {
            let gradients = gradients_of(std::slice::from_ref(&p), gradient);
            optimizer.step(&gradients, section.learning_rate, 1.0).unwrap();
            let got = to_vec_f32(p.var.as_tensor()).unwrap();
            worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
        }
        assert!(worst < 2e-6, "{worst}");
    }

    #[test]
    fn biases_and_norms_are_not_decayed_and_b_learns_at_its_ratio() {
        let section = OptimizerSection {
            weight_decay: 0.5,
            loraplus_lr_ratio: Some(4.0),
            ..OptimizerSection::default()
        };
        let kinds = [
            ("a", ParameterKind::LoraA),
            ("b", ParameterKind::LoraB),
            ("bias", ParameterKind::Bias),
            ("norm", ParameterKind::Norm),
        ];
        let parameters: Vec<_> = kinds.iter().map(|(n, k)| parameter(n, *k, vec![1.0], &[1])).collect();
        let mut optimizer = AdamW::new(&parameters, &section).unwrap();
        // Without a gradient only the decay moves a parameter.
        optimizer.step(&gradients_of(&parameters, &[0.0]), 0.1, 1.0).unwrap();
        let value = |p: &Parameter| to_vec_f32(p.var.as_tensor()).unwrap()[0];
        let values: Vec<f32> = parameters.iter().map(value).collect();
        assert_eq!(values, [1.0 - 0.1 * 0.5, 1.0 - 0.4 * 0.5, 1.0, 1.0]);
    }

    #[test]
    fn a_restored_optimiser_steps_to_the_same_bits() {
        let make = || [parameter("p", ParameterKind::Weight, vec![0.3, -0.7], &[2])];
        let (one, two) = (make(), make());
        let section = OptimizerSection::default();
        let mut first = AdamW::new(&one, &section).unwrap();
        let step = |optimizer: &mut AdamW, parameters: &[Parameter], i: usize| {
            let gradients = gradients_of(parameters, &[0.1 * i as f32, -0.3]);
            optimizer.step(&gradients, 0.01, 0.5).unwrap();
        };
        (0..5).for_each(|i| step(&mut first, &one, i));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let (tensors, steps) = first.state().unwrap();
        crate::tensor_file::write(&path, &tensors).unwrap();
        let mut second = AdamW::new(&two, &section).unwrap();
        second.restore(&TensorFile::open(&path).unwrap(), steps).unwrap();
        let values = to_vec_f32(one[0].var.as_tensor()).unwrap();
        update_f32(&two[0].var, |v| v.copy_from_slice(&values)).unwrap();
        for i in 5..8 {
            step(&mut first, &one, i);
            step(&mut second, &two, i);
        }
        let bits = |p: &Parameter| {
            to_vec_f32(p.var.as_tensor()).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&one[0]), bits(&two[0]));
    }
}
