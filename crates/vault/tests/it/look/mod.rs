//! The catalogue and the comparison of trees, held against a model: what random changes to a tree left in each of many points.

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use lifeboat_vault::catalog::{self, Catalog, Found, Pattern, PointMark, Query, SeenKind, When};
use lifeboat_vault::files::{
    Browser, FileReader, Kind, Metadata, Node, Span, TreeWriter, backup_tree, compare_trees, restore_tree,
};
use lifeboat_vault::{ChunkId, SessionOptions};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::files_world::{MemoryVault, assert_same, noise, write};
use crate::world::World;

/// A tree as a model: path → seconds of change and content; `None` is a directory.
type Model = BTreeMap<String, Option<(i64, Vec<u8>)>>;

fn metadata(mtime_seconds: i64) -> Metadata {
    Metadata { mode: 0o644, mtime_seconds, ..Metadata::default() }
}

/// Writes the model as a tree; its root.
fn store(vault: &MemoryVault, model: &Model) -> ChunkId {
    let mut writer = TreeWriter::new(vault, None);
    store_below(&mut writer, model, "");
    writer.finish(Vec::new()).unwrap().root
}

fn store_below(writer: &mut TreeWriter<'_>, model: &Model, above: &str) {
    for (path, file) in model.range(above.to_owned()..).take_while(|(path, _)| path.starts_with(above)) {
        let Some(name) = path.strip_prefix(above).filter(|name| !name.is_empty() && !name.contains('/')) else {
            continue;
        };
        match file {
            None => {
                writer.enter(name.as_bytes(), Some(metadata(1))).unwrap();
                store_below(writer, model, &format!("{path}/"));
                writer.leave().unwrap();
            }
            Some((mtime, content)) => {
                let spans = writer.content(&mut &content[..]).unwrap();
                let kind = Kind::File { size: content.len() as u64, spans };
                let name = name.as_bytes().to_vec();
                writer.add(&Node { name, kind, metadata: Some(metadata(*mtime)), link: None }).unwrap();
            }
        }
    }
}

/// One random change: a name made of few letters, so that names come, go and come again as something else.
fn change(model: &mut Model, words: &[u8], number: i64) {
    let mut path = String::new();
    for (depth, word) in words.iter().take(3).enumerate() {
        let name = format!("{}{}", char::from(b'a' + word % 5), if word % 7 == 0 { ".txt" } else { "" });
        path = if depth == 0 { name } else { format!("{path}/{name}") };
        let last = depth + 1 == words.len().min(3);
        let remove = |model: &mut Model, path: &str| {
            let below = format!("{path}/");
            model.retain(|known, _| known != path && !known.starts_with(&below));
        };
        match (last, words[0] % 4) {
            (true, 0) => remove(model, &path),
            (true, 1) => {
                if !matches!(model.get(&path), Some(None)) {
                    model.insert(path.clone(), None);
                }
            }
            (true, _) => {
                remove(model, &path);
                model.insert(path.clone(), Some((number, noise(number as u64 % 3, (number as usize % 4) * 10))));
            }
            (false, _) => {
                if !matches!(model.get(&path), Some(None)) {
                    remove(model, &path);
                    model.insert(path.clone(), None);
                }
            }
        }
    }
}

fn query(pattern: &str, when: When) -> Query {
    Query {
        pattern: Pattern::new(pattern, false, false).unwrap(),
        dataset: None,
        host: None,
        when,
        kind: None,
        bytes_min: None,
        bytes_max: None,
        changed_after: None,
        changed_before: None,
        limit: 0,
    }
}

fn taken(sequence: u64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + sequence as i64 * 60).unwrap()
}

fn add(catalog: &mut Catalog, vault: &MemoryVault, sequence: u64, root: &ChunkId) -> u64 {
    let id = format!("alpha/app/{sequence}");
    let mark = PointMark { host: "alpha", dataset: "app", sequence, taken_at: taken(sequence), id: &id };
    let (added, findings) = catalog.fill(&mark, vault, root, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    added
}

/// What the catalogue says stood in a point, as far as a model can tell.
fn at(catalog: &Catalog, pattern: &str, sequence: u64) -> BTreeMap<String, Option<(i64, u64)>> {
    let answer = catalog.search(&query(pattern, When::At(taken(sequence)))).unwrap();
    let one = |found: Found| {
        let [version] = &found.versions[..] else { panic!("{found:?}") };
        let file = (version.kind == SeenKind::File).then(|| (version.changed_at.as_second(), version.bytes));
        (String::from_utf8(found.path).unwrap(), file)
    };
    answer.found.into_iter().map(one).collect()
}

fn plain(model: &Model) -> BTreeMap<String, Option<(i64, u64)>> {
    model
        .iter()
        .map(|(path, file)| (path.clone(), file.as_ref().map(|(at, bytes)| (*at, bytes.len() as u64))))
        .collect()
}

#[test]
fn the_catalogue_knows_every_point_as_it_was() {
    let mut runner = TestRunner::new(Config { cases: 48, ..Config::default() });
    let days = prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 1..4), 0..8), 1..14);
    runner
        .run(&days, |days| {
            let directory = tempfile::tempdir().unwrap();
            let vault = MemoryVault::default();
            let mut catalog = Catalog::open(directory.path(), "v").unwrap();
            let (mut model, mut models, mut number) = (Model::new(), Vec::new(), 0);
            for (sequence, changes) in (1..).zip(&days) {
                for words in changes {
                    number += 1;
                    change(&mut model, words, number);
                }
                let root = store(&vault, &model);
                add(&mut catalog, &vault, sequence, &root);
                models.push((model.clone(), root));
            }
            for (sequence, (model, _)) in (1..).zip(&models) {
                prop_assert_eq!(at(&catalog, "*", sequence), plain(model), "point {}", sequence);
                let mut some = plain(model);
                some.retain(|path, _| path.rsplit('/').next().unwrap().contains(".tx"));
                prop_assert_eq!(at(&catalog, ".tx", sequence), some);
            }
            // A path is there once, its versions one after the other.
            let all = catalog.search(&query("*", When::Any)).unwrap();
            let ever: BTreeSet<&String> = models.iter().flat_map(|(model, _)| model.keys()).collect();
            prop_assert_eq!(all.found.len(), ever.len());
            let gone = catalog.search(&query("*", When::Deleted)).unwrap();
            prop_assert_eq!(gone.found.len(), ever.len() - model.len());

            let ((old, old_root), (new, new_root)) = (&models[0], &models[models.len() - 1]);
            let (before, after) = (Browser::open(&vault, old_root).unwrap(), Browser::open(&vault, new_root).unwrap());
            let mut told = BTreeMap::new();
            let mut each = |change: lifeboat_vault::files::Change| {
                let what = (change.before.is_some(), change.after.is_some(), change.content, change.metadata);
                assert!(told.insert(String::from_utf8(change.path).unwrap(), what).is_none());
                true
            };
            compare_trees(&before, &after, &mut each).unwrap();
            let mut wanted = BTreeMap::new();
            for path in old.keys().chain(new.keys()) {
                let (l, r) = (old.get(path), new.get(path));
                let (content, metadata) = match (l, r) {
                    (Some(Some(l)), Some(Some(r))) => (l.1 != r.1, l.0 != r.0),
                    (Some(Some((at, _))), Some(None)) | (Some(None), Some(Some((at, _)))) => (true, *at != 1),
                    (l, r) => (l != r, l != r),
                };
                if content || metadata {
                    wanted.insert(path.clone(), (l.is_some(), r.is_some(), content, metadata));
                }
            }
            prop_assert_eq!(told, wanted);
            Ok(())
        })
        .unwrap();
}

/// So many directories that their listings are stored as chunks, at both levels.
fn wide(changed: Option<u64>) -> Model {
    let mut model = Model::new();
    for directory in 0..100 {
        model.insert(format!("d{directory:03}"), None);
        for file in 0..450 {
            let version = i64::from(changed == Some(directory * 1000 + file));
            model.insert(
                format!("d{directory:03}/{directory:03}-file-{file:04}-with-a-long-name"),
                Some((version, Vec::new())),
            );
        }
    }
    model
}

#[test]
fn what_did_not_change_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let mut catalog = Catalog::open(directory.path(), "v").unwrap();
    let first = store(&vault, &wide(None));
    let second = store(&vault, &wide(Some(23 * 1000 + 45)));
    let gets = || vault.gets.swap(0, Ordering::Relaxed);
    assert_eq!(add(&mut catalog, &vault, 1, &first), 100 * 451);
    assert!(gets() > 100);
    assert_eq!(add(&mut catalog, &vault, 2, &second), 0);
    let once = gets();
    assert!(once < 10, "{once} chunks were read for one changed file");
    let (before, after) = (Browser::open(&vault, &first).unwrap(), Browser::open(&vault, &second).unwrap());
    let mut told = Vec::new();
    compare_trees(&before, &after, &mut |change| {
        told.push((String::from_utf8(change.path).unwrap(), change.content, change.metadata));
        true
    })
    .unwrap();
    assert_eq!(told, [("d023/023-file-0045-with-a-long-name".to_owned(), false, true)]);
    let twice = gets();
    assert!(twice < 20, "{twice} chunks were read to compare one changed file");

    let found = catalog.search(&query("d023/023-file-0045-with-a-long-name", When::Any)).unwrap().found;
    let [found] = &found[..] else { panic!("{found:?}") };
    let ranges: Vec<_> =
        found.versions.iter().map(|v| (v.first_point.as_str(), v.last_point.as_str(), v.newest)).collect();
    assert_eq!(ranges, [("alpha/app/1", "alpha/app/1", false), ("alpha/app/2", "alpha/app/2", true)]);
    let limited = catalog.search(&Query { limit: 7, ..query("file", When::Any) }).unwrap();
    assert_eq!((limited.found.len(), limited.more), (7, true));
    // A catalogue of names is for its owner only.
    let mode = std::fs::metadata(catalog::place(directory.path(), "v")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_listing_that_cannot_be_read_is_named_and_read_later() {
    let directory = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let mut catalog = Catalog::open(directory.path(), "v").unwrap();
    let model = wide(None);
    let root = store(&vault, &model);
    let browser = Browser::open(&vault, &root).unwrap();
    let torn = browser.find(std::path::Path::new("d023")).unwrap().chunk_ids().next().unwrap();
    let kept = lifeboat_vault::ChunkSource::get(&vault, &torn).unwrap();
    vault.forget(&torn);
    let mark = |sequence, id| PointMark { host: "alpha", dataset: "app", sequence, taken_at: taken(sequence), id };
    let cancel = AtomicBool::new(false);
    let (added, findings) = catalog.fill(&mark(1, "one"), &vault, &root, &mut |_| {}, &cancel).unwrap();
    assert_eq!(added, 100 + 99 * 450);
    assert!(findings.len() == 1 && findings[0].message.contains("\"d023\""), "{findings:?}");
    // Healed; the next point is the same tree.
    vault.replace(torn, kept);
    let (added, findings) = catalog.fill(&mark(2, "two"), &vault, &root, &mut |_| {}, &cancel).unwrap();
    assert_eq!((added, findings.len()), (450, 0));
    assert_eq!(at(&catalog, "*", 2), plain(&model));
}

#[test]
fn a_damaged_catalogue_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let root = store(&vault, &wide(None));
    let mut catalog = Catalog::open(directory.path(), "v").unwrap();
    add(&mut catalog, &vault, 1, &root);
    drop(catalog);
    std::fs::write(catalog::place(directory.path(), "v"), noise(1, 100_000)).unwrap();
    let mut catalog = Catalog::open(directory.path(), "v").unwrap();
    assert_eq!(catalog.paths().unwrap(), 0);
    assert_eq!(add(&mut catalog, &vault, 1, &root), 100 * 451);
    // Another vault's is not taken for this one's.
    drop(catalog);
    std::fs::rename(catalog::place(directory.path(), "v"), catalog::place(directory.path(), "w")).unwrap();
    assert_eq!(Catalog::open(directory.path(), "w").unwrap().paths().unwrap(), 0);
}

#[test]
fn a_vaults_points_come_into_the_catalogue_and_go() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    let take = || {
        let session = world.vault.begin("home", SessionOptions::default()).unwrap();
        let options = lifeboat_vault::files::BackupOptions::default();
        let summary =
            backup_tree(&session, std::slice::from_ref(&home), &options, &(), &AtomicBool::new(false)).unwrap();
        session.commit(summary.draft(Timestamp::now())).unwrap()
    };
    write(home.join("one.txt"), "1");
    take();
    write(home.join("two.txt"), "2");
    let second = take();
    std::fs::remove_file(home.join("one.txt")).unwrap();
    take();
    let unlocked = world.unlock();
    let mut catalog = Catalog::open(directory.path(), &unlocked.id()).unwrap();
    let mut points = unlocked.points(None).unwrap();
    let cancel = AtomicBool::new(false);
    let done = catalog.refresh(&unlocked, &points, &mut |_| {}, &cancel).unwrap();
    assert_eq!((done.points_added, done.paths_added), (3, 2));
    let again = catalog.refresh(&unlocked, &points, &mut |_| {}, &cancel).unwrap();
    assert_eq!((again.points_added, again.paths_added), (0, 0));
    let points_of = |catalog: &Catalog, name: &str| {
        let found = catalog.search(&query(name, When::Any)).unwrap().found;
        found.iter().flat_map(|found| &found.versions).map(|version| version.points).collect::<Vec<_>>()
    };
    assert_eq!((points_of(&catalog, "one.txt"), points_of(&catalog, "two.txt")), (vec![2], vec![2]));
    // What pruning took is not shown.
    points.points.retain(|point| point.id != second.id);
    catalog.refresh(&unlocked, &points, &mut |_| {}, &cancel).unwrap();
    assert_eq!((points_of(&catalog, "one.txt"), points_of(&catalog, "two.txt")), (vec![1], vec![1]));
    let first = points.points.remove(0);
    catalog.refresh(&unlocked, &points, &mut |_| {}, &cancel).unwrap();
    assert_eq!(first.sequence, 1);
    assert!(points_of(&catalog, "one.txt").is_empty());
}

#[test]
fn a_file_is_read_at_any_place() {
    let vault = MemoryVault::default();
    let mut writer = TreeWriter::new(&vault, None);
    let content = noise(3, 9 << 20);
    let mut spans = writer.content(&mut &content[..]).unwrap();
    spans.insert(1, Span::Hole { length: 100_000 });
    let first = spans[0].length() as usize;
    let mut whole = content.clone();
    whole.splice(first..first, vec![0; 100_000]);
    let kind = Kind::File { size: whole.len() as u64, spans };
    let node = Node { name: b"f".to_vec(), kind, metadata: None, link: None };
    let mut reader = FileReader::open(&vault, &node).unwrap();
    for (start, length) in [(0, 10), (first - 5, 10), (first + 99_990, 20), (whole.len() - 3, 10), (whole.len() + 9, 5)]
    {
        let mut buffer = vec![7; length];
        let read = reader.read_at(start as u64, &mut buffer).unwrap();
        let end = (start + length).min(whole.len());
        assert!(buffer[..read] == whole[start.min(end)..end], "{start} {length}");
    }
    writer.add(&node).unwrap();
    assert!(matches!(writer.add(&node), Err(lifeboat_vault::files::AuthorError::Twice { .. })));
}

#[test]
fn a_written_tree_is_restored_like_a_backup() {
    let directory = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let mut model = wide(None);
    model.retain(|path, _| path.starts_with("d00"));
    model.insert("d001/large".to_owned(), Some((7, noise(9, 3 << 20))));
    let root = store(&vault, &model);
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let restore = |root: &ChunkId, to: &std::path::Path| {
        restore_tree(&vault, root, to, &Default::default(), &(), &AtomicBool::new(false)).unwrap()
    };
    restore(&root, &one);
    let again = crate::files_world::backup(&vault, &one);
    restore(&again.root, &two);
    assert_same(&one.join("d001"), &two.join("d001"));
    assert_eq!(std::fs::read(one.join("d001/large")).unwrap(), noise(9, 3 << 20));
}
