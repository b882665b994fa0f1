//! The pairing of two lists with the greatest sum of weights.

/// For each row its column, so that the sum of `weight(row, column)` over the pairs is the greatest possible and
/// `min(rows, columns)` pairs are made. Of several such pairings always the same one.
///
/// The Hungarian method with potentials (Kuhn 1955; Munkres 1957), `O(min² max)` steps. Weights must be below 2^40 in size.
pub(crate) fn best_pairing(
    rows: usize,
    columns: usize,
    weight: &dyn Fn(usize, usize) -> i64,
) -> Vec<Option<usize>> {
    if rows > columns {
        let mut paired = vec![None; rows];
        for (column, row) in best_pairing(columns, rows, &|c, r| weight(r, c)).into_iter().enumerate() {
            if let Some(row) = row {
                paired[row] = Some(column);
            }
        }
        return paired;
    }
    // Rows and columns count from 1; 0 is the row or column that is not there. Costs are weights with the sign turned.
    let (mut row_price, mut column_price) = (vec![0i64; rows + 1], vec![0i64; columns + 1]);
    let mut row_of = vec![0usize; columns + 1];
    for row in 1..=rows {
        row_of[0] = row;
        let mut column = 0;
        let mut least = vec![i64::MAX; columns + 1];
        let mut came_from = vec![0usize; columns + 1];
        let mut is_done = vec![false; columns + 1];
        while row_of[column] != 0 {
            is_done[column] = true;
            let here = row_of[column];
            let (mut step, mut next) = (i64::MAX, 0);
            for other in (1..=columns).filter(|other| !is_done[*other]) {
                let cost = -weight(here - 1, other - 1) - row_price[here] - column_price[other];
                if cost < least[other] {
                    (least[other], came_from[other]) = (cost, column);
                }
                if least[other] < step {
                    (step, next) = (least[other], other);
                }
            }
            for (other, done) in is_done.iter().enumerate() {
                if *done {
                    row_price[row_of[other]] += step;
                    column_price[other] -= step;
                } else if least[other] < i64::MAX {
                    least[other] -= step;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[came_from[column]];
            column = came_from[column];
        }
    }
    let mut paired = vec![None; rows];
    for (column, row) in row_of.into_iter().enumerate().skip(1).filter(|(_, row)| *row > 0) {
        paired[row - 1] = Some(column - 1);
    }
    paired
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_kernels::rng::CounterRng;

    /// The greatest sum by trying every pairing.
    fn by_trying(weights: &[Vec<i64>], row: usize, used: &mut Vec<bool>, skips: usize) -> i64 {
        if row == weights.len() {
            return 0;
        }
        let mut best = if skips > 0 { by_trying(weights, row + 1, used, skips - 1) } else { i64::MIN / 2 };
        for (column, weight) in weights[row].iter().enumerate() {
            if !used[column] {
                used[column] = true;
                best = best.max(weight + by_trying(weights, row + 1, used, skips));
                used[column] = false;
            }
        }
        best
    }

    #[test]
    fn the_pairing_is_as_good_as_the_best_of_all() {
        let rng = CounterRng::new(1, 2);
        let mut at = 0;
        for (rows, columns) in [(1, 1), (2, 5), (5, 2), (4, 4), (6, 6), (5, 6), (0, 3), (3, 0)] {
            for most in [2, 100] {
                let weights: Vec<Vec<i64>> = (0..rows)
                    .map(|_| {
                        (0..columns)
                            .map(|_| {
                                at += 1;
                                rng.below(at, most) as i64 - 1
                            })
                            .collect()
                    })
                    .collect();
                let paired = best_pairing(rows, columns, &|r, c| weights[r][c]);
                let sum: i64 = paired.iter().enumerate().filter_map(|(r, c)| Some(weights[r][(*c)?])).sum();
                let mut used = vec![false; columns];
                let skips = rows.saturating_sub(columns);
                assert_eq!(sum, by_trying(&weights, 0, &mut used, skips), "{weights:?}");
                assert_eq!(paired.iter().flatten().count(), rows.min(columns));
            }
        }
    }
}
