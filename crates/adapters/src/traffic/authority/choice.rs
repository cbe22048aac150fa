//! Decides which of several weighted answers is given.
//!
//! Invariant: an answer of weight 0 is never chosen, and the others in proportion to their weights.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// SplitMix64: small, fast, without a lock. Not for secrets; nothing here is one.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    pub(super) fn seeded(seed: u64) -> Dice {
        Dice(AtomicU64::new(seed))
    }

    /// Seeded by the operating system, through the standard library's hash keys.
    pub(super) fn unpredictable() -> Dice {
        Dice::seeded(std::collections::hash_map::RandomState::new().build_hasher().finish())
    }

    fn roll(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut value = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    /// A number below `bound`, which is not 0.
    fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.roll()) * u128::from(bound)) >> 64) as u64
    }

    /// One of the items, in proportion to its weight; nothing if no item has a weight.
    pub(super) fn choose<T: Copy>(&self, items: &[(T, u32)]) -> Option<T> {
        let total: u64 = items.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if total == 0 {
            return None;
        }
        let mut left = self.below(total);
        for (item, weight) in items {
            let weight = u64::from(*weight);
            if left < weight {
                return Some(*item);
            }
            left -= weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chooses_in_proportion_and_never_weight_zero() {
        let dice = Dice::seeded(7);
        let mut counts = [0u32; 3];
        for _ in 0..10_000 {
            counts[dice.choose(&[(0, 70), (1, 0), (2, 30)]).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((6_700..7_300).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn chooses_nothing_when_nothing_has_a_weight() {
        assert_eq!(Dice::seeded(1).choose(&[('a', 0), ('b', 0)]), None);
        assert_eq!(Dice::seeded(1).choose::<u8>(&[]), None);
    }

    #[test]
    fn bears_the_largest_weights() {
        let dice = Dice::seeded(3);
        let items = [(1, u32::MAX), (2, u32::MAX)];
        let ones = (0..1_000).filter(|_| dice.choose(&items) == Some(1)).count();
        assert!((400..600).contains(&ones), "{ones}");
    }
}
