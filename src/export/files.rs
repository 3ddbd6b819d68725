//! [`ResultFiles`]: the files of a result, as the `local` and `tar` exporters give them to a client.
//!
//! The files of several platforms stand in a directory each, or side by side where the client asks for that;
//! then no two may have the same path. A symbolic link that begins at the root begins at its platform's directory
//! then, as BuildKit's clients expect it.

use std::collections::BTreeMap;
use std::io;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;

use super::ExportError;
use super::attestation;
use super::attestation::Predicate;
use super::attestation::StatementFiles;
use super::attestation::StatementNames;
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
use crate::task::Tasks;

/// Attributes that the `local` and `tar` exporters share.
#[derive(Clone, Debug, Default)]
pub(super) struct FilesOptions {
    /// `Some(None)` for an epoch given as empty: the frontend's doesn't count then.
    epoch: Option<Option<Timestamp>>,
    /// Whether each platform has a directory of its own; that is so where there are several.
    pub(super) split: Option<bool>,
    /// Of the names of files that state something.
    prefix: String,
}

impl FilesOptions {
    /// Takes the attributes that it knows out of `attributes`.
    pub(super) fn parse(attributes: &mut BTreeMap<String, String>) -> Result<FilesOptions, InvalidOptions> {
        let epoch = attributes.remove("source-date-epoch");
        let split = attributes.remove("platform-split");
        let prefix = attributes.remove("attestation-prefix").unwrap_or_default();
        if prefix.contains(['/', '\0']) {
            return Err(InvalidOptions::AttestationPrefix { value: prefix });
        }
        Ok(FilesOptions {
            prefix,
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
    stated: StatementFiles,
}

impl ResultFiles {
    /// Makes the files of all platforms, at the same time.
    ///
    /// Cancellation safe.
    pub(super) async fn mount(
        ctx: &Ctx,
        tasks: &Tasks,
        source: &ExportSource,
        options: &FilesOptions,
        split: bool,
    ) -> Result<ResultFiles, ExportError> {
        let platforms = source.platforms()?;
        if platforms.len() > 1 && !source.is_multi_platform() {
            return Err(ExportError::SinglePlatform { platforms: platforms.len() });
        }
        let mut mounts = Vec::new();
        // Where the platforms have no directories of their own.
        let named_by_platform =
            source.is_multi_platform() && !options.split.unwrap_or(source.is_multi_platform());
        for platform in platforms {
            let missing = || ExportError::MissingRef { id: platform.id.clone() };
            let reference = source.find(&platform.id).ok_or_else(missing)?;
            let time = options
                .epoch(source, &platform)?
                .map(|epoch| FileTime::from((epoch.as_second(), epoch.subsec_nanosecond().unsigned_abs())));
            let stated = source.attestations.get(&platform.id).into_iter().flatten();
            let stated: Vec<_> = stated.filter(|one| !one.is_inline_only()).cloned().collect();
            let (ctx, tasks, prefix) = (ctx.clone(), tasks.clone(), options.prefix.clone());
            mounts.push(async move {
                let files = match reference {
                    None => None,
                    Some(reference) => {
                        let tree = reference.mount(&ctx).await?;
                        Some((Directory::open(tree.path())?, tree))
                    }
                };
                let mut files = PlatformFiles { id: platform.id, files, time, stated: Default::default() };
                if !stated.is_empty() {
                    let predicates = attestation::read(&ctx, &tasks, stated).await?;
                    let stating = tasks.spawn_blocking("state files", move || {
                        files.state(&predicates, &prefix, named_by_platform)?;
                        Ok::<_, ExportError>(files)
                    });
                    files = stating.await??;
                }
                Ok::<_, ExportError>(files)
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
                match &mut stat.kind {
                    FileKind::HardLink { target } => *target = below(target),
                    FileKind::Symlink { target } if target.starts_with(b"/") => {
                        *target = [b"/", directory.as_slice(), clean(target).as_slice()].concat();
                    }
                    _ => {}
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
            let path = match self.split {
                false => Some(path),
                true => path.strip_prefix(platform.directory().as_slice()).and_then(|p| p.strip_prefix(b"/")),
            };
            match path.map(|path| platform.open(path)) {
                Some(Ok(file)) => return Ok(file),
                Some(Err(error)) => missing = error,
                None => {}
            }
        }
        Err(missing)
    }
}

/// An absolute path without `.` and `..`; without anything if that is the root.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.iter().flat_map(|name| [b"/".as_slice(), name]).collect::<Vec<_>>().concat()
}

impl PlatformFiles {
    /// Its directory, where it has one of its own: one name, on whatever system the files are written.
    fn directory(&self) -> Vec<u8> {
        self.id.replace(['/', '\\', ':'], "_").into_bytes()
    }

    fn walk(&self, visit: &mut Visit<'_>) -> Result<(), TransferError> {
        let tree = self.files.as_ref().map(|(files, _)| files as &dyn TreeSource);
        self.stated.walk_with(tree, &mut |mut stat| {
            if let Some(time) = self.time {
                stat.mtime = time;
            }
            visit(stat)
        })
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        match (self.stated.open(path), &self.files) {
            (Some(stated), _) => Ok(stated),
            (None, Some((files, _))) => files.open(path),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Adds files that state `predicates` of those that are there. Blocks.
    fn state(
        &mut self,
        predicates: &[Predicate],
        prefix: &str,
        by_platform: bool,
    ) -> Result<(), ExportError> {
        let platform = by_platform.then_some(self.id.as_str());
        let now = FileTime::from((Timestamp::now().as_second(), 0));
        let names = StatementNames { prefix, platform, time: self.time.unwrap_or(now) };
        let tree = self.files.as_ref().map(|(files, _)| files as &dyn TreeSource);
        self.stated = StatementFiles::about(tree, predicates, &names)?;
        Ok(())
    }
}
