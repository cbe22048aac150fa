//! Documents made from the language itself, and the JSON Schema held against plans.
//!
//! `UPDATE_PLANS=1 cargo test -p lifeboat-core` writes them anew.

use std::path::Path;

use lifeboat_core::plan::{self, explain, grammar};
use serde_json::Value;

use crate::plans::plans;

fn is_current(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    if std::env::var_os("UPDATE_PLANS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/{name} is not what the program says: UPDATE_PLANS=1 cargo test -p lifeboat-core");
}

#[test]
fn the_shipped_schema_is_current() {
    is_current("plan.schema.json", &format!("{}\n", serde_json::to_string_pretty(&grammar::json_schema()).unwrap()));
}

#[test]
fn the_reference_is_current() {
    is_current("plan-reference.md", &plan::reference());
}

#[test]
fn the_explained_errors_are_current() {
    is_current("errors.md", &explain::document());
}

/// A plan as the JSON that an editor sees.
fn json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

#[test]
fn the_schema_accepts_good_plans() {
    let schema = jsonschema::validator_for(&grammar::json_schema()).unwrap();
    for (name, text) in plans("good") {
        let wrong: Vec<String> =
            schema.iter_errors(&json(&text)).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
    }
}

#[test]
fn the_schema_accepts_every_plan_that_the_grammar_accepts() {
    let schema = jsonschema::validator_for(&grammar::json_schema()).unwrap();
    // What is found among well-formed plans; a private key as a recipient is not well-formed.
    let well_formed = |name: &str| name >= "P0200" && name != "P0403-in-recipients";
    let mut refused = plans("wrong");
    refused.retain(|(name, text)| well_formed(name) && !schema.is_valid(&json(text)));
    assert!(refused.is_empty(), "{:?}", refused.iter().map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn the_schema_refuses_malformed_plans() {
    let mut passing = Vec::new();
    let schema = jsonschema::validator_for(&grammar::json_schema()).unwrap();
    for code in
        ["P0101", "P0102", "P0104", "P0105", "P0108", "P0109", "P0110", "P0112", "P0113", "P0114", "P0116", "P0119"]
    {
        let of_code: Vec<_> = plans("wrong").into_iter().filter(|(name, _)| name.starts_with(code)).collect();
        assert!(!of_code.is_empty(), "{code}");
        for (name, text) in of_code {
            if schema.is_valid(&json(&text)) {
                passing.push(name);
            }
        }
    }
    assert!(passing.is_empty(), "{passing:?}");
}

/// Recipients are shortened in print.
fn with_whole_recipients(text: &str) -> String {
    let whole = |text: String, (name, mark): (&str, &str)| {
        text.replace(&format!("age1…{name}"), &format!("age1{}", mark.repeat(58)))
    };
    [("office", "q"), ("paper", "p"), ("south", "s"), ("north", "n")].into_iter().fold(text.to_owned(), whole)
}

#[test]
fn the_plan_in_the_guide_has_nothing_wrong_with_it() {
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plan.md")).unwrap();
    let (_, rest) = guide.split_once("```toml\n").unwrap();
    let text = with_whole_recipients(rest.split_once("```").unwrap().0);
    let parsed = plan::parse(&[("plan.md", &text)]);
    assert!(parsed.plan.is_some() && parsed.diagnostics.is_empty(), "{}", crate::rendered::diagnostics(&parsed));
}
