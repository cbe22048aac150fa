//! Rules of the door that no well-behaved client tries: each is broken here, and must be refused.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::ScopedJoinHandle;

use super::super::access::Rights;
use super::*;
use crate::open::{HostVault, InitOptions};
use crate::seal::Identity;
use crate::storage::MemoryStorage;

struct Door {
    storage: Arc<MemoryStorage>,
    server: Server,
    host: HostVault,
    owner: Identity,
    directory: tempfile::TempDir,
}

impl Door {
    fn admit(&self, name: &str, roles: &[Role]) -> State {
        let state = State::open(&self.directory.path().join(name), Some(name)).unwrap();
        let request = self.host.request_enrolment(&state, roles).unwrap();
        let vault = Vault::open(self.storage.clone(), None, None).unwrap();
        vault.unlock(std::slice::from_ref(&self.owner)).unwrap().approve(&request.fingerprint).unwrap();
        state
    }
}

fn door() -> Door {
    let directory = tempfile::tempdir().unwrap();
    let storage = Arc::new(MemoryStorage::new());
    let state = State::open(&directory.path().join("alpha"), Some("alpha")).unwrap();
    let owner = Identity::generate();
    let recipients = vec![owner.recipient(), Identity::generate().recipient()];
    let options = InitOptions { recipients, ..InitOptions::default() };
    let (host, _) = Vault::init(storage.clone(), &state, &options).unwrap();
    Door { server: Server::new(storage.clone(), ServeOptions::default()), storage, host, owner, directory }
}

fn asker(rights: Rights) -> Asker {
    Asker { name: "alpha".to_owned(), rights }
}

fn ask(server: &Server, rights: Rights, verb: Verb, key: &str, body: &[u8]) -> (Status, String) {
    let request = Request { id: 1, verb, key: key.to_owned(), offset: 0, length: 0 };
    let Answer(status, text, _) = server.answer(&asker(rights), &request, body);
    (status, text)
}

/// A right request to join, and another one for the same place.
fn two_requests(door: &Door) -> (String, Vec<u8>, Vec<u8>) {
    let stranger = State::open(&door.directory.path().join("beta"), Some("beta")).unwrap();
    let bytes = |roles: &[Role]| {
        let elsewhere = Arc::new(MemoryStorage::from_snapshot(door.storage.snapshot()));
        Vault::open(elsewhere.clone(), None, None).unwrap().request_enrolment(&stranger, roles).unwrap();
        let key = elsewhere.list("enroll/").unwrap().pop().unwrap().key;
        (key.clone(), elsewhere.get(&key).unwrap())
    };
    let ((key, one), (again, other)) = (bytes(&[]), bytes(&[Role::Pruner]));
    assert!(key == again && one != other);
    (key, one, other)
}

fn meet(server: &Server, hello: &Hello) -> Option<Asker> {
    let mut bytes = Vec::new();
    wire::write(&mut bytes, hello, &[]).unwrap();
    let line = Outward {
        writer: Mutex::new(Box::new(io::sink())),
        writing: Deadline::none(),
        patience: GRACE,
        served: Mutex::default(),
    };
    server.meet(&mut bytes.as_slice(), &line, &Who::OnRoster(Rights::default())).unwrap()
}

#[test]
fn a_key_of_the_roster_opens_nothing_without_a_signature_over_this_greeting() {
    let door = door();
    let key = door.host.state().signing_key();
    let hello = |signature| Hello { version: wire::VERSION, nonce: [7; 32], key: Some(key.public()), signature };
    assert!(meet(&door.server, &hello(None)).is_none());
    // Right, but over another server's greeting: a replay.
    let replayed = key.sign(wire::HELLO_KIND, &wire::hello_payload(&[1; 32], &[7; 32]));
    assert!(meet(&door.server, &hello(Some(replayed.to_vec()))).is_none());
}

#[test]
fn nobody_but_the_owner_or_a_copy_begins_a_vault() {
    let server = Server::new(Arc::new(MemoryStorage::new()), ServeOptions::default());
    let host = ask(&server, Rights::default(), Verb::PutIfAbsent, "README.txt", b"mine");
    assert_eq!(host.0, Status::Refused, "{host:?}");
    let rights = Rights { owner: true, ..Rights::default() };
    assert_eq!(ask(&server, rights, Verb::PutIfAbsent, "README.txt", b"ours").0, Status::Done);
}

#[test]
fn requests_to_join_do_not_pile_up_and_are_small() {
    let door = door();
    let (key, request, _) = two_requests(&door);
    let large = vec![0; REQUEST_BYTES_MAX as usize + 1];
    assert_eq!(ask(&door.server, Rights::default(), Verb::PutIfAbsent, &key, &large).0, Status::TooLarge);
    for n in 0..REQUESTS_WAITING_MAX {
        door.storage.put(&format!("enroll/{n:032x}"), b"waits").unwrap();
    }
    let (status, text) = ask(&door.server, Rights::default(), Verb::PutIfAbsent, &key, &request);
    assert!(status == Status::Refused && text.contains("too many requests wait"), "{status:?}: {text}");
    door.storage.delete(&format!("enroll/{:032x}", 0)).unwrap();
    assert_eq!(ask(&door.server, Rights::default(), Verb::PutIfAbsent, &key, &request).0, Status::Done);
}

#[test]
fn what_lies_there_is_told_from_ones_own_and_replaced_only_where_it_is_wrong_by_who_may() {
    let door = door();
    let (key, one, other) = two_requests(&door);
    let (host, copier) = (Rights::default(), Rights { copy: true, ..Rights::default() });
    let put = |verb, rights, body: &[u8]| ask(&door.server, rights, verb, &key, body);
    assert_eq!(put(Verb::PutIfAbsent, host, &one).0, Status::Done);
    // The answer was lost: it is one's own. Another one's is not.
    assert_eq!(put(Verb::PutIfAbsent, host, &one).0, Status::Same);
    assert_eq!(put(Verb::PutIfAbsent, host, &other).0, Status::Exists);
    let (status, text) = put(Verb::Put, copier, &other);
    assert!(status == Status::Refused && text.contains("is right, and is not replaced"), "{status:?}: {text}");
    door.storage.put(&key, b"damaged").unwrap();
    assert_eq!(put(Verb::Put, host, &one).0, Status::Refused);
    assert_eq!(door.storage.get(&key).unwrap(), b"damaged");
    assert_eq!(put(Verb::Put, copier, &one).0, Status::Done);
    assert_eq!(door.storage.get(&key).unwrap(), one);
}

#[test]
fn a_connection_holds_only_so_much_in_memory() {
    let held = Held::default();
    held.wait_for(BYTES_HELD_MAX);
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            held.wait_for(1);
            sender.send(()).unwrap();
        });
        assert_eq!(receiver.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout));
        held.release(BYTES_HELD_MAX);
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    });
}

fn list(server: &Server, prefix: &str) -> Status {
    let (here, there) = UnixStream::pair().unwrap();
    let line = Outward {
        writer: Mutex::new(Box::new(there)),
        writing: Deadline::none(),
        patience: GRACE,
        served: Mutex::default(),
    };
    let request = Request { id: 1, verb: Verb::List, key: prefix.to_owned(), offset: 0, length: 0 };
    server.list(&asker(Rights::default()), &request, &line).unwrap();
    let (header, _) = wire::read_lengths(&mut &here).unwrap().unwrap();
    wire::decode::<Reply>(&wire::read_exactly(&mut &here, header).unwrap()).unwrap().status
}

#[test]
fn only_what_a_key_can_begin_with_is_listed() {
    let door = door();
    for prefix in ["../", "..", "/", "/etc/", "pack/../", "a//", "pack//", "a\0", "./pack/", "a\n"] {
        assert_eq!(list(&door.server, prefix), Status::Refused, "{prefix:?}");
    }
    for prefix in ["", "roster/", "roster", "pack/ab/", "keys/owner/"] {
        assert_eq!(list(&door.server, prefix), Status::Done, "{prefix:?}");
    }
}

fn told(patience: Duration) -> ServeOptions {
    ServeOptions { patience: Some(patience), ..ServeOptions::default() }
}

/// Speaks to a server of this process after the first words, for as long as that takes.
fn speak(server: &Server, words: impl FnOnce(UnixStream, &ScopedJoinHandle<'_, io::Result<Served>>)) {
    let (mut client, there) = UnixStream::pair().unwrap();
    let (reader, cut) = (there.try_clone().unwrap(), there.try_clone().unwrap());
    let connection = Connection {
        reader: Box::new(reader),
        writer: Box::new(there),
        cut: Box::new(move || drop(cut.shutdown(Shutdown::Both))),
    };
    let who = Who::Named("alpha".to_owned(), Rights::default());
    std::thread::scope(|scope| {
        // In here, so that a test that fails hangs up.
        let client = move || {
            wire::read_word::<Greeting>(&mut client).unwrap();
            let hello = Hello { version: wire::VERSION, nonce: [7; 32], key: None, signature: None };
            wire::write(&mut client, &hello, &[]).unwrap();
            assert!(wire::read_word::<Welcome>(&mut client).unwrap().refused.is_none());
            client
        };
        let serving = scope.spawn(|| server.serve(connection, &who));
        words(client(), &serving);
    });
}

#[test]
fn who_trickles_within_a_body_is_cut_off() {
    let server = Server::new(Arc::new(MemoryStorage::new()), told(Duration::from_millis(200)));
    let body = [0; 8000];
    let mut frame = Vec::new();
    let request = Request { id: 1, verb: Verb::PutIfAbsent, key: "README.txt".to_owned(), offset: 0, length: 0 };
    wire::write(&mut frame, &request, &body).unwrap();
    speak(&server, |mut client, _| {
        client.write_all(&frame[..frame.len() - body.len()]).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let began = Instant::now();
        for byte in body {
            if client.write_all(&[byte]).is_err() {
                return;
            }
            match client.read(&mut [0; 64]) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                ended => return assert!(!matches!(ended, Ok(1..)), "it was answered"),
            }
            assert!(began.elapsed() < Duration::from_secs(20), "still served");
        }
    });
}

#[test]
fn who_takes_no_answer_is_cut_off() {
    let storage = Arc::new(MemoryStorage::new());
    storage.put("README.txt", &[b'x'; 8000]).unwrap();
    let server = Server::new(storage, told(Duration::from_millis(200)));
    let mut frames = Vec::new();
    for id in 0..400 {
        let request = Request { id, verb: Verb::Get, key: "README.txt".to_owned(), offset: 0, length: 0 };
        wire::write(&mut frames, &request, &[]).unwrap();
    }
    speak(&server, |mut client, serving| {
        client.write_all(&frames).unwrap();
        let began = Instant::now();
        while !serving.is_finished() {
            assert!(began.elapsed() < Duration::from_secs(20), "still served");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn a_receipt_is_signed_when_enough_wait_for_it_or_for_long_enough() {
    let door = door();
    let keeper = Some(door.admit("keeper", &[Role::Keeper]));
    let server = Server::new(door.storage.clone(), ServeOptions { keeper, ..ServeOptions::default() });
    let take = |objects: std::ops::Range<usize>| {
        for n in objects {
            let digits = blake3::hash(&n.to_le_bytes()).to_hex().to_string();
            let key = format!("pack/{}/{digits}", &digits[..2]);
            server.took(&key, &Place::of(&key).unwrap(), b"x");
        }
        server.sign(false);
        door.storage.list("receipt/").unwrap().len()
    };
    assert_eq!(take(0..RECEIPT_OBJECTS - 1), 0, "too early");
    assert_eq!(take(RECEIPT_OBJECTS - 1..RECEIPT_OBJECTS), 1);
    assert_eq!(take(RECEIPT_OBJECTS..RECEIPT_OBJECTS + 1), 1);
    if let Some((_, since)) = lock(&server.book).as_mut() {
        *since = since.checked_sub(RECEIPT_AFTER).unwrap();
    }
    assert_eq!(take(0..0), 2);
    let receipts = Vault::open(door.storage.clone(), None, None).unwrap().receipts().unwrap();
    assert_eq!((receipts.len(), receipts.findings().len()), (RECEIPT_OBJECTS + 1, 0));
}
