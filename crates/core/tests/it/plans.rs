//! Golden plans: each wrong one (`tests/plans/wrong/CODE-….toml`) with what is said about it beside it (`.diag`), and good ones.
//!
//! `UPDATE_PLANS=1 cargo test -p lifeboat-core` writes what is said now; read the difference before you commit it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lifeboat_core::diagnostic::Severity;
use lifeboat_core::plan::{self, Parsed, SourceFile, explain};

use crate::rendered;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans").join(name)
}

pub(crate) fn plans(name: &str) -> Vec<(String, String)> {
    let mut plans: Vec<(String, String)> = std::fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    plans.sort();
    plans
}

/// Includes are read from `tests/plans/parts`.
fn read(name: &str, text: &str) -> Parsed {
    let root = SourceFile { name: format!("{name}.toml"), text: text.to_owned() };
    plan::load(root, &mut |include| {
        std::fs::read_to_string(folder("wrong").join(include)).map_err(|_| "there is no such file".to_owned())
    })
}

#[test]
fn every_wrong_plan_gets_the_diagnostics_beside_it() {
    let update = std::env::var_os("UPDATE_PLANS").is_some();
    let mut stale = Vec::new();
    for (name, text) in plans("wrong") {
        let said = rendered::diagnostics(&read(&name, &text));
        let path = folder("wrong").join(format!("{name}.diag"));
        if update {
            std::fs::write(&path, &said).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != said {
            stale.push(format!("{name}:\n{said}"));
        }
    }
    assert!(stale.is_empty(), "missing or stale (UPDATE_PLANS=1 writes them anew):\n{}", stale.join("\n"));
}

#[test]
fn every_wrong_plan_shows_the_code_in_its_name_and_no_other_error() {
    let mut wrong = Vec::new();
    for (name, text) in plans("wrong") {
        let code = name.split('-').next().unwrap();
        let parsed = read(&name, &text);
        if !parsed.diagnostics.iter().any(|found| found.code == code) {
            wrong.push(format!("{name} does not show {code}:\n{}", rendered::diagnostics(&parsed)));
        }
        assert_eq!(parsed.plan.is_some(), !parsed.has_errors(), "{name}");
        for found in &parsed.diagnostics {
            if found.code != code && found.severity == Severity::Error {
                wrong.push(format!("{name} shows more than it is named after: {}: {}", found.code, found.message));
            }
            if found.span.is_none() && name != "P0103-no-plan" {
                wrong.push(format!("{name}: {} points nowhere", found.code));
            }
            if found.help.is_none() && !matches!(found.code, "P0001" | "P0109") {
                wrong.push(format!("{name}: {} gives no help", found.code));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_is_a_wrong_plan_for_every_code() {
    let shown: BTreeSet<String> =
        plans("wrong").iter().map(|(name, _)| name.split('-').next().unwrap().to_owned()).collect();
    assert!(plans("wrong").len() >= 60);
    // P0199 is what is said of a fault in lifeboat itself.
    let missing: Vec<_> = explain::all()
        .map(|explanation| explanation.code)
        .filter(|code| *code != "P0199" && !shown.contains(*code))
        .collect();
    assert!(missing.is_empty(), "no wrong plan shows {missing:?}");
}

#[test]
fn every_diagnostic_beside_a_plan_belongs_to_a_plan() {
    for entry in std::fs::read_dir(folder("wrong")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "diag") {
            assert!(path.with_extension("toml").exists(), "{} has no plan", path.display());
        }
    }
}

#[test]
fn every_code_that_is_given_is_explained_and_every_explanation_is_given() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan");
    let mut given = BTreeSet::new();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.starts_with(source.join("explain")) {
                let text = std::fs::read_to_string(&path).unwrap();
                let codes = text.match_indices("\"P0").filter_map(|(start, _)| text.get(start + 1..start + 6));
                given.extend(codes.map(str::to_owned));
            }
        }
    }
    let explained: BTreeSet<String> = explain::all().map(|explanation| explanation.code.to_owned()).collect();
    assert_eq!(given, explained);
    assert!(explain::all().is_sorted_by_key(|explanation| explanation.code));
    for explanation in explain::all() {
        assert!(explanation.why.len() > 60, "{}: say why it matters", explanation.code);
    }
}

#[test]
fn good_plans_have_no_errors() {
    for (name, text) in plans("good") {
        let parsed = read(&name, &text);
        assert!(parsed.plan.is_some(), "{name}:\n{}", rendered::diagnostics(&parsed));
    }
}

#[test]
fn the_plan_for_two_local_sites_has_nothing_wrong_with_it() {
    let text = std::fs::read_to_string(folder("good").join("two-sites.toml")).unwrap();
    let parsed = read("two-sites", &text);
    let real: Vec<_> = parsed.diagnostics.iter().filter(|found| found.severity != Severity::Note).collect();
    assert!(real.is_empty(), "{real:#?}");
}

#[test]
fn what_this_version_does_not_act_on_is_noted() {
    let text = std::fs::read_to_string(folder("good").join("webshop.toml")).unwrap();
    let noted: Vec<String> = read("webshop", &text)
        .diagnostics
        .into_iter()
        .filter(|found| found.code == "P0901")
        .map(|found| found.message)
        .collect();
    for word in ["ssh", "HAProxy", "name server"] {
        assert!(noted.iter().any(|message| message.contains(word)), "{word}: {noted:#?}");
    }
}

#[test]
fn several_errors_are_told_at_once() {
    let parsed = read("several", "[plan]\nname = \"a b\"\n[site.x]\nreach = \"loca\"\nrot = 1\n[service.s]\nrpo = 5\n");
    let codes: BTreeSet<&str> = parsed.diagnostics.iter().map(|found| found.code).collect();
    assert_eq!(codes, BTreeSet::from(["P0101", "P0102", "P0103", "P0108", "P0112"]));
}

#[test]
fn components_come_in_start_order_and_defaults_are_filled_in() {
    let text = std::fs::read_to_string(folder("good").join("webshop.toml")).unwrap();
    let plan = read("webshop", &text).plan.unwrap();
    let shop = &plan.services["shop"];
    let names: Vec<&str> = shop.components.iter().map(|component| component.name.as_str()).collect();
    assert_eq!(names, ["db", "app", "lb"]);
    assert_eq!(shop.objective_in("region-lost").rpo.to_string(), "15m");
    assert_eq!(shop.objective_in("site-lost").rpo.to_string(), "5m");
    assert_eq!(plan.scenarios["region-lost"].per_year, Some(0.02));
}

#[test]
fn included_files_grow_together() {
    let whole = std::fs::read_to_string(folder("good").join("two-sites.toml")).unwrap();
    let (head, rest) = whole.split_once("[service.logbook]").unwrap();
    let root = format!("include = [\"parts/service.toml\"]\n{head}");
    let service = format!("[service.logbook]{rest}");
    let mut asked = Vec::new();
    let parsed = plan::load(SourceFile { name: "etc/plan.toml".to_owned(), text: root }, &mut |name| {
        asked.push(name.to_owned());
        Ok(service.clone())
    });
    assert_eq!(asked, ["etc/parts/service.toml"]);
    assert_eq!(parsed.plan, read("whole", &whole).plan);
    assert_eq!(parsed.files.len(), 2);
}
