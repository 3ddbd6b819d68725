//! [`Prepared`]: the file systems of a process, from its mounts to its results.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::try_join_all;

use super::super::left::FailedMounts;
use super::super::left::LeftFiles;
use super::super::op::CacheSharing;
use super::super::op::ExecMount;
use super::super::op::ExecOp;
use super::super::op::MountKind;
use super::super::op::ROOT;
use super::super::operate::OpError;
use super::ExecOpError;
use super::Execs;
use super::cache_mount::CacheMount;
use super::cache_mount::Wanted;
use super::key::clean;
use super::of_input;
use super::points::points;
use super::secret;
use super::ssh::AgentSocket;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::MutableOptions;
use crate::cache::MutableRef;
use crate::cache::Tree;
use crate::ctx::Ctx;
use crate::executor::Hold;
use crate::executor::MountSource;
use crate::executor::ProcessMount;

/// Everything that is mounted.
#[derive(Debug)]
pub struct Prepared {
    pub root: PathBuf,
    pub read_only_root: bool,
    /// Sorted, so that those above come first.
    pub mounts: Vec<ProcessMount>,
    /// Keep the directories mounted.
    pub holds: Vec<Hold>,
    /// By the mounts that they are made from.
    results: Vec<(usize, Outcome)>,
    /// Given up once the process has ended well.
    temporary: Vec<(usize, MutableRef)>,
}

/// What an output of the vertex will be.
#[derive(Debug)]
enum Outcome {
    Input(Option<ImmutableRef>),
    Written(Box<MutableRef>),
}

impl Prepared {
    pub async fn new(
        execs: &Execs,
        ctx: &Ctx,
        op: &ExecOp,
        inputs: &[Option<ImmutableRef>],
    ) -> Result<Prepared, OpError> {
        let mut cache_mounts = cache_mounts(execs, ctx, op, inputs).await?;
        extract(ctx, op, inputs).await?;
        let mut prepared = Prepared {
            root: PathBuf::new(),
            read_only_root: false,
            mounts: Vec::new(),
            holds: Vec::new(),
            results: Vec::new(),
            temporary: Vec::new(),
        };
        for (index, mount) in op.mounts.iter().enumerate() {
            let input = mount.input.and_then(|input| inputs.get(input).cloned().flatten());
            let source = match &mount.kind {
                // Written even if it is read-only, as mount points are made in it, and mounted when all of these are known.
                MountKind::Bind if mount.dest == ROOT => {
                    let files = create(execs, ctx, op, index, input).await?;
                    prepared.keep(mount, index, files);
                    continue;
                }
                MountKind::Bind => prepared.bind(execs, ctx, op, index, input).await?,
                MountKind::Cache { .. } => {
                    if mount.gives_output() {
                        prepared.results.push((index, Outcome::Input(input)));
                    }
                    let Some(cache_mount) = cache_mounts.remove(&index) else { continue };
                    prepared.cache(&cache_mount, mount).await?
                }
                MountKind::Tmpfs { size } => MountSource::Tmpfs { size: *size },
                MountKind::Secret(file) => {
                    let Some(secret) = secret::file(ctx, file).await? else { continue };
                    let data: Arc<[u8]> = secret.reveal().as_ref().into();
                    MountSource::Secret { data, uid: file.uid, gid: file.gid, mode: file.mode }
                }
                MountKind::Ssh(file) => {
                    let opened = AgentSocket::open(ctx, file, &execs.executor, &execs.tasks).await?;
                    let Some(agent) = opened else { continue };
                    let path = agent.path();
                    prepared.holds.push(Hold::new(Arc::new(agent)));
                    MountSource::Socket { path }
                }
            };
            // The root covers it.
            if mount.dest == ROOT {
                continue;
            }
            let dest = destination(&mount.dest, &op.cwd);
            prepared.mounts.push(ProcessMount { dest, source, read_only: mount.read_only });
        }
        prepared.mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        prepared.show_root(op).await?;
        Ok(prepared)
    }

    /// Mounts the root file system: the last of them, which covers the others.
    async fn show_root(&mut self, op: &ExecOp) -> Result<(), OpError> {
        let Some(index) = op.mounts.iter().rposition(|mount| mount.dest == ROOT) else { return Ok(()) };
        let points = points(op.security, &op.cwd, &self.mounts);
        let Some(files) = self.written(index) else { return Ok(()) };
        let tree = files.mount_with(points).await.map_err(ExecOpError::from)?;
        (self.root, self.read_only_root) = (self.hold(tree), op.mounts[index].read_only);
        Ok(())
    }

    /// What was made for a mount, to be written.
    fn written(&self, index: usize) -> Option<&MutableRef> {
        let results = self.results.iter().filter_map(|(index, outcome)| match outcome {
            Outcome::Input(_) => None,
            Outcome::Written(files) => Some((index, &**files)),
        });
        let mut all = results.chain(self.temporary.iter().map(|(index, files)| (index, files)));
        all.find_map(|(of, files)| (*of == index).then_some(files))
    }

    /// The file system of a bind mount, and the output that it gives.
    async fn bind(
        &mut self,
        execs: &Execs,
        ctx: &Ctx,
        op: &ExecOp,
        index: usize,
        input: Option<ImmutableRef>,
    ) -> Result<MountSource, OpError> {
        let mount = &op.mounts[index];
        if let (Some(input), true) = (&input, mount.read_only) {
            let tree = input.mount(ctx).await.map_err(|error| of_input(mount.input, error))?;
            let directory = self.hold(tree);
            if mount.output {
                self.results.push((index, Outcome::Input(Some(input.clone()))));
            }
            return Ok(MountSource::Directory { directory, selector: mount.selector.clone() });
        }
        let files = create(execs, ctx, op, index, input).await?;
        let tree = files.mount().await.map_err(ExecOpError::from)?;
        self.keep(mount, index, files);
        Ok(MountSource::Directory { directory: self.hold(tree), selector: mount.selector.clone() })
    }

    fn keep(&mut self, mount: &ExecMount, index: usize, files: MutableRef) {
        if mount.output {
            self.results.push((index, Outcome::Written(Box::new(files))));
        } else {
            self.temporary.push((index, files));
        }
    }

    async fn cache(
        &mut self,
        cache_mount: &Arc<CacheMount>,
        mount: &ExecMount,
    ) -> Result<MountSource, OpError> {
        let files = cache_mount.files().map_err(ExecOpError::from)?;
        // The mount goes first, then the right to it.
        let directory = self.hold(files.mount().await.map_err(ExecOpError::from)?);
        self.holds.push(Hold::new(cache_mount.clone()));
        Ok(MountSource::Directory { directory, selector: mount.selector.clone() })
    }

    /// Keeps it mounted. Returns where.
    fn hold(&mut self, tree: Arc<Tree>) -> PathBuf {
        let directory = tree.path().to_path_buf();
        self.holds.push(Hold::new(tree));
        directory
    }

    /// One result per output of the vertex. What the process wrote is committed.
    pub async fn commit(self, op: &ExecOp) -> Result<Vec<Option<ImmutableRef>>, OpError> {
        debug_assert_eq!(self.results.len(), op.outputs().count());
        drop(self.holds);
        let mut results = Vec::with_capacity(self.results.len());
        for (_, outcome) in self.results {
            results.push(match outcome {
                Outcome::Input(input) => input,
                Outcome::Written(files) => match files.commit().await {
                    Ok(written) => Some(written),
                    Err(CacheError::Cancelled) => return Err(OpError::Cancelled),
                    Err(error) => return Err(ExecOpError::from(error).into()),
                },
            });
        }
        Ok(results)
    }
}

impl Prepared {
    /// What a process that failed began with and left.
    pub fn fail(self, op: &ExecOp, inputs: &[Option<ImmutableRef>]) -> FailedMounts {
        drop(self.holds);
        let input = |mount: &ExecMount| mount.input.and_then(|input| inputs.get(input).cloned().flatten());
        let inputs: Vec<_> = op.mounts.iter().map(input).collect();
        let mut mounts: Vec<_> =
            inputs.iter().cloned().map(|input| input.map(LeftFiles::Untouched)).collect();
        let written = self.results.into_iter().filter_map(|(index, outcome)| match outcome {
            Outcome::Input(_) => None,
            Outcome::Written(files) => Some((index, *files)),
        });
        for (index, files) in written.chain(self.temporary) {
            mounts[index] = Some(LeftFiles::written(files));
        }
        FailedMounts { inputs, mounts }
    }
}

/// A file system on top of the input of a mount, to be written.
async fn create(
    execs: &Execs,
    ctx: &Ctx,
    op: &ExecOp,
    index: usize,
    input: Option<ImmutableRef>,
) -> Result<MutableRef, OpError> {
    let mount = &op.mounts[index];
    let options = MutableOptions {
        description: format!("mount {} from exec {}", mount.dest, op.args.join(" ")),
        ..MutableOptions::default()
    };
    let create = async {
        let parent = match input {
            Some(input) if mount.output => Some(input.alone(ctx).await?),
            input => input,
        };
        execs.cache.create(ctx, parent.as_ref(), options).await
    };
    create.await.map_err(|error| of_input(mount.input, error))
}

/// Makes the files of all inputs that are mounted, at the same time. Those of a single one are made when it is mounted.
async fn extract(ctx: &Ctx, op: &ExecOp, inputs: &[Option<ImmutableRef>]) -> Result<(), OpError> {
    let used = |index: &usize| op.mounts.iter().any(|mount| mount.input == Some(*index));
    let used = inputs.iter().enumerate().filter(|(index, _)| used(index));
    let used: Vec<_> = used.filter_map(|(index, input)| Some((index, input.as_ref()?))).collect();
    if used.len() < 2 {
        return Ok(());
    }
    let extracts = used.into_iter().map(|(index, input)| async move {
        input.extract(ctx).await.map_err(|error| of_input(Some(index), error))
    });
    // Boxed: an extraction is a large future, and there may be several.
    let extracts: Vec<_> = extracts.map(Box::pin).collect();
    try_join_all(extracts).await.map(drop)
}

/// Takes the cache mounts, each name once, in the order of their names: two ops that lock the same ones never wait
/// for each other.
async fn cache_mounts(
    execs: &Execs,
    ctx: &Ctx,
    op: &ExecOp,
    inputs: &[Option<ImmutableRef>],
) -> Result<BTreeMap<usize, Arc<CacheMount>>, OpError> {
    let mut wanted: BTreeMap<String, Vec<(usize, CacheSharing)>> = BTreeMap::new();
    let describe = |index: usize| {
        let mount = op.mounts.get(index)?;
        let MountKind::Cache { sharing, .. } = &mount.kind else { return None };
        let id = mount.cache_id()?;
        let initial = mount.input.and_then(|input| inputs.get(input)?.as_ref());
        let mut description = format!("cached mount {} from exec {}", mount.dest, op.args.join(" "));
        if id != mount.dest {
            description.push_str(&format!(" with id {id:?}"));
        }
        Some(Wanted { id, sharing: *sharing, initial, description })
    };
    for index in 0..op.mounts.len() {
        if let Some(mount) = describe(index) {
            wanted.entry(mount.name()).or_default().push((index, mount.sharing));
        }
    }
    let mut found = BTreeMap::new();
    for uses in wanted.into_values() {
        let Some((first, _)) = uses.first() else { continue };
        let Some(mount) = describe(*first) else { continue };
        let input = op.mounts.get(*first).and_then(|m| m.input);
        let taken = execs.cache_mounts.get(ctx, &mount).await;
        let taken = taken.map_err(|error| of_input(input, error))?;
        found.extend(uses.iter().map(|(index, _)| (*index, taken.clone())));
    }
    Ok(found)
}

/// Absolute; what is relative lies in the working directory.
fn destination(dest: &str, cwd: &str) -> String {
    if dest.starts_with('/') { clean(dest) } else { clean(&format!("{cwd}/{dest}")) }
}
