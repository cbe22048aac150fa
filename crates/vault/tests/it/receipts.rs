//! When an object came: by a keeper's receipt, which travels with copies, or by what the storage's listing says.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::{Listed, MemoryStorage, Storage};
use lifeboat_vault::{Finding, ReceiptBook, Receipts, Role, State, TimeSource, Vault};

use crate::world::{World, back_up, host_state};

fn keeper(world: &World) -> State {
    let state = host_state(&world.directory, "keeper");
    let request = world.vault.request_enrolment(&state, &[Role::Keeper]).unwrap();
    world.unlock().approve(&request.fingerprint).unwrap();
    state
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn book(world: &World, keeper: &State) -> ReceiptBook {
    ReceiptBook::new(world.storage.clone(), &world.vault.id(), keeper.clone())
}

fn read(storage: Arc<dyn Storage>, world: &World) -> Receipts {
    Vault::open(storage, None, Some(&world.fingerprint)).unwrap().receipts().unwrap()
}

fn hash(storage: &dyn Storage, key: &str) -> [u8; 32] {
    *blake3::hash(&storage.get(key).unwrap()).as_bytes()
}

fn listed(storage: &dyn Storage, key: &str) -> Listed {
    storage.list(key).unwrap().remove(0)
}

#[test]
fn a_receipt_says_when_an_object_came_and_travels_with_a_copy() {
    let world = World::new();
    let keeper = keeper(&world);
    let point = back_up(&world.vault, "app", 1, 4).unwrap();
    let object = listed(&*world.storage, &point.key);
    let mut receipts = book(&world, &keeper);
    let right = hash(&*world.storage, &point.key);
    receipts.take(&point.key, right, object.size, at(2000));
    receipts.sign().unwrap();
    // The same bytes came a second time, elsewhere; other bytes came before.
    receipts.take(&point.key, right, object.size, at(3000));
    receipts.take(&point.key, [7; 32], object.size, at(1000));
    receipts.sign().unwrap();
    assert_eq!(receipts.waiting(), 0);

    let copy = Arc::new(MemoryStorage::new());
    for object in world.storage.list("").unwrap() {
        copy.put(&object.key, &world.storage.get(&object.key).unwrap()).unwrap();
    }
    let read = read(copy.clone(), &world);
    assert_eq!(read.findings(), &[] as &[Finding]);
    let object = Listed { stored_at: Some(at(9000)), ..listed(&*copy, &point.key) };
    assert_eq!(read.received_at(&object, Some(&right)), Some((at(2000), TimeSource::Receipt)));
    let longer = Listed { size: object.size + 1, ..object.clone() };
    assert_eq!(read.received_at(&longer, None), Some((at(9000), TimeSource::Listing)), "it is for other bytes");
    let other = Listed { key: "roster/0000000001".to_owned(), ..object };
    assert_eq!(read.received_at(&other, None), Some((at(9000), TimeSource::Listing)));
    assert_eq!(read.received_at(&Listed { stored_at: None, ..other }, None), None);
}

#[test]
fn who_is_no_keeper_gives_no_receipts() {
    let world = World::new();
    let keeper = keeper(&world);
    let point = back_up(&world.vault, "app", 1, 4).unwrap();
    let object = listed(&*world.storage, &point.key);
    // A host signs a receipt that would let its forged points age.
    let mut forged = book(&world, world.vault.state());
    forged.take(&point.key, hash(&*world.storage, &point.key), object.size, at(1));
    forged.sign().unwrap();
    let receipts = read(world.storage.clone(), &world);
    assert!(receipts.is_empty());
    assert_eq!(receipts.findings().len(), 1, "{:?}", receipts.findings());
    assert_eq!(receipts.findings()[0].code, "untrusted");

    // What a keeper signed before it was revoked still counts, and nothing after.
    let mut honest = book(&world, &keeper);
    honest.take(&point.key, hash(&*world.storage, &point.key), object.size, at(2000));
    honest.sign().unwrap();
    world.unlock().revoke("keeper").unwrap();
    honest.take(&point.key, hash(&*world.storage, &point.key), object.size, at(1));
    honest.sign().unwrap();
    let receipts = read(world.storage.clone(), &world);
    assert_eq!(receipts.received_at(&object, None), Some((at(2000), TimeSource::Receipt)));
    assert_eq!(receipts.findings().len(), 2, "{:?}", receipts.findings());
}

#[test]
fn receipts_are_chained_and_two_processes_of_a_keeper_take_turns() {
    let world = World::new();
    let keeper = keeper(&world);
    let mut books = [book(&world, &keeper), book(&world, &keeper)];
    for number in 0..6usize {
        books[number % 2].take(&format!("x/{number}"), [0; 32], 1, at(number as i64));
        books[number % 2].sign().unwrap();
    }
    let receipts = read(world.storage.clone(), &world);
    assert_eq!((receipts.len(), receipts.findings()), (6, &[] as &[Finding]));
    let third = world.storage.list("receipt/").unwrap().remove(2).key;
    world.storage.delete(&third).unwrap();
    let receipts = read(world.storage.clone(), &world);
    assert_eq!(receipts.len(), 5, "the others count");
    let [finding] = receipts.findings() else { panic!("{:?}", receipts.findings()) };
    assert_eq!((finding.code, &finding.object), ("missing", &third));

    // Who saw the newest one misses it.
    let reader = host_state(&world.directory, "reader");
    let vault = Vault::open(world.storage.clone(), Some(reader), Some(&world.fingerprint)).unwrap();
    vault.receipts().unwrap();
    let newest = world.storage.list("receipt/").unwrap().pop().unwrap().key;
    world.storage.delete(&newest).unwrap();
    assert!(vault.receipts().unwrap().findings().iter().any(|f| f.code == "rolled-back"));
}
