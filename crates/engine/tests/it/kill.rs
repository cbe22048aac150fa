//! Killed at every entry of the journal, before and after it became durable; resumed; nothing lost, nothing blindly repeated.

use lifeboat_core::run::{Event, RunState, State};
use lifeboat_core::runbook::{OnFailure, Purpose, Step};
use lifeboat_engine::execute::{Ended, ExecuteError};
use lifeboat_engine::journal::{JournalError, Unplug};
use lifeboat_engine::port::Cancel;
use proptest::prelude::*;

use crate::world::{Bench, FAILOVER_STEPS, Trick, book, failover, start, step};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Runs until killed or ended, then resumes once with a journal that works. Nothing if the run never began.
fn kill_and_resume(bench: &Bench, runbook: lifeboat_core::runbook::Runbook, when: Unplug) -> Option<Ended> {
    let first = bench.executor();
    first.journal.unplug(when);
    let ended = runtime().block_on(first.start(start("r1", runbook), &Cancel::default()));
    drop(first);
    match ended {
        Ok(ended) => return Some(ended),
        Err(ExecuteError::Journal(JournalError::Unplugged)) => {}
        Err(other) => panic!("{other:?}"),
    }
    match runtime().block_on(bench.executor().resume("r1", "ben", &Cancel::default())) {
        Ok(ended) => Some(ended),
        Err(ExecuteError::Journal(JournalError::NoRun { .. })) => None,
        Err(ExecuteError::Over { state, .. }) => Some(Ended::Finished(state)),
        Err(other) => panic!("{when:?}: {other:?}"),
    }
}

fn check_journal(bench: &Bench) {
    let recorded = bench.journal().read("r1").unwrap();
    let Event::Started { runbook, .. } = &recorded.entries[0].event else { panic!("no start") };
    let events = recorded.entries.iter().map(|entry| &entry.event);
    let state = State::replay(runbook, events).unwrap();
    let mirrored = bench.arbiter().mirrored_journal("r1").unwrap();
    assert!(mirrored == recorded.sealed, "the mirror has {} of {} entries", mirrored.len(), recorded.sealed.len());
    assert_eq!(state.run_state(runbook), recorded.view().unwrap().state);
}

#[test]
fn killed_at_every_entry_and_resumed_every_action_happens_exactly_once() {
    let whole = Bench::new();
    runtime().block_on(whole.executor().start(start("r1", failover()), &Cancel::default())).unwrap();
    let appends = whole.journal().read("r1").unwrap().head.seq;
    assert!(appends > 16, "{appends}");
    let mut observed = 0;
    for n in 0..appends {
        for when in [Unplug::Before(n), Unplug::After(n)] {
            let bench = Bench::new();
            let ended = kill_and_resume(&bench, failover(), when);
            if ended.is_none() {
                assert_eq!(when, Unplug::Before(0), "a run was lost");
                assert_eq!(bench.world.calls("claim"), 0);
                continue;
            }
            assert_eq!(ended, Some(Ended::Finished(RunState::Completed)), "{when:?}");
            for step in FAILOVER_STEPS {
                assert_eq!(bench.world.effects(step), 1, "{step} when killed at {when:?}");
                observed += bench.world.observations(step);
            }
            check_journal(&bench);
        }
    }
    assert!(observed > 0, "no interruption was ever observed, so this test tests nothing");
}

#[test]
fn killed_while_taking_back_and_resumed_everything_is_taken_back_exactly_once() {
    let trick = || [Trick::Fail { may_pass: false, with_effect: true }];
    let whole = Bench::new();
    whole.world.trick("restore-b", trick());
    let ended = runtime().block_on(whole.executor().start(start("r1", failover()), &Cancel::default())).unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Failed));
    let appends = whole.journal().read("r1").unwrap().head.seq;
    for n in 1..appends {
        for when in [Unplug::Before(n), Unplug::After(n)] {
            let bench = Bench::new();
            bench.world.trick("restore-b", trick());
            match kill_and_resume(&bench, failover(), when) {
                Some(Ended::Finished(RunState::Failed)) => {
                    for step in ["fence", "restore-a", "restore-b"] {
                        let (did, undid) = (bench.world.effects(step), bench.world.effects(&format!("{step}/undo")));
                        let acted = bench.world.calls(step) > 0;
                        assert!(!acted && undid == 0 || did <= 1 && undid == 1, "{step}: {did} {undid} at {when:?}");
                    }
                    assert_eq!(bench.world.effects("promote"), 0);
                }
                // Killed before the failure was recorded: observation finds that it took effect after all.
                Some(Ended::Finished(RunState::Completed)) => {
                    assert!(FAILOVER_STEPS.iter().all(|step| bench.world.effects(step) == 1));
                }
                other => panic!("{when:?}: {other:?}"),
            }
            check_journal(&bench);
        }
    }
}

#[test]
fn what_cannot_be_observed_is_asked_and_not_repeated() {
    let bench = Bench::new();
    bench.world.cannot_observe("promote");
    let before = {
        let whole = Bench::new();
        runtime().block_on(whole.executor().start(start("r1", failover()), &Cancel::default())).unwrap();
        let entries = whole.journal().read("r1").unwrap().entries;
        let done = |event: &Event| matches!(event, Event::Done { step, .. } if step == "promote");
        entries.iter().position(|entry| done(&entry.event)).unwrap() as u64
    };
    let ended = kill_and_resume(&bench, failover(), Unplug::Before(before)).unwrap();
    let Ended::Held(needs) = ended else { panic!("{ended:?}") };
    assert_eq!(needs[0].0, "promote");
    assert_eq!((bench.world.calls("promote"), bench.world.observations("promote")), (1, 1));
    assert_eq!(bench.world.calls("start"), 0);
}

fn any_book() -> impl proptest::strategy::Strategy<Value = lifeboat_core::runbook::Runbook> {
    let one = (any::<u8>(), 0u32..2, 0u8..3, any::<bool>(), any::<bool>());
    prop::collection::vec(one, 1..6).prop_map(|seeds| {
        let mut steps = Vec::new();
        for (index, (after, retries, on_failure, undoable, mirrored)) in seeds.into_iter().enumerate() {
            let earlier = (0..index).filter(|other| after >> other & 1 == 1).map(|i| format!("s{i}")).collect();
            let undo = lifeboat_core::runbook::Action::Unfreeze { write_domain: "shop".into(), site: "north".into() };
            steps.push(Step {
                after: earlier,
                retries,
                on_failure: [OnFailure::Unwind, OnFailure::Hold, OnFailure::Note][usize::from(on_failure)],
                undo: Some(undo).filter(|_| undoable),
                mirrored,
                ..step(&format!("s{index}"), &[])
            });
        }
        book(Purpose::Drill, steps)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Random run-books, random failures, two random kills: no effect twice, no journal that does not replay.
    #[test]
    fn random_runs_survive_random_kills(
        runbook in any_book(),
        failures in prop::collection::vec((0usize..6, any::<bool>()), 0..4),
        kills in prop::collection::vec((0u64..12, any::<bool>()), 2),
    ) {
        let bench = Bench::new();
        for (index, may_pass) in failures {
            bench.world.trick(&format!("s{index}"), [Trick::Fail { may_pass, with_effect: false }]);
        }
        let mut known = false;
        let mut ended = None;
        for kill in kills.into_iter().map(Some).chain([None]) {
            let executor = bench.executor();
            if let Some((n, after)) = kill {
                executor.journal.unplug(if after { Unplug::After(n) } else { Unplug::Before(n) });
            }
            let cancel = Cancel::default();
            let result = if known {
                runtime().block_on(executor.resume("r1", "ben", &cancel))
            } else {
                runtime().block_on(executor.start(start("r1", runbook.clone()), &cancel))
            };
            known = bench.journal().read("r1").is_ok();
            match result {
                Ok(end) => { ended = Some(end); }
                Err(ExecuteError::Over { state, .. }) => { ended = Some(Ended::Finished(state)); }
                Err(ExecuteError::Journal(JournalError::Unplugged)) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
            if matches!(ended, Some(Ended::Finished(_))) { break; }
        }
        for step in &runbook.steps {
            prop_assert!(bench.world.effects(&step.id) <= 1);
            let undone = bench.world.effects(&format!("{}/undo", step.id));
            prop_assert!(undone <= 1);
        }
        check_journal(&bench);
        if ended == Some(Ended::Finished(RunState::Completed)) {
            prop_assert!(runbook.steps.iter().all(|step| bench.world.effects(&step.id) == 1));
        }
    }
}
