//! Where services run: which adapter acts at a site, as its plan says (`reach`).
//!
//! Invariant: a reach that this version does not know is refused here, before anything is done anywhere.

mod child;
pub mod command;
pub mod local;
pub mod watchdog;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::plan::{self, Reach};
use lifeboat_engine::port::{Context, PortError, Site};

pub use command::{CommandSite, CommandSiteConfig};
pub use local::{LocalSite, LocalSiteConfig};

/// What the sites of a plan need to know of the program that acts at them.
#[derive(Debug, Clone, Default)]
pub struct SiteSettings {
    /// The `lifeboat` program: local sites start their supervisor with it.
    pub program: PathBuf,
    /// Arguments of `lifeboat protect` for a site (`protect --site NAME --plan PLAN …`); none: there is no agent to start.
    pub agent_arguments: Option<Vec<String>>,
    /// How long one try to fence may take; none: as long as is usual.
    pub fence_within: Option<Duration>,
    /// Whether this is a host of the site's own.
    pub is_inside: bool,
}

impl SiteSettings {
    /// Settings with which `program` is its own supervisor and its own agent.
    pub fn new(program: PathBuf, site: &str, plan: &Path, state: Option<&Path>) -> Result<SiteSettings, PortError> {
        let text = |path: &Path| absolute(path).map(|path| path.to_string_lossy().into_owned());
        let mut arguments: Vec<String> = ["protect", "--site", site, "--plan"].map(str::to_owned).to_vec();
        arguments.push(text(plan)?);
        if let Some(state) = state {
            arguments.extend(["--state".to_owned(), text(state)?]);
        }
        Ok(SiteSettings { program, agent_arguments: Some(arguments), fence_within: None, is_inside: false })
    }

    fn program(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }
}

/// The adapter for a site of the plan.
pub fn site_from_plan(name: &str, site: &plan::Site, settings: &SiteSettings) -> Result<Arc<dyn Site>, PortError> {
    match &site.reach {
        Reach::Local { root, address } => {
            let root = absolute(Path::new(root))?;
            let whole = root.to_string_lossy().into_owned();
            let supervisor = vec![settings.program(), "supervise".to_owned(), "--root".to_owned(), whole];
            let mut config = LocalSiteConfig::new(name, root, address, supervisor);
            config.agent_command = settings
                .agent_arguments
                .as_ref()
                .map(|arguments| std::iter::once(settings.program()).chain(arguments.iter().cloned()).collect());
            config.fence_within = settings.fence_within.unwrap_or(config.fence_within);
            config.is_inside = settings.is_inside;
            Ok(Arc::new(LocalSite::new(config)?))
        }
        Reach::Command { command, .. } => {
            let mut config = CommandSiteConfig::new(name, command.clone());
            config.fence_within = settings.fence_within.unwrap_or(config.within);
            Ok(Arc::new(CommandSite::new(config)?))
        }
        Reach::Ssh => Err(cannot_act(name, "by ssh")),
        Reach::Aws => Err(cannot_act(name, "at AWS")),
    }
}

/// What runs under a supervisor has another working directory than who gave the path.
fn absolute(path: &Path) -> Result<PathBuf, PortError> {
    std::path::absolute(path)
        .map_err(|error| PortError::new(format!("`{}` is no usable path", path.display())).because(error))
}

/// A drill leaves what is live alone: it may neither fence nor lift a fence.
fn refuse_in_isolation(context: &Context) -> Result<(), PortError> {
    match &context.isolation {
        None => Ok(()),
        Some(name) => Err(PortError::new(format!(
            "isolation `{name}` may not touch fences: they belong to what is live, and this is a drill"
        ))),
    }
}

fn cannot_act(site: &str, how: &str) -> PortError {
    PortError::new(format!(
        "this version cannot act at a site {how} (site `{site}`): use reach = \"command\" with a script of your own that does"
    ))
}
