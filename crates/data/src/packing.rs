//! Several examples in one row.
//!
//! First-fit decreasing inside a window: the examples of a window are taken longest first, and each goes into the first
//! row of the window that has room. The window keeps what an epoch sees close to the order that was drawn. (D. S. Johnson,
//! Near-optimal bin packing algorithms, 1973: at most 11/9 of the fewest rows, plus a constant.)

/// Examples that are packed together.
pub const PACKING_WINDOW: usize = 1024;

/// Rows of at most `max_length` tokens. `order` holds indices into `lengths` (tokens of each example); each stands in
/// exactly one row. An example over `max_length` has a row of its own. The same input gives the same rows.
pub fn pack(lengths: &[usize], order: &[u32], max_length: usize) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    for window in order.chunks(PACKING_WINDOW) {
        let mut window = window.to_vec();
        // A stable sort: examples of one length keep the order that was drawn.
        window.sort_by_key(|&index| std::cmp::Reverse(lengths[index as usize]));
        let first = rows.len();
        let mut room: Vec<usize> = Vec::new();
        for index in window {
            let length = lengths[index as usize];
            match room.iter().position(|&room| room >= length) {
                Some(row) => {
                    room[row] -= length;
                    rows[first + row].push(index);
                }
                None => {
                    room.push(max_length.saturating_sub(length));
                    rows.push(vec![index]);
                }
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_examples_fill_what_long_ones_leave() {
        assert_eq!(pack(&[3, 10, 7, 5, 5], &[0, 1, 2, 3, 4], 10), [vec![1], vec![2, 0], vec![3, 4]]);
    }

    proptest! {
        #[test]
        fn every_example_stands_in_exactly_one_row_and_no_row_is_over_its_length(
            lengths in prop::collection::vec(1usize..70, 1..2500), max_length in 64usize..200,
        ) {
            let order: Vec<u32> = (0..lengths.len() as u32).rev().collect();
            let rows = pack(&lengths, &order, max_length);
            let mut seen: Vec<u32> = rows.concat();
            seen.sort_unstable();
            prop_assert!(seen.iter().copied().eq(0..lengths.len() as u32));
            for row in &rows {
                let tokens: usize = row.iter().map(|&index| lengths[index as usize]).sum();
                prop_assert!(row.len() == 1 || tokens <= max_length);
            }
            // Two rows of a window that are both at most half full would have been one.
            for (at, window) in order.chunks(PACKING_WINDOW).enumerate() {
                let of_window = |row: &&Vec<u32>| window.contains(&row[0]);
                let half_full = rows.iter().filter(of_window).filter(|row| {
                    2 * row.iter().map(|&index| lengths[index as usize]).sum::<usize>() <= max_length
                });
                prop_assert!(half_full.count() <= 1, "window {at}");
            }
        }
    }
}
