//! [`QuickMap`] and [`QuickSet`]: by numbers that we give, and by hashes that we compute.
//!
//! A map that is safe whatever its keys are takes longer to hash a digest than to find it. Here a digest counts with its
//! first eight bytes: to find two that begin with the same takes 2³² hashes, and to find many takes almost 2⁶⁴. Which of
//! the others meet depends on a number that each process draws.
//!
//! Invariant: no key is a text, or a digest that nobody has verified: these can be chosen.

use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::hash::Hasher;
use std::sync::LazyLock;

/// See the module.
pub type QuickMap<K, V> = HashMap<K, V, Quick>;
/// See the module.
pub type QuickSet<K> = HashSet<K, Quick>;

static SEED: LazyLock<u64> = LazyLock::new(|| rand::random::<u64>() | 1);

/// Makes the hashers of a map.
#[derive(Clone, Debug)]
pub struct Quick {
    seed: u64,
}

impl Default for Quick {
    fn default() -> Quick {
        Quick { seed: *SEED }
    }
}

impl BuildHasher for Quick {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher { seed: self.seed, state: self.seed.rotate_left(32) }
    }
}

/// Multiplies each word with the seed, and the last once more, and folds the products.
#[derive(Debug)]
pub struct QuickHasher {
    seed: u64,
    state: u64,
}

impl QuickHasher {
    fn add(&mut self, word: u64) {
        self.state = fold(self.state ^ word, self.seed);
    }
}

fn fold(word: u64, seed: u64) -> u64 {
    let product = u128::from(word) * u128::from(seed);
    (product as u64) ^ (product >> 64) as u64
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut first = [0; 8];
        let length = bytes.len().min(8);
        first[..length].copy_from_slice(&bytes[..length]);
        self.add(u64::from_le_bytes(first));
    }

    fn write_u8(&mut self, number: u8) {
        self.add(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }

    fn finish(&self) -> u64 {
        // Numbers in a row have not met enough of the seed yet.
        fold(self.state, self.seed.rotate_left(23))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    /// A table takes the lowest bits for the place and the highest ones beside it.
    #[test]
    fn numbers_and_digests_spread_over_the_lowest_and_the_highest_bits() {
        let quick = Quick::default();
        let numbers = (0..4096_u64).map(|n| quick.hash_one(n));
        let digests = (0..4096_u64).map(|n| quick.hash_one(Digest::sha256(n.to_le_bytes())));
        for hashes in [numbers.collect::<Vec<_>>(), digests.collect()] {
            for shift in [0, 52] {
                let places: HashSet<u64> = hashes.iter().map(|hash| hash >> shift & 4095).collect();
                // Of as many balls in as many bins about two thirds are hit.
                assert!(places.len() > 2000, "{} places at {shift}", places.len());
            }
        }
    }

    #[test]
    fn a_digest_counts_with_its_algorithm_and_its_first_bytes_only() {
        let mut map = QuickMap::default();
        for n in 0..100_u32 {
            map.insert(Digest::sha256(n.to_le_bytes()), n);
            map.insert(Digest::sha512(n.to_le_bytes()), n + 100);
        }
        assert_eq!(map.len(), 200);
        assert_eq!(map[&Digest::sha512(7_u32.to_le_bytes())], 107);
    }
}
