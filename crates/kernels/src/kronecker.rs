//! Kronecker products, and the gradients of that.

/// Sizes of a and b: `[m, n]` and `[p, q]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KroneckerShape {
    /// Rows and columns of a.
    pub a: (usize, usize),
    /// Rows and columns of b.
    pub b: (usize, usize),
}

impl KroneckerShape {
    /// Rows and columns of the product.
    pub fn out(&self) -> (usize, usize) {
        (self.a.0 * self.b.0, self.a.1 * self.b.1)
    }

    fn check(&self, a: usize, b: usize, out: usize) {
        let (rows, columns) = self.out();
        let want = (self.a.0 * self.a.1, self.b.0 * self.b.1, rows * columns);
        assert_eq!((a, b, out), want, "lengths of a, b and their product");
    }

    /// Rows of b within the product: `(index in a, index in b, index in the product)` of where each begins.
    fn runs(self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (((m, n), (p, q)), width) = ((self.a, self.b), self.out().1);
        (0..m).flat_map(move |i| {
            (0..p).flat_map(move |k| (0..n).map(move |j| (i * n + j, k * q, (i * p + k) * width + j * q)))
        })
    }
}

/// `out[i p + k, j q + l] = a[i, j] b[k, l]`.
///
/// # Panics
/// When a length does not fit.
pub fn kronecker(a: &[f32], b: &[f32], out: &mut [f32], shape: KroneckerShape) {
    shape.check(a.len(), b.len(), out.len());
    let q = shape.b.1;
    for (i, k, at) in shape.runs() {
        for (out, b) in out[at..at + q].iter_mut().zip(&b[k..k + q]) {
            *out = a[i] * b;
        }
    }
}

/// Adds to da `[m, n]` what the gradient g of the product is by a: `sum over k, l of g b`.
///
/// # Panics
/// When a length does not fit.
pub fn add_gradient_a(g: &[f32], b: &[f32], da: &mut [f32], shape: KroneckerShape) {
    shape.check(da.len(), b.len(), g.len());
    let q = shape.b.1;
    for (i, k, at) in shape.runs() {
        da[i] += g[at..at + q].iter().zip(&b[k..k + q]).map(|(g, b)| g * b).sum::<f32>();
    }
}

/// Adds to db `[p, q]` what it is by b: `sum over i, j of g a`.
///
/// # Panics
/// When a length does not fit.
pub fn add_gradient_b(g: &[f32], a: &[f32], db: &mut [f32], shape: KroneckerShape) {
    shape.check(a.len(), db.len(), g.len());
    let q = shape.b.1;
    for (i, k, at) in shape.runs() {
        for (db, g) in db[k..k + q].iter_mut().zip(&g[at..at + q]) {
            *db += g * a[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{poisoned, random};

    #[test]
    fn every_element_is_a_product_and_gives_its_gradient_to_both() {
        let shape = KroneckerShape { a: (2, 3), b: (4, 5) };
        let (a, b) = (random(6, 1), random(20, 2));
        let (rows, columns) = shape.out();
        let mut out = poisoned(rows * columns);
        kronecker(&a, &b, &mut out, shape);
        let g = random(out.len(), 3);
        let (mut want_a, mut want_b) = (vec![1.0f64; 6], vec![1.0f64; 20]);
        for row in 0..rows {
            for column in 0..columns {
                let (i, k) = (row / 4 * 3 + column / 5, row % 4 * 5 + column % 5);
                let at = row * columns + column;
                assert_eq!(out[at], a[i] * b[k]);
                want_a[i] += f64::from(g[at]) * f64::from(b[k]);
                want_b[k] += f64::from(g[at]) * f64::from(a[i]);
            }
        }
        let (mut da, mut db) = (vec![1.0; 6], vec![1.0; 20]);
        add_gradient_a(&g, &b, &mut da, shape);
        add_gradient_b(&g, &a, &mut db, shape);
        crate::testing::assert_close(&da, &want_a, 1e-6, "da");
        crate::testing::assert_close(&db, &want_b, 1e-6, "db");
    }
}
