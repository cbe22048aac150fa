//! What goes in comes out: every kind of file and attribute, and random trees.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use lifeboat_vault::files::{BackupOptions, Browser, Cut, Kind, Metadata, Stream, backup_bytes};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode};

use crate::files_world::*;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The bytes that setfacl would write: version 2, then (tag, permissions, id) of user::, user:1234:, group::, mask::, other::.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 6u16, u32::MAX), (2, 7, 1234), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// One of everything.
fn make_zoo(top: &Path) {
    write(top.join("empty"), b"");
    write(top.join("small"), b"hello");
    write(top.join("large"), noise(1, 9 << 20));
    write(top.join("deep/er/and/deeper/file"), noise(2, 300_000));
    write(top.join(OsStr::from_bytes(b"not \xff\xfe utf-8\n")), b"name of bytes");
    write(top.join("deep").join(OsStr::from_bytes(b"\x01")), b"x");
    write(top.join(OsStr::from_bytes(&[b'n'; 255])), b"long name");
    fs::create_dir(top.join("empty directory")).unwrap();
    symlink("small", top.join("link")).unwrap();
    symlink("/does/not/../exist", top.join("dangling")).unwrap();
    symlink("..", top.join("deep/up")).unwrap();
    fs::hard_link(top.join("small"), top.join("deep/er/same as small")).unwrap();
    fs::hard_link(top.join("large"), top.join("a second large")).unwrap();
    fs::hard_link(top.join("large"), top.join("deep/third large")).unwrap();
    rustix::fs::mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    write(top.join("program"), b"#!/bin/sh\n");
    std::os::unix::fs::chown(top.join("program"), Some(1000), Some(2000)).unwrap();
    mode(&top.join("program"), 0o6755);
    fs::create_dir(top.join("tmp")).unwrap();
    mode(&top.join("tmp"), 0o1777);
    write(top.join("readonly/file"), b"cannot touch this");
    mode(&top.join("readonly/file"), 0o000);
    mode(&top.join("readonly"), 0o555);
    xattr::set(top.join("small"), "user.note", b"\x00binary\xff").unwrap();
    xattr::set(top.join("deep"), "user.dir", b"").unwrap();
    xattr::set(top.join("program"), "user.big", &noise(3, 3000)).unwrap();
    xattr::set(top.join("empty"), "system.posix_acl_access", &acl()).unwrap();
    xattr::set(top.join("deep/er"), "system.posix_acl_default", &acl()).unwrap();
    xattr::set(top.join("deep/er"), "system.posix_acl_access", &acl()).unwrap();
    for (index, name) in ["link", "small", "deep/er/and", "deep", "readonly/file", "fifo"].iter().enumerate() {
        touch(&top.join(name), 1_000_000_000 + index as i64, 123_456_789);
    }
    touch(&top.join("empty"), -5, 7);
    touch(top, 1_234_567_890, 1);
}

#[test]
fn one_of_everything_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    make_zoo(&from);
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    assert!(summary.skipped.is_empty(), "{:?}", summary.skipped);
    assert!(summary.changed.is_empty());
    let restored = restore(&vault, &summary.root, &to);
    assert_same(&from, &to);
    assert_eq!((restored.files, restored.bytes), (summary.files, summary.bytes));
    assert!(restored.verified && !restored.resumed);
    let mut references = summary.references.clone();
    references.sort();
    assert_eq!(references, vault.ids(), "the references are exactly the chunks");

    // And the same again gives the same root, also over several roots and threads.
    assert_eq!(backup(&vault, &to).root, {
        // (the sources' paths are part of the root)
        fs::rename(&from, dir.path().join("away")).unwrap();
        fs::rename(&to, &from).unwrap();
        let again = backup(&vault, &from);
        assert_eq!(again.root, summary.root);
        assert_eq!(again.bytes_new, 0);
        fs::rename(&from, &to).unwrap();
        backup(&vault, &to).root
    });
}

#[test]
fn sockets_and_devices_are_left_out_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    write(from.join("file"), b"x");
    let _listener = UnixListener::bind(from.join("socket")).unwrap();
    rustix::fs::mknodat(CWD, from.join("null"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))
        .unwrap();
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    let told: Vec<_> =
        summary.skipped.iter().map(|s| format!("{}: {}", s.path.file_name().unwrap().display(), s.reason)).collect();
    insta::assert_debug_snapshot!(told, @r#"
    [
        "null: is a device: the operating system makes it anew",
        "socket: is a socket: the program that listens on it makes it anew",
    ]
    "#);
    restore(&vault, &summary.root, &dir.path().join("to"));
    assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), 1);
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    let sparse = |name: &str, size: u64, data: &[(u64, usize)]| {
        let file = fs::File::create(from.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (seed, (position, length)) in data.iter().enumerate() {
            std::os::unix::fs::FileExt::write_all_at(&file, &noise(seed as u64, *length), *position).unwrap();
        }
    };
    sparse("only a hole", 1 << 30, &[]);
    sparse("islands", 256 << 20, &[(0, 4096), (64 << 20, 2 << 20), ((256 << 20) - 4096, 4096)]);
    sparse("hole first", 1 << 20, &[(512 << 10, 512 << 10)]);
    sparse("hole last", 1 << 20, &[(0, 8192)]);
    sparse("odd", (10 << 20) + 17, &[(5 << 20, 100)]);
    let vault = MemoryVault::default();
    let summary = backup(&vault, &from);
    assert!(summary.bytes_read < 4 << 20, "only data is read, not {}", summary.bytes_read);
    restore(&vault, &summary.root, &to);
    for name in ["only a hole", "islands", "hole first", "hole last", "odd"] {
        let (a, b) = (fs::metadata(from.join(name)).unwrap(), fs::metadata(to.join(name)).unwrap());
        assert_eq!((a.len(), a.blocks()), (b.len(), b.blocks()), "{name}");
    }
    fs::remove_file(from.join("only a hole")).unwrap(); // a gigabyte of zeros in the oracle is too much
    fs::remove_file(to.join("only a hole")).unwrap();
    let time = |path: &Path| touch(path, 1, 1);
    time(&from);
    time(&to);
    assert_same(&from, &to);
}

#[test]
fn several_roots_keep_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write(path("a/data/one"), b"1");
    write(path("b/data/two"), b"2");
    write(path("c/file"), b"3");
    let vault = MemoryVault::default();
    let back = |roots: &[&Path]| try_backup(&vault, roots, &BackupOptions::default()).unwrap();

    let distinct = back(&[&path("a/data"), &path("c/file"), &path("a/data/one")]);
    restore(&vault, &distinct.root, &path("distinct"));
    assert_eq!(fs::read(path("distinct/data/one")).unwrap(), b"1");
    assert_eq!(fs::read(path("distinct/file")).unwrap(), b"3");
    assert_eq!(distinct.files, 2, "a root within another is taken once");

    let alike = back(&[&path("b/data"), &path("a/data")]);
    restore(&vault, &alike.root, &path("alike"));
    assert_eq!(fs::read(path("alike/a/data/one")).unwrap(), b"1");
    assert_eq!(fs::read(path("alike/b/data/two")).unwrap(), b"2");

    let file = back(&[&path("c/file")]);
    restore(&vault, &file.root, &path("single"));
    assert_eq!(fs::read(path("single/file")).unwrap(), b"3");

    let error = try_backup(&vault, &[], &BackupOptions::default()).unwrap_err();
    insta::assert_snapshot!(error, @"there is nothing to back up: name at least one path");
    let error = try_backup(&vault, &[Path::new("/no/such/place")], &BackupOptions::default()).unwrap_err();
    insta::assert_snapshot!(error, @"/no/such/place cannot be backed up; check that it exists and may be read");
}

#[test]
fn a_stream_is_a_tree_of_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let store = |content: &[u8], cut| {
        let metadata = Some(Metadata { mode: 0o640, mtime_seconds: 77, ..Metadata::default() });
        let cancel = AtomicBool::new(false);
        let pages = dir.path().join("pages");
        let stream =
            Stream { name: "app.db", cut, bytes: content.len() as u64, metadata, pages: Some(pages.as_path()) };
        backup_bytes(&vault, &stream, &mut &content[..], &(), &cancel).unwrap()
    };
    let mut database = noise(5, (40 << 20) + 4096);
    let first = store(&database, Cut::PAGES);
    assert_eq!((first.files, first.bytes), (1, database.len() as u64));
    database[20 << 20] ^= 1;
    let second = store(&database, Cut::PAGES);
    assert!(second.bytes_new < 16 << 10, "one page costs {} bytes", second.bytes_new);
    restore(&vault, &second.root, &dir.path().join("to"));
    assert!(fs::read(dir.path().join("to/app.db")).unwrap() == database);
    assert_eq!(fs::metadata(dir.path().join("to/app.db")).unwrap().mode() & 0o7777, 0o640);

    let browser = Browser::open(&vault, &first.root).unwrap();
    let mut copy = Vec::new();
    browser.copy(&browser.find(Path::new("app.db")).unwrap(), &mut copy).unwrap();
    database[20 << 20] ^= 1;
    assert!(copy == database);

    let empty = store(b"", Cut::Content);
    let browser = Browser::open(&vault, &empty.root).unwrap();
    assert!(matches!(browser.find(Path::new("app.db")).unwrap().kind, Kind::File { size: 0, .. }));
    insta::assert_snapshot!(
        browser.find(Path::new("other.db")).unwrap_err(),
        @r#""other.db" is not in the recovery point; paths count from what was backed up"#
    );
}

#[derive(Debug, Clone)]
enum Thing {
    File { size: usize, seed: u64, mode: u32 },
    Directory(Vec<(Vec<u8>, Thing)>),
    Symlink(Vec<u8>),
    Sparse { holes: Vec<(u32, u16)> },
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>().prop_filter("allowed in names", |byte| *byte != 0 && *byte != b'/'), 1..12)
        .prop_filter("not special", |name| name != b"." && name != b"..")
}

fn thing() -> impl Strategy<Value = Thing> {
    let size = prop_oneof![6 => 0usize..5000, 2 => 0usize..300_000, 1 => 900_000usize..3_000_000];
    let leaf = prop_oneof![
        8 => (size, any::<u64>(), 0u32..0o10000).prop_map(|(size, seed, mode)| Thing::File { size, seed, mode }),
        1 => name().prop_map(Thing::Symlink),
        1 => prop::collection::vec((0u32..10_000_000, 1u16..20_000), 0..4).prop_map(|holes| Thing::Sparse { holes }),
    ];
    leaf.prop_recursive(4, 60, 12, |inner| prop::collection::vec((name(), inner), 0..12).prop_map(Thing::Directory))
}

fn make(path: &Path, thing: &Thing) {
    match thing {
        Thing::File { size, seed, mode: bits } => {
            fs::write(path, noise(*seed, *size)).unwrap();
            mode(path, *bits);
        }
        Thing::Symlink(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
        Thing::Sparse { holes } => {
            let file = fs::File::create(path).unwrap();
            file.set_len(10_000_000).unwrap();
            for (position, length) in holes {
                let data = noise(1, usize::from(*length));
                std::os::unix::fs::FileExt::write_all_at(&file, &data, u64::from(*position)).unwrap();
            }
        }
        Thing::Directory(entries) => {
            fs::create_dir(path).unwrap();
            for (name, thing) in entries {
                let path = path.join(OsStr::from_bytes(name));
                if fs::symlink_metadata(&path).is_err() {
                    make(&path, thing);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any tree, then any other tree in its place: restored exactly, into a new place and over the old one.
    #[test]
    fn random_trees_come_back(before in thing(), after in thing()) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let cache = path("cache");
        let vault = MemoryVault::default();
        make(&{ fs::create_dir(path("from")).unwrap(); path("from/it") }, &before);
        let first = try_backup(&vault, &[&path("from")], &with_cache(&cache)).unwrap();
        restore(&vault, &first.root, &path("to"));
        assert_same(&path("from"), &path("to"));
        let same = try_backup(&vault, &[&path("from")], &with_cache(&cache)).unwrap();
        prop_assert_eq!(same.root, first.root);
        prop_assert_eq!(&same.references, &first.references);

        fs::rename(path("from/it"), path("old")).unwrap();
        make(&path("from/it"), &after);
        let second = try_backup(&vault, &[&path("from")], &with_cache(&cache)).unwrap();
        let restored = try_restore(&vault, &second.root, &path("to"), &in_place()).unwrap();
        prop_assert!(restored.notes.is_empty());
        assert_same(&path("from"), &path("to"));
    }
}
