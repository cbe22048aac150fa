//! The files that AWS's tools share: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Invariant: a credential is read when it is needed and kept nowhere else; what is read is never shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

/// Nobody's credentials file is larger.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the environment holds, or a test's own.
pub type Environment = BTreeMap<String, String>;

type Section = BTreeMap<String, String>;

#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    #[error("cannot read {path}")]
    Unreadable {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is larger than any credentials file")]
    TooLarge { path: String },
    #[error("there is no profile [{name}] in {files}")]
    NoProfile { name: String, files: String },
    #[error("profile [{name}] has no aws_access_key_id and aws_secret_access_key in {files}")]
    NoKeys { name: String, files: String },
}

/// One profile, in the one or two files that may speak of it.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    name: String,
    credentials_file: PathBuf,
    config_file: PathBuf,
}

impl Profile {
    /// The profile of this name, else that of `AWS_PROFILE`, else `default`.
    pub(super) fn find(name: Option<&str>, environment: &Environment) -> Profile {
        let home = PathBuf::from(environment.get("HOME").map_or("/", String::as_str)).join(".aws");
        let file = |variable: &str, usual: &str| {
            environment.get(variable).filter(|path| !path.is_empty()).map_or_else(|| home.join(usual), PathBuf::from)
        };
        let name = name.or(environment.get("AWS_PROFILE").map(String::as_str)).filter(|name| !name.is_empty());
        Profile {
            name: name.unwrap_or("default").to_owned(),
            credentials_file: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config_file: file("AWS_CONFIG_FILE", "config"),
        }
    }

    /// Everything that both files say of it; `None` where neither does.
    pub(super) fn read(&self) -> Result<Option<Section>, ProfileError> {
        let headed = if self.name == "default" { "default".to_owned() } else { format!("profile {}", self.name) };
        let config = section(&self.config_file, &[&headed, &self.name])?;
        let credentials = section(&self.credentials_file, &[&self.name])?;
        if config.is_none() && credentials.is_none() {
            return Ok(None);
        }
        let mut all = config.unwrap_or_default();
        all.extend(credentials.unwrap_or_default());
        Ok(Some(all))
    }

    /// As `read`, for a profile that was asked for by name.
    pub(super) fn read_named(&self) -> Result<Section, ProfileError> {
        self.read()?.ok_or_else(|| ProfileError::NoProfile { name: self.name.clone(), files: self.files() })
    }

    pub(super) fn credential(&self) -> Result<Option<AwsCredential>, ProfileError> {
        let Some(mut section) = self.read()? else { return Ok(None) };
        match (section.remove("aws_access_key_id"), section.remove("aws_secret_access_key")) {
            (Some(key_id), Some(secret_key)) => {
                Ok(Some(AwsCredential { key_id, secret_key, token: section.remove("aws_session_token") }))
            }
            _ => Ok(None),
        }
    }

    fn files(&self) -> String {
        format!("{} or {}", self.credentials_file.display(), self.config_file.display())
    }

    /// Changes when either file does.
    fn stamp(&self) -> [Option<SystemTime>; 2] {
        [&self.credentials_file, &self.config_file]
            .map(|file| std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok())
    }
}

fn section(file: &Path, names: &[&str]) -> Result<Option<Section>, ProfileError> {
    let path = || file.display().to_string();
    let text = match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(ProfileError::TooLarge { path: path() }),
        _ => std::fs::read_to_string(file).map_err(|source| ProfileError::Unreadable { path: path(), source })?,
    };
    Ok(parse(&text, names))
}

/// The section's settings; of nested ones (`s3 =` and indented lines) those below, by their own names.
fn parse(text: &str, names: &[&str]) -> Option<Section> {
    let mut found: Option<Section> = None;
    let mut inside = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        if let Some(heading) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = names.contains(&heading.trim());
            if inside {
                found.get_or_insert_default();
            }
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && let Some(section) = &mut found
            && !value.trim().is_empty()
        {
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

/// Gives a profile's keys to the library, read anew when the files change: keys are rotated under a running agent.
#[derive(Debug)]
pub(super) struct ProfileCredentials {
    profile: Profile,
    #[allow(clippy::type_complexity)]
    kept: Mutex<Option<([Option<SystemTime>; 2], Kept)>>,
}

/// A credential that does not show itself.
#[derive(Clone)]
struct Kept(Arc<AwsCredential>);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a credential")
    }
}

impl ProfileCredentials {
    pub(super) fn new(profile: Profile) -> ProfileCredentials {
        ProfileCredentials { profile, kept: Mutex::default() }
    }
}

#[async_trait::async_trait]
impl CredentialProvider for ProfileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let failed = |error: ProfileError| object_store::Error::Generic { store: "S3", source: Box::new(error) };
        let stamp = self.profile.stamp();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, credential)) = &*kept
            && *at == stamp
        {
            return Ok(credential.0.clone());
        }
        let read = self.profile.credential().map_err(failed)?;
        let none = || ProfileError::NoKeys { name: self.profile.name.clone(), files: self.profile.files() };
        let credential = Arc::new(read.ok_or_else(none).map_err(failed)?);
        *kept = Some((stamp, Kept(credential.clone())));
        Ok(credential)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const CONFIG: &str = "[default]\nregion = eu-1\n\n[profile far]\n# comment\nregion=eu-2\nendpoint_url = https://s3.far\ns3 =\n  addressing_style = path\n";

    #[test]
    fn a_profile_is_read_from_both_files_and_again_when_they_change() {
        let home = tempfile::tempdir().unwrap();
        let aws = home.path().join(".aws");
        std::fs::create_dir(&aws).unwrap();
        std::fs::write(aws.join("config"), CONFIG).unwrap();
        std::fs::write(aws.join("credentials"), "[far]\naws_access_key_id=A\naws_secret_access_key = S=1\n").unwrap();
        let environment = Environment::from([("HOME".to_owned(), home.path().display().to_string())]);
        let far = Profile::find(Some("far"), &environment);
        let all = far.read_named().unwrap();
        assert_eq!((all["region"].as_str(), all["endpoint_url"].as_str()), ("eu-2", "https://s3.far"));
        assert_eq!(all["addressing_style"], "path");
        let credential = far.credential().unwrap().unwrap();
        assert_eq!((credential.key_id.as_str(), credential.secret_key.as_str()), ("A", "S=1"));
        assert!(Profile::find(None, &environment).credential().unwrap().is_none(), "the default has no keys");
        let missing = Profile::find(Some("near"), &environment).read_named().unwrap_err().to_string();
        assert!(missing.contains("no profile [near]") && !missing.contains("S=1"), "{missing}");

        let given = ProfileCredentials::new(far);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let key = || runtime.block_on(given.get_credential()).unwrap().key_id.clone();
        assert_eq!(key(), "A");
        std::fs::write(aws.join("credentials"), "[far]\naws_access_key_id=B\naws_secret_access_key=T\n").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().write(true).open(aws.join("credentials")).unwrap().set_modified(later).unwrap();
        assert_eq!(key(), "B");
        let shown = format!("{given:?}");
        assert!(shown.contains("a credential") && !shown.contains("secret_key"), "{shown}");
    }
}
