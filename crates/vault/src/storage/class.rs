//! Classes of storage: whether an object can be read at once.
//!
//! Invariant: what cannot be read yet is never taken for lost or damaged.

/// Whether an object can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thaw {
    Readable,
    /// Somebody asked for it; it takes its time.
    UnderWay,
    /// Nobody asked yet, as far as the storage says.
    Frozen {
        /// What to do.
        how: String,
    },
}
