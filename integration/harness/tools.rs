//! Foreign programs that tests run, and what happens when one isn't installed.

use std::path::Path;
use std::path::PathBuf;

/// Finds `name` among the peers built for the tests (`peers` in the target directory, or the directory
/// that `THUNK_PEERS` names), then in `PATH`.
///
/// Without it the caller should end its test: under `CI=true` this panics, elsewhere it says loudly
/// on stderr that the test checks nothing.
pub fn tool(name: &str) -> Option<PathBuf> {
    let peers = std::env::var_os("THUNK_PEERS").map(PathBuf::from);
    let peers = peers.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(peers.clone()).chain(std::env::split_paths(&path)).map(|dir| dir.join(name));
    let found = found.into_iter().find(|file| file.is_file());
    if found.is_none() {
        let message = format!("{name} is neither in {} nor in PATH", peers.display());
        let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!in_ci, "{message}");
        eprintln!("SKIPPED, NOT CHECKED: {message}");
    }
    found
}
