//! Optimisers whose state is in 8 bits or paged: a step against the CPU, bit by bit where the arithmetic is the same, and a state that comes back.

use crate::support::{device, distance, values};
use candle_core::{Device, Tensor, Var};
use std::rc::Rc;
use taper_kernels::adamw::AdamW;
use taper_kernels::adamw8bit::{Moment, StateFormat};
use taper_nn::tape::record;
use taper_nn::{GradientSums, Moments, Parameter, ParameterKind, ops, to_device, to_vec_f32};
use taper_train::{AdamW as Optimizer, Gradients, OptimizerName, OptimizerSection, TensorFile};

/// Below and at the size from which a tensor is coded, whole and short blocks, and more than one chunk.
const LENS: [usize; 7] = [1, 4095, 4096, 4097, 64, 20_001, 9000];

fn parameters(on: &Device) -> Vec<Parameter> {
    let parameter = |len: &usize| {
        let name = format!("p{len}");
        let values = Tensor::from_vec(values(&name, *len), *len, &Device::Cpu).unwrap();
        let var = Var::from_tensor(&to_device(&values, on).unwrap()).unwrap();
        Parameter { name, kind: ParameterKind::Weight, var }
    };
    let mut parameters: Vec<Parameter> = LENS.iter().map(parameter).collect();
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    parameters
}

/// Gradients of step `step`, of other sizes from block to block; those of some elements are zero.
fn gradients(parameters: &[Parameter], step: u64, on: &Device) -> Gradients {
    let mut gradients = Gradients::new(parameters).unwrap();
    for p in parameters {
        let mut given = values(&format!("{} {step}", p.name), p.var.elem_count());
        for (i, g) in given.iter_mut().enumerate() {
            *g *= [1.0, 1e-4, 0.3, 0.0][(i / 200 + i % 3) % 4];
        }
        let given = to_device(&Tensor::from_vec(given, p.var.dims(), &Device::Cpu).unwrap(), on).unwrap();
        let (y, tape) = record(&[], || ops::scale(&p.var, 1.0)).unwrap();
        tape.backward(&y, Rc::new(given), [], &mut gradients).unwrap();
    }
    gradients
}

struct Outcome {
    values: Vec<Vec<f32>>,
    moments: Vec<[Moment; 2]>,
}

/// Three steps from zeros.
fn stepped(on: &Device, format: StateFormat) -> Outcome {
    let parameters = parameters(on);
    let mut moments = Moments::new(&parameters, format).unwrap();
    for step in 1..=3 {
        let gradients = gradients(&parameters, step, on);
        let settings = |i: usize| AdamW {
            lr: 1e-2 * (i + 1) as f64,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1 * i as f64,
            step,
            grad_scale: 0.7,
        };
        let settings: Vec<AdamW> = (0..parameters.len()).map(settings).collect();
        let sums: &GradientSums = gradients.sums();
        moments.step(&parameters, sums, &settings).unwrap();
    }
    let values = parameters.iter().map(|p| to_vec_f32(p.var.as_tensor()).unwrap()).collect();
    Outcome { values, moments: moments.to_host().unwrap() }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn gpu_8_bit_steps_are_those_of_the_cpu_to_the_bit() {
    let Some(gpu) = device() else { return };
    for paged in [false, true] {
        let format = StateFormat { eight_bit: true, paged };
        let (got, wanted) = (stepped(gpu, format), stepped(&Device::Cpu, format));
        for (i, (got, wanted)) in got.moments.iter().zip(&wanted.moments).enumerate() {
            for (got, wanted) in got.iter().zip(wanted) {
                match (got, wanted) {
                    (Moment::Coded(got), Moment::Coded(wanted)) => {
                        assert!(same_bits(&got.absmax, &wanted.absmax), "maxima of {i}");
                        assert!(got.codes == wanted.codes, "codes of {i}");
                    }
                    (Moment::Plain(got), Moment::Plain(wanted)) => assert!(distance(got, wanted) < 1e-6),
                    _ => panic!("another format on the device"),
                }
            }
        }
        for (i, (got, wanted)) in got.values.iter().zip(&wanted.values).enumerate() {
            match got.len() >= 4096 {
                true => assert!(same_bits(got, wanted), "parameter {i}"),
                false => assert!(distance(got, wanted) < 1e-6, "parameter {i}"),
            }
        }
        let coded = got.moments.iter().filter(|both| matches!(both[0], Moment::Coded(_))).count();
        assert_eq!(coded, 4, "of {} tensors", LENS.len());
    }
}

#[test]
fn gpu_paged_steps_are_those_of_the_device_s_own_memory() {
    let Some(gpu) = device() else { return };
    for eight_bit in [false, true] {
        let [own, paged] = [false, true].map(|paged| stepped(gpu, StateFormat { eight_bit, paged }));
        assert!(own.moments == paged.moments);
        assert!(own.values.iter().zip(&paged.values).all(|(own, paged)| same_bits(own, paged)));
    }
}

#[test]
fn gpu_paged_states_take_none_of_the_device_s_memory_and_8_bits_a_quarter() {
    let Some(gpu) = device() else { return };
    let zeros = Tensor::zeros(1 << 20, candle_core::DType::F32, &Device::Cpu).unwrap();
    let var = Var::from_tensor(&to_device(&zeros, gpu).unwrap()).unwrap();
    let parameters = [Parameter { name: "p".into(), kind: ParameterKind::Weight, var }];
    let used = || taper_nn::memory_of(gpu).unwrap().used;
    let taken = |name: OptimizerName| {
        let before = used();
        let moments = Moments::new(&parameters, name.state_format()).unwrap();
        let taken = used().saturating_sub(before);
        drop(moments);
        taken
    };
    // Other tests allocate and free meanwhile.
    let least = |name| (0..5).map(|_| taken(name)).min().unwrap();
    let most = (0..5).map(|_| taken(OptimizerName::Adamw)).max().unwrap();
    let [coded, paged, paged_coded] =
        [OptimizerName::Adamw8bit, OptimizerName::PagedAdamw32bit, OptimizerName::PagedAdamw8bit].map(least);
    assert!(most >= 8 << 20 && coded <= (9 << 20) / 4, "{most}, {coded}");
    // Tables of where things lie are the device's own.
    assert!(paged < 1 << 18 && paged_coded < 1 << 18, "{paged}, {paged_coded}");
}

#[test]
fn gpu_a_state_is_saved_and_goes_on_to_the_same_bits_on_the_device_and_on_the_cpu() {
    let Some(gpu) = device() else { return };
    for name in OptimizerName::ALL {
        let section = OptimizerSection { name, ..OptimizerSection::default() };
        let start = parameters(gpu);
        let mut optimizer = Optimizer::new(&start, &section).unwrap();
        optimizer.step(&gradients(&start, 1, gpu), 0.01, 1.0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let (tensors, steps) = optimizer.state().unwrap();
        safetensors::serialize_to_file(tensors.iter().map(|t| (t.name.clone(), t)), None, &path).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let after_one: Vec<Vec<f32>> = start.iter().map(|p| to_vec_f32(p.var.as_tensor()).unwrap()).collect();
        let goes_on = |on: &Device| {
            let parameters = parameters(on);
            for (p, values) in parameters.iter().zip(&after_one) {
                taper_nn::update_f32(&p.var, |to| to.copy_from_slice(values)).unwrap();
            }
            let mut restored = Optimizer::new(&parameters, &section).unwrap();
            restored.restore(&file, steps).unwrap();
            let (again, _) = restored.state().unwrap();
            let bytes = |tensors: &[taper_train::NamedTensor<'_>]| -> Vec<Vec<u8>> {
                tensors.iter().map(|t| safetensors::View::data(&t).into_owned()).collect()
            };
            assert!(bytes(&again) == bytes(&tensors), "{name}: the state itself");
            restored.step(&gradients(&parameters, 2, on), 0.01, 1.0).unwrap();
            parameters.iter().map(|p| to_vec_f32(p.var.as_tensor()).unwrap()).collect::<Vec<_>>()
        };
        let (there, here) = (goes_on(gpu), goes_on(&Device::Cpu));
        optimizer.step(&gradients(&start, 2, gpu), 0.01, 1.0).unwrap();
        for ((p, there), here) in start.iter().zip(&there).zip(&here) {
            let wanted = to_vec_f32(p.var.as_tensor()).unwrap();
            assert!(same_bits(&wanted, there), "{name}: `{}`", p.name);
            assert!(distance(here, &wanted) < 1e-6, "{name}: `{}` on the CPU", p.name);
        }
    }
}
