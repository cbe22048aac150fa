//! `bench postgres`: a running cluster backed up, changed, backed up again and restored, beside pgBackRest (`--data backup`), moved
//! between two sites, beside Patroni (`--data switch`), and its log streamed, beside pg_receivewal (`--data stream`).
//!
//! Invariant: a restored cluster counts when its server takes writes and what it holds adds up to what the source held.

mod client;
mod cluster;
mod processes;
mod stream;
mod switch;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::measure::{Call, Took, bytes_below, occupied_below, touch_memory};
use super::peers::{lifeboat, prepare};
use super::rounds::{Contestant, Rounds};
use super::vault::Figures;
use super::{Asked, place, remove};
use cluster::{Cluster, PORT, as_its_user, directory_for_it};

/// Times 100,000 accounts: 3 GB.
const SCALE: &str = "200";
/// Every ten-thousandth account: its page, the page of its entry in the index, and the pages where the new rows lie, 1 % of all.
const CHANGE: &str = "update pgbench_accounts set abalance = abalance + 1 where aid % 10000 = 0; checkpoint";
const SUM: &str = "select count(*), sum(abalance), sum(aid) from pgbench_accounts";
const PAGE_BYTES: usize = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Lifeboat,
    PgBackRest,
}

const ALL: [Tool; 2] = [Tool::Lifeboat, Tool::PgBackRest];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Lifeboat => "lifeboat",
            Tool::PgBackRest => "pgbackrest",
        }
    }

    fn settings(self) -> &'static str {
        match self {
            Tool::Lifeboat => "as it comes, two recipients",
            Tool::PgBackRest => {
                "`process-max=2`, `compress-type=zst`, `compress-level=1`, `start-fast`, no encryption; the second an incremental one; \
                 restored with `--type=immediate`"
            }
        }
    }

    fn contestant(self) -> Result<Contestant, String> {
        let version = match self {
            Tool::Lifeboat => Call::new(&[&lifeboat().to_string_lossy(), "--version"]).run()?,
            Tool::PgBackRest => Call::new(&["pgbackrest", "version"]).run()?,
        };
        let (version, ours) = (version.trim().to_owned(), self == Tool::Lifeboat);
        Ok(Contestant { name: self.name(), version, settings: self.settings(), ours, floor: false })
    }
}

pub(super) fn run(asked: &Asked) -> Result<(), String> {
    if Asked::wants(&asked.data, "backup") {
        backup(asked)?;
    }
    if Asked::wants(&asked.data, "switch") {
        switch::run(asked)?;
    }
    if Asked::wants(&asked.data, "stream") {
        stream::run(asked)?;
    }
    Ok(())
}

fn backup(asked: &Asked) -> Result<(), String> {
    prepare(&[])?;
    let tools: Vec<Tool> = ALL.into_iter().filter(|tool| Asked::wants(&asked.tools, tool.name())).collect();
    let mut contestants = tools.iter().map(|tool| tool.contestant()).collect::<Result<Vec<_>, String>>()?;
    let floor = Contestant {
        name: "cp -a",
        version: String::new(),
        settings: "the files of the stopped cluster: a floor",
        ours: false,
        floor: true,
    };
    contestants.push(floor);
    let complete = tools.len() == ALL.len();
    let data = format!("pgbench {SCALE} {CHANGE} {}", Call::new(&["psql", "--version"]).run()?);
    let mut rounds = Rounds::open("postgres", &data, contestants, complete)?;
    println!("postgres: {} of {} rounds are there", rounds.count(), asked.runs);
    if rounds.count() >= asked.runs {
        return Ok(());
    }
    let original = original()?;
    let occupied = occupied_below(&original.data)?;
    while rounds.count() < asked.runs {
        let mut round = vec![Figures::new(); tools.len() + 1];
        rounds.begin();
        for turn in 0..tools.len() {
            let index = (turn + rounds.count()) % tools.len();
            let (Some(tool), Some(figures)) = (tools.get(index), round.get_mut(index)) else { continue };
            let stage = Stage::set(*tool)?;
            stage.play(&original, occupied, figures).map_err(|error| format!("{}: {error}", tool.name()))?;
            rounds.ended_turn(asked.runs, tool.name(), figures);
        }
        if let Some(floor) = round.last_mut() {
            let to = place().join("copied").to_string_lossy().into_owned();
            touch_memory(&place(), occupied)?;
            let (_, took) = Call::new(&["cp", "-a", &original.data.to_string_lossy(), &to]).measure()?;
            floor.entry("first".to_owned()).or_default().push(took.seconds);
            remove(&place().join("copied"))?;
        }
        rounds.keep(round)?;
    }
    remove(&place().join("stage"))?;
    original.remove()
}

fn original() -> Result<Cluster, String> {
    let home = place().join("data/postgres");
    remove(&home)?;
    println!("making the cluster");
    let mut original = Cluster::make(&home)?;
    original.start()?;
    original.client("pgbench", &["-i", "-q", "-s", SCALE])?.run()?;
    original.ask("vacuum analyze")?;
    original.ask("checkpoint")?;
    original.stop()?;
    // What the log was recycled for is no part of what is compared.
    let reset = cluster::programs()?.join("pg_resetwal").to_string_lossy().into_owned();
    as_its_user(&[&reset, "-D", &original.data.to_string_lossy()])?.run()?;
    Ok(original)
}

struct Stage {
    tool: Tool,
    root: PathBuf,
    environment: Vec<(String, String)>,
}

impl Stage {
    fn set(tool: Tool) -> Result<Stage, String> {
        let root = place().join("stage");
        remove(&root)?;
        directory_for_it(&root)?;
        let state = root.join("state").to_string_lossy().into_owned();
        let stage = Stage { tool, root, environment: vec![("LIFEBOAT_STATE".to_owned(), state)] };
        match tool {
            Tool::Lifeboat => stage.set_lifeboat()?,
            Tool::PgBackRest => stage.set_pgbackrest()?,
        }
        Ok(stage)
    }

    fn at(&self, name: &str) -> String {
        self.root.join(name).to_string_lossy().into_owned()
    }

    fn set_lifeboat(&self) -> Result<(), String> {
        let mut words = vec!["vault".to_owned(), "init".to_owned(), "--vault".to_owned(), self.at("stored")];
        for name in ["owner.key", "paper.key"] {
            self.lifeboat(&["key", "new", "-o", &self.at(name)]).run()?;
            let recipient = self.lifeboat(&["key", "inspect", &self.at(name)]).run()?;
            words.extend(["--recipient".to_owned(), recipient.trim().to_owned()]);
        }
        self.lifeboat(&words.iter().map(String::as_str).collect::<Vec<_>>()).run().map(drop)
    }

    fn set_pgbackrest(&self) -> Result<(), String> {
        for name in ["stored", "restored", "pgbackrest"] {
            directory_for_it(&self.root.join(name))?;
        }
        let (stored, own, data, socket) =
            (self.at("stored"), self.at("pgbackrest"), self.at("live/data"), self.at("live"));
        let text = format!(
            "[global]\nrepo1-path={stored}\nrepo1-retention-full=9\ncompress-type=zst\ncompress-level=1\nprocess-max=2\nstart-fast=y\n\
             log-path={own}\nlock-path={own}\nspool-path={own}\n[main]\npg1-path={data}\npg1-port={PORT}\npg1-socket-path={socket}\n\
             pg1-user=postgres\n"
        );
        std::fs::write(self.at("pgbackrest.conf"), text)
            .map_err(|error| format!("cannot write a configuration ({error})"))
    }

    fn lifeboat(&self, words: &[&str]) -> Call {
        let program = lifeboat().to_string_lossy().into_owned();
        let all: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
        Call::new(&all).with(&self.environment)
    }

    fn pgbackrest(&self, words: &[&str]) -> Result<Call, String> {
        let config = format!("--config={}", self.at("pgbackrest.conf"));
        let mut all = vec!["pgbackrest", config.as_str(), "--stanza=main"];
        all.extend(words);
        as_its_user(&all)
    }

    /// Backed up, changed, backed up again, restored: the last until its server takes writes.
    fn play(&self, original: &Cluster, occupied: u64, figures: &mut Figures) -> Result<(), String> {
        let mut note = |name: &str, value: f64| figures.entry(name.to_owned()).or_default().push(value);
        let stored = self.root.join("stored");
        let mut live = original.copy(&self.root.join("live"))?;
        if self.tool == Tool::PgBackRest {
            let push = format!("pgbackrest --config={} --stanza=main archive-push %p", self.at("pgbackrest.conf"));
            live.set(&format!("archive_mode = on\narchive_command = '{push}'"))?;
        }
        live.start()?;
        if self.tool == Tool::PgBackRest {
            self.pgbackrest(&["stanza-create"])?.run()?;
        }
        touch_memory(&place(), occupied)?;
        let first = self.backup(&live, "full")?;
        note("first", first.seconds);
        note("first-cpu", first.cpu_seconds);
        note("backup-memory", first.memory_mb);
        let stored_first = bytes_below(&stored)?;
        note("stored", stored_first as f64 / 1e6);
        live.ask(CHANGE)?;
        let sums = live.ask(SUM)?;
        let again = self.backup(&live, "incr")?;
        note("changed", again.seconds);
        note("changed-stored", (bytes_below(&stored)?.saturating_sub(stored_first)) as f64 / 1e6);
        live.stop()?;
        if self.tool == Tool::Lifeboat {
            note("changed-pages", self.changed_pages(&live.data, &original.data)? as f64 / 1e6);
        }
        remove(&live.data)?;
        touch_memory(&place(), occupied)?;
        let began = Instant::now();
        let to = self.root.join("restored/data");
        let took = self.restore(&to)?;
        note("restore", took.seconds);
        note("restore-memory", took.memory_mb);
        let mut restored = Cluster::at(&to, &self.root.join("restored"));
        restored.start()?;
        note("restore-writable", began.elapsed().as_secs_f64());
        let found = restored.ask(SUM)?;
        restored.stop()?;
        match found == sums {
            true => Ok(()),
            false => Err(format!("what came back adds up to {found}, and was {sums}")),
        }
    }

    fn backup(&self, live: &Cluster, kind: &str) -> Result<Took, String> {
        let call = match self.tool {
            Tool::Lifeboat => self.lifeboat(&[
                "--quiet",
                "backup",
                "--vault",
                &self.at("stored"),
                "--as",
                "live",
                &live.data.to_string_lossy(),
            ]),
            Tool::PgBackRest => self.pgbackrest(&[&format!("--type={kind}"), "backup"])?,
        };
        Ok(call.measure()?.1)
    }

    fn restore(&self, to: &Path) -> Result<Took, String> {
        directory_for_it(to.parent().unwrap_or(to))?;
        let text = to.to_string_lossy().into_owned();
        let call = match self.tool {
            Tool::Lifeboat => {
                let (vault, key) = (self.at("stored"), self.at("owner.key"));
                self.lifeboat(&["--quiet", "restore", "live", "--vault", &vault, "--key", &key, "--to", &text])
            }
            Tool::PgBackRest => {
                directory_for_it(to)?;
                let path = format!("--pg1-path={text}");
                // A copy must not write into its source's archive.
                self.pgbackrest(&[
                    &path,
                    "--type=immediate",
                    "--target-action=promote",
                    "--archive-mode=off",
                    "restore",
                ])?
            }
        };
        Ok(call.measure()?.1)
    }

    /// The pages of relations that differ, compressed in one: the least that a second backup has to store.
    fn changed_pages(&self, live: &Path, original: &Path) -> Result<u64, String> {
        let all = self.root.join("changed-pages");
        let failed = |error: std::io::Error| format!("cannot compare the pages ({error})");
        let mut out = std::io::BufWriter::new(File::create(&all).map_err(failed)?);
        let mut open = vec![PathBuf::from("base"), PathBuf::from("global")];
        while let Some(below) = open.pop() {
            let path = live.join(&below);
            if path.is_dir() {
                for entry in std::fs::read_dir(&path).map_err(failed)?.flatten() {
                    open.push(below.join(entry.file_name()));
                }
            } else {
                compare(&path, &original.join(&below), &mut out).map_err(failed)?;
            }
        }
        drop(out);
        let packed = self.at("changed-pages.zst");
        Call::new(&["zstd", "-q", "-f", "-1", &all.to_string_lossy(), "-o", &packed]).run()?;
        let bytes = bytes_below(Path::new(&packed))?;
        remove(&all)?;
        Ok(bytes)
    }
}

fn compare(new: &Path, old: &Path, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let mut new = std::io::BufReader::with_capacity(1 << 20, File::open(new)?);
    let mut old = File::open(old).ok().map(|file| std::io::BufReader::with_capacity(1 << 20, file));
    let (mut page, mut before) = (vec![0; PAGE_BYTES], vec![0; PAGE_BYTES]);
    loop {
        let read = read_page(&mut new, &mut page)?;
        if read == 0 {
            return Ok(());
        }
        let known = old.as_mut().map(|old| read_page(old, &mut before)).transpose()?.unwrap_or(0);
        if page.get(..read) != before.get(..known) {
            out.write_all(page.get(..read).unwrap_or_default())?;
        }
    }
}

fn read_page(from: &mut impl Read, page: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = page.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
