//! A site where every verb is the user's own command: one JSON object on its stdin, one on its stdout. The way to
//! Terraform, Ansible and whatever else already acts there. `docs/command-site.md` is its contract.
//!
//! Invariant: only a clear answer counts. A command that fails, says nothing or says something else has done nothing
//! that may be relied upon; a fence it did not prove in so many words is unproven.

mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{InstanceSpec, VolumeSpec};
use lifeboat_engine::port::{
    Cancel, Context, FenceRequest, Fenced, InstanceState, PortError, Site, SiteAnswer, SiteVerb, VolumeState,
};
use tokio::process::Command;

use super::child::{self, Bounds};
use wire::{Answer, Asked, Outcome, State};

const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How a command site is set up.
#[derive(Debug, Clone)]
pub struct CommandSiteConfig {
    pub name: String,
    pub command: Vec<String>,
    /// How long a verb that acts may take.
    pub within: Duration,
    /// The same of the fence.
    pub fence_within: Duration,
    /// How long a verb that only looks may take.
    pub look_within: Duration,
}

impl CommandSiteConfig {
    pub fn new(name: impl Into<String>, command: Vec<String>) -> CommandSiteConfig {
        CommandSiteConfig {
            name: name.into(),
            command,
            within: Duration::from_secs(600),
            fence_within: Duration::from_secs(600),
            look_within: Duration::from_secs(60),
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct CommandSite {
    config: CommandSiteConfig,
}

impl CommandSite {
    pub fn new(config: CommandSiteConfig) -> Result<CommandSite, PortError> {
        if config.command.is_empty() {
            return Err(PortError::new(format!("site `{}` is reached by a command, but none is given", config.name)));
        }
        Ok(CommandSite { config })
    }

    fn what(&self, asked: &Asked<'_>) -> String {
        let program = self.config.command.first().map_or("", String::as_str);
        format!("`{program}` of site `{}`, asked to {},", self.config.name, asked.verb)
    }

    /// Asks one thing; an answer with `"ok": false` is an error here.
    async fn ask(&self, asked: &Asked<'_>, within: Duration, cancel: &Cancel) -> Result<Answer, PortError> {
        let what = self.what(asked);
        let Some((program, arguments)) = self.config.command.split_first() else {
            return Err(PortError::new(format!("site `{}` has no command", self.config.name)));
        };
        let input = serde_json::to_vec(asked)
            .map_err(|error| PortError::new(format!("the question to {what} cannot be written")).because(error))?;
        let mut command = Command::new(program);
        command.args(arguments);
        let bounds = Bounds { within, output_bytes_max: ANSWER_BYTES_MAX };
        let ended = child::run(command, &what, input, bounds, cancel).await?;
        let said =
            if ended.stderr_tail.is_empty() { String::new() } else { format!("; it said: {}", ended.stderr_tail) };
        match serde_json::from_slice::<Outcome>(&ended.stdout) {
            Ok(Outcome { ok: false, error, may_pass, .. }) => {
                let error = error.unwrap_or_else(|| "it gave no reason".to_owned());
                let message = format!("{what} could not: {error}{said}");
                Err(if may_pass { PortError::may_pass(message) } else { PortError::new(message) })
            }
            // An `ok` from a command that then failed is none.
            Ok(_) if !ended.status.success() => {
                Err(PortError::new(format!("{what} answered `ok` and then failed ({}){said}", ended.status)))
            }
            Ok(Outcome { answer, .. }) => Ok(answer),
            Err(_) if !ended.status.success() => {
                Err(PortError::new(format!("{what} failed ({}) without an answer{said}", ended.status)))
            }
            Err(error) => {
                let begin: String = String::from_utf8_lossy(&ended.stdout).trim().chars().take(200).collect();
                let message = format!("{what} answered with something else than one JSON object: `{begin}`{said}");
                Err(PortError::new(message).because(error))
            }
        }
    }

    async fn act(&self, asked: &Asked<'_>, context: &Context) -> Result<Answer, PortError> {
        self.ask(asked, self.config.within, &context.cancel).await
    }

    fn unproven(&self, request: &FenceRequest, why: String, statement: Option<String>) -> Fenced {
        let (domain, site) = (&request.write_domain, &self.config.name);
        let statement = statement.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| {
            format!(
                "I have seen at site `{site}` itself that no process of `{domain}` runs there, that nothing writes to its volumes, \
                 and that it will not start again by itself"
            )
        });
        Fenced::Unproven { statement, why }
    }

    /// A path that the command names has to be one that this process can go to.
    fn reachable(&self, asked: &Asked<'_>, path: PathBuf, look: &Path) -> Result<PathBuf, PortError> {
        if path.is_absolute() && look.exists() {
            return Ok(path);
        }
        let what = self.what(asked);
        Err(PortError::new(format!(
            "{what} named `{}`, which is not there for this machine: answer with an absolute path that is (mount it, if it is remote)",
            path.display()
        )))
    }

    async fn volume(
        &self,
        verb: &'static str,
        volume: &VolumeSpec,
        context: &Context,
    ) -> Result<SiteAnswer, PortError> {
        let asked = Asked { volume: Some(volume), ..self.asked(verb, Some(context)) };
        let within = if verb == "locate-volume" { self.config.look_within } else { self.config.within };
        let answer = self.ask(&asked, within, &context.cancel).await?;
        let path = answer.path.map(PathBuf::from);
        Ok(match (verb, path) {
            ("locate-volume", None) => SiteAnswer::Volume(VolumeState::Absent),
            ("locate-volume", Some(path)) => {
                let path = self.reachable(&asked, path.clone(), &path)?;
                SiteAnswer::Volume(VolumeState::Present { path })
            }
            ("place-volume", None) => {
                return Err(PortError::new(format!("{} answered without a `path`", self.what(&asked))));
            }
            ("place-volume", Some(path)) => {
                let parent = path.parent().map(Path::to_path_buf).unwrap_or_default();
                SiteAnswer::Path(self.reachable(&asked, path, &parent)?)
            }
            (_, None) => SiteAnswer::Nothing,
            (_, Some(path)) => SiteAnswer::Path(path),
        })
    }

    fn asked<'a>(&'a self, verb: &'static str, context: Option<&'a Context>) -> Asked<'a> {
        Asked::new(verb, &self.config.name, context)
    }
}

#[async_trait]
impl Site for CommandSite {
    async fn start(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError> {
        let asked = Asked { instance: Some(instance), ..self.asked("start", Some(context)) };
        Ok(self.act(&asked, context).await?.facts)
    }

    async fn stop(&self, instance: &InstanceSpec, context: &Context) -> Result<Facts, PortError> {
        let asked = Asked { instance: Some(instance), ..self.asked("stop", Some(context)) };
        let within = self.config.within.max(instance.stop_within.0 + self.config.look_within);
        Ok(self.ask(&asked, within, &context.cancel).await?.facts)
    }

    async fn observe(&self, instance: &InstanceSpec) -> Result<InstanceState, PortError> {
        let asked = Asked { instance: Some(instance), ..self.asked("observe", None) };
        Ok(match self.ask(&asked, self.config.look_within, &Cancel::default()).await {
            Err(error) => InstanceState::Unknown(error.message),
            Ok(Answer { state: Some(State::Running), .. }) => InstanceState::Running,
            Ok(Answer { state: Some(State::Stopped), .. }) => InstanceState::Stopped,
            Ok(answer) => InstanceState::Unknown(
                answer.why.unwrap_or_else(|| format!("{} did not say in what `state` it is", self.what(&asked))),
            ),
        })
    }

    async fn fence(&self, request: &FenceRequest, context: &Context) -> Result<Fenced, PortError> {
        super::refuse_in_isolation(context)?;
        let asked = Asked {
            write_domain: Some(&request.write_domain),
            instances: Some(&request.instances),
            volumes: Some(&request.volumes),
            ..self.asked("fence", Some(context))
        };
        Ok(match self.ask(&asked, self.config.fence_within, &context.cancel).await {
            Err(error) => {
                let because = error.source.map(|cause| format!(": {cause}")).unwrap_or_default();
                self.unproven(request, format!("{}{because}", error.message), None)
            }
            Ok(Answer { fence: Some(wire::Fence::Proven), proof: Some(proof), facts, .. })
                if !proof.trim().is_empty() =>
            {
                Fenced::Proven { proof, facts }
            }
            Ok(Answer { fence: Some(wire::Fence::Proven), .. }) => self.unproven(
                request,
                format!("{} called the fence proven without saying by what `proof`", self.what(&asked)),
                None,
            ),
            Ok(answer) => {
                let why = answer.why.unwrap_or_else(|| format!("{} did not call the fence proven", self.what(&asked)));
                self.unproven(request, why, answer.statement)
            }
        })
    }

    async fn lift_fence(&self, write_domain: &str, context: &Context) -> Result<(), PortError> {
        super::refuse_in_isolation(context)?;
        let asked = Asked { write_domain: Some(write_domain), ..self.asked("lift-fence", Some(context)) };
        self.act(&asked, context).await.map(|_| ())
    }

    async fn perform(&self, verb: &SiteVerb, context: &Context) -> Result<SiteAnswer, PortError> {
        match verb {
            SiteVerb::LocateVolume(volume) => self.volume("locate-volume", volume, context).await,
            SiteVerb::PlaceVolume(volume) => self.volume("place-volume", volume, context).await,
            SiteVerb::SetAside(volume) => self.volume("set-aside", volume, context).await,
            SiteVerb::PutBack(volume) => self.volume("put-back", volume, context).await,
            SiteVerb::KeepVolume(..) | SiteVerb::LookThroughVolume(_) => Err(PortError::new(format!(
                "site `{}` is reached by a command, which is not asked to keep volumes or to look through them",
                self.config.name
            ))),
            SiteVerb::EnsureAgent => {
                let asked = self.asked("ensure-agent", Some(context));
                Ok(SiteAnswer::Done(self.act(&asked, context).await?.facts))
            }
            // A command site is told of every instance by name, and keeps no account of its own.
            SiteVerb::StopRest(_) => Ok(SiteAnswer::Nothing),
            SiteVerb::Run(command) => {
                let asked = Asked { command: Some(command), ..self.asked("run", Some(context)) };
                Ok(SiteAnswer::Done(self.act(&asked, context).await?.facts))
            }
            SiteVerb::Isolate(name) => {
                let asked = Asked { isolation: Some(name), ..self.asked("isolate", Some(context)) };
                Ok(SiteAnswer::Done(self.act(&asked, context).await?.facts))
            }
            SiteVerb::RemoveIsolation(name) => {
                let asked = Asked { isolation: Some(name), ..self.asked("remove-isolation", Some(context)) };
                Ok(SiteAnswer::Done(self.act(&asked, context).await?.facts))
            }
            SiteVerb::WhatIsLeft(name) => {
                let asked = Asked { isolation: Some(name), ..self.asked("what-is-left", Some(context)) };
                let answer = self.ask(&asked, self.config.look_within, &context.cancel).await?;
                // Silence is not "nothing is left".
                answer
                    .left
                    .map(SiteAnswer::Left)
                    .ok_or_else(|| PortError::new(format!("{} answered without `left`", self.what(&asked))))
            }
        }
    }
}
