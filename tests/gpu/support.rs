//! A device, random tensors, and how far two tensors are apart.

use candle_core::{DType, Device, Tensor, Var};
use std::rc::Rc;
use std::sync::OnceLock;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_nn::tape::{CollectedGradients, record};
use taper_nn::{Result, to_device, to_vec_f32};

/// The device, or `None`, which is said once.
pub fn device() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    let opened = DEVICE.get_or_init(|| match taper_nn::open_device(0) {
        Ok(device) => {
            println!("device: {}", taper_nn::device_name(&device));
            Some(device)
        }
        Err(error) => {
            eprintln!("SKIPPED: no GPU ({error}); scripts/cuda-emulator.sh makes one on the CPU");
            None
        }
    });
    opened.as_ref()
}

/// Numbers of about 1, from a name.
pub fn values(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0f32; len];
    CounterRng::new(1, stream_of(name)).fill_normal(0, 1.0, &mut values);
    values
}

pub fn tensor(name: &str, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(name, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// The largest difference over the largest entry of `wanted`. NaN counts as infinitely far.
pub fn distance(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    let off = got.iter().zip(wanted).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
    off.fold(0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }) / largest
}

/// An operation over inputs of these shapes and types: its output and the gradients of f32 inputs agree on both devices within `tolerance`, and
/// nothing went through the host.
pub fn agrees(
    what: &str,
    inputs: &[(&[usize], DType)],
    tolerance: f32,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let Some(gpu) = device() else { return };
    let before = staged();
    let (wanted, got) = (outcome(inputs, &Device::Cpu, &f), outcome(inputs, gpu, &f));
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let name = if i == 0 { "output".to_owned() } else { format!("gradient {i}") };
        let off = distance(got, wanted);
        assert!(off <= tolerance, "{what}: {name} is off by {off}, allowed are {tolerance}");
    }
    assert_eq!(got.len(), wanted.len());
    assert_eq!(staged(), before, "{what} went through the host");
}

/// Operations that this thread's tests sent through the host. Tests that mean to do so hold [`STAGING`].
fn staged() -> u64 {
    taper_nn::staged_operations()
}

fn outcome(
    inputs: &[(&[usize], DType)],
    device: &Device,
    f: &impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Vec<Vec<f32>> {
    let leaves: Vec<Tensor> = inputs
        .iter()
        .enumerate()
        .map(|(i, (shape, dtype))| {
            let cpu = tensor(&format!("input {i}"), shape).to_dtype(*dtype).unwrap();
            to_device(&cpu, device).unwrap()
        })
        .collect();
    let vars: Vec<Tensor> = leaves
        .iter()
        .map(|leaf| match leaf.dtype() {
            DType::F32 => Var::from_tensor(leaf).unwrap().as_tensor().clone(),
            _ => leaf.clone(),
        })
        .collect();
    let narrow: Vec<&Tensor> = vars.iter().filter(|var| !var.is_variable()).collect();
    let (y, tape) = record(&narrow, || f(&vars)).unwrap();
    let seed = to_device(&tensor("seed", y.dims()), device).unwrap();
    let mut gradients = CollectedGradients::on(device);
    let mut found = vec![to_vec_f32(&y).unwrap()];
    match narrow.as_slice() {
        [] => {
            tape.backward(&y, Rc::new(seed), [], &mut gradients).unwrap();
        }
        [one] => {
            let [below] = tape.backward(&y, Rc::new(seed), [*one], &mut gradients).unwrap();
            found.extend(below.map(|below| to_vec_f32(&below).unwrap()));
        }
        [one, two] => {
            let below = tape.backward(&y, Rc::new(seed), [*one, *two], &mut gradients).unwrap();
            found.extend(below.into_iter().flatten().map(|below| to_vec_f32(&below).unwrap()));
        }
        [one, two, three, ..] => {
            let below = tape.backward(&y, Rc::new(seed), [*one, *two, *three], &mut gradients).unwrap();
            found.extend(below.into_iter().flatten().map(|below| to_vec_f32(&below).unwrap()));
        }
    }
    for var in vars.iter().filter(|var| var.is_variable()) {
        found.extend(gradients.get(var).unwrap().map(|g| to_vec_f32(&g).unwrap()));
    }
    found
}
