//! The repository: recovery points on dumb storage, written by hosts that cannot read them.
//!
//! What others call, in the order in which they need it:
//!
//! * `storage::{open, create}` → `Arc<dyn Storage>`; `storage::Faulty` breaks one on command in tests.
//! * `State::open(dir, name)`: the host's own secrets. `State::signing_key()`, `SigningKey`, `PublicKey`,
//!   `Signed::{seal, open}` sign anything (the arbiter's objects, too). `Identity`/`Recipient` are age's.
//! * `Vault::init(storage, &state, InitOptions) -> (HostVault, Initialised)`,
//!   `HostVault::open(storage, state, owner) -> HostVault` (derefs to `Vault`; writes with public keys only),
//!   `Vault::open(storage, Option<State>, owner) -> Vault` (reads what is in the clear: `points`, `log_entries`, `check`, `stat`),
//!   `Vault::unlock(&[Identity]) -> Unlocked` (derefs to `Vault`; reads everything its identities reach).
//!   All are cheap to clone, `Send + Sync`, and block: call them from `spawn_blocking`.
//! * `HostVault::begin(dataset, SessionOptions) -> BackupSession` (a `ChunkSink`); `BackupSession::commit(SnapshotDraft) -> PointInfo`.
//! * `HostVault::log_writer(dataset, lineage, timeline) -> LogWriter`; `LogWriter::append(LogPiece, payload) -> LogEntry`.
//! * `Unlocked::source(dataset) -> ChunkSource`, `read_root(&PointInfo) -> Vec<u8>`, `read_log(&LogEntry) -> Vec<u8>`.
//! * `files::backup_tree(&session, roots, options, progress, cancel) -> TreeSummary`, `TreeSummary::draft(time) -> SnapshotDraft`;
//!   `files::tree_root(&unlocked, &point) -> ChunkId`, `files::restore_tree(&source, &root, to, options, …)`, `files::Browser` for parts.
//! * `files::{compare_trees, FileReader, TreeWriter}`: what differs, a file's bytes anywhere, a tree without a disk;
//!   `catalog::Catalog::{open, refresh, search}`: which path was in which points.
//! * `Points` are in order, oldest first (not by time alone: clocks go back); `Points::newest(dataset, at)`, `HostVault::record_verification`, `Unlocked::inherit(&host, dataset)` (a promoted standby goes on
//!   where the other host was), `Vault::{request_enrolment, enrolment_requests}`, `Unlocked::{approve, approve_as, admit, revoke, revoke_since}`, `State::rotate`,
//!   `Vault::receipts() -> Receipts`, `Receipts::received_at(&Listed, hash) -> Option<(Timestamp, TimeSource)>`: when an object came,
//!   by the storage's clock; `Unlocked::{add_recipient, add_holder, remove_recipient}`, `Roster::permits(key, role)` for the arbiter's objects.

pub mod catalog;
mod check;
mod codec;
pub mod copy;
mod crypt;
pub mod doctor;
mod error;
pub mod files;
mod finding;
mod freshness;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod heal;
mod host;
mod index;
mod keys;
mod log;
mod name;
mod object;
mod open;
mod pack;
pub mod paper;
mod port;
pub mod portable;
pub mod prune;
mod receipt;
mod refs;
mod roster;
pub mod seal;
pub mod serve;
mod session;
pub mod sign;
mod snapshot;
mod source;
pub mod storage;
mod unpack;

pub use check::{CheckOptions, CheckReport, DatasetStat, Stat};
pub use error::{Result, VaultError};
pub use finding::{Finding, Severity};
pub use freshness::Witness;
pub use heal::{BadPacks, Healed, Sample, SampleWish};
pub use host::State;
pub use log::{LogEntry, LogPiece, LogTrail, LogWriter};
pub use open::{ArchivedPack, HostVault, InitOptions, Initialised, Unlocked, Vault};
pub use port::{CHUNK_BYTES_MAX, ChunkId, ChunkSink, ChunkSource, Scratch, Sealed, Stored, TakeRow};
pub use prune::{KeepRules, PruneOptions, Pruner};
pub use receipt::{ReceiptBook, Receipts, TimeSource};
pub use roster::{ChainFrom, Holder, Member, Request, Revocation, Role, Roster};
pub use seal::{Identity, Recipient};
pub use session::{BackupSession, SessionOptions};
pub use sign::{PublicKey, Signed, SigningKey};
pub use snapshot::{Badge, PointInfo, Points, Position, SnapshotDraft, VerifiedPoint};
pub use source::Source;
