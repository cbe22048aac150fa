//! TOML with its places: reads the plan's files, follows `include`, and merges them into one tree.
//!
//! Invariant: every node knows the file and bytes that it came from; text that is no TOML still gives a tree of what could be read.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::SourceFile;
use crate::diagnostic::{Diagnostic, Severity, Span};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// Too large for 64 bits is kept as a float.
    Integer(i64),
    Float(f64),
    Bool(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(Table),
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "text",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Datetime(_) => "a date",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Table {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Span,
    pub(super) node: Node,
}

impl Entry {
    /// Where to point for this entry: a table by its name, anything else by its value.
    pub(super) fn place(&self) -> Span {
        match self.node.value {
            Value::Table(_) => self.key.clone(),
            _ => self.node.span.clone(),
        }
    }
}

impl Table {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// In the order of the text.
    pub(super) fn in_order(&self) -> Vec<(&str, &Entry)> {
        let mut entries: Vec<(&str, &Entry)> = self.entries.iter().map(|(key, entry)| (key.as_str(), entry)).collect();
        entries.sort_by_key(|(_, entry)| (entry.key.file, entry.key.range.start));
        entries
    }

    /// The entry that a path of keys and list positions (`"0"`) leads to.
    pub(super) fn find(&self, path: &[&str]) -> Option<Found<'_>> {
        let (first, rest) = path.split_first()?;
        let entry = self.get(first)?;
        descend(Found { key: Some(&entry.key), node: &entry.node }, rest)
    }
}

/// A node, and its key where it has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) key: Option<&'a Span>,
    pub(super) node: &'a Node,
}

impl Found<'_> {
    pub(super) fn place(&self) -> Span {
        match (&self.node.value, self.key) {
            (Value::Table(_), Some(key)) => key.clone(),
            _ => self.node.span.clone(),
        }
    }
}

fn descend<'a>(found: Found<'a>, path: &[&str]) -> Option<Found<'a>> {
    let Some((first, rest)) = path.split_first() else { return Some(found) };
    let next = match &found.node.value {
        Value::Table(table) => table.get(first).map(|entry| Found { key: Some(&entry.key), node: &entry.node })?,
        Value::List(nodes) => Found { key: None, node: nodes.get(first.parse::<usize>().ok()?)? },
        _ => return None,
    };
    descend(next, rest)
}

/// All files, merged.
pub(super) struct Read {
    pub(super) tree: Table,
    pub(super) files: Vec<SourceFile>,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) hash: String,
}

/// More would be a mistake, or an attack.
const FILES_MAX: usize = 100;

pub(super) fn read(root: SourceFile, loader: &mut dyn FnMut(&str) -> Result<String, String>) -> Read {
    let mut reader = Reader { loader, files: Vec::new(), open: Vec::new(), diagnostics: Vec::new() };
    let tree = reader.file(root);
    let mut hash = blake3::Hasher::new();
    for file in &reader.files {
        // The first file's own path says nothing about the plan; the others' do, relative to it.
        hash.update(&(file.text.len() as u64).to_le_bytes()).update(file.text.as_bytes());
    }
    Read { tree, files: reader.files, diagnostics: reader.diagnostics, hash: hash.finalize().to_hex().to_string() }
}

struct Reader<'a> {
    loader: &'a mut dyn FnMut(&str) -> Result<String, String>,
    files: Vec<SourceFile>,
    /// Names of the files that are being read right now, outermost first.
    open: Vec<String>,
    diagnostics: Vec<Diagnostic>,
}

impl Reader<'_> {
    /// Reads one file and what it includes; what the file says itself comes first.
    fn file(&mut self, source: SourceFile) -> Table {
        let file = self.files.len();
        let name = source.name.clone();
        let mut tree = self.parse(file, &source.text);
        self.files.push(source);
        self.open.push(name.clone());
        for (included, span) in self.includes(&mut tree) {
            if let Some(other) = self.include(&name, &included, span) {
                self.merge(&mut tree, other);
            }
        }
        self.open.pop();
        tree
    }

    fn parse(&mut self, file: usize, text: &str) -> Table {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.diagnostics.push(Diagnostic {
                code: "P0001",
                severity: Severity::Error,
                message: format!("this is not TOML: {}", error.message().trim_end_matches('.')),
                span: Some(Span { file, range: within(text, error.span().unwrap_or(0..0)) }),
                help: None,
                related: Vec::new(),
            });
        }
        convert_table(file, text, table.get_ref())
    }

    /// Takes `include` out of a file's tree. What is malformed in it is told by the grammar, so it is left there.
    fn includes(&mut self, tree: &mut Table) -> Vec<(String, Span)> {
        let Some(Entry { node: Node { value: Value::List(items), .. }, .. }) = tree.get("include") else {
            return Vec::new();
        };
        let texts: Option<Vec<(String, Span)>> = items
            .iter()
            .map(|item| match &item.value {
                Value::Text(text) => Some((text.clone(), item.span.clone())),
                _ => None,
            })
            .collect();
        match texts {
            Some(texts) => {
                tree.entries.remove("include");
                texts
            }
            None => Vec::new(),
        }
    }

    fn include(&mut self, from: &str, path: &str, span: Span) -> Option<Table> {
        let name = beside(from, path);
        if self.open.contains(&name) {
            let way = self.open.iter().skip_while(|open| **open != name).cloned().chain([name.clone()]);
            let message = format!("`{path}` includes itself: {}", way.collect::<Vec<_>>().join(" → "));
            self.error("P0003", message, span, "take one of these includes out");
            return None;
        }
        if self.files.iter().any(|file| file.name == name) {
            let message = format!("`{path}` is included twice");
            self.error("P0003", message, span, "include it once; what it says counts for the whole plan");
            return None;
        }
        if self.files.len() >= FILES_MAX {
            let message = format!("the plan has more than {FILES_MAX} files");
            self.error("P0002", message, span, "join some of them");
            return None;
        }
        match (self.loader)(&name) {
            Ok(text) => Some(self.file(SourceFile { name, text })),
            Err(why) => {
                let message = format!("`{name}` cannot be included: {why}");
                self.error("P0002", message, span, "the path counts from the directory of the file that includes it");
                None
            }
        }
    }

    /// Tables grow together; anything else may stand in one file only.
    fn merge(&mut self, tree: &mut Table, other: Table) {
        for (key, entry) in other.entries {
            let Some(existing) = tree.entries.get_mut(&key) else {
                tree.entries.insert(key, entry);
                continue;
            };
            match (&mut existing.node.value, entry.node.value) {
                (Value::Table(table), Value::Table(more)) => self.merge(table, more),
                _ => self.diagnostics.push(Diagnostic {
                    code: "P0004",
                    severity: Severity::Error,
                    message: format!("`{key}` is set in two files"),
                    span: Some(entry.key),
                    help: Some("leave it in one of them".to_owned()),
                    related: vec![(existing.key.clone(), "set here, too".to_owned())],
                }),
            }
        }
    }

    fn error(&mut self, code: &'static str, message: String, span: Span, help: &str) {
        let help = Some(help.to_owned());
        self.diagnostics.push(Diagnostic {
            code,
            severity: Severity::Error,
            message,
            span: Some(span),
            help,
            related: Vec::new(),
        });
    }
}

/// The path as seen from where `from` is seen, with `.` and `..` taken out where they can be.
fn beside(from: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = match from.rsplit_once('/') {
        Some((directory, _)) => directory.split('/').collect(),
        None => Vec::new(),
    };
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." if parts.last().is_some_and(|last| !matches!(*last, ".." | "" | ".")) => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn convert_table(file: usize, text: &str, table: &DeTable<'_>) -> Table {
    let entry = |(key, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        let key_span = Span { file, range: within(text, key.span()) };
        (key.get_ref().to_string(), Entry { key: key_span, node: convert(file, text, value) })
    };
    Table { entries: table.iter().map(entry).collect() }
}

fn convert(file: usize, text: &str, node: &Spanned<DeValue<'_>>) -> Node {
    let value = match node.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Float(number.as_str().parse().unwrap_or(f64::INFINITY)),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(value) => Value::Datetime(value.to_string()),
        DeValue::Array(items) => Value::List(items.iter().map(|item| convert(file, text, item)).collect()),
        DeValue::Table(table) => Value::Table(convert_table(file, text, table)),
    };
    Node { span: Span { file, range: within(text, node.span()) }, value }
}

/// A byte range that can be shown: inside the text, at character boundaries, not backwards.
fn within(text: &str, range: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(range.start);
    start..floor(range.end).max(start)
}
