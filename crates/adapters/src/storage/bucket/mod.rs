//! Buckets as storage: S3 and what speaks it, Google Cloud Storage, Azure Blob Storage.
//!
//! An async library behind a sync port: its work is done by a few threads of its own, so that any thread may wait for it.
//! Invariant: credentials come from the environment, the shared files or the cloud itself, and are in no address and no message.

mod address;
mod facts;
mod failure;
mod listing;
mod locks;
mod parts;
mod patience;
mod policy;
mod port;
mod profile;
mod setup;
mod verbs;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use lifeboat_vault::storage::{self, Storage, StorageError};
use tokio::runtime::{Handle, Runtime};

use self::address::Address;
pub use self::patience::Patience;
pub use self::policy::policy;
pub use self::profile::Environment;
pub use self::verbs::BucketStorage;

/// Requests are waited for, not computed.
const THREADS: usize = 2;

static RUNTIME: LazyLock<Result<Runtime, std::io::Error>> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).thread_name("storage").enable_all().build()
});

/// Opened once in a process: connections are kept, and what was proven stays proven.
static OPENED: LazyLock<Mutex<HashMap<Address, BucketStorage>>> = LazyLock::new(Mutex::default);

/// Lets addresses of buckets be opened. To be called once, when the process starts.
pub fn register() {
    for scheme in ["s3", "gs", "az"] {
        storage::register(scheme, open);
    }
}

/// Lets nothing in this process wait longer than a second for a bucket: it was asked to stop.
pub fn hurry() {
    for bucket in OPENED.lock().unwrap_or_else(PoisonError::into_inner).values() {
        bucket.hurry();
    }
}

fn open(url: &str, make: bool) -> Result<Arc<dyn Storage>, StorageError> {
    let address = Address::parse(url)?;
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let bucket = match opened.get(&address) {
        Some(bucket) => bucket.clone(),
        None => {
            let environment = std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect();
            let bucket = at(&address, &environment, Patience::default())?;
            opened.insert(address, bucket.clone());
            bucket
        }
    };
    drop(opened);
    if make {
        // Better at the beginning than at the first race.
        bucket.prove()?;
    }
    Ok(Arc::new(bucket))
}

/// Opens a bucket with settings that are given, and not the process's own.
pub fn open_with(url: &str, environment: &Environment, patience: Patience) -> Result<BucketStorage, StorageError> {
    at(&Address::parse(url)?, environment, patience)
}

fn at(address: &Address, environment: &Environment, patience: Patience) -> Result<BucketStorage, StorageError> {
    let client = setup::client(address, environment)?;
    Ok(BucketStorage::new(client, address, patience, threads(&address.to_string())?))
}

fn threads(location: &str) -> Result<Handle, StorageError> {
    match &*RUNTIME {
        Ok(runtime) => Ok(runtime.handle().clone()),
        Err(error) => Err(StorageError::Io {
            verb: "start a thread for",
            key: "requests".to_owned(),
            location: location.to_owned(),
            source: std::io::Error::new(error.kind(), error.to_string()),
        }),
    }
}
