//! Dumps: taken of a real standby, loaded into a server that has nothing, and not taken where they would be no whole.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use lifeboat_adapters::source::{PostgresDump, Server, restorer_for};
use lifeboat_core::plan;
use lifeboat_core::runbook::Target;
use lifeboat_core::units::Span;
use lifeboat_engine::port::{Cancel, PointRequest, PointTaken, PortError, RestoreRequest, Source};
use lifeboat_vault::files::{Event, Progress};

use super::{DATASET, told};
use crate::pg_cluster::{Cluster, as_postgres, run};
use crate::vault_world::VaultWorld;

/// A name that is a shell's, a path's, libpq's and SQL's business alike.
const ODD: &str = r#"../it's = "a" $(b)\"#;

fn dump_of(cluster: &Cluster) -> PostgresDump {
    PostgresDump {
        server: Server::Directory(cluster.data()),
        databases: Vec::new(),
        lock_wait: Duration::from_secs(60),
    }
}

fn try_dump(dump: &PostgresDump, vault: &VaultWorld, progress: &dyn Progress) -> Result<PointTaken, PortError> {
    let request = PointRequest { dataset: DATASET.into(), epoch: 1, ..PointRequest::default() };
    dump.take_point(&vault.named(), &request, progress, &Cancel::default())
}

/// Why there is none, and that there is none.
fn failed(dump: &PostgresDump, vault: &VaultWorld, progress: &dyn Progress) -> String {
    let why = told(try_dump(dump, vault, progress).unwrap_err());
    assert!(vault.unlocked().points(None).unwrap().points.is_empty(), "{why}");
    why
}

/// The files of the newest point, laid down for the server's user.
fn restored(vault: &VaultWorld, place: &Path) -> PathBuf {
    let source = plan::Source::PostgresDump {
        path: None,
        service: Some("none".into()),
        databases: Vec::new(),
        lock_wait: Span::seconds(1),
    };
    let to = place.join("files");
    let request = RestoreRequest { dataset: DATASET.into(), to: to.clone(), target: Target::Newest, in_place: false };
    restorer_for(&source).unwrap().restore(&vault.unlocked(), &request, &(), &Cancel::default()).unwrap();
    std::process::Command::new("chown").args(["-R", "--reference"]).arg(place).arg(&to).status().unwrap();
    to
}

/// The commands that its README says, as it says them.
fn load(files: &Path, into: &Cluster) {
    let readme = fs::read_to_string(files.join("README.txt")).unwrap();
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let mut shell = as_postgres("sh");
    shell.args(["-euc", &commands.join("\n")]).current_dir(files);
    shell.env("PATH", crate::pg_cluster::path_of("").display().to_string() + ":/usr/bin:/bin");
    shell.env("PGHOST", into.socket_directory()).env("PGPORT", into.port().to_string()).env("PGUSER", "postgres");
    run(&mut shell);
}

fn psql_in(cluster: &Cluster, database: &str, sql: &str) -> String {
    run(cluster.client("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]))
}

fn caught_up(primary: &Cluster, standby: &mut Cluster) {
    let at = primary.psql("select pg_current_wal_lsn()");
    standby.wait_until("the standby has all of it", |standby| {
        standby.psql(&format!("select pg_last_wal_replay_lsn() >= '{at}'")) == "t"
    });
}

type Deed<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Does something once, when so many bytes have been read, and before any more are.
struct After<'a> {
    bytes: u64,
    /// How many have been, and what is still to be done.
    what: Mutex<(u64, Option<Deed<'a>>)>,
}

impl<'a> After<'a> {
    fn reading(bytes: u64, what: impl FnOnce() + Send + 'a) -> After<'a> {
        After { bytes, what: Mutex::new((0, Some(Box::new(what)))) }
    }
}

impl Progress for After<'_> {
    fn report(&self, event: &Event<'_>) {
        let Event::Bytes(bytes) = event else { return };
        let mut what = self.what.lock().unwrap();
        what.0 += bytes;
        if what.0 >= self.bytes
            && let Some(what) = what.1.take()
        {
            what();
        }
    }
}

/// More than waits in pipes between the server and the vault.
fn large_table(cluster: &Cluster) {
    cluster.psql(
        "create table large(n int primary key, body text); alter table large alter body set storage external; \
         insert into large select n, repeat(md5(n::text), 30) from generate_series(1, 40000) n",
    );
}

#[test]
fn a_standby_is_dumped_and_a_server_that_has_nothing_takes_all_of_it_in() {
    let primary = Cluster::started();
    primary.psql("create role clerk login password 'tide'; create role crew; grant crew to clerk");
    primary.psql("create table t(n int primary key, body text); insert into t select n, md5(n::text) from generate_series(1, 5000) n");
    large_table(&primary);
    primary.psql("alter table t owner to clerk; select lo_from_bytea(4711, decode(repeat('c0ffee', 9000), 'hex'))");
    primary.psql(&format!(r#"create database "{}" owner clerk"#, ODD.replace('"', "\"\"")));
    let odd = format!("dbname='{}'", ODD.replace('\\', r"\\").replace('\'', r"\'"));
    psql_in(&primary, &odd, "create table odd(body text); insert into odd values ('kept')");
    let before = primary.psql("select clock_timestamp()");
    let mut standby = primary.standby();
    standby.start();
    // Where `peer` decides, as on Debian, root comes as the owner.
    standby.let_in("local all all peer\n");
    standby.psql("select pg_reload_conf()");
    caught_up(&primary, &mut standby);

    let vault = VaultWorld::new(primary.place(), "main");
    let taken = try_dump(&dump_of(&standby), &vault, &()).map_err(told).unwrap();
    assert!(taken.notes.is_empty(), "{taken:?}");
    assert!(taken.point.release.as_deref().is_some_and(|release| release.starts_with("dump of PostgreSQL 15")));
    // As of what the standby had replayed, and never as of later.
    let of = |moment: &str| primary.psql(&format!("select timestamptz '{}' {moment}", taken.point.taken_at));
    assert_eq!(of("<= clock_timestamp()"), "t");
    assert_eq!(of(&format!("<= timestamptz '{before}'")), "t", "nothing was committed since");
    // A second one stores what changed, and nothing did.
    let again = try_dump(&dump_of(&standby), &vault, &()).map_err(told).unwrap();
    assert!(again.bytes_new * 5 < taken.bytes_new, "{} after {}", again.bytes_new, taken.bytes_new);

    let fresh = Cluster::started();
    let files = restored(&vault, fresh.place());
    load(&files, &fresh);
    let rows =
        "select count(*), sum(hashtext(body)::bigint), (select tableowner from pg_tables where tablename = 't') from t";
    assert_eq!(fresh.psql(rows), primary.psql(rows));
    let roles = "select rolname, rolpassword, pg_has_role(oid, 'crew', 'member') from pg_authid where rolname in ('clerk', 'crew') order by 1";
    assert_eq!(fresh.psql(roles), primary.psql(roles));
    assert!(fresh.psql(roles).contains("SCRAM-SHA-256$"));
    assert_eq!(fresh.psql("select md5(lo_get(4711))"), primary.psql("select md5(lo_get(4711))"));
    assert_eq!(psql_in(&fresh, &odd, "select body from odd"), "kept");
    let owner = "select datname, pg_get_userbyid(datdba) from pg_database where datname like '../%'";
    assert_eq!(fresh.psql(owner), primary.psql(owner));
    // One database by itself, side by side, into one that is there.
    fresh.psql("create database beside");
    let mut loading = fresh.client("pg_restore");
    run(loading.args(["--jobs=2", "--exit-on-error", "--dbname=beside"]).arg(files.join("databases/postgres.dump")));
    assert_eq!(psql_in(&fresh, "beside", "select count(*) from t"), "5000");
}

#[test]
fn databases_that_are_named_are_dumped_and_one_that_is_not_there_is_an_error() {
    let cluster = Cluster::started();
    cluster.psql("create database shop");
    let vault = VaultWorld::new(cluster.place(), "main");
    let only = |name: &str| PostgresDump { databases: vec![name.to_owned()], ..dump_of(&cluster) };
    insta::assert_snapshot!(failed(&only("shpo"), &vault, &()), @r"
    no recovery point was taken into vault `main`
      because: the server has no database `shpo` that allows connections; it has: postgres, shop, template1
    ");
    assert_eq!(try_dump(&only("shop"), &vault, &()).unwrap().files, 3);
    let files = restored(&vault, cluster.place());
    assert_eq!(fs::read_dir(files.join("databases")).unwrap().count(), 1);
    assert!(files.join("databases/shop.dump").is_file());
}

#[test]
fn a_standby_that_takes_back_what_is_read_makes_no_recovery_point() {
    let primary = Cluster::started();
    large_table(&primary);
    let mut standby = primary.standby();
    standby.set("max_standby_streaming_delay", "0");
    standby.set("max_standby_archive_delay", "0");
    // Whoever reads hears of the conflict only once what it sends is taken from it: recovery tells that it waits.
    standby.set("log_recovery_conflict_waits", "on");
    standby.set("deadlock_timeout", "10ms");
    standby.start();
    caught_up(&primary, &mut standby);
    let vault = VaultWorld::new(primary.place(), "main");
    // The dump is held up in the middle of the table, while rows go that it would still read.
    let progress = After::reading(4 << 20, || {
        primary.psql("delete from large");
        primary.psql("vacuum large");
        let deadline = std::time::Instant::now() + crate::pg_cluster::PATIENCE;
        while !standby.log().contains("recovery conflict on snapshot")
            && !standby.log().contains("conflict with recovery")
        {
            assert!(std::time::Instant::now() < deadline, "no conflict: {}", standby.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let why = failed(&dump_of(&standby), &vault, &progress);
    assert!(why.contains("the database `postgres` was not dumped: the standby took back"), "{why}");
    assert!(why.contains("max_standby_streaming_delay") && why.contains("hot_standby_feedback"), "{why}");
    assert!(why.contains("pg_dump ended with exit status: 1: pg_dump: error:"), "{why}");
}

#[test]
fn a_server_that_dies_meanwhile_makes_no_recovery_point() {
    let cluster = Cluster::started();
    large_table(&cluster);
    let vault = VaultWorld::new(cluster.place(), "main");
    let progress = After::reading(4 << 20, || cluster.signal(rustix::process::Signal::QUIT));
    let why = failed(&dump_of(&cluster), &vault, &progress);
    assert!(why.contains("the database `postgres` was not dumped: the server went away"), "{why}");
}

#[test]
fn a_lock_that_is_not_let_go_makes_no_recovery_point() {
    let cluster = Cluster::started();
    cluster.psql("create table t(n int)");
    let mut holder = cluster.client("psql");
    let mut holder = holder.args(["-XAtq"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = holder.stdin.take().unwrap();
    writeln!(stdin, "begin; lock table t in access exclusive mode; select 'held';").unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "held");
    let vault = VaultWorld::new(cluster.place(), "main");
    let dump = PostgresDump { lock_wait: Duration::from_millis(200), ..dump_of(&cluster) };
    let why = failed(&dump, &vault, &());
    assert!(why.contains("somebody else holds a lock") && why.contains("`lock-wait`"), "{why}");
    drop(stdin);
    holder.wait().unwrap();
    try_dump(&dump, &vault, &()).map_err(told).unwrap();
}
