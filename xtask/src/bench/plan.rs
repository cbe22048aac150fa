//! A plan with one data set that is streamed into a directory, its keys and its vault, for streams that are measured.
//!
//! Invariant: they are made by the binary that is measured, with two recipients, as a user would make them.

use std::path::Path;

use super::make_directory;
use super::measure::Call;
use super::peers::lifeboat;

/// The site whose `lifeboat protect` streams.
pub(super) const SITE: &str = "home";

/// lifeboat with these words, and its plan and state below a directory.
pub(super) fn call(root: &Path, words: &[&str]) -> Call {
    let program = lifeboat().to_string_lossy().into_owned();
    let all: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
    let pair = |name: &str, below: &str| (name.to_owned(), root.join(below).to_string_lossy().into_owned());
    Call::new(&all).with(&[pair("LIFEBOAT_STATE", "state"), pair("LIFEBOAT_PLAN", "lifeboat.toml")])
}

/// Makes keys, vault and plan below `root`; `source`: the data set `live`'s own line.
pub(super) fn make(root: &Path, source: &str) -> Result<(), String> {
    let at = |name: &str| root.join(name).to_string_lossy().into_owned();
    let (vault, arbiter, site) = (at("vault"), at("arbiter"), at("site"));
    let mut recipients = Vec::new();
    let mut words = vec!["vault", "init", "--vault", &vault];
    for name in ["owner.key", "paper.key"] {
        call(root, &["key", "new", "-o", &at(name)]).run()?;
        let text = call(root, &["--json", "key", "inspect", &at(name)]).run()?;
        recipients.push(text.split('"').find(|word| word.starts_with("age1")).unwrap_or_default().to_owned());
    }
    recipients.iter().for_each(|recipient| words.extend(["--recipient", recipient.as_str()]));
    let mut init = call(root, &words);
    // The plan is not there yet, and is not needed for this.
    init.environment.retain(|(name, _)| name != "LIFEBOAT_PLAN");
    init.run()?;
    make_directory(&root.join("arbiter"))?;
    let quoted = recipients.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ");
    let text = format!(
        r#"[plan]
name = "bench"
accepted-by = "a benchmark"
[arbiter]
url = "{arbiter}"
[site.{SITE}]
reach = "local"
root = "{site}"
address = "127.0.0.1"
[site.spare]
reach = "ssh"
host.spare = "192.0.2.10"
[vault.main]
url = "{vault}"
[key]
recipients = [{quoted}]
[service.bench]
strategy = "backup-restore"
primary = "{SITE}"
recovery = ["spare"]
rpo = "1m"
rto = "4h"
[service.bench.component.app.dataset.live]
kind = "persistent"
{source}
protect = [{{ to = "main", base = {{ every = "1d", keep = {{ last = 4 }} }}, log = "stream" }}]
"#
    );
    std::fs::write(root.join("lifeboat.toml"), text).map_err(|error| format!("cannot write a plan ({error})"))
}
