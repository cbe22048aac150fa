//! From a tree that the grammar accepts to a `Plan`, with defaults filled in.
//!
//! Invariant: it finds no faults of its own; `None` means that the grammar let something through that it should not have.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::model::*;
use super::syntax::{Entry, Node, Table, Value as Tree};
use crate::diagnostic::{Diagnostic, Severity};
use crate::units::{Price, Span};

/// What is said when the grammar and this module disagree, which is a fault of lifeboat's.
pub(super) fn disagreement() -> Diagnostic {
    Diagnostic {
        code: "P0199",
        severity: Severity::Error,
        message: "nothing wrong was found in this plan, and yet it could not be read".to_owned(),
        span: None,
        help: Some("this is a fault of lifeboat: please report it with the plan".to_owned()),
        related: Vec::new(),
    }
}

pub(super) fn plan(tree: &Table) -> Option<Plan> {
    let head = Reader(tree.table("plan")?);
    Some(Plan {
        name: head.text("name")?,
        accepted_by: head.text("accepted-by"),
        persons: tree.named("person", person)?,
        arbiter: tree.optional("arbiter", arbiter)?,
        scenarios: tree.named("scenario", scenario)?,
        sites: tree.named("site", site)?,
        vaults: tree.named("vault", vault)?,
        keys: tree.optional("key", keys)?.unwrap_or(Keys { recipients: Vec::new(), owner: None, holders: Vec::new() }),
        services: tree.named("service", service)?,
        watch: tree.optional("watch", watch)?,
        drills: tree.named("drill", drill)?,
        prerequisites: tree.named("prerequisite", prerequisite)?,
    })
}

impl Table {
    fn table(&self, key: &str) -> Option<&Table> {
        match &self.get(key)?.node.value {
            Tree::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Every entry of the named table; an absent table is empty.
    fn named<T>(&self, key: &str, read: impl Fn(&str, Reader<'_>) -> Option<T>) -> Option<BTreeMap<Name, T>> {
        let Some(table) = self.table(key) else { return Some(BTreeMap::new()) };
        table
            .in_order()
            .into_iter()
            .map(|(name, entry)| match &entry.node.value {
                Tree::Table(inner) => Some((name.to_owned(), read(name, Reader(inner))?)),
                _ => None,
            })
            .collect()
    }

    /// `Some(None)` when the table is not there.
    fn optional<T>(&self, key: &str, read: impl Fn(Reader<'_>) -> Option<T>) -> Option<Option<T>> {
        match self.table(key) {
            Some(table) => read(Reader(table)).map(Some),
            None => Some(None),
        }
    }
}

/// Reads values out of one table.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a Table);

impl<'a> Reader<'a> {
    fn value(self, key: &str) -> Option<&'a Tree> {
        self.0.get(key).map(|Entry { node, .. }| &node.value)
    }

    fn text(self, key: &str) -> Option<String> {
        as_text(self.value(key)?)
    }

    fn parsed<T: FromStr>(self, key: &str) -> Option<T> {
        self.text(key)?.parse().ok()
    }

    fn span_or(self, key: &str, default: Span) -> Span {
        self.parsed(key).unwrap_or(default)
    }

    fn flag(self, key: &str) -> bool {
        matches!(self.value(key), Some(Tree::Bool(true)))
    }

    fn count_or(self, key: &str, default: u32) -> u32 {
        match self.value(key) {
            Some(Tree::Integer(number)) => u32::try_from(*number).unwrap_or(default),
            _ => default,
        }
    }

    fn texts(self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(Tree::List(items)) => items.iter().filter_map(|item| as_text(&item.value)).collect(),
            _ => Vec::new(),
        }
    }

    fn table(self, key: &str) -> Option<Reader<'a>> {
        self.0.table(key).map(Reader)
    }

    /// The tables of a list, or the one table in its place.
    fn tables(self, key: &str) -> Vec<Reader<'a>> {
        match self.value(key) {
            Some(Tree::List(items)) => items.iter().filter_map(as_table).map(Reader).collect(),
            Some(Tree::Table(table)) => vec![Reader(table)],
            _ => Vec::new(),
        }
    }

    fn money(self, key: &str) -> Option<Money> {
        let price: Price = self.parsed(key)?;
        Some(Money { amount: price.amount, currency: price.currency })
    }

    fn schedule(self) -> Option<Schedule> {
        match self.parsed("every") {
            Some(every) => Some(Schedule::Every(every)),
            None => self.text("cron").map(Schedule::Cron),
        }
    }

    fn secret(self) -> Option<Secret> {
        match (self.text("env"), self.text("file")) {
            (Some(name), _) => Some(Secret::Env(name)),
            (_, Some(path)) => Some(Secret::File(path)),
            _ => Some(Secret::Command(self.texts("command"))),
        }
    }
}

fn as_text(value: &Tree) -> Option<String> {
    match value {
        Tree::Text(text) => Some(text.clone()),
        _ => None,
    }
}

fn as_table(node: &Node) -> Option<&Table> {
    match &node.value {
        Tree::Table(table) => Some(table),
        _ => None,
    }
}

fn person(_: &str, table: Reader<'_>) -> Option<Person> {
    Some(Person { notify: table.texts("notify"), approves: table.flag("approves"), key: table.text("key") })
}

fn arbiter(table: Reader<'_>) -> Option<Arbiter> {
    Some(Arbiter { url: table.text("url")?, organization: table.text("organization"), site: table.text("site") })
}

fn scenario(name: &str, table: Reader<'_>) -> Option<Scenario> {
    let built_in = BUILT_IN_SCENARIOS.iter().find(|(known, _)| *known == name).map(|(_, describe)| *describe);
    let per_year = match table.value("per-year") {
        Some(Tree::Float(number)) => Some(*number),
        Some(Tree::Integer(number)) => Some(*number as f64),
        _ => None,
    };
    Some(Scenario { describe: table.text("describe").or(built_in.map(str::to_owned)).unwrap_or_default(), per_year })
}

fn site(_: &str, table: Reader<'_>) -> Option<Site> {
    let mut hosts: BTreeMap<Name, String> = BTreeMap::new();
    if let Some(Reader(declared)) = table.table("host") {
        hosts.extend(
            declared
                .in_order()
                .iter()
                .filter_map(|(name, entry)| Some(((*name).to_owned(), as_text(&entry.node.value)?))),
        );
    }
    let reach = match table.text("reach")?.as_str() {
        // What `check` then says about a local site without them points at the plan, so nothing is made up here.
        "local" => Reach::Local {
            root: table.text("root").unwrap_or_default(),
            address: table.text("address").unwrap_or_default(),
        },
        "command" => Reach::Command {
            command: table.texts("command"),
            rerun: if table.text("rerun").as_deref() == Some("safe") { Rerun::Safe } else { Rerun::Ask },
        },
        "ssh" => Reach::Ssh,
        "aws" => Reach::Aws,
        _ => return None,
    };
    Some(Site {
        reach,
        zone: table.text("zone"),
        region: table.text("region"),
        organization: table.text("organization"),
        jurisdiction: table.text("jurisdiction"),
        bandwidth: table.parsed("bandwidth"),
        hosts,
    })
}

fn vault(_: &str, table: Reader<'_>) -> Option<Vault> {
    Some(Vault {
        url: table.text("url")?,
        site: table.text("site"),
        organization: table.text("organization"),
        storage_cost: table.money("storage-cost"),
        archive: table.table("archive").and_then(archive),
        lock: table.parsed("lock"),
    })
}

fn archive(table: Reader<'_>) -> Option<Archive> {
    let command = table.texts("command");
    Some(Archive {
        class: table.text("class")?,
        thaw: table.parsed("thaw")?,
        command: (!command.is_empty()).then_some(command),
    })
}

fn keys(table: Reader<'_>) -> Option<Keys> {
    let purposes = [("standby", KeyPurpose::Standby), ("drill", KeyPurpose::Drill), ("verify", KeyPurpose::Verify)];
    let mut holders = Vec::new();
    for (key, purpose) in purposes {
        for holder in table.tables(key) {
            holders.push(KeyHolder {
                purpose,
                recipient: holder.text("recipient")?,
                held_at: holder.text("held-at")?,
                datasets: holder.texts("datasets"),
                identity: holder.table("identity").and_then(Reader::secret),
            });
        }
    }
    Some(Keys { recipients: table.texts("recipients"), owner: table.text("owner"), holders })
}

fn service(name: &str, table: Reader<'_>) -> Option<Service> {
    let objective = Objective { rpo: table.parsed("rpo")?, rto: table.parsed("rto")? };
    let objectives = table.0.named("objective", |_, own| {
        Some(Objective {
            rpo: own.parsed("rpo").unwrap_or(objective.rpo),
            rto: own.parsed("rto").unwrap_or(objective.rto),
        })
    })?;
    Some(Service {
        name: name.to_owned(),
        strategy: match table.text("strategy")?.as_str() {
            "backup-restore" => Strategy::BackupRestore,
            "pilot-light" => Strategy::PilotLight,
            "warm-standby" => Strategy::WarmStandby,
            "multi-site" => Strategy::MultiSite,
            _ => return None,
        },
        primary: table.text("primary")?,
        recovery: table.texts("recovery"),
        objective,
        priority: if table.text("priority").as_deref() == Some("rto") { Priority::Rto } else { Priority::Rpo },
        downtime_cost: table.money("downtime-cost"),
        data_loss_cost: table.money("data-loss-cost"),
        approval: table.flag("approval"),
        lease: table.parsed("lease"),
        objectives,
        components: in_start_order(components(table)?),
        traffic: table.0.optional("traffic", traffic)?,
        canary: table.0.optional("canary", canary)?,
    })
}

/// In the order of the text.
fn components(table: Reader<'_>) -> Option<Vec<Component>> {
    let Some(Reader(declared)) = table.table("component") else { return Some(Vec::new()) };
    declared.in_order().into_iter().map(|(name, entry)| component(name, Reader(as_table(&entry.node)?))).collect()
}

/// Each after those that it names; in the order of the text where that leaves a choice, and where there is a cycle (which `check` reports).
fn in_start_order(mut waiting: Vec<Component>) -> Vec<Component> {
    let known: BTreeSet<Name> = waiting.iter().map(|component| component.name.clone()).collect();
    let mut ordered: Vec<Component> = Vec::new();
    while !waiting.is_empty() {
        let up = |name: &Name| !known.contains(name) || ordered.iter().any(|component| component.name == *name);
        let next = waiting.iter().position(|component| component.after.iter().all(up)).unwrap_or(0);
        ordered.push(waiting.remove(next));
    }
    ordered
}

fn component(name: &str, table: Reader<'_>) -> Option<Component> {
    let mut runs_on = BTreeMap::new();
    if let Some(Reader(sites)) = table.table("runs-on") {
        for (site, entry) in sites.in_order() {
            let hosts = match &entry.node.value {
                Tree::List(items) => items.iter().filter_map(|item| as_text(&item.value)).collect(),
                value => vec![as_text(value)?],
            };
            runs_on.insert(site.to_owned(), hosts);
        }
    }
    let instances = table.table("instances");
    Some(Component {
        name: name.to_owned(),
        role: match table.text("role").as_deref() {
            Some("database") => Role::Database,
            Some("load-balancer") => Role::LoadBalancer,
            Some("worker") => Role::Worker,
            _ => Role::Application,
        },
        after: table.texts("after"),
        runs_on,
        launch: table.0.optional("launch", launch)?,
        port: match table.value("port") {
            Some(Tree::Integer(port)) => Some(u16::try_from(*port).ok()?),
            _ => None,
        },
        instances: Instances {
            live: instances.map_or(1, |table| table.count_or("live", 1)),
            standby: instances.map_or(0, |table| table.count_or("standby", 0)),
        },
        health: table.0.optional("health", health)?,
        haproxy: table.0.optional("haproxy", |table| {
            Some(HaProxy { socket: table.text("socket")?, backend: table.text("backend")? })
        })?,
        datasets: datasets(table)?,
    })
}

fn launch(table: Reader<'_>) -> Option<Launch> {
    let mut env = BTreeMap::new();
    if let Some(Reader(variables)) = table.table("env") {
        for (name, entry) in variables.in_order() {
            let value = match &entry.node.value {
                Tree::Table(secret) => Value::Secret(Reader(secret).secret()?),
                value => Value::Text(as_text(value)?),
            };
            env.insert(name.to_owned(), value);
        }
    }
    Some(Launch {
        command: table.texts("command"),
        env,
        directory: table.text("directory"),
        stop_within: table.span_or("stop-within", Span::seconds(10)),
        stop_signal: match table.text("stop-signal").as_deref() {
            Some("int") => StopSignal::Int,
            Some("quit") => StopSignal::Quit,
            _ => StopSignal::Term,
        },
    })
}

fn health(table: Reader<'_>) -> Option<Health> {
    let probe = match table.text("http") {
        Some(path) => Probe::Http(path),
        None if table.value("command").is_some() => Probe::Command(table.texts("command")),
        None => Probe::Tcp,
    };
    Some(Health {
        probe,
        within: table.span_or("within", Span::seconds(60)),
        every: table.span_or("every", Span::seconds(5)),
    })
}

fn datasets(table: Reader<'_>) -> Option<Vec<DataSet>> {
    let Some(Reader(declared)) = table.table("dataset") else { return Some(Vec::new()) };
    declared.in_order().into_iter().map(|(name, entry)| dataset(name, Reader(as_table(&entry.node)?))).collect()
}

fn dataset(name: &str, table: Reader<'_>) -> Option<DataSet> {
    Some(DataSet {
        name: name.to_owned(),
        kind: match table.text("kind")?.as_str() {
            "fixed" => DataKind::Fixed,
            "transient" => DataKind::Transient,
            "configuration" => DataKind::Configuration,
            "persistent" => DataKind::Persistent,
            _ => return None,
        },
        source: source(table)?,
        size: table.parsed("size"),
        residency: table.text("residency"),
        protect: table.tables("protect").into_iter().filter_map(protect).collect(),
        sync_copies: table.value("sync-copies").map(|_| table.count_or("sync-copies", 1)),
        replica: table.0.optional("replica", replica)?,
        verify: table.0.optional("verify", |table| {
            let (queries, database) = (table.texts("queries"), table.text("database"));
            Some(Verify { every: table.schedule()?, queries, database })
        })?,
        rebuild: table.value("rebuild").map(|_| table.texts("rebuild")),
    })
}

/// Long enough for what usually holds a table: short enough that whoever waits behind us does not wait long.
const DUMP_LOCK_WAIT: Span = Span::seconds(60);

fn source(table: Reader<'_>) -> Option<Source> {
    Some(if let Some(files) = table.table("files") {
        Source::Files { path: files.text("path")?, exclude: files.texts("exclude") }
    } else if let Some(database) = table.table("sqlite") {
        Source::Sqlite { path: database.text("path")? }
    } else if let Some(database) = table.table("postgres") {
        Source::Postgres { path: database.text("path")?, service: database.text("service") }
    } else if let Some(dump) = table.table("postgres-dump") {
        Source::PostgresDump {
            path: dump.text("path"),
            service: dump.text("service"),
            databases: dump.texts("databases"),
            lock_wait: dump.span_or("lock-wait", DUMP_LOCK_WAIT),
        }
    } else if let Some(database) = table.table("mariadb") {
        Source::Mariadb { service: database.text("service")? }
    } else if let Some(commands) = table.table("command") {
        Source::Command { backup: commands.texts("backup"), restore: commands.texts("restore") }
    } else {
        Source::Nothing
    })
}

/// None for a protection without full points, which `check` reports from the tree.
fn protect(table: Reader<'_>) -> Option<Protect> {
    let full = table.table("base").unwrap_or(table);
    let keep = full.table("keep").map_or(Keep::default(), |table| Keep {
        last: table.count_or("last", 0),
        hourly: table.count_or("hourly", 0),
        daily: table.count_or("daily", 0),
        weekly: table.count_or("weekly", 0),
        monthly: table.count_or("monthly", 0),
        yearly: table.count_or("yearly", 0),
        log: table.parsed("log"),
        archive_after: table.parsed("archive-after"),
    });
    let (log, mode) = (table.value("log").is_some(), commit_mode(table));
    Some(Protect { to: table.text("to")?, every: full.schedule()?, keep, log, mode })
}

fn commit_mode(table: Reader<'_>) -> CommitMode {
    match table.text("mode").as_deref() {
        Some("sync" | "sync-required") => CommitMode::SyncRequired,
        Some("sync-preferred") => CommitMode::SyncPreferred,
        _ => CommitMode::Async,
    }
}

fn replica(table: Reader<'_>) -> Option<Replica> {
    let via = table.table("via").map_or_else(BTreeMap::new, |via| {
        via.0.in_order().iter().filter_map(|(site, _)| Some(((*site).to_owned(), via.text(site)?))).collect()
    });
    Some(Replica { at: table.text("at")?, mode: commit_mode(table), via })
}

fn traffic(table: Reader<'_>) -> Option<Traffic> {
    let dns = table.table("dns")?;
    let everyday = table.table("everyday")?;
    Some(Traffic {
        name: table.text("name")?.to_ascii_lowercase(),
        dns: match dns.text("authority") {
            Some(address) => Dns::Authority(address),
            None => Dns::Rfc2136 {
                server: dns.text("rfc2136")?,
                // Its absence is an error that `check` reports.
                key: dns.table("key").and_then(Reader::secret).unwrap_or(Secret::Env(String::new())),
            },
        },
        everyday: everyday
            .0
            .in_order()
            .iter()
            .map(|(site, _)| ((*site).to_owned(), everyday.count_or(site, 0)))
            .collect(),
        ttl: table.span_or("ttl", Span::seconds(30)),
    })
}

fn canary(table: Reader<'_>) -> Option<Canary> {
    let exchange = |key: &str| {
        let table = table.table(key)?;
        Some(HttpExchange { request: table.text("http")?, body: table.text("body"), expect: table.text("expect") })
    };
    Some(Canary {
        write: exchange("write")?,
        read: exchange("read")?,
        every: table.span_or("every", Span::seconds(10)),
    })
}

fn watch(table: Reader<'_>) -> Option<Watch> {
    let act = table.text("on-verdict").as_deref() == Some("act");
    Some(Watch {
        observers: table.texts("observers"),
        agree: table.count_or("agree", 1),
        on_verdict: if act {
            OnVerdict::Act { delay: table.span_or("delay", Span::seconds(0)), blocked: table.texts("blocked") }
        } else {
            OnVerdict::Ask
        },
    })
}

fn drill(_: &str, table: Reader<'_>) -> Option<Drill> {
    Some(Drill { service: table.text("service")?, scenario: table.text("scenario")?, every: table.schedule()? })
}

fn prerequisite(_: &str, table: Reader<'_>) -> Option<Prerequisite> {
    Some(Prerequisite {
        describe: table.text("describe")?,
        check: table.table("check").map(|check| check.texts("command")),
    })
}
