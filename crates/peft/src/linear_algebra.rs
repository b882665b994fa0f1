//! Orthogonal columns and leading singular vectors of matrices in f32.

use taper_kernels::gemm;
use taper_kernels::rng::CounterRng;

/// Rows one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<f32>,
}

impl Matrix {
    /// `self other`.
    pub(crate) fn times(&self, other: &Self) -> Self {
        self.product(other, false, false)
    }

    /// `self^T other`.
    pub(crate) fn transposed_times(&self, other: &Self) -> Self {
        self.product(other, true, false)
    }

    /// `self other^T`.
    pub(crate) fn times_transposed(&self, other: &Self) -> Self {
        self.product(other, false, true)
    }

    fn product(&self, other: &Self, trans_a: bool, trans_b: bool) -> Self {
        let (m, k) = if trans_a { (self.columns, self.rows) } else { (self.rows, self.columns) };
        let n = if trans_b { other.rows } else { other.columns };
        let mut values = vec![0f32; m * n];
        gemm::matmul(&mut values, &self.values, &other.values, m, k, n, trans_a, trans_b, 1.0, false);
        Self { rows: m, columns: n, values }
    }

    /// `self - factor other`.
    pub(crate) fn minus(&self, other: &Self, factor: f32) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a - factor * b).collect();
        Self { values, ..*self }
    }

    /// The first `count` columns.
    fn first_columns(&self, count: usize) -> Self {
        let values = self.values.chunks_exact(self.columns).flat_map(|row| &row[..count]).copied().collect();
        Self { rows: self.rows, columns: count, values }
    }

    /// The columns made orthonormal, each in turn against those before it, twice over (Gram-Schmidt with a second pass, which is as good as
    /// Householder's: Giraud et al. 2005). A column that depends on the others becomes zero.
    fn orthonormal(&self) -> Self {
        let (n, k) = (self.rows, self.columns);
        let mut columns: Vec<Vec<f64>> =
            (0..k).map(|j| (0..n).map(|i| f64::from(self.values[i * k + j])).collect()).collect();
        for j in 0..k {
            let (done, rest) = columns.split_at_mut(j);
            let column = &mut rest[0];
            let before = norm(column);
            for _ in 0..2 {
                for q in done.iter() {
                    let along: f64 = q.iter().zip(column.iter()).map(|(a, b)| a * b).sum();
                    column.iter_mut().zip(q).for_each(|(c, q)| *c -= along * q);
                }
            }
            let length = norm(column);
            // What is left of a dependent column is rounding.
            let factor = if length > 1e-10 * before { 1.0 / length } else { 0.0 };
            column.iter_mut().for_each(|c| *c *= factor);
        }
        let values = (0..n * k).map(|at| columns[at % k][at / k] as f32).collect();
        Self { rows: n, columns: k, values }
    }
}

fn norm(column: &[f64]) -> f64 {
    column.iter().map(|c| c * c).sum::<f64>().sqrt()
}

/// The first `rank` columns of Q of `w = Q R`.
pub(crate) fn leading_columns(w: &Matrix, rank: usize) -> Matrix {
    w.first_columns(rank).orthonormal()
}

/// Columns that are followed beside those that are asked for: they take up what lies near the cut.
const OVERSAMPLING: usize = 8;
/// Rounds after which singular values that still move are taken as they are, where no number is given.
const MOST_ROUNDS: usize = 100;

/// The `rank` largest singular values, and their vectors: U `[rows, rank]`, sigma, V^T `[rank, columns]`.
///
/// Subspace iteration from random columns (Halko et al. 2011, algorithm 4.4): `niter` rounds, or until the values stand.
pub(crate) fn truncated_svd(
    w: &Matrix,
    rank: usize,
    niter: Option<usize>,
    stream: &CounterRng,
) -> (Matrix, Vec<f64>, Matrix) {
    let k = (rank + OVERSAMPLING).min(w.rows).min(w.columns);
    let mut start = Matrix { rows: w.columns, columns: k, values: vec![0.0; w.columns * k] };
    stream.fill_normal(0, 1.0, &mut start.values);
    let mut q = w.times(&start).orthonormal();
    let mut before = f64::INFINITY;
    for _ in 0..niter.unwrap_or(MOST_ROUNDS) {
        let right = w.transposed_times(&q).orthonormal();
        q = w.times(&right).orthonormal();
        let sum: f64 = of_subspace(w, &q, rank).1.iter().sum();
        if niter.is_none() && (sum - before).abs() <= 1e-7 * sum {
            break;
        }
        before = sum;
    }
    of_subspace(w, &q, rank)
}

/// The singular values and vectors of w within the span of q's columns.
fn of_subspace(w: &Matrix, q: &Matrix, rank: usize) -> (Matrix, Vec<f64>, Matrix) {
    let small = q.transposed_times(w);
    let gram = small.times_transposed(&small);
    let (values, vectors) = symmetric_eigen(&gram);
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(rank);
    let sigma: Vec<f64> = order.iter().map(|i| values[*i].max(0.0).sqrt()).collect();
    let k = gram.rows;
    let picked: Vec<f32> = (0..k)
        .flat_map(|row| order.iter().map(move |i| (row, *i)))
        .map(|(row, i)| vectors[row * k + i] as f32)
        .collect();
    let rotation = Matrix { rows: k, columns: order.len(), values: picked };
    let u = q.times(&rotation);
    let mut v = rotation.transposed_times(&small);
    for (row, sigma) in v.values.chunks_exact_mut(v.columns).zip(&sigma) {
        let factor = if *sigma > 0.0 { (1.0 / sigma) as f32 } else { 0.0 };
        row.iter_mut().for_each(|value| *value *= factor);
    }
    (u, sigma, v)
}

/// Eigenvalues and eigenvectors (columns) of a symmetric matrix, by Jacobi's rotations in f64.
fn symmetric_eigen(matrix: &Matrix) -> (Vec<f64>, Vec<f64>) {
    let n = matrix.rows;
    let mut a: Vec<f64> = matrix.values.iter().map(|v| f64::from(*v)).collect();
    let mut vectors: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    let size: f64 = a.iter().map(|v| v * v).sum::<f64>();
    // Each sweep squares the error; thirty are never reached.
    for _ in 0..30 {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off <= 1e-26 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, n, p, q);
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), vectors)
}

/// Turns rows and columns p and q so that element (p, q) becomes zero.
fn rotate(a: &mut [f64], vectors: &mut [f64], n: usize, p: usize, q: usize) {
    let apq = a[p * n + q];
    if apq == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (akp, akq) = (a[k * n + p], a[k * n + q]);
        a[k * n + p] = c * akp - s * akq;
        a[k * n + q] = s * akp + c * akq;
    }
    for k in 0..n {
        let (apk, aqk) = (a[p * n + k], a[q * n + k]);
        a[p * n + k] = c * apk - s * aqk;
        a[q * n + k] = s * apk + c * aqk;
    }
    for k in 0..n {
        let (vkp, vkq) = (vectors[k * n + p], vectors[k * n + q]);
        vectors[k * n + p] = c * vkp - s * vkq;
        vectors[k * n + q] = s * vkp + c * vkq;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize, stream: u64) -> Matrix {
        let mut values = vec![0f32; rows * columns];
        CounterRng::new(5, stream).fill_normal(0, 1.0, &mut values);
        Matrix { rows, columns, values }
    }

    fn largest(a: &Matrix) -> f32 {
        a.values.iter().fold(0.0, |m, v| m.max(v.abs()))
    }

    #[test]
    fn columns_become_orthonormal_and_span_what_they_spanned() {
        let w = random(40, 12, 1);
        let q = w.orthonormal();
        let mut gram = q.transposed_times(&q);
        (0..12).for_each(|i| gram.values[i * 13] -= 1.0);
        assert!(largest(&gram) < 1e-6);
        assert!(largest(&w.minus(&q.times(&q.transposed_times(&w)), 1.0)) < 1e-5);
        let twice = Matrix { values: w.values.iter().map(|v| v.signum()).collect(), ..w };
        let same = Matrix {
            columns: 2,
            values: twice.first_columns(1).values.iter().flat_map(|v| [*v, *v]).collect(),
            ..twice
        };
        assert!(same.orthonormal().values.iter().skip(1).step_by(2).all(|v| *v == 0.0));
    }

    /// A matrix made of known singular values and vectors, some of them close to each other.
    #[test]
    fn singular_values_and_vectors_are_those_the_matrix_was_made_of() {
        let (rows, columns) = (50, 30);
        let (u, v) = (random(rows, 6, 1).orthonormal(), random(columns, 6, 2).orthonormal());
        let sigma = [9.0f32, 7.0, 6.9, 3.0, 0.5, 0.1];
        let mut scaled = u.clone();
        scaled.values.iter_mut().enumerate().for_each(|(at, value)| *value *= sigma[at % 6]);
        let w = scaled.times_transposed(&v);
        for rank in [1, 3, 6] {
            let (got_u, got, got_v) = truncated_svd(&w, rank, None, &CounterRng::new(1, 1));
            assert!(got.iter().zip(sigma).all(|(g, s)| (g - f64::from(s)).abs() < 1e-4), "{got:?}");
            let mut left = got_u.clone();
            left.values.iter_mut().enumerate().for_each(|(at, value)| *value *= got[at % rank] as f32);
            let rest = largest(&w.minus(&left.times(&got_v), 1.0));
            assert!(rest <= sigma.get(rank).copied().unwrap_or(0.0) + 1e-4, "{rank}: {rest}");
        }
    }

    /// The best approximation leaves the tail of the spectrum: the squares of what is left sum to those of the rest.
    #[test]
    fn of_a_random_matrix_the_best_part_is_found() {
        let w = random(32, 24, 3);
        let whole = truncated_svd(&w, 24, None, &CounterRng::new(1, 1)).1;
        let (mut u, sigma, v) = truncated_svd(&w, 5, None, &CounterRng::new(1, 2));
        u.values.iter_mut().enumerate().for_each(|(at, value)| *value *= sigma[at % 5] as f32);
        let left: f64 = w.minus(&u.times(&v), 1.0).values.iter().map(|v| f64::from(*v).powi(2)).sum();
        let tail: f64 = whole[5..].iter().map(|s| s * s).sum();
        assert!((left / tail - 1.0).abs() < 1e-4, "{left} and {tail}");
    }
}
