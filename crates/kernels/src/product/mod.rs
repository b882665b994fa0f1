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

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{dots as dots_bf16, is_available as has_dots_bf16, sums_of_four};
pub(crate) use pack::Operand;
pub(crate) use tile::bf16_bits;

use crate::floats::{FloatsMut, SharedFloats, round};
use crate::gemm::WeightView;
use crate::shared::SharedMut;
use crate::threads::for_each_block;
use core::cell::RefCell;
use core::ops::Range;
use pack::Side;
use tile::{DEPTH, SIDE, Tile};
use unit::{Strip, Unit};

/// Depth of a round: 4096 elements.
const DEPTH_TILES: usize = 128;
/// Most depth of a product that is fused with its low-rank part: 8192 elements.
const FUSED_TILES: usize = 256;
/// Most tiles of the right side of a task: 512 KiB.
const TASK_TILES: usize = 512;
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

/// Lends the buffers of packed tiles. They are taken out of their cell: while this thread waits for others it may be handed a task that
/// multiplies too.
fn with_packed<R>(body: impl FnOnce(&mut Vec<Tile>, &mut Vec<Tile>) -> R) -> R {
    let [mut left, mut right] = PACKED.take();
    let result = body(&mut left, &mut right);
    PACKED.set([left, right]);
    result
}

fn reserved(tiles: &mut Vec<Tile>, len: usize) -> &mut [Tile] {
    if tiles.len() < len {
        tiles.resize(len, Tile::ZERO);
    }
    &mut tiles[..len]
}

fn sum_rounds(target: Target<'_>, m: usize, n: usize, rounds: &[Vec<Piece<'_>>]) {
    let shared = SharedFloats::new(target.out);
    for (index, round) in rounds.iter().enumerate() {
        let depth = round.iter().map(|piece| piece.len.div_ceil(DEPTH)).sum::<usize>();
        let rows = m.div_ceil(SIDE);
        let product = Product {
            unit: Unit::detect(),
            depth,
            m,
            n,
            bias: if index == 0 { target.bias } else { None },
            accumulate: target.accumulate || index > 0,
        };
        with_packed(|left, right| {
            let left = SharedMut::new(reserved(left, rows * depth));
            let lefts = round.iter().map(|piece| piece.pack(Side::Left, depth).of(0..rows, left)).collect();
            product.run_in_groups(lefts, round, left, right, &shared);
        });
    }
}

impl<'a> Piece<'a> {
    /// One side of the piece, to be packed into `depth` tiles for each 16 vectors.
    fn pack(&self, side: Side, depth: usize) -> Pack<'a> {
        let operand = if side == Side::Left { self.term.left } else { self.term.right };
        Pack { operand, side, from: self.from, len: self.len, tile: self.tile, depth }
    }
}

/// What is packed of an operand, and where among the tiles of its 16 vectors.
#[derive(Clone, Copy)]
struct Pack<'a> {
    operand: Operand<'a>,
    side: Side,
    from: usize,
    len: usize,
    tile: usize,
    /// Tiles from 16 vectors to the next.
    depth: usize,
}

/// A [`Pack`] of some vectors, in 16s, to their tiles.
struct PackJob<'a> {
    pack: Pack<'a>,
    blocks: Range<usize>,
    tiles: SharedMut<'a, Tile>,
}

impl<'a> Pack<'a> {
    fn of(self, blocks: Range<usize>, tiles: SharedMut<'a, Tile>) -> PackJob<'a> {
        PackJob { pack: self, blocks, tiles }
    }

    /// Vectors, in 16s, and tiles of depth that a task packs.
    fn task(&self) -> (usize, usize) {
        if self.operand.lies_along_rows() {
            (PACK_ROWS, self.len.div_ceil(DEPTH).max(1))
        } else {
            (PACK_COLUMNS, PACK_DEPTH)
        }
    }
}

impl PackJob<'_> {
    fn tasks(&self) -> usize {
        let (wide, deep) = self.pack.task();
        self.blocks.len().div_ceil(wide) * self.pack.len.div_ceil(DEPTH).div_ceil(deep)
    }

    fn run(&self, task: usize) {
        let (pack, tiles) = (&self.pack, self.pack.len.div_ceil(DEPTH));
        let (wide, deep) = pack.task();
        let down = tiles.div_ceil(deep);
        let (first, from_tile) = (task / down * wide, task % down * deep);
        let count = deep.min(tiles - from_tile);
        let from = pack.from + from_tile * DEPTH;
        let len = (count * DEPTH).min(pack.from + pack.len - from);
        let blocks = first..self.blocks.len().min(first + wide);
        // SAFETY: this task alone writes these tiles.
        let mut own: Vec<&mut [Tile]> = blocks
            .map(|block| unsafe { self.tiles.part(block * pack.depth + pack.tile + from_tile, count) })
            .collect();
        pack.operand.pack(pack.side, (self.blocks.start + first) * SIDE, from, len, &mut own);
    }
}

/// Runs the tasks of all jobs in one go: threads meet once.
fn pack_all(jobs: &[PackJob<'_>]) {
    let work = jobs.iter().map(|job| job.pack.len * job.blocks.len() * SIDE).sum();
    let tasks: Vec<(&PackJob<'_>, usize)> =
        jobs.iter().flat_map(|job| (0..job.tasks()).map(move |task| (job, task))).collect();
    for_each_block(tasks.len(), work, |task| tasks[task].0.run(tasks[task].1));
}

/// `target [m, n] (+)= x full + by hidden up` with `hidden [m, r] = first x down`, which is written too: a frozen layer and its low-rank delta in
/// one pass over the result. x is packed once.
///
/// The sides: x on the left; `full`, `down` and `up` on the right.
///
/// # Panics
/// When the operands do not fit.
pub(crate) fn multiply_low_rank(
    target: Target<'_>,
    m: usize,
    n: usize,
    x: Operand<'_>,
    low: &mut LowRank<'_>,
) {
    let r = low.down.outer;
    assert_eq!((target.out.len(), low.hidden.len()), (m * n, m * r), "elements of [{m}, {n}] and [{m}, {r}]");
    assert_eq!((x.outer, x.depth), (m, low.down.depth), "sides of a product to [{m}, {r}]");
    assert_eq!((low.up.outer, low.up.depth), (n, r), "sides of a product from [{m}, {r}] to [{m}, {n}]");
    assert!(low.full.is_none_or(|w| (w.outer, w.depth) == (n, x.depth)), "sides of a product to [{m}, {n}]");
    assert!(target.bias.is_none_or(|bias| bias.len() == n), "length of the bias");
    assert!(matches!(target.out, FloatsMut::F32(_)) || !target.accumulate, "rounded results are written");
    if m == 0 || n == 0 {
        return;
    }
    let (x_tiles, depth) = (x.depth.div_ceil(DEPTH), x.depth.div_ceil(DEPTH) + r.div_ceil(DEPTH));
    let Some(full) = low.full.filter(|_| depth <= FUSED_TILES) else {
        let down = Term { left: x.scaled(low.first), right: low.down };
        let hidden = Target { out: FloatsMut::F32(&mut *low.hidden), bias: None, accumulate: false };
        multiply(hidden, m, r, &[down]);
        let up =
            Term { left: Operand::rows(WeightView::F32(&*low.hidden), m, r).scaled(low.by), right: low.up };
        let full = low.full.map(|full| Term { left: x, right: full });
        return multiply(target, m, n, &full.into_iter().chain([up]).collect::<Vec<_>>());
    };
    let unit = Unit::detect();
    let rows = m.div_ceil(SIDE);
    let shared = SharedFloats::new(target.out);
    with_packed(|left, right| {
        let (r_blocks, left) = (r.div_ceil(SIDE), SharedMut::new(reserved(left, rows * depth)));
        let whole = |operand, side, depth| Pack { operand, side, from: 0, len: x.depth, tile: 0, depth };
        {
            let down = SharedMut::new(reserved(right, r_blocks * x_tiles));
            pack_all(&[
                whole(x, Side::Left, depth).of(0..rows, left),
                whole(low.down, Side::Right, x_tiles).of(0..r_blocks, down),
            ]);
        }
        let hidden = Hidden { unit, x_tiles, depth, m, r, first: low.first, by: low.by };
        hidden.run(left, &right[..r_blocks * x_tiles], SharedMut::new(&mut *low.hidden));
        let pieces = [
            Piece { term: Term { left: x, right: full }, from: 0, len: x.depth, tile: 0 },
            Piece { term: Term { left: x, right: low.up }, from: 0, len: r, tile: x_tiles },
        ];
        let product = Product { unit, depth, m, n, bias: target.bias, accumulate: target.accumulate };
        product.run_in_groups(Vec::new(), &pieces, left, right, &shared);
    });
}

/// The low-rank part of [`multiply_low_rank`].
pub(crate) struct LowRank<'a> {
    pub(crate) full: Option<Operand<'a>>,
    pub(crate) down: Operand<'a>,
    pub(crate) up: Operand<'a>,
    pub(crate) hidden: &'a mut [f32],
    /// Factor on `hidden`.
    pub(crate) first: f32,
    /// Factor on its way to the result.
    pub(crate) by: f32,
}

thread_local! {
    static PACKED_HERE: RefCell<[Vec<Tile>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `left right` on this thread, for a small product within another kernel's task. `put` is given the result in parts: a row, its first column, and
/// what belongs there.
pub(crate) fn multiply_here(
    left: Operand<'_>,
    right: Operand<'_>,
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    assert_eq!(left.depth, right.depth, "depth of a product");
    let (unit, depth) = (Unit::detect(), left.depth.div_ceil(DEPTH));
    let (rows, columns) = (left.outer.div_ceil(SIDE), right.outer.div_ceil(SIDE));
    PACKED_HERE.with_borrow_mut(|[left_tiles, right_tiles]| {
        let packed = |operand: &Operand<'_>, side, tiles| -> &[Tile] {
            let tiles: &mut [Tile] = tiles;
            let mut blocks: Vec<&mut [Tile]> = tiles.chunks_exact_mut(depth.max(1)).collect();
            operand.pack(side, 0, 0, operand.depth, &mut blocks);
            tiles
        };
        let left_tiles = packed(&left, Side::Left, reserved(left_tiles, rows * depth));
        let right_tiles = packed(&right, Side::Right, reserved(right_tiles, columns * depth));
        let left_strip = Strip { tiles: left_tiles, next: depth, blocks: rows };
        let right_strip = Strip { tiles: right_tiles, next: depth, blocks: columns };
        unit.multiply_all(left_strip, right_strip, depth, |row, first, sums| {
            if row < left.outer {
                put(row, first, &sums[..sums.len().min(right.outer - first)]);
            }
        });
    });
}

/// The first half of [`multiply_low_rank`]: `hidden` from the packed x, and back behind x among the packed tiles.
struct Hidden {
    unit: Unit,
    x_tiles: usize,
    depth: usize,
    m: usize,
    r: usize,
    first: f32,
    by: f32,
}

impl Hidden {
    fn run(&self, left: SharedMut<'_, Tile>, down: &[Tile], hidden: SharedMut<'_, f32>) {
        let rows = self.m.div_ceil(SIDE);
        for_each_block(rows.div_ceil(TASK_ROWS), self.m * self.r * self.x_tiles * DEPTH, |task| {
            let rows = task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS);
            // SAFETY: this task alone touches the tiles of these rows.
            let own = unsafe { left.part(rows.start * self.depth, rows.len() * self.depth) };
            let elements = rows.start * SIDE * self.r..self.m.min(rows.end * SIDE) * self.r;
            // SAFETY: and these rows of the hidden values.
            let hidden = unsafe { hidden.part(elements.start, elements.len()) };
            self.task(own, down, hidden);
        });
    }

    fn task(&self, own: &mut [Tile], down: &[Tile], hidden: &mut [f32]) {
        let left = Strip { tiles: own, next: self.depth, blocks: own.len() / self.depth };
        let right = Strip { tiles: down, next: self.x_tiles, blocks: self.r.div_ceil(SIDE) };
        self.unit.multiply_all(left, right, self.x_tiles, |row, first, sums| {
            let Some(hidden) = hidden.chunks_exact_mut(self.r).nth(row) else { return };
            for (out, sum) in hidden[first..].iter_mut().zip(sums) {
                *out = self.first * sum;
            }
        });
        let count = hidden.len() / self.r.max(1);
        let again = Operand::rows(WeightView::F32(hidden), count, self.r).scaled(self.by);
        for (row, tiles) in own.chunks_exact_mut(self.depth).enumerate() {
            again.pack(Side::Left, row * SIDE, 0, self.r, &mut [&mut tiles[self.x_tiles..]]);
        }
    }
}

/// A round of a product.
struct Product<'a> {
    unit: Unit,
    /// Tiles of depth.
    depth: usize,
    m: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

/// Some columns of a round, both sides packed.
struct Packed<'a> {
    left: &'a [Tile],
    right: &'a [Tile],
    /// The columns of the result that the right side is, in 16s.
    columns: Range<usize>,
}

impl Product<'_> {
    /// Packs the right sides of `pieces` some columns at a time, the first of them together with `lefts`, and multiplies.
    fn run_in_groups<'t>(
        &self,
        mut lefts: Vec<PackJob<'t>>,
        pieces: &[Piece<'t>],
        left: SharedMut<'t, Tile>,
        right: &mut Vec<Tile>,
        out: &SharedFloats<'_>,
    ) {
        let (rows, columns) = (self.m.div_ceil(SIDE), self.n.div_ceil(SIDE));
        let most = RIGHT_BYTES / (self.depth.max(1) * size_of::<Tile>());
        let group = (most / PACK_COLUMNS * PACK_COLUMNS).max(PACK_COLUMNS);
        for first in (0..columns).step_by(group) {
            let range = first..columns.min(first + group);
            {
                let right = SharedMut::new(reserved(right, range.len() * self.depth));
                let mut jobs: Vec<PackJob<'_>> = std::mem::take(&mut lefts);
                jobs.extend(pieces.iter().map(|p| p.pack(Side::Right, self.depth).of(range.clone(), right)));
                pack_all(&jobs);
            }
            // SAFETY: packing is over, and nothing writes these tiles while the product reads them.
            let left = unsafe { left.part(0, rows * self.depth) };
            let packed = Packed { left, right: &right[..range.len() * self.depth], columns: range };
            self.run(&packed, out);
        }
    }

    fn run(&self, packed: &Packed<'_>, out: &SharedFloats<'_>) {
        let (rows, columns) = (self.m.div_ceil(SIDE), packed.columns.len());
        // The right side of a task is to stay in the second cache.
        let wide = (TASK_TILES / self.depth.max(1) / 3 * 3).clamp(3, TASK_COLUMNS);
        let (down, across) = (rows.div_ceil(TASK_ROWS), columns.div_ceil(wide));
        let work = self.m * columns * SIDE * self.depth * DEPTH;
        // Tasks with the same columns follow each other, so that a thread keeps the right side near.
        for_each_block(down * across, work, |task| {
            let (row, column) = (task % down * TASK_ROWS, task / down * wide);
            let rows = row..rows.min(row + TASK_ROWS);
            self.task(packed, rows, column..columns.min(column + wide), out);
        });
    }

    /// Some rows and columns, in 16s.
    fn task(&self, packed: &Packed<'_>, rows: Range<usize>, columns: Range<usize>, out: &SharedFloats<'_>) {
        let side = |tiles, blocks| Strip { tiles, next: self.depth, blocks };
        let left = side(packed.left, self.m.div_ceil(SIDE)).range(rows.clone());
        let right = side(packed.right, packed.columns.len()).range(columns.clone());
        let (first_row, first_column) = (rows.start * SIDE, (packed.columns.start + columns.start) * SIDE);
        self.unit.multiply_all(left, right, self.depth, |row, column, sums| {
            if first_row + row < self.m {
                self.write(sums, first_row + row, first_column + column, out);
            }
        });
    }

    /// Sums to where they belong: `row`, from `first` on.
    fn write(&self, sums: &[f32], row: usize, first: usize, out: &SharedFloats<'_>) {
        let (at, count) = (row * self.n + first, sums.len().min(self.n - first));
        let (sums, bias) = (&sums[..count], self.bias.map(|bias| &bias[first..first + count]));
        match out {
            SharedFloats::F32(out) => {
                // SAFETY: this task alone writes these columns of this row.
                let out = unsafe { out.part(at, count) };
                write_row(sums, bias, self.accumulate, out);
            }
            SharedFloats::BF16(out) => {
                // SAFETY: as above.
                let out = unsafe { out.part(at, count) };
                write_rounded(sums, bias, out);
            }
        }
    }
}

multiversion! {
    /// A row of sums to where it belongs.
    pub(crate) fn write_row(sums: &[f32], bias: Option<&[f32]>, accumulate: bool, out: &mut [f32]) {
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
