//! Errors for people.

use std::error::Error;
use std::fmt;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
