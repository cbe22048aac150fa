//! The executor against a world that misbehaves: each step failed, repeated, hung; persons, pauses, lost locks and epochs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat_core::plan::Rerun;
use lifeboat_core::run::{Event, Need, RunState, StepStatus, word};
use lifeboat_core::runbook::{Action, OnFailure, Purpose, Runbook, Step};
use lifeboat_core::units::Span;
use lifeboat_engine::arbitrate::{ArbiterError, LockTimes};
use lifeboat_engine::execute::{Decision, Ended, ExecuteError, Refused, sign_word};
use lifeboat_engine::journal::{JournalError, Unplug};
use lifeboat_engine::port::{Cancel, Clock};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Operation};

use crate::world::{Bench, FAILOVER_STEPS, Trick, book, failover, start, step};

fn drill(steps: Vec<Step>) -> Runbook {
    book(Purpose::Drill, steps)
}

async fn run(bench: &Bench, runbook: Runbook) -> Ended {
    bench.executor().start(start("r1", runbook), &Cancel::default()).await.unwrap()
}

async fn resume(bench: &Bench) -> Ended {
    bench.executor().resume("r1", "ben", &Cancel::default()).await.unwrap()
}

async fn decide(bench: &Bench, decision: Decision) -> Result<(), ExecuteError> {
    bench.executor().decide("r1", decision).await
}

fn view(bench: &Bench) -> lifeboat_core::run::RunView {
    bench.journal().read("r1").unwrap().view().unwrap()
}

fn fails(may_pass: bool) -> Trick {
    Trick::Fail { may_pass, with_effect: false }
}

async fn until(what: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_is_carried_out_in_order_and_told_as_it_happens() {
    let bench = Bench::new();
    let executor = bench.executor();
    let mut progress = executor.progress();
    let ended = executor.start(start("r1", failover()), &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Completed));
    let order = bench.world.order();
    let place = |step: &str| order.iter().position(|other| other == step).unwrap();
    for (step, after) in failover().steps.iter().flat_map(|step| step.after.iter().map(move |after| (&step.id, after)))
    {
        assert!(place(after) < place(step), "{after} before {step} in {order:?}");
    }
    let told: Vec<_> = std::iter::from_fn(|| progress.try_recv().ok()).collect();
    let entries = bench.journal().read("r1").unwrap().entries;
    assert_eq!(told.iter().map(|progress| progress.entry.clone()).collect::<Vec<_>>(), entries);
    let view = view(&bench);
    assert!(view.committed && view.state == RunState::Completed && view.steps.iter().all(|step| step.status == "done"));
    assert_eq!(view.step("fence").unwrap().outcome.as_deref(), Some("proven"));
    assert_eq!(bench.arbiter().mirrored_journal("r1").unwrap().len(), entries.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_steps_run_at_the_same_time() {
    let bench = Bench::new();
    bench.world.trick("a", [Trick::Meet("b")]);
    bench.world.trick("b", [Trick::Meet("a")]);
    assert_eq!(run(&bench, drill(vec![step("a", &[]), step("b", &[])])).await, Ended::Finished(RunState::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_failed_in_turn_ends_as_its_run_book_says() {
    for (index, id) in FAILOVER_STEPS.into_iter().enumerate() {
        for with_effect in [false, true] {
            if id == "claim" && with_effect {
                continue;
            }
            let bench = Bench::new();
            bench.world.trick(id, [Trick::Fail { may_pass: false, with_effect }]);
            let ended = run(&bench, failover()).await;
            let view = view(&bench);
            match failover().step(id).unwrap().on_failure {
                OnFailure::Note => assert_eq!(ended, Ended::Finished(RunState::CompletedWithExceptions), "{id}"),
                OnFailure::Hold => {
                    let Ended::Held(needs) = ended else { panic!("{id}: {ended:?}") };
                    let error = format!("{id} broke");
                    assert_eq!(needs, [(id.to_owned(), Need::Decision { error })]);
                    assert_eq!(view.committed, index >= 4, "{id}");
                    decide(&bench, Decision::Retry { step: id.into(), by: "anna".into() }).await.unwrap();
                    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Completed), "{id}");
                }
                OnFailure::Unwind => {
                    assert_eq!(ended, Ended::Finished(RunState::Failed), "{id}");
                    assert!(!view.committed && view.why.unwrap().contains(&format!("step {id} failed: {id} broke")));
                    for step in ["fence", "restore-a", "restore-b"] {
                        let acted = u32::from(bench.world.calls(step) > 0);
                        assert_eq!(bench.world.effects(&format!("{step}/undo")), acted, "{id}: {step}");
                    }
                    assert_eq!(bench.world.effects("promote"), 0);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_repeated_gives_the_same_outcome() {
    let bench = Bench::new();
    bench.world.repeat_each();
    assert_eq!(run(&bench, failover()).await, Ended::Finished(RunState::Completed));
    assert!(FAILOVER_STEPS.iter().all(|step| bench.world.effects(step) == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    let bench = Bench::new();
    bench.world.trick("start", [fails(true)]);
    assert_eq!(run(&bench, failover()).await, Ended::Finished(RunState::Completed));
    assert_eq!((bench.world.calls("start"), view(&bench).step("start").unwrap().attempts), (2, 2));

    let bench = Bench::new();
    bench.world.trick("start", [fails(true), fails(true)]);
    assert!(matches!(run(&bench, failover()).await, Ended::Held(_)));
    assert_eq!(bench.world.calls("start"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_hangs_is_told_to_stop_and_one_that_does_not_is_not_repeated() {
    let short = |timeout, retries| Step { timeout: Span(timeout), retries, ..step("a", &[]) };
    let bench = Bench::new();
    bench.world.trick("a", [Trick::Hang]);
    // The second try does not hang, but has no longer than the first.
    let runbook = drill(vec![short(Duration::from_secs(5), 1)]);
    assert_eq!(run(&bench, runbook).await, Ended::Finished(RunState::Completed));
    assert_eq!(bench.world.calls("a"), 2);

    let mut bench = Bench::new();
    bench.settings.grace = Duration::from_millis(300);
    bench.world.trick("a", [Trick::HangForGood]);
    let runbook = drill(vec![short(Duration::from_millis(60), 5)]);
    let Ended::Held(needs) = run(&bench, runbook).await else { panic!() };
    let Need::Decision { error } = &needs[0].1 else { panic!() };
    insta::assert_snapshot!(error, @"not done within 60ms, and it does not stop");
    assert_eq!(bench.world.calls("a"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_a_steps_own_code_is_a_failure_of_the_step_and_not_of_the_run() {
    let bench = Bench::new();
    bench.world.trick("a", [Trick::Panic]);
    let Ended::Held(needs) = run(&bench, drill(vec![step("a", &[])])).await else { panic!() };
    assert!(matches!(&needs[0].1, Need::Decision { error } if error.contains("a fault in lifeboat")), "{needs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_branch_that_was_found_is_taken() {
    let only = |outcome: &str| {
        vec![lifeboat_core::runbook::Condition { step: "inspect".into(), outcomes: vec![outcome.into()] }]
    };
    let bench = Bench::new();
    bench.world.trick("inspect", [Trick::Outcome("unusable")]);
    let steps = vec![
        step("inspect", &[]),
        Step { when: only("usable"), ..step("promote", &["inspect"]) },
        Step { when: only("unusable"), ..step("restore", &["inspect"]) },
        step("start", &["promote", "restore"]),
    ];
    assert_eq!(run(&bench, drill(steps)).await, Ended::Finished(RunState::Completed));
    assert_eq!(bench.world.order(), ["inspect", "restore", "start"]);
    assert_eq!(view(&bench).step("promote").unwrap().status, "not-taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_up_runs_whatever_fails_before_it() {
    for failing in ["isolate", "restore", "start"] {
        let bench = Bench::new();
        bench.world.trick(failing, [fails(false)]);
        let unwind = |id: &str, after: &[&str]| Step { on_failure: OnFailure::Unwind, ..step(id, after) };
        let steps = vec![
            unwind("isolate", &[]),
            unwind("restore", &["isolate"]),
            unwind("start", &["restore"]),
            Step { always: true, ..step("remove", &["start"]) },
            Step { always: true, ..step("verify", &["remove"]) },
        ];
        assert_eq!(run(&bench, drill(steps)).await, Ended::Finished(RunState::Failed));
        assert_eq!((bench.world.effects("remove"), bench.world.effects("verify")), (1, 1), "{failing}");
    }
}

fn approval(bench: &Bench, by: &str, key: &lifeboat_vault::SigningKey, run: &str) -> Decision {
    let at = "2026-11-21T12:00:00Z";
    let hash = view(bench).runbook_hash;
    let signature = sign_word(key, &word::approval(run, "ask", &hash, by, at));
    Decision::Approve { step: "ask".into(), by: by.into(), at: at.into(), signature }
}

#[tokio::test(flavor = "multi_thread")]
async fn approval_needs_another_person_who_may_with_their_own_signature() {
    let bench = Bench::new();
    let ask = Step { action: Action::Approve { reason: "up to 5m of orders may be lost".into() }, ..step("ask", &[]) };
    let ended = run(&bench, drill(vec![ask, step("a", &["ask"])])).await;
    assert_eq!(
        ended,
        Ended::Held(vec![("ask".into(), Need::Approval { reason: "up to 5m of orders may be lost".into() })])
    );
    assert_eq!(view(&bench).state, RunState::WaitingApproval);
    let refused = async |decision| {
        let error = decide(&bench, decision).await.unwrap_err();
        assert!(error.is_refusal(), "{error}");
        error.to_string()
    };
    insta::assert_snapshot!(refused(approval(&bench, "ben", &bench.anna, "r1")).await, @"run r1 cannot take this: ben started the run and so cannot approve it; another person must");
    insta::assert_snapshot!(refused(approval(&bench, "carl", &bench.anna, "r1")).await, @"carl may not approve; in the plan, `approves = true` says who may");
    insta::assert_snapshot!(refused(approval(&bench, "dora", &bench.anna, "r1")).await, @"the plan has no key for dora; add `key` under [person.dora] and sign with it");
    insta::assert_snapshot!(refused(approval(&bench, "eve", &bench.anna, "r1")).await, @"the plan names no person eve; it names anna, ben, carl, dora");
    insta::assert_snapshot!(refused(approval(&bench, "anna", &bench.key, "r1")).await, @"the signature is not anna's for this run, this step and these words");
    refused(approval(&bench, "anna", &bench.anna, "r2")).await;
    assert_eq!(
        resume(&bench).await,
        Ended::Held(vec![("ask".into(), Need::Approval { reason: "up to 5m of orders may be lost".into() })])
    );
    decide(&bench, approval(&bench, "anna", &bench.anna, "r1")).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_cannot_be_proven_holds_until_it_is_attested() {
    let bench = Bench::new();
    let statement = "north is powered off";
    let needs = Need::Attestation { statement: statement.into(), why: "north does not answer".into() };
    bench.world.trick("fence", [Trick::Needs(needs.clone())]);
    assert_eq!(run(&bench, failover()).await, Ended::Held(vec![("fence".into(), needs)]));
    assert_eq!(bench.world.effects("promote"), 0);
    // Restores did not have to wait for the fence.
    assert_eq!((bench.world.effects("restore-a"), bench.world.effects("restore-b")), (1, 1));
    let attest = |said: &str, signed: &str| {
        let at = "2026-11-21T12:00:00Z";
        let signature = sign_word(&bench.anna, &word::attestation("r1", "fence", signed, "anna", at));
        Decision::Attest { step: "fence".into(), by: "anna".into(), statement: said.into(), at: at.into(), signature }
    };
    let wrong = decide(&bench, attest("it should be fine", "it should be fine")).await.unwrap_err();
    assert!(matches!(wrong, ExecuteError::Refused(Refused::Illegal { .. })), "{wrong}");
    let forged = decide(&bench, attest(statement, "something else")).await.unwrap_err();
    assert!(matches!(forged, ExecuteError::Refused(Refused::BadSignature { .. })), "{forged}");
    let skip = Decision::Skip { step: "fence".into(), by: "anna".into(), reason: "hurry".into() };
    assert!(decide(&bench, skip).await.unwrap_err().is_refusal());
    decide(&bench, attest(statement, statement)).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Completed));
    assert_eq!(view(&bench).step("fence").unwrap().outcome.as_deref(), Some("attested"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_ends_as_completed_with_exceptions_and_a_cancel_takes_back() {
    let bench = Bench::new();
    bench.world.trick("traffic", [fails(false)]);
    assert!(matches!(run(&bench, failover()).await, Ended::Held(_)));
    let skip = Decision::Skip { step: "traffic".into(), by: "anna".into(), reason: "set by hand".into() };
    decide(&bench, skip).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::CompletedWithExceptions));

    let bench = Bench::new();
    bench.world.trick("fence", [fails(false)]);
    assert!(matches!(run(&bench, failover()).await, Ended::Held(_)));
    let cancel = || Decision::Cancel { by: "anna".into(), reason: "north is back".into() };
    decide(&bench, cancel()).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Cancelled));
    assert_eq!((bench.world.effects("fence/undo"), bench.world.effects("promote")), (1, 0));
    let over = decide(&bench, cancel()).await.unwrap_err();
    assert!(matches!(over, ExecuteError::Over { state: RunState::Cancelled, .. }));
    // The service is free again.
    let mut again = failover();
    (again.from_epoch, again.epoch) = (1, 2);
    if let Action::ClaimEpoch { epoch, .. } = &mut again.steps[0].action {
        *epoch = 2;
    }
    let ended = bench.executor().start(start("r2", again), &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_fails_holds_and_can_be_retried_or_skipped() {
    for skip in [false, true] {
        let bench = Bench::new();
        bench.world.trick("restore-b", [fails(false)]);
        bench.world.trick("fence", [Trick::Meet("restore-b")]);
        bench.world.trick("fence/undo", [fails(false)]);
        let Ended::Held(needs) = run(&bench, failover()).await else { panic!() };
        assert_eq!(needs, [("fence".into(), Need::Decision { error: "fence/undo broke".into() })]);
        let (step, by) = ("fence".to_owned(), "anna".to_owned());
        let decision = match skip {
            true => Decision::Skip { step, by, reason: "north is scrapped".into() },
            false => Decision::Retry { step, by },
        };
        decide(&bench, decision).await.unwrap();
        assert_eq!(resume(&bench).await, Ended::Finished(RunState::Failed));
        assert_eq!(bench.world.effects("fence/undo"), u32::from(!skip));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_word_reaches_a_run_that_is_being_worked_on() {
    let mut bench = Bench::new();
    bench.settings.stay_when_held = true;
    bench.world.trick("traffic", [fails(false)]);
    let executor = Arc::new(bench.executor());
    let working = executor.clone();
    let task = tokio::spawn(async move { working.start(start("r1", failover()), &Cancel::default()).await });
    until(|| bench.journal().read("r1").is_ok_and(|recorded| recorded.view().unwrap().state == RunState::Held)).await;
    decide(&bench, Decision::Retry { step: "traffic".into(), by: "anna".into() }).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap().unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_is_paused_and_resumed_without_repeating() {
    let bench = Bench::new();
    bench.world.trick("restore-a", [Trick::Hang]);
    let cancel = Cancel::default();
    let (executor, interrupt) = (bench.executor(), cancel.clone());
    let task = tokio::spawn(async move { executor.start(start("r1", failover()), &interrupt).await });
    until(|| bench.world.calls("restore-a") > 0 && bench.world.effects("fence") > 0).await;
    cancel.cancel();
    assert_eq!(task.await.unwrap().unwrap(), Ended::Interrupted);
    assert_eq!(view(&bench).state, RunState::Paused);
    // Nobody else may work on the service in between.
    let second = bench.executor().start(start("r2", failover()), &Cancel::default()).await.unwrap_err();
    assert!(matches!(&second, ExecuteError::Arbiter(ArbiterError::Unfinished { run, .. }) if run == "r1"), "{second}");
    let elsewhere = bench.elsewhere();
    let second = elsewhere.executor().start(start("r2", failover()), &Cancel::default()).await.unwrap_err();
    insta::assert_snapshot!(second, @"run r1 on shop has not ended; `lifeboat run resume r1` goes on with it, `lifeboat run cancel r1` ends it");
    assert!(second.is_refusal());
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Completed));
    assert!(FAILOVER_STEPS.iter().all(|step| bench.world.effects(step) == 1));
    assert_eq!(bench.world.observations("restore-a"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_back_that_is_interrupted_goes_on_when_resumed() {
    let bench = Bench::new();
    bench.world.trick("restore-b", [fails(false)]);
    bench.world.trick("fence/undo", [Trick::Hang]);
    let cancel = Cancel::default();
    let (executor, interrupt) = (bench.executor(), cancel.clone());
    let task = tokio::spawn(async move { executor.start(start("r1", failover()), &interrupt).await });
    until(|| bench.world.calls("fence/undo") > 0).await;
    cancel.cancel();
    assert_eq!(task.await.unwrap().unwrap(), Ended::Interrupted);
    // That it was told to stop is no failure of it, which somebody would have to decide on.
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Failed));
    assert_eq!((bench.world.calls("fence/undo"), bench.world.effects("fence/undo")), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_run_stops_what_is_at_work_is_told_so_and_clean_up_is_not() {
    let bench = Bench::new();
    bench.world.trick("long", [Trick::Hang]);
    bench.world.trick("broken", [fails(false)]);
    bench.world.trick("remove", [Trick::Meet("verify")]);
    let always = |id: &str, after: &[&str]| Step { always: true, ..step(id, after) };
    let runbook = drill(vec![
        Step { timeout: Span::seconds(3600), ..step("long", &[]) },
        Step { on_failure: OnFailure::Unwind, ..step("broken", &[]) },
        always("remove", &["long", "broken"]),
        always("close", &["long", "broken"]),
        always("verify", &["close"]),
    ]);
    let ended = tokio::time::timeout(Duration::from_secs(60), run(&bench, runbook)).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Failed));
    assert_eq!(["remove", "close", "verify"].map(|step| bench.world.effects(step)), [1, 1, 1]);
    assert_eq!((bench.world.calls("long"), bench.world.effects("long")), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_on_a_service_is_refused_here_and_elsewhere() {
    let bench = Bench::new();
    bench.world.trick("restore-a", [Trick::Hang]);
    let cancel = Cancel::default();
    let (executor, interrupt) = (bench.executor(), cancel.clone());
    let task = tokio::spawn(async move { executor.start(start("r1", failover()), &interrupt).await });
    until(|| bench.world.calls("restore-a") > 0 && !bench.arbiter().mirrored_journal("r1").unwrap().is_empty()).await;
    let here = bench.executor().start(start("r2", failover()), &Cancel::default()).await.unwrap_err();
    assert!(matches!(&here, ExecuteError::Arbiter(ArbiterError::Busy { run, .. }) if run == "r1"), "{here}");
    let there = bench.elsewhere().executor().start(start("r2", failover()), &Cancel::default()).await.unwrap_err();
    assert!(matches!(&there, ExecuteError::Arbiter(ArbiterError::Busy { run, .. }) if run == "r1"), "{there}");
    assert!(here.is_refusal() && there.is_refusal());
    cancel.cancel();
    assert_eq!(task.await.unwrap().unwrap(), Ended::Interrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_controllers_run_is_taken_over_from_its_mirrored_journal_once_its_lock_ran_out() {
    let bench = Bench::new();
    let executor = bench.executor();
    executor.journal.unplug(Unplug::After(14));
    let dead = executor.start(start("r1", failover()), &Cancel::default()).await.unwrap_err();
    assert!(matches!(dead, ExecuteError::Journal(JournalError::Unplugged)));
    drop(executor);
    let other = bench.elsewhere();
    let (executor, begun) = (other.executor(), other.clock.monotonic_seconds());
    let resumed = tokio::spawn(async move { executor.resume("r1", "anna", &Cancel::default()).await });
    // Time goes by while it watches.
    until(|| {
        other.clock.monotonic_offset_ms.fetch_add(50, Ordering::SeqCst);
        resumed.is_finished()
    })
    .await;
    assert_eq!(resumed.await.unwrap().unwrap(), Ended::Finished(RunState::Completed));
    let LockTimes { ttl_seconds, skew_seconds } = other.settings.lock;
    let watched = other.clock.monotonic_seconds() - begun;
    assert!(watched >= ttl_seconds + skew_seconds, "taken over before the lock ran out, after {watched} s");
    for step in FAILOVER_STEPS {
        assert_eq!(bench.world.effects(step), 1, "{step}");
    }
    // The first controller comes back with entries that its mirror never had, or learns that the run is over.
    let back = bench.executor().resume("r1", "ben", &Cancel::default()).await.unwrap_err();
    let known = matches!(
        back,
        ExecuteError::Over { .. } | ExecuteError::Journal(JournalError::Differs { .. }) | ExecuteError::Arbiter(_)
    );
    assert!(known, "{back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_controllers_run_cannot_be_taken_over() {
    let mut bench = Bench::new();
    bench.settings.lock = LockTimes { ttl_seconds: 9.0, skew_seconds: 1.0 };
    bench.world.trick("restore-a", [Trick::Hang]);
    let cancel = Cancel::default();
    let (executor, interrupt) = (bench.executor(), cancel.clone());
    let task = tokio::spawn(async move { executor.start(start("r1", failover()), &interrupt).await });
    until(|| bench.world.calls("restore-a") > 0 && bench.arbiter().mirrored_journal("r1").unwrap().len() > 3).await;
    let refused = bench.elsewhere().executor().resume("r1", "anna", &Cancel::default()).await.unwrap_err();
    assert!(matches!(&refused, ExecuteError::Arbiter(ArbiterError::Busy { .. })), "{refused}");
    cancel.cancel();
    assert_eq!(task.await.unwrap().unwrap(), Ended::Interrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_epoch_was_overtaken_stops_and_takes_nothing_back() {
    let bench = Bench::new();
    bench.world.trick("restore-b", [Trick::LoseEpoch(2)]);
    let mut runbook = failover();
    runbook.steps[1].after.push("restore-b".into());
    runbook.steps[2].after.push("restore-b".into());
    runbook.steps.swap(1, 3);
    runbook.steps.swap(2, 3);
    assert_eq!(run(&bench, runbook).await, Ended::Finished(RunState::Failed));
    assert_eq!(bench.world.order(), ["claim", "restore-b"]);
    let view = view(&bench);
    insta::assert_snapshot!(view.why.unwrap(), @"epoch 2 of shop was claimed by run other for elsewhere; this run acts under epoch 1 and may do nothing more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_book_compiled_under_another_epoch_or_unsound_never_starts() {
    let bench = Bench::new();
    assert_eq!(run(&bench, failover()).await, Ended::Finished(RunState::Completed));
    let stale = bench.executor().start(start("r2", failover()), &Cancel::default()).await.unwrap_err();
    insta::assert_snapshot!(stale, @"this run-book was compiled under epoch 0 of shop, but 1 is in force; compile it again");
    let mut unsound = failover();
    unsound.steps[4].commit = false;
    let unsound = bench.executor().start(start("r3", unsound), &Cancel::default()).await.unwrap_err();
    insta::assert_snapshot!(unsound, @"the run-book must not be executed: there must be exactly one commit point, not 0");
    assert!(stale.is_refusal() && unsound.is_refusal());
    assert!(bench.journal().runs().unwrap().iter().all(|listing| listing.run == "r1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_mirror_only_claim_fence_and_commit_wait() {
    let faulty = Faulty::new(Arc::new(MemoryStorage::new()));
    let mut bench = Bench::on(faulty.clone());
    bench.settings.mirror_wait = Duration::from_millis(80);
    faulty.fail(Operation::PutIfAbsent, "journal/", 1_000_000);
    let steps = vec![
        step("plain", &[]),
        Step { mirrored: true, ..step("mirrored", &[]) },
        step("later", &["plain"]),
        step("last", &["mirrored"]),
    ];
    let Ended::Held(needs) = run(&bench, drill(steps)).await else { panic!() };
    let Need::Decision { error } = &needs[0].1 else { panic!() };
    assert!(error.contains("nothing was done: the journal's mirror has not confirmed entry"), "{error}");
    assert_eq!((bench.world.effects("plain"), bench.world.effects("later")), (1, 1));
    assert_eq!((bench.world.calls("mirrored"), bench.world.calls("last")), (0, 0));
    faulty.repair();
    bench.settings.mirror_wait = Duration::from_secs(60);
    decide(&bench, Decision::Retry { step: "mirrored".into(), by: "anna".into() }).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Completed));
    assert_eq!(bench.arbiter().mirrored_journal("r1").unwrap(), bench.journal().read("r1").unwrap().sealed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arbiter_that_cannot_be_asked_stops_what_would_change_the_world() {
    let faulty = Faulty::new(Arc::new(MemoryStorage::new()));
    let bench = Bench::on(faulty.clone());
    faulty.fail(Operation::List, "epochs/", 2);
    // The first look is the start's own: it fails outright, and nothing has begun.
    let error = bench.executor().start(start("r0", drill(vec![step("a", &[])])), &Cancel::default()).await.unwrap_err();
    assert!(!error.is_refusal() && error.to_string().contains("nothing is decided without it"), "{error}");
    faulty.repair();
    let steps = vec![Step { retries: 2, ..step("a", &[]) }];
    let (wake, hit) = (faulty.clone(), Arc::new(Mutex::new(false)));
    let executor = bench.executor();
    let mut progress = executor.progress();
    let listen = tokio::spawn(async move {
        while let Ok(told) = progress.recv().await {
            if matches!(told.entry.event, Event::Started { .. }) {
                wake.fail(Operation::List, "epochs/", 2);
                *hit.lock().unwrap() = true;
            }
        }
    });
    let ended = executor.start(start("r1", drill(steps)), &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Completed));
    assert_eq!(bench.world.effects("a"), 1);
    listen.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_back_is_noted_and_no_duration_is_negative() {
    let bench = Bench::new();
    bench.world.trick("b", [fails(false)]);
    assert!(matches!(run(&bench, drill(vec![step("a", &[]), step("b", &["a"])])).await, Ended::Held(_)));
    bench.clock.wall_offset_ms.store(-3_600_000, Ordering::SeqCst);
    decide(&bench, Decision::Retry { step: "b".into(), by: "anna".into() }).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Completed));
    let view = view(&bench);
    let notes: Vec<_> =
        view.notes.iter().filter(|(_, text)| text.contains("the clock of this machine went back")).collect();
    assert_eq!(notes.len(), 1, "{:?}", view.notes);
    assert!(notes[0].1.contains("went back by 3") && notes[0].1.contains("at entry"), "{}", notes[0].1);
    assert!(view.steps.iter().all(|step| step.took_seconds.unwrap() >= 0.0) && view.took_seconds >= 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_back_between_two_runs_keeps_neither_from_its_epoch_or_its_lock() {
    let bench = Bench::new();
    assert_eq!(run(&bench, failover()).await, Ended::Finished(RunState::Completed));
    bench.clock.wall_offset_ms.store(-7_200_000, Ordering::SeqCst);
    let mut second = Runbook { from_epoch: 1, epoch: 2, ..failover() };
    for step in &mut second.steps {
        if let Action::ClaimEpoch { epoch, .. } = &mut step.action {
            *epoch = 2;
        }
    }
    let ended = bench.executor().start(start("r0", second), &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Completed));
    let recorded = bench.journal().read("r0").unwrap();
    assert!(recorded.view().unwrap().started_at < view(&bench).started_at, "the clock did not go back");
    assert_eq!(bench.arbiter().current_epoch("shop").unwrap().unwrap().epoch, 2);
    assert!(bench.journal().unfinished("shop").unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_told_which_run_is_at_work() {
    let bench = Bench::new();
    let _at_work = bench.journal().lock_service("shop").unwrap();
    let nameless = bench.executor().start(start("r2", failover()), &Cancel::default()).await.unwrap_err();
    assert!(nameless.is_refusal() && nameless.to_string().contains("another lifeboat process"), "{nameless}");
    drop(_at_work);
    bench.world.trick("fence", [fails(false)]);
    assert!(matches!(run(&bench, failover()).await, Ended::Held(_)));
    let _at_work = bench.journal().lock_service("shop").unwrap();
    for error in [
        bench.executor().start(start("r2", failover()), &Cancel::default()).await.unwrap_err(),
        bench.executor().resume("r1", "ben", &Cancel::default()).await.unwrap_err(),
    ] {
        assert!(error.is_refusal() && error.to_string().contains("run r1 works on shop"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_said_elsewhere_is_refused_while_an_executor_is_at_work() {
    let bench = Bench::new();
    bench.world.trick("restore-a", [Trick::Hang]);
    let cancel = Cancel::default();
    let (executor, interrupt) = (bench.executor(), cancel.clone());
    let task = tokio::spawn(async move { executor.start(start("r1", failover()), &interrupt).await });
    until(|| bench.world.calls("restore-a") > 0 && bench.arbiter().mirrored_journal("r1").unwrap().len() > 3).await;
    let word = || Decision::Cancel { by: "anna".into(), reason: "north is back".into() };
    let refused = decide(&bench.elsewhere(), word()).await.unwrap_err();
    insta::assert_snapshot!(refused, @"another machine works on run r1; say it there, or take the run over with `lifeboat run resume r1` first");
    assert!(refused.is_refusal());
    decide(&bench, word()).await.unwrap();
    assert_eq!(task.await.unwrap().unwrap(), Ended::Finished(RunState::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_on_a_held_run_may_be_said_on_another_machine() {
    let bench = Bench::new();
    bench.world.trick("fence", [fails(false)]);
    assert!(matches!(run(&bench, failover()).await, Ended::Held(_)));
    let there = bench.elsewhere();
    decide(&there, Decision::Retry { step: "fence".into(), by: "anna".into() }).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Completed));
    assert_eq!(there.executor().fetch("r1").await.unwrap().sealed, bench.journal().read("r1").unwrap().sealed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_changes_meanwhile_is_noted_once_and_the_run_keeps_its_own() {
    let mut bench = Bench::new();
    bench.settings.plan_hash_now = Some(Arc::new(|| Some("plan-2".into())));
    assert_eq!(run(&bench, failover()).await, Ended::Finished(RunState::Completed));
    let view = view(&bench);
    let notes: Vec<_> = view.notes.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(
        notes,
        ["the plan has changed since this run began (now plan-2); the run keeps the run-book it began with"]
    );
    assert_eq!(view.runbook.plan_hash, "plan-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_command_is_repeated_only_if_it_is_declared_safe() {
    let command = |rerun| Step {
        action: Action::RunCommand { site: "south".into(), command: vec!["reindex".into(), "--all".into()], rerun },
        retries: 3,
        ..step("rebuild", &[])
    };
    for (rerun, calls) in [(Rerun::Safe, 2), (Rerun::Ask, 1)] {
        // A failure that may pass.
        let bench = Bench::new();
        bench.world.trick("rebuild", [fails(true)]);
        let ended = run(&bench, drill(vec![command(rerun)])).await;
        assert_eq!((matches!(ended, Ended::Held(_)), bench.world.calls("rebuild")), (calls == 1, calls));
        // Cut off in it.
        let bench = Bench::new();
        let executor = bench.executor();
        executor.journal.unplug(Unplug::Before(2));
        executor.start(start("r1", drill(vec![command(rerun)])), &Cancel::default()).await.unwrap_err();
        drop(executor);
        let ended = resume(&bench).await;
        assert_eq!((bench.world.calls("rebuild"), bench.world.observations("rebuild")), (calls, 0));
        if let Ended::Held(needs) = ended {
            insta::assert_snapshot!(needs[0].1, @"a decision: `reindex --all` may have run, and the plan does not call it safe to repeat: retry it, or skip it if it has done its work");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_after_the_commit_point_stops_where_it_is() {
    let bench = Bench::new();
    bench.world.trick("start", [fails(false)]);
    assert!(matches!(run(&bench, failover()).await, Ended::Held(_)));
    decide(&bench, Decision::Cancel { by: "anna".into(), reason: "by hand from here".into() }).await.unwrap();
    assert_eq!(resume(&bench).await, Ended::Finished(RunState::Cancelled));
    assert!(["fence/undo", "restore-a/undo", "traffic"].iter().all(|step| bench.world.calls(step) == 0));
    let recorded = bench.journal().read("r1").unwrap();
    let events = recorded.entries.iter().map(|entry| &entry.event);
    let state = lifeboat_core::run::State::replay(&failover(), events).unwrap();
    assert!(matches!(state.steps["start"].status, StepStatus::Failed { noted: false, .. }));
}
