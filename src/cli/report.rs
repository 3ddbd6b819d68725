//! Errors for people.

use std::error::Error;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use crate::client::BuildError;
use crate::client::CallError;
use crate::client::ConnectError;
use crate::client::DefinitionError;
use crate::client::LayoutError;
use crate::daemon::ConfigError;
use crate::daemon::StartError;
use crate::progress::SourceFile;
use crate::progress::SourceRange;
use crate::registry::CredentialError;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("interrupted")]
    Interrupted,
    #[error("could not listen for signals")]
    Signals(#[source] io::Error),
    #[error("could not read {what}")]
    Read { what: String, source: io::Error },
    #[error("could not write {path:?}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{what}")]
    Definition { what: String, source: DefinitionError },
    #[error("--oci-layout {name}")]
    Layout { name: String, source: LayoutError },
    #[error("{0}")]
    Argument(String),
    #[error("the definition reads the OCI layout {name:?}: give it with --oci-layout {name}=DIR")]
    LayoutIsMissing { name: String },
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("there is no directory for the cache: set --root, XDG_CACHE_HOME or HOME")]
    NoRoot,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("could not start a daemon")]
    Start(#[from] StartError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the build failed")]
    Build(#[from] BuildError),
}

/// An error and its causes on one line, each cause once.
///
/// An error whose text already ends with its cause's does not say it twice.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !text.is_empty() && !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// The places in the sources of a build where it failed.
pub(super) fn excerpts(error: &CliError) -> String {
    match error {
        CliError::Build(BuildError::Failed(failure)) => {
            failure.sources.iter().map(|(file, ranges)| excerpt(file, ranges)).collect()
        }
        _ => String::new(),
    }
}

/// Lines around the ranges that are shown.
const AROUND: usize = 2;

fn excerpt(file: &SourceFile, ranges: &[SourceRange]) -> String {
    let line = |line: i32| usize::try_from(line).unwrap_or_default();
    let ranges = || ranges.iter().map(|r| (line(r.start.line), line(r.end.line).max(line(r.start.line))));
    let Some(first) = ranges().map(|(start, _)| start).min().filter(|first| *first > 0) else {
        return String::new();
    };
    let last = ranges().map(|(_, end)| end).max().unwrap_or(first);
    let text = String::from_utf8_lossy(&file.data);
    let rule = "-".repeat(20);
    let mut out = format!("{}:{first}\n{rule}\n", file.filename);
    let shown =
        text.lines().enumerate().skip(first.saturating_sub(AROUND + 1)).take(last - first + 1 + 2 * AROUND);
    for (n, line) in shown {
        let mark = if ranges().any(|(start, end)| (start..=end).contains(&(n + 1))) { ">>>" } else { "   " };
        let _ = writeln!(out, "{:4} | {mark} {line}", n + 1);
    }
    out + &rule + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::SourcePosition;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Step {
        text: &'static str,
        source: Option<Box<Step>>,
    }

    fn chain(texts: &[&'static str]) -> Step {
        let mut texts = texts.iter().rev();
        let last = Step { text: texts.next().unwrap(), source: None };
        texts.fold(last, |source, text| Step { text, source: Some(Box::new(source)) })
    }

    #[test]
    fn every_cause_is_said_once() {
        assert_eq!(Chain(&chain(&["a", "b", "c"])).to_string(), "a: b: c");
        assert_eq!(Chain(&chain(&["a: b", "b", "", "c"])).to_string(), "a: b: c");
    }

    #[test]
    fn an_excerpt_marks_the_lines_that_failed() {
        let file = SourceFile {
            filename: "Dockerfile".to_owned(),
            language: String::new(),
            data: "FROM a\n\nRUN b\nRUN c\nRUN d\nRUN e\nRUN f\n".into(),
            definition: None,
        };
        let at = |line| SourcePosition { line, character: 0 };
        let ranges = [SourceRange { start: at(4), end: at(5) }];
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(excerpt(&file, &ranges));
        });
        assert_eq!(excerpt(&file, &[]), "");
        let beyond = excerpt(&file, &[SourceRange { start: at(100), end: at(3) }]);
        assert!(beyond.starts_with("Dockerfile:100\n"), "{beyond}");
    }
}
