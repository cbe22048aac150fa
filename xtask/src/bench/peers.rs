//! The tools that are compared: how each is installed, and how each is called.
//!
//! Invariant: every tool encrypts, compresses and deduplicates, with the settings that stand here and on the page; the two floors do
//! not, and are no peers.

use std::path::{Path, PathBuf};

use super::measure::Call;
use super::rounds::Contestant;
use super::{home, make_directory};
use crate::root;

const PASSPHRASE: &str = "a benchmark's";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    Lifeboat,
    LifeboatFast,
    Restic,
    Borg,
    Rustic,
    Bupstash,
    /// Floors: what the machine does without any of it.
    Copy,
    Tar,
}

pub(super) const ALL: [Tool; 8] =
    [Tool::Lifeboat, Tool::LifeboatFast, Tool::Restic, Tool::Borg, Tool::Rustic, Tool::Bupstash, Tool::Copy, Tool::Tar];

impl Tool {
    pub(super) fn name(self) -> &'static str {
        match self {
            Tool::Lifeboat => "lifeboat",
            Tool::LifeboatFast => "lifeboat --fast",
            Tool::Restic => "restic",
            Tool::Borg => "borg",
            Tool::Rustic => "rustic",
            Tool::Bupstash => "bupstash",
            Tool::Copy => "cp -a",
            Tool::Tar => "tar | zstd",
        }
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Tool::Lifeboat | Tool::LifeboatFast)
    }

    pub(super) fn is_floor(self) -> bool {
        matches!(self, Tool::Copy | Tool::Tar)
    }

    /// The settings, as the page says them.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Tool::Lifeboat => "as it comes, two recipients",
            Tool::LifeboatFast => "`backup --fast`, two recipients",
            Tool::Restic => "repository format 2, `--compression auto`",
            Tool::Borg => "`--encryption repokey-blake2`, `--compression zstd,1`",
            Tool::Rustic => "as it comes",
            Tool::Bupstash => "as it comes, a send log per repository",
            Tool::Copy => "no encryption, compression or deduplication: a floor",
            Tool::Tar => "`zstd -1 -T2`, no encryption or deduplication: a floor",
        }
    }

    fn program(self) -> PathBuf {
        match self {
            Tool::Lifeboat | Tool::LifeboatFast => lifeboat(),
            Tool::Restic => "restic".into(),
            Tool::Borg => home().join("peers/borg/bin/borg"),
            Tool::Rustic => home().join("peers/bin/rustic"),
            Tool::Bupstash => home().join("peers/bin/bupstash"),
            Tool::Copy => "cp".into(),
            Tool::Tar => "tar".into(),
        }
    }

    fn text(self) -> String {
        self.program().to_string_lossy().into_owned()
    }

    fn version(self) -> Result<String, String> {
        let argument = if self == Tool::Restic { "version" } else { "--version" };
        let printed = Call::new(&[&self.text(), argument]).run()?;
        let line = printed.lines().next().unwrap_or_default();
        Ok(line.split(" compiled").next().unwrap_or(line).to_owned())
    }

    pub(super) fn contestant(self) -> Result<Contestant, String> {
        Ok(Contestant {
            name: self.name(),
            version: self.version()?,
            settings: self.settings(),
            ours: self.is_ours(),
            floor: self.is_floor(),
        })
    }
}

/// The binary that is measured, built as it is handed out.
pub(super) fn lifeboat() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("dist/lifeboat")
}

/// Builds lifeboat, and installs the peers that are missing. Takes long the first time.
pub(super) fn prepare(tools: &[Tool]) -> Result<(), String> {
    let built = crate::cargo().args(["build", "--profile=dist", "--quiet", "--package", "lifeboat"]).status();
    if !built.map_err(|error| format!("cannot run cargo ({error})"))?.success() {
        return Err("lifeboat could not be built".to_owned());
    }
    let peers = home().join("peers");
    make_directory(&peers)?;
    for tool in tools.iter().filter(|tool| !tool.program().exists()) {
        match tool {
            Tool::Borg => python_tool("python3", &peers.join("borg"), "borgbackup==1.4.5")?,
            Tool::Rustic => rust_tool(&peers, "rustic-rs")?,
            Tool::Bupstash => rust_tool(&peers, "bupstash")?,
            _ => {} // a Debian package
        }
    }
    Ok(())
}

pub(super) fn python_tool(python: &str, place: &Path, package: &str) -> Result<(), String> {
    println!("installing {package} from PyPI");
    let place = place.to_string_lossy().into_owned();
    Call::new(&[python, "-m", "venv", &place]).run()?;
    Call::new(&[&format!("{place}/bin/pip"), "install", "--quiet", package]).run().map(drop)
}

fn rust_tool(peers: &Path, package: &str) -> Result<(), String> {
    println!("building {package} from the Rust registry");
    let root = peers.to_string_lossy().into_owned();
    let build = peers.join("build").to_string_lossy().into_owned();
    Call::new(&["cargo", "install", "--quiet", "--locked", "--root", &root, "--target-dir", &build, package]).run()?;
    super::remove(&peers.join("build"))
}

/// A repository of one tool, in a directory of its own.
#[derive(Debug)]
pub(super) struct Repository {
    tool: Tool,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    /// What the last backup printed: bupstash names what it stored so.
    last: String,
}

impl Repository {
    /// Makes an empty repository; not measured.
    pub(super) fn make(tool: Tool, directory: &Path) -> Result<Repository, String> {
        super::remove(directory)?;
        make_directory(directory)?;
        let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = match tool {
            Tool::Lifeboat | Tool::LifeboatFast => vec![pair("LIFEBOAT_STATE", &at("state"))],
            Tool::Restic => vec![
                pair("RESTIC_REPOSITORY", &at("stored")),
                pair("RESTIC_PASSWORD", PASSPHRASE),
                pair("RESTIC_CACHE_DIR", &at("cache")),
            ],
            Tool::Borg => vec![
                pair("BORG_REPO", &at("stored")),
                pair("BORG_PASSPHRASE", PASSPHRASE),
                pair("BORG_BASE_DIR", &at("cache")),
            ],
            Tool::Rustic => vec![
                pair("RUSTIC_REPOSITORY", &at("stored")),
                pair("RUSTIC_PASSWORD", PASSPHRASE),
                pair("RUSTIC_NO_PROGRESS", "true"),
                pair("RUSTIC_CACHE_DIR", &at("cache")),
            ],
            Tool::Bupstash => vec![
                pair("BUPSTASH_REPOSITORY", &at("stored")),
                pair("BUPSTASH_KEY", &at("key")),
                pair("BUPSTASH_SEND_LOG", &at("send-log")),
                pair("BUPSTASH_QUERY_CACHE", &at("query-cache")),
            ],
            Tool::Copy | Tool::Tar => Vec::new(),
        };
        let repository = Repository { tool, directory: directory.to_owned(), environment, last: String::new() };
        repository.initialise()?;
        Ok(repository)
    }

    fn at(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// What counts as stored.
    pub(super) fn stored(&self) -> PathBuf {
        self.directory.join("stored")
    }

    fn call(&self, words: &[&str]) -> Call {
        let program = self.tool.text();
        let all: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
        Call::new(&all).with(&self.environment)
    }

    fn initialise(&self) -> Result<(), String> {
        match self.tool {
            Tool::Lifeboat | Tool::LifeboatFast => {
                let mut words = vec!["vault".to_owned(), "init".to_owned(), "--vault".to_owned(), self.at("stored")];
                for name in ["owner.key", "paper.key"] {
                    self.call(&["key", "new", "-o", &self.at(name)]).run()?;
                    let text = self.call(&["--json", "key", "inspect", &self.at(name)]).run()?;
                    let recipient =
                        text.split('"').find(|word| word.starts_with("age1")).unwrap_or_default().to_owned();
                    words.extend(["--recipient".to_owned(), recipient]);
                }
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                self.call(&words).run()?;
            }
            Tool::Restic => drop(self.call(&["init", "--repository-version", "2"]).run()?),
            Tool::Borg => drop(self.call(&["init", "--encryption", "repokey-blake2"]).run()?),
            Tool::Rustic => drop(self.call(&["init"]).run()?),
            Tool::Bupstash => {
                self.call(&["new-key", "-o", &self.at("key")]).run()?;
                self.call(&["init"]).run()?;
            }
            Tool::Copy | Tool::Tar => {}
        }
        make_directory(&self.stored())
    }

    /// Backs up a directory, for the so-manieth time.
    pub(super) fn backup(&mut self, source: &Path, time: usize) -> Result<super::measure::Took, String> {
        let from = source.to_string_lossy().into_owned();
        let call = match self.tool {
            Tool::Lifeboat => self.call(&["--quiet", "backup", "--vault", &self.at("stored"), &from]),
            Tool::LifeboatFast => self.call(&["--quiet", "backup", "--fast", "--vault", &self.at("stored"), &from]),
            Tool::Restic => self.call(&["--quiet", "backup", "--compression", "auto", &from]),
            Tool::Borg => self.call(&["create", "--compression", "zstd,1", &format!("::{time}"), &from]),
            Tool::Rustic => self.call(&["--log-level", "warn", "backup", &from]),
            Tool::Bupstash => self.call(&["put", "--quiet", &from]),
            Tool::Copy => {
                super::remove(&self.stored())?;
                self.call(&["-a", &from, &self.at("stored")])
            }
            Tool::Tar => {
                let archive = self.at("stored/archive");
                Call::new(&["sh", "-c", "tar -c -C \"$0\" . | zstd -q -f -1 -T2 -o \"$1\"", &from, &archive])
            }
        };
        let (printed, took) = call.measure()?;
        printed.trim().clone_into(&mut self.last);
        Ok(took)
    }

    /// Restores the newest into an empty directory; also says where in it the source's contents are.
    pub(super) fn restore(&self, source: &Path, to: &Path) -> Result<(PathBuf, super::measure::Took), String> {
        super::remove(to)?;
        let out = to.to_string_lossy().into_owned();
        let below = to.join(source.strip_prefix("/").unwrap_or(source));
        if !self.tool.is_ours() && self.tool != Tool::Copy {
            make_directory(to)?;
        }
        let (call, where_it_is) = match self.tool {
            Tool::Lifeboat | Tool::LifeboatFast => {
                let (vault, key) = (self.at("stored"), self.at("owner.key"));
                let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (
                    self.call(&["--quiet", "restore", &name, "--vault", &vault, "--key", &key, "--to", &out]),
                    to.to_owned(),
                )
            }
            Tool::Restic => (self.call(&["--quiet", "restore", "latest", "--target", &out]), below),
            Tool::Borg => {
                let archives = self.call(&["list", "--short"]).run()?;
                let newest = format!("::{}", archives.lines().last().unwrap_or_default());
                (self.call(&["extract", &newest]).inside(to), below)
            }
            Tool::Rustic => (self.call(&["--log-level", "warn", "restore", "latest", &out]), below),
            Tool::Bupstash => {
                (self.call(&["restore", "--quiet", "--into", &out, &format!("id={}", self.last)]), to.to_owned())
            }
            Tool::Copy => (self.call(&["-a", &self.at("stored"), &out]), to.to_owned()),
            Tool::Tar => {
                let archive = self.at("stored/archive");
                let words = ["sh", "-c", "zstd -q -d -c \"$0\" | tar -x -C \"$1\"", &archive, &out];
                (Call::new(&words), to.to_owned())
            }
        };
        let (_, took) = call.measure()?;
        Ok((where_it_is, took))
    }
}
