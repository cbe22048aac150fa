//! The client against a real PostgreSQL, its own tools, and servers that mean harm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub(crate) mod cluster;
mod hostile;
mod login;
#[path = "../../../tests/it/ports.rs"]
mod ports;
mod queries;
mod servers;
mod slots;
mod stream;

use cluster::Cluster;

use super::door::{Door, DoorError};
use super::session::{Purpose, Session};

/// The way to a cluster through its socket, as its first role.
fn door(cluster: &Cluster) -> Door {
    Door::through_socket(cluster.socket_directory(), cluster.port(), "postgres", "postgres")
}

async fn session(cluster: &Cluster, purpose: Purpose) -> Session {
    Session::open(&door(cluster), purpose, "lifeboat-test").await.unwrap()
}

/// A way as a service file says it, with nothing of this machine's settings. The home directory stays as long as it is held.
struct Written {
    home: tempfile::TempDir,
}

impl Written {
    fn new() -> Written {
        Written { home: tempfile::tempdir().unwrap() }
    }

    /// A file in the home directory.
    fn file(&self, name: &str, content: &str, mode: u32) -> std::path::PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.home.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn door_with(&self, settings: &str, variables: &[(&str, &str)]) -> Result<Door, DoorError> {
        self.file(".pg_service.conf", &format!("[test]\n{settings}\n"), 0o600);
        let home = self.home.path().display().to_string();
        Door::service("test", &|name| match name {
            "HOME" | "PGSYSCONFDIR" => Some(home.clone()),
            _ => variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned()),
        })
    }

    fn door(&self, settings: &str) -> Door {
        self.door_with(settings, &[]).unwrap()
    }
}
