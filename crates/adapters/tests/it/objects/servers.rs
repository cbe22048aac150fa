//! Two S3 servers that no one here wrote: Debian's radosgw over a small Ceph, and moto's, which only emulates.
//!
//! One of each for all tests of a binary. They end when the test binary does: a script waits for the end of its stdin.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lifeboat_adapters::storage::{BucketStorage, Environment, Patience, open_with};

use crate::ports::free_port;

/// Who asks, and with which keys.
#[derive(Debug, Clone, Copy)]
pub(crate) enum User {
    Owner,
    Host,
    /// May store a quarter of a megabyte.
    Small,
}

impl User {
    pub(crate) fn keys(self) -> (&'static str, &'static str) {
        match self {
            User::Owner => ("OWNERKEY", "owner-secret"),
            User::Host => ("HOSTKEY", "host-secret"),
            User::Small => ("SMALLKEY", "small-secret"),
        }
    }
}

/// As every client of S3, it asks again when the server says that something failed at its end: radosgw does when it stood still.
const CURL: [&str; 7] =
    ["--silent", "--show-error", "--fail-with-body", "--retry", "5", "--aws-sigv4", "aws:amz:us-east-1:s3"];

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) port: u16,
    /// Holds the server's life in its stdin.
    _child: Child,
}

static RADOSGW: LazyLock<Server> = LazyLock::new(start_radosgw);
static EMULATED: LazyLock<Server> = LazyLock::new(start_moto);
static BUCKETS: AtomicU32 = AtomicU32::new(0);

pub(crate) fn radosgw() -> &'static Server {
    &RADOSGW
}

pub(crate) fn emulated() -> &'static Server {
    &EMULATED
}

fn start_radosgw() -> Server {
    // In memory: nothing that a test stores here is worth a disk's time.
    let directory = PathBuf::from(format!("/dev/shm/lifeboat-radosgw-{}", std::process::id()));
    let port = free_port();
    let ports = [free_port(), free_port(), port].map(|port| port.to_string());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../adapters/tests/it/objects/radosgw.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg(&directory).args(ports);
    Server { port, _child: started(command) }
}

/// Starts what says `ready`, and ends when its stdin does.
pub(crate) fn started(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready", "the server did not start: {command:?}");
    child
}

/// A program of another registry.
pub(crate) fn tools(path: &str, chore: &str) -> PathBuf {
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join(path);
    assert!(
        program.exists(),
        "{} is missing: `cargo xtask test` installs it, or `cargo xtask {chore}`",
        program.display()
    );
    program
}

fn start_moto() -> Server {
    let server = tools("pypi/bin/moto_server", "pypi");
    let port = free_port();
    let script = "\"$0\" -H 127.0.0.1 -p \"$1\" > /dev/null 2>&1 < /dev/null & trap 'kill $!' EXIT; \
                  until curl --silent --output /dev/null \"http://127.0.0.1:$1/\"; do sleep 0.05; done; echo ready; cat > /dev/null";
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(server).arg(port.to_string());
    Server { port, _child: started(command) }
}

impl Server {
    pub(crate) fn of(port: u16, child: Child) -> Server {
        Server { port, _child: child }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A bucket that nobody else uses.
    pub(crate) fn bucket(&self) -> String {
        self.bucket_of(User::Owner)
    }

    pub(crate) fn bucket_of(&self, user: User) -> String {
        let name = format!("bucket-{}", BUCKETS.fetch_add(1, Ordering::Relaxed));
        self.ask(user, "PUT", &name, None);
        name
    }

    /// A bucket with Object Lock, which locks for a day what comes.
    pub(crate) fn locked_bucket(&self) -> String {
        let name = format!("bucket-{}", BUCKETS.fetch_add(1, Ordering::Relaxed));
        self.ask_with(User::Owner, "PUT", &name, None, &["x-amz-bucket-object-lock-enabled: true"]);
        let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                    <Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
        self.ask(User::Owner, "PUT", &format!("{name}?object-lock="), Some(rule));
        name
    }

    pub(crate) fn set_versions(&self, bucket: &str, status: &str) {
        let text = format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
        self.ask(User::Owner, "PUT", &format!("{bucket}?versioning="), Some(&text));
    }

    /// A signed request by `curl`: what no storage of ours does, such as making buckets.
    pub(crate) fn ask(&self, user: User, method: &str, path: &str, body: Option<&str>) -> String {
        self.ask_with(user, method, path, body, &[])
    }

    /// What the server says when it does not do it.
    pub(crate) fn refused(&self, user: User, method: &str, path: &str) -> String {
        let (done, text) = self.try_with(user, method, path, None, &[]);
        assert!(!done, "{method} {path} was done: {text}");
        text
    }

    pub(crate) fn ask_with(
        &self,
        user: User,
        method: &str,
        path: &str,
        body: Option<&str>,
        headers: &[&str],
    ) -> String {
        let (done, text) = self.try_with(user, method, path, body, headers);
        assert!(done, "{method} {path}: {text}");
        text
    }

    fn try_with(&self, user: User, method: &str, path: &str, body: Option<&str>, headers: &[&str]) -> (bool, String) {
        let (key, secret) = user.keys();
        let mut command = Command::new("curl");
        command.args(CURL);
        command.args(["--user", &format!("{key}:{secret}"), "--request", method]);
        // This curl signs the hash of the body, and leaves it to us to send it.
        command.args(["--header", &format!("x-amz-content-sha256: {}", sha256_of(body.unwrap_or_default()))]);
        command.args(body.iter().flat_map(|body| ["--data", body, "--header", "Content-Type: application/xml"]));
        command.args(headers.iter().flat_map(|header| ["--header", *header]));
        let output = command.arg(format!("{}/{path}", self.endpoint())).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Moves an object to another storage class, as a lifecycle rule would.
    pub(crate) fn set_class(&self, bucket: &str, key: &str, class: &str) {
        let (user, secret) = User::Owner.keys();
        let mut command = Command::new("curl");
        command.args(CURL);
        command.args(["--user", &format!("{user}:{secret}"), "--request", "PUT"]);
        let headers = [
            format!("x-amz-content-sha256: {}", sha256_of("")),
            format!("x-amz-copy-source: /{bucket}/{key}"),
            format!("x-amz-storage-class: {class}"),
        ];
        command.args(headers.iter().flat_map(|header| ["--header", header.as_str()]));
        let output = command.arg(format!("{}/{bucket}/{key}", self.endpoint())).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// A script that does with `curl` what `aws s3api restore-object` does, for each name on its stdin.
    pub(crate) fn thaw_script(&self, bucket: &str) -> String {
        let (key, secret) = User::Owner.keys();
        let body = "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Days>7</Days></RestoreRequest>";
        format!(
            "while read -r name; do curl --silent --show-error --fail-with-body --aws-sigv4 aws:amz:us-east-1:s3 --user {key}:{secret} \
             --header \"x-amz-content-sha256: {}\" --header 'Content-Type: application/xml' \
             --request POST --data '{body}' \"{}/{bucket}/$name?restore=\" || exit 1; done",
            sha256_of(body),
            self.endpoint()
        )
    }

    /// The bucket as a storage.
    pub(crate) fn open(&self, bucket: &str) -> BucketStorage {
        open_at(&self.endpoint(), bucket, User::Owner)
    }
}

fn sha256_of(text: &str) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap().to_owned()
}

pub(crate) fn environment(endpoint: &str, user: User) -> Environment {
    let (key, secret) = user.keys();
    let pairs = [("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Tries again soon, and goes on long: a machine that stands still for a while changes nothing, not even what is counted.
pub(crate) fn patient() -> Patience {
    Patience {
        wait_first: Duration::from_millis(20),
        wait_max: Duration::from_millis(500),
        total_unreached: Patience::default().total,
        stall: Duration::from_secs(60),
        ..Patience::default()
    }
}

/// For lines on which requests hang: each try is soon given up. Where the machine stands still there is a try more.
pub(crate) fn hasty() -> Patience {
    Patience { stall: Duration::from_secs(1), ..patient() }
}

pub(crate) fn open_at(endpoint: &str, place: &str, user: User) -> BucketStorage {
    open_with(&format!("s3://{place}"), &environment(endpoint, user), patient()).unwrap()
}

pub(crate) fn open_hastily(endpoint: &str, place: &str, user: User) -> BucketStorage {
    open_with(&format!("s3://{place}"), &environment(endpoint, user), hasty()).unwrap()
}
