//! Doors for fuzzers into the parsers of this crate, by name, as the vault's own.
//!
//! Only in tests and with the feature `fuzzing`. Invariant: a door never panics, whatever is put through it, and takes no more memory than
//! the parser's own limits allow.

use crate::postgres::doors as postgres;
use crate::source::postgres::doors as postgres_log;
use crate::source::sqlite::doors;

/// A parser's name, and the way in.
pub type Door = (&'static str, fn(&[u8]));

/// Every door.
pub const DOORS: &[Door] = &[
    ("sqlite-log", doors::payload),
    ("sqlite-wal", doors::write_ahead_log),
    ("postgres-server", postgres::server),
    ("postgres-files", postgres::files),
    ("postgres-log", postgres_log::payload),
];

/// Something to begin with, for each door.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("sqlite-log", doors::seed()),
        ("sqlite-wal", doors::wal_seed()),
        ("postgres-server", postgres::server_seed()),
        ("postgres-files", postgres::files_seed()),
        ("postgres-log", postgres_log::seed()),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_door_takes_its_seed_in_pieces_and_what_announces_more_than_it_holds() {
        let bomb = zstd::stream::encode_all(std::io::repeat(0).take(1 << 30), 1).unwrap();
        for ((name, door), (of, seed)) in DOORS.iter().zip(seeds()) {
            assert!(*name == of && seed.len() > 40, "{name}");
            for place in 0..=seed.len() {
                door(&seed[..place]);
                for byte in [0x41, 0xff] {
                    let mut flipped = seed.clone();
                    flipped.iter_mut().skip(place).take(1).for_each(|at| *at ^= byte);
                    door(&flipped);
                }
            }
            // The head of a piece that says what it likes, and a gigabyte behind it.
            for length in [0, 32, 48, 56] {
                let mut large = [&seed[..length.min(seed.len())], &bomb[..]].concat();
                door(&large);
                if length == 48 {
                    large[44..48].copy_from_slice(&100_000u32.to_le_bytes());
                    door(&large);
                }
            }
        }
    }

    #[test]
    fn hostile_lengths_pass_with_little_memory() {
        let limited = std::process::Command::new("sh")
            .args(["-c", "ulimit -v 600000; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "fuzzing::tests::every_door_takes_its_seed_in_pieces_and_what_announces_more_than_it_holds",
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&limited.stdout).into_owned() + &String::from_utf8_lossy(&limited.stderr);
        assert!(limited.status.success() && said.contains("1 passed"), "{said}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_door_stumbles_over_junk(data in prop::collection::vec(any::<u8>(), 0..300)) {
            for (_, door) in DOORS {
                door(&data);
            }
        }
    }
}
