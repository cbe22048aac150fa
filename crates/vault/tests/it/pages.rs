//! Files that are rewritten in place: only changed pages are stored, and what is restored is what was there.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use lifeboat_vault::files::{
    Browser, Cut, DiskOptions, FileReader, Kind, Metadata, Node, Span, Stream, TreeSummary, TreeWriter, backup_bytes,
    compare_trees, compare_with_disk,
};
use proptest::prelude::*;

use crate::files_world::*;

const PAGE: usize = 8192;
const BLOCK: usize = 1 << 20;

fn stream(vault: &MemoryVault, pages: &Path, content: &[u8]) -> TreeSummary {
    let (bytes, pages) = (content.len() as u64, Some(pages));
    let stream = Stream { name: "database", cut: Cut::PAGES, bytes, metadata: None, pages };
    backup_bytes(vault, &stream, &mut &content[..], &(), &AtomicBool::new(false)).unwrap()
}

fn only_file(vault: &MemoryVault, summary: &TreeSummary) -> Node {
    let browser = Browser::open(vault, &summary.root).unwrap();
    browser.entries(&browser.root().top).unwrap().next().unwrap().unwrap()
}

fn pieces(node: &Node) -> &[Span] {
    let Kind::File { spans, .. } = &node.kind else { panic!("no file") };
    spans
}

fn content(vault: &MemoryVault, summary: &TreeSummary) -> Vec<u8> {
    let mut content = Vec::new();
    Browser::open(vault, &summary.root).unwrap().copy(&only_file(vault, summary), &mut content).unwrap();
    content
}

/// What has to be fetched for all of a file.
fn fetched(vault: &MemoryVault, node: &Node) -> usize {
    let chunks = vault.chunks.lock().unwrap();
    let ids: HashSet<_> = node.chunk_ids().collect();
    ids.iter().map(|id| chunks[id].1.len()).sum()
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

fn rewrite(content: &mut [u8], page: usize, seed: u64) {
    content[page * PAGE..(page + 1) * PAGE].copy_from_slice(&noise(seed, PAGE));
}

#[test]
fn a_changed_page_costs_a_page_wherever_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let mut database = noise(1, 40 * BLOCK + 3 * PAGE + 512);
    let first = stream(&vault, dir.path(), &database);
    assert_eq!(pieces(&only_file(&vault, &first)).len(), 41);
    // Neighbours over the edge of two blocks, of two segments that are read one after another, and the last, shorter one.
    for (seed, page) in [0, 127, 128, 1023, 1024, 3000, 5121].into_iter().enumerate() {
        rewrite(&mut database, page, 100 + seed as u64);
    }
    database[40 * BLOCK + 3 * PAGE] ^= 1;
    let second = stream(&vault, dir.path(), &database);
    let listing = 16_000;
    assert!(second.bytes_new < (7 * PAGE + 512 + listing) as u64, "{}", second.bytes_new);
    assert!(content(&vault, &second) == database);
    // All changed pages share one chunk, and neighbours are one piece.
    let node = only_file(&vault, &second);
    let former: HashSet<_> = first.references.iter().collect();
    let new: Vec<_> =
        pieces(&node).iter().filter(|span| matches!(span, Span::Data { id, .. } if !former.contains(id))).collect();
    assert_eq!(new.iter().map(|span| span.length() as usize / PAGE).collect::<Vec<_>>(), [1, 2, 2, 1, 1, 0]);
    assert_eq!(node.chunk_ids().filter(|id| !former.contains(id)).collect::<HashSet<_>>().len(), 1);
    // The same again costs nothing, and refers to the same in the same order.
    let again = stream(&vault, dir.path(), &database);
    assert_eq!((again.root, again.bytes_new), (second.root, 0));
    assert_eq!(again.references, second.references);
}

/// Which pages change in a backup: all over, mostly in a tenth, or one stretch always and some here and there.
#[derive(Debug, Clone, Copy)]
enum Habit {
    Scattered,
    Hot,
    Stretch,
}

impl Habit {
    fn pages(self, pages: usize, numbers: &mut Numbers) -> Vec<usize> {
        let mut anywhere = |count| (0..count).map(|_| numbers.below(pages)).collect::<Vec<_>>();
        match self {
            Habit::Scattered => anywhere(15),
            Habit::Hot => {
                let cold = anywhere(3);
                [cold, (0..12).map(|_| numbers.below(pages / 10)).collect()].concat()
            }
            Habit::Stretch => [(20..75).collect(), anywhere(2)].concat(),
        }
    }
}

#[test]
fn the_pieces_of_a_file_stay_few_however_often_it_changes() {
    for habit in [Habit::Scattered, Habit::Hot, Habit::Stretch] {
        let dir = tempfile::tempdir().unwrap();
        let vault = MemoryVault::default();
        let (blocks, mut numbers) = (6, Numbers(3));
        let mut database = noise(2, blocks * BLOCK);
        stream(&vault, dir.path(), &database);
        let (mut changed, mut stored, mut most) = (0, 0, (0, 0));
        for generation in 0..200u64 {
            let pages = habit.pages(blocks * BLOCK / PAGE, &mut numbers);
            pages.iter().zip(0..).for_each(|(page, n)| rewrite(&mut database, *page, 1000 + generation * 100 + n));
            changed += pages.len() * PAGE;
            let summary = stream(&vault, dir.path(), &database);
            stored += summary.bytes_new as usize;
            let node = only_file(&vault, &summary);
            most = (most.0.max(pieces(&node).len()), most.1.max(fetched(&vault, &node)));
            if generation % 20 == 19 {
                assert!(content(&vault, &summary) == database, "generation {generation}");
            }
        }
        assert!(most.0 <= blocks * 96, "{habit:?}: {most:?}");
        assert!(most.1 <= database.len() * 2, "{habit:?}: {most:?} of {}", database.len());
        // Blocks stored whole, and what is gathered anew, cost a few times what changed.
        assert!(stored < changed * 4, "{habit:?}: {stored} for {changed}");
    }
}

#[test]
fn what_is_lost_damaged_or_another_s_costs_room_and_no_content() {
    let dir = tempfile::tempdir().unwrap();
    let (maps, vault) = (dir.path().join("maps"), MemoryVault::default());
    let mut database = noise(4, 4 * BLOCK);
    stream(&vault, &maps, &database);
    let mut change = |seed| {
        rewrite(&mut database, 70 + seed as usize, seed);
        database.clone()
    };
    let one = change(1);
    assert!(stream(&vault, &maps, &one).bytes_new < 16_000);
    let map = fs::read_dir(&maps).unwrap().next().unwrap().unwrap().path();
    // Damaged: the changed block is stored whole, as it is.
    let mut bytes = fs::read(&map).unwrap();
    bytes[100] ^= 1;
    fs::write(&map, &bytes).unwrap();
    let two = change(2);
    let summary = stream(&vault, &maps, &two);
    assert!((BLOCK as u64..BLOCK as u64 + 16_000).contains(&summary.bytes_new), "{}", summary.bytes_new);
    assert!(content(&vault, &summary) == two);
    // Lost.
    fs::remove_file(&map).unwrap();
    let three = change(3);
    let summary = stream(&vault, &maps, &three);
    assert_eq!(summary.bytes_new, BLOCK as u64);
    assert!(content(&vault, &summary) == three);
    // A chunk that the vault does not hold any more is stored anew, as far as it is needed.
    let node = only_file(&vault, &summary);
    let Span::Data { id, .. } = pieces(&node)[2] else { panic!("a hole") };
    vault.forget(&id);
    let summary = stream(&vault, &maps, &three);
    assert_eq!(summary.bytes_new, BLOCK as u64);
    assert!(content(&vault, &summary) == three);
    // Another vault has none of it.
    let other = MemoryVault::default();
    let summary = stream(&other, &maps, &three);
    assert!(summary.bytes_new >= three.len() as u64);
    assert!(content(&other, &summary) == three);
}

#[test]
fn pieces_of_pages_are_compared_restored_over_and_read_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    let vault = MemoryVault::default();
    let mut database = noise(5, 3 * BLOCK);
    write(from.join("database"), &database);
    write(from.join("other"), noise(6, 2 * BLOCK));
    let first = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    restore(&vault, &first.root, &dir.path().join("to"));
    for page in [3, 5, 6, 200, 383] {
        rewrite(&mut database, page, page as u64);
    }
    write(from.join("database"), &database);
    let second = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert!(second.bytes_new < 6 * PAGE as u64, "{}", second.bytes_new);

    let (before, after) = (Browser::open(&vault, &first.root).unwrap(), Browser::open(&vault, &second.root).unwrap());
    let mut changed = Vec::new();
    let mut note = |path: Vec<u8>, content| {
        changed.push((String::from_utf8(path).unwrap(), content));
        true
    };
    compare_trees(&before, &after, &mut |change| note(change.path, change.content)).unwrap();
    assert_eq!(changed, [("database".to_owned(), true)]);
    let options = DiskOptions { read_all: true, ..DiskOptions::default() };
    let top = after.root().top.clone();
    let mut differing = Vec::new();
    compare_with_disk((&after, &top), &from, &options, &mut |change| {
        differing.push(change.path);
        true
    })
    .unwrap();
    assert_eq!(differing, [] as [Vec<u8>; 0]);

    let node = after.find(Path::new("database")).unwrap();
    let (mut reader, mut numbers) = (FileReader::open(&vault, &node).unwrap(), Numbers(9));
    for _ in 0..200 {
        let (start, mut buffer) = (numbers.below(database.len()), vec![0; numbers.below(300_000)]);
        let read = reader.read_at(start as u64, &mut buffer).unwrap();
        let end = (start + buffer.len()).min(database.len());
        assert!(buffer[..read] == database[start..end]);
    }
    let restored = try_restore(&vault, &second.root, &dir.path().join("to"), &in_place()).unwrap();
    assert_eq!(restored.written_bytes as usize, 5 * PAGE);
    assert_same(&from, &dir.path().join("to"));
    restore(&vault, &second.root, &dir.path().join("fresh"));
    assert_same(&from, &dir.path().join("fresh"));
}

#[test]
fn of_a_very_large_file_larger_pages_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let (from, cache) = (dir.path().join("from"), dir.path().join("cache"));
    let vault = MemoryVault::default();
    fs::create_dir(&from).unwrap();
    let mut file = fs::File::create(from.join("disk.img")).unwrap();
    let places = [0, 5 << 30, (20 << 30) - (2 << 20)];
    for (seed, place) in places.into_iter().enumerate() {
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(&noise(seed as u64, 2 << 20)).unwrap();
    }
    let first = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert_eq!((first.bytes, first.bytes_read), (20 << 30, 6 << 20));
    file.write_all_at(b"changed", places[1] + 70_000).unwrap();
    file.write_all_at(&noise(7, 4096), 9 << 30).unwrap(); // where a hole was
    let second = try_backup(&vault, &[&from], &with_cache(&cache)).unwrap();
    assert!((65_536 + 4096..80_000).contains(&second.bytes_new), "{}", second.bytes_new);
    restore(&vault, &second.root, &dir.path().join("to"));
    let restored = fs::File::open(dir.path().join("to/disk.img")).unwrap();
    for (start, length) in [(0, 3 << 20), (5 << 30, 3 << 20), (9 << 30, 1 << 20), ((20 << 30) - (3 << 20), 3 << 20)] {
        let (mut one, mut two) = (vec![0; length], vec![1; length]);
        fs::File::open(from.join("disk.img")).unwrap().read_exact_at(&mut one, start).unwrap();
        restored.read_exact_at(&mut two, start).unwrap();
        assert!(one == two, "at {start}");
    }
}

#[test]
fn tables_in_a_tree_that_is_written_are_remembered_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let vault = MemoryVault::default();
    let mut tables = [("16384", noise(1, 3 * BLOCK)), ("16385", noise(2, PAGE)), ("16386", noise(3, 2 * BLOCK + PAGE))];
    let write = |tables: &[(&str, Vec<u8>)]| {
        let mut writer = TreeWriter::new(&vault, None).with_pages(dir.path());
        writer.enter(b"base", Some(Metadata::default())).unwrap();
        for (name, content) in tables {
            let file = format!("base/{name}");
            let bytes = content.len() as u64;
            let spans = writer.content_in_place(file.as_bytes(), bytes, &mut &content[..]).unwrap();
            let kind = Kind::File { size: bytes, spans };
            let metadata = Some(Metadata { mode: 0o600, ..Metadata::default() });
            writer.add(&Node { name: name.as_bytes().to_vec(), kind, metadata, link: None }).unwrap();
        }
        writer.finish(Vec::new()).unwrap()
    };
    let first = write(&tables);
    assert!(first.bytes_new >= (5 * BLOCK + 2 * PAGE) as u64);
    rewrite(&mut tables[0].1, 99, 91);
    rewrite(&mut tables[2].1, 256, 92);
    let second = write(&tables);
    assert!((2 * PAGE as u64..3 * PAGE as u64).contains(&second.bytes_new), "{}", second.bytes_new);
    restore(&vault, &second.root, &dir.path().join("to"));
    for (name, content) in &tables {
        assert!(fs::read(dir.path().join("to/base").join(name)).unwrap() == *content, "{name}");
    }
    write(&tables[..1]);
    let maps = fs::read_dir(dir.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count();
    assert_eq!(maps, 1, "maps of tables that are gone stay");
}

/// Whether less than half of some chunk is needed by a file: the next backup that reads the file stores that part anew.
fn has_sparse_chunks(node: &Node) -> bool {
    let mut chunks: HashMap<_, (u64, u64)> = HashMap::new();
    for span in pieces(node) {
        if let Span::Data { id, offset, length } = span {
            let (needed, reaches) = chunks.entry(*id).or_default();
            *needed += u64::from(*length);
            *reaches = (*reaches).max(u64::from(*offset) + u64::from(*length));
        }
    }
    chunks.values().any(|(needed, reaches)| needed * 2 < *reaches)
}

#[test]
fn the_little_that_is_left_of_a_chunk_is_stored_anew_once_by_the_next_backup_that_reads_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (from, cache, vault) = (dir.path().join("from"), dir.path().join("cache"), MemoryVault::default());
    let mut model = noise(11, 2 * BLOCK + 4096);
    write(from.join("disk"), &model);
    let read_again = || {
        drop(fs::remove_file(&cache)); // the pages' maps stay
        try_backup(&vault, &[&from], &with_cache(&cache)).unwrap()
    };
    read_again();
    for day in [Day::Punch { at: 247, length: 55 }, Day::Resize { blocks: 312 }] {
        live_through(&day, dir.path(), &mut model, &vault);
        assert_eq!(read_again().bytes_new > 0, matches!(day, Day::Punch { .. }));
    }
    // Of the second block's chunk ten blocks are left, which nobody could know before the file was read to its end.
    let moved = read_again();
    assert_eq!(moved.bytes_new, 10 * 4096);
    let again = read_again();
    assert_eq!((again.root, again.bytes_new, &again.references), (moved.root, 0, &moved.references));
    assert!(content(&vault, &again) == model && !has_sparse_chunks(&only_file(&vault, &again)));
}

#[derive(Debug, Clone)]
enum Day {
    Edit { at: usize, length: usize, seed: u64 },
    Resize { blocks: usize },
    Punch { at: usize, length: usize },
    Touch,
    LoseMaps,
    DamageMaps { at: usize },
    LoseCache,
    Prune { one_in: usize },
    Move,
}

fn day() -> impl Strategy<Value = Day> {
    // In units of file systems' blocks, so that the file stays one of whole pages; edits are anywhere.
    const SIZE: usize = 3 * BLOCK;
    prop_oneof![
        6 => (0..SIZE, 1..40_000usize, any::<u64>()).prop_map(|(at, length, seed)| Day::Edit { at, length, seed }),
        2 => (256..768usize).prop_map(|blocks| Day::Resize { blocks }),
        2 => (0..768usize, 1..100usize).prop_map(|(at, length)| Day::Punch { at, length }),
        1 => Just(Day::Touch),
        1 => Just(Day::LoseMaps),
        1 => (0..2000usize).prop_map(|at| Day::DamageMaps { at }),
        1 => Just(Day::LoseCache),
        2 => (1..5usize).prop_map(|one_in| Day::Prune { one_in }),
        1 => Just(Day::Move),
    ]
}

fn live_through(day: &Day, dir: &Path, model: &mut Vec<u8>, vault: &MemoryVault) {
    let (mut path, maps) = (dir.join("from/disk"), dir.join("cache.pages"));
    if !path.exists() {
        path = dir.join("from/moved");
    }
    let file = fs::File::options().write(true).open(&path).unwrap();
    match *day {
        Day::Edit { at, length, seed } => {
            let at = at.min(model.len() - 1);
            let length = length.min(model.len() - at);
            model[at..at + length].copy_from_slice(&noise(seed, length));
            file.write_all_at(&model[at..at + length], at as u64).unwrap();
        }
        Day::Resize { blocks } => {
            model.resize(blocks * 4096, 0);
            file.set_len(model.len() as u64).unwrap();
        }
        Day::Punch { at, length } => {
            let (at, end) = ((at * 4096).min(model.len()), ((at + length) * 4096).min(model.len()));
            model[at..end].fill(0);
            if at < end {
                let mode = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, mode, at as u64, (end - at) as u64).unwrap();
            }
        }
        Day::Touch => touch(&path, 1_000_000, 0),
        Day::LoseMaps => drop(fs::remove_dir_all(&maps)),
        Day::DamageMaps { at } => {
            for entry in fs::read_dir(&maps).into_iter().flatten() {
                let path = entry.unwrap().path();
                let mut bytes = fs::read(&path).unwrap();
                let at = at % bytes.len();
                bytes[at] ^= 0x20;
                fs::write(&path, bytes).unwrap();
            }
        }
        Day::LoseCache => drop(fs::remove_file(dir.join("cache"))),
        Day::Prune { one_in } => {
            let ids = vault.ids();
            ids.iter().step_by(one_in).for_each(|id| vault.forget(id));
        }
        Day::Move => {
            let other = if path.ends_with("disk") { "moved" } else { "disk" };
            fs::rename(&path, dir.join("from").join(other)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 60, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_to_a_file_its_map_and_the_vault_what_is_restored_is_what_was_there(days in prop::collection::vec(day(), 4..14)) {
        let dir = tempfile::tempdir().unwrap();
        let vault = MemoryVault::default();
        let mut model = noise(11, 2 * BLOCK + 4096);
        write(dir.path().join("from/disk"), &model);
        for (number, day) in days.iter().enumerate() {
            live_through(day, dir.path(), &mut model, &vault);
            let summary = try_backup(&vault, &[&dir.path().join("from")], &with_cache(&dir.path().join("cache"))).unwrap();
            let node = only_file(&vault, &summary);
            prop_assert!(pieces(&node).len() <= 3 * (96 + 32), "{} pieces", pieces(&node).len());
            prop_assert!(node.chunk_ids().all(|id| summary.references.contains(&id)));
            prop_assert!(content(&vault, &summary) == model, "day {}", number);
            // What is known of an unchanged file leads to the same, but for what is left of chunks: that is stored anew once, if the file
            // changed so lately that it is read again.
            let again = || try_backup(&vault, &[&dir.path().join("from")], &with_cache(&dir.path().join("cache"))).unwrap();
            let mut before = summary;
            if has_sparse_chunks(&node) {
                before = again();
                prop_assert!(content(&vault, &before) == model, "day {}", number);
            }
            let again = again();
            prop_assert_eq!((again.root, again.bytes_new, &again.references), (before.root, 0, &before.references));
        }
        let to = dir.path().join("to");
        let summary = try_backup(&vault, &[&dir.path().join("from")], &with_cache(&dir.path().join("cache"))).unwrap();
        restore(&vault, &summary.root, &to);
        assert_same(&dir.path().join("from"), &to);
    }
}
