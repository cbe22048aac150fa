//! Files through a whole vault: sealed, signed, on storage, and back with nothing but a key.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jiff::Timestamp;
use lifeboat_vault::files::{
    BackupError, BackupOptions, Browser, Cut, Event, RestoreOptions, Stream, TreeSummary, backup_bytes, backup_tree,
    restore_tree, tree_root,
};
use lifeboat_vault::{PointInfo, SessionOptions};

use crate::files_world::*;
use crate::world::World;

fn take(world: &World, from: &Path, cache: &Path) -> (TreeSummary, PointInfo) {
    let session = world.vault.begin("docs", SessionOptions::default()).unwrap();
    let cancel = AtomicBool::new(false);
    let summary = backup_tree(&session, &[from.to_owned()], &with_cache(cache), &(), &cancel).unwrap();
    let point = session.commit(summary.draft(Timestamp::now())).unwrap();
    (summary, point)
}

fn bring_back(world: &World, point: &PointInfo, to: &Path, options: &RestoreOptions) {
    let unlocked = world.unlock();
    let source = unlocked.source(&point.dataset).unwrap();
    let root = tree_root(&unlocked, point).unwrap();
    let restored = restore_tree(&source, &root, to, options, &(), &AtomicBool::new(false)).unwrap();
    assert_eq!((restored.files, restored.bytes), (point.files, point.bytes));
}

#[test]
fn files_go_through_a_vault_and_back() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    for index in 0..500 {
        write(from.join(format!("{}/{index}", index % 23)), noise(index, (index as usize * 37) % 9000));
    }
    write(from.join("large"), noise(1000, 11 << 20));
    write(from.join("text"), "the same line over and over\n".repeat(100_000));
    let_clock_tick(&from);
    let (first, point) = take(&world, &from, &cache);
    bring_back(&world, &point, &dir.path().join("to"), &RestoreOptions::default());
    assert_same(&from, &dir.path().join("to"));

    let (same, again) = take(&world, &from, &cache);
    assert_eq!((same.root, same.bytes_read, same.bytes_new), (first.root, 0, 0));
    write(from.join("7/7"), b"changed");
    let (changed, third) = take(&world, &from, &cache);
    assert!(changed.bytes_read == 7 && changed.bytes_new < 80_000, "{changed:?}");
    bring_back(&world, &third, &dir.path().join("to"), &RestoreOptions { base: Some(first.root), ..in_place() });
    assert_same(&from, &dir.path().join("to"));
    bring_back(&world, &again, &dir.path().join("before"), &RestoreOptions::default());
    assert_eq!(fs::read(dir.path().join("before/7/7")).unwrap(), noise(7, 37 * 7));
}

#[test]
fn an_interrupted_first_backup_uploads_the_rest_only() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    for index in 0..30 {
        write(from.join(format!("{index}")), noise(index, 2 << 20));
    }
    let session = world.vault.begin("docs", SessionOptions::default()).unwrap();
    let (cancel, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let progress = On(|event: &Event<'_>| {
        if let Event::Files(_) = event
            && done.fetch_add(1, Ordering::Relaxed) == 15
        {
            cancel.store(true, Ordering::Relaxed);
        }
    });
    let cache = dir.path().join("cache");
    let error =
        backup_tree(&session, std::slice::from_ref(&from), &with_cache(&cache), &progress, &cancel).unwrap_err();
    assert!(matches!(error, BackupError::Cancelled));
    drop(session);
    fs::remove_file(&cache).unwrap(); // even without it: what was stored is found again
    let (summary, point) = take(&world, &from, &cache);
    assert!(summary.bytes_new <= 16 << 21, "{}", summary.bytes_new);
    bring_back(&world, &point, &dir.path().join("to"), &RestoreOptions::default());
    assert_same(&from, &dir.path().join("to"));
}

#[test]
fn a_database_file_goes_through_as_a_stream() {
    let world = World::new();
    let content = noise(1, (3 << 20) + 4096);
    let session = world.vault.begin("db", SessionOptions::default()).unwrap();
    let bytes = content.len() as u64;
    let stream = Stream { name: "app.db", cut: Cut::PAGES, bytes, metadata: None, pages: None };
    let cancel = AtomicBool::new(false);
    let summary = backup_bytes(&session, &stream, &mut &content[..], &(), &cancel).unwrap();
    let point = session.commit(summary.draft(Timestamp::now())).unwrap();
    let unlocked = world.unlock();
    let source = unlocked.source("db").unwrap();
    let browser = Browser::open(&source, &tree_root(&unlocked, &point).unwrap()).unwrap();
    let mut back = Vec::new();
    browser.copy(&browser.find(Path::new("app.db")).unwrap(), &mut back).unwrap();
    assert!(back == content);
}

#[test]
fn a_file_that_is_written_in_place_costs_the_blocks_that_changed() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    let mut database = noise(3, 45 << 20);
    database[20 << 20..30 << 20].fill(b'x');
    write(from.join("database"), &database);
    for (generation, workers) in [1, 4, 1].into_iter().enumerate() {
        // Pages far from each other: one of them at the edge of two segments that are read one after another.
        for page in [0, 2047, 2048, 9999, 11_519] {
            database[page * 4096 + generation..][..9].copy_from_slice(b"rewritten");
        }
        write(from.join("database"), &database);
        let session = world.vault.begin("docs", SessionOptions::default()).unwrap();
        let options = BackupOptions { threads: workers, ..with_cache(&cache) };
        let cancel = AtomicBool::new(false);
        let summary = backup_tree(&session, std::slice::from_ref(&from), &options, &(), &cancel).unwrap();
        let point = session.commit(summary.draft(Timestamp::now())).unwrap();
        if generation > 0 {
            assert!(summary.bytes_new <= 5 * 8192 + 16_000, "{}", summary.bytes_new);
        }
        let to = dir.path().join(format!("to{generation}"));
        bring_back(&world, &point, &to, &RestoreOptions { threads: workers, ..RestoreOptions::default() });
        assert!(fs::read(to.join("database")).unwrap() == database);
    }
}

#[test]
fn a_fast_backup_stores_more_and_shares_what_is_alike() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let text: Vec<u8> =
        (0..200_000u64).flat_map(|n| format!("line {} says {}\n", n, n * n % 7919).into_bytes()).collect();
    write(dir.path().join("from/text"), &text);
    let back_up = |dataset: &str, options| {
        let session = world.vault.begin(dataset, options).unwrap();
        let from = [dir.path().join("from")];
        let summary = backup_tree(&session, &from, &BackupOptions::default(), &(), &AtomicBool::new(false)).unwrap();
        session.commit(summary.draft(Timestamp::now())).unwrap()
    };
    let usual = back_up("usual", SessionOptions::default());
    let fast = back_up("fast", SessionOptions::fast());
    assert!(fast.bytes_stored > usual.bytes_stored, "{} {}", fast.bytes_stored, usual.bytes_stored);
    assert_eq!(back_up("fast", SessionOptions::default()).bytes_new, 0);
    bring_back(&world, &fast, &dir.path().join("to"), &RestoreOptions::default());
    assert!(fs::read(dir.path().join("to/text")).unwrap() == text);
}
