//! The rights that a party needs at a bucket, and no more, as text to put there.
//!
//! Invariant: a host's policy lets nobody replace or delete.

use lifeboat_vault::doctor::Wanted;
use serde_json::{Value, json};

use super::address::{Address, Keeper};

/// What to put on the bucket at this address; `None` for what is no bucket.
pub fn policy(url: &str, wanted: Wanted) -> Option<String> {
    let address = Address::parse(url).ok()?;
    Some(match address.keeper {
        Keeper::S3 => format!("{:#}", s3(&address, wanted)),
        Keeper::Google => google(&address, wanted),
        Keeper::Azure => azure(&address, wanted),
    })
}

fn s3(address: &Address, wanted: Wanted) -> Value {
    let bucket = format!("arn:aws:s3:::{}", address.bucket);
    let under = if address.prefix.is_empty() { String::new() } else { format!("{}/", address.prefix) };
    let objects = format!("{bucket}/{under}*");
    let list = json!({
        "Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket,
        "Condition": { "StringLike": { "s3:prefix": [format!("{under}*"), address.prefix.clone()] } },
    });
    let ask = json!({
        "Sid": "AskHowItIsSetUp", "Effect": "Allow",
        "Action": ["s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration"], "Resource": bucket,
    });
    let read = json!({ "Sid": "Read", "Effect": "Allow", "Action": "s3:GetObject", "Resource": objects });
    let create = json!({ "Sid": "Create", "Effect": "Allow", "Action": "s3:PutObject", "Resource": objects });
    // Parts of an upload carry no condition; what makes an object of them does.
    let never_replace = json!({
        "Sid": "NeverReplace", "Effect": "Deny", "Action": "s3:PutObject", "Resource": objects,
        "Condition": { "Null": { "s3:if-none-match": "true" }, "Bool": { "s3:ObjectCreationOperation": "true" } },
    });
    let statements = match wanted {
        Wanted::Reader => vec![list, read, ask],
        Wanted::Host => {
            let own = [
                "index",
                "snap",
                "log",
                "tombstone",
                "prune",
                "hold",
                "freeze",
                "heal",
                "roster",
                "keys",
                "verify",
                "receipt",
                "copy",
                "witness",
                "refs",
                "pack",
                ".lifeboat",
            ]
            .map(|kind| format!("{bucket}/{under}{kind}/*"));
            let read = json!({ "Sid": "Read", "Effect": "Allow", "Action": "s3:GetObject", "Resource": own });
            vec![list, read, create, never_replace, ask]
        }
        Wanted::Pruner => {
            let delete =
                json!({ "Sid": "Delete", "Effect": "Allow", "Action": "s3:DeleteObject", "Resource": objects });
            let replace = json!({ "Sid": "Write", "Effect": "Allow", "Action": "s3:PutObject", "Resource": objects });
            vec![list, read, replace, delete, ask]
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
