//! From a plan's text to a plan: syntax, grammar, model, check.
//!
//! Invariant: a plan with an error in it never becomes a `Plan`; a plan without one always does.

mod build;
mod check;
pub mod explain;
pub mod grammar;
pub mod model;
mod reference;
mod schedule;
mod syntax;
mod text;

pub use check::{FenceOutlook, KeyReach, fence_outlook, key_reach, scenarios};
pub use model::*;
pub use reference::reference;

use crate::diagnostic::{Diagnostic, Severity};

/// One file of a plan, by the name under which its reader knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    pub name: String,
    pub text: String,
}

/// What came of reading a plan.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// None if there is an error among the diagnostics.
    pub plan: Option<Plan>,
    /// In the order of the text.
    pub diagnostics: Vec<Diagnostic>,
    /// Every file read; a diagnostic's `Span::file` is an index into it.
    pub files: Vec<SourceFile>,
    /// BLAKE3 of all files' names as the plan writes them and their texts, hex.
    pub hash: String,
}

impl Parsed {
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|found| found.severity == Severity::Error)
    }
}

/// Reads a plan from texts at hand: the first is the plan, the others are what it may include, by name.
pub fn parse(files: &[(&str, &str)]) -> Parsed {
    let mut files = files.iter().map(|(name, text)| SourceFile { name: (*name).to_owned(), text: (*text).to_owned() });
    let root = files.next().unwrap_or(SourceFile { name: String::new(), text: String::new() });
    let others: Vec<SourceFile> = files.collect();
    load(root, &mut |name| match others.iter().find(|file| file.name == name) {
        Some(file) => Ok(file.text.clone()),
        None => Err("there is no such file".to_owned()),
    })
}

/// Reads a plan whose includes `loader` fetches. A name it is asked for is the include's path, made relative to the
/// place of the file that includes it; its error is a sentence's end, such as "permission denied".
pub fn load(root: SourceFile, loader: &mut dyn FnMut(&str) -> Result<String, String>) -> Parsed {
    let syntax::Read { tree, files, mut diagnostics, hash } = syntax::read(root, loader);
    let malformed = grammar::validate(&tree).into_iter().filter(|found| !follows_from(&diagnostics, &files, found));
    let malformed: Vec<Diagnostic> = malformed.collect();
    diagnostics.extend(malformed);
    let mut plan = None;
    if !diagnostics.iter().any(|found| found.severity == Severity::Error) {
        match build::plan(&tree) {
            Some(built) => {
                diagnostics.extend(check::check(&built, &tree));
                plan = Some(built);
            }
            None => diagnostics.push(build::disagreement()),
        }
    }
    diagnostics.sort_by_key(|found| found.span.as_ref().map_or((0, 0), |span| (span.file, span.range.start)));
    diagnostics.dedup();
    let wrong = diagnostics.iter().any(|found| found.severity == Severity::Error);
    Parsed { plan: plan.filter(|_| !wrong), diagnostics, files, hash }
}

/// Whether a finding may only be there because something was not TOML: what stands on such a line is not known, and
/// what is missing may have stood there.
fn follows_from(earlier: &[Diagnostic], files: &[SourceFile], found: &Diagnostic) -> bool {
    let line = |found: &Diagnostic| {
        let span = found.span.as_ref()?;
        let before = files.get(span.file)?.text.get(..span.range.start)?;
        Some((span.file, before.matches('\n').count()))
    };
    let mut broken = earlier.iter().filter(|earlier| earlier.code == "P0001").peekable();
    let missing = matches!(found.code, "P0103" | "P0110" | "P0111") && broken.peek().is_some();
    missing || broken.any(|broken| line(broken).is_some() && line(broken) == line(found))
}
