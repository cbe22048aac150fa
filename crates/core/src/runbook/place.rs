//! Where a service's parts are at one site: volumes, instances and their addresses, with every template filled in.
//!
//! Invariant: two calls with the same plan and place give the same specs, so a run-book compiled twice is the same.

use crate::desired::TrafficAnswer;
use crate::plan::{Component, DataSet, Health, Name, Plan, Probe, Reach, Service, Site, Source, Value};

use super::template::{TemplateError, fill};
use super::{InstanceSpec, VolumeSpec};

/// A drill's own surroundings at a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    pub name: Name,
    /// What takes the place of the site's volumes directory.
    pub volumes: String,
    pub address: String,
    pub authority: IsolatedAuthority,
}

/// A name server of the drill's own, so that nothing a rehearsal publishes reaches who uses the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolatedAuthority {
    /// `ADDRESS:PORT`, in the isolation.
    pub listen: String,
    pub command: Vec<String>,
    /// URL of the throw-away storage whose traffic generations it answers by; in the isolation, too.
    pub arbiter: String,
}

/// One service at one site, or in an isolation there.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub plan: &'a Plan,
    pub service: &'a Service,
    pub site_name: &'a str,
    pub site: &'a Site,
    pub isolation: Option<&'a Isolation>,
}

/// In place of an instance's address, where a service is asked through its own name: whoever asks puts in what the name says then.
pub const NAMED_ADDRESS: &str = "{{ service.address }}";

fn filled(health: &Health, names: &[(String, String)]) -> Result<Health, TemplateError> {
    let text = |text: &String| fill(text, names);
    let mut health = health.clone();
    match &mut health.probe {
        Probe::Http(path) => *path = text(path)?,
        Probe::Command(command) => *command = command.iter().map(text).collect::<Result<_, _>>()?,
        Probe::Tcp => {}
    }
    Ok(health)
}

impl Place<'_> {
    /// Where the site's relative paths begin; none where paths are the host's own.
    fn volumes_root(&self) -> Option<String> {
        if let Some(isolation) = self.isolation {
            return Some(isolation.volumes.clone());
        }
        match &self.site.reach {
            Reach::Local { root, .. } => Some(format!("{root}/volumes")),
            _ => None,
        }
    }

    fn path_of(&self, path: &str) -> String {
        match self.volumes_root() {
            Some(root) if !path.starts_with('/') => format!("{root}/{path}"),
            _ => path.to_owned(),
        }
    }

    /// The path of a data set's file or directory here.
    pub fn dataset_path(&self, dataset: &DataSet) -> Option<String> {
        dataset.source.path().map(|path| self.path_of(path))
    }

    /// Where the server runs here that a data set is a dump of, if it is known by its directory.
    pub fn dumped_path(&self, dataset: &DataSet) -> Option<String> {
        match &dataset.source {
            Source::PostgresDump { path, .. } => path.as_deref().map(|path| self.path_of(path)),
            _ => None,
        }
    }

    /// The address at which instance `number` (from 1) of a component listens.
    pub fn address(&self, component: &Component, number: u32) -> Option<String> {
        if let Some(isolation) = self.isolation {
            return Some(isolation.address.clone());
        }
        if let Some(hosts) = component.runs_on.get(self.site_name)
            && !hosts.is_empty()
        {
            let host = &hosts[(number.max(1) as usize - 1) % hosts.len()];
            return self.site.hosts.get(host).cloned();
        }
        match &self.site.reach {
            Reach::Local { address, .. } => Some(address.clone()),
            _ => None,
        }
    }

    /// All names that a template may use in instance `number` of `component`.
    fn names(&self, component: &Component, number: u32) -> Vec<(String, String)> {
        let mut names = vec![
            ("site.name".to_owned(), self.site_name.to_owned()),
            ("instance.number".to_owned(), number.to_string()),
        ];
        if let Some(address) = self.address(component, number) {
            names.push(("site.address".to_owned(), address.clone()));
            names.push(("instance.address".to_owned(), address));
        }
        if let Some(port) = component.port {
            names.push(("instance.port".to_owned(), (u32::from(port) + number.max(1) - 1).to_string()));
        }
        for other in &self.service.components {
            if let Some(address) = self.address(other, 1) {
                names.push((format!("component.{}.address", other.name), address.clone()));
                if let Some(port) = other.port {
                    names.push((format!("component.{}.url", other.name), format!("http://{address}:{port}")));
                }
            }
            for dataset in &other.datasets {
                if let Some(path) = self.dataset_path(dataset) {
                    names.push((format!("dataset.{}.path", dataset.name), path));
                }
            }
        }
        names
    }

    /// The instances of a component, `count` of them, ready to be started.
    pub fn instances(&self, component: &Component, count: u32) -> Result<Vec<InstanceSpec>, TemplateError> {
        let Some(launch) = &component.launch else { return Ok(Vec::new()) };
        (1..=count)
            .map(|number| {
                let names = self.names(component, number);
                let text = |text: &String| fill(text, &names);
                let mut env = std::collections::BTreeMap::new();
                for (key, value) in &launch.env {
                    let value = match value {
                        Value::Text(plain) => Value::Text(text(plain)?),
                        Value::Secret(secret) => Value::Secret(secret.clone()),
                    };
                    env.insert(key.clone(), value);
                }
                let health = component.health.as_ref().map(|health| filled(health, &names)).transpose()?;
                Ok(InstanceSpec {
                    service: self.service.name.clone(),
                    component: component.name.clone(),
                    number,
                    command: launch.command.iter().map(text).collect::<Result<_, _>>()?,
                    env,
                    directory: launch.directory.as_ref().map(text).transpose()?,
                    address: self.address(component, number),
                    // Instances that share an address need ports of their own.
                    port: component.port.map(|port| port.saturating_add(number as u16 - 1)),
                    stop_within: launch.stop_within,
                    stop_signal: launch.stop_signal,
                    health,
                })
            })
            .collect()
    }

    /// Fills in a data set's rebuild command as its component's first instance would see it.
    pub fn command(&self, component: &Component, command: &[String]) -> Result<Vec<String>, TemplateError> {
        let names = self.names(component, 1);
        command.iter().map(|part| fill(part, &names)).collect()
    }

    pub fn volume(&self, dataset: &DataSet) -> VolumeSpec {
        let mut vaults: Vec<Name> = dataset.protect.iter().map(|protect| protect.to.clone()).collect();
        // Nearest first: a vault at this site, then by the plan's order.
        vaults.sort_by_key(|name| {
            self.plan.vaults.get(name).and_then(|vault| vault.site.as_deref()) != Some(self.site_name)
        });
        VolumeSpec {
            service: self.service.name.clone(),
            dataset: dataset.name.clone(),
            kind: dataset.kind,
            source: dataset.source.clone(),
            vaults,
        }
    }

    /// What the service's name answers when traffic comes to this site.
    pub fn answers(&self, weight: u32) -> Vec<TrafficAnswer> {
        let Some(front) = self.front() else { return Vec::new() };
        let count = front.instances.live.max(1);
        let mut answers: Vec<TrafficAnswer> = Vec::new();
        for number in 1..=count {
            let Some(address) = self.address(front, number) else { continue };
            if answers.iter().any(|answer| answer.address == address) {
                continue;
            }
            let health = front.health.as_ref().and_then(|health| match (&health.probe, front.port) {
                (Probe::Http(path), Some(port)) if path.starts_with('/') => {
                    Some(format!("http://{address}:{port}{path}"))
                }
                (Probe::Http(url), _) if url.starts_with("http") => Some(url.clone()),
                _ => None,
            });
            answers.push(TrafficAnswer { site: self.site_name.to_owned(), address, weight, health });
        }
        answers
    }

    /// The component that traffic reaches: the last in start order that listens, a load balancer before others.
    pub fn front(&self) -> Option<&Component> {
        let listening = || self.service.components.iter().filter(|component| component.port.is_some());
        listening()
            .rfind(|component| component.role == crate::plan::Role::LoadBalancer)
            .or_else(|| listening().next_back())
    }

    /// How the service's health is asked for through its own name: as its first instance's, with [`NAMED_ADDRESS`] for the address.
    pub fn front_health(&self) -> Result<Option<Health>, TemplateError> {
        let Some((front, health)) = self.front().and_then(|front| Some((front, front.health.as_ref()?))) else {
            return Ok(None);
        };
        let mut names = self.names(front, 1);
        for (_, value) in names.iter_mut().filter(|(name, _)| name == "instance.address") {
            *value = NAMED_ADDRESS.to_owned();
        }
        filled(health, &names).map(Some)
    }
}
