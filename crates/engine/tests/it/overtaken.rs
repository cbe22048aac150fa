//! Runs that somebody else has gone on with, or that ended without being able to say so: what an executor does no more,
//! what it does all the same, and what it sees to before it begins another.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::run::{RunState, StepStatus};
use lifeboat_core::runbook::{Action, OnFailure, Purpose, Runbook, Step};
use lifeboat_core::units::Span;
use lifeboat_engine::arbitrate::{Acquire, ArbiterError, Attempt, LockState, LockTimes, LockWatch};
use lifeboat_engine::execute::{Ended, ExecuteError};
use lifeboat_engine::journal::{JournalError, Unplug};
use lifeboat_engine::port::Cancel;
use lifeboat_vault::storage::{Listed, MemoryStorage, Put, Storage, StorageError};

use crate::world::{Bench, Trick, book, failover, meanwhile, start, step};

async fn run(bench: &Bench, name: &str, runbook: Runbook) -> Result<Ended, ExecuteError> {
    bench.executor().start(start(name, runbook), &Cancel::default()).await
}

/// The failover after one that has ended.
fn second() -> Runbook {
    let mut again = Runbook { from_epoch: 1, epoch: 2, ..failover() };
    for step in &mut again.steps {
        if let Action::ClaimEpoch { epoch, .. } = &mut step.action {
            *epoch = 2;
        }
    }
    again
}

/// Another executor of the same state directory takes the run's lock, as if this one had been thought dead.
fn lose_the_lock(bench: &Bench) -> Trick {
    let arbiter = bench.arbiter();
    meanwhile(move || {
        let (claim, _) = arbiter.run_lock("shop").unwrap().unwrap();
        let times = LockTimes::default();
        let want = Acquire { service: "shop", run: &claim.run, host: &claim.host, journal: None, times };
        assert!(matches!(arbiter.acquire(&want, &mut LockWatch::default()), Ok(Attempt::Taken(_))));
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_lock_does_nothing_more_not_even_clean_up() {
    let commit = Step { commit: true, ..step("b", &["a"]) };
    let cleanup = || Step { always: true, ..step("b", &["a"]) };
    for runbook in
        [book(Purpose::Failover, vec![step("a", &[]), commit]), book(Purpose::Drill, vec![step("a", &[]), cleanup()])]
    {
        let bench = Bench::new();
        bench.world.trick("a", [lose_the_lock(&bench)]);
        let error = run(&bench, "r1", runbook).await.unwrap_err();
        assert!(matches!(&error, ExecuteError::LockLost { run, .. } if run == "r1"), "{error}");
        assert!(error.is_refusal());
        assert_eq!((bench.world.calls("a"), bench.world.calls("b")), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_lock_in_the_middle_of_a_step_stops_without_waiting_for_it() {
    let mut bench = Bench::new();
    bench.settings.lock = LockTimes { ttl_seconds: 0.3, skew_seconds: 0.0 };
    bench.world.trick("long", [Trick::HangForGood]);
    bench.world.trick("a", [lose_the_lock(&bench)]);
    let long = Step { timeout: Span::seconds(3600), ..step("long", &[]) };
    let runbook = book(Purpose::Drill, vec![long, step("a", &[])]);
    let stopped = tokio::time::timeout(Duration::from_secs(60), run(&bench, "r1", runbook)).await.unwrap();
    assert!(matches!(stopped, Err(ExecuteError::LockLost { .. })), "{stopped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_cleans_up_whatever_the_epoch_and_a_real_run_does_not() {
    let steps = |commit| {
        vec![
            step("a", &[]),
            Step { commit, ..step("b", &["a"]) },
            Step { always: true, on_failure: OnFailure::Note, ..step("remove", &["b"]) },
        ]
    };
    for (runbook, order) in [
        (book(Purpose::Drill, steps(false)), vec!["a", "remove"]),
        (Runbook { epoch: 5, ..book(Purpose::Failover, steps(true)) }, vec!["a"]),
    ] {
        let bench = Bench::new();
        bench.world.trick("a", [Trick::LoseEpoch(1)]);
        let purpose = runbook.purpose;
        assert_eq!(run(&bench, "r1", runbook).await.unwrap(), Ended::Finished(RunState::Failed), "{purpose:?}");
        assert_eq!(bench.world.order(), order, "{purpose:?}");
        let view = bench.journal().read("r1").unwrap().view().unwrap();
        assert!(view.why.unwrap().contains("epoch 1 of shop was claimed by run other"), "{purpose:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_runs_claim_of_the_same_epoch_is_no_leave_to_act() {
    let bench = Bench::new();
    bench.world.trick("a", [Trick::LoseEpoch(1)]);
    let runbook = book(Purpose::Failover, vec![step("a", &[]), Step { commit: true, ..step("b", &["a"]) }]);
    assert_eq!(runbook.epoch, 1);
    assert_eq!(run(&bench, "r1", runbook).await.unwrap(), Ended::Finished(RunState::Failed));
    assert_eq!(bench.world.order(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn once_it_has_claimed_its_epoch_a_run_acts_under_no_earlier_one() {
    let bench = Bench::new();
    // An arbiter that forgets the claim (somebody put an old copy back) has the epoch before in force.
    let storage = bench.storage.clone();
    bench.world.trick("fence", [meanwhile(move || storage.delete("epochs/shop/1").unwrap())]);
    let mut runbook = failover();
    runbook
        .steps
        .iter_mut()
        .filter(|step| step.id.starts_with("restore"))
        .for_each(|step| step.after = vec!["fence".into()]);
    assert_eq!(run(&bench, "r1", runbook).await.unwrap(), Ended::Finished(RunState::Failed));
    assert_eq!(bench.world.order(), ["claim", "fence"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_not_ended_keeps_others_off_even_when_its_lock_is_gone() {
    let bench = Bench::new();
    bench.world.trick("traffic", [Trick::Fail { may_pass: false, with_effect: false }]);
    assert!(matches!(run(&bench, "r1", failover()).await.unwrap(), Ended::Held(_)));
    for gone in bench.storage.list("").unwrap().into_iter().filter(|object| !object.key.starts_with("epochs/")) {
        bench.storage.delete(&gone.key).unwrap();
    }
    assert!(bench.arbiter().run_lock("shop").unwrap().is_none());
    let refused = run(&bench, "r2", second()).await.unwrap_err();
    assert!(
        matches!(&refused, ExecuteError::Arbiter(ArbiterError::Unfinished { run, .. }) if run == "r1"),
        "{refused}"
    );
    assert!(refused.is_refusal());
    assert!(bench.arbiter().run_lock("shop").unwrap().is_none(), "it took the lock all the same");
}

/// A failover whose executor died right after it recorded the end, which its mirror then never heard of.
async fn ended_unheard(bench: &Bench) {
    let whole = Bench::new();
    run(&whole, "r1", failover()).await.unwrap();
    let last = whole.journal().read("r1").unwrap().head.seq - 1;
    let executor = bench.executor();
    executor.journal.unplug(Unplug::After(last));
    let died = executor.start(start("r1", failover()), &Cancel::default()).await.unwrap_err();
    assert!(matches!(died, ExecuteError::Journal(JournalError::Unplugged)), "{died}");
    let recorded = bench.journal().read("r1").unwrap();
    assert_eq!(recorded.view().unwrap().state, RunState::Completed);
    assert!(bench.arbiter().mirrored_journal("r1").unwrap().len() < recorded.sealed.len());
    let (_, beat) = bench.arbiter().run_lock("shop").unwrap().unwrap();
    assert_eq!(beat.unwrap().state, LockState::Held);
}

fn is_closed(bench: &Bench) {
    assert_eq!(bench.arbiter().mirrored_journal("r1").unwrap(), bench.journal().read("r1").unwrap().sealed);
    let (_, beat) = bench.arbiter().run_lock("shop").unwrap().unwrap();
    assert_eq!(beat.unwrap().state, LockState::Finished);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_run_is_closed_before_another_begins() {
    let bench = Bench::new();
    ended_unheard(&bench).await;
    assert_eq!(run(&bench, "r2", second()).await.unwrap(), Ended::Finished(RunState::Completed));
    is_closed(&bench);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_resumes_a_run_that_has_ended_closes_it_for_all() {
    let bench = Bench::new();
    ended_unheard(&bench).await;
    let there = bench.elsewhere();
    let refused = run(&there, "r2", second()).await.unwrap_err();
    assert!(matches!(&refused, ExecuteError::Arbiter(ArbiterError::Busy { run, .. }) if run == "r1"), "{refused}");
    let over = bench.executor().resume("r1", "ben", &Cancel::default()).await.unwrap_err();
    assert!(matches!(over, ExecuteError::Over { state: RunState::Completed, .. }), "{over}");
    is_closed(&bench);
    assert_eq!(run(&there, "r2", second()).await.unwrap(), Ended::Finished(RunState::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_refused_leaves_the_service_free() {
    let bench = Bench::new();
    let stale = run(&bench, "r1", second()).await.unwrap_err();
    assert!(matches!(stale, ExecuteError::Stale { in_force: 0, compiled: 1, .. }), "{stale}");
    let (_, beat) = bench.arbiter().run_lock("shop").unwrap().unwrap();
    assert_eq!(beat.unwrap().state, LockState::Finished);
    assert_eq!(run(&bench.elsewhere(), "r2", failover()).await.unwrap(), Ended::Finished(RunState::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_another_has_gone_on_with_is_left_to_that_one() {
    let bench = Bench::new();
    // In the mirror, another's entry stands where this one's next was to go.
    let arbiter = bench.arbiter();
    bench.world.trick(
        "fence",
        [meanwhile(move || {
            let mirrored = arbiter.mirrored_journal("r1").unwrap();
            let next = mirrored.len() as u64 + 1;
            assert!((next..next + 8).any(|seq| arbiter.mirror_entry("r1", seq, &mirrored[0]).is_ok()));
        })],
    );
    let error = run(&bench, "r1", failover()).await.unwrap_err();
    assert!(matches!(&error, ExecuteError::LockLost { .. }), "{error}");
    insta::assert_snapshot!(error.to_string().replace(|c: char| c.is_ascii_digit(), "N"), @"run rN is not this process's to continue any more: another executor has gone on with run rN at entry N; this one stops");
    assert_eq!((bench.world.calls("promote"), bench.world.calls("fence/undo")), (0, 0));
    let steps = bench.journal().read("r1").unwrap().entries;
    let state = lifeboat_core::run::State::replay(&failover(), steps.iter().map(|entry| &entry.event)).unwrap();
    // That it was about to begin may stand in the journal here; what another has gone on with it did not do.
    assert!(matches!(state.steps["promote"].status, StepStatus::Waiting | StepStatus::Running));
}

/// A storage that is slow to take a journal's entries, and nothing else.
#[derive(Debug)]
struct Slow(MemoryStorage);

impl Storage for Slow {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        if key.starts_with("journal/") {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.put_if_absent(key, bytes)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.0.put(key, bytes)
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, StorageError> {
        self.0.get(key)
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>, StorageError> {
        self.0.get_range(key, offset, length)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StorageError> {
        self.0.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.0.delete(key)
    }

    fn location(&self) -> String {
        self.0.location()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lets_go_of_a_run_has_mirrored_all_of_it() {
    for held in [false, true] {
        let bench = Bench::on(Arc::new(Slow(MemoryStorage::new())));
        if held {
            bench.world.trick("b", [Trick::Fail { may_pass: false, with_effect: false }]);
        }
        let ended = run(&bench, "r1", book(Purpose::Drill, vec![step("a", &[]), step("b", &["a"])])).await.unwrap();
        assert_eq!(matches!(ended, Ended::Held(_)), held);
        let recorded = bench.journal().read("r1").unwrap();
        assert_eq!(bench.arbiter().mirrored_journal("r1").unwrap(), recorded.sealed, "after {ended:?}");
    }
}
