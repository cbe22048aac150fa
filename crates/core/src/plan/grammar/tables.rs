//! Every table of the plan language.
//!
//! Invariant: `doc` is one or two sentences that an operator understands without the rest.

use super::databases::{CONNECTION, POSTGRES, POSTGRES_DUMP, SQLITE};
use super::protection::{ARCHIVE, PROTECT};
use super::{Choice, Key, Table, Type};
use crate::plan::text::Kind;

pub(super) const fn required(name: &'static str, is: Type, doc: &'static str) -> Key {
    Key { name, is, required: true, default: None, doc }
}

pub(super) const fn optional(name: &'static str, is: Type, doc: &'static str) -> Key {
    Key { name, is, required: false, default: None, doc }
}

pub(super) const fn with_default(name: &'static str, is: Type, default: &'static str, doc: &'static str) -> Key {
    Key { name, is, required: false, default: Some(default), doc }
}

pub(super) const PLAIN: Type = Type::Text(Kind::Plain);
pub(super) const NAME: Type = Type::Text(Kind::Name);
pub(super) const PATH: Type = Type::Text(Kind::Path);
pub(super) const DURATION: Type = Type::Text(Kind::Duration);
pub(super) const CRON: Type = Type::Text(Kind::Cron);
const NAMES: Type = Type::List { of: &NAME, may_be_empty: true };
const SOME_NAMES: Type = Type::List { of: &NAME, may_be_empty: false };
/// A program and its arguments; no shell is involved.
pub(super) const COMMAND: Type = Type::List { of: &Type::Text(Kind::Template), may_be_empty: false };
const WEIGHT: Type = Type::Count { min: 0, max: 65_535 };
pub(super) const KEPT: Type = Type::Count { min: 0, max: 100_000 };

/// A few choices that several tables have.
pub(super) const WHEN: Choice = Choice { of: &["every", "cron"], may_be_none: false };

macro_rules! named {
    ($what:literal, $table:ident) => {
        Type::Named { what: $what, names: true, of: &Type::Table(&$table) }
    };
}

pub static PLAN: Table = Table {
    what: "the plan",
    doc: "One TOML 1.1 file, or several with `include`.",
    keys: &[
        optional(
            "include",
            Type::List { of: &PATH, may_be_empty: true },
            "More files of the same plan; paths count from this file's directory. Tables grow together; a value stands in one file only.",
        ),
        required("plan", Type::Table(&HEAD), "The plan itself."),
        optional("person", named!("person", PERSON), "Who is told, and who approves."),
        optional(
            "arbiter",
            Type::Table(&ARBITER),
            "Where epochs, locks, desired state and the journal's mirror lie: outside every site.",
        ),
        optional(
            "scenario",
            named!("scenario", SCENARIO),
            "What can happen. `instance-lost`, `zone-lost`, `site-lost`, `region-lost`, `provider-lost`, `data-corrupted` and `data-destroyed` are built in and may be described and priced; others may be added.",
        ),
        required("site", named!("site", SITE), "A place where services run."),
        optional("vault", named!("vault", VAULT), "A repository of recovery points."),
        optional("key", Type::Table(&KEY), "Whose keys open the vaults."),
        optional(
            "service",
            named!("service", SERVICE),
            "What must survive. At most one site writes for a service at a time.",
        ),
        optional("watch", Type::Table(&WATCH), "Who decides that something is a disaster, and what happens then."),
        optional("drill", named!("drill", DRILL), "Rehearsals, and when they are due."),
        optional("prerequisite", named!("prerequisite", PREREQUISITE), "Something outside that recovery needs."),
    ],
    choices: &[],
};

static HEAD: Table = Table {
    what: "the plan's head",
    doc: "",
    keys: &[
        required("name", NAME, "The plan's name, in every report."),
        optional("accepted-by", PLAIN, "Who accepted the residual risk, and when; in your own words."),
    ],
    choices: &[],
};

static PERSON: Table = Table {
    what: "a person",
    doc: "",
    keys: &[
        optional(
            "notify",
            Type::List { of: &Type::Text(Kind::NotifyUrl), may_be_empty: true },
            "Where messages go: `mailto:…` or `https://…`.",
        ),
        with_default(
            "approves",
            Type::Bool,
            "false",
            "Whether this person may approve runs that somebody else started.",
        ),
        optional(
            "key",
            Type::Text(Kind::PublicKey),
            "The Ed25519 public key with which this person signs approvals and attestations.",
        ),
    ],
    choices: &[],
};

static ARBITER: Table = Table {
    what: "the arbiter",
    doc: "One place that decides who is first. It must survive whatever the plan's scenarios destroy.",
    keys: &[
        required("url", Type::Text(Kind::StorageUrl), "A directory or bucket, such as `file:///srv/arbiter`."),
        optional("organization", NAME, "Who runs it."),
        optional("site", NAME, "The site that it is in, if it is in one; `check` says why it should not be."),
    ],
    choices: &[],
};

static SCENARIO: Table = Table {
    what: "a scenario",
    doc: "",
    keys: &[
        optional("describe", PLAIN, "What happens, in a sentence; built-in scenarios have one already."),
        optional("per-year", Type::Number, "How often a year it is expected: `0.02` is once in fifty years."),
    ],
    choices: &[],
};

static SITE: Table = Table {
    what: "a site",
    doc: "",
    keys: &[
        required(
            "reach",
            Type::Word(&[
                ("local", "processes and directories on this machine"),
                ("command", "every verb is a command of yours that speaks JSON"),
                ("ssh", "over SSH to the site's hosts"),
                ("aws", "through the provider's API"),
            ]),
            "How lifeboat acts there.",
        ),
        optional(
            "root",
            PATH,
            "With `reach = \"local\"`: the directory that holds the site's volumes and its supervisor's state.",
        ),
        optional(
            "address",
            Type::Text(Kind::IpAddress),
            "The site's own address, with `reach = \"local\"`, one of loopback's.",
        ),
        optional(
            "command",
            COMMAND,
            "With `reach = \"command\"`: the program that carries out every verb; it reads one JSON object and answers with one.",
        ),
        optional(
            "rerun",
            Type::Word(&[("safe", "it may simply be run again"), ("ask", "a person is asked first")]),
            "With `reach = \"command\"`: what to do when it is not known whether the command ran; `ask` unless told.",
        ),
        optional("zone", NAME, "The zone that it is in."),
        optional("region", NAME, "The region that it is in."),
        optional("organization", NAME, "Who runs it."),
        optional(
            "bandwidth",
            Type::Text(Kind::Rate),
            "What it can fetch from a vault, such as `\"100 MB/s\"` or `\"1 Gbit/s\"`; for estimates.",
        ),
        optional("jurisdiction", NAME, "Whose law applies."),
        optional(
            "host",
            Type::Named { what: "host", names: true, of: &Type::Text(Kind::IpAddress) },
            "Hosts there, and their addresses: `host.db1 = \"10.0.1.21\"`.",
        ),
    ],
    choices: &[],
};

static VAULT: Table = Table {
    what: "a vault",
    doc: "",
    keys: &[
        required(
            "url",
            Type::Text(Kind::StorageUrl),
            "Where it lies: `file:///srv/vault`, a bare path, `s3://bucket/prefix` (or `gs:`, `az:`).",
        ),
        optional("site", NAME, "The site that it is in; without it, it counts as outside of every site."),
        optional("organization", NAME, "Who runs the storage; without it, who runs the site that it is in."),
        optional(
            "storage-cost",
            Type::Text(Kind::Money("GB/month")),
            "What storing costs, such as `\"0.021 EUR/GB/month\"`.",
        ),
        optional(
            "archive",
            Type::Table(&ARCHIVE),
            "A cheaper class of storage, for what only points need that are older than `archive-after` says.",
        ),
        optional(
            "lock",
            DURATION,
            "How long the storage locks what points need (S3 with Object Lock): whoever prunes makes it so long again when half of it is left.",
        ),
    ],
    choices: &[],
};

static KEY: Table = Table {
    what: "the keys",
    doc: "Private halves never stand in a plan, and none lies within a site unless it is declared here as `standby`, `drill` or `verify`.",
    keys: &[
        required(
            "recipients",
            Type::List { of: &Type::Text(Kind::Recipient), may_be_empty: false },
            "Public keys (`age1…`), any one of which opens everything; at least two, so that one may be lost.",
        ),
        optional(
            "owner",
            PLAIN,
            "The owner's fingerprint, as `lifeboat vault init` printed it; what tells your vault from another one.",
        ),
        optional(
            "standby",
            Type::OneOrMany(&Type::Table(&HOLDER)),
            "Keys that let a standby site apply what the vaults hold.",
        ),
        optional("drill", Type::OneOrMany(&Type::Table(&HOLDER)), "Keys for rehearsals that run by themselves."),
        optional("verify", Type::OneOrMany(&Type::Table(&HOLDER)), "Keys for verification that runs by itself."),
    ],
    choices: &[],
};

static HOLDER: Table = Table {
    what: "a key that is held at a site",
    doc: "",
    keys: &[
        required("recipient", Type::Text(Kind::Recipient), "Its public half."),
        required("held-at", NAME, "The site where the private half lies."),
        required("datasets", SOME_NAMES, "The data sets that it opens; no other."),
        optional(
            "identity",
            Type::Secret,
            "Where the private half is found on that site's host, such as `{ file = \"/etc/lifeboat/standby.key\" }`.",
        ),
    ],
    choices: &[],
};

pub(super) static SECRET: Table = Table {
    what: "a secret",
    doc: "A secret never stands in a plan; this says where it is had from when it is used.",
    keys: &[
        optional("env", PLAIN, "An environment variable's name."),
        optional("file", PATH, "A file."),
        optional("command", COMMAND, "A command that prints it."),
    ],
    choices: &[Choice { of: &["env", "file", "command"], may_be_none: false }],
};

static SERVICE: Table = Table {
    what: "a service",
    doc: "",
    keys: &[
        required(
            "strategy",
            Type::Word(&[
                ("backup-restore", "recovery restores from a vault"),
                ("pilot-light", "the data follows, the rest is started when needed"),
                ("warm-standby", "a standby follows and is ready to take over"),
                ("multi-site", "several sites serve at once"),
            ]),
            "How it is kept recoverable.",
        ),
        required("primary", NAME, "The site where it runs on a normal day."),
        required("recovery", SOME_NAMES, "Sites where it can be recovered, the preferred one first."),
        required("rpo", DURATION, "How much may be lost: the objective for every scenario that has none of its own."),
        required("rto", DURATION, "For how long it may be away, from the disaster until it serves again."),
        with_default(
            "priority",
            Type::Word(&[
                ("rpo", "lose less, even if it takes longer"),
                ("rto", "be back sooner, even if more is lost"),
            ]),
            "\"rpo\"",
            "Which objective is kept when both cannot be.",
        ),
        optional("downtime-cost", Type::Text(Kind::Money("h")), "What an hour away costs."),
        optional("data-loss-cost", Type::Text(Kind::Money("h")), "What an hour of lost data costs."),
        with_default(
            "approval",
            Type::Bool,
            "false",
            "Whether a run waits until a person who approves, and did not start it, has approved it.",
        ),
        optional(
            "lease",
            DURATION,
            "How long the writer may go on without a renewed lease in the arbiter (3s to 1h): a watchdog at its site stops it before that, and recovery then needs nobody's word. An arbiter that is away for so long stops the service, too.",
        ),
        optional(
            "objective",
            Type::Named { what: "scenario", names: true, of: &Type::Table(&OBJECTIVE) },
            "Objectives for one scenario: `objective.region-lost = { rpo = \"15m\", rto = \"2h\" }`.",
        ),
        optional(
            "component",
            named!("component", COMPONENT),
            "The parts of the service, which are started in the order that `after` gives.",
        ),
        optional("traffic", Type::Table(&TRAFFIC), "How users find the service."),
        optional(
            "canary",
            Type::Table(&CANARY),
            "Written before, read after: the proof that the service serves its old data.",
        ),
    ],
    choices: &[],
};

static OBJECTIVE: Table = Table {
    what: "an objective",
    doc: "What is left out is as the service says.",
    keys: &[
        optional("rpo", DURATION, "How much may be lost in this scenario."),
        optional("rto", DURATION, "For how long the service may be away in this scenario."),
    ],
    choices: &[],
};

static COMPONENT: Table = Table {
    what: "a component",
    doc: "",
    keys: &[
        with_default(
            "role",
            Type::Word(&[
                ("application", "serves requests"),
                ("database", "keeps the data"),
                ("load-balancer", "spreads requests"),
                ("worker", "does work that nobody waits for"),
            ]),
            "\"application\"",
            "What it does.",
        ),
        optional("after", NAMES, "Components of this service that must be up before it starts."),
        optional(
            "runs-on",
            Type::Named { what: "site", names: true, of: &Type::OneOrMany(&NAME) },
            "Site to the host (or list of hosts) there that runs it; left out at local sites.",
        ),
        optional("launch", Type::Table(&LAUNCH), "How an instance is started."),
        optional(
            "port",
            Type::Count { min: 1, max: 65_535 },
            "The TCP port on which an instance listens at its site's or host's address.",
        ),
        optional("instances", Type::Table(&INSTANCES), "How many run."),
        optional("health", Type::Table(&HEALTH), "How to see that an instance is well."),
        optional("haproxy", Type::Table(&HAPROXY), "With `role = \"load-balancer\"`: an HAProxy to be kept in step."),
        optional("dataset", named!("dataset", DATASET), "The data that belongs to it."),
    ],
    choices: &[],
};

static LAUNCH: Table = Table {
    what: "the launch of a component",
    doc: "Templates are filled in for the site where it starts: `{{ component.NAME.url }}`, `{{ component.NAME.address }}`, `{{ dataset.NAME.path }}`, `{{ site.name }}`, `{{ site.address }}`, `{{ instance.address }}`, `{{ instance.port }}`, `{{ instance.number }}`.",
    keys: &[
        required(
            "command",
            COMMAND,
            "The program and its arguments; it stays in the foreground. No shell is involved.",
        ),
        optional(
            "env",
            Type::Named { what: "variable", names: false, of: &Type::Value },
            "Its environment. A value is text with templates, or a secret.",
        ),
        optional("directory", Type::Text(Kind::Template), "The directory that it starts in; templates allowed."),
        with_default("stop-within", DURATION, "\"10s\"", "How long a graceful stop may take."),
        with_default(
            "stop-signal",
            Type::Word(&[
                ("term", "SIGTERM, as most programs expect it"),
                ("int", "SIGINT: a PostgreSQL server then ends its sessions, and does not wait until they end"),
                ("quit", "SIGQUIT"),
            ]),
            "\"term\"",
            "What asks for a graceful stop.",
        ),
    ],
    choices: &[],
};

static INSTANCES: Table = Table {
    what: "the number of instances",
    doc: "",
    keys: &[
        with_default("live", Type::Count { min: 1, max: 1_000 }, "1", "How many run where the service is."),
        with_default(
            "standby",
            Type::Count { min: 0, max: 1_000 },
            "0",
            "How many run at a recovery site on a normal day.",
        ),
    ],
    choices: &[],
};

static HEALTH: Table = Table {
    what: "the health of a component",
    doc: "",
    keys: &[
        optional("http", Type::Text(Kind::HttpPath), "A path (or whole URL) that answers 2xx when all is well."),
        optional("tcp", Type::Bool, "Its port accepts connections."),
        optional("command", COMMAND, "A command that ends with 0 when all is well."),
        with_default("within", DURATION, "\"60s\"", "How long a fresh instance may take until it is well."),
        with_default("every", DURATION, "\"5s\"", "How often it is asked."),
    ],
    choices: &[Choice { of: &["http", "tcp", "command"], may_be_none: false }],
};

static HAPROXY: Table = Table {
    what: "an HAProxy",
    doc: "",
    keys: &[required("socket", PATH, "Its admin socket."), required("backend", PLAIN, "The backend's name.")],
    choices: &[],
};

static DATASET: Table = Table {
    what: "a data set",
    doc: "A relative path lies in the volumes of the site, and needs `reach = \"local\"`.",
    keys: &[
        required(
            "kind",
            Type::Word(&[
                ("persistent", "what users and the service wrote: loss is loss"),
                ("configuration", "how the service is set up"),
                ("fixed", "comes with a release and never changes"),
                ("transient", "can be made anew"),
            ]),
            "What kind of data it is.",
        ),
        optional("files", Type::Table(&FILES), "Files in a directory."),
        optional("sqlite", Type::Table(&SQLITE), "One SQLite database, captured consistently while it is in use."),
        optional("postgres", Type::Table(&POSTGRES), "A PostgreSQL cluster, while its server runs."),
        optional(
            "postgres-dump",
            Type::Table(&POSTGRES_DUMP),
            "What `pg_dump` and `pg_dumpall` write of a PostgreSQL server, such as a replica: for other versions and providers. It comes back as files.",
        ),
        optional("mariadb", Type::Table(&CONNECTION), "A MariaDB server."),
        optional(
            "command",
            Type::Table(&DATA_COMMAND),
            "Anything that a command can write to stdout and read back from stdin.",
        ),
        optional("size", Type::Text(Kind::Size), "About how much there is, such as `\"5 GB\"`; for estimates."),
        optional("residency", NAME, "The jurisdiction that it may not leave, with its replicas and recovery points."),
        optional(
            "protect",
            Type::List { of: &Type::Table(&PROTECT), may_be_empty: true },
            "To which vaults, how often, and what is kept.",
        ),
        optional(
            "sync-copies",
            Type::Count { min: 1, max: 100 },
            "In how many of the vaults that commits wait for (`mode`) a commit must be. Without it: in all of them.",
        ),
        optional("replica", Type::Table(&REPLICA), "A copy that the database itself keeps up."),
        optional("verify", Type::Table(&VERIFY), "How often a recovery point is restored and looked at."),
        optional("rebuild", COMMAND, "The command that makes derived data anew after a restore."),
    ],
    choices: &[Choice {
        of: &["files", "sqlite", "postgres", "postgres-dump", "mariadb", "command"],
        may_be_none: true,
    }],
};

static FILES: Table = Table {
    what: "files",
    doc: "",
    keys: &[
        required("path", PATH, "The directory."),
        optional(
            "exclude",
            Type::List { of: &PLAIN, may_be_empty: true },
            "What is left out: patterns such as `*.tmp`.",
        ),
    ],
    choices: &[],
};

static DATA_COMMAND: Table = Table {
    what: "commands for data",
    doc: "",
    keys: &[
        required("backup", COMMAND, "Writes the data to stdout."),
        required("restore", COMMAND, "Reads the data from stdin."),
    ],
    choices: &[],
};

pub(super) const COMMIT_MODE: Type = Type::Word(&[
    ("async", "commits do not wait for it"),
    ("sync", "the same as sync-required"),
    ("sync-required", "no commit without it"),
    ("sync-preferred", "commits wait for it while it is there"),
]);

static REPLICA: Table = Table {
    what: "a replica",
    doc: "",
    keys: &[
        required("at", NAME, "The site that has it."),
        with_default("mode", COMMIT_MODE, "\"async\"", "Whether commits wait for it."),
        optional(
            "via",
            Type::Named { what: "site", names: true, of: &PLAIN },
            "Site to the name of the service in `pg_service.conf` by which its server is reached from the others: standbys stream from the one that writes.",
        ),
    ],
    choices: &[],
};

static VERIFY: Table = Table {
    what: "a verification",
    doc: "",
    keys: &[
        optional("every", DURATION, "Every so long."),
        optional("cron", CRON, "At these times (UTC)."),
        optional(
            "queries",
            Type::List { of: &PLAIN, may_be_empty: true },
            "SQL; each must answer with one row that has one true value.",
        ),
        optional(
            "database",
            PLAIN,
            "In which of the server's databases they are asked [default: the one that `service` names, else `postgres`].",
        ),
    ],
    choices: &[WHEN],
};

static TRAFFIC: Table = Table {
    what: "the traffic of a service",
    doc: "",
    keys: &[
        required("name", Type::Text(Kind::DomainName), "The service's name, with its final dot."),
        required("dns", Type::Table(&DNS), "Who answers for that name."),
        required(
            "everyday",
            Type::Named { what: "site", names: true, of: &WEIGHT },
            "Site to weight on a normal day; a run sets weights of its own.",
        ),
        with_default("ttl", DURATION, "\"30s\"", "How long resolvers may keep an answer; part of every recovery time."),
    ],
    choices: &[],
};

static DNS: Table = Table {
    what: "a name server",
    doc: "",
    keys: &[
        optional("authority", Type::Text(Kind::Listen), "lifeboat's own (`lifeboat dns`), at this address and port."),
        optional("rfc2136", PLAIN, "A server that takes dynamic updates."),
        optional("key", Type::Secret, "With `rfc2136`: the TSIG key."),
    ],
    choices: &[Choice { of: &["authority", "rfc2136"], may_be_none: false }],
};

static CANARY: Table = Table {
    what: "the canary",
    doc: "`{{ canary.value }}` stands for the numbered value.",
    keys: &[
        required("write", Type::Table(&CANARY_WRITE), "How a value is written."),
        required("read", Type::Table(&CANARY_READ), "How it is read back."),
        with_default(
            "every",
            DURATION,
            "\"10s\"",
            "How often a new value is written; its age after a recovery is the loss that users see.",
        ),
    ],
    choices: &[],
};

static CANARY_WRITE: Table = Table {
    what: "the canary's write",
    doc: "",
    keys: &[
        required("http", Type::Text(Kind::Exchange), "Method and path, such as `\"POST /canary\"`."),
        optional("body", Type::Text(Kind::Template), "What is sent."),
        optional("expect", Type::Text(Kind::Template), "What the answer must hold, besides a 2xx status."),
    ],
    choices: &[],
};

static CANARY_READ: Table = Table {
    what: "the canary's read",
    doc: "",
    keys: &[
        required("http", Type::Text(Kind::Exchange), "Method and path, such as `\"GET /canary\"`."),
        optional("body", Type::Text(Kind::Template), "What is sent."),
        optional("expect", Type::Text(Kind::Template), "What the answer must hold, besides a 2xx status."),
    ],
    choices: &[],
};

static WATCH: Table = Table {
    what: "the watch",
    doc: "",
    keys: &[
        required("observers", SOME_NAMES, "Observers, none of them in a site that they watch."),
        required(
            "agree",
            Type::Count { min: 1, max: 1_000 },
            "How many must see it before anything is called a disaster.",
        ),
        with_default(
            "on-verdict",
            Type::Word(&[("ask", "whoever approves is asked"), ("act", "recovery starts by itself")]),
            "\"ask\"",
            "What happens then.",
        ),
        optional("delay", DURATION, "With `on-verdict = \"act\"`: how long to wait first, in case it comes back."),
        optional(
            "blocked",
            Type::List { of: &Type::Text(Kind::Window), may_be_empty: true },
            "With `on-verdict = \"act\"`: when nothing happens by itself, such as `\"mon-fri 09:00-17:00\"`.",
        ),
    ],
    choices: &[],
};

static DRILL: Table = Table {
    what: "a drill",
    doc: "",
    keys: &[
        required("service", NAME, "Which service."),
        required("scenario", NAME, "As if what had happened."),
        optional("every", DURATION, "Due every so long."),
        optional("cron", CRON, "Due at these times (UTC)."),
    ],
    choices: &[WHEN],
};

static PREREQUISITE: Table = Table {
    what: "a prerequisite",
    doc: "",
    keys: &[
        required("describe", PLAIN, "What must be so, in a sentence."),
        optional("check", Type::Table(&PREREQUISITE_CHECK), "How to see that it is."),
    ],
    choices: &[],
};

static PREREQUISITE_CHECK: Table = Table {
    what: "a prerequisite's check",
    doc: "",
    keys: &[required("command", COMMAND, "A command that ends with 0 when it is so.")],
    choices: &[],
};
