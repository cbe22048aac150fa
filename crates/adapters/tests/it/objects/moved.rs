//! What a pruner moves and gathers in a bucket: small packs into one, a log that was streamed over bad lines into few objects, and it all
//! comes back.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::prune::{MoveRules, Swept};
use lifeboat_vault::{
    ChunkSink, KeepRules, LogPiece, PointInfo, Position, PruneOptions, SessionOptions, SnapshotDraft,
};

use super::proxy::Proxy;
use super::servers::{self, Server, User, open_hastily};
use super::vaults::{World, back_up, noise, point_comes_back};
use super::versions::Aged;

const TRANSACTIONS: u64 = 70;

fn said(n: u64) -> Vec<u8> {
    format!("transaction {n}").into_bytes()
}

/// A point that a log goes on from, and the log, over lines that fail.
fn stream(world: &World, server: &Server, bucket: &str) -> PointInfo {
    let proxy = Proxy::before(server.port);
    let host = world.reopened(Arc::new(open_hastily(&proxy.endpoint(), bucket, User::Owner)));
    proxy.chaos(5, 0.1);
    let session = host.begin("app", SessionOptions::default()).unwrap();
    let id = session.put(&noise(77, 3000)).unwrap().id;
    let position = Some(Position { lineage: "l".to_owned(), timeline: 1, counter: 0 });
    let (root, references) = (id.0.to_vec(), vec![id]);
    let draft = SnapshotDraft { root, references, source_time: Timestamp::now(), position, ..SnapshotDraft::default() };
    let base = session.commit(draft).unwrap();
    let mut writer = host.log_writer("app", "l", 1).unwrap();
    for n in 1..=TRANSACTIONS {
        let piece = LogPiece { first: n, last: n, source_time: Timestamp::now(), mark: false, final_mark: false };
        writer.append(piece, &said(n)).unwrap();
    }
    assert!(proxy.spoiled().len() > 3, "{:?}", proxy.spoiled());
    base
}

fn moves_and_gathers(server: &Server) {
    let bucket = server.bucket();
    let aged = Aged::over(Arc::new(server.open(&bucket)));
    let world = World::in_bucket(aged.clone());
    let base = stream(&world, server, &bucket);
    let from = world.tree(5, 100_000);
    for round in 0..3 {
        std::fs::write(from.join("0/round"), noise(500 + round, 300_000)).unwrap();
        back_up(&world.host, &from).unwrap();
    }
    let count = |prefix: &str| world.storage.list(prefix).unwrap().len();
    let (packs, logs) = (count("pack/"), count("log/"));
    let options = |now| PruneOptions {
        rules: Some(KeepRules { last: 100, ..KeepRules::default() }),
        moves: MoveRules { small_packs: 2, ..MoveRules::default() },
        min_age: SignedDuration::ZERO,
        now: Some(now),
        ..PruneOptions::default()
    };
    let pruner = world.unlock().pruner().unwrap();
    let now = options(aged.pass(4));
    let proposed = pruner.propose(&now).unwrap();
    assert!(proposed.moved_packs >= 3 && proposed.log_containers == 1, "{proposed:?}");
    pruner.perform(&proposed, &now).unwrap();
    let Swept::Done(swept) = pruner.go_on(&options(aged.pass(4))).unwrap() else { panic!("not swept") };
    assert!(swept.kept.is_empty() && swept.locked.is_empty(), "{swept:?}");
    assert!(count("pack/") < packs && count("log/") < logs / 4, "{} packs, {} logs", count("pack/"), count("log/"));
    let unlocked = world.unlock();
    let trail = unlocked.log_since("app", base.position.as_ref().unwrap()).unwrap();
    let read: Vec<Vec<u8>> = trail.entries.iter().map(|entry| unlocked.read_log(entry).unwrap()).collect();
    assert_eq!(read, (1..=TRANSACTIONS).map(said).collect::<Vec<_>>());
    let newest = unlocked.points(Some("docs")).unwrap().points.pop().unwrap();
    point_comes_back(&world, &newest, &from);
    world.check();
    // The host builds on what was moved.
    let again = back_up(&world.reopened(world.storage.clone()), &from).unwrap();
    assert_eq!(again.bytes_new, 0, "{again:?}");
    point_comes_back(&world, &again, &from);
}

#[test]
fn small_packs_and_a_log_over_bad_lines_are_put_together_in_a_bucket_of_radosgw() {
    moves_and_gathers(servers::radosgw());
}

/// *Emulated*.
#[test]
fn small_packs_and_a_log_over_bad_lines_are_put_together_in_an_emulated_bucket() {
    moves_and_gathers(servers::emulated());
}
