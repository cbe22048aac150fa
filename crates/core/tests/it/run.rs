//! The run's state machine: single cases by hand, and random run-books driven at random with the rules checked after each event.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_core::plan::{Objective, Strategy};
use lifeboat_core::run::{
    Entry, Event, Facts, Found, Need, Next, Phase, RunState, RunView, State, StepStatus, Undo, may_be_skipped, next,
    open_chain,
};
use lifeboat_core::runbook::{Action, Condition, OnFailure, Purpose, Runbook, Step};
use lifeboat_core::units::Span;
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

pub(crate) fn step(id: &str, after: &[&str]) -> Step {
    Step {
        id: id.into(),
        title: format!("Do {id}"),
        action: Action::EnsureAgent { site: "south".into() },
        after: after.iter().map(|id| (*id).into()).collect(),
        when: vec![],
        timeout: Span::seconds(5),
        retries: 0,
        on_failure: OnFailure::Hold,
        commit: false,
        undo: None,
        mirrored: false,
        always: false,
    }
}

pub(crate) fn undo() -> Option<Action> {
    Some(Action::Unfreeze { write_domain: "shop".into(), site: "north".into() })
}

pub(crate) fn book(purpose: Purpose, steps: Vec<Step>) -> Runbook {
    Runbook {
        format: 1,
        purpose,
        service: "shop".into(),
        scenario: "site-lost".into(),
        strategy: Strategy::WarmStandby,
        from: "north".into(),
        to: "south".into(),
        write_domain: "shop".into(),
        from_epoch: 1,
        epoch: 2,
        objective: Objective { rpo: Span::seconds(5), rto: Span::seconds(60) },
        plan_hash: "p".into(),
        compiled_at: "2026-11-21T12:00:00Z".into(),
        steps,
        not_covered: vec![],
    }
}

pub(crate) fn started(runbook: &Runbook) -> Event {
    Event::Started {
        runbook: Box::new(runbook.clone()),
        initiator: "ben".into(),
        disaster_at: None,
        how_known: "assumed".into(),
        simulated: vec![],
    }
}

pub(crate) fn intent(step: &str, attempt: u32) -> Event {
    Event::Intent { step: step.into(), attempt }
}

pub(crate) fn done(step: &str, attempt: u32, outcome: &str) -> Event {
    Event::Done { step: step.into(), attempt, outcome: outcome.into(), facts: Facts::new() }
}

pub(crate) fn failed(step: &str, attempt: u32, may_pass: bool) -> Event {
    Event::Failed { step: step.into(), attempt, error: "it broke".into(), may_pass }
}

pub(crate) struct Machine {
    pub(crate) runbook: Runbook,
    pub(crate) state: State,
}

impl Machine {
    pub(crate) fn new(runbook: Runbook) -> Machine {
        let state = State::pending(&runbook).after(&runbook, &started(&runbook)).unwrap();
        Machine { runbook, state }
    }

    pub(crate) fn with(mut self, events: &[Event]) -> Machine {
        for event in events {
            self.state = self.state.after(&self.runbook, event).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        }
        self
    }

    pub(crate) fn refuses(&self, event: &Event) -> String {
        self.state.clone().after(&self.runbook, event).expect_err("must be refused").reason
    }

    pub(crate) fn next(&self) -> Next {
        next(&self.runbook, &self.state)
    }
}

#[test]
fn independent_steps_start_together_and_dependent_ones_wait() {
    let book = book(Purpose::Drill, vec![step("a", &[]), step("b", &[]), step("c", &["a", "b"])]);
    let machine = Machine::new(book);
    assert_eq!(machine.next().start, ["a", "b"]);
    let machine = machine.with(&[intent("a", 1), intent("b", 1), done("a", 1, "ran")]);
    assert!(machine.next().start.is_empty());
    insta::assert_snapshot!(machine.refuses(&intent("c", 1)), @"step c may not start now");
    let machine = machine.with(&[done("b", 1, "ran"), intent("c", 1), done("c", 1, "ran")]);
    assert_eq!(machine.next().finish, Some(RunState::Completed));
}

#[test]
fn the_branch_that_recovery_finds_is_taken_and_the_other_is_not() {
    let only = |outcome: &str| vec![Condition { step: "inspect".into(), outcomes: vec![outcome.into()] }];
    let book = book(
        Purpose::Drill,
        vec![
            step("inspect", &[]),
            Step { when: only("usable"), ..step("promote", &["inspect"]) },
            Step { when: only("unusable"), ..step("restore", &["inspect"]) },
            step("start", &["promote", "restore"]),
        ],
    );
    let machine = Machine::new(book).with(&[intent("inspect", 1), done("inspect", 1, "unusable")]);
    assert_eq!(machine.next().start, ["restore"]);
    assert_eq!(machine.state.steps["promote"].status, StepStatus::NotTaken);
    let machine = machine.with(&[intent("restore", 1), done("restore", 1, "restored")]);
    assert_eq!(machine.next().start, ["start"]);
}

#[test]
fn a_failure_before_the_commit_point_takes_everything_back_in_reverse() {
    let book = book(
        Purpose::Failover,
        vec![
            Step { undo: undo(), ..step("freeze", &[]) },
            Step { undo: undo(), ..step("fence", &["freeze"]) },
            Step { on_failure: OnFailure::Unwind, undo: undo(), ..step("restore", &["fence"]) },
            Step { commit: true, ..step("promote", &["restore"]) },
        ],
    );
    let undone = |step: &str| {
        [Event::UndoIntent { step: step.into() }, Event::Undone { step: step.into(), outcome: "writing".into() }]
    };
    let machine = Machine::new(book).with(&[
        intent("freeze", 1),
        done("freeze", 1, "frozen"),
        intent("fence", 1),
        done("fence", 1, "proven"),
        intent("restore", 1),
        failed("restore", 1, false),
    ]);
    insta::assert_snapshot!(machine.refuses(&Event::UndoIntent { step: "freeze".into() }), @"step freeze is not the one to take back now");
    // What failed may have had half an effect, so it is taken back, too.
    let machine = machine.with(&undone("restore")).with(&undone("fence")).with(&undone("freeze"));
    assert_eq!(machine.next().finish, Some(RunState::Failed));
    let machine = machine.with(&[Event::Finished { state: RunState::Failed }]);
    insta::assert_snapshot!(machine.refuses(&Event::Note { text: "late".into() }), @"the run has ended; nothing can follow");
}

#[test]
fn from_the_intent_to_commit_on_a_failure_holds_instead_of_unwinding() {
    let book = book(
        Purpose::Failover,
        vec![
            Step { undo: undo(), ..step("fence", &[]) },
            Step { commit: true, on_failure: OnFailure::Unwind, ..step("promote", &["fence"]) },
        ],
    );
    let machine = Machine::new(book).with(&[
        intent("fence", 1),
        done("fence", 1, "proven"),
        intent("promote", 1),
        failed("promote", 1, false),
    ]);
    assert!(machine.state.committed);
    assert_eq!(machine.next().waiting_for, [("promote".to_string(), Need::Decision { error: "it broke".into() })]);
    assert_eq!(machine.state.run_state(&machine.runbook), RunState::Held);
    let skip = Event::Skipped { step: "promote".into(), by: "anna".into(), reason: "never mind".into() };
    insta::assert_snapshot!(machine.refuses(&skip), @"step promote must not be skipped: without it there could be two writers, or no consent");
    // Cancelling after it stops the run where it is; nothing is taken back.
    let machine = machine.with(&[Event::CancelAsked { by: "anna".into(), reason: "enough".into() }]);
    assert_eq!(machine.next(), Next { finish: Some(RunState::Cancelled), ..Next::default() });
}

#[test]
fn failures_that_may_pass_are_tried_again_as_often_as_the_step_says() {
    let book = book(Purpose::Drill, vec![Step { retries: 1, ..step("a", &[]) }]);
    let machine = Machine::new(book).with(&[intent("a", 1), failed("a", 1, true)]);
    assert_eq!(machine.next().start, ["a"]);
    let machine = machine.with(&[intent("a", 2), failed("a", 2, true)]);
    assert!(machine.next().start.is_empty());
    assert_eq!(machine.next().waiting_for.len(), 1);
    // A person's retry gives it a full set of tries again.
    let machine = machine.with(&[
        Event::RetryAsked { step: "a".into(), by: "anna".into() },
        intent("a", 3),
        failed("a", 3, true),
        intent("a", 4),
        done("a", 4, "ran"),
    ]);
    assert_eq!(machine.next().finish, Some(RunState::Completed));
}

#[test]
fn a_noted_failure_or_a_skip_makes_it_completed_with_exceptions() {
    let noted = book(Purpose::Drill, vec![Step { on_failure: OnFailure::Note, ..step("a", &[]) }, step("b", &["a"])]);
    let machine =
        Machine::new(noted).with(&[intent("a", 1), failed("a", 1, false), intent("b", 1), done("b", 1, "ran")]);
    assert_eq!(machine.next().finish, Some(RunState::CompletedWithExceptions));

    let skipped = book(Purpose::Drill, vec![step("a", &[])]);
    let machine = Machine::new(skipped).with(&[intent("a", 1), failed("a", 1, false)]);
    let skip = |reason: &str| Event::Skipped { step: "a".into(), by: "anna".into(), reason: reason.into() };
    insta::assert_snapshot!(machine.refuses(&skip(" ")), @"skipping step a needs a reason");
    let machine = machine.with(&[skip("done by hand")]);
    assert_eq!(machine.next().finish, Some(RunState::CompletedWithExceptions));
}

#[test]
fn who_started_a_run_cannot_approve_it_and_the_run_book_must_be_the_same() {
    let approve = Step { action: Action::Approve { reason: "loss beyond 5s".into() }, ..step("ask", &[]) };
    let machine = Machine::new(book(Purpose::Drill, vec![approve, step("a", &["ask"])]));
    assert_eq!(machine.next().ask.len(), 1);
    insta::assert_snapshot!(machine.refuses(&intent("ask", 1)), @"step ask is a person's to take; it is held, not acted on");
    let needs = machine.next().ask[0].1.clone();
    let word = |by: &str, hash: &str| Event::Approved {
        step: "ask".into(),
        by: by.into(),
        runbook_hash: hash.into(),
        at: "2026-11-21T12:00:00Z".into(),
        signature: String::new(),
    };
    let hash = machine.runbook.hash();
    insta::assert_snapshot!(machine.refuses(&word("anna", &hash)), @"step ask does not wait for approval");
    let machine = machine.with(&[Event::Held { step: "ask".into(), attempt: 0, needs }]);
    assert_eq!(machine.state.run_state(&machine.runbook), RunState::WaitingApproval);
    insta::assert_snapshot!(machine.refuses(&word("ben", &hash)), @"ben started the run and so cannot approve it; another person must");
    insta::assert_snapshot!(machine.refuses(&word("anna", "other")), @"the approval is for another run-book");
    let machine = machine.with(&[word("anna", &hash)]);
    assert_eq!(machine.next().start, ["a"]);
}

#[test]
fn a_fence_without_proof_waits_for_exactly_the_statement_it_asks_for() {
    let fence = Action::Fence {
        site: "north".into(),
        write_domain: "shop".into(),
        instances: vec![],
        volumes: vec![],
        planned: false,
        lease: None,
    };
    let machine = Machine::new(book(Purpose::Drill, vec![Step { action: fence, ..step("fence", &[]) }]));
    let needs = Need::Attestation { statement: "north is powered off".into(), why: "it does not answer".into() };
    let machine = machine.with(&[intent("fence", 1), Event::Held { step: "fence".into(), attempt: 1, needs }]);
    let attest = |statement: &str| Event::Attested {
        step: "fence".into(),
        by: "anna".into(),
        statement: statement.into(),
        at: "2026-11-21T12:00:00Z".into(),
        signature: String::new(),
    };
    insta::assert_snapshot!(machine.refuses(&attest("I think so")), @"step fence does not ask for this statement");
    let skip = Event::Skipped { step: "fence".into(), by: "anna".into(), reason: "hurry".into() };
    insta::assert_snapshot!(machine.refuses(&skip), @"step fence must not be skipped: without it there could be two writers, or no consent");
    let machine = machine.with(&[attest("north is powered off")]);
    assert_eq!(machine.state.steps["fence"].outcome.as_deref(), Some("attested"));
}

#[test]
fn clean_up_runs_after_a_failure_and_after_everything_was_taken_back() {
    let book = book(
        Purpose::Drill,
        vec![
            Step { undo: undo(), ..step("isolate", &[]) },
            Step { on_failure: OnFailure::Unwind, ..step("restore", &["isolate"]) },
            step("start", &["restore"]),
            Step { always: true, ..step("remove", &["start"]) },
            Step { always: true, ..step("verify", &["remove"]) },
        ],
    );
    let machine = Machine::new(book).with(&[
        intent("isolate", 1),
        done("isolate", 1, "isolated"),
        intent("restore", 1),
        failed("restore", 1, false),
    ]);
    assert_eq!(machine.next(), Next { undo: Some("isolate".into()), ..Next::default() });
    let machine = machine.with(&[
        Event::UndoIntent { step: "isolate".into() },
        Event::Undone { step: "isolate".into(), outcome: "removed".into() },
    ]);
    assert_eq!(machine.next(), Next { start: vec!["remove".into()], ..Next::default() });
    let machine = machine.with(&[
        intent("remove", 1),
        done("remove", 1, "removed"),
        intent("verify", 1),
        done("verify", 1, "clean"),
    ]);
    assert_eq!(machine.next().finish, Some(RunState::Failed));
}

#[test]
fn a_run_whose_branches_all_miss_the_commit_point_is_no_success() {
    let only = vec![Condition { step: "look".into(), outcomes: vec!["usable".into()] }];
    let book = book(
        Purpose::Failover,
        vec![
            Step { undo: undo(), ..step("look", &[]) },
            Step { commit: true, when: only, ..step("promote", &["look"]) },
        ],
    );
    let machine = Machine::new(book).with(&[intent("look", 1), done("look", 1, "something-else")]);
    assert!(matches!(machine.state.phase, Phase::Unwinding { end: RunState::Failed, .. }));
    assert_eq!(machine.next().undo.as_deref(), Some("look"));
}

#[test]
fn what_was_cut_off_is_as_observed() {
    let book = book(Purpose::Drill, vec![step("a", &[])]);
    let observed = |found| Event::Observed { step: "a".into(), attempt: 1, found };
    let cut_off = || Machine::new(book.clone()).with(&[intent("a", 1)]);
    let happened = cut_off().with(&[observed(Found::Happened { outcome: "ran".into(), facts: Facts::new() })]);
    assert_eq!(happened.next().finish, Some(RunState::Completed));
    let again = cut_off().with(&[observed(Found::DoAgain)]);
    assert_eq!(again.next().start, ["a"]);
    insta::assert_snapshot!(again.refuses(&intent("a", 1)), @"attempt 1 of step a is out of order");
    let unknown = cut_off().with(&[observed(Found::Unknown { ask: "did it run?".into() })]);
    assert_eq!(unknown.next().waiting_for, [("a".to_string(), Need::Decision { error: "did it run?".into() })]);
}

#[test]
fn a_superseded_run_takes_nothing_back() {
    let book = book(
        Purpose::Failover,
        vec![Step { undo: undo(), ..step("fence", &[]) }, Step { commit: true, ..step("promote", &["fence"]) }],
    );
    let machine =
        Machine::new(book).with(&[intent("fence", 1), Event::Superseded { why: "epoch 3 was claimed".into() }]);
    assert_eq!(machine.next(), Next { finish: Some(RunState::Failed), ..Next::default() });
}

fn entries(runbook: &Runbook, events: &[Event], processes: &[&str], at: &[i64], monotonic: &[f64]) -> Vec<Entry> {
    let all: Vec<Event> = std::iter::once(started(runbook)).chain(events.iter().cloned()).collect();
    let mut previous = String::new();
    let mut entries = Vec::new();
    for (index, event) in all.into_iter().enumerate() {
        let entry = Entry {
            run: "r1".into(),
            seq: index as u64 + 1,
            at: jiff::Timestamp::from_second(at[index]).unwrap(),
            process: processes[index].into(),
            monotonic_seconds: monotonic[index],
            previous: previous.clone(),
            event,
        };
        previous = entry.seal().unwrap().hash;
        entries.push(entry);
    }
    entries
}

#[test]
fn durations_come_from_the_monotonic_clock_and_are_never_negative() {
    let runbook = book(Purpose::Drill, vec![step("a", &[]), step("b", &["a"])]);
    let events = [intent("a", 1), done("a", 1, "ran"), intent("b", 1), done("b", 1, "ran")];
    // The wall clock goes back by a minute in the middle; the process changes between b's intent and outcome.
    let entries =
        entries(&runbook, &events, &["p", "p", "p", "p", "q"], &[100, 101, 41, 42, 40], &[1.0, 2.0, 4.5, 5.0, 0.1]);
    let view = RunView::of(&entries, "h").unwrap();
    assert_eq!(view.step("a").unwrap().took_seconds, Some(2.5));
    assert_eq!(view.step("b").unwrap().took_seconds, Some(0.0));
    assert_eq!(view.took_seconds, 0.0);
    assert_eq!(view.step("b").unwrap().status, "done");
}

#[test]
fn a_changed_moved_or_missing_entry_is_named() {
    let runbook = book(Purpose::Drill, vec![step("a", &[])]);
    let entries = entries(&runbook, &[intent("a", 1), done("a", 1, "ran")], &["p"; 3], &[1, 2, 3], &[1.0, 2.0, 3.0]);
    let sealed: Vec<_> = entries.iter().map(|entry| entry.seal().unwrap()).collect();
    assert_eq!(open_chain("r1", &sealed).unwrap(), entries);

    let mut changed = sealed.clone();
    changed[1].body = changed[1].body.replace("\"attempt\":1", "\"attempt\":2");
    insta::assert_snapshot!(open_chain("r1", &changed).unwrap_err(), @"entry 2 of run r1 was changed after it was written: its text does not match its hash");
    let mut missing = sealed.clone();
    missing.remove(1);
    insta::assert_snapshot!(open_chain("r1", &missing).unwrap_err(), @"entry 2 of run r1 stands in the place of entry 3 of run r1");
    // Changed with its hash made to fit: the entry after it does not follow any more.
    let mut forged = sealed.clone();
    let mut other = entries[1].clone();
    other.at = jiff::Timestamp::from_second(77).unwrap();
    forged[1] = other.seal().unwrap();
    insta::assert_snapshot!(open_chain("r1", &forged).unwrap_err(), @"entry 3 of run r1 does not follow from the entry before it");
    insta::assert_snapshot!(open_chain("r2", &sealed).unwrap_err(), @"entry 1 of run r2 stands in the place of entry 1 of run r1");
}

// Random run-books, driven at random.

fn any_book() -> impl proptest::strategy::Strategy<Value = Runbook> {
    let one = (any::<u16>(), 0u8..4, 0u8..10, 0u32..3, 0u8..3, any::<bool>(), 0u8..8);
    (prop::collection::vec(one, 1..8), any::<bool>(), any::<prop::sample::Index>()).prop_map(
        |(seeds, drill, commit)| {
            let commit = commit.index(seeds.len());
            let mut steps: Vec<Step> = Vec::new();
            for (index, (after, branch, kind, retries, on_failure, undoable, always)) in seeds.into_iter().enumerate() {
                let earlier: Vec<String> =
                    (0..index).filter(|other| after >> other & 1 == 1).map(|i| format!("s{i}")).collect();
                let when = match (branch, earlier.first()) {
                    (0, Some(step)) => vec![Condition { step: step.clone(), outcomes: vec!["a".into()] }],
                    _ => vec![],
                };
                let mut step = step(&format!("s{index}"), &[]);
                step.action = match kind {
                    0 => Action::Approve { reason: "ask".into() },
                    1 => Action::Fence {
                        site: "north".into(),
                        write_domain: "shop".into(),
                        instances: vec![],
                        volumes: vec![],
                        planned: false,
                        lease: None,
                    },
                    _ => step.action,
                };
                let asks = kind == 0;
                step.commit = !drill && index == commit && !asks;
                step.after = earlier;
                step.when = when;
                step.retries = retries;
                step.on_failure = [OnFailure::Unwind, OnFailure::Hold, OnFailure::Note][usize::from(on_failure)];
                step.undo = undo().filter(|_| undoable && !asks);
                step.always = always == 0 && !asks && !step.commit;
                steps.push(step);
            }
            book(if drill { Purpose::Drill } else { Purpose::Failover }, steps)
        },
    )
}

/// One legal move, chosen by `pick`; nothing when the run has ended.
fn choose(runbook: &Runbook, state: &State, pick: u32) -> Option<Event> {
    let due = next(runbook, state);
    let mut moves = Vec::new();
    for (step, needs) in &due.ask {
        moves.push(Event::Held { step: step.clone(), attempt: 0, needs: needs.clone() });
    }
    for step in &due.start {
        moves.push(intent(step, state.steps[step].attempts + 1));
    }
    for step in &due.in_flight {
        let attempt = state.steps[step].attempts;
        moves.push(done(step, attempt, "a"));
        moves.push(done(step, attempt, "b"));
        moves.push(failed(step, attempt, true));
        moves.push(failed(step, attempt, false));
        moves.push(Event::Held { step: step.clone(), attempt, needs: Need::Decision { error: "?".into() } });
        moves.push(Event::Observed { step: step.clone(), attempt, found: Found::DoAgain });
        moves.push(Event::Observed { step: step.clone(), attempt, found: Found::Unknown { ask: "?".into() } });
    }
    if let Some(step) = &due.undo {
        moves.push(Event::UndoIntent { step: step.clone() });
    }
    if let Some(step) = &due.undo_in_flight {
        moves.push(Event::Undone { step: step.clone(), outcome: "writing".into() });
        moves.push(Event::UndoFailed { step: step.clone(), error: "no".into() });
        moves.push(Event::Observed {
            step: step.clone(),
            attempt: state.steps[step].undo_attempts,
            found: Found::DoAgain,
        });
    }
    for (step, needs) in &due.waiting_for {
        let undo_held = matches!(state.steps[step].undo, Undo::Held { .. });
        match needs {
            Need::Approval { .. } if !undo_held => moves.push(Event::Approved {
                step: step.clone(),
                by: "anna".into(),
                runbook_hash: state.runbook_hash.clone(),
                at: String::new(),
                signature: String::new(),
            }),
            _ => {
                moves.push(Event::RetryAsked { step: step.clone(), by: "anna".into() });
                if undo_held || may_be_skipped(runbook.step(step).unwrap()) {
                    moves.push(Event::Skipped { step: step.clone(), by: "anna".into(), reason: "why not".into() });
                }
            }
        }
    }
    if state.phase == Phase::Forward && pick.is_multiple_of(37) {
        return Some(Event::CancelAsked { by: "anna".into(), reason: "enough".into() });
    }
    if let Some(state) = due.finish {
        assert!(moves.is_empty());
        return Some(Event::Finished { state });
    }
    assert!(!moves.is_empty() || matches!(state.phase, Phase::Ended { .. }), "stuck: {state:?}");
    let index = pick as usize % moves.len().max(1);
    moves.into_iter().nth(index)
}

/// Events that must be refused now, whatever the state is.
fn forbidden(runbook: &Runbook, state: &State) -> Vec<Event> {
    let due = next(runbook, state);
    let mut events = vec![started(runbook)];
    for id in runbook.steps.iter().map(|step| &step.id) {
        let of_step = &state.steps[id];
        if of_step.status != StepStatus::Running {
            events.push(done(id, of_step.attempts, "a"));
            events.push(failed(id, of_step.attempts, true));
        }
        events.push(done(id, of_step.attempts + 1, "a"));
        if !due.start.contains(id) {
            events.push(intent(id, of_step.attempts + 1));
        }
        events.push(intent(id, of_step.attempts));
        if due.undo.as_ref() != Some(id) {
            events.push(Event::UndoIntent { step: id.clone() });
        }
        if due.undo_in_flight.as_ref() != Some(id) {
            events.push(Event::Undone { step: id.clone(), outcome: String::new() });
        }
        if !due.waiting_for.iter().any(|(waiting, _)| waiting == id) {
            events.push(Event::RetryAsked { step: id.clone(), by: "anna".into() });
            events.push(Event::Skipped { step: id.clone(), by: "anna".into(), reason: "because".into() });
        }
    }
    events.push(intent("no-such-step", 1));
    for end in [RunState::Completed, RunState::CompletedWithExceptions, RunState::Failed, RunState::Cancelled] {
        if due.finish != Some(end) {
            events.push(Event::Finished { state: end });
        }
    }
    events
}

fn check(runbook: &Runbook, before: &State, event: &Event, after: &State) {
    let ended = |state: &State, id: &str| state.steps[id].status.has_ended();
    match event {
        Event::Intent { step, .. } => {
            let of_book = runbook.step(step).unwrap();
            if before.phase == Phase::Forward {
                assert!(of_book.after.iter().all(|id| ended(before, id)), "{step} began before its time");
            } else {
                assert!(of_book.always, "{step} began while the run was ending");
            }
            for condition in &of_book.when {
                assert!(before.steps[&condition.step].outcome.as_ref().is_some_and(|o| condition.outcomes.contains(o)));
            }
        }
        Event::UndoIntent { step } => {
            assert!(!before.committed, "{step} is taken back after the commit point");
            assert!(before.steps[step].attempts > 0, "{step} never acted");
        }
        _ => {}
    }
    assert!(after.committed || !before.committed, "the commit point was taken back");
    if after.committed {
        assert!(!matches!(after.phase, Phase::Unwinding { .. }));
    }
}

fn check_end(runbook: &Runbook, state: &State, end: RunState, events: &[Event]) {
    let mut outcomes: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for event in events {
        if let Event::Done { step, attempt, .. } = event {
            assert!(outcomes.entry(step).or_default().insert(*attempt));
            assert_eq!(outcomes[step.as_str()].len(), 1, "{step} has two outcomes");
        }
    }
    match end {
        RunState::Completed => {
            assert!(state.steps.values().all(|s| matches!(s.status, StepStatus::Done | StepStatus::NotTaken)));
        }
        RunState::Failed | RunState::Cancelled if !state.committed => {
            for step in runbook.steps.iter().filter(|step| step.undo.is_some()) {
                let of_step = &state.steps[&step.id];
                let back = matches!(of_step.undo, Undo::Done { .. } | Undo::Skipped { .. });
                let cleanup_later = step.always;
                assert!(of_step.attempts == 0 || back || cleanup_later, "{} was not taken back", step.id);
            }
        }
        _ => {}
    }
    for step in runbook.steps.iter().filter(|step| step.always) {
        assert!(state.steps[&step.id].status.has_ended(), "clean-up {} did not run", step.id);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_run_books_keep_the_rules(runbook in any_book(), picks in prop::collection::vec(any::<u32>(), 400)) {
        let has_commit = runbook.steps.iter().any(|step| step.commit);
        let mut state = State::pending(&runbook).after(&runbook, &started(&runbook)).unwrap();
        let mut events = vec![started(&runbook)];
        for pick in picks {
            for event in forbidden(&runbook, &state) {
                prop_assert!(state.clone().after(&runbook, &event).is_err(), "{event:?} in {state:?}");
            }
            let Some(event) = choose(&runbook, &state, pick) else { break };
            let after = state.clone().after(&runbook, &event).unwrap_or_else(|error| panic!("{event:?}: {error}"));
            check(&runbook, &state, &event, &after);
            events.push(event);
            state = after;
        }
        prop_assert_eq!(&State::replay(&runbook, &events).unwrap(), &state);
        if let Phase::Ended { state: end } = state.phase {
            check_end(&runbook, &state, end, &events);
            let success = matches!(end, RunState::Completed | RunState::CompletedWithExceptions);
            prop_assert!(!success || !has_commit || state.committed);
        }
    }
}
