//! A pruner that was broken into and says wrongly where chunks lie: nobody gets a wrong byte of it, and no host builds on a chunk that
//! its own indexes never named.

use std::sync::Arc;

use super::checker::{World, copy_directory};
use crate::State;
use crate::index::{self, MovedBody};
use crate::name;
use crate::open::{HostVault, Vault};
use crate::pack::{FrameRecord, Origin, PackBuilder, push_record};
use crate::port::{ChunkId, ChunkSink, ChunkSource};
use crate::seal::seal;
use crate::session::SessionOptions;
use crate::storage::{MemoryStorage, Storage};

#[test]
fn a_pruner_that_lies_gives_no_wrong_byte_and_no_host_a_chunk_that_it_never_had() {
    let world = World::new();
    let storage = Arc::new(MemoryStorage::from_snapshot(world.objects.clone()));
    let directory = tempfile::tempdir().unwrap();
    copy_directory(&world.state.path().join("alpha"), directory.path());
    let state = State::open(directory.path(), None).unwrap();
    let host = HostVault::open(storage.clone(), state.clone(), Some(&world.fingerprint)).unwrap();
    // The host has read its indexes before anybody lied to it.
    drop(host.begin("app", SessionOptions::default()).unwrap());
    let open = || {
        let vault = Vault::open(storage.clone(), None, Some(&world.fingerprint)).unwrap();
        vault.unlock(std::slice::from_ref(&world.owner)).unwrap()
    };
    let unlocked = open();
    let pruner = unlocked.pruner().unwrap();
    let roster = unlocked.roster();
    let content = unlocked.content("app").unwrap().recipient();
    let read = |number| {
        let index = index::read(&*storage, &roster, "alpha", "app", number).unwrap();
        index.open_body(std::slice::from_ref(&pruner.refs)).unwrap()
    };
    let (first, second) = (read(1), read(2));
    let (there, wanted) = (&first.packs[0], &second.packs[0]);
    let (wanted_id, length) = wanted.frames[0].chunks().next().unwrap();
    // A new pack with a frame of the first, which is said to hold the second's chunk, and one that nobody ever stored.
    let secret = [5; 32];
    let sealed_secret = seal(std::slice::from_ref(&content), &secret).unwrap();
    let mut builder = PackBuilder::for_moved(&roster.vault, &secret, &sealed_secret).unwrap();
    let origin = Origin { secret: first.secret.clone(), salt: there.salt };
    let invented = ChunkId([7; 32]);
    let mut chunks = Vec::new();
    push_record(&mut chunks, &wanted_id, length);
    push_record(&mut chunks, &invented, length);
    let frame = FrameRecord { chunks, ..there.frames[0].clone() };
    let whole = storage.get(&name::pack(&there.hash.0)).unwrap();
    let start = frame.offset as usize;
    builder.add_moved(&origin, 0, &frame, &whole[start..start + frame.bytes as usize]).unwrap();
    let (bytes, record) = builder.finish().unwrap();
    storage.put_if_absent(&name::pack(&record.hash.0), &bytes).unwrap();
    let recipients = [roster.refs.parse().unwrap(), content, state.index_key().recipient()];
    let body = MovedBody { secret: sealed_secret, packs: vec![record] };
    let place = (&roster, "alpha", "app");
    index::publish_moved(&*storage, place, 1, pruner.key(), &recipients, &body, &[wanted.hash]).unwrap();

    // While the right one is there, it is found.
    assert_eq!(open().source("app").unwrap().get(&wanted_id).unwrap(), [3; 40]);
    storage.delete(&name::pack(&wanted.hash.0)).unwrap();
    let source = open().source("app").unwrap();
    let error = source.get(&wanted_id).unwrap_err().to_string();
    assert!(source.get(&invented).is_err(), "{error}");
    let session = host.begin("app", SessionOptions::default()).unwrap();
    assert!(!session.contains(&invented));
    // And a check that reads says so.
    let report = open().check(crate::CheckOptions { read_data: true }).unwrap();
    assert!(report.findings.iter().any(|finding| finding.code == "damaged"), "{:?}", report.findings);
}
