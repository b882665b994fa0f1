//! Matrix products in bf16 with `f32` sums: both sides are rounded to bf16, packed into tiles ([`tile`]) and multiplied by the fastest unit
//! that the machine has ([`unit`]).
//!
//! A product goes in rounds of at most [`DEPTH_TILES`] of depth. In each the left side is packed once; the right side is packed some columns
//! at a time (at most [`RIGHT_BYTES`]), each of its elements once, decoded on the way where it is quantised. Then tasks of fixed size
//! multiply, whichever thread is free, and each element of the result is summed by one task in one order: the number of threads never shows.

#![expect(unsafe_code, reason = "tasks write their own parts of one buffer")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod pack;
#[cfg(test)]
mod tests;
mod tile;
mod unit;

pub(crate) use pack::Operand;
pub(crate) use tile::bf16_bits;

use crate::floats::{FloatsMut, SharedFloats, round};
use crate::shared::SharedMut;
use crate::threads::for_each_block;
use core::cell::RefCell;
use core::ops::Range;
use pack::Side;
use tile::{DEPTH, SIDE, Tile};
use unit::{BLOCK, Strip, Unit};

/// Depth of a round: 4096 elements.
const DEPTH_TILES: usize = 128;
/// Most memory of the packed right side.
const RIGHT_BYTES: usize = 4 << 20;
/// Rows and columns, in 16s, that a task multiplies: the columns are four blocks of the 48 and six of the 32 wide units, and a run of 64
/// quantised elements three times.
const TASK_ROWS: usize = 4;
const TASK_COLUMNS: usize = 12;
/// 16s that a task packs of vectors along rows, and of those along columns: no block of 256 is decoded for two tasks.
const PACK_ROWS: usize = 4;
const PACK_COLUMNS: usize = 16;
/// Tiles of depth that a task packs: a block of 256 elements, twice.
const PACK_DEPTH: usize = 16;

/// `left right`, one part of a sum of products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term<'a> {
    pub(crate) left: Operand<'a>,
    pub(crate) right: Operand<'a>,
}

/// What the sum of products is written to.
pub(crate) struct Target<'a> {
    pub(crate) out: FloatsMut<'a>,
    /// Added to each row.
    pub(crate) bias: Option<&'a [f32]>,
    /// Whether the products are added to what is there.
    pub(crate) accumulate: bool,
}

/// A part of a term that a round sums over.
struct Piece<'a> {
    term: Term<'a>,
    from: usize,
    len: usize,
    /// Its first tile of depth in the round.
    tile: usize,
}

/// `out [m, n] (+)= sum of left right + bias`.
///
/// # Panics
/// When the terms do not fit the target, or when rounded results are to be added to.
pub(crate) fn multiply(target: Target<'_>, m: usize, n: usize, terms: &[Term<'_>]) {
    assert_eq!(target.out.len(), m * n, "elements of [{m}, {n}]");
    for term in terms {
        assert_eq!((term.left.outer, term.right.outer), (m, n), "sides of a product to [{m}, {n}]");
        assert_eq!(term.left.depth, term.right.depth, "depth of a product");
    }
    if let Some(bias) = target.bias {
        assert_eq!(bias.len(), n, "length of the bias");
    }
    if m == 0 || n == 0 {
        return;
    }
    let rounds = rounds_of(terms);
    match target.out {
        FloatsMut::BF16(out) => {
            assert!(!target.accumulate, "rounded results are written, not added to");
            if rounds.len() == 1 {
                let target = Target { out: FloatsMut::BF16(out), ..target };
                return sum_rounds(target, m, n, &rounds);
            }
            let mut sums = vec![0.0f32; m * n];
            sum_rounds(Target { out: FloatsMut::F32(&mut sums), ..target }, m, n, &rounds);
            round(&sums, out);
        }
        out => sum_rounds(Target { out, ..target }, m, n, &rounds),
    }
}

/// The depths of all terms in their order, cut into rounds.
fn rounds_of<'a>(terms: &[Term<'a>]) -> Vec<Vec<Piece<'a>>> {
    let mut rounds = vec![Vec::new()];
    let mut tile = 0;
    for term in terms {
        let mut from = 0;
        while from < term.left.depth {
            if tile == DEPTH_TILES {
                rounds.push(Vec::new());
                tile = 0;
            }
            let len = (term.left.depth - from).min((DEPTH_TILES - tile) * DEPTH);
            if let Some(round) = rounds.last_mut() {
                round.push(Piece { term: *term, from, len, tile });
            }
            tile += len.div_ceil(DEPTH);
            from += len;
        }
    }
    rounds
}

thread_local! {
    /// Packed tiles of the left and the right side, kept from product to product.
    static PACKED: RefCell<[Vec<Tile>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

fn sum_rounds(target: Target<'_>, m: usize, n: usize, rounds: &[Vec<Piece<'_>>]) {
    let unit = Unit::detect();
    let shared = SharedFloats::new(target.out);
    // Taken out of the cell: while this thread waits for others it may be handed a task that multiplies too.
    let [mut left, mut right] = PACKED.take();
    for (index, round) in rounds.iter().enumerate() {
        let depth = round.iter().map(|piece| piece.len.div_ceil(DEPTH)).sum::<usize>();
        let rows = m.div_ceil(SIDE);
        pack(round, Side::Left, 0..rows, depth, reserved(&mut left, rows * depth));
        let columns = n.div_ceil(SIDE);
        let group = (RIGHT_BYTES / (depth.max(1) * size_of::<Tile>()) / PACK_COLUMNS * PACK_COLUMNS)
            .max(PACK_COLUMNS);
        for first in (0..columns).step_by(group) {
            let range = first..columns.min(first + group);
            pack(round, Side::Right, range.clone(), depth, reserved(&mut right, range.len() * depth));
            let product = Product {
                unit,
                depth,
                left: &left[..rows * depth],
                right: &right[..range.len() * depth],
                columns: range,
                m,
                n,
                bias: if index == 0 { target.bias } else { None },
                accumulate: target.accumulate || index > 0,
            };
            product.run(&shared);
        }
    }
    PACKED.set([left, right]);
}

fn reserved(tiles: &mut Vec<Tile>, len: usize) -> &mut [Tile] {
    if tiles.len() < len {
        tiles.resize(len, Tile::ZERO);
    }
    &mut tiles[..len]
}

/// Packs the 16s `blocks` of a side over the depths of a round: `depth` tiles for each.
fn pack(round: &[Piece<'_>], side: Side, blocks: Range<usize>, depth: usize, tiles: &mut [Tile]) {
    let tiles = SharedMut::new(tiles);
    for piece in round {
        let operand = if side == Side::Left { piece.term.left } else { piece.term.right };
        let wide = if operand.lies_along_rows() { PACK_ROWS } else { PACK_COLUMNS };
        let piece_tiles = piece.len.div_ceil(DEPTH);
        let deep = if operand.lies_along_rows() { piece_tiles.max(1) } else { PACK_DEPTH };
        let (across, down) = (blocks.len().div_ceil(wide), piece_tiles.div_ceil(deep));
        for_each_block(across * down, piece.len * blocks.len() * SIDE, |task| {
            let first = task / down * wide;
            let from_tile = task % down * deep;
            let count = deep.min(piece_tiles - from_tile);
            let from = piece.from + from_tile * DEPTH;
            let len = (count * DEPTH).min(piece.from + piece.len - from);
            let blocks_here = wide.min(blocks.len() - first);
            // SAFETY: this task alone writes these tiles.
            let mut own: Vec<&mut [Tile]> = (first..first + blocks_here)
                .map(|block| unsafe { tiles.part(block * depth + piece.tile + from_tile, count) })
                .collect();
            operand.pack(side, (blocks.start + first) * SIDE, from, len, &mut own);
        });
    }
}

/// A round over some columns, both sides packed.
struct Product<'a> {
    unit: Unit,
    depth: usize,
    left: &'a [Tile],
    right: &'a [Tile],
    /// The columns of the result that the right side is, in 16s.
    columns: Range<usize>,
    m: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl Product<'_> {
    fn run(&self, out: &SharedFloats<'_>) {
        let (rows, columns) = (self.m.div_ceil(SIDE), self.columns.len());
        let (down, across) = (rows.div_ceil(TASK_ROWS), columns.div_ceil(TASK_COLUMNS));
        let work = self.m * columns * SIDE * self.depth * DEPTH;
        // Tasks with the same columns follow each other, so that a thread keeps the right side near.
        for_each_block(down * across, work, |task| {
            let (row, column) = (task % down * TASK_ROWS, task / down * TASK_COLUMNS);
            self.unit.ready(|| {
                self.task(row..rows.min(row + TASK_ROWS), column..columns.min(column + TASK_COLUMNS), out);
            });
        });
    }

    /// The blocks of some rows and columns, in 16s.
    fn task(&self, rows: Range<usize>, columns: Range<usize>, out: &SharedFloats<'_>) {
        let (high, wide) = self.unit.block();
        let mut block = Block([0.0; BLOCK]);
        for row in rows.clone().step_by(high) {
            for column in columns.clone().step_by(wide) {
                let left = self.strip(self.left, row, high.min(rows.end - row));
                let right = self.strip(self.right, column, wide.min(columns.end - column));
                self.unit.multiply(left, right, self.depth, &mut block.0);
                self.write(&block.0, row, column, left.blocks, right.blocks, out);
            }
        }
    }

    fn strip<'t>(&self, tiles: &'t [Tile], first: usize, blocks: usize) -> Strip<'t> {
        Strip { tiles: &tiles[first * self.depth..], next: self.depth, blocks }
    }

    /// A block's rows to where they belong.
    fn write(
        &self,
        block: &[f32; BLOCK],
        row: usize,
        column: usize,
        high: usize,
        wide: usize,
        out: &SharedFloats<'_>,
    ) {
        let first = (self.columns.start + column) * SIDE;
        let count = (wide * SIDE).min(self.n - first);
        let rows = row * SIDE..self.m.min((row + high) * SIDE);
        let bias = self.bias.map(|bias| &bias[first..first + count]);
        for (sums, row) in block.chunks_exact(wide * SIDE).zip(rows) {
            let at = row * self.n + first;
            match out {
                SharedFloats::F32(out) => {
                    // SAFETY: this task alone writes these columns of this row.
                    let out = unsafe { out.part(at, count) };
                    write_row(&sums[..count], bias, self.accumulate, out);
                }
                SharedFloats::BF16(out) => {
                    // SAFETY: as above.
                    let out = unsafe { out.part(at, count) };
                    write_rounded(&sums[..count], bias, out);
                }
            }
        }
    }
}

/// On a cache line, as the units like it.
#[repr(C, align(64))]
struct Block([f32; BLOCK]);

multiversion! {
    fn write_row(sums: &[f32], bias: Option<&[f32]>, accumulate: bool, out: &mut [f32]) {
        match (bias, accumulate) {
            (None, false) => out.copy_from_slice(sums),
            (None, true) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
            (Some(bias), false) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                    *out = sum + bias;
                }
            }
            (Some(bias), true) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                    *out += sum + bias;
                }
            }
        }
    }
}

multiversion! {
    fn write_rounded(sums: &[f32], bias: Option<&[f32]>, out: &mut [half::bf16]) {
        match bias {
            None => {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = half::bf16::from_bits(tile::bf16_bits(*sum));
                }
            }
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                    *out = half::bf16::from_bits(tile::bf16_bits(sum + bias));
                }
            }
        }
    }
}
