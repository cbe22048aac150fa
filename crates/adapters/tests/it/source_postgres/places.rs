//! Restores to a place in the log: by its position, or by the name of a restore point. Exactly that state, or an error.

use lifeboat_core::runbook::Target;

use super::streams::{durable, numbers};
use super::{Bench, told};
use crate::pg_cluster::Cluster;

impl Bench {
    /// Where the log is.
    fn lsn(&self) -> String {
        self.cluster.psql("select pg_current_wal_insert_lsn()")
    }

    fn mark(&self, name: &str) -> String {
        self.cluster.psql(&format!("select pg_create_restore_point('{name}')"))
    }

    /// What is in the table after a restore to there.
    fn rows_at(&self, target: Target) -> String {
        let to = self.place_for("restored");
        self.restore(target, &to);
        numbers(&Cluster::adopted(&to))
    }

    fn refusal(&self, target: Target) -> String {
        let to = self.place_for("refused");
        let why = told(self.try_restore(target, &to, false).unwrap_err());
        assert!(!to.exists(), "{why}");
        why
    }
}

fn at(lsn: &str) -> Target {
    Target::Position(lsn.to_owned())
}

/// A place so many bytes before or after.
fn moved(lsn: &str, bytes: i64) -> String {
    let (high, low) = lsn.split_once('/').unwrap();
    let number = i64::from_str_radix(high, 16).unwrap() << 32 | i64::from_str_radix(low, 16).unwrap();
    let number = number + bytes;
    format!("{:X}/{:X}", number >> 32, number & 0xffff_ffff)
}

#[test]
fn a_position_brings_back_the_rows_up_to_it_and_none_after() {
    let bench = Bench::new();
    bench.table();
    let before_all = bench.lsn();
    let stream = bench.stream();
    durable(&bench, &*stream);
    bench.insert(1);
    let first = bench.lsn();
    bench.insert(2);
    let second = bench.lsn();
    bench.cluster.psql("select pg_switch_wal()");
    bench.insert(3);
    durable(&bench, &*stream);
    // A second base: places before it are reached from the first.
    stream.take_point("main", &lifeboat_engine::port::Cancel::default()).map_err(told).unwrap();
    bench.insert(4);
    let fourth = bench.lsn();
    durable(&bench, &*stream);
    drop(stream);
    // The last record of the first commit reaches from there; within it, it is the record that reaches the place.
    for (place, expected) in [
        (first.clone(), "1"),
        (moved(&first, -1), "1"),
        (moved(&first, 1), "1"),
        (second, "1 2"),
        (fourth.clone(), "1 2 3 4"),
    ] {
        assert_eq!(bench.rows_at(at(&place)), expected, "{place}");
    }
    for place in [moved(&fourth, 1 << 30), before_all] {
        let why = bench.refusal(at(&place));
        assert!(why.contains(&format!("{place} lies in no log")) && why.contains(" to 0/"), "{why}");
    }
    let why = bench.refusal(at("here"));
    assert!(why.contains("`here` is no place"), "{why}");
}

#[test]
fn a_named_restore_point_is_found_wherever_it_is_and_an_unknown_name_is_loud() {
    let bench = Bench::new();
    bench.table();
    let stream = bench.stream();
    durable(&bench, &*stream);
    bench.insert(1);
    bench.mark("before the upgrade");
    bench.insert(2);
    let twice = [bench.mark("twice"), bench.mark("twice")];
    durable(&bench, &*stream);
    stream.take_point("main", &lifeboat_engine::port::Cancel::default()).map_err(told).unwrap();
    bench.insert(3);
    // Nothing follows it in the log.
    bench.mark("last");
    durable(&bench, &*stream);
    drop(stream);
    let named = |name: &str| Target::Named(name.to_owned());
    assert_eq!(bench.rows_at(named("before the upgrade")), "1");
    assert_eq!(bench.rows_at(named("last")), "1 2 3");
    let why = bench.refusal(named("before"));
    assert!(why.contains("no restore point `before` is in the log") && why.contains("--position"), "{why}");
    let why = bench.refusal(named("twice"));
    assert!(why.contains(&twice.join(", ")), "{why}");
    assert_eq!(bench.rows_at(at(&twice[0])), "1 2");
}

#[test]
fn where_there_are_recovery_points_alone_no_place_can_be_had() {
    let bench = Bench::new();
    bench.table();
    bench.point();
    for target in [at("0/3000000"), Target::Named("x".to_owned())] {
        let why = bench.refusal(target);
        assert!(why.contains("has no log in this vault") && why.contains("--point"), "{why}");
    }
}
