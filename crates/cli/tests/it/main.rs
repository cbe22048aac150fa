//! The binary, run as its users run it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_days;
mod buckets;
mod damage;
mod demo;
mod documents;
mod first_minutes;
mod killed;
#[path = "../../../adapters/tests/it/objects/later.rs"]
mod later;
mod leases;
mod look;
mod machine;
mod newcomer;
#[path = "../../../adapters/src/postgres/tests/cluster.rs"]
#[allow(dead_code)] // The client's own tests use the rest.
mod pg_cluster;
mod places;
mod plan;
#[path = "../../../adapters/tests/it/ports.rs"]
mod ports;
mod postgres;
mod retention;
mod runs;
#[path = "../../../adapters/tests/it/objects/servers.rs"]
#[allow(dead_code)] // The other tests that include it use the rest.
mod s3_servers;
mod screens;
mod status;
mod thaw;
mod trust;
mod ways;
mod with_plan;
mod world;
mod wrong_input;
