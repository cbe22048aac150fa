//! The state machine of a run: events go in, what is done and what is next comes out.
//!
//! Invariant: `State::after` is the only place where a run's state is decided; a live run and a replay of its journal use the same one.

pub mod entry;
pub mod event;
pub mod next;
pub mod status;
pub mod view;
pub mod word;

pub use entry::*;
pub use event::*;
pub use next::{Next, next};
pub use status::*;
pub use view::{RunView, StepView, ViewError};
