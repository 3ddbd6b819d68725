//! Files that builds write.
//!
//! # Crash consistency
//!
//! A file is written beside its destination under another name, synced and renamed. So the destination is what it
//! was before, or whole. What is not a regular file (a device, a pipe) is written to directly.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Destination;
use crate::task::Task;
use crate::task::Tasks;

/// Messages under way to the disk.
const AHEAD: usize = 4;

/// An output that is being written. Dropped before [`Writer::commit`], it leaves nothing.
#[derive(Debug)]
pub(super) struct Writer {
    steps: mpsc::Sender<Step>,
    done: Task<io::Result<()>>,
}

#[derive(Debug)]
enum Step {
    Bytes(Bytes),
    Commit,
}

impl Writer {
    /// Starts to write on a thread of its own.
    pub(super) fn start(destination: &Destination, tasks: &Tasks) -> Writer {
        let (steps, received) = mpsc::channel(AHEAD);
        let destination = destination.clone();
        let done = tasks.spawn_blocking("output", move || write(&destination, received));
        Writer { steps, done }
    }

    /// Cancellation safe: the bytes are written whole or not at all.
    pub(super) async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        if self.steps.send(Step::Bytes(bytes)).await.is_err() {
            return self.end().await.and(Err(io::Error::other("the output is closed")));
        }
        Ok(())
    }

    /// Puts the file in its place.
    pub(super) async fn commit(mut self) -> io::Result<()> {
        // If nobody takes it any more, the end says why.
        let _ = self.steps.send(Step::Commit).await;
        self.end().await
    }

    async fn end(&mut self) -> io::Result<()> {
        (&mut self.done).await.map_err(io::Error::other)?
    }
}

fn write(destination: &Destination, mut steps: mpsc::Receiver<Step>) -> io::Result<()> {
    let mut sink = Sink::open(destination)?;
    while let Some(step) = steps.blocking_recv() {
        match step {
            Step::Bytes(bytes) => sink.write(&bytes)?,
            Step::Commit => return sink.commit(),
        }
    }
    // Given up: the drop of the sink removes what was written.
    Ok(())
}

enum Sink {
    Stdout(io::Stdout),
    /// A device or a pipe.
    Direct(File),
    Renamed {
        file: File,
        temporary: Temporary,
        path: PathBuf,
    },
}

/// A file that is removed unless it is renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Sink {
    fn open(destination: &Destination) -> io::Result<Sink> {
        let path = match destination {
            Destination::Daemon | Destination::Directory { .. } | Destination::Layout(_) => {
                return Err(io::Error::other("this output has no bytes for the client"));
            }
            Destination::Stdout => return Ok(Sink::Stdout(io::stdout())),
            Destination::File(path) => path,
        };
        // A link stays, the file behind it is replaced.
        let path = match std::fs::canonicalize(path) {
            Ok(path) => path,
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.clone(),
            Err(e) => return Err(e),
        };
        if std::fs::metadata(&path).is_ok_and(|m| !m.is_file()) {
            return Ok(Sink::Direct(OpenOptions::new().write(true).open(path)?));
        }
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:08x}.partial", rand::random::<u32>()));
        let temporary = path.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        Ok(Sink::Renamed { file, temporary: Temporary(temporary), path })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Stdout(stdout) => stdout.write_all(bytes),
            Sink::Direct(file) | Sink::Renamed { file, .. } => file.write_all(bytes),
        }
    }

    fn commit(self) -> io::Result<()> {
        match self {
            Sink::Stdout(mut stdout) => stdout.flush(),
            Sink::Direct(_) => Ok(()),
            Sink::Renamed { file, temporary, path } => {
                file.sync_all()?;
                std::fs::rename(&temporary.0, &path)?;
                std::mem::forget(temporary);
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                File::open(parent)?.sync_all()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_file_takes_its_place_at_the_end_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.tar");
        std::fs::write(&path, "old").unwrap();
        let tasks = Tasks::new();
        let mut writer = Writer::start(&Destination::File(path.clone()), &tasks);
        writer.append(Bytes::from_static(b"new ")).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        writer.append(Bytes::from_static(b"bytes")).await.unwrap();
        writer.commit().await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new bytes");
        assert_eq!(names(dir.path()), ["out.tar"]);
    }

    #[tokio::test]
    async fn what_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let mut writer = Writer::start(&Destination::File(dir.path().join("out.tar")), &tasks);
        writer.append(Bytes::from_static(b"half")).await.unwrap();
        drop(writer);
        tasks.shutdown().await;
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_link_stays_and_a_device_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let tasks = Tasks::new();
        for path in [link.clone(), PathBuf::from("/dev/null")] {
            let mut writer = Writer::start(&Destination::File(path), &tasks);
            writer.append(Bytes::from_static(b"new")).await.unwrap();
            writer.commit().await.unwrap();
        }
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "new");
    }

    #[tokio::test]
    async fn a_file_that_can_not_be_made_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let writer = Writer::start(&Destination::File(dir.path().join("no/such/out.tar")), &tasks);
        assert_eq!(writer.commit().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
