//! Crashes at every storage operation of everything that changes a vault: what was there restores, and doing it again works.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use jiff::Timestamp;
use lifeboat_vault::storage::{Faulty, MemoryStorage};
use lifeboat_vault::{
    CheckOptions, Holder, HostVault, Identity, LogPiece, PointInfo, Role, Severity, State, Unlocked, Vault, VaultError,
};

use crate::world::{World, back_up, host_state, is_right, unlock};

/// A world, what was stored in it, and what is about to happen.
pub(super) struct Scene {
    pub(super) world: World,
    point: PointInfo,
    third: Identity,
    beta: State,
    /// Another place, for copies.
    pub(super) second: Arc<MemoryStorage>,
    /// So far the storage's clock went.
    pub(super) day: AtomicI64,
}

impl Scene {
    fn new() -> Scene {
        let world = World::new();
        let point = back_up(&world.vault, "app", 1, 8).unwrap();
        back_up(&world.vault, "web", 2, 4).unwrap();
        let beta = host_state(&world.directory, "beta");
        let second = Arc::new(MemoryStorage::new());
        Scene { world, point, third: Identity::generate(), beta, second, day: AtomicI64::new(0) }
    }

    pub(super) fn unlock_through(&self, storage: Arc<Faulty>) -> Result<Unlocked, VaultError> {
        unlock(storage, &self.world.fingerprint, &self.world.owner)
    }
}

const READS_CRASHED_AT: usize = 12;

type Act = fn(&Scene, Arc<Faulty>) -> Result<(), VaultError>;

/// Something that is done to a vault, and what is so before and after.
pub(super) struct Deed<'a> {
    pub(super) prepare: fn(&Scene),
    pub(super) act: Act,
    pub(super) settled: &'a dyn Fn(&Scene),
    /// Nothing is wrong with the vault at any time; otherwise the deed is to set it right.
    pub(super) sound_before: bool,
    /// It reads so much that only some of its reads are crashed at. (All with `LIFEBOAT_EVERY` set.)
    pub(super) some_reads: bool,
}

/// Crashes `act` at each of its operations, before and after it took effect; then looks at everything, and does it again.
fn at_every_operation(act: Act, settled: impl Fn(&Scene)) {
    Deed { prepare: |_| {}, act, settled: &settled, sound_before: true, some_reads: false }.crash_at_every_operation();
}

impl Deed<'_> {
    fn scene(&self) -> Scene {
        let scene = Scene::new();
        (self.prepare)(&scene);
        scene
    }

    fn do_it(&self, scene: &Scene, storage: Arc<Faulty>) -> Result<(), VaultError> {
        let done = (self.act)(scene, storage);
        scene.world.storage.set_clock(Timestamp::now());
        done
    }

    pub(super) fn crash_at_every_operation(&self) {
        let calm = self.scene();
        let counted = Faulty::new(calm.world.storage.clone());
        self.do_it(&calm, counted.clone()).unwrap();
        (self.settled)(&calm);
        let operations = counted.seen();
        assert!(operations.len() > 2, "{operations:?}");
        let few = self.some_reads && std::env::var_os("LIFEBOAT_EVERY").is_none();
        let stride = if few { operations.len().div_ceil(READS_CRASHED_AT) } else { 1 };
        for (place, (operation, _)) in operations.into_iter().enumerate() {
            // What is stored when a read fails is what is stored after the write before it.
            if operation.writes() || place % stride == 0 {
                self.crash_at(place, true);
                if operation.writes() || !few {
                    self.crash_at(place, false);
                }
            }
        }
    }

    fn crash_at(&self, crash_at: usize, with_effect: bool) {
        let scene = self.scene();
        let faulty = Faulty::new(scene.world.storage.clone());
        faulty.crash_after(crash_at, with_effect);
        let crashed = self.do_it(&scene, faulty);
        let place = format!("operation {crash_at}, effect {with_effect}");
        // One of the two keys opens, whatever was cut short; a host goes on.
        for identity in [&scene.world.owner, &scene.world.paper] {
            let unlocked = unlock(scene.world.storage.clone(), &scene.world.fingerprint, identity)
                .unwrap_or_else(|e| panic!("{place}: {e}"));
            assert!(is_right(&unlocked, &scene.point, 1, 8).unwrap(), "{place}");
            let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
            let alarms: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Alarm).collect();
            assert!(alarms.is_empty() || !self.sound_before, "{place}: {alarms:?}");
        }
        if scene.world.unlock().roster().permits(&scene.world.state.signing_key().public(), Role::Host) {
            let next = back_up(&scene.world.vault, "app", 3, 4).unwrap_or_else(|e| panic!("{place}: {e}"));
            assert!(is_right(&scene.world.unlock(), &next, 3, 4).unwrap(), "{place}");
        }
        if crashed.is_err() {
            let again = Faulty::new(scene.world.storage.clone());
            self.do_it(&scene, again).unwrap_or_else(|e| panic!("{place}, again: {e}"));
        }
        (self.settled)(&scene);
        let report = scene.world.unlock().check(CheckOptions { read_data: true }).unwrap();
        assert!(report.is_sound(), "{place}: {:?}", report.findings);
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
