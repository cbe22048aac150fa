//! Showing a server who we are.
//!
//! Invariants: a password goes out in the clear only where nobody on the way can read it; over TLS a SCRAM login is bound to the server's
//! certificate wherever both sides can; a server that asks for SCRAM has proven that it knows the password, too, before it is believed.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::door::{Door, Looked, Secret};
use super::error::{Said, SessionError};
use super::session::Purpose;
use super::wire::{Frame, Wire};

/// What protects the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cover {
    /// Anyone on the way can read it.
    None,
    /// It does not leave the machine.
    Socket,
    /// And what a login can be bound to, if the certificate says how.
    Tls(Option<Vec<u8>>),
}

struct Login<'a> {
    wire: &'a mut Wire,
    door: &'a Door,
    purpose: Purpose,
    cover: Cover,
}

/// From the startup message, which was sent, to where the server has let us in.
pub(super) async fn log_in(wire: &mut Wire, door: &Door, purpose: Purpose, cover: Cover) -> Result<(), SessionError> {
    Login { wire, door, purpose, cover }.run().await
}

impl Login<'_> {
    async fn run(&mut self) -> Result<(), SessionError> {
        let mut bound = false;
        let asked = self.receive().await?;
        match asked {
            Message::AuthenticationOk => {}
            Message::AuthenticationCleartextPassword => {
                if self.cover == Cover::None {
                    return Err(self.failed(
                        "it asks for the password in the clear, and the connection is not encrypted: set `sslmode=require` or \
                         stronger, or `scram-sha-256` in its pg_hba.conf",
                    ));
                }
                let password = self.password()?;
                self.send_password(password.expose())?;
                self.ok().await?;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.password()?;
                let hash = md5_hash(self.door.user().as_bytes(), password.expose(), body.salt());
                self.send_password(hash.as_bytes())?;
                self.ok().await?;
            }
            Message::AuthenticationSasl(body) => bound = self.scram(&body).await?,
            other => return Err(self.unknown(&other)),
        }
        if self.door.binding_required() && !bound {
            return Err(
                self.failed("it does not bind the login to its certificate, and `channel_binding=require` is set")
            );
        }
        Ok(())
    }

    fn failed(&self, what: impl Into<String>) -> SessionError {
        let user = self.door.user().to_owned();
        SessionError::Authentication { at: self.wire.at.clone(), user, what: what.into() }
    }

    fn unknown(&self, asked: &Message) -> SessionError {
        let method = match asked {
            Message::AuthenticationGss | Message::AuthenticationGssContinue(_) => "GSSAPI",
            Message::AuthenticationKerberosV5 => "Kerberos 5",
            Message::AuthenticationSspi => "SSPI",
            Message::AuthenticationScmCredential => "a socket's credentials",
            _ => return self.wire.protocol("it answers a login with something else"),
        };
        self.failed(format!("it asks for {method}, which lifeboat cannot do: set `scram-sha-256` in its pg_hba.conf"))
    }

    /// The next message about the login.
    async fn receive(&mut self) -> Result<Message, SessionError> {
        self.wire.flush().await?;
        loop {
            match self.wire.receive().await? {
                Frame::Message(Message::NoticeResponse(_)) => {}
                Frame::Message(Message::ErrorResponse(body)) => {
                    let said = Said::read(body.fields()).map_err(|error| self.wire.malformed(error))?;
                    let advice = advice(&said, self.door, self.purpose);
                    return Err(said.refused(&self.wire.at, advice));
                }
                Frame::Message(message) => return Ok(message),
                Frame::CopyBoth | Frame::CopyData(_) => return Err(self.wire.protocol("it copies before a login")),
            }
        }
    }

    async fn ok(&mut self) -> Result<(), SessionError> {
        match self.receive().await? {
            Message::AuthenticationOk => Ok(()),
            other => Err(self.unknown(&other)),
        }
    }

    fn password(&self) -> Result<Secret, SessionError> {
        let user = self.door.user();
        let (looked, place) = self.door.password(self.purpose);
        let what = match looked {
            Looked::Found(password) => return Ok(password),
            Looked::NotListed => format!("it asks for a password, and {place} has no line for {user} there"),
            Looked::Absent => format!("it asks for a password, and there is none: write it to {place} (mode 600)"),
            Looked::Ignored(why) => format!("it asks for a password, and {place} is not used: {why}"),
        };
        Err(self.failed(what))
    }

    fn send_password(&mut self, password: &[u8]) -> Result<(), SessionError> {
        frontend::password_message(password, &mut self.wire.output)
            .map_err(|_| self.failed("the password holds a zero byte"))
    }

    /// Whether the login was bound to the certificate.
    async fn scram(&mut self, body: &AuthenticationSaslBody) -> Result<bool, SessionError> {
        let offered: Vec<String> =
            body.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(|error| self.wire.malformed(error))?;
        let offers = |name: &str| offered.iter().any(|offered| offered == name);
        let Cover::Tls(Some(hash)) = &self.cover else {
            return match offers(SCRAM_SHA_256) {
                true => self.exchange(SCRAM_SHA_256, ChannelBinding::unsupported()).await.map(|()| false),
                false => Err(self.no_scram(&offered)),
            };
        };
        if offers(SCRAM_SHA_256_PLUS) {
            let binding = ChannelBinding::tls_server_end_point(hash.clone());
            self.exchange(SCRAM_SHA_256_PLUS, binding).await.map(|()| true)
        } else if offers(SCRAM_SHA_256) {
            // Says that we could: a server that could, too, learns that somebody in between took its offer away.
            self.exchange(SCRAM_SHA_256, ChannelBinding::unrequested()).await.map(|()| false)
        } else {
            Err(self.no_scram(&offered))
        }
    }

    fn no_scram(&self, offered: &[String]) -> SessionError {
        let shown: String = offered.join(", ").chars().take(100).collect();
        self.failed(format!("it offers {shown}, of which lifeboat can do none: set `scram-sha-256` in its pg_hba.conf"))
    }

    async fn exchange(&mut self, mechanism: &str, binding: ChannelBinding) -> Result<(), SessionError> {
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.expose(), binding);
        let sent = frontend::sasl_initial_response(mechanism, scram.message(), &mut self.wire.output);
        sent.map_err(|error| self.wire.malformed(error))?;
        let Message::AuthenticationSaslContinue(body) = self.receive().await? else {
            return Err(self.wire.protocol("it breaks off a login by SCRAM"));
        };
        scram.update(body.data()).map_err(|error| self.wire.malformed(error))?;
        let sent = frontend::sasl_response(scram.message(), &mut self.wire.output);
        sent.map_err(|error| self.wire.malformed(error))?;
        let Message::AuthenticationSaslFinal(body) = self.receive().await? else {
            return Err(self.wire.protocol("it breaks off a login by SCRAM"));
        };
        scram.finish(body.data()).map_err(|_| {
            self.failed(
                "it could not prove that it knows the password itself: something else answers in the server's place",
            )
        })?;
        self.ok().await
    }
}

/// What to do about a refusal at the door.
pub(super) fn advice(said: &Said, door: &Door, purpose: Purpose) -> String {
    let user = door.user();
    match (said.sqlstate.as_str(), purpose) {
        ("28P01", _) => {
            let (_, place) = door.password(purpose);
            format!("; see that the password of {user} in {place} is the server's")
        }
        ("28000", Purpose::Replication) => {
            format!("; let {user} in for `replication` from this host in its pg_hba.conf")
        }
        ("28000", Purpose::Queries) => {
            format!("; see that {user} exists, and let it in from this host to {} in its pg_hba.conf", door.database())
        }
        ("42501", Purpose::Replication) => format!("; give it the right: alter role {user} replication"),
        ("53300", Purpose::Replication) => "; raise `max_wal_senders`, or end another receiver".to_owned(),
        ("53300", Purpose::Queries) => "; raise `max_connections`, or end other sessions".to_owned(),
        ("3D000", _) => "; name a database that exists".to_owned(),
        _ => String::new(),
    }
}
