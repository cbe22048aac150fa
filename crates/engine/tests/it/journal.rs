//! The journal on a real disk: broken, full, moved, unplugged.

use lifeboat_core::run::{Event, RunState};
use lifeboat_core::runbook::Purpose;
use lifeboat_engine::arbitrate::LockState;
use lifeboat_engine::execute::{Ended, ExecuteError};
use lifeboat_engine::journal::{Head, JournalError};
use lifeboat_engine::port::Cancel;
use rusqlite::Connection;

use crate::world::{Bench, book, failover, start, step};

fn note(text: &str) -> Event {
    Event::Note { text: text.into() }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}

#[test]
fn entries_come_back_as_written_and_survive_reopening() {
    let bench = Bench::new();
    let journal = bench.journal();
    let (one, sealed) = journal.append("r1", &Head::start(), &note("first")).unwrap();
    let head = Head { seq: 1, hash: sealed.hash };
    let (two, _) = journal.append("r1", &head, &note("second")).unwrap();
    let host = journal.host().to_owned();
    drop(journal);
    let again = bench.journal();
    assert_eq!(again.read("r1").unwrap().entries, [one, two]);
    assert_eq!(again.host(), host);
    assert!(matches!(again.read("r2"), Err(JournalError::NoRun { .. })));
}

#[test]
fn who_has_not_seen_the_last_entry_writes_nothing() {
    let bench = Bench::new();
    let (journal, other) = (bench.journal(), bench.journal());
    let (_, sealed) = journal.append("r1", &Head::start(), &note("first")).unwrap();
    let head = Head { seq: 1, hash: sealed.hash };
    other.append("r1", &head, &note("from elsewhere")).unwrap();
    assert!(matches!(journal.append("r1", &head, &note("too late")), Err(JournalError::Moved { seq: 1, .. })));
    assert!(matches!(journal.append("r1", &Head::start(), &note("x")), Err(JournalError::Exists { .. })));
    assert_eq!(journal.read_after("r1", &head).unwrap().len(), 1);
    assert_eq!(journal.read("r1").unwrap().entries.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_journal_is_refused_by_entry_and_hides_no_other_run() {
    let bench = Bench::new();
    bench.executor().start(start("r1", failover()), &Cancel::default()).await.unwrap();
    let journal = bench.journal();
    journal.append("r2", &Head::start(), &note("not a start")).unwrap();
    drop(journal);
    let raw = Connection::open(bench.state().join("journal.sqlite")).unwrap();
    raw.execute(
        "update entries set body = replace(body, 'attempt\":1', 'attempt\":2') where run = 'r1' and seq = 4",
        [],
    )
    .unwrap();
    drop(raw);
    let error = bench.journal().read("r1").unwrap_err();
    let place = bench.state().display().to_string();
    insta::assert_snapshot!(causes(&error).replace(&place, "STATE"), @"the journal STATE/journal.sqlite is not whole; it is not continued. Compare it with its mirror in the arbiter's storage (journal/r1/): entry 4 of run r1 was changed after it was written: its text does not match its hash");
    let error = bench.executor().resume("r1", "ben", &Cancel::default()).await.unwrap_err();
    assert!(causes(&error).contains("entry 4 of run r1"), "{}", causes(&error));
    let listed = bench.journal().runs().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|listing| listing.problem.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_entry_is_named() {
    let bench = Bench::new();
    bench.executor().start(start("r1", failover()), &Cancel::default()).await.unwrap();
    let raw = Connection::open(bench.state().join("journal.sqlite")).unwrap();
    raw.execute("delete from entries where run = 'r1' and seq = 3", []).unwrap();
    drop(raw);
    let error = bench.journal().read("r1").unwrap_err();
    assert!(causes(&error).contains("entry 3 of run r1 stands in the place of entry 4"), "{}", causes(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_run_before_it_acts_and_resuming_ends_it() {
    let bench = Bench::new();
    let executor = bench.executor();
    let steps = (0..60)
        .map(|n| {
            step(
                &format!("s{n}"),
                &if n > 0 { vec![format!("s{}", n - 1)] } else { vec![] }
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    // A few pages more than it has now: the run-book fits, not much after it.
    executor.journal.cap_pages(16).unwrap();
    let error = executor.start(start("r1", book(Purpose::Drill, steps)), &Cancel::default()).await.unwrap_err();
    let ExecuteError::Journal(JournalError::Full { seq, .. }) = &error else { panic!("{error:?}") };
    assert!(*seq > 2, "the run did not get far enough to show anything: {seq}");
    assert!(error.to_string().contains("make room, then `lifeboat run resume r1`"), "{error}");
    let recorded = bench.journal().read("r1").unwrap();
    assert_eq!(recorded.head.seq + 1, *seq);
    let intents = recorded.entries.iter().filter(|entry| matches!(entry.event, Event::Intent { .. })).count() as u32;
    let calls: u32 = (0..60).map(|n| bench.world.calls(&format!("s{n}"))).sum();
    assert!(calls <= intents, "something was done without a recorded intent");
    // Another machine need not wait for the lock to run out.
    let (_, beat) = bench.arbiter().run_lock("shop").unwrap().unwrap();
    assert_eq!(beat.unwrap().state, LockState::Paused);
    drop(executor);
    let ended = bench.executor().resume("r1", "ben", &Cancel::default()).await.unwrap();
    assert_eq!(ended, Ended::Finished(RunState::Completed));
    assert!((0..60).all(|n| bench.world.effects(&format!("s{n}")) == 1));
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let bench = Bench::new();
    let file = bench.state().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = lifeboat_engine::journal::Journal::open(&file, bench.clock.clone()).unwrap_err();
    assert!(error.to_string().contains("file/journal.sqlite cannot be opened"), "{error}");
}
