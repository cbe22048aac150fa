//! Where a service's name leads: the built-in DNS authority, and the question which generation an authority answers with.

pub mod authority;

pub use crate::probe::dns::answers_generation;
