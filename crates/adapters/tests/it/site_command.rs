//! The command site, driven by the example script, and by scripts that answer badly.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_adapters::site::{CommandSite, CommandSiteConfig};
use lifeboat_engine::port::{Fenced, InstanceState, Site, SiteAnswer, SiteVerb, VolumeState};

use crate::site_conformance::{conforms, context, files, instance, request};

fn sh(script: &str) -> CommandSite {
    let mut config = CommandSiteConfig::new("b", vec!["sh".into(), "-c".into(), script.into()]);
    config.within = Duration::from_secs(60);
    config.look_within = Duration::from_secs(60);
    CommandSite::new(config).unwrap()
}

/// Ends whatever of the example site still runs.
struct Example(tempfile::TempDir);

impl Drop for Example {
    fn drop(&mut self) {
        for directory in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = directory.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let environment = std::fs::read(directory.path().join("environ")).unwrap_or_default();
            let root = self.0.path().to_str().unwrap().to_owned();
            if environment.windows(root.len()).any(|part| part == root.as_bytes())
                && pid != std::process::id() as i32
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

#[tokio::test]
async fn the_example_script_conforms() {
    let example = Example(tempfile::tempdir().unwrap());
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/command-site/site.py");
    // Through `env`, so that all it starts can be found again when the test is over.
    let mark = format!("EXAMPLE_ROOT={}", example.0.path().display());
    let root = example.0.path().to_str().unwrap();
    let mut command: Vec<String> =
        ["env", &mark, "python3", script.to_str().unwrap(), root, "sleep", "1000"].map(str::to_owned).to_vec();
    let site = CommandSite::new(CommandSiteConfig::new("b", command.clone())).unwrap();
    conforms(&site).await;

    // A handle that an outsider holds: the script says so, and what has to be attested.
    let held = example.0.path().join("volumes/data/uploads/held");
    let file = std::fs::File::create(&held).unwrap();
    match site.fence(&request(&[], &[files("data/uploads")]), &context(9, "f")).await.unwrap() {
        Fenced::Unproven { why, statement } => {
            assert!(why.contains(&format!("process {}", std::process::id())), "{why}");
            assert!(statement.contains("held"), "{statement}");
        }
        proven => panic!("{proven:?}"),
    }
    drop(file);
    command.truncate(5);
    let without_agent = CommandSite::new(CommandSiteConfig::new("b", command)).unwrap();
    assert!(site.perform(&SiteVerb::EnsureAgent, &context(9, "a")).await.is_ok());
    let error = without_agent.perform(&SiteVerb::EnsureAgent, &context(9, "a")).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"`env` of site `b`, asked to ensure-agent, could not: nobody said how `lifeboat protect` is started here");
}

#[tokio::test]
async fn bad_answers_are_named() {
    let start = async |script: &str| sh(script).start(&instance("true"), &context(1, "k")).await.unwrap_err();
    insta::assert_snapshot!(start("echo oh no >&2; exit 7").await.message, @"`sh` of site `b`, asked to start, failed (exit status: 7) without an answer; it said: oh no");
    insta::assert_snapshot!(start("echo hello").await.message, @"`sh` of site `b`, asked to start, answered with something else than one JSON object: `hello`");
    insta::assert_snapshot!(start("echo '{}'").await.message, @"`sh` of site `b`, asked to start, answered with something else than one JSON object: `{}`");
    insta::assert_snapshot!(start(r#"echo '{"ok": true}{"ok": true}'"#).await.message, @r#"`sh` of site `b`, asked to start, answered with something else than one JSON object: `{"ok": true}{"ok": true}`"#);
    insta::assert_snapshot!(start(r#"echo '{"ok": true}'; exit 1"#).await.message, @"`sh` of site `b`, asked to start, answered `ok` and then failed (exit status: 1)");
    insta::assert_snapshot!(start("head -c 3000000 /dev/zero").await.message, @"`sh` of site `b`, asked to start, answered with more than 1048576 bytes");
    let passing = start(r#"echo '{"ok": false, "error": "quota is full", "may_pass": true}'"#).await;
    insta::assert_snapshot!(passing.message, @"`sh` of site `b`, asked to start, could not: quota is full");
    assert!(passing.may_pass);
    let absent = CommandSite::new(CommandSiteConfig::new("b", vec!["/no/such/program".into()])).unwrap();
    let error = absent.start(&instance("true"), &context(1, "k")).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"`/no/such/program` of site `b`, asked to start, cannot be run: see that it exists and may be executed");
    insta::assert_snapshot!(CommandSite::new(CommandSiteConfig::new("b", vec![])).unwrap_err().message, @"site `b` is reached by a command, but none is given");
}

#[tokio::test]
async fn a_fence_is_proven_in_so_many_words_or_not() {
    let fence = async |script: &str| sh(script).fence(&request(&[], &[]), &context(1, "k")).await.unwrap();
    for script in [
        "exit 1",
        "echo rubbish",
        r#"echo '{"ok": false, "error": "no answer from the hypervisor"}'"#,
        r#"echo '{"ok": true}'"#,
        r#"echo '{"ok": true, "fence": "proven"}'"#,
        r#"echo '{"ok": true, "fence": "proven", "proof": " "}'"#,
        r#"echo '{"ok": true, "fence": "proven", "proof": "off"}'; exit 1"#,
        r#"echo '{"ok": true, "fence": "perhaps", "proof": "off"}'"#,
        r#"echo '{"ok": true, "fence": "unproven", "proof": "off", "why": "no answer"}'"#,
    ] {
        let answer = fence(script).await;
        assert!(
            matches!(&answer, Fenced::Unproven { statement, .. } if statement.contains("`shop`")),
            "{script}: {answer:?}"
        );
    }
    let proven =
        fence(r#"echo '{"ok": true, "fence": "proven", "proof": "the hypervisor says off", "facts": {"host": "h1"}}'"#);
    match proven.await {
        Fenced::Proven { proof, facts } => {
            assert_eq!(proof, "the hypervisor says off");
            assert_eq!(facts["host"], "h1");
        }
        unproven => panic!("{unproven:?}"),
    }
}

#[tokio::test]
async fn unknown_stays_unknown() {
    let observe = async |script: &str| sh(script).observe(&instance("true")).await.unwrap();
    for script in ["exit 1", r#"echo '{"ok": true}'"#, r#"echo '{"ok": true, "state": "unknown", "why": "x"}'"#] {
        assert!(matches!(observe(script).await, InstanceState::Unknown(_)), "{script}");
    }
    let left = sh(r#"echo '{"ok": true}'"#).perform(&SiteVerb::WhatIsLeft("d".into()), &context(1, "k")).await;
    insta::assert_snapshot!(left.unwrap_err().message, @"`sh` of site `b`, asked to what-is-left, answered without `left`");
    let locate = async |script: &str| sh(script).perform(&SiteVerb::LocateVolume(files("x")), &context(1, "k")).await;
    let absent = locate(r#"echo '{"ok": true}'"#).await.unwrap();
    assert_eq!(absent, SiteAnswer::Volume(VolumeState::Absent));
    let error = locate(r#"echo '{"ok": true, "path": "/no/such/volume"}'"#).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"`sh` of site `b`, asked to locate-volume, named `/no/such/volume`, which is not there for this machine: answer with an absolute path that is (mount it, if it is remote)");
}

#[tokio::test]
async fn time_and_cancellation_kill_the_whole_group() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let mut config = CommandSiteConfig::new("b", vec!["sh".into(), "-c".into(), script.clone()]);
    // Long enough for the script to come to where it waits.
    config.within = Duration::from_secs(5);
    let site = CommandSite::new(config).unwrap();
    let error = site.start(&instance("true"), &context(1, "k")).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"`sh` of site `b`, asked to start, took longer than 5 s and was killed");
    let first = crate::site_conformance::pid_in(&pid);
    crate::site_conformance::eventually("the child to be gone", || {
        (!crate::site_conformance::is_alive(first)).then_some(())
    });

    std::fs::remove_file(&pid).unwrap();
    let under = context(1, "k");
    let cancel = under.cancel.clone();
    let asked = tokio::spawn(async move { sh(&script).start(&instance("true"), &under).await.unwrap_err() });
    let second = tokio::task::spawn_blocking(move || crate::site_conformance::pid_in(&pid)).await.unwrap();
    cancel.cancel();
    assert!(asked.await.unwrap().message.contains("was cancelled"));
    crate::site_conformance::eventually("the child to be gone", || {
        (!crate::site_conformance::is_alive(second)).then_some(())
    });
}

#[tokio::test]
async fn the_command_reads_what_is_documented() {
    let directory = tempfile::tempdir().unwrap();
    let seen = directory.path().join("seen");
    let site = sh(&format!(r#"cat > {}; echo '{{"ok": true}}'"#, seen.display()));
    let mut app = instance("true");
    let secret = lifeboat_core::plan::Secret::File("/etc/secret".into());
    app.env.insert("PASSWORD".into(), lifeboat_core::plan::Value::Secret(secret));
    site.start(&app, &context(7, "the-key")).await.unwrap();
    insta::assert_snapshot!(std::fs::read_to_string(&seen).unwrap(), @r#"{"verb":"start","site":"b","instance":{"service":"shop","component":"app","number":1,"command":["sh","-c","true"],"env":{"PASSWORD":{"file":"/etc/secret"}},"directory":null,"address":null,"port":null,"stop_within":"1m","health":null},"context":{"run":"run-1","step":"step","epoch":7,"idempotency_key":"the-key","isolation":null}}"#);
}
