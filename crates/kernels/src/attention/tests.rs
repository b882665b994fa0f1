//! The blockwise kernel against the plain twin, its gradients against finite differences, the cache against the whole.

use super::*;
use crate::plain;
use crate::testing::{Dice, assert_close, assert_same_for_any_threads, poisoned, random};

fn segments(lengths: &[usize]) -> Vec<Segment> {
    let mut q_start = 0;
    let mut cut = |&q_len: &usize| {
        let segment = Segment { q_start, q_len };
        q_start += q_len;
        segment
    };
    lengths.iter().map(&mut cut).collect()
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
        window: None,
        soft_cap: None,
    }
}

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
}

fn inputs(t: usize, shape: &AttentionShape, stream: u64) -> Inputs {
    let scaled = |n: usize, by: f32, stream| random(n, stream).iter().map(|x| x * by).collect();
    Inputs {
        q: scaled(t * shape.query_width(), 3.0, 4 * stream),
        k: scaled(t * shape.kv_width(), 3.0, 4 * stream + 1),
        v: random(t * shape.kv_width(), 4 * stream + 2),
        g: random(t * shape.query_width(), 4 * stream + 3),
    }
}

fn forward(x: &Inputs, segments: &[Segment], shape: &AttentionShape) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut lse) = (poisoned(x.q.len()), poisoned(x.q.len() / shape.head_dim));
    attention_forward(&x.q, &x.k, &x.v, segments, shape, &mut out, &mut lse);
    (out, lse)
}

fn backward(x: &Inputs, segments: &[Segment], shape: &AttentionShape) -> [Vec<f32>; 3] {
    let (out, lse) = forward(x, segments, shape);
    let (mut dq, mut dk, mut dv) = (poisoned(x.q.len()), poisoned(x.k.len()), poisoned(x.v.len()));
    attention_backward(&x.g, &x.q, &x.k, &x.v, &out, &lse, segments, shape, &mut dq, &mut dk, &mut dv);
    [dq, dk, dv]
}

/// Every head width and group of interest, with and without window and cap, over segments long and short.
fn cases() -> Vec<(AttentionShape, Vec<usize>)> {
    let mut dice = Dice::new(1);
    let mut cases = Vec::new();
    for head_dim in [1, 24, 32, 64, 96] {
        for (heads, kv_heads) in [(2, 2), (4, 2), (4, 1), (6, 2)] {
            for (window, soft_cap) in
                [(None, None), (Some(1), None), (Some(37), Some(4.0)), (None, Some(20.0))]
            {
                let lengths = vec![
                    1,
                    dice.between(2, 40),
                    dice.one_of(&[127, 128, 129, 150, 300]),
                    1,
                    dice.between(1, 9),
                ];
                cases
                    .push((AttentionShape { window, soft_cap, ..shape(heads, kv_heads, head_dim) }, lengths));
            }
        }
    }
    cases
}

#[test]
fn forward_equals_the_plain_twin() {
    for (stream, (shape, lengths)) in cases().into_iter().enumerate() {
        let segments = segments(&lengths);
        let x = inputs(lengths.iter().sum(), &shape, stream as u64);
        let (out, lse) = forward(&x, &segments, &shape);
        let (want_out, want_lse) = plain::attention(
            &plain::widen(&x.q),
            &plain::widen(&x.k),
            &plain::widen(&x.v),
            &segments,
            &shape,
        );
        assert_close(&out, &want_out, 1e-5, &format!("out of {shape:?} {lengths:?}"));
        assert_close(&lse, &want_lse, 1e-5, &format!("lse of {shape:?} {lengths:?}"));
    }
}

#[test]
fn gradients_equal_finite_differences_of_the_plain_twin() {
    for (stream, (heads, kv_heads, head_dim)) in
        [(2, 2, 3), (4, 2, 4), (4, 1, 5), (3, 3, 1)].into_iter().enumerate()
    {
        for (window, soft_cap) in [(None, None), (Some(1), None), (Some(3), Some(2.0)), (None, Some(2.0))] {
            let shape = AttentionShape { window, soft_cap, ..shape(heads, kv_heads, head_dim) };
            let segments = segments(&[5, 1, 4]);
            let x = inputs(10, &shape, stream as u64);
            let [dq, dk, dv] = backward(&x, &segments, &shape);
            let (q, k, v, g) =
                (plain::widen(&x.q), plain::widen(&x.k), plain::widen(&x.v), plain::widen(&x.g));
            let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
                plain::attention(q, k, v, &segments, &shape).0.iter().zip(&g).map(|(o, g)| o * g).sum()
            };
            assert_close(
                &dq,
                &plain::numeric_gradient(&q, |q| loss(q, &k, &v)),
                1e-5,
                &format!("dq of {shape:?}"),
            );
            assert_close(
                &dk,
                &plain::numeric_gradient(&k, |k| loss(&q, k, &v)),
                1e-5,
                &format!("dk of {shape:?}"),
            );
            assert_close(
                &dv,
                &plain::numeric_gradient(&v, |v| loss(&q, &k, v)),
                1e-5,
                &format!("dv of {shape:?}"),
            );
        }
    }
}

/// Directional derivatives, which reach the sizes where several tiles meet.
#[test]
fn gradients_of_many_tiles_point_where_the_loss_rises() {
    for (stream, (shape, lengths)) in cases().into_iter().enumerate().filter(|(i, _)| i % 5 == 0) {
        let segments = segments(&lengths);
        let x = inputs(lengths.iter().sum(), &shape, stream as u64);
        let gradients = backward(&x, &segments, &shape);
        let tensors = [&x.q, &x.k, &x.v].map(|x| plain::widen(x));
        for which in 0..3 {
            let direction = plain::widen(&random(tensors[which].len(), 1000 + which as u64));
            let loss = |step: f64| -> f64 {
                let mut moved = tensors.clone();
                moved[which].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                let out = plain::attention(&moved[0], &moved[1], &moved[2], &segments, &shape).0;
                out.iter().zip(&x.g).map(|(o, &g)| o * f64::from(g)).sum()
            };
            let want = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            let got: f64 = gradients[which].iter().zip(&direction).map(|(&g, d)| f64::from(g) * d).sum();
            let size: f64 = gradients[which].iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            assert!(
                (got - want).abs() <= 1e-5 * (1.0 + size),
                "tensor {which} of {shape:?} {lengths:?}: {got} and not {want}"
            );
        }
    }
}

#[test]
fn packed_sequences_are_bit_equal_to_separate_ones() {
    let shape = AttentionShape { window: Some(50), ..shape(4, 2, 24) };
    let lengths = [70usize, 1, 200];
    let packed = segments(&lengths);
    let x = inputs(271, &shape, 3);
    let (out, _) = forward(&x, &packed, &shape);
    let gradients = backward(&x, &packed, &shape);
    for segment in &packed {
        let part = |x: &[f32], width: usize| {
            x[segment.q_start * width..(segment.q_start + segment.q_len) * width].to_vec()
        };
        let (wide, narrow) = (shape.query_width(), shape.kv_width());
        let alone =
            Inputs { q: part(&x.q, wide), k: part(&x.k, narrow), v: part(&x.v, narrow), g: part(&x.g, wide) };
        let own = segments(&[segment.q_len]);
        assert_eq!(forward(&alone, &own, &shape).0, part(&out, wide));
        let [dq, dk, dv] = backward(&alone, &own, &shape);
        assert_eq!(
            [dq, dk, dv],
            [part(&gradients[0], wide), part(&gradients[1], narrow), part(&gradients[2], narrow)]
        );
    }
}

#[test]
fn decoding_from_a_cache_equals_the_whole() {
    for (stream, (shape, lengths)) in cases().into_iter().enumerate() {
        let segments = segments(&lengths);
        let x = inputs(lengths.iter().sum(), &shape, stream as u64);
        let want = plain::widen(&forward(&x, &segments, &shape).0);
        let mut dice = Dice::new(stream as u64);
        let news: Vec<usize> = lengths.iter().map(|&l| dice.one_of(&[1, l, l.min(3)])).collect();
        let (mut q, mut wanted, mut cached) = (Vec::new(), Vec::new(), Vec::new());
        // Room behind the used part of each cache, full of NaN that must not be read.
        let page_tokens = dice.one_of(&[1, 7, 32, 128]);
        let width = shape.kv_width();
        let caches: Vec<Vec<[Vec<f32>; 2]>> = segments
            .iter()
            .map(|s| {
                let page = |first: usize| {
                    let held = page_tokens.min(s.q_len - first);
                    let rows = (s.q_start + first) * width..(s.q_start + first + held) * width;
                    [&x.k, &x.v].map(|x| [&x[rows.clone()], &poisoned((page_tokens - held) * width)].concat())
                };
                (0..s.q_len).step_by(page_tokens).map(page).collect()
            })
            .collect();
        let pages: Vec<Vec<CachePage<'_>>> = caches
            .iter()
            .map(|pages| pages.iter().map(|[k, v]| CachePage { k: k.into(), v: v.into() }).collect())
            .collect();
        for ((segment, &new), pages) in segments.iter().zip(&news).zip(&pages) {
            let end = segment.q_start + segment.q_len;
            let rows = (end - new) * shape.query_width()..end * shape.query_width();
            let q_start = q.len() / shape.query_width();
            cached.push(CachedSegment { q_start, q_len: new, pages, page_tokens, kv_len: segment.q_len });
            q.extend_from_slice(&x.q[rows.clone()]);
            wanted.extend_from_slice(&want[rows]);
        }
        let mut out = poisoned(q.len());
        attention_cached(&q, &cached, &shape, &mut out);
        assert_close(&out, &wanted, 3e-6, &format!("{shape:?} {lengths:?}"));
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let shape = AttentionShape { soft_cap: Some(30.0), ..shape(8, 4, 32) };
    let segments = segments(&[300, 1, 77]);
    let x = inputs(378, &shape, 9);
    assert_same_for_any_threads("forward", || {
        let (out, lse) = forward(&x, &segments, &shape);
        [out, lse].concat()
    });
    assert_same_for_any_threads("backward", || backward(&x, &segments, &shape).concat());
}

#[test]
fn a_nan_stays_within_its_sequence_and_is_not_hidden() {
    let shape = shape(2, 1, 24);
    let segments = segments(&[20, 20]);
    let mut x = inputs(40, &shape, 2);
    x.k[3] = f32::NAN;
    let (out, _) = forward(&x, &segments, &shape);
    let (first, second) = out.split_at(20 * shape.query_width());
    assert!(
        first.chunks(shape.query_width()).all(|row| row.iter().all(|x| x.is_nan())),
        "every query of the first sees key 0"
    );
    assert!(second.iter().all(|x| x.is_finite()));
}

#[test]
fn no_rows_are_no_work() {
    let shape = shape(2, 1, 24);
    let (none, mut nothing): (&[f32], [f32; 0]) = (&[], []);
    attention_forward(none, none, none, &[], &shape, &mut nothing[..], &mut []);
    attention_backward(none, none, none, none, none, &[], &[], &shape, &mut [], &mut [], &mut []);
    attention_cached(none, &[], &shape, &mut nothing[..]);
}

#[test]
#[should_panic(expected = "segment 1 starts at the wrong row")]
fn segments_with_a_gap_are_refused() {
    let shape = shape(1, 1, 1);
    let gap = [Segment { q_start: 0, q_len: 1 }, Segment { q_start: 2, q_len: 1 }];
    let x = [0.0; 3];
    attention_forward(&x[..], &x[..], &x[..], &gap, &shape, &mut [0.0; 3][..], &mut [0.0; 3]);
}

/// In bf16 both passes follow the plain twin over the rounded inputs as far as the rounding of probabilities lets them.
#[test]
fn bf16_follows_f32_to_its_own_precision() {
    let narrow = |x: &[f32]| -> Vec<half::bf16> { x.iter().map(|&x| half::bf16::from_f32(x)).collect() };
    let off = |got: &[f32], want: &[f32]| {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied())
    };
    for (shape, lengths) in cases() {
        let segments = segments(&lengths);
        let t = lengths.iter().sum();
        let x = inputs(t, &shape, 9);
        let (q, k, v) = (narrow(&x.q), narrow(&x.k), narrow(&x.v));
        let wide = |x: &[half::bf16]| x.iter().map(|x| x.to_f32()).collect();
        let rounded = Inputs { q: wide(&q), k: wide(&k), v: wide(&v), g: x.g.clone() };
        let (want, _) = forward(&rounded, &segments, &shape);
        let [want_q, want_k, want_v] = backward(&rounded, &segments, &shape);
        let (mut out, mut lse) = (vec![half::bf16::NAN; q.len()], poisoned(q.len() / shape.head_dim));
        attention_forward(&q[..], &k[..], &v[..], &segments, &shape, &mut out[..], &mut lse);
        let (mut dq, mut dk, mut dv) = (poisoned(q.len()), poisoned(k.len()), poisoned(v.len()));
        attention_backward(
            &x.g,
            &q[..],
            &k[..],
            &v[..],
            &out[..],
            &lse,
            &segments,
            &shape,
            &mut dq,
            &mut dk,
            &mut dv,
        );
        let out: Vec<f32> = wide(&out);
        for (name, got, want) in
            [("out", &out, &want), ("dq", &dq, &want_q), ("dk", &dk, &want_k), ("dv", &dv, &want_v)]
        {
            let off = off(got, want);
            // A lone key gets no gradient but rounding.
            let nothing = want.iter().all(|w| w.abs() < 1e-3);
            assert!(off < 0.02 || nothing, "{name} off by {off}: {shape:?} {lengths:?}");
        }
    }
}
