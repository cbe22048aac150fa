//! Dumps at the command line and in a plan: of a server that is reached by a service and a password, loaded by what their README says.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::machine::{Machine, await_that};
use crate::pg_cluster::{Cluster, as_postgres, path_of, run};

use super::planned::{Day, planned_with};

/// A role that may read the one table and is no superuser, let in by a password only.
fn guarded() -> Cluster {
    let cluster = Cluster::started();
    super::table(&cluster);
    super::insert(&cluster, 7);
    cluster.psql("create role reader login password 'ebb-tide'; grant select on t to reader");
    cluster.let_in(
        "local all postgres trust\nlocal replication postgres trust\nhost all reader 127.0.0.1/32 scram-sha-256\n",
    );
    cluster.psql("select pg_reload_conf()");
    cluster
}

fn let_in(machine: &Machine, cluster: &Cluster) {
    let service = format!("[replica]\nhost=127.0.0.1\nport={}\nuser=reader\ndbname=postgres\n", cluster.port());
    machine.write("home/.pg_service.conf", service);
    machine.write("home/.pgpass", format!("127.0.0.1:{}:*:reader:ebb-tide\n", cluster.port()));
    fs::set_permissions(machine.path("home/.pgpass"), fs::Permissions::from_mode(0o600)).unwrap();
}

/// The arguments of every process that is at work on the cluster's dump.
fn arguments_of(program: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let of = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).ok();
    let lines = processes.filter_map(of).map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(program)).collect()
}

#[test]
fn a_dump_by_a_service_is_exported_and_loaded_and_shows_no_password() {
    let cluster = guarded();
    let machine = Machine::new();
    machine.make_vault();
    let_in(&machine, &cluster);
    let vault = machine.at("backup");

    // It waits for a lock: time to look at the list of processes.
    let mut holder = cluster.client("psql");
    let mut holder = holder.args(["-XAtq"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = holder.stdin.take().unwrap();
    writeln!(stdin, "begin; lock table t in access exclusive mode;").unwrap();
    let locked =
        "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and relation = 't'::regclass and granted";
    await_that("the table is locked", || cluster.psql(locked) == "1");
    let words = ["backup", "--vault", &vault, "--dump", "replica"];
    let dumping = machine.spawn(&words);
    let waits =
        "select count(*) from pg_stat_activity where application_name = 'lifeboat-dump' and wait_event_type = 'Lock'";
    await_that("the dump waits for the table", || cluster.psql(waits) == "1");
    let shown = arguments_of("pg_dump");
    assert!(shown.iter().any(|line| line.contains("dbname='postgres'")), "{shown:?}");
    assert!(!shown.iter().any(|line| line.contains("ebb-tide")), "{shown:?}");
    drop(stdin);
    holder.wait().unwrap();
    let ran = machine.finish(dumping).ends(0);
    assert!(ran.err.contains("the roles' passwords are not in it: `reader` may not read them"), "{}", ran.screen());
    assert!(ran.out.contains("replica.dump: recovery point 1"), "{}", ran.screen());

    let open = format!("--vault {vault} --key owner.key");
    machine.line(&format!("export {open} replica.dump -o {} --split 1MiB", machine.at("archive"))).ends(0);
    let readme = fs::read_to_string(machine.path("archive/README.txt")).unwrap();
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let script =
        commands.join("\n").replace("/where/it/goes", &machine.at("out")).replace("KEY", &machine.at("work/owner.key"));
    machine.shell(&format!("cd {}\n{script}", machine.at("archive"))).ends(0);

    let globals = fs::read_to_string(machine.path("out/globals.sql")).unwrap();
    assert!(globals.contains(r#"CREATE ROLE "reader""#) && !globals.contains("PASSWORD"), "{globals}");
    let fresh = Cluster::started();
    let files = fresh.place().join("out");
    let moved =
        std::process::Command::new("cp").arg("-a").arg("--").args([machine.path("out"), files.clone()]).status();
    assert!(moved.unwrap().success());
    let owned = std::process::Command::new("chown").args(["-hR", "--reference"]).arg(fresh.data()).arg(&files).status();
    assert!(owned.unwrap().success());
    let readme = fs::read_to_string(machine.path("out/README.txt")).unwrap();
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let mut load = as_postgres("sh");
    load.args(["-euc", &commands.join("\n")])
        .current_dir(&files)
        .env("PATH", format!("{}:/usr/bin:/bin", path_of("").display()));
    load.env("PGHOST", fresh.socket_directory()).env("PGPORT", fresh.port().to_string()).env("PGUSER", "postgres");
    run(&mut load);
    assert_eq!(super::rows(&fresh), "7");
}

#[test]
fn what_a_dump_needs_and_lacks_is_said() {
    let cluster = guarded();
    let machine = Machine::unprivileged();
    machine.make_vault();
    let vault = machine.at("backup");
    let absent = machine.line(&format!("backup --vault {vault} --dump replica")).ends(1);
    assert!(absent.err.contains("there is no service `replica`"), "{}", absent.screen());
    let both = machine.line(&format!("backup --vault {vault} --dump replica /etc")).ends(2);
    assert!(both.err.contains("--dump is for one server"), "{}", both.screen());
    let nothing = machine.line(&format!("backup --vault {vault} --dump ./nothing")).ends(2);
    assert!(nothing.err.contains("no server can be found by ./nothing"), "{}", nothing.screen());
    machine.line(&format!("backup --vault {vault} --database shop /etc")).ends(2);
    let_in(&machine, &cluster);
    cluster.psql("revoke select on t from reader");
    let refused = machine.line(&format!("backup --vault {vault} --dump replica")).ends(1);
    insta::assert_snapshot!(super::steady(&cluster, &refused.screen()), @r#"
    error: no recovery point was taken into vault `/backup`
      because: the database `postgres` was not dumped: this role may not read all of it. Let it (`grant pg_read_all_data to …`; large objects only their owners or a superuser may read)
      because: pg_dump ended with exit status: 1: pg_dump: error: query failed: ERROR:  permission denied for table t; pg_dump: detail: Query was: LOCK TABLE "public"."t" IN ACCESS SHARE MODE
    help: put that right, then run the backup again; there is no half of a dump
    exit 1
    "#);
    // A wrong password is not shown either.
    machine.write("home/.pgpass", format!("127.0.0.1:{}:*:reader:low-tide\n", cluster.port()));
    let wrong = machine.line(&format!("backup --vault {vault} --dump replica")).ends(1);
    assert!(wrong.err.contains("SQLSTATE 28P01") && !wrong.err.contains("low-tide"), "{}", wrong.screen());
    let points = machine.line(&format!("--json points --vault {vault}")).ends(0).json();
    assert_eq!(points.as_array().unwrap().len(), 0);
}

/// The daemon takes them as they are due; a recovery knows nothing of them.
#[test]
fn in_a_plan_dumps_are_taken_by_themselves_and_count_for_nothing_else() {
    let cluster = guarded();
    let machine = Machine::new();
    let more = r#"
[service.shop.component.db.dataset.ledger-dump]
kind = "persistent"
postgres-dump = { service = "replica" }
protect = [{ to = "main", every = "1s", keep = { last = 100 } }]
"#;
    planned_with(&machine, &format!("path = \"{}\"", cluster.data().display()), |_, text| text + more);
    let_in(&machine, &cluster);
    let checked = machine.line("check").ends(0);
    assert!(checked.out.contains("nothing wrong found") && !checked.err.contains("dump"), "{}", checked.screen());
    let by_name = machine.line("backup ledger-dump").ends(0);
    assert!(by_name.out.contains("ledger-dump: recovery point 1"), "{}", by_name.screen());
    machine.line("protect --site home --once").ends(0);

    let mut day = Day { machine, cluster, daemon: None };
    let dumps = |day: &Day| {
        let points = day.machine.line("--json points").ends(0).json();
        points.as_array().unwrap().iter().filter(|point| point["dataset"] == "ledger-dump").count()
    };
    assert_eq!(dumps(&day), 2);
    day.protect();
    await_that("the daemon takes dumps", || dumps(&day) > 3);
    day.durable();
    let status = day.status();
    let named: Vec<&str> =
        status["datasets"].as_array().unwrap().iter().filter_map(|set| set["dataset"].as_str()).collect();
    assert_eq!(named, ["ledger"], "how old a dump is says nothing about what would be lost");
    assert_eq!(day.end_protect(), Some(0));

    let out = day.machine.at("out");
    day.machine.line(&format!("restore ledger-dump --key owner.key --to {out}")).ends(0);
    assert!(day.machine.path("out/databases/postgres.dump").is_file());
    let service = day.cluster.place().join("service");
    super::make_directory(&service);
    let ran = day.machine.line(&format!("restore shop --key owner.key --to {}", service.display())).ends(0);
    assert!(service.join("ledger/PG_VERSION").is_file() && !service.join("ledger-dump").exists(), "{}", ran.screen());
}
