//! [`Scratch`]: a private directory for what is shown to a process and is no snapshot.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use super::ExecError;

const SCRATCH: &str = "scratch";

/// Removed with all that is in it when it is dropped. Nothing is ever mounted in it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn create(directory: &Path) -> Result<Scratch, ExecError> {
        // Short: the path of a socket has 107 bytes.
        let path = directory.join(SCRATCH).join(format!("{:08x}", rand::random::<u32>()));
        fs::create_dir_all(&path).map_err(ExecError::io("create", &path))?;
        Ok(Scratch { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a directory stays until the next start");
        }
    }
}

/// Removes what an earlier daemon left.
pub fn clear_leftovers(directory: &Path) -> Result<(), ExecError> {
    let path = directory.join(SCRATCH);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ExecError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
