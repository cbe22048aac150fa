//! Packs that only old points need, in classes of a real and of an emulated S3: put away, thawed by a command, restored.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::SignedDuration;
use lifeboat_adapters::storage::thaw::{Frozen, ThawError, thaw};
use lifeboat_vault::storage::Thaw;
use lifeboat_vault::{CheckOptions, PointInfo};

use super::later::put_away;
use super::servers::{self, Server};
use super::vaults::{World, back_up, noise, point_comes_back};

/// Two points that share nothing; what only the older one needs is put into the class.
fn archived(server: &Server, class: &str, thaw: SignedDuration) -> (World, PointInfo, PathBuf, PointInfo) {
    let world = World::in_bucket(Arc::new(server.open(&format!("{}/dr/vault", server.bucket()))));
    let old_tree = world.tree(20, 30_000);
    let old = back_up(&world.host, &old_tree).unwrap();
    let kept = world.directory.path().join("old");
    std::fs::rename(&old_tree, &kept).unwrap();
    let new_tree = world.directory.path().join("from");
    std::fs::create_dir_all(&new_tree).unwrap();
    for n in 0..20 {
        std::fs::write(new_tree.join(n.to_string()), noise(1000 + n, 30_000)).unwrap();
    }
    let newest = back_up(&world.host, &new_tree).unwrap();
    put_away((&world.storage, 1), &world.key, &world.owner, class, thaw);
    (world, old, kept, newest)
}

/// Radosgw has classes, and reads all of them at once.
#[test]
fn packs_of_old_points_go_into_another_class_of_a_bucket() {
    let server = servers::radosgw();
    let (world, old, tree, newest) = archived(server, "COLD", SignedDuration::ZERO);
    let points = world.unlock().points(None).unwrap().points;
    let said = points.iter().find(|point| point.id == old.id).unwrap().archived.clone().unwrap();
    assert_eq!((said.class.as_str(), said.thaw_seconds, said.packs), ("COLD", 0, 1));
    let classes: Vec<Option<String>> =
        world.storage.list("pack/").unwrap().iter().map(|pack| world.storage.class_of(&pack.key).unwrap()).collect();
    assert_eq!(classes.iter().flatten().collect::<Vec<_>>(), ["COLD"]);
    point_comes_back(&world, &old, &tree);
    point_comes_back(&world, &newest, &world.directory.path().join("from"));
    world.check();
}

/// *Emulated*: radosgw has no class that cannot be read at once.
#[test]
fn an_archived_point_is_thawed_by_the_plan_s_command_and_restored() {
    let server = servers::emulated();
    let (world, old, tree, newest) = archived(server, "DEEP_ARCHIVE", SignedDuration::from_secs(1));
    point_comes_back(&world, &newest, &world.directory.path().join("from"));
    let unlocked = world.unlock();
    let packs = unlocked.archived_packs(&old).unwrap();
    let frozen = Frozen::among(&*world.storage, &packs).unwrap();
    assert_eq!((frozen.packs.len(), frozen.thaw_seconds), (1, 1));
    assert!(frozen.unasked()[0].starts_with("dr/vault/pack/"), "{frozen:?}");
    let report = unlocked.check(CheckOptions { read_data: true }).unwrap();
    assert!(report.is_sound() && report.packs_archived == 1, "{:?}", report.findings);
    let waited =
        |command: Option<&[String]>| thaw(&world.storage, &frozen, command, &|_, _| {}, &AtomicBool::new(false));
    // Without a command it says what to do; one that fails is named with what it said.
    let error = waited(None).unwrap_err();
    assert!(matches!(error, ThawError::NoCommand { .. }), "{error:?}");
    assert!(error.to_string().contains("1 pack (") && error.to_string().contains("restore-object"), "{error}");
    let fails = script(world.directory.path(), "fails", "cat > /dev/null; echo no credentials >&2; exit 3");
    let error = waited(Some(&[fails])).unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("no credentials"), "{error}");
    let names = world.directory.path().join("names");
    let keeps = script(world.directory.path(), "keeps", &format!("cat > {}", names.display()));
    let stopped = AtomicBool::new(true);
    let error = thaw(&world.storage, &frozen, Some(&[keeps]), &|_, _| {}, &stopped).unwrap_err();
    assert!(matches!(error, ThawError::Stopped), "{error:?}");
    assert_eq!(std::fs::read_to_string(names).unwrap(), format!("{}\n", frozen.unasked()[0]));
    // The one that asks the storage; what was made readable is not asked for again.
    waited(Some(&[asks_for_restores(server, &world)])).unwrap();
    assert!(matches!(world.storage.thaw_of(&packs[0].key).unwrap(), Thaw::Readable));
    assert!(Frozen::among(&*world.storage, &packs).unwrap().is_empty());
    point_comes_back(&world, &old, &tree);
    assert_eq!(world.unlock().check(CheckOptions { read_data: true }).unwrap().packs_archived, 0);
}

fn script(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Does with `curl` what `aws s3api restore-object` does.
fn asks_for_restores(server: &Server, world: &World) -> String {
    let bucket = world.storage.location().trim_start_matches("s3://").split('/').next().unwrap().to_owned();
    script(world.directory.path(), "asks", &server.thaw_script(&bucket))
}
