//! Addresses of buckets: `s3://[PROFILE@]BUCKET[/PREFIX]`, `gs://…`, `az://…`.
//!
//! Invariant: an address never holds a secret, and two spellings of one place are one address.

use lifeboat_vault::storage::{StorageError, check_key};

/// Who keeps the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Keeper {
    S3,
    Google,
    Azure,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) keeper: Keeper,
    /// Which section of the shared credentials file to use; only S3 has one.
    pub(super) profile: Option<String>,
    pub(super) bucket: String,
    /// Without slashes around it; may be empty.
    pub(super) prefix: String,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Address, StorageError> {
        let shown = hide_secret(url);
        let bad = |why: &str| StorageError::BadAddress { address: shown.clone(), why: why.to_owned() };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        let keeper = match scheme {
            "s3" => Keeper::S3,
            "gs" => Keeper::Google,
            "az" => Keeper::Azure,
            _ => return Err(bad("its scheme is not s3, gs or az")),
        };
        if rest.contains(['?', '#']) {
            return Err(bad("it takes no options: endpoint and region come from the environment or a profile"));
        }
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (profile, bucket) = match authority.split_once('@') {
            Some((profile, bucket)) => (Some(profile), bucket),
            None => (None, authority),
        };
        if profile.is_some_and(|profile| profile.is_empty() || profile.contains(':')) {
            return Err(bad(
                "before the @ stands a profile's name and nothing else: no secret belongs into an address",
            ));
        }
        if profile.is_some() && keeper != Keeper::S3 {
            return Err(bad("only s3 knows profiles"));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if bucket.is_empty() || bucket.len() > 255 || !bucket.bytes().all(fits) {
            return Err(bad("the bucket's name is letters, digits, dots, dashes and underscores"));
        }
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && check_key(prefix).is_err() {
            return Err(bad(
                "the prefix is a path of plain names: letters, digits and . _ - % @, none starting with a dot",
            ));
        }
        let profile = profile.map(str::to_owned);
        Ok(Address { keeper, profile, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

/// What an address shows of itself when it is wrong: someone may have put a key into it.
fn hide_secret(url: &str) -> String {
    let shown: String = url.chars().take(200).collect();
    let shown = shown.split(['?', '#']).next().unwrap_or_default().to_owned();
    match (shown.split_once("://"), shown.split_once('@')) {
        (Some((scheme, _)), Some((before, after))) if before.matches(':').count() > 1 => {
            format!("{scheme}://…@{after}")
        }
        _ => shown,
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.keeper {
            Keeper::S3 => "s3",
            Keeper::Google => "gs",
            Keeper::Azure => "az",
        };
        write!(f, "{scheme}://")?;
        if let Some(profile) = &self.profile {
            write!(f, "{profile}@")?;
        }
        write!(f, "{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown_in_one_spelling() {
        for (given, shown) in [
            ("s3://b", "s3://b"),
            ("s3://b/", "s3://b"),
            ("s3://far@my-bucket/dr/vault/", "s3://far@my-bucket/dr/vault"),
            ("gs://b/x", "gs://b/x"),
            ("az://container/x", "az://container/x"),
        ] {
            assert_eq!(Address::parse(given).unwrap().to_string(), shown, "{given}");
        }
    }

    #[test]
    fn what_is_no_address_says_why_and_shows_no_secret() {
        for (given, why) in [
            ("s3://", "the bucket's name"),
            ("s3://b?endpoint=x", "takes no options"),
            ("s3://b/../c", "the prefix"),
            ("s3://b/.hidden", "the prefix"),
            ("gs://p@b", "only s3"),
            ("s3://AKIA123:hush@b", "no secret"),
        ] {
            let error = Address::parse(given).unwrap_err().to_string();
            assert!(error.contains(why), "{given}: {error}");
            assert!(!error.contains("hush") && !error.contains("AKIA123"), "{error}");
        }
    }
}
