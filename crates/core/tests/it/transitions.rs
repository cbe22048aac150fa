//! Which event may follow which, one rule at a time: what a journal must not say, and what an ending run does not wait for.

use lifeboat_core::run::{Event, Found, Need, Phase, RunState, State, StepStatus, Undo};
use lifeboat_core::runbook::{Action, OnFailure, Purpose, Runbook, Step};

use crate::run::{Machine, book, done, failed, intent, started, step, undo};

fn drill(steps: Vec<Step>) -> Machine {
    Machine::new(book(Purpose::Drill, steps))
}

fn approval(id: &str, after: &[&str]) -> Step {
    Step { action: Action::Approve { reason: "loss beyond 5s".into() }, ..step(id, after) }
}

fn fence(id: &str) -> Step {
    let (site, write_domain) = ("north".into(), "shop".into());
    Step {
        action: Action::Fence { site, write_domain, instances: vec![], volumes: vec![], planned: false, lease: None },
        ..step(id, &[])
    }
}

fn claim(id: &str) -> Step {
    let (write_domain, primary) = ("shop".into(), "south".into());
    Step { action: Action::ClaimEpoch { write_domain, epoch: 2, primary, planned: false }, ..step(id, &[]) }
}

fn note() -> Event {
    Event::Note { text: "the plan has changed".into() }
}

fn cancel() -> Event {
    Event::CancelAsked { by: "anna".into(), reason: "north is back".into() }
}

fn superseded() -> Event {
    Event::Superseded { why: "epoch 3 was claimed".into() }
}

fn held(step: &str, attempt: u32, needs: Need) -> Event {
    Event::Held { step: step.into(), attempt, needs }
}

fn decision() -> Need {
    Need::Decision { error: "it broke".into() }
}

fn attestation() -> Need {
    Need::Attestation { statement: "north is off".into(), why: "north does not answer".into() }
}

fn approve() -> Need {
    Need::Approval { reason: "loss beyond 5s".into() }
}

fn skip(step: &str) -> Event {
    Event::Skipped { step: step.into(), by: "anna".into(), reason: "by hand".into() }
}

fn retry(step: &str) -> Event {
    Event::RetryAsked { step: step.into(), by: "anna".into() }
}

fn attest(step: &str, statement: &str) -> Event {
    let (at, signature) = ("2026-11-21T12:00:00Z".into(), String::new());
    Event::Attested { step: step.into(), by: "anna".into(), statement: statement.into(), at, signature }
}

fn gave_up(machine: &Machine, id: &str) -> bool {
    matches!(machine.state.steps[id].status, StepStatus::Failed { noted: false, .. })
}

#[test]
fn nothing_comes_before_the_start_which_pins_a_sound_run_book() {
    let runbook = book(Purpose::Drill, vec![step("a", &[])]);
    let refused = |runbook: &Runbook, event: &Event| State::pending(runbook).after(runbook, event).unwrap_err().reason;
    let paused = Event::Paused { why: "interrupted".into() };
    let resumed = Event::Resumed { by: "ben".into() };
    for event in [note(), paused, resumed, cancel(), superseded(), intent("a", 1)] {
        assert_eq!(refused(&runbook, &event), "the run has not started", "{event:?}");
    }
    let other = book(Purpose::Drill, vec![step("b", &[])]);
    insta::assert_snapshot!(refused(&runbook, &started(&other)), @"the journal pins another run-book");
    let twice = book(Purpose::Drill, vec![step("a", &[]), step("a", &[])]);
    insta::assert_snapshot!(refused(&twice, &started(&twice)), @"a step stands twice in the run-book");
    let later = book(Purpose::Drill, vec![step("a", &["b"]), step("b", &[])]);
    insta::assert_snapshot!(refused(&later, &started(&later)), @"step a depends on b, which does not stand before it");
}

#[test]
fn a_paused_run_stays_so_until_somebody_goes_on_with_it() {
    let machine = || drill(vec![step("a", &[])]).with(&[Event::Paused { why: "interrupted".into() }]);
    let state = |machine: Machine| machine.state.run_state(&machine.runbook);
    assert_eq!(state(machine()), RunState::Paused);
    assert_eq!(state(machine().with(&[note()])), RunState::Paused);
    assert_eq!(state(machine().with(&[Event::Resumed { by: "ben".into() }])), RunState::Running);
    assert_eq!(state(machine().with(&[intent("a", 1)])), RunState::Running);
}

#[test]
fn a_run_waits_for_approval_only_where_nothing_else_is_held() {
    let machine = drill(vec![approval("ask", &[]), step("a", &[])]).with(&[
        held("ask", 0, approve()),
        intent("a", 1),
        failed("a", 1, false),
    ]);
    assert_eq!(machine.state.run_state(&machine.runbook), RunState::Held);
    let machine = machine.with(&[skip("a")]);
    assert_eq!(machine.state.run_state(&machine.runbook), RunState::WaitingApproval);
}

#[test]
fn what_will_not_pass_is_not_tried_again_however_many_tries_are_left() {
    let machine = drill(vec![Step { retries: 3, ..step("a", &[]) }]).with(&[intent("a", 1), failed("a", 1, false)]);
    assert!(machine.next().start.is_empty());
    assert_eq!(machine.next().waiting_for, [("a".to_owned(), decision())]);
}

#[test]
fn what_ends_while_the_run_is_ending_is_neither_held_nor_tried_again() {
    let observed = |found| Event::Observed { step: "a".into(), attempt: 1, found };
    for end in [
        observed(Found::DoAgain),
        observed(Found::Unknown { ask: "did it run?".into() }),
        held("a", 1, decision()),
        held("a", 1, attestation()),
        failed("a", 1, true),
        failed("a", 1, false),
    ] {
        let steps = || vec![Step { retries: 3, ..step("a", &[]) }, Step { commit: true, ..step("b", &["a"]) }];
        let machine = Machine::new(book(Purpose::Failover, steps())).with(&[intent("a", 1), cancel(), end.clone()]);
        assert!(gave_up(&machine, "a"), "{end:?}: {:?}", machine.state.steps["a"].status);
        assert_eq!(machine.next().finish, Some(RunState::Cancelled), "{end:?}");
    }
}

#[test]
fn what_waits_when_the_run_begins_to_end_waits_no_more() {
    // On a failure elsewhere, on a person's word, and when it is overtaken.
    let unwinds = Step { on_failure: OnFailure::Unwind, ..step("fails", &[]) };
    let ends: [&[Event]; 3] = [&[intent("fails", 1), failed("fails", 1, false)], &[cancel()], &[superseded()]];
    for end in ends {
        let steps = vec![
            step("held", &[]),
            fence("unproven"),
            Step { retries: 1, ..step("again", &[]) },
            approval("ask", &[]),
            unwinds.clone(),
            Step { commit: true, ..step("commit", &["held", "unproven", "again", "ask", "fails"]) },
        ];
        let machine = Machine::new(book(Purpose::Failover, steps)).with(&[
            intent("held", 1),
            failed("held", 1, false),
            intent("unproven", 1),
            held("unproven", 1, attestation()),
            intent("again", 1),
            failed("again", 1, true),
            held("ask", 0, approve()),
        ]);
        assert_eq!(machine.next().waiting_for.len(), 3);
        let machine = machine.with(end);
        assert!(["held", "unproven", "again"].iter().all(|id| gave_up(&machine, id)), "{end:?}");
        // Who was asked for consent did nothing that could have failed.
        assert_eq!(machine.state.steps["ask"].status, StepStatus::Waiting, "{end:?}");
        assert!(machine.next().waiting_for.is_empty() && machine.next().finish.is_some(), "{end:?}");
    }
}

#[test]
fn clean_up_is_held_and_tried_again_even_while_the_run_is_ending_and_comes_in_its_order() {
    let steps = || {
        vec![
            Step { on_failure: OnFailure::Unwind, ..step("a", &[]) },
            Step { always: true, retries: 1, ..step("remove", &["a"]) },
            Step { always: true, ..step("verify", &["remove"]) },
        ]
    };
    let ending = || drill(steps()).with(&[intent("a", 1), failed("a", 1, false)]);
    assert_eq!(ending().next().start, ["remove"]);
    insta::assert_snapshot!(ending().refuses(&intent("verify", 1)), @"step verify may not start now");
    let again = ending().with(&[intent("remove", 1), failed("remove", 1, true)]);
    assert_eq!(again.next().start, ["remove"]);
    let held = again.with(&[intent("remove", 2), failed("remove", 2, true)]);
    assert_eq!(held.next().waiting_for, [("remove".to_owned(), decision())]);
    assert_eq!(held.next().finish, None);
    let done = held.with(&[retry("remove"), intent("remove", 3), done("remove", 3, "removed")]);
    assert_eq!(done.next().start, ["verify"]);
    // Held before the run began to end, it is held all the same.
    let steps = vec![Step { always: true, ..step("remove", &[]) }, step("a", &["remove"])];
    let machine = drill(steps).with(&[intent("remove", 1), failed("remove", 1, false), cancel()]);
    assert_eq!(machine.next().waiting_for, [("remove".to_owned(), decision())]);
}

#[test]
fn clean_up_waits_for_what_is_still_in_flight() {
    let steps = vec![step("a", &[]), Step { always: true, ..step("remove", &["a"]) }];
    let machine = drill(steps).with(&[intent("a", 1), cancel()]);
    assert!(machine.next().start.is_empty());
    insta::assert_snapshot!(machine.refuses(&intent("remove", 1)), @"step remove may not start now");
    assert_eq!(machine.with(&[done("a", 1, "ran")]).next().start, ["remove"]);
}

#[test]
fn nothing_is_taken_back_while_anything_is_in_flight() {
    let undoable = |id: &str| Step { undo: undo(), ..step(id, &[]) };
    let steps = vec![undoable("a"), undoable("b"), Step { commit: true, ..step("c", &["a", "b"]) }];
    let machine = Machine::new(book(Purpose::Failover, steps)).with(&[
        intent("a", 1),
        done("a", 1, "ran"),
        intent("b", 1),
        cancel(),
    ]);
    assert_eq!(machine.next().undo, None);
    for id in ["a", "b"] {
        let refused = machine.refuses(&Event::UndoIntent { step: id.into() });
        assert_eq!(refused, format!("step {id} is not the one to take back now"));
    }
    assert_eq!(machine.with(&[done("b", 1, "ran")]).next().undo.as_deref(), Some("b"));
}

#[test]
fn a_run_ends_early_once() {
    let two = || vec![step("a", &[]), Step { commit: true, ..step("b", &["a"]) }];
    let cancelled = Machine::new(book(Purpose::Failover, two())).with(&[intent("a", 1), cancel()]);
    insta::assert_snapshot!(cancelled.refuses(&cancel()), @"the run is ending already");
    // Overtaken, it does not even take back any more; and that is its last word.
    let overtaken = cancelled.with(&[superseded()]);
    insta::assert_snapshot!(overtaken.refuses(&superseded()), @"the run is stopping already");
    insta::assert_snapshot!(overtaken.refuses(&cancel()), @"the run is ending already");
    assert!(
        matches!(&overtaken.state.phase, Phase::Stopping { end: RunState::Failed, why } if why.contains("epoch 3"))
    );
}

#[test]
fn an_overtaken_run_leaves_what_it_was_taking_back() {
    let steps = vec![Step { undo: undo(), ..step("a", &[]) }, Step { commit: true, ..step("b", &["a"]) }];
    let taking_back = |more: &[Event]| {
        let begun = [intent("a", 1), done("a", 1, "ran"), cancel(), Event::UndoIntent { step: "a".into() }];
        Machine::new(book(Purpose::Failover, steps.clone())).with(&begun).with(more)
    };
    let failed = Event::UndoFailed { step: "a".into(), error: "no".into() };
    let again = Event::Observed { step: "a".into(), attempt: 1, found: Found::DoAgain };
    for more in [vec![], vec![failed], vec![again]] {
        let machine = taking_back(&more).with(&[superseded()]);
        assert!(matches!(&machine.state.steps["a"].undo, Undo::Skipped { by, .. } if by == "lifeboat"), "{more:?}");
        assert_eq!(machine.next().finish, Some(RunState::Failed), "{more:?}");
    }
    let machine = Machine::new(book(Purpose::Failover, steps.clone())).with(&[intent("a", 1), superseded()]);
    assert!(gave_up(&machine, "a"));
    // What was cut off is looked at under the number that it was begun with.
    let late = Event::Observed { step: "a".into(), attempt: 2, found: Found::DoAgain };
    insta::assert_snapshot!(taking_back(&[]).refuses(&late), @"step a is not running");
}

#[test]
fn what_keeps_writers_apart_is_neither_noted_nor_skipped() {
    let commit = Step { commit: true, ..step("it", &[]) };
    for it in [fence("it"), claim("it"), commit.clone()] {
        let noted = Step { on_failure: OnFailure::Note, ..it };
        let steps = if noted.commit { vec![noted] } else { vec![noted, Step { id: "b".into(), ..commit.clone() }] };
        let machine = Machine::new(book(Purpose::Failover, steps)).with(&[intent("it", 1), failed("it", 1, false)]);
        assert_eq!(machine.next().waiting_for, [("it".to_owned(), decision())]);
        assert!(machine.refuses(&skip("it")).contains("must not be skipped"));
    }
    let asked = drill(vec![approval("ask", &[])]).with(&[held("ask", 0, approve())]);
    assert!(asked.refuses(&skip("ask")).contains("must not be skipped"));
    insta::assert_snapshot!(asked.refuses(&retry("ask")), @"step ask is not held on a failure, so there is nothing to retry");
    insta::assert_snapshot!(asked.refuses(&attest("ask", "loss beyond 5s")), @"step ask does not ask for this statement");
}

#[test]
fn a_word_in_place_of_a_proof_is_for_a_fence_and_says_something() {
    let broken = |step: Step| drill(vec![step]).with(&[intent("a", 1), failed("a", 1, false)]);
    assert!(broken(step("a", &[])).refuses(&attest("a", "it is done")).contains("does not ask for this statement"));
    assert!(broken(fence("a")).refuses(&attest("a", " ")).contains("does not ask for this statement"));
    assert_eq!(broken(fence("a")).with(&[attest("a", "north is off")]).next().finish, Some(RunState::Completed));
    let waiting = drill(vec![fence("a")]);
    insta::assert_snapshot!(waiting.refuses(&attest("a", "north is off")), @"step a is not held, so there is nothing to attest");
}

#[test]
fn who_is_held_is_at_work_or_has_its_turn_to_ask() {
    let machine = drill(vec![step("a", &[]), approval("ask", &["a"])]);
    insta::assert_snapshot!(machine.refuses(&held("a", 0, decision())), @"step a is not running, so it cannot be held");
    insta::assert_snapshot!(machine.refuses(&held("ask", 0, approve())), @"step ask may not ask for approval now");
    let machine = machine.with(&[intent("a", 1)]);
    for attempt in [0, 2] {
        let refused = machine.refuses(&held("a", attempt, decision()));
        assert_eq!(refused, format!("attempt {attempt} of step a is not the current one"));
    }
    let machine = machine.with(&[done("a", 1, "ran")]);
    // A person's consent is all that it can wait for.
    insta::assert_snapshot!(machine.refuses(&held("ask", 0, decision())), @"step ask may not ask for approval now");
    assert_eq!(machine.with(&[held("ask", 0, approve())]).next().waiting_for, [("ask".to_owned(), approve())]);
}
