//! Where a database lies, and how its server is reached.
//!
//! Invariant: as in `tables`: an operator understands each `doc` without the rest.

use super::tables::{DURATION, PATH, PLAIN, optional, required, with_default};
use super::{Choice, Table, Type};

pub(super) static SQLITE: Table =
    Table { what: "an SQLite database", doc: "", keys: &[required("path", PATH, "The database file.")], choices: &[] };

pub(super) static POSTGRES: Table = Table {
    what: "a PostgreSQL cluster",
    doc: "",
    keys: &[
        required("path", PATH, "Its data directory. A recovery puts it there."),
        optional(
            "service",
            PLAIN,
            "The name of a service in `pg_service.conf` by which its server is reached. Without it: the socket that the data directory names, as the directory's owner.",
        ),
    ],
    choices: &[],
};

pub(super) static POSTGRES_DUMP: Table = Table {
    what: "a dump of a PostgreSQL server",
    doc: "",
    keys: &[
        optional(
            "service",
            PLAIN,
            "The name of a service in `pg_service.conf` by which the server is reached: typically a replica's.",
        ),
        optional("path", PATH, "The data directory of a server that runs on the host."),
        optional(
            "databases",
            Type::List { of: &PLAIN, may_be_empty: false },
            "Which databases. Without it: all that allow connections.",
        ),
        with_default(
            "lock-wait",
            DURATION,
            "\"1m\"",
            "How long a lock is waited for that somebody else holds. Then there is no recovery point.",
        ),
    ],
    choices: &[Choice { of: &["service", "path"], may_be_none: false }],
};

pub(super) static CONNECTION: Table = Table {
    what: "a database server",
    doc: "",
    keys: &[required("service", PLAIN, "The name of its connection service (or option group) on the host.")],
    choices: &[],
};
