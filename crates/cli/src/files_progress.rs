//! A backup's or restore's progress on the screen.

use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_vault::files::{Event, Progress};

use crate::ui::{self, Ui};

/// Counts bytes towards what is expected.
#[derive(Debug)]
pub(crate) struct OnScreen {
    shown: ui::Progress,
    done: AtomicU64,
    expected: AtomicU64,
}

impl OnScreen {
    pub(crate) fn new(ui: &Ui, title: &str) -> OnScreen {
        OnScreen { shown: ui.progress(title), done: AtomicU64::new(0), expected: AtomicU64::new(0) }
    }
}

impl Progress for OnScreen {
    fn report(&self, event: &Event<'_>) {
        match event {
            Event::Expected { bytes, .. } => self.expected.store(*bytes, Ordering::Relaxed),
            Event::Bytes(count) => {
                let done = self.done.fetch_add(*count, Ordering::Relaxed) + count;
                self.shown.set(done, self.expected.load(Ordering::Relaxed));
            }
            _ => {}
        }
    }
}
