//! The state machine of a run: events go in, what is done and what is next comes out.
//!
//! Invariant: `State::after` is the only place where a run's state is decided; a live run and a replay of its journal use the same one.

pub mod event;

pub use event::*;
