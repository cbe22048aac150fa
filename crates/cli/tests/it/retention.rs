//! What goes and what stays, as its operators see it: prunes in two steps, holds, the freeze, a suspect point that is accepted.

use std::fs;

use crate::machine::{Machine, files_below, noise, stopped_while_it_reads_its_key};

/// A vault with three points of `app`, none of which shares anything with another, and one of another data set.
fn kept_machine() -> Machine {
    let machine = Machine::new();
    machine.make_vault();
    for seed in 1..=3 {
        machine.write("data/file", noise(seed, 60_000));
        machine.line(&format!("backup --vault {} --as app {}", machine.at("backup"), machine.at("data"))).ends(0);
    }
    machine.write("other/file", "settings");
    machine.line(&format!("backup --vault {} --as other {}", machine.at("backup"), machine.at("other"))).ends(0);
    machine
}

/// What the storage says came in three days ago: prunes spare what is younger, for a backup may be about to need it.
fn age(machine: &Machine, what: &str) {
    let below = machine.at(&format!("backup/{what}"));
    machine.shell(&format!("find {below} -type f -exec touch -d '73 hours ago' {{}} +")).ends(0);
}

fn age_contents(machine: &Machine) {
    for what in ["pack", "index", "refs"] {
        age(machine, what);
    }
}

/// A command and its screen, without what differs from run to run.
fn told(machine: &Machine, line: &str) -> String {
    let ran = machine.line(&line.replace("VAULT", &machine.at("backup")));
    format!("$ lifeboat {line}\n{}\n", unmeasured(&ran.screen()))
}

/// Sealing adds a few bytes more or less.
fn unmeasured(screen: &str) -> String {
    let mut lines = Vec::new();
    for line in screen.lines() {
        let mut words: Vec<&str> = line.split(' ').collect();
        for place in 1..words.len() {
            let is_unit = matches!(words[place].trim_end_matches([',', ')', ';']), "B" | "kB" | "MB");
            if let Ok(size) = words[place - 1].trim_start_matches('(').parse::<f64>()
                && is_unit
            {
                // The last bytes before the next unit.
                if size >= 900.0 && words[place] == "B" {
                    words[place] = "kB";
                }
                words[place - 1] = if words[place - 1].starts_with('(') { "(…" } else { "…" };
            }
        }
        lines.push(words.join(" "));
    }
    lines.join("\n")
}

fn files(machine: &Machine, below: &str) -> Vec<std::path::PathBuf> {
    files_below(&machine.path(&format!("backup/{below}")))
}

const PRUNE: &str = "vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s";

#[test]
fn a_prune_is_shown_done_in_two_steps_and_taken_back() {
    let machine = kept_machine();
    let before = files(&machine, "");
    let screens = [
        told(&machine, &format!("{PRUNE} --dry-run")),
        told(&machine, PRUNE),
        told(&machine, "vault prune --vault VAULT --keep-last 1"),
        told(&machine, "vault prune --vault VAULT --key owner.key --keep-last 1 --yes"),
    ];
    insta::assert_snapshot!(screens.concat(), @r#"
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --dry-run
    POINT                   TAKEN AT              CAME IN               BECOMES  WHY
    alpha/app/0000000001    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000002    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000003    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    alpha/other/0000000001  2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    2 of 4 recovery points to be pruned; … kB freed in 0 packs once swept
      … kB is not needed either, and spared for now: a backup that is at work may be about to need it
      … kB lies beside what is needed, in packs that stay
    exit 0
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s
    POINT                   TAKEN AT              CAME IN               BECOMES  WHY
    alpha/app/0000000001    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000002    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000003    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    alpha/other/0000000001  2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    2 of 4 recovery points to be pruned; … kB freed in 0 packs once swept
      … kB is not needed either, and spared for now: a backup that is at work may be about to need it
      … kB lies beside what is needed, in packs that stay
    error: Prune 2 recovery points? There is no terminal to ask on.
    help: add --yes if this is what you want
    exit 2
    $ lifeboat vault prune --vault VAULT --keep-last 1
    error: pruning is refused: alpha (0123456789abcdef0123456789abcdef) is no pruner on the roster; enrol it as one, or give the owner's key
    exit 4
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --yes
    0 of 4 recovery points to be pruned; … B freed in 0 packs once swept
      --dry-run shows why each point stays
      … kB lies beside what is needed, in packs that stay
    exit 0
    "#);
    assert_eq!(files(&machine, ""), before, "nothing of this changed anything");

    age_contents(&machine);
    let screens = [
        told(&machine, &format!("{PRUNE} --yes")),
        told(&machine, "points --vault VAULT"),
        told(&machine, &format!("{PRUNE} --yes")),
        told(&machine, &format!("{PRUNE} --dry-run")),
        told(&machine, &format!("{PRUNE} --yes --grace 0s")),
        told(&machine, "vault prune --vault VAULT --key owner.key --abandon"),
        told(&machine, "vault prune --vault VAULT --key owner.key --abandon --yes"),
        told(&machine, "points --vault VAULT app"),
        told(&machine, "vault prune --vault VAULT --key owner.key --abandon --yes"),
    ];
    insta::assert_snapshot!(screens.concat(), @r#"
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --yes
    POINT                   TAKEN AT              CAME IN               BECOMES  WHY
    alpha/app/0000000001    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000002    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000003    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    alpha/other/0000000001  2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    2 of 4 recovery points to be pruned; … kB freed in 2 packs once swept
      … kB lies beside what is needed, in packs that stay
    pruned; what they held is deleted by a run after 2026-11-21T14:00:00Z. Until then `vault prune --abandon` takes it back
    exit 0
    $ lifeboat points --vault VAULT
    TAKEN AT              DATA SET  HOST   FILES     SIZE  BADGE       POINT
    2026-11-21T14:00:00Z  app       alpha      1  … kB  unverified      3
    2026-11-21T14:00:00Z  other     alpha      1      … B  unverified      1
    exit 0
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --yes
    prune 1 waits: 2 points pruned on 2026-11-21T14:00:00Z, what they held (… kB) is deleted by a run after 2026-11-21T14:00:00Z
    exit 0
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --dry-run
    prune 1 waits: 2 points pruned on 2026-11-21T14:00:00Z, what they held (… kB) is deleted by a run after 2026-11-21T14:00:00Z
    exit 0
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --yes --grace 0s
    error: the time that what is condemned waits is not valid: a backup at work may need what is condemned for 48 hours; it cannot be less
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --abandon
    error: The points that the last prune took are to be there again? There is no terminal to ask on.
    help: add --yes if this is what you want
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --abandon --yes
    prune 1 is given up; its points are there again
    exit 0
    $ lifeboat points --vault VAULT app
    TAKEN AT              DATA SET  HOST   FILES     SIZE  BADGE       POINT
    2026-11-21T14:00:00Z  app       alpha      1  … kB  unverified      1
    2026-11-21T14:00:00Z  app       alpha      1  … kB  unverified      2
    2026-11-21T14:00:00Z  app       alpha      1  … kB  unverified      3
    exit 0
    $ lifeboat vault prune --vault VAULT --key owner.key --abandon --yes
    error: the prune to be abandoned is not valid: there is none whose deletions have not begun
    help: `lifeboat vault prune --dry-run` shows how far it is
    exit 4
    "#);
    assert_eq!((files(&machine, "pack").len(), files(&machine, "snap").len()), (4, 4));

    machine.line(&format!("{PRUNE} --yes").replace("VAULT", &machine.at("backup"))).ends(0);
    age(&machine, "prune");
    let screens = [
        told(&machine, &format!("{PRUNE} --yes")),
        told(&machine, &format!("{PRUNE} --yes")),
        told(&machine, "points --vault VAULT app"),
        told(&machine, "vault check --vault VAULT --key paper.key --read-data"),
    ];
    insta::assert_snapshot!(screens.concat(), @r#"
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --yes
    prune 2: 8 objects deleted, … kB freed
    0 of 2 recovery points to be pruned; … B freed in 0 packs once swept
      --dry-run shows why each point stays
      … kB lies beside what is needed, in packs that stay
    exit 0
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --yes
    0 of 2 recovery points to be pruned; … B freed in 0 packs once swept
      --dry-run shows why each point stays
      … kB lies beside what is needed, in packs that stay
    exit 0
    $ lifeboat points --vault VAULT app
    TAKEN AT              DATA SET  HOST   FILES     SIZE  BADGE       POINT
    2026-11-21T14:00:00Z  app       alpha      1  … kB  unverified      3
    exit 0
    $ lifeboat vault check --vault VAULT --key paper.key --read-data
    2 recovery points, 2 packs, 0 log objects
    … kB and 4 chunks read and verified
    2 recovery points marked as verified
    freshness: not older than what this machine saw last
    nothing wrong found
    exit 0
    "#);
    assert_eq!((files(&machine, "pack").len(), files(&machine, "snap").len()), (2, 2));
    let vault = machine.at("backup");
    machine.line(&format!("restore app --vault {vault} --key owner.key --to {}", machine.at("out"))).ends(0);
    assert_eq!(fs::read(machine.path("out/file")).unwrap(), noise(3, 60_000));
    machine.line(&format!("restore app --vault {vault} --key owner.key --point 1 --to {}", machine.at("no"))).ends(2);
}

#[test]
fn wrong_rules_and_wrong_points_are_refused_before_anything_is_looked_at() {
    let machine = kept_machine();
    let before = files(&machine, "");
    let screens = [
        "vault prune --vault VAULT --key owner.key",
        "vault prune --vault VAULT --key owner.key --keep-daily many",
        "vault prune --vault VAULT --key owner.key --keep-last 0",
        "vault prune --vault VAULT --key owner.key --keep-last 1 --min-age soon",
        "vault prune --vault VAULT --key owner.key --keep-last 1 --grace 1h --yes",
        "vault prune --vault VAULT --key owner.key --point alpha/app/0000000099",
        "vault prune --vault VAULT --key owner.key --abandon --dry-run",
        "vault prune --vault VAULT --key nobody.key --keep-last 1",
        "vault prune --vault /nowhere --key owner.key --keep-last 1",
    ]
    .map(|line| told(&machine, line));
    insta::assert_snapshot!(screens.concat(), @r#"
    $ lifeboat vault prune --vault VAULT --key owner.key
    error: nothing says what is to be kept: there is no plan, and no --keep-… was given
    help: for example --keep-daily 7 --keep-weekly 4 --keep-monthly 12; see docs/retention.md
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-daily many
    error: invalid value 'many' for '--keep-daily <N>': invalid digit found in string

    For more information, try '--help'.
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 0
    error: nothing says what is to be kept: there is no plan, and no --keep-… was given
    help: for example --keep-daily 7 --keep-weekly 4 --keep-monthly 12; see docs/retention.md
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age soon
    error: --min-age soon: this is not a length of time
    help: for example 12h, 3d or 2w
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --grace 1h --yes
    error: the time that what is condemned waits is not valid: a backup at work may need what is condemned for 48 hours; it cannot be less
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --point alpha/app/0000000099
    error: point alpha/app/0000000099 is not valid: there is no such point; `lifeboat points --json` lists their ids
    exit 2
    $ lifeboat vault prune --vault VAULT --key owner.key --abandon --dry-run
    error: the argument '--abandon' cannot be used with '--dry-run'

    Usage: lifeboat vault prune --vault <URL> --key <FILE> --abandon

    For more information, try '--help'.
    exit 2
    $ lifeboat vault prune --vault VAULT --key nobody.key --keep-last 1
    error: there is no key file nobody.key
    help: --key wants the file that `lifeboat key new -o FILE` (or age-keygen) wrote
    exit 2
    $ lifeboat vault prune --vault /nowhere --key owner.key --keep-last 1
    error: /nowhere is gone or not a directory; mount it, or correct the address
    exit 1
    "#);
    assert_eq!(files(&machine, ""), before);
}

#[test]
fn a_machine_that_prunes_needs_no_owners_key() {
    let machine = kept_machine();
    age_contents(&machine);
    let vault = machine.at("backup");
    let sweeper = |line: &str| machine.elsewhere("sweeper", &line.replace("VAULT", &vault));
    let asked = sweeper("--json vault enroll --vault VAULT --role pruner --host sweeper").json();
    let fingerprint = asked["fingerprint"].as_str().unwrap();
    let refused = sweeper("vault prune --vault VAULT --keep-last 1 --min-age 0s --yes").ends(4);
    assert!(refused.err.contains("is no pruner on the roster; enrol it as one"), "{}", refused.err);
    machine
        .line(&format!("vault enroll --vault {vault} --key owner.key --approve {fingerprint} --role pruner"))
        .ends(0);
    let pruned = sweeper("--json vault prune --vault VAULT --keep-last 1 --min-age 0s --yes").ends(3).json();
    assert_eq!(pruned["performed"]["points"], 2, "{pruned}");
    // What this machine sees for the first time it cannot prove to be fresh: it says so, and does its work.
    age(&machine, "prune");
    let swept = sweeper("--json vault prune --vault VAULT --keep-last 1 --min-age 0s --yes").ends(0).json();
    assert_eq!(swept["begun_before"]["done"]["kept"].as_array().unwrap().len(), 0, "{swept}");
    assert!(swept["begun_before"]["done"]["bytes"].as_u64().unwrap() > 100_000, "{swept}");
    assert_eq!(files(&machine, "pack").len(), 2);
    machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).ends(0);
}

#[test]
fn what_is_held_or_frozen_stays_and_only_who_may_lets_go() {
    let machine = kept_machine();
    age_contents(&machine);
    let screens = [
        "vault hold list --vault VAULT",
        "vault hold add --vault VAULT --point alpha/app/0000000001 --why case_17 --until 2099-12-31",
        "vault hold add --vault VAULT --dataset other --why audit --key owner.key",
        "vault hold add --vault VAULT --point alpha/app/0000000077 --why x",
        "vault hold add --vault VAULT --dataset nothing --why x",
        "vault hold add --vault VAULT --dataset app --why x --until whenever",
        "vault hold release 2 --vault VAULT --why not_mine",
        "vault hold release 9 --vault VAULT --why x",
    ]
    .map(|line| told(&machine, line));
    insta::assert_snapshot!(screens.concat(), @r#"
    $ lifeboat vault hold list --vault VAULT
    nothing is held
    exit 0
    $ lifeboat vault hold add --vault VAULT --point alpha/app/0000000001 --why case_17 --until 2099-12-31
    HOLD  WHAT                  UNTIL                 WHO    WHY
       1  alpha/app/0000000001  2026-11-21T14:00:00Z  alpha  case_17
    exit 0
    $ lifeboat vault hold add --vault VAULT --dataset other --why audit --key owner.key
    HOLD  WHAT                  UNTIL                 WHO        WHY
       1  alpha/app/0000000001  2026-11-21T14:00:00Z  alpha      case_17
       2  all of other          released              the owner  audit
    exit 0
    $ lifeboat vault hold add --vault VAULT --point alpha/app/0000000077 --why x
    error: the vault has no recovery point alpha/app/0000000077
    help: `lifeboat points` lists what there is
    exit 2
    $ lifeboat vault hold add --vault VAULT --dataset nothing --why x
    error: the vault has no recovery point of `nothing`
    help: it has some of: app, other
    exit 2
    $ lifeboat vault hold add --vault VAULT --dataset app --why x --until whenever
    error: --until whenever: this is neither a day nor a moment
    help: for example 2027-12-31, or 2026-11-21T14:00:00Z
    exit 2
    $ lifeboat vault hold release 2 --vault VAULT --why not_mine
    error: releasing hold 2 is refused: the owner put it there: only they, or the owner's key (--key), release it
    exit 4
    $ lifeboat vault hold release 9 --vault VAULT --why x
    error: hold 9 is not valid: there is no such hold; `lifeboat vault hold list` shows those that stand
    exit 2
    "#);
    let screens = [
        told(&machine, &format!("{PRUNE} --dry-run")),
        told(&machine, "vault freeze --vault VAULT --why incident"),
        told(&machine, &format!("{PRUNE} --yes")),
        told(&machine, "vault freeze --vault VAULT --show"),
        told(&machine, "vault freeze --vault VAULT --release --why over"),
        told(&machine, "vault freeze --vault VAULT --release --why over --key nobody.key"),
        told(&machine, "vault freeze --vault VAULT --release --why over --key paper.key"),
    ];
    insta::assert_snapshot!(screens.concat(), @r#"
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --dry-run
    POINT                   TAKEN AT              CAME IN               BECOMES  WHY
    alpha/app/0000000001    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     held: case_17 (alpha)
    alpha/app/0000000002    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000003    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    alpha/other/0000000001  2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     held: audit (the owner), newest, newest sound, last
    1 of 4 recovery points to be pruned; … kB freed in 1 pack once swept
      … kB lies beside what is needed, in packs that stay
    exit 0
    $ lifeboat vault freeze --vault VAULT --why incident
    frozen since 2026-11-21T14:00:00Z by alpha: incident
    exit 0
    $ lifeboat vault prune --vault VAULT --key owner.key --keep-last 1 --min-age 0s --yes
    POINT                   TAKEN AT              CAME IN               BECOMES  WHY
    alpha/app/0000000001    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     held: case_17 (alpha)
    alpha/app/0000000002    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  pruned   no rule wants it (keep last 1)
    alpha/app/0000000003    2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     newest, newest sound, last
    alpha/other/0000000001  2026-11-21T14:00:00Z  2026-11-21T14:00:00Z  kept     held: audit (the owner), newest, newest sound, last
    1 of 4 recovery points to be pruned; … kB freed in 1 pack once swept
      … kB lies beside what is needed, in packs that stay
    error: pruning is refused: the vault was frozen by alpha (incident); the owner lets it go on with `lifeboat vault freeze --release`
    exit 4
    $ lifeboat vault freeze --vault VAULT --show
    frozen since 2026-11-21T14:00:00Z by alpha: incident
    exit 0
    $ lifeboat vault freeze --vault VAULT --release --why over
    error: the following required arguments were not provided:
      --key <FILE>

    Usage: lifeboat vault freeze --key <FILE> --vault <URL> --release --why <TEXT>

    For more information, try '--help'.
    exit 2
    $ lifeboat vault freeze --vault VAULT --release --why over --key nobody.key
    error: there is no key file nobody.key
    help: --key wants the file that `lifeboat key new -o FILE` (or age-keygen) wrote
    exit 2
    $ lifeboat vault freeze --vault VAULT --release --why over --key paper.key
    not frozen: what is to be pruned is pruned
    exit 0
    "#);
    assert!(files(&machine, "tombstone").is_empty() && files(&machine, "prune").is_empty());
    // Who is on no roster neither holds nor freezes.
    let vault = machine.at("backup");
    for line in ["vault freeze --why x", "vault hold add --dataset app --why x"] {
        let refused = machine.elsewhere("stranger", &format!("{line} --vault {vault}")).ends(1);
        assert!(refused.err.contains("is not on the roster"), "{}", refused.err);
    }
    // Pruned, and frozen and held before it is deleted: nothing goes, and then all but what is held.
    machine.line(&format!("{PRUNE} --yes").replace("VAULT", &vault)).ends(0);
    age(&machine, "prune");
    machine.line(&format!("vault freeze --vault {vault} --why again")).ends(0);
    machine.line(&format!("vault hold add --vault {vault} --dataset app --why all_of_it")).ends(0);
    let frozen = machine.line(&format!("{PRUNE} --yes").replace("VAULT", &vault)).ends(4);
    assert!(frozen.err.contains("was frozen by alpha (again)"), "{}", frozen.err);
    assert_eq!(files(&machine, "pack").len(), 4);
    machine.line(&format!("vault freeze --vault {vault} --release --why over --key owner.key")).ends(0);
    machine.line(&format!("{PRUNE} --yes").replace("VAULT", &vault)).ends(0);
    let points = machine.line(&format!("--json points app --vault {vault}")).ends(0).json();
    assert_eq!(points.as_array().unwrap().len(), 3, "{points}");
    let to = machine.at("out");
    machine.line(&format!("restore app --vault {vault} --key owner.key --point 2 --to {to}")).ends(0);
    assert_eq!(fs::read(machine.path("out/file")).unwrap(), noise(2, 60_000));
    let screens = [
        "vault hold release 1 --vault VAULT --why closed",
        "vault hold release 2 --vault VAULT --why closed --key paper.key",
    ]
    .map(|line| told(&machine, line));
    insta::assert_snapshot!(screens.concat(), @r#"
    $ lifeboat vault hold release 1 --vault VAULT --why closed
    HOLD  WHAT          UNTIL     WHO        WHY
       2  all of other  released  the owner  audit
       3  all of app    released  alpha      all_of_it
    exit 0
    $ lifeboat vault hold release 2 --vault VAULT --why closed --key paper.key
    HOLD  WHAT        UNTIL     WHO    WHY
       3  all of app  released  alpha  all_of_it
    exit 0
    "#);
}

#[test]
fn a_time_that_is_not_believed_stands_as_a_finding_and_counts_for_no_rule() {
    let machine = kept_machine();
    age_contents(&machine);
    // As after a copy without receipts: everything came in at another time than its host says.
    age(&machine, "snap");
    let vault = machine.at("backup");
    let shown = machine.line(&format!("{PRUNE} --dry-run").replace("VAULT", &vault)).ends(3);
    assert!(shown.out.contains("0 of 4 recovery points to be pruned"), "{}", shown.out);
    assert_eq!(shown.err.matches("its host's clock was wrong or forged, or the vault was copied").count(), 4);
    let believed = format!("{PRUNE} --dry-run --by-claimed-time").replace("VAULT", &vault);
    assert!(machine.line(&believed).ends(0).out.contains("2 of 4 recovery points to be pruned"));
    let named = format!("{PRUNE} --dry-run --point alpha/app/0000000001").replace("VAULT", &vault);
    let named = machine.line(&named).ends(3);
    assert!(named.out.contains("1 of 4 recovery points to be pruned"), "{}", named.out);
    assert!(named.out.contains("named on the command line"), "{}", named.out);
}

#[test]
fn a_suspect_point_is_named_and_accepted_by_who_may_and_not_by_its_own_host() {
    let machine = Machine::new();
    machine.make_vault();
    let vault = machine.at("backup");
    let backup = format!("backup --vault {vault} --as app {}", machine.at("data"));
    let text: String = (0..60_000).map(|n| format!("line {n} of a plain text\n")).collect();
    machine.write("data/text", &text);
    machine.line(&backup).ends(0);
    machine.write("data/text", noise(7, text.len()));
    let taken = machine.line(&backup).ends(3);
    assert!(taken.err.contains("may have been encrypted"), "{}", taken.err);
    let id = "alpha/app/0000000002";
    let shown = machine.line(&format!("--json points --vault {vault}")).ends(3).json();
    assert_eq!((&shown[1]["id"], &shown[1]["badge"]), (&id.into(), &"suspect".into()), "{shown}");
    // This machine is a controller, too: what it says of what it took itself counts for nothing all the same.
    let accept = format!("vault accept {id} --vault {vault} --why we_did_it");
    let refused = machine.line(&accept).ends(4);
    assert!(refused.err.contains("a host's own word is not enough"), "{}", refused.err);
    let stranger = machine.elsewhere("stranger", &accept).ends(1);
    assert!(stranger.err.contains("is not on the roster"), "{}", stranger.err);
    machine.line(&format!("vault accept alpha/app/0000000009 --vault {vault} --why x --key owner.key")).ends(2);
    assert_eq!(machine.line(&format!("--json points --vault {vault}")).ends(3).json()[1]["badge"], "suspect");
    // No rule leaves it alone; once it is accepted it is a point like any other.
    let keep = format!("vault prune --vault {vault} --key owner.key --keep-last 1 --min-age 0s --dry-run");
    let shown = machine.line(&keep).ends(3);
    assert!(shown.out.contains("newest sound") && shown.out.contains("0 of 2 recovery points"), "{}", shown.out);
    insta::assert_snapshot!(told(&machine, &format!("vault accept {id} --vault VAULT --why we_did_it --key owner.key")), @r#"
    $ lifeboat vault accept alpha/app/0000000002 --vault VAULT --why we_did_it --key owner.key
    alpha/app/0000000002 is no longer suspect
    exit 0
    "#);
    assert_eq!(machine.line(&format!("--json points --vault {vault}")).ends(0).json()[1]["badge"], "unverified");
    assert!(machine.line(&keep).ends(0).out.contains("1 of 2 recovery points to be pruned"));
}

#[test]
fn ctrl_c_ends_a_prune_with_130_and_the_next_one_does_it() {
    let machine = kept_machine();
    let before = files(&machine, "");
    let line = format!("vault prune --vault {} --keep-last 1 --min-age 0s --yes", machine.at("backup"));
    let stopped = stopped_while_it_reads_its_key(&machine, &line).ends(130);
    assert!(stopped.err.contains("stopped; run the same command again to go on"), "{}", stopped.err);
    assert_eq!(files(&machine, ""), before);
    machine.line(&format!("{line} --key owner.key")).ends(0);
    assert_eq!(files(&machine, "tombstone").len(), 2);
}
