//! Doors for fuzzers into what a PostgreSQL server, and files about one, may say.
//!
//! Invariant: a door never panics, and takes no more memory than a message's bound.

use super::door::{self, Door};
use super::lsn::{Lsn, Segments, parse_history};
use super::replication::WalMessage;
use super::session::{Purpose, Session};

/// What a good server says until questions can be asked.
fn greeting() -> Vec<u8> {
    [&b"R\0\0\0\x08\0\0\0\0"[..], b"S\0\0\0\x19server_version\x0015.18\0", b"Z\0\0\0\x05I"].concat()
}

/// All that a server says, as an answer to a question and as a stream: from its first word on, and after a good greeting.
pub(crate) fn server(data: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
    runtime.block_on(async {
        for words in [data.to_vec(), [greeting(), data.to_vec()].concat()] {
            if let Ok(mut session) = enter(words.clone(), Purpose::Queries).await
                && let Ok(rows) = session.query("select 1").await
            {
                let _ = (rows.iter().filter_map(|row| row.get(0)).count(), session.notices());
            }
            if let Ok(session) = enter(words, Purpose::Replication).await {
                stream(session).await;
            }
        }
    });
}

async fn enter(words: Vec<u8>, purpose: Purpose) -> Result<Session, super::error::SessionError> {
    let door = Door::through_socket("/".as_ref(), 1, "boat", "boat").with_password("secret");
    let connection = tokio::io::join(std::io::Cursor::new(words), tokio::io::sink());
    Session::over(Box::new(connection), &door, purpose).await
}

async fn stream(session: Session) {
    let Ok(mut stream) = session.start_replication(None, Lsn(1 << 24), 1).await else { return };
    // It ends where the words do.
    while let Ok(message) = stream.next().await {
        if message == WalMessage::EndOfTimeline {
            break;
        }
    }
    if let Ok((mut session, _)) = stream.end().await {
        let _ = session.identify_system().await;
    }
}

/// Histories of timelines, names of segments, places, service files and password files.
pub(crate) fn files(data: &[u8]) {
    let _ = parse_history(data);
    let text = String::from_utf8_lossy(data);
    let _ = (text.parse::<Lsn>(), Segments { bytes: 16 << 20 }.parse(&text));
    let _ = super::control::parse(&text);
    door::read_hostile(data);
}

pub(crate) fn server_seed() -> Vec<u8> {
    [
        greeting(),
        b"T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0".to_vec(),
        b"D\0\0\0\x0b\0\x01\0\0\0\x01x".to_vec(),
        b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I".to_vec(),
        b"W\0\0\0\x07\0\0\0".to_vec(),
        b"d\0\0\0\x1fw\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\x02\0\0\0\0\0\0\0\0ab".to_vec(),
        b"d\0\0\0\x16k\0\0\0\0\x01\0\0\x02\0\0\0\0\0\0\0\0\x01c\0\0\0\x04".to_vec(),
    ]
    .concat()
}

pub(crate) fn files_seed() -> Vec<u8> {
    b"1\t0/5000000\twhy\n[shop]\nhost=db.example\nport=6000\n*:*:*:boat:secret\n000000010000000000000001".to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Else fuzzers would begin in front of the first door.
    #[tokio::test]
    async fn the_seed_goes_all_the_way() {
        let seed = server_seed();
        let mut session = enter(seed.clone(), Purpose::Queries).await.unwrap();
        assert_eq!(session.query_one("select 1").await.unwrap().get(0), Some("x"));
        let copy = seed.windows(2).position(|pair| pair == b"W\0").unwrap();
        let words = [greeting(), seed[copy..].to_vec()].concat();
        let session = enter(words, Purpose::Replication).await.unwrap();
        let mut stream = session.start_replication(None, Lsn(1 << 24), 1).await.unwrap();
        assert!(matches!(stream.next().await.unwrap(), WalMessage::Data { bytes, .. } if bytes == "ab"));
        assert!(matches!(stream.next().await.unwrap(), WalMessage::KeepAlive { reply: true, .. }));
        assert_eq!(stream.next().await.unwrap(), WalMessage::EndOfTimeline);
    }
}
