//! Super-blocks of 256, by a search.
//!
//! For each sub-block, codes are made with some steps around the obvious one; for each, the scale (and minimum) that minimise the weighted
//! squared error with these codes are known in closed form, and the best step wins. The scales are then rounded to the super-block's own
//! scale, which costs most; so the rounded ones and their neighbours are tried with the codes that suit them, and at last the super-block's
//! scales are solved for once more with all codes held. A value weighs `rms + |value|`: large weights matter more to a product.

use super::half;
use half::f16;

/// `d * scale * q - dmin * min`, q of 4 bits.
pub(super) fn q4_k(values: &[f32; 256]) -> Option<[u8; 144]> {
    let coded = Affine::search(values, 15.0)?;
    let mut block = [0; 144];
    block[..16].copy_from_slice(&coded.head());
    coded.nibbles(&mut block[16..]);
    Some(block)
}

/// `d * scale * q - dmin * min`, q of 5 bits.
pub(super) fn q5_k(values: &[f32; 256]) -> Option<[u8; 176]> {
    let coded = Affine::search(values, 31.0)?;
    let mut block = [0; 176];
    block[..16].copy_from_slice(&coded.head());
    for (i, code) in coded.codes.as_flattened().iter().enumerate() {
        block[16 + i % 32] |= (*code as u8 >> 4) << (i / 32);
    }
    coded.nibbles(&mut block[48..]);
    Some(block)
}

/// `d * scale * (q - 32)`, q of 6 bits.
pub(super) fn q6_k(values: &[f32; 256]) -> Option<[u8; 210]> {
    let coded = Symmetric::search(values)?;
    let mut block = [0; 210];
    for (i, code) in coded.codes.as_flattened().iter().enumerate() {
        let code = (*code + 32.0) as u8;
        let (part, j) = (i / 128, i % 128);
        block[part * 64 + j % 64] |= (code & 15) << (j / 64 * 4);
        block[128 + part * 32 + j % 32] |= (code >> 4) << (j / 32 * 2);
    }
    for (byte, scale) in block[192..208].iter_mut().zip(coded.scales) {
        *byte = (scale as i8).cast_unsigned();
    }
    block[208..].copy_from_slice(&coded.d.to_le_bytes());
    Some(block)
}

/// A super-block of eight sub-blocks with scale and minimum; codes are whole numbers in f32.
struct Affine {
    d: f16,
    dmin: f16,
    scales: [f32; 8],
    mins: [f32; 8],
    codes: [[f32; 32]; 8],
}

impl Affine {
    fn search(values: &[f32; 256], largest: f32) -> Option<Self> {
        check_size(values)?;
        let blocks: &[[f32; 32]; 8] = values.as_chunks().0.try_into().ok()?;
        let weights = blocks.map(|block| weights(&block));
        let mut wanted = [(0.0, 0.0); 8];
        for ((wanted, block), weights) in wanted.iter_mut().zip(blocks).zip(&weights) {
            *wanted = affine_step(block, weights, largest);
        }
        let max_scale = wanted.iter().fold(0.0_f32, |m, w| m.max(w.0));
        let max_min = wanted.iter().fold(0.0_f32, |m, w| m.max(w.1));
        let (d, dmin) = (half(max_scale / 63.0)?, half(max_min / 63.0)?);
        let mut coded = Self { d, dmin, scales: [0.0; 8], mins: [0.0; 8], codes: [[0.0; 32]; 8] };
        let error = coded.fit(blocks, &weights, largest, &wanted);
        // With the codes held, the two scales of the super-block that suit them best; kept when they are better once rounded.
        let (d, dmin) = coded.solve(blocks, &weights);
        if let (Some(d), Some(dmin)) = (half(d), half(dmin))
            && d >= f16::ZERO
            && dmin >= f16::ZERO
        {
            let mut again = Self { d, dmin, ..coded };
            if again.fit(blocks, &weights, largest, &wanted) < error {
                return Some(again);
            }
        }
        Some(coded)
    }

    /// Integer scales near the wanted ones, with their codes; gives the error.
    fn fit(
        &mut self,
        blocks: &[[f32; 32]; 8],
        weights: &[[f32; 32]; 8],
        largest: f32,
        wanted: &[(f32, f32); 8],
    ) -> f32 {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let mut total = 0.0;
        for (g, (block, weights)) in blocks.iter().zip(weights).enumerate() {
            let near = |wanted: f32, d: f32| if d > 0.0 { (wanted / d).round() } else { 0.0 };
            let (scale, min) = (near(wanted[g].0, d), near(wanted[g].1, dmin));
            let mut best = f32::INFINITY;
            for scale in [scale, scale - 1.0, scale + 1.0].map(|s| s.clamp(0.0, 63.0)) {
                for min in [min, min - 1.0, min + 1.0].map(|m| m.clamp(0.0, 63.0)) {
                    let (step, low) = (d * scale, dmin * min);
                    let codes = affine_codes(block, step, low, largest);
                    let error = weighted_error(block, weights, &codes, step, -low);
                    if error < best {
                        best = error;
                        (self.scales[g], self.mins[g], self.codes[g]) = (scale, min, codes);
                    }
                }
            }
            total += best;
        }
        total
    }

    /// The `d` and `dmin` that minimise the error with scales, minima and codes as they are.
    fn solve(&self, blocks: &[[f32; 32]; 8], weights: &[[f32; 32]; 8]) -> (f32, f32) {
        // Of the normal equations of x = d * a - dmin * b.
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (g, (block, weights)) in blocks.iter().zip(weights).enumerate() {
            for ((x, w), q) in block.iter().zip(weights).zip(&self.codes[g]) {
                let (a, b) = (self.scales[g] * q, -self.mins[g]);
                aa += w * a * a;
                ab += w * a * b;
                bb += w * b * b;
                ax += w * a * x;
                bx += w * b * x;
            }
        }
        let determinant = aa * bb - ab * ab;
        if determinant > 0.0 {
            ((ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant)
        } else {
            // No minimum, or no scale, in the whole super-block.
            let d = if aa > 0.0 { ax / aa } else { self.d.to_f32() };
            (d, self.dmin.to_f32())
        }
    }

    /// Both half-precision scales and the twelve bytes of the integer ones.
    fn head(&self) -> [u8; 16] {
        let mut head = [0; 16];
        head[..2].copy_from_slice(&self.d.to_le_bytes());
        head[2..4].copy_from_slice(&self.dmin.to_le_bytes());
        let packed = &mut head[4..];
        for g in 0..4 {
            packed[g] = self.scales[g] as u8;
            packed[g + 4] = self.mins[g] as u8;
        }
        for g in 4..8 {
            let (scale, min) = (self.scales[g] as u8, self.mins[g] as u8);
            packed[g + 4] = scale & 15 | (min & 15) << 4;
            packed[g - 4] |= scale >> 4 << 6;
            packed[g] |= min >> 4 << 6;
        }
        head
    }

    /// The four low bits of the codes.
    fn nibbles(&self, bytes: &mut [u8]) {
        for (i, code) in self.codes.as_flattened().iter().enumerate() {
            bytes[i / 64 * 32 + i % 32] |= (*code as u8 & 15) << (i / 32 % 2 * 4);
        }
    }
}

/// A super-block of sixteen sub-blocks with a signed scale.
struct Symmetric {
    d: f16,
    scales: [f32; 16],
    codes: [[f32; 16]; 16],
}

impl Symmetric {
    fn search(values: &[f32; 256]) -> Option<Self> {
        check_size(values)?;
        let blocks: &[[f32; 16]; 16] = values.as_chunks().0.try_into().ok()?;
        let weights = blocks.map(|block| weights(&block));
        let mut wanted = [0.0; 16];
        for ((wanted, block), weights) in wanted.iter_mut().zip(blocks).zip(&weights) {
            *wanted = symmetric_step(block, weights);
        }
        let extreme = wanted.iter().fold(0.0_f32, |m, w| if w.abs() > m.abs() { *w } else { m });
        // A byte reaches further below zero.
        let mut coded = Self { d: half(extreme / -128.0)?, scales: [0.0; 16], codes: [[0.0; 16]; 16] };
        let error = coded.fit(blocks, &weights, &wanted);
        let (mut ax, mut aa) = (0.0, 0.0);
        for (g, (block, weights)) in blocks.iter().zip(&weights).enumerate() {
            for ((x, w), q) in block.iter().zip(weights).zip(&coded.codes[g]) {
                let a = coded.scales[g] * q;
                ax += w * a * x;
                aa += w * a * a;
            }
        }
        if aa > 0.0
            && let Some(d) = half(ax / aa)
        {
            let mut again = Self { d, ..coded };
            if again.fit(blocks, &weights, &wanted) < error {
                return Some(again);
            }
        }
        Some(coded)
    }

    /// Integer scales near the wanted ones, with their codes; gives the error.
    fn fit(&mut self, blocks: &[[f32; 16]; 16], weights: &[[f32; 16]; 16], wanted: &[f32; 16]) -> f32 {
        let d = self.d.to_f32();
        let mut total = 0.0;
        for (g, (block, weights)) in blocks.iter().zip(weights).enumerate() {
            let near = if d == 0.0 { 0.0 } else { (wanted[g] / d).round() };
            let mut best = f32::INFINITY;
            for scale in [near, near - 1.0, near + 1.0].map(|s| s.clamp(-128.0, 127.0)) {
                let step = d * scale;
                let codes = symmetric_codes(block, inverse(step));
                let error = weighted_error(block, weights, &codes, step, 0.0);
                if error < best {
                    best = error;
                    (self.scales[g], self.codes[g]) = (scale, codes);
                }
            }
            total += best;
        }
        total
    }
}

/// What no half-precision scale reaches would make the errors infinite as well.
fn check_size(values: &[f32; 256]) -> Option<()> {
    values.iter().all(|v| v.abs() < 1e9).then_some(())
}

fn weights<const N: usize>(block: &[f32; N]) -> [f32; N] {
    let rms = (dot(block, block) / N as f32).sqrt();
    block.map(|v| rms + v.abs())
}

/// The scale and the minimum (taken off, not negative) of one sub-block.
fn affine_step(block: &[f32; 32], weights: &[f32; 32], largest: f32) -> (f32, f32) {
    let (low, high) = block.iter().fold((0.0_f32, block[0]), |(low, high), v| (low.min(*v), high.max(*v)));
    if high <= low {
        return (0.0, -low);
    }
    let (weight, weighted) = (sum(weights), dot(weights, block));
    let mut best = (f32::INFINITY, (0.0, 0.0));
    for trial in -10..=10_i8 {
        let step = (high - low) / (largest + f32::from(trial) * 0.1);
        let codes = affine_codes(block, step, -low, largest);
        let (scale, offset) = least_squares(block, weights, &codes, weight, weighted);
        let error = weighted_error(block, weights, &codes, scale, offset);
        if error < best.0 {
            best = (error, (scale, -offset));
        }
    }
    best.1
}

/// The scale and the offset, which is not above zero, that minimise the error with these codes; `weight` and `weighted` are the sums of
/// the weights, and of the values times their weights.
fn least_squares(
    block: &[f32; 32],
    weights: &[f32; 32],
    codes: &[f32; 32],
    weight: f32,
    weighted: f32,
) -> (f32, f32) {
    let weighted_codes = product(weights, codes);
    let (sq, sqq, sqx) = (sum(&weighted_codes), dot(&weighted_codes, codes), dot(&weighted_codes, block));
    let determinant = weight * sqq - sq * sq;
    if determinant > 0.0 {
        let offset = (sqq * weighted - sq * sqx) / determinant;
        if offset <= 0.0 {
            return (((weight * sqx - sq * weighted) / determinant).max(0.0), offset);
        }
    }
    (if sqq > 0.0 { (sqx / sqq).max(0.0) } else { 0.0 }, 0.0)
}

fn affine_codes(block: &[f32; 32], step: f32, low: f32, largest: f32) -> [f32; 32] {
    let inverse = inverse(step);
    block.map(|v| nearest(((v + low) * inverse).clamp(0.0, largest)))
}

/// The sum of `weight * (step * code + offset - value)^2`.
fn weighted_error<const N: usize>(
    block: &[f32; N],
    weights: &[f32; N],
    codes: &[f32; N],
    step: f32,
    offset: f32,
) -> f32 {
    let mut differences = [0.0; N];
    for ((difference, x), q) in differences.iter_mut().zip(block).zip(codes) {
        *difference = step * q + offset - x;
    }
    dot(&product(weights, &differences), &differences)
}

fn product<const N: usize>(a: &[f32; N], b: &[f32; N]) -> [f32; N] {
    let mut out = [0.0; N];
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a * b;
    }
    out
}

fn dot<const N: usize>(a: &[f32; N], b: &[f32; N]) -> f32 {
    sum(&product(a, b))
}

/// In eight lanes, which the compiler may add side by side.
fn sum<const N: usize>(values: &[f32; N]) -> f32 {
    const { assert!(N.is_multiple_of(8)) };
    let mut lanes = [0.0; 8];
    for eight in values.as_chunks::<8>().0 {
        for (lane, v) in lanes.iter_mut().zip(eight) {
            *lane += v;
        }
    }
    lanes.iter().sum()
}

/// The signed scale of one sub-block: the extreme value is near code -32.
fn symmetric_step(block: &[f32; 16], weights: &[f32; 16]) -> f32 {
    let extreme = block.iter().fold(0.0_f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let mut best = (f32::INFINITY, 0.0);
    for trial in -9..=9_i8 {
        let codes = symmetric_codes(block, inverse(-extreme / (32.0 + f32::from(trial) * 0.1)));
        let weighted_codes = product(weights, &codes);
        let (sqx, sqq) = (dot(&weighted_codes, block), dot(&weighted_codes, &codes));
        let scale = if sqq > 0.0 { sqx / sqq } else { 0.0 };
        let error = weighted_error(block, weights, &codes, scale, 0.0);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

fn symmetric_codes(block: &[f32; 16], inverse: f32) -> [f32; 16] {
    block.map(|v| nearest((v * inverse).clamp(-32.0, 31.0)))
}

/// Finite, so that zero times it is no trouble: a step that is too small for a reciprocal has the codes of a step of zero.
fn inverse(step: f32) -> f32 {
    let inverse = 1.0 / step;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The nearest whole number of a small one: beyond 2^23 a float has no fraction. (`round` is a call where SSE4.1 is not taken for granted.)
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    value + SHIFT - SHIFT
}
