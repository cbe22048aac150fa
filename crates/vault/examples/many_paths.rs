//! Makes a vault whose points hold as many paths as one likes, without a disk full of files: for `cargo xtask bench catalog`.
//!
//! `many_paths DIR PATHS`: `DIR/vault`, `DIR/state` and `DIR/owner.key`; four points of `/data`: in the second and third a thousand files changed each, all over the tree, in the
//! fourth ten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a tool for a measurement: its failures are read by who started it

use std::path::Path;

use jiff::Timestamp;
use lifeboat_vault::files::{Kind, Metadata, Node, Span, TreeWriter};
use lifeboat_vault::{ChunkSink, HostVault, Identity, InitOptions, SessionOptions, State, Vault, storage};

/// Files of a directory, and directories of one above it.
const FILES: u64 = 40;
const BELOW: [u64; 2] = [25, 32];
const CHANGED: [u64; 3] = [1000, 1000, 10];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (directory, paths) = (Path::new(&arguments[1]), arguments[2].parse::<u64>().unwrap());
    let state = State::open(&directory.join("state"), Some("bench")).unwrap();
    let owner = Identity::generate();
    let options =
        InitOptions { recipients: vec![owner.recipient(), Identity::generate().recipient()], ..InitOptions::default() };
    std::fs::create_dir_all(directory.join("vault")).unwrap();
    let storage = storage::create(&directory.join("vault").display().to_string()).unwrap();
    let (vault, _) = Vault::init(storage, &state, &options).unwrap();
    std::fs::write(directory.join("owner.key"), format!("{}\n", owner.expose())).unwrap();
    for point in 0..=CHANGED.len() as u64 {
        let stored = take(&vault, paths, point);
        println!("point {}: {stored} paths", point + 1);
    }
}

fn metadata(mtime_seconds: i64) -> Metadata {
    Metadata { mode: 0o644, uid: 1000, gid: 1000, mtime_seconds, ..Metadata::default() }
}

/// Names as people and programs give them: words, numbers, endings.
fn name(number: u64) -> String {
    const WORDS: [&str; 24] = [
        "report", "invoice", "draft", "photo", "config", "index", "module", "test", "readme", "backup", "meeting",
        "notes", "data", "export", "summary", "client", "server", "image", "table", "script", "main", "lib", "handler",
        "page",
    ];
    const ENDINGS: [&str; 10] = [".txt", ".pdf", ".rs", ".jpg", ".conf", ".json", ".py", ".html", ".o", ""];
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let pick = |shift: u32, count: usize| (mixed >> shift) as usize % count;
    format!("{}-{}-{}{}", WORDS[pick(8, 24)], WORDS[pick(24, 24)], mixed >> 44, ENDINGS[pick(40, 10)])
}

/// A point; in each after the first other files have changed besides.
fn take(vault: &HostVault, paths: u64, point: u64) -> u64 {
    let session = vault.begin("/data", SessionOptions::default()).unwrap();
    let content: Vec<u8> = (0..256 << 10).map(|byte: u32| (byte.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let id = session.put(&content).unwrap().id;
    let leaves = paths / (FILES + 1);
    let steps: Vec<u64> = CHANGED.iter().map(|changed| (leaves * FILES / changed).max(1)).collect();
    let mut writer = TreeWriter::new(&session, Some(metadata(1)));
    let (mut stored, mut number) = (0, 0u64);
    for leaf in 0..leaves {
        for (depth, per) in [BELOW[0] * BELOW[1], BELOW[1]].into_iter().enumerate() {
            if leaf.is_multiple_of(per) {
                while writer.depth() > depth {
                    writer.leave().unwrap();
                }
                writer
                    .enter(
                        format!("{}-{}", name(leaf / per + 77 * depth as u64), leaf / per).as_bytes(),
                        Some(metadata(2)),
                    )
                    .unwrap();
                stored += 1;
            }
        }
        writer.enter(format!("{}-{leaf}", name(leaf + 1_000_003)).as_bytes(), Some(metadata(3))).unwrap();
        for _ in 0..FILES {
            number += 1;
            let changes = (1..=point).zip(&steps).filter(|(point, step)| (number + point).is_multiple_of(**step));
            let length = (number % 4000) as u32 + 1;
            let mtime = 1_600_000_000 + number as i64 + changes.map(|(point, _)| point as i64).sum::<i64>();
            let spans = vec![Span::Data { id, offset: (number % 9000) as u32, length }];
            let kind = Kind::File { size: u64::from(length), spans };
            let name = format!("{}-{number}", name(number)).into_bytes();
            writer.add(&Node { name, kind, metadata: Some(metadata(mtime)), link: None }).unwrap();
        }
        stored += 1 + FILES;
        writer.leave().unwrap();
    }
    let summary = writer.finish(vec![b"/data".to_vec()]).unwrap();
    session.commit(summary.draft(Timestamp::now())).unwrap();
    stored
}
