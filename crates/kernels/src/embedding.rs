//! Rows of a table by id, and the gradient of that.

use crate::gemm::WeightView;
use crate::threads;
use rayon::prelude::*;

/// Columns of the table's gradient that one task adds to.
const COLUMN_BLOCK: usize = 256;

/// out `[T,H]` = rows `ids` `[T]` of the table `[V,H]`, widened to `f32`.
///
/// # Panics
/// When a length does not fit, or an id is outside the table.
pub fn gather(table: WeightView<'_>, h: usize, ids: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * h, "length of out for {} ids and H={h}", ids.len());
    assert!(h > 0 && table.len().is_multiple_of(h), "a table of {} elements and H={h}", table.len());
    check_ids(ids, table.len() / h);
    threads::for_each_rows(out, h, threads::rows_per_block(h), |first, block| {
        for (row, &id) in block.chunks_exact_mut(h).zip(&ids[first..]) {
            table.widen(id as usize * h, row);
        }
    });
}

/// Adds each row of g `[T,H]` to row `ids[t]` of dtable `[V,H]`, in the order of t.
///
/// # Panics
/// When a length does not fit, or an id is outside the table.
pub fn scatter_add(g: &[f32], ids: &[u32], dtable: &mut [f32], h: usize) {
    assert_eq!(g.len(), ids.len() * h, "length of g for {} ids and H={h}", ids.len());
    assert!(h > 0 && dtable.len().is_multiple_of(h), "a table of {} elements and H={h}", dtable.len());
    check_ids(ids, dtable.len() / h);
    // Tokens grouped by id (a stable sort keeps their order), so that each row of the table belongs to one task.
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&t| ids[t as usize]);
    let mut rows: Vec<(&mut [f32], &[u32])> = Vec::new();
    let mut rest = dtable;
    let mut next_id = 0;
    for group in order.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]) {
        let id = ids[group[0] as usize] as usize;
        let (_, tail) = rest.split_at_mut((id - next_id) * h);
        let (row, tail) = tail.split_at_mut(h);
        rows.push((row, group));
        (rest, next_id) = (tail, id + 1);
    }
    rows.into_par_iter().for_each(|(row, group)| {
        row.par_chunks_mut(COLUMN_BLOCK).enumerate().for_each(|(block, row)| {
            for &t in group {
                let at = t as usize * h + block * COLUMN_BLOCK;
                crate::reduce::add_block(&g[at..at + row.len()], row);
            }
        });
    });
}

/// out `[T,r]` = columns `ids` `[T]` of the matrix `[r,V]`.
///
/// # Panics
/// When a length does not fit, or an id is outside the matrix.
pub fn gather_columns(matrix: &[f32], v: usize, ids: &[u32], out: &mut [f32]) {
    let r = column_length(matrix.len(), v, ids, out.len());
    for (out, &id) in out.chunks_exact_mut(r).zip(ids) {
        for (row, out) in out.iter_mut().enumerate() {
            *out = matrix[row * v + id as usize];
        }
    }
}

/// Adds each row of g `[T,r]` to column `ids[t]` of dmatrix `[r,V]`, in the order of t.
///
/// # Panics
/// When a length does not fit, or an id is outside the matrix.
pub fn scatter_add_columns(g: &[f32], ids: &[u32], dmatrix: &mut [f32], v: usize) {
    let r = column_length(dmatrix.len(), v, ids, g.len());
    for (g, &id) in g.chunks_exact(r).zip(ids) {
        for (row, g) in g.iter().enumerate() {
            dmatrix[row * v + id as usize] += g;
        }
    }
}

fn column_length(matrix: usize, v: usize, ids: &[u32], rows: usize) -> usize {
    assert!(v > 0 && matrix.is_multiple_of(v) && matrix > 0, "a matrix of {matrix} elements and V={v}");
    let r = matrix / v;
    assert_eq!(rows, ids.len() * r, "elements for {} ids and columns of {r}", ids.len());
    check_ids(ids, v);
    r
}

fn check_ids(ids: &[u32], rows: usize) {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("id {id} in a table of {rows} rows");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn gathering_widens_the_named_rows() {
        let table: Vec<f32> = (0..7 * 5).map(|i| i as f32 * 0.25).collect();
        let ids = [6, 0, 3, 3];
        let narrow: Vec<bf16> = table.iter().map(|&x| bf16::from_f32(x)).collect();
        let half: Vec<f16> = table.iter().map(|&x| f16::from_f32(x)).collect();
        for view in [WeightView::F32(&table), WeightView::BF16(&narrow), WeightView::F16(&half)] {
            let mut out = [f32::NAN; 20];
            gather(view, 5, &ids, &mut out);
            for (t, &id) in ids.iter().enumerate() {
                assert_eq!(out[t * 5..t * 5 + 5], table[id as usize * 5..id as usize * 5 + 5]);
            }
        }
    }

    #[test]
    fn scattering_adds_in_token_order() {
        for (t, v, h) in [(0usize, 3usize, 4usize), (1, 1, 1), (50, 9, 300), (400, 13, 7)] {
            let rng = crate::rng::CounterRng::new(2, t as u64);
            let ids: Vec<u32> = (0..t as u64).map(|i| rng.below(i, v as u64) as u32).collect();
            let mut g = vec![0.0; t * h];
            rng.fill_uniform(0, -1.0, 1.0, &mut g);
            let mut got = vec![0.5f32; v * h];
            let mut want = got.clone();
            scatter_add(&g, &ids, &mut got, h);
            for (t, &id) in ids.iter().enumerate() {
                for c in 0..h {
                    want[id as usize * h + c] += g[t * h + c];
                }
            }
            assert_eq!(got, want);
        }
    }

    #[test]
    fn columns_are_gathered_and_scattered_as_rows_of_the_transpose() {
        let (r, v, ids) = (3, 7, [6u32, 0, 3, 3]);
        let matrix = crate::testing::random(r * v, 1);
        let transpose: Vec<f32> = (0..v * r).map(|i| matrix[i % r * v + i / r]).collect();
        let (mut out, mut want) = (vec![f32::NAN; 12], vec![f32::NAN; 12]);
        gather_columns(&matrix, v, &ids, &mut out);
        gather(WeightView::F32(&transpose), r, &ids, &mut want);
        assert_eq!(out, want);
        let (mut got, mut want) = (matrix.clone(), transpose);
        scatter_add_columns(&out, &ids, &mut got, v);
        scatter_add(&out, &ids, &mut want, r);
        assert!((0..v * r).all(|i| got[i % r * v + i / r] == want[i]));
    }

    #[test]
    #[should_panic(expected = "id 3 in a table of 3 rows")]
    fn an_id_outside_the_table_is_named() {
        gather(WeightView::F32(&[0.0; 6]), 2, &[3], &mut [0.0; 2]);
    }
}
