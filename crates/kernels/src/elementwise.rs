//! Sums, multiples and changes of type, element by element.

#![expect(unsafe_code, reason = "tasks write chunks of their own")]

use crate::floats::{CHUNK, Floats, FloatsMut, SharedFloats, with_scratch};
use crate::threads::for_each_block;

const BLOCK: usize = 16 * 1024;

/// out = x + y.
///
/// # Panics
/// When the lengths differ.
pub fn add<'a>(x: impl Into<Floats<'a>>, y: impl Into<Floats<'a>>, out: impl Into<FloatsMut<'a>>) {
    let (x, y, out) = (x.into(), y.into(), out.into());
    assert_eq!((x.len(), y.len()), (out.len(), out.len()), "lengths of x and y against out");
    for_each_chunk(out, |at, len, out| {
        with_scratch(CHUNK, |[wide_x, wide_y]| {
            add_chunk(x.read(at, len, wide_x), y.read(at, len, wide_y), out);
        });
    });
}

/// out = factor x; with a factor of 1 a change of type.
///
/// # Panics
/// When the lengths differ.
pub fn scale<'a>(x: impl Into<Floats<'a>>, factor: f32, out: impl Into<FloatsMut<'a>>) {
    let (x, out) = (x.into(), out.into());
    assert_eq!(x.len(), out.len(), "lengths of x and out");
    for_each_chunk(out, |at, len, out| {
        with_scratch(CHUNK, |[wide]| scale_chunk(x.read(at, len, wide), factor, out));
    });
}

/// out `[T,n]` = x `[T,n]` + bias `[n]`.
///
/// # Panics
/// When a length does not fit.
pub fn add_bias<'a>(x: impl Into<Floats<'a>>, bias: &[f32], out: impl Into<FloatsMut<'a>>) {
    by_rows(x.into(), bias, out.into(), add_chunk);
}

/// Each row of out `[T,n]` from a row of x and one and the same vector `[n]`.
fn by_rows(
    x: Floats<'_>,
    vector: &[f32],
    out: FloatsMut<'_>,
    combine: impl Fn(&[f32], &[f32], &mut [f32]) + Sync + Send,
) {
    let n = vector.len();
    assert_eq!(x.len(), out.len(), "lengths of x and out");
    assert!(n > 0 && x.len().is_multiple_of(n), "{} elements and a vector of {n}", x.len());
    let t = x.len() / n;
    let out = SharedFloats::new(out);
    let rows = crate::threads::rows_per_block(n);
    for_each_block(t.div_ceil(rows), t * n, |block| {
        with_scratch(n, |[wide, scratch]| {
            for row in block * rows..t.min((block + 1) * rows) {
                let x = x.read(row * n, n, wide);
                // SAFETY: this task alone writes this row.
                unsafe { out.write(row * n, n, scratch, |out| combine(x, vector, out)) };
            }
        });
    });
}

/// out = x y.
///
/// # Panics
/// When the lengths differ.
pub fn multiply(x: &[f32], y: &[f32], out: &mut [f32]) {
    assert_eq!((x.len(), y.len()), (out.len(), out.len()), "lengths of x and y against out");
    for_each_chunk(FloatsMut::F32(out), |at, len, out| {
        multiply_chunk(&x[at..at + len], &y[at..at + len], out);
    });
}

/// out `[T,n]`: column j of x `[T,n]` times `factors[j]`.
///
/// # Panics
/// When a length does not fit.
pub fn scale_columns<'a>(x: impl Into<Floats<'a>>, factors: &[f32], out: impl Into<FloatsMut<'a>>) {
    by_rows(x.into(), factors, out.into(), multiply_chunk);
}

/// Adds the dot product of column j of g and of x, both `[T,n]`, to `sums[j]`, in the order of the rows.
///
/// # Panics
/// When a length does not fit.
pub fn add_column_dots<'a>(g: &[f32], x: impl Into<Floats<'a>>, sums: &mut [f32]) {
    let (x, n) = (x.into(), sums.len());
    assert!(n > 0 && g.len().is_multiple_of(n), "{} elements in rows of {n}", g.len());
    assert_eq!(x.len(), g.len(), "lengths of x and g");
    with_scratch(n, |[wide]| {
        for (row, g) in g.chunks_exact(n).enumerate() {
            multiply_add_chunk(g, x.read(row * n, n, wide), sums);
        }
    });
}

/// Adds the sum of the rows of g `[T,n]` to sums `[n]`, each column in the order of the rows.
///
/// # Panics
/// When a length does not fit.
pub fn add_rows(g: &[f32], sums: &mut [f32]) {
    let n = sums.len();
    assert!(n > 0 && g.len().is_multiple_of(n), "{} elements in rows of {n}", g.len());
    for row in g.chunks_exact(n) {
        crate::reduce::add_block(row, sums);
    }
}

fn for_each_chunk(out: FloatsMut<'_>, body: impl Fn(usize, usize, &mut [f32]) + Sync + Send) {
    let n = out.len();
    let out = SharedFloats::new(out);
    for_each_block(n.div_ceil(BLOCK), n, |block| {
        with_scratch(CHUNK, |[scratch]| {
            let end = n.min((block + 1) * BLOCK);
            for at in (block * BLOCK..end).step_by(CHUNK) {
                let len = CHUNK.min(end - at);
                // SAFETY: this task alone writes this chunk.
                unsafe { out.write(at, len, scratch, |out| body(at, len, out)) };
            }
        });
    });
}

multiversion! {
    fn add_chunk(x: &[f32], y: &[f32], out: &mut [f32]) {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = x + y;
        }
    }
}

multiversion! {
    fn multiply_chunk(x: &[f32], y: &[f32], out: &mut [f32]) {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = x * y;
        }
    }
}

multiversion! {
    fn multiply_add_chunk(x: &[f32], y: &[f32], sums: &mut [f32]) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
}

multiversion! {
    fn scale_chunk(x: &[f32], factor: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{poisoned, random};
    use half::bf16;

    fn narrow(x: &[f32]) -> Vec<bf16> {
        x.iter().map(|&x| bf16::from_f32(x)).collect()
    }

    #[test]
    fn sums_multiples_and_types_of_any_length() {
        for n in [0, 1, 2047, 2049, 50_003] {
            let (x, y) = (random(n, 1), narrow(&random(n, 2)));
            let mut out = poisoned(n);
            add(&x, &y[..], &mut out);
            assert!((0..n).all(|i| out[i] == x[i] + y[i].to_f32()), "{n}");
            let mut short = vec![bf16::NAN; n];
            scale(&x, 0.3, &mut short[..]);
            assert!((0..n).all(|i| short[i] == bf16::from_f32(0.3 * x[i])), "{n}");
        }
    }

    #[test]
    fn products_of_elements_and_of_columns() {
        for (t, n) in [(1, 1), (7, 5), (300, 200)] {
            let (x, y, factors) = (random(t * n, 1), random(t * n, 2), random(n, 3));
            let mut out = poisoned(t * n);
            multiply(&x, &y, &mut out);
            assert!((0..t * n).all(|i| out[i] == x[i] * y[i]));
            scale_columns(&x, &factors, &mut out);
            assert!((0..t * n).all(|i| out[i] == x[i] * factors[i % n]));
            let mut short = vec![bf16::NAN; t * n];
            scale_columns(&narrow(&x)[..], &factors, &mut short[..]);
            let want = |i: usize| bf16::from_f32(bf16::from_f32(x[i]).to_f32() * factors[i % n]);
            assert!((0..t * n).all(|i| short[i] == want(i)));
            let mut sums = vec![1.0; n];
            add_column_dots(&x, &y, &mut sums);
            for (column, sum) in sums.iter().enumerate() {
                assert_eq!(*sum, (0..t).fold(1.0, |s, row| s + x[row * n + column] * y[row * n + column]));
            }
        }
    }

    #[test]
    fn rows_get_the_bias_and_give_its_gradient() {
        for (t, n) in [(1, 1), (7, 5), (300, 200)] {
            let (x, bias) = (random(t * n, 1), random(n, 2));
            let mut out = poisoned(t * n);
            add_bias(&x, &bias, &mut out);
            assert!((0..t * n).all(|i| out[i] == x[i] + bias[i % n]));
            let mut sums = vec![0.0; n];
            add_rows(&x, &mut sums);
            for (column, sum) in sums.iter().enumerate() {
                assert_eq!(*sum, (0..t).fold(0.0, |s, row| s + x[row * n + column]));
            }
        }
    }
}
