//! Backing up what changes, vanishes, or is known already.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lifeboat_vault::files::{BackupError, BackupOptions, Event, Excludes, backup_tree};

use crate::files_world::*;

#[test]
fn a_file_that_changes_while_it_is_read_is_told_and_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    write(from.join("steady"), b"steady");
    write(from.join("growing"), b"before");
    write(from.join("once"), b"before");
    write(from.join("grown"), b"before");
    write(from.join("large"), noise(1, 3 << 20));
    let_clock_tick(&from);
    let vault = MemoryVault::default();
    let append = |path: &Path, bytes: &[u8]| {
        std::io::Write::write_all(&mut fs::File::options().append(true).open(path).unwrap(), bytes).unwrap();
    };
    // The change comes when the file is open and its first length known.
    let progress = On(|event: &Event<'_>| {
        let Event::Reading { directory, name } = event else { return };
        let path = directory.join(name);
        match name.to_str().unwrap() {
            "growing" => append(&path, b", more"),
            "once" if fs::read(&path).unwrap() == b"before" => fs::write(path, b"after, and longer").unwrap(),
            "grown" if fs::read(&path).unwrap() == b"before" => append(&path, &noise(2, 2 << 20)),
            "large" => fs::File::options().write(true).open(path).unwrap().set_len(1 << 20).unwrap(),
            _ => {}
        }
    });
    let roots = [from.clone()];
    let summary = backup_tree(&vault, &roots, &with_cache(&cache), &progress, &AtomicBool::new(false)).unwrap();
    assert_eq!(summary.changed, [from.join("growing"), from.join("large")]);
    assert_eq!(summary.changed_count, 2);
    // What is stored is readable, and what was read has the length that is written down. A small file is looked at twice.
    restore(&vault, &summary.root, &dir.path().join("to"));
    assert_eq!(fs::read(dir.path().join("to/growing")).unwrap(), b"before, more");
    assert_eq!(fs::read(dir.path().join("to/once")).unwrap(), b"after, and longer");
    assert_eq!(fs::read(dir.path().join("to/grown")).unwrap(), fs::read(from.join("grown")).unwrap());
    assert_eq!(fs::metadata(dir.path().join("to/large")).unwrap().len(), 1 << 20);

    let_clock_tick(&from);
    let again = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert_eq!(again.changed_count, 0);
    // A second look that came late enough after the change is as good as any first one.
    let [growing, once, grown, large] =
        ["growing", "once", "grown", "large"].map(|name| fs::metadata(from.join(name)).unwrap().len());
    let read = [0, once, grown, once + grown].map(|again| growing + large + again);
    assert!(
        read.contains(&again.bytes_read),
        "what changed is read again, the steady file is not: {}",
        again.bytes_read
    );
    restore(&vault, &again.root, &dir.path().join("again"));
    assert_same(&from, &dir.path().join("again"));
}

#[test]
fn files_and_directories_that_vanish_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    write(from.join("a"), b"a");
    write(from.join("b"), b"b");
    write(from.join("c"), noise(1, 2 << 20));
    let vault = MemoryVault::default();
    let gone = from.join("b");
    let progress = On(|event: &Event<'_>| {
        if let Event::Reading { name, .. } = event
            && *name == Path::new("a")
        {
            fs::remove_file(&gone).unwrap();
        }
    });
    let options = BackupOptions { threads: 1, ..BackupOptions::default() };
    let summary =
        backup_tree(&vault, std::slice::from_ref(&from), &options, &progress, &AtomicBool::new(false)).unwrap();
    assert_eq!(summary.skipped_count, 1);
    assert_eq!(summary.skipped[0].path, gone);
    assert_eq!(summary.skipped[0].reason, "vanished while it was being read");
    restore(&vault, &summary.root, &dir.path().join("to"));
    assert_eq!(fs::read(dir.path().join("to/a")).unwrap(), b"a");
    assert!(!dir.path().join("to/b").exists());
}

#[test]
fn a_file_swapped_for_a_link_or_pipe_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    write(dir.path().join("secret"), b"secret");
    write(from.join("a"), b"a");
    write(from.join("b"), b"b");
    write(from.join("c"), b"c");
    let progress = On(|event: &Event<'_>| {
        if let Event::Reading { name, .. } = event
            && *name == Path::new("a")
        {
            fs::remove_file(from.join("b")).unwrap();
            std::os::unix::fs::symlink(dir.path().join("secret"), from.join("b")).unwrap();
            fs::remove_file(from.join("c")).unwrap();
            let mode = rustix::fs::Mode::RUSR;
            rustix::fs::mknodat(rustix::fs::CWD, from.join("c"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
    });
    let vault = MemoryVault::default();
    let options = BackupOptions { threads: 1, ..BackupOptions::default() };
    let summary =
        backup_tree(&vault, std::slice::from_ref(&from), &options, &progress, &AtomicBool::new(false)).unwrap();
    let reasons: Vec<_> = summary.skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
    assert_eq!(reasons, ["was replaced by something else while it was being read"; 2]);
    assert_eq!(summary.files, 1);
}

#[test]
fn what_a_user_may_not_read_is_told_and_the_rest_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    write(from.join("open"), b"open");
    write(from.join("closed"), b"closed");
    write(from.join("locked/file"), b"locked");
    fs::set_permissions(from.join("closed"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(from.join("locked"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let vault = MemoryVault::default();
    // Only this thread, and those it starts, become another user.
    let summary = std::thread::scope(|scope| {
        let run = || {
            let nobody = rustix::fs::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            backup(&vault, &from)
        };
        scope.spawn(run).join().unwrap()
    });
    let told: Vec<_> =
        summary.skipped.iter().map(|s| format!("{}: {}", s.path.file_name().unwrap().display(), s.reason)).collect();
    assert_eq!(told, ["closed: may not be read by this user", "locked: may not be read by this user"]);
    assert_eq!(summary.files, 1);
}

#[test]
fn the_cache_spares_reading_and_only_reading() {
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    for index in 0..300 {
        write(from.join(format!("{:02}/{index}", index % 17)), noise(index, 2000));
    }
    fs::hard_link(from.join("00/0"), from.join("16/same")).unwrap();
    write(from.join("large"), noise(999, 5 << 20));
    let_clock_tick(&from);
    let vault = MemoryVault::default();
    let first = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert_eq!(first.bytes_read, 300 * 2000 + (5 << 20), "a file with two names is read once");

    let second = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert_eq!((second.root, second.bytes_read, second.bytes_new), (first.root, 0, 0));
    assert_eq!(second.references, first.references);
    assert_eq!((second.files, second.bytes), (first.files, first.bytes));

    // One file changes: it is read, and little is stored.
    write(from.join("05/5"), noise(1000, 2000));
    let third = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert_eq!(third.bytes_read, 2000);
    assert!(third.bytes_new < 80_000, "{}", third.bytes_new);
    assert_ne!(third.root, first.root);
    restore(&vault, &third.root, &dir.path().join("to"));
    assert_same(&from, &dir.path().join("to"));

    // The same size and time of modification do not deceive it.
    let_clock_tick(&from);
    let _ = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    write(from.join("06/6"), noise(1001, 2000));
    touch(&from.join("06/6"), 1, 1);
    let_clock_tick(&from);
    let _ = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    write(from.join("06/6"), noise(1002, 2000));
    touch(&from.join("06/6"), 1, 1);
    assert_eq!(try_backup(&vault, &[&from], &with_cache(&cache)).unwrap().bytes_read, 2000);

    // The cache lost, or rubbish: all is read. What is in the vault under the same cuts is not stored again.
    fs::write(&cache, b"rubbish").unwrap();
    let lost = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert_eq!(lost.bytes_read, first.bytes_read);
    fs::remove_file(&cache).unwrap();
    let lost = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert_eq!((lost.bytes_read, lost.bytes_new), (first.bytes_read, 0));

    // A chunk lost from the vault: the cache is not believed for the files in it.
    let victim = *lost
        .references
        .iter()
        .find(|id| lifeboat_vault::ChunkSource::get(&vault, id).unwrap().len() > 1 << 18)
        .unwrap();
    vault.forget(&victim);
    let healed = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert!(healed.bytes_new > 0 && healed.bytes_read < lost.bytes_read);
    restore(&vault, &healed.root, &dir.path().join("healed"));
    assert_same(&from, &dir.path().join("healed"));
}

#[test]
fn a_cache_that_cannot_be_written_is_told_and_not_fatal() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path().join("from/file"), b"x");
    write(dir.path().join("in the way"), b"x");
    let vault = MemoryVault::default();
    let options = with_cache(&dir.path().join("in the way/cache"));
    let summary = try_backup(&vault, &[&dir.path().join("from")], &options).unwrap();
    assert!(summary.cache_failure.unwrap().contains("in the way/cache"));
}

#[test]
fn an_interrupted_backup_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    for index in 0..40 {
        write(from.join(format!("{index:02}/file")), noise(index, 2 << 20));
    }
    let_clock_tick(&from);
    let vault = MemoryVault::default();
    let (cancel, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let progress = On(|event: &Event<'_>| {
        if let Event::Files(_) = event
            && done.fetch_add(1, Ordering::Relaxed) == 20
        {
            cancel.store(true, Ordering::Relaxed);
        }
    });
    let error = backup_tree(&vault, std::slice::from_ref(&from), &with_cache(&cache), &progress, &cancel).unwrap_err();
    insta::assert_snapshot!(error, @"the backup was interrupted; what was stored so far is kept, run it again to go on");
    assert_eq!(vault.checkpoints.load(Ordering::Relaxed), 1, "what was stored is made findable");
    let stored = vault.len();
    assert!(stored >= 20);

    let summary = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert!(summary.bytes_read <= 20 * (2 << 20), "read again: {}", summary.bytes_read);
    assert_eq!(summary.root, backup(&MemoryVault::default(), &from).root, "as if it had never been interrupted");
    restore(&vault, &summary.root, &dir.path().join("to"));
    assert_same(&from, &dir.path().join("to"));
}

#[test]
fn a_vault_that_cannot_store_fails_the_backup() {
    let dir = tempfile::tempdir().unwrap();
    for index in 0..50 {
        write(dir.path().join(format!("from/{index}")), noise(index, 3 << 20));
    }
    for puts in [0, 1, 7, 49, 50] {
        let vault = MemoryVault { puts_until_full: Some(AtomicU64::new(puts)), ..MemoryVault::default() };
        let error = try_backup(&vault, &[&dir.path().join("from")], &BackupOptions::default()).unwrap_err();
        assert!(matches!(error, BackupError::Store(_)), "{error:?}");
    }
}

#[test]
fn excludes_and_file_systems() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    for name in ["keep", "x.tmp", "deep/x.tmp", "deep/keep", "target/debug/big", "deep/target"] {
        write(from.join(name), b"x");
    }
    let vault = MemoryVault::default();
    let excludes = Excludes::new(["*.tmp", "target/"]).unwrap();
    let summary = try_backup(&vault, &[&from], &BackupOptions { excludes, ..BackupOptions::default() }).unwrap();
    assert_eq!((summary.files, summary.excluded, summary.skipped_count), (3, 3, 0));
    restore(&vault, &summary.root, &dir.path().join("to"));
    assert!(dir.path().join("to/deep/target").exists() && !dir.path().join("to/target").exists());

    // /proc shows the kernel, and is left out of a wider backup even without one_file_system.
    let excludes = Excludes::new(["/[!p]*", "/p[!r]*"]).unwrap();
    let options = BackupOptions { excludes, ..BackupOptions::default() };
    let summary = try_backup(&vault, &[Path::new("/")], &options).unwrap();
    assert!(summary.skipped.iter().any(|s| s.path == Path::new("/proc") && s.reason.contains("kernel")), "{summary:?}");
    assert_eq!(summary.files, 0);
}

#[test]
fn a_deep_tree_and_a_wide_directory() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let mut path = from.clone();
    for _ in 0..200 {
        path.push("d");
    }
    write(path.join("bottom"), b"deep");
    for index in 0..20_000 {
        write(from.join(format!("wide/{index}")), []);
    }
    let vault = MemoryVault::default();
    let first = backup(&vault, &from);
    assert_eq!(first.files, 20_001);
    write(from.join("wide/10000x"), []);
    let second = backup(&vault, &from);
    assert!(second.bytes_new < 700 << 10, "a new name in a huge directory costs {} bytes", second.bytes_new);
    restore(&vault, &second.root, &dir.path().join("to"));
    assert_same(&from, &dir.path().join("to"));
    assert!(path.as_os_str().as_bytes().len() > 400);
}
