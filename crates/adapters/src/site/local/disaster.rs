//! The loss of a whole local site, for rehearsals and the demo: everything killed at once, its volumes gone.
//!
//! Invariant: nothing outside the site's root is touched, and no process without the site's marks.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use lifeboat_engine::port::PortError;

use super::layout::Layout;
use super::processes::{Snapshot, kill_until_none};

/// What `kill_site` destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destroyed {
    pub processes: Vec<String>,
    /// Whether there were volumes, and they were deleted.
    pub volumes: bool,
}

/// SIGKILL to the site's supervisor and to all that carries its marks; then its volumes are deleted, if asked for.
pub fn kill_site(root: &Path, delete_volumes: bool) -> Result<Destroyed, PortError> {
    let layout = Layout::of(root)?;
    let own = std::process::id() as i32;
    let pick = |snapshot: &Snapshot| {
        let all = snapshot.of_site(|_| true).into_iter();
        all.filter(|(process, _)| process.pid != own).map(|(process, _)| process.clone()).collect()
    };
    let (killed, left) = kill_until_none(&layout, Duration::from_secs(10), pick)?;
    if let Some(process) = left.first() {
        return Err(PortError::may_pass(format!("{process} of the site in `{}` cannot be killed", root.display())));
    }
    let mut destroyed = Destroyed { processes: killed.iter().map(ToString::to_string).collect(), volumes: false };
    if delete_volumes {
        let volumes = layout.volumes(None);
        destroyed.volumes = match fs::remove_dir_all(&volumes) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                let message = format!("the site is dead, but `{}` could not be deleted", volumes.display());
                return Err(PortError::may_pass(message).because(error));
            }
        };
    }
    Ok(destroyed)
}
