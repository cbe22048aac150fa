//! tar as POSIX has it (pax), with what GNU tar adds for holes and for names that are no text.
//!
//! What fits a plain header stands there alone; what does not (long names, large sizes, nanoseconds, attributes, holes) stands in a pax header before it, or,
//! where pax wants text and a name is none, in GNU's header for long names. Invariant: every entry is padded to whole blocks, so that one entry's
//! length decides where the next begins.

use std::io::{self, Write};

const BLOCK: usize = 512;
/// The largest number in eleven octal digits.
const OCTAL_MAX: u64 = 0o777_7777_7777;
const ID_MAX: u32 = 0o777_7777;

/// What stands in an entry's header.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry<'a> {
    pub(super) path: &'a [u8],
    /// `0` file, `1` hard link, `2` symbolic link, `5` directory, `6` FIFO.
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    /// Of the content that follows.
    pub(super) size: u64,
    pub(super) link: &'a [u8],
    pub(super) xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// The whole file's length, where the content begins with a map of its data.
    pub(super) sparse: Option<u64>,
}

pub(super) struct TarWriter<W: Write> {
    out: W,
    /// Bytes of content still to come, and what pads them.
    left: u64,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(out: W) -> Self {
        TarWriter { out, left: 0, padding: 0 }
    }

    /// Begins an entry; its content follows by `content`.
    pub(super) fn begin(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let mut pax = Vec::new();
        let header_path: Vec<u8> = match entry.sparse {
            Some(size) => {
                record(&mut pax, b"GNU.sparse.major", b"1");
                record(&mut pax, b"GNU.sparse.minor", b"0");
                record(&mut pax, b"GNU.sparse.name", entry.path);
                record(&mut pax, b"GNU.sparse.realsize", size.to_string().as_bytes());
                let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                let name = name.get(..name.len().min(80)).unwrap_or_default();
                [b"GNUSparseFile.0/", name].concat()
            }
            None => entry.path.to_vec(),
        };
        if header_path.len() > 100 {
            self.long(&mut pax, (b"path", b'L'), &header_path)?;
        }
        if entry.link.len() > 100 {
            self.long(&mut pax, (b"linkpath", b'K'), entry.link)?;
        }
        let (seconds, nanos) = entry.mtime;
        if nanos != 0 || u64::try_from(seconds).map_or(true, |seconds| seconds > OCTAL_MAX) {
            record(&mut pax, b"mtime", decimal(seconds, nanos).as_bytes());
        }
        if entry.size > OCTAL_MAX {
            record(&mut pax, b"size", entry.size.to_string().as_bytes());
        }
        for (name, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
            if id > ID_MAX {
                record(&mut pax, name, id.to_string().as_bytes());
            }
        }
        for (name, value) in entry.xattrs {
            let name = String::from_utf8_lossy(name).replace('%', "%25").replace('=', "%3D");
            record(&mut pax, format!("SCHILY.xattr.{name}").as_bytes(), value);
        }
        if !pax.is_empty() {
            let head = Entry {
                path: b"PaxHeaders/entry",
                kind: b'x',
                mode: 0o644,
                size: pax.len() as u64,
                ..Entry::default()
            };
            self.out.write_all(&header(head.path, &head))?;
            self.out.write_all(&pax)?;
            self.out.write_all(zeros(pax.len() as u64))?;
        }
        self.out.write_all(&header(&header_path, entry))?;
        self.left = entry.size;
        self.padding = zeros(entry.size).len();
        Ok(())
    }

    /// A name that does not fit: in pax where it is text, in GNU's way where it is not.
    fn long(&mut self, pax: &mut Vec<u8>, (key, kind): (&[u8], u8), name: &[u8]) -> io::Result<()> {
        if std::str::from_utf8(name).is_ok() {
            record(pax, key, name);
            return Ok(());
        }
        let mut content = name.to_vec();
        content.push(0);
        let head = Entry { kind, mode: 0o644, size: content.len() as u64, ..Entry::default() };
        self.out.write_all(&header(b"././@LongLink", &head))?;
        self.out.write_all(&content)?;
        self.out.write_all(zeros(content.len() as u64))
    }

    /// Content of the entry that was begun; its end is padded.
    pub(super) fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("an entry has more content than was said"))?;
        self.out.write_all(bytes)?;
        if self.left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.out.write_all(ZEROS.get(..padding).unwrap_or_default())?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if self.left > 0 {
            return Err(io::Error::other("an entry has less content than was said"));
        }
        // Two empty blocks end an archive.
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What pads so many bytes to whole blocks.
fn zeros(length: u64) -> &'static [u8] {
    let over = (length % BLOCK as u64) as usize;
    ZEROS.get(..(BLOCK - over) % BLOCK).unwrap_or_default()
}

/// `LENGTH key=value\n`, where the length counts itself.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let bare = key.len() + value.len() + 3;
    let mut length = bare + 1;
    while bare + length.to_string().len() != length {
        length = bare + length.to_string().len();
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

fn decimal(seconds: i64, nanos: u32) -> String {
    if seconds < 0 && nanos > 0 {
        // −1.25 s is two seconds back and 0.75 s on.
        let whole = seconds + 1;
        let sign = if whole == 0 { "-" } else { "" };
        return format!("{sign}{whole}.{:09}", 1_000_000_000 - nanos);
    }
    format!("{seconds}.{nanos:09}")
}

fn header(path: &[u8], entry: &Entry<'_>) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, length: usize, bytes: &[u8]| {
        let bytes = bytes.get(..bytes.len().min(length)).unwrap_or_default();
        if let Some(place) = block.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let id = |id: u32| if id > ID_MAX { 0 } else { id };
    let small = |number: u64| if number > OCTAL_MAX { 0 } else { number };
    put(0, 100, path);
    put(100, 8, format!("{:07o}", entry.mode).as_bytes());
    put(108, 8, format!("{:07o}", id(entry.uid)).as_bytes());
    put(116, 8, format!("{:07o}", id(entry.gid)).as_bytes());
    put(124, 12, format!("{:011o}", small(entry.size)).as_bytes());
    put(136, 12, format!("{:011o}", small(u64::try_from(entry.mtime.0).unwrap_or(0))).as_bytes());
    put(148, 8, b"        ");
    put(156, 1, &[entry.kind]);
    put(157, 100, entry.link);
    put(257, 8, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(place) = block.get_mut(148..156) {
        place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    block
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        for length in [0, 1, 4, 5, 80, 90, 95, 985, 990, 993, 9980, 9990] {
            let mut pax = Vec::new();
            record(&mut pax, b"key", &vec![b'x'; length]);
            let text = String::from_utf8(pax.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), pax.len());
        }
    }

    #[test]
    fn times_before_1970_are_written_as_they_are_read() {
        assert_eq!(decimal(-2, 750_000_000), "-1.250000000");
        assert_eq!(decimal(-1, 500_000_000), "-0.500000000");
        assert_eq!(decimal(7, 5), "7.000000005");
    }

    #[test]
    fn more_than_eleven_digits_go_into_pax() {
        let mut out = Vec::new();
        let mut tar = TarWriter::new(&mut out);
        let entry = Entry { path: b"large", kind: b'0', size: 9 << 30, uid: u32::MAX - 1, ..Entry::default() };
        tar.begin(&entry).unwrap();
        let text = String::from_utf8_lossy(&out).into_owned();
        assert!(text.contains("19 size=9663676416\n") && text.contains("18 uid=4294967294\n"), "{text}");
    }
}
