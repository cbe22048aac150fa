//! A server that lies: in the form of its answers, which the client refuses, and in what lies behind them, which the vault names.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use lifeboat_vault::serve::{Connection, Dial, Remote, Rights, Who};
use lifeboat_vault::storage::{MemoryStorage, Storage, StorageError};
use lifeboat_vault::{CheckOptions, SigningKey, Vault};

use crate::serve::world::{Near, connection};
use crate::world::{World, back_up, host_state};

fn frame(header: &[u8], body: &[u8]) -> Vec<u8> {
    let lengths = [(header.len() as u32).to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
    [lengths.as_slice(), header, body].concat()
}

fn encoded(build: impl FnOnce(&mut minicbor::Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    build(&mut minicbor::Encoder::new(&mut bytes));
    bytes
}

fn reply(id: u64, status: u8, body: &[u8]) -> Vec<u8> {
    let header = encoded(|e| {
        e.array(3).unwrap().u64(id).unwrap().u8(status).unwrap().str("words\x1b[2J").unwrap();
    });
    frame(&header, body)
}

fn listing(keys: &[&str]) -> Vec<u8> {
    encoded(|e| {
        e.array(keys.len() as u64).unwrap();
        for key in keys {
            e.array(3).unwrap().str(key).unwrap().u64(1).unwrap().null().unwrap();
        }
    })
}

/// Answers every question with what a lie makes of its number.
#[derive(Debug, Clone, Copy)]
struct Liar(fn(u64) -> Vec<u8>);

impl Liar {
    fn speak(self, mut stream: UnixStream) -> io::Result<()> {
        let greeting = encoded(|e| {
            e.array(3).unwrap().str("lifeboat serve").unwrap().u32(1).unwrap().bytes(&[0; 32]).unwrap();
        });
        stream.write_all(&frame(&greeting, &[]))?;
        read_header(&mut stream)?;
        stream.write_all(&frame(&encoded(|e| drop(e.array(2).unwrap().null().unwrap().str("x"))), &[]))?;
        loop {
            let header = read_header(&mut stream)?;
            let mut decoder = minicbor::Decoder::new(&header);
            decoder.array().unwrap();
            stream.write_all(&(self.0)(decoder.u64().unwrap()))?;
        }
    }
}

fn read_header(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut lengths = [0; 8];
    stream.read_exact(&mut lengths)?;
    let mut header = vec![0; u32::from_le_bytes(lengths[..4].try_into().unwrap()) as usize];
    stream.read_exact(&mut header)?;
    Ok(header)
}

impl Dial for Liar {
    fn dial(&self) -> io::Result<Connection> {
        let (here, there) = UnixStream::pair()?;
        let liar = *self;
        std::thread::spawn(move || liar.speak(there));
        Ok(connection(here))
    }

    fn location(&self) -> String {
        "liar".to_owned()
    }

    fn key(&self) -> Option<SigningKey> {
        None
    }

    fn last_words(&self) -> String {
        String::new()
    }
}

#[test]
fn answers_of_the_wrong_form_are_refused() {
    let connect = |lie| Remote::connect(Box::new(Liar(lie))).unwrap();
    let is_error = |result: Result<usize, StorageError>| assert!(result.is_err(), "{result:?}");
    is_error(connect(|id| reply(id, 0, &[7; 100])).get_range("roster/0000000001", 0, 10).map(|bytes| bytes.len()));
    let lists: [fn(u64) -> Vec<u8>; 4] = [
        |id| reply(id, 0, &listing(&["snap/b", "snap/a"])),
        |id| reply(id, 0, &listing(&["roster/0000000001"])),
        |id| reply(id, 0, &listing(&["snap/../../etc/passwd"])),
        |id| reply(id, 0, b"\x9f"),
    ];
    for lie in lists {
        is_error(connect(lie).list("snap/").map(|listed| listed.len()));
    }
    // What a server says is a stranger's text.
    let error = connect(|id| reply(id, 6, &[])).get("roster/0000000001").unwrap_err().to_string();
    assert!(error.contains("words [2J") && !error.contains('\x1b'), "{error}");
}

/// A copy of everything behind a server, to lie with.
fn behind(world: &World, change: impl Fn(&MemoryStorage)) -> Arc<dyn Storage> {
    let storage = Arc::new(MemoryStorage::new());
    for object in world.storage.list("").unwrap() {
        storage.put(&object.key, &world.storage.get(&object.key).unwrap()).unwrap();
    }
    change(&storage);
    let rights = Rights { read: true, ..Rights::default() };
    Arc::new(Near::new(storage, Who::Named("alpha".to_owned(), rights)).connect().unwrap())
}

#[test]
fn what_lies_behind_a_lying_server_is_named() {
    let world = World::new();
    for seed in 0..3 {
        back_up(&world.vault, "app", seed, 5).unwrap();
    }
    let state = host_state(&world.directory, "reader");
    let findings = |change: &dyn Fn(&MemoryStorage)| {
        let vault = Vault::open(behind(&world, change), Some(state.clone()), Some(&world.fingerprint)).unwrap();
        let report = vault.check(CheckOptions { read_data: true }).unwrap();
        report.findings.into_iter().map(|f| format!("{} {}", f.code, f.object)).collect::<Vec<_>>()
    };
    let snap = |number: u64| format!("snap/alpha/app/{number:010}");
    // Seen once as it is.
    assert!(!findings(&|_| {}).iter().any(|f| f.starts_with("missing") || f.starts_with("damaged")));
    let has = |found: Vec<String>, wanted: String| assert!(found.contains(&wanted), "{wanted} not in {found:?}");
    has(findings(&|storage| storage.delete(&snap(2)).unwrap()), format!("missing {}", snap(2)));
    has(findings(&|storage| storage.delete(&snap(3)).unwrap()), format!("rolled-back {}", snap(3)));
    let swap = |storage: &MemoryStorage| storage.put(&snap(2), &storage.get(&snap(1)).unwrap()).unwrap();
    has(findings(&swap), format!("untrusted {}", snap(2)));
    let packs: Vec<String> = world.storage.list("pack/").unwrap().into_iter().map(|o| o.key).collect();
    let swap_packs = |storage: &MemoryStorage| {
        let size = storage.get(&packs[0]).unwrap().len();
        storage.put(&packs[0], &vec![0; size]).unwrap();
    };
    has(findings(&swap_packs), format!("damaged {}", packs[0]));
    has(findings(&|storage| storage.delete(&packs[1]).unwrap()), format!("missing {}", packs[1]));
}
