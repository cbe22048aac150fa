//! Damage, found a part at a time, healed by the host that still has the data and from a copy, as a person does it.

use std::fs;
use std::path::PathBuf;

use crate::machine::{Machine, assert_alike, files_below, noise, stopped_while_it_reads_its_key};

fn packs(machine: &Machine) -> Vec<PathBuf> {
    files_below(&machine.path("backup/pack"))
}

fn flip(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn badges(machine: &Machine) -> Vec<String> {
    let points = machine.line(&format!("--json points --vault {}", machine.at("backup"))).json();
    points.as_array().unwrap().iter().map(|point| point["badge"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_damaged_pack_is_found_marked_and_healed_by_the_host() {
    let machine = Machine::new();
    machine.make_vault();
    let (vault, data) = (machine.at("backup"), machine.at("data"));
    machine.write("data/photo", noise(1, 1_500_000));
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    flip(&packs(&machine)[0]);
    let check = format!("vault check --vault {vault} --key owner.key");
    // Two parts: one of them finds it, whichever is first.
    let parts: Vec<_> = (0..2).map(|_| machine.line(&format!("{check} --sample 50%"))).collect();
    let ran = parts.into_iter().find(|ran| ran.code == 3).unwrap();
    assert!(ran.out.contains("1 recovery point marked as corrupt"), "{}", ran.out);
    assert!(ran.out.contains("1 bad pack put on the heal list"), "{}", ran.out);
    assert_eq!(badges(&machine), ["corrupt"]);
    let healing = machine.line(&format!("vault heal --vault {vault} --key owner.key --yes")).ends(3);
    assert!(healing.err.contains("back up on those hosts"), "{}", healing.err);
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    let before = packs(&machine);
    let asked = machine.line(&format!("vault heal --vault {vault} --key owner.key")).ends(2);
    assert!(asked.err.contains("1 bad pack will be given up") && asked.err.contains("no terminal"), "{}", asked.err);
    assert_eq!(packs(&machine), before);
    let healed = machine.line(&format!("vault heal --vault {vault} --key owner.key --yes")).ends(0);
    assert!(healed.out.contains("given up  pack/") && healed.out.contains("sound again"), "{}", healed.out);
    machine.line(&format!("{check} --read-data")).ends(0);
    assert_eq!(badges(&machine), ["verified", "verified"]);
    machine.line(&format!("restore --vault {vault} --key owner.key --to {}", machine.at("out"))).ends(0);
    assert_alike(&machine.path("data"), &machine.path("out"));
    machine.line(&format!("vault check --vault {vault} --sample 5/4")).ends(2);
}

#[test]
fn a_vault_is_healed_from_a_copy() {
    let machine = Machine::new();
    machine.make_vault();
    let (vault, data, copy) = (machine.at("backup"), machine.at("data"), machine.at("copy"));
    machine.write("data/photo", noise(1, 1_500_000));
    machine.line(&format!("backup --vault {vault} {data}")).ends(0);
    machine.line(&format!("vault copy --from {vault} --to {copy}")).ends(0);
    machine.line(&format!("vault heal --vault {vault} --from {copy}")).ends(0);
    for kind in ["pack", "index", "refs", "snap", "keys/content", "keys/refs"] {
        for file in files_below(&machine.path(&format!("backup/{kind}"))) {
            flip(&file);
        }
    }
    let bad = machine.line(&format!("--json vault heal --vault {vault}")).ends(3).json();
    assert!(bad["bad"].as_array().unwrap().len() >= 5, "{bad}");
    let healed = machine.line(&format!("vault heal --vault {vault} --from {copy}")).ends(0);
    assert!(healed.out.contains("the vault is sound again"), "{}", healed.out);
    machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
    let wrong = machine.line(&format!("vault heal --vault {vault} --from {}", machine.at("work"))).ends(1);
    assert!(wrong.err.contains("there is no vault"), "{}", wrong.err);
}

#[test]
fn ctrl_c_ends_a_healing_and_a_check_with_130_and_the_next_one_does_it() {
    let machine = Machine::new();
    machine.make_vault();
    let (vault, copy) = (machine.at("backup"), machine.at("copy"));
    machine.write("data/photo", noise(1, 1_500_000));
    machine.line(&format!("backup --vault {vault} {}", machine.at("data"))).ends(0);
    machine.line(&format!("vault copy --from {vault} --to {copy}")).ends(0);
    flip(&packs(&machine)[0]);
    let check = format!("vault check --vault {vault} --read-data");
    stopped_while_it_reads_its_key(&machine, &check).ends(130);
    let heal = format!("vault heal --vault {vault} --from {copy}");
    let stopped = stopped_while_it_reads_its_key(&machine, &heal).ends(130);
    assert!(stopped.err.contains("run the same command again to go on"), "{}", stopped.err);
    machine.line(&format!("{heal} --key owner.key")).ends(0);
    machine.line(&format!("{check} --key owner.key")).ends(0);
}
