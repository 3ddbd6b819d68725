//! Patterns that name files: wildcards, and lists of patterns as a `.dockerignore` has them.
//!
//! [`Glob`] is one pattern that has to match a whole path, with the rules of Go's `filepath.Match`:
//!
//! | text | matches |
//! |---|---|
//! | `*` | characters other than `/`, or none |
//! | `?` | one character other than `/` |
//! | `[a-cx]`, `[^a-c]` | one character of the class, or outside of it |
//! | `\c` | the character `c` |
//!
//! [`Patterns`] is a list. A pattern may also have `**`, for any number of directories. A path matches if it, or a
//! directory that it is in, matches a pattern; of several patterns the last one that matches counts, and one
//! that begins with `!` takes a match back. White space around a pattern, and empty ones, count for nothing; `.`,
//! `..` and repeated slashes in a pattern are resolved first.
//!
//! Paths are relative to whatever the pattern is for, clean, with `/` between components.
//!
//! # Invariants
//!
//! No pattern takes more time than its length times that of the path, and none makes this panic.

mod glob;

pub use glob::Glob;
pub use glob::InvalidPattern;
pub use glob::has_wildcards;
pub use glob::split_wildcards;

/// A list of patterns, the later ones over the earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    glob: Glob,
    /// Takes back what earlier patterns matched.
    exception: bool,
}

/// Which patterns a directory matched, for the paths in it. The default is for a path whose directories nobody
/// has looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matched(Vec<bool>);

impl Patterns {
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Patterns, InvalidPattern> {
        let mut list = Vec::new();
        for text in patterns {
            let text = text.as_ref().trim();
            if text.is_empty() {
                continue;
            }
            let cleaned = clean(text);
            let (text, exception) = match cleaned.strip_prefix('!') {
                Some("") => return Err(InvalidPattern { pattern: cleaned }),
                Some(rest) => (rest, true),
                None => (cleaned.as_str(), false),
            };
            list.push(Pattern { glob: Glob::with_double_star(text)?, exception });
        }
        Ok(Patterns { patterns: list })
    }

    /// True if it matches nothing, since it has no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// True if a path may match less than the directory that it is in.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    pub fn matches(&self, path: impl AsRef<[u8]>) -> bool {
        self.matches_in(path, &Matched::default()).0
    }

    /// As [`Patterns::matches`], of a path in a directory that gave `parent`; and what the path gives for those
    /// in it.
    pub fn matches_in(&self, path: impl AsRef<[u8]>, parent: &Matched) -> (bool, Matched) {
        let path = path.as_ref();
        let mut matched = false;
        let mut all = Vec::with_capacity(self.patterns.len());
        for (n, pattern) in self.patterns.iter().enumerate() {
            let mut matches = parent.0.get(n).copied().unwrap_or(false);
            // One that would change nothing is not looked at.
            if !matches && pattern.exception == matched {
                matches = pattern.glob.matches(path)
                    || (parent.0.is_empty() && parents(path).any(|parent| pattern.glob.matches(parent)));
            }
            all.push(matches);
            if matches {
                matched = !pattern.exception;
            }
        }
        (matched, Matched(all))
    }
}

/// The directories that a path is in, the outermost first.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0).map(|(at, _)| &path[..at])
}

/// The shortest path that is the same one, as Go's `path.Clean` makes it: `.` for nothing.
pub fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    match (absolute, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests;
