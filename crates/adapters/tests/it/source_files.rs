//! Files: points, restores, and a standby that takes over each new point.

use std::fs;
use std::path::Path;

use lifeboat_adapters::source::FilesSource;
use lifeboat_core::runbook::Target;
use lifeboat_engine::port::{
    Cancel, FollowRequest, PointRequest, RestoreRequest, Restorer, Source, StreamRequest, Streaming,
};

use crate::vault_world::VaultWorld;

fn request(epoch: u64, final_mark: bool) -> PointRequest {
    PointRequest { dataset: "uploads".into(), epoch, final_mark, release: None }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_standby_takes_over_each_point_and_is_in_place_only_after_its_promotion() {
    let root = tempfile::tempdir().unwrap();
    let world = VaultWorld::new(root.path(), "near");
    let uploads = root.path().join("uploads");
    fs::create_dir(&uploads).unwrap();
    fs::write(uploads.join("a.txt"), "one").unwrap();
    fs::write(uploads.join("skip.tmp"), "no").unwrap();
    fs::write(uploads.join("big"), vec![1; 3_000_000]).unwrap();
    let source = FilesSource::new(&uploads, &["*.tmp".to_owned()], Some(root.path().join("caches"))).unwrap();
    let cancel = Cancel::default();
    let first = source.take_point(&world.named(), &request(1, false), &(), &cancel).unwrap();
    assert_eq!((first.files, first.point.epoch, first.point.final_mark), (2, 1, false));

    let to = root.path().join("standby").join("uploads");
    fs::create_dir(root.path().join("standby")).unwrap();
    let follow = FollowRequest { dataset: "uploads".into(), to: to.clone(), adopt: false };
    let mut standby = source.follow(&world.unlocked(), &follow).unwrap();
    let applied = standby.apply(&cancel).unwrap();
    assert_eq!((applied.point.as_deref(), applied.is_final), (Some(first.point.id.as_str()), false));
    assert!(!to.exists());
    assert_eq!(standby.apply(&cancel).unwrap().bytes_written, 0);

    fs::write(uploads.join("a.txt"), "two").unwrap();
    fs::write(uploads.join("b.txt"), "new").unwrap();
    source.take_point(&world.named(), &request(1, true), &(), &cancel).unwrap();
    let applied = standby.apply(&cancel).unwrap();
    assert!(applied.is_final && applied.bytes_written < 10_000, "{applied:?}");
    // The standby's process may be another one by then.
    drop(standby);
    let mut standby = source.follow(&world.unlocked(), &follow).unwrap();
    let promoted = standby.promote(&cancel).unwrap();
    assert!(promoted.is_final);
    assert_eq!(names(&to), ["a.txt", "b.txt", "big"]);
    assert_eq!(fs::read(to.join("a.txt")).unwrap(), b"two");
    assert_eq!(names(&root.path().join("standby")), ["uploads"]);

    let elsewhere = root.path().join("elsewhere");
    let restore =
        |target, in_place| RestoreRequest { dataset: "uploads".into(), to: elsewhere.clone(), target, in_place };
    let restored = source
        .restore(&world.unlocked(), &restore(Target::Point(first.point.id.clone()), false), &(), &cancel)
        .unwrap();
    assert!(restored.verified.is_some());
    assert_eq!(names(&elsewhere), ["a.txt", "big"]);
    let again = source.restore(&world.unlocked(), &restore(Target::Newest, true), &(), &cancel).unwrap();
    assert!(again.bytes_written < 10_000, "{again:?}");
    assert_eq!(names(&elsewhere), ["a.txt", "b.txt", "big"]);
}

#[test]
fn a_standby_that_turns_to_another_vault_never_goes_back() {
    let root = tempfile::tempdir().unwrap();
    let (near, far) = (VaultWorld::new(root.path(), "near"), VaultWorld::new(root.path(), "far"));
    let uploads = root.path().join("uploads");
    fs::create_dir(&uploads).unwrap();
    let source = FilesSource::new(&uploads, &[], None).unwrap();
    let cancel = Cancel::default();
    fs::write(uploads.join("a"), "one").unwrap();
    source.take_point(&far.named(), &request(1, false), &(), &cancel).unwrap();
    fs::write(uploads.join("a"), "two").unwrap();
    source.take_point(&near.named(), &request(1, false), &(), &cancel).unwrap();
    let to = root.path().join("deep").join("standby");
    let follow = FollowRequest { dataset: "uploads".into(), to: to.clone(), adopt: false };
    let work = root.path().join("deep").join("standby.lifeboat-standby");
    for vault in [&near, &far, &near, &far] {
        source.follow(&vault.unlocked(), &follow).unwrap().apply(&cancel).unwrap();
        assert_eq!(fs::read(work.join("a")).unwrap(), b"two");
    }
    fs::write(uploads.join("a"), "three").unwrap();
    source.take_point(&far.named(), &request(1, true), &(), &cancel).unwrap();
    let promoted = source.follow(&far.unlocked(), &follow).unwrap().promote(&cancel).unwrap();
    assert!(promoted.is_final);
    assert_eq!(fs::read(to.join("a")).unwrap(), b"three");
    // Once live, it is a standby again only if it may be, and what an older one left is not taken for it.
    assert!(source.follow(&near.unlocked(), &follow).is_err());
    fs::create_dir(&work).unwrap();
    fs::write(work.join("left"), "over").unwrap();
    let adopt = FollowRequest { adopt: true, ..follow };
    let applied = source.follow(&far.unlocked(), &adopt).unwrap().apply(&cancel).unwrap();
    assert!(applied.is_final && !to.exists());
    assert_eq!(names(&work), ["a"]);
}

#[test]
fn a_point_of_a_new_epoch_supersedes_what_the_old_writer_still_writes() {
    let root = tempfile::tempdir().unwrap();
    let world = VaultWorld::new(root.path(), "near");
    let (old, new) = (root.path().join("old"), root.path().join("new"));
    for (directory, text) in [(&old, "old"), (&new, "new")] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("who"), text).unwrap();
    }
    let cancel = Cancel::default();
    let take = |path: &Path, epoch| {
        let source = FilesSource::new(path, &[], None).unwrap();
        source.take_point(&world.named(), &request(epoch, false), &(), &cancel).unwrap()
    };
    take(&old, 1);
    take(&new, 2);
    take(&old, 1);
    let to = root.path().join("to");
    let restore = RestoreRequest { dataset: "uploads".into(), to: to.clone(), target: Target::Newest, in_place: false };
    FilesSource::new(&old, &[], None).unwrap().restore(&world.unlocked(), &restore, &(), &cancel).unwrap();
    assert_eq!(fs::read(to.join("who")).unwrap(), b"new");
}

#[test]
fn files_say_that_they_have_no_log() {
    let source = FilesSource::new("/srv/uploads", &[], None).unwrap();
    let request = StreamRequest::new("uploads", 1, "/nowhere");
    let Streaming::PointsOnly { why } = source.stream(&[], &request).unwrap() else { panic!("it streams") };
    assert_eq!(why, "/srv/uploads is files, which have no log to stream");
}
