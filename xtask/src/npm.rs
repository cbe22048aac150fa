//! What tests need of npm's registry, in a directory of its own under `target/`.
//!
//! Invariant: exactly the versions of `xtask/npm/package-lock.json`, by their hashes, are there after `install`, or the chore has failed.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{packages, pypi, root};

/// What brings npm where there is none: another one on the PATH will do as well.
const DEBIANS: &[(&str, &str)] = &[("nodejs", "runs Azurite, Microsoft's Azure in small"), ("npm", "installs it")];

/// Makes the directory, unless it is there as it should be.
pub(crate) fn install() -> Result<(), String> {
    let (wanted, place) = (root().join("xtask/npm"), pypi::target_directory()?.join("npm"));
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("cannot read {} ({error})", path.display()));
    let lock = read(&wanted.join("package-lock.json"))?;
    let note = place.join("installed");
    if std::fs::read(&note).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    let has_npm = Command::new("npm").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !has_npm.is_ok_and(|status| status.success()) {
        packages::install(DEBIANS)?;
    }
    println!("installing what xtask/npm names from npm into {}", place.display());
    let failed = |error| format!("cannot prepare {} ({error})", place.display());
    std::fs::create_dir_all(&place).map_err(failed)?;
    for name in ["package.json", "package-lock.json"] {
        std::fs::write(place.join(name), read(&wanted.join(name))?).map_err(failed)?;
    }
    let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"];
    pypi::run(Command::new("npm").args(arguments).current_dir(&place))?;
    std::fs::write(&note, lock).map_err(failed)
}
