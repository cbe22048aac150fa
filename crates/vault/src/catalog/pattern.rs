//! What is looked for: a part of a name, a name with wildcards, or a path.
//!
//! * text without wildcards is looked for anywhere in a name; with a slash, in the path up to somewhere in the last name
//! * with `*`, `?`, `[…]` or `{…}` the whole name must fit; with a slash, the end of the path from a name's beginning on (`*` stays within
//!   a name, `**` does not), or the whole path where the pattern begins with a slash
//! * `exact`: the whole name, or the end of the path from a name's beginning on
//!
//! Invariant: what the fast look through the names lets pass is only a candidate; `accepts` decides.

use globset::{GlobBuilder, GlobMatcher};
use regex::bytes::{Regex, RegexBuilder};
use thiserror::Error;

/// A pattern that means nothing.
#[derive(Debug, Error)]
pub enum PatternError {
    #[error("an empty pattern finds nothing; name a part of a name, or `*` for everything")]
    Empty,
    #[error("`{text}` is no pattern: {why}; put a wildcard that is meant as itself into brackets, as in `[*]`")]
    Glob { text: String, why: String },
}

/// How the last name of a path is searched for in blocks of names.
#[derive(Debug, Clone)]
enum Last {
    /// Every name is a candidate.
    Any,
    /// Names around a hit of this are candidates.
    Around(Regex),
}

#[derive(Debug, Clone)]
enum Whole {
    /// The name alone decides.
    Name(Regex),
    Glob(GlobMatcher),
    /// The full path (that begins with a slash) has a hit that reaches into its last name.
    Path(Regex),
}

/// A pattern, ready to be looked for.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    last: Last,
    whole: Whole,
    /// Where the directory of what fits must be: found first, there are fewer of them than names.
    above: Option<Above>,
    /// A slash at the end: directories only.
    directories: bool,
}

/// A directory whose path fits one of these, and whose own name fits, may hold what is looked for.
#[derive(Debug, Clone)]
struct Above {
    paths: Vec<GlobMatcher>,
    name: Option<Regex>,
}

impl Above {
    /// The directory part of a spelled glob, if it has one that says anything.
    fn of(
        spelled: &str,
        regex: &dyn Fn(&str) -> Result<Regex, PatternError>,
        glob: &dyn Fn(&str) -> Result<GlobMatcher, PatternError>,
    ) -> Result<Option<Above>, PatternError> {
        // A brace may hold slashes: then the parts are no patterns of their own.
        let Some((above, last)) = spelled.rsplit_once('/').filter(|_| !spelled.contains('{')) else { return Ok(None) };
        if above.is_empty() || above == "**" || (last != "**" && last.contains("**")) {
            return Ok(None);
        }
        if last == "**" {
            let paths =
                [above.to_owned(), format!("{above}/**")].iter().map(|path| glob(path)).collect::<Result<_, _>>()?;
            return Ok(Some(Above { paths, name: None }));
        }
        // `**` stands for no directory as well.
        let shorter = above.strip_suffix("/**").filter(|shorter| !shorter.is_empty());
        let paths = [Some(above), shorter].into_iter().flatten().map(glob).collect::<Result<_, _>>()?;
        let name = above.rsplit('/').next().unwrap_or_default();
        let name = match name.contains("**") {
            true => None,
            false => Some(regex(&in_lines(glob(name)?.glob().regex()))?),
        };
        Ok(Some(Above { paths, name }))
    }
}

fn is_wild(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

impl Pattern {
    pub fn new(text: &str, ignore_case: bool, exact: bool) -> Result<Pattern, PatternError> {
        let directories = text.len() > 1 && text.ends_with('/');
        let wanted = if directories { text.trim_end_matches('/') } else { text };
        if wanted.is_empty() {
            return Err(PatternError::Empty);
        }
        let regex = |source: &str| {
            let built = RegexBuilder::new(source).case_insensitive(ignore_case).unicode(ignore_case).build();
            built.map_err(|error| PatternError::Glob { text: text.to_owned(), why: error.to_string() })
        };
        let glob = |source: &str| {
            let built = GlobBuilder::new(source).literal_separator(true).case_insensitive(ignore_case).build();
            let built = built.map_err(|e| PatternError::Glob { text: text.to_owned(), why: e.kind().to_string() });
            built.map(|glob| glob.compile_matcher())
        };
        let mut above = None;
        let name = wanted.rsplit('/').next().unwrap_or_default();
        let (last, whole) = match (wanted.contains('/'), is_wild(wanted) && !exact) {
            (false, false) if exact => (around(&regex, name)?, Whole::Name(regex(&anchored(name))?)),
            (false, false) => (around(&regex, name)?, Whole::Name(regex(&regex::escape(name))?)),
            (true, false) => {
                let start = if exact && !wanted.starts_with('/') { "/" } else { "" };
                let end = if exact { "$" } else { "[^/]*$" };
                let source = format!("(?s){start}{}{end}", regex::escape(wanted));
                (around(&regex, name)?, Whole::Path(regex(&source)?))
            }
            (slash, true) => {
                let spelled = match slash && !wanted.starts_with('/') && !wanted.starts_with("**/") {
                    true => format!("**/{wanted}"),
                    false => wanted.to_owned(),
                };
                let whole = glob(&spelled)?;
                if slash {
                    above = Above::of(&spelled, &regex, &glob)?;
                }
                let literal = longest_literal(name);
                let last = if literal.is_empty() { Last::Any } else { around(&regex, &literal)? };
                (last, Whole::Glob(whole))
            }
        };
        let whole = match whole {
            // Within a name a glob is compared with the name.
            Whole::Glob(glob) if !wanted.contains('/') => Whole::Name(regex(&in_lines(glob.glob().regex()))?),
            other => other,
        };
        Ok(Pattern { text: text.to_owned(), last, whole, above, directories })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn directories_only(&self) -> bool {
        self.directories
    }

    /// What to search for in a block of names; `None` where every name is a candidate.
    pub(super) fn needle(&self) -> Option<&Regex> {
        match &self.last {
            Last::Any => None,
            Last::Around(regex) => Some(regex),
        }
    }

    /// Whether it says where the directory must be.
    pub(super) fn has_above(&self) -> bool {
        self.above.is_some()
    }

    /// Whether a directory's own name is worth a look at its path.
    pub(super) fn may_be_above(&self, name: &[u8]) -> bool {
        self.above.as_ref().and_then(|above| above.name.as_ref()).is_none_or(|regex| regex.is_match(name))
    }

    /// Whether what fits may lie in the directory at a path that begins with a slash.
    pub(super) fn may_lie_in(&self, full: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(full));
        self.above.as_ref().is_none_or(|above| above.paths.iter().any(|glob| glob.is_match(path)))
    }

    /// Whether a name is worth a look at its path.
    pub(super) fn may_be(&self, name: &[u8]) -> bool {
        match &self.whole {
            Whole::Name(regex) => regex.is_match(name),
            _ => true,
        }
    }

    /// Whether a path fits; `full` begins with a slash.
    pub(super) fn accepts(&self, name: &[u8], full: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        match &self.whole {
            Whole::Name(regex) => regex.is_match(name),
            Whole::Path(regex) => regex.is_match(full),
            Whole::Glob(glob) => glob.is_match(std::path::Path::new(std::ffi::OsStr::from_bytes(full))),
        }
    }
}

fn anchored(name: &str) -> String {
    format!("(?s)^{}$", regex::escape(name))
}

/// Globs come as `(?-u)^…$`, where a line's end must be as good as any other byte.
fn in_lines(glob: &str) -> String {
    format!("(?s){glob}")
}

fn around(regex: &dyn Fn(&str) -> Result<Regex, PatternError>, literal: &str) -> Result<Last, PatternError> {
    Ok(Last::Around(regex(&regex::escape(literal))?))
}

/// The longest stretch of a glob that stands for itself.
fn longest_literal(glob: &str) -> String {
    let (mut best, mut now, mut depth) = (String::new(), String::new(), 0u32);
    let mut characters = glob.chars();
    while let Some(character) = characters.next() {
        let literal = match character {
            '*' | '?' => None,
            '[' | '{' => {
                depth += 1;
                None
            }
            ']' | '}' => {
                depth = depth.saturating_sub(1);
                None
            }
            '\\' => characters.next().filter(|_| depth == 0),
            other => Some(other).filter(|_| depth == 0),
        };
        match literal {
            Some(literal) => now.push(literal),
            None => now.clear(),
        }
        if now.len() > best.len() {
            best.clone_from(&now);
        }
    }
    best
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fits(pattern: &str, full: &str) -> bool {
        let pattern = Pattern::new(pattern, false, false).unwrap();
        let name = full.rsplit('/').next().unwrap();
        let above = full.strip_suffix(name).unwrap().trim_end_matches('/');
        let (_, own) = above.rsplit_once('/').unwrap_or_default();
        let candidate = pattern.needle().is_none_or(|needle| needle.is_match(name.as_bytes()))
            && pattern.may_be_above(own.as_bytes())
            && pattern.may_lie_in(above.as_bytes());
        let fits = pattern.accepts(name.as_bytes(), full.as_bytes());
        assert!(candidate || !fits, "the needle of {} misses {full}", pattern.text());
        candidate && fits && pattern.may_be(name.as_bytes())
    }

    #[test]
    fn patterns_mean_what_their_page_says() {
        for (pattern, right, wrong) in [
            ("port", "/a/report.txt", "/port/a"),
            ("a/rep", "/x/a/report.txt", "/a/rep/deeper"),
            ("*.conf", "/etc/a.conf", "/etc/a.conf.d"),
            ("re?ort*", "/a/report.txt", "/a/my-report"),
            ("etc/*.conf", "/root/etc/a.conf", "/root/etc/d/a.conf"),
            ("**/etc/**/a.conf", "/root/etc/d/e/a.conf", "/root/d/a.conf"),
            ("/root/*.txt", "/root/a.txt", "/a/root/a.txt"),
            ("{a,b}.t[x]t", "/r/b.txt", "/r/c.txt"),
            ("etc/nginx/**", "/r/etc/nginx/sites/a", "/r/etc/apache/sites/a"),
            ("projects/**/notes.t?t", "/r/projects/notes.txt", "/r/project/notes.txt"),
            ("a/**/b/*", "/r/a/b/c", "/r/a/c"),
            ("r/*", "/r/a", "/r/b/a"),
            ("r/b/**", "/r/b/c/d", "/r/c/b"),
            ("r/b/**", "/x/r/b/c", "/r/b"),
            ("{x/y,z}/*.t", "/r/x/y/a.t", "/r/y/a.t"),
            ("/**/*.t", "/r/a.t", "/r/a.u"),
        ] {
            assert!(fits(pattern, right), "{pattern} does not find {right}");
            assert!(!fits(pattern, wrong), "{pattern} finds {wrong}");
        }
        let exact = Pattern::new("a.txt", false, true).unwrap();
        assert!(exact.accepts(b"a.txt", b"/r/a.txt") && !exact.accepts(b"aa.txt", b"/r/aa.txt"));
        let whole = Pattern::new("r/a.txt", false, true).unwrap();
        assert!(whole.accepts(b"a.txt", b"/x/r/a.txt") && !whole.accepts(b"a.txt", b"/xr/a.txt"));
        let glob = Pattern::new("*.TXT", true, false).unwrap();
        assert!(glob.accepts(b"a.txt", b"/r/a.txt"));
        let any = Pattern::new("ÜBER", true, false).unwrap();
        assert!(any.accepts("überall".as_bytes(), "/überall".as_bytes()));
        assert!(any.needle().unwrap().is_match("Überall".as_bytes()));
        assert!(Pattern::new("", false, false).is_err() && Pattern::new("a[", false, false).is_err());
    }
}
