//! The service's door: its name in DNS, the authority that knows the name, and the port.
//!
//! Invariant: an address is used no longer than its time to live, and never when the authority says otherwise.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

/// An authority that says nothing for so long is taken to be away.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Large enough for any answer of a name with some addresses over UDP.
const ANSWER_BYTES_MAX: usize = 4096;

/// How the service is found: by name, at an authority, on a port.
#[derive(Debug, Clone, clap::Args)]
pub struct Door {
    /// The service's name in DNS.
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// The name server that is asked for it.
    #[arg(long, value_name = "IP:PORT")]
    pub authority: SocketAddr,
    /// The service's TCP port.
    #[arg(long)]
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("`{name}` is not a name that DNS can hold")]
    Name { name: String, source: hickory_proto::ProtoError },
    #[error("the name server {authority} could not be asked for {name}")]
    Ask { authority: SocketAddr, name: String, source: std::io::Error },
    #[error("the name server {authority} did not answer for {name} within {ANSWER_WITHIN:?}")]
    Silent { authority: SocketAddr, name: String },
    #[error("the name server {authority} answered {code} for {name}")]
    Refused { authority: SocketAddr, name: String, code: ResponseCode },
    #[error("the name server {authority} knows no address for {name}")]
    NoAddress { authority: SocketAddr, name: String },
}

impl Door {
    /// Asks the authority now. All addresses, in the order of the answer, and how long they may be used.
    pub async fn resolve(&self) -> Result<(Vec<SocketAddr>, Duration), DoorError> {
        let authority = self.authority;
        let name = || self.name.clone();
        let asked = |source| DoorError::Ask { authority, name: name(), source };
        let mut qname = Name::from_ascii(&self.name).map_err(|source| DoorError::Name { name: name(), source })?;
        qname.set_fqdn(true);
        let mut query = Message::query();
        query.add_query(Query::query(qname, RecordType::A));
        let id = query.metadata.id;
        let bytes = query.to_vec().map_err(|source| DoorError::Name { name: name(), source })?;

        let any: IpAddr = match authority {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await.map_err(asked)?;
        socket.connect(authority).await.map_err(asked)?;
        socket.send(&bytes).await.map_err(asked)?;
        let receive = async {
            let mut buffer = vec![0; ANSWER_BYTES_MAX];
            loop {
                let length = socket.recv(&mut buffer).await.map_err(asked)?;
                // Anything that is no answer to this question is somebody else's, or forged.
                match Message::from_vec(buffer.get(..length).unwrap_or_default()) {
                    Ok(answer) if answer.metadata.id == id && answer.queries == query.queries => return Ok(answer),
                    _ => continue,
                }
            }
        };
        let answer = tokio::time::timeout(ANSWER_WITHIN, receive)
            .await
            .map_err(|_| DoorError::Silent { authority, name: name() })??;
        if answer.metadata.response_code != ResponseCode::NoError {
            return Err(DoorError::Refused { authority, name: name(), code: answer.metadata.response_code });
        }
        let mut ttl_seconds = u32::MAX;
        let mut addresses = Vec::new();
        for record in &answer.answers {
            if let RData::A(address) = &record.data {
                ttl_seconds = ttl_seconds.min(record.ttl);
                addresses.push(SocketAddr::new(address.0.into(), self.port));
            }
        }
        if addresses.is_empty() {
            return Err(DoorError::NoAddress { authority, name: name() });
        }
        Ok((addresses, Duration::from_secs(ttl_seconds.into())))
    }
}

/// Remembers the last answer for as long as it may be used.
#[derive(Debug)]
pub(crate) struct Resolver {
    door: Door,
    known: Option<(SocketAddr, Instant)>,
}

impl Resolver {
    pub(crate) fn new(door: Door) -> Resolver {
        Resolver { door, known: None }
    }

    /// Where the service is now. The first address of an answer is used: the authority orders them by weight.
    pub(crate) async fn address(&mut self) -> Result<SocketAddr, DoorError> {
        if let Some((address, until)) = self.known
            && Instant::now() < until
        {
            return Ok(address);
        }
        self.known = None;
        let asked_at = Instant::now();
        let (addresses, ttl) = self.door.resolve().await?;
        let Some(address) = addresses.first().copied() else {
            return Err(DoorError::NoAddress { authority: self.door.authority, name: self.door.name.clone() });
        };
        self.known = Some((address, asked_at + ttl.min(Duration::from_secs(3600))));
        Ok(address)
    }
}
