//! Crashes at every storage operation of everything that changes a vault: what was there restores, and doing it again works.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_vault::storage::Faulty;
use lifeboat_vault::{
    CheckOptions, Holder, HostVault, Identity, LogPiece, PointInfo, Role, Severity, State, Unlocked, Vault, VaultError,
};

use crate::world::{World, back_up, host_state, is_right, unlock};

/// A world, what was stored in it, and what is about to happen.
struct Scene {
    world: World,
    point: PointInfo,
    third: Identity,
    beta: State,
}

impl Scene {
    fn new() -> Scene {
        let world = World::new();
        let point = back_up(&world.vault, "app", 1, 8).unwrap();
        back_up(&world.vault, "web", 2, 4).unwrap();
        let beta = host_state(&world.directory, "beta");
        Scene { world, point, third: Identity::generate(), beta }
    }

    fn unlock_through(&self, storage: Arc<Faulty>) -> Result<Unlocked, VaultError> {
        unlock(storage, &self.world.fingerprint, &self.world.owner)
    }
}

type Act = fn(&Scene, Arc<Faulty>) -> Result<(), VaultError>;

/// Crashes `act` at each of its operations, before and after it took effect; then looks at everything, and does it again.
fn at_every_operation(act: Act, settled: impl Fn(&Scene)) {
    let calm = Scene::new();
    let counted = Faulty::new(calm.world.storage.clone());
    act(&calm, counted.clone()).unwrap();
    settled(&calm);
    let operations = counted.seen().len();
    assert!(operations > 2, "{operations}");
    for crash_at in 0..operations {
        for with_effect in [false, true] {
            let scene = Scene::new();
            let faulty = Faulty::new(scene.world.storage.clone());
            faulty.crash_after(crash_at, with_effect);
            let crashed = act(&scene, faulty);
            let place = format!("operation {crash_at}, effect {with_effect}");
            // One of the two keys opens, whatever was cut short; a host goes on.
            for identity in [&scene.world.owner, &scene.world.paper] {
                let unlocked = unlock(scene.world.storage.clone(), &scene.world.fingerprint, identity)
                    .unwrap_or_else(|e| panic!("{place}: {e}"));
                assert!(is_right(&unlocked, &scene.point, 1, 8).unwrap(), "{place}");
                let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
                let alarms: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Alarm).collect();
                assert!(alarms.is_empty(), "{place}: {alarms:?}");
            }
            if scene.world.unlock().roster().permits(&scene.world.state.signing_key().public(), Role::Host) {
                let next = back_up(&scene.world.vault, "app", 3, 4).unwrap_or_else(|e| panic!("{place}: {e}"));
                assert!(is_right(&scene.world.unlock(), &next, 3, 4).unwrap(), "{place}");
            }
            if crashed.is_err() {
                let again = Faulty::new(scene.world.storage.clone());
                act(&scene, again).unwrap_or_else(|e| panic!("{place}, again: {e}"));
            }
            settled(&scene);
            let report = scene.world.unlock().check(CheckOptions { read_data: true }).unwrap();
            assert!(report.is_sound(), "{place}: {:?}", report.findings);
        }
    }
}

#[test]
fn a_host_that_asks_and_is_approved_while_storage_crashes() {
    at_every_operation(
        |scene, storage| {
            let vault = Vault::open(storage.clone(), None, Some(&scene.world.fingerprint))?;
            if vault.roster().permits(&scene.beta.signing_key().public(), Role::Host) {
                return Ok(());
            }
            let request = vault.request_enrolment(&scene.beta, &[Role::Host])?;
            scene.unlock_through(storage)?.approve_as(&request.fingerprint, &[Role::Host]).map(|_| ())
        },
        |scene| {
            let beta = HostVault::open(scene.world.storage.clone(), scene.beta.clone(), None).unwrap();
            let point = back_up(&beta, "app", 9, 4).unwrap();
            assert!(is_right(&scene.world.unlock(), &point, 9, 4).unwrap());
        },
    );
}

#[test]
fn a_recipient_is_added_while_storage_crashes() {
    at_every_operation(
        |scene, storage| scene.unlock_through(storage)?.add_recipient(&scene.third.recipient()),
        |scene| {
            let third = unlock(scene.world.storage.clone(), &scene.world.fingerprint, &scene.third).unwrap();
            assert!(is_right(&third, &scene.point, 1, 8).unwrap());
        },
    );
}

#[test]
fn a_holder_is_added_and_taken_away_while_storage_crashes() {
    at_every_operation(
        |scene, storage| {
            let unlocked = scene.unlock_through(storage)?;
            let recipient = scene.third.recipient();
            unlocked.add_holder(&Holder {
                dataset: "app".into(),
                recipient: recipient.to_string(),
                purpose: "drill".into(),
                place: "london".into(),
            })?;
            unlocked.remove_recipient(&recipient)
        },
        |scene| {
            let refused = unlock(scene.world.storage.clone(), &scene.world.fingerprint, &scene.third);
            assert!(matches!(refused, Err(VaultError::WrongKey { .. })), "{refused:?}");
        },
    );
}

#[test]
fn a_host_is_revoked_while_storage_crashes() {
    at_every_operation(
        |scene, storage| match scene.unlock_through(storage)?.revoke("alpha") {
            // It was, before the answer was lost.
            Err(VaultError::Invalid { .. }) => Ok(()),
            other => other,
        },
        |scene| {
            let refused = HostVault::open(scene.world.storage.clone(), scene.world.state.clone(), None);
            assert!(matches!(refused, Err(VaultError::Revoked { .. })), "{refused:?}");
        },
    );
}

#[test]
fn a_log_is_appended_to_while_storage_crashes() {
    fn append(scene: &Scene, storage: Arc<Faulty>) -> Result<(), VaultError> {
        let host = scene.world.reopen(storage)?;
        let mut writer = host.log_writer("app", "l", 1)?;
        let done = host.log_trail("app", "l")?.entries.last().map_or(0, |entry| entry.last);
        for n in done + 1..=4 {
            let piece =
                LogPiece { first: n, last: n, source_time: Timestamp::UNIX_EPOCH, mark: false, final_mark: false };
            writer.append(piece, format!("piece {n}").as_bytes())?;
        }
        Ok(())
    }
    at_every_operation(append, |scene| {
        let unlocked = scene.world.unlock();
        let entries = unlocked.log_trail("app", "l").unwrap().entries;
        assert_eq!(entries.iter().map(|entry| entry.first).collect::<Vec<_>>(), [1, 2, 3, 4]);
        for entry in &entries {
            assert_eq!(unlocked.read_log(entry).unwrap(), format!("piece {}", entry.first).into_bytes());
        }
    });
}
