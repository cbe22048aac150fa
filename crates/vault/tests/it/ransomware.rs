//! A tree that is encrypted in place makes its recovery point suspect; one that only changes much does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use jiff::{SignedDuration, Timestamp};
use lifeboat_vault::files::backup_tree;
use lifeboat_vault::prune::{Hand, Why};
use lifeboat_vault::storage::Faulty;
use lifeboat_vault::{Badge, Identity, KeepRules, PointInfo, PruneOptions, SessionOptions, seal};

use crate::files_world::with_cache;
use crate::world::{World, back_up};

/// The sources of this workspace: text, a few MB, in many files.
fn real_tree(to: &Path) -> Vec<PathBuf> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    let mut directories = vec![from.to_owned()];
    while let Some(directory) = directories.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let target = to.join(path.strip_prefix(from).unwrap());
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::copy(&path, &target).unwrap();
                files.push(target);
            }
        }
    }
    files
}

fn take(world: &World, from: &Path) -> PointInfo {
    let session = world.vault.begin("work", SessionOptions::default()).unwrap();
    let cache = with_cache(&world.directory.path().join("cache"));
    let summary = backup_tree(&session, &[from.to_owned()], &cache, &(), &AtomicBool::new(false)).unwrap();
    let point = session.commit(summary.draft(Timestamp::now())).unwrap();
    let shown = world.vault.points(None).unwrap().points.into_iter().find(|shown| shown.id == point.id).unwrap();
    assert_eq!(world.vault.doubts_about(&point).unwrap(), shown.doubts, "what the host remembers says the same");
    shown
}

/// What a person does in a day.
fn edit(files: &[PathBuf], day: usize) {
    for file in files.iter().skip(day).step_by(97) {
        let mut text = fs::read_to_string(file).unwrap();
        text.push_str(&format!("// day {day}\n"));
        fs::write(file, text).unwrap();
    }
}

#[test]
fn a_tree_that_was_encrypted_in_place_is_suspect_and_an_upgrade_is_not() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    let files = real_tree(&tree);
    assert!(files.len() > 150, "{}", files.len());
    assert!(take(&world, &tree).bytes > 1 << 20);
    for day in 0..3 {
        edit(&files, day);
        assert_eq!(take(&world, &tree).badge, Badge::Unverified);
    }
    // An upgrade: most files change somewhere, some are new, some are gone.
    for (place, file) in files.iter().enumerate() {
        let text = fs::read_to_string(file).unwrap();
        match place % 10 {
            0 => fs::rename(file, file.with_extension("rs.new")).unwrap(),
            1..=7 => fs::write(file, text.replace("let ", "let  ").replace("fn ", "pub  fn ")).unwrap(),
            _ => {}
        }
    }
    let upgraded = take(&world, &tree);
    assert!(upgraded.bytes_new * 2 > upgraded.bytes, "{upgraded:?}");
    assert_eq!((upgraded.badge, upgraded.doubts.as_slice()), (Badge::Unverified, &[] as &[String]));

    // And then someone encrypts what lies there, with a tool that anybody has.
    let thief = Identity::generate().recipient();
    let mut directories = vec![tree.clone()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => {
                    let sealed = seal::seal(std::slice::from_ref(&thief), &fs::read(&path).unwrap()).unwrap();
                    fs::write(&path, sealed).unwrap();
                }
            }
        }
    }
    let encrypted = take(&world, &tree);
    assert_eq!(encrypted.badge, Badge::Suspect);
    assert!(encrypted.doubts[0].contains("may have been encrypted"), "{:?}", encrypted.doubts);
    let found = world.vault.points(None).unwrap().findings;
    assert!(found.iter().any(|f| f.code == "suspect" && f.object == encrypted.key), "{found:?}");
    // What comes after it holds the same.
    let next = take(&world, &tree);
    assert_eq!(next.badge, Badge::Suspect);

    // No rule leaves only such points.
    let later = Timestamp::now() + SignedDuration::from_hours(72);
    let options = PruneOptions {
        rules: Some(KeepRules { last: 1, ..KeepRules::default() }),
        min_age: SignedDuration::ZERO,
        now: Some(later),
        ..PruneOptions::default()
    };
    world.storage.set_clock(later);
    let proposed = world.unlock().pruner().unwrap().propose(&options).unwrap();
    let of = |id: &str| proposed.points.iter().find(|point| point.id == id).unwrap();
    assert!(of(&upgraded.id).kept.contains(&Why::NewestSound));
    assert!(of(&encrypted.id).pruned.is_some());

    // The host itself cannot say that all is well; the owner can.
    assert!(world.vault.accept(Hand::Member(&world.state), &encrypted, "trust me").is_err());
    world.vault.accept(Hand::Owner(&world.unlock()), &encrypted, "we encrypted it ourselves").unwrap();
    let points = world.vault.points(None).unwrap().points;
    assert!(points.iter().all(|point| point.badge == Badge::Unverified), "{points:?}");
    assert_eq!(take(&world, &tree).badge, Badge::Unverified);
}

#[test]
fn the_newest_point_is_judged_without_reading_the_older_ones() {
    let world = World::new();
    for seed in 0..12 {
        let point = back_up(&world.vault, "app", seed, 20).unwrap();
        world.vault.doubts_about(&point).unwrap();
    }
    let faulty = Faulty::new(world.storage.clone());
    let again = world.reopen(faulty.clone()).unwrap();
    let point = back_up(&again, "app", 12, 20).unwrap();
    let reads = || {
        let seen = faulty.seen();
        seen.iter().filter(|(operation, key)| !operation.writes() && key.starts_with("snap/alpha/app/0")).count()
    };
    let before = reads();
    assert!(again.doubts_about(&point).unwrap().is_empty());
    assert_eq!(reads(), before);
    // Lost, it is read again, and known from then on.
    let kept = world.state.vault_directory(&world.vault.id()).unwrap().join("app.shapes");
    fs::write(&kept, b"something else").unwrap();
    assert!(again.doubts_about(&point).unwrap().is_empty());
    assert!(reads() > before + 10);
    assert_ne!(fs::read(&kept).unwrap(), b"something else");
}

#[test]
fn a_tree_that_is_emptied_is_suspect() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    let files = real_tree(&tree);
    let whole = take(&world, &tree);
    for file in files.iter().skip(files.len() / 4) {
        fs::remove_file(file).unwrap();
    }
    let emptied = take(&world, &tree);
    assert_eq!((whole.badge, emptied.badge), (Badge::Unverified, Badge::Suspect));
    assert!(emptied.doubts.iter().any(|doubt| doubt.contains("of the files")), "{:?}", emptied.doubts);
}
