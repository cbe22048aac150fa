//! PostgreSQL as its users meet it: the binary beside a real server.

mod by_path;
mod dumped;
mod planned;
mod refused;
mod verify;

use std::path::PathBuf;

use serde_json::Value;

use crate::machine::{Machine, Ran};
use crate::pg_cluster::{Cluster, as_postgres, run};

/// A machine with a vault, and a cluster in whose place restored ones find room: the server's user works there.
struct Bench {
    machine: Machine,
    cluster: Cluster,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Cluster::started())
    }

    fn with(cluster: Cluster) -> Bench {
        let machine = Machine::new();
        machine.make_vault();
        Bench { machine, cluster }
    }

    fn vault(&self) -> String {
        self.machine.at("backup")
    }

    fn data(&self) -> String {
        self.cluster.data().display().to_string()
    }

    fn place_for(&self, name: &str) -> PathBuf {
        self.cluster.place().join(name)
    }

    fn backup(&self) -> Ran {
        self.machine.line(&format!("backup --vault {} {}", self.vault(), self.data()))
    }

    /// A recovery point that nothing is held against.
    fn point(&self) -> Value {
        let ran = self.machine.line(&format!("--json backup --vault {} {}", self.vault(), self.data())).ends(0);
        ran.json()
    }

    fn restore(&self, to: &str, more: &str) -> Ran {
        self.machine.line(&format!("restore --vault {} --key owner.key --to {to} {more}", self.vault()))
    }

    /// Restores beside the cluster, and starts what came.
    fn restored(&self, more: &str) -> Cluster {
        let to = self.place_for("restored");
        self.restore(&to.display().to_string(), more).ends(0);
        Cluster::adopted(&to)
    }

    /// What is on the screen, whichever cluster it was.
    fn screen(&self, ran: &Ran) -> String {
        steady(&self.cluster, &ran.screen())
    }
}

/// The cluster's own place, port and numbers made the same.
fn steady(cluster: &Cluster, text: &str) -> String {
    text.replace(&cluster.place().display().to_string(), "/pg").replace(&cluster.port().to_string(), "PORT")
}

fn table(cluster: &Cluster) {
    cluster.psql("create table t(n int primary key)");
}

fn insert(cluster: &Cluster, n: u64) {
    cluster.psql(&format!("insert into t values ({n})"));
}

fn rows(cluster: &Cluster) -> String {
    cluster.psql("select coalesce(string_agg(n::text, ' ' order by n), '') from t")
}

/// A directory that belongs to the server's user.
fn make_directory(path: &std::path::Path) {
    run(as_postgres("mkdir").arg(path));
}
