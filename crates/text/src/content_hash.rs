//! A name for what something was made from.

use sha2::{Digest, Sha256};

/// SHA-256 over pieces of bytes, each with its length before it: other pieces are another hash, also where all of them
/// together are the same bytes.
#[derive(Debug, Clone)]
pub struct ContentHash(Sha256);

impl ContentHash {
    /// A hash that differs from those made for another `purpose`.
    pub fn new(purpose: &str) -> Self {
        let mut hash = Self(Sha256::new());
        hash.add(purpose.as_bytes());
        hash
    }

    /// Add a piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update((piece.len() as u64).to_le_bytes());
        self.0.update(piece);
    }

    /// Add a number.
    pub fn add_number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    /// The hash.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_piece_ends_and_what_it_is_for_count() {
        let of = |purpose: &str, pieces: &[&str]| {
            let mut hash = ContentHash::new(purpose);
            pieces.iter().for_each(|piece| hash.add(piece.as_bytes()));
            hash.finish()
        };
        assert_eq!(of("a", &["b", "c"]), of("a", &["b", "c"]));
        assert_ne!(of("a", &["b", "c"]), of("a", &["bc"]));
        assert_ne!(of("a", &["b", "c"]), of("a", &["c", "b"]));
        assert_ne!(of("a", &["b"]), of("b", &["b"]));
    }
}
