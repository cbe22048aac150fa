//! Recovery points, proven: what is sound passes every check, and each kind of damage is found by the check that is there for it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lifeboat_adapters::source::{FilesSource, PostgresSource, Scratch};
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{Cancel, PointRequest, PortError, Restorer, Source};
use lifeboat_engine::verify::{Outcome, Verification, VerifyRequest};
use lifeboat_vault::files::{RestoreOptions, restore_tree};
use lifeboat_vault::storage::Storage;
use lifeboat_vault::{Badge, ChunkId};

use super::streams::durable;
use super::{Bench, DATASET, told};
use crate::pg_cluster::Cluster;

impl Bench {
    fn try_verify(&self, target: Target, queries: &[&str], cancel: &Cancel) -> Result<Verification, PortError> {
        let below = self.place_for("scratch");
        let scratch = Scratch::for_a_server(&below).unwrap();
        let request = VerifyRequest {
            dataset: DATASET.into(),
            target,
            scratch: scratch.path(),
            queries: queries.iter().map(|query| (*query).to_owned()).collect(),
            database: None,
        };
        let found = PostgresSource::new("", None, "").verify(&self.unlocked(), &request, &(), cancel);
        drop(scratch);
        assert_eq!(fs::read_dir(&below).unwrap().count(), 0, "something is left in {}", below.display());
        found
    }

    fn verify(&self, queries: &[&str]) -> Verification {
        self.try_verify(Target::Newest, queries, &Cancel::default()).map_err(told).unwrap()
    }

    /// The newest recovery point once more, with something in its files changed before.
    fn retaken(&self, change: impl FnOnce(&Path)) {
        let vault = self.unlocked();
        let point = vault.points(Some(DATASET)).unwrap().points.pop().unwrap();
        let root = ChunkId(vault.read_root(&point).unwrap().as_slice().try_into().unwrap());
        let files = self.place_for("files");
        let (source, flag) = (vault.source(DATASET).unwrap(), Cancel::default());
        restore_tree(&source, &root, &files, &RestoreOptions::default(), &(), flag.flag()).unwrap();
        change(&files);
        let request = PointRequest {
            dataset: DATASET.into(),
            epoch: 1,
            release: Some("PostgreSQL of old".into()),
            ..PointRequest::default()
        };
        let source = FilesSource::new(&files, &[], None).unwrap();
        source.take_point(&self.vault.named(), &request, &(), &Cancel::default()).map_err(told).unwrap();
    }

    /// Where a table or an index lies.
    fn file_of(&self, relation: &str) -> PathBuf {
        self.cluster.data().join(self.cluster.psql(&format!("select pg_relation_filepath('{relation}')")))
    }

    /// Changes what lies on the disk, with the server stopped meanwhile.
    fn behind_its_back(&mut self, change: impl FnOnce()) {
        self.cluster.psql("checkpoint");
        self.cluster.stop();
        change();
        self.cluster.start();
    }
}

fn outcome(found: &Verification, check: &str) -> Option<Outcome> {
    found.checks.iter().filter(|seen| seen.check == check).map(|seen| seen.outcome).max()
}

fn what(found: &Verification, check: &str) -> String {
    found.checks.iter().filter(|seen| seen.check == check).map(|seen| seen.what.clone()).collect()
}

/// All other checks were done, and passed.
fn only(found: &Verification, check: &str, expected: Outcome) {
    for seen in &found.checks {
        let wanted = if seen.check == check { expected } else { Outcome::Passed };
        assert_eq!(seen.outcome, wanted, "{seen:?} of {found:#?}");
    }
    assert_eq!(outcome(found, check), Some(expected), "{found:#?}");
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn what_is_sound_passes_every_check_as_a_stream_and_as_a_point() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    bench.insert(1);
    bench.insert(2);
    durable(&bench, &*stream);
    drop(stream);
    let query = "select count(*) = 2 from t";
    let found = bench.verify(&[query, "select not pg_is_in_recovery() is null"]);
    let names: Vec<&str> = found.checks.iter().map(|check| check.check.as_str()).collect();
    assert_eq!(names, ["files", "log", "recovery", "databases", "query", "query", "indexes", "checksums"]);
    assert!(found.checks.iter().all(|check| check.outcome == Outcome::Passed), "{found:#?}");
    assert_eq!(found.badge(), Some(Badge::Verified));
    assert!(found.as_of.is_some() && found.position.is_some(), "{found:?}");

    bench.point();
    let found = bench.verify(&[query]);
    assert_eq!(found.badge(), Some(Badge::Verified), "{found:#?}");
    assert_eq!(found.checks.len(), 7, "{found:#?}");
    assert!(what(&found, "log").contains("records"), "{found:#?}");
}

#[test]
fn a_query_must_answer_with_one_true_value() {
    let bench = Bench::new();
    bench.table();
    bench.insert(1);
    bench.insert(2);
    bench.point();
    let wrong = [
        "select count(*) = 3 from t",
        "select n > 0 from t",
        "select true where false",
        "select true, true",
        "select null::bool",
        "select count(*) from t",
        "select n from no_such_table",
        "delete from t returning true",
    ];
    let mut queries = vec!["select count(*) = 2 from t"];
    queries.extend(wrong);
    let found = bench.verify(&queries);
    let of: Vec<Outcome> = found.checks.iter().filter(|seen| seen.check == "query").map(|seen| seen.outcome).collect();
    assert_eq!((of[0], &of[1..]), (Outcome::Passed, &[Outcome::Failed; 8][..]), "{found:#?}");
    assert_eq!(found.badge(), Some(Badge::Suspect));
    assert!(what(&found, "query").contains("answered f, and not true, in postgres"), "{found:#?}");
}

#[test]
fn an_index_that_lacks_a_row_is_found() {
    let bench = Bench::new();
    bench.table();
    bench.insert(1);
    let ready = |is: bool| {
        bench.cluster.psql(&format!("update pg_index set indisready = {is} where indexrelid = 't_pkey'::regclass"));
    };
    ready(false);
    bench.insert(2);
    ready(true);
    bench.point();
    let found = bench.verify(&["select count(*) = 2 from t"]);
    only(&found, "indexes", Outcome::Failed);
    assert!(what(&found, "indexes").contains("t_pkey"), "{found:#?}");
    assert_eq!(found.badge(), Some(Badge::Suspect));
}

#[test]
fn a_damaged_row_is_found_where_there_are_no_checksums() {
    let mut cluster = Cluster::made_with(&[]);
    cluster.start();
    let mut bench = Bench::with(cluster);
    bench.cluster.psql("create table u(n int); insert into u values (1)");
    let file = bench.file_of("u");
    // The first row lies at the page's end; where its data begins stands in its 23rd byte.
    bench.behind_its_back(|| flip(&file, 8192 - 32 + 22));
    bench.point();
    let found = bench.verify(&[]);
    only(&found, "indexes", Outcome::Failed);
    assert!(found.notes.iter().any(|note| note.contains("no data checksums")), "{found:#?}");
    assert_eq!((outcome(&found, "checksums"), found.badge()), (None, Some(Badge::Suspect)));
}

#[test]
fn a_damaged_page_that_the_base_backup_took_for_a_new_one_is_found_by_its_checksum() {
    let mut bench = Bench::new();
    bench.cluster.psql("create table u(n int); insert into u values (1)");
    let file = bench.file_of("u");
    bench.behind_its_back(|| {
        // A page from the future is not looked at by a base backup: the log would bring it back.
        fs::OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&[0xff; 4], 0).unwrap();
        flip(&file, 4000);
    });
    bench.point();
    let found = bench.verify(&[]);
    assert_eq!(outcome(&found, "checksums"), Some(Outcome::Damaged), "{found:#?}");
    assert_eq!(outcome(&found, "files"), Some(Outcome::Passed), "the server itself sent it so");
    assert_eq!(found.badge(), Some(Badge::Corrupt));
}

#[test]
fn a_file_that_is_not_as_the_server_sent_it_is_found() {
    let bench = Bench::new();
    bench.table();
    bench.point();
    bench.retaken(|files| fs::write(files.join("pg_ident.conf"), "# changed on the way\n").unwrap());
    let found = bench.verify(&[]);
    only(&found, "files", Outcome::Damaged);
    assert!(what(&found, "files").contains("pg_ident.conf"), "{found:#?}");
    assert_eq!(found.badge(), Some(Badge::Corrupt));
}

#[test]
fn damage_in_the_log_that_the_files_need_is_found() {
    let bench = Bench::new();
    bench.table();
    bench.point();
    bench.retaken(|files| {
        let facts: serde_json::Value =
            serde_json::from_slice(&fs::read(files.join("lifeboat-backup.json")).unwrap()).unwrap();
        let start = facts["start"].as_str().unwrap().split_once('/').unwrap().1.to_owned();
        let within = u64::from_str_radix(&start, 16).unwrap() % (16 << 20);
        let mut segments: Vec<PathBuf> =
            fs::read_dir(files.join("pg_wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
        segments.retain(|path| path.is_file() && path.extension().is_none());
        segments.sort();
        flip(&segments[0], within + 20);
    });
    let found = bench.verify(&[]);
    assert_eq!(outcome(&found, "log"), Some(Outcome::Damaged), "{found:#?}");
    assert_eq!(outcome(&found, "files"), Some(Outcome::Passed), "{found:#?}");
    assert_eq!(found.badge(), Some(Badge::Corrupt));
}

#[test]
fn a_chain_with_a_hole_is_suspect_and_its_base_is_still_looked_at() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    for n in 0..5 {
        bench.insert(n);
        durable(&bench, &*stream);
    }
    drop(stream);
    let logs: Vec<String> = bench.vault.storage.list("log/").unwrap().into_iter().map(|object| object.key).collect();
    bench.vault.storage.delete(&logs[logs.len() - 3]).unwrap();
    let found = bench.verify(&[]);
    only(&found, "log", Outcome::Failed);
    assert_eq!(found.badge(), Some(Badge::Suspect));
    // What lies before the hole can be had all the same.
    let point = found.point.clone();
    bench.vault.host.record_verification(&point, Badge::Suspect, &found.depth()).unwrap();
    bench.restore(Target::Point(point.id), &bench.place_for("restored"));
}

#[test]
fn a_storage_that_is_away_proves_nothing_and_a_pack_that_is_gone_does() {
    let bench = Bench::new();
    bench.table();
    bench.point();
    let cancelled = Cancel::default();
    cancelled.cancel();
    let error = bench.try_verify(Target::Newest, &[], &cancelled).unwrap_err();
    assert!(told(error).contains("interrupted"));
    let vault = bench.unlocked();
    bench.vault.storage.set_gone(true);
    let scratch = Scratch::for_a_server(&bench.place_for("scratch")).unwrap();
    let request = VerifyRequest {
        dataset: DATASET.into(),
        target: Target::Newest,
        scratch: scratch.path(),
        queries: Vec::new(),
        database: None,
    };
    let error = PostgresSource::new("", None, "").verify(&vault, &request, &(), &Cancel::default()).unwrap_err();
    assert!(error.may_pass, "{}", told(error));
    bench.vault.storage.repair();
    drop(scratch);
    for object in bench.vault.storage.list("pack/").unwrap() {
        bench.vault.storage.delete(&object.key).unwrap();
    }
    let found = bench.verify(&[]);
    assert_eq!(found.badge(), Some(Badge::Corrupt), "{found:#?}");
}
