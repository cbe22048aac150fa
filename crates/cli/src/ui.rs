//! What a command says, and where: results on stdout, everything else on stderr, JSON instead of text when asked.
//!
//! Invariant: with `--json`, nothing but JSON reaches stdout. A closed pipe silences output and stops nothing.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::Global;
use crate::error::CommandError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Colour {
    Auto,
    Always,
    Never,
}

#[derive(Debug)]
pub(crate) struct Ui {
    json: bool,
    quiet: bool,
    colour: Colour,
    plan: Option<PathBuf>,
    state: Option<PathBuf>,
    closed: AtomicBool,
}

impl Ui {
    pub(crate) fn new(global: Global) -> Ui {
        Ui {
            json: global.json,
            quiet: global.quiet,
            colour: global.color,
            plan: global.plan,
            state: global.state,
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// What `--plan` (or `$LIFEBOAT_PLAN`) says.
    pub(crate) fn plan_argument(&self) -> Option<&PathBuf> {
        self.plan.as_ref()
    }

    /// Whether nobody reads stdout any more: a stream of events may then end.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn colour_on_stdout(&self) -> bool {
        self.colour_on(io::stdout().is_terminal())
    }

    pub(crate) fn colour_on_stderr(&self) -> bool {
        self.colour_on(io::stderr().is_terminal())
    }

    fn colour_on(&self, terminal: bool) -> bool {
        match self.colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Where this host keeps its own state: `--state`, else `$XDG_STATE_HOME/lifeboat`, else `~/.local/state/lifeboat`.
    pub(crate) fn state_directory(&self) -> Result<PathBuf, CommandError> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        if let Some(base) = std::env::var_os("XDG_STATE_HOME").filter(|base| !base.is_empty()) {
            return Ok(PathBuf::from(base).join("lifeboat"));
        }
        match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
            Some(home) => Ok(PathBuf::from(home).join(".local/state/lifeboat")),
            None => Err(CommandError::usage(
                "there is no place for this host's state: neither $XDG_STATE_HOME nor $HOME is set",
            )
            .hint("say where with --state DIR")),
        }
    }

    /// One line of the result, for people. Nothing with `--json`.
    pub(crate) fn line(&self, text: impl Display) {
        if !self.json {
            self.write_stdout(format_args!("{text}\n"));
        }
    }

    /// The result as one JSON document. Nothing without `--json`.
    pub(crate) fn document<T: Serialize + ?Sized>(&self, document: &T) -> Result<(), CommandError> {
        if self.json {
            let text = serde_json::to_string_pretty(document)?;
            self.write_stdout(format_args!("{text}\n"));
        }
        Ok(())
    }

    /// One line of a stream of JSON events. Nothing without `--json`.
    pub(crate) fn event<T: Serialize + ?Sized>(&self, event: &T) -> Result<(), CommandError> {
        if self.json {
            let text = serde_json::to_string(event)?;
            self.write_stdout(format_args!("{text}\n"));
        }
        Ok(())
    }

    /// Text that is the result itself, whatever the format asked for: a schema, a completion script, a file's content.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Something worth knowing on the way, on stderr; silenced by `--quiet`.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.quiet {
            self.write_stderr(format_args!("{text}\n"));
        }
    }

    /// Something that must be known, on stderr.
    pub(crate) fn warn(&self, text: impl Display) {
        let (on, off) = if self.colour_on_stderr() { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
        self.write_stderr(format_args!("{on}warning{off}: {text}\n"));
    }

    /// Something that is wrong and stands, though the work was done, on stderr.
    pub(crate) fn alarm(&self, text: impl Display) {
        let (on, off) = if self.colour_on_stderr() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        self.write_stderr(format_args!("{on}alarm{off}: {text}\n"));
    }

    pub(crate) fn write_stderr(&self, text: std::fmt::Arguments<'_>) {
        // With stderr gone there is nobody left to tell.
        let _ = io::stderr().lock().write_fmt(text);
    }

    fn write_stdout(&self, text: std::fmt::Arguments<'_>) {
        let mut out = io::stdout().lock();
        if out.write_fmt(text).and_then(|()| out.flush()).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Asks before something that destroys; `yes` (from `--yes`) answers. Without a terminal to ask on it is refused.
    pub(crate) fn confirm(&self, question: &str, yes: bool) -> Result<(), CommandError> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(CommandError::usage(format!("{question} There is no terminal to ask on."))
                .hint("add --yes if this is what you want"));
        }
        self.write_stderr(format_args!("{question} [y/N] "));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(CommandError::refused("not confirmed; nothing was done")),
        }
    }

    /// Progress of something that takes a while, in bytes: a bar on a terminal, a plain line now and then elsewhere.
    pub(crate) fn progress(&self, title: &str) -> Progress {
        let bar = (!self.quiet && io::stderr().is_terminal()).then(|| bar(title));
        Progress {
            title: title.to_owned(),
            silent: self.quiet,
            bar,
            total_is_known: AtomicBool::new(false),
            said: Mutex::new(Instant::now()),
        }
    }

    /// Says on a terminal that something is being done, for as long as the answer lives.
    pub(crate) fn waiting(&self, title: &str) -> Waiting {
        let bar = (!self.quiet && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            if let Ok(style) = ProgressStyle::with_template("{msg} {spinner} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(125));
            bar
        });
        Waiting(bar)
    }
}

/// Work whose length is not known: shows on a terminal that it lives. Its end (or drop) clears it.
#[derive(Debug)]
pub(crate) struct Waiting(Option<ProgressBar>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn bar(title: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
    set_template(&bar, false);
    bar.set_message(title.to_owned());
    bar
}

fn set_template(bar: &ProgressBar, total_is_known: bool) {
    let template = if total_is_known {
        "{msg} {wide_bar} {decimal_bytes} of {decimal_total_bytes}  {eta}"
    } else {
        "{msg} {spinner} {decimal_bytes}, {decimal_bytes_per_sec}  {elapsed}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// One running progress; may be told of from any thread. Its end (or drop) clears the bar.
#[derive(Debug)]
pub(crate) struct Progress {
    title: String,
    silent: bool,
    bar: Option<ProgressBar>,
    total_is_known: AtomicBool,
    /// When a plain line was last written.
    said: Mutex<Instant>,
}

/// Between two plain lines: often enough to see life, seldom enough for a log file.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// `total` may grow, and is 0 while it is unknown.
    pub(crate) fn set(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            if total > 0 && !self.total_is_known.swap(true, Ordering::Relaxed) {
                set_template(bar, true);
            }
            bar.set_length(total.max(done));
            bar.set_position(done);
        } else if !self.silent {
            self.say_now_and_then(done, total);
        }
    }

    fn say_now_and_then(&self, done: u64, total: u64) {
        let Ok(mut said) = self.said.lock() else { return };
        if said.elapsed() < LINE_EVERY {
            return;
        }
        *said = Instant::now();
        let amount = |count: u64| lifeboat_core::units::Size(count).rounded();
        let line = match total {
            0 => format!("{}: {}\n", self.title, amount(done)),
            total => format!("{}: {} of {}\n", self.title, amount(done), amount(total)),
        };
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
