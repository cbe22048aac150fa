//! The example: a small logbook service, its load client, and the count of what is still there afterwards.
//!
//! Invariant: nothing here knows of lifeboat. The service stores entries and uploads; the client keeps its own list of
//! what was acknowledged to it, so that a recovery can be judged by somebody who did not carry it out.

mod door;
mod entries;
mod ledger;
mod load;
mod reconcile;
mod serve;
mod uploads;

pub use door::{Door, DoorError};
pub use ledger::{Acknowledged, Kind, Ledger, LedgerError, Outage, read_ledger};
pub use load::{LoadError, LoadOptions, LoadSummary, run_load};
pub use reconcile::{Judged, ReconcileError, ReconcileOptions, Reconciled, reconcile};
pub use serve::{ServeError, ServeOptions, serve};

/// Hash of an entry's text or an upload's bytes, as ledgers hold it.
pub(crate) fn content_hash(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

/// Now, in UTC, to the millisecond.
pub(crate) fn now() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Millisecond).unwrap_or(now)
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
