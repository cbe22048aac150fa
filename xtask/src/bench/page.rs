//! `docs/benchmarks.md`, from the rounds that are kept in `docs/benchmarks`.
//!
//! Invariant: the page says nothing that is not in the results, names the goal beside each figure, says where it is missed, and of how many
//! rounds each figure is. Of fewer than a claim needs nothing is claimed.

use std::fmt::Write;

use serde_json::{Value, json};

use super::RUNS;
use super::figures::{against_best, median, spread};
use super::measure::Call;
use super::rounds::newest;
use crate::root;

fn say(words: &[&str]) -> Result<String, String> {
    Call::new(words).run().map(|text| text.trim().to_owned())
}

fn processors() -> Result<String, String> {
    let model = say(&["sh", "-c", "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2"])?;
    Ok(format!("{} × {model}", say(&["nproc"])?))
}

fn memory() -> Result<String, String> {
    say(&["sh", "-c", "awk '/MemTotal/ {printf \"%.0f GB\", $2/1e6}' /proc/meminfo"])
}

/// What rounds on another machine must have in common with this one.
pub(super) fn kind_of_machine() -> Result<String, String> {
    Ok(format!("{}, {}", processors()?, memory()?))
}

/// What the machine is, for who reads the figures elsewhere.
pub(super) fn machine() -> Result<Value, String> {
    Ok(json!({
        "cpu": processors()?, "memory": memory()?, "kernel": say(&["uname", "-sr"])?,
        "date": say(&["date", "-u", "+%Y-%m-%d"])?, "commit": say(&["git", "log", "-1", "--format=%h", "--", "crates", "Cargo.toml", "Cargo.lock"])?,
    }))
}

/// A phase that is shown: its name in the results, its head on the page.
type Column = (&'static str, &'static str);

const PHASES: [Column; 9] = [
    ("first", "first backup, s"),
    ("again", "unchanged again, s"),
    ("clustered", "2 % changed, clustered, s"),
    ("scattered", "2 % changed, scattered, s"),
    ("restore", "restore, s"),
    ("stored", "stored, MB"),
    ("clustered-stored", "added clustered, MB"),
    ("scattered-stored", "added scattered, MB"),
    ("backup-memory", "memory, MB"),
];

/// Our tool, the phase, and how many times as good as the best peer it must be (less is better in all of them).
const GOALS: [(&str, &str, f64); 8] = [
    ("lifeboat", "first", 1.5),
    ("lifeboat", "stored", 1.0),
    ("lifeboat", "again", 1.0),
    ("lifeboat", "restore", 2.0),
    ("lifeboat --fast", "first", 2.0),
    ("lifeboat --fast", "stored", 1.0 / 1.15),
    ("lifeboat --fast", "again", 1.0),
    ("lifeboat --fast", "restore", 2.0),
];
const MEMORY_MB_MAX: f64 = 150.0;

pub(super) fn write() -> Result<(), String> {
    let mut text = String::from(
        "# Benchmarks\n\nlifeboat beside its peers, each as this page says, all in turn on one machine, in memory (`/dev/shm`), so that the tools are \
         compared and not a disk. Every restore was compared with its source. Figures are medians over the rounds, with the least and the \
         most; ratios are made round by round against the best peer of that round, and above 1 lifeboat is the better. `cp -a` and `tar | zstd` \
         are floors and no peers: they do not encrypt or deduplicate. Right before each step as much memory as it may fill is filled and freed \
         again, for every tool alike: a hypervisor takes memory back that lies free, and giving it again would be measured instead. Memory is that of a tool's largest process. A goal that is missed says so.\n\n\
         This page is written by `cargo xtask bench vault`, `cargo xtask bench sqlite` and `cargo xtask bench postgres`, which install the peers, make the data, and take \
         hours; `--runs 1 --data tree` takes minutes. Each round is kept when it is finished, and run again with `--runs 7` they add what is \
         missing: so rounds can be collected whenever the machine is quiet. They lie in [`benchmarks`](benchmarks), each by itself. \
         `cargo xtask bench page` only writes the page.\n",
    );
    for (name, title) in [
        ("tree", "Rust toolchains"),
        ("database", "A database file"),
        ("small", "One million small files"),
        ("sqlite", "A SQLite database, streamed"),
        ("postgres", "A PostgreSQL cluster"),
        ("stream", "A PostgreSQL log, streamed"),
        ("switch", "A PostgreSQL service moved between two sites"),
    ] {
        if let Some(results) = newest(name)? {
            let _ = write!(text, "\n## {title}\n\n{}\n\n", about(name));
            section(&mut text, &results);
        }
    }
    let path = root().join("docs/benchmarks.md");
    std::fs::write(&path, text).map_err(|error| format!("cannot write {} ({error})", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

fn about(name: &str) -> &'static str {
    match name {
        "tree" => {
            "All toolchains that build and check lifeboat (`$(rustup show home)/toolchains`), copied to memory: programs, libraries and documentation."
        }
        "database" => {
            "One file of 4 GiB in pages of 8 KiB, half of each page random and half words, so that it compresses to about half. Then 2 % of its \
             pages are changed in one stretch, then 2 % here and there."
        }
        "postgres" => {
            "A running server with 3 GB (`pgbench -i -s 200`), with data checksums. Then 1 % of its pages are changed here and there, and it is backed up again; \
             `changed pages` are those alone, compressed with `zstd -1`. `until writes` is from the restore's beginning until the restored server takes writes."
        }
        "stream" => {
            "The log of the same cluster, while `pgbench -c 4` runs for 30 s: what it writes is received as it comes, and a hundred times a second it is looked \
             how old that is of which the receiver says that it is durable. Then the same again with commits that wait for the receiver: \
             `tps` are transactions a second, and of `no stream` those of the server alone."
        }
        "switch" => {
            "The same cluster as a service at two sites of this machine, at an address each. A client writes a row at a time through the service's \
             name, a hundred a second at most, gives up what is not answered within 0.25 s, and connects anew. `planned` is for how long no write was acknowledged while the service \
             was moved, `home` the same on its way back. Then the primary's site is killed, all of it at once (`kill -9`): `killed` is from there to the first acknowledged \
             write elsewhere. `back` is from when the former primary's return is asked for until it streams as a standby and has all that \
             there was then. In the end each write that was acknowledged is looked for."
        }
        "small" => "A thousand directories of a thousand files, 200 to 1,223 bytes each, half random and half words.",
        _ => {
            "1 GB, most of it hard to compress. `first` is the first copy, `restore` brings it back at once. Then a writer commits 100 times a \
             second; stream and writer are killed (`kill -9`) and the database is restored again. `lost` is how long before the last \
             acknowledged commit the last one was acknowledged that came back."
        }
    }
}

fn values(tool: &Value, phase: &str) -> Vec<f64> {
    let list = tool["figures"][phase].as_array();
    list.map(|list| list.iter().filter_map(Value::as_f64).collect()).unwrap_or_default()
}

fn section(text: &mut String, results: &Value) {
    let machine = |name: &str| results["machine"][name].as_str().unwrap_or("?").to_owned();
    let loads: Vec<f64> = results["loads"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let (least, most) = spread(&loads).unwrap_or((f64::NAN, f64::NAN));
    let _ = writeln!(
        text,
        "{} of {RUNS} rounds, the last on {}; {}, {}, {}; commit {}; load of the machine when a round began: {least:.1} to {most:.1}.\n",
        results["runs"],
        machine("date"),
        machine("cpu"),
        machine("memory"),
        machine("kernel"),
        machine("commit"),
    );
    let none = Vec::new();
    let tools = results["tools"].as_array().unwrap_or(&none);
    let columns: Vec<Column> = if results["what"] == "sqlite" {
        vec![
            ("first", "first copy, s"),
            ("restore", "restore, s"),
            ("restore-after-writes", "restore after writes, s"),
            ("restore-memory", "restore memory, MB"),
            ("lost-seconds", "lost by kill -9, s"),
        ]
    } else if results["what"] == "stream" {
        vec![
            ("age-median", "age, s"),
            ("age-most", "age, the most, s"),
            ("tps-unwaited", "tps meanwhile"),
            ("tps", "tps, commits wait"),
        ]
    } else if results["what"] == "switch" {
        vec![
            ("planned", "planned, s"),
            ("home", "home, s"),
            ("unplanned", "killed, s"),
            ("noticed", "noticed after, s"),
            ("back", "back, s"),
            ("acknowledged", "acknowledged writes"),
            ("lost", "lost"),
        ]
    } else if results["what"] == "postgres" {
        vec![
            ("first", "first backup, s"),
            ("changed", "1 % changed, s"),
            ("restore", "restore, s"),
            ("restore-writable", "until writes, s"),
            ("stored", "stored, MB"),
            ("changed-stored", "added, MB"),
            ("changed-pages", "changed pages, MB"),
            ("backup-memory", "memory, MB"),
        ]
    } else {
        let there = |(phase, _): &Column| tools.iter().any(|tool| !values(tool, phase).is_empty());
        PHASES.into_iter().filter(there).collect()
    };
    let _ = writeln!(text, "| | {} |", columns.iter().map(|(_, head)| *head).collect::<Vec<_>>().join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(columns.len()));
    for tool in tools {
        let cells: Vec<String> = columns.iter().map(|(phase, _)| cell(&values(tool, phase))).collect();
        let _ = writeln!(text, "| {} | {} |", tool["tool"].as_str().unwrap_or("?"), cells.join(" | "));
    }
    text.push('\n');
    goals(text, results, tools);
    let _ = writeln!(text, "\nSettings and versions:\n");
    for tool in tools {
        let say = |name: &str| tool[name].as_str().unwrap_or_default().to_owned();
        let version = Some(say("version")).filter(|text| !text.is_empty()).map(|text| format!(" ({text})"));
        let _ = writeln!(text, "- **{}**{}: {}", say("tool"), version.unwrap_or_default(), say("settings"));
    }
}

fn cell(values: &[f64]) -> String {
    let whole = values.iter().all(|value| value.fract() == 0.0);
    let places = |value: f64| if whole || value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    match (median(values), spread(values)) {
        (Some(middle), Some((least, most))) if values.len() > 1 => {
            format!("**{}** ({}–{})", places(middle), places(least), places(most))
        }
        (Some(middle), _) => format!("**{}**", places(middle)),
        _ => "–".to_owned(),
    }
}

fn goals(text: &mut String, results: &Value, tools: &[Value]) {
    let peers = || tools.iter().filter(|tool| tool["ours"] != true && tool["floor"] != true);
    let find = |name: &str| tools.iter().find(|tool| tool["tool"] == name);
    let mut rows = Vec::new();
    if results["what"] == "sqlite" {
        if let (Some(ours), Some(peer)) = (find("lifeboat"), find("litestream")) {
            let ratios = against_best(&values(ours, "restore"), &[values(peer, "restore")]);
            rows.push(row(results, ("lifeboat", "restore", 4.0), &ratios));
            let lost = spread(&values(ours, "lost-seconds")).map_or(f64::INFINITY, |(_, most)| most);
            let said = verdict(results, lost <= 0.2);
            rows.push(format!("| lifeboat | lost, the most | {lost:.2} s | at most 0.2 s | {said} |"));
        }
    } else if results["what"] == "postgres" {
        if let (Some(ours), Some(peer)) = (find("lifeboat"), find("pgbackrest")) {
            for phase in ["first", "restore-writable"] {
                let ratios = against_best(&values(ours, phase), &[values(peer, phase)]);
                rows.push(row(results, ("lifeboat", phase, 1.5), &ratios));
            }
            let times = against_best(&values(ours, "changed-pages"), &[values(ours, "changed-stored")]);
            let said = median(&times).map_or_else(|| "not measured".to_owned(), |times| verdict(results, times <= 3.0));
            rows.push(format!("| lifeboat | added, times the changed pages | {} | at most 3 | {said} |", cell(&times)));
        }
    } else if results["what"] == "stream" {
        if let (Some(ours), Some(peer)) = (find("lifeboat"), find("pg_receivewal")) {
            rows.push(at_most(results, ("age, the median", 0.2), median(&values(ours, "age-median"))));
            rows.push(at_most(
                results,
                ("age, the most", 1.0),
                spread(&values(ours, "age-most")).map(|(_, most)| most),
            ));
            // More is better here.
            let ratios = against_best(&values(peer, "tps"), &[values(ours, "tps")]);
            rows.push(row(results, ("lifeboat", "tps, commits wait", 0.9), &ratios));
        }
    } else if results["what"] == "switch" {
        if let (Some(ours), Some(peer)) = (find("lifeboat"), find("patroni")) {
            rows.extend(switched(results, ours, peer));
        }
    } else {
        for goal @ (tool, phase, _) in GOALS {
            let Some(ours) = find(tool) else { continue };
            let others: Vec<Vec<f64>> = peers().map(|peer| values(peer, phase)).filter(|v| !v.is_empty()).collect();
            rows.push(row(results, goal, &against_best(&values(ours, phase), &others)));
        }
        for ours in tools.iter().filter(|tool| tool["ours"] == true) {
            let all: Vec<f64> = [values(ours, "backup-memory"), values(ours, "restore-memory")].concat();
            let most = spread(&all).map_or(f64::INFINITY, |(_, most)| most);
            let said = verdict(results, most < MEMORY_MB_MAX);
            let name = ours["tool"].as_str().unwrap_or("?");
            rows.push(format!("| {name} | memory, the most | {most:.0} MB | below {MEMORY_MB_MAX} MB | {said} |"));
        }
    }
    if !rows.is_empty() {
        let _ = writeln!(
            text,
            "| | | times as good as the best peer | goal | |\n|---|---|---|---|---|\n{}",
            rows.join("\n")
        );
    }
}

/// What a move may take, in every round; and never longer than the peer's in the middle.
const SWITCH_GOALS: [(&str, &str, f64); 4] =
    [("planned", "planned", 1.0), ("home", "home", 1.0), ("unplanned", "killed", 5.0), ("back", "back", 2.0)];

fn switched(results: &Value, ours: &Value, peer: &Value) -> Vec<String> {
    let mut rows = Vec::new();
    for (phase, said, goal) in SWITCH_GOALS {
        let ratios = against_best(&values(ours, phase), &[values(peer, phase)]);
        rows.push(row(results, ("lifeboat", said, 1.0), &ratios));
        let most = spread(&values(ours, phase)).map(|(_, most)| most);
        rows.push(at_most(results, (&format!("{said}, the most"), goal), most));
    }
    let lost = values(ours, "lost");
    let said = spread(&lost).map_or_else(|| "not measured".to_owned(), |(_, most)| verdict(results, most == 0.0));
    rows.push(format!("| lifeboat | lost of them, in all | {} | none | {said} |", lost.iter().sum::<f64>()));
    rows
}

/// Seconds of ours that may be so many at most.
fn at_most(results: &Value, (what, goal): (&str, f64), seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else {
        return format!("| lifeboat | {what} | – | at most {goal} s | not measured |");
    };
    let said = verdict(results, seconds <= goal);
    format!("| lifeboat | {what} | {seconds:.2} s | at most {goal} s | {said} |")
}

fn row(results: &Value, (tool, phase, goal): (&str, &str, f64), ratios: &[f64]) -> String {
    let said = median(ratios).map_or_else(|| "not measured".to_owned(), |ratio| verdict(results, ratio >= goal));
    format!("| {tool} | {phase} | {} | {goal:.2} | {said} |", cell(ratios))
}

/// What is said of a goal; nothing is claimed of few rounds.
fn verdict(results: &Value, reached: bool) -> String {
    let rounds = results["runs"].as_u64().unwrap_or(0);
    match reached {
        _ if rounds < RUNS as u64 => format!("no claim: {rounds} of {RUNS} rounds"),
        true => "reached".to_owned(),
        false => "**missed**".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_claimed_of_few_rounds() {
        let results = |runs: u64| json!({ "runs": runs });
        assert_eq!(verdict(&results(7), true), "reached");
        assert_eq!(verdict(&results(7), false), "**missed**");
        assert_eq!(verdict(&results(6), true), "no claim: 6 of 7 rounds");
        assert!(row(&results(6), ("lifeboat", "first", 1.5), &[1.6; 6]).ends_with("no claim: 6 of 7 rounds |"));
        assert!(row(&results(7), ("lifeboat", "first", 1.5), &[1.6; 7]).ends_with("reached |"));
        assert!(row(&results(7), ("lifeboat", "first", 1.5), &[]).ends_with("not measured |"));
    }

    #[test]
    fn a_move_that_took_too_long_once_has_missed_its_goal_and_so_has_one_lost_write() {
        let arm = |planned: f64, lost: f64| {
            let seven = |value: f64| vec![value; 6].into_iter().chain([1.0]).collect::<Vec<_>>();
            json!({ "figures": { "planned": seven(planned), "lost": [0.0, lost] } })
        };
        let said = |planned: f64, lost: f64| switched(&json!({ "runs": 7 }), &arm(planned, lost), &arm(2.0, 0.0));
        let good = said(0.5, 0.0);
        assert_eq!(good.get(1).unwrap(), "| lifeboat | planned, the most | 1.00 s | at most 1 s | reached |");
        assert_eq!(good.get(3).unwrap(), "| lifeboat | home, the most | – | at most 1 s | not measured |");
        assert_eq!(good.last().unwrap(), "| lifeboat | lost of them, in all | 0 | none | reached |");
        let bad = said(1.01, 2.0);
        assert_eq!(bad.get(1).unwrap(), "| lifeboat | planned, the most | 1.01 s | at most 1 s | **missed** |");
        assert_eq!(bad.last().unwrap(), "| lifeboat | lost of them, in all | 2 | none | **missed** |");
    }
}
