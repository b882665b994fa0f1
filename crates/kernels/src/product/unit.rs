//! The innermost loop, once for each kind of machine: a block of the result from packed tiles.
//!
//! | unit | machines | block | a step |
//! | --- | --- | --- | --- |
//! | [`Unit::Amx`] | Intel from Sapphire Rapids | 32 x 32 | TDPBF16PS over four tiles |
//! | [`Unit::Bf16`] | AMD from Zen 4 (AVX512_BF16) | 16 x 48 | VDPBF16PS |
//! | [`Unit::Lanes`] | all others | 16 x 16 | pairs widened to `f32`, fused multiply-add where there is one |
//!
//! On Intel's cores VDPBF16PS runs at half the rate of an `f32` multiply-add, so it is taken only where there is no AMX.

use super::tile::{SIDE, Tile};
use core::ops::Range;

/// The most elements of a block.
pub(crate) const BLOCK: usize = 2 * SIDE * 3 * SIDE;

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Bf16,
    Lanes,
}

/// Packed tiles of one side: 16 vectors of `depth` tiles each, `next` tiles from one 16 to the next.
#[derive(Clone, Copy)]
pub(crate) struct Strip<'a> {
    pub(crate) tiles: &'a [Tile],
    pub(crate) next: usize,
    /// How many 16 vectors there are.
    pub(crate) blocks: usize,
}

impl<'a> Strip<'a> {
    /// The tiles of 16 vectors.
    fn block(&self, index: usize, depth: usize) -> &[Tile] {
        &self.tiles[index * self.next..][..depth]
    }

    /// The 16 vectors from `first` on, at most `most` of them.
    fn part(&self, first: usize, most: usize) -> Self {
        Self { tiles: &self.tiles[first * self.next..], blocks: most.min(self.blocks - first), ..*self }
    }

    /// The 16 vectors `blocks`.
    pub(crate) fn range(&self, blocks: Range<usize>) -> Self {
        self.part(blocks.start, blocks.len())
    }
}

/// On a cache line, as the units like it.
#[repr(C, align(64))]
struct Block([f32; BLOCK]);

impl Unit {
    /// The fastest that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(test)]
        if let Some(unit) = FORCED.get() {
            return unit;
        }
        #[cfg(target_arch = "x86_64")]
        {
            if super::amx::is_available() {
                return Self::Amx;
            }
            if super::avx512::is_available() {
                return Self::Bf16;
            }
        }
        Self::Lanes
    }

    /// Rows and columns of a block, in 16s.
    fn block(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => (2, 2),
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => (1, 3),
            Self::Lanes => (1, 1),
        }
    }

    /// `left right`, summed over `depth` tiles, on this thread, block by block. `put` is given the result in parts: a row, its first column, and the
    /// sums from there on, which at the edges go beyond the operands to whole 16s.
    ///
    /// # Panics
    /// When a strip is shorter than it says.
    pub(crate) fn multiply_all(
        self,
        left: Strip<'_>,
        right: Strip<'_>,
        depth: usize,
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        let (high, wide) = self.block();
        let mut block = Block([0.0; BLOCK]);
        self.ready(|| {
            for row in (0..left.blocks).step_by(high) {
                let left = left.part(row, high);
                for column in (0..right.blocks).step_by(wide) {
                    let right = right.part(column, wide);
                    self.multiply(left, right, depth, &mut block.0);
                    let rows = block.0.chunks_exact(right.blocks * SIDE).take(left.blocks * SIDE);
                    for (at, sums) in rows.enumerate() {
                        put(row * SIDE + at, column * SIDE, sums);
                    }
                }
            }
        });
    }

    /// Makes this thread ready for [`Self::multiply`] as long as `body` runs.
    fn ready<R>(self, body: impl FnOnce() -> R) -> R {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => super::amx::with_tiles(body),
            _ => body(),
        }
    }

    /// `out = left right`, summed over `depth` tiles: rows of 16 `right.blocks` elements, 16 `left.blocks` of them. At most a block.
    ///
    /// # Panics
    /// When a strip is shorter than it says.
    fn multiply(self, left: Strip<'_>, right: Strip<'_>, depth: usize, out: &mut [f32; BLOCK]) {
        let (rows, columns) = self.block();
        assert!(left.blocks <= rows && right.blocks <= columns, "a block of {rows} x {columns}");
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => {
                // An edge of one tile is computed twice rather than by a kernel of its own.
                let (l, r) = (left.blocks - 1, right.blocks - 1);
                let sides = [left.block(0, depth), left.block(l, depth)];
                super::amx::multiply(
                    sides,
                    [right.block(0, depth), right.block(r, depth)],
                    16 * right.blocks,
                    out,
                );
            }
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => {
                let left = left.block(0, depth);
                match right.blocks {
                    1 => super::avx512::multiply(left, [right.block(0, depth)], out),
                    2 => super::avx512::multiply(left, [0, 1].map(|i| right.block(i, depth)), out),
                    _ => super::avx512::multiply(left, [0, 1, 2].map(|i| right.block(i, depth)), out),
                }
            }
            Self::Lanes => super::lanes::multiply(left.block(0, depth), right.block(0, depth), out),
        }
    }
}

#[cfg(test)]
thread_local! {
    /// A unit to use instead of the fastest, on this thread.
    pub(crate) static FORCED: core::cell::Cell<Option<Unit>> = const { core::cell::Cell::new(None) };
}
