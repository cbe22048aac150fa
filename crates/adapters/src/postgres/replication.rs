//! The stream of a server's write-ahead log, as a physical standby gets it.
//!
//! ```text
//! START_REPLICATION ─▶ Data, KeepAlive, … ─▶ EndOfTimeline ─▶ end() ─▶ the next timeline, and where it begins
//! ```
//!
//! Invariants: data comes in order and without gaps, or is an error; `next` and `report` may be dropped at any await and called again; a
//! server that falls silent is asked once whether it is there, and then given up.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{CopyData, copy_done};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{Said, SessionError};
use super::lsn::{Lsn, Segments};
use super::session::{Row, Session};
use super::wire::Frame;

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) system_id: u64,
    pub(crate) timeline: u32,
    /// Up to where its log is durable there.
    pub(crate) flushed: Lsn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WalMessage {
    Data { start: Lsn, server_end: Lsn, sent_at: Timestamp, bytes: Bytes },
    KeepAlive { end: Lsn, sent_at: Timestamp, reply: bool },
    EndOfTimeline,
}

impl Session {
    fn field<'a>(&self, row: &'a Row, column: usize, of: &str) -> Result<&'a str, SessionError> {
        row.get(column).ok_or_else(|| self.wire.protocol(format!("its answer to {of} lacks column {}", column + 1)))
    }

    fn malformed_answer(&self, of: &str) -> SessionError {
        self.wire.protocol(format!("its answer to {of} cannot be understood"))
    }

    /// Which cluster it is, and where it is now.
    pub(crate) async fn identify_system(&mut self) -> Result<System, SessionError> {
        let what = "IDENTIFY_SYSTEM";
        let row = self.query_one(what).await?;
        let malformed = || self.malformed_answer(what);
        Ok(System {
            system_id: self.field(&row, 0, what)?.parse().map_err(|_| malformed())?,
            timeline: timeline(self.field(&row, 1, what)?).ok_or_else(malformed)?,
            flushed: self.field(&row, 2, what)?.parse().map_err(|_| malformed())?,
        })
    }

    /// The content of a timeline's `.history` file, as it is.
    pub(crate) async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<u8>, SessionError> {
        let rows = self.query_raw(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = rows.first().and_then(|row| row.bytes(1)).map(<[u8]>::to_vec);
        content.ok_or_else(|| self.malformed_answer("TIMELINE_HISTORY"))
    }

    /// `wal_segment_size`; what [`Segments`] wants.
    pub(crate) async fn wal_segment_bytes(&mut self) -> Result<u64, SessionError> {
        let what = "SHOW wal_segment_size";
        let row = self.query_one(what).await?;
        let bytes = memory_bytes(self.field(&row, 0, what)?).filter(|bytes| Segments::new(*bytes).is_some());
        bytes.ok_or_else(|| self.malformed_answer(what))
    }

    /// Begins to stream from `from`, which must be on the timeline.
    pub(crate) async fn start_replication(
        mut self,
        slot: Option<&str>,
        from: Lsn,
        timeline: u32,
    ) -> Result<WalStream, SessionError> {
        let slot =
            slot.map_or(String::new(), |name| format!("SLOT {} ", postgres_protocol::escape::escape_identifier(name)));
        self.ask(&format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}"))?;
        let within = self.patience();
        let begun = timeout(within, self.begin_copy()).await;
        let phase = begun.unwrap_or_else(|_| Err(self.wire.timeout("begin to stream", within)))?;
        let now = Instant::now();
        let (expected, reported) = (from, [Lsn(0); 3]);
        Ok(WalStream { session: self, expected, reported, phase, heard: now, asked: None, silence_max: SILENCE_MAX })
    }

    async fn begin_copy(&mut self) -> Result<Phase, SessionError> {
        self.wire.flush().await?;
        loop {
            match self.wire.receive().await? {
                Frame::CopyBoth => return Ok(Phase::Copying),
                Frame::CopyData(_) => return Err(self.wire.protocol("it copies before it says so")),
                // A timeline that ended exactly here: all there is to say is which is next.
                Frame::Message(Message::RowDescription(_)) => return Ok(Phase::Empty),
                Frame::Message(Message::ErrorResponse(body)) => {
                    let said = Said::read(body.fields()).map_err(|error| self.wire.malformed(error))?;
                    return Err(self.refused(said));
                }
                Frame::Message(message) => self.note(message)?,
            }
        }
    }
}

fn timeline(text: &str) -> Option<u32> {
    text.parse().ok().filter(|timeline| *timeline > 0)
}

/// `16MB` as PostgreSQL writes sizes.
fn memory_bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[end..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    text[..end].parse::<u64>().ok()?.checked_mul(unit)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Copying,
    /// The server has said that no more comes.
    Done,
    /// Nothing was ever copied; the answer's row is next.
    Empty,
}

/// A stream under way.
#[derive(Debug)]
pub(crate) struct WalStream {
    session: Session,
    /// Where the next data must begin.
    expected: Lsn,
    /// Written, flushed, applied: what the server was last told.
    reported: [Lsn; 3],
    phase: Phase,
    heard: Instant,
    /// When the server was asked for a sign of life, if it was not heard since.
    asked: Option<Instant>,
    silence_max: Duration,
}

/// A server speaks twice in its `wal_sender_timeout` (a minute, as a rule) if it has nothing to send; one whose timeout is off only if asked.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const DATA_HEADER_BYTES: usize = 24;
const KEEP_ALIVE_BYTES: usize = 17;

impl WalStream {
    /// After how long without a word the server is given up; after half of it it is asked.
    #[cfg(test)]
    pub(crate) fn set_silence_max(&mut self, silence: Duration) {
        self.silence_max = silence;
    }

    /// What comes next. After [`WalMessage::EndOfTimeline`] comes that again.
    pub(crate) async fn next(&mut self) -> Result<WalMessage, SessionError> {
        loop {
            if self.phase != Phase::Copying {
                return Ok(WalMessage::EndOfTimeline);
            }
            // Half the time is for it, half for its answer to the question whether it is there: that half is waited for whole, so that who was
            // long away himself does not take what he has not read for silence.
            match timeout_at(self.asked.unwrap_or(self.heard) + self.silence_max / 2, self.session.wire.receive()).await
            {
                Ok(frame) => {
                    let frame = frame?;
                    self.heard = Instant::now();
                    self.asked = None;
                    if let Some(message) = self.read(frame)? {
                        return Ok(message);
                    }
                }
                Err(_) if self.asked.is_some() => {
                    return Err(self.session.wire.timeout("send anything", self.silence_max));
                }
                Err(_) => {
                    self.asked = Some(Instant::now());
                    self.put_status(true)?;
                }
            }
        }
    }

    fn read(&mut self, frame: Frame) -> Result<Option<WalMessage>, SessionError> {
        match frame {
            Frame::CopyData(bytes) => self.read_copy(bytes).map(Some),
            Frame::Message(Message::CopyDone) => {
                self.phase = Phase::Done;
                Ok(Some(WalMessage::EndOfTimeline))
            }
            Frame::Message(Message::ErrorResponse(body)) => {
                let said = Said::read(body.fields()).map_err(|error| self.session.wire.malformed(error))?;
                Err(self.session.refused(said))
            }
            // Without a `CopyDone` before it, it is what a server says last that shuts down in good order.
            Frame::Message(Message::CommandComplete(_)) => {
                let ended = std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the server shuts down");
                Err(self.session.wire.lost(ended))
            }
            Frame::CopyBoth => Err(self.session.wire.protocol("it begins to copy twice")),
            Frame::Message(message) => self.session.note(message).map(|()| None),
        }
    }

    fn read_copy(&mut self, mut bytes: Bytes) -> Result<WalMessage, SessionError> {
        let wire = &self.session.wire;
        let kind = if bytes.has_remaining() { bytes.get_u8() } else { 0 };
        match kind {
            b'w' if bytes.len() >= DATA_HEADER_BYTES => {
                let (start, server_end) = (Lsn(bytes.get_u64()), Lsn(bytes.get_u64()));
                let sent_at = timestamp(bytes.get_i64()).ok_or_else(|| wire.protocol("a time cannot be"))?;
                let end = start.checked_add(bytes.len() as u64);
                let Some(end) = end.filter(|_| start == self.expected) else {
                    let expected = self.expected;
                    return Err(wire.protocol(format!(
                        "it sends {} bytes of log at {start} instead of at {expected}",
                        bytes.len()
                    )));
                };
                self.expected = end;
                Ok(WalMessage::Data { start, server_end, sent_at, bytes })
            }
            b'k' if bytes.len() == KEEP_ALIVE_BYTES => {
                let end = Lsn(bytes.get_u64());
                let sent_at = timestamp(bytes.get_i64()).ok_or_else(|| wire.protocol("a time cannot be"))?;
                Ok(WalMessage::KeepAlive { end, sent_at, reply: bytes.get_u8() != 0 })
            }
            _ => Err(wire.protocol("a message of its log cannot be understood")),
        }
    }

    /// Tells the server how far the log is safe here: what lets it forget it, and lets commits go on that wait for us.
    pub(crate) async fn report(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        applied: Lsn,
        reply_now: bool,
    ) -> Result<(), SessionError> {
        if self.phase != Phase::Copying {
            return Ok(());
        }
        self.reported = [written, flushed, applied];
        self.put_status(reply_now)?;
        let within = self.session.patience();
        let sent = timeout(within, self.session.wire.flush()).await;
        sent.unwrap_or_else(|_| Err(self.session.wire.timeout("take a report", within)))
    }

    fn put_status(&mut self, reply_now: bool) -> Result<(), SessionError> {
        let mut status = BytesMut::with_capacity(34);
        status.put_u8(b'r');
        for place in self.reported {
            status.put_u64(place.0);
        }
        status.put_i64(Timestamp::now().as_microsecond() - EPOCH_MICROSECONDS);
        status.put_u8(u8::from(reply_now));
        let data = CopyData::new(status).map_err(|error| self.session.wire.malformed(error))?;
        data.write(&mut self.session.wire.output);
        Ok(())
    }

    /// Ends the stream. After the end of a timeline the server says which is the next, and where that begins.
    pub(crate) async fn end(mut self) -> Result<(Session, Option<(u32, Lsn)>), SessionError> {
        let within = self.session.patience();
        let ended = timeout(within, self.finish()).await;
        let next = ended.unwrap_or_else(|_| Err(self.session.wire.timeout("end the stream", within)))?;
        Ok((self.session, next))
    }

    async fn finish(&mut self) -> Result<Option<(u32, Lsn)>, SessionError> {
        if self.phase != Phase::Empty {
            copy_done(&mut self.session.wire.output);
            self.session.wire.flush().await?;
        }
        while self.phase == Phase::Copying {
            // What was on its way is not wanted any more.
            let frame = self.session.wire.receive().await?;
            self.read(frame)?;
        }
        let rows = self.session.read_answer().await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let next = row.get(0).and_then(timeline).zip(row.get(1).and_then(|text| text.parse::<Lsn>().ok()));
        next.map(Some).ok_or_else(|| self.session.malformed_answer("the end of a timeline"))
    }
}

/// PostgreSQL counts microseconds from the year 2000.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

fn timestamp(microseconds: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(microseconds.checked_add(EPOCH_MICROSECONDS)?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_the_server_means_them() {
        for (text, bytes) in [("16MB", 16 << 20), ("1GB", 1 << 30), ("1024kB", 1 << 20), ("7", 7), ("8B", 8)] {
            assert_eq!(memory_bytes(text), Some(bytes), "{text}");
        }
        for junk in ["", "MB", "16mb", "16 MB", "99999999999999999999MB", "18446744073709551615TB", "é"] {
            assert_eq!(memory_bytes(junk), None, "{junk}");
        }
        assert_eq!(timestamp(0).unwrap().to_string(), "2000-01-01T00:00:00Z");
        assert_eq!((timestamp(i64::MAX), timestamp(i64::MIN)), (None, None));
        assert_eq!(
            (timeline("0"), timeline("-1"), timeline("4294967296"), timeline("11")),
            (None, None, None, Some(11))
        );
    }
}
