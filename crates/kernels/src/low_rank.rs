//! Low-rank deltas of several adapters on the rows of one batch, added to what they share: y_i += s (x_i A^T) B^T, each group of rows with
//! factors of its own (Chen et al., "Punica", 2023; Sheng et al., "S-LoRA", 2023).
//!
//! A group of few rows (decoding) reads its factors once, in the order of memory, B lying transposed for that; many rows (a prompt) go through
//! the general products. Sums are `f32`.

#![expect(unsafe_code, reason = "tasks write disjoint parts of one buffer")]

use crate::floats::{Floats, buffer, widen};
use crate::gemm::FEW_ROWS;
use crate::linear::{Precision, matmul};
use crate::shared::SharedMut;
use crate::simd::{LANES, sum_lanes};
use crate::threads::for_each_block;
use core::cell::RefCell;
use core::ops::Range;
use half::bf16;

/// Columns of y that a task writes, about.
const COLUMNS: usize = 512;
/// How many of these multiplications take the time of one elementary operation of other kernels.
const CHEAP: usize = 4;

/// A, B and s of one delta.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// A `[r,in]`.
    pub a: Floats<'a>,
    /// B transposed, `[r,out]`.
    pub b: Floats<'a>,
    /// r.
    pub rank: usize,
    /// s.
    pub scale: f32,
}

/// Rows of the batch and the delta that is added to them. Several groups may cover the same rows.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// The delta.
    pub factors: Factors<'a>,
}

/// y `[T,out]` += s (x A^T) B^T, x `[T,in]`, for the rows of each group.
///
/// # Panics
/// When a length does not fit.
pub fn add_low_rank(x: Floats<'_>, groups: &[Group<'_>], y: &mut [f32], n_in: usize, n_out: usize) {
    let mut few = Vec::new();
    for group in groups {
        let (factors, t) = (&group.factors, group.rows.len());
        assert_eq!(
            (factors.a.len(), factors.b.len()),
            (factors.rank * n_in, factors.rank * n_out),
            "lengths of factors of rank {}",
            factors.rank
        );
        if crate::rows::are_few(t) {
            few.push(group);
        } else {
            let x = x.part(group.rows.start * n_in..group.rows.end * n_in);
            let y = &mut y[group.rows.start * n_out..group.rows.end * n_out];
            add_to_many(x, factors, y, t, n_in, n_out);
        }
    }
    add_to_few(x, &few, y, n_in, n_out);
}

fn add_to_many(x: Floats<'_>, factors: &Factors<'_>, y: &mut [f32], t: usize, n_in: usize, n_out: usize) {
    let (r, precision) = (factors.rank, Precision::of(x));
    let mut hidden = buffer(t * r);
    matmul(precision, &mut hidden, x, factors.a, t, n_in, r, false, true, factors.scale, false);
    matmul(precision, y, Floats::F32(&hidden), factors.b, t, r, n_out, false, false, 1.0, true);
}

fn add_to_few(x: Floats<'_>, groups: &[&Group<'_>], y: &mut [f32], n_in: usize, n_out: usize) {
    // The numbers `s x A^T` of all groups, one behind the other.
    let starts: Vec<usize> = groups
        .iter()
        .scan(0, |next, group| {
            let start = *next;
            *next += group.rows.len() * group.factors.rank;
            Some(start)
        })
        .collect();
    let numbers: usize = groups.iter().map(|group| group.rows.len() * group.factors.rank).sum();
    if numbers == 0 {
        return;
    }
    let mut hidden: Vec<f32> = buffer(numbers);
    let shared = SharedMut::new(&mut hidden);
    for_each_block(groups.len(), numbers * n_in / CHEAP, |index| {
        let group = groups[index];
        // SAFETY: this task alone writes the numbers of this group.
        let hidden = unsafe { shared.part(starts[index], group.rows.len() * group.factors.rank) };
        multiply_down(x, group, hidden, n_in);
    });
    let hidden = &hidden;
    let tasks = n_out.div_ceil(COLUMNS).max(1);
    let y = SharedMut::new(y);
    for_each_block(tasks, numbers * n_out / CHEAP, |task| {
        let columns = task * n_out / tasks..(task + 1) * n_out / tasks;
        for (group, start) in groups.iter().zip(&starts) {
            let rank = group.factors.rank;
            for (i, row) in group.rows.clone().enumerate() {
                // SAFETY: this task alone writes these columns.
                let y = unsafe { y.part(row * n_out + columns.start, columns.len()) };
                let factors = &hidden[start + i * rank..start + (i + 1) * rank];
                add_rows(factors, group.factors.b, columns.clone(), n_out, y);
            }
        }
    });
}

thread_local! {
    static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// hidden `[n,r]` = s x A^T of a group's n rows.
fn multiply_down(x: Floats<'_>, group: &Group<'_>, hidden: &mut [f32], n_in: usize) {
    let factors = &group.factors;
    #[cfg(target_arch = "x86_64")]
    if let (Floats::BF16(x), Floats::BF16(a)) = (x, factors.a)
        && crate::product::has_dots_bf16()
    {
        return multiply_down_bf16(
            &x[group.rows.start * n_in..group.rows.end * n_in],
            a,
            factors,
            hidden,
            n_in,
        );
    }
    WIDE.with_borrow_mut(|wide| {
        wide.resize(wide.len().max(n_in), 0.0);
        for (row, hidden) in group.rows.clone().zip(hidden.chunks_exact_mut(factors.rank)) {
            let x = x.read(row * n_in, n_in, wide);
            for (index, out) in hidden.iter_mut().enumerate() {
                let at = index * n_in..(index + 1) * n_in;
                *out = factors.scale
                    * match factors.a {
                        Floats::F32(a) => crate::simd::dot(x, &a[at]),
                        Floats::BF16(a) => dot_narrow(x, &a[at]),
                    };
            }
        }
    });
}

/// The same by the processor's dot products of bf16, four rows of A at a time.
#[cfg(target_arch = "x86_64")]
fn multiply_down_bf16(x: &[bf16], a: &[bf16], factors: &Factors<'_>, hidden: &mut [f32], n_in: usize) {
    let (rank, t) = (factors.rank, x.len() / n_in.max(1));
    for first in (0..rank).step_by(4) {
        // At the edge the last row is taken more than once.
        let row_at = |i: usize| (first + i).min(rank - 1) * n_in;
        let rows = core::array::from_fn(|i| &a[row_at(i)..row_at(i) + n_in]);
        let mut sums = [[0.0; 4]; FEW_ROWS];
        crate::product::dots_bf16(x, rows, n_in, &mut sums[..t]);
        for (hidden, sums) in hidden.chunks_exact_mut(rank).zip(&sums) {
            for (out, sum) in hidden[first..].iter_mut().zip(sums) {
                *out = factors.scale * sum;
            }
        }
    }
}

/// y += sum over i of `factors_i` times row i of b, of which `columns` are taken.
fn add_rows(factors: &[f32], b: Floats<'_>, columns: Range<usize>, n_out: usize, y: &mut [f32]) {
    let row = |i: usize| i * n_out + columns.start..i * n_out + columns.end;
    let (fours, rest) = factors.as_chunks::<4>();
    for (i, by) in fours.iter().enumerate() {
        let rows: [Range<usize>; 4] = core::array::from_fn(|k| row(4 * i + k));
        match b {
            Floats::F32(b) => add_four(by, rows.map(|at| &b[at]), y),
            Floats::BF16(b) => add_four_narrow(by, rows.map(|at| &b[at]), y),
        }
    }
    for (i, by) in (4 * fours.len()..).zip(rest) {
        match b {
            Floats::F32(b) => add_one(*by, &b[row(i)], y),
            Floats::BF16(b) => WIDE.with_borrow_mut(|wide| {
                wide.resize(wide.len().max(y.len()), 0.0);
                let wide = &mut wide[..y.len()];
                widen(&b[row(i)], wide);
                add_one(*by, wide, y);
            }),
        }
    }
}

#[inline(always)]
fn wide(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

multiversion! {
    fn dot_narrow(x: &[f32], a: &[bf16]) -> f32 {
        let mut lanes = [[0.0f32; LANES]; 4];
        let (x_chunks, x_rest) = x.as_chunks::<{ 4 * LANES }>();
        let (a_chunks, a_rest) = a.as_chunks::<{ 4 * LANES }>();
        for (x, a) in x_chunks.iter().zip(a_chunks) {
            for (part, lanes) in lanes.iter_mut().enumerate() {
                for (i, lane) in lanes.iter_mut().enumerate() {
                    *lane += x[part * LANES + i] * wide(a[part * LANES + i]);
                }
            }
        }
        let mut sum = 0.0;
        for (x, a) in x_rest.iter().zip(a_rest) {
            sum += x * wide(*a);
        }
        for lanes in lanes {
            sum += sum_lanes(lanes);
        }
        sum
    }
}

multiversion! {
    fn add_four(by: &[f32; 4], rows: [&[f32]; 4], y: &mut [f32]) {
        let [a, b, c, d] = rows;
        for ((((y, a), b), c), d) in y.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *y += (by[0] * a + by[1] * b) + (by[2] * c + by[3] * d);
        }
    }
}

multiversion! {
    fn add_four_narrow(by: &[f32; 4], rows: [&[bf16]; 4], y: &mut [f32]) {
        let [a, b, c, d] = rows;
        for ((((y, a), b), c), d) in y.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *y += (by[0] * wide(*a) + by[1] * wide(*b)) + (by[2] * wide(*c) + by[3] * wide(*d));
        }
    }
}

multiversion! {
    fn add_one(by: f32, row: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(row) {
            *y += by * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Dice, assert_close, assert_same_for_any_threads, random};

    /// Rows, rank, scale, A and B.
    type Given = (Range<usize>, usize, f32, Vec<f32>, Vec<f32>);

    struct Case {
        x: Vec<f32>,
        groups: Vec<Given>,
        y: Vec<f32>,
        n_in: usize,
        n_out: usize,
    }

    fn case(stream: u64) -> Case {
        let mut dice = Dice::new(stream);
        let (n_in, n_out) = (dice.one_of(&[1, 5, 64, 130, 577]), dice.one_of(&[1, 3, 64, 515, 1030]));
        let mut groups = Vec::new();
        let mut t = 0;
        for index in 0..dice.between(1, 5) as u64 {
            let (rows, rank) = (dice.one_of(&[0, 1, 1, 2, 16, 17, 40]), dice.one_of(&[1, 3, 4, 8, 16, 33]));
            let (a, b) =
                (random(rank * n_in, stream * 100 + index), random(rank * n_out, stream * 100 + 50 + index));
            groups.push((t..t + rows, rank, 0.5 + index as f32, a, b));
            // Every other group covers the rows of the one before as well.
            t += if index % 2 == 0 { rows } else { 0 };
        }
        let t = groups.iter().map(|group| group.0.end).max().unwrap_or(0).max(t);
        Case { x: random(t * n_in, stream + 7), y: random(t * n_out, stream + 8), groups, n_in, n_out }
    }

    /// The definition, in f64.
    fn plain(case: &Case) -> Vec<f64> {
        let mut y: Vec<f64> = case.y.iter().map(|&y| f64::from(y)).collect();
        for (rows, rank, scale, a, b) in &case.groups {
            for row in rows.clone() {
                for r in 0..*rank {
                    let hidden: f64 = (0..case.n_in)
                        .map(|i| f64::from(case.x[row * case.n_in + i]) * f64::from(a[r * case.n_in + i]))
                        .sum();
                    for j in 0..case.n_out {
                        y[row * case.n_out + j] +=
                            f64::from(*scale) * hidden * f64::from(b[r * case.n_out + j]);
                    }
                }
            }
        }
        y
    }

    fn narrow(x: &[f32]) -> Vec<bf16> {
        x.iter().map(|&x| bf16::from_f32(x)).collect()
    }

    #[test]
    fn groups_of_all_sizes_add_what_the_definition_says() {
        for stream in 0..40 {
            let case = case(stream);
            let groups: Vec<Group<'_>> = case
                .groups
                .iter()
                .map(|(rows, rank, scale, a, b)| Group {
                    rows: rows.clone(),
                    factors: Factors { a: a.into(), b: b.into(), rank: *rank, scale: *scale },
                })
                .collect();
            let mut y = case.y.clone();
            add_low_rank((&case.x).into(), &groups, &mut y, case.n_in, case.n_out);
            assert_close(&y, &plain(&case), 2e-4, &format!("case {stream}"));
        }
    }

    #[test]
    fn in_bf16_few_rows_are_as_exact_and_many_are_rounded_on_the_way() {
        for stream in 0..40 {
            let mut case = case(stream);
            let x = narrow(&case.x);
            let factors: Vec<_> = case.groups.iter().map(|(.., a, b)| (narrow(a), narrow(b))).collect();
            let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            case.x = wide(&x);
            for ((.., a, b), factors) in case.groups.iter_mut().zip(&factors) {
                (*a, *b) = (wide(&factors.0), wide(&factors.1));
            }
            let groups: Vec<Group<'_>> = case
                .groups
                .iter()
                .zip(&factors)
                .map(|((rows, rank, scale, ..), (a, b))| Group {
                    rows: rows.clone(),
                    factors: Factors { a: a[..].into(), b: b[..].into(), rank: *rank, scale: *scale },
                })
                .collect();
            let mut y = case.y.clone();
            add_low_rank(x[..].into(), &groups, &mut y, case.n_in, case.n_out);
            let want = plain(&case);
            let many = groups.iter().any(|group| group.rows.len() > FEW_ROWS);
            if many {
                // Against the largest number: what is rounded is the hidden row.
                let largest = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                let off = y.iter().zip(&want).map(|(y, w)| (f64::from(*y) - w).abs()).fold(0.0, f64::max);
                assert!(off <= 1e-2 * (1.0 + largest), "case {stream}: {off} of {largest}");
            } else {
                assert_close(&y, &want, 2e-4, &format!("case {stream}"));
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads_or_on_other_groups() {
        let (n_in, n_out, rank) = (700, 1500, 16);
        let x = random(8 * n_in, 1);
        let factors: Vec<_> =
            (0..8).map(|i| (random(rank * n_in, 10 + i), random(rank * n_out, 20 + i))).collect();
        let group = |i: usize, row: usize| Group {
            rows: row..row + 1,
            factors: Factors { a: (&factors[i].0).into(), b: (&factors[i].1).into(), rank, scale: 2.0 },
        };
        let all: Vec<Group<'_>> = (0..8).map(|i| group(i, i)).collect();
        let together = || {
            let mut y = vec![0.0; 8 * n_out];
            add_low_rank((&x).into(), &all, &mut y, n_in, n_out);
            y
        };
        assert_same_for_any_threads("groups", together);
        let y = together();
        for i in 0..8 {
            let mut alone = vec![0.0; n_out];
            add_low_rank(Floats::F32(&x[i * n_in..(i + 1) * n_in]), &[group(i, 0)], &mut alone, n_in, n_out);
            assert_eq!(alone, y[i * n_out..(i + 1) * n_out]);
        }
    }
}
