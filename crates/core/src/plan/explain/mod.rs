//! What every diagnostic means: why it matters, what is wrong and what is right.
//!
//! Invariant: every code that the plan's modules can give stands here, once, in order.

mod form;
mod keys;
mod names;
mod objectives;
mod places;
mod protection;
mod recovery;

use std::fmt;

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub code: &'static str,
    pub title: &'static str,
    pub why: &'static str,
    /// A piece of a plan that has the fault.
    pub wrong: &'static str,
    /// The same piece, put right.
    pub right: &'static str,
}

const fn explanation(
    code: &'static str,
    title: &'static str,
    why: &'static str,
    wrong: &'static str,
    right: &'static str,
) -> Explanation {
    Explanation { code, title, why, wrong, right }
}

/// Every explanation, in the order of the codes.
pub fn all() -> impl Iterator<Item = &'static Explanation> + Clone {
    let groups = [form::ALL, names::ALL, protection::ALL, keys::ALL, places::ALL, recovery::ALL, objectives::ALL];
    groups.into_iter().flatten()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indented = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
        writeln!(f, "{}: {}\n\n{}", self.code, self.title, wrapped(self.why))?;
        if !self.wrong.is_empty() {
            write!(f, "\nWrong:\n\n{}", indented(self.wrong))?;
        }
        if !self.right.is_empty() {
            write!(f, "\nRight:\n\n{}", indented(self.right))?;
        }
        Ok(())
    }
}

/// As wide as people read comfortably.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > 80 {
            lines.push('\n');
            width = 0;
        } else if width > 0 {
            lines.push(' ');
            width += 1;
        }
        lines.push_str(word);
        width += length;
    }
    lines
}

/// `docs/errors.md`.
pub fn document() -> String {
    let mut text = String::from(
        "# What `lifeboat check` can say\n\n\
         Made from the texts that `lifeboat explain CODE` prints. An error makes recovery impossible or unsafe as the plan is \
         written; a warning is a promise that will not be kept; a note is worth knowing.\n",
    );
    for Explanation { code, title, why, wrong, right } in all() {
        text.push_str(&format!("\n## {code}: {title}\n\n{why}\n"));
        for (word, piece) in [("Wrong", wrong), ("Right", right)] {
            if !piece.is_empty() {
                text.push_str(&format!("\n{word}:\n\n```toml\n{piece}\n```\n"));
            }
        }
    }
    text
}
