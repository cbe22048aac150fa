//! Private servers over data directories, and what control files say.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::control::{Control, ControlError, State};
use super::super::door::Door;
use super::super::lsn::Lsn;
use super::super::programs::Programs;
use super::super::server::{Awaited, Server, ServerError, Start, Stop};
use super::super::session::{Purpose, Session};
use super::cluster::{Cluster, MAJOR, PATIENCE, as_postgres, path_of, run};

async fn programs(data: &Path) -> Programs {
    Programs::of_data_directory(data, &["postgres", "pg_controldata"]).await.unwrap()
}

/// A copy of a running cluster, as a restore would make it, with its configuration.
fn restored(cluster: &Cluster) -> PathBuf {
    let path = cluster.place().join("restored");
    let mut copy = cluster.client("pg_basebackup");
    run(copy.args(["--checkpoint=fast", "--no-sync", "-D"]).arg(&path));
    path
}

fn start(settings: &[(&str, &str)]) -> Start {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Start { settings, within: PATIENCE, ..Start::default() }
}

async fn ask(door: &Door, sql: &str) -> String {
    let mut session = Session::open(door, Purpose::Queries, "").await.unwrap();
    session.query_one(sql).await.unwrap().get(0).unwrap().to_owned()
}

#[tokio::test]
async fn the_programs_of_an_installed_version_are_found() {
    let needed = ["postgres", "pg_basebackup"];
    let found = Programs::of_server(*MAJOR * 10_000 + 18, &needed).await.unwrap();
    assert_eq!(found.major(), *MAJOR);
    assert_eq!(found.program("postgres"), path_of("postgres"));
    assert_eq!(found.directory(), path_of("postgres").parent().unwrap());
}

#[tokio::test]
async fn a_private_server_reaches_nobody_and_believes_no_restored_configuration() {
    let mut cluster = Cluster::new();
    cluster.set("max_connections", "37");
    cluster.start();
    cluster.psql("create table t as select 42 as answer");
    let data = restored(&cluster);
    let trace = cluster.place().join("trace");
    let hostile = format!(
        "archive_mode = 'always'\narchive_command = 'touch {0}'\nlisten_addresses = '*'\nmax_connections = '3'\n\
         shared_preload_libraries = 'nothing_there'\nhba_file = '/nowhere'\nunix_socket_directories = '/nowhere'\n\
         restore_command = 'touch {0}; false'\nssl = 'on'\nlogging_collector = 'on'\n",
        trace.display()
    );
    std::fs::write(data.join("postgresql.auto.conf"), &hostile).unwrap();
    std::fs::write(data.join("postgresql.conf"), "not a line of a configuration").unwrap();
    std::fs::write(data.join("pg_hba.conf"), "local all all reject").unwrap();

    let server = Server::start(&programs(&data).await, &data, &start(&[("work_mem", "5MB")])).await.unwrap();
    let door = server.door().clone();
    assert_eq!(ask(&door, "select answer from t").await, "42");
    for (setting, value) in [
        ("archive_mode", "off"),
        ("listen_addresses", ""),
        ("max_connections", "37"),
        ("work_mem", "5MB"),
        ("shared_preload_libraries", ""),
        ("restore_command", ""),
    ] {
        assert_eq!(ask(&door, &format!("show {setting}")).await, value, "{setting}");
    }
    ask(&door, "select pg_switch_wal()").await;
    let private = std::fs::metadata(door.host()).unwrap();
    assert_eq!((private.mode() & 0o7777, private.uid()), (0o700, std::fs::metadata(&data).unwrap().uid()));
    let socket = PathBuf::from(door.host());
    server.stop(Stop::Fast, PATIENCE).await.unwrap();
    assert!(!socket.exists() && !trace.exists());
    assert_eq!(std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap(), hostile);
    assert_eq!(Control::read(&programs(&data).await, &data).await.unwrap().state, State::ShutDown);
}

#[tokio::test]
async fn a_recovery_pauses_at_its_target_is_looked_into_and_promoted() {
    let mut cluster = Cluster::new();
    cluster.set("archive_mode", "on");
    let archive = cluster.place().join("archive");
    run(as_postgres("mkdir").arg(&archive));
    cluster.set("archive_command", &format!("cp %p {}/%f", archive.display()));
    cluster.start();
    cluster.psql("create table t (a int)");
    let data = restored(&cluster);
    cluster.psql("insert into t values (1)");
    cluster.psql("select pg_create_restore_point('here')");
    cluster.psql("insert into t values (2)");
    cluster.psql("select pg_switch_wal()");
    cluster.wait_until("the log is archived", |cluster| {
        cluster
            .psql("select last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 16777216) from pg_stat_archiver")
            == "t"
    });
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    let restore = format!("cp {}/%f %p", archive.display());
    let target = [("restore_command", restore.as_str()), ("recovery_target_name", "here")];
    let programs = programs(&data).await;
    let mut server = Server::start(&programs, &data, &start(&target)).await.unwrap();
    server.wait_for(Awaited::Paused, PATIENCE).await.unwrap();
    assert_eq!(ask(server.door(), "select string_agg(a::text, ' ') from t").await, "1");
    let error = server.wait_for(Awaited::Writable, Duration::from_millis(100)).await.unwrap_err();
    assert!(
        matches!(&error, ServerError::Late { log, .. } if log.contains("pausing at the end of recovery")),
        "{error}"
    );
    ask(server.door(), "select pg_promote()").await;
    server.wait_for(Awaited::Writable, PATIENCE).await.unwrap();
    assert_eq!(ask(server.door(), "select left(pg_walfile_name(pg_current_wal_lsn()), 8)").await, "00000002");
    server.stop(Stop::Immediate, PATIENCE).await.unwrap();
    let control = Control::read(&programs, &data).await.unwrap();
    assert_eq!((control.state, control.is_clean()), (State::InProduction, false));
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_and_one_that_is_dropped_is_gone() {
    let cluster = Cluster::started();
    let data = restored(&cluster);
    let programs = programs(&data).await;
    let error = Server::start(&programs, &data, &start(&[("nonsense", "1")])).await.unwrap_err();
    assert!(error.to_string().contains("unrecognized configuration parameter \"nonsense\""), "{error}");
    // In recovery, and what it needs is not there.
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    let target = [("restore_command", "false"), ("recovery_target_lsn", "F/0")];
    // It may answer for a moment before it finds that out.
    let error = match Server::start(&programs, &data, &start(&target)).await {
        Ok(mut server) => server.wait_for(Awaited::Paused, PATIENCE).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(
        matches!(&error, ServerError::Ended { log, .. } if log.contains("recovery ended before configured recovery target")),
        "{error}"
    );

    let data = cluster.place().join("second");
    run(cluster.client("pg_basebackup").args(["--checkpoint=fast", "--no-sync", "-D"]).arg(&data));
    let server = Server::start(&programs, &data, &start(&[])).await.unwrap();
    let pid_file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let process = PathBuf::from("/proc").join(pid_file.lines().next().unwrap());
    let (socket, door) = (PathBuf::from(server.door().host()), server.door().clone());
    assert!(process.exists() && socket.exists());
    // Its own pid file names where it is, for whoever looks there.
    assert_eq!(Door::running_in(&data).unwrap().host(), door.host());
    let busy = Server::start(&programs, &data, &start(&[])).await.unwrap_err();
    assert!(busy.to_string().contains("postmaster.pid\" already exists"), "{busy}");
    drop(server);
    assert!(!process.exists() && !socket.exists());
    assert!(Session::open(&door, Purpose::Queries, "").await.unwrap_err().may_pass());

    let error = Server::start(&programs, Path::new("/"), &start(&[])).await.unwrap_err();
    assert!(error.to_string().contains("control file of / cannot be read"), "{error}");
}

#[tokio::test]
async fn a_control_file_says_how_a_cluster_was_left_and_a_damaged_one_is_refused() {
    let mut cluster = Cluster::made_with(&["--wal-segsize=1"]);
    let data = cluster.data();
    let programs = programs(&data).await;
    let read = async || Control::read(&programs, &data).await.unwrap();
    let clean = read().await;
    assert_eq!((clean.state, clean.is_clean(), clean.checksums), (State::ShutDown, true, false));
    assert_eq!((clean.segments.bytes, clean.timeline, clean.min_recovery_end), (1 << 20, 1, Lsn(0)));
    assert!(clean.redo <= clean.checkpoint);
    cluster.start();
    assert_eq!(clean.system_id.to_string(), cluster.psql("select system_identifier from pg_control_system()"));
    assert_eq!(read().await.state, State::InProduction);
    cluster.kill();
    assert_eq!(read().await.state, State::InProduction);

    let file = data.join("global/pg_control");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    assert!(matches!(Control::read(&programs, &data).await, Err(ControlError::Damaged { .. })));
    std::fs::remove_file(&file).unwrap();
    let error = Control::read(&programs, &data).await.unwrap_err();
    assert!(matches!(&error, ControlError::Refused { said, .. } if said.contains("No such file")), "{error}");
}
