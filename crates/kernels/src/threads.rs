//! Cutting work so that the number of threads never shows in a result.
//!
//! Blocks have a size that depends on the shape alone. rayon hands them to whichever thread is free; each block writes its own outputs.

use rayon::prelude::*;

/// Fewer elementary operations than this run on the calling thread: waking another one costs more.
const WORTH_SHARING: usize = 32 * 1024;

/// Threads of the rayon pool that the caller runs in.
pub fn thread_count() -> usize {
    rayon::current_num_threads()
}

/// Calls `body` for each block number in `0..blocks`, in parallel when `work` (elementary operations in all) is worth it.
///
/// The blocks may run in any order and must not depend on each other.
pub fn for_each_block(blocks: usize, work: usize, body: impl Fn(usize) + Sync + Send) {
    if blocks <= 1 || work < WORTH_SHARING {
        (0..blocks).for_each(body);
    } else {
        (0..blocks).into_par_iter().with_max_len(1).for_each(body);
    }
}

/// Cuts `out` (rows of `width`) in blocks of `rows_per_block` rows and calls `body(first_row, block)` for each.
///
/// # Panics
/// When `width` or `rows_per_block` is zero and `out` is not empty.
pub fn for_each_rows<T: Send>(
    out: &mut [T],
    width: usize,
    rows_per_block: usize,
    body: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if out.is_empty() {
        return;
    }
    let block = width * rows_per_block;
    if out.len() <= block || out.len() < WORTH_SHARING {
        for (i, part) in out.chunks_mut(block).enumerate() {
            body(i * rows_per_block, part);
        }
    } else {
        out.par_chunks_mut(block).enumerate().for_each(|(i, part)| body(i * rows_per_block, part));
    }
}

/// Rows of `width` that make a block of about 16 thousand elements: at least one.
pub fn rows_per_block(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_block_runs_once() {
        for work in [0, 1 << 30] {
            let seen: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            for_each_block(100, work, |i| {
                seen[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn rows_arrive_with_their_number() {
        for rows in [0usize, 1, 7, 5000] {
            let mut out = vec![0usize; rows * 9];
            for_each_rows(&mut out, 9, 4, |first, block| {
                for (r, row) in block.chunks_mut(9).enumerate() {
                    row.fill(first + r);
                }
            });
            assert!(out.chunks(9).enumerate().all(|(r, row)| row.iter().all(|&v| v == r)));
        }
    }
}
