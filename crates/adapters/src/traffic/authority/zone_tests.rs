//! Tests of the zones: what comes into force, what is answered, what exists.

#![allow(clippy::unwrap_used, clippy::panic)]
use lifeboat_core::desired::TrafficAnswer;

use super::*;

fn answer(address: &str, weight: u32) -> TrafficAnswer {
    let health = Some(format!("http://{address}/"));
    TrafficAnswer { site: "s".to_owned(), address: address.to_owned(), weight, health }
}

fn generation(epoch: u64, number: u64, answers: &[TrafficAnswer]) -> TrafficGeneration {
    TrafficGeneration {
        name: "shop.example.com.".to_owned(),
        generation: number,
        epoch,
        ttl_seconds: 7,
        answers: answers.to_vec(),
        at: String::new(),
    }
}

fn zones(configured: &[&str]) -> Zones {
    let configured: Vec<_> = configured.iter().map(|zone| zone.to_string()).collect();
    let names = ["shop.example.com.".to_owned(), "a.deep.example.com".to_owned()];
    let listen = ["127.0.0.1:53".parse().unwrap()];
    Zones::new(&names, &configured, &[], &listen, Dice::seeded(11)).unwrap()
}

fn given(zones: &Zones, name: &str, kind: RecordType) -> Vec<String> {
    match zones.answer(&Name::from_ascii(name).unwrap(), kind) {
        Reply::Records(records) => records.iter().map(|record| record.data.to_string()).collect(),
        other => vec![format!("{other:?}").split(['(', ' ']).next().unwrap().to_owned()],
    }
}

#[test]
fn only_newer_generations_of_no_lower_epoch_come_into_force() {
    let zones = zones(&[]);
    let one = [answer("192.0.2.1", 1)];
    zones.accept(&generation(3, 5, &one)).unwrap();
    let stale = NotAccepted::Stale { epoch: 3, generation: 5 };
    assert_eq!(zones.accept(&generation(3, 5, &one)), Err(stale.clone()));
    assert_eq!(zones.accept(&generation(4, 4, &one)), Err(stale.clone()));
    assert_eq!(zones.accept(&generation(2, 9, &one)), Err(stale));
    zones.accept(&generation(3, 6, &one)).unwrap();
    let mut other = generation(9, 9, &one);
    other.name = "else.example.com.".to_owned();
    assert!(matches!(zones.accept(&other), Err(NotAccepted::OtherName(_))));
    let bad = generation(9, 9, &[answer("not-an-address", 1)]);
    assert!(matches!(zones.accept(&bad), Err(NotAccepted::Address(_))));
    assert_eq!(given(&zones, "_epoch.shop.example.com.", RecordType::TXT), ["epoch=3generation=6"]);
}

#[test]
fn health_removes_but_never_adds_and_all_unhealthy_is_as_the_generation_says() {
    let zones = zones(&[]);
    zones
        .accept(&generation(1, 1, &[answer("192.0.2.1", 50), answer("192.0.2.2", 50), answer("192.0.2.3", 0)]))
        .unwrap();
    let fail = |address: &str| {
        for _ in 0..2 {
            zones.health.note(&format!("http://{address}/"), Err("down".to_owned()));
        }
    };
    let seen = || {
        let mut seen: Vec<_> = (0..200).flat_map(|_| given(&zones, "shop.example.com.", RecordType::A)).collect();
        seen.sort();
        seen.dedup();
        seen
    };
    assert_eq!(seen(), ["192.0.2.1", "192.0.2.2"]);
    fail("192.0.2.1");
    assert_eq!(seen(), ["192.0.2.2"]);
    fail("192.0.2.2");
    assert_eq!(seen(), ["192.0.2.1", "192.0.2.2"], "192.0.2.3 is healthy, but has weight 0");
}

#[test]
fn says_what_exists_and_what_does_not() {
    let zones = zones(&["example.com."]);
    zones.accept(&generation(1, 1, &[answer("192.0.2.1", 1), answer("2001:db8::1", 1)])).unwrap();
    let kinds = |name: &str, kind| given(&zones, name, kind).concat();
    assert_eq!(kinds("shop.example.com.", RecordType::AAAA), "2001:db8::1");
    assert_eq!(kinds("shop.example.com.", RecordType::MX), "NoData");
    assert_eq!(kinds("shop.example.com.", RecordType::ANY), "192.0.2.1");
    assert_eq!(kinds("shop.example.com.", RecordType::AXFR), "Refused");
    assert_eq!(kinds("deep.example.com.", RecordType::A), "NoData", "an empty name in between exists");
    assert_eq!(kinds("a.deep.example.com.", RecordType::A), "NotYet", "nothing is known of it");
    assert_eq!(kinds("_epoch.a.deep.example.com.", RecordType::TXT), "NoData");
    assert_eq!(kinds("no.example.com.", RecordType::A), "NoSuchName");
    assert_eq!(kinds("example.com.", RecordType::NS), "ns.example.com.");
    assert_eq!(kinds("ns.example.com.", RecordType::A), "127.0.0.1");
    assert_eq!(kinds("example.org.", RecordType::A), "Refused");
    assert_eq!(kinds("com.", RecordType::A), "Refused");
    assert_eq!(kinds("example.com.", RecordType::SOA), "ns.example.com. hostmaster.example.com. 1 60 30 86400 7");
}

#[test]
fn names_are_checked() {
    for bad in ["", ".", "a..b", "a b.example", "a/b.example", "../x"] {
        let made = Zones::new(&[bad.to_owned()], &[], &[], &[], Dice::seeded(0));
        assert!(matches!(made, Err(NameError::Malformed { .. })), "{bad}: {made:?}");
    }
    assert!(matches!(Zones::new(&[], &[], &[], &[], Dice::seeded(0)), Err(NameError::None)));
}
