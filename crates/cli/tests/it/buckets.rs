//! The binary with a vault in a bucket: the first minutes, the doctor, profiles, and no secret on any screen.

use std::process::Command;
use std::sync::Arc;

use lifeboat_vault::Identity;
use lifeboat_vault::storage::Storage;

use crate::later;
use crate::machine::{Machine, Ran, assert_alike, noise};
use crate::s3_servers::{self, Server, User};

fn run(machine: &Machine, server: &Server, line: &str) -> Ran {
    let (key, secret) = User::Owner.keys();
    with(
        machine,
        line,
        &[("AWS_ENDPOINT_URL", &server.endpoint()), ("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)],
    )
}

fn with(machine: &Machine, line: &str, environment: &[(&str, &str)]) -> Ran {
    let mut command: Command = machine.command(&line.split_whitespace().collect::<Vec<_>>());
    machine.ran({
        command.envs(environment.iter().copied());
        command
    })
}

fn keys(machine: &Machine) -> (String, String) {
    let key = |name: &str| machine.line(&format!("key new -o {name}")).ends(0).out.trim().to_owned();
    (key("owner.key"), key("paper.key"))
}

#[test]
fn the_first_minutes_go_in_a_bucket_as_in_a_directory() {
    let (machine, server) = (Machine::new(), s3_servers::radosgw());
    let vault = format!("s3://{}/dr", server.bucket());
    let (owner, paper) = keys(&machine);
    let run = |line: &str| run(&machine, server, line);
    run(&format!("vault init --vault {vault} --host alpha --recipient {owner} --recipient {paper}")).ends(0);
    run(&format!("vault init --vault {vault} --recipient {owner} --recipient {paper}")).ends(4);
    machine.write("home/documents/letter.txt", "dear reader\n");
    machine.write("home/documents/photo.raw", noise(1, 40 << 20));
    let documents = machine.at("home/documents");
    let taken = run(&format!("--json backup --vault {vault} {documents}")).ends(0).json();
    assert_eq!(taken["files"], 2);
    let again = run(&format!("--json backup --vault {vault} {documents}")).ends(0).json();
    assert_eq!(again["bytes_new"], 0, "{again}");
    assert_eq!(run(&format!("--json points --vault {vault}")).ends(0).json().as_array().unwrap().len(), 2);
    let out = machine.at("out");
    run(&format!("restore --vault {vault} --key owner.key --to {out}")).ends(0);
    assert_alike(&machine.path("home/documents"), &machine.path("out"));
    let checked = run(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
    assert!(checked.out.ends_with("nothing wrong found\n"), "{}", checked.out);
}

#[test]
fn the_doctor_ends_with_a_finding_where_a_host_could_destroy_and_prints_the_policy() {
    let (machine, server) = (Machine::new(), s3_servers::radosgw());
    let bucket = server.bucket();
    let line = format!("vault doctor --vault s3://{bucket}/dr");
    let told = run(&machine, server, &line).ends(3);
    for word in [
        "FINDING  replace",
        "FINDING  delete",
        "good     one-winner",
        "\"Sid\": \"NeverReplace\"",
        "FINDING  elsewhere",
        "3 findings",
    ] {
        assert!(told.out.contains(word), "{word}: {}", told.out);
    }
    run(&machine, server, &format!("{line} --role pruner")).ends(0);
    let document = run(&machine, server, &format!("--json {line}")).ends(3).json();
    assert_eq!((document["well"].as_bool(), document["role"].as_str()), (Some(false), Some("host")));
    let policy = run(&machine, server, &format!("{line} --role reader --policy")).ends(0).out;
    let policy: serde_json::Value = serde_json::from_str(&policy).unwrap();
    assert!(policy["Statement"].as_array().unwrap().iter().all(|one| one["Action"] != "s3:PutObject"), "{policy}");
    machine.line("vault doctor --vault /nowhere --policy").ends(2);
}

#[test]
fn a_profile_in_the_address_says_where_and_with_what_keys_and_no_secret_is_shown() {
    let (machine, server) = (Machine::new(), s3_servers::radosgw());
    let vault = format!("s3://far@{}", server.bucket());
    let (owner, paper) = keys(&machine);
    let (key, secret) = User::Owner.keys();
    machine
        .write("home/.aws/config", format!("[profile far]\nendpoint_url = {}\nregion = default\n", server.endpoint()));
    machine.write("home/.aws/credentials", format!("[far]\naws_access_key_id={key}\naws_secret_access_key={secret}\n"));
    machine.line(&format!("vault init --vault {vault} --recipient {owner} --recipient {paper}")).ends(0);
    machine.write("home/a", "a");
    machine.line(&format!("backup --vault {vault} {}", machine.at("home/a"))).ends(0);

    machine
        .write("home/.aws/credentials", format!("[far]\naws_access_key_id={key}\naws_secret_access_key=hush-hush\n"));
    let refused = machine.line(&format!("points --vault {vault}")).ends(1);
    assert!(
        refused.err.contains("does not accept this machine's credentials: 403 SignatureDoesNotMatch"),
        "{}",
        refused.err
    );
    let command = machine.command(&["points", "--vault", &vault]);
    let loud = machine.ran({
        let mut command = command;
        command.env("LIFEBOAT_LOG", "trace");
        command
    });
    for said in [&refused.err, &refused.out, &loud.err, &loud.out] {
        assert!(!said.contains("hush-hush") && !said.contains("Signature="), "{said}");
    }
    let nobody = machine.line("points --vault s3://near@bucket").ends(1);
    assert!(nobody.err.contains("no profile [near]"), "{}", nobody.err);
    let keyed = machine.line("points --vault s3://KEY:hush@bucket").ends(2);
    assert!(keyed.err.contains("no secret belongs into an address") && !keyed.err.contains("hush"), "{}", keyed.err);
}

/// *Emulated*: radosgw has no class that cannot be read at once.
#[test]
fn a_restore_of_an_archived_point_says_what_to_thaw_and_goes_on_when_that_is_done() {
    let (machine, server) = (Machine::new(), s3_servers::emulated());
    let bucket = server.bucket();
    let vault = format!("s3://{bucket}/dr");
    let (owner, paper) = keys(&machine);
    let run = |line: &str| run(&machine, server, line);
    let made = run(&format!("--json vault init --vault {vault} --host alpha --recipient {owner} --recipient {paper}"));
    let fingerprint = made.ends(0).json()["owner"].as_str().unwrap().to_owned();
    for seed in [0, 100] {
        for file in 0..20 {
            machine.write(&format!("data/{file}"), noise(seed + file, 30_000));
        }
        run(&format!("backup --vault {vault} --as app {}", machine.at("data"))).ends(0);
    }
    let storage: Arc<dyn Storage> = Arc::new(server.open(&format!("{bucket}/dr")));
    let key = Identity::load_all(&machine.path("work/owner.key")).unwrap().remove(0);
    later::put_away((&storage, 1), &key, &fingerprint, "DEEP_ARCHIVE", jiff::SignedDuration::from_secs(3600));
    let shown = run(&format!("points --vault {vault}")).ends(0);
    assert_eq!(shown.out.matches("archived, 1h to thaw").count(), 1, "{}", shown.out);
    let points = run(&format!("--json points --vault {vault}")).ends(0).json();
    assert_eq!(points[0]["archived"]["class"], "DEEP_ARCHIVE");
    assert!(points[1]["archived"].is_null(), "{points}");
    // The newest is there at once.
    run(&format!("restore --vault {vault} --key owner.key --to {}", machine.at("newest"))).ends(0);
    assert_alike(&machine.path("data"), &machine.path("newest"));
    let older = format!("restore --vault {vault} --key owner.key --point 1 --to {}", machine.at("older"));
    let held = run(&older).ends(5);
    for word in
        ["needs 1 pack (", "in the class DEEP_ARCHIVE", "takes up to 1h", "aws s3api restore-object", "to-thaw-"]
    {
        assert!(held.err.contains(word), "{word}: {}", held.err);
    }
    let list = held.err.split_whitespace().find(|word| word.contains("to-thaw-")).unwrap().trim_end_matches(';');
    let names = std::fs::read_to_string(list).unwrap();
    assert!(names.starts_with("dr/pack/") && names.lines().count() == 1, "{names}");
    let checked = run(&format!("vault check --vault {vault} --key owner.key --read-data"));
    assert!(checked.err.contains("1 pack lies in a class of storage that must be thawed"), "{}", checked.err);
    let points = run(&format!("--json points --vault {vault}")).ends(0).json();
    assert_eq!((points[0]["badge"].as_str(), points[1]["badge"].as_str()), (Some("unverified"), Some("verified")));
    let thaw = "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Days>7</Days></RestoreRequest>";
    server.ask(User::Owner, "POST", &format!("{bucket}/{}?restore=", names.trim()), Some(thaw));
    run(&older).ends(0);
    assert_eq!(std::fs::read_dir(machine.path("older")).unwrap().count(), 20);
}

/// *Emulated*: radosgw's versions do not go with a vault.
#[test]
fn what_points_need_is_locked_by_the_verb_and_by_every_prune_where_the_plan_says_so() {
    let (machine, server) = (Machine::new(), s3_servers::emulated());
    let bucket = server.locked_bucket();
    let vault = format!("s3://{bucket}/dr");
    let (owner, paper) = keys(&machine);
    let run = |line: &str| run(&machine, server, line);
    let made = run(&format!("--json vault init --vault {vault} --host alpha --recipient {owner} --recipient {paper}"));
    let fingerprint = made.ends(0).json()["owner"].as_str().unwrap().to_owned();
    machine.write("home/letter.txt", "dear reader\n");
    run(&format!("backup --vault {vault} {}", machine.at("home"))).ends(0);
    let lock = format!("vault lock --vault {vault} --key owner.key");
    let unsaid = run(&lock).ends(2);
    assert!(unsaid.err.contains("nothing says how long"), "{}", unsaid.err);
    run(&format!("{lock} --for 1h")).ends(2);
    let locked = run(&format!("{lock} --for 30d")).ends(0);
    assert!(
        locked.out.starts_with("all that points need (") && locked.out.contains(" made longer\n"),
        "{}",
        locked.out
    );
    let looked = run(&format!("--json {lock} --for 30d --dry-run")).ends(0).json();
    assert_eq!((looked["extended"].as_u64(), looked["asked"].as_u64()), (Some(0), Some(0)), "{looked}");
    run(&format!("backup --vault {vault} {}", machine.at("home"))).ends(0);
    // As a plan of which only the vault matters here.
    let plan = include_str!("../../../core/tests/plans/wrong/P0324-short-lock.toml")
        .replace("lock = \"1h\"", "lock = \"30d\"")
        .replace("s3://backups/dr", &vault)
        .replace("d75a980182b10ab7", &fingerprint)
        .replace("/srv/arbiter", &machine.at("arbiter"));
    std::fs::create_dir(machine.path("arbiter")).unwrap();
    machine.write("work/plan.toml", plan);
    let pruned = run("--json --plan plan.toml vault prune --vault main --key owner.key --yes").ends(0).json();
    let (objects, extended) = (&pruned["locks"]["objects"], pruned["locks"]["extended"].as_u64().unwrap());
    assert!(extended > 0 && extended < objects.as_u64().unwrap(), "what came since: {pruned}");
    // How long they last stands in the status, by what was seen here, without asking about any.
    let status = run("--json --plan plan.toml status").out;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let stands = &status["services"][0]["datasets"][0]["vaults"][0]["locks"];
    assert_eq!(
        (stands["standing"].as_str(), stands["objects_unlocked"].as_u64()),
        (Some("in-time"), Some(0)),
        "{status}"
    );
    assert_eq!(stands["until"], pruned["locks"]["until"]);
    let said = run("--plan plan.toml status").out;
    let line = said.lines().find(|line| line.trim_start().starts_with("locks")).unwrap();
    assert!(line.contains("orders in main: what points needed at 20") && line.contains("is locked until 20"), "{line}");
    let said = run("--plan plan.toml points --vault main").err;
    assert!(said.contains("locks: what points needed at 20") && said.contains("is locked until 20"), "{said}");
    let elsewhere = machine.at("elsewhere");
    let unknown = run(&format!("--state {elsewhere} --plan plan.toml status")).out;
    assert!(unknown.contains("orders in main: unknown: neither"), "{unknown}");
    let policy = run("--plan plan.toml vault doctor --vault main --role pruner --policy").ends(0).out;
    assert!(policy.contains("s3:PutObjectRetention") && policy.contains("\"31\""), "{policy}");
    let doctor = run("--plan plan.toml vault doctor --vault main --role pruner").ends(3);
    assert!(doctor.out.contains("good     lock") && doctor.out.contains("FINDING  bypass"), "{}", doctor.out);
    let nowhere = run(&format!("vault doctor --vault s3://{} --role pruner --lock 30d", server.bucket())).ends(3);
    assert!(nowhere.out.contains("FINDING  lock-wanted"), "{}", nowhere.out);
}
