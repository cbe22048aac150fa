//! Whom a vault need not trust, and what it survives: broken hosts, lying storages, lost keys, crashes, damage, time.

mod crashes;
mod damage;
mod forgeries;
mod frozen;
mod host;
mod model;
mod sizes;
mod storage;
mod stranger;
mod upheavals;

pub(crate) use host::copy_tree;
