//! Who writes and who opens, and keys on paper.

mod joining;
mod paper;
