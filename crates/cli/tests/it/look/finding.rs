//! Looking into recovery points: `find`, `diff`, `cat`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use crate::machine::{Machine, noise};

/// Three points of a small home: something added, changed, removed in each.
fn three_points(machine: &Machine) -> (String, String) {
    machine.make_vault();
    let (vault, home) = (machine.at("backup"), machine.at("home/documents"));
    let backup = || machine.line(&format!("--quiet backup --vault {vault} {home}")).ends(0);
    machine.write("home/documents/etc/app.conf", "one\n");
    machine.write("home/documents/etc/other.conf", "other\n");
    machine.write("home/documents/photo.raw", noise(1, 3 << 20));
    backup();
    machine.write("home/documents/etc/app.conf", "two, and longer\n");
    machine.write("home/documents/reports/report 2026.txt", "numbers\n");
    backup();
    fs::remove_file(machine.path("home/documents/etc/other.conf")).unwrap();
    fs::set_permissions(machine.path("home/documents/photo.raw"), fs::Permissions::from_mode(0o600)).unwrap();
    backup();
    (vault, home)
}

#[test]
fn paths_are_found_in_all_points() {
    let machine = Machine::new();
    let (vault, home) = three_points(&machine);
    let without = machine.line(&format!("find --vault {vault} conf")).ends(2);
    assert!(without.err.contains("no catalogue"), "{}", without.err);
    let find = |rest: &str| machine.line(&format!("--json find --vault {vault} {rest}")).ends(0).json();
    let first = find("--key owner.key *.conf");
    let paths = |value: &serde_json::Value| -> Vec<String> {
        value["found"].as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(paths(&first), ["etc/app.conf", "etc/other.conf"]);
    let versions = first["found"][0]["versions"].as_array().unwrap();
    assert_eq!((versions[0]["bytes"].as_u64(), versions[1]["bytes"].as_u64()), (Some(4), Some(16)));
    assert_eq!((&versions[0]["points"], &versions[1]["points"]), (&1.into(), &2.into()));
    assert_eq!(versions[1]["newest"], true);
    // Now that there is a catalogue, no key is needed.
    assert_eq!(paths(&find("--deleted .conf")), ["etc/other.conf"]);
    assert_eq!(paths(&find("report")), ["reports", "reports/report 2026.txt"]);
    assert_eq!(paths(&find("reports/")), ["reports"]);
    assert_eq!(paths(&find("--ignore-case PHOTO --larger 1MB")), ["photo.raw"]);
    assert_eq!(paths(&find(&format!("{home}/etc/*"))), ["etc/app.conf", "etc/other.conf"]);
    assert_eq!(paths(&find(&format!("--exact {home}/etc/app.conf --newest"))), ["etc/app.conf"]);
    assert_eq!(paths(&find("etc/** --kind file --newest")), ["etc/app.conf"]);
    assert!(paths(&find("nothing-like-it")).is_empty());
    let text = machine.line(&format!("find --vault {vault} app.conf")).ends(0);
    assert!(
        text.out.contains("2-3") && text.out.contains("newest") && text.out.contains("etc/app.conf"),
        "{}",
        text.out
    );
    // The names are for this user only.
    let kept = fs::read_dir(machine.path("home/.local/state/lifeboat/catalog")).unwrap().next().unwrap().unwrap();
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // Newer points are said to be, and come with the key.
    machine.write("home/documents/new.conf", "new");
    machine.line(&format!("--quiet backup --vault {vault} {home}")).ends(0);
    let old = machine.line(&format!("find --vault {vault} new.conf")).ends(0);
    assert!(old.err.contains("1 recovery point is newer than the catalogue"), "{}", old.err);
    assert_eq!(paths(&find("--key owner.key new.conf")), ["new.conf"]);
    // Elsewhere nothing need be kept.
    let owner = first["owner"].as_str().unwrap_or_default();
    assert_eq!(owner, "");
    machine.elsewhere("other", &format!("find --vault {vault} --key owner.key --no-catalog new.conf")).ends(3);
    assert!(!machine.path("other/.local/state/lifeboat/catalog").exists());
    assert!(machine.line(&format!("find --vault {vault} a[")).ends(2).err.contains("is no pattern"));
}

#[test]
fn points_are_compared() {
    let machine = Machine::new();
    let (vault, home) = three_points(&machine);
    let diff = |rest: &str| machine.line(&format!("diff --vault {vault} --key owner.key {rest}")).ends(0).out;
    let lines = |text: &str| {
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with([' ', 'f'])).map(str::to_owned).collect();
        lines.retain(|line| !line.contains("time of change"));
        lines
    };
    assert_eq!(lines(&diff("1 2")), ["M etc/app.conf  (4 B → 16 B)", "+ reports/", "+ reports/report 2026.txt  (8 B)"]);
    assert_eq!(lines(&diff(&format!("2 {home}"))), ["- etc/other.conf  (6 B)", "m photo.raw  (mode 0644 → 0600)"]);
    assert_eq!(lines(&diff("1 3 --content --path etc")), ["M etc/app.conf  (4 B → 16 B)", "- etc/other.conf  (6 B)"]);
    let stat = diff("3 1 --stat");
    assert!(stat.contains("1 path added (6 B), 2 removed (8 B), 1 changed (16 B → 4 B)"), "{stat}");
    let events = machine.line(&format!("--json diff --vault {vault} --key owner.key 1 2")).ends(0).events();
    let last = events.last().unwrap();
    assert_eq!((&last["stat"]["added"], &last["stat"]["changed"]), (&2.into(), &1.into()));
    assert!(events.iter().any(|event| event["path"] == "etc/app.conf" && event["after"]["bytes"] == 16));
    assert!(diff("2 2").lines().all(|line| line.starts_with([' ', 'f'])));
    let wrong = machine.line(&format!("diff --vault {vault} --key owner.key 1 nowhere")).ends(2);
    assert!(wrong.err.contains("nowhere"), "{}", wrong.err);
}

#[test]
fn a_file_of_a_point_comes_to_stdout() {
    let machine = Machine::new();
    let (vault, home) = three_points(&machine);
    let odd = std::ffi::OsStr::from_bytes(b"od\xffd\n.bin");
    fs::write(machine.path("home/documents").join(odd), noise(5, 1000)).unwrap();
    std::os::unix::fs::symlink("photo.raw", machine.path("home/documents/link")).unwrap();
    machine.line(&format!("--quiet backup --vault {vault} {home}")).ends(0);
    let open = format!("--vault {vault} --key owner.key");
    let cat = |rest: &str| machine.line(&format!("cat {open} {rest}"));
    assert_eq!(cat("1 etc/app.conf").ends(0).out, "one\n");
    assert_eq!(cat(&format!("{home} {home}/etc/app.conf")).ends(0).out, "two, and longer\n");
    assert_eq!(cat("2 etc/app.conf --offset 5 --length 3").ends(0).out, "and");
    let mut whole = machine.command(&["cat", "--vault", &vault, "--key", "owner.key", "3", "photo.raw"]);
    assert!(whole.output().unwrap().stdout == noise(1, 3 << 20));
    let mut binary = machine.command(&["cat", "--vault", &vault, "--key", "owner.key", "4"]);
    assert!(binary.arg(odd).output().unwrap().stdout == noise(5, 1000));
    let wrong = cat("1 etc/ap.conf").ends(2);
    assert!(wrong.err.contains("there is: `etc/app.conf`"), "{}", wrong.err);
    assert!(cat("1 etc").ends(2).err.contains("is a directory"));
    assert!(cat("4 link").ends(2).err.contains("symbolic link to `photo.raw`"));
    assert!(cat("9 etc").ends(2).err.contains("`9`"));
    let described = machine.line(&format!("--json cat {open} 3 photo.raw")).ends(0).json();
    assert_eq!((&described["mode"], &described["bytes"]), (&"0600".into(), &(3 << 20).into()));
    assert_eq!(described["blake3"], blake3::hash(&noise(1, 3 << 20)).to_hex().as_str());
    // Names cannot write on the terminal what they like.
    let found = machine.line(&format!("find {open} od")).ends(0).out;
    assert!(found.contains("od\\xffd\\n.bin"), "{found}");
}

#[test]
fn a_point_is_held_against_a_directory() {
    let machine = Machine::new();
    let (vault, home) = three_points(&machine);
    let diff = |rest: &str| machine.line(&format!("diff --vault {vault} --key owner.key {rest}"));
    let alike = diff(&format!("3 --dir {home}")).ends(0);
    assert!(alike.out.contains("0 paths added"), "{}", alike.out);
    machine.write("home/documents/new", "new");
    machine.write("home/documents/etc/app.conf", "two, and LONGER\n");
    let changed = diff(&format!("3 --dir {home}")).ends(0);
    assert!(changed.out.contains("+ new") && changed.out.contains("M etc/app.conf"), "{}", changed.out);
    let part = diff(&format!("--json 3 --dir {home} --path etc")).ends(0).events();
    assert_eq!(part.last().unwrap()["stat"]["changed"], 1);
    assert_eq!(part.last().unwrap()["stat"]["added"], 0);
    // A data set goes by the same name as the directory it is of: the point counts, and it is said.
    let named = diff(&format!("2 {home}")).ends(0);
    assert!(named.err.contains("--dir") && named.out.contains("to point 3"), "{}{}", named.out, named.err);
    let other = machine.at("home");
    assert!(diff(&format!("3 {other}")).ends(0).out.contains("+ documents/"));
    assert!(diff("3").ends(2).err.contains("--dir"));
    assert!(diff("3 --dir /nowhere").ends(2).err.contains("there is no directory /nowhere"));
    assert!(diff(&format!("3 --dir {home}/new")).ends(2).err.contains("is no directory"));
    assert!(diff("3 /nowhere").ends(2).err.contains("nor is it a directory"));
    assert!(diff("2 3 --read-all").ends(2).err.contains("are for a comparison with a directory"));
    assert!(diff(&format!("3 --dir {home} --path photo.raw")).ends(2).err.contains("cmp"));
    assert!(diff(&format!("3 --dir {home} --exclude [")).ends(2).err.contains("valid glob"));
}

#[test]
fn a_pruned_point_is_called_pruned() {
    let machine = Machine::new();
    let (vault, _) = three_points(&machine);
    let prune = format!("vault prune --vault {vault} --key owner.key --point");
    let id =
        machine.line(&format!("--json points --vault {vault}")).ends(0).json()[0]["id"].as_str().unwrap().to_owned();
    machine.line(&format!("{prune} {id} --yes")).ends(0);
    let key = format!("--vault {vault} --key owner.key");
    for line in [
        format!("diff {key} 1 2"),
        format!("cat {key} {id} photo.raw"),
        format!("restore {key} --point 1 --to {}", machine.at("out")),
    ] {
        let said = machine.line(&line).ends(2);
        assert!(said.err.contains("is no more: it was pruned at"), "{line}: {}", said.err);
    }
    let path = machine.line(&format!("restore {key} photo.raw --to {}", machine.at("out"))).ends(2);
    assert!(path.err.contains("--path photo.raw"), "{}", path.err);
    let point = machine.line(&format!("restore {key} 3 --to {}", machine.at("out"))).ends(2);
    assert!(point.err.contains("--point"), "{}", point.err);
}

#[test]
fn every_kind_of_file_is_found_read_and_brought_back() {
    let machine = Machine::new();
    machine.make_vault();
    let (vault, data) = (machine.at("backup"), machine.at("data"));
    machine.write("data/large", noise(5, 300_000));
    fs::hard_link(machine.path("data/large"), machine.path("data/twin")).unwrap();
    std::os::unix::fs::symlink("large", machine.path("data/link")).unwrap();
    let sparse = fs::File::create(machine.path("data/sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    for (program, arguments) in [
        ("mkfifo", vec![machine.at("data/fifo")]),
        ("mknod", vec![machine.at("data/device"), "c".to_owned(), "1".to_owned(), "3".to_owned()]),
        ("setfattr", ["-n", "user.colour", "-v", "red", &machine.at("data/large")].map(str::to_owned).to_vec()),
    ] {
        assert!(std::process::Command::new(program).args(arguments).status().unwrap().success());
    }
    let taken = machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    assert!(taken.err.contains("device is a device"), "{}", taken.err);
    let key = format!("--vault {vault} --key owner.key");
    let found = |kind: &str| {
        let found = machine.line(&format!("--json find {key} --kind {kind} *")).ends(0).json();
        let names = found["found"].as_array().unwrap().iter();
        names.map(|one| one["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found("fifo"), ["fifo"]);
    assert_eq!(found("symlink"), ["link"]);
    assert_eq!(found("file"), ["large", "sparse", "twin"]);
    let cat = |path: &str| machine.line(&format!("--json cat {key} 1 {path}"));
    assert_eq!(cat("twin").ends(0).json()["bytes"], 300_000);
    assert_eq!(cat("sparse").ends(0).json()["bytes"], 40 << 20);
    for path in ["fifo", "link", "device"] {
        cat(path).ends(2);
    }
    machine.line(&format!("restore {key} --to {}", machine.at("out"))).ends(0);
    fs::remove_file(machine.path("data/device")).unwrap();
    let restored = machine.line(&format!("diff {key} 1 --read-all --dir {} --stat", machine.at("out"))).ends(0);
    assert!(
        restored.out.contains("0 paths added (0 B), 0 removed (0 B), 0 changed (0 B → 0 B), 0 otherwise"),
        "{}",
        restored.out
    );
    use std::os::unix::fs::MetadataExt;
    let meta = |name: &str| fs::metadata(machine.path(&format!("out/{name}"))).unwrap();
    assert_eq!(meta("large").ino(), meta("twin").ino());
    assert!(meta("sparse").blocks() < 1000);
    // One path of each kind alone.
    for name in ["fifo", "link", "sparse", "twin"] {
        let to = machine.at(&format!("one-{name}"));
        machine.line(&format!("restore {key} --path {name} --to {to}")).ends(0);
        assert!(fs::symlink_metadata(format!("{to}/{name}")).is_ok(), "{name}");
    }
}
