//! Who writes and who opens: another host joins, another machine restores, keys come and go.

use std::fs;

use crate::machine::{Machine, assert_alike, copy_tree, noise};

#[test]
fn a_second_host_asks_is_approved_and_writes() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    let vault = machine.at("backup");
    machine.write("data/file", noise(1, 100_000));
    let data = machine.at("data");
    let beta = |line: &str| machine.elsewhere("beta", line);

    let refused = beta(&format!("--json backup --vault {vault} --owner {owner} {data}")).ends(1);
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("is not on the roster"), "{}", refused.out);
    // The name of a host is fixed when its state is made.
    fs::remove_dir_all(machine.path("beta")).unwrap();
    let asked = beta(&format!("--json vault enroll --vault {vault} --owner {owner} --host beta")).ends(0).json();
    assert_eq!((&asked["host"], &asked["enrolled"]), (&"beta".into(), &false.into()));
    let fingerprint = asked["fingerprint"].as_str().unwrap();
    let listed = machine.line(&format!("--json vault enroll --vault {vault} --list")).ends(0).json();
    assert_eq!((&listed[0]["host"], &listed[0]["fingerprint"]), (&"beta".into(), &fingerprint.into()));

    let wrong = "0".repeat(32);
    let ran = machine.line(&format!("vault enroll --vault {vault} --key owner.key --approve {wrong}")).ends(2);
    assert!(ran.err.contains("no such request waits"), "{}", ran.err);
    machine.line(&format!("vault enroll --vault {vault} --key owner.key --approve {fingerprint}")).ends(0);
    assert!(
        machine
            .line(&format!("--json vault enroll --vault {vault} --list"))
            .ends(0)
            .json()
            .as_array()
            .unwrap()
            .is_empty()
    );

    beta(&format!("backup --vault {vault} {data}")).ends(0);
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    // Both have points of one data set: the restore does not guess.
    let restore = format!("restore --vault {vault} --key owner.key --to {}", machine.at("out"));
    let ran = machine.line(&restore).ends(2);
    assert!(ran.err.contains("say whose with --host: alpha, beta"), "{}", ran.err);
    assert!(ran.err.contains("freshness unproven"), "this machine sees beta's chain for the first time: {}", ran.err);
    machine.line(&format!("{restore} --host beta")).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
    // What is new about other data sets is said, and does not cast doubt on this one.
    machine.write("other/file", "other");
    beta(&format!("backup --vault {vault} {}", machine.at("other"))).ends(0);
    let ran = machine.line(&format!("points {data} --vault {vault}")).ends(0);
    assert!(ran.err.contains("freshness unproven") && ran.err.contains("other"), "{}", ran.err);
    beta(&format!("backup --vault {vault} --as third {}", machine.at("other"))).ends(0);
    machine.line(&format!("points --vault {vault}")).ends(3);
    machine.line(&format!("points --vault {vault}")).ends(0);
    let again = beta(&format!("--json vault enroll --vault {vault}")).ends(0).json();
    assert_eq!(again["enrolled"], true);
    machine.line(&format!("vault check --vault {vault} --key paper.key --read-data")).ends(0);
}

#[test]
fn another_machine_restores_with_the_key_file_and_the_vault_alone() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    machine.write("data/file", noise(1, 300_000));
    machine.write("data/sub/other", "text");
    machine.line(&format!("backup --vault {} {}", machine.at("backup"), machine.at("data"))).ends(0);
    // What is carried there: a copy of the vault, and one key.
    fs::create_dir(machine.path("there")).unwrap();
    copy_tree(&machine.path("backup"), &machine.path("there/vault"));
    fs::copy(machine.path("work/paper.key"), machine.path("there/paper.key")).unwrap();
    fs::rename(machine.path("backup"), machine.path("lost")).unwrap();
    let (vault, key) = (machine.at("there/vault"), machine.at("there/paper.key"));
    let restore = format!("restore --vault {vault} --key {key} --to");

    // Nothing there proves that the vault is the right one and fresh: restored, and said with exit 3.
    let ran = machine.elsewhere("there/home", &format!("{restore} {}", machine.at("there/out"))).ends(3);
    assert!(ran.err.contains(&owner) && ran.err.contains("freshness unproven"), "{}", ran.err);
    assert_alike(&machine.path("data"), &machine.path("there/out"));
    // With the fingerprint the owner is proven; the freshness still is not.
    let ran =
        machine.elsewhere("there/home2", &format!("{restore} {} --owner {owner}", machine.at("there/out2"))).ends(3);
    assert!(!ran.err.contains("nothing here proves that it is the right one"), "{}", ran.err);
    assert!(ran.err.contains("freshness unproven"), "{}", ran.err);
    // A vault of somebody else is refused by the fingerprint.
    let other = "f".repeat(32);
    let ran =
        machine.elsewhere("there/home3", &format!("{restore} {} --owner {other}", machine.at("there/out3"))).ends(4);
    assert!(ran.err.contains("belongs to owner"), "{}", ran.err);
    assert!(!machine.path("there/out3").exists());
}

#[test]
fn recipients_are_added_and_removed_without_touching_data() {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("data/file", noise(1, 100_000));
    let vault = machine.at("backup");
    machine.line(&format!("backup --vault {vault} {}", machine.at("data"))).ends(0);
    let third = machine.line("key new -o third.key").ends(0).out.trim().to_owned();
    let paper = machine.line("key inspect paper.key").ends(0).out.trim().to_owned();
    let restore =
        |key: &str, to: &str| machine.line(&format!("restore --vault {vault} --key {key} --to {}", machine.at(to)));
    assert!(restore("third.key", "no").ends(1).err.contains("none of the 1 given keys opens"));

    let added =
        machine.line(&format!("--json vault recipients add {third} --vault {vault} --key owner.key")).ends(0).json();
    assert_eq!(added["recipients"].as_array().unwrap().len(), 3);
    restore("third.key", "third").ends(0);
    assert_alike(&machine.path("data"), &machine.path("third"));

    let remove = format!("vault recipients remove {paper} --vault {vault} --key third.key");
    assert!(machine.line(&remove).ends(2).err.contains("--yes"), "nobody to ask");
    machine.line(&format!("{remove} --yes")).ends(0);
    assert!(restore("paper.key", "paper").ends(1).err.contains("none of the 1 given keys opens"));
    restore("owner.key", "owner").ends(0);
    let listed = machine.line(&format!("--json vault recipients list --vault {vault}")).ends(0).json();
    assert!(!listed["recipients"].to_string().contains(&paper), "{listed}");
    assert!(machine.line(&format!("{remove} --yes")).ends(2).err.contains("does not open this vault"));
    machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
    // The host goes on as before.
    machine.line(&format!("backup --vault {vault} {}", machine.at("data"))).ends(0);

    let owner = machine.line("key inspect owner.key").ends(0).out.trim().to_owned();
    machine.line(&format!("vault recipients remove {owner} --vault {vault} --key third.key --yes")).ends(0);
    assert!(machine.line(&format!("vault stat --vault {vault}")).ends(0).err.contains("one recipient only"));
    let last = format!("vault recipients remove {third} --vault {vault} --key third.key --yes");
    assert!(machine.line(&last).ends(4).err.contains("the last key cannot be removed"));
}

#[test]
fn a_machine_that_was_broken_into_is_revoked_gets_new_keys_and_comes_back() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    let vault = machine.at("backup");
    machine.write("data/file", noise(1, 100_000));
    let backup = format!("--json backup --vault {vault} {}", machine.at("data"));
    let first = machine.line(&backup).ends(0).json();
    let members = machine.line(&format!("vault members --vault {vault}")).ends(0).out;
    assert!(members.contains("alpha") && members.contains("host, controller"), "{members}");

    let revoke = format!("vault revoke alpha --vault {vault} --key owner.key");
    assert!(machine.line(&revoke).ends(2).err.contains("--yes"), "nobody to ask");
    assert!(machine.line(&format!("{revoke} --from noon --yes")).ends(2).err.contains("--from"));
    let said = machine.line(&format!("{revoke} --yes")).ends(0);
    assert!(said.err.contains("counts below number 2"), "{}", said.err);
    let members = machine.line(&format!("--json vault members --vault {vault}")).ends(0).json();
    assert_eq!((&members[0]["name"], &members[0]["revoked"]), (&"alpha".into(), &true.into()));
    assert!(machine.line(&format!("{revoke} --yes")).ends(2).err.contains("not on the roster, or revoked already"));
    assert!(machine.line(&backup).ends(1).json()["error"]["message"].as_str().unwrap().contains("was revoked"));
    assert!(machine.line(&format!("vault enroll --vault {vault}")).ends(1).err.contains("vault rotate"));

    assert!(machine.line("vault rotate").ends(2).err.contains("--yes"), "nobody to ask");
    assert!(machine.elsewhere("nobody", "vault rotate --yes").ends(2).err.contains("no keys of a host"));
    let made = machine.line("--json vault rotate --yes").ends(0).json();
    assert_eq!(made["host"], "alpha");
    machine.line(&format!("vault enroll --vault {vault}")).ends(0);
    let fingerprint = made["fingerprint"].as_str().unwrap();
    machine.line(&format!("vault enroll --vault {vault} --key owner.key --approve {fingerprint}")).ends(0);
    let second = machine.line(&backup).ends(0).json();
    assert_eq!(second["bytes_new"], first["bytes_new"], "everything is uploaded once");
    let restore = format!("restore --vault {vault} --owner {owner} --key paper.key");
    for (point, to) in [(1, "old"), (2, "new")] {
        machine.line(&format!("{restore} --point {point} --to {}", machine.at(to))).ends(0);
        assert_alike(&machine.path("data"), &machine.path(to));
    }
    machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
}
