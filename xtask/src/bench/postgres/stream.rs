//! `bench postgres --data stream`: the log of a server under load, streamed into a vault, beside pg_receivewal: how old is what is durable there,
//! and what do commits cost that wait for it?
//!
//! Invariant: how far each receiver is, is what it tells the server that it has on disk; the server, the load and the eye are the same for all.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::figures::{median, spread};
use super::super::measure::{Call, occupied_below, touch_memory};
use super::super::peers::{lifeboat, prepare};
use super::super::rounds::{Contestant, Rounds};
use super::super::vault::Figures;
use super::super::{Asked, place, plan, remove};
use super::client::Connection;
use super::cluster::{Cluster, PORT, directory_for_it, programs};
use super::processes::{Background, end_all};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 63, 1, 1);
const LOAD: [&str; 4] = ["-n", "-c4", "-T", LOAD_SECONDS];
const LOAD_SECONDS: &str = "30";
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Until a receiver has all there is: lifeboat takes a base backup first.
const READY_WITHIN: Duration = Duration::from_secs(180);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// What a load of that length makes of log, at most, as the memory it fills.
const LOG_BYTES: u64 = 4 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Lifeboat,
    Receivewal,
    /// What the server does without.
    Nobody,
}

const ALL: [Tool; 3] = [Tool::Lifeboat, Tool::Receivewal, Tool::Nobody];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Lifeboat => "lifeboat",
            Tool::Receivewal => "pg_receivewal",
            Tool::Nobody => "no stream",
        }
    }

    fn contestant(self) -> Result<Contestant, String> {
        let (version, settings) = match self {
            Tool::Lifeboat => {
                let version = Call::new(&[&lifeboat().to_string_lossy(), "--version"]).run()?;
                (version, "`log = \"stream\"`, a directory as vault, two recipients: compressed and encrypted")
            }
            Tool::Receivewal => {
                let version = Call::new(&[&programs()?.join("pg_receivewal").to_string_lossy(), "--version"]).run()?;
                (version, "`--synchronous`, with a slot, into a directory; it neither compresses nor encrypts")
            }
            Tool::Nobody => (String::new(), "nothing receives the log: a floor"),
        };
        let (ours, floor) = (self == Tool::Lifeboat, self == Tool::Nobody);
        Ok(Contestant { name: self.name(), version: version.trim().to_owned(), settings, ours, floor })
    }
}

pub(super) fn run(asked: &Asked) -> Result<(), String> {
    prepare(&[])?;
    let tools: Vec<Tool> = ALL.into_iter().filter(|tool| Asked::wants(&asked.tools, tool.name())).collect();
    let contestants = tools.iter().map(|tool| tool.contestant()).collect::<Result<Vec<_>, String>>()?;
    let data = format!("pgbench {} {}", super::SCALE, LOAD.join(" "));
    let mut rounds = Rounds::open("stream", &data, contestants, tools.len() == ALL.len())?;
    println!("stream: {} of {} rounds are there", rounds.count(), asked.runs);
    if rounds.count() >= asked.runs {
        return Ok(());
    }
    clear()?;
    let original = super::original()?;
    let played = play_rounds(asked, &tools, &original, &mut rounds);
    played.and(original.remove())
}

fn play_rounds(asked: &Asked, tools: &[Tool], original: &Cluster, rounds: &mut Rounds) -> Result<(), String> {
    let (stage, occupied) = (stage(), occupied_below(&original.data)?);
    while rounds.count() < asked.runs {
        let mut round = vec![Figures::new(); tools.len()];
        rounds.begin();
        for turn in 0..tools.len() {
            let index = (turn + rounds.count()) % tools.len();
            let (Some(tool), Some(figures)) = (tools.get(index), round.get_mut(index)) else { continue };
            touch_memory(&place(), 2 * occupied + LOG_BYTES)?;
            let played = play(*tool, &stage, original, figures);
            clear()?;
            played.map_err(|error| format!("{}: {error}", tool.name()))?;
            rounds.ended_turn(asked.runs, tool.name(), figures);
        }
        rounds.keep(round)?;
    }
    Ok(())
}

fn stage() -> PathBuf {
    place().join("stage/stream")
}

/// Nothing runs on the stage, and nothing is left there.
fn clear() -> Result<(), String> {
    end_all(&stage())?;
    remove(&stage())
}

fn play(tool: Tool, stage: &Path, original: &Cluster, figures: &mut Figures) -> Result<(), String> {
    let mut note = |name: &str, value: f64| figures.entry(name.to_owned()).or_default().push(value);
    let mut background = Background::at(stage)?;
    directory_for_it(stage)?;
    let mut live = original.copy(&stage.join("live"))?;
    live.set(&format!("listen_addresses = '{ADDRESS}'"))?;
    live.start()?;
    let port: u16 = PORT.parse().map_err(|error| format!("{PORT}: {error}"))?;
    let mut eye = Connection::open((ADDRESS, port).into(), ANSWER_WITHIN)?;
    if tool == Tool::Nobody {
        note("tps", load(&live)?);
        return live.stop();
    }
    start(tool, stage, &live, &mut background)?;
    let name = await_receiver(&mut eye)?;

    // A load, and meanwhile how old what is durable is.
    let mut seen = Vec::new();
    let tps = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&live));
        while !load.is_finished() {
            seen.push(look(&mut eye, &name)?);
            std::thread::sleep(LOOK_EVERY);
        }
        load.join().unwrap_or_else(|_| Err("a thread has ended".to_owned()))
    })?;
    note("tps-unwaited", tps);
    let ages = ages(&seen);
    let (_, most) = spread(&ages).ok_or("nothing was seen under load")?;
    note("age-median", median(&ages).ok_or("nothing was seen under load")?);
    note("age-most", most);

    eye.ask(&format!("alter system set synchronous_standby_names = '\"{name}\"'"))?;
    eye.ask("select pg_reload_conf()")?;
    let waits =
        format!("select count(*) from pg_stat_replication where application_name = '{name}' and sync_state = 'sync'");
    until(|| Ok(eye.ask(&waits)? == ["1"]))?;
    note("tps", load(&live)?);
    // Before what receives from it: whoever ends all that runs here ends the server as well.
    live.stop()
}

fn start(tool: Tool, stage: &Path, live: &Cluster, background: &mut Background) -> Result<(), String> {
    let log = stage.join("stream.log");
    if tool == Tool::Lifeboat {
        plan::make(stage, &format!("postgres = {{ path = \"{}\" }}", live.data.display()))?;
        return background.start(&plan::call(stage, &["--quiet", "protect", "--site", plan::SITE]), &log);
    }
    let received: PathBuf = stage.join("received");
    super::super::make_directory(&received)?;
    let place = received.to_string_lossy().into_owned();
    let words = ["-D", place.as_str(), "--slot=bench"];
    live.client("pg_receivewal", &[&words[..], &["--create-slot"]].concat())?.run()?;
    background.start(&live.client("pg_receivewal", &[&words[..], &["--synchronous", "--no-loop"]].concat())?, &log)
}

/// Transactions a second.
fn load(live: &Cluster) -> Result<f64, String> {
    let said = live.client("pgbench", &LOAD)?.run()?;
    let line = said.lines().find_map(|line| line.strip_prefix("tps = "));
    let number = line.and_then(|line| line.split(' ').next()?.parse().ok());
    number.ok_or_else(|| format!("pgbench wrote {said:?}"))
}

/// Its name, once it has everything and no base backup is taken any more.
fn await_receiver(eye: &mut Connection) -> Result<String, String> {
    let sql = "select application_name from pg_stat_replication r join pg_replication_slots s on s.active_pid = r.pid \
               where r.flush_lsn >= pg_current_wal_flush_lsn() and not exists (select from pg_stat_progress_basebackup)";
    let mut name = Vec::new();
    until(|| {
        // Something new each time: a receiver that has all of nothing is no receiver yet.
        eye.ask("select pg_logical_emit_message(true, 'bench', 'x')")?;
        name = eye.ask(sql)?;
        Ok(!name.is_empty())
    })?;
    Ok(name.concat())
}

fn until(mut seen: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let began = Instant::now();
    while !seen()? {
        if began.elapsed() > READY_WITHIN {
            return Err(format!("the receiver of the log is not ready within {} s", READY_WITHIN.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// At one moment: how far the server's log is on disk, and how far the receiver's.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    written: u64,
    durable: u64,
}

fn look(eye: &mut Connection, name: &str) -> Result<Seen, String> {
    let sql = format!(
        "select pg_current_wal_flush_lsn() - '0/0', flush_lsn - '0/0' from pg_stat_replication where application_name = '{name}'"
    );
    let row = eye.ask(&sql)?;
    let numbers: Vec<u64> = row.iter().filter_map(|value| value.parse().ok()).collect();
    let [written, durable] = numbers[..] else { return Err("the receiver of the log is gone".to_owned()) };
    Ok(Seen { at: Instant::now(), written, durable })
}

/// For each moment: how long before it everything had been written that was durable at it; never less than it was.
fn ages(seen: &[Seen]) -> Vec<f64> {
    let mut newest = 0;
    let age = |(index, now): (usize, &Seen)| {
        // Both only grow, so the search goes on where it ended.
        while newest < index && seen.get(newest + 1).is_some_and(|next| next.written <= now.durable) {
            newest += 1;
        }
        let known = seen.get(newest).filter(|_| now.durable < now.written);
        known.map_or(0.0, |known| (now.at - known.at).as_secs_f64())
    };
    seen.iter().enumerate().map(age).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_durable_is_as_old_as_the_moment_when_it_was_all_there_was() {
        let began = Instant::now();
        let at =
            |tenths: u64, written, durable| Seen { at: began + Duration::from_millis(100 * tenths), written, durable };
        let seen = [at(0, 10, 10), at(1, 20, 10), at(2, 30, 10), at(3, 40, 25), at(4, 40, 40)];
        let ages: Vec<u64> = ages(&seen).iter().map(|age| (age * 10.0).round() as u64).collect();
        assert_eq!(ages, [0, 1, 2, 2, 0]);
    }
}
