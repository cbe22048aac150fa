//! What every diagnostic means: why it matters, what is wrong and what is right.
//!
//! Invariant: every code that the plan's modules can give stands here, once, in order.

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

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indented = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
        writeln!(f, "{}: {}\n\n{}", self.code, self.title, self.why)?;
        if !self.wrong.is_empty() {
            write!(f, "\nWrong:\n\n{}", indented(self.wrong))?;
        }
        if !self.right.is_empty() {
            write!(f, "\nRight:\n\n{}", indented(self.right))?;
        }
        Ok(())
    }
}

pub const ALL: &[Explanation] = &[];
