//! The JSON of a command site, as `docs/command-site.md` describes it.
//!
//! Invariant: fields are added, never renamed; an answer's unknown fields are ignored, so that scripts may say more.

use lifeboat_core::run::Facts;
use lifeboat_core::runbook::{InstanceSpec, VolumeSpec};
use lifeboat_engine::port::Context;
use serde::{Deserialize, Serialize};

/// The object on the command's stdin.
#[derive(Debug, Serialize)]
pub(super) struct Asked<'a> {
    pub(super) verb: &'static str,
    pub(super) site: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<&'a InstanceSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) write_domain: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instances: Option<&'a [InstanceSpec]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<&'a VolumeSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volumes: Option<&'a [VolumeSpec]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) isolation: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) context: Option<AskedUnder<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct AskedUnder<'a> {
    run: &'a str,
    step: &'a str,
    epoch: u64,
    idempotency_key: &'a str,
    isolation: Option<&'a str>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(verb: &'static str, site: &'a str, context: Option<&'a Context>) -> Asked<'a> {
        Asked {
            verb,
            site,
            instance: None,
            write_domain: None,
            instances: None,
            volume: None,
            volumes: None,
            command: None,
            isolation: None,
            context: context.map(|context| AskedUnder {
                run: &context.run,
                step: &context.step,
                epoch: context.epoch,
                idempotency_key: &context.idempotency_key,
                isolation: context.isolation.as_deref(),
            }),
        }
    }
}

/// The object on the command's stdout.
#[derive(Debug, Deserialize)]
pub(super) struct Outcome {
    pub(super) ok: bool,
    #[serde(default)]
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) may_pass: bool,
    #[serde(flatten)]
    pub(super) answer: Answer,
}

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    pub(super) facts: Facts,
    #[serde(default)]
    pub(super) state: Option<State>,
    #[serde(default)]
    pub(super) why: Option<String>,
    #[serde(default)]
    pub(super) fence: Option<Fence>,
    #[serde(default)]
    pub(super) proof: Option<String>,
    #[serde(default)]
    pub(super) statement: Option<String>,
    #[serde(default)]
    pub(super) path: Option<String>,
    #[serde(default)]
    pub(super) left: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Running,
    Stopped,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fence {
    Proven,
    Unproven,
}
