//! Object storage: against real servers, and with everything going wrong in between.

mod azure;
mod conformance;
mod doctor;
mod faults;
pub(crate) mod later;
mod locks;
mod moved;
mod proxy;
mod rights;
pub(crate) mod servers;
mod tiers;
mod vaults;
mod versions;
