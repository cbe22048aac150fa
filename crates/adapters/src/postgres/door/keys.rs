//! What libpq's settings are called, in a service file and in the environment, and which of them lifeboat can do.
//!
//! Invariant: a setting that would make a difference and cannot be done is an error that names it. None is passed over in silence but those
//! that make no difference here.

/// How a setting is dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Understood,
    /// Makes no difference here.
    Ignored,
    /// Only these values can be done (they are what libpq does by itself); why no other.
    Only(&'static [&'static str], &'static str),
}

use Kind::{Ignored, Only, Understood};

const NO_CERTIFICATE: &str = "lifeboat does not show certificates of its own; use a password, or a Unix socket";
const NO_REVOCATION: &str = "lifeboat does not read lists of revoked certificates";
const ONE_SERVER: &str = "lifeboat talks to one server; name it in `host`";

/// Key, environment variable (empty if there is none), and what is done with it.
pub(super) const KEYS: &[(&str, &str, Kind)] = &[
    ("host", "PGHOST", Understood),
    ("hostaddr", "PGHOSTADDR", Understood),
    ("port", "PGPORT", Understood),
    ("user", "PGUSER", Understood),
    ("password", "PGPASSWORD", Understood),
    ("passfile", "PGPASSFILE", Understood),
    ("dbname", "PGDATABASE", Understood),
    ("sslmode", "PGSSLMODE", Understood),
    ("sslrootcert", "PGSSLROOTCERT", Understood),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Understood),
    ("application_name", "PGAPPNAME", Understood),
    ("options", "PGOPTIONS", Understood),
    ("channel_binding", "PGCHANNELBINDING", Understood),
    // Each end's own affair: connections here are watched by their own clock.
    ("keepalives", "", Ignored),
    ("keepalives_idle", "", Ignored),
    ("keepalives_interval", "", Ignored),
    ("keepalives_count", "", Ignored),
    ("tcp_user_timeout", "", Ignored),
    ("fallback_application_name", "", Ignored),
    // Always UTF-8.
    ("client_encoding", "PGCLIENTENCODING", Ignored),
    // Always off, on, and 1.2 or newer.
    ("sslcompression", "PGSSLCOMPRESSION", Ignored),
    ("sslsni", "PGSSLSNI", Ignored),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Ignored),
    ("krbsrvname", "PGKRBSRVNAME", Ignored),
    ("gsslib", "PGGSSLIB", Ignored),
    ("gssdelegation", "PGGSSDELEGATION", Ignored),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Ignored),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Ignored),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
    (
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        Only(&["TLSv1", "TLSv1.1", "TLSv1.2"], "TLS 1.2 is the oldest that is spoken, and stays allowed"),
    ),
    ("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"], "lifeboat encrypts by TLS only; set `sslmode`")),
    (
        "sslnegotiation",
        "PGSSLNEGOTIATION",
        Only(&["postgres"], "lifeboat asks for TLS as servers of all versions know it"),
    ),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Only(&["any"], ONE_SERVER)),
    ("sslcertmode", "PGSSLCERTMODE", Only(&["disable", "allow"], NO_CERTIFICATE)),
    ("sslcert", "PGSSLCERT", Only(&[], NO_CERTIFICATE)),
    ("sslkey", "PGSSLKEY", Only(&[], NO_CERTIFICATE)),
    ("sslpassword", "", Only(&[], NO_CERTIFICATE)),
    ("sslcrl", "PGSSLCRL", Only(&[], NO_REVOCATION)),
    ("sslcrldir", "PGSSLCRLDIR", Only(&[], NO_REVOCATION)),
    (
        "require_auth",
        "PGREQUIREAUTH",
        Only(&[], "set `sslmode=verify-full`: then no one else can ask for the password"),
    ),
    ("requirepeer", "PGREQUIREPEER", Only(&[], "lifeboat does not ask who is at the other end of a Unix socket")),
];

pub(super) fn kind_of(key: &str) -> Option<Kind> {
    KEYS.iter().find(|(name, _, _)| *name == key).map(|(_, _, kind)| *kind)
}
