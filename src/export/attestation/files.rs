//! [`StatementFiles`]: statements about files, as files beside them.

use std::collections::BTreeMap;
use std::io;
use std::io::Cursor;
use std::io::Read;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::AttestationError;
use super::Predicate;
use super::StatementSubject;
use crate::export::ExportError;
use crate::fs::FileTime;
use crate::oci::Algorithm;
use crate::oci::Digest;
use crate::oci::DigestHasher;
use crate::session::fsutil::FileKind;
use crate::session::fsutil::FileStat;
use crate::session::fsutil::TransferError;
use crate::session::fsutil::TreeSource;
use crate::session::fsutil::Visit;

/// Only who builds reads what is stated, until somebody decides otherwise.
const MODE: u32 = 0o600;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// Of a file's name, in bytes.
const MAX_NAME: usize = 255;

/// Files in the root of a tree, by name. They stand for those of the tree that have the same names.
#[derive(Clone, Debug, Default)]
pub(in crate::export) struct StatementFiles(BTreeMap<Vec<u8>, (FileStat, Bytes)>);

/// How the files are called, and when they were made.
pub(in crate::export) struct StatementNames<'n> {
    /// Comes before each name.
    pub(in crate::export) prefix: &'n str,
    /// Comes before each extension.
    pub(in crate::export) platform: Option<&'n str>,
    pub(in crate::export) time: FileTime,
}

impl StatementFiles {
    /// States `predicates` of every regular file of `tree`. Blocks.
    pub(in crate::export) fn about(
        tree: Option<&dyn TreeSource>,
        predicates: &[Predicate],
        names: &StatementNames<'_>,
    ) -> Result<StatementFiles, ExportError> {
        if predicates.is_empty() {
            return Ok(StatementFiles::default());
        }
        let subjects = match tree {
            Some(tree) => subjects(tree)?,
            None => Vec::new(),
        };
        let mut files = BTreeMap::new();
        for predicate in predicates {
            let name = names.of(predicate.file_name());
            if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) || name.len() > MAX_NAME
            {
                return Err(AttestationError::Name { name }.into());
            }
            let bytes = Bytes::from(predicate.about(&subjects).to_json_indented()?);
            let mut stat = FileStat::new(name.as_bytes(), FileKind::File, MODE);
            stat.size = bytes.len() as u64;
            stat.mtime = names.time;
            if files.insert(name.clone().into_bytes(), (stat, bytes)).is_some() {
                return Err(AttestationError::Duplicate { name }.into());
            }
        }
        Ok(StatementFiles(files))
    }

    /// Tells of them and of the entries of `tree` in the order of a walk.
    pub(in crate::export) fn walk_with(
        &self,
        tree: Option<&dyn TreeSource>,
        visit: &mut Visit<'_>,
    ) -> Result<(), TransferError> {
        let mut left = self.0.iter().peekable();
        let mut broken = false;
        let mut lost = None;
        if let Some(tree) = tree {
            tree.walk(&mut |stat| {
                let top = stat.path.split(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
                while let Some((_, (stated, _))) = left.next_if(|(name, _)| **name < top) {
                    broken = visit(stated.clone()).is_break();
                    if broken {
                        return ControlFlow::Break(());
                    }
                }
                if self.0.contains_key(&top) {
                    return ControlFlow::Continue(());
                }
                if let FileKind::HardLink { target } = &stat.kind
                    && self.0.contains_key(target)
                {
                    lost = Some(stat.path.clone());
                    return ControlFlow::Break(());
                }
                let flow = visit(stat);
                broken = flow.is_break();
                flow
            })?;
        }
        if let Some(path) = lost {
            let path = String::from_utf8_lossy(&path).into_owned();
            return Err(TransferError::Clash { path, one: "the result".into(), other: "a statement".into() });
        }
        for (_, (stated, _)) in left {
            if broken || visit(stated.clone()).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(in crate::export) fn open(&self, path: &[u8]) -> Option<Box<dyn Read + Send>> {
        let (_, bytes) = self.0.get(path)?;
        Some(Box::new(Cursor::new(bytes.clone())))
    }
}

impl StatementNames<'_> {
    fn of(&self, file: &str) -> String {
        let Some(platform) = self.platform else { return format!("{}{file}", self.prefix) };
        let (stem, extension) = match file.rfind('.') {
            Some(at) => file.split_at(at),
            None => (file, ""),
        };
        format!("{}{stem}.{}{extension}", self.prefix, platform.replace('/', "_"))
    }
}

/// Every regular file by its path.
fn subjects(tree: &dyn TreeSource) -> Result<Vec<StatementSubject>, ExportError> {
    let mut subjects = Vec::new();
    let mut failed = None;
    tree.walk(&mut |stat| {
        if !matches!(stat.kind, FileKind::File | FileKind::HardLink { .. }) {
            return ControlFlow::Continue(());
        }
        let path = String::from_utf8_lossy(&stat.path).into_owned();
        // What is empty need not be opened, and a socket can't.
        let hashed = match stat.kind {
            FileKind::File if stat.size == 0 => Ok(Digest::sha256(b"")),
            _ => tree.open(&stat.path).and_then(digest),
        };
        match hashed {
            Ok(digest) => subjects.push(StatementSubject::new(path, digest)),
            Err(source) => failed = Some(AttestationError::Subject { path, source }),
        }
        if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(subjects),
    }
}

fn digest(mut file: Box<dyn Read + Send>) -> io::Result<Digest> {
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&chunk[..read]),
        }
    }
}
