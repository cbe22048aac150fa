//! What a host's credentials can do, that were given the rights which the doctor prints.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::doctor::Wanted;
use lifeboat_vault::storage::{Storage, StorageError};
use lifeboat_vault::{ChunkSink, HostVault, SessionOptions, SnapshotDraft, State, Vault};

use super::doctor::permit;
use super::servers::{self, User, open_at};
use super::vaults::{World, back_up, noise, point_comes_back};

#[test]
fn a_hosts_rights_are_enough_for_backups_and_for_nothing_of_others() {
    let server = servers::radosgw();
    let place = format!("{}/dr/vault", server.bucket());
    let world = World::in_bucket(Arc::new(server.open(&place)));
    // What a user of this server created it may read, whatever the policy says: only what is not its own shows the policy.
    let owners: Vec<String> = world.storage.list("").unwrap().into_iter().map(|listed| listed.key).collect();
    permit(server, &place, Wanted::Host);
    let theirs: Arc<dyn Storage> = Arc::new(open_at(&server.endpoint(), &place, User::Host));
    let host = HostVault::open(theirs.clone(), world.host.state().clone(), Some(&world.owner)).unwrap();
    let from = world.tree(20, 30_000);
    back_up(&host, &from).unwrap();
    std::fs::write(from.join("0/new"), b"later").unwrap();
    let second = back_up(&world.reopened(theirs.clone()), &from).unwrap();
    point_comes_back(&world, &second, &from);
    // A name with dots: of the wildcards of this server each ends at the first dot.
    for _ in 0..2 {
        let session = world.reopened(theirs.clone()).begin("my.shop.db", SessionOptions::default()).unwrap();
        let id = session.put(&noise(9, 3000)).unwrap().id;
        let (root, references) = (id.0.to_vec(), vec![id]);
        let draft = SnapshotDraft { root, references, source_time: Timestamp::now(), ..SnapshotDraft::default() };
        session.commit(draft).unwrap();
    }
    world.check();
    // Another machine asks to be let in.
    let state = State::open(&world.directory.path().join("gamma"), Some("gamma")).unwrap();
    let vault = Vault::open(theirs.clone(), None, Some(&world.owner)).unwrap();
    let request = vault.request_enrolment(&state, &[]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();

    let denied = |result: Result<(), StorageError>, key: &str| {
        assert!(matches!(result, Err(StorageError::Denied { .. })), "{key}: {result:?}");
    };
    let not_theirs = [
        "roster/0000000003",
        "keys/owner/0000000002.cert",
        "keys/refs/0000000002.cert",
        "keys/content/docs/0000000002.cert",
        "tombstone/alpha/docs/0000000001",
        "prune/0000000001/proposal",
        "receipt/0000/0000000001",
        "copy/0000000001-b-done",
        "snap/beta/docs/0000000001",
        "index/beta/docs/0000000001",
        "index/alpha/docs/moved-0000000001-0000000000000000",
        "index/alpha/shop.db/moved-0000000001-0000000000000000",
        "log/docs/l/0000000001/gathered/0000000001-0000000002",
        "log/shop.db/l/0000000001/gathered/0000000001-0000000002",
        "README.txt",
        "probe/0",
        "anything",
    ];
    for key in not_theirs {
        denied(theirs.put(key, b"junk"), key);
        denied(theirs.put_if_absent(key, b"junk").map(|_| ()), key);
    }
    for listed in world.storage.list("").unwrap() {
        denied(theirs.delete(&listed.key), &listed.key);
        if listed.key.ends_with(".age") && owners.contains(&listed.key) {
            denied(theirs.get(&listed.key).map(|_| ()), &listed.key);
        }
    }
    assert!(owners.iter().any(|key| key.ends_with(".age")), "{owners:?}");
    world.check();
}
