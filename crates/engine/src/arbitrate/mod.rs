//! The arbiter: epochs, leases, the run lock, desired state, reports and the journal's mirror, as signed objects on a
//! plain storage outside every site.
//!
//! Invariant: whoever creates `epochs/DOMAIN/N` first has epoch N, for ever; a number is never reused and never goes
//! back. Nothing is believed that is not signed by somebody on the roster for exactly the place where it lies. An object
//! that cannot be believed is an error that names it, never an absence.
//!
//! | object | is | written | by |
//! |---|---|---|---|
//! | `arbiter/identity` | which arbiter this is | once | a controller or host |
//! | `epochs/DOMAIN/N` | `Claim` | once | a controller; the first by a host, too |
//! | `leases/SITE/DOMAIN/EPOCH` | `Lease` | replaced | a controller, or a host of that site |
//! | `desired/DOMAIN/GENERATION` | `DesiredWriter` | once | a controller; the first by a host, too |
//! | `traffic/NAME/GENERATION` | `TrafficGeneration` | once | a controller; the first by a host, too |
//! | `agents/SITE/DATASET` | `AgentReport` | replaced | a host of that site |
//! | `canary/SERVICE/N` | `CanaryRecord` | once | a controller, host or observer |
//! | `locks/SERVICE/N`, `lock-beats/SERVICE/N` | `LockClaim`, `LockBeat` | once, replaced | a controller |
//! | `journal/RUN/SEQ` | `Sealed` | once | a controller |

mod board;
mod desired;
mod epoch;
mod lease;
mod lock;
mod memory;
mod mirror;
mod trust;

pub use board::{Arbiter, ArbiterError, Signs};
pub(crate) use board::{kind, number};
pub use desired::CanaryRecord;
pub use epoch::Claim;
pub use lease::{Lease, LeaseHeld, LeaseObserver, LeaseView};
pub use lock::{Acquire, Attempt, HeldLock, LockBeat, LockClaim, LockState, LockTimes, LockWatch};
pub use mirror::{Mirror, MirrorState};
pub use trust::{SiteHosts, Trusted, Trustee, role_names};
