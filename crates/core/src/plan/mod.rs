//! From a plan's text to a plan: syntax, model, check.
//!
//! Invariant: a plan with an error in it never becomes a `Plan`; a plan without one always does.

pub mod model;

pub use model::*;
