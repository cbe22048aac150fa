//! A finding about a plan: what is wrong, where it stands, and what to do about it.
//!
//! Invariant: a diagnostic never renders itself. Excerpts and colours are made at the edge, in the binary.

use std::ops::Range;

use serde::Serialize;

/// How bad a finding is. Only an error stops a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Error,
    Warning,
    Note,
}

/// Where in the plan's files a finding stands: the file by its place in the list of files read, and a byte range in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    pub file: usize,
    pub range: Range<usize>,
}

/// One finding. `code` is stable (`P0103`); `lifeboat explain CODE` tells more about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub code: &'static str,
    pub severity: Severity,
    pub message: String,
    /// The place it is about; none when the finding is about something that is missing altogether.
    pub span: Option<Span>,
    /// What to do next, in one sentence.
    pub help: Option<String>,
    /// Other places that the message speaks of, each with a short label.
    pub related: Vec<(Span, String)>,
}
