//! A vault behind `vault serve`: what a host can do there, what it cannot, and what neither end can do to the other.

mod lies;
pub(crate) mod world;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lifeboat_vault::serve::{Rights, ServeOptions, Who};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Operation, Put, Storage, StorageError};
use lifeboat_vault::{CheckOptions, HostVault, Role, TimeSource, Vault};

use self::world::Near;
use crate::world::{World, back_up, host_state, is_right, unlock};

fn named(name: &str) -> Who {
    Who::Named(name.to_owned(), Rights::default())
}

fn with(name: &str, rights: Rights) -> Who {
    Who::Named(name.to_owned(), rights)
}

fn refused(result: Result<impl std::fmt::Debug, StorageError>) -> String {
    match result {
        Err(StorageError::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

fn key_under(world: &World, prefix: &str) -> String {
    world.storage.list(prefix).unwrap().remove(0).key
}

#[test]
fn a_host_backs_up_with_nothing_but_the_right_to_create() {
    let world = World::new();
    let watched = Faulty::new(world.storage.clone());
    let near = Near::new(watched.clone(), named("alpha"));
    let remote = Arc::new(near.connect().unwrap());
    let vault = HostVault::open(remote, world.state.clone(), Some(&world.fingerprint)).unwrap();
    let first = back_up(&vault, "app", 1, 40).unwrap();
    let second = back_up(&vault, "app", 2, 40).unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 2));
    assert_eq!(vault.points(None).unwrap().points.len(), 2);
    // A second session knows what the first one stored: its own indexes can be read.
    assert_eq!(back_up(&vault, "app", 1, 40).unwrap().bytes_new, 0);
    let changed = |o: &Operation| matches!(o, Operation::Put | Operation::Delete);
    assert!(!watched.seen().iter().any(|(operation, _)| changed(operation)));

    let unlocked = world.unlock();
    assert!(is_right(&unlocked, &second, 2, 40).unwrap());
    assert!(unlocked.check(CheckOptions { read_data: true }).unwrap().is_sound());
    // Who may read restores through the server, too.
    let reader = Near::new(world.storage.clone(), with("reader", Rights { read: true, ..Rights::default() }));
    let unlocked = unlock(Arc::new(reader.connect().unwrap()), &world.fingerprint, &world.paper).unwrap();
    assert!(is_right(&unlocked, &first, 1, 40).unwrap());
}

#[test]
fn a_hosts_credentials_neither_read_nor_change_nor_delete_anything() {
    let world = World::new();
    let beta = host_state(&world.directory, "beta");
    let request = world.vault.request_enrolment(&beta, &[]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    let beta = HostVault::open(world.storage.clone(), beta, Some(&world.fingerprint)).unwrap();
    let theirs = back_up(&beta, "app", 5, 10).unwrap();
    let mine = back_up(&world.vault, "app", 1, 10).unwrap();
    let before = world.storage.list("").unwrap();
    let alpha = Near::new(world.storage.clone(), named("alpha")).connect().unwrap();

    for object in &before {
        refused(alpha.delete(&object.key));
        refused(alpha.put(&object.key, b"other bytes"));
        assert!(!matches!(alpha.put_if_absent(&object.key, b"other bytes"), Ok(Put::Created)), "{}", object.key);
    }
    let pack = key_under(&world, "pack/");
    let private = world.storage.list("keys/").unwrap().into_iter().map(|o| o.key).filter(|k| k.ends_with(".age"));
    let secrets =
        private.chain([pack, theirs.key.clone(), key_under(&world, "index/beta/"), key_under(&world, "keys/chunk/")]);
    for key in secrets {
        refused(alpha.get(&key));
        refused(alpha.get_range(&key, 0, 1));
    }
    assert!(alpha.get(&mine.key).is_ok());
    assert!(!alpha.list("").unwrap().iter().any(|o| o.key == theirs.key), "what it may not read is not shown");

    // Under another's name; under its own, but signed by another; a roster; a receipt.
    let snapshot = world.storage.get(&theirs.key).unwrap();
    let text = refused(alpha.put_if_absent("snap/beta/app/0000000002", &snapshot));
    assert!(text.contains("another place"), "{text}");
    world.storage.delete(&theirs.key).unwrap();
    let text = refused(alpha.put_if_absent(&theirs.key, &snapshot));
    assert!(text.contains("not this host's"), "{text}");
    assert!(refused(alpha.put_if_absent("snap/alpha/app/0000000002", &snapshot)).contains("not host alpha"));
    let roster = world.storage.get("roster/0000000002").unwrap();
    refused(alpha.put_if_absent("roster/0000000003", &roster));
    refused(alpha.put_if_absent("receipt/abc/0000000001", &roster));
    refused(alpha.put_if_absent("README.txt", b"trust me"));
    refused(alpha.put_if_absent("keys/refs/0000000002.cert", &world.storage.get("keys/refs/0000000001.cert").unwrap()));
    refused(alpha.put_if_absent("notes/of/mine", b"x"));
    // A pack under a name that is not its hash, and under one that is.
    let bytes = b"not much of a pack".to_vec();
    let digits = blake3::hash(&bytes).to_hex().to_string();
    let right = format!("pack/{}/{digits}", &digits[..2]);
    refused(alpha.put_if_absent(&right, b"something else"));
    assert_eq!(alpha.put_if_absent(&right, &bytes).unwrap(), Put::Created);
    // A second content key, so that it could open what is written from now on.
    let text = refused(alpha.put_if_absent(&format!("keys/content/app/{digits}.age"), &bytes));
    assert!(text.contains("only the owner seals it anew"), "{text}");

    world.storage.delete(&right).unwrap();
    world.storage.put(&theirs.key, &snapshot).unwrap();
    let keys = |listed: &[lifeboat_vault::storage::Listed]| listed.iter().map(|o| o.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&world.storage.list("").unwrap()), keys(&before));
    assert!(world.unlock().check(CheckOptions { read_data: true }).unwrap().is_sound());
}

#[test]
fn an_object_that_is_too_large_is_named_through_a_server_too() {
    let world = World::new();
    let key = key_under(&world, "roster/");
    world.storage.put(&key, &vec![0; (8 << 20) + 1]).unwrap();
    let reader = Near::new(world.storage.clone(), with("reader", Rights { read: true, ..Rights::default() }));
    let error = reader.connect().unwrap().get(&key).unwrap_err();
    let StorageError::TooLarge { key: named, size, limit } = error else { panic!("{error:?}") };
    assert_eq!((named, size, limit), (key, (8 << 20) + 1, 8 << 20));
}

#[test]
fn raw_frames_do_no_harm() {
    let world = World::new();
    let near = Near::new(world.storage.clone(), named("alpha"));
    let before = world.storage.list("").unwrap().len();
    let frame = |header: &[u8], body: &[u8]| {
        let lengths = [(header.len() as u32).to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
        [lengths.as_slice(), header, body].concat()
    };
    let hello = {
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        encoder.array(4).unwrap().u32(1).unwrap().bytes(&[0; 32]).unwrap().null().unwrap().null().unwrap();
        frame(&bytes, &[])
    };
    let request = |verb: u8, key: &str, body: &[u8]| {
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        encoder.array(5).unwrap().u64(1).unwrap().u8(verb).unwrap().str(key).unwrap();
        encoder.u64(0).unwrap().u64(u64::MAX).unwrap();
        frame(&bytes, body)
    };
    let attacks: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        u32::MAX.to_le_bytes().repeat(2),
        [hello.clone(), u32::MAX.to_le_bytes().repeat(2)].concat(),
        [hello.clone(), frame(b"\xff\xff\xff", b"")].concat(),
        [hello.clone(), request(9, "pack/x", b"")].concat(),
        [hello.clone(), 1u32.to_le_bytes().to_vec(), (96u32 << 20).to_le_bytes().to_vec(), vec![0; 50]].concat(),
        [hello.clone(), request(0, "../../etc/passwd", b"x")].concat(),
        [hello.clone(), request(2, "/etc/passwd", b"")].concat(),
        [hello.clone(), request(2, "pack/../../../etc/passwd", b"")].concat(),
        [hello.clone(), request(4, "../", b"")].concat(),
        [hello.clone(), request(3, "roster/0000000001", b"")].concat(),
        [hello.clone(), request(5, "roster/0000000001", b"")].concat(),
    ];
    for attack in attacks {
        let mut stream = near.raw();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // The server may have hung up by now.
        let _ = stream.write_all(&attack);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.len() < 2000 && !text.contains("root:"), "{text}");
    }
    assert_eq!(world.storage.list("").unwrap().len(), before);
    let vault =
        HostVault::open(Arc::new(near.connect().unwrap()), world.state.clone(), Some(&world.fingerprint)).unwrap();
    back_up(&vault, "app", 1, 3).unwrap();
}

#[test]
fn who_trickles_or_says_nothing_is_cut_off() {
    let world = World::new();
    let patience = Some(Duration::from_millis(300));
    let options = ServeOptions { patience, idle: patience, ..ServeOptions::default() };
    let near = Near::with(world.storage.clone(), named("alpha"), options);
    let began = Instant::now();
    let mut silent = near.raw();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    let mut trickling = near.raw();
    while trickling.write_all(&[1]).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(60), "still served");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Between two questions of an idle client its connection ends, and is made again when it asks.
    let options = ServeOptions { idle: patience, ..ServeOptions::default() };
    let near = Near::with(world.storage.clone(), named("alpha"), options);
    let remote = near.connect().unwrap();
    while near.ended.load(Ordering::SeqCst) == 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "an idle client is still served");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(remote.get("roster/0000000001").is_ok());
    // On a busy machine more than once.
    assert!(near.dialled.load(Ordering::SeqCst) >= 2);
}

#[test]
fn a_broken_connection_is_made_again_and_a_lost_answer_is_no_strangers() {
    let world = World::new();
    let near = Near::new(world.storage.clone(), named("alpha"));
    let remote = Arc::new(near.connect().unwrap());
    let vault = HostVault::open(remote.clone(), world.state.clone(), Some(&world.fingerprint)).unwrap();
    let breaker = {
        let (stream, done) = (near.stream.clone(), near.dialled.clone());
        std::thread::spawn(move || {
            while done.load(Ordering::SeqCst) < 6 {
                if let Some(stream) = stream.lock().unwrap().take() {
                    std::thread::sleep(Duration::from_millis(30));
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let mut points = 0;
    while near.dialled.load(Ordering::SeqCst) < 6 {
        let point = back_up(&vault, "app", points, 30).unwrap();
        points += 1;
        assert_eq!(point.sequence, points, "no answer that was lost was taken for somebody else's point");
    }
    breaker.join().unwrap();
    assert!(world.unlock().check(CheckOptions { read_data: true }).unwrap().is_sound());
}

#[test]
fn a_roster_key_opens_the_door_and_no_other_does() {
    let world = World::new();
    let near = |state: &lifeboat_vault::State| Near {
        state: Some(state.clone()),
        ..Near::new(world.storage.clone(), Who::OnRoster(Rights::default()))
    };
    let remote = near(&world.state).connect().unwrap();
    let vault = HostVault::open(Arc::new(remote), world.state.clone(), Some(&world.fingerprint)).unwrap();
    back_up(&vault, "app", 1, 3).unwrap();
    let stranger = host_state(&world.directory, "stranger");
    let text = refused(near(&stranger).connect());
    assert!(text.contains("is not on the roster"), "{text}");
    let keyless = Near::new(world.storage.clone(), Who::OnRoster(Rights::default()));
    assert!(refused(keyless.connect()).contains("no key was proven"));
    // A pruner's key deletes, but no point without a tombstone.
    let pruner = host_state(&world.directory, "pruner");
    let request = world.vault.request_enrolment(&pruner, &[Role::Pruner]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    let remote = near(&pruner).connect().unwrap();
    assert!(refused(remote.delete("snap/alpha/app/0000000001")).contains("no tombstone"));
    refused(remote.delete("roster/0000000001"));
    remote.delete(&key_under(&world, "pack/")).unwrap();
    assert!(world.storage.list("pack/").unwrap().is_empty());
    world.unlock().revoke("pruner").unwrap();
    assert!(refused(near(&pruner).connect()).contains("is not on the roster"));
}

#[test]
fn who_was_just_added_to_the_roster_is_let_in_and_believed_at_once() {
    let world = World::new();
    let join = |name: &str, before: &dyn Fn(&lifeboat_vault::State)| {
        let state = host_state(&world.directory, name);
        before(&state);
        let request = world.vault.request_enrolment(&state, &[]).unwrap();
        world.unlock().approve(&request.fingerprint).unwrap();
        state
    };
    // The server has looked at the roster, and looks again only now and then.
    let near = Near::new(world.storage.clone(), Who::OnRoster(Rights::default()));
    let at = |state: &lifeboat_vault::State| Near { state: Some(state.clone()), ..near.clone() };
    at(&world.state).connect().unwrap();
    let beta = join("beta", &|state| assert!(refused(at(state).connect()).contains("is not on the roster")));
    at(&beta).connect().unwrap();
    // Whom the operator names is let in anyway; what it signed counts once it is on the roster.
    let near = Near::new(world.storage.clone(), named("gamma"));
    let remote = near.connect().unwrap();
    let gamma = join("gamma", &|_| drop(refused(remote.put_if_absent("README.txt", b"mine"))));
    let vault = HostVault::open(Arc::new(remote), gamma, Some(&world.fingerprint)).unwrap();
    back_up(&vault, "app", 1, 3).unwrap();
}

#[test]
fn a_quota_and_a_floor_of_free_space_hold() {
    let world = World::new();
    let used: u64 = world.storage.list("").unwrap().iter().map(|o| o.size).sum();
    let limits: [(&str, ServeOptions); 2] = [
        ("quota", ServeOptions { quota: Some(used + 3000), ..ServeOptions::default() }),
        (
            "must stay free",
            ServeOptions { free: Some(Box::new(|| Some(5000))), free_min: 4000, ..ServeOptions::default() },
        ),
    ];
    for (word, options) in limits {
        let remote = Arc::new(Near::with(world.storage.clone(), named("alpha"), options).connect().unwrap());
        let vault = HostVault::open(remote, world.state.clone(), Some(&world.fingerprint)).unwrap();
        let error = back_up(&vault, "app", 1, 20).unwrap_err();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        assert!(text.contains(word) && text.contains("is full"), "{text}");
    }
    assert!(world.vault.points(None).unwrap().points.is_empty());
}

#[test]
fn a_keeper_signs_receipts_for_what_it_takes_in() {
    let world = World::new();
    let keeper = host_state(&world.directory, "keeper");
    let options = || ServeOptions { keeper: Some(keeper.clone()), ..ServeOptions::default() };
    let serve = |options| Near::with(world.storage.clone(), named("alpha"), options);
    let back_up_through = |near: &Near| {
        let remote = Arc::new(near.connect().unwrap());
        let vault = HostVault::open(remote, world.state.clone(), Some(&world.fingerprint)).unwrap();
        back_up(&vault, "app", 1, 4).unwrap()
    };
    let near = serve(options());
    back_up_through(&near);
    assert_eq!(near.server.is_keeper(), Some(false));
    assert!(world.storage.list("receipt/").unwrap().is_empty(), "its key is on no roster");
    let request = world.vault.request_enrolment(&keeper, &[Role::Keeper]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    let near = serve(options());
    let point = back_up_through(&near);
    // The farewell was said when the vault was dropped, and answered when the receipt was stored.
    let vault = Vault::open(world.storage.clone(), None, Some(&world.fingerprint)).unwrap();
    let receipts = vault.receipts().unwrap();
    assert!(receipts.findings().is_empty());
    let listed = world.storage.list(&point.key).unwrap().remove(0);
    let (at, source) = receipts.received_at(&listed, None).unwrap();
    assert_eq!(source, TimeSource::Receipt);
    assert!(at >= point.stored_at);
}

#[test]
fn a_new_vault_is_made_through_a_server_by_the_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let state = host_state(&directory, "alpha");
    let options = lifeboat_vault::InitOptions {
        recipients: vec![lifeboat_vault::Identity::generate().recipient()],
        ..Default::default()
    };
    let host: Arc<dyn Storage> = Arc::new(Near::new(storage.clone(), named("alpha")).connect().unwrap());
    assert!(Vault::init(host.clone(), &state, &options).is_err());
    assert!(storage.list("").unwrap().is_empty());
    let owner = Near::new(storage.clone(), with("owner", Rights { owner: true, ..Rights::default() }));
    let (_, made) = Vault::init(Arc::new(owner.connect().unwrap()), &state, &options).unwrap();
    let vault = HostVault::open(host, state, Some(&made.owner)).unwrap();
    back_up(&vault, "app", 1, 3).unwrap();
}
