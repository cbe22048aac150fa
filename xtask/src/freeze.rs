//! `cargo xtask freeze`: writes the example vault of today's format anew, for the tests to open for ever.
//!
//! Invariant: only the format that is not released yet is written over; a released one stays as it was.

use std::process::ExitCode;

use crate::{Outcome, cargo, root};

/// Of the format that the code writes now.
const VERSION: &str = "v1";

pub(crate) fn run() -> Outcome {
    let example = root().join("crates/vault/tests/frozen").join(VERSION);
    if example.join("released").exists() {
        return Err(format!(
            "format {VERSION} is released: its example stays as it is; name the next version in freeze.rs"
        ));
    }
    let _ = std::fs::remove_dir_all(&example);
    let status = cargo()
        .args(["test", "--quiet", "--package", "lifeboat-vault", "--test", "it", "every_frozen_vault"])
        .env("LIFEBOAT_FREEZE", &example)
        .status()
        .map_err(|error| format!("cannot run cargo test ({error})"))?;
    if !status.success() {
        return Err("the example could not be made, or does not restore".to_owned());
    }
    println!("wrote {}", example.display());
    Ok(ExitCode::SUCCESS)
}
