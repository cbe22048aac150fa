//! A base backup: `pg_basebackup` as a child process, its archive stored as it comes.
//!
//! Invariant: nothing counts before the child has ended with 0: it finds damaged pages while it sends, and says so at its end.

use std::ffi::OsString;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use lifeboat_engine::port::Cancel;
use lifeboat_vault::files::{Metadata, Progress, TreeSummary};
use lifeboat_vault::{ChunkSink, SessionOptions};

use super::facts::{self, Facts, FactsError};
use super::tree::{Gathering, TreeError};
use crate::postgres::door::Door;
use crate::postgres::lsn::Lsn;
use crate::postgres::output::{OutputError, Running};
use crate::postgres::programs::Programs;

#[derive(Debug, thiserror::Error)]
pub(super) enum BaseError {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("cannot {what} {}", path.display())]
    Spool {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Facts(#[from] FactsError),
}

/// Where the log that the files need comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// It comes with the files.
    Within,
    /// A stream ships it.
    Shipped,
}

/// What is to be taken, and where from.
pub(super) struct Wish<'a> {
    pub(super) door: &'a Door,
    pub(super) programs: &'a Programs,
    pub(super) log: Log,
    /// With tablespaces of its own, a cluster comes as several archives, and through a directory.
    pub(super) has_tablespaces: bool,
    /// A directory of this host's for what passes through.
    pub(super) spool: &'a Path,
    /// Where the pages of relations are remembered.
    pub(super) pages: &'a Path,
    /// Of the data directory itself, if it can be looked at.
    pub(super) top: Option<Metadata>,
    /// How the tree names where it came from.
    pub(super) source: &'a Path,
}

pub(super) struct Taken {
    pub(super) summary: TreeSummary,
    pub(super) facts: Facts,
}

/// How a cluster's files are stored: pages compress about as well quickly, and the server works on the same cores.
pub(super) fn options() -> SessionOptions {
    SessionOptions::fast()
}

/// Takes a base backup. `tell` completes what is known of it: which range of the log it needs is found out on the way.
pub(super) fn take(
    wish: &Wish<'_>,
    sink: &dyn ChunkSink,
    progress: &dyn Progress,
    cancel: &Cancel,
    tell: impl FnOnce(u32, Lsn, Lsn) -> Facts,
) -> Result<Taken, BaseError> {
    let mut gathering = Gathering::new(sink, wish.top.clone(), wish.pages);
    let is_cancelled = || cancel.is_cancelled();
    if wish.has_tablespaces {
        let spool = Spool::make(wish.spool, wish.door.comes_as())?;
        start(wish, spool.path())?.end(cancel)?;
        spool.each_archive(|prefix, archive| Ok(gathering.take_in(archive, prefix, progress, &is_cancelled)?))?;
    } else {
        let mut running = start(wish, Path::new("-"))?;
        let taken = match running.stdout() {
            Some(mut archive) => {
                let taken = gathering.take_in(&mut archive, &[], progress, &is_cancelled);
                // What follows the archive's end is read, so that the child can end.
                taken.and_then(|()| {
                    std::io::copy(&mut archive, &mut std::io::sink()).map(drop).map_err(TreeError::Archive)
                })
            }
            None => Ok(()),
        };
        // What the child says of itself is the better reason.
        match taken {
            Err(TreeError::Cancelled) => return Err(TreeError::Cancelled.into()),
            taken => running.end(cancel).map_err(BaseError::from).and(taken.map_err(BaseError::from))?,
        }
    }
    let (timeline, start, stop) = facts::range_of(gathering.manifest())?;
    let facts = tell(timeline, start, stop);
    let text = serde_json::to_vec_pretty(&facts).map_err(FactsError::Unreadable)?;
    gathering.add_file(facts::NAME, &text)?;
    let summary = gathering.finish(wish.source)?;
    Ok(Taken { summary, facts })
}

/// Starts the program that sends all of it.
fn start(wish: &Wish<'_>, to: &Path) -> Result<Running, OutputError> {
    let log = match wish.log {
        Log::Within => "fetch",
        Log::Shipped => "none",
    };
    let mut arguments: Vec<OsString> = vec!["--pgdata".into(), to.into()];
    // The vault authenticates every byte: what the server's own checksums are for is its own tools, and SHA-256 would take it longer than
    // reading all of its files.
    let usual = ["--format=tar", "--checkpoint=fast", "--no-password", "--label=lifeboat"];
    arguments.extend(usual.iter().chain(&["--manifest-checksums=CRC32C", "--no-sync"]).map(OsString::from));
    arguments.push(format!("--wal-method={log}").into());
    Running::start(wish.programs, "pg_basebackup", arguments, (wish.door, "lifeboat-base"))
}

/// A directory that archives pass through; removed with what is in it.
struct Spool {
    directory: tempfile::TempDir,
}

/// For what passes through who may not look into a directory of ours.
const FOR_OTHERS: &str = "/var/tmp";

impl Spool {
    /// `owner` is whom the child runs as, if not as us.
    fn make(below: &Path, owner: Option<(u32, u32)>) -> Result<Spool, BaseError> {
        let below = owner.map_or(below, |_| Path::new(FOR_OTHERS));
        let failed = |source| BaseError::Spool { what: "make a directory in", path: below.to_owned(), source };
        std::fs::create_dir_all(below).map_err(failed)?;
        let directory = tempfile::Builder::new().prefix("lifeboat-postgres-").tempdir_in(below).map_err(failed)?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).map_err(failed)?;
        }
        Ok(Spool { directory })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Every archive, and where in the data directory it belongs: `base.tar` at its top, `OID.tar` where the link to the tablespace
    /// stands. The manifest is handed over as an archive's only file would be.
    fn each_archive(
        &self,
        mut each: impl FnMut(&[&[u8]], &mut dyn Read) -> Result<(), BaseError>,
    ) -> Result<(), BaseError> {
        let failed = |source| BaseError::Spool { what: "read", path: self.path().to_owned(), source };
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(self.path()).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        for name in names.iter().filter_map(|name| name.strip_suffix(".tar")) {
            let path = self.path().join(format!("{name}.tar"));
            let file = std::fs::File::open(&path).map_err(failed)?;
            let mut reader = BufReader::with_capacity(1 << 20, file);
            match name {
                "base" => each(&[], &mut reader)?,
                // With the log within, it comes by itself.
                "pg_wal" => each(&[b"pg_wal"], &mut reader)?,
                oid => each(&[b"pg_tblspc", oid.as_bytes()], &mut reader)?,
            }
            // Room for what is stored meanwhile.
            std::fs::remove_file(&path).map_err(failed)?;
        }
        let manifest = self.path().join(super::tree::MANIFEST);
        let bytes = std::fs::read(&manifest).map_err(failed)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getegid().as_raw()));
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_data(&mut header, super::tree::MANIFEST, bytes.as_slice()).map_err(failed)?;
        let archive = archive.into_inner().map_err(failed)?;
        each(&[], &mut archive.as_slice())
    }
}
