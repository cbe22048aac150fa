//! PostgreSQL: recovery points of a running cluster, and what comes back of them.

mod dumps;
mod faults;
mod left;
mod places;
mod points;
mod quorum;
pub(crate) mod rewound;
mod standbys;
mod streamed;
mod streams;
mod verified;

use std::path::{Path, PathBuf};

use lifeboat_adapters::source::PostgresSource;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, PointRequest, PointTaken, PortError, RestoreRequest, Restored, Restorer, Source};
use lifeboat_vault::Unlocked;

use crate::pg_cluster::Cluster;
use crate::vault_world::VaultWorld;

const DATASET: &str = "ledger";

/// A cluster and a vault.
struct Bench {
    cluster: Cluster,
    vault: VaultWorld,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Cluster::started())
    }

    fn with(cluster: Cluster) -> Bench {
        // The server's user works beside what it restores.
        let vault = VaultWorld::new(cluster.place(), "main");
        Bench { cluster, vault }
    }

    fn source(&self) -> PostgresSource {
        PostgresSource::new(self.cluster.data(), None, self.cluster.place().join("spool"))
    }

    fn try_point(&self) -> Result<PointTaken, PortError> {
        let request = PointRequest { dataset: DATASET.into(), epoch: 1, ..PointRequest::default() };
        self.source().take_point(&self.vault.named(), &request, &(), &Cancel::default())
    }

    fn point(&self) -> PointTaken {
        self.try_point().map_err(told).unwrap()
    }

    fn unlocked(&self) -> Unlocked {
        self.vault.unlocked()
    }

    fn place_for(&self, name: &str) -> PathBuf {
        self.cluster.place().join(name)
    }

    fn try_restore(&self, target: Target, to: &Path, in_place: bool) -> Result<Restored, PortError> {
        let request = RestoreRequest { dataset: DATASET.into(), to: to.to_owned(), target, in_place };
        PostgresSource::new("", None, "").restore(&self.unlocked(), &request, &(), &Cancel::default())
    }

    fn restore(&self, target: Target, to: &Path) -> Restored {
        self.try_restore(target, to, false).map_err(told).unwrap()
    }
}

/// An error with all its causes.
fn told(error: PortError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str("\n  because: ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
