//! Servers that send garbage, announce what they do not have, or say nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::error::SessionError;
use super::super::session::{Purpose, Session};
use super::super::wire::MESSAGE_BYTES_MAX;
use super::Written;
use super::cluster::PATIENCE;

/// A message with its right length.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    with_length(tag, u32::try_from(body.len() + 4).unwrap(), body)
}

fn with_length(tag: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// What a good server says until questions can be asked.
fn greeting() -> Vec<u8> {
    [message(b'R', &[0; 4]), message(b'S', b"server_version\x0015.18\x00"), message(b'K', &[0; 8]), message(b'Z', b"I")]
        .concat()
}

/// After what each of the client's messages the server says what; then it is silent.
struct Liar {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Liar {
    /// Says all of it, once the client has said something, to each who comes.
    async fn says(words: Vec<Vec<u8>>) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, words.clone(), ears.clone()));
            }
        });
        Liar { port, heard, task }
    }

    /// What came after all was said.
    async fn heard_last(&self) -> Vec<u8> {
        let begun = std::time::Instant::now();
        while self.heard.lock().unwrap().is_empty() && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.heard.lock().unwrap().clone()
    }

    async fn open(&self, settings: &str, purpose: Purpose) -> Result<Session, SessionError> {
        self.open_within(PATIENCE / 2, settings, purpose).await
    }

    async fn open_within(&self, patience: Duration, settings: &str, purpose: Purpose) -> Result<Session, SessionError> {
        let settings = format!("hostaddr=127.0.0.1\nport={}\nuser=boat\n{settings}", self.port);
        let door = Written::new().door(&settings).with_patience(patience);
        let opened = Session::open(&door, purpose, "");
        tokio::time::timeout(PATIENCE, opened).await.expect("it waits for ever")
    }
}

async fn answer(mut stream: TcpStream, words: Vec<Vec<u8>>, ears: Arc<Mutex<Vec<u8>>>) {
    let mut heard = [0; 4096];
    for word in words {
        match stream.read(&mut heard).await {
            Ok(1..) if stream.write_all(&word).await.is_ok() => {}
            _ => return,
        }
    }
    // Until the other side has gone.
    while let Ok(count @ 1..) = stream.read(&mut heard).await {
        ears.lock().unwrap().extend_from_slice(&heard[..count]);
    }
}

const PLAIN: &str = "sslmode=disable\npassword=secret word";

/// What must never work, whatever the bytes are: one list for every stage.
fn lies() -> Vec<Vec<u8>> {
    let mut lies = vec![
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(),
        vec![0; 64],
        vec![0xff; 64],
    ];
    for tag in *b"RSKZTDECNAGHWdc123nstIv\x00\xff" {
        for length in [0, 3, 4, 5, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 600_000_000] {
            lies.push(with_length(tag, length, b""));
        }
        for body in [&b""[..], b"\x00", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"no end"] {
            lies.push(message(tag, body));
        }
    }
    // A login that asks for what cannot be, or breaks off.
    for body in [
        &[0, 0, 0, 10, 0][..],
        b"\x00\x00\x00\x0aMAGIC\x00\x00",
        b"\x00\x00\x00\x0aSCRAM-SHA-256",
        b"\x00\x00\x00\x05ab",
    ] {
        lies.push(message(b'R', body));
    }
    lies
}

/// Long enough for what comes, for it comes from this process.
const SHORT: Duration = Duration::from_millis(300);

fn is_sound(error: &SessionError, lie: &[u8]) {
    let said = error.to_string();
    assert!(!said.contains("secret word"), "{said}");
    assert!(said.contains("PostgreSQL at 127.0.0.1:") && said.len() < 3000, "{said} for {lie:?}");
}

#[tokio::test]
async fn no_lie_of_a_server_lets_us_in_panics_or_takes_memory() {
    // One after another each would wait out its time.
    let tried = lies().into_iter().map(|lie| async move {
        // From the first word on, and in the middle of a login.
        let sasl = message(b'R', b"\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00");
        for words in [vec![lie.clone()], vec![sasl, lie.clone()]] {
            let liar = Liar::says(words).await;
            let opened = liar.open_within(SHORT, PLAIN, Purpose::Queries).await;
            is_sound(&opened.unwrap_err(), &lie);
        }
        // Instead of an answer. It may be taken for an empty one, and nothing worse.
        let liar = Liar::says(vec![greeting(), lie.clone()]).await;
        let mut session = liar.open(PLAIN, Purpose::Queries).await.unwrap();
        session.set_patience(SHORT);
        if let Err(error) = session.query("select 1").await {
            is_sound(&error, &lie);
        }
        // And instead of a stream.
        for copy in [vec![], message(b'W', &[0, 0, 0])] {
            let liar = Liar::says(vec![greeting(), [copy, lie.clone()].concat()]).await;
            let mut session = liar.open(PLAIN, Purpose::Replication).await.unwrap();
            session.set_patience(SHORT);
            let from = "0/1000000".parse().unwrap();
            match session.start_replication(Some("boat"), from, 1).await {
                Ok(mut stream) => {
                    let _ = tokio::time::timeout(SHORT, stream.next()).await;
                    let _ = stream.end().await;
                }
                Err(error) => is_sound(&error, &lie),
            }
        }
    });
    let all: Vec<_> = tried.collect();
    for some in chunks(all, 120) {
        futures_util::future::join_all(some).await;
    }
}

fn chunks<T>(mut all: Vec<T>, of: usize) -> Vec<Vec<T>> {
    let mut chunks = Vec::new();
    while !all.is_empty() {
        let rest = all.split_off(all.len().min(of));
        chunks.push(std::mem::replace(&mut all, rest));
    }
    chunks
}

#[test]
fn lies_pass_with_little_memory() {
    let limited = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 500000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "postgres::tests::hostile::no_lie_of_a_server_lets_us_in_panics_or_takes_memory"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&limited.stdout).into_owned() + &String::from_utf8_lossy(&limited.stderr);
    assert!(limited.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn silence_ends_by_the_clock_at_every_stage() {
    let silent = Liar::says(vec![]).await;
    for settings in [PLAIN, "sslmode=require", "sslmode=prefer"] {
        let error = silent.open_within(SHORT, settings, Purpose::Queries).await.unwrap_err();
        assert!(matches!(error, SessionError::Timeout { .. }) && error.may_pass(), "{settings}: {error}");
    }
    let shy = Liar::says(vec![b"S".to_vec()]).await;
    let error = shy.open_within(SHORT, "sslmode=require", Purpose::Queries).await.unwrap_err();
    assert!(matches!(error, SessionError::Timeout { .. }), "{error}");

    let tired = Liar::says(vec![greeting()]).await;
    let mut session = tired.open(PLAIN, Purpose::Queries).await.unwrap();
    session.set_patience(Duration::from_millis(100));
    let error = session.query("select 1").await.unwrap_err();
    assert!(matches!(error, SessionError::Timeout { .. }), "{error}");
    let mut session = tired.open(PLAIN, Purpose::Replication).await.unwrap();
    session.set_patience(Duration::from_millis(100));
    let error = session.start_replication(None, "0/1000000".parse().unwrap(), 1).await.unwrap_err();
    assert!(matches!(error, SessionError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_asked_once_and_given_up() {
    let liar = Liar::says(vec![greeting(), message(b'W', &[0, 0, 0])]).await;
    let session = liar.open(PLAIN, Purpose::Replication).await.unwrap();
    let mut stream = session.start_replication(None, "0/1000000".parse().unwrap(), 1).await.unwrap();
    let short = Duration::from_millis(400);
    stream.set_silence_max(short);
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, SessionError::Timeout { within, .. } if within == short), "{error}");
    assert_eq!(liar.heard_last().await[5], b'r', "it was asked");
}

#[tokio::test]
async fn more_than_a_bound_is_refused_though_each_message_is_small() {
    let row = message(b'D', &[&[0, 1, 0, 0x10, 0, 0][..], &vec![b'x'; 1 << 20]].concat());
    let rows: Vec<u8> = std::iter::repeat_n(row, 70).flatten().collect();
    let liar = Liar::says(vec![greeting(), rows]).await;
    let mut session = liar.open(PLAIN, Purpose::Queries).await.unwrap();
    let error = session.query("select 1").await.unwrap_err();
    assert!(error.to_string().contains("an answer is larger than"), "{error}");

    let large = with_length(b'D', u32::try_from(MESSAGE_BYTES_MAX + 1).unwrap(), b"");
    let liar = Liar::says(vec![greeting(), large]).await;
    let mut session = liar.open(PLAIN, Purpose::Queries).await.unwrap();
    let error = session.query("select 1").await.unwrap_err();
    assert!(error.to_string().contains(&format!("{MESSAGE_BYTES_MAX} are the most")), "{error}");
}

#[tokio::test]
async fn log_out_of_order_or_of_another_form_is_refused() {
    let data = |start: u64, sent: i64, bytes: usize| {
        let head = [&b"w"[..], &start.to_be_bytes(), &u64::MAX.to_be_bytes(), &sent.to_be_bytes()].concat();
        message(b'd', &[head, vec![7; bytes]].concat())
    };
    let from = 0x100_0000_u64;
    let good = data(from, 0, 10);
    for (bad, said) in [
        (data(from + 9, 0, 1), "at 0/1000009 instead of at 0/100000A"),
        (data(from + 11, 0, 1), "instead of at 0/100000A"),
        (data(from + 10, i64::MAX, 1), "a time cannot be"),
        (message(b'd', b"w12345678"), "cannot be understood"),
        (message(b'd', b"k12345678"), "cannot be understood"),
        (message(b'd', b""), "cannot be understood"),
        (message(b'd', b"x"), "cannot be understood"),
        (message(b'D', &[0, 0]), "no place"),
    ] {
        let words = [message(b'W', &[0, 0, 0]), good.clone(), bad].concat();
        let liar = Liar::says(vec![greeting(), words]).await;
        let session = liar.open(PLAIN, Purpose::Replication).await.unwrap();
        let mut stream = session.start_replication(None, "0/1000000".parse().unwrap(), 1).await.unwrap();
        stream.next().await.unwrap();
        let error = stream.next().await.unwrap_err();
        assert!(error.to_string().contains(said) && !error.may_pass(), "{error}");
    }
    let liar = Liar::says(vec![greeting(), [message(b'W', &[0, 0, 0]), data(u64::MAX - 3, 0, 10)].concat()]).await;
    let session = liar.open(PLAIN, Purpose::Replication).await.unwrap();
    let mut stream = session.start_replication(None, "FFFFFFFF/FFFFFFFC".parse().unwrap(), 1).await.unwrap();
    assert!(matches!(stream.next().await, Err(SessionError::Protocol { .. })));
}

#[tokio::test]
async fn who_says_it_knows_the_password_and_does_not_is_not_believed() {
    // A SCRAM login that a server without the password simply waves through.
    let sasl = message(b'R', b"\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00");
    let liar = Liar::says(vec![sasl.clone(), greeting()]).await;
    let error = liar.open(PLAIN, Purpose::Queries).await.unwrap_err();
    assert!(matches!(error, SessionError::Protocol { .. }), "{error}");
    // One that asks for it in the clear.
    let liar = Liar::says(vec![message(b'R', &[0, 0, 0, 3]), greeting()]).await;
    let error = liar.open(PLAIN, Purpose::Queries).await.unwrap_err();
    assert!(error.to_string().contains("not encrypted"), "{error}");
    // And words that it slips in before the encryption begins.
    let liar = Liar::says(vec![[b"S".to_vec(), greeting()].concat()]).await;
    assert!(liar.open("sslmode=require", Purpose::Queries).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_junk_upsets_a_session(junk in prop::collection::vec(any::<u8>(), 0..300), tags in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6)) {
        let framed: Vec<u8> = tags.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for words in [junk.clone(), [framed, junk.clone()].concat()] {
                let liar = Liar::says(vec![greeting(), [message(b'W', &[0, 0, 0]), words.clone()].concat()]).await;
                let mut session = liar.open(PLAIN, Purpose::Replication).await.unwrap();
                session.set_patience(Duration::from_millis(20));
                if let Ok(mut stream) = session.start_replication(None, "0/1000000".parse().unwrap(), 1).await {
                    while let Ok(Ok(message)) = tokio::time::timeout(Duration::from_millis(20), stream.next()).await {
                        if message == super::super::replication::WalMessage::EndOfTimeline {
                            break;
                        }
                    }
                    let _ = stream.end().await;
                }
            }
        });
    }
}
