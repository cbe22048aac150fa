//! Looks at instances and services from where the traffic comes from: names, connections, HTTP, commands.
//!
//! Invariant: every look ends within the probe's time limit and says what it saw; nothing is kept from one to the next.

pub mod command;
pub mod dns;
pub mod http;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_core::plan::{Health, HttpExchange, Probe as Look};
use lifeboat_core::runbook::InstanceSpec;
use lifeboat_core::runbook::place::NAMED_ADDRESS;
use lifeboat_engine::port::{PortError, Probe, ServiceDoor, TrafficInForce};

use self::command::CommandError;
use self::dns::DnsError;
use self::http::{HttpClient, HttpError};

const LIMIT: Duration = Duration::from_secs(5);

/// The probe that uses this machine's network.
#[derive(Debug)]
pub struct NetworkProbe {
    limit: Duration,
    /// One for each authority that was asked so far.
    clients: Mutex<BTreeMap<Option<String>, HttpClient>>,
}

impl Default for NetworkProbe {
    fn default() -> NetworkProbe {
        NetworkProbe::new(LIMIT)
    }
}

impl NetworkProbe {
    /// A probe whose every look takes at most `limit`.
    pub fn new(limit: Duration) -> NetworkProbe {
        NetworkProbe { limit, clients: Mutex::default() }
    }

    fn client(&self, authority: Option<&str>) -> HttpClient {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = authority.map(str::to_owned);
        clients.entry(key.clone()).or_insert_with(|| HttpClient::new(key, self.limit)).clone()
    }

    /// Connects to each address in turn until one takes the connection.
    async fn connect(&self, what: &str, addresses: &[SocketAddr]) -> Result<(), PortError> {
        let mut seen = Vec::new();
        for address in addresses {
            match tokio::time::timeout(self.limit, tokio::net::TcpStream::connect(address)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => seen.push(format!("{address}: {error}")),
                Err(_) => seen.push(format!("{address}: no answer within {} s", self.limit.as_secs_f64())),
            }
        }
        Err(PortError::may_pass(format!("{what} takes no connection ({})", seen.join("; "))))
    }
}

#[async_trait]
impl Probe for NetworkProbe {
    async fn instance(&self, instance: &InstanceSpec, health: &Health) -> Result<(), PortError> {
        let id = instance.id();
        let needs = |thing: &str| {
            PortError::new(format!(
                "the health of {id} cannot be asked: it has no {thing}; give its component a port, or a health command"
            ))
        };
        match &health.probe {
            Look::Http(url) if is_url(url) => Ok(self.client(None).healthy(url).await?),
            Look::Http(path) => {
                let address = instance.address.as_deref().ok_or_else(|| needs("address"))?;
                let port = instance.port.ok_or_else(|| needs("port"))?;
                Ok(self.client(None).healthy(&url_to(address, Some(port), path)).await?)
            }
            Look::Tcp => {
                let host = instance.address.as_deref().ok_or_else(|| needs("address"))?;
                let port = instance.port.ok_or_else(|| needs("port"))?;
                let found = match host.parse::<IpAddr>() {
                    Ok(address) => vec![address],
                    Err(_) => dns::resolve_by_system(host).await?,
                };
                let addresses: Vec<_> = found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
                self.connect(&id, &addresses).await
            }
            Look::Command(command) => {
                let environment = [
                    ("LIFEBOAT_INSTANCE", id),
                    ("LIFEBOAT_ADDRESS", instance.address.clone().unwrap_or_default()),
                    ("LIFEBOAT_PORT", instance.port.map(|port| port.to_string()).unwrap_or_default()),
                ];
                Ok(command::healthy(command, &environment, self.limit).await?)
            }
        }
    }

    async fn resolve(&self, name: &str, authority: Option<&str>) -> Result<Vec<IpAddr>, PortError> {
        match authority {
            Some(authority) => Ok(dns::resolve_at(authority, name).await?),
            None => Ok(dns::resolve_by_system(name).await?),
        }
    }

    async fn traffic(&self, name: &str, authority: &str) -> Result<TrafficInForce, PortError> {
        Ok(dns::answers_generation(authority, name).await?)
    }

    async fn service(&self, door: &ServiceDoor, health: &Health) -> Result<(), PortError> {
        match &health.probe {
            Look::Http(url) if is_url(url) => Ok(self.client(door.authority.as_deref()).healthy(url).await?),
            Look::Http(path) => {
                let url = url_to(host_of(&door.name), door.port, path);
                Ok(self.client(door.authority.as_deref()).healthy(&url).await?)
            }
            Look::Tcp => {
                let port = door.port.ok_or_else(|| {
                    PortError::new(format!("{} has no port to connect to; give its component one", door.name))
                })?;
                let found = self.resolve(&door.name, door.authority.as_deref()).await?;
                let addresses: Vec<_> = found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
                self.connect(&door.name, &addresses).await
            }
            Look::Command(command) => {
                let environment = [
                    ("LIFEBOAT_NAME", door.name.clone()),
                    ("LIFEBOAT_AUTHORITY", door.authority.clone().unwrap_or_default()),
                    ("LIFEBOAT_PORT", door.port.map(|port| port.to_string()).unwrap_or_default()),
                ];
                let mut command = command.clone();
                if command.iter().any(|part| part.contains(NAMED_ADDRESS)) {
                    let found = self.resolve(&door.name, door.authority.as_deref()).await?;
                    let none = || PortError::may_pass(format!("{} has no address", door.name));
                    let address = found.first().ok_or_else(none)?.to_string();
                    command.iter_mut().for_each(|part| *part = part.replace(NAMED_ADDRESS, &address));
                }
                Ok(command::healthy(&command, &environment, self.limit).await?)
            }
        }
    }

    async fn exchange(&self, door: &ServiceDoor, exchange: &HttpExchange) -> Result<(u16, String), PortError> {
        let wrong = || HttpError::Request(exchange.request.clone());
        let (method, path) = exchange.request.trim().split_once(' ').ok_or_else(wrong)?;
        let path = path.trim();
        if !path.starts_with('/') {
            return Err(wrong().into());
        }
        let url = url_to(host_of(&door.name), door.port, path);
        let client = self.client(door.authority.as_deref());
        let answer = client.exchange(method, &url, exchange.body.clone()).await?;
        Ok((answer.status, answer.body))
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// A name as it stands in a URL and a `Host` header: without its final dot.
fn host_of(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn url_to(host: &str, port: Option<u16>, path: &str) -> String {
    let host = if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("http://{host}{port}{slash}{path}")
}

impl From<HttpError> for PortError {
    fn from(error: HttpError) -> PortError {
        PortError { message: error.to_string(), may_pass: error.may_pass(), source: None }
    }
}

impl From<DnsError> for PortError {
    fn from(error: DnsError) -> PortError {
        let (message, may_pass) = (error.to_string(), error.may_pass());
        PortError {
            message,
            may_pass,
            source: std::error::Error::source(&error).map(|source| source.to_string().into()),
        }
    }
}

impl From<CommandError> for PortError {
    fn from(error: CommandError) -> PortError {
        let may_pass = !matches!(error, CommandError::Empty);
        let source = std::error::Error::source(&error).map(|source| source.to_string().into());
        PortError { message: error.to_string(), may_pass, source }
    }
}
