//! What a client lends to its builds: secrets, and the way to its SSH agents.

use std::io;
use std::path::PathBuf;

use crate::session::MAX_SECRET;

/// Where a secret is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    File(PathBuf),
    /// Of the environment.
    Variable(String),
}

impl SecretSource {
    /// Reads the secret, when a build asks for it.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let bytes = match self {
            SecretSource::File(path) => std::fs::read(path)?,
            SecretSource::Variable(name) => match std::env::var_os(name) {
                Some(value) => value.into_encoded_bytes(),
                None => return Err(io::ErrorKind::NotFound.into()),
            },
        };
        if bytes.len() > MAX_SECRET {
            return Err(io::Error::other(format!("{} bytes, {MAX_SECRET} are allowed", bytes.len())));
        }
        Ok(bytes)
    }
}
