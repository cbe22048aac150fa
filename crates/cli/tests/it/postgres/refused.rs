//! What cannot be done names the thing and the next step, leaves what was there as it was, and shows no secret.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Bench, insert, rows, table};
use crate::machine::Ran;
use crate::pg_cluster::{Cluster, as_postgres, run};

/// Everyone through the socket shows a password, but the first role.
const BY_PASSWORD: &str = "local all postgres trust\nlocal replication postgres trust\n\
                           local all all scram-sha-256\nlocal replication all scram-sha-256\n";

impl Bench {
    /// A backup with a few variables of libpq's.
    fn backup_with(&self, variables: &[(&str, &str)]) -> Ran {
        let mut command = self.machine.command(&["backup", "--vault", &self.vault(), &self.data()]);
        command.envs(variables.iter().copied());
        self.machine.ran(command)
    }

    fn postmaster(&self) -> String {
        let lock = fs::read_to_string(self.cluster.data().join("postmaster.pid")).unwrap();
        lock.lines().next().unwrap().to_owned()
    }

    fn points(&self) -> usize {
        self.machine.line(&format!("--json points --vault {}", self.vault())).ends(0).json().as_array().unwrap().len()
    }
}

#[test]
fn who_may_not_replicate_or_has_no_right_password() {
    let cluster = Cluster::started();
    cluster.psql("create role reader login password 'open-sesame'; create role boat login replication password 'tide'");
    cluster.let_in(BY_PASSWORD);
    cluster.psql("select pg_reload_conf()");
    let bench = Bench::with(cluster);
    let tried = |variables: &[(&str, &str)]| {
        let ran = bench.backup_with(variables);
        for secret in ["open-sesame", "tide", "wrong-one"] {
            assert!(!ran.err.contains(secret) && !ran.out.contains(secret), "{}", ran.err);
        }
        assert_eq!(ran.code, 1, "{}", ran.err);
        bench.screen(&ran)
    };
    insta::assert_snapshot!(tried(&[("PGUSER", "reader"), ("PGPASSWORD", "open-sesame")]), @r#"
    error: no recovery point was taken into vault `/backup`
      because: PostgreSQL at /pg/.s.PGSQL.PORT refuses: must be superuser or replication role to start walsender (SQLSTATE 42501); give it the right: alter role reader replication
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    insta::assert_snapshot!(tried(&[("PGUSER", "boat"), ("PGPASSWORD", "wrong-one")]), @r#"
    error: no recovery point was taken into vault `/backup`
      because: PostgreSQL at /pg/.s.PGSQL.PORT refuses: password authentication failed for user "boat" (SQLSTATE 28P01); see that the password of boat in PGPASSWORD is the server's
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    insta::assert_snapshot!(tried(&[("PGUSER", "boat")]), @r#"
    error: no recovery point was taken into vault `/backup`
      because: PostgreSQL at /pg/.s.PGSQL.PORT does not let boat in: it asks for a password, and there is none: write it to /home/.pgpass (mode 600)
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    bench.machine.write("home/.pgpass", "*:*:*:boat:tide\n");
    fs::set_permissions(bench.machine.path("home/.pgpass"), fs::Permissions::from_mode(0o644)).unwrap();
    insta::assert_snapshot!(tried(&[("PGUSER", "boat")]), @r#"
    2026-11-21T14:00:00Z  WARN the password file is not used path=/home/.pgpass why="group or others may read it: `chmod 600` it"
    error: no recovery point was taken into vault `/backup`
      because: PostgreSQL at /pg/.s.PGSQL.PORT does not let boat in: it asks for a password, and /home/.pgpass is not used: group or others may read it: `chmod 600` it
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    assert_eq!(bench.points(), 0);
    fs::set_permissions(bench.machine.path("home/.pgpass"), fs::Permissions::from_mode(0o600)).unwrap();
    let ran = bench.backup_with(&[("PGUSER", "boat")]).ends(0);
    assert!(!ran.err.contains("tide"), "{}", ran.err);
    assert_eq!(bench.points(), 1);
    bench.cluster.let_in("local all postgres trust\nlocal replication postgres peer\nlocal all all trust\n");
    bench.cluster.psql("select pg_reload_conf()");
    insta::assert_snapshot!(tried(&[("PGUSER", "boat")]), @r#"
    error: no recovery point was taken into vault `/backup`
      because: PostgreSQL at /pg/.s.PGSQL.PORT refuses: no pg_hba.conf entry for replication connection from host "[local]", user "boat", no encryption (SQLSTATE 28000); let boat in for `replication` from this host in its pg_hba.conf
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    // Root comes as the directory's owner, whom `peer` lets in.
    let peer = "local all postgres peer\nlocal replication postgres peer\n";
    bench.cluster.let_in(peer);
    run(as_postgres("kill").args(["-HUP", &bench.postmaster()]));
    bench.backup().ends(0);
    assert_eq!(bench.points(), 2);
}

/// Whatever stands in the way of asking its server, the files of one that runs are no recovery point, and are not restored over.
#[test]
fn a_running_directory_is_never_taken_for_a_stopped_one() {
    let bench = Bench::new();
    table(&bench.cluster);
    insert(&bench.cluster, 1);
    bench.point();
    let ran = bench.backup_with(&[("PGSSLCERT", "/my/certificate")]).ends(1);
    insta::assert_snapshot!(bench.screen(&ran), @r#"
    error: no recovery point was taken into vault `/backup`
      because: PGSSLCERT asks for what lifeboat cannot do: lifeboat does not show certificates of its own; use a password, or a Unix socket
    help: see that its server runs and lets this user in with the right to replicate; then run the backup again
    exit 1
    "#);
    assert_eq!(bench.points(), 1);
    // Among other paths it is files, and that is held against the point.
    let line = format!("backup --vault {} --as both {} /etc/hostname", bench.vault(), bench.data());
    let ran = bench.machine.line(&line).ends(3);
    assert!(ran.err.contains("as a database: a PostgreSQL server may be running there"), "{}", ran.err);
    let mut command =
        bench.machine.command(&["restore", &bench.data(), "--vault", &bench.vault(), "--key", "owner.key"]);
    command.args(["--in-place", "--yes", "--to", &bench.data()]).env("PGSSLCERT", "/my/certificate");
    let ran = bench.machine.ran(command).ends(1);
    insta::assert_snapshot!(bench.screen(&ran), @r#"
    error: `/pg/data` was not restored
      because: a server may be running in /pg/data (postmaster.pid); stop it first
    help: nothing lies under the cluster's name that was not recovered; once the cause is gone, run it again
    exit 1
    "#);
    assert_eq!(rows(&bench.cluster), "1");
    assert!(bench.cluster.data().join("postmaster.pid").exists());
}

#[test]
fn where_a_cluster_cannot_be_restored() {
    let bench = Bench::new();
    table(&bench.cluster);
    insert(&bench.cluster, 1);
    bench.point();
    let full = bench.place_for("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter"), "keep me").unwrap();
    let ran = bench.restore(&full.display().to_string(), "").ends(1);
    insta::assert_snapshot!(bench.screen(&ran), @r#"
    error: `/pg/data` was not restored
      because: /pg/full exists already; restore in place to change it, or restore elsewhere
    help: nothing lies under the cluster's name that was not recovered; once the cause is gone, run it again
    exit 1
    "#);
    assert_eq!(fs::read_to_string(full.join("letter")).unwrap(), "keep me");

    let closed = bench.machine.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let ran = bench.restore(&bench.machine.at("closed/out"), "").ends(1);
    insta::assert_snapshot!(bench.screen(&ran), @r#"
    error: `/pg/data` was not restored
      because: a private server over /closed/out.lifeboat-restore cannot be prepared: `postgres` cannot be run there; its owner must be able to enter each directory above it
      because: Permission denied (os error 13)
    help: nothing lies under the cluster's name that was not recovered; once the cause is gone, run it again
    exit 1
    "#);
    assert!(!closed.join("out").exists());
    // Once the cause is gone, it is run again.
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
    bench.restore(&bench.machine.at("closed/out"), "").ends(0);

    let ran = bench.restore(&bench.data(), "--in-place --yes").ends(1);
    insta::assert_snapshot!(bench.screen(&ran), @r#"
    error: `/pg/data` was not restored
      because: a server may be running in /pg/data (postmaster.pid); stop it first
    help: nothing lies under the cluster's name that was not recovered; once the cause is gone, run it again
    exit 1
    "#);
    assert_eq!(rows(&bench.cluster), "1");
    let ran = bench.restore(&bench.place_for("x").display().to_string(), "--at 2020-01-01T00:00:00Z").ends(1);
    insta::assert_snapshot!(bench.screen(&ran), @r#"
    error: no recovery point of `/pg/data` is as old as 2026-11-21T14:00:00Z
    help: the oldest is of 2026-11-21T14:00:00Z
    exit 1
    "#);
}

#[test]
fn a_vault_within_the_data_directory_would_hold_itself() {
    let bench = Bench::new();
    let within = bench.cluster.data().join("backup");
    run(as_postgres("mkdir").arg(&within));
    let recipient = bench.machine.line("key inspect owner.key").ends(0).out.trim().to_owned();
    let paper = bench.machine.line("key inspect paper.key").ends(0).out.trim().to_owned();
    let within = within.display();
    bench.machine.line(&format!("vault init --vault {within} --recipient {recipient} --recipient {paper}")).ends(0);
    let ran = bench.machine.line(&format!("backup --vault {within} {}", bench.data())).ends(4);
    insta::assert_snapshot!(bench.screen(&ran), @r#"
    error: the vault /pg/data/backup lies within /pg/data, which is to go into it
    help: put the vault elsewhere: a server's backup has all that is there
    exit 4
    "#);
}
