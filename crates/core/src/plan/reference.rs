//! The grammar as a reference for people, in Markdown.
//!
//! Invariant: every key of the language stands in it, once.

use std::fmt::Write;

use super::grammar::{Choice, PLAN, Table, Type};

/// `docs/plan-reference.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Reference of the plan language\n\n\
         Made from the grammar that the parser itself uses; [plan.md](plan.md) explains how it all fits together.\n\
         *Required* keys have to be there; what another key has when it is left out stands behind it.\n",
    );
    section(&mut text, "", &PLAN);
    text
}

/// One table, then those in it. Writing to a `String` cannot fail.
fn section(text: &mut String, path: &str, table: &Table) {
    let title = if path.is_empty() { "Top level".to_owned() } else { format!("`[{path}]`") };
    let _ = write!(text, "\n## {title}\n\n");
    if !table.doc.is_empty() {
        let _ = write!(text, "{}\n\n", table.doc);
    }
    text.push_str("| key | type | meaning |\n|---|---|---|\n");
    for key in table.keys {
        let more = match (key.required, key.default) {
            (true, _) => " *Required.*".to_owned(),
            (false, Some(default)) => format!(" Default: `{default}`."),
            (false, None) => String::new(),
        };
        let _ = writeln!(text, "| `{}` | {} | {}{more}{} |", key.name, title_of(&key.is), key.doc, words(&key.is));
    }
    for choice in table.choices {
        let _ = write!(text, "\n{}\n", sentence(choice));
    }
    for key in table.keys {
        if let Some((path, inner)) = inner(path, key.name, &key.is) {
            section(text, &path, inner);
        }
    }
}

fn inner(path: &str, name: &str, is: &Type) -> Option<(String, &'static Table)> {
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match is {
        Type::Table(table) => Some((path, table)),
        Type::Named { of: Type::Table(table), .. } => Some((format!("{path}.NAME"), table)),
        Type::List { of: Type::Table(table), .. } | Type::OneOrMany(Type::Table(table)) => Some((path, table)),
        _ => None,
    }
}

fn title_of(is: &Type) -> String {
    match is {
        Type::Text(kind) => kind.title().to_owned(),
        Type::Word(_) => "word".to_owned(),
        Type::Bool => "true or false".to_owned(),
        Type::Count { min, max } => format!("whole number, {min} to {max}"),
        Type::Number => "number".to_owned(),
        Type::List { of, .. } => format!("list of {}", title_of(of)),
        Type::OneOrMany(of) => format!("{}, or a list", title_of(of)),
        Type::Secret => "secret".to_owned(),
        Type::Value => "text or secret".to_owned(),
        Type::Table(_) => "table".to_owned(),
        Type::Named { what, of, .. } => format!("table: {what} to {}", title_of(of)),
    }
}

fn words(is: &Type) -> String {
    let Type::Word(words) = is else { return String::new() };
    let meanings: Vec<String> = words.iter().map(|(word, meaning)| format!("`\"{word}\"`: {meaning}")).collect();
    format!(" {}.", meanings.join("; "))
}

fn sentence(choice: &Choice) -> String {
    let keys = choice.of.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let count = if choice.may_be_none { "At most" } else { "Exactly" };
    format!("{count} one of {keys}.")
}
