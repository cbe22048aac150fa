//! The log as it streams, beside what PostgreSQL's own receiver wrote.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::super::lsn::{Lsn, Segments, Switch, parse_history};
use super::super::replication::{WalMessage, WalStream};
use super::super::session::{Purpose, Session, SessionError};
use super::super::slot;
use super::cluster::{Cluster, PATIENCE, run};
use super::session;

/// Writes some log, and says where it ends.
fn write(cluster: &Cluster, rows: u32) -> Lsn {
    cluster.psql("create table if not exists t (a text)");
    cluster.psql(&format!("insert into t select repeat(md5(i::text), 20) from generate_series(1, {rows}) as i"));
    cluster.psql("select pg_current_wal_flush_lsn()").parse().unwrap()
}

async fn next(stream: &mut WalStream) -> Result<WalMessage, SessionError> {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("nothing came")
}

/// All bytes up to a place, from where the stream began; answers what is asked.
async fn read_until(stream: &mut WalStream, from: Lsn, until: Lsn) -> Vec<u8> {
    let mut all = Vec::new();
    while from.checked_add(all.len() as u64).unwrap() < until {
        match next(stream).await.unwrap() {
            WalMessage::Data { start, server_end, bytes, .. } => {
                assert_eq!(start, from.checked_add(all.len() as u64).unwrap());
                assert!(server_end >= start);
                all.extend_from_slice(&bytes);
                let end = from.checked_add(all.len() as u64).unwrap();
                stream.report(end, end, Lsn(0), false).await.unwrap();
            }
            WalMessage::KeepAlive { reply: true, .. } => {
                stream.report(Lsn(0), Lsn(0), Lsn(0), false).await.unwrap();
            }
            WalMessage::KeepAlive { .. } => {}
            WalMessage::EndOfTimeline => {
                panic!("the timeline ended at {}", from.checked_add(all.len() as u64).unwrap())
            }
        }
    }
    all
}

/// What a folder of segments holds from a place on.
fn written_by_receiver(folder: &Path, segments: Segments, from: Lsn, bytes: usize) -> Vec<u8> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some((timeline, number)) = segments.parse(name.trim_end_matches(".partial")) {
            assert_eq!(timeline, 1);
            files.insert(number, std::fs::read(folder.join(name)).unwrap());
        }
    }
    let first = *files.keys().next().unwrap();
    assert!(segments.start(first) <= from);
    let all: Vec<u8> = files.into_values().flatten().collect();
    let skip = usize::try_from(from.checked_since(segments.start(first)).unwrap()).unwrap();
    all[skip..skip + bytes].to_vec()
}

#[tokio::test]
async fn what_streams_from_a_slot_is_what_pg_receivewal_writes() {
    for megabytes in [1, 16] {
        let mut cluster = Cluster::made_with(&[&format!("--wal-segsize={megabytes}")]);
        cluster.start();
        let mut queries = session(&cluster, Purpose::Queries).await;
        for name in ["ours", "theirs"] {
            slot::ensure(&mut queries, name, true).await.unwrap();
        }
        let mut replication = session(&cluster, Purpose::Replication).await;
        let system = replication.identify_system().await.unwrap();
        assert_eq!(system.system_id.to_string(), cluster.psql("select system_identifier from pg_control_system()"));
        assert_eq!(system.timeline, 1);
        let segments = Segments::new(replication.wal_segment_bytes().await.unwrap()).unwrap();
        assert_eq!(segments.bytes, megabytes << 20);
        let from = segments.start(segments.number_of(system.flushed));

        write(&cluster, 3_000);
        cluster.psql("select pg_switch_wal()");
        let mut stream = replication.start_replication(Some("ours"), from, 1).await.unwrap();
        let half = write(&cluster, 3_000);
        let mut ours = read_until(&mut stream, from, half).await;
        let end = write(&cluster, 20_000);
        let reached = from.checked_add(ours.len() as u64).unwrap();
        ours.extend(read_until(&mut stream, reached, end).await);

        let folder = cluster.place().join("received");
        run(super::cluster::as_postgres("mkdir").arg(&folder));
        // It notices that it is done when more comes.
        write(&cluster, 100);
        let mut receive = cluster.client("pg_receivewal");
        run(receive.arg("--slot=theirs").arg(format!("--endpos={end}")).arg("-D").arg(&folder));
        let bytes = usize::try_from(end.checked_since(from).unwrap()).unwrap();
        let theirs = written_by_receiver(&folder, segments, from, bytes);
        assert!(ours[..bytes] == theirs[..], "the log differs");
        assert!(segments.number_of(end) > segments.number_of(from), "more than one file");

        // What was reported as safe is what the server need not keep.
        let reached = from.checked_add(ours.len() as u64).unwrap();
        stream.report(reached, reached, Lsn(0), true).await.unwrap();
        let (mut kept, mut seen) = (None, String::new());
        for _ in 0..1000 {
            kept = slot::find(&mut queries, "ours").await.unwrap().and_then(|slot| slot.restart_lsn);
            seen = cluster.psql("select write_lsn, flush_lsn, replay_lsn, application_name from pg_stat_replication");
            if kept == Some(reached) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!((kept, seen), (Some(reached), format!("{reached}|{reached}||lifeboat-test")));
        // Midway it ends when asked, with nothing said about another timeline, and the session goes on.
        let (mut again, after) = stream.end().await.unwrap();
        assert_eq!(after, None);
        assert_eq!(again.identify_system().await.unwrap().system_id, system.system_id);
    }
}

#[tokio::test]
async fn a_promotion_is_followed_onto_the_next_timeline() {
    let primary = Cluster::started();
    let mut standby = primary.standby();
    standby.start();
    let mut replication = session(&standby, Purpose::Replication).await;
    let from = replication.identify_system().await.unwrap().flushed;
    let mut stream = replication.start_replication(None, from, 1).await.unwrap();
    let end = write(&primary, 500);
    let mut reached = from.checked_add(read_until(&mut stream, from, end).await.len() as u64).unwrap();
    assert_eq!(standby.psql("select pg_promote()"), "t");
    // Whatever was on its way, then the end, which stays the end.
    loop {
        match next(&mut stream).await.unwrap() {
            WalMessage::Data { bytes, .. } => reached = reached.checked_add(bytes.len() as u64).unwrap(),
            WalMessage::KeepAlive { .. } => {}
            WalMessage::EndOfTimeline => break,
        }
    }
    assert_eq!(next(&mut stream).await.unwrap(), WalMessage::EndOfTimeline);
    stream.report(reached, reached, reached, true).await.unwrap();
    let (mut replication, after) = stream.end().await.unwrap();
    let (timeline, begins) = after.unwrap();
    assert_eq!((timeline, begins), (2, reached));
    let history = replication.timeline_history(2).await.unwrap();
    assert_eq!(parse_history(&history).unwrap(), [Switch { timeline: 1, at: begins }]);
    assert_eq!(history, std::fs::read(standby.data().join("pg_wal/00000002.history")).unwrap());
    assert_eq!(replication.identify_system().await.unwrap().timeline, 2);
    let error = replication.timeline_history(7).await.unwrap_err();
    assert!(matches!(error, SessionError::Refused { .. }), "{error}");

    // Where nothing is left of the old timeline, its end is all there is.
    let mut ended = replication.start_replication(None, begins, 1).await.unwrap();
    assert_eq!(next(&mut ended).await.unwrap(), WalMessage::EndOfTimeline);
    let (replication, after) = ended.end().await.unwrap();
    assert_eq!(after, Some((2, begins)));

    let mut stream = replication.start_replication(None, begins, 2).await.unwrap();
    let end = write(&standby, 500);
    assert!(!read_until(&mut stream, begins, end).await.is_empty());

    let replication = session(&standby, Purpose::Replication).await;
    let mut beyond = replication.start_replication(None, Lsn(u64::MAX / 2), 2).await.unwrap();
    let error = next(&mut beyond).await.unwrap_err();
    assert!(error.to_string().contains("ahead of the WAL flush position") && !error.may_pass(), "{error}");
}

#[tokio::test]
async fn a_server_that_asks_is_answered_and_one_that_is_not_answered_gives_up() {
    let mut cluster = Cluster::new();
    cluster.set("wal_sender_timeout", "1s");
    cluster.start();
    let start = async || {
        let mut replication = session(&cluster, Purpose::Replication).await;
        let from = replication.identify_system().await.unwrap().flushed;
        (replication.start_replication(None, from, 1).await.unwrap(), from)
    };
    let (mut stream, from) = start().await;
    let mut asked = 0;
    while asked < 4 {
        if let WalMessage::KeepAlive { reply: true, .. } = next(&mut stream).await.unwrap() {
            asked += 1;
            stream.report(from, from, from, false).await.unwrap();
        }
    }
    // Asked ourselves, the server answers, and does not ask back.
    stream.report(from, from, from, true).await.unwrap();
    assert!(matches!(next(&mut stream).await.unwrap(), WalMessage::KeepAlive { reply: false, .. }));

    let (mut silent, _) = start().await;
    let error = loop {
        if let Err(error) = next(&mut silent).await {
            break error;
        }
    };
    assert!(error.may_pass(), "{error}");
    assert!(cluster.log().contains("terminating walsender process due to replication timeout"), "{}", cluster.log());
}

#[tokio::test]
async fn next_can_be_dropped_at_any_time_and_nothing_is_lost() {
    let cluster = Cluster::started();
    let mut replication = session(&cluster, Purpose::Replication).await;
    let from = replication.identify_system().await.unwrap().flushed;
    let mut stream = replication.start_replication(None, from, 1).await.unwrap();
    let end = write(&cluster, 20_000);
    let (mut reached, mut dropped) = (from, 0);
    while reached < end {
        // Polled once: what it had read by then must be there the next time.
        let message = {
            let mut next = std::pin::pin!(stream.next());
            std::future::poll_fn(|context| std::task::Poll::Ready(next.as_mut().poll(context))).await
        };
        match message {
            std::task::Poll::Ready(message) => {
                if let WalMessage::Data { bytes, .. } = message.unwrap() {
                    reached = reached.checked_add(bytes.len() as u64).unwrap();
                }
            }
            std::task::Poll::Pending => {
                dropped += 1;
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
        }
    }
    assert!(dropped > 0);
}

#[tokio::test]
async fn ends_of_the_server_midway_are_told_and_may_pass() {
    for how in ["stopped", "killed"] {
        let mut cluster = Cluster::started();
        let mut replication = session(&cluster, Purpose::Replication).await;
        let from = replication.identify_system().await.unwrap().flushed;
        let mut stream = replication.start_replication(None, from, 1).await.unwrap();
        // Who stops in good order waits until its receivers have everything, so both go on side by side.
        let ending = tokio::task::spawn_blocking(move || {
            if how == "stopped" {
                cluster.stop()
            } else {
                cluster.kill()
            }
            cluster
        });
        let mut reached = from;
        let error = loop {
            match next(&mut stream).await {
                Ok(WalMessage::Data { bytes, .. }) => reached = reached.checked_add(bytes.len() as u64).unwrap(),
                Ok(_) => {}
                Err(error) => break error,
            }
            // The server may be gone by now: the next look finds that out.
            let _ = stream.report(reached, reached, reached, false).await;
        };
        assert!(matches!(error, SessionError::Lost { .. }) && error.may_pass(), "{how}: {error}");
        let cluster = ending.await.unwrap();
        if how == "stopped" {
            let control = run(super::cluster::program("pg_controldata").arg("-D").arg(cluster.data()));
            let last = control.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:")).unwrap();
            assert!(reached > last.trim().parse().unwrap(), "the last of its log came, too");
        }
    }
}

#[tokio::test]
async fn a_slot_in_use_and_a_log_that_is_gone_are_told() {
    let mut cluster = Cluster::made_with(&["--wal-segsize=1"]);
    cluster.set("max_wal_size", "2MB");
    cluster.set("min_wal_size", "2MB");
    cluster.start();
    let mut queries = session(&cluster, Purpose::Queries).await;
    slot::ensure(&mut queries, "busy", true).await.unwrap();
    let open = async || -> (Session, Lsn) {
        let mut replication = session(&cluster, Purpose::Replication).await;
        let from = replication.identify_system().await.unwrap().flushed;
        (replication, from)
    };
    let (first, from) = open().await;
    let stream = first.start_replication(Some("busy"), from, 1).await.unwrap();
    let (second, _) = open().await;
    let error = second.start_replication(Some("busy"), from, 1).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("55006"), "{error}");
    assert!(error.may_pass() && slot::find(&mut queries, "busy").await.unwrap().unwrap().active_pid.is_some());
    let error = slot::drop(&mut queries, "busy").await.unwrap_err();
    assert!(error.may_pass(), "{error}");
    let (_, after) = stream.end().await.unwrap();
    assert_eq!(after, None);

    slot::drop(&mut queries, "busy").await.unwrap();
    for _ in 0..4 {
        write(&cluster, 3_000);
        cluster.psql("select pg_switch_wal()");
        cluster.psql("checkpoint");
    }
    let (third, _) = open().await;
    let mut gone = third.start_replication(None, from, 1).await.unwrap();
    let error = next(&mut gone).await.unwrap_err();
    assert!(error.to_string().contains("has already been removed") && !error.may_pass(), "{error}");
}

/// Whoever receives does so in a task of its own.
#[tokio::test]
async fn a_receiver_can_move_between_threads() {
    let cluster = Cluster::started();
    let door = super::door(&cluster);
    let received = tokio::spawn(async move {
        let mut session = Session::open(&door, Purpose::Replication, "").await?;
        let system = session.identify_system().await?;
        let mut stream = session.start_replication(None, system.flushed, 1).await?;
        stream.report(system.flushed, system.flushed, system.flushed, true).await?;
        let message = stream.next().await?;
        stream.end().await?.0.close().await;
        Ok::<_, SessionError>(message)
    });
    let message = received.await.unwrap().unwrap();
    assert!(matches!(message, WalMessage::Data { .. } | WalMessage::KeepAlive { .. }), "{message:?}");
}
