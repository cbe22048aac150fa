//! Diagnostics as the binary shows them, without colours.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use lifeboat_core::diagnostic::{Diagnostic, Severity};
use lifeboat_core::plan::Parsed;

pub(crate) fn diagnostics(parsed: &Parsed) -> String {
    let renderer = Renderer::plain().decor_style(DecorStyle::Ascii);
    parsed.diagnostics.iter().map(|found| format!("{}\n\n", renderer.render(&[group(found, parsed)]))).collect()
}

fn group<'a>(found: &'a Diagnostic, parsed: &'a Parsed) -> Group<'a> {
    let level = match found.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let mut group = Group::with_title(level.primary_title(found.message.as_str()).id(found.code));
    let places = found.span.iter().map(|span| (span, AnnotationKind::Primary, ""));
    let places: Vec<_> = places
        .chain(found.related.iter().map(|(span, label)| (span, AnnotationKind::Context, label.as_str())))
        .collect();
    for (index, file) in parsed.files.iter().enumerate() {
        let here: Vec<_> = places.iter().filter(|(span, ..)| span.file == index).collect();
        if !here.is_empty() {
            let annotations = here.iter().map(|(span, kind, label)| kind.span(span.range.clone()).label(*label));
            group =
                group.element(Snippet::source(file.text.as_str()).path(file.name.as_str()).annotations(annotations));
        }
    }
    match &found.help {
        Some(help) => group.element(Level::HELP.message(help.as_str())),
        None => group,
    }
}
