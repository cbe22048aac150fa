//! A site on this machine: volumes are directories below a root, instances are process groups under a supervisor of
//! the site's own, and a fence is proven by looking at every process of the machine.
//!
//! Invariant: what is said of processes comes from `/proc` at that moment, not from records; the records only help to find them.

mod disaster;
mod fence;
mod holders;
mod instance;
mod isolation;
pub(super) mod layout;
pub(super) mod processes;
mod supervisor;
mod volume;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::InstanceSpec;
use lifeboat_engine::port::{Context, FenceRequest, Fenced, InstanceState, PortError, Site, SiteAnswer, SiteVerb};
use serde_json::json;

use layout::{Layout, remove_record};

pub use disaster::{Destroyed, kill_site};
pub use isolation::IsolationPlace;
pub use supervisor::supervise;

/// How a local site is set up.
#[derive(Debug, Clone)]
pub struct LocalSiteConfig {
    pub name: String,
    pub root: PathBuf,
    /// The site's own loopback address.
    pub address: String,
    /// The whole command that becomes the site's supervisor (it calls `supervise`).
    pub supervisor_command: Vec<String>,
    /// The whole command of the host's own `lifeboat protect`.
    pub agent_command: Option<Vec<String>>,
    /// How long a fence may try before it says that it cannot prove itself.
    pub fence_within: Duration,
    /// How long a user's command may take.
    pub run_within: Duration,
    /// It acts at the site itself: a line that is cut for a rehearsal is not its.
    pub is_inside: bool,
}

impl LocalSiteConfig {
    pub fn new(
        name: impl Into<String>,
        root: impl Into<PathBuf>,
        address: impl Into<String>,
        supervisor_command: Vec<String>,
    ) -> LocalSiteConfig {
        LocalSiteConfig {
            name: name.into(),
            root: root.into(),
            address: address.into(),
            supervisor_command,
            agent_command: None,
            fence_within: Duration::from_secs(10),
            run_within: Duration::from_secs(600),
            is_inside: false,
        }
    }
}

/// See the module. Holds no state of its own: any number of controllers may act through their own.
#[derive(Debug, Clone)]
pub struct LocalSite {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LocalSiteConfig,
    layout: Layout,
}

impl LocalSite {
    pub fn new(config: LocalSiteConfig) -> Result<LocalSite, PortError> {
        let layout = Layout::of(&config.root)?;
        Ok(LocalSite { inner: Arc::new(Inner { config, layout }) })
    }

    /// Where a drill's isolation of that name lies and listens, whether it exists yet or not: what a run-book for it is compiled with.
    pub fn isolation_place(&self, name: &str) -> Result<IsolationPlace, PortError> {
        self.inner.isolation_place(name)
    }

    /// Where a volume's directory lies, or would.
    pub fn volumes(&self) -> PathBuf {
        self.inner.layout.volumes(None)
    }

    /// The file whose presence makes the site answer "cannot be reached" to everything: rehearses a partition.
    pub fn unreachable_marker(root: &Path) -> Result<PathBuf, PortError> {
        Ok(Layout::of(root)?.unreachable())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Inner) -> Result<T, PortError> + Send + 'static,
    ) -> Result<T, PortError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            inner.reach()?;
            act(&inner)
        })
        .await
        .map_err(|error| PortError::may_pass("the site's adapter broke off").because(error))?
    }
}

impl Inner {
    /// Fails while a partition is rehearsed.
    fn reach(&self) -> Result<(), PortError> {
        if !self.config.is_inside && self.layout.unreachable().exists() {
            return Err(PortError::may_pass(format!("site `{}` cannot be reached", self.config.name)));
        }
        Ok(())
    }
}

fn facts<const N: usize>(facts: [(&str, serde_json::Value); N]) -> Facts {
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[async_trait]
impl Site for LocalSite {
    async fn start(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError> {
        let (instance, context) = (instance.clone(), context.clone());
        self.blocking(move |inner| inner.start(&instance, &context)).await
    }

    async fn stop(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError> {
        let (instance, context) = (instance.clone(), context.clone());
        self.blocking(move |inner| inner.stop(&instance, &context)).await
    }

    async fn observe(&self, instance: &InstanceSpec) -> Result<InstanceState, PortError> {
        let instance = instance.clone();
        let seen = self.blocking(move |inner| inner.observe(&instance)).await;
        Ok(seen.unwrap_or_else(|error| InstanceState::Unknown(error.message)))
    }

    async fn fence(&self, request: &FenceRequest, context: &Context) -> Result<Fenced, PortError> {
        super::refuse_in_isolation(context)?;
        let (asked, context) = (request.clone(), context.clone());
        let fenced = self.blocking(move |inner| inner.fence(&asked, &context)).await;
        // Whatever went wrong: what cannot be asked is not fenced, and a person may know more.
        Ok(fenced.unwrap_or_else(|error| self.inner.unproven(request, &[], &error)))
    }

    async fn lift_fence(&self, write_domain: &str, context: &Context) -> Result<(), PortError> {
        super::refuse_in_isolation(context)?;
        let (write_domain, context) = (write_domain.to_owned(), context.clone());
        self.blocking(move |inner| inner.lift_fence(&write_domain, &context)).await
    }

    async fn perform(&self, verb: &SiteVerb, context: &Context) -> Result<SiteAnswer, PortError> {
        if let SiteVerb::Run(command) = verb {
            self.blocking(|_| Ok(())).await?;
            return self.inner.run(command, context).await.map(SiteAnswer::Done);
        }
        let (verb, context) = (verb.clone(), context.clone());
        self.blocking(move |inner| match &verb {
            SiteVerb::LocateVolume(volume) => inner.locate(volume, &context).map(SiteAnswer::Volume),
            SiteVerb::PlaceVolume(volume) => inner.place(volume, &context).map(SiteAnswer::Path),
            SiteVerb::SetAside(volume) => Ok(path_or_nothing(inner.set_aside(volume, &context)?)),
            SiteVerb::PutBack(volume) => Ok(path_or_nothing(inner.put_back(volume, &context)?)),
            SiteVerb::KeepVolume(volume, name) => inner.keep(volume, name, &context),
            SiteVerb::LookThroughVolume(volume) => inner.look_through(volume, &context).map(SiteAnswer::Looked),
            SiteVerb::EnsureAgent => inner.ensure_agent(&context).map(SiteAnswer::Done),
            SiteVerb::StopRest(domain) => inner.stop_rest(domain, &context).map(SiteAnswer::Done),
            SiteVerb::Isolate(name) => inner.isolate(name).map(SiteAnswer::Done),
            SiteVerb::RemoveIsolation(name) => inner.remove_isolation(name).map(SiteAnswer::Done),
            SiteVerb::WhatIsLeft(name) => inner.what_is_left(name).map(SiteAnswer::Left),
            // Done above.
            SiteVerb::Run(_) => Ok(SiteAnswer::Nothing),
        })
        .await
    }
}

fn path_or_nothing(path: Option<PathBuf>) -> SiteAnswer {
    path.map_or(SiteAnswer::Nothing, SiteAnswer::Path)
}

impl Inner {
    fn lift_fence(&self, write_domain: &str, context: &Context) -> Result<(), PortError> {
        let _starts = match self.layout.state().exists() {
            true => Some(self.layout.lock_starts(true, self.config.fence_within)?),
            false => None,
        };
        if let Some(marker) = self.layout.read_down_marker(write_domain)?
            && context.epoch < marker.epoch
        {
            return Err(PortError::new(format!(
                "the fence of `{write_domain}` at site `{}` was raised under epoch {} and may not be lifted under epoch {}",
                self.config.name, marker.epoch, context.epoch
            )));
        }
        remove_record(&self.layout.down_marker(write_domain))
    }

    /// Runs a user's command in the volumes' directory, marked like an instance.
    async fn run(&self, command: &[String], context: &Context) -> Result<Facts, PortError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(PortError::new("there is an empty command to run"));
        };
        let isolation = context.isolation.as_deref();
        self.permit_isolation(isolation)?;
        let directory = self.layout.volumes(isolation);
        layout::make_directory(&directory, 0o755)?;
        let mut process = tokio::process::Command::new(program);
        process.args(arguments).current_dir(directory);
        process.env(processes::SITE, self.layout.mark()).env(processes::INSTANCE, "run");
        process.env_remove(processes::WRITE_DOMAIN).env_remove(processes::ISOLATION);
        if let Some(isolation) = isolation {
            process.env(processes::ISOLATION, isolation);
        }
        let what = format!("`{program}` at site `{}`", self.config.name);
        let bounds = super::child::Bounds { within: self.config.run_within, output_bytes_max: 64 << 20 };
        let ended = super::child::run(process, &what, Vec::new(), bounds, &context.cancel).await?;
        if !ended.status.success() {
            return Err(PortError::new(format!("{what} failed ({}): {}", ended.status, ended.stderr_tail)));
        }
        Ok(facts([("output", json!(super::child::last_of(&ended.stdout)))]))
    }
}
