//! What a former primary left becomes a standby by `pg_rewind`, or by a base backup where that cannot be: the same rows either way, and
//! nothing that was set aside is touched.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use jiff::Timestamp;
use lifeboat_adapters::source::PostgresSource;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Applied, Cancel, FollowRequest, LogStream, Restorer, Standby};
use lifeboat_vault::{Identity, Vault};

use super::standbys::{applied, durable_now, promote, second_stream, work_of};
use super::streamed::{shop, streams, with_services, write_service};
use super::streams::{durable, numbers};
use super::{Bench, DATASET, told};
use crate::children;
use crate::pg_cluster::Cluster;
use crate::vault_world::{vault_directory, wait_for};

/// A primary that was lost with what nobody else has, and was set aside; another that was brought back elsewhere without it, and writes.
struct Parted {
    bench: Bench,
    aside: PathBuf,
    /// What it was when it was set aside.
    before: BTreeMap<PathBuf, (u32, i64, u64)>,
    writer: Cluster,
}

const ASIDE: &str = "standby.aside-2-20261122T205035.123456Z";
const LOST: [&str; 2] = [
    r#"{"database":"postgres","table":"public.t","row":{"n":100}}"#,
    r#"{"database":"postgres","table":"public.t","row":{"n":101}}"#,
];

impl Parted {
    fn new() -> Parted {
        Parted::of(Cluster::started())
    }

    fn of(cluster: Cluster) -> Parted {
        let mut bench = Bench::with(cluster);
        bench.table();
        bench
            .cluster
            .psql("create table filler as select n, repeat('x', 500) as text from generate_series(1, 20000) n");
        let stream = bench.stream();
        bench.insert(1);
        durable(&bench, &*stream);
        // From here on nothing reaches the vault.
        drop(stream);
        bench.insert(100);
        bench.cluster.psql("update filler set text = 'lost' where n % 100 = 0");
        bench.cluster.psql("create table lost as select generate_series(1, 1000) n");
        bench.cluster.psql("drop table lost");
        bench.insert(101);
        bench.cluster.kill();
        let aside = bench.place_for(ASIDE);
        std::fs::rename(bench.cluster.data(), &aside).unwrap();
        let before = tree(&aside);
        let to = bench.place_for("elsewhere");
        bench.restore(Target::Newest, &to);
        let writer = Cluster::adopted(&to);
        Parted { bench, aside, before, writer }
    }

    /// Its stream, and until when all of it is in the vault.
    fn write(&self) -> (Box<dyn LogStream>, Timestamp) {
        let stream = second_stream(&self.bench, &self.writer);
        self.writer.psql("insert into t values (2)");
        self.writer.psql("update filler set text = 'kept' where n % 150 = 0");
        let moment = durable_now(&*stream);
        (stream, moment)
    }

    fn follow(&self, way: bool) -> Box<dyn Standby> {
        let mut standby = self.bench.follow();
        standby.stream_from(way.then(shop).as_ref());
        standby
    }

    /// How it came to be a standby; and what has to be so whichever way that was.
    fn came(&self, applied: &Applied) -> String {
        let lost = std::fs::read_to_string(format!("{}.lost-writes.jsonl", self.aside.display())).unwrap();
        let mut lines: Vec<&str> = lost.lines().filter(|line| line.contains("public.t")).collect();
        lines.sort_unstable();
        assert_eq!(lines, LOST);
        assert_eq!(tree(&self.aside), self.before, "what was set aside is only read");
        assert_eq!(self.clones(), Vec::<String>::new(), "clones are left");
        // What the former primary kept for others is not kept here.
        assert!(!work_of(&self.bench.standby_place()).join("pg_replslot").read_dir().unwrap().any(|_| true));
        applied.came.clone().expect("there was a choice")
    }

    fn clones(&self) -> Vec<String> {
        let names = self.bench.cluster.place().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.contains(".clone-")).collect()
    }

    /// Promoted, it holds what the writer holds, page by page and row by row.
    fn assert_same(self, mut standby: Box<dyn Standby>, expected: &str) {
        promote(&mut *standby);
        drop(standby);
        let copy = Cluster::adopted(&self.bench.standby_place());
        assert_eq!(numbers(&copy), expected);
        let digest = "select count(*), md5(string_agg(n || text, ',' order by n)) from filler";
        assert_eq!(copy.psql(digest), self.writer.psql(digest));
        assert_eq!(copy.psql("select to_regclass('lost') is null"), "t");
        let whole = "create extension amcheck; select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam \
                     where amname = 'btree' and relpersistence = 'p'; select count(*) from pg_class c, verify_heapam(c.oid) where relkind = 'r'";
        let said = copy.psql(whole);
        assert_eq!(said.lines().last(), Some("0"), "{said}");
    }
}

/// Everything below a directory: mode, time and content.
fn tree(top: &Path) -> BTreeMap<PathBuf, (u32, i64, u64)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let seen = std::fs::symlink_metadata(&path).unwrap();
            let mut hasher = DefaultHasher::new();
            if seen.is_file() {
                std::fs::read(&path).unwrap().hash(&mut hasher);
            } else if seen.is_dir() {
                waiting.push(path.clone());
            }
            found.insert(path, (seen.mode(), seen.mtime_nsec() + seen.mtime() * 1_000_000_000, hasher.finish()));
        }
    }
    found
}

/// What a line does when so much has come over it in one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Cut,
    /// Nothing more comes in that connection until it is let go on; others are not held up.
    Wait,
}

/// A line to a server of this machine.
struct Line {
    port: u16,
    full: Arc<AtomicBool>,
    goes_on: Arc<(Mutex<bool>, Condvar)>,
}

/// More than all that is asked of a server, and less than what is copied of it.
const FULL_BYTES: usize = 4 << 20;

impl Line {
    fn to(server: u16, then: Then) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Line { port: listener.local_addr().unwrap().port(), full: Arc::default(), goes_on: Arc::default() };
        let (full, goes_on) = (line.full.clone(), line.goes_on.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let (mut to_server, mut from_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(Shutdown::Both);
                });
                let (full, goes_on) = (full.clone(), goes_on.clone());
                std::thread::spawn(move || carry(server, client, then, &full, &goes_on));
            }
        });
        line
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    fn go_on(&self) {
        *self.goes_on.0.lock().unwrap() = true;
        self.goes_on.1.notify_all();
    }
}

fn carry(
    mut server: TcpStream,
    mut client: TcpStream,
    then: Then,
    full: &AtomicBool,
    goes_on: &(Mutex<bool>, Condvar),
) {
    let (mut buffer, mut carried) = (vec![0; 64 << 10], 0);
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        carried += count;
        if carried > FULL_BYTES && !full.swap(true, Ordering::SeqCst) {
            match then {
                Then::Cut => break,
                Then::Wait => drop(goes_on.1.wait_while(goes_on.0.lock().unwrap(), |on| !*on).unwrap()),
            }
        }
        if client.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

/// The service, as a role and over a line.
fn write_way(file: &Path, role: &str, port: u16) {
    std::fs::write(file, format!("[shop]\nhost=127.0.0.1\nport={port}\nuser={role}\ndbname=postgres\n")).unwrap();
}

#[test]
fn a_lightly_diverged_primary_is_rewound_and_streams() {
    with_services("rewound::a_lightly_diverged_primary_is_rewound_and_streams", |file| {
        let mut parted = Parted::new();
        write_service(file, &parted.writer, parted.writer.port());
        let (stream, moment) = parted.write();
        let mut standby = parted.follow(true);
        let first = applied(&mut *standby, moment);
        let came = parted.came(&first);
        assert!(came.starts_with(ASIDE) && came.contains("was rewound to 0/"), "{came}");
        // What comes now is in no vault.
        drop(stream);
        streams(&mut *standby);
        parted.writer.psql("insert into t values (3)");
        let now = parted.writer.psql("select (extract(epoch from clock_timestamp()) * 1000000)::bigint");
        applied(&mut *standby, Timestamp::from_microsecond(now.parse().unwrap()).unwrap());
        // It goes on where it was, as any does.
        drop(standby);
        let mut standby = parted.follow(true);
        let back = standby.apply(&Cancel::default()).map_err(told).unwrap();
        assert!(!back.restarted && back.came.as_ref() == Some(&came), "{back:?}");
        streams(&mut *standby);
        parted.writer.kill();
        parted.writer.start();
        parted.assert_same(standby, "1 2 3");
    });
}

#[test]
fn hints_in_the_log_do_as_well_as_checksums_and_a_role_with_four_functions_as_well_as_a_superuser() {
    let name =
        "rewound::hints_in_the_log_do_as_well_as_checksums_and_a_role_with_four_functions_as_well_as_a_superuser";
    with_services(name, |file| {
        let mut cluster = Cluster::made_with(&[]);
        cluster.set("wal_log_hints", "on");
        cluster.start();
        let parted = Parted::of(cluster);
        parted.writer.psql("create role boat login replication password 'se:cr\\et'");
        for function in [
            "pg_ls_dir(text, boolean, boolean)",
            "pg_stat_file(text, boolean)",
            "pg_read_binary_file(text)",
            "pg_read_binary_file(text, bigint, bigint, boolean)",
        ] {
            parted.writer.psql(&format!("grant execute on function pg_catalog.{function} to boat"));
        }
        parted.writer.let_in(
            "local all postgres trust\nlocal replication postgres trust\n\
             host all boat 127.0.0.1/32 scram-sha-256\nhost replication boat 127.0.0.1/32 scram-sha-256\n",
        );
        parted.writer.psql("select pg_reload_conf()");
        // A password file that only this process's user may read.
        let passwords = file.with_file_name("passwords");
        std::fs::write(&passwords, "127.0.0.1:*:*:boat:se\\:cr\\\\et\n").unwrap();
        std::fs::set_permissions(&passwords, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        write_way(file, "boat", parted.writer.port());
        let text = std::fs::read_to_string(file).unwrap();
        std::fs::write(file, format!("{text}passfile={}\n", passwords.display())).unwrap();
        let (_stream, moment) = parted.write();
        let mut standby = parted.follow(true);
        let came = parted.came(&applied(&mut *standby, moment));
        assert!(came.contains("was rewound to"), "{came}");
        streams(&mut *standby);
        parted.assert_same(standby, "1 2");
    });
}

#[test]
fn without_hints_in_the_log_it_is_said_and_a_base_backup_is_laid_down() {
    with_services("rewound::without_hints_in_the_log_it_is_said_and_a_base_backup_is_laid_down", |file| {
        let mut cluster = Cluster::made_with(&[]);
        cluster.start();
        let parted = Parted::of(cluster);
        write_service(file, &parted.writer, parted.writer.port());
        let (_stream, moment) = parted.write();
        let mut standby = parted.follow(true);
        let came = parted.came(&applied(&mut *standby, moment));
        let why = "was not rewound: it was written with neither data checksums nor `wal_log_hints`";
        assert!(came.starts_with("a base backup was laid over it: ") && came.contains(why), "{came}");
        streams(&mut *standby);
        parted.assert_same(standby, "1 2");
    });
}

#[test]
fn what_stands_in_the_way_is_said_and_a_base_backup_is_laid_down() {
    with_services("rewound::what_stands_in_the_way_is_said_and_a_base_backup_is_laid_down", |file| {
        let parted = Parted::new();
        parted.writer.psql("create role boat login replication");
        let (_stream, moment) = parted.write();
        let space = parted.bench.place_for("space");
        crate::pg_cluster::run(crate::pg_cluster::as_postgres("mkdir").arg(&space));
        let (work, port) = (work_of(&parted.bench.standby_place()), parted.writer.port());
        let mut other = Cluster::made_with(&[]);
        other.start();
        for (what, why) in [
            ("tablespaces", "the writer's server has tablespaces"),
            ("no way", "the plan names no way"),
            ("nobody", "cannot be reached"),
            ("another", "at the end of the way is another system"),
            ("rights", "`boat` may not read the writer's files there; grant execute on function pg_catalog.pg_ls_dir("),
        ] {
            match what {
                "nobody" => write_way(file, "postgres", 1),
                "another" => write_way(file, "postgres", other.port()),
                "rights" => write_way(file, "boat", port),
                _ => write_way(file, "postgres", port),
            }
            if what == "tablespaces" {
                parted.writer.psql(&format!("create tablespace fast location '{}'", space.display()));
            }
            let mut standby = parted.follow(what != "no way");
            let came = parted.came(&applied(&mut *standby, moment));
            assert!(came.starts_with("a base backup was laid over it: ") && came.contains(why), "{what}: {came}");
            match what {
                "tablespaces" => drop(parted.writer.psql("drop tablespace fast")),
                "rights" => {
                    streams(&mut *standby);
                    return parted.assert_same(standby, "1 2");
                }
                _ => {}
            }
            drop(standby);
            std::fs::remove_dir_all(&work).unwrap();
        }
    });
}

#[test]
fn a_line_that_is_cut_in_the_middle_leaves_nothing_half_rewound() {
    with_services("rewound::a_line_that_is_cut_in_the_middle_leaves_nothing_half_rewound", |file| {
        let parted = Parted::new();
        let line = Line::to(parted.writer.port(), Then::Cut);
        write_way(file, "postgres", line.port);
        let (_stream, moment) = parted.write();
        let mut standby = parted.follow(true);
        let came = parted.came(&applied(&mut *standby, moment));
        assert!(line.is_full(), "{came}");
        assert!(came.contains("was not rewound: pg_rewind ended with "), "{came}");
        streams(&mut *standby);
        parted.assert_same(standby, "1 2");
    });
}

#[test]
fn a_server_that_hangs_in_the_middle_is_left_for_the_vault() {
    with_services("rewound::a_server_that_hangs_in_the_middle_is_left_for_the_vault", |file| {
        let parted = Parted::new();
        let line = Line::to(parted.writer.port(), Then::Wait);
        write_way(file, "postgres", line.port);
        let text = std::fs::read_to_string(file).unwrap();
        std::fs::write(file, format!("{text}connect_timeout=2\n")).unwrap();
        let (_stream, moment) = parted.write();
        let mut standby = parted.follow(true);
        let applied = std::thread::scope(|scope| {
            scope.spawn(|| {
                wait_for("a clone that is half rewound", || line.is_full().then_some(()));
                parted.writer.signal(rustix::process::Signal::STOP);
            });
            applied(&mut *standby, moment)
        });
        parted.writer.signal(rustix::process::Signal::CONT);
        let came = parted.came(&applied);
        assert!(came.contains("was not rewound: ") && came.contains("took longer than 2 s"), "{came}");
        streams(&mut *standby);
        parted.assert_same(standby, "1 2");
    });
}

/// What another test kills.
pub(crate) fn rewinding_child() {
    let Some(root) = std::env::var_os("LIFEBOAT_TEST_ROOT").map(PathBuf::from) else { return };
    let storage = lifeboat_vault::storage::open(vault_directory(&root, "main").to_str().unwrap()).unwrap();
    let key = Identity::load_all(&root.join("key")).unwrap();
    let vault = Vault::open(storage, None, None).unwrap().unlock(&key).unwrap();
    let request = FollowRequest { dataset: DATASET.into(), to: root.join("standby"), adopt: false };
    let mut standby = PostgresSource::new("", None, "").follow(&vault, &request).map_err(told).unwrap();
    standby.stream_from(Some(&shop()));
    loop {
        standby.apply(&Cancel::default()).map_err(told).unwrap();
    }
}

#[test]
fn killed_in_the_middle_it_begins_with_what_was_set_aside_and_not_with_what_it_left() {
    with_services(
        "rewound::killed_in_the_middle_it_begins_with_what_was_set_aside_and_not_with_what_it_left",
        |file| {
            let parted = Parted::new();
            let line = Line::to(parted.writer.port(), Then::Wait);
            write_way(file, "postgres", line.port);
            let (_stream, moment) = parted.write();
            let root = parted.bench.cluster.place().to_owned();
            std::fs::write(root.join("key"), parted.bench.vault.expose_key()).unwrap();
            let mut child = children::command("rewinding_child").env("LIFEBOAT_TEST_ROOT", &root).spawn().unwrap();
            wait_for("a clone that is half rewound", || line.is_full().then_some(()));
            child.kill().unwrap();
            child.wait().unwrap();
            let left = parted.clones();
            assert_eq!(left.len(), 1, "{left:?}");
            assert!(!work_of(&parted.bench.standby_place()).exists());
            // Its pg_rewind lives on, and waits.
            let rewinding = || {
                let processes = std::fs::read_dir("/proc").unwrap().flatten();
                let words = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
                words.into_iter().any(|words| String::from_utf8_lossy(&words).contains(&left[0]))
            };
            assert!(rewinding());
            let mut standby = parted.follow(true);
            let came = parted.came(&applied(&mut *standby, moment));
            assert!(came.contains("was rewound to"), "{came}");
            line.go_on();
            wait_for("the end of what was left behind", || (!rewinding()).then_some(()));
            assert_eq!(parted.clones(), Vec::<String>::new(), "it came back");
            streams(&mut *standby);
            parted.assert_same(standby, "1 2");
        },
    );
}

#[test]
fn who_followed_before_the_writer_had_a_base_backup_is_dealt_with_once_it_has_one() {
    with_services("rewound::who_followed_before_the_writer_had_a_base_backup_is_dealt_with_once_it_has_one", |file| {
        let parted = Parted::new();
        write_service(file, &parted.writer, parted.writer.port());
        let mut standby = parted.follow(true);
        // Its own log, as the vault has it, is all that there is.
        let own = wait_for("its own log", || {
            let applied = standby.apply(&Cancel::default()).map_err(told).unwrap();
            applied.applied_to.is_some().then_some(applied)
        });
        assert_eq!((own.epoch, own.came), (Some(1), None));
        let (_stream, moment) = parted.write();
        let came = parted.came(&applied(&mut *standby, moment));
        assert!(came.contains("was rewound to"), "{came}");
        streams(&mut *standby);
        parted.assert_same(standby, "1 2");
    });
}

#[test]
fn a_former_primary_that_lost_nothing_is_rewound_as_well() {
    with_services("rewound::a_former_primary_that_lost_nothing_is_rewound_as_well", |file| {
        let mut bench = Bench::new();
        bench.table();
        let stream = bench.stream();
        bench.insert(1);
        durable(&bench, &*stream);
        bench.cluster.stop();
        // To the last record, which says that it was stopped.
        stream.freeze(&Cancel::default()).map_err(told).unwrap();
        drop(stream);
        let aside = bench.place_for(ASIDE);
        std::fs::rename(bench.cluster.data(), &aside).unwrap();
        let before = tree(&aside);
        let to = bench.place_for("elsewhere");
        bench.restore(Target::Newest, &to);
        let writer = Cluster::adopted(&to);
        write_service(file, &writer, writer.port());
        let stream = second_stream(&bench, &writer);
        writer.psql("insert into t values (2)");
        let moment = durable_now(&*stream);
        let mut standby = bench.follow();
        standby.stream_from(Some(&shop()));
        let came = applied(&mut *standby, moment).came.unwrap();
        assert!(came.contains("was rewound to"), "{came}");
        assert!(!Path::new(&format!("{}.lost-writes.jsonl", aside.display())).exists());
        assert_eq!(tree(&aside), before);
        streams(&mut *standby);
        promote(&mut *standby);
        assert_eq!(numbers(&Cluster::adopted(&bench.standby_place())), "1 2");
    });
}
