//! Every verb of a vault's life with the vault in a bucket, on both servers: looked into, held, frozen, copied both ways, damaged, healed, mounted.

use std::fs;

use lifeboat_vault::storage::Storage;

use crate::look::mount::Mounted;
use crate::machine::{Machine, Ran, assert_alike, noise};
use crate::s3_servers::{self, Server, User};

fn run(machine: &Machine, server: &Server, line: &str) -> Ran {
    machine.ran(command(machine, server, line))
}

fn command(machine: &Machine, server: &Server, line: &str) -> std::process::Command {
    let (key, secret) = User::Owner.keys();
    let mut command = machine.command(&line.split_whitespace().collect::<Vec<_>>());
    command.envs([
        ("AWS_ENDPOINT_URL", server.endpoint().as_str()),
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
    ]);
    command
}

fn every_verb(server: &Server) {
    let machine = Machine::new();
    let place = format!("{}/dr", server.bucket());
    let (vault, data) = (format!("s3://{place}"), machine.at("data"));
    let run = |line: &str| run(&machine, server, line);
    let key = |name: &str| machine.line(&format!("key new -o {name}")).ends(0).out.trim().to_owned();
    let (owner, paper) = (key("owner.key"), key("paper.key"));
    let made = run(&format!("--json vault init --vault {vault} --host alpha --recipient {owner} --recipient {paper}"));
    let fingerprint = made.ends(0).json()["owner"].as_str().unwrap().to_owned();
    machine.write("data/deep/letter.txt", "dear reader\n");
    machine.write("data/photo.raw", noise(3, 2_000_000));
    run(&format!("backup --vault {vault} --as app {data}")).ends(0);
    machine.write("data/deep/letter.txt", "dear reader, once more\n");
    run(&format!("backup --vault {vault} --as app {data}")).ends(0);
    let open = format!("--vault {vault} --key owner.key");

    // Looked into.
    let found = run(&format!("--json find {open} *.txt")).ends(0).json();
    assert_eq!(found["found"][0]["versions"].as_array().unwrap().len(), 2, "{found}");
    let differs = run(&format!("diff {open} 1 2")).ends(0).out;
    assert!(differs.contains("deep/letter.txt") && !differs.contains("photo.raw"), "{differs}");
    assert_eq!(run(&format!("cat {open} 1 deep/letter.txt")).ends(0).out, "dear reader\n");
    let at = machine.path("mnt");
    fs::create_dir_all(&at).unwrap();
    let mounted = Mounted::of(command(&machine, server, &format!("mount {open} {}", at.display())), at.clone());
    let shown = crate::machine::files_below(&at);
    let photo = shown.iter().find(|path| path.ends_with("photo.raw")).unwrap();
    assert!(fs::read(photo).unwrap() == noise(3, 2_000_000));
    assert_eq!(mounted.end().0, 0);

    // Held and frozen.
    run(&format!("vault hold add --vault {vault} --point alpha/app/0000000001 --why case_17")).ends(0);
    let prune = format!("--json vault prune {open} --keep-last 1 --min-age 0s --yes");
    let kept = run(&prune).json();
    assert!(kept["proposed"]["points"][0]["pruned"].is_null(), "{kept}");
    run(&format!("vault hold release 1 --vault {vault} --why closed")).ends(0);
    run(&format!("vault freeze --vault {vault} --why incident")).ends(0);
    let frozen = run(&prune);
    assert!(frozen.code == 4 && frozen.out.contains("frozen"), "{}", frozen.out);
    run(&format!("vault freeze --release --why nothing {open}")).ends(0);

    // Copied to a directory and to another bucket, and back from each.
    let (medium, other) = (machine.at("medium"), format!("s3://{}/copy", server.bucket()));
    let back = format!("s3://{}/back", server.bucket());
    for (from, to) in [(&vault, &medium), (&vault, &other), (&medium, &back)] {
        let copied = run(&format!("--json vault copy --from {from} --to {to} --owner {fingerprint}")).ends(0).json();
        assert_eq!(
            (&copied["points_copied"], &copied["complete"]),
            (&2.into(), &true.into()),
            "{from} to {to}: {copied}"
        );
    }
    run(&format!("restore --vault {back} --owner {fingerprint} --key paper.key --to {}", machine.at("out"))).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
    // A machine that knows nothing asks the copy how far the vault had come.
    let asked = command(
        &machine,
        server,
        &format!("--state {} vault check --vault {vault} --against {other}", machine.at("fresh")),
    );
    let asked = machine.ran(asked);
    assert!(asked.out.contains("freshness: proven by"), "{} {}", asked.out, asked.err);

    // Damaged, found, healed.
    let storage = server.open(&place);
    let pack = storage.list("pack/").unwrap().into_iter().max_by_key(|pack| pack.size).unwrap();
    let mut bytes = storage.get(&pack.key).unwrap();
    bytes[1000] ^= 1;
    storage.put(&pack.key, &bytes).unwrap();
    let check = format!("vault check {open} --read-data");
    assert!(run(&check).ends(3).err.contains(&pack.key));
    run(&format!("vault heal {open} --from {other} --yes")).ends(0);
    run(&check).ends(0);
}

#[test]
fn every_verb_goes_in_a_bucket_of_radosgw() {
    every_verb(s3_servers::radosgw());
}

/// *Emulated*.
#[test]
fn every_verb_goes_in_an_emulated_bucket() {
    every_verb(s3_servers::emulated());
}
