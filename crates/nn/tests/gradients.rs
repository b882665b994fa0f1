//! Invariant 1: every op has a backward that agrees with finite differences, and no frozen weight is differentiated.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use candle_core::{DType, Device, Shape, Tensor, TensorId, Var};
use std::rc::Rc;
use taper_kernels::rng::CounterRng;
use taper_nn::ops::{self, AttentionShape, Gate, LoraDropout, LoraTerms};
use taper_nn::tape::{CollectedGradients, ParameterGradients, is_tracked, record};
use taper_nn::{ForwardContext, FrozenWeight, RotaryTables, SequenceLayout, Weight, to_vec_f32};
use taper_quant::{BlockFormat, GgmlType, QuantizedTensor};

type Result<T> = candle_core::Result<T>;

fn values(rows: usize, columns: usize, stream: u64) -> Tensor {
    let mut buffer = vec![0f32; rows * columns];
    CounterRng::new(7, stream).fill_normal(0, 1.0, &mut buffer);
    Tensor::from_vec(buffer, (rows, columns), &Device::Cpu).unwrap()
}

fn var(rows: usize, columns: usize, stream: u64) -> Var {
    Var::from_tensor(&values(rows, columns, stream)).unwrap()
}

/// The scalar whose gradient is checked: a fixed random weighting of the outputs, summed in f64.
fn weighted(y: &Tensor, weights: &[f32]) -> f64 {
    to_vec_f32(y).unwrap().iter().zip(weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
}

/// Compare the analytic gradient of every variable with central differences, element by element.
fn check(variables: &[&Var], f: impl Fn() -> Result<Tensor>) {
    let (y, tape) = record(&[], &f).unwrap();
    let mut weights = vec![0f32; y.elem_count()];
    CounterRng::new(8, 99).fill_normal(0, 1.0, &mut weights);
    let seed = Tensor::from_vec(weights.clone(), y.shape(), &Device::Cpu).unwrap();
    let mut grads = CollectedGradients::default();
    tape.backward(&y, Rc::new(seed), [], &mut grads).unwrap();
    assert_eq!(grads.count(), variables.len(), "nothing else is differentiated");
    for (which, variable) in variables.iter().enumerate() {
        let analytic = to_vec_f32(&grads.get(variable.as_tensor()).unwrap().expect("a gradient")).unwrap();
        let original = to_vec_f32(variable.as_tensor()).unwrap();
        let largest = analytic.iter().fold(0f32, |m, g| m.max(g.abs()));
        assert!(largest > 0.0, "variable {which} got a gradient of zeros");
        for i in 0..original.len() {
            let step = 1e-2f32;
            let at = |delta: f32| {
                let mut moved = original.clone();
                moved[i] += delta;
                variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).unwrap()).unwrap();
                weighted(&f().unwrap(), &weights)
            };
            // Fourth-order central difference: its error is that of f32, not of the step.
            let numeric = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step)))
                / (12.0 * f64::from(step));
            let error = (numeric - f64::from(analytic[i])).abs();
            assert!(
                error <= 2e-3 * f64::from(largest.max(1.0)),
                "variable {which}, element {i}: {} by backward, {numeric} by differences",
                analytic[i]
            );
        }
        variable.set(&Tensor::from_vec(original, variable.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

/// The output of `f`, and the gradients of its sum with respect to `variables`; nothing else may get one.
fn gradients_of_sum(variables: &[&Var], f: impl FnOnce() -> Result<Tensor>) -> (Tensor, Vec<Vec<f32>>) {
    let (y, tape) = record(&[], f).unwrap();
    let mut grads = CollectedGradients::default();
    tape.backward(&y, Rc::new(y.ones_like().unwrap()), [], &mut grads).unwrap();
    assert_eq!(grads.count(), variables.len(), "nothing else is differentiated");
    let values = |v: &&Var| to_vec_f32(&grads.get(v.as_tensor()).unwrap().unwrap()).unwrap();
    (y, variables.iter().map(values).collect())
}

fn frozen(rows: usize, columns: usize, dtype: DType) -> FrozenWeight {
    FrozenWeight::dense(&values(rows, columns, 3).to_dtype(dtype).unwrap()).unwrap()
}

#[test]
fn linear_over_a_frozen_weight() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let (x, weight) = (var(5, 7, 1), Weight::Frozen(frozen(3, 7, dtype)));
        let bias = values(1, 3, 4).flatten_all().unwrap();
        check(&[&x], || ops::linear(&x, &weight, Some(&bias), DType::F32));
    }
}

fn quantized(rows: usize, columns: usize, format: BlockFormat) -> FrozenWeight {
    let values = to_vec_f32(&values(rows, columns, 3)).unwrap();
    FrozenWeight::quantized(QuantizedTensor::quantize(&values, rows, columns, format).unwrap())
}

/// One of each family, with rows that are no multiple of a flat block.
fn quantized_weights() -> Vec<FrozenWeight> {
    vec![
        quantized(3, 7, BlockFormat::Nf4 { block_size: 64, double_quant: true }),
        quantized(5, 40, BlockFormat::Fp4 { block_size: 32, double_quant: false }),
        quantized(3, 7, BlockFormat::Int8),
        quantized(3, 32, BlockFormat::Ggml(GgmlType::Q8_0)),
        quantized(2, 256, BlockFormat::Ggml(GgmlType::Q4K)),
    ]
}

#[test]
fn linear_over_a_quantised_weight() {
    for weight in quantized_weights() {
        let (rows, columns) = weight.dims();
        let x = var(2, columns, 1);
        let bias = values(1, rows, 4).flatten_all().unwrap();
        check(&[&x], || ops::linear(&x, &Weight::Frozen(weight.clone()), Some(&bias), DType::F32));
    }
}

#[test]
fn lora_over_a_quantised_weight() {
    let terms = LoraTerms { scale: 1.7, dropout: None };
    for weight in quantized_weights() {
        let (rows, columns) = weight.dims();
        let (x, a, b) = (var(2, columns, 1), var(2, columns, 2), var(rows, 2, 4));
        check(&[&x, &a, &b], || ops::lora_linear(&x, &a, &b, &weight, None, terms.clone(), DType::F32));
    }
}

/// Forward and backward over the codes are those over the decoded values, bit for bit.
#[test]
fn a_quantised_weight_is_its_decoded_values() {
    for weight in quantized_weights() {
        let dense = FrozenWeight::dense(&weight.to_f32().unwrap()).unwrap();
        for t in [3, 9] {
            let x = var(t, weight.dims().1, 1);
            let run = |weight: &FrozenWeight| {
                let weight = Weight::Frozen(weight.clone());
                let (y, dx) = gradients_of_sum(&[&x], || ops::linear(&x, &weight, None, DType::F32));
                (to_vec_f32(&y).unwrap(), dx)
            };
            assert_eq!(run(&weight), run(&dense));
        }
    }
}

#[test]
fn rows_of_a_quantised_embedding_are_decoded() {
    for weight in quantized_weights() {
        let dense = to_vec_f32(&weight.to_f32().unwrap()).unwrap();
        let width = weight.dims().1;
        let looked_up = ops::embedding(&[1, 0, 1], &Weight::Frozen(weight)).unwrap();
        let expected = [&dense[width..2 * width], &dense[..width], &dense[width..2 * width]].concat();
        assert_eq!(to_vec_f32(&looked_up).unwrap(), expected);
    }
}

#[test]
fn linear_over_a_trained_weight() {
    let (x, w) = (var(5, 7, 1), var(3, 7, 2));
    check(&[&x, &w], || ops::linear(&x, &Weight::Trainable(w.clone()), None, DType::F32));
}

#[test]
fn a_frozen_weight_gets_no_gradient() {
    let (x, w) = (var(5, 7, 1), frozen(3, 7, DType::F32));
    let weight = Weight::Frozen(w);
    let (_, dx) = gradients_of_sum(&[&x], || ops::linear(&x, &weight, None, DType::F32));
    assert!(dx[0].iter().any(|g| *g != 0.0));
}

#[test]
fn lora_over_a_frozen_weight() {
    let (x, a, b) = (var(5, 7, 1), var(2, 7, 2), var(3, 2, 4));
    let terms = LoraTerms { scale: 1.7, dropout: None };
    for dtype in [DType::F32, DType::BF16] {
        let weight = frozen(3, 7, dtype);
        check(&[&x, &a, &b], || ops::lora_linear(&x, &a, &b, &weight, None, terms.clone(), DType::F32));
    }
    check(&[&x, &a, &b], || ops::lora_delta(&x, &a, &b, terms.clone(), DType::F32));
}

#[test]
fn lora_with_dropout_draws_the_same_mask_in_the_backward() {
    let (x, a, b) = (var(9, 7, 1), var(2, 7, 2), var(3, 2, 4));
    let weight = frozen(3, 7, DType::F32);
    let dropout = Some(LoraDropout { p: 0.4, rng: CounterRng::new(1, 2) });
    let terms = LoraTerms { scale: 0.5, dropout };
    check(&[&x, &a, &b], || ops::lora_linear(&x, &a, &b, &weight, None, terms.clone(), DType::F32));
}

#[test]
fn lora_equals_its_plain_formula() {
    let (x, a, b, weight) = (values(5, 7, 1), values(2, 7, 2), values(3, 2, 4), frozen(3, 7, DType::F32));
    let fused =
        ops::lora_linear(&x, &a, &b, &weight, None, LoraTerms { scale: 1.7, dropout: None }, DType::F32)
            .unwrap();
    let delta = x.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap();
    let plain =
        (x.matmul(&weight.to_dense().unwrap().t().unwrap()).unwrap() + (delta * 1.7).unwrap()).unwrap();
    for (f, p) in to_vec_f32(&fused).unwrap().iter().zip(to_vec_f32(&plain).unwrap()) {
        assert!((f - p).abs() < 1e-4, "{f} against {p}");
    }
}

#[test]
fn rms_norm_frozen_trained_and_per_head() {
    let (x, w) = (var(4, 10, 1), Var::from_tensor(&values(1, 5, 2).flatten_all().unwrap()).unwrap());
    for offset in [0.0, 1.0] {
        check(&[&x], || ops::rms_norm(&x, &w.as_detached_tensor(), 1e-5, offset, DType::F32));
        check(&[&x, &w], || ops::rms_norm_trainable(&x, &w, 1e-5, offset, DType::F32));
    }
}

#[test]
fn rope_of_part_of_a_head() {
    let angles = values(6, 2, 5);
    let tables = RotaryTables { cos: angles.cos().unwrap(), sin: angles.sin().unwrap() };
    let x = var(6, 2 * 6, 1);
    check(&[&x], || ops::rope(&x, &tables, 6));
}

#[test]
fn gated_activations() {
    let (gate, up) = (var(4, 6, 1), var(4, 6, 2));
    for f in [Gate::Silu, Gate::GeluTanh] {
        check(&[&gate, &up], || ops::gated(&gate, &up, f));
    }
}

#[test]
fn what_nothing_trained_came_before_gets_no_gradient_from_a_gate() {
    let (gate, up) = (var(4, 6, 1), values(4, 6, 2));
    gradients_of_sum(&[&gate], || ops::gated(&gate, &up, Gate::Silu));
    gradients_of_sum(&[&gate], || ops::gated(&up, &gate, Gate::Silu));
}

#[test]
fn columns_of_a_fused_projection() {
    let x = var(4, 7, 1);
    for range in [0..3, 2..5, 6..7, 0..7] {
        let y = ops::columns(&x, range.clone()).unwrap();
        let narrowed = x.narrow(1, range.start, range.len()).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), narrowed.to_vec2::<f32>().unwrap());
        check(&[&x], || ops::columns(&x, range.clone()));
    }
    // Both parts of one product, as a layer uses them.
    check(&[&x], || ops::gated(&ops::columns(&x, 0..3)?, &ops::columns(&x, 3..6)?, Gate::Silu));
    assert!(ops::columns(&x, 3..8).unwrap_err().to_string().contains("3..8"));
    assert!(ops::columns(&x, 3..3).is_err());
}

#[test]
fn experts_are_chosen_weighted_and_mixed() {
    let (tokens, experts, k, width) = (7, 5, 2, 3);
    // Far enough apart for the differences not to change the choice.
    let spread = (values(tokens, experts, 1) * 4.0).unwrap();
    let logits = Var::from_tensor(&spread).unwrap();
    let (x, routing) = (var(tokens, width, 2), ops::Routing::top_k(&logits, k).unwrap());
    // The same values, but no variable.
    let still = values(tokens, width, 2);
    let factors: Vec<f64> = (0..experts).map(|e| 0.5 + e as f64).collect();
    let reached: Vec<usize> = (0..experts).filter(|e| !routing.tokens_of(*e).is_empty()).collect();
    let some_are_constant = |constant: &[usize], logits: &Tensor, normalised| {
        let part = |e: &usize| {
            let x = if constant.contains(e) { &still } else { x.as_tensor() };
            Ok((*e, ops::scale(&ops::rows(x, routing.tokens_of(*e))?, factors[*e])?))
        };
        let parts = reached.iter().map(part).collect::<Result<Vec<_>>>()?;
        ops::mix_experts(&parts, &ops::routing_weights(logits, &routing, normalised)?, &routing)
    };
    for normalised in [true, false] {
        check(&[&x, &logits], || some_are_constant(&[], &logits, normalised));
        check(&[&logits], || some_are_constant(&reached, &logits, normalised));
        check(&[&x, &logits], || {
            let y = some_are_constant(&reached[1..], &logits, normalised)?;
            ops::add(&y, &some_are_constant(&reached, &logits, normalised)?)
        });
    }
    check(&[&x], || some_are_constant(&[], &logits.as_detached_tensor(), true));

    let mixed = some_are_constant(&reached[1..], &logits, true).unwrap();
    assert_eq!(mixed.to_vec2::<f32>().unwrap(), {
        let all = some_are_constant(&[], &logits, true).unwrap();
        all.to_vec2::<f32>().unwrap()
    });
    gradients_of_sum(&[&x, &logits], || some_are_constant(&reached[1..], &logits, true));
    assert!(ops::Routing::top_k(&logits, 6).is_err() && ops::rows(&x, vec![7]).is_err());
}

#[test]
fn soft_caps() {
    let x = var(4, 6, 1);
    for cap in [0.5, 3.0] {
        check(&[&x], || ops::soft_cap(&x, cap));
        assert!(to_vec_f32(&ops::soft_cap(&x, cap).unwrap()).unwrap().iter().all(|y| y.abs() <= cap));
    }
}

#[test]
fn attention_over_segments_with_grouped_heads_window_and_soft_cap() {
    let layout = SequenceLayout::from_lengths(&[1, 5, 3]);
    for (window, soft_cap) in [(None, None), (Some(2), None), (None, Some(1.5))] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 3, scale: 0.6, window, soft_cap };
        let (q, k, v) = (var(9, 12, 1), var(9, 6, 2), var(9, 6, 3));
        check(&[&q, &k, &v], || ops::attention(&q, &k, &v, 0, &shape, &mut ForwardContext::new(&layout)));
    }
}

#[test]
fn embedding_rows_gather_their_gradients() {
    let table = var(6, 4, 1);
    check(&[&table], || ops::embedding(&[3, 0, 3, 5], &Weight::Trainable(table.clone())));
    assert!(ops::embedding(&[6], &Weight::Trainable(table)).unwrap_err().to_string().contains("6"));
}

#[test]
fn cross_entropy_gradient_is_that_of_the_sum() {
    let logits = var(4, 9, 1);
    let targets = [0u32, 8, 3, 3];
    let (losses, gradient) =
        ops::cross_entropy_with_gradient(logits.as_tensor().copy().unwrap(), &targets).unwrap();
    let again = ops::cross_entropy(&logits, &targets).unwrap();
    assert_eq!(losses.losses().unwrap(), again.losses().unwrap());
    let (analytic, original) = (to_vec_f32(&gradient).unwrap(), to_vec_f32(&logits).unwrap());
    for i in 0..original.len() {
        let at = |delta: f32| {
            let mut moved = original.clone();
            moved[i] += delta;
            let moved = Tensor::from_vec(moved, (4, 9), &Device::Cpu).unwrap();
            ops::cross_entropy(&moved, &targets).unwrap().sum().unwrap()
        };
        let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((numeric - f64::from(analytic[i])).abs() < 1e-3, "element {i}");
    }
}

#[test]
fn a_cached_pass_refuses_a_trained_input() {
    let layout = SequenceLayout::single(2);
    let mut cache = taper_nn::KvCache::new(1);
    let shape =
        AttentionShape { heads: 1, kv_heads: 1, head_dim: 4, scale: 0.5, window: None, soft_cap: None };
    let (q, k) = (var(2, 4, 1), values(2, 4, 2));
    let mut ctx = ForwardContext::cached(&layout, vec![&mut cache]);
    assert!(record(&[], || ops::attention(&q, &k, &k, 0, &shape, &mut ctx)).is_err());
}

#[test]
fn sums_multiples_and_biases() {
    let (x, y) = (var(4, 6, 1), var(4, 6, 2));
    let bias = Var::from_tensor(&values(1, 6, 3).flatten_all().unwrap()).unwrap();
    check(&[&x, &y], || ops::add(&x, &y));
    check(&[&x], || ops::add(&x, &x));
    check(&[&x], || ops::scale(&x, -1.5));
    check(&[&x, &bias], || ops::add_bias(&x, &bias));
}

/// A block in small: an input read by two layers and by the sum behind them, a norm and a gate that are made again in the backward.
#[test]
fn gradients_of_shared_inputs_add_up_through_what_is_made_again() {
    let gain = values(1, 6, 9).flatten_all().unwrap();
    let weights: Vec<Weight> = (0..2).map(|_| Weight::Frozen(frozen(6, 6, DType::F32))).collect();
    let (a, b) = (var(2, 6, 2), var(6, 2, 4));
    let block = |x: &Tensor| {
        let normed = ops::rms_norm(x, &gain, 1e-5, 0.0, DType::F32)?;
        let terms = LoraTerms { scale: 0.7, dropout: None };
        let Weight::Frozen(first) = &weights[0] else { unreachable!() };
        let gate = ops::lora_linear(&normed, &a, &b, first, None, terms.clone(), DType::F32)?;
        let up = ops::linear(&normed, &weights[1], None, DType::F32)?;
        let gated = ops::gated(&gate, &up, Gate::Silu)?;
        ops::add(x, &ops::lora_linear(&gated, &a, &b, first, None, terms, DType::F32)?)
    };
    let x = var(3, 6, 1);
    check(&[&x, &a, &b], || block(x.as_tensor()));

    // A leaf gets what a variable gets, and what is cheap is not kept.
    let leaf = x.as_detached_tensor();
    let (y, tape) = record(&[&leaf], || block(&leaf)).unwrap();
    // x, gate, up, of 3 x 6 each, and the gain.
    assert_eq!(tape.kept_bytes(), 4 * (3 * 18 + 6), "{tape:?}");
    let mut grads = CollectedGradients::default();
    let [dx] = tape.backward(&y, Rc::new(y.ones_like().unwrap()), [&leaf], &mut grads).unwrap();
    let (_, wanted) = gradients_of_sum(&[&x, &a, &b], || block(x.as_tensor()));
    assert_eq!(to_vec_f32(&dx.unwrap()).unwrap(), wanted[0]);
    assert_eq!(to_vec_f32(&grads.get(&a).unwrap().unwrap()).unwrap(), wanted[1]);
}

#[test]
fn outside_a_recording_nothing_is_tracked_and_one_thread_records_once() {
    let x = var(2, 2, 1);
    assert!(!is_tracked(&x));
    let inner = record(&[], || {
        assert!(is_tracked(&x));
        record(&[], || Ok(())).map(|_| ())
    });
    assert!(inner.unwrap_err().to_string().contains("records already"));
    assert!(!is_tracked(&x), "an error ends the recording");
}

/// In bf16 the same gradients come out, to the precision of bf16: every op that takes bf16, one after the other.
#[test]
fn gradients_in_bf16_follow_those_in_f32() {
    let (t, h) = (9, 32);
    let gain = values(1, h, 9).flatten_all().unwrap().affine(0.1, 1.0).unwrap();
    let weight = frozen(h, h, DType::BF16);
    let layout = SequenceLayout::from_lengths(&[4, 5]);
    let angles = values(t, 4, 5);
    let tables = RotaryTables { cos: angles.cos().unwrap(), sin: angles.sin().unwrap() };
    let shape =
        AttentionShape { heads: 4, kv_heads: 4, head_dim: 8, scale: 0.3, window: None, soft_cap: None };
    let (x, a, b) = (var(t, h, 1), var(4, h, 2), var(h, 4, 4));
    let scaled = |x: &Tensor| ops::scale(x, 0.2);
    let block = |dtype: DType| {
        let normed = ops::rms_norm(&x, &gain, 1e-5, 0.0, dtype)?;
        let terms = LoraTerms { scale: 0.5, dropout: None };
        let q = scaled(&ops::lora_linear(&normed, &a, &b, &weight, None, terms, dtype)?)?;
        let v = scaled(&ops::linear(&normed, &Weight::Frozen(weight.clone()), None, dtype)?)?;
        let mixed = ops::attention(
            &ops::rope(&q, &tables, 8)?,
            &q,
            &v,
            0,
            &shape,
            &mut ForwardContext::new(&layout),
        )?;
        let parts = (ops::columns(&mixed, 0..16)?, ops::columns(&mixed, 16..32)?);
        ops::cast(&ops::gated(&parts.0, &parts.1, Gate::GeluTanh)?, DType::F32)
    };
    let (y, wanted) = gradients_of_sum(&[&x, &a, &b], || block(DType::F32));
    let (short, got) = gradients_of_sum(&[&x, &a, &b], || block(DType::BF16));
    let off = |got: &[f32], wanted: &[f32]| {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        norm(&mut got.iter().zip(wanted).map(|(g, w)| g - w)) / norm(&mut wanted.iter().copied())
    };
    let y_off = off(&to_vec_f32(&short).unwrap(), &to_vec_f32(&y).unwrap());
    assert!(y_off > 0.0 && y_off < 0.02, "output off by {y_off}");
    for (got, wanted) in got.iter().zip(&wanted) {
        assert!(off(got, wanted) < 0.03, "gradient off by {}", off(got, wanted));
    }
}

/// Takes the gradients of some variables only.
struct Only<'a>(&'a [&'a Var], CollectedGradients);

impl ParameterGradients for Only<'_> {
    fn sum(&mut self, id: TensorId, shape: &Shape) -> Option<&Tensor> {
        let is_wanted = self.0.iter().any(|variable| variable.as_tensor().id() == id);
        if is_wanted { self.1.sum(id, shape) } else { None }
    }

    fn stray(&mut self, _shape: &Shape) {}
}

/// Some operations make several gradients at once; that nobody takes one of them must not leave the others undone.
#[test]
fn a_gradient_that_nobody_takes_leaves_the_others_whole() {
    let (x, a, b, weight) = (var(5, 7, 1), var(2, 7, 2), var(3, 2, 4), frozen(3, 7, DType::F32));
    let terms = LoraTerms { scale: 1.7, dropout: None };
    let layer = || ops::lora_linear(&x, &a, &b, &weight, None, terms.clone(), DType::F32);
    let (gate, up) = (var(4, 6, 1), var(4, 6, 2));
    let gated = || ops::gated(&gate, &up, Gate::Silu);
    let only = |wanted: &[&Var], f: &dyn Fn() -> Result<Tensor>| -> Vec<Vec<f32>> {
        let (y, tape) = record(&[], f).unwrap();
        let mut to = Only(wanted, CollectedGradients::default());
        tape.backward(&y, Rc::new(y.ones_like().unwrap()), [], &mut to).unwrap();
        wanted.iter().map(|v| to_vec_f32(&to.1.get(v.as_tensor()).unwrap().unwrap()).unwrap()).collect()
    };
    assert_eq!(only(&[&a, &b], &layer), gradients_of_sum(&[&x, &a, &b], layer).1[1..]);
    assert_eq!(only(&[&up], &gated), gradients_of_sum(&[&gate, &up], gated).1[1..]);
}

#[test]
fn factors_of_columns_frozen_and_divided() {
    for divisors in [None, Some(vec![2.0, 0.5, 1.5, 3.0])] {
        let (x, v) = (var(5, 4, 1), var(4, 1, 2));
        check(&[&x, &v], || ops::scale_columns(&x, &v, divisors.clone()));
        let x = values(5, 4, 1);
        check(&[&v], || ops::scale_columns(&x, &v, divisors.clone()));
    }
    assert!(ops::scale_columns(&values(2, 3, 1), &values(1, 2, 2), None).is_err());
}

#[test]
fn products_that_make_a_weight() {
    let (a, b) = (var(5, 3, 1), var(3, 4, 2));
    check(&[&a, &b], || ops::matmul(&a, &b));
    let (x, y) = (var(3, 4, 1), var(3, 4, 2));
    check(&[&x, &y], || ops::multiply(&x, &y));
    check(&[&x], || ops::multiply(&x, &x));
    let (a, b) = (var(2, 3, 1), var(4, 2, 2));
    check(&[&a, &b], || ops::kronecker(&a, &b));
    let (x, w) = (var(5, 3, 1), var(4, 3, 2));
    check(&[&x, &w], || ops::linear_over(&x, &w, DType::F32));
    assert!(ops::matmul(&a, &x).is_err() && ops::multiply(&a, &x).is_err());
}

#[test]
fn dropout_draws_the_same_mask_in_the_backward() {
    let x = var(6, 5, 1);
    let dropout = LoraDropout { p: 0.4, rng: CounterRng::new(3, 4) };
    check(&[&x], || ops::dropout(&x, dropout.clone()));
}

#[test]
fn tokens_with_rows_of_their_own() {
    let matrix = var(3, 7, 1);
    check(&[&matrix], || ops::embedding_columns(&[6, 0, 3, 3], &matrix));
    let (x, rows) = (var(5, 4, 1), var(2, 4, 2));
    check(&[&x, &rows], || ops::replace_rows(&x, &rows, vec![(0, 1), (3, 1), (4, 0)]));
    let (x, y) = (var(3, 6, 1), var(3, 2, 2));
    check(&[&x, &y], || ops::replace_columns(&x, &y, &[4, 1]));
    assert!(ops::embedding_columns(&[7], &matrix).is_err());
    assert!(ops::replace_rows(&x, &rows, vec![(0, 0)]).is_err());
    assert!(ops::replace_columns(&x, &y, &[4, 6]).is_err());
}

#[test]
fn row_norms_are_those_of_the_sum() {
    let (a, b) = (values(3, 40, 1), values(6, 3, 2));
    for weight in [frozen(6, 40, DType::F32), quantized(6, 40, BlockFormat::Int8)] {
        let squares = ops::row_squares(&weight).unwrap();
        let norms = ops::adapted_row_norms(&weight, &squares, &a, &b, 0.7).unwrap();
        let delta = (b.matmul(&a).unwrap() * 0.7).unwrap();
        let sum = weight.to_f32().unwrap().add(&delta).unwrap();
        let want = sum.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().to_vec1::<f32>().unwrap();
        assert!(norms.iter().zip(&want).all(|(n, w)| (n - w).abs() <= 1e-6 * w), "{norms:?} and {want:?}");
    }
}
