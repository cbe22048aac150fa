//! Wrong input: each error names the thing and the next step, and ends with its exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::machine::Machine;
use crate::with_plan::planned;

fn a_vault_with_a_point() -> Machine {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("data/file", "content");
    machine.line(&format!("backup --vault {} {}", machine.at("backup"), machine.at("data"))).ends(0);
    machine
}

#[test]
fn where_there_is_no_vault() {
    let machine = Machine::new();
    machine.line("key new -o owner.key").ends(0);
    let nowhere = machine.at("nowhere");
    insta::assert_snapshot!(machine.line(&format!("points --vault {nowhere}")).screen(), @r#"
    error: /nowhere is gone or not a directory; mount it, or correct the address
    exit 1
    "#);
    fs::create_dir(&nowhere).unwrap();
    insta::assert_snapshot!(machine.line(&format!("points --vault {nowhere}")).screen(), @r#"
    error: there is no vault at /nowhere: run `lifeboat vault init` there, or correct the address
    exit 1
    "#);
    insta::assert_snapshot!(machine.line(&format!("backup --vault {nowhere} /etc/hostname")).screen(), @r#"
    error: there is no vault at /nowhere: run `lifeboat vault init` there, or correct the address
    exit 1
    "#);
    insta::assert_snapshot!(
        machine.line(&format!("restore --vault {nowhere} --key owner.key --to out")).screen(), @r#"
    error: there is no vault at /nowhere: run `lifeboat vault init` there, or correct the address
    exit 1
    "#);
    insta::assert_snapshot!(machine.line("points --vault ftp://bucket/x").screen(), @r#"
    error: storage of the kind "ftp" is not in this version; use a directory (file:///path or a bare path), az://…, gs://…, s3://…, ssh://…, unix://…
    exit 2
    "#);
    insta::assert_snapshot!(machine.line("points").screen(), @r#"
    error: there is no vault: neither --vault nor a plan was given
    help: say which with --vault URL, for example --vault /backup
    exit 2
    "#);
    insta::assert_snapshot!(machine.line(&format!("vault init --vault {nowhere}")).screen(), @r#"
    error: a vault needs recipients: keys that open it
    help: `lifeboat key new -o FILE` makes a key and prints its recipient; give two or more with --recipient
    exit 2
    "#);
    insta::assert_snapshot!(machine.line(&format!("vault init --vault {nowhere} --recipient age1x")).screen(), @r#"
    error: recipient "age1x" is not valid: invalid Bech32 encoding
    help: `lifeboat key inspect FILE` shows a key's recipient
    exit 2
    "#);
    assert!(fs::read_dir(&nowhere).unwrap().next().is_none(), "nothing was made there");
}

#[test]
fn a_vault_is_made_once_and_a_key_is_never_overwritten() {
    let machine = a_vault_with_a_point();
    let recipient = machine.line("key inspect owner.key").ends(0).out;
    let again = format!("vault init --vault {} --recipient {recipient}", machine.at("backup"));
    insta::assert_snapshot!(machine.line(&again).screen(), @r#"
    error: there is a vault at /backup already (owner 0123456789abcdef0123456789abcdef): use it, or choose an empty place
    exit 4
    "#);
    let before = fs::read(machine.path("work/owner.key")).unwrap();
    insta::assert_snapshot!(machine.line("key new -o owner.key").screen(), @r#"
    error: owner.key exists, and a key is never overwritten
    help: name another file; without its key a vault cannot be opened
    exit 4
    "#);
    assert_eq!(fs::read(machine.path("work/owner.key")).unwrap(), before);
    let secret = String::from_utf8(before).unwrap().lines().last().unwrap().to_owned();
    let ran = machine.line(&format!("vault init --vault {} --recipient {secret}", machine.at("other")));
    assert!(!ran.err.contains(&secret), "a secret is not said again: {}", ran.err);
    insta::assert_snapshot!(ran.screen(), @r#"
    error: a secret key was given where its recipient (age1…) belongs
    help: it may stand in your shell's history now: make another key; `lifeboat key inspect FILE` shows a recipient
    exit 2
    "#);
}

#[test]
fn keys_that_are_wrong_missing_or_none() {
    let machine = a_vault_with_a_point();
    machine.line("key new -o stranger.key").ends(0);
    machine.write("work/text", "hello\n");
    let restore = |more: &str| {
        let ran = machine.line(&format!("restore --vault {} --to out {more}", machine.at("backup")));
        assert!(!machine.path("work/out").exists());
        ran.screen()
    };
    insta::assert_snapshot!(restore("--key stranger.key"), @r#"
    error: none of the 1 given keys opens the owner's key: give the key of one of its recipients (age1…, age1…)
    exit 1
    "#);
    insta::assert_snapshot!(restore("--key missing.key"), @r#"
    error: there is no key file missing.key
    help: --key wants the file that `lifeboat key new -o FILE` (or age-keygen) wrote
    exit 2
    "#);
    insta::assert_snapshot!(restore("--key text"), @r#"
    error: text is not valid: it is not an age identity file (AGE-SECRET-KEY-1…)
    help: --key wants the file that `lifeboat key new -o FILE` (or age-keygen) wrote
    exit 2
    "#);
    insta::assert_snapshot!(restore(""), @r#"
    error: this needs a key that opens the vault
    help: give it with --key FILE: one of those that `vault init` was given as --recipient
    exit 2
    "#);
    fs::set_permissions(machine.path("work/owner.key"), fs::Permissions::from_mode(0o644)).unwrap();
    insta::assert_snapshot!(machine.line("key inspect owner.key").screen(), @r#"
    age1…
    warning: others on this machine can read owner.key (mode 644): chmod 600 owner.key
    exit 3
    "#);
}

#[test]
fn data_sets_points_and_times_that_are_not_there() {
    let machine = a_vault_with_a_point();
    let restore = |more: &str| {
        let ran = machine.line(&format!("restore --vault {} --key owner.key --to out {more}", machine.at("backup")));
        assert!(!machine.path("work/out").exists());
        ran.screen()
    };
    insta::assert_snapshot!(restore("letters"), @r#"
    error: the vault has no recovery point of `letters`
    help: it has some of: /data
    help: for one path of a data set: --path letters
    exit 2
    "#);
    insta::assert_snapshot!(restore("--point 7"), @r#"
    error: there is no recovery point `7`
    help: `lifeboat points` lists what there is
    exit 2
    "#);
    insta::assert_snapshot!(restore("--point 1 --at 2026-11-21T14:00:00Z"), @r#"
    error: the argument '--point <ID>' cannot be used with '--at <TIME>'

    Usage: lifeboat restore --to <DIR> --vault <URL> --key <FILE> --point <ID> [DATASET|SERVICE]

    For more information, try '--help'.
    exit 2
    "#);
    insta::assert_snapshot!(restore("--at yesterday"), @r#"
    error: `yesterday` is not a moment
      because: failed to parse four digit integer as year: invalid digit, expected 0-9 but got y
    help: write it in full, with its zone: 2026-11-21T14:00:00Z or 2026-11-21T15:00:00+01:00
    exit 2
    "#);
    insta::assert_snapshot!(restore("--at 2001-01-01T00:00:00Z"), @r#"
    error: no recovery point of `/data` is as old as 2026-11-21T14:00:00Z
    help: the oldest is of 2026-11-21T14:00:00Z
    exit 1
    "#);
    insta::assert_snapshot!(restore("--path sub/missing"), @r#"
    error: "sub/missing" is not in the recovery point; paths count from what was backed up
    exit 2
    "#);
    insta::assert_snapshot!(restore("--host beta"), @r#"
    error: the vault holds no recovery point of `/data` taken by host `beta`
    help: `lifeboat points` lists what there is
    exit 1
    "#);
    insta::assert_snapshot!(machine.line(&format!("points letters --vault {}", machine.at("backup"))).screen(), @r#"
    error: the vault has no recovery point of `letters`
    help: it has some of: /data
    exit 2
    "#);
}

#[test]
fn what_cannot_be_backed_up() {
    let machine = a_vault_with_a_point();
    let backup = |more: &str| machine.line(&format!("backup --vault {} {more}", machine.at("backup"))).screen();
    insta::assert_snapshot!(backup(&machine.at("missing")), @r#"
    error: /missing cannot be backed up
      because: No such file or directory (os error 2)
    help: check that it exists and may be read
    exit 2
    "#);
    insta::assert_snapshot!(backup(""), @r#"
    error: there is nothing to back up
    help: name one or more paths, or a server with --dump
    exit 2
    "#);
    insta::assert_snapshot!(backup(&format!("--exclude [ {}", machine.at("data"))), @r#"
    error: the exclude pattern "[" is not a valid glob; correct it, or put \ before characters meant literally
      because: error parsing glob '**/[': unclosed character class; missing ']'
    exit 2
    "#);
}

#[test]
fn a_vault_within_what_goes_into_it_and_a_vault_among_other_things() {
    let machine = Machine::new();
    machine.make_vault();
    machine.write("letter", "dear reader");
    let vault = machine.at("backup");
    let all = machine.root().display().to_string();
    insta::assert_snapshot!(machine.line(&format!("backup --vault {vault} {all}")).screen(), @r#"
    error: the vault /backup lies within , which is to go into it
    help: leave it out (--exclude '/backup', or `exclude` in the plan), or put it elsewhere
    exit 4
    "#);
    insta::assert_snapshot!(machine.line(&format!("backup --vault {vault} {vault}")).screen(), @r#"
    error: the vault /backup lies within /backup, which is to go into it
    help: name something else to back up
    exit 4
    "#);
    let leaving_out = format!("--json backup --vault {vault} --exclude /backup --exclude /bin --exclude /home {all}");
    let point = machine.line(&leaving_out).ends(0).json();
    assert_eq!(point["files"], 3, "the letter and two keys");
    let recipient = machine.line("key inspect owner.key").out;
    insta::assert_snapshot!(machine.line(&format!("vault init --vault {} --recipient {recipient}", machine.at("work"))).screen(), @r#"
    error: /work is not empty: it has `owner.key`
    help: a vault wants a place of its own: name a new directory, or another prefix in the bucket
    exit 4
    "#);
    assert!(!machine.path("work/keys").exists());
}

#[test]
fn what_a_user_may_not_read_is_said_and_ends_with_3() {
    let machine = Machine::unprivileged();
    machine.write("data/open", "open");
    machine.write("data/closed/inner", "closed");
    std::os::unix::fs::chown(machine.path("data/closed"), Some(0), Some(0)).unwrap();
    fs::set_permissions(machine.path("data/closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(machine.path("backup")).unwrap();
    std::os::unix::fs::chown(machine.path("backup"), Some(65534), Some(65534)).unwrap();
    machine.make_vault();
    let ran =
        machine.line(&format!("backup --vault {} {} --as data", machine.at("backup"), machine.at("data"))).ends(3);
    assert!(ran.err.contains(&format!("not in it: {} ", machine.at("data/closed"))), "{}", ran.err);
    // The directory itself, when it is all that was asked for, is no backup at all.
    let ran = machine.line(&format!("backup --vault {} {}", machine.at("backup"), machine.at("data/closed")));
    assert!(ran.code == 1 || ran.code == 2, "{ran:?}");
    assert!(ran.err.contains(&machine.at("data/closed")) && ran.err.contains("may be read"), "{}", ran.err);
}

#[test]
fn targets_that_are_in_use() {
    let machine = a_vault_with_a_point();
    machine.write("work/out/mine", "mine");
    machine.write("work/file", "a file");
    let restore = |to: &str| {
        machine.line(&format!("restore --vault {} --key owner.key --to {to}", machine.at("backup"))).screen()
    };
    insta::assert_snapshot!(restore("out"), @r#"
    error: /work/out is not empty; restore to an empty or new directory, or in place to change it to the recovery point
    help: name another directory with --to, or add --in-place
    exit 4
    "#);
    insta::assert_snapshot!(restore("file"), @r#"
    error: /work/file is not a directory; name a directory to restore to
    exit 2
    "#);
    assert_eq!(fs::read_to_string(machine.path("work/out/mine")).unwrap(), "mine");
    assert_eq!(fs::read_dir(machine.path("work/out")).unwrap().count(), 1);
}

#[test]
fn plans_that_are_wrong_or_name_other_things() {
    let machine = planned();
    insta::assert_snapshot!(machine.line("backup letters").screen(), @r#"
    error: the plan has no data set or service `letters`
    help: it has: notes, documents, database
    help: to back up a path, add --vault URL
    exit 2
    "#);
    insta::assert_snapshot!(machine.line("restore letters --key owner.key --to out").screen(), @r#"
    error: the plan has no data set or service `letters`
    help: for what is not in the plan, give the vault's address with --vault URL
    exit 2
    "#);
    insta::assert_snapshot!(machine.line("restore --key owner.key --to out").screen(), @r#"
    error: what is to be restored?
    help: name a data set or a service of the plan; or give a vault's address with --vault URL
    exit 2
    "#);
    insta::assert_snapshot!(machine.line("backup --site mars").screen(), @r#"
    error: the plan has no site `mars`
    help: it has: home, spare
    exit 2
    "#);
    insta::assert_snapshot!(machine.line("backup --as name documents").screen(), @r#"
    error: --as, --exclude and --one-file-system are for paths
    help: the plan says what its data sets hold; for paths add --vault URL
    exit 2
    "#);
    insta::assert_snapshot!(machine.line("restore documents --key owner.key --to out").screen(), @r#"
    error: the vault holds no recovery point of `documents`
    help: `lifeboat points` lists what there is
    exit 1
    "#);
    fs::rename(machine.path("notes.db"), machine.path("moved.db")).unwrap();
    insta::assert_snapshot!(machine.line("backup database").screen(), @r#"
    error: the database /notes.db cannot be read
      because: there is no database at /notes.db
    help: check that it is there, may be read, and is not locked for long; then run the backup again
    exit 1
    "#);
    let plan = fs::read_to_string(machine.path("work/lifeboat.toml")).unwrap();
    machine.write("work/lifeboat.toml", plan.replace("rpo = ", "rop = "));
    insta::assert_snapshot!(machine.line("backup").screen(), @r#"
    error[P0103]: `service.notes` needs `rpo`
      --> lifeboat.toml:24:10
       |
    24 | [service.notes]
       |          ^^^^^
       |
       = help: add `rpo`: how much may be lost: the objective for every scenario that has none of its own

    error[P0101]: a service has no key `rop`
      --> lifeboat.toml:28:1
       |
    28 | rop = "1h"
       | ^^^
       |
       = help: did you mean `rpo`?

    error: the plan lifeboat.toml is wrong
    help: `lifeboat check` shows everything about it, `lifeboat explain CODE` tells more
    exit 2
    "#);
    insta::assert_snapshot!(machine.line("--plan other.toml points").screen(), @r#"
    error: the plan other.toml cannot be read
      because: No such file or directory (os error 2)
    exit 2
    "#);
}

#[test]
fn what_does_not_go_by_that_name_is_a_usage_error_and_what_is_in_use_is_refused() {
    let machine = a_vault_with_a_point();
    machine.write("work/full/mine", "mine");
    machine.write("work/file", "a file");
    let vault = machine.at("backup");
    let screens: Vec<String> = [
        "vault copy --from VAULT --to full",
        "vault copy --from VAULT --to ./file",
        "vault copy --from VAULT --to VAULT",
        "vault copy --from VAULT --to VAULT/inner",
        "vault copy --from VAULT --to ./copy --dataset nope",
        "restore --vault VAULT --key owner.key --to VAULT/restored",
        "restore --vault VAULT --key owner.key --to VAULT --in-place --yes",
        "vault enroll --vault VAULT --key owner.key --approve xyz",
        "vault revoke nobody --vault VAULT --key owner.key --yes",
        "vault prune --vault VAULT --key owner.key --dataset nope --keep-last 1 --yes",
        "vault prune --vault VAULT --key owner.key --dataset data --point 1 --yes",
        "vault prune --vault VAULT --key owner.key --point 7",
        "vault accept 7 --vault VAULT --key owner.key --why x",
        "vault serve VAULT --socket owner.key",
    ]
    .iter()
    .map(|line| format!("$ {line}\n{}\n", machine.line(&line.replace("VAULT", &vault)).screen()))
    .collect();
    insta::assert_snapshot!(screens.concat(), @r#"
    $ vault copy --from VAULT --to full
    error: copying to /work/full is refused: it is neither empty nor a vault: it holds mine; choose another place
    exit 4
    $ vault copy --from VAULT --to ./file
    error: ./file is no address of a vault: there is something else, which is no directory
    exit 2
    $ vault copy --from VAULT --to VAULT
    error: --from and --to are the same place
    help: name another place with --to
    exit 2
    $ vault copy --from VAULT --to VAULT/inner
    error: /backup/inner lies within the vault /backup
    help: name a place outside of it
    exit 4
    $ vault copy --from VAULT --to ./copy --dataset nope
    error: data set "nope" is not valid: the vault has nothing of it
    exit 2
    $ restore --vault VAULT --key owner.key --to VAULT/restored
    error: /backup/restored lies within the vault /backup
    help: name a place outside of it
    exit 4
    $ restore --vault VAULT --key owner.key --to VAULT --in-place --yes
    error: /backup is the vault itself
    help: name a place outside of it
    exit 4
    $ vault enroll --vault VAULT --key owner.key --approve xyz
    error: fingerprint xyz is not valid: no such request waits; run `lifeboat vault enroll` on that machine first, and compare what it prints
    exit 2
    $ vault revoke nobody --vault VAULT --key owner.key --yes
    error: `nobody` is not on the roster, or revoked already
    help: on it are: alpha
    exit 2
    $ vault prune --vault VAULT --key owner.key --dataset nope --keep-last 1 --yes
    error: the vault has no recovery point of `nope`
    help: it has some of: /data
    exit 2
    $ vault prune --vault VAULT --key owner.key --dataset data --point 1 --yes
    error: no rule says what is to be kept of `/data` in this vault
    help: give one with --keep-…, or `keep` in the plan
    exit 2
    $ vault prune --vault VAULT --key owner.key --point 7
    error: point 7 is not valid: there is no such point; `lifeboat points --json` lists their ids
    exit 2
    $ vault accept 7 --vault VAULT --key owner.key --why x
    error: the vault has no recovery point 7
    help: `lifeboat points` lists what there is
    exit 2
    $ vault serve VAULT --socket owner.key
    error: the socket owner.key cannot be taken
      because: there is something else, which is no socket
    help: another server may live there; or its directory is missing; or name another path
    exit 2
    "#);
    assert!(!machine.path("backup/inner").exists() && !machine.path("backup/restored").exists());
    assert!(machine.line("key inspect owner.key").ends(0).out.starts_with("age1"), "the key file is still there");
    // A link into the vault is within it, too.
    std::os::unix::fs::symlink(&vault, machine.path("work/link")).unwrap();
    let ran = machine.line(&format!("restore --vault {vault} --key owner.key --to link/deep/down")).ends(4);
    assert!(ran.err.contains("lies within the vault"), "{}", ran.err);
}

#[test]
fn a_wrong_command_line_is_a_document_too() {
    let machine = Machine::new();
    let wrong = machine.line("--json vault nonsense").ends(2);
    assert_eq!(wrong.json()["error"]["kind"], "usage", "{}", wrong.out);
    assert_eq!(wrong.json()["error"]["message"], "unrecognized subcommand 'nonsense'");
    assert!(wrong.err.contains("Usage: lifeboat vault"), "{}", wrong.err);
    assert_eq!(machine.line("vault nonsense").ends(2).out, "");
    assert!(machine.line("--json vault --help").ends(0).out.contains("Usage:"));
    let missing = machine.line("vault freeze --json").ends(2);
    assert_eq!(missing.json()["error"]["exit"], 2);
}
