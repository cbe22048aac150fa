//! What is looked for: a part of a name, a name with wildcards, or a path.
//!
//! * text without wildcards is looked for anywhere in a name; with a slash, in the path up to somewhere in the last name
//! * with `*`, `?`, `[…]` or `{…}` the whole name must fit; with a slash, the end of the path from a name's beginning on (`*` stays within
//!   a name, `**` does not; brackets stand for one character of a name), or the whole path where the pattern begins with a slash
//! * `exact`: the whole name, or the end of the path from a name's beginning on
//!
//! Invariant: what the fast look through the names lets pass is only a candidate; `accepts` decides.

use globset::GlobBuilder;
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
    /// Names around a hit of any one of these are candidates; all of them must be in a name that fits.
    Around(Vec<Regex>),
}

#[derive(Debug, Clone)]
enum Whole {
    /// The name alone decides.
    Name(Regex),
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
    paths: Vec<Regex>,
    name: Option<Regex>,
    /// Any directory below such a one may, too.
    below: bool,
}

impl Above {
    /// The directory part of a spelled glob, if it has one that says anything.
    fn of(spelled: &str, glob: &dyn Fn(&str) -> Result<Regex, PatternError>) -> Result<Option<Above>, PatternError> {
        // A brace may hold slashes: then the parts are no patterns of their own.
        let Some((above, last)) = spelled.rsplit_once('/').filter(|_| !spelled.contains('{')) else { return Ok(None) };
        // Each `**` at the end stands for no directory as well.
        let shorter: Vec<&str> = std::iter::successors(Some(above), |above| above.strip_suffix("/**")).collect();
        if matches!(shorter.last(), Some(&("" | "**"))) || (last != "**" && last.contains("**")) {
            return Ok(None);
        }
        let below = last == "**";
        let paths = shorter.into_iter().map(glob).collect::<Result<_, _>>()?;
        let name = above.rsplit('/').next().unwrap_or_default();
        let name = if name.contains("**") { None } else { Some(glob(name)?) };
        Ok(Some(Above { paths, name, below }))
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
            let built = built.map_err(|e| PatternError::Glob { text: text.to_owned(), why: e.kind().to_string() })?;
            regex(&within_names(built.regex()))
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
                let name = last_name(wanted)
                    .map_err(|why| PatternError::Glob { text: text.to_owned(), why: why.to_owned() })?;
                let whole = glob(&spelled)?;
                if slash {
                    above = Above::of(&spelled, &glob)?;
                }
                let needles: Result<Vec<Regex>, _> = name
                    .map(literals)
                    .unwrap_or_default()
                    .iter()
                    .map(|literal| regex(&regex::escape(literal)))
                    .collect();
                let needles = needles?;
                let last = if needles.is_empty() { Last::Any } else { Last::Around(needles) };
                (last, if slash { Whole::Path(whole) } else { Whole::Name(whole) })
            }
        };
        Ok(Pattern { text: text.to_owned(), last, whole, above, directories })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn directories_only(&self) -> bool {
        self.directories
    }

    /// What to search for in blocks of names, after a look into one of them; `None` where every name is a candidate.
    pub(crate) fn rarest_needle(&self, names: &[u8]) -> Option<&Regex> {
        match &self.last {
            Last::Any => None,
            Last::Around(needles) if needles.len() == 1 => needles.first(),
            Last::Around(needles) => needles.iter().min_by_key(|needle| needle.find_iter(names).count()),
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

    /// Whether what may lie in a directory may lie in all directories below it.
    pub(super) fn goes_below(&self) -> bool {
        self.above.as_ref().is_some_and(|above| above.below)
    }

    /// Whether what fits may lie in the directory at a path that begins with a slash; what lies above it was asked before.
    pub(super) fn may_lie_in(&self, full: &[u8]) -> bool {
        self.above.as_ref().is_none_or(|above| above.paths.iter().any(|path| path.is_match(full)))
    }

    /// Whether the directories' names and paths alone would lead to a path; it begins with a slash.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn looks_in(&self, full: &str) -> bool {
        let above = |path: &str| path.rsplit_once('/').map(|(above, _)| above.to_owned());
        std::iter::successors(above(full), |folder| above(folder).filter(|_| self.goes_below())).any(|folder| {
            let name = folder.rsplit('/').next().unwrap_or_default();
            self.may_be_above(name.as_bytes()) && self.may_lie_in(folder.as_bytes())
        })
    }

    /// Whether a name is worth a look at its path.
    pub(crate) fn may_be(&self, name: &[u8]) -> bool {
        match &self.whole {
            Whole::Name(regex) => regex.is_match(name),
            _ => true,
        }
    }

    /// Whether a path fits; `full` begins with a slash.
    pub(crate) fn accepts(&self, name: &[u8], full: &[u8]) -> bool {
        match &self.whole {
            Whole::Name(regex) => regex.is_match(name),
            Whole::Path(regex) => regex.is_match(full),
        }
    }
}

fn anchored(name: &str) -> String {
    format!("(?s)^{}$", regex::escape(name))
}

/// Globs come as `(?-u)^…$`, where a line's end must be as good as any other byte, and where brackets (`[!a]`, `[+-9]`) would take a
/// slash, which ends a name.
fn within_names(glob: &str) -> String {
    let mut spelled = String::from("(?s)");
    let mut characters = glob.chars();
    let mut within = false;
    while let Some(character) = characters.next() {
        match character {
            '[' if !within => {
                within = true;
                spelled.push_str("[[");
            }
            ']' if within => {
                within = false;
                spelled.push_str("]&&[^/]]");
            }
            '\\' => {
                spelled.push(character);
                spelled.extend(characters.next());
            }
            other => spelled.push(other),
        }
    }
    spelled
}

/// The last name of a glob with its wildcards; `None` where a brace holds slashes, so that several may be the last one.
fn last_name(glob: &str) -> Result<Option<&str>, &'static str> {
    let (mut name, mut depth) = (Some(glob), 0u32);
    let mut characters = glob.chars();
    while let Some(character) = characters.next() {
        match character {
            '[' => {
                let class = characters.as_str();
                skip_class(&mut characters);
                if class.strip_suffix(characters.as_str()).is_some_and(|class| class.contains('/')) {
                    return Err("brackets stand for one character of a name, which has no slash");
                }
            }
            '\\' if characters.next() == Some('/') => return Err("a slash stands for itself without a backslash"),
            '\\' => {}
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '/' => name = (depth == 0).then_some(characters.as_str()),
            _ => {}
        }
    }
    Ok(name)
}

fn around(regex: &dyn Fn(&str) -> Result<Regex, PatternError>, literal: &str) -> Result<Last, PatternError> {
    Ok(Last::Around(vec![regex(&regex::escape(literal))?]))
}

/// The stretches of a glob that stand for themselves.
fn literals(glob: &str) -> Vec<String> {
    let (mut found, mut now, mut depth) = (Vec::new(), String::new(), 0u32);
    let mut characters = glob.chars();
    while let Some(character) = characters.next() {
        let literal = match character {
            '*' | '?' => None,
            '[' => {
                skip_class(&mut characters);
                None
            }
            '{' => {
                depth += 1;
                None
            }
            '}' => {
                depth = depth.saturating_sub(1);
                None
            }
            '\\' => characters.next().filter(|_| depth == 0),
            other => Some(other).filter(|_| depth == 0),
        };
        match literal {
            Some(literal) => now.push(literal),
            None => found.push(std::mem::take(&mut now)),
        }
    }
    found.push(now);
    found.retain(|literal| !literal.is_empty());
    found
}

/// What stands in brackets; a bracket that comes first there stands for itself.
fn skip_class(characters: &mut std::str::Chars<'_>) {
    let mut first = true;
    while let Some(character) = characters.next() {
        match character {
            '!' | '^' if first && !characters.as_str().is_empty() => continue,
            ']' if !first => return,
            _ => first = false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fits(pattern: &str, full: &str) -> bool {
        let pattern = Pattern::new(pattern, false, false).unwrap();
        let name = full.rsplit('/').next().unwrap();
        let hits = match &pattern.last {
            Last::Any => true,
            Last::Around(needles) => needles.iter().all(|needle| needle.is_match(name.as_bytes())),
        };
        let candidate = hits && pattern.looks_in(full);
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
            ("[]x]y*", "/r/]yes", "/r/zyes"),
            ("[!]x]y*", "/r/zyes", "/r/]yes"),
            ("{x/y,z}/*.t", "/r/x/y/a.t", "/r/y/a.t"),
            ("/**/*.t", "/r/a.t", "/r/a.u"),
            ("/**/**/*.t", "/a.t", "/a.u"),
            ("a/**/**/*.t", "/r/a/b.t", "/r/b.t"),
            ("r/{x/y,z}", "/r/z", "/r/y"),
            ("r/{x/y,z}", "/r/x/y", "/x/y"),
            ("r/a[!x]c", "/r/abc", "/r/a/c"),
            ("r/a[+-9]c", "/r/a.c", "/r/a/c"),
            (r"r\{a/[]]\[*", "/r{a/][x", "/r{a/[x"),
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
        assert!(any.rarest_needle(b"").unwrap().is_match("Überall".as_bytes()));
        for nonsense in ["", "a[", "{}[c/-d]*", "a[/]b", r"*\/a"] {
            assert!(Pattern::new(nonsense, false, false).is_err(), "{nonsense:?} means something");
        }
    }
}
