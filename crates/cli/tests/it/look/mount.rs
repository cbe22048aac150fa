//! Recovery points as a directory: real mounts, read by real programs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{Machine, assert_alike, files_below, noise};

/// A mount that ends with the test.
pub(crate) struct Mounted {
    child: Child,
    at: PathBuf,
}

impl Mounted {
    fn new(machine: &Machine, words: &str) -> Mounted {
        let at = machine.path("mnt");
        fs::create_dir_all(&at).unwrap();
        let line = format!("mount --vault {} --key owner.key {words} {}", machine.at("backup"), at.display());
        Mounted::of(machine.command(&line.split_whitespace().collect::<Vec<_>>()), at)
    }

    pub(crate) fn of(mut command: Command, at: PathBuf) -> Mounted {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        if !said.contains("Ctrl-C") {
            let output = child.wait_with_output().unwrap();
            panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
        }
        Mounted { child, at }
    }

    /// Ends it as Ctrl-C does; what it had said on stderr.
    pub(crate) fn end(mut self) -> (i32, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(self.child.stderr.as_mut().unwrap(), &mut said).unwrap();
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        assert!(fs::read_dir(&self.at).unwrap().next().is_none(), "something is still mounted");
        (code, said)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = Command::new("umount").arg("-l").arg(&self.at).stderr(Stdio::null()).status();
        }
    }
}

/// One of everything.
fn fill(machine: &Machine) -> String {
    machine.make_vault();
    let home = machine.at("home/documents");
    machine.write("home/documents/letter.txt", "dear reader\n");
    machine.write("home/documents/deep/er/photo.raw", noise(1, 9 << 20));
    std::os::unix::fs::symlink("../letter.txt", machine.path("home/documents/deep/link")).unwrap();
    fs::hard_link(machine.path("home/documents/letter.txt"), machine.path("home/documents/second-name")).unwrap();
    let script = "cd $HOME/documents; touch -d 1999-12-31T23:59:59.123456789 letter.txt; mkdir many; chmod 711 deep
        for i in $(seq 3000); do echo $i > many/a-file-with-a-rather-long-name-$i; done
        truncate -s 100M sparse; printf data | dd of=sparse bs=1 seek=50M conv=notrunc status=none; printf end >> sparse
        setfattr -n user.colour -v blue letter.txt; printf x > $'od\\xffd name'
        sqlite3 app.db 'create table t(x); insert into t select value from generate_series(1,20000)'";
    machine.shell(script).ends(0);
    home
}

fn back_up(machine: &Machine, home: &str) {
    machine.line(&format!("--quiet backup --vault {} {home}", machine.at("backup"))).ends(0);
}

#[test]
fn a_mount_shows_points_as_they_were() {
    let machine = Machine::new();
    let home = fill(&machine);
    back_up(&machine, &home);
    let first = machine.path("first");
    assert!(Command::new("cp").args(["-a", "--sparse=always", &home]).arg(&first).status().unwrap().success());
    machine.write("home/documents/letter.txt", "dear reader, again\n");
    back_up(&machine, &home);

    let mounted = Mounted::new(&machine, &home);
    let mut names: Vec<String> =
        fs::read_dir(&mounted.at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names[2], "latest");
    let (old, new) = (mounted.at.join(&names[0]), mounted.at.join("latest/"));
    assert_alike(&first, &old);
    assert_alike(Path::new(&home), &new);

    // What `diff` does not look at.
    let letter = fs::metadata(old.join("letter.txt")).unwrap();
    assert_eq!((letter.mtime(), letter.mtime_nsec()), (946_684_799, 123_456_789));
    assert_eq!((letter.nlink(), letter.ino()), (2, fs::metadata(old.join("second-name")).unwrap().ino()));
    let mut getfattr = Command::new("getfattr");
    let colour = getfattr.args(["--only-values", "-n", "user.colour"]).arg(old.join("letter.txt")).output().unwrap();
    assert_eq!(colour.stdout, b"blue");
    let sparse = fs::File::open(old.join("sparse")).unwrap();
    assert!(sparse.metadata().unwrap().blocks() * 512 < 20 << 20, "{}", sparse.metadata().unwrap().blocks());
    let data = rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert!(data > 40 << 20 && data <= 50 << 20, "{data}");
    assert!(fs::write(old.join("new"), "x").is_err());

    // Many readers of one file, each at a place of its own.
    let photo = noise(1, 9 << 20);
    std::thread::scope(|scope| {
        for reader in 0..8usize {
            let (photo, path) = (&photo, old.join("deep/er/photo.raw"));
            scope.spawn(move || {
                let file = fs::File::open(path).unwrap();
                for step in 0..64 {
                    let start = (reader * 1_000_003 + step * 777_777) % (photo.len() - 70_000);
                    let mut buffer = vec![0; 70_000];
                    file.read_exact_at(&mut buffer, start as u64).unwrap();
                    assert!(buffer == photo[start..start + 70_000]);
                }
            });
        }
    });
    let query = format!("file:{}?mode=ro", old.join("app.db").display());
    let sum = Command::new("sqlite3").args([&query, "select sum(x) from t"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&sum.stdout), "200010000\n", "{}", String::from_utf8_lossy(&sum.stderr));
    let (code, said) = mounted.end();
    assert_eq!((code, said.replace("stopping; once more to stop at once\n", "")), (0, String::new()));

    // One point alone.
    let mounted = Mounted::new(&machine, "1");
    assert_alike(&first, &mounted.at);
    mounted.end();
    let busy = machine.line(&format!("mount --vault {} --key owner.key {}", machine.at("backup"), home)).ends(2);
    assert!(busy.err.contains("is not an empty directory"), "{}", busy.err);
    let nowhere = machine
        .line(&format!("mount --vault {} --key owner.key {}", machine.at("backup"), machine.at("nowhere")))
        .ends(2);
    assert!(nowhere.err.contains("is not there; make the directory"), "{}", nowhere.err);
}

/// What a tree can hold besides files, as the kernel shows it; and what it cannot hold is left out, not made into something else.
#[test]
fn what_is_no_plain_file_is_shown_as_what_it_is() {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("home/documents/plain", "x");
    let script = "cd $HOME/documents; mkfifo -m 640 queue; mknod -m 600 null c 1 3; mknod disk b 7 0; chown 12:34 plain; chmod 4755 plain
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"talk\")'; ln -s /nowhere/at/all dangling; ln queue second-queue
        mkdir -m 1777 shared; setfattr -n user.note -v $'two\\nlines' shared; setfattr -n user.empty plain
        setfattr -h -n trusted.kept -v 'on the link' dangling; setfacl -m u:99:r plain";
    machine.shell(script).ends(0);
    let taken = machine.line(&format!("backup --vault {} {}", machine.at("backup"), machine.at("home/documents")));
    let taken = taken.ends(0);
    for name in ["null", "disk", "talk"] {
        assert!(taken.err.contains(&format!("/{name}")), "{name} is not named: {}", taken.err);
    }
    let mounted = Mounted::new(&machine, "1");
    let at = |name: &str| mounted.at.join(name);
    let mut names: Vec<String> =
        fs::read_dir(&mounted.at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["dangling", "plain", "queue", "second-queue", "shared"]);
    let queue = fs::symlink_metadata(at("queue")).unwrap();
    assert_eq!((queue.file_type().is_fifo(), queue.mode() & 0o7777), (true, 0o640));
    // Only files are kept as one under several names.
    assert!(fs::symlink_metadata(at("second-queue")).unwrap().file_type().is_fifo());
    let plain = fs::metadata(at("plain")).unwrap();
    assert_eq!((plain.mode() & 0o7777, plain.uid(), plain.gid()), (0o4755, 12, 34));
    assert_eq!(fs::metadata(at("shared")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::read_link(at("dangling")).unwrap(), Path::new("/nowhere/at/all"));
    let attribute = |name: &str, of: &str| {
        let mut command = Command::new("getfattr");
        command.args(["-h", "--only-values", "--absolute-names", "-n", name]).arg(at(of));
        let read = command.output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        read.stdout
    };
    assert_eq!(attribute("user.note", "shared"), b"two\nlines");
    assert_eq!(attribute("user.empty", "plain"), b"");
    assert_eq!(attribute("trusted.kept", "dangling"), b"on the link");
    let acl = |path: &Path| {
        let shown = Command::new("getfacl").args(["--omit-header", "--absolute-names", "--numeric"]).arg(path).output();
        String::from_utf8(shown.unwrap().stdout).unwrap()
    };
    assert!(acl(&at("plain")).contains("user:99:r--"), "{}", acl(&at("plain")));
    assert_eq!(acl(&at("plain")), acl(&machine.path("home/documents/plain")));
    mounted.end();
}

#[test]
fn what_is_damaged_is_an_error_and_named() {
    let machine = Machine::new();
    machine.make_vault();
    let home = machine.at("home/documents");
    machine.write("home/documents/photo.raw", noise(1, 40 << 20));
    back_up(&machine, &home);
    // Every data pack loses a bit in the middle of its first frame.
    let packs: Vec<PathBuf> = files_below(&machine.path("backup/pack"));
    assert!(packs.len() > 1);
    for pack in &packs {
        let length = fs::metadata(pack).unwrap().len();
        if length > 1 << 20 {
            let file = fs::OpenOptions::new().write(true).read(true).open(pack).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 200_000).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 200_000).unwrap();
        }
    }
    let mounted = Mounted::new(&machine, "1");
    let error = fs::read(mounted.at.join("photo.raw")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let (_, said) = mounted.end();
    assert!(said.contains("photo.raw: ") && said.contains("pack/") && said.contains("is damaged"), "{said}");
}

#[test]
fn who_is_not_root_mounts_as_well_and_an_unmount_ends_it() {
    let machine = Machine::unprivileged();
    machine.make_vault();
    machine.write("home/documents/letter.txt", "dear reader\n");
    back_up(&machine, &machine.at("home/documents"));
    machine.write("mnt/x", "");
    fs::remove_file(machine.path("mnt/x")).unwrap();
    // `fusermount3` has its rights from its file, which the tests' usual user is cut off from.
    let line = format!("--vault {} --key owner.key {}", machine.at("backup"), machine.at("mnt"));
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(machine.path("bin/lifeboat"))
        .arg("mount");
    command.args(line.split_whitespace()).env("HOME", machine.path("home")).current_dir(machine.path("work"));
    let mut mounted = Mounted::of(command, machine.path("mnt"));
    // Nobody else looks into it, root neither.
    assert!(fs::read_dir(&mounted.at).is_err());
    let shown = machine.shell(&format!("cat {}/*/latest/letter.txt", mounted.at.display())).ends(0);
    assert_eq!(shown.out, "dear reader\n");
    assert!(Command::new("umount").arg(&mounted.at).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(60);
    while mounted.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the command goes on though nothing is mounted");
        std::thread::yield_now();
    }
}
