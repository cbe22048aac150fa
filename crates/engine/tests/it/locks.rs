//! The run lock, looked at from where it could be bypassed: a shorter journal, another run, two at the same moment, silence.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use lifeboat_core::run::Event;
use lifeboat_engine::arbitrate::{
    Acquire, Arbiter, ArbiterError, Attempt, HeldLock, LockState, LockTimes, LockWatch, Trusted, Trustee,
};
use lifeboat_engine::journal::Head;
use lifeboat_engine::port::Clock;
use lifeboat_vault::Role;

use crate::world::{Bench, TestClock};

const TIMES: LockTimes = LockTimes { ttl_seconds: 10.0, skew_seconds: 1.0 };

fn want<'a>(run: &'a str, host: &'a str) -> Acquire<'a> {
    Acquire { service: "shop", run, host, journal: None, times: TIMES }
}

fn taken(attempt: Result<Attempt, ArbiterError>) -> HeldLock {
    match attempt.unwrap() {
        Attempt::Taken(lock) => lock,
        Attempt::Watch { seconds } => panic!("to be watched for {seconds} s"),
    }
}

fn take(arbiter: &Arbiter, run: &str, host: &str) -> HeldLock {
    taken(arbiter.acquire(&want(run, host), &mut LockWatch::default()))
}

fn advance(clock: &TestClock, seconds: i64) {
    clock.monotonic_offset_ms.fetch_add(seconds * 1000, Ordering::SeqCst);
}

fn last_beat(arbiter: &Arbiter) -> (u64, u64) {
    let (claim, beat) = arbiter.run_lock("shop").unwrap().unwrap();
    (claim.number, beat.map_or(0, |beat| beat.beat))
}

/// Mirrors so many entries of r1; where each ends.
fn mirrored(bench: &Bench, entries: u64) -> Vec<Head> {
    let (journal, arbiter) = (bench.journal(), bench.arbiter());
    let mut heads = vec![Head::start()];
    for seq in 1..=entries {
        let note = Event::Note { text: format!("entry {seq}") };
        let (_, sealed) = journal.append("r1", &heads[seq as usize - 1], &note).unwrap();
        arbiter.mirror_entry("r1", seq, &sealed).unwrap();
        heads.push(Head { seq, hash: sealed.hash });
    }
    heads
}

#[test]
fn a_run_is_taken_over_only_by_who_has_its_whole_journal() {
    let bench = Bench::new();
    let arbiter = bench.arbiter();
    let heads = mirrored(&bench, 3);
    arbiter.release_lock(&take(&arbiter, "r1", "here"), LockState::Paused).unwrap();
    let with = |head: &Head| {
        arbiter.acquire(&Acquire { journal: Some(head), ..want("r1", "there") }, &mut LockWatch::default())
    };
    for behind in &heads[..3] {
        let refused = with(behind).unwrap_err();
        assert!(matches!(&refused, ArbiterError::JournalBehind { mirrored: 3, own, .. } if *own == behind.seq));
        assert!(refused.is_refusal(), "{refused}");
    }
    insta::assert_snapshot!(with(&heads[1]).unwrap_err(), @"the journal of run r1 here ends at entry 1, its mirror has 3; fetch the mirror's before going on");
    // As long, and another one.
    let other = Head { seq: 3, hash: heads[2].hash.clone() };
    assert!(matches!(with(&other), Err(ArbiterError::RunTaken { seq: 3, .. })));
    assert_eq!(last_beat(&arbiter).0, 1, "a refused one left a claim");
    let lock = taken(with(&heads[3]));
    arbiter.release_lock(&lock, LockState::Paused).unwrap();
    // Entries that the mirror has not got yet are no hindrance: who has them is ahead.
    taken(with(&Head { seq: 4, hash: "of an entry that was not mirrored".into() }));
}

#[test]
fn another_runs_lock_is_not_waited_for_nor_bypassed_once_that_run_has_acted() {
    let bench = Bench::new();
    let arbiter = bench.arbiter();
    mirrored(&bench, 1);
    let lock = take(&arbiter, "r1", "here");
    let mut watch = LockWatch::default();
    let mut refused = |after: i64| {
        advance(&bench.clock, after);
        arbiter.acquire(&want("r2", "there"), &mut watch).unwrap_err()
    };
    let busy = |error: &ArbiterError| matches!(error, ArbiterError::Busy { run, .. } if run == "r1");
    assert!(busy(&refused(0)), "it was waited for");
    assert!(busy(&refused(100)), "it lapsed, and was passed by");
    assert!(busy(&refused(100)));
    // Whose executor is gone, on this machine or by its own word, is to be resumed or cancelled first.
    for state in [LockState::Held, LockState::Paused] {
        arbiter.release_lock(&lock, state).unwrap();
        let error = arbiter.acquire(&want("r2", "here"), &mut LockWatch::default()).unwrap_err();
        assert!(matches!(&error, ArbiterError::Unfinished { run, .. } if run == "r1"), "{error}");
    }
    let error = arbiter.acquire(&want("r2", "there"), &mut LockWatch::default()).unwrap_err();
    assert!(matches!(&error, ArbiterError::Unfinished { run, .. } if run == "r1"), "{error}");
    arbiter.release_lock(&lock, LockState::Finished).unwrap();
    take(&arbiter, "r2", "there");
}

/// A clock that, the next time somebody asks it for the time of day, first lets something else happen.
struct Meanwhile {
    clock: Arc<TestClock>,
    act: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Clock for Meanwhile {
    fn now(&self) -> jiff::Timestamp {
        if let Some(act) = self.act.lock().unwrap().take() {
            act();
        }
        self.clock.now()
    }

    fn monotonic_seconds(&self) -> f64 {
        self.clock.monotonic_seconds()
    }
}

#[test]
fn of_two_that_take_a_lock_at_the_same_moment_one_gets_it() {
    let bench = Bench::new();
    let quicker = bench.arbiter();
    let winner = Arc::new(Mutex::new(None));
    let (with, won) = (quicker.clone(), winner.clone());
    // Between the look at the lock and the claim of its next number.
    let act = move || *won.lock().unwrap() = Some(take(&with, "r1", "here"));
    let clock = Arc::new(Meanwhile { clock: bench.clock.clone(), act: Mutex::new(Some(Box::new(act))) });
    let trusted = Trusted::from([(bench.key.public(), Trustee::new("controller", &[Role::Controller]))]);
    let slower = Arbiter::new(bench.storage.clone(), bench.key.clone(), trusted, clock);
    let lost = slower.acquire(&want("r2", "there"), &mut LockWatch::default()).unwrap_err();
    assert!(matches!(&lost, ArbiterError::Busy { run, .. } if run == "r1"), "{lost}");
    let winner = winner.lock().unwrap().take().unwrap();
    quicker.check_lock(&winner).unwrap();
    assert_eq!(last_beat(&quicker), (1, 1), "who lost the lock gave a sign of life for it");
}

#[test]
fn a_lock_that_lapsed_is_renewed_before_anything_is_done_under_it() {
    let bench = Bench::new();
    let arbiter = bench.arbiter();
    let lock = take(&arbiter, "r1", "here");
    arbiter.check_lock(&lock).unwrap();
    advance(&bench.clock, 9);
    arbiter.check_lock(&lock).unwrap();
    assert_eq!(last_beat(&arbiter), (1, 1), "renewed although it is good");
    // Somebody has watched it since its last beat; it comes back just in time, and must be seen to live.
    let mut watch = LockWatch::default();
    assert!(matches!(arbiter.acquire(&want("r1", "there"), &mut watch), Ok(Attempt::Watch { .. })));
    advance(&bench.clock, 2);
    arbiter.check_lock(&lock).unwrap();
    assert_eq!(last_beat(&arbiter), (1, 2));
    advance(&bench.clock, 20);
    assert!(matches!(arbiter.acquire(&want("r1", "there"), &mut watch), Err(ArbiterError::Busy { .. })));
    arbiter.check_lock(&lock).unwrap();
}

#[test]
fn who_lost_a_lock_says_nothing_more_for_it() {
    let bench = Bench::new();
    let arbiter = bench.arbiter();
    let first = take(&arbiter, "r1", "here");
    let second = take(&arbiter, "r1", "here");
    let lost = |said: Result<(), ArbiterError>| matches!(said, Err(ArbiterError::LockLost { .. }));
    assert!(lost(arbiter.check_lock(&first)) && lost(arbiter.renew_lock(&first)));
    assert!(lost(arbiter.release_lock(&first, LockState::Finished)));
    arbiter.check_lock(&second).unwrap();
    assert_eq!(last_beat(&arbiter), (2, 1));
}
