//! A server in this process, and connections to it that a test can break.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lifeboat_vault::serve::{Connection, Dial, Remote, ServeOptions, Server, Who};
use lifeboat_vault::storage::{Storage, StorageError};
use lifeboat_vault::{SigningKey, State};

pub(crate) fn connection(stream: UnixStream) -> Connection {
    let (reader, cut) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
    Connection {
        reader: Box::new(reader),
        writer: Box::new(Closing(stream)),
        cut: Box::new(move || {
            let _ = cut.shutdown(Shutdown::Both);
        }),
    }
}

/// Says farewell when it is dropped, as closing a pipe does.
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

/// Dials a server of this process; every connection gets a thread of its own.
#[derive(Debug, Clone)]
pub(crate) struct Near {
    pub(crate) server: Arc<Server>,
    pub(crate) who: Who,
    pub(crate) state: Option<State>,
    pub(crate) dialled: Arc<AtomicU64>,
    /// Connections that the server has done with.
    pub(crate) ended: Arc<AtomicU64>,
    /// The newest connection, for who wants to break it.
    pub(crate) stream: Arc<Mutex<Option<UnixStream>>>,
}

impl Near {
    pub(crate) fn new(storage: Arc<dyn Storage>, who: Who) -> Near {
        Near::with(storage, who, ServeOptions::default())
    }

    pub(crate) fn with(storage: Arc<dyn Storage>, who: Who, options: ServeOptions) -> Near {
        let server = Arc::new(Server::new(storage, options));
        Near { server, who, state: None, dialled: Arc::default(), ended: Arc::default(), stream: Arc::default() }
    }

    /// A stream to the server that nothing of ours speaks over yet.
    pub(crate) fn raw(&self) -> UnixStream {
        let (here, there) = UnixStream::pair().unwrap();
        let (server, who, ended) = (self.server.clone(), self.who.clone(), self.ended.clone());
        std::thread::spawn(move || {
            let _ = server.serve(connection(there), &who);
            ended.fetch_add(1, Ordering::SeqCst);
        });
        here
    }

    pub(crate) fn connect(&self) -> Result<Remote, StorageError> {
        Remote::connect(Box::new(self.clone()))
    }
}

impl Dial for Near {
    fn dial(&self) -> io::Result<Connection> {
        self.dialled.fetch_add(1, Ordering::SeqCst);
        let here = self.raw();
        *self.stream.lock().unwrap() = Some(here.try_clone().unwrap());
        Ok(connection(here))
    }

    fn location(&self) -> String {
        "near".to_owned()
    }

    fn key(&self) -> Option<SigningKey> {
        let directory = self.state.as_ref()?.directory().join("host.key");
        Some(SigningKey::load_or_create(&directory).unwrap())
    }

    fn last_words(&self) -> String {
        String::new()
    }
}
