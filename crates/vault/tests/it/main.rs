//! The vault's integration tests: one binary, a module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_days;
mod basics;
mod copy;
mod doctor;
mod far;
mod files_backup;
mod files_in_vault;
mod files_restore;
mod files_round_trip;
mod files_world;
mod freshness;
mod heal;
mod hostile;
mod look;
mod pages;
mod prune;
mod ransomware;
mod receipts;
mod serve;
mod storage;
mod storage_suite;
mod trust;
mod world;
