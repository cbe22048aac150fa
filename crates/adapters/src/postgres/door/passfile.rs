//! libpq's password file: `host:port:database:user:password`, one a line, the first that fits counts.
//!
//! Invariant: a file that group or others may read is not believed, as libpq does not, and whoever then lacks a password is told so.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Secret;

/// Far more than anyone writes by hand.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a line must be about. Of several databases each may be meant.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) databases: &'a [&'a str],
    pub(super) user: &'a str,
}

/// What a password file had to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::postgres) enum Looked {
    Found(Secret),
    NotListed,
    Absent,
    /// It is there and was not read; why.
    Ignored(String),
}

pub(super) fn find(path: &Path, wanted: &Wanted<'_>) -> Looked {
    match read(path) {
        Ok(text) => text
            .split(|byte| *byte == b'\n')
            .find_map(|line| password(line.strip_suffix(b"\r").unwrap_or(line), wanted))
            .map_or(Looked::NotListed, |password| Looked::Found(Secret::new(password))),
        Err(None) => Looked::Absent,
        Err(Some(why)) => {
            tracing::warn!(path = %path.display(), why, "the password file is not used");
            Looked::Ignored(why)
        }
    }
}

/// `Err(None)` if there is none.
fn read(path: &Path) -> Result<Vec<u8>, Option<String>> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => None,
        _ => Some(format!("it cannot be read ({error})")),
    };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Some("it is no plain file".to_owned()));
    }
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(Some("group or others may read it: `chmod 600` it".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The password of a line, if it is about what is wanted.
pub(super) fn password(line: &[u8], wanted: &Wanted<'_>) -> Option<Vec<u8>> {
    if line.starts_with(b"#") {
        return None;
    }
    let rest = after_match(line, wanted.host)?;
    let rest = after_match(rest, &wanted.port.to_string())?;
    let rest = wanted.databases.iter().find_map(|database| after_match(rest, database))?;
    let rest = after_match(rest, wanted.user)?;
    Some(field(rest).0).filter(|password| !password.is_empty())
}

/// A file that no disk has, which only `owner` may open, with this password for whatever server.
pub(super) fn in_memory(password: &Secret, (user, group): (u32, u32)) -> io::Result<File> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "no password file can hold the password");
    let line = line(password).ok_or_else(odd)?;
    let mut file = File::from(rustix::fs::memfd_create("passfile", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
    io::Write::write_all(&mut file, &line)?;
    Ok(file)
}

/// None for a password that no line can hold.
fn line(password: &Secret) -> Option<Vec<u8>> {
    let mut line = b"*:*:*:*:".to_vec();
    for byte in password.expose() {
        match byte {
            b'\n' | b'\r' | 0 => return None,
            b':' | b'\\' => line.extend([b'\\', *byte]),
            byte => line.push(*byte),
        }
    }
    line.push(b'\n');
    Some(line)
}

/// What follows the first field, if that is `wanted` or `*`.
fn after_match<'a>(line: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let (value, rest) = field(line);
    rest.filter(|_| value == wanted.as_bytes())
}

/// The first field without its backslashes, and what stands behind its colon.
fn field(line: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut value = Vec::new();
    let mut at = 0;
    while at < line.len() {
        match line[at] {
            b':' => return (value, Some(&line[at + 1..])),
            b'\\' if at + 1 < line.len() => at += 1,
            _ => {}
        }
        value.push(line[at]);
        at += 1;
    }
    (value, None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const WANTED: Wanted<'static> =
        Wanted { host: "db.example", port: 5432, databases: &["replication", "shop"], user: "boat" };

    fn said(line: &str) -> Option<String> {
        password(line.as_bytes(), &WANTED).map(|password| String::from_utf8(password).unwrap())
    }

    #[test]
    fn a_line_counts_if_each_of_its_fields_does() {
        for line in [
            "db.example:5432:shop:boat:pw",
            "db.example:5432:replication:boat:pw",
            "*:*:*:*:pw",
            r"db\.example:54\32:*:b\oat:pw",
            "*:*:*:*:pw:what follows a colon is not it",
        ] {
            assert_eq!(said(line).as_deref(), Some("pw"), "{line}");
        }
        assert_eq!(said(r"*:*:*:*:a\:b\\c").as_deref(), Some(r"a:b\c"));
        for line in [
            "",
            "#db.example:5432:shop:boat:pw",
            "db.example",
            "db.example:5432:shop:boat",
            "db.example:5432:shop:boat:",
            "db.example:5433:shop:boat:pw",
            "other:5432:shop:boat:pw",
            "db.example:5432:other:boat:pw",
            "db.example:5432:shop:other:pw",
            "**:5432:shop:boat:pw",
            r"\*:5432:shop:boat:pw",
        ] {
            assert_eq!(said(line), None, "{line}");
        }
    }

    #[test]
    fn the_first_line_that_fits_counts_and_a_file_that_others_read_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pass");
        assert_eq!(find(&path, &WANTED), Looked::Absent);
        std::fs::write(&path, "other:*:*:*:no\n*:*:*:boat:first\r\n*:*:*:*:second\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(find(&path, &WANTED), Looked::Found(Secret::new(b"first".to_vec())));
        assert_eq!(
            find(&path, &Wanted { user: "x", host: "y", ..WANTED }),
            Looked::Found(Secret::new(b"second".to_vec()))
        );
        for mode in [0o640, 0o604, 0o660, 0o601] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(find(&path, &WANTED), Looked::Ignored(why) if why.contains("chmod 600")), "{mode:o}");
        }
        assert!(matches!(find(folder.path(), &WANTED), Looked::Ignored(why) if why.contains("plain file")));
        std::fs::write(&path, "other:*:*:*:no\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(find(&path, &WANTED), Looked::NotListed);
    }
}
