//! Ctrl-C and SIGTERM as a flag that long work looks at, so that it can stop where it can be resumed.
//!
//! Invariant: the first signal asks, the second one ends the process as signals do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::error::CommandError;
use crate::ui::Ui;

/// Begins to listen; the flag turns true at the first signal.
pub(crate) fn listen(ui: &Ui) -> Result<Arc<AtomicBool>, CommandError> {
    let flag = Arc::new(AtomicBool::new(false));
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
                asked.store(true, Ordering::Relaxed);
                if !quiet {
                    use std::io::Write;
                    let _ = writeln!(std::io::stderr().lock(), "stopping; once more to stop at once");
                }
            }
        });
    });
    Ok(flag)
}
