//! `bench postgres --data switch`: a running service moved between two sites and back, then its site killed, beside Patroni.
//!
//! ```text
//!   lifeboat, patroni   the arms: how each sets the stage, hands over, and takes over    client     a question, an answer in time
//!   writer              writes through the service's name; remembers what was acknowledged    door   from a name to an address
//!   processes           all that runs at a place: started, killed
//! ```
//!
//! Invariant: every time is between two writes that servers acknowledged, or from a deed of this benchmark's to such a write; the same client
//! asks both arms; and every write that was acknowledged is looked for at the end.

mod door;
mod lifeboat;
mod patroni;
mod writer;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::super::measure::{Call, occupied_below, touch_memory};
use super::super::peers::{lifeboat as binary, prepare};
use super::super::rounds::{Contestant, Rounds};
use super::super::vault::Figures;
use super::super::{Asked, home, make_directory, place, remove};
use super::client::Connection;
use super::cluster::Cluster;
use super::processes::end_all;
use door::Door;
use lifeboat::Lifeboat;
use patroni::Patroni;
use writer::Writer;

const PORT: u16 = 5432;
/// Much longer than anything that is measured.
const WITHIN: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the writer writes undisturbed before each deed; up to a second more, so that no arm's clock is met at the same place each time.
const QUIET: Duration = Duration::from_secs(2);
/// Each of the two clusters, the copy that is made of one, and what is set aside.
const CLUSTERS: u64 = 4;

/// A site, by its part in the play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Home,
    Away,
}

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Home => Side::Away,
            Side::Away => Side::Home,
        }
    }
}

/// A service at two sites, and who moves it. What it started ends when it is dropped.
trait Arm {
    /// The service runs at home, and a standby of it is made away.
    fn start(&mut self) -> Result<(), String>;
    /// How clients find it.
    fn door(&self) -> Door;
    fn address(&self, side: Side) -> Ipv4Addr;
    /// Where everything of a site is, and nothing else.
    fn place(&self, side: Side) -> PathBuf;
    /// How the primary's server knows the standby there, as a condition on `pg_stat_replication`.
    fn standby(&self, side: Side) -> String;
    /// A planned move.
    fn hand_over(&mut self, to: Side) -> Result<(), String>;
    /// What has to be done once the primary's site is gone; when that was noticed, if it is this benchmark that watches.
    fn after_loss(&mut self) -> Result<Option<Instant>, String>;
    /// Asks for the return of the former primary at home, and does not wait.
    fn ask_back(&mut self) -> Result<(), String>;
    /// Waits until what was asked for has ended; where the primary is then.
    fn settle(&mut self) -> Result<Side, String>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Lifeboat,
    Patroni,
}

const ALL: [Tool; 2] = [Tool::Lifeboat, Tool::Patroni];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Lifeboat => "lifeboat",
            Tool::Patroni => "patroni",
        }
    }

    fn contestant(self) -> Result<Contestant, String> {
        let (version, settings) = match self {
            Tool::Lifeboat => (Call::new(&[&binary().to_string_lossy(), "--version"]).run()?, lifeboat::settings()),
            Tool::Patroni => (patroni::version()?, patroni::settings()),
        };
        // Said once, and for as long as this runs.
        let (version, settings) = (version.trim().to_owned(), settings.leak());
        Ok(Contestant { name: self.name(), version, settings, ours: self == Tool::Lifeboat, floor: false })
    }

    fn set(self, original: &Cluster) -> Result<Box<dyn Arm>, String> {
        let root = stage();
        Ok(match self {
            Tool::Lifeboat => Box::new(Lifeboat::set(&root, original)?),
            Tool::Patroni => Box::new(Patroni::set(&root, original)?),
        })
    }
}

fn stage() -> PathBuf {
    place().join("stage/switch")
}

pub(super) fn run(asked: &Asked) -> Result<(), String> {
    prepare(&[])?;
    let tools: Vec<Tool> = ALL.into_iter().filter(|tool| Asked::wants(&asked.tools, tool.name())).collect();
    let contestants = tools.iter().map(|tool| tool.contestant()).collect::<Result<Vec<_>, String>>()?;
    let data = format!("pgbench {} {} {:?}", super::SCALE, Call::new(&["psql", "--version"]).run()?, writer::EVERY);
    let mut rounds = Rounds::open("switch", &data, contestants, tools.len() == ALL.len())?;
    println!("switch: {} of {} rounds are there", rounds.count(), asked.runs);
    if rounds.count() >= asked.runs {
        return Ok(());
    }
    clear()?;
    let original = super::original()?;
    let played = play_rounds(asked, &tools, &original, &mut rounds);
    played.and(original.remove())
}

fn play_rounds(asked: &Asked, tools: &[Tool], original: &Cluster, rounds: &mut Rounds) -> Result<(), String> {
    let occupied = occupied_below(&original.data)?;
    while rounds.count() < asked.runs {
        let mut round = vec![Figures::new(); tools.len()];
        rounds.begin();
        for turn in 0..tools.len() {
            let index = (turn + rounds.count()) % tools.len();
            let (Some(tool), Some(figures)) = (tools.get(index), round.get_mut(index)) else { continue };
            touch_memory(&place(), CLUSTERS * occupied)?;
            let played = tool.set(original).and_then(|mut arm| play(&mut *arm, figures));
            let played = played.map_err(|error| format!("{}: {error}; {}", tool.name(), keep_logs()));
            clear()?;
            played?;
            rounds.ended_turn(asked.runs, tool.name(), figures);
        }
        rounds.keep(round)?;
    }
    Ok(())
}

/// What everybody said, where the next turn leaves it.
fn keep_logs() -> String {
    let (stage, kept) = (stage(), home().join("switch/failed"));
    let copy =
        "cd \"$0\" && find . \\( -name '*.log' -o -path '*/logs/*' \\) -type f -exec cp --parents -t \"$1\" {} +";
    let words = ["sh", "-c", copy, &stage.to_string_lossy(), &kept.to_string_lossy()];
    match remove(&kept).and_then(|()| make_directory(&kept)).and_then(|()| Call::new(&words).run()) {
        Ok(_) => format!("what was said is in {}", kept.display()),
        Err(error) => error,
    }
}

/// Nothing runs on the stage, and nothing is left there.
fn clear() -> Result<(), String> {
    end_all(&stage())?;
    remove(&stage())
}

/// There and home again by plan, then the loss of home, and its return.
fn play(arm: &mut dyn Arm, figures: &mut Figures) -> Result<(), String> {
    let mut note = |name: &str, value: f64| figures.entry(name.to_owned()).or_default().push(value);
    arm.start()?;
    // The first copy was just made: whether a standby is there is asked of the primary.
    await_standby(arm, Side::Away)?;
    primary(arm, Side::Home)?.ask(writer::TABLE)?;
    let writer = Writer::start(arm.door());
    writer.first_by(arm.address(Side::Home), Instant::now(), WITHIN)?;
    note("planned", moved(arm, &writer, Side::Away)?);
    note("home", moved(arm, &writer, Side::Home)?);

    quiet();
    let killed_at = Instant::now();
    end_all(&arm.place(Side::Home))?;
    let noticed_at = arm.after_loss()?;
    let first = writer.first_by(arm.address(Side::Away), killed_at, WITHIN)?;
    note("unplanned", (first.at - killed_at).as_secs_f64());
    if let Some(noticed_at) = noticed_at {
        note("noticed", (noticed_at - killed_at).as_secs_f64());
    }

    quiet();
    let mut survivor = primary(arm, Side::Away)?;
    let position = survivor.ask("select pg_current_wal_lsn()")?.concat();
    let asked_at = Instant::now();
    arm.ask_back()?;
    await_row(&mut survivor, &format!("{} and replay_lsn >= '{position}'", arm.standby(Side::Home)))?;
    note("back", asked_at.elapsed().as_secs_f64());
    let last = arm.settle()?;
    writer.first_by(arm.address(last), Instant::now(), WITHIN)?;
    let (acknowledged, lost) = writer.count(&mut primary(arm, last)?)?;
    note("acknowledged", acknowledged as f64);
    note("lost", lost as f64);
    Ok(())
}

/// Moves the service by plan; for how many seconds it acknowledged no write. Ends when the former primary follows.
fn moved(arm: &mut dyn Arm, writer: &Writer, to: Side) -> Result<f64, String> {
    quiet();
    let began = Instant::now();
    arm.hand_over(to)?;
    let first = writer.first_by(arm.address(to), began, WITHIN)?;
    let last = writer.last_by(arm.address(to.other())).ok_or("nothing was written before the move")?;
    await_standby(arm, to.other())?;
    Ok((first.at - last.at).as_secs_f64())
}

fn primary(arm: &dyn Arm, side: Side) -> Result<Connection, String> {
    Connection::open((arm.address(side), PORT).into(), Duration::from_secs(10))
}

/// Until commits wait for the standby there.
fn await_standby(arm: &dyn Arm, side: Side) -> Result<(), String> {
    let condition = format!("{} and sync_state <> 'async'", arm.standby(side));
    await_row(&mut primary(arm, side.other())?, &condition)
}

/// Until the standby that is meant streams.
fn await_row(primary: &mut Connection, condition: &str) -> Result<(), String> {
    let until = Instant::now() + WITHIN;
    let sql = format!("select count(*) from pg_stat_replication where state = 'streaming' and {condition}");
    while primary.ask(&sql)? != ["1"] {
        if Instant::now() > until {
            let there = "select string_agg(concat_ws(' ', application_name, state, sync_state, replay_lsn), '; ') from pg_stat_replication";
            return Err(format!("no standby follows ({condition}); there is: {}", primary.ask(there)?.concat()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn quiet() {
    std::thread::sleep(QUIET + Duration::from_secs(1).mul_f64(any_fraction()));
}

/// Of the clock's last digits: nothing that is measured begins in step with them.
fn any_fraction() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    f64::from(since.subsec_micros() % 1000) / 1000.0
}
