//! The engine's way back from several vaults, with a real database: the vault that reaches furthest counts, and a damaged
//! log costs only what lies after the damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_adapters::source::restorer_for;
use lifeboat_core::plan::{DataKind, Source};
use lifeboat_core::runbook::{Target, VolumeSpec};
use lifeboat_engine::port::{Cancel, Floor, LogStream, PointRequest, PointTaken, Recovery, Source as _, Watch};
use lifeboat_engine::recovery::Vaults;
use lifeboat_engine::vaults::VaultPlace;
use lifeboat_vault::storage::Storage;
use lifeboat_vault::{Badge, Identity, State};
use rusqlite::Connection;

use crate::source_sqlite::{DATASET, WAL, await_durable, commit, counter, create, source, start};
use crate::vault_world::{VaultWorld, vault_directory};

pub(crate) fn recovery(root: &Path, worlds: &[&VaultWorld]) -> Vaults {
    let state = State::open(&root.join("controller"), Some("controller")).unwrap();
    let place = |world: &&VaultWorld| {
        let (name, url) = (world.name.clone(), vault_directory(root, &world.name).display().to_string());
        (name.clone(), VaultPlace { name, url, state: state.clone(), owner: None })
    };
    Vaults {
        places: worlds.iter().map(place).collect::<BTreeMap<_, _>>(),
        identities: worlds.iter().map(|world| world.expose_key().parse::<Identity>().unwrap()).collect(),
        restorer_for: Arc::new(restorer_for),
        thaw_for: None,
    }
}

pub(crate) fn volume(worlds: &[&VaultWorld]) -> VolumeSpec {
    VolumeSpec {
        service: "shop".into(),
        dataset: DATASET.into(),
        kind: DataKind::Persistent,
        source: Source::Sqlite { path: "data/orders.db".into() },
        vaults: worlds.iter().map(|world| world.name.clone()).collect(),
    }
}

fn write(database: &Connection, stream: &dyn LogStream, vault: &str, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        commit(database, n, 300);
        await_durable(stream, vault, Timestamp::now());
    }
}

#[test]
fn of_several_vaults_the_one_that_reaches_furthest_is_restored() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (near, far) = (VaultWorld::new(root, "near"), VaultWorld::new(root, "far"));
    let database = create(root, WAL);
    let stream = start(root, &[near.named(), far.named()], 1);
    write(&database, &*stream, "near", 1..=2);
    // The first of the plan's vaults is away from the writer for the rest, and back for the restore.
    near.storage.set_gone(true);
    write(&database, &*stream, "far", 3..=5);
    drop(stream);
    near.storage.set_gone(false);
    let vaults = [&near, &far];
    let (recovery, volume) = (recovery(root, &vaults), volume(&vaults));
    let reach = recovery.reach(&volume, &Target::Newest).unwrap();
    assert_eq!(reach.vault.as_deref(), Some("far"));
    let to = root.join("volume");
    let facts =
        recovery.restore(&volume, &Target::Newest, &to, false, Floor::At(Timestamp::MIN), &Watch::default()).unwrap();
    assert_eq!((facts["vault"].as_str(), counter(&to.join("orders.db"))), (Some("far"), 5));
}

#[test]
fn a_damaged_log_costs_what_lies_after_the_damage_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    let stream = start(root, &[world.named()], 1);
    await_durable(&*stream, "near", Timestamp::UNIX_EPOCH);
    write(&database, &*stream, "near", 1..=6);
    drop(stream);
    assert_eq!(world.host.points(Some(DATASET)).unwrap().points.len(), 1);
    let lineage = world.host.log_lineages(DATASET).unwrap().remove(0);
    let entries = world.host.log_entries(DATASET, &lineage, None).unwrap();
    let fifth = entries.iter().filter(|entry| !entry.mark).nth(4).unwrap();
    world.storage.delete(&fifth.key).unwrap();
    let vaults = [&world];
    let (recovery, volume) = (recovery(root, &vaults), volume(&vaults));
    let reach = recovery.reach(&volume, &Target::Newest).unwrap();
    assert!(reach.findings.iter().any(|finding| finding.contains(&fifth.key)), "{reach:?}");
    let to = root.join("volume");
    fs::create_dir(&to).unwrap();
    let facts =
        recovery.restore(&volume, &Target::Newest, &to, false, Floor::At(Timestamp::MIN), &Watch::default()).unwrap();
    // Whether the last piece before the damage is from before or after its own source time, only what is in it tells.
    assert!((3..=4).contains(&counter(&to.join("orders.db"))));
    assert!(facts["gave_way"].to_string().contains(&fifth.key), "{facts:?}");
    assert!(facts["as_of"].as_str().unwrap().parse::<Timestamp>().unwrap() <= reach.source_time.unwrap());
}

fn take(root: &Path, world: &VaultWorld, epoch: u64) -> PointTaken {
    let request = PointRequest { dataset: DATASET.into(), epoch, ..PointRequest::default() };
    source(root).take_point(&world.named(), &request, &(), &Cancel::default()).unwrap()
}

#[test]
fn a_point_that_was_taken_outside_every_epoch_never_outranks_the_writers() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    commit(&database, 1, 300);
    let written = take(root, &world, 2);
    // A site that was given up, and a person or a timer there: newer, and yet not what counts.
    commit(&database, 2, 300);
    let stray = take(root, &world, 0);
    let former = take(root, &world, 1);
    assert!(stray.point.taken_at > written.point.taken_at && former.point.taken_at > written.point.taken_at);
    let (recovery, volume) = (recovery(root, &[&world]), volume(&[&world]));
    assert_eq!(recovery.reach(&volume, &Target::Newest).unwrap().point, Some(written.point.id.clone()));
    let to = root.join("volume");
    let restored = recovery.restore(&volume, &Target::Newest, &to, false, Floor::Furthest, &Watch::default()).unwrap();
    assert_eq!(restored["point"], written.point.id.as_str());
    assert_eq!(counter(&to.join("orders.db")), 1);
    let named = recovery.restore(
        &volume,
        &Target::Point(stray.point.id),
        &root.join("by-name"),
        false,
        Floor::Furthest,
        &Watch::default(),
    );
    assert_eq!(counter(&root.join("by-name/orders.db")), 2, "by its name it is restored: {named:?}");
}

#[test]
fn a_restore_gives_way_as_far_as_was_approved_and_no_further() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let world = VaultWorld::new(root, "near");
    let database = create(root, WAL);
    commit(&database, 1, 300);
    let older = take(root, &world, 1);
    let packs = |world: &VaultWorld| -> Vec<String> {
        let listed = world.storage.list("").unwrap().into_iter().map(|object| object.key);
        listed.filter(|key| key.contains("pack")).collect()
    };
    let before = packs(&world);
    commit(&database, 2, 50_000);
    let newer = take(root, &world, 1);
    let added: Vec<String> = packs(&world).into_iter().filter(|key| !before.contains(key)).collect();
    assert!(!added.is_empty());
    for key in added {
        world.storage.delete(&key).unwrap();
    }
    let (recovery, volume) = (recovery(root, &[&world]), volume(&[&world]));
    let try_to = |name: &str, floor| {
        let to = root.join(name);
        let restored = recovery.restore(&volume, &Target::Newest, &to, false, floor, &Watch::default());
        restored.map(|facts| (facts, counter(&to.join("orders.db"))))
    };
    for floor in [Floor::At(newer.point.taken_at), Floor::Furthest] {
        let refused = try_to("refused", floor).unwrap_err().to_string();
        assert!(refused.contains("nothing older than") && refused.contains(&older.point.id), "{refused}");
        assert!(!root.join("refused/orders.db").exists());
    }
    let (facts, reached) = try_to("approved", Floor::At(older.point.taken_at)).unwrap();
    assert_eq!((reached, facts["as_of"].as_str()), (1, Some(older.point.taken_at.to_string().as_str())));
    assert!(facts["gave_way"].as_array().is_some_and(|given| !given.is_empty()));
}

#[test]
fn where_nothing_may_be_lost_every_vault_must_have_answered() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (near, far) = (VaultWorld::new(root, "near"), VaultWorld::new(root, "far"));
    let database = create(root, WAL);
    commit(&database, 1, 300);
    take(root, &near, 1);
    commit(&database, 2, 300);
    take(root, &far, 1);
    let vaults = [&near, &far];
    let (recovery, volume) = (recovery(root, &vaults), volume(&vaults));
    fs::rename(vault_directory(root, "far"), root.join("away")).unwrap();
    let to = root.join("volume");
    let restore = |floor| recovery.restore(&volume, &Target::Newest, &to, false, floor, &Watch::default());
    let waits = restore(Floor::Furthest).unwrap_err();
    assert!(waits.may_pass && waits.to_string().contains("far"), "{waits}");
    fs::rename(root.join("away"), vault_directory(root, "far")).unwrap();
    let facts = restore(Floor::Furthest).unwrap();
    assert_eq!((facts["vault"].as_str(), counter(&to.join("orders.db"))), (Some("far"), 2));
}

#[test]
fn a_corrupt_newest_point_is_passed_by_and_what_that_costs_is_said() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (near, far) = (VaultWorld::new(root, "near"), VaultWorld::new(root, "far"));
    let database = create(root, WAL);
    commit(&database, 1, 300);
    let older = take(root, &near, 1);
    commit(&database, 2, 300);
    let newer = take(root, &near, 1);
    near.host.record_verification(&newer.point, Badge::Corrupt, "a chunk is missing").unwrap();
    let restore = |worlds: &[&VaultWorld], name: &str, target: &Target| {
        let (recovery, volume, to) = (recovery(root, worlds), volume(worlds), root.join(name));
        let reach = recovery.reach(&volume, target).unwrap();
        let floor = Floor::At(Timestamp::MIN);
        let facts = recovery.restore(&volume, target, &to, false, floor, &Watch::default()).unwrap();
        (reach, facts["passed_by"].clone(), counter(&to.join("orders.db")))
    };
    let (reach, passed_by, reached) = restore(&[&near], "alone", &Target::Newest);
    assert_eq!(
        (reach.point, reach.source_time, reached),
        (Some(older.point.id.clone()), Some(older.point.taken_at), 1)
    );
    let cost = newer.point.taken_at.duration_since(older.point.taken_at).as_secs_f64();
    let said = format!(
        "recovery point {} of {} in `near` is known to be corrupt and was passed by: {cost:.1} s of its data are lost with it",
        newer.point.id, newer.point.taken_at
    );
    assert_eq!((&reach.passed_by, &passed_by), (&vec![said.clone()], &serde_json::json!([said])));
    // Nothing was passed by where the moment, the point or another vault does not ask for it.
    let then = Target::At(older.point.taken_at.to_string());
    for (name, worlds, target) in
        [("then", vec![&near], &then), ("named", vec![&near], &Target::Point(older.point.id.clone()))]
    {
        let (reach, passed_by, _) = restore(&worlds, name, target);
        assert_eq!((reach.passed_by.as_slice(), passed_by), ([].as_slice(), serde_json::json!([])), "{name}");
    }
    take(root, &far, 1);
    let (reach, passed_by, reached) = restore(&[&near, &far], "far", &Target::Newest);
    assert_eq!((reach.passed_by.as_slice(), passed_by, reached), ([].as_slice(), serde_json::json!([]), 2));
}
