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
         This page is written by `cargo xtask bench vault` and `cargo xtask bench sqlite`, which install the peers, make the data, and take \
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
    let places = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
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
}
