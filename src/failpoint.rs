//! Places where a crash, an error or a delay can be asked for, one at each durable step.
//!
//! Tests set `THUNKD_FAILPOINT` to a comma-separated list of `name[:nth]=action`, where `nth` counts
//! from 1 (default 1) and the action is `kill` (SIGKILL to the own process, as `kill -9` would),
//! `error`, `delay:<milliseconds>` or `hold:<path>`, which makes that file and goes on once it is gone. Without the
//! variable a failpoint costs one relaxed load.
//!
//! Delays and holds block the thread on purpose: a failpoint stands where the process may be at any moment.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

macro_rules! failpoints {
    ($($(#[$group_doc:meta])* $group:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* })*) => {
        /// A durable step. The failpoint is hit right after the step that it names.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Failpoint { $($($(#[$doc])* $variant,)*)* }

        impl Failpoint {
            $($(#[$group_doc])* pub const $group: &'static [Failpoint] = &[$(Failpoint::$variant,)*];)*

            pub const ALL: &'static [Failpoint] = &[$($(Failpoint::$variant,)*)*];

            /// The name used in `THUNKD_FAILPOINT`.
            pub fn name(self) -> &'static str {
                match self { $($(Failpoint::$variant => $name,)*)* }
            }
        }
    };
}

failpoints! {
    /// Steps of fetching, registering, pushing and deleting blobs.
    BLOBS {
        /// A partial blob's file was created.
        IngestCreated = "ingest-created",
        /// Some bytes of a partial blob were written.
        IngestWritten = "ingest-written",
        /// A whole, verified partial blob was synced.
        IngestSynced = "ingest-synced",
        /// It was renamed to its final place.
        BlobRenamed = "blob-renamed",
        /// The directory of the renamed blob was synced.
        BlobDirectorySynced = "blob-directory-synced",
        /// A transaction was handed to the store and is not yet committed.
        TransactionBuilt = "transaction-built",
        /// A transaction was committed.
        TransactionCommitted = "transaction-committed",
        /// The intent to delete blobs was recorded.
        DeletionRecorded = "deletion-recorded",
        /// A blob's file was deleted, its row not yet.
        BlobDeleted = "blob-deleted",
        /// A blob arrived at a push target.
        BlobPushed = "blob-pushed",
        /// A manifest arrived at a push target.
        ManifestPushed = "manifest-pushed",
    }
    /// Steps of making blobs here, which are durable together.
    PRODUCING {
        /// Another MiB of a blob was written.
        MebibyteProduced = "mebibyte-produced",
    }
    /// Steps of making and removing snapshots.
    SNAPSHOTS {
        /// A snapshot's directory is whole, under a temporary name.
        SnapshotWritten = "snapshot-written",
        /// It was renamed to its place.
        SnapshotMade = "snapshot-made",
        /// What only an active snapshot needs was removed.
        SnapshotFinished = "snapshot-finished",
        /// It was renamed to its committed place.
        SnapshotCommitted = "snapshot-committed",
        /// A snapshot was renamed out of its place, its files are there still.
        SnapshotRemoved = "snapshot-removed",
    }
    /// Steps of making states from snapshots, of packing them and of removing them.
    STATES {
        /// A file system that is kept has its row, and no snapshot yet.
        KeptNoted = "kept-noted",
        /// A committed snapshot has its row, and that of its record.
        SnapshotNoted = "snapshot-noted",
        /// All snapshots were synced, their rows don't say so yet.
        SnapshotsSynced = "snapshots-synced",
        /// The blob of a change set was made, and nothing refers to it.
        LayerPacked = "layer-packed",
        /// The rows of pruned records are gone, their snapshots are there still.
        RecordsRemoved = "records-removed",
        /// The rows of snapshots that nobody needs are gone, they themselves are there still.
        SnapshotsForgotten = "snapshots-forgotten",
        /// The rows of snapshots that an earlier boot had not synced are gone, they themselves are there still.
        UnsyncedForgotten = "unsynced-forgotten",
    }
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failpoint was set to `error`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("failpoint {0} was set to fail")]
pub struct Injected(pub Failpoint);

/// `THUNKD_FAILPOINT` or its like is not valid.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "failpoint {text:?} is not <name>[:<nth>]=kill|error|delay:<milliseconds>|hold:<path> with a known name"
)]
pub struct InvalidFailpoint {
    pub text: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Action {
    Kill,
    Error,
    Delay(Duration),
    Hold(PathBuf),
}

#[derive(Debug)]
struct Armed {
    at: Failpoint,
    /// Hits left until the action happens, which it does once.
    left: u32,
    action: Action,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static LIST: OnceLock<Mutex<Vec<Armed>>> = OnceLock::new();

/// Arms what the environment asks for. Called once, at start.
pub fn arm_from_environment() -> Result<(), InvalidFailpoint> {
    match std::env::var("THUNKD_FAILPOINT") {
        Ok(text) => arm(&text),
        Err(_) => Ok(()),
    }
}

/// Arms the failpoints of `text`, besides those armed already.
pub fn arm(text: &str) -> Result<(), InvalidFailpoint> {
    let armed = text.split(',').filter(|t| !t.is_empty()).map(parse).collect::<Result<Vec<_>, _>>()?;
    if !armed.is_empty() {
        let list = LIST.get_or_init(Mutex::default);
        list.lock().unwrap_or_else(PoisonError::into_inner).extend(armed);
        ARMED.store(true, Ordering::Release);
    }
    Ok(())
}

fn parse(text: &str) -> Result<Armed, InvalidFailpoint> {
    let invalid = || InvalidFailpoint { text: text.chars().take(160).collect() };
    let (point, action) = text.split_once('=').ok_or_else(invalid)?;
    let (name, nth) = point.split_once(':').unwrap_or((point, "1"));
    let at = *Failpoint::ALL.iter().find(|f| f.name() == name).ok_or_else(invalid)?;
    let left = nth.parse().ok().filter(|n| *n > 0).ok_or_else(invalid)?;
    let action = match action.split_once(':') {
        None if action == "kill" => Action::Kill,
        None if action == "error" => Action::Error,
        Some(("delay", millis)) => {
            Action::Delay(Duration::from_millis(millis.parse().map_err(|_| invalid())?))
        }
        Some(("hold", path)) if !path.is_empty() => Action::Hold(path.into()),
        _ => return Err(invalid()),
    };
    Ok(Armed { at, left, action })
}

/// Passes, unless a test armed `at`: then kills the process, fails or waits.
pub fn hit(at: Failpoint) -> Result<(), Injected> {
    if !ARMED.load(Ordering::Relaxed) {
        return Ok(());
    }
    match due(at) {
        None => Ok(()),
        Some(Action::Error) => Err(Injected(at)),
        #[expect(clippy::disallowed_methods, reason = "the delay is for code that blocks as well")]
        Some(Action::Delay(time)) => {
            std::thread::sleep(time);
            Ok(())
        }
        Some(Action::Hold(path)) => {
            hold(&path);
            Ok(())
        }
        Some(Action::Kill) => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            unreachable!("SIGKILL does not return")
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the hold is for code that blocks as well")]
fn hold(path: &Path) {
    if let Err(error) = std::fs::write(path, "") {
        tracing::error!(%error, path = %path.display(), "a failpoint can't hold");
    }
    while path.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn due(at: Failpoint) -> Option<Action> {
    let mut list = LIST.get()?.lock().unwrap_or_else(PoisonError::into_inner);
    for armed in list.iter_mut().filter(|a| a.at == at && a.left > 0) {
        armed.left -= 1;
        if armed.left == 0 {
            return Some(armed.action.clone());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_names_and_actions_are_taken() {
        for text in
            ["blob-renamed=kill", "blob-renamed:3=error", "ingest-created=delay:5", "ingest-created=hold:/x"]
        {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "x=kill",
            "blob-renamed",
            "blob-renamed=x",
            "blob-renamed:0=kill",
            "blob-renamed=delay:x",
            "blob-renamed=hold:",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
