//! What is backed up: made from what is on the machine, or from a seed, the same every time.
//!
//! Invariant: data is made once and kept while it is used, in memory, so that no step waits for a disk that another step did not; what a
//! round changes in it is put back, at the latest when it is used again.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::measure::Call;
use super::{make_directory, place};

/// Which way of making data this is: with another, rounds are counted anew.
const MADE: u32 = 2;
const PAGE_BYTES: usize = 8192;
const DATABASE_PAGES: u64 = (4 << 30) / PAGE_BYTES as u64;
/// One in so many pages is changed.
const CHANGED_ONE_IN: u64 = 50;
const SMALL_DIRECTORIES: u64 = 1000;
const SMALL_FILES_EACH: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    Tree,
    Database,
    Small,
}

pub(super) const ALL: [Data; 3] = [Data::Tree, Data::Database, Data::Small];

impl Data {
    pub(super) fn name(self) -> &'static str {
        match self {
            Data::Tree => "tree",
            Data::Database => "database",
            Data::Small => "small",
        }
    }

    /// Makes it where it is missing, reads all of it once, and says where it is.
    pub(super) fn prepare(self) -> Result<PathBuf, String> {
        let path = match self {
            Data::Tree => made("tree", copy_toolchains)?,
            Data::Database => made("database", make_database)?,
            Data::Small => made("small", make_small_files)?,
        };
        if self == Data::Database {
            // A round that was stopped may have left it changed.
            change(&path, Change::Scattered, true)?;
            change(&path, Change::Clustered, true)?;
        }
        let text = path.to_string_lossy().into_owned();
        Call::new(&["sh", "-c", "tar -c -C \"$0\" . | cat > /dev/null", &text]).run()?;
        Ok(path)
    }

    /// What it is: names, kinds and sizes of everything in it.
    pub(super) fn describe(self, source: &Path) -> Result<String, String> {
        let listing = "cd \"$0\" && find . -printf '%P %y %s\\n' | LC_ALL=C sort | sha256sum";
        let sum = Call::new(&["sh", "-c", listing, &source.to_string_lossy()]).run()?;
        Ok(format!("{} {MADE} {}", self.name(), sum.trim()))
    }
}

/// All Rust toolchains of this machine: programs, libraries, documentation.
fn copy_toolchains(at: &Path) -> std::io::Result<()> {
    let copy = || -> Result<(), String> {
        let home = Call::new(&["rustup", "show", "home"]).run()?;
        let from = PathBuf::from(home.trim()).join("toolchains").join(".");
        Call::new(&["cp", "-a", &from.to_string_lossy(), &at.to_string_lossy()]).run().map(drop)
    };
    copy().map_err(std::io::Error::other)
}

fn made(name: &str, make: fn(&Path) -> std::io::Result<()>) -> Result<PathBuf, String> {
    let path = place().join("data").join(name);
    if !path.exists() {
        println!("making the data `{name}`");
        let draft = place().join("data").join(format!("{name}.draft"));
        super::remove(&draft)?;
        make_directory(&draft)?;
        let finished = make(&draft).and_then(|()| std::fs::rename(&draft, &path));
        finished.map_err(|error| format!("cannot make {} ({error})", path.display()))?;
    }
    Ok(path)
}

/// xorshift64*: fast, and the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Half of it cannot be compressed, half is words.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut numbers = Numbers::new(seed);
    let (random, words) = bytes.split_at_mut(bytes.len() / 2);
    for piece in random.chunks_mut(8) {
        let number = numbers.next().to_le_bytes();
        piece.iter_mut().zip(number).for_each(|(byte, random)| *byte = random);
    }
    const WORDS: [&[u8; 8]; 16] = [
        b"customer",
        b"invoice ",
        b"shipped ",
        b"pending ",
        b"address ",
        b"payment ",
        b"2026-11-",
        b"quantity",
        b"00000000",
        b"article ",
        b"comment ",
        b"EUR 19.9",
        b"warehous",
        b"returned",
        b"discount",
        b"total   ",
    ];
    for piece in words.chunks_mut(8) {
        let word = WORDS[(numbers.next() >> 60) as usize];
        piece.iter_mut().zip(word).for_each(|(byte, letter)| *byte = *letter);
    }
}

fn page(number: u64, version: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    fill(&mut bytes, number.wrapping_add(version << 40).wrapping_add(1));
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn make_database(at: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(at.join("database"))?);
    for number in 0..DATABASE_PAGES {
        file.write_all(&page(number, 0))?;
    }
    file.flush()
}

fn make_small_files(at: &Path) -> std::io::Result<()> {
    let mut bytes = vec![0; 2048];
    for directory in 0..SMALL_DIRECTORIES {
        let inside = at.join(format!("{directory:04}"));
        std::fs::create_dir(&inside)?;
        for file in 0..SMALL_FILES_EACH {
            let number = directory * SMALL_FILES_EACH + file;
            let length = 200 + (Numbers::new(number).next() >> 54) as usize;
            fill(&mut bytes[..length], number);
            std::fs::write(inside.join(format!("{file:04}.txt")), &bytes[..length])?;
        }
    }
    Ok(())
}

/// Which pages of the database are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// One stretch.
    Clustered,
    /// Here and there.
    Scattered,
}

fn changed(change: Change) -> impl Iterator<Item = u64> {
    let count = DATABASE_PAGES / CHANGED_ONE_IN;
    let mut numbers = Numbers::new(7);
    (0..count).map(move |n| match change {
        Change::Clustered => DATABASE_PAGES / 3 + n,
        Change::Scattered => n * CHANGED_ONE_IN + numbers.next() % CHANGED_ONE_IN,
    })
}

/// Changes the pages, or puts them back.
pub(super) fn change(database: &Path, change: Change, back: bool) -> Result<(), String> {
    let version = if back { 0 } else { change as u64 + 1 };
    let file = database.join("database");
    let write = || -> std::io::Result<()> {
        let file = File::options().write(true).open(&file)?;
        changed(change).try_for_each(|number| file.write_all_at(&page(number, version), number * PAGE_BYTES as u64))
    };
    write().map_err(|error| format!("cannot change {} ({error})", file.display()))
}

/// Fails unless two trees hold the same.
pub(super) fn compare(source: &Path, restored: &Path) -> Result<(), String> {
    let (one, two) = (source.to_string_lossy().into_owned(), restored.to_string_lossy().into_owned());
    Call::new(&["diff", "-rq", "--no-dereference", &one, &two]).run().map(drop)
}
