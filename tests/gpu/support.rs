//! A device, random tensors, tiny models and adapters, and how far two results are apart.

use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use taper_data::{Batch, RowPlace, TokenizedExample};
use taper_hub::ModelFiles;
use taper_kernels::rng::{CounterRng, stream_of};
use taper_models::{CausalLm, LoadOptions};
use taper_nn::tape::{CollectedGradients, record};
use taper_nn::{Parameter, RandomKey, Result, to_device, to_vec_f32, update_f32};
use taper_peft::{Adapter, AdapterSection};
use taper_testkit::{TinySpec, tiny_checkpoint};
use taper_train::{Gradients, PassOptions, forward_backward};

/// The device, or `None`, which is said once.
pub fn device() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    let opened = DEVICE.get_or_init(|| match taper_nn::open_device(0) {
        Ok(device) => {
            println!("device: {}", taper_nn::device_name(&device));
            Some(device)
        }
        Err(error) => {
            // Where one is expected, a test that skips is one that fails.
            assert!(std::env::var_os("TAPER_REQUIRE_GPU").is_none(), "no GPU: {error}");
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

/// Operations of this test that went through the host.
pub fn staged() -> u64 {
    taper_nn::host_operations()
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

/// A golden model in `options`, on a device.
pub fn model(name: &str, options: LoadOptions, on: &Device) -> Box<dyn CausalLm> {
    let files = ModelFiles::of_folder(&taper_testkit::golden("models").join(name)).unwrap();
    placed(taper_models::load(&files, options).unwrap(), on)
}

/// A tiny Llama on a device.
pub fn tiny(spec: &TinySpec, options: LoadOptions, on: &Device) -> Box<dyn CausalLm> {
    let folder = tempfile::tempdir().unwrap();
    placed(taper_models::load(&tiny_checkpoint(folder.path(), spec), options).unwrap(), on)
}

fn placed(mut model: Box<dyn CausalLm>, on: &Device) -> Box<dyn CausalLm> {
    taper_nn::move_to(model.as_mut(), on, None).unwrap();
    model
}

/// A new adapter of a recipe's `[adapter]` section.
pub fn attach(model: &mut dyn CausalLm, section: &str) -> Adapter {
    let section: AdapterSection = serde_json::from_str(section).unwrap();
    assert!(section.check().is_empty());
    taper_peft::attach(model, &section.to_config("base"), "llama", 3).unwrap()
}

/// Moves every parameter a little, so that nothing is zero: the same on all devices.
pub fn stir(parameters: &[Parameter]) {
    for p in parameters {
        let noise = values(&p.name, p.var.elem_count());
        update_f32(&p.var, |values| values.iter_mut().zip(&noise).for_each(|(v, n)| *v += 0.05 * n)).unwrap();
    }
}

/// `count` examples of 4 to 19 tokens below 256; about two thirds of their tokens are learned.
pub fn examples(count: usize, seed: u64) -> Vec<TokenizedExample> {
    let one = |index: usize| {
        let rng = CounterRng::new(seed, index as u64);
        let length = 4 + rng.below(0, 16) as usize;
        let token = |at: u64| 1 + (rng.below(100 + at / 3, 40) * 6 + at % 3) as u32;
        TokenizedExample {
            input_ids: (0..length as u64).map(token).collect(),
            loss_mask: (0..length).map(|at| at >= length / 3).collect(),
            source: RowPlace { file: Arc::from(Path::new("made.jsonl")), line: index + 1, element: None },
        }
    };
    (0..count).map(one).collect()
}

/// A pass in training over four examples: the sum of the losses, and the gradient of each parameter.
pub fn pass(model: &dyn CausalLm, parameters: &[Parameter], options: &PassOptions) -> (f64, Vec<Vec<f32>>) {
    let key = RandomKey { seed: 3, step: 4, micro_batch: 1 };
    let mut gradients = Gradients::new(parameters).unwrap();
    let batch = Batch::new(&examples(4, 7));
    let pass = forward_backward(model, &batch, Some(key), options, &mut gradients).unwrap();
    assert_eq!(pass.stray, Vec::<String>::new());
    (pass.loss_sum, gradients.to_vecs().unwrap())
}

/// Loss and gradients of two passes agree within `tolerance`, and no gradient is zero.
#[track_caller]
pub fn same_pass(
    what: &str,
    parameters: &[Parameter],
    got: &(f64, Vec<Vec<f32>>),
    wanted: &(f64, Vec<Vec<f32>>),
    tolerance: f32,
) {
    let off = ((got.0 - wanted.0) / wanted.0).abs() as f32;
    assert!(off <= tolerance, "{what}: loss {} against {}", got.0, wanted.0);
    let mut worst = (0f32, "");
    for ((p, got), wanted) in parameters.iter().zip(&got.1).zip(&wanted.1) {
        assert!(wanted.iter().any(|g| *g != 0.0), "{what}: {} has a gradient", p.name);
        let off = distance(got, wanted);
        if off >= worst.0 {
            worst = (off, &p.name);
        }
    }
    println!("{what}: loss off by {off:.1e}, gradients by {:.1e}", worst.0);
    assert!(worst.0 <= tolerance, "{what}: {} is off by {}, allowed are {tolerance}", worst.1, worst.0);
}

/// The root of the mean square of what two gradients differ by, over that of the second.
pub fn relative_error(got: &[Vec<f32>], wanted: &[Vec<f32>]) -> f32 {
    let squares =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
    let (got, wanted) = (got.concat(), wanted.concat());
    let off = squares(&mut got.iter().zip(&wanted).map(|(a, b)| a - b));
    (off / squares(&mut wanted.iter().copied())).sqrt() as f32
}

/// Names and bits.
pub fn bits(parameters: &[Parameter]) -> BTreeMap<String, Vec<u32>> {
    let read = |p: &Parameter| to_vec_f32(p.var.as_tensor()).unwrap().iter().map(|v| v.to_bits()).collect();
    parameters.iter().map(|p| (p.name.clone(), read(p))).collect()
}

/// The files of a folder by their names.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: std::io::Result<fs_err::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs_err::read(&path).unwrap())
    };
    fs_err::read_dir(folder).unwrap().map(read).collect()
}
