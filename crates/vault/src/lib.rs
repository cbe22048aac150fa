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
#![allow(dead_code)] // until the rest of the repository stands on it

mod crypt;
mod error;
pub mod files;
mod host;
mod name;
mod port;
pub mod seal;
pub mod sign;
pub mod storage;

pub use error::{Result, VaultError};
pub use host::State;
pub use port::{CHUNK_BYTES_MAX, ChunkId, ChunkSink, ChunkSource, Stored};
pub use seal::{Identity, Recipient};
pub use sign::{PublicKey, Signed, SigningKey};
