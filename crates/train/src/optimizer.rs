//! AdamW over named parameters, with a state that can be saved.
//!
//! Decoupled weight decay (Loshchilov and Hutter 2019) in the order of operations of `torch.optim.AdamW`; groups as the
//! Trainer of transformers forms them (no decay on biases and norms), and those of LoRA+ (Hayou et al. 2024) as
//! `peft.optimizers.create_loraplus_optimizer` does: B, biases and norms learn at `loraplus_lr_ratio` times A's rate. The moments are f32, or in
//! 8 bits ([`taper_kernels::adamw8bit`]).

use crate::OptimizerSection;
use crate::error::{Doing, Error, Result};
use crate::gradients::{Gradients, ordered};
use crate::tensor_file::{NamedTensor, TensorFile};
use taper_kernels::adamw::AdamW as Settings;
use taper_kernels::adamw8bit::{BLOCK_SIZE, Coded, Moment};
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
    /// An optimiser that has made no step; its moments take [`OptimizerSection::state_bytes`].
    ///
    /// # Errors
    /// When there is no parameter, or two have one name.
    pub fn new(parameters: &[Parameter], section: &OptimizerSection) -> Result<Self> {
        let parameters = ordered(parameters)?;
        let groups = parameters.iter().map(|p| Group::of(p.kind, section)).collect();
        let moments = Moments::new(&parameters, section.name.state_format())
            .doing(|| "make room for the optimiser".into())?;
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

    /// The moments as tensors `<name>.exp_avg` and `<name>.exp_avg_sq`, with the step count beside them. Where they are held in 8 bits these are
    /// codes (u8), and `<name>.exp_avg_absmax` and `<name>.exp_avg_sq_absmax` are the absolute maxima of their blocks.
    ///
    /// # Errors
    /// What the device says.
    pub fn state(&self) -> Result<(Vec<NamedTensor<'_>>, u64)> {
        let moments = self.moments.to_host().doing(|| "read the moments".into())?;
        let mut tensors = Vec::with_capacity(2 * moments.len());
        for (p, both) in self.parameters.iter().zip(moments) {
            for (kind, moment) in KINDS.iter().zip(both) {
                let (name, shape) = (format!("{}.{kind}", p.name), p.var.dims().to_vec());
                match moment {
                    Moment::Plain(values) => tensors.push(NamedTensor { name, shape, values: values.into() }),
                    Moment::Coded(Coded { codes, absmax }) => {
                        tensors.push(NamedTensor {
                            name: format!("{name}{ABSMAX}"),
                            shape: vec![absmax.len()],
                            values: absmax.into(),
                        });
                        tensors.push(NamedTensor { name, shape, values: codes.into() });
                    }
                }
            }
        }
        Ok((tensors, self.step))
    }

    /// Go on from a saved state.
    ///
    /// # Errors
    /// When `file` has not exactly the moments of the parameters, in their shapes, as this optimiser holds them.
    pub fn restore(&mut self, file: &TensorFile, step: u64) -> Result<()> {
        self.check_names(file)?;
        let moments = |p: &Parameter| Ok([self.saved(file, p, KINDS[0])?, self.saved(file, p, KINDS[1])?]);
        let moments = self.parameters.iter().map(moments).collect::<Result<_>>()?;
        self.moments.set(moments).doing(|| "go on from saved moments".into())?;
        self.step = step;
        Ok(())
    }

    /// Whether the tensors of `file` are those of this optimiser, and not of another one or of other parameters.
    fn check_names(&self, file: &TensorFile) -> Result<()> {
        let format = self.section.name.state_format();
        let coded = self.parameters.iter().filter(|p| format.is_coded(p.var.elem_count())).count();
        let fault = |what| Err(Error::Checkpoint { path: file.path().to_owned(), what });
        let coded_there = file.names().filter(|name| name.ends_with(ABSMAX)).count();
        if coded_there != 2 * coded {
            let told = |coded: usize| if coded == 0 { "f32" } else { "8 bits" };
            return fault(format!(
                "{coded_there} of its moments are in 8 bits, and not {}: it is of another optimiser (moments in {}) than `{}` (in {})",
                2 * coded,
                told(coded_there),
                self.section.name,
                told(coded),
            ));
        }
        let moments = file.names().count() - coded_there;
        if moments != 2 * self.parameters.len() {
            return fault(format!("{moments} moments for {} parameters", self.parameters.len()));
        }
        Ok(())
    }

    fn saved(&self, file: &TensorFile, p: &Parameter, kind: &str) -> Result<Moment> {
        let (name, dims) = (format!("{}.{kind}", p.name), p.var.dims());
        if !self.section.name.state_format().is_coded(p.var.elem_count()) {
            return Ok(Moment::Plain(file.values(&name, dims)?));
        }
        let blocks = p.var.elem_count().div_ceil(BLOCK_SIZE);
        let absmax = file.values(&format!("{name}{ABSMAX}"), &[blocks])?;
        Ok(Moment::Coded(Coded { codes: file.bytes(&name, dims)?, absmax }))
    }
}

/// What moments are called in a file, as in torch's state of AdamW.
const KINDS: [&str; 2] = ["exp_avg", "exp_avg_sq"];
/// Behind the name of codes, for the absolute maxima of their blocks.
const ABSMAX: &str = "_absmax";

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
    use crate::OptimizerName;
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
        for name in OptimizerName::ALL {
            let make = || {
                let large = (0..5000).map(|i| (i as f32).sin()).collect();
                [
                    parameter("p", ParameterKind::Weight, vec![0.3, -0.7], &[2]),
                    parameter("large", ParameterKind::LoraA, large, &[50, 100]),
                ]
            };
            let (one, two) = (make(), make());
            let section = OptimizerSection { name, ..OptimizerSection::default() };
            let mut first = AdamW::new(&one, &section).unwrap();
            let step = |optimizer: &mut AdamW, parameters: &[Parameter], i: usize| {
                let gradients = varied_gradients(parameters, i);
                optimizer.step(&gradients, 0.01, 0.5).unwrap();
            };
            (0..5).for_each(|i| step(&mut first, &one, i));
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("optimizer.safetensors");
            let (tensors, steps) = first.state().unwrap();
            crate::tensor_file::write(&path, &tensors).unwrap();
            let mut second = AdamW::new(&two, &section).unwrap();
            second.restore(&TensorFile::open(&path).unwrap(), steps).unwrap();
            for (one, two) in one.iter().zip(&two) {
                let values = to_vec_f32(one.var.as_tensor()).unwrap();
                update_f32(&two.var, |v| v.copy_from_slice(&values)).unwrap();
            }
            for i in 5..8 {
                step(&mut first, &one, i);
                step(&mut second, &two, i);
            }
            let bits = |p: &Parameter| {
                to_vec_f32(p.var.as_tensor()).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(one.each_ref().map(bits), two.each_ref().map(bits), "{name}");
        }
    }

    /// Gradients of which no two elements are alike.
    fn varied_gradients(parameters: &[Parameter], i: usize) -> Gradients {
        let mut gradients = Gradients::new(parameters).unwrap();
        for p in parameters {
            let value = |at: usize| 0.1 * i as f32 + (at as f32 * 0.7).cos();
            let given: Vec<f32> = (0..p.var.elem_count()).map(value).collect();
            let given = Tensor::from_vec(given, p.var.dims(), &Device::Cpu).unwrap();
            let (y, tape) = record(&[], || ops::scale(&p.var, 1.0)).unwrap();
            tape.backward(&y, Rc::new(given), [], &mut gradients).unwrap();
        }
        gradients
    }

    #[test]
    fn a_state_has_the_bytes_that_the_section_says_and_is_refused_by_another_optimiser() {
        let lens = [2, 4095, 4096, 5000];
        let named = |len: usize| parameter(&format!("p{len}"), ParameterKind::Weight, vec![0.5; len], &[len]);
        let parameters = lens.map(named);
        for name in OptimizerName::ALL {
            let section = OptimizerSection { name, ..OptimizerSection::default() };
            let mut optimizer = AdamW::new(&parameters, &section).unwrap();
            optimizer.step(&varied_gradients(&parameters, 1), 0.01, 1.0).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("optimizer.safetensors");
            let (tensors, steps) = optimizer.state().unwrap();
            let bytes: usize = tensors.iter().map(|t| safetensors::View::data_len(&t)).sum();
            assert_eq!(bytes, lens.iter().map(|len| section.state_bytes(*len)).sum::<usize>(), "{name}");
            crate::tensor_file::write(&path, &tensors).unwrap();
            for other in OptimizerName::ALL {
                let section = OptimizerSection { name: other, ..section.clone() };
                let mut other = AdamW::new(&parameters, &section).unwrap();
                let restored = other.restore(&TensorFile::open(&path).unwrap(), steps);
                if section.name.state_format().eight_bit == name.state_format().eight_bit {
                    restored.unwrap();
                } else {
                    let message = restored.unwrap_err().to_string();
                    let told = format!("than `{}`", section.name);
                    assert!(message.contains("another optimiser") && message.contains(&told), "{message}");
                }
            }
        }
    }
}
