//! A storage that shows yesterday's state, whole and rightly signed: seen by whoever asks a copy or another vault.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lifeboat_vault::copy::{CopyOptions, copy};
use lifeboat_vault::storage::{Faulty, MemoryStorage, Operation, Storage};
use lifeboat_vault::{
    CheckOptions, Finding, HostVault, Identity, InitOptions, LogPiece, Severity, State, Vault, VaultError,
};

use crate::world::{World, back_up, host_state};

fn clone_of(storage: &dyn Storage) -> Arc<MemoryStorage> {
    let copied = Arc::new(MemoryStorage::new());
    for object in storage.list("").unwrap() {
        copied.put(&object.key, &storage.get(&object.key).unwrap()).unwrap();
    }
    copied
}

fn copy_of(world: &World, copier: &State) -> Arc<dyn Storage> {
    let (from, to): (Arc<dyn Storage>, Arc<dyn Storage>) = (world.storage.clone(), Arc::new(MemoryStorage::new()));
    copy(&from, &to, &CopyOptions::new(copier.clone()), &|_, _| {}, &AtomicBool::new(false)).unwrap();
    to
}

/// As somebody who has never seen the vault.
fn stranger(storage: Arc<dyn Storage>, world: &World, name: &str) -> Vault {
    Vault::open(storage, Some(host_state(&world.directory, name)), Some(&world.fingerprint)).unwrap()
}

fn alarms(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.severity == Severity::Alarm).collect()
}

fn append(vault: &HostVault, number: u64) {
    let mut log = vault.log_writer("app", "main", 1).unwrap();
    let now = jiff::Timestamp::now();
    let piece = LogPiece { first: number, last: number, source_time: now, mark: false, final_mark: false };
    log.append(piece, b"a change").unwrap();
}

#[test]
fn a_copy_proves_freshness_and_names_a_roll_back() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 5).unwrap();
    append(&world.vault, 1);
    let yesterday = clone_of(&*world.storage);
    let later = back_up(&world.vault, "app", 2, 5).unwrap();
    append(&world.vault, 2);
    let copier = host_state(&world.directory, "alpha");
    let copied = copy_of(&world, &copier);

    // Nobody is asked: unproven, and said to be.
    let nobody = stranger(yesterday.clone(), &world, "first");
    let found = nobody.points(None).unwrap().findings;
    assert!(alarms(&found).is_empty() && found.iter().any(|f| f.code == "freshness-unproven"), "{found:?}");

    let vault = stranger(yesterday.clone(), &world, "second");
    let witness = vault.hold_against("the copy", &stranger(copied.clone(), &world, "third")).unwrap();
    assert!(witness.at.unwrap() >= later.stored_at, "{witness:?}");
    let found = vault.points(None).unwrap().findings;
    assert_eq!(alarms(&found).len(), 1, "{found:?}");
    assert_eq!((alarms(&found)[0].code, alarms(&found)[0].object.as_str()), ("rolled-back", later.key.as_str()));
    assert!(alarms(&found)[0].message.contains("that the copy proves to have been there at"), "{found:?}");
    let report = vault.check(CheckOptions::default()).unwrap();
    assert!(report.findings.iter().any(|f| f.code == "rolled-back" && f.object.starts_with("log/app/main/")));

    // The vault itself is as new: proven, and nothing stands.
    let vault = stranger(world.storage.clone(), &world, "fourth");
    vault.hold_against("the copy", &stranger(copied.clone(), &world, "fifth")).unwrap();
    let report = vault.check(CheckOptions::default()).unwrap();
    assert!(alarms(&report.findings).is_empty(), "{:?}", report.findings);
    assert!(!report.findings.iter().any(|f| f.code == "freshness-unproven"), "{:?}", report.findings);
    // A vault that went further than its copy is no matter.
    back_up(&world.vault, "app", 3, 5).unwrap();
    let vault = stranger(world.storage.clone(), &world, "sixth");
    vault.hold_against("the copy", &stranger(copied.clone(), &world, "seventh")).unwrap();
    assert!(alarms(&vault.points(None).unwrap().findings).is_empty());
    // What is damaged in the copy proves nothing, and what nobody signed rightly neither.
    let head = copied.list("snap/").unwrap().pop().unwrap().key;
    copied.put(&head, b"nonsense").unwrap();
    let vault = stranger(yesterday, &world, "eighth");
    vault.hold_against("the copy", &stranger(copied, &world, "ninth")).unwrap();
    assert!(!vault.points(None).unwrap().findings.iter().any(|f| f.code == "rolled-back"));
}

/// Another vault, of another owner, that the same host writes to.
fn second_vault(world: &World) -> (Arc<MemoryStorage>, HostVault, String) {
    let storage = Arc::new(MemoryStorage::new());
    let recipients = vec![Identity::generate().recipient(), Identity::generate().recipient()];
    let options = InitOptions { recipients, ..InitOptions::default() };
    let (vault, made) = Vault::init(storage.clone(), &world.state, &options).unwrap();
    (storage, vault, made.owner)
}

#[test]
fn what_a_host_records_in_another_vault_proves_it_as_well() {
    let world = World::new();
    back_up(&world.vault, "app", 1, 5).unwrap();
    let yesterday = clone_of(&*world.storage);
    let (elsewhere, other, owner) = second_vault(&world);
    assert!(other.witness(&world.vault).unwrap());
    assert!(!other.witness(&world.vault).unwrap(), "nothing new, no record");
    let later = back_up(&world.vault, "app", 2, 5).unwrap();
    assert!(other.witness(&world.vault).unwrap());
    assert_eq!(elsewhere.list("witness/").unwrap().len(), 2);
    assert!(!world.vault.witness(&world.vault).unwrap(), "no vault is its own witness");

    let ask = |name: &str, storage: Arc<MemoryStorage>| {
        let vault = stranger(storage, &world, name);
        let there = Vault::open(elsewhere.clone(), None, Some(&owner)).unwrap();
        let witness = vault.hold_against("elsewhere", &there).unwrap();
        (vault.check(CheckOptions::default()).unwrap(), witness)
    };
    let (report, witness) = ask("first", yesterday.clone());
    assert!(report.findings.iter().any(|f| f.code == "rolled-back" && f.object == later.key), "{:?}", report.findings);
    assert!(witness.at.is_some() && witness.chains >= 2);
    let (report, _) = ask("second", world.storage.clone());
    assert!(report.findings.is_empty(), "{:?}", report.findings);

    // Only a host that stands on the other vault's roster is believed.
    let newest = elsewhere.list("witness/").unwrap().pop().unwrap().key;
    let bytes = elsewhere.get(&newest).unwrap();
    let payload = lifeboat_vault::Signed::open("vault.witness", &newest, &bytes).unwrap().payload;
    let mallory = host_state(&world.directory, "mallory");
    let forged = lifeboat_vault::Signed::seal("vault.witness", &payload, mallory.signing_key()).unwrap();
    elsewhere.put(&newest, &forged).unwrap();
    let (report, witness) = ask("third", yesterday);
    assert!(!report.findings.iter().any(|f| f.code == "rolled-back"), "{:?}", report.findings);
    assert_eq!((witness.at, witness.chains), (None, 0));
}

#[test]
fn a_bad_place_on_the_disk_is_a_finding_and_the_check_goes_on() {
    let world = World::new();
    for seed in 0..3 {
        back_up(&world.vault, "app", seed, 5).unwrap();
    }
    let packs: Vec<String> = world.storage.list("pack/").unwrap().into_iter().map(|o| o.key).collect();
    let faulty = Faulty::new(world.storage.clone());
    faulty.fail(Operation::Get, &packs[0], 10);
    let vault = Vault::open(faulty.clone(), None, Some(&world.fingerprint)).unwrap();
    let unlocked = vault.unlock(std::slice::from_ref(&world.owner)).unwrap();
    for report in [vault.check(CheckOptions { read_data: true }), unlocked.check(CheckOptions { read_data: true })] {
        let report = report.unwrap();
        let found: Vec<_> = report.findings.iter().filter(|f| f.code == "unreadable").collect();
        assert_eq!(found.len(), 1, "{:?}", report.findings);
        assert!(found[0].object == packs[0] && found[0].message.contains("failed as the test said"), "{found:?}");
        assert_eq!(report.packs_read, packs.len() as u64 - 1);
        assert!(report.bad_objects().contains(&packs[0]) && !report.is_sound());
    }
    // A storage that is gone is no finding.
    faulty.set_gone(true);
    assert!(matches!(vault.check(CheckOptions { read_data: true }), Err(VaultError::Storage { .. })));
}
