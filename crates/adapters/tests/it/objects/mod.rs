//! Object storage: against real servers, and with everything going wrong in between.

mod conformance;
mod doctor;
mod faults;
mod proxy;
pub(crate) mod servers;
mod vaults;
