//! The arbiter: epochs, leases, the run lock, desired state, reports and the journal's mirror, as signed objects on a
//! plain storage outside every site.
//!
//! Invariant: whoever creates `epochs/DOMAIN/N` first has epoch N, for ever; a number is never reused and never goes
//! back. Nothing is believed that is not signed by somebody on the roster for exactly the place where it lies. An object
//! that cannot be believed is an error that names it, never an absence.
//!
//! | object | is | written |
//! |---|---|---|
//! | `epochs/DOMAIN/N` | `Claim` | once |
//! | `leases/DOMAIN/EPOCH` | `Lease` | replaced |
//! | `desired/DOMAIN/GENERATION` | `DesiredWriter` | once |
//! | `traffic/NAME/GENERATION` | `TrafficGeneration` | once |
//! | `agents/SITE/DATASET` | `AgentReport` | replaced |
//! | `canary/SERVICE/N` | `CanaryRecord` | once |
//! | `locks/SERVICE/N`, `lock-beats/SERVICE/N` | `LockClaim`, `LockBeat` | once, replaced |
//! | `journal/RUN/SEQ` | `Sealed` | once |

mod board;
mod desired;
mod epoch;
mod lease;
mod lock;
mod mirror;

pub use board::{Arbiter, ArbiterError, Signs, Trusted};
pub(crate) use board::{kind, number};
pub use desired::CanaryRecord;
pub use epoch::Claim;
pub use lease::{Lease, LeaseHeld, LeaseObserver, LeaseView};
pub use lock::{Acquire, Attempt, HeldLock, LockBeat, LockClaim, LockState, LockTimes, LockWatch};
pub use mirror::{Mirror, MirrorState};
