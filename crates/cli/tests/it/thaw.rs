//! Archived points, through the binary and on an *emulated* S3 (radosgw has no class that cannot be read at once): a whole failover to a
//! moment that must be thawed first, and every verb that looks into such a point.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lifeboat_core::run::RunState;
use lifeboat_vault::Identity;
use lifeboat_vault::storage::{Storage, Thaw};

use crate::later;
use crate::look::mount::Mounted;
use crate::machine::{Machine, Ran, noise};
use crate::s3_servers::{self, Server, User};
use crate::world::{CANARY, Options, World, text, wait_until};

const TWO_DAYS: SignedDuration = SignedDuration::from_hours(48);

fn environment(server: &Server) -> Vec<(String, String)> {
    let (key, secret) = User::Owner.keys();
    let endpoint = server.endpoint();
    let pairs = [("AWS_ENDPOINT_URL", &*endpoint), ("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn script(path: &Path, lines: &str) {
    fs::write(path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The first time it is run the plan's command asks for nothing, as if the keeper took his time.
fn world_in(server: &Server, bucket: &str, commands: &Path) -> World {
    let command = commands.join("thaw");
    let slow = commands.join("asked");
    let lines =
        format!("if [ ! -e '{0}' ]; then cat > '{0}'; exit 0; fi\n{1}", slow.display(), server.thaw_script(bucket));
    script(&command, &lines);
    let vault = format!(
        "url = \"s3://{bucket}/dr\"\narchive = {{ class = \"DEEP_ARCHIVE\", thaw = \"48h\", command = [\"{}\"] }}",
        command.display()
    );
    World::new(&Options { vault, environment: environment(server), ..Options::default() })
}

/// Two points that share nothing, the older one archived; the moment between them.
fn archive_the_first(world: &World, server: &Server, bucket: &str) -> Timestamp {
    world.backup();
    let between = Timestamp::now();
    let docs = world.root.join("north/volumes/docs");
    fs::write(docs.join("page"), "a later page\n").unwrap();
    fs::write(docs.join("canary"), "another canary").unwrap();
    world.backup();
    let plan = fs::read_to_string(world.plan()).unwrap();
    let owner = plan.split("owner = \"").nth(1).unwrap().split('"').next().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(server.open(&format!("{bucket}/dr")));
    let key = Identity::load_all(Path::new(&world.path("owner.key"))).unwrap().remove(0);
    later::put_away((&storage, 1), &key, owner, "DEEP_ARCHIVE", TWO_DAYS);
    between
}

#[test]
fn a_failover_to_an_archived_moment_says_so_thaws_is_interrupted_and_goes_on() {
    let server = s3_servers::emulated();
    let (bucket, commands) = (server.bucket(), tempfile::tempdir().unwrap());
    let mut world = world_in(server, &bucket, commands.path());
    let between = archive_the_first(&world, server, &bucket).to_string();
    let key = world.path("owner.key");
    let began = Timestamp::now().to_string();
    let words = ["failover", "pages", "--at", &between, "--disaster-at", &began, "--key", &key, "--yes"];

    // Before anything is done: class, bytes, time; and the step may take that, and a restore.
    let printed = world.ok(&[&words[..], &["--dry-run"]].concat());
    let step = printed.split("restore-docs").nth(1).unwrap();
    assert!(step.contains("thaws first 1 pack (") && step.contains("in the class DEEP_ARCHIVE, up to 2d"), "{step}");
    assert!(step.lines().nth(1).unwrap().contains("at most 5d 10m"), "{step}");
    let newest = world.ok(&["failover", "pages", "--dry-run"]);
    assert!(!newest.contains("thaws") && newest.contains("at most 1d;"), "{newest}");

    world.start_dns();
    let mut run = world.command(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let asked = commands.path().join("asked");
    wait_until("the plan's command is run", || fs::read_to_string(&asked).is_ok_and(|names| names.ends_with('\n')));
    assert!(fs::read_to_string(&asked).unwrap().starts_with("dr/pack/"));
    // It waits, and says for what.
    let mut said = String::new();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(run.stderr.take().unwrap()));
    while !said.contains("restore-docs: thawing 1 pack (") {
        said += &(lines.next().unwrap().unwrap() + "\n");
    }
    assert!(said.contains("in the class DEEP_ARCHIVE, up to 2d: 0 B of "), "{said}");
    let pid = run.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let view = world.run();
    assert_eq!((view.state, view.step("restore-docs").unwrap().status.as_str()), (RunState::Paused, "running"));
    assert!(!world.root.join("south/volumes/docs/page").exists());

    let resumed = world.lifeboat(&["run", "resume", &view.run, "--key", &key]);
    assert_eq!(resumed.status.code(), Some(0), "{}{}", text(&resumed.stdout), text(&resumed.stderr));
    world.assert_recovered();
    assert!(fs::read_to_string(world.root.join("south/volumes/docs/canary")).unwrap() == CANARY);
    let view = world.run();
    let restored = view.step("restore-docs").unwrap();
    let thawed = &restored.facts["thawed"][0];
    assert_eq!((thawed["vault"].as_str(), thawed["packs"].as_u64()), (Some("main"), Some(1)), "{thawed}");
    assert_eq!(restored.facts["gave_way"], serde_json::json!([]), "nothing older was taken");
    // What it was away for counts from the disaster, with all that the thawing took.
    let evidence: serde_json::Value = serde_json::from_str(&world.ok(&["evidence", &view.run, "--json"])).unwrap();
    let rto = &evidence["rto"];
    let how = rto["how"].as_str().unwrap();
    assert!(how.contains("of it until what was archived of `docs` could be read: 1 pack ("), "{how}");
    assert!(rto["proven_seconds"].as_f64().unwrap() >= restored.took_seconds.unwrap(), "{rto}");
}

fn run(machine: &Machine, server: &Server, line: &str) -> Ran {
    let mut command = machine.command(&line.split_whitespace().collect::<Vec<_>>());
    machine.ran({
        command.envs(environment(server));
        command
    })
}

#[test]
fn every_verb_that_looks_into_an_archived_point_says_class_time_and_what_to_run() {
    let (machine, server) = (Machine::new(), s3_servers::emulated());
    let bucket = server.bucket();
    let vault = format!("--vault s3://{bucket}/dr");
    let key = |name: &str| machine.line(&format!("key new -o {name}")).ends(0).out.trim().to_owned();
    let (owner, paper) = (key("owner.key"), key("paper.key"));
    let run = |line: &str| run(&machine, server, line);
    let made = run(&format!("--json vault init {vault} --host alpha --recipient {owner} --recipient {paper}"));
    let fingerprint = made.ends(0).json()["owner"].as_str().unwrap().to_owned();
    for seed in [0, 100] {
        for file in 0..20 {
            let text: String = noise(seed + file, 15_000).iter().map(|byte| format!("{byte:02x}")).collect();
            machine.write(&format!("data/{file}"), text);
        }
        run(&format!("backup {vault} --as app {}", machine.at("data"))).ends(0);
    }
    let storage: Arc<dyn Storage> = Arc::new(server.open(&format!("{bucket}/dr")));
    let key = Identity::load_all(&machine.path("work/owner.key")).unwrap().remove(0);
    later::put_away((&storage, 1), &key, &fingerprint, "DEEP_ARCHIVE", TWO_DAYS);
    let vault = format!("{vault} --key owner.key");

    for line in [
        format!("cat {vault} 1 3"),
        format!("diff {vault} 1 2"),
        format!("diff {vault} 1 --dir {}", machine.at("data")),
        format!("export {vault} 1 -o {}", machine.at("portable")),
        format!("restore {vault} --point 1 --path 3 --to {}", machine.at("one")),
    ] {
        let held = run(&line).ends(5);
        assert!(held.out.is_empty(), "{line}: {}", held.out);
        for word in ["in the class DEEP_ARCHIVE", "up to 2d", "aws s3api restore-object", "to-thaw-"] {
            assert!(held.err.contains(word), "{line}: {word}: {}", held.err);
        }
    }
    assert!(!machine.path("portable").exists(), "nothing was begun");
    run(&format!("cat {vault} 2 3")).ends(0);

    // What can be searched is; what cannot is named, each time until it is read.
    for _ in 0..2 {
        let found = run(&format!("find {vault} 3")).ends(0);
        assert!(found.out.contains(" 3\n"), "{}", found.out);
        assert!(found.err.contains("DEEP_ARCHIVE, up to 48 hours") && found.err.contains("--rebuild"), "{}", found.err);
    }

    // A reader of the mount gets an error at once, which is no I/O error, and the mount says what it was.
    let at = machine.path("mnt");
    fs::create_dir_all(&at).unwrap();
    let line = format!("mount {vault} app {}", at.display());
    let mut command = machine.command(&line.split_whitespace().collect::<Vec<_>>());
    command.envs(environment(server));
    let mounted = Mounted::of(command, at.clone());
    let names = || fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path());
    let mut points: Vec<_> = names().filter(|path| !path.ends_with("latest")).collect();
    points.sort();
    let error = fs::read_dir(&points[0]).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NODATA.raw_os_error()), "{error}");
    assert_eq!(fs::read(points[1].join("3")).unwrap(), fs::read(machine.path("data/3")).unwrap());
    let (code, said) = mounted.end();
    assert_eq!(code, 0, "{said}");
    for word in [
        "1 recovery point cannot be read whole",
        "the class DEEP_ARCHIVE",
        "up to 2d to thaw",
        "lifeboat restore --point",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }

    // Thawed by hand, as the list says.
    let list = run(&format!("cat {vault} 1 3")).ends(5).err;
    let list = list.split_whitespace().find(|word| word.contains("to-thaw-")).unwrap().trim_end_matches(';').to_owned();
    let thaw = machine.path("thaw");
    script(&thaw, &server.thaw_script(&bucket));
    assert!(Command::new(&thaw).stdin(fs::File::open(list).unwrap()).status().unwrap().success());
    for line in ["cat VAULT 1 3", "diff VAULT 1 2 --stat", "export VAULT 1 -o OUT", "find VAULT 3 --rebuild"] {
        run(&line.replace("VAULT", &vault).replace("OUT", &machine.at("portable"))).ends(0);
    }
}

#[test]
fn a_restore_of_some_paths_thaws_what_they_need_and_nothing_else() {
    let (machine, server) = (Machine::new(), s3_servers::emulated());
    let bucket = server.bucket();
    let vault = format!("--vault s3://{bucket}/dr");
    let key = |name: &str| machine.line(&format!("key new -o {name}")).ends(0).out.trim().to_owned();
    let (owner, paper) = (key("owner.key"), key("paper.key"));
    let run = |line: &str| run(&machine, server, line);
    let made = run(&format!("--json vault init {vault} --host alpha --recipient {owner} --recipient {paper}"));
    let fingerprint = made.ends(0).json()["owner"].as_str().unwrap().to_owned();
    let write = |name: &str, seed: u64| {
        let text: String = noise(seed, 40_000).iter().map(|byte| format!("{byte:02x}")).collect();
        machine.write(&format!("data/{name}"), text);
    };
    // The second point's own pack has its names and `late`; `early` lies in the first one's.
    write("sub/early", 1);
    run(&format!("backup {vault} --as app {}", machine.at("data"))).ends(0);
    write("sub/late", 2);
    run(&format!("backup {vault} --as app {}", machine.at("data"))).ends(0);
    fs::rename(machine.path("data/sub"), machine.path("kept")).unwrap();
    write("other", 3);
    run(&format!("backup {vault} --as app {}", machine.at("data"))).ends(0);
    let storage: Arc<dyn Storage> = Arc::new(server.open(&format!("{bucket}/dr")));
    let key = Identity::load_all(&machine.path("work/owner.key")).unwrap().remove(0);
    later::put_away((&storage, 2), &key, &fingerprint, "DEEP_ARCHIVE", TWO_DAYS);

    let restore = |path: &str, to: &str| {
        let path = if path.is_empty() { String::new() } else { format!("--path {path}") };
        run(&format!("restore {vault} --key owner.key --point 2 {path} --to {}", machine.at(to)))
    };
    let script_at = machine.path("thaw");
    script(&script_at, &server.thaw_script(&bucket));
    // As the list says that the command names.
    let thaw_by_hand = |said: &str| {
        let list = said.split_whitespace().find(|word| word.contains("to-thaw-")).unwrap().trim_end_matches(';');
        assert_eq!(fs::read_to_string(list).unwrap().lines().count(), 1, "{said}");
        assert!(Command::new(&script_at).stdin(fs::File::open(list).unwrap()).status().unwrap().success());
    };
    let frozen = || {
        let packs = storage.list("pack/").unwrap();
        packs.iter().filter(|pack| storage.thaw_of(&pack.key).unwrap() != Thaw::Readable).count()
    };
    assert!(restore("", "all").ends(5).err.contains("needs 2 packs ("));

    // First its names.
    let held = restore("sub/late", "late").ends(5).err;
    assert!(held.contains("what is wanted of recovery point") && held.contains("needs 1 pack ("), "{held}");
    assert!(held.contains("before it is known what else it needs: that takes up to 2d"), "{held}");
    thaw_by_hand(&held);
    restore("sub/late", "late").ends(0);
    assert_eq!(fs::read(machine.path("late/sub/late")).unwrap(), fs::read(machine.path("kept/late")).unwrap());
    assert_eq!(frozen(), 1);

    // For what is not there nothing is thawed.
    let absent = restore("sub/nothing", "nothing").ends(2).err;
    assert!(absent.contains("sub/nothing") && absent.contains("is not in the recovery point"), "{absent}");

    let held = restore("sub/early", "early").ends(5).err;
    assert!(held.contains("needs 1 pack (") && held.contains("must be thawed before it can be restored"), "{held}");
    thaw_by_hand(&held);
    restore("sub/early", "early").ends(0);
    assert_eq!(fs::read(machine.path("early/sub/early")).unwrap(), fs::read(machine.path("kept/early")).unwrap());
    assert_eq!(frozen(), 0);
}

#[test]
fn a_failover_that_nothing_thaws_for_stops_with_what_to_run_and_goes_on_when_that_was_done() {
    let (server, directory) = (s3_servers::emulated(), tempfile::tempdir().unwrap());
    let bucket = server.bucket();
    let vault = format!("url = \"s3://{bucket}/dr\"\narchive = {{ class = \"DEEP_ARCHIVE\", thaw = \"48h\" }}");
    let mut world = World::new(&Options { vault, environment: environment(server), ..Options::default() });
    let between = archive_the_first(&world, server, &bucket).to_string();
    let key = world.path("owner.key");
    world.start_dns();
    let stopped = world.lifeboat(&["failover", "pages", "--at", &between, "--key", &key, "--yes"]);
    let said = format!("{}{}", text(&stopped.stdout), text(&stopped.stderr));
    let view = world.run();
    assert_eq!((stopped.status.code(), view.state), (Some(5), RunState::Held), "{said}");
    for word in ["1 pack (", "DEEP_ARCHIVE", "give `archive` of the vault a `command`", "aws s3api restore-object"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let again = format!("lifeboat run retry {} --step restore-docs", view.run);
    assert!(said.contains(&again) && said.contains("then `lifeboat run resume"), "{said}");
    assert!(!world.root.join("south/volumes/docs/page").exists());

    // By hand, as it says.
    let list = said.split([' ', '(', ')']).find(|word| word.contains("to-thaw-")).unwrap();
    let thaw = directory.path().join("thaw");
    script(&thaw, &server.thaw_script(&bucket));
    assert!(Command::new(&thaw).stdin(fs::File::open(list).unwrap()).status().unwrap().success());
    world.ok(&["run", "retry", &view.run, "--step", "restore-docs"]);
    let resumed = world.lifeboat(&["run", "resume", &view.run, "--key", &key]);
    assert_eq!(resumed.status.code(), Some(0), "{}{}", text(&resumed.stdout), text(&resumed.stderr));
    world.assert_recovered();
    assert!(fs::read_to_string(world.root.join("south/volumes/docs/canary")).unwrap() == CANARY);
}
