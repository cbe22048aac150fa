//! The DNS authority, asked by `dig`, by a real resolver (`unbound`) and by our own probe; its generations come from a
//! real directory storage.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lifeboat_adapters::traffic::answers_generation;
use lifeboat_adapters::traffic::authority::{Authority, AuthorityConfig, AuthorityError, Counters, serve};
use lifeboat_core::desired::{TrafficAnswer, TrafficGeneration};
use lifeboat_engine::arbitrate::Trustee;
use lifeboat_engine::port::Clock;
use lifeboat_engine::traffic::ArbiterTraffic;
use lifeboat_vault::Role;
use lifeboat_vault::sign::{Signed, SigningKey};
use lifeboat_vault::storage::{self, Storage};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::ports::free_port;
use super::web::Web;

const NAME: &str = "shop.example.com.";

/// An arbiter's directory, a key that it trusts, and a state directory.
struct Arbiter {
    directory: TempDir,
    state: TempDir,
    signer: SigningKey,
}

impl Arbiter {
    fn new() -> Arbiter {
        let directory = tempfile::tempdir().unwrap();
        Arbiter { directory, state: tempfile::tempdir().unwrap(), signer: SigningKey::generate().unwrap() }
    }

    fn storage(&self) -> Arc<dyn Storage> {
        storage::open(self.directory.path().to_str().unwrap()).unwrap()
    }

    fn publish(&self, generation: &TrafficGeneration) {
        store(self.storage().as_ref(), &self.signer, generation);
    }

    fn config(&self) -> AuthorityConfig {
        let trusted = BTreeMap::from([(self.signer.public(), Trustee::new("controller", &[Role::Controller]))]);
        let url = self.directory.path().to_str().unwrap();
        let source = ArbiterTraffic::at(url, Arc::new(move || Ok(trusted.clone())));
        let state = self.state.path().to_owned();
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let mut config = AuthorityConfig::new(listen, state, Arc::new(source), vec![NAME.to_owned()]);
        config.poll_every = Duration::from_millis(50);
        config.first_poll_within = Duration::from_secs(60);
        config.health_every = Duration::from_millis(50);
        config.seed = Some(42);
        config
    }

    async fn serve(&self) -> Running {
        Running::start(self.config()).await
    }
}

/// Stores a generation as the arbiter does, but without its rules about numbers and epochs.
pub(crate) fn store(storage: &dyn Storage, signer: &SigningKey, it: &TrafficGeneration) {
    let key = format!("traffic/{}/{}", it.name, it.generation);
    let payload = serde_json::to_vec(it).unwrap();
    storage.put(&key, &Signed::seal(&format!("arbiter:{key}"), &payload, signer).unwrap()).unwrap();
}

/// An authority that serves until it is stopped.
struct Running {
    address: SocketAddr,
    counters: Arc<Counters>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), AuthorityError>>,
}

impl Running {
    async fn start(config: AuthorityConfig) -> Running {
        let authority = Authority::bind(config).await.unwrap();
        let (address, counters) = (authority.addresses()[0], authority.counters());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(authority.run(async move {
            let _stopped = stopped.await;
        }));
        Running { address, counters, stop, task }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    fn authority(&self) -> String {
        self.address.to_string()
    }

    async fn in_force(&self) -> Option<(u64, u64)> {
        answers_generation(&self.authority(), NAME).await.ok().map(|it| (it.epoch, it.generation))
    }

    /// What `dig` prints for a question, with its exit code checked.
    async fn dig(&self, arguments: &[&str]) -> String {
        dig(self.address, arguments).await
    }
}

async fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    let output = tokio::process::Command::new("dig")
        .args(["+time=30", "+tries=2", "+nocookie", "-p", &server.port().to_string(), &format!("@{}", server.ip())])
        .args(arguments)
        .output()
        .await
        .expect("dig (Debian: bind9-dnsutils)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn answer(address: &str, weight: u32) -> TrafficAnswer {
    TrafficAnswer { site: "paris".to_owned(), address: address.to_owned(), weight, health: None }
}

fn generation(epoch: u64, number: u64, answers: Vec<TrafficAnswer>) -> TrafficGeneration {
    let (name, at) = (NAME.to_owned(), "2026-01-01T00:00:00Z".to_owned());
    TrafficGeneration { name, generation: number, epoch, ttl_seconds: 5, answers, at }
}

/// Waits for a condition, with a deadline.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_gets_every_kind_of_answer() {
    let arbiter = Arbiter::new();
    arbiter.publish(&generation(3, 17, vec![answer("192.0.2.1", 1), answer("2001:db8::1", 1)]));
    let it = arbiter.serve().await;
    assert_eq!(it.dig(&["+short", NAME, "A"]).await, "192.0.2.1");
    assert_eq!(it.dig(&["+short", NAME, "AAAA"]).await, "2001:db8::1");
    assert_eq!(it.dig(&["+short", "+tcp", NAME, "A"]).await, "192.0.2.1");
    assert_eq!(it.dig(&["+short", "_epoch.shop.example.com", "TXT"]).await, "\"epoch=3\" \"generation=17\"");
    assert_eq!(it.dig(&["+short", NAME, "NS"]).await, "ns.shop.example.com.");
    assert_eq!(it.dig(&["+short", "ns.shop.example.com", "A"]).await, "127.0.0.1");
    let soa = "ns.shop.example.com. hostmaster.shop.example.com. 17 60 30 86400 5";
    assert_eq!(it.dig(&["+short", NAME, "SOA"]).await, soa);

    let whole = it.dig(&["+bufsize=4096", NAME, "A"]).await;
    assert!(whole.contains("status: NOERROR") && whole.contains(" aa "), "{whole}");
    assert!(whole.contains("udp: 1232"), "EDNS is answered with EDNS: {whole}");
    let plain = it.dig(&["+noedns", NAME, "A"]).await;
    assert!(!plain.contains("EDNS"), "{plain}");
    assert!(it.dig(&["+edns=7", "+noednsnegotiation", NAME, "A"]).await.contains("status: BADVERS"));

    let nothing = it.dig(&[NAME, "MX"]).await;
    assert!(nothing.contains("status: NOERROR") && nothing.contains("ANSWER: 0, AUTHORITY: 1"), "{nothing}");
    assert!(nothing.contains(soa), "{nothing}");
    let missing = it.dig(&["no.shop.example.com", "A"]).await;
    assert!(missing.contains("status: NXDOMAIN") && missing.contains(soa), "{missing}");
    assert!(it.dig(&["example.org", "A"]).await.contains("status: REFUSED"));
    assert!(it.dig(&["-c", "CH", "version.bind", "TXT"]).await.contains("status: REFUSED"));
    assert!(it.dig(&["+opcode=NOTIFY", NAME, "SOA"]).await.contains("status: NOTIMP"));
    assert!(it.dig(&[NAME, "AXFR"]).await.contains("Transfer failed"));
    assert!(it.counters.refused.load(Ordering::Relaxed) >= 2);
    it.stop().await;
}

#[derive(Debug)]
struct NoClock;

impl Clock for NoClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    fn monotonic_seconds(&self) -> f64 {
        0.0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_arbiter_publishes_is_answered() {
    let arbiter = Arbiter::new();
    let it = arbiter.serve().await;
    let trusted = BTreeMap::from([(arbiter.signer.public(), Trustee::new("controller", &[Role::Controller]))]);
    let key = SigningKey::load_or_create(&arbiter.state.path().join("another.key")).unwrap();
    let stranger =
        lifeboat_engine::arbitrate::Arbiter::new(arbiter.storage(), Arc::new(key), trusted.clone(), Arc::new(NoClock));
    stranger.publish_traffic(NAME, 1, 5, &[answer("203.0.113.1", 1)]).unwrap();
    let counters = Arc::clone(&it.counters);
    until("the stranger's is rejected", async || counters.rejected.load(Ordering::Relaxed) == 1).await;
    arbiter.storage().delete(&format!("traffic/{NAME}/1")).unwrap();
    let signer = Arc::new(arbiter.signer);
    let genuine = lifeboat_engine::arbitrate::Arbiter::new(
        storage::open(arbiter.directory.path().to_str().unwrap()).unwrap(),
        signer,
        trusted,
        Arc::new(NoClock),
    );
    genuine.publish_traffic(NAME, 2, 5, &[answer("192.0.2.1", 1)]).unwrap();
    genuine.publish_traffic(NAME, 2, 5, &[answer("192.0.2.2", 1)]).unwrap();
    until("the genuine one is in force", async || it.in_force().await == Some((2, 2))).await;
    assert_eq!(it.dig(&["+short", NAME, "A"]).await, "192.0.2.2");
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spelling_is_preserved() {
    let arbiter = Arbiter::new();
    arbiter.publish(&generation(1, 1, vec![answer("192.0.2.1", 1)]));
    let it = arbiter.serve().await;
    let whole = it.dig(&["+noall", "+question", "+answer", "sHoP.eXaMpLe.CoM", "A"]).await;
    assert_eq!(whole.matches("sHoP.eXaMpLe.CoM.").count(), 2, "{whole}");
    assert!(whole.contains("192.0.2.1"), "{whole}");
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_in_proportion_to_the_weights() {
    let arbiter = Arbiter::new();
    arbiter.publish(&generation(1, 1, vec![answer("192.0.2.1", 3), answer("192.0.2.2", 1), answer("192.0.2.3", 0)]));
    let it = arbiter.serve().await;
    let questions: Vec<&str> = std::iter::repeat_n([NAME, "A"], 400).flatten().collect();
    let mut arguments = vec!["+short"];
    arguments.extend(questions);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for line in it.dig(&arguments).await.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    assert_eq!(counts.values().sum::<u32>(), 400, "one address in each answer: {counts:?}");
    assert!((250..350).contains(&counts["192.0.2.1"]), "{counts:?}");
    assert!(!counts.contains_key("192.0.2.3"), "weight 0 is never given: {counts:?}");
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_is_seen_and_a_stale_or_forged_one_is_not() {
    let arbiter = Arbiter::new();
    let it = arbiter.serve().await;
    assert!(it.dig(&[NAME, "A"]).await.contains("status: SERVFAIL"), "nothing is known yet");
    let nothing = answers_generation(&it.authority(), NAME).await.unwrap_err().to_string();
    assert!(nothing.contains("has no traffic generation in force for shop.example.com."), "{nothing}");

    arbiter.publish(&generation(2, 5, vec![answer("192.0.2.1", 1)]));
    until("generation 5 is in force", async || it.in_force().await == Some((2, 5))).await;
    let switched = generation(3, 6, vec![answer("192.0.2.2", 1)]);
    arbiter.publish(&switched);
    until("generation 6 is in force", async || it.in_force().await == Some((3, 6))).await;
    assert_eq!(it.dig(&["+short", NAME, "A"]).await, "192.0.2.2");

    // A controller that missed the last epoch, a stranger's key, a copy under another number, and noise.
    let rejected = it.counters.rejected.load(Ordering::Relaxed);
    arbiter.publish(&generation(2, 7, vec![answer("203.0.113.1", 1)]));
    let stranger = SigningKey::generate().unwrap();
    let storage = arbiter.storage();
    store(storage.as_ref(), &stranger, &generation(9, 8, vec![answer("203.0.113.2", 1)]));
    let genuine = storage.get(&format!("traffic/{NAME}/6")).unwrap();
    storage.put(&format!("traffic/{NAME}/9"), &genuine).unwrap();
    storage.put(&format!("traffic/{NAME}/10"), b"\xff\x00not an envelope").unwrap();
    let counters = Arc::clone(&it.counters);
    until("all four are rejected", async || counters.rejected.load(Ordering::Relaxed) == rejected + 4).await;
    assert_eq!(it.in_force().await, Some((3, 6)));
    assert_eq!(it.dig(&["+short", NAME, "A"]).await, "192.0.2.2");

    // None of them stands in the way of the next genuine one.
    arbiter.publish(&generation(4, 11, vec![answer("192.0.2.3", 1)]));
    until("generation 11 is in force", async || it.in_force().await == Some((4, 11))).await;
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_the_arbiter_answers_as_before_and_never_goes_back() {
    let arbiter = Arbiter::new();
    arbiter.publish(&generation(1, 1, vec![answer("192.0.2.1", 1)]));
    arbiter.publish(&generation(2, 2, vec![answer("192.0.2.2", 1)]));
    let first = arbiter.serve().await;
    assert_eq!(first.in_force().await, Some((2, 2)));
    let config = arbiter.config();
    let away = arbiter.directory.path().with_extension("away");
    std::fs::rename(arbiter.directory.path(), &away).unwrap();
    let counters = Arc::clone(&first.counters);
    until("the arbiter is missed", async || counters.polls_failed.load(Ordering::Relaxed) > 0).await;
    assert_eq!(first.dig(&["+short", NAME, "A"]).await, "192.0.2.2");
    first.stop().await;

    let second = Running::start(config).await;
    assert_eq!(second.in_force().await, Some((2, 2)), "from the durable zone");
    assert_eq!(second.dig(&["+short", NAME, "A"]).await, "192.0.2.2");

    // The arbiter comes back from an old copy, without generation 2; what is newer is taken up again.
    std::fs::remove_file(away.join(format!("traffic/{NAME}/2"))).unwrap();
    std::fs::rename(&away, arbiter.directory.path()).unwrap();
    second.stop().await;
    let third = arbiter.serve().await;
    assert_eq!(third.in_force().await, Some((2, 2)));
    arbiter.publish(&generation(2, 3, vec![answer("192.0.2.3", 1)]));
    until("generation 3 is in force", async || third.in_force().await == Some((2, 3))).await;
    std::fs::rename(arbiter.directory.path(), &away).unwrap();
    until("the arbiter is missed", async || third.counters.polls_failed.load(Ordering::Relaxed) > 0).await;
    std::fs::rename(&away, arbiter.directory.path()).unwrap();
    arbiter.publish(&generation(2, 4, vec![answer("192.0.2.4", 1)]));
    until("generation 4 is in force", async || third.in_force().await == Some((2, 4))).await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_answer_is_left_out_unless_all_are() {
    let arbiter = Arbiter::new();
    let (paris, oslo) = (Web::start("127.0.0.1").await, Web::start("127.0.0.1").await);
    let with_health =
        |address: &str, web: &Web| TrafficAnswer { health: Some(web.url("/healthz")), ..answer(address, 1) };
    arbiter.publish(&generation(1, 1, vec![with_health("192.0.2.1", &paris), with_health("192.0.2.2", &oslo)]));
    let it = arbiter.serve().await;
    let given = async || -> String {
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..2 {
            let questions: Vec<&str> = ["+short"].into_iter().chain([NAME, "A"].repeat(30)).collect();
            seen.extend(it.dig(&questions).await.lines().map(str::to_owned));
        }
        seen.sort();
        seen.dedup();
        seen.join(" ")
    };
    assert_eq!(given().await, "192.0.2.1 192.0.2.2");
    paris.answer_with(503, "out of order");
    until("paris is left out", async || given().await == "192.0.2.2").await;
    oslo.stop();
    until("all are unhealthy", async || given().await == "192.0.2.1 192.0.2.2").await;
    paris.answer_with(200, "ok");
    until("paris is back", async || given().await == "192.0.2.1").await;
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_resolver_follows_the_switch() {
    let arbiter = Arbiter::new();
    let mut first = generation(1, 1, vec![answer("192.0.2.1", 1)]);
    first.ttl_seconds = 1;
    arbiter.publish(&first);
    let it = arbiter.serve().await;
    let resolver = Unbound::start(it.address).await;
    let ask = async || dig(resolver.address, &["+short", NAME, "A"]).await;
    // A resolver that had to wait for an answer says SERVFAIL for a while.
    until("the resolver gives the address", async || ask().await == "192.0.2.1").await;
    let missing = async || dig(resolver.address, &["no.shop.example.com", "A"]).await;
    until("the resolver knows what is missing", async || missing().await.contains("status: NXDOMAIN")).await;
    let mut second = generation(2, 2, vec![answer("192.0.2.2", 1)]);
    second.ttl_seconds = 1;
    arbiter.publish(&second);
    until("the resolver gives the new address", async || ask().await == "192.0.2.2").await;
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stops_it_is_said_with_the_next_step() {
    let arbiter = Arbiter::new();
    let it = arbiter.serve().await;
    let other = Arbiter::new();
    let mut config = other.config();
    config.listen = vec![it.address];
    let taken = Authority::bind(config).await.unwrap_err().to_string().replace(&it.authority(), "ADDRESS");
    insta::assert_snapshot!(taken, @"cannot listen on ADDRESS: another process listens there; stop it, or listen on another address (such as a loopback address of its own)");
    let twice = Authority::bind(arbiter.config()).await.unwrap_err().to_string();
    let twice = twice.replace(arbiter.state.path().to_str().unwrap(), "STATE");
    insta::assert_snapshot!(twice, @"another `lifeboat dns` uses the state directory STATE; stop it, or give this one a --state of its own");
    let mut config = other.config();
    config.listen = vec!["192.0.2.77:53".parse().unwrap()];
    let absent = Authority::bind(config).await.unwrap_err().to_string();
    insta::assert_snapshot!(absent, @"cannot listen on 192.0.2.77:53: this machine does not have that address");
    let mut config = other.config();
    config.state = "/dev/null/dns".into();
    let unusable = Authority::bind(config).await.unwrap_err().to_string();
    insta::assert_snapshot!(unusable, @"the state directory /dev/null/dns cannot be used; it must be writable by the user that runs `lifeboat dns`");
    it.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_says_when_it_is_ready() {
    let arbiter = Arbiter::new();
    arbiter.publish(&generation(1, 1, vec![answer("192.0.2.1", 1)]));
    let (ready, is_ready) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let config = arbiter.config();
    let serving = tokio::spawn(serve(config, move |at| ready.send(at[0]).unwrap(), async move {
        let _stopped = stopped.await;
    }));
    let address = is_ready.await.unwrap();
    assert_eq!(dig(address, &["+short", NAME, "A"]).await, "192.0.2.1", "ready means that it answers");
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

/// Packets that are no questions: noise, and questions with bytes changed or cut off.
fn packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x04shop\x07example\x03com\x00\x00\x01\x00\x01\
        \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
    let noise = prop::collection::vec(any::<u8>(), 0..600);
    let changed = (prop::collection::vec((0..question.len(), any::<u8>()), 1..8), 0..=question.len()).prop_map(
        move |(changes, length)| {
            let mut bytes = question.to_vec();
            for (place, byte) in changes {
                bytes[place] = byte;
            }
            bytes.truncate(length);
            bytes
        },
    );
    prop::collection::vec(prop_oneof![noise, changed], 1..20)
}

#[test]
fn garbage_never_stops_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let arbiter = Arbiter::new();
    arbiter.publish(&generation(1, 1, vec![answer("192.0.2.1", 1)]));
    let it = runtime.block_on(arbiter.serve());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(it.address).unwrap();
    proptest!(ProptestConfig::with_cases(48), |(packets in packets())| {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(it.address).unwrap();
        for packet in &packets {
            socket.send(packet).unwrap();
            // The server may have hung up after the last piece of noise; that is its right.
            let _ = stream.write_all(packet);
        }
        drop(stream);
        let still = runtime.block_on(it.in_force());
        prop_assert_eq!(still, Some((1, 1)));
    });
    assert_eq!(runtime.block_on(it.dig(&["+short", "+tcp", NAME, "A"])), "192.0.2.1");
    runtime.block_on(it.stop());
}

/// A resolver of its own, which asks the authority for the zone and nobody for anything else.
struct Unbound {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Unbound {
    async fn start(authority: SocketAddr) -> Unbound {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let configuration = directory.path().join("unbound.conf");
        std::fs::write(&configuration, unbound_configuration(directory.path(), port, authority)).unwrap();
        let process = Command::new("/usr/sbin/unbound")
            .args(["-d", "-p", "-c"])
            .arg(&configuration)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unbound (Debian: unbound)");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let resolver = Unbound { process, address, _directory: directory };
        until("unbound answers", async || {
            let asked = tokio::process::Command::new("dig")
                .args(["+short", "+time=1", "+tries=1", "-p", &port.to_string(), "@127.0.0.1", NAME, "SOA"])
                .output()
                .await
                .unwrap();
            asked.status.success() && !asked.stdout.is_empty()
        })
        .await;
        resolver
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn unbound_configuration(directory: &Path, port: u16, authority: SocketAddr) -> String {
    format!(
        "server:\n  interface: 127.0.0.1@{port}\n  port: {port}\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  \
         directory: \"{directory}\"\n  pidfile: \"{directory}/pid\"\n  use-syslog: no\n  logfile: \"{directory}/log\"\n  \
         do-not-query-localhost: no\n  use-caps-for-id: yes\n  module-config: \"iterator\"\n  num-threads: 1\n\
         remote-control:\n  control-enable: no\n\
         stub-zone:\n  name: \"{NAME}\"\n  stub-addr: {}@{}\n",
        authority.ip(),
        authority.port(),
        directory = directory.display(),
    )
}
