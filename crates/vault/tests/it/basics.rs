//! What a vault does on good days.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::{self, FsStorage, Put, Storage};
use lifeboat_vault::{
    Badge, CheckOptions, ChunkSink, ChunkSource, HostVault, Identity, InitOptions, LogPiece, LogTrail, Position, Role,
    SessionOptions, Severity, SnapshotDraft, Vault, VaultError,
};

use crate::world::{World, back_up, chunk, commit, host_state, is_right, put_chunks, unlock};

#[test]
fn a_point_comes_back_with_either_key() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 50).unwrap();
    assert_eq!(point.id, "alpha/app/0000000001");
    for key in [&world.owner, &world.paper] {
        let unlocked = unlock(world.storage.clone(), &world.fingerprint, key).unwrap();
        let points = unlocked.points(Some("app")).unwrap();
        assert_eq!(points.points, vec![point.clone()]);
        assert!(is_right(&unlocked, &point, 1, 50).unwrap());
        let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        assert!(report.chunks_read == 50 && report.packs_read == 1, "{report:?}");
    }
}

#[test]
fn a_second_backup_stores_only_what_is_new() {
    let world = World::new();
    let first = back_up(&world.vault, "app", 1, 200).unwrap();
    let session = world.vault.begin("app", SessionOptions::default()).unwrap();
    let mut ids = put_chunks(&session, 1, 200).unwrap();
    assert_eq!(session.bytes_new(), 0);
    let more = session.put(b"one more").unwrap();
    assert!(more.new && !session.put(b"one more").unwrap().new);
    ids.push(more.id);
    let second = commit(session, &ids).unwrap();
    assert!(second.bytes_new == 8 && second.bytes_stored < first.bytes_stored / 50, "{second:?}");
    let third = back_up(&world.vault, "app", 1, 200).unwrap();
    assert_eq!((third.bytes_new, third.bytes_stored, third.sequence), (0, 0, 3));
    assert!(is_right(&world.unlock(), &third, 1, 200).unwrap());
    // Another data set shares nothing: no host poisons another's.
    assert!(back_up(&world.vault, "other", 1, 200).unwrap().bytes_new > 0);
}

#[test]
fn many_threads_fill_one_session() {
    let world = World::new();
    let session = world.vault.begin("app", SessionOptions::fast()).unwrap();
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|t| {
                scope.spawn({
                    let session = &session;
                    move || put_chunks(session, t % 2, 3000).unwrap()
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let point = commit(session, &ids).unwrap();
    let expected: u64 = (0..2).flat_map(|s| (0..3000).map(move |n| chunk(s, n).len() as u64)).sum();
    assert_eq!(point.bytes_new, expected);
    let unlocked = world.unlock();
    let source = unlocked.source("app").unwrap();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(source.get(id).unwrap(), chunk(n as u64 / 3000 % 2, n as u64 % 3000));
        assert!(source.place(id).is_some());
    }
}

#[test]
fn two_sessions_at_once_both_win() {
    let world = World::new();
    let (a, b) =
        (world.vault.begin("app", SessionOptions::default()).unwrap(), world.reopen(world.storage.clone()).unwrap());
    let b = b.begin("app", SessionOptions::default()).unwrap();
    let (a_ids, b_ids) = (put_chunks(&a, 1, 20).unwrap(), put_chunks(&b, 2, 20).unwrap());
    let (second, first) = std::thread::scope(|scope| {
        let a = scope.spawn(|| commit(a, &a_ids).unwrap());
        let b = scope.spawn(|| commit(b, &b_ids).unwrap());
        (a.join().unwrap(), b.join().unwrap())
    });
    let mut sequences = [first.sequence, second.sequence];
    sequences.sort();
    assert_eq!(sequences, [1, 2]);
    let unlocked = world.unlock();
    assert!(is_right(&unlocked, &second, 1, 20).unwrap() && is_right(&unlocked, &first, 2, 20).unwrap());
    assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound());
}

#[test]
fn a_log_is_followed_without_keys_and_read_with_them() {
    let world = World::new();
    let mut writer = world.vault.log_writer("app", "l1", 1).unwrap();
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    for n in 0..5u64 {
        let piece = LogPiece { first: n * 10, last: n * 10 + 9, source_time: at, mark: false, final_mark: false };
        writer.append(piece, format!("piece {n}").as_bytes()).unwrap();
    }
    let mark = LogPiece { first: 49, last: 49, source_time: at, mark: true, final_mark: true };
    writer.append(mark, b"").unwrap();
    let reader = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    let entries = reader.log_entries("app", "l1", Some(29)).unwrap();
    let shape: Vec<_> = entries.iter().map(|e| (e.number, e.first, e.last, e.mark, e.final_mark)).collect();
    assert_eq!(shape, [(3, 30, 39, false, false), (4, 40, 49, false, false), (5, 49, 49, true, true)]);
    assert_eq!(reader.log_entries("app", "l1", Some(49)).unwrap().len(), 1);
    assert_eq!(reader.log_lineages("app").unwrap(), ["l1"]);
    let unlocked = world.unlock();
    assert_eq!(unlocked.read_log(&entries[0]).unwrap(), b"piece 3");
    // A writer that starts again goes on from the end; positions never go back.
    let mut again = world.vault.log_writer("app", "l1", 1).unwrap();
    assert_eq!(again.last().unwrap().number, 5);
    assert!(
        again.append(LogPiece { first: 3, last: 4, source_time: at, mark: false, final_mark: false }, b"").is_err()
    );
    // The writer that was left behind is told so.
    again.append(LogPiece { first: 50, last: 50, source_time: at, mark: false, final_mark: false }, b"x").unwrap();
    let left = writer.append(LogPiece { first: 50, last: 51, source_time: at, mark: false, final_mark: false }, b"y");
    assert!(matches!(left, Err(VaultError::Conflict { .. })), "{left:?}");
}

#[test]
fn a_log_is_read_from_a_position_on_without_what_is_before_it() {
    let world = World::new();
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    let mut writer = world.vault.log_writer("app", "l", 3).unwrap();
    for n in 0..100u64 {
        let (first, mark) = (n / 2 * 10 + 1, n % 2 == 1);
        let piece = LogPiece {
            first: if mark { first + 9 } else { first },
            last: first + 9,
            source_time: at,
            mark,
            final_mark: false,
        };
        writer.append(piece, b"x").unwrap();
    }
    let open = || Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    let since = |vault: &Vault, counter| {
        let position = Position { lineage: "l".into(), timeline: 3, counter };
        vault.log_since("app", &position).unwrap()
    };
    let numbers = |trail: &LogTrail| trail.entries.iter().map(|entry| entry.number).collect::<Vec<_>>();
    let all: Vec<u64> = (0..100).collect();
    for (counter, start) in [(0, 0), (1, 0), (10, 0), (11, 2), (255, 50), (260, 50), (261, 52), (500, 98), (501, 99)] {
        assert_eq!(numbers(&since(&open(), counter)), all[start..], "since {counter}");
    }
    // One vault asked again and again, from other places.
    let vault = open();
    for counter in [400, 300, 450, 0, 490] {
        let trail = since(&vault, counter);
        assert!(trail.findings.is_empty() && trail.entries.first().unwrap().last <= counter.max(10));
        assert_eq!(trail.entries.last().unwrap().number, 99);
    }
    assert_eq!(vault.log_trail("app", "l").unwrap().entries.len(), 100);
    // What is lost before the position does not matter to it; to a writer and to the whole it does.
    let object = |n: u64| vault.log_entries("app", "l", None).unwrap()[n as usize].key.clone();
    let (damaged, missing, later) = (object(49), object(30), object(80));
    world.storage.put(&damaged, b"rot").unwrap();
    world.storage.delete(&missing).unwrap();
    for counter in [255, 261, 400, 501] {
        let trail = since(&open(), counter);
        assert!(trail.findings.is_empty(), "since {counter}: {:?}", trail.findings);
        assert_eq!(trail.entries.last().unwrap().number, 99);
    }
    assert_eq!(open().log_trail("app", "l").unwrap().findings[0].object, missing);
    let host = HostVault::open(world.storage.clone(), host_state(&world.directory, "alpha"), None).unwrap();
    assert!(matches!(host.log_writer("app", "l", 3), Err(VaultError::Missing { object }) if object == missing));
    // What is lost after it is named.
    world.storage.delete(&later).unwrap();
    let trail = since(&open(), 300);
    assert_eq!((trail.findings[0].object.as_str(), trail.entries.last().unwrap().number), (later.as_str(), 79));
}

#[test]
fn a_standby_key_opens_its_data_set_only_and_inherits_it() {
    let standby = Identity::generate();
    let holder = lifeboat_vault::Holder {
        dataset: "app".into(),
        recipient: standby.recipient().to_string(),
        purpose: "standby".into(),
        place: "site b".into(),
    };
    let world = World::with_holders(vec![holder]);
    // The standby may come before there is anything to follow.
    let early = unlock(world.storage.clone(), &world.fingerprint, &standby).unwrap();
    assert!(early.datasets().is_empty() && matches!(early.source("app"), Err(VaultError::Invalid { .. })));
    let point = back_up(&world.vault, "app", 1, 40).unwrap();
    let secret = back_up(&world.vault, "secret", 2, 5).unwrap();
    let unlocked = unlock(world.storage.clone(), &world.fingerprint, &standby).unwrap();
    assert_eq!(unlocked.datasets(), ["app"]);
    assert_eq!(early.datasets(), ["app"]);
    assert!(is_right(&early, &point, 1, 40).unwrap());
    assert!(is_right(&unlocked, &point, 1, 40).unwrap());
    assert!(matches!(unlocked.read_root(&secret), Err(VaultError::WrongKey { .. })));
    assert!(matches!(unlocked.source("secret"), Err(VaultError::WrongKey { .. })));
    assert!(matches!(unlocked.revoke("alpha"), Err(VaultError::KeyNeeded { .. })));
    // The standby's host joins, and goes on without uploading everything again.
    let state = host_state(&world.directory, "beta");
    let reader = Vault::open(world.storage.clone(), Some(state.clone()), Some(&world.fingerprint)).unwrap();
    let request = reader.request_enrolment(&state, &[]).unwrap();
    assert!(matches!(HostVault::open(world.storage.clone(), state.clone(), None), Err(VaultError::NotEnrolled { .. })));
    assert_eq!(world.vault.enrolment_requests().unwrap(), std::slice::from_ref(&request));
    world.unlock().approve(&request.fingerprint).unwrap();
    let beta = HostVault::open(world.storage.clone(), state, None).unwrap();
    assert!(world.vault.enrolment_requests().unwrap().is_empty());
    beta.unlock(std::slice::from_ref(&standby)).unwrap().inherit(&beta, "app").unwrap();
    let next = back_up(&beta, "app", 1, 40).unwrap();
    assert_eq!((next.bytes_new, next.id.as_str()), (0, "beta/app/0000000001"));
    assert!(is_right(&world.unlock(), &next, 1, 40).unwrap());
    assert!(world.unlock().check(CheckOptions { read_data: true }).unwrap().is_sound());
}

#[test]
fn recipients_come_and_go_without_touching_data() {
    let world = World::new();
    let point = back_up(&world.vault, "app", 1, 10).unwrap();
    let packs = |w: &World| w.storage.list("pack/").unwrap();
    let before = packs(&world);
    let third = Identity::generate();
    assert!(matches!(unlock(world.storage.clone(), &world.fingerprint, &third), Err(VaultError::WrongKey { .. })));
    world.unlock().add_recipient(&third.recipient()).unwrap();
    world.unlock().remove_recipient(&world.paper.recipient()).unwrap();
    let unlocked = unlock(world.storage.clone(), &world.fingerprint, &third).unwrap();
    assert!(is_right(&unlocked, &point, 1, 10).unwrap());
    assert!(unlocked.is_owner());
    assert!(matches!(
        unlock(world.storage.clone(), &world.fingerprint, &world.paper),
        Err(VaultError::WrongKey { .. })
    ));
    assert_eq!(packs(&world), before);
    assert!(back_up(&world.vault, "app", 2, 3).is_ok());
    unlocked.remove_recipient(&world.owner.recipient()).unwrap();
    assert!(unlocked.remove_recipient(&third.recipient()).is_err());
    let report = world.vault.check(CheckOptions::default()).unwrap();
    assert!(report.is_sound() && report.findings.iter().any(|f| f.code == "one-recipient"), "{:?}", report.findings);
}

#[test]
fn a_point_says_what_it_is_and_whether_it_was_verified() {
    let world = World::new();
    let session = world.vault.begin("my/data set", SessionOptions::default()).unwrap();
    let position = Position { lineage: "l".into(), timeline: 3, counter: 77 };
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    let draft = SnapshotDraft {
        root: b"root".to_vec(),
        position: Some(position.clone()),
        source_time: at,
        files: 3,
        bytes: 99,
        notes: vec!["socket skipped".into()],
        schema: Some("7".into()),
        release: Some("1.2".into()),
        final_mark: true,
        epoch: 3,
        ..SnapshotDraft::default()
    };
    session.commit(draft).unwrap();
    let points = world.vault.points(None).unwrap();
    let point = &points.points[0];
    assert_eq!(point.id, "alpha/my%2Fdata%20set/0000000001");
    assert_eq!(
        (point.position.as_ref(), point.taken_at, point.epoch, point.final_mark),
        (Some(&position), at, 3, true)
    );
    assert_eq!((point.badge, points.findings.len()), (Badge::Unverified, 0), "{:?}", points.findings);
    world.vault.record_verification(point, Badge::Verified, "every chunk read").unwrap();
    assert_eq!(world.vault.points(None).unwrap().points[0].badge, Badge::Verified);
    world.vault.record_verification(point, Badge::Corrupt, "every chunk read").unwrap();
    let points = world.vault.points(None).unwrap();
    assert_eq!(points.points[0].badge, Badge::Corrupt);
    // The last of those that went as deep as is asked for.
    let last = |dataset: &str, depth: &str| world.vault.last_verification(dataset, depth).unwrap();
    assert_eq!((last("my/data set", "restored"), last("data set", "every")), (None, None));
    let last = last("my/data set", "every").unwrap();
    assert_eq!(
        (last.badge, last.point.as_str(), last.depth.as_str()),
        (Badge::Corrupt, points.points[0].id.as_str(), "every chunk read")
    );
    assert!(last.at > points.points[0].stored_at);
    // What is signed by nobody, and what was put under a later name, counts for nothing.
    let keys: Vec<String> = world.storage.list("verify/").unwrap().into_iter().map(|object| object.key).collect();
    let (place, name) = keys[0].rsplit_once('/').unwrap();
    let later = format!("{place}/{}", name.replacen("01", "09", 1));
    world.storage.put(&later, &world.storage.get(&keys[0]).unwrap()).unwrap();
    world.storage.put(&format!("{place}/09999999999999999999-00000000"), b"a lie").unwrap();
    assert_eq!(world.vault.last_verification("my/data set", "every").unwrap(), Some(last));
    for key in [later, format!("{place}/09999999999999999999-00000000")] {
        world.storage.delete(&key).unwrap();
    }
    assert!(points.newest("my/data set", None).is_none());
    assert_eq!(world.unlock().read_notes(&points.points[0]).unwrap(), ["socket skipped"]);
    assert!(world.vault.roster().permits(&world.state.signing_key().public(), Role::Host));
}

#[test]
fn a_directory_keeps_what_the_port_promises() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("store");
    assert!(storage::open(place.to_str().unwrap()).is_err());
    let store = FsStorage::create(&place).unwrap();
    assert_eq!(store.put_if_absent("a/b/c", b"one").unwrap(), Put::Created);
    assert_eq!(store.put_if_absent("a/b/c", b"two").unwrap(), Put::Exists);
    assert_eq!(store.get("a/b/c").unwrap(), b"one");
    store.put("a/b/c", b"three").unwrap();
    store.put("a/d", b"").unwrap();
    assert_eq!(store.get_range("a/b/c", 1, 2).unwrap(), b"hr");
    assert_eq!(store.get_range("a/b/c", 4, 20).unwrap(), b"e");
    assert_eq!(
        store.list("").unwrap().iter().map(|o| (o.key.as_str(), o.size)).collect::<Vec<_>>(),
        [("a/b/c", 5), ("a/d", 0)]
    );
    assert_eq!(store.list("a/b").unwrap().len(), 1);
    assert_eq!(store.list("a/b/").unwrap().len(), 1);
    assert_eq!(store.list("a/bb").unwrap(), []);
    assert!(store.get("a/x").unwrap_err().is_not_found());
    store.delete("a/d").unwrap();
    store.delete("a/d").unwrap();
    assert_eq!(store.list("a/").unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(place.join(".tmp")).unwrap().count(), 0);
    // Of many writers of one key exactly one creates it.
    let created = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u8)
            .map(|n| {
                scope.spawn({
                    let store = &store;
                    move || store.put_if_absent("race", &[n]).unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).filter(|p| *p == Put::Created).count()
    });
    assert_eq!(created, 1);
    // A symbolic link leads nowhere.
    std::os::unix::fs::symlink("/etc", place.join("out")).unwrap();
    assert!(store.get("out/hostname").is_err());
    // The directory that was opened is gone, or another lies in its place: an error, never a new vault.
    std::fs::rename(&place, directory.path().join("away")).unwrap();
    insta::assert_snapshot!(store.put("x", b"").unwrap_err().to_string().replace(place.to_str().unwrap(), "STORE"), @"STORE is gone or not a directory; mount it, or correct the address");
    std::fs::create_dir(&place).unwrap();
    insta::assert_snapshot!(store.put("x", b"").unwrap_err().to_string().replace(place.to_str().unwrap(), "STORE"), @"STORE is no longer the directory that was opened (was it unmounted?); mount it again, then start over");
}

#[test]
fn a_vault_in_a_directory_holds_neither_plaintext_nor_private_keys() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("vault");
    let (owner, paper) = (Identity::generate(), Identity::generate());
    let state = host_state(&directory, "alpha");
    let options = InitOptions { recipients: vec![owner.recipient(), paper.recipient()], ..InitOptions::default() };
    let (vault, made) = Vault::init(storage::create(place.to_str().unwrap()).unwrap(), &state, &options).unwrap();
    assert!(matches!(Vault::init(vault.storage().clone(), &state, &options), Err(VaultError::VaultExists { .. })));
    let session = vault.begin("app", SessionOptions::default()).unwrap();
    let secret = b"a very secret sentence that must not be seen".repeat(50);
    let id = session.put(&secret).unwrap().id;
    let draft = SnapshotDraft {
        root: secret.clone(),
        references: vec![id],
        notes: vec!["secret note".into()],
        ..SnapshotDraft::default()
    };
    let point = session.commit(draft).unwrap();
    let mut writer = vault.log_writer("app", "l", 1).unwrap();
    let piece = LogPiece { first: 1, last: 1, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
    writer.append(piece, &secret).unwrap();
    let unlocked = unlock(storage::open(place.to_str().unwrap()).unwrap(), &made.owner, &owner).unwrap();
    assert_eq!(unlocked.source("app").unwrap().get(&id).unwrap(), secret);
    assert_eq!(unlocked.read_root(&point).unwrap(), secret);
    let stat = unlocked.stat().unwrap();
    assert_eq!((stat.datasets[0].points, stat.kinds["pack"].0, stat.kinds["log"].0), (1, 1, 1));
    let chunk_key = std::fs::read_to_string(find(directory.path(), ".chunk-key").pop().unwrap()).unwrap();
    for file in find(directory.path(), "") {
        let bytes = std::fs::read(&file).unwrap();
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
        let in_vault = file.starts_with(&place);
        assert!(!has(b"very secret") && !has(b"secret note"), "{} holds plaintext", file.display());
        let private = has(b"AGE-SECRET-KEY-1") || has(chunk_key.as_bytes());
        assert!(!private || !in_vault, "{} holds a private key", file.display());
        if !in_vault {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "{}", file.display());
            if private && !file.ends_with("index.key") {
                assert!(file.to_str().unwrap().ends_with(".chunk-key"), "{}", file.display());
            }
        }
    }
    // The host itself cannot read what it wrote: its own index key opens no content.
    let index_key = Identity::load_all(&directory.path().join("alpha/index.key")).unwrap();
    assert!(matches!(vault.unlock(&index_key), Err(VaultError::WrongKey { .. })));
    // Plain age opens the content key's file.
    let file = find(&place.join("keys/content"), ".age").pop().unwrap();
    let opened = lifeboat_vault::seal::unseal([&paper], &std::fs::read(file).unwrap()).unwrap();
    assert!(String::from_utf8(opened).unwrap().contains("AGE-SECRET-KEY-1"));
    assert!(unlocked.unlock_findings().iter().all(|f| f.severity != Severity::Alarm));
}

fn find(directory: &std::path::Path, ending: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(find(&path, ending));
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_foreign_vault_is_refused_by_its_owners_fingerprint() {
    let (mine, theirs) = (World::new(), World::new());
    let refused = Vault::open(theirs.storage.clone(), None, Some(&mine.fingerprint)).unwrap_err();
    assert!(matches!(refused, VaultError::ForeignVault { .. }), "{refused}");
    // Without a fingerprint the first one seen at a place is kept to.
    let place: Arc<dyn Storage> = theirs.storage.clone();
    let state = host_state(&mine.directory, "reader");
    let first = Vault::open(place.clone(), Some(state.clone()), None).unwrap();
    assert!(first.findings().iter().any(|f| f.code == "owner-unproven"));
    assert!(matches!(Vault::open(mine.storage.clone(), Some(state), None), Err(VaultError::ForeignVault { .. })));
}
