//! Asks a name server directly: one question, over UDP and, when the answer was cut, over TCP.
//!
//! Invariant: an answer is believed only if its id and its question are those that were asked.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use lifeboat_engine::port::TrafficInForce;

/// How long one datagram is waited for before it is sent again.
const DATAGRAM_WAIT: Duration = Duration::from_millis(800);
const DATAGRAMS_MAX: u32 = 3;
const TCP_WAIT: Duration = Duration::from_secs(3);
const PAYLOAD_BYTES_MAX: u16 = 1232;

/// Why a question has no usable answer; says what was seen instead.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("`{0}` is not the address of a name server: write it as 127.0.0.53:53")]
    Authority(String),
    #[error("`{name}` is not a domain name")]
    Name {
        name: String,
        #[source]
        source: hickory_proto::ProtoError,
    },
    #[error("the name server {server} cannot be asked")]
    Unreachable {
        server: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the name server {server} does not answer")]
    Silent { server: SocketAddr },
    #[error("the name server {server} sent something that is no answer to the question about {name}")]
    Garbled { server: SocketAddr, name: String },
    #[error("the name server {server} says {code} about {name}")]
    Refused { server: SocketAddr, name: String, code: ResponseCode },
    #[error("{name} has no address at {server}")]
    NoAddress { name: String, server: String },
    #[error("{name} cannot be resolved by this machine's resolver")]
    System {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the name server {server} has no traffic generation in force for {name}")]
    NoGeneration { server: String, name: String },
}

impl DnsError {
    /// Whether asking again later may help.
    pub fn may_pass(&self) -> bool {
        !matches!(self, DnsError::Authority(_) | DnsError::Name { .. })
    }
}

/// The addresses that an authority gives for a name now, IPv4 first.
pub async fn resolve_at(authority: &str, name: &str) -> Result<Vec<IpAddr>, DnsError> {
    let server = server_address(authority).await?;
    let (v4, v6) = tokio::join!(addresses(server, name, RecordType::A), addresses(server, name, RecordType::AAAA));
    let mut found = match (v4, v6) {
        (Err(error), Err(_)) => return Err(error),
        (Err(error), Ok(v6)) if v6.is_empty() => return Err(error),
        (v4, v6) => {
            let mut found = v4.unwrap_or_default();
            found.extend(v6.unwrap_or_default());
            found
        }
    };
    found.dedup();
    if found.is_empty() {
        return Err(DnsError::NoAddress { name: name.to_owned(), server: authority.to_owned() });
    }
    Ok(found)
}

/// The addresses that this machine's own resolver gives.
pub async fn resolve_by_system(name: &str) -> Result<Vec<IpAddr>, DnsError> {
    let found = tokio::net::lookup_host((name, 0))
        .await
        .map_err(|source| DnsError::System { name: name.to_owned(), source })?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    addresses.dedup();
    Ok(addresses)
}

/// The epoch and generation that an authority says it answers with for a name (`_epoch.NAME` TXT).
pub async fn answers_generation(authority: &str, name: &str) -> Result<TrafficInForce, DnsError> {
    let server = server_address(authority).await?;
    let message = ask(server, &format!("_epoch.{name}"), RecordType::TXT).await?;
    for record in &message.answers {
        if let RData::TXT(text) = &record.data {
            let number = |key: &str| {
                let parts = text.txt_data.iter().filter_map(|part| std::str::from_utf8(part).ok());
                parts.filter_map(|part| part.strip_prefix(key)).find_map(|value| value.parse().ok())
            };
            if let (Some(epoch), Some(generation)) = (number("epoch="), number("generation=")) {
                return Ok(TrafficInForce { epoch, generation });
            }
        }
    }
    Err(DnsError::NoGeneration { server: authority.to_owned(), name: name.to_owned() })
}

/// `HOST:PORT`, `[V6]:PORT`, or an address alone (port 53).
async fn server_address(authority: &str) -> Result<SocketAddr, DnsError> {
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(address) = authority.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    let wrong = || DnsError::Authority(authority.to_owned());
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
        None => (authority, 53),
    };
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|_| wrong())?;
    found.next().ok_or_else(wrong)
}

async fn addresses(server: SocketAddr, name: &str, kind: RecordType) -> Result<Vec<IpAddr>, DnsError> {
    let message = ask(server, name, kind).await?;
    let found = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    Ok(found.collect())
}

/// Asks one question and answers the whole message; any code but NOERROR is an error.
async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Result<Message, DnsError> {
    let mut qualified = Name::from_ascii(name).map_err(|source| DnsError::Name { name: name.to_owned(), source })?;
    qualified.set_fqdn(true);
    let question = Query::query(qualified, kind);
    let id = random_id();
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES_MAX);
    query.set_edns(edns);
    let bytes = query.to_vec().map_err(|source| DnsError::Name { name: name.to_owned(), source })?;
    let unreachable = |source| DnsError::Unreachable { server, source };
    let mut answer = over_udp(server, &bytes, id, &question).await.map_err(unreachable)?;
    if answer.as_ref().is_none_or(|message| message.metadata.truncation) {
        // Cut, or no datagram comes through: some networks let only TCP pass.
        let over_tcp = timeout(TCP_WAIT, over_tcp(server, &bytes)).await;
        answer = match (over_tcp, answer) {
            (Ok(Ok(bytes)), _) => {
                let message = Message::from_vec(&bytes).ok().filter(|message| belongs(message, id, &question));
                Some(message.ok_or_else(|| DnsError::Garbled { server, name: name.to_owned() })?)
            }
            (Ok(Err(source)), Some(_)) => return Err(unreachable(source)),
            _ => return Err(DnsError::Silent { server }),
        };
    }
    let answer = answer.ok_or(DnsError::Silent { server })?;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(answer),
        code => Err(DnsError::Refused { server, name: name.to_owned(), code }),
    }
}

/// Nothing when no fitting datagram comes back in time.
async fn over_udp(
    server: SocketAddr,
    query: &[u8],
    id: u16,
    question: &Query,
) -> Result<Option<Message>, std::io::Error> {
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut refused = None;
    for _ in 0..DATAGRAMS_MAX {
        socket.send(query).await.or_else(|error| if is_refusal(&error) { Ok(0) } else { Err(error) })?;
        let fitting = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                let bytes = buffer.get(..length).unwrap_or_default();
                if let Ok(message) = Message::from_vec(bytes)
                    && belongs(&message, id, question)
                {
                    return Ok::<Message, std::io::Error>(message);
                }
            }
        };
        match timeout(DATAGRAM_WAIT, fitting).await {
            Ok(Ok(message)) => return Ok(Some(message)),
            Ok(Err(error)) if is_refusal(&error) => {
                refused = Some(error);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => refused = None,
        }
    }
    refused.map_or(Ok(None), Err)
}

fn is_refusal(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ConnectionRefused
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, std::io::Error> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(query).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn belongs(message: &Message, id: u16, question: &Query) -> bool {
    message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && message.queries.first().is_none_or(|echoed| {
            echoed.query_type() == question.query_type() && echoed.name().eq_ignore_root(question.name())
        })
}

fn random_id() -> u16 {
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u16
}
