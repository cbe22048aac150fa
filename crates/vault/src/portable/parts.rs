//! A stream in files below a size, with their sums as `sha256sum` writes them.
//!
//! Invariant: `SHA256SUMS` is written last, when every part is durable; until then a file says that the export is not finished, and a new
//! export into the directory begins anew.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

use super::PortableError;
use crate::crypt::hex;

pub const SUMS: &str = "SHA256SUMS";
/// Stands in the directory while an export is at work.
pub const UNFINISHED: &str = "UNFINISHED";
const README: &str = "README.txt";
/// More parts than this are a mistake in the size.
const PARTS_MAX: usize = 9999;
/// Of the sums of so many parts.
const SUMS_BYTES_MAX: u64 = 4 << 20;

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

struct Current {
    file: File,
    name: String,
    bytes: u64,
    digest: Context,
}

/// Takes a stream and cuts it.
pub struct Parts {
    directory: PathBuf,
    /// What parts are called, before their number.
    stem: String,
    bytes_max: u64,
    current: Option<Current>,
    done: Vec<Part>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> PortableError + use<> {
    let path = path.display().to_string();
    move |source| PortableError::File { path, doing, source }
}

impl Parts {
    /// Begins in an empty or new directory, or in one where an export broke off.
    pub fn begin(directory: &Path, stem: &str, bytes_max: u64) -> Result<Parts, PortableError> {
        fs::create_dir_all(directory).map_err(failed(directory, "making it"))?;
        let marker = directory.join(UNFINISHED);
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed(directory, "listing it"))? {
            names.push(entry.map_err(failed(directory, "listing it"))?.file_name());
        }
        let is_ours = |name: &std::ffi::OsString| {
            let name = name.to_string_lossy();
            name == UNFINISHED || name == README || is_part(&name)
        };
        let begun = marker.exists() && names.iter().all(is_ours);
        if !begun && !names.is_empty() {
            return Err(PortableError::NotEmpty { path: directory.display().to_string() });
        }
        let text = "An export is being written here, or broke off. Run it again: it begins anew.\n";
        fs::write(&marker, text).map_err(failed(&marker, "writing it"))?;
        for name in names.iter().filter(|name| *name != UNFINISHED) {
            let path = directory.join(name);
            fs::remove_file(&path).map_err(failed(&path, "removing what an export that broke off left"))?;
        }
        let (directory, stem) = (directory.to_owned(), stem.to_owned());
        Ok(Parts { directory, stem, bytes_max: bytes_max.max(1), current: None, done: Vec::new() })
    }

    fn open(&mut self) -> io::Result<&mut Current> {
        if self.current.is_none() {
            if self.done.len() >= PARTS_MAX {
                return Err(io::Error::other(format!("more than {PARTS_MAX} parts; let them be larger")));
            }
            let name = format!("{}.{:04}", self.stem, self.done.len() + 1);
            let file = File::create_new(self.directory.join(&name))?;
            self.current = Some(Current { file, name, bytes: 0, digest: Context::new(&SHA256) });
        }
        self.current.as_mut().ok_or_else(|| io::Error::other("no part is open"))
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some(current) = self.current.take() {
            current.file.sync_all()?;
            let sha256 = hex(current.digest.finish().as_ref());
            self.done.push(Part { name: current.name, bytes: current.bytes, sha256 });
        }
        Ok(())
    }

    /// Completes the archive: README, then the sums.
    pub fn finish(mut self, readme: impl FnOnce(&[Part]) -> String) -> Result<Vec<Part>, PortableError> {
        self.close().map_err(PortableError::Write)?;
        let readme = readme(&self.done);
        let digest = aws_lc_rs::digest::digest(&SHA256, readme.as_bytes());
        write_durably(&self.directory.join(README), readme.as_bytes())?;
        let mut sums: String = self.done.iter().map(|part| format!("{}  {}\n", part.sha256, part.name)).collect();
        sums.push_str(&format!("{}  {README}\n", hex(digest.as_ref())));
        write_durably(&self.directory.join(SUMS), sums.as_bytes())?;
        let marker = self.directory.join(UNFINISHED);
        fs::remove_file(&marker).map_err(failed(&marker, "removing it"))?;
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(failed(&self.directory, "making it durable"))?;
        Ok(self.done)
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), PortableError> {
    let write = || -> io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed(path, "writing it"))
}

fn is_part(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, number)| {
        stem.contains(".tar.zst") && number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let bytes_max = self.bytes_max;
        let current = self.open()?;
        let now = (bytes_max - current.bytes).min(bytes.len() as u64) as usize;
        let written = current.file.write(bytes.get(..now).unwrap_or_default())?;
        current.digest.update(bytes.get(..written).unwrap_or_default());
        current.bytes += written as u64;
        if current.bytes >= bytes_max {
            self.close()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.current.as_mut().map_or(Ok(()), |current| current.file.flush())
    }
}

/// Reads the parts of an archive against its sums, all of them; their paths in order.
pub fn verify_parts(directory: &Path, progress: &mut dyn FnMut(u64) -> bool) -> Result<Vec<PathBuf>, PortableError> {
    let path = directory.join(SUMS);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PortableError::NoSums { path: directory.display().to_string() });
        }
        other => other.map_err(failed(&path, "reading it"))?,
    };
    let mut sums = Vec::new();
    file.take(SUMS_BYTES_MAX + 1).read_to_end(&mut sums).map_err(failed(&path, "reading it"))?;
    let mut parts = Vec::new();
    for (name, sum) in listed(&sums).map_err(|why| PortableError::Sums { why })? {
        let path = directory.join(&name);
        if !path.is_file() {
            return Err(PortableError::Missing { name });
        }
        if sum_of(&path, progress)? != sum {
            return Err(PortableError::Damaged { name });
        }
        parts.push(path);
    }
    Ok(parts)
}

/// The parts that sums name, in order, none missing; or what is wrong with them. The last line is the README's: where it is there, nothing was cut off.
pub(crate) fn listed(sums: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
    if sums.len() as u64 > SUMS_BYTES_MAX {
        return Err("it is too long");
    }
    let text = std::str::from_utf8(sums).map_err(|_| "it is no text")?;
    let mut parts: Vec<(String, String)> = Vec::new();
    let (mut stem, mut ends) = ("", false);
    for line in text.lines() {
        let (sum, name) = line.split_once("  ").ok_or("a line is no sum of a file")?;
        if name == README {
            ends = true;
            continue;
        }
        let number = name.rsplit_once('.').filter(|_| is_part(name) && !name.contains('/'));
        let (of, number) = number.ok_or("a line is no sum of a part")?;
        if parts.is_empty() {
            stem = of;
        }
        if ends || of != stem || number.parse() != Ok(parts.len() + 1) {
            return Err("it does not name the parts one after the other");
        }
        parts.push((name.to_owned(), sum.to_owned()));
    }
    match (parts.is_empty(), ends) {
        (true, _) => Err("it names no part"),
        (_, false) => Err("its end is missing"),
        _ => Ok(parts),
    }
}

fn sum_of(path: &Path, progress: &mut dyn FnMut(u64) -> bool) -> Result<String, PortableError> {
    let mut file = File::open(path).map_err(failed(path, "opening it"))?;
    let (mut digest, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(failed(path, "reading it"))?;
        if read == 0 {
            return Ok(hex(digest.finish().as_ref()));
        }
        digest.update(buffer.get(..read).unwrap_or_default());
        if !progress(read as u64) {
            return Err(PortableError::Cancelled);
        }
    }
}

/// The parts as one stream again.
#[derive(Debug)]
pub struct Joined {
    waiting: std::vec::IntoIter<PathBuf>,
    current: Option<File>,
}

impl Joined {
    pub fn new(parts: Vec<PathBuf>) -> Joined {
        Joined { waiting: parts.into_iter(), current: None }
    }
}

impl Read for Joined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.current {
                let read = file.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
            }
            match self.waiting.next() {
                Some(path) => self.current = Some(File::open(path)?),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn sums_name_every_part_and_their_own_end() {
        let text = |lines: &[&str]| lines.iter().map(|line| format!("00  {line}\n")).collect::<String>();
        let said = |lines: &[&str]| match listed(text(lines).as_bytes()) {
            Ok(parts) => format!("{} parts", parts.len()),
            Err(why) => why.to_owned(),
        };
        let (one, two, three) = ("a.tar.zst.age.0001", "a.tar.zst.age.0002", "a.tar.zst.age.0003");
        assert_eq!(said(&[one, two, "README.txt"]), "2 parts");
        assert_eq!(said(&[one, two]), "its end is missing");
        assert_eq!(said(&["README.txt"]), "it names no part");
        let order = "it does not name the parts one after the other";
        for lines in [&[one, three, "README.txt"], &[two, one, "README.txt"], &[one, one, "README.txt"]] {
            assert_eq!(said(lines), order);
        }
        assert_eq!(said(&[one, "b.tar.zst.age.0002", "README.txt"]), order);
        assert_eq!(said(&[one, "README.txt", two]), order);
        assert_eq!(said(&["../a.tar.zst.age.0001", "README.txt"]), "a line is no sum of a part");
        assert_eq!(listed(b"nonsense\n"), Err("a line is no sum of a file"));
        assert_eq!(listed(&vec![b'\n'; 5 << 20]), Err("it is too long"));
    }
}
