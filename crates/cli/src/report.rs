//! How diagnostics, errors and tables look.
//!
//! Invariant: source excerpts and colours are made here and nowhere else.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use lifeboat_core::diagnostic::{Diagnostic, Severity, Span};
use lifeboat_core::plan::Parsed;
use serde::Serialize;

use crate::error::CommandError;
use crate::ui::Ui;

/// Renders every diagnostic with its excerpt, a blank line after each.
pub(crate) fn diagnostics(parsed: &Parsed, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() }.decor_style(DecorStyle::Ascii);
    parsed.diagnostics.iter().map(|found| format!("{}\n\n", renderer.render(&[group(found, parsed)]))).collect()
}

fn group<'a>(found: &'a Diagnostic, parsed: &'a Parsed) -> Group<'a> {
    let level = match found.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let mut group = Group::with_title(level.primary_title(found.message.as_str()).id(found.code));
    let mut places: Vec<(&Span, AnnotationKind, &str)> =
        found.span.iter().map(|span| (span, AnnotationKind::Primary, "")).collect();
    places.extend(found.related.iter().map(|(span, label)| (span, AnnotationKind::Context, label.as_str())));
    let mut files: Vec<usize> = Vec::new();
    for (span, ..) in &places {
        if !files.contains(&span.file) {
            files.push(span.file);
        }
    }
    for file in files.into_iter().filter_map(|index| Some((index, parsed.files.get(index)?))) {
        let annotations = places.iter().filter(|(span, ..)| span.file == file.0).map(|(span, kind, label)| {
            let annotation = kind.span(span.range.clone());
            if label.is_empty() { annotation } else { annotation.label(*label) }
        });
        group =
            group.element(Snippet::source(file.1.text.as_str()).path(file.1.name.as_str()).annotations(annotations));
    }
    match &found.help {
        Some(help) => group.element(Level::HELP.message(help.as_str())),
        None => group,
    }
}

/// A diagnostic as JSON, with lines and columns beside the byte range.
#[derive(Debug, Serialize)]
pub(crate) struct Located<'a> {
    #[serde(flatten)]
    diagnostic: &'a Diagnostic,
    place: Option<Place>,
}

#[derive(Debug, Serialize)]
struct Place {
    file: String,
    /// Both count from 1; the column counts characters.
    line: usize,
    column: usize,
}

pub(crate) fn located(parsed: &Parsed) -> Vec<Located<'_>> {
    parsed
        .diagnostics
        .iter()
        .map(|diagnostic| Located { diagnostic, place: diagnostic.span.as_ref().and_then(|span| place(span, parsed)) })
        .collect()
}

fn place(span: &Span, parsed: &Parsed) -> Option<Place> {
    let file = parsed.files.get(span.file)?;
    let before = file.text.get(..span.range.start)?;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Some(Place {
        file: file.name.clone(),
        line: before.matches('\n').count() + 1,
        column: before.get(line_start..)?.chars().count() + 1,
    })
}

#[derive(Serialize)]
pub(crate) struct ErrorDocument<'a> {
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    kind: &'static str,
    exit: u8,
    message: &'a str,
    causes: &'a [String],
    hints: &'a [String],
}

/// Says on stderr how a command failed; with `--json` also as the last line on stdout.
pub(crate) fn error(error: &CommandError, ui: &Ui) {
    let (red, cyan, off) = if ui.colour_on_stderr() { ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m") } else { ("", "", "") };
    ui.write_stderr(format_args!("{red}error{off}: {}\n", error.message));
    for cause in &error.causes {
        ui.write_stderr(format_args!("  because: {cause}\n"));
    }
    for hint in &error.hints {
        ui.write_stderr(format_args!("{cyan}help{off}: {hint}\n"));
    }
    // An error that cannot be written as JSON has been said in words already.
    let _ = ui.event(&document(error));
}

/// A failure for programs.
pub(crate) fn document(error: &CommandError) -> ErrorDocument<'_> {
    ErrorDocument {
        error: ErrorBody {
            kind: error.kind.word(),
            exit: error.kind.code(),
            message: &error.message,
            causes: &error.causes,
            hints: &error.hints,
        },
    }
}

/// `1 file`, `2 files`.
pub(crate) fn counted(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// `12`, `1.23 MB`; not a time, and not a name that happens to begin with a digit.
fn is_number(cell: &str) -> bool {
    let number = cell.split(' ').next().unwrap_or_default();
    number.chars().all(|character| character.is_ascii_digit() || character == '.')
}

/// A table for people: columns as wide as their widest cell, two spaces between, numbers to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let wide = |text: &str| text.chars().count();
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column)).map(String::as_str);
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(column, title)| cells(column).map(wide).chain([wide(title)]).max().unwrap_or(0))
        .collect();
    let to_the_right: Vec<bool> = (0..header.len()).map(|column| cells(column).all(is_number)).collect();
    let line = |row: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), right) in row.zip(&widths).zip(&to_the_right) {
            let space = " ".repeat(width.saturating_sub(wide(cell)));
            let (before, after) = if *right { (space.as_str(), "") } else { ("", space.as_str()) };
            text.push_str(before);
            text.push_str(cell);
            text.push_str(after);
            text.push_str("  ");
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A length of time as people say it.
pub(crate) fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..100 => format!("{:.1} s", seconds.max(0.0)),
        100..7200 => format!("{} min {} s", whole / 60, whole % 60),
        7200..172_800 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// An objective, as a plan writes it.
pub(crate) fn objective(seconds: f64) -> String {
    std::time::Duration::try_from_secs_f64(seconds)
        .map_or_else(|_| self::seconds(seconds), |span| lifeboat_core::units::Span(span).to_string())
}
