//! Ctrl-C and SIGTERM as a flag that long work looks at, so that it can stop where it can be resumed.
//!
//! Invariant: the first signal asks, the second one ends the process as signals do.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_engine::port::Cancel;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::CommandError;
use crate::ui::Ui;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether this process was asked to stop: what fails from then on failed because of that.
pub(crate) fn was_asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Begins to listen; the flag is set at the first signal.
pub(crate) fn listen(ui: &Ui) -> Result<Cancel, CommandError> {
    let flag = Cancel::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let (asked, quiet) = (flag.clone(), ui.is_quiet());
    std::thread::spawn(move || {
        runtime.block_on(async move {
            for times in 0.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if times > 0 {
                    std::process::exit(130);
                }
                asked.cancel();
                ASKED.store(true, Ordering::Relaxed);
                lifeboat_adapters::storage::hurry();
                if !quiet {
                    // On a terminal the progress stands in this line; it is drawn again below.
                    let before = if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
                    let _ = writeln!(std::io::stderr().lock(), "{before}stopping; once more to stop at once");
                }
            }
        });
    });
    Ok(flag)
}
