//! How much memory a pruner takes for a long log: `long_log OBJECTS` makes one in memory, proposes a prune that gathers all of it, and prints
//! by how much the process grew meanwhile at most, apart from what the storage itself holds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a tool for a measurement: its failures are read by who started it

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::storage::MemoryStorage;
use lifeboat_vault::{
    Identity, InitOptions, LogPiece, Position, PruneOptions, SessionOptions, SnapshotDraft, State, Vault,
};

fn main() {
    let objects: u64 = std::env::args().nth(1).expect("how many objects?").parse().unwrap();
    let directory = std::env::temp_dir().join(format!("long-log-{}", std::process::id()));
    let state = State::open(&directory, Some("bench")).unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let owner = Identity::generate();
    let recipients = vec![owner.recipient(), Identity::generate().recipient()];
    let (vault, _) =
        Vault::init(storage.clone(), &state, &InitOptions { recipients, ..InitOptions::default() }).unwrap();
    let position = Some(Position { lineage: "l".to_owned(), timeline: 1, counter: 0 });
    let session = vault.begin("app", SessionOptions::default()).unwrap();
    session.commit(SnapshotDraft { position, ..SnapshotDraft::default() }).unwrap();
    let mut writer = vault.log_writer("app", "l", 1).unwrap();
    for n in 1..=objects {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::now(), mark: false, final_mark: false };
        writer.append(piece, &n.to_le_bytes()).unwrap();
    }
    drop(writer);
    let later = Timestamp::now() + SignedDuration::from_hours(24 * 3);
    storage.set_clock(later);
    let unlocked = Vault::open(storage, None, None).unwrap().unlock(std::slice::from_ref(&owner)).unwrap();
    let options = PruneOptions { now: Some(later), ..PruneOptions::default() };
    let before = status("VmRSS:");
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let proposed = unlocked.pruner().unwrap().propose(&options).unwrap();
    let grown = status("VmHWM:").saturating_sub(before);
    println!(
        "{objects} objects, {} containers to be made: {} MB more, {} bytes an object",
        proposed.log_containers,
        grown / 1_000_000,
        grown / objects
    );
    std::fs::remove_dir_all(directory).unwrap();
}

/// A figure of this process, in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
