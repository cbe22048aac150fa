//! The fence of a local site: nothing of a write domain runs any more, nothing can start, and both are looked at.
//!
//! Order: the down marker first, under the lock that starts hold; then SIGKILL to everything of the domain, until
//! nothing is found twice running; then the proof. Invariant: one thing that remains, or that could not be looked at
//! and might be the site's, makes the fence unproven.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat_core::run::Facts;
use lifeboat_engine::perform::KILLED_WRITERS;
use lifeboat_engine::port::{Context, FenceRequest, Fenced, PortError};
use serde_json::json;

use super::holders::Tree;
use super::layout::{DownMarker, boot_id, follow_existing, pid_namespace, write_record};
use super::processes::{Belongs, Door, Process, Snapshot, kill_until_none};
use super::{Inner, facts};

impl Inner {
    pub(super) fn fence(&self, request: &FenceRequest, context: &Context) -> Result<Fenced, PortError> {
        let until = Instant::now() + self.config.fence_within;
        self.layout.make()?;
        self.mark_down(request, context)?;
        let volumes = self.fenced_volumes(request)?;
        let tree = Tree::look(&volumes)?;
        let agents = RefCell::new(BTreeSet::new());
        let pick = |snapshot: &Snapshot| {
            agents.borrow_mut().extend(snapshot.of_site(Belongs::is_agent).iter().map(|(process, _)| process.pid));
            writers(snapshot, request, &tree)
        };
        let (killed, _) = kill_until_none(&self.layout, self.config.fence_within, pick)?;
        let agents = agents.into_inner();
        let late: Vec<&Process> = killed.iter().filter(|process| !agents.contains(&process.pid)).collect();
        let doors = self.doors(request);
        loop {
            let snapshot = Snapshot::take(&self.layout)?;
            let remains = self.remains(&snapshot, request, &volumes, &doors)?;
            if remains.is_empty() {
                let mut fenced = self.proven(request, &snapshot, &killed, &volumes, &doors);
                if let Fenced::Proven { facts, .. } = &mut fenced {
                    let names: Vec<String> = late.iter().map(ToString::to_string).collect();
                    facts.insert(KILLED_WRITERS.to_owned(), json!(names));
                }
                return Ok(fenced);
            }
            if Instant::now() > until {
                let why = PortError::new("something remains");
                return Ok(self.unproven(request, &remains, &why));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Writes the down marker. A supervisor that hangs in the middle of a start would hold the lock for ever: it is killed.
    fn mark_down(&self, request: &FenceRequest, context: &Context) -> Result<(), PortError> {
        let within = self.config.fence_within / 2;
        let _starts = match self.layout.lock_starts(true, within) {
            Ok(lock) => lock,
            Err(_) => {
                let pick = |snapshot: &Snapshot| {
                    snapshot.of_site(Belongs::is_supervisor).into_iter().map(|(process, _)| process.clone()).collect()
                };
                kill_until_none(&self.layout, within, pick)?;
                self.layout.lock_starts(true, within)?
            }
        };
        let domain = &request.write_domain;
        let before = self.layout.read_down_marker(domain).ok().flatten();
        if before.as_ref().is_none_or(|marker| marker.epoch < context.epoch) {
            let marker = DownMarker {
                write_domain: domain.clone(),
                epoch: context.epoch,
                run: context.run.clone(),
                at: Timestamp::now().to_string(),
            };
            write_record(&self.layout.down_marker(domain), &marker)?;
        }
        self.layout.raise_epoch(domain, context.epoch)
    }

    /// The directories of the request's volumes, as they are named and where links lead.
    fn fenced_volumes(&self, request: &FenceRequest) -> Result<Vec<PathBuf>, PortError> {
        let mut paths = BTreeSet::new();
        for volume in &request.volumes {
            if let Some(path) = self.directory_of_volume(volume, None)? {
                paths.insert(follow_existing(&path));
                paths.insert(path);
            }
        }
        Ok(paths.into_iter().collect())
    }

    fn doors(&self, request: &FenceRequest) -> Vec<Door> {
        let doors: BTreeSet<Door> = request
            .instances
            .iter()
            .filter_map(|instance| {
                let address = instance.address.as_deref().unwrap_or(&self.config.address);
                Some(Door { address: address.parse().ok(), port: Some(instance.port?) })
            })
            .collect();
        doors.into_iter().collect()
    }

    /// All that speaks against the fence, each in words that name it.
    fn remains(
        &self,
        snapshot: &Snapshot,
        request: &FenceRequest,
        volumes: &[PathBuf],
        doors: &[Door],
    ) -> Result<Vec<String>, PortError> {
        // Looked through anew: what was made since the kill counts, too.
        let tree = Tree::look(volumes)?;
        let mut remains: Vec<String> =
            writers(snapshot, request, &tree).iter().map(|process| format!("{process} still runs")).collect();
        remains.extend(snapshot.handles(&tree).iter().map(ToString::to_string));
        remains.extend(snapshot.listeners(doors)?.iter().map(ToString::to_string));
        for process in snapshot.hidden_orphans(&self.layout) {
            remains.push(format!("{process} may be one of the site's, and hides what it holds"));
        }
        if self.layout.read_down_marker(&request.write_domain)?.is_none() {
            let path = self.layout.down_marker(&request.write_domain);
            remains.push(format!("the down marker `{}` was taken away", path.display()));
        }
        remains.extend(self.out_of_sight()?);
        Ok(remains)
    }

    /// Process numbers are a namespace's own: from another one, `/proc` need not show what the supervisor started.
    fn out_of_sight(&self) -> Result<Option<String>, PortError> {
        let own = pid_namespace();
        let supervised = self.layout.first_supervisor()?.filter(|first| first.boot == boot_id());
        let elsewhere = supervised.and_then(|first| first.pid_namespaces.into_iter().find(|other| *other != own));
        Ok(elsewhere.map(|other| {
            format!(
                "the site's supervisor ran in process namespace {other} and this program looks from {own}, where not all that \
                 it started need be seen: fence from the supervisor's own namespace"
            )
        }))
    }

    fn proven(
        &self,
        request: &FenceRequest,
        snapshot: &Snapshot,
        killed: &[Process],
        volumes: &[PathBuf],
        doors: &[Door],
    ) -> Fenced {
        let (domain, site) = (&request.write_domain, &self.config.name);
        let marker = self.layout.down_marker(domain);
        let doors: Vec<String> = doors.iter().map(ToString::to_string).collect();
        let proof = format!(
            "of `{domain}` nothing runs at site `{site}`: {} killed, none left among {} processes, no open handle in {} volume paths, \
             no listener at {} addresses, and a down marker blocks every start",
            killed.len(),
            snapshot.count(),
            volumes.len(),
            doors.len()
        );
        let facts: Facts = facts([
            ("killed", json!(killed.iter().map(ToString::to_string).collect::<Vec<_>>())),
            ("processes_looked_at", json!(snapshot.count())),
            // They run as other users; the site's processes run as this one.
            ("processes_not_looked_into", json!(snapshot.hidden_count())),
            ("volumes_without_handles", json!(volumes)),
            ("addresses_without_listener", json!(doors)),
            ("down_marker", json!(marker)),
        ]);
        Fenced::Proven { proof, facts }
    }

    pub(super) fn unproven(&self, request: &FenceRequest, remains: &[String], why: &PortError) -> Fenced {
        let (domain, site) = (&request.write_domain, &self.config.name);
        let because = why.source.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
        if remains.is_empty() {
            return Fenced::Unproven {
                statement: format!(
                    "I have seen at site `{site}` itself that no process of `{domain}` runs there, that nothing writes to its volumes, \
                     and that it will not start again by itself"
                ),
                why: format!("{}{because}", why.message),
            };
        }
        let remains = remains.join("; ");
        Fenced::Unproven {
            statement: format!(
                "I have seen at site `{site}` itself that nothing can write in `{domain}` there any more, although this was found: {remains}"
            ),
            why: format!("site `{site}` is not quiet: {remains}"),
        }
    }
}

/// What has to go: the domain's own processes, those that shed their marks, and whatever else of the site (its agent,
/// a user's command) holds one of the volumes.
fn writers(snapshot: &Snapshot, request: &FenceRequest, tree: &Tree) -> Vec<Process> {
    let named: Vec<String> = request.instances.iter().map(|instance| instance.id()).collect();
    let writes = |belongs: &Belongs| {
        let own = match (&belongs.instance, &belongs.write_domain) {
            (None, None) => true,
            (_, Some(domain)) if *domain == request.write_domain => true,
            (Some(instance), _) => named.contains(instance),
            (None, Some(_)) => false,
        };
        own && belongs.isolation.is_none()
    };
    let mut found: Vec<Process> = snapshot.of_site(writes).into_iter().map(|(process, _)| process.clone()).collect();
    let own = std::process::id() as i32;
    for handle in snapshot.handles(tree) {
        let ours = snapshot.belongs(handle.process.pid).is_some_and(|belongs| !belongs.is_supervisor());
        if ours && handle.process.pid != own && !found.iter().any(|process| process.pid == handle.process.pid) {
            found.push(handle.process);
        }
    }
    found
}
