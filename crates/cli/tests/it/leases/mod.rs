//! A primary that nobody can reach, and whose lease runs out: recovery without anybody's word, and never two writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_core::run::RunState;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{Options, World, wait_until};

fn options() -> Options {
    Options { service: "lease = \"6s\"", ..Options::default() }
}

fn failover(world: &World) -> Vec<String> {
    ["failover", "pages", "--yes", "--key", &world.path("owner.key")].map(str::to_owned).to_vec()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Looks all the time whether north serves although south does. Answers how often both were seen.
fn watched<T>(world: &World, act: impl FnOnce() -> T) -> (T, usize) {
    let over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            let mut both = 0;
            while !over.load(Ordering::SeqCst) {
                // In this order: what served before the other began is no second writer.
                if world.get("south", "/page").is_some() && world.get("north", "/page").is_some() {
                    both += 1;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            both
        });
        let done = act();
        over.store(true, Ordering::SeqCst);
        (done, look.join().unwrap())
    })
}

#[test]
fn a_primary_out_of_reach_is_recovered_unattended_when_its_lease_has_run_out_and_comes_home() {
    let mut world = World::new(&options());
    world.up();
    let started = world.run().step("await-lease-north").unwrap().clone();
    assert_eq!(started.outcome.as_deref(), Some("held"));
    world.backup();
    world.cut_off("north", true);
    let (_, both) = watched(&world, || world.ends(0, &words(&failover(&world))));
    assert_eq!(both, 0);
    world.assert_recovered();
    let run = world.run();
    let fence = run.step("fence-north").unwrap();
    let fact = |name: &str| fence.facts[name].clone();
    assert_eq!((fence.outcome.as_deref(), fact("proven_by")), (Some("run-out"), "lease".into()));
    // The time of the lease, and a second for clocks.
    assert!(fact("waited_seconds").as_f64().unwrap() >= 7.0, "{:?}", fence.facts);
    assert_eq!(run.step("await-lease-south").unwrap().outcome.as_deref(), Some("held"));
    let page = world.path("evidence.html");
    world.ok(&["evidence", &run.run, "-o", &page]);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("and the watchdog beside the writer stops it before that"), "the page says by what");

    // By plan the writer holds its lease until it has been stopped.
    world.cut_off("north", false);
    let key = world.path("owner.key");
    let (_, both) = watched(&world, || world.ends(0, &["failback", "pages", "--yes", "--key", &key]));
    assert_eq!(both, 0);
    assert_eq!(world.run().step("fence-south").unwrap().outcome.as_deref(), Some("proven"));
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));
}

#[test]
fn a_wait_for_the_lease_that_was_cut_off_begins_anew_and_a_run_that_is_given_up_leaves_a_writer_to_be_started() {
    let mut world = World::new(&options());
    world.up();
    world.backup();
    world.cut_off("north", true);
    let mut controller = world.command(&words(&failover(&world))).spawn().unwrap();
    wait_until("the fence", || {
        world.runs() == 2 && world.run().step("fence-north").is_some_and(|step| step.status == "running")
    });
    controller.kill().unwrap();
    controller.wait().unwrap();
    let id = world.run().run;
    // It is refused its lease from the claim on, and stopped without waiting for the rest of it.
    wait_until("north to be stopped", || world.get("north", "/page").is_none());
    let resuming = world.command(&["run", "resume", &id, "--key", &world.path("owner.key")]).spawn().unwrap();
    wait_until("the fence again", || {
        world.run().step("fence-north").is_some_and(|step| step.status == "running" && step.attempts > 1)
    });
    kill_process(Pid::from_child(&resuming), Signal::INT).unwrap();
    assert_eq!(resuming.wait_with_output().unwrap().status.code(), Some(130));
    world.cut_off("north", false);
    world.ends(0, &["run", "cancel", &id, "--reason", "the line is back", "--yes"]);
    assert_eq!(world.run().state, RunState::Cancelled);
    // The epoch before the claim is over for good: north is named under the one that was spent.
    world.ok(&["up", "pages", "--yes"]);
    assert_eq!(world.get("north", "/page").as_deref(), Some("the first page\n"));
    let desired = world.arbiter().desired_writer("pages").unwrap().unwrap();
    assert_eq!((desired.primary.as_str(), desired.epoch), ("north", 2));
}
