//! Messages over a connection, in and out.
//!
//! Invariants: a message's length is compared with its kind's bound before memory is taken for it, and memory is taken as bytes come, not as
//! they are announced. `receive` and `flush` may be dropped at any await and called again: nothing is lost or sent twice.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::backend::{self, Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::SessionError;

/// A socket, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// What can come.
pub(super) enum Frame {
    Message(Message),
    /// From now on both sides copy.
    CopyBoth,
    CopyData(Bytes),
}

/// Before it has let us in, a server needs few words.
pub(super) const GREETING_BYTES_MAX: usize = 64 << 10;
/// A row, an error, a timeline's history.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A server sends at most sixteen pages of log at once, the largest of which have 64 KiB.
const COPY_BYTES_MAX: usize = (1 << 20) + 1024;
/// What is read at once. Sixteen usual pages, so that one message comes with one read.
const READ_BYTES: usize = 160 << 10;
const COPY_BOTH_TAG: u8 = b'W';
const COPY_OUT_TAG: u8 = b'd';

pub(super) struct Wire {
    stream: Box<dyn Stream>,
    input: BytesMut,
    /// What is still to be sent.
    pub(super) output: BytesMut,
    /// What TLS was given and may still hold.
    unflushed: bool,
    /// Where the server is, for errors.
    pub(super) at: String,
    pub(super) message_bytes_max: usize,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>, at: String) -> Wire {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Wire { stream, input, output, unflushed: false, at, message_bytes_max: GREETING_BYTES_MAX }
    }

    pub(super) fn lost(&self, source: io::Error) -> SessionError {
        SessionError::Lost { at: self.at.clone(), source }
    }

    pub(super) fn protocol(&self, what: impl Into<String>) -> SessionError {
        SessionError::Protocol { at: self.at.clone(), what: what.into() }
    }

    pub(super) fn timeout(&self, what: &'static str, within: Duration) -> SessionError {
        SessionError::Timeout { at: self.at.clone(), what, within }
    }

    /// What an `io::Error` of the parser means.
    pub(super) fn malformed(&self, error: io::Error) -> SessionError {
        self.protocol(format!("a message is malformed ({error})"))
    }

    /// The next message that has come whole; does not wait.
    pub(super) fn take(&mut self) -> Result<Option<Frame>, SessionError> {
        let Some(header) = Header::parse(&self.input).map_err(|error| self.malformed(error))? else { return Ok(None) };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        let bytes_max = if header.tag() == COPY_OUT_TAG { COPY_BYTES_MAX } else { self.message_bytes_max };
        if length > bytes_max {
            let tag = char::from(header.tag()).escape_default().to_string();
            return Err(self.protocol(format!("a message `{tag}` of {length} bytes, and {bytes_max} are the most")));
        }
        if self.input.len() < length + 1 {
            return Ok(None);
        }
        match header.tag() {
            COPY_OUT_TAG => {
                let mut message = self.input.split_to(length + 1);
                Ok(Some(Frame::CopyData(message.split_off(5).freeze())))
            }
            // Formats of columns, of which a log has none.
            COPY_BOTH_TAG => {
                drop(self.input.split_to(length + 1));
                Ok(Some(Frame::CopyBoth))
            }
            _ => {
                let message = backend::Message::parse(&mut self.input).map_err(|error| self.malformed(error))?;
                Ok(message.map(Frame::Message))
            }
        }
    }

    /// The next message, when it has come.
    pub(super) async fn receive(&mut self) -> Result<Frame, SessionError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// Waits for more bytes, and sends what is still to be sent meanwhile.
    async fn fill(&mut self) -> Result<(), SessionError> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 8 {
            self.input.reserve(READ_BYTES);
        }
        self.flush().await?;
        let count = self.stream.read_buf(&mut self.input).await.map_err(|error| self.lost(error))?;
        if count == 0 {
            let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it");
            return Err(self.lost(ended));
        }
        Ok(())
    }

    /// Sends what is to be sent. A server that listens no more may have said why, so that it is for `receive` to find the connection's end.
    pub(super) async fn flush(&mut self) -> Result<(), SessionError> {
        while !self.output.is_empty() {
            match self.stream.write_buf(&mut self.output).await {
                Ok(1..) => self.unflushed = true,
                Ok(0) => return Err(self.lost(io::ErrorKind::WriteZero.into())),
                Err(_) => self.output.clear(),
            }
        }
        if self.unflushed {
            let _ = self.stream.flush().await;
            self.unflushed = false;
        }
        Ok(())
    }

    /// Says that no more comes.
    pub(super) async fn shut_down(&mut self) {
        // Whoever is gone already need not be told.
        let _ = self.stream.shutdown().await;
    }
}
