//! Restores: interrupted, in place, in part, and of trees that mean harm.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lifeboat_vault::ChunkId;
use lifeboat_vault::ChunkSink;
use lifeboat_vault::files::{Browser, Event, RestoreError, RestoreOptions, TreeSummary, restore_tree};
use minicbor::Encoder;

use crate::files_world::*;

fn source(dir: &Path) -> PathBuf {
    let from = dir.join("from");
    for index in 0..60 {
        write(from.join(format!("{}/{index}", index % 7)), noise(index, 40_000 + index as usize));
    }
    write(from.join("large"), noise(100, 12 << 20));
    symlink("large", from.join("link")).unwrap();
    fs::hard_link(from.join("0/0"), from.join("1/same")).unwrap();
    from
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_interrupted_restore_is_not_seen_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (source(dir.path()), dir.path().join("there/to"));
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    let (cancel, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let progress = On(|event: &Event<'_>| {
        if let Event::Files(_) = event
            && done.fetch_add(1, Ordering::Relaxed) == 25
        {
            cancel.store(true, Ordering::Relaxed);
        }
    });
    let options = RestoreOptions::default();
    let error = restore_tree(&vault, &summary.root, &to, &options, &progress, &cancel).unwrap_err();
    let RestoreError::Cancelled { staging } = &error else { panic!("{error:?}") };
    assert!(!to.exists(), "nothing that looks whole");
    assert_eq!(names(&dir.path().join("there")).len(), 1);
    let name = staging.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with(".to.lifeboat-partial-"), "{name}");
    assert!(error.to_string().contains(name) && error.to_string().contains("run it again"));

    // What was left is made use of, even if someone meddled with it.
    write(staging.join("not in the point"), b"x");
    let restored = restore(&vault, &summary.root, &to);
    assert!(restored.resumed);
    assert!(restored.written_bytes < summary.bytes, "written again: {}", restored.written_bytes);
    assert_eq!(restored.files, summary.files);
    assert_same(&from, &to);
    assert_eq!(names(&dir.path().join("there")), ["to"]);
}

#[test]
fn a_chunk_that_is_gone_fails_loudly_and_leaves_no_target() {
    let dir = tempfile::tempdir().unwrap();
    let from = source(dir.path());
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    for (index, id) in summary.references.iter().enumerate() {
        let bytes = lifeboat_vault::ChunkSource::get(&vault, id).unwrap();
        vault.forget(id);
        let to = dir.path().join(format!("to-{index}"));
        let error = try_restore(&vault, &summary.root, &to, &RestoreOptions::default()).unwrap_err();
        assert!(matches!(error, RestoreError::Chunk { .. } | RestoreError::Tree(_)), "{error:?}");
        assert!(!to.exists());
        vault.replace(*id, bytes);
    }
}

#[test]
fn a_target_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let from = source(dir.path());
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    let say = |to: &Path| {
        let error = try_restore(&vault, &summary.root, to, &RestoreOptions::default()).unwrap_err();
        error.to_string().replace(dir.path().to_str().unwrap(), "DIR")
    };
    write(dir.path().join("full/file"), b"mine");
    insta::assert_snapshot!(say(&dir.path().join("full")), @"DIR/full is not empty; restore to an empty or new directory, or in place to change it to the recovery point");
    insta::assert_snapshot!(say(&dir.path().join("full/file")), @"DIR/full/file is not a directory; name a directory to restore to");
    assert_eq!(fs::read(dir.path().join("full/file")).unwrap(), b"mine");

    fs::create_dir(dir.path().join("empty")).unwrap();
    restore(&vault, &summary.root, &dir.path().join("empty"));
    assert_same(&from, &dir.path().join("empty"));
}

#[test]
fn in_place_writes_only_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (source(dir.path()), dir.path().join("to"));
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    restore(&vault, &summary.root, &to);

    let unchanged = try_restore(&vault, &summary.root, &to, &in_place()).unwrap();
    assert_eq!((unchanged.written_bytes, unchanged.removed), (0, 0));
    assert_same(&from, &to);

    // Corrupt a byte without a trace in size or times, shorten, lengthen, remove, add, change kinds and metadata.
    let keep_time = |path: &Path, change: &dyn Fn()| {
        let meta = fs::metadata(path).unwrap();
        change();
        touch(path, meta.mtime(), meta.mtime_nsec());
    };
    let large = to.join("large");
    keep_time(&large, &|| {
        let file = fs::File::options().write(true).open(&large).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"!", 5 << 20).unwrap();
    });
    fs::File::options().write(true).open(to.join("2/2")).unwrap().set_len(10_000).unwrap();
    fs::write(to.join("3/3"), [noise(3, 40_003), noise(1, 5_000)].concat()).unwrap();
    fs::remove_file(to.join("4/4")).unwrap();
    fs::remove_file(to.join("link")).unwrap();
    fs::create_dir(to.join("link")).unwrap();
    write(to.join("extra/deep/file"), b"x");
    fs::set_permissions(to.join("5/5"), fs::Permissions::from_mode(0o4711)).unwrap();
    xattr::set(to.join("5"), "user.extra", b"x").unwrap();
    fs::remove_file(to.join("6/6")).unwrap();
    symlink("/etc/passwd", to.join("6/6")).unwrap();
    let inode = fs::metadata(&large).unwrap().ino();

    let restored = try_restore(&vault, &summary.root, &to, &in_place()).unwrap();
    assert!(restored.notes.is_empty(), "{:?}", restored.notes);
    assert_same(&from, &to);
    // a block of `large`, the end of 2/2, the whole of 4/4 and 6/6
    let most = 4096 + 32_768 + 40_004 + 40_006;
    assert!(restored.written_bytes <= most, "{} of at most {most}", restored.written_bytes);
    assert_eq!(restored.removed, 3);
    assert_eq!(fs::metadata(&large).unwrap().ino(), inode, "changed, not replaced");
    assert_eq!(names(&to).iter().filter(|name| name.contains("lifeboat")).count(), 0);
}

#[test]
fn a_follower_fetches_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (source(dir.path()), dir.path().join("to"));
    let vault = MemoryVault::default();
    let cache = with_cache(&dir.path().join("cache"));
    let first = try_backup(&vault, &[&from], &cache).unwrap();
    restore(&vault, &first.root, &to);
    write(from.join("2/2"), b"changed");
    write(from.join("new/file"), b"new");
    fs::rename(from.join("1/same"), from.join("6/same")).unwrap();
    fs::remove_file(from.join("5/5")).unwrap();
    let second = try_backup(&vault, &[&from], &cache).unwrap();
    vault.gets.store(0, Ordering::Relaxed);
    write(to.join("0/14"), b"meddled with");
    let follow = RestoreOptions { base: Some(first.root), ..in_place() };
    let restored = try_restore(&vault, &second.root, &to, &follow).unwrap();
    assert!(restored.notes.is_empty(), "{:?}", restored.notes);
    assert_same(&from, &to);
    assert_eq!(restored.files, second.files);
    assert_eq!(restored.kept, second.files - 4, "changed, new, meddled with, and the moved name");
    assert!(vault.gets.load(Ordering::Relaxed) < 8, "{:?}", vault.gets);

    // A base that is not to be had, or a target that is a mixture: everything is compared.
    let follow = RestoreOptions { base: Some(ChunkId([9; 32])), ..in_place() };
    assert_eq!(try_restore(&vault, &second.root, &to, &follow).unwrap().kept, 0);
    write(to.join(".lifeboat-restore-incomplete"), b"");
    let follow = RestoreOptions { base: Some(second.root), ..in_place() };
    assert_eq!(try_restore(&vault, &second.root, &to, &follow).unwrap().kept, 0);
    assert_same(&from, &to);
}

#[test]
fn in_place_keeps_what_is_extra_unless_told_otherwise_and_never_touches_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (source(dir.path()), dir.path().join("to"));
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    write(to.join("extra"), b"mine");
    write(dir.path().join("outside"), b"not to be changed");
    fs::hard_link(dir.path().join("outside"), to.join("large")).unwrap();
    fs::create_dir(to.join("0")).unwrap();
    fs::hard_link(dir.path().join("outside"), to.join("0/7")).unwrap();
    let keep = RestoreOptions { in_place: true, ..RestoreOptions::default() };
    try_restore(&vault, &summary.root, &to, &keep).unwrap();
    assert_eq!(fs::read(to.join("extra")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path().join("outside")).unwrap(), b"not to be changed");

    fs::remove_file(to.join("large")).unwrap();
    write(to.join("large/file"), b"mine");
    let error = try_restore(&vault, &summary.root, &to, &keep).unwrap_err();
    assert!(matches!(error, RestoreError::InTheWay { .. }), "{error:?}");
    assert_eq!(fs::read(to.join("large/file")).unwrap(), b"mine");
    assert!(to.join(".lifeboat-restore-incomplete").exists(), "a mixture says that it is one");

    let restored = try_restore(&vault, &summary.root, &to, &in_place()).unwrap();
    assert!(restored.resumed);
    assert_same(&from, &to);
}

#[test]
fn a_part_is_restored_without_reading_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    for index in 0..40 {
        write(from.join(format!("big/{index}")), noise(index, 2 << 20));
    }
    write(from.join("docs/a/one"), b"1");
    write(from.join("docs/a/two"), b"2");
    write(from.join("docs/b/three"), b"3");
    touch(&from.join("docs/a"), 5, 5);
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    vault.gets.store(0, Ordering::Relaxed);
    let options = RestoreOptions { paths: vec!["docs/a".into(), "/docs/b/three".into()], ..RestoreOptions::default() };
    let restored = try_restore(&vault, &summary.root, &dir.path().join("to"), &options).unwrap();
    assert_eq!((restored.files, restored.bytes), (3, 3));
    assert!(vault.gets.load(Ordering::Relaxed) < 8, "{}", vault.gets.load(Ordering::Relaxed));
    assert_same(&from.join("docs"), &dir.path().join("to/docs"));
    assert_eq!(names(&dir.path().join("to")), ["docs"]);

    let options = RestoreOptions { paths: vec!["docs/z".into()], ..RestoreOptions::default() };
    let error = try_restore(&vault, &summary.root, &dir.path().join("other"), &options).unwrap_err();
    assert!(matches!(error, RestoreError::Tree(_)));
    assert!(!dir.path().join("other").exists());

    let browser = Browser::open(&vault, &summary.root).unwrap();
    let top = browser.find(Path::new("docs/a")).unwrap();
    let listed: Vec<_> = browser.entries(&top).unwrap().map(|node| node.unwrap().name).collect();
    assert_eq!(listed, [b"one", b"two"]);
    assert!(browser.find(Path::new("docs/../docs")).is_err());
}

#[test]
fn two_restores_to_one_place_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (source(dir.path()), dir.path().join("to"));
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    let second = std::sync::Mutex::new(None);
    let progress = On(|event: &Event<'_>| {
        let mut second = second.lock().unwrap();
        if matches!(event, Event::Files(_)) && second.is_none() {
            *second = Some(try_restore(&vault, &summary.root, &to, &RestoreOptions::default()));
        }
    });
    restore_tree(&vault, &summary.root, &to, &RestoreOptions::default(), &progress, &AtomicBool::new(false)).unwrap();
    let second = second.into_inner().unwrap().unwrap();
    assert!(matches!(second, Err(RestoreError::Busy { .. })), "{second:?}");
    assert_same(&from, &to);
}

/// Writes a tree by hand, with whatever in it.
fn forge(vault: &MemoryVault, nodes: &[Vec<u8>]) -> ChunkId {
    let mut listing = vec![1];
    nodes.iter().for_each(|node| listing.extend(node));
    let mut root = Vec::new();
    let mut e = Encoder::new(&mut root);
    e.array(6).unwrap().str("lifeboat tree").unwrap().u8(1).unwrap().u64(0).unwrap().u64(0).unwrap().array(0).unwrap();
    e.map(3).unwrap().u8(0).unwrap().bytes(b"").unwrap().u8(1).unwrap().u8(0).unwrap();
    e.u8(5).unwrap().bytes(&listing).unwrap();
    vault.put(&root).unwrap().id
}

fn symlink_node(name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    e.map(3).unwrap().u8(0).unwrap().bytes(name).unwrap().u8(1).unwrap().u8(2).unwrap();
    e.u8(6).unwrap().bytes(target).unwrap();
    e.into_writer()
}

fn file_node(name: &[u8], size: u64, pieces: &[(ChunkId, u32, u32)]) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    e.map(4).unwrap().u8(0).unwrap().bytes(name).unwrap().u8(1).unwrap().u8(1).unwrap();
    e.u8(3).unwrap().u64(size).unwrap().u8(4).unwrap().array(pieces.len() as u64).unwrap();
    for (id, offset, length) in pieces {
        e.array(3).unwrap().bytes(id.as_bytes()).unwrap().u32(*offset).unwrap().u32(*length).unwrap();
    }
    e.into_writer()
}

fn directory_node(name: &[u8], nodes: &[Vec<u8>]) -> Vec<u8> {
    let mut listing = vec![1];
    nodes.iter().for_each(|node| listing.extend(node));
    let mut e = Encoder::new(Vec::new());
    e.map(3).unwrap().u8(0).unwrap().bytes(name).unwrap().u8(1).unwrap().u8(0).unwrap();
    e.u8(5).unwrap().bytes(&listing).unwrap();
    e.into_writer()
}

#[test]
fn a_hostile_tree_writes_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let data = vault.put(b"evil").unwrap().id;
    let evil = |name: &[u8]| file_node(name, 4, &[(data, 0, 4)]);
    let outside = dir.path().join("outside");
    write(outside.join("file"), b"good");
    let out = outside.to_str().unwrap().as_bytes();
    let trees: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("dotdot", vec![evil(b"..")]),
        ("dot", vec![evil(b".")]),
        ("climb", vec![evil(b"../outside/file")]),
        ("absolute", vec![evil(&[out, b"/file"].concat())]),
        ("nul", vec![evil(b"a\0b")]),
        ("empty", vec![evil(b"")]),
        ("long", vec![evil(&[b'x'; 256])]),
        (
            "twice: a link and a directory through it",
            vec![symlink_node(b"a", out), directory_node(b"a", &[evil(b"file")])],
        ),
        ("out of order", vec![evil(b"b"), evil(b"a")]),
        ("beyond the chunk", vec![file_node(b"a", 5, &[(data, 0, 5)])]),
        ("far beyond the chunk", vec![file_node(b"a", 4, &[(data, u32::MAX - 2, 4)])]),
        ("wrong length", vec![file_node(b"a", 9, &[(data, 0, 4)])]),
        ("not cbor", vec![vec![0xff; 40]]),
        ("cut off", vec![evil(b"a")[..20].to_vec()]),
    ];
    for (index, (name, nodes)) in trees.into_iter().enumerate() {
        let root = forge(&vault, &nodes);
        let to = dir.path().join(format!("to-{index}"));
        let result = try_restore(&vault, &root, &to, &RestoreOptions::default());
        assert!(matches!(result, Err(RestoreError::Tree(_))), "{name}: {result:?}");
        assert!(!to.exists(), "{name}");
    }
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"good");
    assert_eq!(names(&outside), ["file"]);

    let harmless = forge(&vault, &[directory_node(b"a", &[evil(b"file")]), symlink_node(b"b", out)]);
    restore(&vault, &harmless, &dir.path().join("fine"));
    assert_eq!(fs::read(dir.path().join("fine/a/file")).unwrap(), b"evil");
}

#[test]
fn links_in_the_target_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let data = vault.put(b"evil").unwrap().id;
    let outside = dir.path().join("outside");
    write(outside.join("file"), b"good");
    let root = forge(&vault, &[directory_node(b"a", &[file_node(b"file", 4, &[(data, 0, 4)])])]);
    // In place over a link to elsewhere where the tree has a directory, and a link where it has a file.
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    symlink(&outside, to.join("a")).unwrap();
    try_restore(&vault, &root, &to, &in_place()).unwrap();
    assert!(fs::symlink_metadata(to.join("a")).unwrap().is_dir());
    fs::remove_file(to.join("a/file")).unwrap();
    symlink(outside.join("file"), to.join("a/file")).unwrap();
    try_restore(&vault, &root, &to, &in_place()).unwrap();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"good");
    assert_eq!(fs::read(to.join("a/file")).unwrap(), b"evil");

    // A directory swapped for a link while the restore runs.
    let from = source(dir.path());
    let summary: TreeSummary = backup(&vault, &from);
    let swapped = AtomicBool::new(false);
    let victim = dir.path().join("victim");
    write(victim.join("keep"), b"keep");
    let progress = On(|event: &Event<'_>| {
        if matches!(event, Event::Files(_)) && !swapped.swap(true, Ordering::Relaxed) {
            let staging = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| path.to_str().unwrap().contains("partial"))
                .unwrap();
            for name in ["3", "4", "5", "6"] {
                fs::rename(staging.join(name), staging.join(format!("{name}-away"))).unwrap();
                symlink(&victim, staging.join(name)).unwrap();
            }
        }
    });
    let options = RestoreOptions::default();
    let target = dir.path().join("swapped");
    let result = restore_tree(&vault, &summary.root, &target, &options, &progress, &AtomicBool::new(false));
    assert!(result.is_err(), "{result:?}");
    assert_eq!(names(&victim), ["keep"]);
    assert!(!target.exists());
}

#[test]
fn another_user_restores_what_may_be_restored_and_is_told_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    write(from.join("a/file"), b"x");
    fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o555)).unwrap();
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), None).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    std::thread::scope(|scope| {
        let run = || {
            let nobody = rustix::fs::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            restore(&vault, &summary.root, &home.join("to"));
            // Again, in place, over files and directories that are not writable.
            let options = RestoreOptions { owners: true, ..in_place() };
            let restored = try_restore(&vault, &summary.root, &home.join("to"), &options).unwrap();
            assert_eq!(restored.written_bytes, 0);
            assert!(restored.notes.iter().all(|note| note.what.starts_with("the owner could not be set")));
            assert_eq!(restored.notes_count, 3, "{:?}", restored.notes);
        };
        scope.spawn(run).join().unwrap();
    });
    assert_eq!(fs::metadata(home.join("to/a")).unwrap().mode() & 0o7777, 0o555);
    assert_eq!(fs::metadata(home.join("to/a/file")).unwrap().mode() & 0o7777, 0o444);
    assert_eq!(fs::metadata(home.join("to/a/file")).unwrap().uid(), 65534);
}
