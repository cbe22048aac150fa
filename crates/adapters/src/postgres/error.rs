//! What can go wrong between lifeboat and a PostgreSQL server.
//!
//! Invariant: a message names the server and says what to do next; it never holds a password, and what a server wrote is cut to a bound.

use std::io;
use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("{at} cannot be reached: see that the server runs there and that the network lets this host through")]
    Unreachable {
        at: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection to {at} was lost")]
    Lost {
        at: String,
        #[source]
        source: io::Error,
    },
    /// The server's word. `advice` begins with `; ` or is empty.
    #[error("{at} refuses: {message} (SQLSTATE {sqlstate}){advice}")]
    Refused { at: String, sqlstate: String, message: String, advice: String },
    #[error("{at} does not let {user} in: {what}")]
    Authentication { at: String, user: String, what: String },
    #[error("no TLS with {at}: {what}")]
    Tls {
        at: String,
        what: String,
        #[source]
        source: Option<io::Error>,
    },
    #[error("{at} does not speak PostgreSQL's protocol: {what}")]
    Protocol { at: String, what: String },
    #[error("{at} took longer than {} s to {what}", within.as_secs_f64())]
    Timeout { at: String, what: &'static str, within: Duration },
}

impl SessionError {
    /// Whether the same may succeed a while later, with nothing changed by a person.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            SessionError::Unreachable { .. } | SessionError::Lost { .. } | SessionError::Timeout { .. } => true,
            SessionError::Refused { sqlstate, .. } => passes(sqlstate),
            SessionError::Authentication { .. } | SessionError::Tls { .. } | SessionError::Protocol { .. } => false,
        }
    }

    /// The server's code for its refusal.
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        match self {
            SessionError::Refused { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }
}

/// Connections, resources, what others hold, shutdowns and starts, what was cancelled or must be tried again.
fn passes(sqlstate: &str) -> bool {
    let classes = ["08", "53"];
    let codes = ["25006", "40001", "40P01", "55006", "55P03", "57014", "57P01", "57P02", "57P03", "57P05"];
    sqlstate.get(..2).is_some_and(|class| classes.contains(&class)) || codes.contains(&sqlstate)
}

/// Longer words of a server are cut.
const WORDS_CHARS_MAX: usize = 2000;

/// An `ErrorResponse` or `NoticeResponse`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) severity: String,
    pub(super) sqlstate: String,
    pub(super) message: String,
    detail: String,
    hint: String,
}

/// One line, of printable characters, and not too long: it goes into logs.
pub(crate) fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * WORDS_CHARS_MAX)]);
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(WORDS_CHARS_MAX).collect::<String>().trim().to_owned()
}

impl Said {
    pub(super) fn read(mut fields: ErrorFields<'_>) -> io::Result<Said> {
        let mut said = Said::default();
        let mut translated = String::new();
        while let Some(field) = fields.next()? {
            let value = words(field.value_bytes());
            match field.type_() {
                b'S' => translated = value,
                b'V' => said.severity = value,
                b'C' => said.sqlstate = value,
                b'M' => said.message = value,
                b'D' => said.detail = value,
                b'H' => said.hint = value,
                _ => {}
            }
        }
        if said.severity.is_empty() {
            said.severity = translated;
        }
        Ok(said)
    }

    /// All that was said.
    pub(super) fn text(&self) -> String {
        let mut text = self.message.clone();
        for more in [&self.detail, &self.hint].into_iter().filter(|more| !more.is_empty()) {
            text = format!("{text}: {more}");
        }
        text
    }

    pub(super) fn refused(self, at: &str, advice: String) -> SessionError {
        let sqlstate = if self.sqlstate.is_empty() { "unknown".to_owned() } else { self.sqlstate.clone() };
        SessionError::Refused { at: at.to_owned(), sqlstate, message: self.text(), advice }
    }
}
