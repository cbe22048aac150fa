//! Copies as a person makes them: to another directory, over ssh's like, on a medium that runs full, killed and gone on with.

use std::fs;
use std::process::Stdio;

use crate::machine::{Machine, Mount, assert_alike, await_that, files_below, noise};

#[test]
fn a_copy_on_a_medium_restores_without_the_vault() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    let (vault, medium, data) = (machine.at("backup"), machine.at("medium/vault"), machine.at("data"));
    machine.write("data/photo", noise(1, 2_000_000));
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    // Another machine copies: it has no key, and nothing of the host's.
    let copy = |from: &str, to: &str| {
        machine.elsewhere("copier", &format!("--json vault copy --from {from} --to {to} --owner {owner}"))
    };
    assert_eq!(copy(&vault, &medium).ends(0).json()["points_copied"], 1);
    machine.write("data/letter", "dear reader");
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    let second = copy(&vault, &medium).ends(0).json();
    assert_eq!((&second["points_copied"], &second["complete"]), (&1.into(), &true.into()));
    assert!(second["objects_copied"].as_u64().unwrap() < 8, "{second}");
    fs::rename(machine.path("backup"), machine.path("lost")).unwrap();
    let restore = format!("restore --vault {medium} --owner {owner} --key paper.key --to {}", machine.at("out"));
    machine.line(&restore).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
    machine.line(&format!("vault check --vault {medium} --owner {owner} --key owner.key --read-data")).ends(0);
    // Back home, into an empty place.
    copy(&medium, &vault).ends(0);
    machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
    // Who copied before sees that the source was rolled back, whatever the target is.
    let newest = files_below(&machine.path("backup/snap")).pop().unwrap();
    fs::rename(&newest, machine.path("newest")).unwrap();
    let rolled_back = copy(&vault, &machine.at("third")).ends(3);
    assert!(rolled_back.err.contains("the vault was rolled back"), "{}", rolled_back.err);
    fs::rename(machine.path("newest"), &newest).unwrap();
    // Another vault's place is refused.
    let other = machine.elsewhere(
        "other",
        &format!("vault init --vault {} --host x --recipient {}", machine.at("foreign"), recipient(&machine)),
    );
    assert!(matches!(other.code, 0 | 3), "{}", other.err);
    let refused = copy(&vault, &machine.at("foreign")).ends(4);
    assert!(refused.out.contains("belongs to owner"), "{}", refused.out);
    copy(&vault, &vault).ends(2);
}

fn recipient(machine: &Machine) -> String {
    machine.line("key inspect paper.key").out.split_whitespace().find(|w| w.starts_with("age1")).unwrap().to_owned()
}

#[test]
fn killed_stopped_and_run_full_a_copy_goes_on() {
    let machine = Machine::new();
    machine.make_vault();
    let vault = machine.at("backup");
    machine.write("data/large", noise(2, 60 << 20));
    machine.line(&format!("backup --vault {vault} {}", machine.at("data"))).ends(0);
    let to = machine.path("copy");
    let line = format!("vault copy --from {vault} --to {} --parallel 1", to.display());
    let words: Vec<&str> = line.split_whitespace().collect();
    let slowly = [words.as_slice(), &["--rate", "20MB"]].concat();
    let packs = |count: usize| files_below(&to.join("pack")).len() >= count;

    let mut killed = machine.spawn(&slowly);
    await_that("the first pack", || packs(1));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let half = machine.line(&format!("vault check --vault {}", to.display()));
    assert!(half.err.contains("this is a half copy"), "{}", half.err);
    let mut command = machine.command(&slowly);
    let stopped = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    await_that("the second pack", || packs(2));
    let asked = std::process::Command::new("kill").args(["-INT", &stopped.id().to_string()]).status().unwrap();
    assert!(asked.success());
    let stopped = machine.finish(stopped).ends(130);
    assert!(stopped.err.contains("run the same command to go on"), "{}", stopped.err);
    machine.run(&words).ends(0);
    let whole = machine.line(&format!("vault check --vault {} --key owner.key --read-data", to.display())).ends(0);
    assert!(!whole.err.contains("half copy"), "{}", whole.err);

    let medium = Mount::tmpfs(&machine.path("medium"), 24);
    let onto = format!("vault copy --from {vault} --to {}", machine.at("medium"));
    let full = machine.line(&onto).ends(1);
    assert!(full.err.contains("is full") && full.err.contains("run the same command"), "{}", full.err);
    medium.resize(120);
    machine.line(&onto).ends(0);
    machine.line(&format!("vault check --vault {} --key owner.key --read-data", machine.at("medium"))).ends(0);
}

#[test]
fn a_copy_since_a_day_says_what_it_lacks_and_is_no_loss() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    let (vault, copy, data) = (machine.at("backup"), machine.at("copy"), machine.at("data"));
    for day in 0..3 {
        machine.write("data/photo", noise(day, 200_000));
        machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    }
    let points = machine.line(&format!("--json points --vault {vault}")).ends(0).json();
    let last = points[2]["taken_at"].as_str().unwrap().to_owned();
    // `--vault` is what every other verb calls it.
    let line = format!("vault copy --vault {vault} --to {copy} --since {last}");
    let refused = machine.elsewhere("copier", &format!("{line} --owner {owner}")).ends(4);
    assert!(refused.err.contains("give the owner's key"), "{}", refused.err);
    machine.line(&format!("{line} --key paper.key --since yesterday")).ends(2);
    let made = machine.line(&format!("{line} --key owner.key")).ends(0);
    assert!(made.out.contains("2 older recovery points and 2 packs stay behind"), "{}", made.out);
    let check = format!("vault check --vault {copy} --owner {owner} --key owner.key --read-data");
    let checked = machine.line(&check).ends(0);
    assert!(checked.err.contains("left out by intent, and are no loss"), "{}", checked.err);
    let listed = machine.line(&format!("--json points --vault {copy}")).ends(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    machine.line(&format!("restore --vault {copy} --key paper.key --to {}", machine.at("out"))).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
}

#[test]
fn yesterdays_state_shown_as_todays_is_named_by_who_asks_a_copy() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    let (vault, copy, data) = (machine.at("backup"), machine.at("copy"), machine.at("data"));
    machine.write("data/photo", noise(1, 100_000));
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    let yesterday = machine.at("yesterday");
    let cp = std::process::Command::new("cp").args(["-a", &vault, &yesterday]).status().unwrap();
    assert!(cp.success());
    machine.write("data/photo", noise(2, 100_000));
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    machine.line(&format!("vault copy --from {vault} --to {copy}")).ends(0);
    let ask = |name: &str, line: &str| machine.elsewhere(name, &format!("{line} --owner {owner}"));

    let alone = ask("first", &format!("vault check --vault {yesterday}")).ends(3);
    assert!(alone.out.contains("freshness: unproven"), "{}", alone.out);
    let asked = ask("second", &format!("vault check --vault {yesterday} --against {copy}")).ends(3);
    assert!(asked.out.contains("freshness: disproven, the vault was rolled back"), "{}", asked.out);
    assert!(asked.err.contains("was rolled back; bring it back from a copy"), "{}", asked.err);
    let right = ask("third", &format!("vault check --vault {vault} --against {copy}")).ends(0);
    assert!(right.out.contains(&format!("freshness: proven by {copy} at ")), "{}", right.out);
    let key = machine.at("work/owner.key");
    let restore =
        |from: &str, to: &str| format!("restore --vault {from} --against {copy} --key {key} --to {}", machine.at(to));
    let old = ask("fourth", &restore(&yesterday, "old")).ends(3);
    assert!(old.err.contains("was rolled back"), "{}", old.err);
    let new = ask("fifth", &restore(&vault, "new")).ends(0);
    assert!(new.err.contains("freshness: proven by"), "{}", new.err);
    assert_alike(&machine.path("data"), &machine.path("new"));
    // What knows nothing of it is no proof; what is not there is an error.
    let other = ask("other", &format!("vault check --vault {vault} --against {}", machine.at("nowhere"))).ends(1);
    assert!(other.err.contains("nowhere"), "{}", other.err);
}
