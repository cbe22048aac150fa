//! `check`, `explain`, `schema`, and how commands find a plan and end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn plans() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/plans")
}

fn lifeboat(words: &[&str]) -> Output {
    run(Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(words))
}

fn run(command: &mut Command) -> Output {
    command.env_remove("LIFEBOAT_PLAN").env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap()
}

fn good() -> String {
    plans().join("good/two-sites.toml").display().to_string()
}

fn wrong(name: &str) -> String {
    plans().join(format!("wrong/{name}.toml")).display().to_string()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_good_plan_ends_with_0_and_shows_keys_and_fences() {
    let output = lifeboat(&["check", "--plan", &good()]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    for word in ["outside every site", "standby", "every scenario", "no listener left", "nothing wrong found"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_wrong_plan_ends_with_2_and_shows_where() {
    let output = lifeboat(&["check", "--plan", &wrong("P0101-misspelt")]);
    assert_eq!(output.status.code(), Some(2));
    let said = err(&output);
    assert!(said.contains("error[P0101]: a service has no key `aproval`"), "{said}");
    assert!(said.contains("did you mean `approval`?"), "{said}");
    assert!(out(&output).ends_with("1 error\n"), "{}", out(&output));
}

#[test]
fn warnings_end_with_0_or_with_3_when_denied() {
    let plan = wrong("P0701-too-seldom");
    assert_eq!(lifeboat(&["check", "--plan", &plan]).status.code(), Some(0));
    assert_eq!(lifeboat(&["check", "--deny-warnings", "--plan", &plan]).status.code(), Some(3));
}

#[test]
fn json_is_one_document_and_stdout_has_nothing_else() {
    let output = lifeboat(&["--json", "check", "--plan", &wrong("P0309-nested")]);
    assert_eq!(output.status.code(), Some(2));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["valid"], false);
    assert_eq!(document["diagnostics"][0]["code"], "P0309");
    assert_eq!(document["diagnostics"][0]["place"]["line"], 67);
    assert_eq!(document["diagnostics"][0]["place"]["column"], 18);
    let document: Value = serde_json::from_slice(&lifeboat(&["--json", "check", "--plan", &good()]).stdout).unwrap();
    assert_eq!(document["valid"], true);
    assert_eq!(document["keys"][2]["held_at"], "south");
    assert_eq!(document["fences"][0]["service"], "logbook");
}

#[test]
fn a_plan_is_found_above_or_by_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let binary = env!("CARGO_BIN_EXE_lifeboat");
    let nothing = run(Command::new(binary).arg("check").current_dir(&below));
    assert_eq!(nothing.status.code(), Some(2));
    assert!(err(&nothing).contains("there is no plan"), "{}", err(&nothing));

    std::fs::copy(good(), directory.path().join("lifeboat.toml")).unwrap();
    let above = run(Command::new(binary).arg("check").current_dir(&below));
    assert_eq!(above.status.code(), Some(0), "{}", err(&above));

    let mut command = Command::new(binary);
    command.env_remove("NO_COLOR").env("LIFEBOAT_PLAN", wrong("P0101-misspelt")).arg("check").current_dir(&below);
    assert_eq!(command.output().unwrap().status.code(), Some(2));
}

#[test]
fn includes_are_read_beside_the_file_that_names_them() {
    let output = lifeboat(&["check", "--plan", &wrong("P0003-circle")]);
    assert!(err(&output).contains("error[P0003]"), "{}", err(&output));
    let output = lifeboat(&["check", "--plan", &wrong("P0002-include-missing")]);
    assert!(err(&output).contains("No such file"), "{}", err(&output));
}

#[test]
fn an_error_is_also_json_when_asked() {
    let output = lifeboat(&["--json", "check", "--plan", "/nowhere/plan.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["error"]["kind"], "usage");
    assert_eq!(document["error"]["causes"][0], "No such file or directory (os error 2)");
}

#[test]
fn a_plan_that_is_no_text_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plan.toml");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let output = lifeboat(&["check", "--plan", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("it is not UTF-8 text"), "{}", err(&output));
}

#[test]
fn codes_are_explained_in_either_case() {
    let output = lifeboat(&["explain", "p0301"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).starts_with("P0301: data without protection\n"), "{}", out(&output));
    assert!(out(&output).contains("Right:"));
    assert_eq!(lifeboat(&["explain", "P9999"]).status.code(), Some(2));
    assert!(out(&lifeboat(&["explain"])).lines().count() > 60);
}

#[test]
fn the_schema_and_completions_are_printed_whole() {
    let schema: Value = serde_json::from_slice(&lifeboat(&["schema"]).stdout).unwrap();
    assert_eq!(schema["title"], "lifeboat plan");
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&lifeboat(&["completions", shell])).contains("lifeboat"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lifeboat")).arg("explain").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn colours_come_when_asked_and_only_then() {
    let coloured =
        |when| err(&lifeboat(&["--color", when, "check", "--plan", &wrong("P0101-misspelt")])).contains('\x1b');
    assert!(coloured("always"));
    assert!(!coloured("never"));
    assert!(!coloured("auto"));
}
