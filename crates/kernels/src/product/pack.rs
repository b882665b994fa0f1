//! From matrices in memory to tiles: widening, decoding, scaling, rounding and transposing on the way.

use super::tile::{DEPTH, SIDE, Tile, pair};
use crate::gemm::{WeightView, grown};
use core::cell::RefCell;
use half::bf16;

/// One side of a product: `outer` vectors of length `depth`, over which the product sums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    view: WeightView<'a>,
    /// Rows of the left operand, columns of the right one.
    pub(crate) outer: usize,
    pub(crate) depth: usize,
    /// Elements from a row in memory to the next.
    stride: usize,
    /// Whether a vector lies along a row of memory; else the vectors are its columns.
    along_rows: bool,
    scale: f32,
}

/// Which of its two forms a tile is wanted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

impl<'a> Operand<'a> {
    /// Row-major `[outer, depth]`.
    pub(crate) fn rows(view: WeightView<'a>, outer: usize, depth: usize) -> Self {
        assert_eq!(view.len(), outer * depth, "elements of [{outer}, {depth}]");
        Self { view, outer, depth, stride: depth, along_rows: true, scale: 1.0 }
    }

    /// Row-major `[depth, outer]`.
    pub(crate) fn columns(view: WeightView<'a>, outer: usize, depth: usize) -> Self {
        assert_eq!(view.len(), outer * depth, "elements of [{depth}, {outer}]");
        Self { view, outer, depth, stride: outer, along_rows: false, scale: 1.0 }
    }

    /// Part of a matrix in memory: `outer` vectors of `depth` elements, along rows that start `stride` apart, or (`along_rows` false) across them.
    pub(crate) fn strided(
        view: WeightView<'a>,
        outer: usize,
        depth: usize,
        stride: usize,
        along_rows: bool,
    ) -> Self {
        let (rows, columns) = if along_rows { (outer, depth) } else { (depth, outer) };
        let span = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns };
        assert!(span <= view.len(), "{rows} rows of {columns}, {stride} apart, in {}", view.len());
        Self { view, outer, depth, stride, along_rows, scale: 1.0 }
    }

    /// All elements times `scale`, before they are rounded.
    pub(crate) fn scaled(self, scale: f32) -> Self {
        Self { scale: self.scale * scale, ..self }
    }

    /// Whether the vectors lie along rows of memory.
    pub(crate) fn lies_along_rows(&self) -> bool {
        self.along_rows
    }

    /// The vectors from `first` in depths `from..from + len` as tiles: 16 of them for each element of `blocks`. What is outside the operand
    /// is zero. `from` is even.
    pub(crate) fn pack(&self, side: Side, first: usize, from: usize, len: usize, blocks: &mut [&mut [Tile]]) {
        let natural = if self.along_rows { Side::Left } else { Side::Right };
        if self.along_rows {
            for (block, tiles) in blocks.iter_mut().enumerate() {
                self.pack_rows(first + block * SIDE, from, len, tiles);
            }
        } else {
            self.pack_columns(first, from, len, blocks);
        }
        if natural != side {
            blocks.iter_mut().for_each(|tiles| tiles.iter_mut().for_each(Tile::transpose));
        }
    }

    /// 16 vectors that lie along rows, as the rows of tiles.
    fn pack_rows(&self, first: usize, from: usize, len: usize, tiles: &mut [Tile]) {
        for row in 0..SIDE {
            let vector = first + row;
            if vector >= self.outer {
                tiles.iter_mut().for_each(|tile| tile.0[row * SIDE..(row + 1) * SIDE].fill(0));
                continue;
            }
            let at = vector * self.stride + from;
            match self.view {
                WeightView::BF16(w) if self.scale == 1.0 => copy_row(&w[at..at + len], row, tiles),
                WeightView::F32(w) => round_row(&w[at..at + len], self.scale, row, tiles),
                view => with_scratch(len, |wide, narrow| {
                    if self.scale == 1.0 && decode_bf16(view, at, narrow) {
                        return copy_row(narrow, row, tiles);
                    }
                    view.widen(at, wide);
                    round_row(wide, self.scale, row, tiles);
                }),
            }
        }
    }

    /// Vectors that are columns, two rows of memory at a time, as the columns of tiles.
    fn pack_columns(&self, first: usize, from: usize, len: usize, blocks: &mut [&mut [Tile]]) {
        let count = (blocks.len() * SIDE).min(self.outer.saturating_sub(first));
        let at = |depth: usize| depth * self.stride + first;
        for pair_at in 0..len.div_ceil(DEPTH) * SIDE {
            let (tile, row) = (pair_at / SIDE, pair_at % SIDE);
            let depths = [2 * pair_at, 2 * pair_at + 1].map(|d| (d < len).then_some(from + d));
            let mut place = Place { blocks, tile, row };
            match (depths, self.view) {
                ([None, _], _) => place.rows().for_each(|row| row.fill(0)),
                ([Some(d0), Some(d1)], WeightView::BF16(w)) if self.scale == 1.0 => {
                    interleave(&w[at(d0)..at(d0) + count], &w[at(d1)..at(d1) + count], place);
                }
                ([Some(d0), Some(d1)], WeightView::F32(w)) => {
                    round_pairs(&w[at(d0)..at(d0) + count], &w[at(d1)..at(d1) + count], self.scale, place);
                }
                ([Some(d0), d1], view) => with_scratch(2 * count, |wide, narrow| {
                    if let (1.0, Some(d1), (low, high)) = (self.scale, d1, narrow.split_at_mut(count))
                        && decode_bf16(view, at(d0), low)
                        && decode_bf16(view, at(d1), high)
                    {
                        return interleave(low, high, place);
                    }
                    let (low, high) = wide.split_at_mut(count);
                    view.widen(at(d0), low);
                    match d1 {
                        Some(d1) => view.widen(at(d1), high),
                        None => high.fill(0.0),
                    }
                    round_pairs(low, high, self.scale, place);
                }),
            }
        }
    }
}

thread_local! {
    /// A row, or two parts of rows, widened or decoded.
    static ROWS: RefCell<(Vec<f32>, Vec<bf16>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

fn with_scratch(len: usize, body: impl FnOnce(&mut [f32], &mut [bf16])) {
    ROWS.with_borrow_mut(|(wide, narrow)| {
        if narrow.len() < len {
            narrow.resize(len, bf16::ZERO);
        }
        body(grown(wide, len), &mut narrow[..len]);
    });
}

/// Elements from `start` on in bf16, where there is a decoder that gives them so.
fn decode_bf16(view: WeightView<'_>, start: usize, out: &mut [bf16]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let WeightView::Quantized(w) = view {
        return crate::decode::decode_bf16(w, start, out);
    }
    let _ = (view, start, out);
    false
}

multiversion! {
    /// A vector as row `row` of its tiles.
    fn copy_row(vector: &[bf16], row: usize, tiles: &mut [Tile]) {
        for (part, tile) in vector.chunks(DEPTH).zip(tiles) {
            let Some(out) = tile.0[row * SIDE..].first_chunk_mut::<SIDE>() else { continue };
            let mut whole = [bf16::ZERO; DEPTH];
            match part.first_chunk::<DEPTH>() {
                Some(part) => whole = *part,
                None => whole[..part.len()].copy_from_slice(part),
            }
            for (out, two) in out.iter_mut().zip(whole.as_chunks::<2>().0) {
                *out = u32::from(two[0].to_bits()) | u32::from(two[1].to_bits()) << 16;
            }
        }
    }
}

multiversion! {
    /// The same, scaled and rounded.
    fn round_row(vector: &[f32], scale: f32, row: usize, tiles: &mut [Tile]) {
        for (part, tile) in vector.chunks(DEPTH).zip(tiles) {
            let Some(out) = tile.0[row * SIDE..].first_chunk_mut::<SIDE>() else { continue };
            let mut whole = [0.0f32; DEPTH];
            match part.first_chunk::<DEPTH>() {
                Some(part) => whole = *part,
                None => whole[..part.len()].copy_from_slice(part),
            }
            for (out, two) in out.iter_mut().zip(whole.as_chunks::<2>().0) {
                *out = pair(two[0] * scale, two[1] * scale);
            }
        }
    }
}

/// Where a pair of rows of memory goes: row `row` of tile `tile` of each 16 columns.
struct Place<'a, 'b> {
    blocks: &'a mut [&'b mut [Tile]],
    tile: usize,
    row: usize,
}

impl Place<'_, '_> {
    /// The words of each 16 columns in turn.
    #[inline(always)]
    fn rows(&mut self) -> impl Iterator<Item = &mut [u32; SIDE]> {
        let (tile, at) = (self.tile, self.row * SIDE);
        self.blocks.iter_mut().filter_map(move |tiles| tiles[tile].0[at..].first_chunk_mut::<SIDE>())
    }
}

multiversion! {
    /// Columns of two rows as pairs; columns beyond them are zero.
    fn interleave(low: &[bf16], high: &[bf16], place: Place<'_, '_>) {
        let mut place = place;
        let mut at = 0;
        for out in place.rows() {
            let count = SIDE.min(low.len() - at);
            if let (Some(low), Some(high)) = (low[at..].first_chunk::<SIDE>(), high[at..].first_chunk::<SIDE>()) {
                for c in 0..SIDE {
                    out[c] = u32::from(low[c].to_bits()) | u32::from(high[c].to_bits()) << 16;
                }
            } else {
                out.fill(0);
                for c in 0..count {
                    out[c] = u32::from(low[at + c].to_bits()) | u32::from(high[at + c].to_bits()) << 16;
                }
            }
            at += count;
        }
    }
}

multiversion! {
    /// The same, scaled and rounded.
    fn round_pairs(low: &[f32], high: &[f32], scale: f32, place: Place<'_, '_>) {
        let mut place = place;
        let mut at = 0;
        for out in place.rows() {
            let count = SIDE.min(low.len() - at);
            if let (Some(low), Some(high)) = (low[at..].first_chunk::<SIDE>(), high[at..].first_chunk::<SIDE>()) {
                for c in 0..SIDE {
                    out[c] = pair(low[c] * scale, high[c] * scale);
                }
            } else {
                out.fill(0);
                for c in 0..count {
                    out[c] = pair(low[at + c] * scale, high[at + c] * scale);
                }
            }
            at += count;
        }
    }
}
