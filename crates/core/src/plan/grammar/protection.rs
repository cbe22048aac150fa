//! Where a data set's recovery points go, when, how long they stay, and in which class of storage.
//!
//! Invariant: as in `tables`: an operator understands each `doc` without the rest.

use super::tables::{COMMAND, COMMIT_MODE, CRON, DURATION, KEPT, NAME, PLAIN, WHEN, optional, required, with_default};
use super::{Choice, Table, Type};

pub(super) static ARCHIVE: Table = Table {
    what: "a class of storage",
    doc: "Only buckets have some. `lifeboat vault prune` puts packs there; a restore of such a point says so, and waits.",
    keys: &[
        required(
            "class",
            PLAIN,
            "The storage's own word for it, such as `\"DEEP_ARCHIVE\"` (S3) or `\"Archive\"` (Azure).",
        ),
        required("thaw", DURATION, "How long it takes until what lies there can be read; `\"0s\"`: at once."),
        optional(
            "command",
            COMMAND,
            "Has objects made readable: it is run before a restore that needs them, and reads their names on stdin, one a line.",
        ),
    ],
    choices: &[],
};

pub(super) static PROTECT: Table = Table {
    what: "a protection",
    doc: "When a full recovery point is due stands either here (`every` or `cron`, and `keep`) or in `base`.",
    keys: &[
        required("to", NAME, "The vault."),
        optional("every", DURATION, "A full recovery point every so long."),
        optional("cron", CRON, "A full recovery point at these times (UTC)."),
        optional("base", Type::Table(&BASE), "The full recovery points that a log applies to."),
        optional(
            "log",
            Type::Word(&[("stream", "as they happen")]),
            "Whether changes are shipped between the full points.",
        ),
        with_default(
            "mode",
            COMMIT_MODE,
            "\"async\"",
            "Whether commits wait until this vault has them (PostgreSQL, with a log).",
        ),
        optional("keep", Type::Table(&KEEP), "How many recovery points are kept; without it, all of them."),
    ],
    choices: &[
        Choice { of: &["every", "cron", "base"], may_be_none: true },
        Choice { of: &["keep", "base"], may_be_none: true },
    ],
};

static BASE: Table = Table {
    what: "the base of a log",
    doc: "",
    keys: &[
        optional("every", DURATION, "A full recovery point every so long."),
        optional("cron", CRON, "A full recovery point at these times (UTC)."),
        optional("keep", Type::Table(&KEEP), "How many recovery points are kept; without it, all of them."),
    ],
    choices: &[WHEN],
};

static KEEP: Table = Table {
    what: "what is kept",
    doc: "A recovery point stays while any of these wants it. All zero, or no `keep` at all, means that nothing is pruned.",
    keys: &[
        with_default("last", KEPT, "0", "The newest so many."),
        with_default("hourly", KEPT, "0", "One an hour, for so many hours."),
        with_default("daily", KEPT, "0", "One a day, for so many days."),
        with_default("weekly", KEPT, "0", "One a week, for so many weeks."),
        with_default("monthly", KEPT, "0", "One a month, for so many months."),
        with_default("yearly", KEPT, "0", "One a year, for so many years."),
        optional(
            "log",
            DURATION,
            "How far back any moment can be restored, where a log is streamed; older points stand for themselves. Without it, back to the oldest point.",
        ),
        optional(
            "archive-after",
            DURATION,
            "How old a point is before what only such points need goes into the vault's `archive`. The newest points never do.",
        ),
    ],
    choices: &[],
};
