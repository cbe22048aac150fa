//! The serving ends: this process's own pipes (for SSH), and a Unix socket.
//!
//! Invariant: a socket of a server that is gone is replaced, one of a server that lives is not, nor anything that is no socket; so many connections are served and no
//! more.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lifeboat_vault::serve::{Connection, Served, Server, Who};

use super::unix::connection;

/// A stopped listener notices within this.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Serves who is at the other end of stdin and stdout, until it goes away.
pub fn serve_stdio(server: &Server, who: &Who) -> io::Result<Served> {
    let reader = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let writer = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let connection = Connection {
        reader: Box::new(reader),
        writer: Box::new(writer),
        // A read of a pipe cannot be ended from outside; this process serves nobody else.
        cut: Box::new(|| std::process::exit(1)),
    };
    server.serve(connection, who)
}

/// A socket on which connections are taken.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The next server replaces what stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listener {
    /// Takes the socket at `path`, with this mode.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Listener> {
        if let Err(error) = UnixStream::connect(path)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            // A file that is no socket refuses connections, too.
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is something else, which is no socket",
                ));
            }
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        Ok(Listener { listener, path: path.to_owned() })
    }

    /// Serves until told to stop; connections that live then are left to their ends.
    pub fn run(
        &self,
        server: &Arc<Server>,
        who: &Who,
        connections_max: usize,
        stop: &AtomicBool,
        ended: impl Fn(io::Result<Served>) + Send + Sync + 'static,
    ) -> io::Result<()> {
        let ended = Arc::new(ended);
        let count = Arc::new(AtomicUsize::new(0));
        while !stop.load(Ordering::SeqCst) {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if is_passing(&error) => {
                    std::thread::sleep(LOOK_EVERY);
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Dropped: the other end sees that nobody has time, and tries again.
            if count.load(Ordering::SeqCst) >= connections_max {
                continue;
            }
            stream.set_nonblocking(false)?;
            let connection = connection(stream)?;
            let (server, who, ended, left) = (server.clone(), who.clone(), ended.clone(), Leaving(count.clone()));
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::Builder::new().name("serve".to_owned()).spawn(move || {
                let _left = left;
                ended(server.serve(connection, &who));
            })?;
        }
        Ok(())
    }
}

struct Leaving(Arc<AtomicUsize>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    // Too many open files: somebody will close some.
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
        || matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::MFILE.raw_os_error() || code == rustix::io::Errno::NFILE.raw_os_error())
}
