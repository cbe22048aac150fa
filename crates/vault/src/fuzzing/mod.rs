//! Doors for fuzzers: every parser of what comes from a storage, a connection or a person, by name.
//!
//! Only in tests and with the feature `fuzzing`. Invariant: a door never panics, whatever is put through it, and takes no more
//! memory than the parser's own limits allow. What is signed or sealed in a vault is signed or sealed here, too, so that a fuzzer
//! reaches what lies behind.

mod catalog;

use std::io::Read;
use std::sync::OnceLock;

use crate::catalog::Pattern;
use crate::codec::{self, Hash, Moment};
use crate::crypt::hash;
use crate::files::{Entries, Root};
use crate::index::{IndexBody, MovedBody};
use crate::object::{self, Place};
use crate::pack;
use crate::roster::{Member, Role, Roster};
use crate::seal::{Identity, Recipient, decompress};
use crate::sign::{Signed, SigningKey};
use crate::snapshot::SnapshotBody;
use crate::{name, paper, portable, storage};

/// A parser's name, and the way in.
pub type Door = (&'static str, fn(&[u8]));

/// Every door.
pub const DOORS: &[Door] = &[
    ("envelope", envelope),
    ("object", signed_object),
    ("sealed-body", sealed_body),
    ("pack", whole_pack),
    ("pack-directory", pack_directory),
    ("compressed", compressed),
    ("tree-root", tree_root),
    ("tree-listing", tree_listing),
    ("key-name", key_name),
    ("paper", paper_text),
    ("identity", identity_text),
    ("search-pattern", search_pattern),
    ("catalog", catalog::whole_file),
    ("catalog-block", catalog::block),
    ("export-sums", export_sums),
    ("export-stream", export_stream),
    ("serve-frames", crate::serve::fuzz_frames),
    ("serve-session", serve_session),
];

const VAULT: &str = "0123456789abcdef0123456789abcdef";

struct Fixed {
    key: SigningKey,
    roster: Roster,
    content: Identity,
}

/// Keys that are the same in every process, so that what a fuzzer found is found again.
fn fixed() -> Option<&'static Fixed> {
    static FIXED: OnceLock<Option<Fixed>> = OnceLock::new();
    FIXED
        .get_or_init(|| {
            let key = SigningKey::from_seed([7; 32]).ok()?;
            let content: Identity = CONTENT.parse().ok()?;
            let member = Member {
                name: "h".to_owned(),
                roles: vec![Role::Host, Role::Pruner, Role::Keeper],
                key: key.public(),
                index: Some(content.recipient().to_string()),
                revoked: None,
            };
            let roster = Roster {
                vault: VAULT.to_owned(),
                version: 1,
                previous: None,
                owner: key.public(),
                refs: content.recipient().to_string(),
                recipients: vec![content.recipient().to_string()],
                holders: Vec::new(),
                members: vec![member],
                at: Moment::from(jiff::Timestamp::UNIX_EPOCH),
            };
            Some(Fixed { key, roster, content })
        })
        .as_ref()
}

/// Nothing is sealed to it but what a fuzzer makes.
const CONTENT: &str = "AGE-SECRET-KEY-1QQQSYQCYQ5RQWZQFPG9SCRGWPUGPZYSNZS23V9CCRYDPK8QARC0SWRYDWG";

fn envelope(data: &[u8]) {
    let _ = Signed::open("vault.snapshot", "object", data);
}

/// A place for each kind of signed object, as the first byte chooses it. `named` is part of those that are named by what they hold.
fn places(named: &str, fingerprint: &str) -> Vec<String> {
    vec![
        name::roster(1),
        "keys/content/d/0000000001.cert".to_owned(),
        "keys/chunk/d/00".to_owned(),
        format!("enroll/{fingerprint}"),
        "index/h/d/0000000001".to_owned(),
        format!("refs/h/d/{named}"),
        "snap/h/d/0000000001".to_owned(),
        "log/d/l/0000000001/000000000/000".to_owned(),
        "tombstone/h/d/0000000001".to_owned(),
        format!("verify/h/d/0000000001/0-{fingerprint}"),
        format!("receipt/{fingerprint}/0000000001"),
        "keys/owner/0000000001.cert".to_owned(),
        "keys/refs/0000000001.cert".to_owned(),
        "index/h/d/moved-0000000001-0000000001".to_owned(),
        "log/d/l/0000000001/gathered/000000000000-000000000001".to_owned(),
        "prune/0000000001/proposal".to_owned(),
        "prune/0000000001/sweep".to_owned(),
        "prune/0000000001/done".to_owned(),
        "prune/0000000001/fold".to_owned(),
        "hold/0000000001".to_owned(),
        "freeze/0000000001".to_owned(),
        "heal/h/d/00000000000000000001-00000000".to_owned(),
        "copy/0000000001-a-begun".to_owned(),
        "copy/0000000001-b-done".to_owned(),
        format!("witness/{VAULT}/h/0000000001"),
    ]
}

/// The first byte chooses the kind; the rest is what the owner, the host, the pruner or the keeper signed.
fn signed_object(data: &[u8]) {
    let (Some(fixed), Some((&choice, payload))) = (fixed(), data.split_first()) else { return };
    let keys = places(&crate::crypt::hex(&hash(payload)), &fixed.key.public().fingerprint());
    let Some(key) = keys.get(usize::from(choice) % keys.len()) else { return };
    let Some(place) = Place::of(key) else { return };
    // As it is, and as it is signed.
    let _ = object::check(&fixed.roster, key, &place, payload);
    if let Some(kind) = place.kind()
        && let Ok(bytes) = Signed::seal(kind, payload, &fixed.key)
    {
        let _ = object::check(&fixed.roster, key, &place, &bytes);
    }
}

/// The first byte gives rights; the rest is what somebody who has them asks a server.
fn serve_session(data: &[u8]) {
    let (Some(fixed), Some((&rights, requests))) = (fixed(), data.split_first()) else { return };
    let storage = std::sync::Arc::new(storage::MemoryStorage::new());
    if fixed.roster.publish(&*storage, &fixed.key).is_ok() {
        crate::serve::fuzz_session(storage, "h", rights, requests);
    }
}

/// What is found behind a seal, which any host of the vault can make.
fn sealed_body(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    match choice % 4 {
        0 => drop(codec::decode::<IndexBody>("index", rest)),
        1 => drop(codec::decode::<SnapshotBody>("snapshot", rest)),
        2 => drop(codec::decode::<MovedBody>("moved", rest)),
        _ => crate::refs::fuzz_body(rest),
    }
}

fn whole_pack(data: &[u8]) {
    if let Some(fixed) = fixed() {
        let _ = pack::read_directory("pack", data, VAULT, &fixed.content);
    }
}

/// A pack whose directory says what the fuzzer says, as one that was written and as one of moved frames.
fn pack_directory(data: &[u8]) {
    let Some(fixed) = fixed() else { return };
    for moved in [false, true] {
        let Ok(bytes) = pack::fuzz_pack(VAULT, &fixed.content, data, moved) else { return };
        let Ok((record, _)) = pack::read_directory("pack", &bytes, VAULT, &fixed.content) else { continue };
        for frame in record.frames.iter().take(64) {
            let _ = frame.chunks().take(4096).count();
            let _ = frame.origin.and_then(|origin| record.origins().get(origin as usize));
        }
    }
}

/// What somebody looks for, and a path that it may fit: whatever fits must be found by the quick look, too.
fn search_pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (text, path) = text.split_once('\0').unwrap_or((text, "/r/etc/nginx/a.conf"));
    // As a catalogue spells paths.
    if !path.starts_with('/') || path.contains("//") {
        return;
    }
    for (ignore_case, exact) in [(false, false), (true, false), (false, true)] {
        // Longer ones are no pattern of a person, and take long to build.
        let Ok(pattern) = Pattern::new(text.get(..200).unwrap_or(text), ignore_case, exact) else { continue };
        let name = path.rsplit('/').next().unwrap_or_default().as_bytes();
        let listed = [name, b"\0"].concat();
        let found = pattern.rarest_needle(&listed).is_none_or(|needle| needle.is_match(name));
        if !name.is_empty() && pattern.accepts(name, path.as_bytes()) {
            assert!(found && pattern.may_be(name), "{text:?} accepts {path:?} and does not find it");
            assert!(pattern.looks_in(path), "{text:?} accepts {path:?} and does not look there");
        }
    }
}

fn compressed(data: &[u8]) {
    if let Some(plain) = decompress(data, 1 << 20) {
        assert!(plain.len() <= 1 << 20, "more than was allowed");
    }
}

fn export_sums(data: &[u8]) {
    if let Ok(parts) = portable::listed(data) {
        assert!(!parts.is_empty() && parts.len() <= 9999, "more parts than are ever written");
        assert!(parts.iter().all(|(name, _)| !name.contains('/')), "a part that leaves its directory");
    }
}

/// An archive as it comes from a medium: as it is, and as somebody who has the recipient's public half sealed it.
fn export_stream(data: &[u8]) {
    let Some(fixed) = fixed() else { return };
    let pass = |from: &mut dyn Read| {
        if let Ok(tar) = portable::decompressed(from) {
            let _ = std::io::copy(&mut tar.take(64 << 20), &mut std::io::sink());
        }
    };
    let opened = |archive: &[u8]| {
        if let Ok(mut opened) = portable::age_opened(std::slice::from_ref(&fixed.content), archive) {
            pass(&mut opened);
        }
    };
    opened(data);
    let mut sealed = Vec::new();
    let recipients = [fixed.content.recipient()];
    if let Ok(mut seal) = portable::age_sealed(&recipients, &mut sealed)
        && std::io::Write::write_all(&mut seal, data).is_ok()
        && seal.finish().is_ok()
    {
        opened(&sealed);
    }
}

fn tree_root(data: &[u8]) {
    if let Ok(root) = Root::decode(data) {
        let again = root.encode();
        assert_eq!(Root::decode(&again).ok().as_ref(), Some(&root), "a root does not come back from what it writes");
    }
}

fn tree_listing(data: &[u8]) {
    if let Ok(entries) = Entries::new(data.to_vec()) {
        for node in entries.map_while(Result::ok) {
            assert!(!node.name.contains(&b'/') && !node.name.is_empty(), "a name that leaves its directory");
            let _ = (node.size(), node.chunk_ids().count());
        }
    }
}

fn key_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = storage::check_key(text);
    let _ = Place::of(text);
    if let Some(decoded) = name::decode(text) {
        assert_eq!(name::encode(&decoded), text, "a name has two spellings");
    }
}

fn paper_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(secret) = paper::read(text) {
        let again = paper::read(&secret.lines()).map(|secret| secret.word());
        assert_eq!(again.ok(), Some(secret.word()), "a page does not come back from what it prints");
    }
    let _ = paper::check_line(text, 2, data.len().is_multiple_of(2));
}

fn identity_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Identity::parse_all(text);
    let _ = text.parse::<Recipient>();
    let _ = text.parse::<crate::sign::PublicKey>();
}

/// Something to begin with, for each door: real objects and texts, made with the fixed keys.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let Some(fixed) = fixed() else { return Vec::new() };
    let mut seeds = vec![
        ("paper", paper::Secret::Key(fixed.content.clone()).lines().into_bytes()),
        ("paper", fixed.content.expose().into_bytes()),
        ("identity", format!("# a key\n{}\n", fixed.content.expose()).into_bytes()),
        ("identity", fixed.content.recipient().to_string().into_bytes()),
        ("key-name", b"snap/alpha/a%20b/0000000001".to_vec()),
        ("key-name", b"log/app/l/0000000001/000000000/000".to_vec()),
        ("compressed", zstd::bulk::compress(&[5; 300], 3).unwrap_or_default()),
    ];
    let sums = "00  a.tar.zst.age.0001\n11  a.tar.zst.age.0002\n22  README.txt\n";
    seeds.push(("export-sums", sums.as_bytes().to_vec()));
    seeds.push(("export-stream", zstd::bulk::compress(&[7; 5000], 6).unwrap_or_default()));
    seeds.extend(catalog::seeds());
    if let Ok(shares) = paper::split(&fixed.content, 3, 2) {
        seeds.extend(shares.into_iter().take(1).map(|s| ("paper", paper::Secret::Share(s).lines().into_bytes())));
    }
    let prefixed = |choice: u8, bytes: Vec<u8>| [vec![choice], bytes].concat();
    if let Ok(bytes) = codec::encode(&fixed.roster) {
        seeds.push(("object", prefixed(0, bytes.clone())));
        seeds.extend(Signed::seal("vault.snapshot", &bytes, &fixed.key).ok().map(|bytes| ("envelope", bytes)));
    }
    let body = SnapshotBody { root: vec![1; 32], notes: vec!["note".to_owned()], chunk_key: vec![2; 40] };
    seeds.extend(codec::encode(&body).ok().map(|bytes| ("sealed-body", prefixed(1, bytes))));
    let body = IndexBody { secret: vec![3; 9], chunk_key: "00".to_owned(), packs: Vec::new() };
    seeds.extend(codec::encode(&body).ok().map(|bytes| ("sealed-body", prefixed(0, bytes))));
    let body = MovedBody { secret: vec![3; 9], packs: Vec::new() };
    seeds.extend(codec::encode(&body).ok().map(|bytes| ("sealed-body", prefixed(2, bytes))));
    for moved in [false, true] {
        let Ok(directory) = pack::fuzz_directory(moved) else { continue };
        seeds.extend(pack::fuzz_pack(VAULT, &fixed.content, &directory, moved).ok().map(|bytes| ("pack", bytes)));
        seeds.push(("pack-directory", directory));
    }
    for text in ["*.conf", "etc/**/a.c?nf", "{a,b}[c-d]*", "report\0/data/report.txt", "a\\*b"] {
        seeds.push(("search-pattern", text.as_bytes().to_vec()));
    }
    let (put, get) = crate::serve::fuzz_requests();
    seeds.push(("serve-session", [vec![0], put.clone(), get.clone()].concat()));
    seeds.push(("serve-session", [vec![0xff], put.clone(), get].concat()));
    seeds.push(("serve-frames", put));
    seeds
}

/// A real object of a vault under the doors that take it: of a frozen example, say.
pub fn seeds_of_object(key: &str, bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    // By the kind of place: whose objects these are does not matter.
    let kind = |key: &str| Place::of(key).map(|place| std::mem::discriminant(&place));
    let class = places("00", "00");
    let mut seeds = vec![("key-name", key.as_bytes().to_vec())];
    if key.starts_with("pack/") && bytes.len() < 64 << 10 {
        seeds.push(("pack", bytes.to_vec()));
    }
    let Some(place) = Place::of(key) else { return seeds };
    if let (Some(kind), Some(choice)) = (place.kind(), class.iter().position(|class| kind(class) == kind(key)))
        && let Ok(signed) = Signed::open(kind, key, bytes)
    {
        seeds.push(("object", [&[choice as u8], signed.payload.as_slice()].concat()));
        seeds.push(("envelope", bytes.to_vec()));
    }
    seeds
}

/// As `Hash`, so that a fuzzer's crate can name what it found.
pub fn name_of(data: &[u8]) -> String {
    Hash(hash(data)).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_door_has_a_seed_and_takes_it_in_pieces() {
        assert!(fixed().is_some());
        let seeds = seeds();
        for (name, door) in DOORS {
            for (_, seed) in seeds.iter().filter(|(of, _)| of == name) {
                for length in 0..=seed.len().min(600) {
                    door(&seed[..length]);
                }
                for place in 0..seed.len().min(600) {
                    let mut flipped = seed.clone();
                    flipped[place] ^= 0x41;
                    door(&flipped);
                }
            }
        }
        let seeded = |name: &str| seeds.iter().any(|(of, _)| *of == name);
        let bare: Vec<_> = DOORS.iter().map(|(name, _)| *name).filter(|name| !seeded(name)).collect();
        // These begin with what lies in the frozen vaults, or with nothing.
        assert_eq!(bare, ["tree-root", "tree-listing"]);
    }

    /// Heads of values that announce a gigabyte, and what is nested without end.
    fn bombs() -> Vec<Vec<u8>> {
        let lengths = [0x9b, 0x5b, 0x7b, 0xbb].map(|kind| vec![kind, 0, 0, 0, 0, 0x40, 0, 0, 0]);
        let nested = [0x81, 0x9f, 0xa1, 0xbf, 0xc1, 0x5f].map(|kind| vec![kind; 50_000]);
        let packed = zstd::stream::encode_all(std::io::repeat(0).take(1 << 30), 1).unwrap();
        [&lengths[..], &nested[..], &[packed]].concat()
    }

    #[test]
    fn what_announces_more_than_it_holds_takes_no_memory_for_it() {
        let (seeds, bombs) = (seeds(), bombs());
        for (name, door) in DOORS {
            for bomb in &bombs {
                for choice in 0..32 {
                    door(&[&[choice], bomb.as_slice()].concat());
                }
                door(bomb);
            }
            for (_, seed) in seeds.iter().filter(|(of, _)| of == name) {
                // Anywhere in what is right, where the parser has believed all before it.
                for place in 0..seed.len().min(160) {
                    for bomb in &bombs[..4] {
                        door(&[&seed[..place], bomb, &seed[place..]].concat());
                    }
                }
            }
        }
    }

    /// The same with no more memory than a small machine has: what was announced cannot be had.
    #[test]
    fn hostile_lengths_pass_with_little_memory() {
        let limited = std::process::Command::new("sh")
            .args(["-c", "ulimit -v 600000; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "fuzzing::tests::what_announces_more_than_it_holds_takes_no_memory_for_it"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&limited.stdout).into_owned() + &String::from_utf8_lossy(&limited.stderr);
        assert!(limited.status.success() && said.contains("1 passed"), "{said}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_door_stumbles_over_junk(data in prop::collection::vec(any::<u8>(), 0..300)) {
            for (_, door) in DOORS {
                door(&data);
            }
        }
    }
}
