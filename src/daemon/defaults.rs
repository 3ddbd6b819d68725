//! Where a daemon looks and listens if nobody says.

use std::path::Path;
use std::path::PathBuf;

/// Where things are if nobody says: `buildkitd`'s places, root's or the user's own.
pub struct Defaults;

impl Defaults {
    pub fn root() -> PathBuf {
        Self::of_user("XDG_DATA_HOME", ".local/share").unwrap_or_else(|| PathBuf::from("/var/lib/buildkit"))
    }

    pub fn config_file() -> PathBuf {
        Self::of_user("XDG_CONFIG_HOME", ".config")
            .unwrap_or_else(|| PathBuf::from("/etc/buildkit"))
            .join("buildkitd.toml")
    }

    pub fn socket() -> PathBuf {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        match runtime {
            Some(dir) if !rustix::process::geteuid().is_root() => {
                Path::new(&dir).join("buildkit/buildkitd.sock")
            }
            _ => PathBuf::from("/run/buildkit/buildkitd.sock"),
        }
    }

    /// The user's directory named by `variable`, or `below` her home. None for root.
    fn of_user(variable: &str, below: &str) -> Option<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return None;
        }
        let named = std::env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let home = std::env::var_os("HOME").filter(|dir| !dir.is_empty());
        named.or_else(|| Some(Path::new(&home?).join(below))).map(|dir| dir.join("buildkit"))
    }
}
