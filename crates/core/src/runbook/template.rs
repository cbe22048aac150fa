//! `{{ name }}` in a plan's text: filled in when a run-book is compiled.
//!
//! Invariant: a name that nobody knows is an error, never an empty string.

/// A name in a template that stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("`{{{{ {name} }}}}` stands for nothing here; known are: {known}")]
    Unknown { name: String, known: String },
    #[error("`{{{{` is never closed in `{text}`; write `}}}}` after the name")]
    Unclosed { text: String },
}

/// Fills in every `{{ name }}` of `text`. `canary.value` is left for the moment of use.
pub fn fill(text: &str, values: &[(String, String)]) -> Result<String, TemplateError> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        filled.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner.find("}}").ok_or_else(|| TemplateError::Unclosed { text: text.to_owned() })?;
        let name = inner[..end].trim();
        if name == "canary.value" {
            filled.push_str(&rest[start..start + 2 + end + 2]);
        } else {
            let (_, value) = values.iter().find(|(known, _)| known == name).ok_or_else(|| TemplateError::Unknown {
                name: name.to_owned(),
                known: values.iter().map(|(known, _)| known.as_str()).collect::<Vec<_>>().join(", "),
            })?;
            filled.push_str(value);
        }
        rest = &inner[end + 2..];
    }
    filled.push_str(rest);
    Ok(filled)
}
