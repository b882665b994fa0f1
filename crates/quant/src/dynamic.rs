//! bitsandbytes' 8-bit blocks of floats: an absolute maximum a block, and a code into a map with a dynamic exponent.
//!
//! Source: Dettmers 2015 ("8-Bit Approximations for Parallelism in Deep Learning"), Dettmers et al. 2021 ("8-bit Optimizers via Block-wise
//! Quantization"). Two rules of bitsandbytes 0.50's CPU backend were found from what it gives, and are followed to the bit: the map's
//! decades are divided with one rounding a point, and a value is first rounded to one of 65536 steps from -1 to 1.

/// What the codes stand for, in ascending order: zero, one, and seven decades below one that each have twice as many values as the one
/// below it. With `signed`, half as many on either side of zero.
pub fn map(signed: bool) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut next = values.iter_mut();
    let mut push = |value| {
        if let Some(place) = next.next() {
            *place = value;
        }
    };
    // Zero is there already, at the end.
    push(1.0);
    for (decade, power) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let cells = if signed { 1 << decade } else { 2 << decade };
        for i in 0..cells {
            let value = power * ((boundary(i, cells) + boundary(i + 1, cells)) / 2.0);
            push(value);
            if signed {
                push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

/// Boundary `i` of `cells` equal parts from 0.1 to 1, counted from the nearer end.
fn boundary(i: usize, cells: usize) -> f32 {
    let step = (1.0 - 0.1_f32) / cells as f32;
    if i < cells.div_ceil(2) { step.mul_add(i as f32, 0.1) } else { (-step).mul_add((cells - i) as f32, 1.0) }
}

/// Codes of `values` and the absolute maximum of each block of `block_size`; the last block may be short.
///
/// A code stands for `code[c] * absmax[i / block_size]`. `code` must be ascending, from -1 or above to 1, as [`map`] gives it.
///
/// # Panics
/// When `block_size` is zero.
pub fn quantize(values: &[f32], block_size: usize, code: &[f32; 256]) -> (Vec<u8>, Vec<f32>) {
    let nearest = nearest_codes(code);
    let mut absmax = Vec::with_capacity(values.len().div_ceil(block_size));
    let mut codes = Vec::with_capacity(values.len());
    for block in values.chunks(block_size) {
        let largest = block.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
        codes.extend(block.iter().map(|v| {
            let step = (v * inverse).clamp(-1.0, 1.0) + 1.0;
            nearest[(step * 32767.5 + 0.5) as usize & 0xffff]
        }));
        absmax.push(largest);
    }
    (codes, absmax)
}

/// The code that is nearest to each of 65536 steps from -1 to 1.
fn nearest_codes(code: &[f32; 256]) -> Vec<u8> {
    let mut nearest = 0_u8;
    let step = |i: u16| -1.0 + 2.0 * f32::from(i) / 65535.0;
    (0..=u16::MAX)
        .map(|i| {
            while let Some(next) = code.get(usize::from(nearest) + 1) {
                if step(i) <= (code[usize::from(nearest)] + next) / 2.0 {
                    break;
                }
                nearest += 1;
            }
            nearest
        })
        .collect()
}
