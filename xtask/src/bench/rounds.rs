//! Rounds that were finished, kept one by one, so that they can be collected whenever the machine is quiet.
//!
//! They lie in `docs/benchmarks`, beside the page that is made from them: who doubts a figure reads the rounds.
//! Invariant: a round is kept whole or not at all; what lies in one file was measured with the same sources and compiler of ours, the same
//! versions and settings of the others, the same data and a machine of the same kind: with anything else counting begins anew, in another file.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::make_directory;
use super::measure::Call;
use super::vault::Figures;
use crate::root;

/// Which way of measuring this is: with another, rounds are counted anew.
const METHOD: u32 = 2;

/// One of those that are compared, as the page names it.
#[derive(Debug, Clone)]
pub(super) struct Contestant {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) settings: &'static str,
    pub(super) ours: bool,
    pub(super) floor: bool,
}

/// The rounds of one set of data, and when the one at work began.
#[derive(Debug)]
pub(super) struct Rounds {
    path: PathBuf,
    what: &'static str,
    /// Whether everybody takes part: only then it is for the page.
    complete: bool,
    contestants: Vec<Contestant>,
    figures: Vec<Figures>,
    seconds: Vec<f64>,
    loads: Vec<f64>,
    began: Instant,
    load: f64,
    turns: usize,
}

impl Rounds {
    /// Opens what was kept of these contestants on this data; `data` says what the data is.
    pub(super) fn open(
        what: &'static str,
        data: &str,
        contestants: Vec<Contestant>,
        complete: bool,
    ) -> Result<Rounds, String> {
        let ours = format!("{}\n{}", sources()?, super::page::kind_of_machine()?);
        let key = key(data, &ours, &contestants)?;
        let path = kept().join(format!("{what}-{key}.json"));
        Rounds::at(path, what, contestants, complete)
    }

    fn at(path: PathBuf, what: &'static str, contestants: Vec<Contestant>, complete: bool) -> Result<Rounds, String> {
        let figures = vec![Figures::new(); contestants.len()];
        let (seconds, loads) = (Vec::new(), Vec::new());
        let (began, load, turns) = (Instant::now(), 0.0, 0);
        let mut rounds = Rounds { path, what, complete, contestants, figures, seconds, loads, began, load, turns };
        let text = match std::fs::read_to_string(&rounds.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(rounds),
            Err(error) => return Err(format!("cannot read {} ({error})", rounds.path.display())),
        };
        rounds.take_in(&text).ok_or_else(|| format!("{} is no result; remove it", rounds.path.display()))?;
        Ok(rounds)
    }

    fn take_in(&mut self, text: &str) -> Option<()> {
        let value: Value = serde_json::from_str(text).ok()?;
        let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        (self.seconds, self.loads) = (numbers(&value["seconds"])?, numbers(&value["loads"])?);
        for (figures, tool) in self.figures.iter_mut().zip(value["tools"].as_array()?) {
            for (name, values) in tool["figures"].as_object()? {
                figures.insert(name.clone(), numbers(values)?);
            }
        }
        Some(())
    }

    pub(super) fn count(&self) -> usize {
        self.seconds.len()
    }

    /// A round begins.
    pub(super) fn begin(&mut self) {
        (self.began, self.turns) = (Instant::now(), 0);
        self.load = load().unwrap_or(f64::NAN);
    }

    /// One of the contestants has ended its turn; says where things stand, of `runs` rounds.
    pub(super) fn ended_turn(&mut self, runs: usize, name: &str, figures: &Figures) {
        self.turns += 1;
        let shown: Vec<String> = figures
            .iter()
            .filter_map(|(name, values)| values.last().map(|value| format!("{name} {value:.2}")))
            .collect();
        let minutes = self.seconds_left(runs, self.began.elapsed().as_secs_f64()) / 60.0;
        println!("{} round {} of {runs}: {name} {}", self.what, self.count() + 1, shown.join(", "));
        println!("  about {minutes:.0} minutes to go");
    }

    fn seconds_left(&self, runs: usize, elapsed: f64) -> f64 {
        let one = match self.seconds.len() {
            0 => elapsed * self.contestants.len() as f64 / self.turns.max(1) as f64,
            count => self.seconds.iter().sum::<f64>() / count as f64,
        };
        (one * runs.saturating_sub(self.count()) as f64 - elapsed).max(0.0)
    }

    /// The round is finished: keeps what everybody took in it.
    pub(super) fn keep(&mut self, round: Vec<Figures>) -> Result<(), String> {
        for (kept, figures) in self.figures.iter_mut().zip(round) {
            for (name, values) in figures {
                kept.entry(name).or_default().extend(values);
            }
        }
        self.seconds.push(self.began.elapsed().as_secs_f64());
        self.loads.push(self.load);
        self.save()
    }

    fn save(&self) -> Result<(), String> {
        let tools: Vec<Value> = self.contestants.iter().zip(&self.figures).map(|(one, figures)| {
            json!({
                "tool": one.name, "version": one.version, "settings": one.settings, "ours": one.ours, "floor": one.floor, "figures": figures,
            })
        }).collect();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let value = json!({
            "what": self.what, "runs": self.count(), "complete": self.complete, "at": at, "seconds": self.seconds, "loads": self.loads,
            "machine": super::page::machine()?, "tools": tools,
        });
        make_directory(self.path.parent().unwrap_or(&self.path))?;
        let draft = self.path.with_extension("draft");
        std::fs::write(&draft, format!("{value:#}\n"))
            .and_then(|()| std::fs::rename(&draft, &self.path))
            .map_err(|error| format!("cannot write {} ({error})", self.path.display()))
    }
}

/// What rounds must have in common to be counted together.
fn key(data: &str, ours: &str, contestants: &[Contestant]) -> Result<String, String> {
    let mut all = format!("{METHOD} {data}\n{ours}\n");
    for one in contestants {
        all.push_str(&format!("{} {} {}\n", one.name, one.version, one.settings));
    }
    let sum = Call::new(&["sh", "-c", "printf %s \"$0\" | sha256sum", &all]).run()?;
    sum.get(..12).map(str::to_owned).ok_or_else(|| format!("sha256sum wrote {sum:?}"))
}

/// What our binary is made of: the same everywhere, unlike its bytes.
fn sources() -> Result<String, String> {
    let listing = "git ls-files -co --exclude-standard -- crates/*/src crates/*/Cargo.toml Cargo.toml Cargo.lock | LC_ALL=C sort | \
                   xargs -d '\\n' sha256sum | sha256sum && rustc --version";
    Call::new(&["sh", "-c", listing]).inside(&root()).run()
}

/// Where rounds are kept.
fn kept() -> PathBuf {
    root().join("docs/benchmarks")
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The results of one set of data that are for the page: where everybody took part, measured last.
pub(super) fn newest(what: &str) -> Result<Option<Value>, String> {
    let Ok(entries) = std::fs::read_dir(kept()) else { return Ok(None) };
    let mut newest: Option<Value> = None;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(name.strip_prefix(what).is_some_and(|rest| rest.starts_with('-')) && name.ends_with(".json")) {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).map_err(|error| format!("cannot read {name} ({error})"))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| format!("{name} is no result ({error})"))?;
        let at = |value: &Value| value["at"].as_u64().unwrap_or(0);
        if value["complete"] == true && newest.as_ref().is_none_or(|other| at(other) < at(&value)) {
            newest = Some(value);
        }
    }
    Ok(newest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn contestant(version: &str) -> Contestant {
        Contestant { name: "one", version: version.to_owned(), settings: "as it comes", ours: true, floor: false }
    }

    fn figures(first: f64) -> Figures {
        Figures::from([("first".to_owned(), vec![first])])
    }

    #[test]
    fn rounds_are_added_to_those_that_were_kept() {
        let directory = std::env::temp_dir().join(format!("lifeboat-bench-rounds-{}", std::process::id()));
        let path = directory.join("tree-0.json");
        let open = || Rounds::at(path.clone(), "tree", vec![contestant("1"), contestant("2")], true).unwrap();
        for round in 0..3 {
            let mut rounds = open();
            assert_eq!(rounds.count(), round);
            rounds.begin();
            // Its first turn ended, and then it was stopped: nothing of it is kept.
            rounds.ended_turn(7, "one", &figures(9.0));
            let mut rounds = open();
            rounds.begin();
            rounds.keep(vec![figures(round as f64), figures(round as f64 + 10.0)]).unwrap();
        }
        assert_eq!(
            open().figures,
            [("first", 0.0), ("first", 10.0)]
                .map(|(name, value)| { Figures::from([(name.to_owned(), vec![value, value + 1.0, value + 2.0])]) })
        );
        let mut rounds = open();
        rounds.seconds = vec![100.0, 140.0, 120.0];
        assert_eq!(rounds.seconds_left(7, 20.0), 460.0);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn other_sources_or_versions_or_data_are_counted_by_themselves() {
        let made = key("tree", "one", &[contestant("1")]).unwrap();
        assert_eq!(made, key("tree", "one", &[contestant("1")]).unwrap());
        assert_ne!(made, key("tree", "other", &[contestant("1")]).unwrap());
        assert_ne!(made, key("tree", "one", &[contestant("2")]).unwrap());
        assert_ne!(made, key("grown tree", "one", &[contestant("1")]).unwrap());
        assert_eq!(sources().unwrap(), sources().unwrap());
    }
}
