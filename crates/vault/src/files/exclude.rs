//! What a backup leaves out: globs.
//!
//! A pattern without `/` matches a name at any depth; one with `/` matches the path from the root that is backed up
//! (`*` stays within one component, `**` does not). A trailing `/` restricts it to directories. What is excluded is
//! neither read nor descended into.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use thiserror::Error;

/// A pattern that is no glob.
#[derive(Debug, Error)]
#[error("the exclude pattern {pattern:?} is not a valid glob; correct it, or put \\ before characters meant literally")]
pub struct ExcludeError {
    pub pattern: String,
    #[source]
    source: globset::Error,
}

/// A set of patterns, ready to match.
#[derive(Debug, Clone, Default)]
pub struct Excludes {
    anything: GlobSet,
    directories: GlobSet,
}

impl Excludes {
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, ExcludeError> {
        let (mut anything, mut directories) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let wrap = |source| ExcludeError { pattern: pattern.to_owned(), source };
            let (body, only_directories) = match pattern.strip_suffix('/') {
                Some(body) => (body, true),
                None => (pattern, false),
            };
            let full = match body.strip_prefix('/') {
                Some(anchored) => anchored.to_owned(),
                None if body.contains('/') => body.to_owned(),
                None => format!("**/{body}"),
            };
            let glob = GlobBuilder::new(&full).literal_separator(true).build().map_err(wrap)?;
            if only_directories {
                directories.add(glob)
            } else {
                anything.add(glob)
            };
        }
        let wrap = |source| ExcludeError { pattern: String::new(), source };
        Ok(Excludes { anything: anything.build().map_err(wrap)?, directories: directories.build().map_err(wrap)? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.anything.is_empty() && self.directories.is_empty()
    }

    /// Whether the path, relative to the root, is left out.
    pub fn matches(&self, path: &Path, directory: bool) -> bool {
        self.anything.is_match(path) || (directory && self.directories.is_match(path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        let excludes = Excludes::new(["*.tmp", "/cache", "var/*/log", "node_modules/", "a/**/b"]).unwrap();
        let file = |path: &str| excludes.matches(Path::new(path), false);
        assert!(file("x.tmp") && file("deep/er/x.tmp") && file("cache") && file("var/1/log") && file("a/b"));
        assert!(file("a/x/y/b"));
        assert!(!file("deep/cache") && !file("var/1/2/log") && !file("node_modules") && !file("x.tmpl"));
        assert!(excludes.matches(Path::new("web/node_modules"), true));
        let error = Excludes::new(["["]).unwrap_err();
        insta::assert_snapshot!(error, @r#"the exclude pattern "[" is not a valid glob; correct it, or put \ before characters meant literally"#);
    }
}
