//! What the ordinary screens look like, and that progress comes and goes.

use std::fs;

use crate::machine::{Machine, noise};
use crate::with_plan::planned;

#[test]
fn the_ordinary_screens() {
    let machine = Machine::new();
    let (owner, paper) = (machine.line("key new -o owner.key"), machine.line("key new -o paper.key"));
    insta::assert_snapshot!(owner.screen(), @r#"
    age1…
    exit 0
    "#);
    let (vault, recipients) =
        (machine.at("backup"), format!("--recipient {} --recipient {}", owner.out.trim(), paper.out.trim()));
    insta::assert_snapshot!(machine.line(&format!("vault init --vault {vault} --host alpha {recipients}")).screen(), @r#"
    vault 0123456789abcdef0123456789abcdef made at /backup
    owner 0123456789abcdef0123456789abcdef
    host alpha may write to it; any one of 2 keys can open it
    keep the owner's fingerprint with your keys: given with --owner it proves, on any
    machine, that a vault is this one
    exit 0
    "#);
    machine.write("documents/letter", "dear reader");
    machine.write("documents/photo", noise(1, 1_230_000));
    let backup = format!("backup --vault {vault} --as documents {}", machine.at("documents"));
    insta::assert_snapshot!(untimed(&machine.line(&backup).screen()), @r#"
    documents: recovery point 1
      2 files, 1.23 MB; 1.23 MB new, stored as 1.23 MB, in 0.0 s
    exit 0
    "#);
    machine.write("documents/letter", "dear readers");
    machine.line(&backup).ends(0);
    machine.write("db/app", noise(2, 40));
    machine.line(&format!("backup --vault {vault} --as settings {}", machine.at("db"))).ends(0);
    insta::assert_snapshot!(machine.line(&format!("points --vault {vault}")).screen(), @r#"
    TAKEN AT              DATA SET   HOST   FILES     SIZE  BADGE       POINT
    2026-11-21T14:00:00Z  documents  alpha      2  1.23 MB  unverified      1
    2026-11-21T14:00:00Z  documents  alpha      2  1.23 MB  unverified      2
    2026-11-21T14:00:00Z  settings   alpha      1     40 B  unverified      1
    exit 0
    "#);
    insta::assert_snapshot!(machine.line(&format!("points --vault {vault} settings")).screen(), @r#"
    TAKEN AT              DATA SET  HOST   FILES  SIZE  BADGE       POINT
    2026-11-21T14:00:00Z  settings  alpha      1  40 B  unverified      1
    exit 0
    "#);
    let to = machine.at("out");
    insta::assert_snapshot!(
        untimed(&machine.line(&format!("restore documents --vault {vault} --key owner.key --to {to}")).screen()), @r#"
    documents as of 2026-11-21T14:00:00Z, restored to /out
      2 files, 1.23 MB, verified, in 0.0 s (recovery point 2)
    exit 0
    "#);
    insta::assert_snapshot!(machine.line(&format!("vault check --vault {vault}")).screen(), @r#"
    3 recovery points, 3 packs, 0 log objects
    structure checked; contents not read (--read-data), nothing opened (--key FILE)
    freshness: not older than what this machine saw last
    nothing wrong found
    exit 0
    "#);
    insta::assert_snapshot!(
        uncounted(&machine.line(&format!("vault check --vault {vault} --key owner.key --read-data")).screen()), @r#"
    3 recovery points, 3 packs, 0 log objects
    1.23 MB and … chunks read and verified
    3 recovery points marked as verified
    freshness: not older than what this machine saw last
    nothing wrong found
    exit 0
    "#);
    insta::assert_snapshot!(machine.line(&format!("points settings --vault {vault}")).screen(), @r#"
    TAKEN AT              DATA SET  HOST   FILES  SIZE  BADGE     POINT
    2026-11-21T14:00:00Z  settings  alpha      1  40 B  verified      1
    exit 0
    "#);
    insta::assert_snapshot!(machine.line(&format!("vault recipients list --vault {vault}")).screen(), @r#"
    age1…
    age1…
    exit 0
    "#);
    insta::assert_snapshot!(machine.line(&format!("vault enroll --vault {vault}")).screen(), @r#"
    host alpha may write already; its fingerprint is 0123456789abcdef0123456789abcdef
    exit 0
    "#);
    insta::assert_snapshot!(
        machine.elsewhere("beta", &format!("vault enroll --vault {vault} --host beta")).screen(), @r#"
    host beta asks to write; its fingerprint is 0123456789abcdef0123456789abcdef
    the owner approves with: lifeboat vault enroll --vault /backup --key FILE --approve 0123456789abcdef0123456789abcdef
    warning: the vault's owner is 0123456789abcdef0123456789abcdef; nothing here proves that it is the right one: compare it, and pass it on
    exit 3
    "#);
    insta::assert_snapshot!(machine.line(&format!("vault enroll --vault {vault} --list")).screen(), @r#"
    HOST  ASKS TO BE  FINGERPRINT
    beta  host        0123456789abcdef0123456789abcdef
    exit 0
    "#);
    insta::assert_snapshot!(machine.line("key inspect owner.key").screen(), @r#"
    age1…
    exit 0
    "#);
}

#[test]
fn the_screens_with_a_plan() {
    let machine = planned();
    insta::assert_snapshot!(unstored(&untimed(&machine.line("backup").screen())), @r#"
    documents: recovery point 1
      2 files, 200 kB; 200 kB new, stored as …, in 0.0 s
    database: recovery point 1
      1 file, 8.19 kB; 8.30 kB new, stored as …, in 0.0 s
    exit 0
    "#);
    insta::assert_snapshot!(machine.line("points").screen(), @r#"
    TAKEN AT              DATA SET   HOST   FILES     SIZE  BADGE       POINT
    2026-11-21T14:00:00Z  documents  alpha      2   200 kB  unverified      1
    2026-11-21T14:00:00Z  database   alpha      1  8.19 kB  unverified      1
    exit 0
    "#);
    let ran = machine.line(&format!("restore database --key owner.key --to {}", machine.at("out")));
    insta::assert_snapshot!(untimed(&ran.screen()), @r#"
    database as of 2026-11-21T14:00:00Z, restored to /out/notes.db
      1 file, 8.19 kB, verified, in 0.0 s (recovery point 1)
    exit 0
    "#);
}

/// How long something took differs.
fn untimed(screen: &str) -> String {
    let mut text = String::new();
    let mut rest = screen;
    while let Some((before, after)) = rest.split_once("in ") {
        text.push_str(before);
        text.push_str("in ");
        let number = after.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(0);
        rest = match after.get(number..) {
            Some(unit) if number > 0 && unit.starts_with(" s") => {
                text.push_str("0.0");
                unit
            }
            _ => after,
        };
    }
    text + rest
}

/// Where data is cut differs with the data set's secret.
fn uncounted(screen: &str) -> String {
    let (before, after) = screen.split_once(" chunks read").unwrap();
    format!("{}… chunks read{after}", before.trim_end_matches(|c: char| c.is_ascii_digit()))
}

/// What sealing adds differs by a few bytes.
fn unstored(screen: &str) -> String {
    let Some((before, after)) = screen.split_once("stored as ") else { return screen.to_owned() };
    let (_, after) = after.split_once(',').unwrap();
    format!("{before}stored as …,{}", unstored(after))
}

#[test]
fn every_line_fits_a_terminal() {
    let machine = planned();
    machine.line("backup").ends(0);
    let (vault, to) = (machine.at("backup"), machine.at("out"));
    for line in [
        "points".to_owned(),
        "vault stat".to_owned(),
        "vault check --key owner.key --read-data".to_owned(),
        format!("restore database --vault {vault} --key owner.key --to {to}"),
    ] {
        let ran = machine.line(&line).ends(0);
        for line in ran.out.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

#[test]
fn progress_is_shown_on_a_terminal_and_cleared() {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("data/large", noise(1, 80 << 20));
    let (vault, data, to) = (machine.at("backup"), machine.at("data"), machine.at("out"));
    let on_a_terminal = |line: &str| {
        let ran = machine.shell(&format!(
            "export TERM=xterm-256color; script --quiet --return --command 'stty cols 80; {line}' /dev/null"
        ));
        ran.ends(0).out
    };
    for (line, title) in [
        (format!("lifeboat backup --vault {vault} {data}"), "backing up"),
        (format!("lifeboat restore --vault {vault} --key owner.key --to {to}"), "restoring"),
    ] {
        let screen = on_a_terminal(&line);
        let last = screen.rfind(title).unwrap_or_else(|| panic!("{title}: {screen:?}"));
        let after = &screen[last..];
        assert!(after.contains("\u{1b}[2K") || after.contains("\u{1b}[0J"), "it is not cleared: {after:?}");
        assert!(after.contains("in "), "the result follows: {after:?}");
    }
    // Elsewhere: no control characters, and JSON stays alone on stdout.
    let ran = machine.line(&format!("--json backup --vault {vault} {data}")).ends(0);
    assert!(!ran.err.contains('\u{1b}') && ran.events().len() == 1, "{ran:?}");
    assert_eq!(machine.line(&format!("--quiet vault check --vault {vault}")).ends(0).err, "");
}

#[test]
fn what_is_asked_on_a_terminal_is_done_after_a_yes_and_nothing_else() {
    let machine = Machine::new();
    machine.make_vault();
    let keys = || fs::read_to_string(machine.path("home/.local/state/lifeboat/host.key")).unwrap();
    let before = keys();
    let answered = |answer: &str| {
        let line = format!("printf '{answer}' | script --quiet --return --command 'lifeboat vault rotate' /dev/null");
        machine.shell(&line)
    };
    for answer in ["\\n", "n\\n", "no\\n", "yesterday\\n", "not yes\\n", ""] {
        let ran = answered(answer).ends(4);
        assert!(ran.out.contains("[y/N]") && ran.out.contains("not confirmed; nothing was done"), "{answer}: {ran:?}");
        assert_eq!(keys(), before, "{answer}");
    }
    answered(" YES \\n").ends(0);
    let rotated = keys();
    assert_ne!(rotated, before);
    answered("y\\n").ends(0);
    assert_ne!(keys(), rotated);
}
