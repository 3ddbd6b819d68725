//! [`ModeChange`]: a mode as `chmod` takes it, octal or symbolic.
//!
//! The grammar is that of chmod(1): clauses with commas between them, each of classes (`u`, `g`, `o`, `a`; none
//! is all) and actions (`+`, `-`, `=`), each with permissions (`r`, `w`, `x`, `X`, `s`, `t`) and classes to copy
//! from. There is no umask: a clause without a class means all of them.

use std::fmt;
use std::str::FromStr;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const ALL: u32 = 0o7777;
/// What `a` stands for: everything but the sticky bit, which belongs to no class.
const EVERYBODY: u32 = ALL & !STICKY;
const EXECUTE: u32 = 0o111;

/// A change of the mode of a file.
#[derive(Clone, PartialEq, Eq)]
pub struct ModeChange {
    text: String,
    steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Clear(u32),
    Set(u32),
    /// Set if the file is a directory or somebody could execute it before the change.
    SetIfExecutable(u32),
    /// The bits of a class, shifted right by `from`, for the classes in `to`.
    Copy {
        action: Action,
        from: u32,
        to: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Add,
    Remove,
    Assign,
}

/// A text is no mode.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no mode: chmod would not take it")]
pub struct InvalidMode {
    pub text: String,
}

impl ModeChange {
    /// The mode of a file that had `mode` before; both are bits of 07777.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let before = mode & ALL;
        let mut mode = before;
        for step in &self.steps {
            match *step {
                Step::Clear(bits) => mode &= !bits,
                Step::Set(bits) => mode |= bits,
                Step::SetIfExecutable(bits) if is_dir || before & EXECUTE != 0 => mode |= bits,
                Step::SetIfExecutable(_) => {}
                Step::Copy { action, from, to } => {
                    let class = (mode >> from) & 0o7;
                    let bits = (class << 6 | class << 3 | class) & to;
                    mode = match action {
                        Action::Add => mode | bits,
                        Action::Remove => mode & !bits,
                        Action::Assign => mode & !to | bits,
                    };
                }
            }
        }
        mode
    }
}

impl FromStr for ModeChange {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<ModeChange, InvalidMode> {
        let steps = if text.starts_with(|c: char| c.is_ascii_digit()) { octal(text) } else { symbolic(text) };
        match steps {
            Some(steps) => Ok(ModeChange { text: text.to_owned(), steps }),
            None => Err(InvalidMode { text: text.chars().take(100).collect() }),
        }
    }
}

impl fmt::Debug for ModeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModeChange({})", self.text)
    }
}

fn octal(text: &str) -> Option<Vec<Step>> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !ALL == 0)?;
    Some(vec![Step::Clear(ALL), Step::Set(mode)])
}

fn symbolic(text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for clause in text.split(',') {
        let actions = clause.find(['+', '-', '='])?;
        let mut who = 0;
        for class in clause[..actions].chars() {
            who |= match class {
                'u' => SET_UID | 0o700,
                'g' => SET_GID | 0o070,
                'o' => 0o007,
                'a' => EVERYBODY,
                _ => return None,
            };
        }
        let mut rest = &clause[actions..];
        while let Some(action) = rest.chars().next() {
            let action = match action {
                '+' => Action::Add,
                '-' => Action::Remove,
                '=' => Action::Assign,
                _ => return None,
            };
            let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
            permissions(action, who, &rest[1..end], &mut steps)?;
            rest = &rest[end..];
        }
    }
    Some(steps)
}

/// The steps of one action on the classes in `who`, 0 for all of them.
fn permissions(action: Action, who: u32, text: &str, steps: &mut Vec<Step>) -> Option<()> {
    let reached = if who == 0 { EVERYBODY } else { who };
    // `o` alone has neither set-ID bits nor the sticky bit.
    let special = who == 0 || who & !0o007 != 0;
    let (mut bits, mut if_executable, mut copies) = (0, 0, Vec::new());
    for permission in text.chars() {
        match permission {
            'r' => bits |= 0o444 & reached,
            'w' => bits |= 0o222 & reached,
            'x' => bits |= EXECUTE & reached,
            'X' if action == Action::Remove => bits |= EXECUTE & reached,
            'X' => if_executable |= EXECUTE & reached,
            's' if special => bits |= (SET_UID | SET_GID) & reached,
            't' if special => bits |= STICKY,
            's' | 't' => {}
            'u' => copies.push(6),
            'g' => copies.push(3),
            'o' => copies.push(0),
            _ => return None,
        }
    }
    match action {
        Action::Remove => steps.push(Step::Clear(bits)),
        Action::Add => steps.push(Step::Set(bits)),
        // The first copy assigns in place of this.
        Action::Assign if !copies.is_empty() && bits == 0 && if_executable == 0 => {}
        Action::Assign => {
            steps.push(Step::Clear(reached | bits));
            steps.push(Step::Set(bits));
        }
    }
    if if_executable != 0 {
        steps.push(Step::SetIfExecutable(if_executable));
    }
    steps.extend(copies.into_iter().map(|from| Step::Copy { action, from, to: reached & 0o777 }));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> u32 {
        text.parse::<ModeChange>().unwrap().apply(mode, false)
    }

    fn dir(text: &str, mode: u32) -> u32 {
        text.parse::<ModeChange>().unwrap().apply(mode, true)
    }

    #[test]
    fn modes_are_what_chmod_makes_of_them() {
        for (text, before, after) in [
            ("644", 0o4777, 0o644),
            ("0", 0o777, 0),
            ("4755", 0, 0o4755),
            ("u+x", 0o644, 0o744),
            ("+x", 0o644, 0o755),
            ("a+x", 0o644, 0o755),
            ("go-w", 0o666, 0o644),
            ("go=", 0o777, 0o700),
            ("=", 0o777, 0),
            ("=r", 0o777, 0o444),
            ("u=rwx,go=rx", 0o000, 0o755),
            ("u=rw,go=", 0o777, 0o600),
            ("u+rwX,go=", 0o644, 0o600),
            ("u+rwX,go=", 0o655, 0o700),
            ("go=u-w", 0o640, 0o644),
            ("u=g", 0o047, 0o447),
            ("g=u", 0o4755, 0o4775),
            ("o=g", 0o750, 0o755),
            ("u+s", 0o755, 0o4755),
            ("g+s", 0o755, 0o2755),
            ("o+s", 0o755, 0o755),
            ("+t", 0o755, 0o1755),
            ("u-s", 0o4755, 0o755),
            ("ug+rw-x", 0o111, 0o661),
            ("u=rwx,g=u,o=g", 0o000, 0o777),
            ("a-X", 0o755, 0o644),
        ] {
            assert_eq!(file(text, before), after, "{text} of {before:o}");
        }
    }

    #[test]
    fn a_large_x_is_for_directories_and_for_what_could_be_executed_before() {
        assert_eq!(dir("a+X", 0o600), 0o711);
        assert_eq!(file("a+X", 0o600), 0o600);
        assert_eq!(file("a+X", 0o610), 0o711);
        assert_eq!(file("a-x,a+X", 0o755), 0o755);
        assert_eq!(dir("=rw,+X", 0o700), 0o777);
    }

    #[test]
    fn what_chmod_refuses_is_refused() {
        for text in ["", "8", "17777", "u", "x", "u+y", "u+x,", ",", "+x,,", "-1", "u x", "0x1ff", "é+x"] {
            assert!(text.parse::<ModeChange>().is_err(), "{text:?}");
        }
    }
}
