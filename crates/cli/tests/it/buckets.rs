//! The binary with a vault in a bucket: the first minutes, the doctor, profiles, and no secret on any screen.

use std::process::Command;

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
    for word in
        ["FINDING  replace", "FINDING  delete", "good     one-winner", "\"Sid\": \"NeverReplace\"", "2 findings"]
    {
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
