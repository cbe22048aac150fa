//! Portable archives: restored by the programs that their README names, and by nothing of ours.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::machine::{Machine, assert_alike, noise};

/// One of everything that a tree may hold; the data set.
fn fill(machine: &Machine) -> String {
    machine.make_vault();
    machine.write("home/documents/letter.txt", "dear reader\n");
    machine.write("home/documents/photo.raw", noise(1, 5 << 20));
    fs::hard_link(machine.path("home/documents/letter.txt"), machine.path("home/documents/second-name")).unwrap();
    let script = "cd $HOME/documents
        long=$(printf 'a-rather-long-name-%.0s' {1..12}); mkdir -p deep/$long/$long; echo deep > deep/$long/$long/$long
        ln -s ../letter.txt deep/link; ln -s deep/$long/$long/$long far-link; ln $'letter.txt' deep/$long/third-name
        touch -d '1965-05-05T05:05:05.123456789Z' letter.txt; touch -d '1999-12-31T23:59:59.987654321Z' photo.raw
        chmod 4755 photo.raw; chmod 511 deep; mkdir empty; : > nothing
        truncate -s 9G sparse; printf data | dd of=sparse bs=1 seek=5G conv=notrunc status=none; printf end >> sparse
        truncate -s 3M hole-only; setfattr -n user.colour -v 'blue=%' letter.txt; setfacl -m u:1:r photo.raw
        printf x > $'od\\xffd name'; printf y > $'line\\nbreak'; printf z > --checkpoint=1
        odd=$(printf '\\xfe%.0s' {1..150}); printf long > $odd; ln -s $odd odd-link
        sqlite3 ../app.db 'create table t(x); insert into t select value from generate_series(1,20000)'";
    machine.shell(script).ends(0);
    std::os::unix::fs::chown(machine.path("home/documents/photo.raw"), Some(3_000_000), Some(12)).unwrap();
    let home = machine.at("home/documents");
    let (vault, db) = (machine.at("backup"), machine.at("home/app.db"));
    machine.line(&format!("--quiet backup --vault {vault} {home} {db}")).ends(0);
    home
}

/// The command that the README says, done as it says.
fn restore_as_said(machine: &Machine, archive: &str, key: &str) {
    let readme = fs::read_to_string(machine.path(archive).join("README.txt")).unwrap();
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert_eq!(commands.len(), 3, "{readme}");
    let script = commands.join("\n").replace("/where/it/goes", &machine.at("out")).replace("KEY", key);
    machine.shell(&format!("cd {}\n{script}", machine.at(archive))).ends(0);
}

fn assert_restored(machine: &Machine, home: &str) {
    let (home, out) = (Path::new(home), machine.path("out"));
    // 9 GB of zeros take long to compare: they are looked at below.
    for top in [home, &out] {
        assert!(fs::metadata(top.join("sparse")).unwrap().len() == (9 << 30) + 3);
    }
    let sparse = fs::metadata(out.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    let file = fs::File::open(out.join("sparse")).unwrap();
    for (position, wanted) in [(5 << 30, &b"data"[..]), (9 << 30, b"end"), (1 << 30, b"\0\0")] {
        let mut buffer = vec![1; wanted.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer, position).unwrap();
        assert_eq!(buffer, wanted);
    }
    assert_eq!(fs::metadata(out.join("hole-only")).unwrap().blocks(), 0);
    for top in [home, &out] {
        fs::rename(top.join("sparse"), top.with_extension("sparse")).unwrap();
        // Taking it out changed the directory's own time.
        Command::new("touch").args(["-d", "2026-01-01"]).arg(top).status().unwrap();
    }
    assert_alike(home, &out);
    fs::rename(home.with_extension("sparse"), home.join("sparse")).unwrap();
    let inode = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
    assert_eq!(inode("letter.txt"), inode("second-name"));
    assert_eq!(fs::metadata(out.join("letter.txt")).unwrap().nlink(), 3);
    let read = |program: &str, name: &str| {
        Command::new(program).args(["-d", "-m", "-"]).arg(name).current_dir(&out).output().unwrap()
    };
    assert!(String::from_utf8_lossy(&read("getfattr", "letter.txt").stdout).contains("user.colour=\"blue=%\""));
    let acl = Command::new("getfacl").arg("-n").arg(out.join("photo.raw")).output().unwrap();
    assert!(String::from_utf8_lossy(&acl.stdout).contains("user:1:r--"));
    let odd = std::ffi::OsStr::from_bytes(&[0xfe; 150]).to_owned();
    assert_eq!(fs::read(out.join(&odd)).unwrap(), b"long");
    assert_eq!(fs::read_link(out.join("odd-link")).unwrap(), Path::new(&odd));
}

#[test]
fn an_age_archive_is_restored_by_what_its_readme_names() {
    let machine = Machine::new();
    let home = fill(&machine);
    let open = format!("--vault {} --key owner.key", machine.at("backup"));
    let export = |words: &str| machine.line(&format!("--json export {open} {words}"));
    let small = export(&format!("{home} -o {} --split 1B", machine.at("archive"))).ends(2);
    assert!(small.err.contains("too small"), "{}", small.err);
    let made = export(&format!("{home} -o {} --split 2MB", machine.at("archive"))).ends(0).json();
    assert!(made["parts"].as_array().unwrap().len() >= 3, "{made}");
    for part in fs::read_dir(machine.path("archive")).unwrap() {
        assert!(part.unwrap().metadata().unwrap().len() <= 2_000_000);
    }
    restore_as_said(&machine, "archive", &machine.at("work/paper.key"));
    assert_restored(&machine, &home);
    let again = export(&format!("{home} -o {}", machine.at("archive"))).ends(4);
    assert!(again.err.contains("holds other things"), "{}", again.err);

    // Our own way back; and what is damaged, missing, or another's.
    let import = |words: &str| machine.line(&format!("import {} {words}", machine.at("archive")));
    import(&format!("--key owner.key --to {}", machine.at("back"))).ends(0);
    assert_eq!(fs::read(machine.path("back/photo.raw")).unwrap(), noise(1, 5 << 20));
    import("--verify").ends(0);
    import("--verify --key owner.key").ends(0);
    machine.line("key new -o stranger.key").ends(0);
    let stranger = import(&format!("--key stranger.key --to {}", machine.at("back2"))).ends(1);
    assert!(stranger.err.contains("none of the given keys"), "{}", stranger.err);
    let full = import(&format!("--key owner.key --to {}", machine.at("back"))).ends(4);
    assert!(full.err.contains("is not empty"), "{}", full.err);
    let part = machine.path("archive").join(made["parts"][1].as_str().unwrap());
    let mut bytes = fs::read(&part).unwrap();
    bytes[1000] ^= 1;
    fs::write(&part, &bytes).unwrap();
    let damaged = import(&format!("--key owner.key --to {}", machine.at("back3"))).ends(1);
    assert!(damaged.err.contains(".0002 is not what SHA256SUMS says"), "{}", damaged.err);
    assert!(fs::read_dir(machine.path("back3")).unwrap().next().is_none());
    fs::remove_file(&part).unwrap();
    assert!(import("--verify").ends(1).err.contains(".0002 is missing"));
}

#[test]
fn a_database_is_exported_as_one_file_that_opens() {
    let machine = Machine::new();
    fill(&machine);
    let (vault, archive) = (machine.at("backup"), machine.at("archive"));
    // An export that broke off begins anew.
    fs::create_dir(machine.path("archive")).unwrap();
    machine.write("archive/UNFINISHED", "");
    machine.write("archive/app-db-1.tar.zst.age.0001", "half a part");
    machine.line(&format!("export app.db --vault {vault} --key owner.key -o {archive}")).ends(0);
    restore_as_said(&machine, "archive", &machine.at("work/owner.key"));
    let sum =
        machine.shell(&format!("sqlite3 {}/app.db 'pragma integrity_check; select sum(x) from t'", machine.at("out")));
    assert_eq!(sum.ends(0).out, "ok\n200010000\n");
}

#[test]
fn an_openpgp_archive_is_restored_by_gpg() {
    let machine = Machine::new();
    let home = fill(&machine);
    // A socket's path must be short.
    let keyring = tempfile::Builder::new().prefix("gpg").tempdir_in("/tmp").unwrap();
    let gpg = |line: &str| {
        let mut command = Command::new("gpg");
        command.env("GNUPGHOME", keyring.path()).args(["--batch", "--quiet"]).args(line.split(' '));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    gpg("--passphrase= --quick-gen-key owner@example.org default default never");
    machine.write("work/key.pgp", gpg("--export owner@example.org"));
    let open = format!("--vault {} --key owner.key", machine.at("backup"));
    let without = machine.line(&format!("export {home} {open} --format openpgp -o {}", machine.at("archive"))).ends(2);
    assert!(without.err.contains("needs the key"), "{}", without.err);
    machine
        .line(&format!(
            "export {home} {open} --format openpgp --recipient key.pgp --split 2MB -o {}",
            machine.at("archive")
        ))
        .ends(0);
    std::os::unix::fs::symlink(keyring.path(), machine.path("home/.gnupg")).unwrap();
    restore_as_said(&machine, "archive", "");
    assert_restored(&machine, &home);
    machine.line(&format!("import {} --to {}", machine.at("archive"), machine.at("back"))).ends(0);
    assert_eq!(fs::read(machine.path("back/photo.raw")).unwrap(), noise(1, 5 << 20));
    machine.shell("gpgconf --kill gpg-agent").ends(0);
    fs::remove_file(machine.path("home/.gnupg")).unwrap();
    let nobodys = machine.line(&format!("import {} --to {}", machine.at("archive"), machine.at("back2"))).ends(1);
    assert!(nobodys.err.contains("`gpg` failed"), "{}", nobodys.err);
    machine.shell("gpgconf --kill gpg-agent").ends(0);
}
