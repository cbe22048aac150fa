//! How a command ends: an exit code, and for a failure what happened, why, and what to do next.
//!
//! Invariant: there is one conversion from any error into a `CommandError`; its message is the error's own, its causes are the chain below it.

use std::error::Error;

/// How a command that did its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    /// The plan is wrong, and saying so was the work.
    PlanWrong,
    /// Done, but something found stands: an objective missed, a verification failed, a drill overdue.
    Finding,
    /// Held, waiting for a person.
    Held,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::PlanWrong => 2,
            Exit::Finding => 3,
            Exit::Held => 5,
        }
    }
}

/// Why a command did not do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Failed,
    Usage,
    /// The plan is wrong.
    Plan,
    /// A safety rule says no.
    Refused,
    Held,
    Interrupted,
}

impl Kind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage | Kind::Plan => 2,
            Kind::Refused => 4,
            Kind::Held => 5,
            Kind::Interrupted => 130,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::Usage => "usage",
            Kind::Plan => "plan",
            Kind::Refused => "refused",
            Kind::Held => "held",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// A failure as its user sees it. `?` makes one of any error, as `Kind::Failed`.
#[derive(Debug)]
pub(crate) struct CommandError {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    /// The chain below the message, outermost first.
    pub(crate) causes: Vec<String>,
    /// What to do next, one sentence each.
    pub(crate) hints: Vec<String>,
}

impl CommandError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> CommandError {
        CommandError { kind, message: message.into(), causes: Vec::new(), hints: Vec::new() }
    }

    pub(crate) fn failed(message: impl Into<String>) -> CommandError {
        CommandError::new(Kind::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> CommandError {
        CommandError::new(Kind::Usage, message)
    }

    pub(crate) fn refused(message: impl Into<String>) -> CommandError {
        CommandError::new(Kind::Refused, message)
    }

    pub(crate) fn held(message: impl Into<String>) -> CommandError {
        CommandError::new(Kind::Held, message)
    }

    pub(crate) fn interrupted(message: impl Into<String>) -> CommandError {
        CommandError::new(Kind::Interrupted, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn kind(mut self, kind: Kind) -> CommandError {
        self.kind = kind;
        self
    }

    /// Puts `error` and its chain below this message.
    pub(crate) fn because(mut self, error: &(dyn Error + 'static)) -> CommandError {
        self.causes.extend(chain(error));
        self
    }
}

impl<E: Error + 'static> From<E> for CommandError {
    fn from(error: E) -> CommandError {
        let mut chain = chain(&error).into_iter();
        let message = chain.next().unwrap_or_default();
        CommandError { kind: Kind::Failed, message, causes: chain.collect(), hints: Vec::new() }
    }
}

fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut below = error.source();
    while let Some(error) = below {
        texts.push(error.to_string());
        below = error.source();
    }
    texts
}

/// Says what a failure was about, on the way up.
pub(crate) trait Explain<T> {
    /// Puts a message above the error's own.
    fn saying(self, message: impl FnOnce() -> String) -> Result<T, CommandError>;
    fn hint(self, hint: impl Into<String>) -> Result<T, CommandError>;
    fn kind(self, kind: Kind) -> Result<T, CommandError>;
}

impl<T, E: Into<CommandError>> Explain<T> for Result<T, E> {
    fn saying(self, message: impl FnOnce() -> String) -> Result<T, CommandError> {
        self.map_err(|error| {
            let mut error: CommandError = error.into();
            let below = std::mem::replace(&mut error.message, message());
            error.causes.insert(0, below);
            error
        })
    }

    fn hint(self, hint: impl Into<String>) -> Result<T, CommandError> {
        self.map_err(|error| error.into().hint(hint))
    }

    fn kind(self, kind: Kind) -> Result<T, CommandError> {
        self.map_err(|error| error.into().kind(kind))
    }
}
