//! The rights that a party needs at a bucket, and no more, as text to put there.
//!
//! Invariant: a host's policy lets nobody replace or delete, and create what `vault serve` would let it create.

use lifeboat_vault::doctor::Wanted;
use lifeboat_vault::serve::{host_creates, host_never_creates, host_reads};
use serde_json::{Value, json};

use super::address::{Address, Keeper};

/// What to put on the bucket at this address, for this host where it is a host's; `None` for what is no bucket. `lock_days`: how long
/// a pruner locks what is needed.
pub fn policy(url: &str, wanted: Wanted, host: Option<&str>, lock_days: Option<u32>) -> Option<String> {
    let address = Address::parse(url).ok()?;
    Some(match address.keeper {
        Keeper::S3 => format!("{:#}", s3(&address, wanted, host, lock_days)),
        Keeper::Google => google(&address, wanted),
        Keeper::Azure => azure(&address, wanted),
    })
}

fn s3(address: &Address, wanted: Wanted, host: Option<&str>, lock_days: Option<u32>) -> Value {
    let bucket = format!("arn:aws:s3:::{}", address.bucket);
    let under = if address.prefix.is_empty() { String::new() } else { format!("{}/", address.prefix) };
    let named = |pattern: &str| format!("{bucket}/{under}{pattern}");
    let objects = named("*");
    let mut list = json!({ "Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket });
    if !under.is_empty() {
        // Reading names no prefix, and must be allowed to list: else what is not there is forbidden, instead of not there.
        list["Condition"] =
            json!({ "StringLikeIfExists": { "s3:prefix": [format!("{under}*"), address.prefix.clone()] } });
    }
    let ask = json!({
        "Sid": "AskHowItIsSetUp", "Effect": "Allow",
        "Action": ["s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration"], "Resource": bucket,
    });
    let read = |what: Value| json!({ "Sid": "Read", "Effect": "Allow", "Action": "s3:GetObject", "Resource": what });
    let statements = match wanted {
        Wanted::Reader => vec![list, read(objects.into()), ask],
        Wanted::Host => {
            // Where lifeboat finds out what the storage honours, and what is permitted.
            let proof = ".lifeboat/*".to_owned();
            let reads: Vec<String> = host_reads(host).iter().chain([&proof]).map(|pattern| named(pattern)).collect();
            let creates: Vec<String> =
                host_creates(host).iter().chain([&proof]).map(|pattern| named(pattern)).collect();
            let pruners = host_never_creates().map(named);
            let create = json!({ "Sid": "Create", "Effect": "Allow", "Action": "s3:PutObject", "Resource": creates });
            let never =
                json!({ "Sid": "PrunersOnly", "Effect": "Deny", "Action": "s3:PutObject", "Resource": pruners });
            // Parts of an upload carry no condition; what makes an object of them does.
            let never_replace = json!({
                "Sid": "NeverReplace", "Effect": "Deny", "Action": "s3:PutObject", "Resource": objects,
                "Condition": { "Null": { "s3:if-none-match": "true" }, "Bool": { "s3:ObjectCreationOperation": "true" } },
            });
            vec![list, read(reads.into()), create, never, never_replace, ask]
        }
        Wanted::Pruner => {
            let allow = |sid: &str, action: &str| json!({ "Sid": sid, "Effect": "Allow", "Action": action, "Resource": objects });
            let mut statements = vec![
                list,
                read(objects.clone().into()),
                allow("Write", "s3:PutObject"),
                allow("Delete", "s3:DeleteObject"),
                ask,
            ];
            // Neither versions nor what is locked can be deleted with this, and no lock be made longer than wanted.
            statements.extend(lock_days.map(|days| {
                json!({
                    "Sid": "Lock", "Effect": "Allow", "Action": ["s3:PutObjectRetention", "s3:GetObjectRetention"], "Resource": objects,
                    "Condition": { "NumericLessThanEqualsIfExists": {
                        "s3:object-lock-remaining-retention-days": days.saturating_add(1).to_string(),
                    } },
                })
            }));
            statements
        }
    };
    json!({ "Version": "2012-10-17", "Statement": statements })
}

fn google(address: &Address, wanted: Wanted) -> String {
    let roles = match wanted {
        Wanted::Reader => "roles/storage.objectViewer",
        Wanted::Host => "roles/storage.objectCreator and roles/storage.objectViewer (neither may replace or delete)",
        Wanted::Pruner => "roles/storage.objectUser",
    };
    format!("on gs://{}: {roles}", address.bucket)
}

fn azure(address: &Address, wanted: Wanted) -> String {
    let read = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read";
    let actions = match wanted {
        Wanted::Reader => read.to_owned(),
        Wanted::Host => format!("{read}, …/blobs/add/action (creates, and never replaces; not …/blobs/write)"),
        Wanted::Pruner => format!("{read}, …/blobs/write, …/blobs/delete"),
    };
    format!("on the container {}, a role with: {actions}", address.bucket)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Amazon counts what is no white space; its managed policies hold 6144.
    #[test]
    fn a_policy_has_room_where_it_is_to_be_put() {
        let url = format!("s3://{}/backups/of/everything", "b".repeat(63));
        for (wanted, days) in [(Wanted::Host, None), (Wanted::Pruner, Some(30)), (Wanted::Reader, None)] {
            let text = policy(&url, wanted, Some("a-rather-long-host-name.example.org"), days).unwrap();
            let count = text.chars().filter(|letter| !letter.is_whitespace()).count();
            assert!(count < 6144, "{wanted:?}: {count}");
        }
    }

    #[test]
    fn only_a_pruner_that_is_to_lock_may_and_no_longer_than_that() {
        let of = |wanted, days| policy("s3://b/dr", wanted, Some("alpha"), days).unwrap();
        assert!(!of(Wanted::Pruner, None).contains("Retention"), "nobody asked for locks");
        assert!(!of(Wanted::Host, Some(30)).contains("Retention"));
        let locks = of(Wanted::Pruner, Some(30));
        assert!(locks.contains("s3:PutObjectRetention") && locks.contains("\"31\""), "{locks}");
        assert!(!locks.contains("Bypass") && !locks.contains("DeleteObjectVersion"), "{locks}");
    }
}
