//! Text with a meaning: what each kind must look like, and what to say when it does not.
//!
//! Invariant: what a kind accepts here, its JSON Schema pattern accepts, too.

use core::net::{IpAddr, SocketAddr};

use crate::units::{Price, Rate, Size, Span};

/// What a piece of text in a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything but nothing.
    Plain,
    /// May hold `{{ … }}`.
    Template,
    /// The name of something that the plan declares.
    Name,
    Path,
    Duration,
    Size,
    Rate,
    /// Money for each of this unit.
    Money(&'static str),
    /// Five fields, UTC.
    Cron,
    /// An age public key.
    Recipient,
    /// 64 hex digits.
    PublicKey,
    IpAddress,
    /// Address and port.
    Listen,
    /// Fully qualified, with its final dot.
    DomainName,
    /// `METHOD /path`.
    Exchange,
    /// `/path`, or a whole HTTP URL.
    HttpPath,
    /// Storage: `file:///…`, a bare path, `s3://…`.
    StorageUrl,
    /// Where to send a message: `mailto:…`, `https://…`.
    NotifyUrl,
    /// When nothing may happen by itself: `mon-fri 09:00-17:00`.
    Window,
}

/// Why a text is not of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) help: String,
}

impl Kind {
    /// How the reference names it.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Plain => "text",
            Kind::Template => "text, templates allowed",
            Kind::Name => "name",
            Kind::Path => "path",
            Kind::Duration => "duration",
            Kind::Size => "size",
            Kind::Rate => "rate",
            Kind::Money(_) => "money",
            Kind::Cron => "cron line",
            Kind::Recipient => "age recipient",
            Kind::PublicKey => "public key",
            Kind::IpAddress => "IP address",
            Kind::Listen => "IP address and port",
            Kind::DomainName => "domain name",
            Kind::Exchange => "HTTP method and path",
            Kind::HttpPath => "HTTP path or URL",
            Kind::StorageUrl => "storage URL",
            Kind::NotifyUrl => "URL to notify",
            Kind::Window => "time window",
        }
    }

    /// An ECMA regular expression for editors; at most as strict as `check`.
    pub(super) fn pattern(self) -> Option<&'static str> {
        Some(match self {
            Kind::Plain | Kind::Template | Kind::Path => return None,
            Kind::Name => NAME_PATTERN,
            Kind::Duration => r"^\s*([0-9]+\s*(ms|s|m|h|d|w)\s*)+$",
            Kind::Size => r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtTpP][iI]?)?[bB]\s*$",
            Kind::Rate => r"^\s*[0-9]+(\.[0-9]+)?\s*[kKmMgGtTpP]?[iI]?([bB]|[bB][iI][tT])/s\s*$",
            Kind::Money("h") => r"^\s*[0-9]+(\.[0-9]+)?\s*[A-Z]{3}\s*/\s*h\s*$",
            Kind::Money(_) => r"^\s*[0-9]+(\.[0-9]+)?\s*[A-Z]{3}\s*/\s*[A-Za-z]+(/[A-Za-z]+)*\s*$",
            Kind::Cron => r"^\s*\S+\s+\S+\s+\S+\s+\S+\s+\S+\s*$",
            Kind::Recipient => "^age1[0-9a-z]+$",
            Kind::PublicKey => "^[0-9a-fA-F]{64}$",
            Kind::IpAddress => r"^[0-9a-fA-F.:]+$",
            Kind::Listen => r"^[\[\]0-9a-fA-F.:]+:[0-9]+$",
            Kind::DomainName => r"^([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)+$",
            Kind::Exchange => r"^(GET|HEAD|POST|PUT|PATCH|DELETE) /",
            Kind::HttpPath => "^(/|https?://)",
            Kind::StorageUrl => "^(/|\\.|[a-z][a-z0-9+.-]*:)",
            Kind::NotifyUrl => "^(mailto|https?):",
            Kind::Window => {
                r"^(mon|tue|wed|thu|fri|sat|sun|daily)(-(mon|tue|wed|thu|fri|sat|sun))? [0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}$"
            }
        })
    }

    pub(super) fn check(self, text: &str) -> Result<(), Wrong> {
        if text.trim().is_empty() {
            return wrong(
                "P0111",
                "this text is empty".to_owned(),
                &format!("write a {} or take the key out", self.title()),
            );
        }
        match self {
            Kind::Plain | Kind::Template => Ok(()),
            Kind::Path if text.contains('\0') => {
                wrong("P0111", "a path cannot hold a zero byte".to_owned(), "take it out")
            }
            Kind::Path => Ok(()),
            Kind::Name => name(text),
            Kind::Duration => unit::<Span>(text, "P0104", "a sum works, too: \"1h 30m\""),
            Kind::Size => {
                unit::<Size>(text, "P0106", "decimal (kB, MB, GB, TB) and binary (KiB, MiB, GiB, TiB) units work")
            }
            Kind::Rate => unit::<Rate>(text, "P0106", "bytes (MB/s) and bits (Mbit/s) work"),
            Kind::Money(per) => money(text, per),
            Kind::Cron => cron(text),
            Kind::Recipient => recipient(text),
            Kind::PublicKey => public_key(text),
            Kind::IpAddress => match text.parse::<IpAddr>() {
                Ok(_) => Ok(()),
                Err(_) => wrong(
                    "P0115",
                    format!("`{text}` is not an IP address"),
                    "write it as 127.0.11.1 or fd00::1; names are not looked up",
                ),
            },
            Kind::Listen => match text.parse::<SocketAddr>() {
                Ok(address) if address.port() > 0 => Ok(()),
                _ => wrong(
                    "P0115",
                    format!("`{text}` is not an IP address and a port"),
                    "write it as 127.0.9.53:53 or [fd00::53]:53",
                ),
            },
            Kind::DomainName => domain_name(text),
            Kind::Exchange => exchange(text),
            Kind::HttpPath if text.starts_with('/') || is_http(text) => Ok(()),
            Kind::HttpPath => wrong(
                "P0117",
                format!("`{text}` is neither a path nor an HTTP URL"),
                "write a path such as \"/healthz\"; it is asked for at the instance's address and port",
            ),
            Kind::StorageUrl => storage_url(text),
            Kind::NotifyUrl if text.starts_with("mailto:") || is_http(text) => Ok(()),
            Kind::NotifyUrl => wrong(
                "P0118",
                format!("`{text}` is no URL that can be notified"),
                "write mailto:someone@example.com or https://…",
            ),
            Kind::Window => window(text),
        }
    }
}

fn wrong(code: &'static str, message: String, help: &str) -> Result<(), Wrong> {
    Err(Wrong { code, message, help: help.to_owned() })
}

/// Names stand in file names, DNS labels and log keys: lower case is not forced, odd characters are refused.
pub(super) const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$";

pub(super) fn name(text: &str) -> Result<(), Wrong> {
    let well_formed = text.len() <= 63
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if well_formed {
        return Ok(());
    }
    wrong(
        "P0112",
        format!("`{text}` cannot be a name"),
        "a name has up to 63 letters, digits, `-` and `_`, and begins with a letter or digit",
    )
}

fn unit<T: std::str::FromStr<Err = crate::units::UnitError>>(
    text: &str,
    code: &'static str,
    help: &str,
) -> Result<(), Wrong> {
    match text.parse::<T>() {
        Ok(_) => Ok(()),
        Err(error) => wrong(code, error.message, help),
    }
}

fn money(text: &str, per: &str) -> Result<(), Wrong> {
    let example = format!("write it as \"4000 EUR/{per}\"");
    match text.parse::<Price>() {
        Err(error) => wrong("P0105", error.message, &example),
        Ok(price) if price.per == per => Ok(()),
        Ok(price) if price.per.is_empty() => wrong("P0105", format!("`{text}` does not say for what"), &example),
        Ok(price) => wrong("P0105", format!("this is money for each {per}, not for each {}", price.per), &example),
    }
}

fn cron(text: &str) -> Result<(), Wrong> {
    let help = "five fields, in UTC: minute hour day-of-month month day-of-week, such as \"30 2 * * *\" for every night at 02:30";
    if text.split_whitespace().count() != 5 {
        return wrong("P0107", format!("`{text}` is not a cron line"), help);
    }
    match text.parse::<croner::Cron>() {
        Ok(_) => Ok(()),
        Err(error) => wrong("P0107", format!("`{text}` is not a cron line: {error}"), help),
    }
}

fn recipient(text: &str) -> Result<(), Wrong> {
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return wrong(
            "P0403",
            "a private key stands in the plan".to_owned(),
            "take it out, make a new key (`lifeboat key new`), and write its recipient (age1…) here",
        );
    }
    let data = text.strip_prefix("age1").unwrap_or_default();
    // The alphabet of Bech32; the checksum is looked at when the key is used.
    if !data.is_empty() && data.bytes().all(|byte| b"023456789acdefghjklmnpqrstuvwxyz".contains(&byte)) {
        return Ok(());
    }
    wrong(
        "P0114",
        format!("`{text}` is not an age recipient"),
        "a recipient begins with age1; `lifeboat key new` prints it, `lifeboat key inspect` shows it",
    )
}

fn public_key(text: &str) -> Result<(), Wrong> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    wrong(
        "P0119",
        format!("`{text}` is not a public key"),
        "64 hexadecimal digits, as `lifeboat key inspect` prints them",
    )
}

fn domain_name(text: &str) -> Result<(), Wrong> {
    let help = "write the whole name with its final dot, such as \"shop.example.com.\"";
    let Some(labels) = text.strip_suffix('.') else {
        return wrong("P0116", format!("`{text}` is not a fully qualified name"), help);
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if text.len() <= 254 && labels.split('.').all(label) {
        return Ok(());
    }
    wrong("P0116", format!("`{text}` is not a domain name"), help)
}

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

fn exchange(text: &str) -> Result<(), Wrong> {
    match text.split_once(' ') {
        Some((method, path)) if METHODS.contains(&method) && path.starts_with('/') && !path.contains(' ') => Ok(()),
        _ => wrong(
            "P0117",
            format!("`{text}` is not an HTTP method and a path"),
            "write it as \"GET /canary\" or \"POST /canary\"",
        ),
    }
}

fn is_http(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}

/// Schemes that mean something to lifeboat; which of them this version opens is told by `check`.
pub(super) const STORAGE_SCHEMES: [&str; 5] = ["file", "s3", "gs", "az", "memory"];

fn storage_url(text: &str) -> Result<(), Wrong> {
    let help = "write file:///path, a bare path, or s3://bucket";
    match text.split_once(':') {
        Some(("memory", _)) => Ok(()),
        Some(("file", rest)) if rest.starts_with("///") => Ok(()),
        Some(("file", _)) => wrong(
            "P0118",
            format!("`{text}` is not a path as a URL"),
            "a file URL has three slashes and a whole path: file:///srv/lifeboat",
        ),
        Some(("s3" | "gs" | "az", rest)) if rest.strip_prefix("//").is_some_and(|bucket| !bucket.is_empty()) => {
            bucket(text, rest.trim_start_matches('/'))
        }
        Some((scheme, _)) if STORAGE_SCHEMES.contains(&scheme) => {
            wrong("P0118", format!("`{text}` does not say where"), help)
        }
        Some((scheme, rest)) if rest.starts_with("//") => {
            wrong("P0118", format!("there is no storage `{scheme}:`"), help)
        }
        // Agents, controllers and name servers use it, each started in a directory of its own.
        _ if !text.starts_with('/') => wrong(
            "P0118",
            format!("`{text}` depends on the directory that lifeboat is started in"),
            "write the whole path",
        ),
        _ => Ok(()),
    }
}

/// A plan holds the place where a secret is, never the secret; and what follows a `?` would be nobody's option.
fn bucket(text: &str, rest: &str) -> Result<(), Wrong> {
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.split_once('@').is_some_and(|(before, _)| before.is_empty() || before.contains(':')) {
        return wrong(
            "P0118",
            "what stands before the @ is not a profile's name".to_owned(),
            "write s3://PROFILE@BUCKET; keys belong into the environment or ~/.aws/credentials",
        );
    }
    if rest.contains(['?', '#']) {
        return wrong(
            "P0118",
            format!("`{}` takes no options", text.split(['?', '#']).next().unwrap_or_default()),
            "endpoint and region come from the environment or a profile (s3://PROFILE@BUCKET)",
        );
    }
    Ok(())
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn window(text: &str) -> Result<(), Wrong> {
    let time = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let two = |part: &str, below: u32| {
            (part.len() == 2).then(|| part.parse::<u32>().ok()).flatten().filter(|number| *number < below)
        };
        Some((two(hour, 24)?, two(minute, 60)?))
    };
    let days = |text: &str| match text.split_once('-') {
        Some((first, last)) => DAYS.contains(&first) && DAYS.contains(&last),
        None => text == "daily" || DAYS.contains(&text),
    };
    let well_formed = text.split_once(' ').is_some_and(|(when, hours)| {
        days(when) && hours.split_once('-').is_some_and(|(from, to)| time(from).is_some() && time(to).is_some())
    });
    if well_formed {
        return Ok(());
    }
    wrong(
        "P0121",
        format!("`{text}` is not a time window"),
        "write it as \"mon-fri 09:00-17:00\" or \"daily 02:00-04:00\" (UTC)",
    )
}
