//! File ops: files are copied, made and removed, without a process.
//!
//! Each action has its base changed in a file system of its own, which is committed. A chain of actions whose
//! intermediate results nobody else needs goes on in one.
//!
//! # Lazy bases
//!
//! A base whose bytes are elsewhere is not fetched for changes that are the same on any base: [`blind`] says which
//! these are, and when they look all the same. Everything else looks into its base at the paths that it changes, which
//! [`onto`] lists: only layers that cover these are made here. What is copied from is read as [`Reads`] says.
//!
//! # Failures
//!
//! The files of an action that failed stay with its error, as it left them, for clients that look why
//! ([`FailedMounts`]). They are removed with it.
//!
//! # Cache keys
//!
//! What the op does is [`FileOp::key`]. An input that is only copied from counts with the content of what is
//! copied, and not with its own key: a selector names the paths, wildcards and patterns included. An input that
//! an action changes counts as it is.
//!
//! # Cancellation
//!
//! An action looks at its token between two files; the files of one that is given up are removed.

mod act;
mod blind;
mod copy;
mod onto;
mod owner;
mod unpack;
pub(super) mod wildcard;

use std::collections::BTreeMap;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::cache_map::CacheMap;
use super::cache_map::CacheOpts;
use super::hash::ContentHasher;
use super::hash::Selector;
use super::left::FailedMounts;
use super::left::LeftFiles;
use super::op::CopyFiles;
use super::op::FileAction;
use super::op::FileChange;
use super::op::FileInput;
use super::op::FileOp;
use super::op::Owner;
use super::op::Principal;
use super::op::Wildcard;
use super::operate::OpError;
use super::reads::Reads;
use crate::archive::ArchiveError;
use crate::cache::Cache;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::Look;
use crate::cache::MutableOptions;
use crate::cache::MutableRef;
use crate::cache::Strange;
use crate::cache::Tree;
use crate::ctx::Ctx;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Root;
use crate::pattern::InvalidPattern;
use crate::pattern::has_wildcards;
use crate::task::TaskFailed;
use crate::task::Tasks;

/// An action failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{source}")]
pub struct FileActionError {
    /// Of the action in the op.
    pub index: usize,
    pub source: FileError,
    /// What it was to change, if it came so far.
    pub mounts: Option<Box<FailedMounts>>,
}

/// Why an action failed. Paths are those of the file system that it works on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: no such file or directory", path.display())]
    NotFound { path: PathBuf },
    #[error("cannot copy to non-directory: {}", path.display())]
    NotDirectory { path: PathBuf },
    #[error("cannot replace to directory {} with file", path.display())]
    IsDirectory { path: PathBuf },
    #[error("{:?} is the root, which can't be removed", path.display())]
    RemoveRoot { path: PathBuf },
    #[error("there is nothing to copy from")]
    NoSource,
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{}: {id} is no user or group", path.display())]
    Id { path: PathBuf, id: u64 },
    #[error("can't read {}: {source}", path.display())]
    Read { path: PathBuf, source: Arc<std::io::Error> },
    #[error("can't write {}: {source}", path.display())]
    Write { path: PathBuf, source: Arc<std::io::Error> },
    #[error("can't unpack into {}: {source}", path.display())]
    Archive { path: PathBuf, source: Arc<ArchiveError> },
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Task(#[from] TaskFailed),
    #[error("cancelled")]
    Cancelled,
}

impl FileError {
    fn write(path: impl AsRef<Path>, source: std::io::Error) -> FileError {
        FileError::Write { path: path.as_ref().to_path_buf(), source: Arc::new(source) }
    }

    /// True if the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            FileError::Write { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            FileError::Fs(FsError::NoSpace { .. }) => true,
            _ => false,
        }
    }
}

impl FileOp {
    /// How the op and the `inputs` of its vertex count.
    pub(super) fn cache_map(&self, inputs: usize, hasher: &ContentHasher) -> CacheMap<ImmutableRef> {
        let keys = (0..inputs).map(|input| hasher.input_key(input, self.selectors(input)));
        CacheMap { digest: self.key, inputs: keys.collect(), opts: CacheOpts::new(), complete: true }
    }

    /// What counts of an input; empty if it counts as it is.
    fn selectors(&self, input: usize) -> Vec<Selector> {
        let this = FileInput::Input(input);
        if self.actions.iter().any(|action| action.base == this) {
            return Vec::new();
        }
        let mut selectors = Vec::new();
        for action in &self.actions {
            if let Some(Owner { user, group }) = action.owner() {
                let named = |principal: &Option<Principal>| matches!(principal, Some(Principal::Name { input, .. }) if *input == this);
                selectors.extend(named(user).then(|| Selector::file("/etc/passwd")));
                selectors.extend(named(group).then(|| Selector::file("/etc/group")));
            }
            if let FileChange::Copy(copy) = &action.change
                && copy.from == this
            {
                selectors.push(Selector {
                    path: copy.src.clone(),
                    wildcard: copy.wildcard != Wildcard::No,
                    follow: copy.follow_symlink,
                    include: copy.include.clone(),
                    exclude: copy.exclude.clone(),
                    required: copy.required.clone(),
                });
            }
        }
        selectors
    }

    /// Runs the actions that outputs need, each once.
    ///
    /// Thousands of these may wait at a time: what only some of them come to is boxed, so that the others have no room
    /// for it.
    pub(super) async fn run(
        &self,
        cache: &Cache,
        tasks: &Tasks,
        ctx: &Ctx,
        name: &str,
        inputs: &[Option<ImmutableRef>],
    ) -> Result<Vec<Option<ImmutableRef>>, OpError> {
        let (order, uses) = self.plan();
        let mut run = Run { op: self, cache, tasks, ctx, name, inputs, uses, made: BTreeMap::new() };
        for index in order {
            ctx.check()?;
            let made = run.action(index).await?;
            // Whoever changes it next, and nobody else, needs it.
            let goes_on = run.uses[index] == Uses { as_base: 1, other: 0 };
            let made = match goes_on {
                true => Made::Open(made),
                false => Made::Done(made.commit().await.map_err(|error| run.failed(index, error))?),
            };
            run.made.insert(index, made);
        }
        let output = |index: &usize| match run.made.get(index) {
            Some(Made::Done(made)) => Ok(Some(made.clone())),
            _ => Err(run.failed(*index, FileError::NoSource)),
        };
        self.outputs.iter().map(output).collect()
    }

    /// The actions that outputs need, each after those that it needs itself; and who needs each action.
    fn plan(&self) -> (Vec<usize>, Vec<Uses>) {
        let mut uses = vec![Uses::default(); self.actions.len()];
        let mut needed = vec![false; self.actions.len()];
        let mut stack = self.outputs.clone();
        for &output in &self.outputs {
            uses[output].other += 1;
        }
        while let Some(index) = stack.pop() {
            if std::mem::replace(&mut needed[index], true) {
                continue;
            }
            for (n, input) in self.actions[index].needs().enumerate() {
                if let FileInput::Action(input) = input {
                    match n {
                        0 => uses[input].as_base += 1,
                        _ => uses[input].other += 1,
                    }
                    stack.push(input);
                }
            }
        }
        // Decoding has made sure that this ends: no action needs itself.
        let mut order = Vec::new();
        let mut placed = vec![false; self.actions.len()];
        let mut stack: Vec<usize> = self.outputs.iter().rev().copied().collect();
        while let Some(&index) = stack.last() {
            let missing = |input: FileInput| match input {
                FileInput::Action(input) if !placed[input] => Some(input),
                _ => None,
            };
            let before: Vec<usize> = self.actions[index].needs().filter_map(missing).collect();
            if before.is_empty() || placed[index] {
                stack.pop();
                if !std::mem::replace(&mut placed[index], true) {
                    order.push(index);
                }
            } else {
                stack.extend(before);
            }
        }
        (order, uses)
    }
}

/// How often the result of an action is needed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Uses {
    as_base: usize,
    other: usize,
}

enum Made {
    Open(MutableRef),
    Done(ImmutableRef),
}

struct Run<'a> {
    op: &'a FileOp,
    cache: &'a Cache,
    tasks: &'a Tasks,
    ctx: &'a Ctx,
    name: &'a str,
    inputs: &'a [Option<ImmutableRef>],
    uses: Vec<Uses>,
    made: BTreeMap<usize, Made>,
}

impl Run<'_> {
    async fn action(&mut self, index: usize) -> Result<MutableRef, OpError> {
        let base = self.base(index, self.op.actions[index].base).await?;
        match Box::pin(self.act(index, &base)).await {
            Ok(()) => Ok(base),
            Err(error) => Err(self.with_mounts(index, base, error)),
        }
    }

    async fn act(&self, index: usize, base: &MutableRef) -> Result<(), OpError> {
        let action: &FileAction = &self.op.actions[index];
        let from = match &action.change {
            FileChange::Copy(copy) => Some(Box::pin(self.files(index, copy.from, copied(copy))).await?),
            _ => None,
        };
        let owner = action.owner().cloned().unwrap_or(Owner { user: None, group: None });
        let users = self.names(index, owner.user.as_ref(), owner::PASSWD).await?;
        let groups = self.names(index, owner.group.as_ref(), owner::GROUP).await?;
        let act = act::Act {
            action: action.clone(),
            base: base.mount().await.map_err(|error| self.failed(index, error))?,
            from: from.as_ref().map(|files| Arc::clone(&files.tree)),
            users,
            groups,
            cancel: self.ctx.cancel().child_token(),
        };
        // Where this future is dropped, the action ends as well.
        let _guard = act.cancel.clone().drop_guard();
        let done = self.tasks.spawn_blocking("file action", move || act.run()).await;
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(index, error)),
            Err(error) => Err(self.failed(index, error)),
        }
    }

    /// What the action changes.
    async fn base(&mut self, index: usize, input: FileInput) -> Result<MutableRef, OpError> {
        let parent = match input {
            FileInput::Scratch => None,
            FileInput::Input(n) => self.inputs.get(n).cloned().flatten(),
            FileInput::Action(n) => match self.made.remove(&n) {
                Some(Made::Open(open)) => return Ok(open),
                Some(Made::Done(done)) => {
                    self.made.insert(n, Made::Done(done.clone()));
                    Some(done)
                }
                None => None,
            },
        };
        let parent = match parent {
            Some(parent) => {
                let alone = parent.alone(self.ctx).await;
                Some(alone.map_err(|error| self.input_failed(index, input, error))?)
            }
            None => None,
        };
        let description = if self.name.is_empty() { "fileop target" } else { self.name };
        let (looks, strange) = match &parent {
            Some(parent) => Box::pin(self.looks(index, parent)).await?,
            None => (None, Strange::Open),
        };
        let description = description.to_owned();
        let options = MutableOptions { description, looks, strange, ..MutableOptions::default() };
        let made = self.cache.create(self.ctx, parent.as_ref(), options).await;
        made.map_err(|error| self.input_failed(index, input, error))
    }

    /// What the action, and those that go on where it ends, look at of a base that is elsewhere; `None` is all of
    /// it. And what of the layers that nobody knows.
    async fn looks(
        &self,
        index: usize,
        parent: &ImmutableRef,
    ) -> Result<(Option<Vec<Look>>, Strange), OpError> {
        const ALL: (Option<Vec<Look>>, Strange) = (None, Strange::Open);
        if !parent.can_be_partial().map_err(|error| self.failed(index, error))? {
            return Ok(ALL);
        }
        let elsewhere = parent.is_elsewhere().map_err(|error| self.failed(index, error))?;
        let (mut blind, mut looks, mut before) = (elsewhere, Vec::new(), onto::Makes::default());
        let mut chain = Some(index);
        while let Some(index) = chain {
            // A link that was made leads to paths that nobody has asked for.
            if before.links {
                return Ok(ALL);
            }
            let action = &self.op.actions[index];
            blind &= blind::may_be(&action.change);
            match &action.change {
                FileChange::Copy(copy) => {
                    // What is made by another action of the op may not be there yet.
                    if matches!(copy.from, FileInput::Action(_)) {
                        return Ok(ALL);
                    }
                    let files = self.files(index, copy.from, copied(copy)).await?;
                    let (tree, asked) = (Arc::clone(&files.tree), CopyFiles::clone(copy));
                    let look = move || onto::copy(&Root::open(tree.path())?, &asked);
                    let looked = self.tasks.spawn_blocking("file action", look).await;
                    let copied = match looked.map_err(|error| self.failed(index, error))? {
                        Ok(Some(copied)) => copied,
                        Ok(None) => return Ok(ALL),
                        // It will fail in its turn.
                        Err(_) => {
                            looks.push(onto::destination(copy));
                            return Ok((Some(looks), Strange::Open));
                        }
                    };
                    blind &= copied.only_files;
                    before = copied.makes;
                    looks.extend(copied.looks);
                }
                change => {
                    let Some(look) = onto::look(change) else { return Ok(ALL) };
                    before = onto::Makes { links: matches!(change, FileChange::Symlink(_)) };
                    looks.push(look);
                }
            }
            chain = match self.uses[index] {
                Uses { as_base: 1, other: 0 } => {
                    self.op.actions.iter().position(|next| next.base == FileInput::Action(index))
                }
                _ => None,
            };
        }
        Ok((Some(looks), if blind { Strange::Empty } else { Strange::Open }))
    }

    /// The files of something that is only read, where `reads` says.
    async fn files(&self, index: usize, input: FileInput, reads: Reads) -> Result<Files, OpError> {
        let made = match input {
            FileInput::Scratch => None,
            FileInput::Input(n) => self.inputs.get(n).cloned().flatten(),
            FileInput::Action(n) => match self.made.get(&n) {
                Some(Made::Done(done)) => Some(done.clone()),
                Some(Made::Open(_)) | None => None,
            },
        };
        match made {
            Some(made) => {
                let tree = reads.mount(self.ctx, self.tasks, &made).await;
                let tree = tree.map_err(|error| self.input_failed(index, input, error))?;
                Ok(Files { tree, _empty: None })
            }
            None => {
                let options = MutableOptions { description: "nothing".to_owned(), ..Default::default() };
                let empty = self.cache.create(self.ctx, None, options).await;
                let empty = empty.map_err(|error| self.failed(index, error))?;
                let tree = empty.mount().await.map_err(|error| self.failed(index, error))?;
                Ok(Files { tree, _empty: Some(empty) })
            }
        }
    }

    /// The files that say what a name means. The empty file system has no names.
    async fn names(
        &self,
        index: usize,
        principal: Option<&Principal>,
        file: &str,
    ) -> Result<Option<Arc<Tree>>, OpError> {
        let Some(Principal::Name { input, .. }) = principal else { return Ok(None) };
        let empty = matches!(input, FileInput::Input(n) if !matches!(self.inputs.get(*n), Some(Some(_))));
        if empty {
            return Ok(None);
        }
        let mut reads = Reads::default();
        reads.path(file, Last::Follow);
        Ok(Some(Box::pin(self.files(index, *input, reads)).await?.tree))
    }

    fn failed(&self, index: usize, error: impl Into<FileError>) -> OpError {
        match error.into() {
            FileError::Cancelled | FileError::Cache(CacheError::Cancelled) => OpError::Cancelled,
            _ if self.ctx.check().is_err() => OpError::Cancelled,
            source => OpError::failed(FileActionError { index, source, mounts: None }),
        }
    }

    /// The error of an action, with what it began with and left.
    fn with_mounts(&self, index: usize, base: MutableRef, error: OpError) -> OpError {
        let OpError::Failed { source, .. } = &error else { return error };
        let Some(failed) = source.downcast_ref::<FileActionError>() else { return error };
        let mut mounts = vec![None; self.op.actions.len()];
        if let FileChange::Copy(copy) = &self.op.actions[index].change
            && let FileInput::Action(from) = copy.from
            && let Some(Made::Done(made)) = self.made.get(&from)
        {
            mounts[from] = Some(LeftFiles::Untouched(made.clone()));
        }
        mounts[index] = Some(LeftFiles::written(base));
        let mounts = Some(Box::new(FailedMounts { inputs: self.inputs.to_vec(), mounts }));
        OpError::failed(FileActionError { mounts, ..failed.clone() })
    }

    /// As [`Run::failed`], of an error with something that the action needs.
    fn input_failed(&self, index: usize, input: FileInput, error: CacheError) -> OpError {
        let FileInput::Input(input) = input else { return self.failed(index, error) };
        match OpError::of_input(input, error.clone()) {
            OpError::Failed { .. } => self.failed(index, error),
            lost => lost,
        }
    }
}

/// Files to read from.
struct Files {
    tree: Arc<Tree>,
    /// Goes when they do.
    _empty: Option<MutableRef>,
}

/// What a copy reads of its source.
fn copied(copy: &CopyFiles) -> Reads {
    let mut reads = Reads::default();
    let last = if copy.follow_symlink { Last::Follow } else { Last::Keep };
    let wildcard = copy.wildcard != Wildcard::No;
    reads.named(&copy.src, wildcard, last);
    // What a link leads to may be an archive.
    match copy.unpack {
        true if wildcard && has_wildcards(&copy.src) => reads.named(&copy.src, wildcard, Last::Follow),
        true => reads.path(&copy.src, Last::Follow),
        false => {}
    }
    reads
}

/// The path, relative, with every `.` and `..` resolved by its text alone. What leads out of the root is the root.
pub(super) fn lexical(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests;
