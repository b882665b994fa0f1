//! Products of a few rows (decoding): the weights are read once, where they lie, and every row of x takes its part of them from the nearest
//! cache.
//!
//! Four rows of weights are multiplied with up to four rows of x at a time. Memory is read in its order: of four streams at once the processor
//! follows none (measured: a bf16 head of 57 MB at 20 GB/s by four rows side by side, at 41 GB/s by one after the other).

use super::{FEW_ROWS, WeightView, grown};
use crate::shared::SharedMut;
use crate::simd::{LANES, sum_lanes};
use crate::threads::for_each_block;
use core::cell::RefCell;
use half::bf16;

/// Rows of weights, and rows of x, whose dot products are in registers at a time.
const FEATURES: usize = 4;
const ROWS: usize = 4;
/// Elements of a row of weights that are widened at a time: four of them and four of x fit in the nearest cache.
const DEPTH: usize = 1024;
/// Weights that a task reads, about: the least of them, so that all threads have some of a small layer, and how many tasks there are of a
/// large one.
const TASK: usize = 32 * 1024;
const TASKS: usize = 16;

/// The rows of x.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    F32(&'a [f32]),
    /// Multiplied as they are with weights in bf16, or rounded to it; only where there is a unit for that.
    #[cfg(target_arch = "x86_64")]
    BF16(&'a [bf16]),
}

/// y `[T,out]` = x `[T,in]` W^T + b for T up to [`FEW_ROWS`].
pub(super) fn multiply(
    x: Rows<'_>,
    w: WeightView<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
    t: usize,
    n_in: usize,
    n_out: usize,
) {
    let weights = TASK.max(n_in * n_out / TASKS);
    let per_task =
        (weights / n_in.max(1)).next_multiple_of(FEATURES).clamp(FEATURES, n_out.next_multiple_of(FEATURES));
    let y = SharedMut::new(y);
    for_each_block(n_out.div_ceil(per_task), t * n_in * n_out, |block| {
        let (first, end) = (block * per_task, n_out.min((block + 1) * per_task));
        // SAFETY: this task alone writes these columns.
        let mut outs: [&mut [f32]; FEW_ROWS] = core::array::from_fn(|row| unsafe {
            y.part((row * n_out + first).min(t * n_out), if row < t { end - first } else { 0 })
        });
        let mut put = |row: usize, feature: usize, sums: &[[f32; FEATURES]]| {
            for (out, sums) in outs[row..].iter_mut().zip(sums) {
                for (i, (out, sum)) in out[feature - first..].iter_mut().zip(sums).enumerate() {
                    *out = sum + bias.map_or(0.0, |bias| bias[feature + i]);
                }
            }
        };
        #[cfg(target_arch = "x86_64")]
        if let (Rows::BF16(x), WeightView::Quantized(w)) = (x, w)
            && crate::decode::dots(w, first..end, x, n_in, &mut put)
        {
            return;
        }
        for feature in (first..end).step_by(FEATURES) {
            let count = FEATURES.min(end - feature);
            let sums = group(x, w, (feature, count), t, n_in);
            put(0, feature, &sums[..t]);
        }
    });
}

thread_local! {
    static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    #[cfg(target_arch = "x86_64")]
    static NARROW: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
}

type Sums = [[f32; FEATURES]; FEW_ROWS];

/// The dot products of `count` rows of weights from `first` with all rows of x.
fn group(x: Rows<'_>, w: WeightView<'_>, (first, count): (usize, usize), t: usize, n_in: usize) -> Sums {
    let mut sums = [[0.0; FEATURES]; FEW_ROWS];
    // A group at the edge computes its last row more than once.
    let row_at = |i: usize| (first + i.min(count - 1)) * n_in;
    match (x, w) {
        #[cfg(target_arch = "x86_64")]
        (Rows::BF16(x), WeightView::BF16(w)) => {
            let rows = core::array::from_fn(|i| &w[row_at(i)..row_at(i) + n_in]);
            crate::product::dots_bf16(x, rows, n_in, &mut sums[..t]);
        }
        #[cfg(target_arch = "x86_64")]
        (Rows::BF16(x), w) => WIDE.with_borrow_mut(|scratch| {
            NARROW.with_borrow_mut(|narrow| {
                narrow.resize(narrow.len().max(FEATURES * n_in), bf16::ZERO);
                for (i, row) in narrow.chunks_exact_mut(n_in.max(1)).enumerate().take(count) {
                    narrowed(w, row_at(i), row, scratch);
                }
                let rows = core::array::from_fn(|i| &narrow[i.min(count - 1) * n_in..][..n_in]);
                crate::product::dots_bf16(x, rows, n_in, &mut sums[..t]);
            });
        }),
        (Rows::F32(x), w) => WIDE.with_borrow_mut(|scratch| {
            for from in (0..n_in).step_by(DEPTH) {
                let len = DEPTH.min(n_in - from);
                let wide = grown(scratch, FEATURES * len);
                for (i, row) in wide.chunks_exact_mut(len).enumerate().take(count) {
                    w.widen(row_at(i) + from, row);
                }
                let wide: &[f32] = wide;
                let rows = core::array::from_fn(|i| &wide[i.min(count - 1) * len..][..len]);
                add_dots(x, from, n_in, rows, &mut sums[..t]);
            }
        }),
    }
    sums
}

/// A row of weights in bf16.
#[cfg(target_arch = "x86_64")]
fn narrowed(w: WeightView<'_>, at: usize, row: &mut [bf16], scratch: &mut Vec<f32>) {
    for (i, part) in row.chunks_mut(DEPTH).enumerate() {
        let wide = grown(scratch, part.len());
        w.widen(at + i * DEPTH, wide);
        crate::floats::round(wide, part);
    }
}

/// Adds the dot products of four parts of rows, which start at `from`, with the same parts of each row of x.
fn add_dots(x: &[f32], from: usize, n_in: usize, w: [&[f32]; FEATURES], sums: &mut [[f32; FEATURES]]) {
    let len = w[0].len();
    let part = |row: usize| &x[row * n_in + from..][..len];
    for (group, sums) in sums.chunks_mut(ROWS).enumerate() {
        let row = group * ROWS;
        match sums {
            [a] => dots([part(row)], w, core::array::from_mut(a)),
            [a, b] => dots_of([part(row), part(row + 1)], w, [a, b]),
            [a, b, c] => dots_of([part(row), part(row + 1), part(row + 2)], w, [a, b, c]),
            [a, b, c, d] => {
                dots_of([part(row), part(row + 1), part(row + 2), part(row + 3)], w, [a, b, c, d]);
            }
            _ => {}
        }
    }
}

fn dots_of<const R: usize>(x: [&[f32]; R], w: [&[f32]; FEATURES], sums: [&mut [f32; FEATURES]; R]) {
    let mut all = [[0.0; FEATURES]; R];
    all.iter_mut().zip(&sums).for_each(|(all, sums)| *all = **sums);
    dots(x, w, &mut all);
    sums.into_iter().zip(all).for_each(|(sums, all)| *sums = all);
}

/// Compiled for AVX-512 and AVX2 with their fused multiply-add, and for what has none.
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls a version compiled for a detected instruction set")
)]
fn dots<const R: usize>(x: [&[f32]; R], w: [&[f32]; FEATURES], sums: &mut [[f32; FEATURES]; R]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<const R: usize>(x: [&[f32]; R], w: [&[f32]; FEATURES], sums: &mut [[f32; FEATURES]; R]) {
            body::<R, true>(x, w, sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<const R: usize>(x: [&[f32]; R], w: [&[f32]; FEATURES], sums: &mut [[f32; FEATURES]; R]) {
            body::<R, true>(x, w, sums);
        }
        match crate::simd::level() {
            // SAFETY: the level was detected.
            crate::simd::Level::Avx512 => unsafe { avx512(x, w, sums) },
            // SAFETY: as above.
            crate::simd::Level::Avx2 => unsafe { avx2(x, w, sums) },
            crate::simd::Level::Portable => body::<R, false>(x, w, sums),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    body::<R, { cfg!(target_arch = "aarch64") }>(x, w, sums);
}

#[inline(always)]
fn body<const R: usize, const FUSED: bool>(
    x: [&[f32]; R],
    w: [&[f32]; FEATURES],
    sums: &mut [[f32; FEATURES]; R],
) {
    let mut lanes = [[[0.0f32; LANES]; FEATURES]; R];
    let whole = w[0].len() / LANES;
    let x_chunks = x.map(|x| &x.as_chunks::<LANES>().0[..whole]);
    let w_chunks = w.map(|w| &w.as_chunks::<LANES>().0[..whole]);
    for at in 0..whole {
        for (x, lanes) in x_chunks.iter().zip(&mut lanes) {
            for (w, lanes) in w_chunks.iter().zip(lanes) {
                for ((lane, x), w) in lanes.iter_mut().zip(&x[at]).zip(&w[at]) {
                    *lane = if FUSED { x.mul_add(*w, *lane) } else { *lane + x * w };
                }
            }
        }
    }
    for ((x, lanes), sums) in x.iter().zip(&lanes).zip(sums) {
        for ((w, lanes), sum) in w.iter().zip(lanes).zip(sums) {
            *sum += sum_lanes(*lanes);
            for (x, w) in x[whole * LANES..].iter().zip(&w[whole * LANES..]) {
                *sum += x * w;
            }
        }
    }
}
