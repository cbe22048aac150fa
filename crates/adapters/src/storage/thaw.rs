//! Making archived packs readable before something is restored from them: the plan's command asks for them, and they are waited for.
//!
//! Invariants: what can be read is not asked for, nor what the storage says somebody asked for already, so that this can be stopped and
//! run again at any time; whoever waits is told beforehand how much lies where, and for how long.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_core::runbook::thaw_patience;
use lifeboat_core::units::{Size, Span};
use lifeboat_vault::ArchivedPack;
use lifeboat_vault::storage::{Storage, StorageError, Thaw};

/// What is kept of what the command says.
const SAID_BYTES_MAX: u64 = 4096;
const LOOK_SECONDS_MAX: u64 = 60;
/// A wait is cut into pieces, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ThawError {
    #[error("stopped while archived packs are being thawed; what was asked for goes on, run the same command again")]
    Stopped,
    #[error(
        "{what} must be thawed first; nothing says how: give `archive` of the vault a `command` in the plan, or do it by hand. For each: {how}"
    )]
    NoCommand { what: String, how: String },
    #[error("`{program}`, which is to thaw what is archived, cannot be run; correct `archive.command` in the plan")]
    NotRun {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{program}`, which is to thaw what is archived, failed ({status}): {said}")]
    Failed { program: String, status: String, said: String },
    #[error("{what} cannot be read yet, after {waited}; ask the storage's keeper, then run the same command again")]
    Late { what: String, waited: Span },
    #[error("whether archived packs can be read cannot be found out")]
    Storage(#[source] StorageError),
}

/// Packs that cannot be read now.
#[derive(Debug, Clone, Default)]
pub struct Frozen {
    pub packs: Vec<ArchivedPack>,
    pub bytes: u64,
    /// How long the slowest takes.
    pub thaw_seconds: u64,
    /// Those that nobody asked for yet, by their names outside.
    unasked: Vec<String>,
    how: String,
}

impl Frozen {
    /// Looks which of these cannot be read now.
    pub fn among(storage: &dyn Storage, packs: &[ArchivedPack]) -> Result<Frozen, StorageError> {
        let mut frozen = Frozen::default();
        for (pack, thaw) in packs.iter().zip(look(storage, packs)?) {
            match thaw {
                Thaw::Readable => continue,
                Thaw::UnderWay => {}
                Thaw::Frozen { how } => {
                    frozen.unasked.push(storage.outside_name(&pack.key));
                    frozen.how = how;
                }
            }
            frozen.bytes += pack.bytes;
            frozen.thaw_seconds = frozen.thaw_seconds.max(pack.thaw_seconds);
            frozen.packs.push(pack.clone());
        }
        Ok(frozen)
    }

    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// How much of it lies where, in words.
    pub fn describe(&self) -> String {
        let mut classes: Vec<&str> = self.packs.iter().map(|pack| pack.class.as_str()).collect();
        classes.sort_unstable();
        classes.dedup();
        let (count, size) = (self.packs.len(), Size(self.bytes).rounded());
        let packs = if count == 1 { "pack" } else { "packs" };
        format!("{count} {packs} ({size}) in the class {}", classes.join(" and "))
    }

    /// How what nobody asked for yet is thawed by hand, in the storage's own words.
    pub fn how(&self) -> &str {
        &self.how
    }

    /// What nobody asked for yet, for the storage's own tools.
    pub fn unasked(&self) -> &[String] {
        &self.unasked
    }
}

/// Several at a time: each look waits for an answer from afar.
fn look(storage: &dyn Storage, packs: &[ArchivedPack]) -> Result<Vec<Thaw>, StorageError> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(packs.len())));
    std::thread::scope(|scope| {
        for _ in 0..storage.parallel_reads().clamp(1, packs.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(pack) = packs.get(place) else { return };
                    let thaw = storage.thaw_of(&pack.key);
                    found.lock().unwrap_or_else(PoisonError::into_inner).push((place, thaw));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, thaw)| thaw).collect()
}

/// Has packs made readable and waits until they are. `progress`: bytes that are, and bytes in all.
pub fn thaw(
    storage: &Arc<dyn Storage>,
    frozen: &Frozen,
    command: Option<&[String]>,
    progress: &dyn Fn(u64, u64),
    cancel: &AtomicBool,
) -> Result<(), ThawError> {
    if !frozen.unasked.is_empty() {
        match command {
            Some(command) => ask(command, &frozen.unasked, &storage.location())?,
            None => return Err(ThawError::NoCommand { what: frozen.describe(), how: frozen.how.clone() }),
        }
    }
    let (began, thaw_seconds) = (Instant::now(), frozen.thaw_seconds);
    let patience = Duration::from_secs(thaw_patience(Span::seconds(thaw_seconds)).0.as_secs());
    let between = Duration::from_secs((thaw_seconds / 200).clamp(1, LOOK_SECONDS_MAX));
    let mut left = frozen.packs.clone();
    loop {
        let thaws = look(&**storage, &left).map_err(ThawError::Storage)?;
        left = left.into_iter().zip(thaws).filter(|(_, thaw)| *thaw != Thaw::Readable).map(|(pack, _)| pack).collect();
        let bytes: u64 = left.iter().map(|pack| pack.bytes).sum();
        progress(frozen.bytes.saturating_sub(bytes), frozen.bytes);
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > patience {
            let what = Frozen { bytes, packs: left, ..Frozen::default() }.describe();
            return Err(ThawError::Late { what, waited: Span::seconds(began.elapsed().as_secs()) });
        }
        let until = Instant::now() + between;
        while Instant::now() < until {
            if cancel.load(Ordering::SeqCst) {
                return Err(ThawError::Stopped);
            }
            std::thread::sleep(NAP);
        }
    }
}

/// Runs the command, with the names on its stdin.
fn ask(command: &[String], names: &[String], location: &str) -> Result<(), ThawError> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let not_run = |source| ThawError::NotRun { program: program.clone(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LIFEBOAT_STORAGE", location)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(not_run)?;
    let (input, errors) = (child.stdin.take(), child.stderr.take());
    let said = std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut input) = input {
                // A command that does not want all of them says why by its end.
                let _ = input.write_all((names.join("\n") + "\n").as_bytes());
            }
        });
        let mut said = Vec::new();
        if let Some(mut errors) = errors {
            let _ = errors.by_ref().take(SAID_BYTES_MAX).read_to_end(&mut said);
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
        }
        said
    });
    let status = child.wait().map_err(not_run)?;
    match status.success() {
        true => Ok(()),
        false => Err(ThawError::Failed {
            program: program.clone(),
            status: status.to_string(),
            said: String::from_utf8_lossy(&said).trim().replace('\n', "; "),
        }),
    }
}
