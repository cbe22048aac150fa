//! The probe against real servers, processes and the real authority.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat_adapters::probe::NetworkProbe;
use lifeboat_adapters::traffic::authority::{Authority, AuthorityConfig};
use lifeboat_core::desired::{TrafficAnswer, TrafficGeneration};
use lifeboat_core::plan::{Health, HttpExchange, Probe as Look};
use lifeboat_core::runbook::InstanceSpec;
use lifeboat_core::units::Span;
use lifeboat_engine::arbitrate::{Trusted, Trustee};
use lifeboat_engine::port::{Probe, ServiceDoor, TrafficInForce};
use lifeboat_engine::traffic::ArbiterTraffic;
use lifeboat_vault::Role;
use lifeboat_vault::sign::SigningKey;
use lifeboat_vault::storage;

use super::ports::free_port;
use super::web::Web;

const NAME: &str = "shop.example.com.";

fn probe() -> NetworkProbe {
    NetworkProbe::new(Duration::from_secs(60))
}

fn health(probe: Look) -> Health {
    Health { probe, within: Span::seconds(60), every: Span::seconds(1) }
}

fn instance(address: Option<&str>, port: Option<u16>) -> InstanceSpec {
    InstanceSpec {
        service: "shop".to_owned(),
        component: "app".to_owned(),
        number: 1,
        command: Vec::new(),
        env: Default::default(),
        directory: None,
        address: address.map(str::to_owned),
        port,
        stop_within: Span::seconds(1),
        stop_signal: Default::default(),
        health: None,
    }
}

/// An authority that gives these addresses for `NAME`; it serves until the test ends.
async fn authority(addresses: &[&str]) -> (String, tempfile::TempDir) {
    let signer = SigningKey::generate().unwrap();
    let url = format!("memory:probe-{}", signer.public().fingerprint());
    let storage = storage::open(&url).unwrap();
    let answers = addresses
        .iter()
        .map(|address| TrafficAnswer { site: "s".into(), address: (*address).into(), weight: 1, health: None })
        .collect();
    let generation =
        TrafficGeneration { name: NAME.into(), generation: 4, epoch: 2, ttl_seconds: 1, answers, at: String::new() };
    super::dns::store(storage.as_ref(), &signer, &generation);
    let trusted: Trusted = [(signer.public(), Trustee::new("us", &[Role::Controller]))].into();
    let source = Arc::new(ArbiterTraffic::at(url, Arc::new(move || Ok(trusted.clone()))));
    let state = tempfile::tempdir().unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let mut config = AuthorityConfig::new(listen, state.path().to_owned(), source, vec![NAME.to_owned()]);
    config.first_poll_within = Duration::from_secs(60);
    let authority = Authority::bind(config).await.unwrap();
    let address = authority.addresses()[0].to_string();
    tokio::spawn(authority.run(std::future::pending()));
    (address, state)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_asked_over_http_tcp_and_by_command() {
    let web = Web::start("127.0.0.1").await;
    let it = instance(Some("127.0.0.1"), Some(web.address.port()));
    probe().instance(&it, &health(Look::Http("/healthz".into()))).await.unwrap();
    assert!(web.last_request().starts_with("GET /healthz HTTP/1.1\r\n"), "{}", web.last_request());
    probe().instance(&it, &health(Look::Tcp)).await.unwrap();
    probe().instance(&it, &health(Look::Http(web.url("/other")))).await.unwrap();
    let script = "test \"$LIFEBOAT_INSTANCE $LIFEBOAT_ADDRESS\" = 'shop.app.1 127.0.0.1'";
    let command = |script: &str| health(Look::Command(vec!["sh".into(), "-c".into(), script.into()]));
    probe().instance(&it, &command(script)).await.unwrap();

    web.answer_with(503, "database\nis locked");
    let error = probe().instance(&it, &health(Look::Http("/healthz".into()))).await.unwrap_err();
    assert!(error.may_pass);
    let message = error.to_string().replace(&web.address.to_string(), "ADDRESS");
    insta::assert_snapshot!(message, @r#"http://ADDRESS/healthz answered 503 Service Unavailable: "database is locked""#);
    let error = probe().instance(&it, &command("echo no disk >&2; exit 3")).await.unwrap_err();
    insta::assert_snapshot!(error, @r#"the health command `sh` ended with exit status: 3: "no disk""#);
    let error = probe().instance(&instance(None, None), &health(Look::Tcp)).await.unwrap_err();
    assert!(!error.may_pass);
    insta::assert_snapshot!(error, @"the health of shop.app.1 cannot be asked: it has no address; give its component a port, or a health command");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_or_endless_instance_is_an_error_in_time() {
    let port = free_port();
    let it = instance(Some("127.0.0.1"), Some(port));
    for look in [Look::Tcp, Look::Http("/".into())] {
        let error = probe().instance(&it, &health(look)).await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }
    // Listens, but never says anything.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let it = instance(Some("127.0.0.1"), Some(mute.local_addr().unwrap().port()));
    let (impatient, started) = (NetworkProbe::new(Duration::from_secs(2)), Instant::now());
    let error = impatient.instance(&it, &health(Look::Http("/".into()))).await.unwrap_err().to_string();
    assert!(error.ends_with("no answer within 2 s"), "{error}");
    let error = impatient.instance(&it, &health(Look::Command(vec!["sleep".into(), "1000".into()]))).await.unwrap_err();
    insta::assert_snapshot!(error, @"the health command `sleep` did not end within 2 s");
    assert!(started.elapsed() < Duration::from_secs(60));
    let web = Web::start("127.0.0.1").await;
    web.answer_with(200, &"x".repeat(2 << 20));
    let error = probe().instance(&it, &health(Look::Http(web.url("/")))).await.unwrap_err().to_string();
    assert!(error.ends_with("answered with more than 1048576 bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_reached_through_its_name_at_the_authority() {
    // Nothing listens at the first address; the probe goes on to the next, as clients do.
    let web = Web::start("127.0.7.2").await;
    let (authority, _state) = authority(&["127.0.7.2"]).await;
    let door =
        ServiceDoor { name: NAME.to_owned(), authority: Some(authority.clone()), port: Some(web.address.port()) };
    let probe = probe();
    assert_eq!(probe.resolve(NAME, Some(&authority)).await.unwrap(), [web.address.ip()]);
    assert_eq!(probe.traffic(NAME, &authority).await.unwrap(), TrafficInForce { epoch: 2, generation: 4 });
    probe.service(&door, &health(Look::Http("/healthz".into()))).await.unwrap();
    let host = format!("host: shop.example.com:{}\r\n", web.address.port());
    assert!(web.last_request().to_lowercase().contains(&host), "{}", web.last_request());
    probe.service(&door, &health(Look::Tcp)).await.unwrap();
    let asked = ["test", "{{ service.address }}", "=", "127.0.7.2"].map(str::to_owned);
    probe.service(&door, &health(Look::Command(asked.into()))).await.unwrap();

    web.answer_with(201, "42");
    let write = HttpExchange { request: "POST /canary".into(), body: Some("n-42".into()), expect: None };
    assert_eq!(probe.exchange(&door, &write).await.unwrap(), (201, "42".to_owned()));
    assert!(web.last_request().starts_with("POST /canary HTTP/1.1\r\n"), "{}", web.last_request());
    assert!(web.last_request().ends_with("\r\n\r\nn-42"), "{}", web.last_request());
    web.answer_with(302, "");
    let error = probe.service(&door, &health(Look::Http("/".into()))).await.unwrap_err().to_string();
    assert!(error.contains("answered 302"), "no redirect is followed: {error}");
    let bad = HttpExchange { request: "canary".into(), body: None, expect: None };
    let error = probe.exchange(&door, &bad).await.unwrap_err();
    insta::assert_snapshot!(error, @"`canary` is not a request: write it as METHOD /path, such as GET /canary");
}

#[tokio::test(flavor = "multi_thread")]
async fn either_family_leads_to_the_service() {
    let web = Web::start("127.0.7.3").await;
    let (authority, _state) = authority(&["127.0.7.3", "::1"]).await;
    let door = ServiceDoor { name: NAME.to_owned(), authority: Some(authority), port: Some(web.address.port()) };
    for look in [Look::Tcp, Look::Http("/".into())] {
        probe().service(&door, &health(look)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_name_is_said() {
    let (authority, _state) = authority(&["192.0.2.1"]).await;
    let probe = probe();
    let said = async |name: &str, at: &str| {
        let error = probe.resolve(name, Some(at)).await.unwrap_err();
        error.to_string().replace(&authority, "AUTHORITY")
    };
    insta::assert_snapshot!(said("no.shop.example.com.", &authority).await, @"the name server AUTHORITY says Non-Existent Domain about no.shop.example.com.");
    insta::assert_snapshot!(said("example.org.", &authority).await, @"the name server AUTHORITY says Query Refused about example.org.");
    insta::assert_snapshot!(said("_epoch.shop.example.com.", &authority).await, @"_epoch.shop.example.com. has no address at AUTHORITY");
    insta::assert_snapshot!(said(NAME, "not an address").await, @"`not an address` is not the address of a name server: write it as 127.0.0.53:53");
    let dead = format!("127.0.0.1:{}", free_port());
    let error = probe.resolve(NAME, Some(&dead)).await.unwrap_err();
    assert!(error.may_pass);
    assert_eq!(error.to_string(), format!("the name server {dead} cannot be asked"));
    let door = ServiceDoor { name: NAME.to_owned(), authority: Some(dead.clone()), port: Some(80) };
    let error = probe.service(&door, &health(Look::Http("/".into()))).await.unwrap_err().to_string();
    assert!(error.starts_with("http://shop.example.com:80/: "), "{error}");
    assert_eq!(probe.resolve("localhost", None).await.unwrap().iter().filter(|ip| !ip.is_loopback()).count(), 0);
}
