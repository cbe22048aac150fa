//! Recovery points as archives that need nothing of ours: tar, compressed with zstd, sealed, in parts of a size that fits the medium.
//!
//! ```text
//!   tree ─▶ tar ─▶ zstd ─▶ age (here) or OpenPGP (whoever calls) ─▶ Parts: NAME.tar.zst.age.0001, …, SHA256SUMS, README.txt
//! ```
//!
//! Invariant: memory is bounded, whatever the size; a directory without `SHA256SUMS` holds no whole archive.

mod parts;
mod tar;
mod tree;

use std::io::{self, Read, Write};

use thiserror::Error;

use crate::VaultError;
use crate::files::TreeError;
use crate::seal::{Identity, Recipient};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::parts::listed;
pub use self::parts::{Joined, Part, Parts, SUMS, UNFINISHED, verify_parts};
pub use self::tree::{Archived, write_tree};

/// Why an archive could not be written or read.
#[derive(Debug, Error)]
pub enum PortableError {
    #[error("the recovery point's tree cannot be read")]
    Tree(#[source] TreeError),
    #[error("the archive could not be written; make room, then run the export again")]
    Write(#[source] io::Error),
    #[error("{path} cannot be used ({doing})")]
    File {
        path: String,
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds other things than an export that broke off; name an empty or new directory")]
    NotEmpty { path: String },
    #[error("{path} is no finished export: it has no {SUMS}; export again, or copy the rest")]
    NoSums { path: String },
    #[error("{SUMS} is not as the export wrote it: {why}; copy it once more from where it came from, or export again")]
    Sums { why: &'static str },
    #[error("{name} is not what {SUMS} says; copy it once more from where it came from, or export again")]
    Damaged { name: String },
    #[error("{name} is missing; copy it from where the others came from")]
    Missing { name: String },
    #[error("none of the given keys opens the archive; give the key of one of its recipients")]
    WrongKey,
    #[error("the archive is damaged or cut off; its parts are what {SUMS} says, so it was so when it was exported")]
    Broken(#[source] io::Error),
    #[error("interrupted; run it again to begin anew")]
    Cancelled,
    #[error(transparent)]
    Vault(VaultError),
}

/// How well an archive is compressed: this is kept for long, and read seldom.
const COMPRESSION: i32 = 6;
/// Windows of 8 MiB: what every `zstd -d` takes without being told.
const WINDOW_LOG: u32 = 23;

/// Compresses what is written to it.
pub fn compressed<W: Write>(to: W) -> io::Result<zstd::stream::write::Encoder<'static, W>> {
    let mut encoder = zstd::stream::write::Encoder::new(to, COMPRESSION)?;
    encoder.include_checksum(true)?;
    encoder.window_log(WINDOW_LOG)?;
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
    encoder.multithread(threads as u32)?;
    Ok(encoder)
}

/// Undoes `compressed`, with no more memory than that needs.
pub fn decompressed<R: Read>(from: R) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::new(from)?;
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(decoder)
}

/// Seals what is written to it to age recipients; `finish` ends it.
pub fn age_sealed<W: Write>(recipients: &[Recipient], to: W) -> Result<age::stream::StreamWriter<W>, PortableError> {
    let all = recipients.iter().map(Recipient::as_age);
    let empty = |_| VaultError::invalid("the list of recipients", "it is empty; give at least one age1… recipient");
    let encryptor = age::Encryptor::with_recipients(all).map_err(empty).map_err(PortableError::Vault)?;
    encryptor.wrap_output(to).map_err(PortableError::Write)
}

/// Opens what `age_sealed` sealed.
pub fn age_opened<R: Read>(identities: &[Identity], from: R) -> Result<impl Read + use<R>, PortableError> {
    let broken = || PortableError::Broken(io::Error::other("its head is not that of an age file"));
    let decryptor = age::Decryptor::new(from).map_err(|_| broken())?;
    decryptor.decrypt(identities.iter().map(Identity::as_age)).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => PortableError::WrongKey,
        _ => broken(),
    })
}
