//! Some columns of a matrix, and the gradient of that.

use crate::floats::{Floats, FloatsMut};
use crate::reduce::add_block;
use core::ops::Range;

/// y `[T,n]` = columns `range` of x `[T,width]`.
///
/// # Panics
/// When the types differ or a length does not fit.
pub fn columns(x: Floats<'_>, y: FloatsMut<'_>, width: usize, range: Range<usize>) {
    assert_eq!(x.len() / width * range.len(), y.len(), "lengths of x and y for columns {range:?} of {width}");
    match (x, y) {
        (Floats::F32(x), FloatsMut::F32(y)) => copy(x, y, width, range),
        (Floats::BF16(x), FloatsMut::BF16(y)) => copy(x, y, width, range),
        _ => panic!("columns of another type"),
    }
}

fn copy<T: Copy>(x: &[T], y: &mut [T], width: usize, range: Range<usize>) {
    for (y, x) in y.chunks_exact_mut(range.len()).zip(x.chunks_exact(width)) {
        y.copy_from_slice(&x[range.clone()]);
    }
}

/// Adds g `[T,n]` to columns `range` of dx `[T,width]`.
///
/// # Panics
/// When a length does not fit.
pub fn add_columns(g: &[f32], dx: &mut [f32], width: usize, range: Range<usize>) {
    assert_eq!(
        dx.len() / width * range.len(),
        g.len(),
        "lengths of dx and g for columns {range:?} of {width}"
    );
    for (dx, g) in dx.chunks_exact_mut(width).zip(g.chunks_exact(range.len())) {
        add_block(g, &mut dx[range.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn what_is_cut_out_is_added_back_in_its_place() {
        let (t, width) = (5, 7);
        let x = random(t * width, 1);
        for range in [0..3, 2..7, 6..7] {
            let mut y = vec![f32::NAN; t * range.len()];
            columns(Floats::F32(&x), FloatsMut::F32(&mut y), width, range.clone());
            let mut back = vec![1.0; t * width];
            add_columns(&y, &mut back, width, range.clone());
            for (i, value) in back.iter().enumerate() {
                let wanted = if range.contains(&(i % width)) { 1.0 + x[i] } else { 1.0 };
                assert_eq!(*value, wanted);
            }
        }
    }
}
