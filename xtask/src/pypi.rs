//! What tests need of Python's registry, in an environment of its own under `target/`.
//!
//! Invariant: exactly these versions are there after `install`, or the chore has failed.

use std::path::{Path, PathBuf};
use std::process::Command;

/// moto's S3 server and all that it stands on; and what the reader of vaults that is written from the format's pages alone needs
/// (`crates/vault/tests/reader`): blake3 and zstandard, and cryptography, which moto wants, too.
const PINNED: &[&str] = &[
    "moto==5.2.5",
    "blinker==1.9.0",
    "boto3==1.44.5",
    "botocore==1.44.5",
    "certifi==2026.10.18",
    "cffi==2.1.1",
    "charset-normalizer==3.5.2",
    "click==8.5.1",
    "cryptography==50.0.2",
    "Flask==3.1.3",
    "flask-cors==6.0.5",
    "idna==3.20",
    "itsdangerous==2.2.0",
    "Jinja2==3.1.6",
    "jmespath==1.1.0",
    "MarkupSafe==3.0.4",
    "py-partiql-parser==0.6.3",
    "pycparser==3.12",
    "python-dateutil==2.9.0.post0",
    "PyYAML==6.0.3",
    "requests==2.34.2",
    "responses==0.26.3",
    "s3transfer==0.19.3",
    "six==1.17.0",
    "urllib3==2.8.0",
    "Werkzeug==3.1.9",
    "xmltodict==1.0.4",
    "blake3==1.0.11",
    "zstandard==0.25.0",
];

/// Makes the environment, unless it is there as it should be.
pub(crate) fn install() -> Result<(), String> {
    let place = target_directory()?.join("pypi");
    let (note, wanted) = (place.join("installed"), PINNED.join("\n"));
    if std::fs::read_to_string(&note).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    println!("installing {} from PyPI into {}", PINNED.join(" "), place.display());
    if place.exists() {
        std::fs::remove_dir_all(&place).map_err(|error| format!("cannot remove {} ({error})", place.display()))?;
    }
    // Debian's own: another Python on the PATH may have been built without what pip needs.
    run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&place))?;
    let mut arguments = vec!["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"];
    arguments.extend(PINNED);
    run(Command::new(place.join("bin/python3")).args(arguments))?;
    std::fs::write(&note, wanted).map_err(|error| format!("cannot write {} ({error})", note.display()))
}

pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let shown = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let status = command.status().map_err(|error| format!("cannot run {shown} ({error})"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{shown} failed ({status}): run it by hand, then run this again"))
    }
}

/// Where cargo builds, two above where it put this chore: the tests look for the environment there.
pub(crate) fn target_directory() -> Result<PathBuf, String> {
    let chore = std::env::current_exe().map_err(|error| format!("cannot find out where this chore lies ({error})"))?;
    let directory = chore.parent().and_then(Path::parent);
    directory.map(PathBuf::from).ok_or_else(|| format!("{} is not where cargo builds", chore.display()))
}
