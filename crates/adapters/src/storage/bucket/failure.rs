//! What a failed try means: give up and say what to do, or try again.
//!
//! Invariant: no text of ours holds an address with a signature, a header or a body; only the storage's code and message, cut
//! short.

use std::time::Duration;

use lifeboat_vault::storage::StorageError;
use object_store::client::HttpErrorKind;

use super::wire::Answer;

/// What was being done, for messages.
#[derive(Debug, Clone)]
pub(super) struct Doing {
    pub(super) verb: &'static str,
    pub(super) key: String,
    pub(super) location: String,
}

/// How an object comes back from an archive class, and when.
const S3_THAW: &str = "`aws s3api restore-object --bucket {bucket} --key {key} --restore-request Days=7`, wait (from minutes to 12 hours, \
                       48 for Deep Archive, by class and tier), then do this again";
const AZURE_THAW: &str = "`az storage blob set-tier --container-name {bucket} --name {key} --tier Hot`, wait (up to 15 hours), then do this \
                          again";

#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again is of no use.
    Final(StorageError),
    /// It may pass; so long the storage wants to be left alone.
    Passing { error: StorageError, asked: Option<Duration>, reached: bool },
    /// Something is there already.
    Exists,
    /// The range lies beyond the object's end.
    BeyondEnd,
    /// The bucket locks what comes, and takes it with its MD5 only.
    WantsDigest,
}

impl Doing {
    pub(super) fn io(&self, kind: std::io::ErrorKind, text: impl Into<String>) -> StorageError {
        StorageError::Io {
            verb: self.verb,
            key: if self.key.is_empty() { "objects".to_owned() } else { self.key.clone() },
            location: self.location.clone(),
            source: std::io::Error::new(kind, text.into()),
        }
    }

    pub(super) fn timed_out(&self, answer: &Answer) -> Failure {
        let error = self.io(std::io::ErrorKind::TimedOut, "no answer in time");
        Failure::Passing { error, asked: None, reached: answer.status.is_some() }
    }

    pub(super) fn torn(&self, came: usize, announced: u64) -> Failure {
        let text = format!("{announced} bytes were announced and {came} came");
        Failure::Passing { error: self.io(std::io::ErrorKind::UnexpectedEof, text), asked: None, reached: true }
    }

    /// Reads a failed try.
    pub(super) fn failure(&self, error: &object_store::Error, answer: &Answer) -> Failure {
        if let Some((kind, text)) = &answer.broken {
            return self.broken(*kind, text, answer.about_credentials);
        }
        let Some(status) = answer.status else { return Failure::Final(self.not_sent(error)) };
        if answer.is_success() {
            // The answer began well and was cut off, or said nonsense.
            let error = self.io(std::io::ErrorKind::UnexpectedEof, "the answer was cut off");
            return Failure::Passing { error, asked: None, reached: true };
        }
        if answer.about_credentials && status < 500 {
            return Failure::Final(self.credentials(format!("who gives them out said {}", said(status, answer))));
        }
        self.refused(status, answer)
    }

    fn refused(&self, status: u16, answer: &Answer) -> Failure {
        let location = self.location.clone();
        let passing = || Failure::Passing {
            error: self.io(kind_of(status), said(status, answer)),
            asked: answer.retry_after,
            reached: true,
        };
        let code = answer.code.as_deref().unwrap_or_default();
        let last = match (status, code) {
            (_, "BlobAlreadyExists") | (304 | 412, _) => return Failure::Exists,
            (416, _) => return Failure::BeyondEnd,
            (400, "MissingUploadObjectWithObjectLockHeaders") => return Failure::WantsDigest,
            (400, _) if answer.message.as_deref().is_some_and(|message| message.contains("Content-MD5")) => {
                return Failure::WantsDigest;
            }
            (_, "NoSuchBucket" | "ContainerNotFound") => StorageError::NoBucket { location },
            // It was completed or given up: whoever completes looks whose object lies there.
            (_, "NoSuchUpload") => return Failure::Exists,
            (404, "ObjectLockConfigurationNotFoundError" | "NoSuchObjectLockConfiguration") => {
                StorageError::NotFound { key: self.key.clone() }
            }
            (404, _) if self.key.is_empty() => StorageError::NoBucket { location },
            (404, _) => StorageError::NotFound { key: self.key.clone() },
            (_, "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull") | (507, _) => {
                StorageError::NoSpace { location }
            }
            (_, "InvalidObjectState") => self.archived(S3_THAW),
            (_, "BlobArchived" | "BlobBeingRehydrated") => self.archived(AZURE_THAW),
            (_, "RequestTimeTooSkewed") => self.credentials(
                "this machine's clock and the storage's are too far apart; set this machine's clock".to_owned(),
            ),
            (
                _,
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "InvalidSecurity"
                | "AuthenticationFailed"
                | "AuthorizationHeaderMalformed",
            )
            | (401, _) => self.credentials(said(status, answer)),
            (_, "BlobImmutableDueToPolicy" | "RetentionPolicyNotMet") => self.locked(),
            (403, _) if answer.message.as_deref().is_some_and(speaks_of_a_lock) => self.locked(),
            (403, _) => StorageError::Denied { location, verb: self.verb },
            (301 | 307 | 308, _) => StorageError::Unsuitable {
                location,
                why: "the bucket is in another region; set AWS_REGION, or region in the profile".to_owned(),
            },
            // These are about a broken transfer or a moment's collision, not about the request.
            (408 | 409 | 425 | 429, _)
            | (
                400,
                "RequestTimeout" | "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "InvalidDigest",
            ) => {
                return passing();
            }
            (501 | 405, _) => StorageError::Unsuitable {
                location,
                why: format!("it cannot {} as a vault needs it ({})", self.verb, said(status, answer)),
            },
            (500.., _) => return passing(),
            _ => self.io(std::io::ErrorKind::InvalidInput, said(status, answer)),
        };
        Failure::Final(last)
    }

    fn broken(&self, kind: HttpErrorKind, text: &str, about_credentials: bool) -> Failure {
        if about_credentials {
            return Failure::Final(self.credentials(
                "none were found: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the cloud's own (see docs/object-storage.md)".to_owned(),
            ));
        }
        let (kind, reached) = match kind {
            HttpErrorKind::Connect => (std::io::ErrorKind::NotConnected, false),
            HttpErrorKind::Timeout => (std::io::ErrorKind::TimedOut, true),
            _ => (std::io::ErrorKind::ConnectionReset, true),
        };
        Failure::Passing { error: self.io(kind, text), asked: None, reached }
    }

    fn archived(&self, thaw: &str) -> StorageError {
        let place = self.location.split_once("://").map_or(self.location.as_str(), |(_, place)| place);
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let key =
            [prefix.trim_matches('/'), &self.key].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
        StorageError::Archived {
            key: self.key.clone(),
            location: self.location.clone(),
            thaw: thaw.replace("{bucket}", bucket).replace("{key}", &key.join("/")),
        }
    }

    fn locked(&self) -> StorageError {
        StorageError::Locked { key: self.key.clone(), location: self.location.clone(), until: None }
    }

    fn credentials(&self, why: String) -> StorageError {
        StorageError::Credentials { location: self.location.clone(), why }
    }

    /// Nothing was sent: what is wrong is on this side, and only credentials are looked for before sending.
    fn not_sent(&self, error: &object_store::Error) -> StorageError {
        let why = match error {
            object_store::Error::InvalidPath { .. } => "its name is not one that the storage takes".to_owned(),
            _ => "they cannot be read (see docs/object-storage.md for where they are looked for)".to_owned(),
        };
        self.credentials(why)
    }
}

/// Amazon's and Google's words for it; their code is that of any refusal.
fn speaks_of_a_lock(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["object lock", "retention policy", "worm"].iter().any(|word| message.contains(word))
}

fn kind_of(status: u16) -> std::io::ErrorKind {
    match status {
        408 | 504 => std::io::ErrorKind::TimedOut,
        429 | 503 => std::io::ErrorKind::ResourceBusy,
        _ => std::io::ErrorKind::Other,
    }
}

fn said(status: u16, answer: &Answer) -> String {
    match (&answer.code, &answer.message) {
        (Some(code), Some(message)) => format!("{status} {code}: {message}"),
        (Some(code), None) => format!("{status} {code}"),
        _ => format!("status {status}"),
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    fn judged(status: u16, code: &str) -> String {
        let doing = Doing { verb: "write", key: "pack/x".to_owned(), location: "s3://b".to_owned() };
        let answer =
            Answer { status: Some(status), code: (!code.is_empty()).then(|| code.to_owned()), ..Answer::default() };
        match doing.refused(status, &answer) {
            Failure::Final(error) => error.to_string(),
            Failure::Passing { error, .. } => format!("again: {error}"),
            Failure::Exists => "exists".to_owned(),
            Failure::BeyondEnd => "beyond".to_owned(),
            Failure::WantsDigest => "with MD5".to_owned(),
        }
    }

    #[test]
    fn what_is_refused_because_it_is_locked_is_told_apart_from_a_missing_right() {
        let doing = Doing { verb: "delete", key: "pack/x".to_owned(), location: "s3://b".to_owned() };
        let refused = |message: &str| {
            let (code, message) = (Some("AccessDenied".to_owned()), Some(message.to_owned()));
            let answer = Answer { status: Some(403), code, message, ..Answer::default() };
            matches!(doing.refused(403, &answer), Failure::Final(StorageError::Locked { .. }))
        };
        assert!(refused("Access Denied because object protected by object lock."));
        assert!(refused(
            "Object 'b/x' is subject to bucket's retention policy or object retention and cannot be deleted"
        ));
        assert!(!refused("Access Denied"));
    }

    #[test]
    fn each_answer_is_one_thing_to_do() {
        insta::assert_snapshot!(
            [(404, "NoSuchKey"), (404, "NoSuchBucket"), (403, "AccessDenied"), (403, "InvalidAccessKeyId"),
             (403, "RequestTimeTooSkewed"), (403, "QuotaExceeded"), (409, "BlobImmutableDueToPolicy"), (412, ""), (409, "BlobAlreadyExists"), (403, "InvalidObjectState"), (409, "BlobArchived"),
             (409, "ConditionalRequestConflict"), (503, "SlowDown"), (500, ""), (501, "NotImplemented"), (400, "BadDigest"), (400, "MissingUploadObjectWithObjectLockHeaders"),
             (400, "InvalidArgument"), (301, "")]
            .map(|(status, code)| format!("{status} {code}: {}", judged(status, code)))
            .join("\n"), @r"
            404 NoSuchKey: there is no object pack/x
            404 NoSuchBucket: there is no bucket at s3://b, or none that these credentials may see; make it, or correct the address
            403 AccessDenied: the storage at s3://b does not let this process write; check its permissions, and whether a directory is mounted read-only
            403 InvalidAccessKeyId: the storage at s3://b does not accept this machine's credentials: 403 InvalidAccessKeyId
            403 RequestTimeTooSkewed: the storage at s3://b does not accept this machine's credentials: this machine's clock and the storage's are too far apart; set this machine's clock
            403 QuotaExceeded: the storage at s3://b is full; free some space, nothing that was stored is lost
            409 BlobImmutableDueToPolicy: pack/x at s3://b is locked by the storage's own rule, and stays until then
            412 : exists
            409 BlobAlreadyExists: exists
            403 InvalidObjectState: pack/x at s3://b lies in a class that must be thawed before it can be read: `aws s3api restore-object --bucket b --key pack/x --restore-request Days=7`, wait (from minutes to 12 hours, 48 for Deep Archive, by class and tier), then do this again
            409 BlobArchived: pack/x at s3://b lies in a class that must be thawed before it can be read: `az storage blob set-tier --container-name b --name pack/x --tier Hot`, wait (up to 15 hours), then do this again
            409 ConditionalRequestConflict: again: cannot write pack/x at s3://b
            503 SlowDown: again: cannot write pack/x at s3://b
            500 : again: cannot write pack/x at s3://b
            501 NotImplemented: the storage at s3://b cannot be used: it cannot write as a vault needs it (501 NotImplemented)
            400 BadDigest: again: cannot write pack/x at s3://b
            400 MissingUploadObjectWithObjectLockHeaders: with MD5
            400 InvalidArgument: cannot write pack/x at s3://b
            301 : the storage at s3://b cannot be used: the bucket is in another region; set AWS_REGION, or region in the profile
            "
        );
    }
}
