//! The socket of `vault serve`: who may open it, how many are served, and what is not swept away for it.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifeboat_adapters::storage::served::Listener;
use lifeboat_vault::serve::{Rights, ServeOptions, Server, Who};
use lifeboat_vault::storage::MemoryStorage;

/// A server behind a socket in a directory of its own, until it is dropped.
struct Door {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    serving: Option<std::thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Door {
    fn open(connections_max: usize) -> Door {
        let directory = tempfile::tempdir().unwrap();
        let (path, stop) = (directory.path().join("vault.sock"), Arc::new(AtomicBool::new(false)));
        let listener = Listener::bind(&path, 0o600).unwrap();
        let server = Arc::new(Server::new(Arc::new(MemoryStorage::new()), ServeOptions::default()));
        let told = stop.clone();
        let serving = std::thread::spawn(move || {
            let who = Who::Named("alpha".to_owned(), Rights::default());
            listener.run(&server, &who, connections_max, &told, |_| ()).unwrap();
        });
        Door { path, stop, serving: Some(serving), _directory: directory }
    }

    /// A connection, and whether the server greeted on it.
    fn connect(&self) -> (UnixStream, bool) {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let greeted = match stream.read(&mut [0; 1]) {
            Ok(count) => count == 1,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("neither greeted nor turned away: {error}"),
        };
        (stream, greeted)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

#[test]
fn so_many_are_served_at_a_time_and_one_more_when_one_has_left() {
    let door = Door::open(2);
    let (first, greeted) = door.connect();
    assert!(greeted);
    let (_second, greeted) = door.connect();
    assert!(greeted);
    for _ in 0..3 {
        assert!(!door.connect().1, "one too many was served");
    }
    drop(first);
    let began = Instant::now();
    while !door.connect().1 {
        assert!(began.elapsed() < Duration::from_secs(60), "the place of who left stays taken");
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_socket_is_open_to_whom_it_was_made_for_and_gone_when_its_server_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vault.sock");
    for wanted in [0o600, 0o660, 0o666] {
        let listener = Listener::bind(&path, wanted).unwrap();
        assert_eq!(mode(&path), wanted);
        drop(listener);
        assert!(!path.exists());
    }
}

#[test]
fn a_dead_servers_socket_is_replaced_and_nothing_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    // Dropped without a word, as by a server that was killed: the file stays.
    drop(UnixListener::bind(place("dead")).unwrap());
    assert!(place("dead").exists());
    let living = Listener::bind(&place("dead"), 0o600).unwrap();
    let taken = Listener::bind(&place("dead"), 0o600).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert!(UnixStream::connect(place("dead")).is_ok());
    drop(living);

    std::fs::write(place("file"), "somebody's").unwrap();
    std::fs::create_dir(place("directory")).unwrap();
    drop(UnixListener::bind(place("elsewhere")).unwrap());
    std::os::unix::fs::symlink(place("elsewhere"), place("link")).unwrap();
    for name in ["file", "directory", "link"] {
        let before = std::fs::symlink_metadata(place(name)).unwrap();
        let refused = Listener::bind(&place(name), 0o600).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{name}: {refused}");
        assert_eq!(refused.to_string(), "there is something else, which is no socket");
        let after = std::fs::symlink_metadata(place(name)).unwrap();
        assert_eq!((before.file_type(), before.permissions()), (after.file_type(), after.permissions()), "{name}");
    }
    assert_eq!(std::fs::read_to_string(place("file")).unwrap(), "somebody's");
    assert!(place("elsewhere").exists());
}
