//! Dot products of a few rows of x with rows of blocks: 32 elements are decoded to a register and multiplied there.

use super::{Job, RUN, Runs, with_source};
use crate::product::sums_of_four;
use core::arch::x86_64::*;
use core::ops::Range;
use half::bf16;
use taper_quant::QuantizedTensor;

/// Rows of weights that are summed at a time.
const FEATURES: usize = 4;
/// Most rows of x that are multiplied with what was decoded once.
const ROWS: usize = 8;
/// Sums of one dot product, since each waits for the one before; as many however many rows there are, so that a row's bits do not depend on them.
const CHAINS: usize = 2;

/// Calls `each` with the dot products of some rows of x (rows of `n_in`) and all rows of w in `features`: that of row `row` and of row `first + i` of w as
/// `sums[row - first_row][i]`, given `(first_row, first, sums)`. Where there is a version for the type, the processor and the size, else nothing is done.
pub(crate) fn dots(
    w: &QuantizedTensor,
    features: Range<usize>,
    x: &[bf16],
    n_in: usize,
    each: impl FnMut(usize, usize, &[[f32; FEATURES]]),
) -> bool {
    with_source(w, Dots { features, x, n_in, each })
}

struct Dots<'a, F> {
    features: Range<usize>,
    x: &'a [bf16],
    n_in: usize,
    each: F,
}

impl<F: FnMut(usize, usize, &[[f32; FEATURES]])> Job for Dots<'_, F> {
    #[inline(always)]
    unsafe fn run<S: Runs>(self, source: S) -> bool {
        let Self { features, x, n_in, mut each } = self;
        if n_in == 0 || !source.has(features.start * n_in, features.len() * n_in) {
            return false;
        }
        if !source.has(features.start * n_in, n_in) {
            return false;
        }
        for (group, x) in x.chunks(ROWS * n_in).enumerate() {
            let t = x.len() / n_in;
            let mut sums = [[0.0; FEATURES]; ROWS];
            for first in features.clone().step_by(FEATURES) {
                let some = first..features.end.min(first + FEATURES);
                // SAFETY: by the caller's promise; the rows of weights are there, and `n_in` is whole runs.
                unsafe {
                    match t {
                        1 => one_row(source, some, x, n_in, &mut sums),
                        2 => rows::<2, S>(source, some, x, n_in, &mut sums),
                        3..=4 => rows::<4, S>(source, some, x, n_in, &mut sums),
                        _ => rows::<ROWS, S>(source, some, x, n_in, &mut sums),
                    }
                }
                each(group * ROWS, first, &sums[..t]);
            }
        }
        true
    }
}

/// `sum + a b` of 16 pairs.
///
/// # Safety
/// The processor has AVX512_BF16.
#[inline(always)]
unsafe fn add_product(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: by the caller's promise; both are registers of 16 pairs of bf16.
    unsafe {
        let (a, b) =
            (core::mem::transmute::<__m512i, __m512bh>(a), core::mem::transmute::<__m512i, __m512bh>(b));
        _mm512_dpbf16_ps(sum, a, b)
    }
}

/// # Safety
/// The processor has the features, x has a row, and the source has the rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn one_row<S: Runs>(
    source: S,
    features: Range<usize>,
    x: &[bf16],
    n_in: usize,
    sums: &mut [[f32; FEATURES]; ROWS],
) {
    let x = x.as_chunks::<RUN>().0[..n_in / RUN].as_ptr();
    let mut totals = [_mm512_setzero_ps(); FEATURES];
    for (total, feature) in totals.iter_mut().zip(features) {
        let mut chains = [_mm512_setzero_ps(); CHAINS];
        // SAFETY: by the caller's promise; `run` is below `n_in / RUN`.
        unsafe {
            source.rounded(feature * n_in, n_in / RUN, |run, w| {
                let sum = add_product(chains[0], _mm512_loadu_si512(x.add(run).cast()), w);
                chains = [chains[1], sum];
            });
        }
        *total = _mm512_add_ps(chains[0], chains[1]);
    }
    store(&mut sums[0], sums_of_four(totals));
}

/// At most `R` rows; beyond those of x, the last one again.
///
/// # Safety
/// The processor has the features, x has the rows, and the source has the rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn rows<const R: usize, S: Runs>(
    source: S,
    features: Range<usize>,
    x: &[bf16],
    n_in: usize,
    sums: &mut [[f32; FEATURES]; ROWS],
) {
    let t = x.len() / n_in;
    let rows: [*const [bf16; RUN]; R] =
        core::array::from_fn(|row| x[row.min(t - 1) * n_in..].as_chunks::<RUN>().0[..n_in / RUN].as_ptr());
    let mut totals = [[_mm512_setzero_ps(); FEATURES]; R];
    for (i, feature) in features.enumerate() {
        let mut lanes = [[_mm512_setzero_ps(); CHAINS]; R];
        // SAFETY: by the caller's promise; `run` is below `n_in / RUN`.
        unsafe {
            source.rounded(feature * n_in, n_in / RUN, |run, w| {
                for (chains, row) in lanes.iter_mut().zip(rows) {
                    let sum = add_product(chains[0], _mm512_loadu_si512(row.add(run).cast()), w);
                    *chains = [chains[1], sum];
                }
            });
        }
        for (totals, chains) in totals.iter_mut().zip(lanes) {
            totals[i] = _mm512_add_ps(chains[0], chains[1]);
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        store(sums, sums_of_four(totals));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: &mut [f32; FEATURES], four: __m128) {
    // SAFETY: four floats.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), four) };
}
