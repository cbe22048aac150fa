//! The adapters against real servers, resolvers and processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent;
mod children;
mod dns;
mod loops;
mod objects;
mod perform;
#[path = "../../src/postgres/tests/cluster.rs"]
#[allow(dead_code)] // The client's own tests use the rest.
mod pg_cluster;
mod ports;
mod probe;
mod recovery;
mod served;
mod site_command;
mod site_conformance;
mod site_fence;
mod site_local;
mod source_files;
mod source_postgres;
mod source_sqlite;
mod source_sqlite_days;
#[path = "../../../vault/tests/it/storage_suite.rs"]
mod storage_suite;
mod vault_world;
mod volumes;
mod watchdog;
mod web;
