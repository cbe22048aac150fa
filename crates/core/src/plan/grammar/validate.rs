//! Holds a tree against the grammar: unknown keys, wrong types, missing keys, texts that are not what they should be.
//!
//! Invariant: one fault gives one diagnostic, and the rest of the tree is still looked at.

use super::{Choice, PLAN, Table, Type, tables};
use crate::diagnostic::{Diagnostic, Severity, Span};
use crate::plan::syntax::{self, Entry, Node, Value};
use crate::plan::text;

pub(in crate::plan) fn validate(tree: &syntax::Table) -> Vec<Diagnostic> {
    let mut validator = Validator { found: Vec::new() };
    validator.table(&PLAN, tree, None, "");
    validator.found
}

struct Validator {
    found: Vec<Diagnostic>,
}

impl Validator {
    fn error(&mut self, code: &'static str, span: Option<Span>, message: String, help: Option<String>) {
        self.found.push(Diagnostic { code, severity: Severity::Error, message, span, help, related: Vec::new() });
    }

    /// `place` is where the table itself stands, `path` how a plan writes it.
    fn table(&mut self, rule: &Table, table: &syntax::Table, place: Option<&Span>, path: &str) {
        for (name, entry) in table.in_order() {
            let path = join(path, name);
            match rule.key(name) {
                Some(key) => self.value(&key.is, &entry.node, &entry.place(), &path),
                None => self.unknown(rule, name, entry),
            }
        }
        for key in rule.keys.iter().filter(|key| key.required && table.get(key.name).is_none()) {
            let help = format!("add `{}`: {}", key.name, lower_first(key.doc));
            self.error("P0103", place.cloned(), format!("{} needs `{}`", subject(rule, path), key.name), Some(help));
        }
        for choice in rule.choices {
            self.choice(rule, choice, table, place, path);
        }
    }

    fn unknown(&mut self, rule: &Table, name: &str, entry: &Entry) {
        let known = rule.keys.iter().map(|key| key.name);
        let help = match closest(name, known.clone()) {
            Some(close) => format!("did you mean `{close}`?"),
            None => format!("it knows {}", list(known)),
        };
        self.error("P0101", Some(entry.key.clone()), format!("{} has no key `{name}`", rule.what), Some(help));
    }

    fn choice(&mut self, rule: &Table, choice: &Choice, table: &syntax::Table, place: Option<&Span>, path: &str) {
        let there: Vec<&str> = choice.of.iter().copied().filter(|key| table.get(key).is_some()).collect();
        match there.as_slice() {
            [] if !choice.may_be_none => {
                let message = format!("{} needs one of {}", subject(rule, path), list(choice.of.iter().copied()));
                self.error("P0110", place.cloned(), message, Some("add exactly one of them".to_owned()));
            }
            [first, second, ..] => {
                let Some(entry) = table.get(second) else { return };
                let message = format!("{} cannot have both `{first}` and `{second}`", subject(rule, path));
                self.error(
                    "P0110",
                    Some(entry.key.clone()),
                    message,
                    Some(format!("leave one of them: `{first}` or `{second}`")),
                );
                if let (Some(last), Some(other)) = (self.found.last_mut(), table.get(first)) {
                    last.related.push((other.key.clone(), "the other one".to_owned()));
                }
            }
            _ => {}
        }
    }

    fn value(&mut self, is: &Type, node: &Node, place: &Span, path: &str) {
        match (is, &node.value) {
            (Type::Text(kind), Value::Text(text)) => self.text(*kind, text, &node.span),
            (Type::Word(words), Value::Text(text)) => self.word(words, text, &node.span),
            (Type::Bool, Value::Bool(_)) => {}
            (Type::Count { min, max }, Value::Integer(number)) if (*min..=*max).contains(number) => {}
            (Type::Count { min, max }, Value::Integer(number)) => {
                let message = format!("{number} is out of range");
                self.error("P0109", Some(node.span.clone()), message, Some(format!("it goes from {min} to {max}")));
            }
            (Type::Number, Value::Integer(number)) if *number >= 0 => {}
            (Type::Number, Value::Float(number)) if *number >= 0.0 && number.is_finite() => {}
            (Type::Number, Value::Integer(_) | Value::Float(_)) => {
                self.error(
                    "P0109",
                    Some(node.span.clone()),
                    "this number cannot be negative or infinite".to_owned(),
                    None,
                );
            }
            (Type::List { of, may_be_empty }, Value::List(items)) => self.list(of, *may_be_empty, items, node, path),
            (Type::OneOrMany(of), Value::List(items)) => self.list(of, false, items, node, path),
            (Type::OneOrMany(of), _) => self.value(of, node, place, path),
            (Type::Secret, Value::Table(table)) | (Type::Value, Value::Table(table)) => {
                self.table(&tables::SECRET, table, Some(place), path);
            }
            (Type::Secret, Value::Text(_)) => {
                let help = "say where it is had from: { env = \"…\" }, { file = \"…\" } or { command = [ … ] }";
                self.error(
                    "P0113",
                    Some(node.span.clone()),
                    "a secret stands in the plan".to_owned(),
                    Some(help.to_owned()),
                );
            }
            (Type::Value, Value::Text(text)) if text.is_empty() => {}
            (Type::Value, Value::Text(text)) => self.text(text::Kind::Template, text, &node.span),
            (Type::Table(rule), Value::Table(table)) => self.table(rule, table, Some(place), path),
            (Type::Named { of, names, .. }, Value::Table(table)) => self.named(of, *names, table, path),
            (
                _,
                Value::Datetime(_)
                | Value::Text(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Bool(_)
                | Value::List(_)
                | Value::Table(_),
            ) => {
                let message = format!("`{path}` must be {}, and this is {}", wanted(is), node.value.kind());
                self.error("P0102", Some(place.clone()), message, hint(is, &node.value));
            }
        }
    }

    fn list(&mut self, of: &Type, may_be_empty: bool, items: &[Node], node: &Node, path: &str) {
        if items.is_empty() && !may_be_empty {
            self.error(
                "P0111",
                Some(node.span.clone()),
                format!("`{path}` is an empty list"),
                Some("it needs at least one".to_owned()),
            );
        }
        for item in items {
            self.value(of, item, &item.span, path);
        }
    }

    fn named(&mut self, of: &Type, names: bool, table: &syntax::Table, path: &str) {
        for (name, entry) in table.in_order() {
            if let Err(text::Wrong { code, message, help }) = text::name(name)
                && names
            {
                self.error(code, Some(entry.key.clone()), message, Some(help));
            } else if name.is_empty() || name.contains(['=', '\0']) {
                self.error(
                    "P0112",
                    Some(entry.key.clone()),
                    "this cannot be a variable's name".to_owned(),
                    Some("it is not empty and holds no `=`".to_owned()),
                );
            }
            self.value(of, &entry.node, &entry.place(), &join(path, name));
        }
    }

    fn text(&mut self, kind: text::Kind, text: &str, span: &Span) {
        if let Err(text::Wrong { code, message, help }) = kind.check(text) {
            self.error(code, Some(span.clone()), message, Some(help));
        }
    }

    fn word(&mut self, words: &[(&'static str, &str)], text: &str, span: &Span) {
        let known = words.iter().map(|(word, _)| *word);
        if known.clone().any(|word| word == text) {
            return;
        }
        let help = match closest(text, known.clone()) {
            Some(close) => format!("did you mean \"{close}\"?"),
            None => format!("it is one of {}", list(known.clone())),
        };
        self.error("P0108", Some(span.clone()), format!("`{text}` is not one of {}", list(known)), Some(help));
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// "a site" for a table that has a name of its own is better said with it.
fn subject(rule: &Table, path: &str) -> String {
    if path.is_empty() { rule.what.to_owned() } else { format!("`{path}`") }
}

fn wanted(is: &Type) -> String {
    match is {
        Type::Text(kind) => match kind.title() {
            title if title.starts_with(['a', 'e', 'i', 'o', 'H', 'I']) => format!("text (an {title})"),
            "text" | "text, templates allowed" => "text".to_owned(),
            title => format!("text (a {title})"),
        },
        Type::Word(words) => format!("one of {}", list(words.iter().map(|(word, _)| *word))),
        Type::Bool => "true or false".to_owned(),
        Type::Count { .. } => "a whole number".to_owned(),
        Type::Number => "a number".to_owned(),
        Type::List { .. } => "a list".to_owned(),
        Type::OneOrMany(of) => format!("{} or a list of them", wanted(of)),
        Type::Secret => "a table that says where the secret is".to_owned(),
        Type::Value => "text or a secret".to_owned(),
        Type::Table(_) | Type::Named { .. } => "a table".to_owned(),
    }
}

fn hint(is: &Type, value: &Value) -> Option<String> {
    Some(match (is, value) {
        (Type::Text(text::Kind::Duration), Value::Integer(number)) => {
            format!("write it with its unit: \"{number}s\", \"{number}m\" or \"{number}h\"")
        }
        (Type::Text(_) | Type::Word(_), Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::Datetime(_)) => {
            "put it in quotes".to_owned()
        }
        (Type::List { .. }, Value::Text(text)) => format!("write it as a list: [\"{text}\"]"),
        (Type::List { .. }, Value::Table(_)) => "write it as a list: [ { … } ]".to_owned(),
        (Type::Count { .. } | Type::Number, Value::Text(_)) => "write it without quotes".to_owned(),
        (Type::Bool, Value::Text(_)) => "write true or false, without quotes".to_owned(),
        (Type::Table(rule), _) => format!("it knows {}", list(rule.keys.iter().map(|key| key.name))),
        (Type::Named { what, .. }, _) => format!("it is a table with one entry for each {what}"),
        _ => return None,
    })
}

/// The known word that was probably meant.
pub(in crate::plan) fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('_', "-");
    let word = plain(word);
    known
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().min(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "`a`, `b` and `c`".
pub(in crate::plan) fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
    match words.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let second_is_upper = text.chars().nth(1).is_some_and(char::is_uppercase);
    match chars.next() {
        Some(first) if !second_is_upper => format!("{}{}", first.to_lowercase(), chars.as_str().trim_end_matches('.')),
        _ => text.trim_end_matches('.').to_owned(),
    }
}
