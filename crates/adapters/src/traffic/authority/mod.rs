//! The built-in DNS authority: a process of its own that answers for the services' names by the generation in force.
//!
//! ```text
//!   arbiter's storage --poll--> newest signed generation --> durable zone --> zones --> wire <--> resolvers
//!                                                                              ^
//!   health URLs of the answers --watch--> health board ------------------------+
//! ```
//!
//! Invariant: it needs neither the arbiter nor the controller to go on answering, and only a newer generation, signed
//! by a trusted key and already durable here, changes what it answers.

mod choice;
mod durable;
mod health;
mod poll;
mod wire;
mod zone;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hickory_server::Server;
use lifeboat_engine::traffic::TrafficSource;
use tokio::net::{TcpListener, UdpSocket};

use self::choice::Dice;
use self::durable::DurableZone;
pub use self::durable::StateError;
use self::poll::Poller;
use self::wire::Wire;
use self::zone::Zones;
pub use self::zone::{NameError, NameServer};

/// A TCP client that sends nothing for this long is let go.
const TCP_IDLE: Duration = Duration::from_secs(5);
const TCP_RESPONSES_MAX: usize = 16;
/// How often a pair of free UDP and TCP ports is looked for when any port will do.
const PORT_TRIES: u32 = 16;

/// What an authority serves, and from where.
pub struct AuthorityConfig {
    /// UDP and TCP; port 0 means any.
    pub listen: Vec<SocketAddr>,
    /// Holds the durable zone.
    pub state: PathBuf,
    pub source: Arc<dyn TrafficSource>,
    /// Fully qualified names.
    pub names: Vec<String>,
    /// Zones that hold several names; a name in none of them is a zone of its own.
    pub zones: Vec<String>,
    /// For NS and SOA records; empty means `ns.ZONE` at the addresses listened on.
    pub name_servers: Vec<NameServer>,
    pub poll_every: Duration,
    /// How long the arbiter is waited for before anything is answered.
    pub first_poll_within: Duration,
    pub health_every: Duration,
    pub health_timeout: Duration,
    /// Fixes the choice among weighted answers, for tests.
    pub seed: Option<u64>,
}

impl AuthorityConfig {
    /// A configuration with the everyday intervals.
    pub fn new(listen: Vec<SocketAddr>, state: PathBuf, source: Arc<dyn TrafficSource>, names: Vec<String>) -> Self {
        AuthorityConfig {
            listen,
            state,
            source,
            names,
            zones: Vec::new(),
            name_servers: Vec::new(),
            poll_every: Duration::from_secs(1),
            first_poll_within: Duration::from_secs(2),
            health_every: Duration::from_secs(1),
            health_timeout: Duration::from_secs(2),
            seed: None,
        }
    }
}

impl std::fmt::Debug for AuthorityConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityConfig")
            .field("listen", &self.listen)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Why the authority does not serve (any more).
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Names(#[from] NameError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("no address to listen on: give --listen ADDRESS:PORT")]
    NoAddress,
    #[error("cannot listen on {address}: {advice}")]
    Listen {
        address: SocketAddr,
        advice: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("a socket of the DNS authority closed unexpectedly; start it again, its zone is safe")]
    Closed(#[source] hickory_server::net::NetError),
    #[error("a task of the DNS authority ended unexpectedly; start it again, its zone is safe")]
    Task(#[source] tokio::task::JoinError),
}

/// Counted since the start; for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    pub questions: AtomicU64,
    pub refused: AtomicU64,
    /// Generations put in force.
    pub switches: AtomicU64,
    /// Objects that were malformed, unsigned, forged or stale.
    pub rejected: AtomicU64,
    /// Polls of the arbiter that failed.
    pub polls_failed: AtomicU64,
}

/// An authority whose sockets are bound and whose zone is loaded: ready to `run`.
pub struct Authority {
    config: AuthorityConfig,
    sockets: Vec<(UdpSocket, TcpListener)>,
    addresses: Vec<SocketAddr>,
    zones: Arc<Zones>,
    poller: Poller,
    counters: Arc<Counters>,
}

impl Authority {
    /// Loads the durable zone, binds the sockets, and asks the arbiter once (briefly).
    pub async fn bind(config: AuthorityConfig) -> Result<Authority, AuthorityError> {
        let mut sockets = Vec::new();
        let mut addresses = Vec::new();
        for address in &config.listen {
            let (udp, tcp) = bind_pair(*address).await?;
            addresses.push(udp.local_addr().map_err(|source| listen_error(*address, source))?);
            sockets.push((udp, tcp));
        }
        if addresses.is_empty() {
            return Err(AuthorityError::NoAddress);
        }
        let dice = config.seed.map_or_else(Dice::unpredictable, Dice::seeded);
        let zones = Zones::new(&config.names, &config.zones, &config.name_servers, &addresses, dice)?;
        let durable = DurableZone::open(&config.state)?;
        for (name, _) in zones.generations() {
            if let Some(generation) = durable.recall(&name)? {
                let (epoch, number) = (generation.epoch, generation.generation);
                match zones.accept(&generation) {
                    Ok(()) => tracing::info!(name, epoch, generation = number, "in force, from the durable zone"),
                    Err(why) => tracing::error!(name, %why, "the durable zone's generation cannot be answered with"),
                }
            }
        }
        let (zones, counters) = (Arc::new(zones), Arc::<Counters>::default());
        let poller = Poller {
            source: Arc::clone(&config.source),
            zones: Arc::clone(&zones),
            durable: Arc::new(durable),
            counters: Arc::clone(&counters),
            reported: Arc::default(),
        };
        // A slow arbiter must not keep the durable zone from being answered.
        let _late = tokio::time::timeout(config.first_poll_within, poller.poll()).await;
        Ok(Authority { config, sockets, addresses, zones, poller, counters })
    }

    /// Where it listens, with the real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Each name with the epoch and generation in force.
    pub fn generations(&self) -> Vec<(String, Option<(u64, u64)>)> {
        self.zones.generations()
    }

    /// Answers until `shutdown` is ready.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AuthorityError> {
        let mut background = tokio::task::JoinSet::new();
        background.spawn(self.poller.run(self.config.poll_every));
        let (every, timeout) = (self.config.health_every, self.config.health_timeout);
        background.spawn(health::watch(Arc::clone(&self.zones), every, timeout));
        let mut server = Server::new(Wire { zones: self.zones, counters: self.counters });
        for (udp, tcp) in self.sockets {
            server.register_socket(udp);
            server.register_listener(tcp, TCP_IDLE, TCP_RESPONSES_MAX);
        }
        tokio::select! {
            () = shutdown => server.shutdown_gracefully().await.map_err(AuthorityError::Closed),
            ended = server.block_until_done() => ended.map_err(AuthorityError::Closed),
            Some(Err(error)) = background.join_next() => Err(AuthorityError::Task(error)),
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Binds and runs; `ready` learns the addresses as soon as questions are answered.
pub async fn serve(
    config: AuthorityConfig,
    ready: impl FnOnce(&[SocketAddr]),
    shutdown: impl Future<Output = ()>,
) -> Result<(), AuthorityError> {
    let authority = Authority::bind(config).await?;
    ready(authority.addresses());
    authority.run(shutdown).await
}

/// One port for both protocols.
async fn bind_pair(address: SocketAddr) -> Result<(UdpSocket, TcpListener), AuthorityError> {
    let wrong = |source| listen_error(address, source);
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let udp = UdpSocket::bind(address).await.map_err(wrong)?;
        match TcpListener::bind(udp.local_addr().map_err(wrong)?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if tries == 0 => return Err(wrong(error)),
            Err(_) => {}
        }
    }
}

fn listen_error(address: SocketAddr, source: std::io::Error) -> AuthorityError {
    let advice = match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process listens there; stop it, or listen on another address (such as a loopback address of its own)"
        }
        std::io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
        _ => "the system refuses",
    };
    AuthorityError::Listen { address, advice, source }
}
