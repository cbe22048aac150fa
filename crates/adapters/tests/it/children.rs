//! Processes that other tests start, kill and wait for: this test binary again, told what to be.

use std::process::Command;

use crate::source_postgres::rewound;
use crate::{agent, source_sqlite, source_sqlite_days, watchdog};

pub(crate) const VARIABLE: &str = "LIFEBOAT_TEST_CHILD";
/// The test below, as the test binary's own arguments name it.
pub(crate) const TEST: &str = "children::a_child_is_what_it_was_told_to_be";

/// This binary, as that child and nothing else.
pub(crate) fn command(child: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(VARIABLE, child);
    command
}

#[test]
fn a_child_is_what_it_was_told_to_be() {
    match std::env::var(VARIABLE).as_deref() {
        Ok("agent") => agent::agent_child(),
        Ok("lease-agent") => watchdog::agent_child(),
        Ok("watchdog") => watchdog::watchdog_child(),
        Ok("capture") => source_sqlite::capture_child(),
        Ok("application_child") => source_sqlite_days::application_child(),
        Ok("standby_child") => source_sqlite_days::standby_child(),
        Ok("restore_child") => source_sqlite_days::restore_child(),
        Ok("rewinding_child") => rewound::rewinding_child(),
        Ok("checkpointing_child") => source_sqlite_days::checkpointing_child(),
        Ok(other) => panic!("no test starts a child called {other}"),
        Err(_) => {
            let output = command("nobody").output().unwrap();
            assert!(!output.status.success());
            assert!(String::from_utf8_lossy(&output.stderr).contains("no test starts a child called nobody"));
        }
    }
}
