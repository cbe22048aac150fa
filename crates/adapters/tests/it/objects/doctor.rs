//! The doctor at a real bucket: what the policy permits, it finds permitted; what it forbids, forbidden.

use lifeboat_adapters::storage::policy;
use lifeboat_vault::doctor::{Examination, Wanted, examine};
use lifeboat_vault::storage::{Storage, Verdict};

use super::proxy::{Proxy, Spoil};
use super::servers::{self, Server, User, open_at};

fn told(examined: &Examination) -> String {
    let lines = examined.facts.iter().map(|fact| format!("{:?} {}: {}", fact.verdict, fact.code, fact.says));
    lines.collect::<Vec<_>>().join("\n")
}

/// Lets the user `host` do what the policy says, at a bucket of the owner's.
pub(super) fn permit(server: &Server, place: &str, wanted: Wanted) {
    let bucket = place.split('/').next().unwrap();
    let text = policy(&format!("s3://{place}"), wanted, Some("alpha"), None).unwrap();
    let mut policy: serde_json::Value = serde_json::from_str(&text).unwrap();
    let statements = policy["Statement"].as_array_mut().unwrap();
    // This server has no such condition: without it the right to create is a right to replace.
    statements.retain(|statement| statement["Sid"] != "NeverReplace");
    for statement in &mut *statements {
        statement["Principal"] = serde_json::json!({ "AWS": ["arn:aws:iam:::user/host"] });
    }
    // What another user created there belongs to that user: the bucket's owner reads it by policy only.
    statements.push(serde_json::json!({
        "Effect": "Allow", "Principal": { "AWS": ["arn:aws:iam:::user/owner"] }, "Action": "s3:*",
        "Resource": [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")],
    }));
    server.ask(User::Owner, "PUT", &format!("{bucket}?policy="), Some(&policy.to_string()));
}

#[test]
fn a_reader_and_a_pruner_have_what_their_policies_say_and_no_more() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    server.open(&bucket).put("roster/0000000001", b"x").unwrap();
    let theirs = || open_at(&server.endpoint(), &bucket, User::Host);
    permit(server, &bucket, Wanted::Reader);
    let reader = examine(&theirs(), Wanted::Reader, None);
    assert!(reader.is_well() && reader.left_behind.is_none(), "{}", told(&reader));
    insta::assert_snapshot!(told(&reader), @r"
    Good list: lists and reads rosters, indexes, points and logs (1 object)
    Good create: may not create objects
    Good clock: this machine's clock and the storage's agree
    Note versions: keeps no versions: what is deleted is gone
    Note object-lock: no Object Lock
    ");
    permit(server, &bucket, Wanted::Pruner);
    let pruner = examine(&theirs(), Wanted::Pruner, None);
    assert!(pruner.is_well() && pruner.left_behind.is_none(), "{}", told(&pruner));
    assert!(!examine(&theirs(), Wanted::Reader, None).is_well(), "a reader that may write");
}

#[test]
fn a_host_s_credentials_that_can_replace_or_delete_are_a_finding_and_those_that_cannot_leave_one_object() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let mine = examine(&server.open(&bucket), Wanted::Host, None);
    let found: Vec<&str> =
        mine.facts.iter().filter(|fact| fact.verdict == Verdict::Finding).map(|fact| fact.code).collect();
    assert_eq!(found, ["replace", "delete", "elsewhere"], "{}", told(&mine));
    assert_eq!(mine.left_behind, None);

    permit(server, &bucket, Wanted::Host);
    let host = examine(&open_at(&server.endpoint(), &bucket, User::Host), Wanted::Host, Some("alpha"));
    let good = |code: &str| host.facts.iter().any(|fact| fact.code == code && fact.verdict == Verdict::Good);
    assert!(
        good("delete") && good("elsewhere") && good("sealed") && good("one-winner") && good("list") && good("clock"),
        "{}",
        told(&host)
    );
    let left = host.left_behind.as_deref().unwrap();
    assert!(left.starts_with(&format!("s3://{bucket}/.lifeboat/doctor/")), "{left}");
    assert!(server.open(&bucket).list("").unwrap().is_empty(), "what stays is in no listing");
}

#[test]
fn versions_are_seen() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let fact = |code: &str| {
        let examined = examine(&server.open(&bucket), Wanted::Pruner, None);
        let fact = examined.facts.into_iter().find(|fact| fact.code == code).unwrap();
        format!("{:?}: {}", fact.verdict, fact.says)
    };
    assert_eq!(fact("versions"), "Note: keeps no versions: what is deleted is gone");
    let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    server.ask(User::Owner, "PUT", &format!("{bucket}?versioning="), Some(enabled));
    assert!(fact("versions").starts_with("Good: keeps versions"), "{}", fact("versions"));
    assert_eq!(fact("object-lock"), "Note: no Object Lock");
}

#[test]
fn a_storage_whose_conditions_do_not_hold_is_found_out() {
    let server = servers::radosgw();
    let bucket = server.bucket();
    let proxy = Proxy::before(server.port);
    proxy.spoil("PUT ", Spoil::Unconditional, usize::MAX);
    let examined = examine(&open_at(&proxy.endpoint(), &bucket, User::Owner), Wanted::Host, None);
    assert!(!examined.is_well());
    assert!(told(&examined).contains("so two writers would both win"), "{}", told(&examined));
}

#[test]
fn a_bucket_that_is_not_there_is_the_only_thing_said() {
    let examined = examine(&servers::radosgw().open("no-such-bucket"), Wanted::Host, None);
    insta::assert_snapshot!(told(&examined), @"Finding list: roster/ cannot be listed: there is no bucket at s3://no-such-bucket, or none that these credentials may see; make it, or correct the address");
}
