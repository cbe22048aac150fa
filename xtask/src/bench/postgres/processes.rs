//! The processes of a place: started in it, found by it, and all ended by `kill -9` at once.
//!
//! Invariant: only what has the place in its words or its environment, or works below it, is ended, with what descends from it. A place that
//! is let go of has no process any more.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::measure::Call;

const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Programs that run in the background, below one directory.
pub(super) struct Background {
    place: PathBuf,
    children: Vec<Child>,
}

impl Background {
    /// What an interrupted run left there is ended first.
    pub(super) fn at(place: &Path) -> Result<Background, String> {
        end_all(place)?;
        Ok(Background { place: place.to_owned(), children: Vec::new() })
    }

    pub(super) fn start(&mut self, call: &Call, log: &Path) -> Result<(), String> {
        self.children.push(call.start(log)?);
        Ok(())
    }

    /// Reaps those that have ended.
    pub(super) fn end(&mut self) -> Result<(), String> {
        end_all(&self.place)?;
        for child in &mut self.children {
            child.wait().map_err(|error| format!("cannot wait for process {} ({error})", child.id()))?;
        }
        self.children.clear();
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// SIGKILL to all of them, until none is left.
pub(super) fn end_all(place: &Path) -> Result<(), String> {
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let found = of(place)?;
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("processes in {} do not end: {found:?}", place.display()));
        }
        let numbers = found.iter().map(ToString::to_string);
        // One that ended meanwhile makes `kill` fail, and is no reason to.
        let _ = Command::new("kill").arg("-KILL").args(numbers).stderr(Stdio::null()).status();
    }
}

fn of(place: &Path) -> Result<BTreeSet<u32>, String> {
    let listed = std::fs::read_dir("/proc").map_err(|error| format!("cannot read /proc ({error})"))?;
    let all: Vec<u32> = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let own = std::process::id();
    let mut found: BTreeSet<u32> = all.iter().copied().filter(|pid| *pid != own && is_of(*pid, place)).collect();
    // What descends from them may name the place nowhere.
    let parents: Vec<(u32, u32)> = all.iter().filter_map(|pid| Some((*pid, parent_of(*pid)?))).collect();
    loop {
        let before = found.len();
        found.extend(
            parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
        );
        if found.len() == before {
            return Ok(found);
        }
    }
}

fn is_of(pid: u32, place: &Path) -> bool {
    let own = PathBuf::from(format!("/proc/{pid}"));
    let works_below = std::fs::read_link(own.join("cwd")).is_ok_and(|directory| directory.starts_with(place));
    let needle = place.as_os_str().as_bytes();
    let says = |name: &str| {
        std::fs::read(own.join(name)).is_ok_and(|text| text.windows(needle.len()).any(|part| part == needle))
    };
    works_below || says("cmdline") || says("environ")
}

/// Of a process that still is one: what has ended and was not waited for holds nothing, and cannot be ended again.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") { None } else { fields.next()?.parse().ok() }
}
