//! One tile of queries against tiles of keys: the forward pass, and what it shares with the backward pass.

#![expect(unsafe_code, reason = "tasks write disjoint columns of one output")]

use super::{AttentionShape, CachePage, CachedSegment, Segment};
use crate::floats::{Floats, SharedFloats, widen};
use crate::gemm::{MatMut, MatRef, grown, multiply, multiply_rounded};
use crate::rows::are_always_many;
use crate::shared::SharedMut;
use crate::simd::{LANES, exp, max_of, sum_lanes, tanh};
use core::cell::RefCell;

/// Rows of a score tile: queries times the heads of a group.
const ROWS: usize = 128;
/// Up to this many rows a tile is multiplied key by key: a general product packs its sides, which pays for many rows only.
const FEW: usize = 16;
/// Columns of a score tile.
pub(super) const KEYS: usize = 128;

/// One sequence: where its queries stand, and its keys and values from position 0.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) q_start: usize,
    pub(super) q_len: usize,
    /// Position of the first query.
    pub(super) offset: usize,
    /// Whether a tile of few rows goes by the arithmetic of many.
    always_many: bool,
    rows: Rows<'a>,
}

/// Where keys and values lie.
#[derive(Clone, Copy)]
enum Rows<'a> {
    /// `first` is the row of position 0.
    Packed {
        first: usize,
        k: Floats<'a>,
        v: Floats<'a>,
    },
    Paged {
        pages: &'a [CachePage<'a>],
        page_tokens: usize,
    },
}

impl<'a> Job<'a> {
    pub(super) fn packed(segment: &Segment, k: Floats<'a>, v: Floats<'a>) -> Self {
        let rows = Rows::Packed { first: segment.q_start, k, v };
        Self {
            q_start: segment.q_start,
            q_len: segment.q_len,
            offset: 0,
            always_many: are_always_many(),
            rows,
        }
    }

    pub(super) fn cached(s: &CachedSegment<'a>, shape: &AttentionShape) -> Self {
        assert!(s.q_len <= s.kv_len, "{} queries in a sequence of {}", s.q_len, s.kv_len);
        let whole = s.page_tokens * shape.kv_width();
        let used = s.kv_len * shape.kv_width();
        let held = s.pages.iter().enumerate().all(|(i, page)| {
            let needed = used.saturating_sub(i * whole).min(whole);
            page.k.len() >= needed && page.v.len() >= needed
        });
        assert!(
            held && s.pages.len() * whole >= used,
            "a cache of {} pages for {} keys",
            s.pages.len(),
            s.kv_len
        );
        let rows = Rows::Paged { pages: s.pages, page_tokens: s.page_tokens };
        let offset = s.kv_len - s.q_len;
        Self { q_start: s.q_start, q_len: s.q_len, offset, always_many: are_always_many(), rows }
    }

    fn are_few(&self, rows: usize) -> bool {
        rows <= FEW && !self.always_many
    }

    /// The key tiles (first position, count) that queries `first..first + count` can see.
    pub(super) fn key_tiles(
        &self,
        queries: (usize, usize),
        window: Option<usize>,
    ) -> impl Iterator<Item = (usize, usize)> {
        let end = self.offset + queries.0 + queries.1;
        let start = window.map_or(0, |w| (self.offset + queries.0 + 1).saturating_sub(w));
        (start..end).step_by(KEYS).map(move |first| (first, KEYS.min(end - first)))
    }

    /// The keys of one head in one tile, `[count, D]`: where they lie, or gathered in `f32` in `scratch`.
    pub(super) fn keys<'s>(
        &self,
        shape: &AttentionShape,
        kv_head: usize,
        tile: (usize, usize),
        scratch: &'s mut Vec<f32>,
    ) -> MatRef<'s>
    where
        'a: 's,
    {
        match self.rows {
            Rows::Packed { first, k, .. } => head_rows(k, shape, kv_head, (first + tile.0, tile.1), scratch),
            Rows::Paged { pages, page_tokens } => {
                paged_rows(|i| pages[i].k, page_tokens, shape, kv_head, tile, scratch)
            }
        }
    }

    /// The values of one head in one tile, `[count, D]`.
    pub(super) fn values<'s>(
        &self,
        shape: &AttentionShape,
        kv_head: usize,
        tile: (usize, usize),
        scratch: &'s mut Vec<f32>,
    ) -> MatRef<'s>
    where
        'a: 's,
    {
        match self.rows {
            Rows::Packed { first, v, .. } => head_rows(v, shape, kv_head, (first + tile.0, tile.1), scratch),
            Rows::Paged { pages, page_tokens } => {
                paged_rows(|i| pages[i].v, page_tokens, shape, kv_head, tile, scratch)
            }
        }
    }
}

fn head_rows<'a: 's, 's>(
    data: Floats<'a>,
    shape: &AttentionShape,
    kv_head: usize,
    (first, count): (usize, usize),
    scratch: &'s mut Vec<f32>,
) -> MatRef<'s> {
    let (width, d) = (shape.kv_width(), shape.head_dim);
    match data {
        Floats::F32(data) => MatRef::new(&data[first * width + kv_head * d..], count, d, width),
        Floats::BF16(_) => {
            let rows = grown(scratch, count * d);
            gather(data, shape, kv_head, first, rows);
            MatRef::new(rows, count, d, d)
        }
    }
}

/// The rows of one head from a cache in pages.
fn paged_rows<'a, 's>(
    page: impl Fn(usize) -> Floats<'a>,
    page_tokens: usize,
    shape: &AttentionShape,
    kv_head: usize,
    (first, count): (usize, usize),
    scratch: &'s mut Vec<f32>,
) -> MatRef<'s> {
    let d = shape.head_dim;
    let rows = grown(scratch, count * d);
    let mut done = 0;
    while done < count {
        let (index, at) = ((first + done) / page_tokens, (first + done) % page_tokens);
        let here = (page_tokens - at).min(count - done);
        gather(page(index), shape, kv_head, at, &mut rows[done * d..(done + here) * d]);
        done += here;
    }
    MatRef::new(rows, count, d, d)
}

/// Copies one head's part of rows from `first` on, in `f32`.
fn gather(data: Floats<'_>, shape: &AttentionShape, kv_head: usize, first: usize, out: &mut [f32]) {
    let (width, d) = (shape.kv_width(), shape.head_dim);
    for (row, out) in (first..).zip(out.chunks_exact_mut(d)) {
        let at = row * width + kv_head * d;
        match data {
            Floats::F32(data) => out.copy_from_slice(&data[at..at + d]),
            Floats::BF16(data) => widen(&data[at..at + d], out),
        }
    }
}

/// Queries whose group's rows fill a tile: a function of the shape alone.
pub(super) fn queries_per_tile(shape: &AttentionShape) -> usize {
    (ROWS / shape.group()).max(1)
}

/// `c (+)= a b`; where queries are bf16 (`narrow`), with both sides rounded to it, sums in `f32` as ever.
pub(super) fn product(narrow: bool, c: &mut MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>, accumulate: bool) {
    match narrow {
        true => multiply_rounded(c, a, b, accumulate),
        false => multiply(c, a, b, 1.0, accumulate),
    }
}

/// Copies the rows of a group of heads to a tile `[count * G, D]`.
pub(super) fn gather_group(
    x: Floats<'_>,
    shape: &AttentionShape,
    kv_head: usize,
    rows: (usize, usize),
    tile: &mut [f32],
) {
    let width = shape.group() * shape.head_dim;
    for (row, out) in (rows.0..rows.0 + rows.1).zip(tile.chunks_exact_mut(width)) {
        let at = row * shape.query_width() + kv_head * width;
        match x {
            Floats::F32(x) => out.copy_from_slice(&x[at..at + width]),
            Floats::BF16(x) => widen(&x[at..at + width], out),
        }
    }
}

/// Scores of one tile, `[rows, KEYS]`: scaled queries times keys, capped, with minus infinity where a query must not look.
///
/// `keys` is the tile's range, `key_rows` what [`Job::keys`] gives for it; `narrow` as for [`product`].
#[expect(clippy::too_many_arguments, reason = "plain slices and their places")]
pub(super) fn scores(
    job: &Job<'_>,
    shape: &AttentionShape,
    (first, count): (usize, usize),
    keys: (usize, usize),
    key_rows: MatRef<'_>,
    scaled_q: &[f32],
    narrow: bool,
    s: &mut [f32],
) {
    let group = shape.group();
    let rows = count * group;
    if job.are_few(rows) {
        few_scores(scaled_q, key_rows, s);
    } else {
        let q = MatRef::new(scaled_q, rows, shape.head_dim, shape.head_dim);
        product(narrow, &mut MatMut::new(s, rows, keys.1, KEYS), q, key_rows.transposed(), false);
    }
    if let Some(cap) = shape.soft_cap {
        for row in s.chunks_exact_mut(KEYS).take(rows) {
            cap_scores(&mut row[..keys.1], cap);
        }
    }
    for (i, rows) in s.chunks_exact_mut(group * KEYS).take(count).enumerate() {
        // Visible are the positions low..high, counted from the tile's first key.
        let position = job.offset + first + i;
        let high = (position + 1).saturating_sub(keys.0).min(keys.1);
        let low =
            shape.window.map_or(0, |w| (position + 1).saturating_sub(w).saturating_sub(keys.0)).min(high);
        if low > 0 || high < keys.1 {
            for row in rows.chunks_exact_mut(KEYS) {
                row[..low].fill(f32::NEG_INFINITY);
                row[high..keys.1].fill(f32::NEG_INFINITY);
            }
        }
    }
}

#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    kv: Vec<f32>,
    s: Vec<f32>,
    acc: Vec<f32>,
    out: Vec<f32>,
    highest: Vec<f32>,
    sum: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attention of queries `first..first + count` of a job, for the heads of one group.
pub(super) fn forward_tile(
    q: Floats<'_>,
    job: &Job<'_>,
    shape: &AttentionShape,
    kv_head: usize,
    queries: (usize, usize),
    out: &SharedFloats<'_>,
    lse: Option<&SharedMut<'_, f32>>,
) {
    let (group, d) = (shape.group(), shape.head_dim);
    let rows = queries.1 * group;
    let first_row = job.q_start + queries.0;
    let narrow = matches!(q, Floats::BF16(_));
    SCRATCH.with_borrow_mut(|scratch| {
        let q_tile = grown(&mut scratch.q, rows * d);
        gather_group(q, shape, kv_head, (first_row, queries.1), q_tile);
        scale(q_tile, shape.scale);
        let s = grown(&mut scratch.s, rows * KEYS);
        let acc = grown(&mut scratch.acc, rows * d);
        acc.fill(0.0);
        let highest = grown(&mut scratch.highest, rows);
        highest.fill(f32::NEG_INFINITY);
        let sum = grown(&mut scratch.sum, rows);
        sum.fill(0.0);
        for keys in job.key_tiles(queries, shape.window) {
            scores(
                job,
                shape,
                queries,
                keys,
                job.keys(shape, kv_head, keys, &mut scratch.kv),
                q_tile,
                narrow,
                s,
            );
            softmax_update(s, keys.1, highest, sum, acc, d);
            let values = job.values(shape, kv_head, keys, &mut scratch.kv);
            if job.are_few(rows) {
                few_sums(s, values, acc);
            } else {
                let p = MatRef::new(s, rows, keys.1, KEYS);
                product(narrow, &mut MatMut::new(acc, rows, d, d), p, values, true);
            }
        }
        for (i, acc) in acc.chunks_exact_mut(group * d).enumerate() {
            let row = first_row + i;
            let sum = &sum[i * group..(i + 1) * group];
            for (acc, sum) in acc.chunks_exact_mut(d).zip(sum) {
                scale(acc, 1.0 / sum);
            }
            let at = row * shape.query_width() + kv_head * group * d;
            let wide = grown(&mut scratch.out, group * d);
            // SAFETY: this task alone writes the columns of this group in these rows.
            unsafe { out.write(at, group * d, wide, |out| out.copy_from_slice(acc)) };
            if let Some(lse) = lse {
                // SAFETY: as above.
                let lse = unsafe { lse.part(row * shape.heads + kv_head * group, group) };
                for ((lse, sum), highest) in lse.iter_mut().zip(sum).zip(&highest[i * group..]) {
                    *lse = highest + sum.ln();
                }
            }
        }
    });
}

multiversion! {
    /// The scores of some rows of queries, one behind the other, with each key.
    fn few_scores(q: &[f32], keys: MatRef<'_>, s: &mut [f32]) {
        for (at, key) in keys.row_slices().enumerate() {
            for (q, s) in q.chunks_exact(key.len()).zip(s.chunks_exact_mut(KEYS)) {
                s[at] = crate::simd::dot(q, key);
            }
        }
    }
}

multiversion! {
    /// Adds to each row of sums the values, each times its probability.
    fn few_sums(p: &[f32], values: MatRef<'_>, acc: &mut [f32]) {
        for (at, value) in values.row_slices().enumerate() {
            for (acc, p) in acc.chunks_exact_mut(value.len()).zip(p.chunks_exact(KEYS)) {
                for (acc, value) in acc.iter_mut().zip(value) {
                    *acc += p[at] * value;
                }
            }
        }
    }
}

multiversion! {
    pub(super) fn scale(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }
}

multiversion! {
    fn cap_scores(s: &mut [f32], cap: f32) {
        for s in s {
            *s = cap * tanh(*s / cap);
        }
    }
}

multiversion! {
    /// Turns scores into e^(score - highest so far) and rescales what was summed under an older, lower maximum.
    fn softmax_update(s: &mut [f32], keys: usize, highest: &mut [f32], sum: &mut [f32], acc: &mut [f32], d: usize) {
        let rows = s.chunks_exact_mut(KEYS).zip(acc.chunks_exact_mut(d));
        for ((s, acc), (highest, sum)) in rows.zip(highest.iter_mut().zip(sum)) {
            let s = &mut s[..keys];
            let best = max_of(s);
            let best = if best > *highest { best } else { *highest };
            // A row that has seen no key yet: 0 keeps e^(-inf - base) = 0.
            let base = if best == f32::NEG_INFINITY { 0.0 } else { best };
            let mut lanes = [0.0f32; LANES];
            let (head, tail) = s.as_chunks_mut::<LANES>();
            for chunk in head {
                for (s, lane) in chunk.iter_mut().zip(&mut lanes) {
                    *s = exp(*s - base);
                    *lane += *s;
                }
            }
            let mut tile_sum = sum_lanes(lanes);
            for s in tail {
                *s = exp(*s - base);
                tile_sum += *s;
            }
            let keep = exp(*highest - base);
            *sum = *sum * keep + tile_sum;
            if keep != 1.0 {
                for acc in acc {
                    *acc *= keep;
                }
            }
            *highest = best;
        }
    }
}
