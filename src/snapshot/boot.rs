//! [`BootId`]: which run of the kernel this is.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What was written and not synced is there for as long as this stays the same: the kernel keeps it, whatever
/// becomes of the processes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(String);

impl BootId {
    /// That of the running kernel. Where it can't be told, one that no other start has: nothing is trusted then
    /// that was not synced.
    pub fn current() -> BootId {
        match std::fs::read_to_string(BOOT_ID) {
            Ok(text) if !text.trim().is_empty() => BootId(text.trim().to_owned()),
            read => {
                let error = read.err().map(|error| error.to_string());
                tracing::warn!(
                    path = BOOT_ID,
                    error,
                    "this boot has no ID: what an earlier start left unsynced goes"
                );
                BootId(format!("unknown-{:016x}", rand::random::<u64>()))
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn named(name: &str) -> BootId {
        BootId(name.to_owned())
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_one_id() {
        assert_eq!(BootId::current(), BootId::current());
        let text = serde_json::to_string(&BootId::named("b")).unwrap();
        assert_eq!((text.as_str(), serde_json::from_str(&text).unwrap()), ("\"b\"", BootId::named("b")));
    }
}
