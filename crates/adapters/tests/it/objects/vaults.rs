//! A whole vault, and the arbiter, in a bucket: on a good day, and on lines that fail.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Barrier};

use jiff::Timestamp;
use lifeboat_adapters::clock::MachineClock;
use lifeboat_engine::arbitrate::{Arbiter, ArbiterError, Claim, Trusted, Trustee};
use lifeboat_vault::files::{BackupOptions, RestoreOptions, backup_tree, restore_tree, tree_root};
use lifeboat_vault::storage::Storage;
use lifeboat_vault::{
    CheckOptions, HostVault, Identity, InitOptions, PointInfo, Role, SessionOptions, SigningKey, State, Unlocked, Vault,
};

use super::proxy::{Proxy, Spoil};
use super::servers::{self, User, open_at, open_hastily};

pub(super) struct World {
    pub(super) directory: tempfile::TempDir,
    pub(super) key: Identity,
    pub(super) owner: String,
    pub(super) host: HostVault,
    pub(super) storage: Arc<dyn Storage>,
}

impl World {
    pub(super) fn in_bucket(storage: Arc<dyn Storage>) -> World {
        let directory = tempfile::tempdir().unwrap();
        let (key, paper) = (Identity::generate(), Identity::generate());
        let state = State::open(&directory.path().join("alpha"), Some("alpha")).unwrap();
        let options = InitOptions { recipients: vec![key.recipient(), paper.recipient()], ..InitOptions::default() };
        let (host, made) = Vault::init(storage.clone(), &state, &options).unwrap();
        World { directory, key, owner: made.owner, host, storage }
    }

    /// As a machine that has nothing but the key.
    pub(super) fn unlock(&self) -> Unlocked {
        let vault = Vault::open(self.storage.clone(), None, Some(&self.owner)).unwrap();
        vault.unlock(std::slice::from_ref(&self.key)).unwrap()
    }

    pub(super) fn reopened(&self, storage: Arc<dyn Storage>) -> HostVault {
        HostVault::open(storage, self.host.state().clone(), Some(&self.owner)).unwrap()
    }

    pub(super) fn tree(&self, files: u32, bytes: usize) -> PathBuf {
        let root = self.directory.path().join("from");
        for n in 0..files {
            let path = root.join(format!("{}/{n}", n % 7));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, noise(n, bytes)).unwrap();
        }
        root
    }

    pub(super) fn check(&self) {
        let report = self.unlock().check(CheckOptions { read_data: true }).unwrap();
        assert!(report.is_sound(), "{:#?}", report.findings);
        assert!(report.chunks_read > 0);
    }
}

pub(super) fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

pub(super) fn back_up(host: &HostVault, root: &Path) -> Result<PointInfo, String> {
    let session = host.begin("docs", SessionOptions::default()).map_err(|error| error.to_string())?;
    let summary = backup_tree(&session, &[root.to_owned()], &BackupOptions::default(), &(), &AtomicBool::new(false))
        .map_err(|error| error.to_string())?;
    session.commit(summary.draft(Timestamp::now())).map_err(|error| error.to_string())
}

pub(super) fn bring_back(unlocked: &Unlocked, point: &PointInfo, to: &Path) {
    let source = unlocked.source(&point.dataset).unwrap();
    let root = tree_root(unlocked, point).unwrap();
    restore_tree(&source, &root, to, &RestoreOptions::default(), &(), &AtomicBool::new(false)).unwrap();
}

pub(super) fn assert_same(one: &Path, other: &Path) {
    let output = std::process::Command::new("diff").arg("-r").args([one, other]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

pub(super) fn point_comes_back(world: &World, point: &PointInfo, from: &Path) {
    let to = world.directory.path().join(format!("to-{}", point.sequence));
    bring_back(&world.unlock(), point, &to);
    assert_same(from, &to);
}

#[test]
fn a_vault_in_a_bucket_keeps_what_it_is_given() {
    let server = servers::radosgw();
    let world = World::in_bucket(Arc::new(server.open(&format!("{}/dr/vault", server.bucket()))));
    let from = world.tree(200, 40_000);
    let first = back_up(&world.host, &from).unwrap();
    std::fs::write(from.join("0/new"), b"later").unwrap();
    let second = back_up(&world.reopened(world.storage.clone()), &from).unwrap();
    // One row of small files at most: 3 MiB of 8.
    assert!(second.bytes_stored < first.bytes_stored / 2, "{second:?}");
    assert_eq!(world.unlock().points(None).unwrap().points.len(), 2);
    point_comes_back(&world, &second, &from);
    world.check();
}

#[test]
fn two_that_write_the_same_chain_at_once_both_get_a_number() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let world = World::in_bucket(Arc::new(server.open(&bucket)));
    let from = world.tree(3, 1000);
    let together = Barrier::new(4);
    let mut numbers: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let host = world.reopened(Arc::new(server.open(&bucket)));
                let (together, from) = (&together, &from);
                scope.spawn(move || {
                    together.wait();
                    (0..3).map(|_| back_up(&host, from).unwrap().sequence).collect::<Vec<u64>>()
                })
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=12).collect::<Vec<u64>>());
    world.check();
}

#[test]
fn of_many_claimants_at_an_arbiter_in_a_bucket_exactly_one_wins() {
    const CLAIMANTS: usize = 8;
    let server = servers::radosgw();
    let bucket = server.bucket();
    let key = Arc::new(SigningKey::generate().unwrap());
    let trusted = Trusted::from([(key.public(), Trustee::new("us", &[Role::Controller]))]);
    let clock = Arc::new(MachineClock::default());
    let arbiter = || Arbiter::new(Arc::new(server.open(&bucket)), key.clone(), trusted.clone(), clock.clone());
    for epoch in 1..=4 {
        let together = Barrier::new(CLAIMANTS);
        let results: Vec<_> = std::thread::scope(|scope| {
            let claimants: Vec<_> = (0..CLAIMANTS)
                .map(|n| {
                    let (arbiter, together) = (arbiter(), &together);
                    scope.spawn(move || {
                        together.wait();
                        let (primary, run) = (format!("site-{n}"), format!("run-{n}"));
                        arbiter.claim_epoch(&Claim {
                            write_domain: "shop".into(),
                            epoch,
                            primary,
                            run,
                            at: "now".into(),
                            planned: false,
                        })
                    })
                })
                .collect();
            claimants.into_iter().map(|claimant| claimant.join().unwrap()).collect()
        });
        let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert!(results.iter().filter_map(|result| result.as_ref().err()).all(ArbiterError::is_refusal));
        assert_eq!(arbiter().current_epoch("shop").unwrap().as_ref(), Some(winners[0]));
    }
}

#[test]
fn backups_over_lines_that_fail_end_well_and_come_back_whole() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let proxy = Proxy::before(server.port);
    let world = World::in_bucket(Arc::new(server.open(&bucket)));
    let from = world.tree(60, 300_000);
    let bad = world.reopened(Arc::new(open_hastily(&proxy.endpoint(), &bucket, User::Owner)));
    proxy.chaos(3, 0.15);
    for round in 0..3 {
        std::fs::write(from.join("0/round"), noise(1000 + round, 400_000)).unwrap();
        let point = back_up(&bad, &from).unwrap_or_else(|error| panic!("{error} {:?}", proxy.spoiled()));
        point_comes_back(&world, &point, &from);
    }
    // And the way back over the same lines.
    let storage: Arc<dyn Storage> = Arc::new(open_hastily(&proxy.endpoint(), &bucket, User::Owner));
    let vault = Vault::open(storage, None, Some(&world.owner)).unwrap();
    let unlocked = vault.unlock(std::slice::from_ref(&world.key)).unwrap();
    let newest = unlocked.points(None).unwrap().points.pop().unwrap();
    let to = world.directory.path().join("over-bad-lines");
    bring_back(&unlocked, &newest, &to);
    assert_same(&from, &to);
    assert!(proxy.spoiled().len() > 5, "{:?}", proxy.spoiled());
    world.check();
}

#[test]
fn lists_that_lag_behind_cost_nothing_that_was_stored() {
    let server = servers::radosgw();
    // All lists, and only those of the chain that is written.
    for lagging in ["list-type=2", "snap%2F"] {
        let bucket = server.bucket();
        let proxy = Proxy::before(server.port);
        let world = World::in_bucket(Arc::new(server.open(&bucket)));
        let from = world.tree(5, 10_000);
        let behind = || world.reopened(Arc::new(open_at(&proxy.endpoint(), &bucket, User::Owner)));
        let first = back_up(&behind(), &from).unwrap();
        proxy.spoil(lagging, Spoil::StaleList, usize::MAX);
        std::fs::write(from.join("0/new"), b"later").unwrap();
        // These lists show an empty chain. Whoever writes finds the right number, or says what it misses.
        match back_up(&behind(), &from) {
            Ok(second) => {
                assert_eq!(second.sequence, 2);
                point_comes_back(&world, &second, &from);
            }
            Err(error) => assert!(error.contains("snap/") || error.contains("is missing"), "{lagging}: {error}"),
        }
        assert!(!proxy.spoiled().is_empty(), "{lagging}: {:?}", proxy.requests());
        proxy.calm();
        let third = back_up(&behind(), &from).unwrap();
        assert!(third.sequence > first.sequence);
        point_comes_back(&world, &third, &from);
        world.check();
    }
}

/// *Emulated*: radosgw has no class that cannot be read at once.
#[test]
fn a_restore_of_archived_packs_says_how_they_are_thawed() {
    let server = servers::emulated();
    let bucket = server.bucket();
    let world = World::in_bucket(Arc::new(server.open(&bucket)));
    let tree = world.tree(20, 3000);
    let point = back_up(&world.host, &tree).unwrap();
    let packs = world.storage.list("pack/").unwrap();
    for pack in &packs {
        server.set_class(&bucket, &pack.key, "GLACIER");
    }
    // Everything but contents is there at once.
    let unlocked = world.unlock();
    assert_eq!(unlocked.points(None).unwrap().points.len(), 1);
    let (source, to) = (unlocked.source(&point.dataset).unwrap(), world.directory.path().join("to-archived"));
    let restored = tree_root(&unlocked, &point).map(|root| {
        format!("{:?}", restore_tree(&source, &root, &to, &RestoreOptions::default(), &(), &AtomicBool::new(false)))
    });
    let told = restored.unwrap_or_else(|error| format!("{error:?}"));
    assert!(told.contains(&format!("aws s3api restore-object --bucket {bucket} --key pack/")), "{told}");
    let thaw = "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Days>7</Days></RestoreRequest>";
    for pack in &packs {
        server.ask(User::Owner, "POST", &format!("{bucket}/{}?restore=", pack.key), Some(thaw));
    }
    point_comes_back(&world, &point, &tree);
}
