//! Every operation that has a kernel: output and gradients against the CPU, in f32 and bf16, at odd sizes.

use crate::support::{agrees, device, tensor, values};
use candle_core::{DType, Device, Tensor};
use taper_nn::ops::{self, AttentionShape, Gate, LoraDropout, LoraTerms};
use taper_nn::{ForwardContext, FrozenWeight, RotaryTables, SequenceLayout, Weight, to_device};

const F32: DType = DType::F32;
const BF16: DType = DType::BF16;
/// Of sums of some hundred terms in another order.
const EXACT: f32 = 2e-5;
/// Of one rounding to bf16 more or less, and of sums over such.
const ROUNDED: f32 = 1.5e-2;

fn tolerance(dtype: DType) -> f32 {
    if dtype == BF16 { ROUNDED } else { EXACT }
}

#[test]
fn gpu_sums_and_multiples() {
    for (a, b) in [(F32, F32), (F32, BF16), (BF16, F32), (BF16, BF16)] {
        agrees("add", &[(&[33, 70], a), (&[33, 70], b)], tolerance(BF16), |x| ops::add(&x[0], &x[1]));
    }
    for dtype in [F32, BF16] {
        agrees("scale", &[(&[7, 129], dtype)], tolerance(dtype), |x| ops::scale(&x[0], 0.37));
        agrees("cast", &[(&[5, 33], dtype)], tolerance(BF16), |x| ops::cast(&x[0], BF16));
        let soft = |x: &[Tensor]| ops::add_bias(&x[0], &x[1]);
        agrees("bias", &[(&[300, 65], dtype), (&[65], F32)], tolerance(dtype), soft);
        agrees("columns", &[(&[9, 50], dtype)], tolerance(dtype), |x| {
            ops::add(&ops::columns(&x[0], 3..20)?, &ops::columns(&x[0], 33..50)?)
        });
    }
    agrees("soft cap", &[(&[5, 301], F32)], EXACT, |x| ops::soft_cap(&x[0], 2.5));
}

#[test]
fn gpu_norms() {
    for (rows, h) in [(1, 1), (5, 33), (300, 64), (3, 1000)] {
        for (from, to) in [(F32, F32), (F32, BF16), (BF16, BF16)] {
            for offset in [0.0, 1.0] {
                agrees("norm", &[(&[rows, h], from), (&[h], F32)], tolerance(to), |x| {
                    ops::add(&ops::rms_norm(&x[0], &x[1], 1e-5, offset, to)?, &ops::scale(&x[0], 0.5)?)
                });
            }
        }
    }
    let Some(gpu) = device() else { return };
    // The trained gain, with more rows than one block sums.
    let outcome = |on: &Device| {
        let gain = candle_core::Var::from_tensor(&to_device(&tensor("gain", &[40]), on).unwrap()).unwrap();
        let x = to_device(&tensor("x", &[700, 40]), on).unwrap();
        let (y, tape) =
            taper_nn::tape::record(&[], || ops::rms_norm_trainable(&x, &gain, 1e-6, 0.0, F32)).unwrap();
        let seed = to_device(&tensor("seed", &[700, 40]), on).unwrap();
        let mut to = taper_nn::tape::CollectedGradients::on(on);
        tape.backward(&y, std::rc::Rc::new(seed), [], &mut to).unwrap();
        taper_nn::to_vec_f32(&to.get(gain.as_tensor()).unwrap().unwrap()).unwrap()
    };
    let off = crate::support::distance(&outcome(gpu), &outcome(&Device::Cpu));
    assert!(off < EXACT, "gain's gradient is off by {off}");
}

#[test]
fn gpu_gated_activations() {
    for gate in [Gate::Silu, Gate::GeluTanh] {
        for dtype in [F32, BF16] {
            let shape: &[usize] = &[17, 93];
            agrees("gate", &[(shape, dtype), (shape, dtype)], tolerance(dtype), |x| {
                ops::gated(&x[0], &x[1], gate)
            });
        }
    }
}

#[test]
fn gpu_rotary_embedding() {
    for (t, heads, head_dim, half) in [(1, 1, 2, 1), (9, 3, 16, 8), (33, 2, 20, 5)] {
        let angles = values("angles", t * half);
        let table = |f: fn(f32) -> f32| {
            Tensor::from_vec(angles.iter().map(|a| f(*a)).collect::<Vec<_>>(), (t, half), &Device::Cpu)
                .unwrap()
        };
        let tables = RotaryTables { cos: table(f32::cos), sin: table(f32::sin) };
        for dtype in [F32, BF16] {
            agrees("rope", &[(&[t, heads * head_dim], dtype)], tolerance(dtype), |x| {
                ops::rope(&x[0], &tables.on_device_of(&x[0])?, head_dim)
            });
        }
    }
}

#[test]
fn gpu_dropout_has_the_bits_of_the_cpu() {
    let rng = taper_kernels::rng::CounterRng::new(5, 9);
    for (dtype, n) in [(F32, 1), (F32, 1023), (BF16, 4097)] {
        agrees("dropout", &[(&[1, n], dtype)], 0.0, |x| ops::dropout(&x[0], LoraDropout { p: 0.3, rng }));
    }
}

fn weight(dtype: DType, n_out: usize, n_in: usize, on: &Device) -> FrozenWeight {
    let dense = ops::scale(&tensor("weight", &[n_out, n_in]), 0.2).unwrap().to_dtype(dtype).unwrap();
    FrozenWeight::dense(&dense).unwrap().to_device(on).unwrap()
}

#[test]
fn gpu_linear_layers() {
    for (t, n_in, n_out) in [(1, 16, 24), (33, 40, 17), (70, 64, 129)] {
        for (held, dtype, output) in
            [(F32, F32, F32), (BF16, F32, F32), (BF16, BF16, BF16), (BF16, BF16, F32)]
        {
            for on_host in [false, true] {
                agrees("linear", &[(&[t, n_in], dtype)], tolerance(dtype), |x| {
                    // A weight that stays on the host is streamed.
                    let on = if on_host { &Device::Cpu } else { x[0].device() };
                    let weight = Weight::Frozen(weight(held, n_out, n_in, on));
                    ops::linear(&x[0], &weight, Some(&tensor("bias", &[n_out])), output)
                });
            }
            let terms = |p: f32| LoraTerms {
                scale: 1.5,
                dropout: (p > 0.0).then(|| LoraDropout { p, rng: taper_kernels::rng::CounterRng::new(3, 4) }),
            };
            for p in [0.0, 0.25] {
                let shapes: &[(&[usize], DType)] =
                    &[(&[t, n_in], dtype), (&[5, n_in], F32), (&[n_out, 5], F32)];
                agrees("lora", shapes, tolerance(dtype), |x| {
                    let weight = weight(held, n_out, n_in, x[0].device());
                    ops::lora_linear(&x[0], &x[1], &x[2], &weight, None, terms(p), output)
                });
                agrees("delta", shapes, tolerance(dtype), |x| {
                    ops::lora_delta(&x[0], &x[1], &x[2], terms(p), output)
                });
            }
        }
        for dtype in [F32, BF16] {
            agrees("trained", &[(&[t, n_in], dtype), (&[n_out, n_in], F32)], tolerance(dtype), |x| {
                ops::linear_over(&x[0], &x[1], F32)
            });
        }
    }
}

#[test]
fn gpu_attention() {
    let layout = SequenceLayout::from_lengths(&[1, 5, 33, 70]);
    let t = layout.tokens();
    for (heads, kv_heads, head_dim) in [(2, 1, 16), (4, 2, 64), (2, 2, 40)] {
        for (window, soft_cap) in [(None, None), (Some(7), None), (None, Some(1.5))] {
            let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.25, window, soft_cap };
            for dtype in [F32, BF16] {
                let (queries, keys) = ([t, heads * head_dim], [t, kv_heads * head_dim]);
                let inputs: &[(&[usize], DType)] = &[(&queries, dtype), (&keys, dtype), (&keys, dtype)];
                agrees(&format!("attention {shape:?}"), inputs, 2.0 * tolerance(dtype), |x| {
                    ops::attention(&x[0], &x[1], &x[2], 0, &shape, &mut ForwardContext::new(&layout))
                });
            }
        }
    }
}

#[test]
fn gpu_embedding_and_loss() {
    let ids = [3u32, 0, 3, 12, 7, 3];
    let Some(gpu) = device() else { return };
    let trained = |on: &Device| {
        let table =
            candle_core::Var::from_tensor(&to_device(&tensor("table", &[13, 40]), on).unwrap()).unwrap();
        let look_up = || ops::embedding(&ids, &Weight::Trainable(table.clone()));
        let (y, tape) = taper_nn::tape::record(&[], look_up).unwrap();
        let seed = to_device(&tensor("seed", &[6, 40]), on).unwrap();
        let mut to = taper_nn::tape::CollectedGradients::on(on);
        tape.backward(&y, std::rc::Rc::new(seed), [], &mut to).unwrap();
        let gradient = to.get(table.as_tensor()).unwrap().unwrap();
        [y, gradient].map(|t| taper_nn::to_vec_f32(&t).unwrap())
    };
    assert_eq!(trained(gpu), trained(&Device::Cpu));
    for dtype in [F32, BF16, DType::F16] {
        let table = tensor("table", &[13, 40]).to_dtype(dtype).unwrap();
        let frozen = FrozenWeight::dense(&table).unwrap();
        let rows = |weight: FrozenWeight| {
            taper_nn::to_vec_f32(&ops::embedding(&ids, &Weight::Frozen(weight)).unwrap()).unwrap()
        };
        assert_eq!(rows(frozen.to_device(gpu).unwrap()), rows(frozen));
    }
    let logits = ops::scale(&tensor("logits", &[6, 1000]), 3.0).unwrap();
    let there = to_device(&logits, gpu).unwrap();
    let wanted = ops::cross_entropy(&logits, &ids).unwrap().losses().unwrap();
    assert!(
        crate::support::distance(&ops::cross_entropy(&there, &ids).unwrap().losses().unwrap(), &wanted)
            < EXACT
    );
    let (losses, gradient) = ops::cross_entropy_with_gradient(there, &ids).unwrap();
    let (_, wanted_gradient) = ops::cross_entropy_with_gradient(logits.copy().unwrap(), &ids).unwrap();
    assert!(crate::support::distance(&losses.losses().unwrap(), &wanted) < EXACT);
    let vec = |t: &Tensor| taper_nn::to_vec_f32(t).unwrap();
    assert!(crate::support::distance(&vec(&gradient), &vec(&wanted_gradient)) < EXACT);
}

#[test]
fn gpu_rows_are_taken_and_put_back() {
    let Some(gpu) = device() else { return };
    let x = tensor("x", &[9, 33]);
    let rows = [8u32, 0, 5];
    let there = ops::take_rows(&to_device(&x, gpu).unwrap(), &rows).unwrap();
    let vec = |t: &Tensor| taper_nn::to_vec_f32(t).unwrap();
    assert_eq!(vec(&there), vec(&ops::take_rows(&x, &rows).unwrap()));
    let mut back = ops::zeros_like(&to_device(&x, gpu).unwrap()).unwrap();
    ops::put_rows(&there, &rows, &mut back).unwrap();
    let mut wanted = ops::zeros_like(&x).unwrap();
    ops::put_rows(&ops::take_rows(&x, &rows).unwrap(), &rows, &mut wanted).unwrap();
    assert_eq!(vec(&back), vec(&wanted));
}
