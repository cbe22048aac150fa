//! The arbiter: races, leases on skewed clocks, hostile objects.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

use lifeboat_core::desired::{AgentReport, AgentRole, TrafficAnswer};
use lifeboat_engine::arbitrate::{
    Acquire, Arbiter, ArbiterError, Attempt, CanaryRecord, Claim, LeaseHeld, LeaseObserver, LeaseView, LockState,
    LockTimes, LockWatch, SiteHosts, Trusted, Trustee,
};
use lifeboat_engine::port::Clock;
use lifeboat_vault::storage::{Faulty, FsStorage, MemoryStorage, Storage};
use lifeboat_vault::{Role, Signed, SigningKey};

use crate::world::{Bench, TestClock};

fn claim(epoch: u64, primary: &str, run: &str) -> Claim {
    Claim {
        write_domain: "shop".into(),
        epoch,
        primary: primary.into(),
        run: run.into(),
        at: "now".into(),
        planned: false,
    }
}

#[test]
fn of_many_claimants_exactly_one_wins_each_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(FsStorage::create(directory.path()).unwrap());
    let bench = Bench::on(storage);
    for epoch in 1..=5 {
        let barrier = Arc::new(Barrier::new(6));
        let claimants: Vec<_> = (0..6)
            .map(|n| {
                let (arbiter, barrier) = (bench.arbiter(), barrier.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    arbiter.claim_epoch(&claim(epoch, &format!("site-{n}"), &format!("r{n}")))
                })
            })
            .collect();
        let results: Vec<_> = claimants.into_iter().map(|claimant| claimant.join().unwrap()).collect();
        let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert!(results.iter().filter_map(|result| result.as_ref().err()).all(ArbiterError::is_refusal));
        assert_eq!(bench.arbiter().current_epoch("shop").unwrap().as_ref(), Some(winners[0]));
    }
}

#[test]
fn an_epoch_is_claimed_in_order_and_again_only_by_the_same_run() {
    let arbiter = Bench::new().arbiter();
    assert_eq!(arbiter.current_epoch("shop").unwrap(), None);
    insta::assert_snapshot!(arbiter.claim_epoch(&claim(2, "south", "r1")).unwrap_err(), @"epoch 2 of shop cannot be had: 0 is in force");
    arbiter.claim_epoch(&claim(1, "south", "r1")).unwrap();
    arbiter.claim_epoch(&claim(1, "south", "r1")).unwrap();
    insta::assert_snapshot!(arbiter.claim_epoch(&claim(1, "north", "r2")).unwrap_err(), @"epoch 1 of shop was claimed by run r1 for south at now; only one can have it");
    arbiter.claim_epoch(&claim(2, "north", "r2")).unwrap();
    insta::assert_snapshot!(arbiter.claim_epoch(&claim(1, "south", "r1")).unwrap_err(), @"epoch 1 of shop cannot be had: 2 is in force");
}

#[test]
fn an_epoch_is_its_claimants_for_exactly_the_site_that_was_claimed() {
    let arbiter = Bench::new().arbiter();
    let first = arbiter.claim_epoch(&claim(1, "south", "r1")).unwrap();
    for other in [claim(1, "south", "r2"), claim(1, "north", "r1")] {
        let refused = arbiter.claim_epoch(&other).unwrap_err();
        assert!(matches!(&refused, ArbiterError::EpochTaken { by } if **by == first), "{other:?}: {refused}");
    }
    assert_eq!(arbiter.current_epoch("shop").unwrap(), Some(first));
}

#[test]
fn what_claims_another_epoch_than_its_place_says_or_is_too_large_is_refused() {
    let memory = Arc::new(MemoryStorage::new());
    let bench = Bench::on(memory.clone());
    let arbiter = bench.arbiter();
    let place = |payload: &[u8]| {
        let sealed = Signed::seal("arbiter:epochs/shop/1", payload, &bench.key).unwrap();
        memory.put("epochs/shop/1", &sealed).unwrap();
    };
    let json = |claim: &Claim| serde_json::to_vec(claim).unwrap();
    let elsewhere = Claim { write_domain: "bank".into(), ..claim(1, "south", "r1") };
    for odd in [claim(2, "south", "r1"), elsewhere] {
        place(&json(&odd));
        let refused = arbiter.current_epoch("shop").unwrap_err();
        assert!(matches!(&refused, ArbiterError::Malformed { key, .. } if key == "epochs/shop/1"), "{refused}");
    }
    place(&json(&claim(1, "south", "r1")));
    assert_eq!(arbiter.current_epoch("shop").unwrap().unwrap().primary, "south");
    // Well signed, and one byte more than anything of ours: it is not even looked at.
    let mut padded = json(&claim(1, "south", "r1"));
    padded.resize(20 << 20, b' ');
    place(&padded);
    let envelope = memory.get("epochs/shop/1").unwrap().len() - padded.len();
    padded.truncate((20 << 20) + 1 - envelope);
    place(&padded);
    assert_eq!(memory.get("epochs/shop/1").unwrap().len(), (20 << 20) + 1);
    insta::assert_snapshot!(arbiter.current_epoch("shop").unwrap_err(), @"the arbiter's object epochs/shop/1 is not to be trusted: it is too large");
    padded.pop();
    place(&padded);
    assert_eq!(arbiter.current_epoch("shop").unwrap().unwrap().primary, "south");
}

#[test]
fn what_is_not_signed_by_the_roster_for_its_place_is_an_error_and_not_an_absence() {
    let memory = Arc::new(MemoryStorage::new());
    let bench = Bench::on(memory.clone());
    let arbiter = bench.arbiter();
    arbiter.claim_epoch(&claim(1, "south", "r1")).unwrap();
    // A stranger's claim.
    let stranger = Arc::new(SigningKey::generate().unwrap());
    let trusts_itself: Trusted = [(stranger.public(), "mallory"), (bench.key.public(), "us")]
        .map(|(key, name)| (key, Trustee::new(name, &[Role::Controller])))
        .into();
    let theirs = Arbiter::new(memory.clone(), stranger, trusts_itself, bench.clock.clone());
    theirs.claim_epoch(&claim(2, "north", "evil")).unwrap();
    assert!(
        matches!(arbiter.current_epoch("shop"), Err(ArbiterError::UnknownSigner { key, .. }) if key == "epochs/shop/2")
    );
    // A good claim in another place.
    memory.delete("epochs/shop/2").unwrap();
    memory.put("epochs/shop/2", &memory.get("epochs/shop/1").unwrap()).unwrap();
    assert!(
        matches!(arbiter.current_epoch("shop"), Err(ArbiterError::Untrusted { key, .. }) if key == "epochs/shop/2")
    );
    // Every byte flipped, every length cut.
    let good = memory.get("epochs/shop/1").unwrap();
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        memory.put("epochs/shop/1", &bad).unwrap();
        assert!(arbiter.epoch("shop", 1).is_err(), "byte {place}");
        memory.put("epochs/shop/1", &good[..place]).unwrap();
        assert!(arbiter.epoch("shop", 1).is_err(), "cut at {place}");
    }
}

#[test]
fn a_host_reports_and_begins_the_first_day_and_decides_nothing() {
    let memory = Arc::new(MemoryStorage::new());
    let bench = Bench::on(memory.clone());
    let host = Arc::new(SigningKey::generate().unwrap());
    let as_roles = |roles: &[Role]| -> Trusted {
        [(host.public(), Trustee::new("paris", roles)), (bench.key.public(), Trustee::new("us", &[Role::Controller]))]
            .into()
    };
    let at = |roles: &[Role]| Arbiter::new(memory.clone(), host.clone(), as_roles(roles), bench.clock.clone());
    let paris = at(&[Role::Host]);
    paris.claim_epoch(&claim(1, "paris", "protect")).unwrap();
    paris.publish_writer("shop", 1, "paris", false).unwrap();
    // What it is not to write is not written: it would stand in everybody's way.
    let refused = paris.claim_epoch(&claim(2, "paris", "mine")).unwrap_err();
    assert!(refused.is_refusal());
    insta::assert_snapshot!(refused, @"this machine (paris) is on the roster as host; writing epochs/shop/2 takes a controller: `lifeboat vault enroll --role controller` on a machine that is to decide");
    assert!(matches!(paris.publish_writer("shop", 1, "paris", true), Err(ArbiterError::MayNotWrite { .. })));
    let entry = lifeboat_core::run::Sealed { hash: String::new(), body: String::new() };
    assert!(matches!(paris.mirror_entry("run", 1, &entry), Err(ArbiterError::MayNotWrite { .. })));
    assert!(!memory.list("").unwrap().iter().any(|object| object.key.starts_with("journal/")));
    // A host that believes to be more writes all the same: nobody believes it.
    let believes = at(&[Role::Host, Role::Controller]);
    believes.claim_epoch(&claim(2, "paris", "mine")).unwrap();
    believes.publish_writer("shop", 2, "paris", false).unwrap();
    let reader = Arbiter::new(memory.clone(), bench.key.clone(), as_roles(&[Role::Host]), bench.clock.clone());
    insta::assert_snapshot!(reader.current_epoch("shop").unwrap_err(), @"the arbiter's object epochs/shop/2 is signed by paris, on the roster as host; that takes a controller: find out who wrote it");
    assert!(
        matches!(reader.desired_writer("shop"), Err(ArbiterError::WrongRole { key, .. }) if key == "desired/shop/2")
    );
    for role in [Role::Person, Role::Observer, Role::Pruner, Role::Keeper] {
        assert!(matches!(at(&[role]).report(&report(1)), Err(ArbiterError::MayNotWrite { .. })), "{role:?}");
    }
}

#[test]
fn a_host_reports_for_its_own_site_and_for_no_other() {
    let memory = Arc::new(MemoryStorage::new());
    let bench = Bench::on(memory.clone());
    let (north, db1) = (Arc::new(SigningKey::generate().unwrap()), Arc::new(SigningKey::generate().unwrap()));
    let trusted = Trusted::from([
        (north.public(), Trustee::new("north", &[Role::Host])),
        (db1.public(), Trustee::new("db1", &[Role::Host])),
        (bench.key.public(), Trustee::new("us", &[Role::Controller, Role::Host])),
    ]);
    let hosts: SiteHosts = [("north", ["north", "db1"]), ("south", ["south", "db2"])]
        .map(|(s, h)| (s.into(), h.map(Into::into).into()))
        .into();
    let with = |key: &Arc<SigningKey>, trusted: &Trusted| {
        Arbiter::new(memory.clone(), key.clone(), trusted.clone(), bench.clock.clone()).with_hosts(hosts.clone())
    };
    let reader = with(&bench.key, &trusted);
    for (beat, key) in [(1, &north), (2, &db1), (3, &bench.key)] {
        with(key, &trusted).report(&report(beat)).unwrap();
        assert_eq!(reader.agent_report("north", "orders").unwrap().unwrap().beat, beat);
    }
    let of_south = AgentReport { site: "south".into(), ..report(4) };
    let refused = with(&north, &trusted).report(&of_south).unwrap_err();
    assert!(refused.is_refusal());
    insta::assert_snapshot!(refused, @"this machine (north) is no host of south in the plan, so what it says of south counts for nobody; enrol it under the name south, or name it in the plan as a host of [site.south]");
    assert!(with(&north, &trusted).check_may_report("south").is_err());
    with(&north, &trusted).check_may_report("north").unwrap();
    // One that was broken into writes it all the same: nobody believes it, and nobody takes it for silence.
    Arbiter::new(memory.clone(), north.clone(), trusted.clone(), bench.clock.clone()).report(&of_south).unwrap();
    insta::assert_snapshot!(reader.agent_report("south", "orders").unwrap_err(), @"the arbiter's object agents/south/orders is signed by north, which is no host of south in the plan; find out who wrote it before you go on");
}

#[test]
fn a_lease_is_of_the_sites_own_hosts() {
    let memory = Arc::new(MemoryStorage::new());
    let bench = Bench::on(memory.clone());
    let south = Arc::new(SigningKey::generate().unwrap());
    let trusted = Trusted::from([
        (south.public(), Trustee::new("south", &[Role::Host])),
        (bench.key.public(), Trustee::new("us", &[Role::Controller, Role::Host])),
    ]);
    let hosts: SiteHosts = ["north", "south"].map(|site| (site.into(), [site.into()].into())).into();
    let with = |key: &Arc<SigningKey>| {
        Arbiter::new(memory.clone(), key.clone(), trusted.clone(), bench.clock.clone()).with_hosts(hosts.clone())
    };
    let reader = with(&bench.key);
    reader.claim_epoch(&claim(1, "north", "r1")).unwrap();
    let mut foreign = LeaseHeld::new("north", "shop", 1, "south", 10.0);
    assert!(foreign.renew(&with(&south)).unwrap_err().is_refusal());
    // Written all the same it is believed by nobody, and taken for no silence.
    foreign.renew(&Arbiter::new(memory.clone(), south, trusted.clone(), bench.clock.clone())).unwrap();
    insta::assert_snapshot!(reader.read_lease("north", "shop", 1).unwrap_err(), @"the arbiter's object leases/north/shop/1 is signed by south, which is no host of north in the plan; find out who wrote it before you go on");
}

#[test]
fn another_host_of_the_site_takes_a_lease_over_that_has_run_out() {
    let bench = Bench::new();
    let arbiter = bench.arbiter();
    arbiter.claim_epoch(&claim(1, "north", "protect")).unwrap();
    LeaseHeld::new("north", "shop", 1, "host-1", 10.0).renew(&arbiter).unwrap();
    let mut next = LeaseHeld::new("north", "shop", 1, "host-2", 10.0);
    next.renew(&arbiter).unwrap_err();
    bench.clock.monotonic_offset_ms.fetch_add(10_500, Ordering::SeqCst);
    next.renew(&arbiter).unwrap_err();
    bench.clock.monotonic_offset_ms.fetch_add(1_000, Ordering::SeqCst);
    next.renew(&arbiter).unwrap();
    assert_eq!(arbiter.read_lease("north", "shop", 1).unwrap().unwrap().holder, "host-2");
}

#[test]
fn an_arbiter_that_was_emptied_swapped_or_rolled_back_is_an_alarm_and_no_first_day() {
    let memory = Arc::new(MemoryStorage::new());
    let bench = Bench::on(memory.clone());
    let state = tempfile::tempdir().unwrap();
    let arbiter = |storage: &Arc<MemoryStorage>| {
        let trusted = Trusted::from([(bench.key.public(), Trustee::new("us", &[Role::Controller]))]);
        Arbiter::new(storage.clone(), bench.key.clone(), trusted, bench.clock.clone())
            .remembering(state.path())
            .unwrap()
    };
    let ours = arbiter(&memory);
    assert_eq!(ours.current_epoch("shop").unwrap(), None, "before the first day there is nothing to remember");
    ours.claim_epoch(&claim(1, "north", "r1")).unwrap();
    let early: Vec<_> = memory.list("").unwrap().into_iter().map(|o| (memory.get(&o.key).unwrap(), o.key)).collect();
    ours.claim_epoch(&claim(2, "south", "r2")).unwrap();
    ours.publish_writer("shop", 2, "south", false).unwrap();
    assert_eq!(ours.current_epoch("shop").unwrap().unwrap().epoch, 2);
    assert_eq!(ours.desired_writer("shop").unwrap().unwrap().generation, 1);

    // An empty mount point.
    let empty = Arc::new(MemoryStorage::new());
    let after = arbiter(&empty);
    for refused in [after.current_epoch("shop").map(|_| ()), after.claim_epoch(&claim(1, "north", "r3")).map(|_| ())] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("no identity, as an empty directory has none"), "{error}");
    }
    assert!(empty.list("").unwrap().is_empty(), "nothing is begun there");
    // Another arbiter.
    let other = Arc::new(MemoryStorage::new());
    let trusted = Trusted::from([(bench.key.public(), Trustee::new("us", &[Role::Controller]))]);
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = Arbiter::new(other.clone(), bench.key.clone(), trusted, bench.clock.clone());
    theirs.remembering(elsewhere.path()).unwrap().claim_epoch(&claim(1, "north", "r4")).unwrap();
    let error = arbiter(&other).current_epoch("shop").unwrap_err().to_string();
    assert!(error.contains("another identity") && error.contains("arbiters.json"), "{error}");
    // An old copy of the right one: by a process that was running, and by one that starts after it.
    for object in memory.list("").unwrap() {
        memory.delete(&object.key).unwrap();
    }
    for (bytes, key) in &early {
        memory.put(key, bytes).unwrap();
    }
    for arbiter in [ours, arbiter(&memory)] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(arbiter.current_epoch("shop").unwrap_err(), @"the arbiter was rolled back: epochs/shop/ ends at 1, 2 was seen here before; bring the newer state back from a copy");
            insta::assert_snapshot!(arbiter.desired_writer("shop").unwrap_err(), @"the arbiter was rolled back: desired/shop/ ends at 0, 1 was seen here before; bring the newer state back from a copy");
        }
        assert!(arbiter.claim_epoch(&claim(2, "north", "r5")).is_err());
    }
    // The newest one replaced by another that is signed as well.
    let trusted = Trusted::from([(bench.key.public(), Trustee::new("us", &[Role::Controller]))]);
    let forgetful = Arbiter::new(memory.clone(), bench.key.clone(), trusted, bench.clock.clone());
    forgetful.claim_epoch(&claim(2, "north", "r6")).unwrap();
    insta::assert_snapshot!(arbiter(&memory).current_epoch("shop").unwrap_err(), @"the arbiter's object epochs/shop/2 was replaced since it was seen here; find out who did it before you go on");
}

#[test]
fn names_that_only_look_like_numbers_are_no_epochs() {
    let memory = Arc::new(MemoryStorage::new());
    let arbiter = Bench::on(memory.clone()).arbiter();
    arbiter.claim_epoch(&claim(1, "south", "r1")).unwrap();
    for odd in ["epochs/shop/007", "epochs/shop/x", "epochs/shop/1.tmp"] {
        memory.put(odd, b"?").unwrap();
    }
    assert_eq!(arbiter.current_epoch("shop").unwrap().unwrap().epoch, 1);
}

#[test]
fn the_holder_of_a_lease_stops_before_any_observer_says_so_whatever_the_clocks() {
    // (how far the observer's clock is off, how fast it runs against the holder's): drift is within the skew over one TTL.
    for (offset, rate) in [(0.0, 1.0), (-10_000.0, 1.0), (10_000.0, 0.92), (0.0, 1.08)] {
        let bench = Bench::new();
        let arbiter = bench.arbiter();
        arbiter.claim_epoch(&claim(1, "north", "protect")).unwrap();
        let mut held = LeaseHeld::new("north", "shop", 1, "host-1", 10.0);
        assert!(!held.is_valid(bench.clock.monotonic_seconds()));
        held.renew(&arbiter).unwrap();
        let renewed_at = bench.clock.monotonic_seconds();
        let mut observer = LeaseObserver::new(1.0);
        let mut ran_out = None;
        for tenth in 0..140 {
            let elapsed = f64::from(tenth) / 10.0;
            let lease = arbiter.read_lease("north", "shop", 1).unwrap();
            let view = observer.observe(lease, offset + elapsed * rate);
            if matches!(view, LeaseView::RunOut { .. }) {
                assert!(!held.is_valid(renewed_at + elapsed), "said to have run out while held: {offset} {rate}");
                ran_out.get_or_insert(elapsed);
            }
        }
        assert!(ran_out.is_some_and(|at| at < 13.0), "{ran_out:?}");
    }
}

#[test]
fn a_renewal_starts_the_count_anew_and_no_renewal_ever_seen_counts_nothing() {
    let bench = Bench::new();
    let arbiter = bench.arbiter();
    arbiter.claim_epoch(&claim(1, "north", "protect")).unwrap();
    let mut observer = LeaseObserver::new(1.0);
    assert_eq!(observer.observe(None, 1e9), LeaseView::NeverSeen);
    let mut held = LeaseHeld::new("north", "shop", 1, "host-1", 10.0);
    held.renew(&arbiter).unwrap();
    let read = || arbiter.read_lease("north", "shop", 1).unwrap();
    assert_eq!(observer.observe(read(), 100.0), LeaseView::MayBeLive { seconds: 11.0 });
    assert_eq!(observer.observe(read(), 110.0), LeaseView::MayBeLive { seconds: 1.0 });
    held.renew(&arbiter).unwrap();
    assert_eq!(observer.observe(read(), 110.0), LeaseView::MayBeLive { seconds: 11.0 });
    // The object gone counts as silence.
    assert_eq!(observer.observe(None, 125.0), LeaseView::RunOut { seconds_ago: 4.0 });
}

#[test]
fn a_lease_is_not_renewed_under_a_past_epoch_nor_by_two() {
    let arbiter = Bench::new().arbiter();
    arbiter.claim_epoch(&claim(1, "north", "protect")).unwrap();
    let mut held = LeaseHeld::new("north", "shop", 1, "host-1", 10.0);
    held.renew(&arbiter).unwrap();
    let mut other = LeaseHeld::new("north", "shop", 1, "host-2", 10.0);
    insta::assert_snapshot!(other.renew(&arbiter).unwrap_err(), @"the lease of shop under epoch 1 is held by host-1");
    arbiter.claim_epoch(&claim(2, "south", "r1")).unwrap();
    insta::assert_snapshot!(held.renew(&arbiter).unwrap_err(), @"epoch 1 of shop cannot be had: 2 is in force");
    assert!(!held.is_valid(arbiter.clock().monotonic_seconds()));
}

#[test]
fn generations_count_up_and_never_carry_an_older_epoch() {
    let arbiter = Bench::new().arbiter();
    assert_eq!(arbiter.desired_writer("shop").unwrap(), None);
    let first = arbiter.publish_writer("shop", 1, "north", false).unwrap();
    assert_eq!((first.generation, first.primary.as_str()), (1, "north"));
    assert_eq!(arbiter.publish_writer("shop", 1, "north", false).unwrap(), first);
    assert_eq!(arbiter.publish_writer("shop", 1, "north", true).unwrap().generation, 2);
    assert_eq!(arbiter.publish_writer("shop", 2, "south", false).unwrap().generation, 3);
    insta::assert_snapshot!(arbiter.publish_writer("shop", 1, "north", false).unwrap_err(), @"epoch 1 may not publish desired state of shop any more: the state in force carries epoch 2");
    assert_eq!(arbiter.desired_writer("shop").unwrap().unwrap().primary, "south");

    let to =
        |site: &str| vec![TrafficAnswer { site: site.into(), address: "127.0.2.1".into(), weight: 100, health: None }];
    let one = arbiter.publish_traffic("shop.example.", 1, 30, &to("north")).unwrap();
    assert_eq!(arbiter.publish_traffic("shop.example.", 1, 30, &to("north")).unwrap(), one);
    assert_eq!(arbiter.publish_traffic("shop.example.", 2, 30, &to("south")).unwrap().generation, 2);
    assert!(arbiter.publish_traffic("shop.example.", 1, 30, &to("north")).is_err());
    assert_eq!(arbiter.traffic("shop.example.").unwrap().unwrap().answers, to("south"));
}

#[test]
fn publishers_that_race_get_a_generation_each() {
    let bench = Bench::new();
    let publishers: Vec<_> = (0..4)
        .map(|n| {
            let arbiter = bench.arbiter();
            std::thread::spawn(move || {
                arbiter.publish_writer("shop", 1, &format!("site-{n}"), false).unwrap().generation
            })
        })
        .collect();
    let mut generations: Vec<_> = publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect();
    generations.sort_unstable();
    assert_eq!(generations, [1, 2, 3, 4]);
}

fn report(beat: u64) -> AgentReport {
    AgentReport {
        site: "north".into(),
        dataset: "orders".into(),
        role: AgentRole::Writer,
        epoch: 1,
        generation: 1,
        durable: [("far".to_owned(), "2026-11-21T12:00:00Z".to_owned())].into(),
        position: Some("7".into()),
        applied: None,
        finished: None,
        settled: true,
        commits: None,
        streams: None,
        came: None,
        problem: None,
        at: "2026-11-21T12:00:01Z".into(),
        beat,
    }
}

#[test]
fn reports_are_replaced_and_canaries_are_kept() {
    let arbiter = Bench::new().arbiter();
    assert_eq!(arbiter.agent_report("north", "orders").unwrap(), None);
    arbiter.report(&report(1)).unwrap();
    arbiter.report(&report(2)).unwrap();
    assert_eq!(arbiter.agent_report("north", "orders").unwrap(), Some(report(2)));
    for number in 1..=12 {
        let value = format!("canary-{number}");
        arbiter.record_canary(&CanaryRecord { service: "shop".into(), number, value, at: "then".into() }).unwrap();
    }
    let last: Vec<_> = arbiter.canaries("shop", 3).unwrap().into_iter().map(|canary| canary.number).collect();
    assert_eq!(last, [12, 11, 10]);
}

fn want<'a>(run: &'a str, host: &'a str) -> Acquire<'a> {
    Acquire { service: "shop", run, host, journal: None, times: LockTimes { ttl_seconds: 10.0, skew_seconds: 1.0 } }
}

fn advance(clock: &TestClock, seconds: i64) {
    clock.monotonic_offset_ms.fetch_add(seconds * 1000, Ordering::SeqCst);
}

#[test]
fn a_run_lock_is_one_runs_and_passes_on_only_when_it_ended_or_ran_out() {
    let bench = Bench::new();
    let arbiter = bench.arbiter();
    let Attempt::Taken(lock) = arbiter.acquire(&want("r1", "here"), &mut LockWatch::default()).unwrap() else {
        panic!()
    };
    // Another run elsewhere that saw no sign of it having acted watches it; a beat shows that it lives.
    let mut watch = LockWatch::default();
    let Attempt::Watch { seconds } = arbiter.acquire(&want("r2", "there"), &mut watch).unwrap() else { panic!() };
    assert!(seconds > 10.5 && seconds <= 11.0, "{seconds}");
    arbiter.renew_lock(&lock).unwrap();
    assert!(
        matches!(arbiter.acquire(&want("r2", "there"), &mut watch), Err(ArbiterError::Busy { run, .. }) if run == "r1")
    );
    // Paused, it stays r1's; r1 itself may go on at once, from anywhere.
    arbiter.release_lock(&lock, LockState::Paused).unwrap();
    let Attempt::Taken(second) = arbiter.acquire(&want("r1", "there"), &mut LockWatch::default()).unwrap() else {
        panic!()
    };
    assert!(matches!(arbiter.check_lock(&lock), Err(ArbiterError::LockLost { .. })));
    arbiter.check_lock(&second).unwrap();
    // Silent for TTL plus skew, it is taken over by who resumes the same run.
    let mut watch = LockWatch::default();
    assert!(matches!(arbiter.acquire(&want("r1", "here"), &mut watch).unwrap(), Attempt::Watch { .. }));
    advance(&bench.clock, 12);
    let Attempt::Taken(third) = arbiter.acquire(&want("r1", "here"), &mut watch).unwrap() else { panic!() };
    assert!(matches!(arbiter.renew_lock(&second), Err(ArbiterError::LockLost { .. })));
    // Ended, it is free for anyone.
    arbiter.release_lock(&third, LockState::Finished).unwrap();
    assert!(matches!(arbiter.acquire(&want("r2", "there"), &mut LockWatch::default()).unwrap(), Attempt::Taken(_)));
}

#[test]
fn an_arbiter_that_is_gone_is_an_error_that_may_pass() {
    let faulty = Faulty::new(Arc::new(MemoryStorage::new()));
    let arbiter = Bench::on(faulty.clone()).arbiter();
    faulty.set_gone(true);
    let error = arbiter.current_epoch("shop").unwrap_err();
    assert!(error.may_pass() && !error.is_refusal(), "{error}");
    faulty.repair();
    assert_eq!(arbiter.current_epoch("shop").unwrap(), None);
}
