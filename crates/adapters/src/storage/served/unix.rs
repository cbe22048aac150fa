//! A server behind a Unix socket of this machine.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use lifeboat_vault::SigningKey;
use lifeboat_vault::serve::{Connection, Dial};
use lifeboat_vault::storage::StorageError;

#[derive(Debug)]
pub(super) struct Unix {
    path: PathBuf,
}

impl Unix {
    pub(super) fn new(url: &str) -> Result<Unix, StorageError> {
        match url.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Unix { path: PathBuf::from(path) }),
            _ => Err(StorageError::BadAddress {
                address: url.to_owned(),
                why: "it must be unix:///PATH/OF/THE/SOCKET".to_owned(),
            }),
        }
    }
}

/// One stream as two directions; dropping the writer says farewell.
pub(super) fn connection(stream: UnixStream) -> io::Result<Connection> {
    let (reader, cut) = (stream.try_clone()?, stream.try_clone()?);
    Ok(Connection {
        reader: Box::new(reader),
        writer: Box::new(Closing(stream)),
        cut: Box::new(move || {
            // What is shut already is shut.
            let _ = cut.shutdown(Shutdown::Both);
        }),
    })
}

struct Closing(UnixStream);

impl io::Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

impl Dial for Unix {
    fn dial(&self) -> io::Result<Connection> {
        connection(UnixStream::connect(&self.path)?)
    }

    fn location(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    fn key(&self) -> Option<SigningKey> {
        super::key()
    }

    fn last_words(&self) -> String {
        String::new()
    }
}
