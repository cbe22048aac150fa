//! `cargo xtask pictures`: runs the demo for real, and photographs its screen and its evidence page.
//!
//! Invariant: the pictures show what the program printed and wrote; nothing in them is drawn by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::{Outcome, cargo, packages, root, terminal};

/// Terminal columns that the demo is given.
const COLUMNS: u32 = 110;

pub(crate) fn make() -> Outcome {
    packages::install(packages::FOR_PICTURES)?;
    let built = cargo().args(["build", "--release", "--package", "lifeboat"]).status();
    if !built.map_err(|error| format!("cannot run cargo build ({error})"))?.success() {
        return Err("the binary could not be built".to_owned());
    }
    let target = root().join("target");
    let pictures = root().join("docs/pictures");
    std::fs::create_dir_all(&pictures).map_err(|error| format!("cannot make {} ({error})", pictures.display()))?;

    let transcript = run_demo(&target)?;
    let screen = target.join("demo-screen.html");
    write(&screen, &terminal::page("lifeboat demo", &transcript))?;
    let height = terminal::height_rows(&transcript) as u32 * 19 + 110;
    photograph(&screen, &pictures.join("demo.png"), 1120, height, false)?;

    let evidence = evidence_path(&transcript)?;
    photograph(&evidence, &pictures.join("evidence.png"), 1100, 1500, false)?;
    photograph(&evidence, &pictures.join("evidence-dark.png"), 1100, 1500, true)?;
    println!("made demo.png, evidence.png and evidence-dark.png in {}", pictures.display());
    Ok(ExitCode::SUCCESS)
}

/// Runs the demo on a terminal of its own (`script`), as a person would see it.
fn run_demo(target: &Path) -> Result<String, String> {
    let typescript = target.join("demo-screen.txt");
    let binary = target.join("release/lifeboat");
    let command = format!("stty cols {COLUMNS} rows 60; exec '{}' --color always demo", binary.display());
    println!("running the demo");
    let status = Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &command])
        .arg(&typescript)
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run script ({error})"))?;
    if !status.success() {
        return Err(format!("the demo failed ({status}): no picture is made of that"));
    }
    let bytes = std::fs::read(&typescript).map_err(|error| format!("cannot read the demo's screen ({error})"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // `script` adds a line of its own before and after.
    let lines = text.lines().filter(|line| !line.starts_with("Script started") && !line.starts_with("Script done"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// The evidence page that the demo named last.
fn evidence_path(transcript: &str) -> Result<PathBuf, String> {
    let words = transcript.split(|c: char| c.is_whitespace() || c.is_control());
    let mut named = words.filter(|word| word.ends_with(".html")).map(PathBuf::from).filter(|path| path.is_file());
    named.next_back().ok_or_else(|| "the demo named no evidence page that exists".to_owned())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("cannot write {} ({error})", path.display()))
}

fn photograph(page: &Path, picture: &Path, width: u32, height: u32, dark: bool) -> Result<(), String> {
    let profile = root().join("target/chromium-profile");
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},{height}"))
        .arg(format!("--screenshot={}", picture.display()));
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    let output = command
        .arg(format!("file://{}", page.display()))
        .output()
        .map_err(|error| format!("cannot run chromium ({error})"))?;
    if output.status.success() && picture.is_file() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("chromium made no picture of {}: {said}", page.display()))
}
