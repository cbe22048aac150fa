//! Runs a command and says what it took.
//!
//! Invariant: a command that failed has no figures, and every command that is measured finds memory that the machine has at hand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// What a command took, its children included; memory is that of its largest process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Took {
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
    pub(super) memory_mb: f64,
}

/// A command, its environment and where it runs.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) words: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) directory: Option<std::path::PathBuf>,
}

impl Call {
    pub(super) fn new(words: &[&str]) -> Call {
        Call { words: words.iter().map(ToString::to_string).collect(), environment: Vec::new(), directory: None }
    }

    pub(super) fn with(mut self, environment: &[(String, String)]) -> Call {
        self.environment.extend_from_slice(environment);
        self
    }

    pub(super) fn inside(mut self, directory: &Path) -> Call {
        self.directory = Some(directory.to_owned());
        self
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut words = program.iter().copied().chain(self.words.iter().map(String::as_str));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Runs it; what it printed.
    pub(super) fn run(&self) -> Result<String, String> {
        self.ends_with(&[0])
    }

    /// Runs it, and is content with each of these exit codes; what it printed.
    pub(super) fn ends_with(&self, codes: &[i32]) -> Result<String, String> {
        let output = self.command(&[]).output().map_err(|error| self.cannot_run(&error))?;
        self.ended(output.status.code().is_some_and(|code| codes.contains(&code)), &output.stderr)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts it in the background; what it says goes into a file.
    pub(super) fn start(&self, log: &Path) -> Result<Child, String> {
        let both = File::create(log).and_then(|log| Ok((log.try_clone()?, log)));
        let (out, complaints) = both.map_err(|error| format!("cannot write {} ({error})", log.display()))?;
        self.command(&[]).stdout(out).stderr(complaints).spawn().map_err(|error| self.cannot_run(&error))
    }

    fn cannot_run(&self, error: &std::io::Error) -> String {
        format!("cannot run {} ({error})", self.words.join(" "))
    }

    /// Runs it under GNU time; what it printed, and what it took.
    pub(super) fn measure(&self) -> Result<(String, Took), String> {
        let note = std::env::temp_dir().join(format!("lifeboat-bench-{}.time", std::process::id()));
        let note_text = note.to_string_lossy().into_owned();
        let began = Instant::now();
        let output = self
            .command(&["/usr/bin/time", "-f", "%U %S %M", "-o", &note_text, "--"])
            .output()
            .map_err(|error| format!("cannot run /usr/bin/time ({error})"))?;
        let seconds = began.elapsed().as_secs_f64();
        self.ended(output.status.success(), &output.stderr)?;
        let text = std::fs::read_to_string(&note).map_err(|error| format!("GNU time left no note ({error})"))?;
        let _ = std::fs::remove_file(&note);
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [user, system, kib] = numbers[..] else { return Err(format!("GNU time wrote {text:?}")) };
        let took = Took { seconds, cpu_seconds: user + system, memory_mb: kib * 1024.0 / 1e6 };
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), took))
    }

    fn ended(&self, well: bool, complaint: &[u8]) -> Result<(), String> {
        let complaint = String::from_utf8_lossy(complaint);
        if well { Ok(()) } else { Err(format!("{} failed: {}", self.words.join(" "), complaint.trim())) }
    }
}

/// What a step may fill besides what it writes: caches, indexes, its own memory.
const TOUCHED_BESIDES: u64 = 512 << 20;

/// Has the machine lay its hands on as much memory as a step that is about to be measured will fill in `place`, by filling and freeing it:
/// a hypervisor takes memory back that lies free for seconds, and giving it again can take longer than what is measured.
pub(super) fn touch_memory(place: &Path, bytes: u64) -> Result<(), String> {
    const PIECE: u64 = 1 << 20;
    let path = place.join("touched");
    let touch = || -> std::io::Result<()> {
        let file = File::create(&path)?;
        let pieces = (bytes + TOUCHED_BESIDES).div_ceil(PIECE);
        let filled = vec![1; PIECE as usize];
        let workers = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let fill = |worker: u64| {
            (worker..pieces).step_by(workers as usize).try_for_each(|piece| file.write_all_at(&filled, piece * PIECE))
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..workers).map(|worker| scope.spawn(move || fill(worker))).collect();
            all.into_iter()
                .try_for_each(|one| one.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread has ended"))))
        })
    };
    let touched = touch();
    super::remove(&path)?;
    touched.map_err(|error| format!("cannot fill {} ({error})", path.display()))
}

/// Bytes that the files below a directory occupy.
pub(super) fn occupied_below(path: &Path) -> Result<u64, String> {
    disk_usage(&["du", "-s", "--block-size=1", &path.to_string_lossy()])
}

/// Bytes of all files below a directory, as long as they say they are.
pub(super) fn bytes_below(path: &Path) -> Result<u64, String> {
    disk_usage(&["du", "-s", "--apparent-size", "--block-size=1", &path.to_string_lossy()])
}

fn disk_usage(words: &[&str]) -> Result<u64, String> {
    let text = Call::new(words).run()?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or_else(|| format!("du wrote {text:?}"))
}
