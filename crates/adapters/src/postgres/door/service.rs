//! libpq's service files: named ways to a server.
//!
//! Read as libpq reads them: only the first section of the name counts, in it the first of equal keys, and what stands in other sections is
//! nobody's business here. Invariant: a value is never in an error's text, for it may be a password.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::DoorError;
use super::keys::{Kind, kind_of};

/// A line of a section: the key, its value, and the line's number.
pub(super) type Setting = (&'static str, String, usize);

/// Far more than anyone writes by hand.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where services may stand, first wins.
pub(super) struct Places {
    /// Named by PGSERVICEFILE, so it must be there.
    pub(super) named: Option<PathBuf>,
    pub(super) of_user: Option<PathBuf>,
    pub(super) of_system: PathBuf,
}

/// The settings of a service, and the file that they stand in.
pub(super) fn find(name: &str, places: &Places) -> Result<(Vec<Setting>, PathBuf), DoorError> {
    let mut looked = Vec::new();
    let first = places.named.as_ref().or(places.of_user.as_ref());
    for path in first.into_iter().chain([&places.of_system]) {
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && places.named.as_ref() != Some(path) => {
                looked.push(path.clone());
                continue;
            }
            Err(source) => return Err(DoorError::File { path: path.clone(), source }),
        };
        if let Some(settings) = section(name, &text, path)? {
            return Ok((settings, path.clone()));
        }
        looked.push(path.clone());
    }
    Err(DoorError::NoService { name: name.to_owned(), looked })
}

/// A file that a person wrote, or a server about itself.
pub(in crate::postgres) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8"))
}

/// `None` if there is no such section.
pub(super) fn section(name: &str, text: &str, path: &Path) -> Result<Option<Vec<Setting>>, DoorError> {
    let mut settings: Option<Vec<Setting>> = None;
    for (line, text) in text.lines().enumerate().map(|(index, text)| (index + 1, text.trim())) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(rest) = text.strip_prefix('[') {
            if settings.is_some() {
                break;
            }
            if rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(']')) {
                settings = Some(Vec::new());
            }
            continue;
        }
        let Some(settings) = &mut settings else { continue };
        let malformed = |what: String| DoorError::Line { path: path.to_owned(), line, what };
        if text.starts_with("ldap") && !text.starts_with("ldap=") {
            return Err(malformed(
                "asks an LDAP server, which lifeboat does not do: write the settings here".to_owned(),
            ));
        }
        let Some((key, value)) = text.split_once('=') else {
            return Err(malformed("is not `key=value`".to_owned()));
        };
        if key == "service" {
            return Err(malformed("names another service: services do not nest".to_owned()));
        }
        let known = super::keys::KEYS.iter().map(|(known, _, _)| *known).find(|known| *known == key);
        let Some(key) = known else {
            let shown: String = key.chars().take(40).collect();
            return Err(malformed(format!(
                "has the key `{shown}`, which is none of libpq's (no space before the `=`)"
            )));
        };
        if let Some(Kind::Only(values, why)) = kind_of(key)
            && !value.is_empty()
            && !values.contains(&value)
        {
            return Err(malformed(format!("sets `{key}` to what lifeboat cannot do: {why}")));
        }
        if !settings.iter().any(|(earlier, _, _)| *earlier == key) {
            settings.push((key, value.to_owned(), line));
        }
    }
    Ok(settings)
}
