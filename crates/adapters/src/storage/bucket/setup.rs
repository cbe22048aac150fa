//! From an address and the environment to the library's client: endpoint, region, addressing style, credentials.
//!
//! Invariants: the library tries nothing again by itself (we do, and know what was tried); writes that must not replace are
//! always conditional; plain HTTP only where an endpoint says so.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_vault::storage::StorageError;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};

use super::address::{Address, Keeper};
use super::profile::{Environment, Profile, ProfileCredentials};
use super::wire::Watching;

/// One name must resolve and one handshake be made in this time.
const CONNECT_SECONDS_MAX: u64 = 10;

/// Any of these says that credentials come from somewhere else than the shared files.
const OTHER_CREDENTIALS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// The library's client; for S3 also as what can be asked how the bucket is set up.
pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) asks: Option<Asks>,
}

/// Who asks what the library has no verb for: it signs the address, and the connections are the library's own.
#[derive(Debug, Clone)]
pub(super) struct Asks {
    pub(super) s3: Arc<AmazonS3>,
    pub(super) http: HttpClient,
}

pub(super) fn client(address: &Address, environment: &Environment) -> Result<Client, StorageError> {
    let failed = |error: object_store::Error| StorageError::Unsuitable {
        location: address.to_string(),
        why: format!("its settings are wrong: {}", without_secrets(&error)),
    };
    let store: Arc<dyn ObjectStore> = match address.keeper {
        Keeper::S3 => {
            let (builder, options) = s3(address, environment)?;
            let s3 = Arc::new(builder.build().map_err(failed)?);
            let http = Watching.connect(&options).map_err(failed)?;
            return Ok(Client { store: s3.clone(), asks: Some(Asks { s3, http }) });
        }
        Keeper::Google => Arc::new(google(address, environment)?.build().map_err(failed)?),
        Keeper::Azure => Arc::new(azure(address, environment)?.build().map_err(failed)?),
    };
    Ok(Client { store, asks: None })
}

/// The library's errors about settings name the setting; those about values that it could not read hold the value.
fn without_secrets(error: &object_store::Error) -> String {
    let text = error.to_string();
    let secret = ["secret", "key", "token", "password", "credential"];
    if secret.iter().any(|word| text.to_ascii_lowercase().contains(word)) {
        return "a credential is incomplete or cannot be read (see docs/object-storage.md)".to_owned();
    }
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::from_secs(60), backoff: BackoffConfig::default() }
}

fn options(
    endpoint: Option<&str>,
    address: &Address,
    environment: &Environment,
) -> Result<ClientOptions, StorageError> {
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut options = ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .with_pool_idle_timeout(Duration::from_secs(60));
    if let Some(file) = environment.get("AWS_CA_BUNDLE").filter(|file| !file.is_empty()) {
        let unusable = |why: String| StorageError::Unsuitable {
            location: address.to_string(),
            why: format!("AWS_CA_BUNDLE names {file}, which {why}"),
        };
        let text = std::fs::read(file).map_err(|error| unusable(format!("cannot be read ({error})")))?;
        let certificates =
            Certificate::from_pem_bundle(&text).map_err(|_| unusable("holds no certificates in PEM".to_owned()))?;
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn s3(address: &Address, environment: &Environment) -> Result<(AmazonS3Builder, ClientOptions), StorageError> {
    let wrong = |error: super::profile::ProfileError| StorageError::Credentials {
        location: address.to_string(),
        why: match std::error::Error::source(&error) {
            Some(source) => format!("{error} ({source})"),
            None => error.to_string(),
        },
    };
    let profile = Profile::find(address.profile.as_deref(), environment);
    let from_profile = match &address.profile {
        Some(_) => profile.read_named().map_err(wrong)?,
        None => profile.read().map_err(wrong)?.unwrap_or_default(),
    };
    let mut builder = AmazonS3Builder::new();
    for (name, value) in environment.iter().filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty()) {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    // A profile named in the address comes before the environment, one that is only there by default after it.
    let named = address.profile.is_some();
    let pick = |variables: &[&str], setting: &str| {
        let given = variables.iter().find_map(|name| environment.get(*name)).filter(|value| !value.is_empty());
        let said = from_profile.get(setting);
        if named { said.or(given) } else { given.or(said) }.cloned()
    };
    let endpoint = pick(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"], "endpoint_url");
    if let Some(region) = pick(&["AWS_REGION", "AWS_DEFAULT_REGION"], "region") {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &endpoint {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(style) = from_profile.get("addressing_style").filter(|_| named) {
        builder = builder.with_virtual_hosted_style_request(style == "virtual");
    } else if endpoint.is_none() && !environment.contains_key("AWS_VIRTUAL_HOSTED_STYLE_REQUEST") {
        // Amazon itself takes either; buckets with dots in their names have no certificate for the other.
        builder = builder.with_virtual_hosted_style_request(!address.bucket.contains('.'));
    }
    let elsewhere = OTHER_CREDENTIALS.iter().any(|name| environment.get(*name).is_some_and(|value| !value.is_empty()));
    if named || (!elsewhere && profile.credential().map_err(wrong)?.is_some()) {
        builder = builder.with_credentials(Arc::new(ProfileCredentials::new(profile)));
    }
    let options = options(endpoint.as_deref(), address, environment)?;
    let builder = builder
        .with_bucket_name(&address.bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // A bucket with Object Lock takes no object without a checksum, and a torn one never counts.
        .with_checksum_algorithm(Checksum::SHA256)
        .with_disable_bulk_delete(true)
        .with_retry(once())
        .with_client_options(options.clone())
        .with_http_connector(Watching);
    Ok((builder, options))
}

fn google(address: &Address, environment: &Environment) -> Result<GoogleCloudStorageBuilder, StorageError> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in environment.iter().filter(|(name, value)| name.starts_with("GOOGLE_") && !value.is_empty()) {
        if name == "GOOGLE_APPLICATION_CREDENTIALS" {
            builder = builder.with_application_credentials(value);
        } else if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = environment.get("GOOGLE_BASE_URL").map(String::as_str);
    Ok(builder
        .with_bucket_name(&address.bucket)
        .with_retry(once())
        .with_client_options(options(endpoint, address, environment)?)
        .with_http_connector(Watching))
}

fn azure(address: &Address, environment: &Environment) -> Result<MicrosoftAzureBuilder, StorageError> {
    let mut builder = MicrosoftAzureBuilder::new();
    for (name, value) in environment.iter().filter(|(name, value)| name.starts_with("AZURE_") && !value.is_empty()) {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AzureConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = ["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"].iter().find_map(|name| environment.get(*name));
    Ok(builder
        .with_container_name(&address.bucket)
        .with_retry(once())
        .with_client_options(options(endpoint.map(String::as_str), address, environment)?)
        .with_http_connector(Watching))
}
