//! A run-book that is sound, and each way of making it unsound: every one is found, and nothing else is.

use lifeboat_core::plan::{DataKind, Objective, Source, Strategy};
use lifeboat_core::runbook::lint::lint;
use lifeboat_core::runbook::{Action, Condition, LeaseFence, Purpose, Runbook, Step, VolumeSpec};
use lifeboat_core::units::Span;

fn step(id: &str, after: &[&str], action: Action) -> Step {
    Step { action, ..crate::run::step(id, after) }
}

fn shop() -> String {
    "shop".into()
}

fn claim() -> Action {
    Action::ClaimEpoch { write_domain: shop(), epoch: 2, primary: "south".into(), planned: false }
}

fn fence(site: &str) -> Action {
    let (instances, volumes) = (vec![], vec![]);
    Action::Fence { site: site.into(), write_domain: shop(), instances, volumes, planned: false, lease: None }
}

fn promote(epoch: u64) -> Action {
    Action::Promote { site: "south".into(), write_domain: shop(), datasets: vec![], epoch }
}

fn traffic(arbiter: Option<&str>) -> Action {
    let (name, authority) = ("shop.example.".into(), "127.0.9.53:53".into());
    Action::SetTraffic { name, authority, ttl: Span::seconds(1), answers: vec![], arbiter: arbiter.map(str::to_owned) }
}

fn book(purpose: Purpose, steps: Vec<Step>) -> Runbook {
    Runbook {
        format: 1,
        purpose,
        service: shop(),
        scenario: "site-lost".into(),
        strategy: Strategy::WarmStandby,
        from: "north".into(),
        to: "south".into(),
        write_domain: shop(),
        from_epoch: 1,
        epoch: 2,
        objective: Objective { rpo: Span::seconds(5), rto: Span::seconds(60) },
        plan_hash: "p".into(),
        compiled_at: "2026-11-21T12:00:00Z".into(),
        steps,
        not_covered: vec![],
    }
}

/// The fence is an ancestor of the promotion, and not its neighbour.
fn failover() -> Runbook {
    book(
        Purpose::Failover,
        vec![
            step("claim", &[], claim()),
            step("fence", &["claim"], fence("north")),
            step("agent", &["fence"], Action::EnsureAgent { site: "south".into() }),
            Step { commit: true, ..step("promote", &["agent"], promote(2)) },
            step("traffic", &["promote"], traffic(None)),
        ],
    )
}

fn broken(fault: impl FnOnce(&mut Runbook)) -> String {
    let mut runbook = failover();
    fault(&mut runbook);
    lint(&runbook).join("\n")
}

#[test]
fn a_lease_is_waited_for_only_after_a_claim_that_ends_it() {
    let by_lease = |planned_fence: bool, planned_claim: bool| {
        broken(|runbook| {
            if let Action::Fence { lease, planned, .. } = &mut runbook.steps[1].action {
                *lease = Some(LeaseFence { epoch: 1, ttl: Span::seconds(10), skew: Span::seconds(1) });
                *planned = planned_fence;
            }
            if let Action::ClaimEpoch { planned, .. } = &mut runbook.steps[0].action {
                *planned = planned_claim;
            }
        })
    };
    assert_eq!(by_lease(false, false), "");
    for (fence, claim) in [(true, false), (false, true)] {
        assert_eq!(by_lease(fence, claim), "`fence` waits for a lease that the writer may still renew");
    }
}

#[test]
fn what_is_sound_has_no_fault() {
    assert_eq!(lint(&failover()), Vec::<String>::new());
}

#[test]
fn the_form_of_a_run_book_is_looked_at() {
    insta::assert_snapshot!(broken(|book| book.format = 2), @"run-book format 2 is not known to this version");
    insta::assert_snapshot!(broken(|book| book.steps[1].after.push("traffic".into())), @"`fence` depends on `traffic`, which does not stand before it");
    insta::assert_snapshot!(broken(|book| book.steps[1].after.push("fence".into())), @"`fence` depends on `fence`, which does not stand before it");
    let when = |step: &str, outcomes: &[&str]| Condition {
        step: step.into(),
        outcomes: outcomes.iter().map(|outcome| (*outcome).into()).collect(),
    };
    insta::assert_snapshot!(broken(|book| book.steps[4].when.push(when("nobody", &["usable"]))), @"`traffic` depends on `nobody`, which does not stand before it");
    insta::assert_snapshot!(broken(|book| book.steps[4].when.push(when("claim", &[]))), @"`traffic` can never be taken: its condition names no outcome");
    insta::assert_snapshot!(broken(|book| book.steps[4].id = "agent".into()), @"`agent` stands twice");
    insta::assert_snapshot!(broken(|book| book.steps[2].timeout = Span::seconds(0)), @"`agent` has no time to run");
}

#[test]
fn nobody_is_promoted_but_at_the_one_commit_point_under_its_own_epoch() {
    insta::assert_snapshot!(broken(|book| book.steps[4].commit = true), @"there must be exactly one commit point, not 2");
    insta::assert_snapshot!(broken(|book| (book.steps[3].commit, book.steps[4].commit) = (false, true)), @"`promote` promotes but is not the commit point");
    for epoch in [1, 3] {
        let said = broken(|book| book.steps[3].action = promote(epoch));
        assert_eq!(said, format!("`promote` promotes under epoch {epoch}, not 2"));
    }
}

#[test]
fn nobody_is_promoted_without_a_claim_and_a_certain_fence_of_the_old_site_before() {
    let agent = || Action::EnsureAgent { site: "south".into() };
    let unfenced = "`promote` promotes without a fence of north before it";
    assert_eq!(broken(|book| book.steps[1].action = agent()), unfenced);
    assert_eq!(broken(|book| book.steps[1].action = fence("south")), unfenced, "another site is no fence");
    // One that stands beside the promotion, and not before it.
    assert_eq!(broken(|book| book.steps[2].after = vec!["claim".into()]), unfenced);
    // One that is only done in some branch.
    let only = || vec![Condition { step: "claim".into(), outcomes: vec!["claimed".into()] }];
    assert_eq!(broken(|book| book.steps[1].when = only()), unfenced);
    assert_eq!(broken(|book| book.steps[0].action = agent()), "`promote` promotes without having claimed an epoch");
}

#[test]
fn a_drill_and_a_start_take_nothing_over() {
    let volume = VolumeSpec {
        service: shop(),
        dataset: "orders".into(),
        kind: DataKind::Persistent,
        source: Source::Files { path: "orders".into(), exclude: vec![] },
        vaults: vec![],
    };
    let aside = || Action::SetAside { site: "south".into(), volume: volume.clone() };
    for (purpose, what) in [(Purpose::Drill, "drill"), (Purpose::Start, "start")] {
        let of = |action: Action, commit| lint(&book(purpose, vec![Step { commit, ..step("act", &[], action) }]));
        for action in [claim(), fence("north"), promote(2), aside()] {
            assert_eq!(of(action.clone(), false), [format!("a {what} must not do `act`")], "{action:?}");
        }
        let harmless = || Action::EnsureAgent { site: "south".into() };
        assert_eq!(of(harmless(), true), [format!("a {what} must not have a commit point")]);
        assert!(of(harmless(), false).is_empty() && of(traffic(Some("file:///isolated")), false).is_empty());
        // A start sends traffic to who writes already; a drill's must reach nobody.
        assert_eq!(of(traffic(None), false).is_empty(), purpose == Purpose::Start);
    }
}
