//! [`ResultFiles`]: the files of a result, as the `local` and `tar` exporters give them to a client.
//!
//! The files of several platforms stand in a directory each, or side by side where the client asks for that;
//! then no two may have the same path.

use std::collections::BTreeMap;
use std::io;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;

use super::ExportError;
use super::options::InvalidOptions;
use super::options::parse_bool;
use super::options::parse_epoch;
use super::source::ExportSource;
use super::source::ResultPlatform;
use crate::cache::Tree;
use crate::ctx::Ctx;
use crate::fs::FileTime;
use crate::session::fsutil::Directory;
use crate::session::fsutil::FileKind;
use crate::session::fsutil::FileStat;
use crate::session::fsutil::TransferError;
use crate::session::fsutil::TreeSource;
use crate::session::fsutil::Visit;

/// Attributes that the `local` and `tar` exporters share.
#[derive(Clone, Debug, Default)]
pub(super) struct FilesOptions {
    /// `Some(None)` for an epoch given as empty: the frontend's doesn't count then.
    epoch: Option<Option<Timestamp>>,
    /// Whether each platform has a directory of its own; that is so where there are several.
    pub(super) split: Option<bool>,
}

impl FilesOptions {
    /// Takes the attributes that it knows out of `attributes`.
    pub(super) fn parse(attributes: &mut BTreeMap<String, String>) -> Result<FilesOptions, InvalidOptions> {
        let epoch = attributes.remove("source-date-epoch");
        let split = attributes.remove("platform-split");
        // Attestations that are files of their own are not exported yet, so there is nothing to name.
        attributes.remove("attestation-prefix");
        Ok(FilesOptions {
            epoch: epoch.map(|epoch| parse_epoch("source-date-epoch", &epoch)).transpose()?,
            split: split.map(|split| parse_bool("platform-split", &split)).transpose()?,
        })
    }

    fn epoch(
        &self,
        source: &ExportSource,
        platform: &ResultPlatform,
    ) -> Result<Option<Timestamp>, ExportError> {
        match self.epoch {
            Some(epoch) => Ok(epoch),
            None => source.epoch(Some(platform)),
        }
    }
}

/// The files of a result, mounted as long as this lives.
pub(super) struct ResultFiles {
    platforms: Vec<PlatformFiles>,
    split: bool,
}

struct PlatformFiles {
    /// As the frontend calls the platform.
    id: String,
    /// `None` for the empty file system.
    files: Option<(Directory, Arc<Tree>)>,
    /// The time that everything is given.
    time: Option<FileTime>,
}

impl ResultFiles {
    /// Makes the files of all platforms, at the same time.
    ///
    /// Cancellation safe.
    pub(super) async fn mount(
        ctx: &Ctx,
        source: &ExportSource,
        options: &FilesOptions,
        split: bool,
    ) -> Result<ResultFiles, ExportError> {
        let platforms = source.platforms()?;
        if platforms.len() > 1 && !source.is_multi_platform() {
            return Err(ExportError::SinglePlatform { platforms: platforms.len() });
        }
        let mut mounts = Vec::new();
        for platform in platforms {
            let missing = || ExportError::MissingRef { id: platform.id.clone() };
            let reference = source.find(&platform.id).ok_or_else(missing)?;
            let time = options
                .epoch(source, &platform)?
                .map(|epoch| FileTime::from((epoch.as_second(), epoch.subsec_nanosecond().unsigned_abs())));
            let ctx = ctx.clone();
            mounts.push(async move {
                let files = match reference {
                    None => None,
                    Some(reference) => {
                        let tree = reference.mount(&ctx).await.map_err(ExportError::Cache)?;
                        Some((Directory::open(tree.path())?, tree))
                    }
                };
                Ok::<_, ExportError>(PlatformFiles { id: platform.id, files, time })
            });
        }
        let platforms = ctx.run(futures::future::try_join_all(mounts)).await??;
        let files = ResultFiles { platforms, split };
        Ok(files)
    }

    /// The platform, if it is the only one and has a directory of its own.
    pub(super) fn only_platform(&self) -> Option<&str> {
        match self.platforms.as_slice() {
            [one] if self.split => Some(&one.id),
            _ => None,
        }
    }

    fn walk_split(&self, visit: &mut Visit<'_>) -> Result<(), TransferError> {
        let mut platforms: Vec<_> = self.platforms.iter().map(|p| (p.directory(), p)).collect();
        platforms.sort_by(|a, b| a.0.cmp(&b.0));
        for (directory, platform) in platforms {
            let mut root = FileStat::new(directory.clone(), FileKind::Directory, 0o755);
            root.mtime = platform.time.unwrap_or_default();
            if visit(root).is_break() {
                return Ok(());
            }
            let below = |path: &[u8]| [directory.as_slice(), b"/", path].concat();
            let mut broken = false;
            platform.walk(&mut |mut stat| {
                stat.path = below(&stat.path);
                if let FileKind::HardLink { target } = &mut stat.kind {
                    *target = below(target);
                }
                let flow = visit(stat);
                broken = flow.is_break();
                flow
            })?;
            if broken {
                return Ok(());
            }
        }
        Ok(())
    }

    /// All entries of all platforms in one order. What is in memory grows with their number.
    fn walk_merged(&self, visit: &mut Visit<'_>) -> Result<(), TransferError> {
        let mut entries: BTreeMap<Vec<Vec<u8>>, (FileStat, usize)> = BTreeMap::new();
        for (index, platform) in self.platforms.iter().enumerate() {
            let mut clash = None;
            platform.walk(&mut |stat| {
                let names = stat.path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect();
                match entries.get(&names) {
                    Some((there, _)) if there.is_dir() && stat.is_dir() => {}
                    Some((_, other)) => {
                        clash = Some((stat.path.clone(), *other));
                        return ControlFlow::Break(());
                    }
                    None => drop(entries.insert(names, (stat, index))),
                }
                ControlFlow::Continue(())
            })?;
            if let Some((path, other)) = clash {
                return Err(TransferError::Clash {
                    path: String::from_utf8_lossy(&path).into_owned(),
                    one: platform.id.clone(),
                    other: self.platforms[other].id.clone(),
                });
            }
        }
        for (stat, _) in entries.into_values() {
            if visit(stat).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl TreeSource for ResultFiles {
    fn walk(&self, visit: &mut Visit<'_>) -> Result<(), TransferError> {
        match self.platforms.as_slice() {
            _ if self.split => self.walk_split(visit),
            [one] => one.walk(visit),
            _ => self.walk_merged(visit),
        }
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let mut missing = io::Error::from(io::ErrorKind::NotFound);
        for platform in &self.platforms {
            let Some((files, _)) = &platform.files else { continue };
            let path = match self.split {
                false => Some(path),
                true => path.strip_prefix(platform.directory().as_slice()).and_then(|p| p.strip_prefix(b"/")),
            };
            match path.map(|path| files.open(path)) {
                Some(Ok(file)) => return Ok(file),
                Some(Err(error)) => missing = error,
                None => {}
            }
        }
        Err(missing)
    }
}

impl PlatformFiles {
    /// Its directory, where it has one of its own.
    fn directory(&self) -> Vec<u8> {
        self.id.replace('/', "_").into_bytes()
    }

    fn walk(&self, visit: &mut Visit<'_>) -> Result<(), TransferError> {
        let Some((files, _)) = &self.files else { return Ok(()) };
        files.walk(&mut |mut stat| {
            if let Some(time) = self.time {
                stat.mtime = time;
            }
            visit(stat)
        })
    }
}
