//! [`Glob`]: one pattern, compiled to the states of a machine that reads a path once.

/// A text is no pattern: a class is not closed or is empty, or a backslash stands at the end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("syntax error in pattern {pattern:?}")]
pub struct InvalidPattern {
    pub pattern: String,
}

/// A pattern that has to match a whole path.
#[derive(Clone, Debug)]
pub struct Glob {
    states: Vec<State>,
    /// Set if the pattern is nothing but characters.
    literal: Option<String>,
}

/// What the machine waits for. It goes on to the state behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Character(u32),
    /// Any but `/`.
    One,
    Class {
        negated: bool,
        ranges: Vec<(u32, u32)>,
    },
    /// Any number of them but `/`.
    Star,
    /// Any number of any.
    Everything,
    /// Nothing, or directories: the next state is [`State::InDirectories`], which belongs to it.
    Directories,
    /// Any number of any, up to a `/`.
    InDirectories,
}

const SLASH: u32 = '/' as u32;

impl Glob {
    /// A pattern without `**`: two stars are as good as one.
    pub fn new(pattern: &str) -> Result<Glob, InvalidPattern> {
        Glob::compile(pattern, false)
    }

    /// A pattern where `**` is any number of directories, or at the end all that is in them.
    pub(super) fn with_double_star(pattern: &str) -> Result<Glob, InvalidPattern> {
        Glob::compile(pattern, true)
    }

    fn compile(pattern: &str, double_star: bool) -> Result<Glob, InvalidPattern> {
        let invalid = || InvalidPattern { pattern: pattern.to_owned() };
        let mut states = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(character) = chars.next() {
            match character {
                '*' if double_star && chars.next_if_eq(&'*').is_some() => {
                    let slash = chars.next_if_eq(&'/').is_some();
                    if chars.peek().is_none() {
                        states.push(State::Everything);
                    } else if states.is_empty() && !slash && is_literal(chars.clone()) {
                        // `**.go` is for the end of a name as well; with another wildcard it is not.
                        states.push(State::Everything);
                    } else {
                        states.extend([State::Directories, State::InDirectories]);
                    }
                }
                '*' => states.push(State::Star),
                '?' => states.push(State::One),
                '[' => states.push(class(&mut chars).ok_or_else(invalid)?),
                '\\' => states.push(State::Character(chars.next().ok_or_else(invalid)?.into())),
                character => states.push(State::Character(character.into())),
            }
        }
        let literal = is_literal(pattern.chars()).then(|| pattern.to_owned());
        Ok(Glob { states, literal })
    }

    pub fn matches(&self, path: impl AsRef<[u8]>) -> bool {
        let path = path.as_ref();
        if let Some(literal) = &self.literal {
            return path == literal.as_bytes();
        }
        let end = self.states.len();
        let (mut now, mut next) = (vec![false; end + 1], vec![false; end + 1]);
        self.enter(&mut now, 0);
        for character in characters(path) {
            next.fill(false);
            let mut alive = false;
            for at in (0..end).filter(|at| now[*at]) {
                let (stays, goes_on) = self.states[at].takes(character);
                if stays {
                    self.enter(&mut next, at);
                }
                if goes_on {
                    self.enter(&mut next, at + 1);
                }
                alive |= stays || goes_on;
            }
            if !alive {
                return false;
            }
            std::mem::swap(&mut now, &mut next);
        }
        now[end]
    }

    /// Marks a state and those that can be reached from it without a character.
    fn enter(&self, set: &mut [bool], mut at: usize) {
        while !std::mem::replace(&mut set[at], true) {
            at += match self.states.get(at) {
                Some(State::Star | State::Everything) => 1,
                Some(State::Directories) => {
                    set[at + 1] = true;
                    2
                }
                _ => return,
            };
        }
    }
}

impl State {
    /// Whether the machine stays in this state after the character, and whether it goes on.
    fn takes(&self, character: u32) -> (bool, bool) {
        match self {
            State::Character(wanted) => (false, *wanted == character),
            State::One => (false, character != SLASH),
            State::Class { negated, ranges } => {
                let inside = ranges.iter().any(|(low, high)| (*low..=*high).contains(&character));
                (false, inside != *negated)
            }
            State::Star => (character != SLASH, false),
            State::Everything => (true, false),
            State::Directories => (false, false),
            State::InDirectories => (true, character == SLASH),
        }
    }
}

/// The rest of a class, whose bracket is behind.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<State> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(State::Class { negated, ranges });
        }
        let low = class_character(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { class_character(chars)? } else { low };
        ranges.push((low.into(), high.into()));
    }
}

fn class_character(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        character => Some(character),
    }
}

fn is_literal(mut chars: impl Iterator<Item = char>) -> bool {
    !chars.any(|c| matches!(c, '*' | '?' | '[' | '\\'))
}

/// The characters of a path. Bytes that are none are numbers beyond all characters.
fn characters(path: &[u8]) -> impl Iterator<Item = u32> + '_ {
    path.utf8_chunks().flat_map(|chunk| {
        let invalid = chunk.invalid().iter().map(|byte| 0x11_0000 + u32::from(*byte));
        chunk.valid().chars().map(u32::from).chain(invalid)
    })
}

/// True if the text has a wildcard that no backslash takes its meaning.
pub fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(character) = chars.next() {
        match character {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// The part of a path before the first component with a wildcard, and the rest: empty if there is none.
pub fn split_wildcards(path: &str) -> (String, String) {
    let path = super::clean(path);
    let mut at = 0;
    for part in path.split_inclusive('/') {
        if has_wildcards(part) {
            let before = match path[..at].trim_end_matches('/') {
                "" if path.starts_with('/') => "/",
                before => before,
            };
            return (before.to_owned(), path[at..].to_owned());
        }
        at += part.len();
    }
    (path, String::new())
}
