//! A state is looked into: [`ImmutableRef::mount_paths`] makes as few of its layers files as give the same
//! answers at some paths as all of them would.
//!
//! ```text
//!   looks: /etc/os-release          top   e   nothing at the path: not needed
//!                                         d   etc/            -> goes on below
//!   opened one after the other,           c   etc/os-release -> usr/lib/os-release, and again from the top
//!   from the top, until all               b   usr/lib/os-release: decided
//!   is decided                     bottom a   never opened
//!
//!   mounted: c and b
//! ```
//!
//! # Invariants
//!
//! - Every path that was looked at is in the mounted tree what it is in the state, missing ones included, and so
//!   is everything that a link on the way leads to. What is not on such a path may be missing or be that of a
//!   layer further down.
//! - A layer is fetched only if the answer depends on it, given what is known of those above it.
//! - A layer that was opened is unpacked into its own snapshot, as for anybody who needs all of the files. Nothing
//!   that is done here is done again.
//! - Of a layer that is known and not here, some entries can be enough. These are in a snapshot of another name.
//! - Whoever looks may have the blobs of all layers that he is told of: what is known of a layer counts only for
//!   those whom the content store admits to its blob.
//!
//! # How many at a time
//!
//! A file is looked for in one layer after the other: whether the next one is needed is known only then. All layers
//! that can say something of a directory's contents are needed, once it is found: those are opened at the same time.
//! What several looks wait for is opened at the same time as well.
//!
//! What was made here is there, and looked at ahead of what asks for it, twice as much each time: a look that goes
//! through a chain of N steps takes log N surveys of them.
//!
//! # Parts of layers
//!
//! What was unpacked once is known by its index (`indexes.rs`), which says where in the layer the bytes of each file
//! are. Directories, links and attributes come from there. The bytes of files come from ranges of the blob, if its
//! compression lets somebody begin in the middle, the registry gives ranges, and they are a small part of the blob:
//! `select.rs` says which, `part.rs` gets them. Otherwise the layer is opened as a whole.
//!
//! # Layers that imply directories
//!
//! A layer without entries for the directories of its files says nothing of them, and where one of them is a link
//! below, its files are elsewhere. Such a layer can't be unpacked alone. It is opened over what the layers below say
//! of these directories, which is a look at the state below. What it has there is known as well, once it was opened,
//! but for that state only; so is what a layer has that links to files of those below.
//!
//! # Cancellation
//!
//! As [`materialize`](super::materialize): may be dropped, and what was opened stays.

mod known;
mod part;
mod select;
mod survey;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use futures::stream;

use super::Cache;
use super::CacheError;
use super::ImmutableRef;
use super::Tree;
use super::indexes;
use super::indexes::Of;
use super::materialize::CONCURRENT;
use super::materialize::Target;
use super::materialize::chains;
use super::record::ChangeSet;
use super::record::Layer;
use super::record::Part;
use super::snapshots::Content;
use super::snapshots::SnapshotHold;
use super::snapshots::chain_key;
use super::snapshots::is_part;
use super::snapshots::layer_key;
use super::stack::Stack;
use crate::content::DescHandlers;
use crate::content::FetchError;
use crate::content::Origin;
use crate::ctx::Ctx;
use crate::fs::Last;
use crate::fs::Root;
use crate::oci::ChainId;
use crate::pattern::Glob;
use crate::pattern::InvalidPattern;
use crate::snapshot::Parents;
use crate::snapshot::SnapshotError;
use known::Known;
use select::Spot;
use survey::Survey;

/// A path of a state that somebody looks at. Symlinks on the way resolve beneath the root.
#[derive(Clone, Debug)]
pub struct Look {
    /// From the root; `..` goes up from where the links before it lead.
    pub path: PathBuf,
    /// Whether a link at the end is followed.
    pub last: Last,
    pub want: Want,
    /// Something is to be changed there: the attributes of the directories on the way count as well, which the
    /// change set will have.
    pub to_change: bool,
}

/// What somebody looks at.
#[derive(Clone, Debug)]
pub enum Want {
    /// What is there; of a directory, itself and nothing in it.
    Entry,
    /// A directory, itself and nothing in it. Anything else is going to be replaced: it may be missing.
    Directory,
    /// What is there, and all that is in it.
    Tree,
    /// All beneath the path that matches, each with what is in it.
    Matching(Pattern),
}

impl Want {
    /// True if it is of what is in a directory.
    fn has_contents(&self) -> bool {
        match self {
            Want::Entry | Want::Directory => false,
            Want::Tree | Want::Matching(_) => true,
        }
    }
}

/// What becomes of layers that nobody here knows anything of, if a look depends on them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Strange {
    /// They are fetched and opened.
    #[default]
    Open,
    /// They stay where they are, and nothing is at any of the paths that are looked at.
    Empty,
}

/// A pattern for paths, and for the directories on the way to what it matches.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// By number of components, from one.
    levels: Vec<Glob>,
}

impl Pattern {
    /// Of a relative pattern with one component at least.
    pub fn new(pattern: &str) -> Result<Pattern, InvalidPattern> {
        let ends = pattern.match_indices('/').map(|(at, _)| at).chain([pattern.len()]);
        let levels = ends.map(|end| Glob::new(&pattern[..end])).collect::<Result<_, _>>()?;
        Ok(Pattern { levels })
    }

    /// True for a path that matches, and for all beneath it.
    pub(super) fn matches_beneath(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let top = ends.chain([path.len()]).nth(self.levels.len() - 1);
        top.is_some_and(|end| self.levels.last().is_some_and(|glob| glob.matches(&path[..end])))
    }

    /// True for a path above some that match.
    fn matches_above(&self, path: &[u8]) -> bool {
        let depth = path.split(|byte| *byte == b'/').count();
        depth < self.levels.len() && self.levels[depth - 1].matches(path)
    }
}

impl Look {
    /// A look at what a path is; a link at the end is followed.
    pub fn at(path: impl Into<PathBuf>) -> Look {
        Look { path: path.into(), last: Last::Follow, want: Want::Entry, to_change: false }
    }
}

impl ImmutableRef {
    /// True if some layers can show without the others, and not all are here as files: it pays to say which paths
    /// somebody looks at.
    pub fn can_be_partial(&self) -> Result<bool, CacheError> {
        let (snapshots, stack) = (&self.cache().0.snapshots, self.stack());
        let is_whole = || stack.known(snapshots.generation()).count == stack.count();
        Ok(snapshots.stacks() && !is_whole() && !snapshots.without_files(stack.blobs())?.is_empty())
    }

    /// A tree that has the paths of `looks` as the state has them, to be read. Layers that say nothing of them are
    /// neither fetched nor unpacked, unless the snapshotter can't put layers on top of each other.
    ///
    /// Cancellation safe.
    pub async fn mount_paths(&self, ctx: &Ctx, looks: &[Look]) -> Result<Arc<Tree>, CacheError> {
        let cache = self.cache();
        if !self.can_be_partial()? {
            return self.mount(ctx).await;
        }
        let (parts, handlers) = (self.parts(), self.handlers());
        let holds = cache.stand_on_paths(ctx, &parts, handlers, looks, Strange::Open).await?;
        if holds.len() == parts.len() && !holds.iter().any(|hold| is_part(hold.key())) {
            return self.mount(ctx).await;
        }
        Ok(Arc::new(cache.view(holds).await?))
    }
}

/// What is known of a layer.
#[derive(Clone)]
enum State {
    /// Nobody has looked yet.
    Unseen,
    /// Nothing: it has to be opened.
    Closed,
    Known(Known),
}

impl Cache {
    /// The snapshots that a snapshot must have as parents to have the paths of `looks`, made where they are
    /// missing. For snapshotters that stack.
    pub(super) async fn stand_on_paths(
        &self,
        ctx: &Ctx,
        parts: &[Part],
        handlers: &DescHandlers,
        looks: &[Look],
        strange: Strange,
    ) -> Result<Vec<Arc<SnapshotHold>>, CacheError> {
        let mut states = vec![State::Unseen; parts.len()];
        // Only what was given as a blob is ever opened.
        let blobs = parts.iter().rposition(|part| part.blob().is_some()).map_or(0, |highest| highest + 1);
        let chains = chains(parts[..blobs].iter());
        let mut looks: Arc<[Look]> = looks.into();
        // The root's own attributes are those of what is on top, which costs nothing if it was made here.
        let top = parts.last().filter(|part| matches!(part.set, ChangeSet::Made(_)));
        let top = top.map(|_| parts.len() - 1);
        let mut ahead = 1;
        loop {
            self.0.files.surveys.fetch_add(1, Ordering::Relaxed);
            let known: Vec<Option<Known>> = states
                .iter()
                .map(|state| match state {
                    State::Known(known) => Some(known.clone()),
                    State::Unseen | State::Closed => None,
                })
                .collect();
            let asked = Arc::clone(&looks);
            let mut decided = None;
            let survey = self.0.tasks.spawn_blocking("survey layers", move || survey::run(&known, &asked));
            let wanted: BTreeSet<usize> = match survey.await?? {
                Survey::Undecided { layers } => layers,
                Survey::Decided { mut layers, spots } => {
                    layers.extend(top);
                    let spots = Arc::new(spots);
                    let opened = |layer: &usize| states[*layer].hold(&spots);
                    if let Some(holds) = layers.iter().map(opened).collect::<Option<Vec<_>>>() {
                        return Ok(holds);
                    }
                    layers.retain(|layer| states[*layer].hold(&spots).is_none());
                    decided = Some(spots);
                    layers
                }
            };
            // What was made here takes no more than a look at each, and a long chain of it not a survey for each.
            let made = |layer: &usize| matches!(parts[*layer].set, ChangeSet::Made(_));
            let with_below = |layer: usize| {
                let below = (0..layer).rev().take(ahead).take_while(made);
                std::iter::once(layer).chain(below.filter(move |_| made(&layer)))
            };
            let unseen: BTreeSet<usize> = wanted.iter().copied().flat_map(with_below).collect();
            let unseen: Vec<usize> =
                unseen.into_iter().rev().filter(|layer| matches!(states[*layer], State::Unseen)).collect();
            ahead *= 2;
            // What is here costs less than what is not, and may decide as much.
            for &layer in &unseen {
                let chain = chains.get(layer).copied();
                states[layer] = match self.see(ctx, &parts[layer], chain, handlers).await {
                    // Whoever asks may not know.
                    Err(CacheError::Fetch(FetchError::Cancelled { .. })) => {
                        return Err(CacheError::Cancelled);
                    }
                    Err(CacheError::Fetch(_)) if strange == Strange::Empty => State::Closed,
                    seen => seen?,
                };
            }
            if !unseen.is_empty() {
                continue;
            }
            if strange == Strange::Empty && decided.is_none() {
                looks = Arc::new([]);
                continue;
            }
            let opening: Vec<_> = wanted
                .iter()
                .map(|&layer| {
                    let whole = self.open_layer(ctx, parts, layer, &chains, handlers);
                    let known = match (&states[layer], parts[layer].blob(), &decided) {
                        (State::Known(Known::Index { known, .. }), Some(blob), Some(spots)) => {
                            Some((Arc::clone(known), blob, Arc::clone(spots)))
                        }
                        _ => None,
                    };
                    let looks = &looks;
                    let open = async move {
                        if let Some((known, blob, spots)) = known {
                            let part = self.open_part(ctx, blob, handlers, &known, &spots, looks).await?;
                            if let Some(hold) = part {
                                let part = Some(known::Part { hold, spots });
                                return Ok((layer, Known::Index { known, part }));
                            }
                        }
                        Ok::<_, CacheError>((layer, self.files_of(whole.await?)?))
                    };
                    open.boxed()
                })
                .collect();
            let mut opening = stream::iter(opening).buffer_unordered(CONCURRENT);
            let mut opened = Vec::new();
            while let Some(one) = opening.try_next().await? {
                opened.push(one);
            }
            drop(opening);
            for (layer, known) in opened {
                states[layer] = State::Known(known);
            }
        }
    }

    /// What is known of a part without any of its bytes being fetched.
    async fn see(
        &self,
        ctx: &Ctx,
        part: &Part,
        chain: Option<ChainId>,
        handlers: &DescHandlers,
    ) -> Result<State, CacheError> {
        let snapshots = &self.0.snapshots;
        let keys = match &part.set {
            ChangeSet::Made(made) => vec![made.snapshot.clone()],
            ChangeSet::Blob(layer) => {
                [Some(layer_key(layer.diff_id)), chain.map(chain_key)].into_iter().flatten().collect()
            }
        };
        for key in keys {
            let hold = Arc::new(snapshots.hold(key).await);
            if snapshots.is_present(hold.key())? {
                if let Some(layer) = part.blob() {
                    self.admit(ctx, layer, handlers).await?;
                }
                return Ok(State::Known(self.files_of(hold)?));
            }
        }
        match part.blob() {
            Some(layer) => {
                for of in [Some(Of::Layer(layer.diff_id)), chain.map(Of::Chain)].into_iter().flatten() {
                    if let Some(known) = self.index(ctx, of, layer, handlers).await? {
                        return Ok(State::Known(Known::Index { known, part: None }));
                    }
                }
                Ok(State::Closed)
            }
            None => Err(CacheError::NotFound { id: part.record }),
        }
    }

    /// The index of a layer that was unpacked here before, if whoever asks may have the blob. Who can't show that
    /// with a question has to show it with the bytes.
    async fn index(
        &self,
        ctx: &Ctx,
        of: Of,
        layer: &Layer,
        handlers: &DescHandlers,
    ) -> Result<Option<Arc<indexes::Known>>, CacheError> {
        let digest = layer.blob.digest;
        let had = self.0.indexes.origins(of, &digest)?;
        let offered: Vec<Origin> =
            handlers.get(&digest).iter().filter_map(|handler| handler.provider.origin()).collect();
        let host = |origin: &Origin| match origin {
            Origin::Registry { host, .. } => Some(host.clone()),
            Origin::SessionStore { .. } => None,
        };
        let known =
            |offered: &Origin| host(offered).is_some() && had.iter().any(|o| host(o) == host(offered));
        if had.is_empty() || !offered.iter().any(known) {
            return Ok(None);
        }
        for origin in &had {
            self.0.content.recall(&digest, origin).await?;
        }
        match self.admit(ctx, layer, handlers).await {
            Ok(()) => self.0.indexes.load(of).await,
            Err(CacheError::Fetch(FetchError::Cancelled { .. })) => Err(CacheError::Cancelled),
            Err(_) => Ok(None),
        }
    }

    /// Fails unless whoever asks may have the layer's blob, and so its files. Where the blob was had before counts,
    /// whether a row of it is left or not.
    pub(super) async fn admit(
        &self,
        ctx: &Ctx,
        layer: &Layer,
        handlers: &DescHandlers,
    ) -> Result<(), CacheError> {
        for origin in self.0.indexes.origins(Of::Layer(layer.diff_id), &layer.blob.digest)? {
            self.0.content.recall(&layer.blob.digest, &origin).await?;
        }
        Ok(self.0.content.admit(ctx, &layer.blob, handlers).await?)
    }

    fn files_of(&self, hold: Arc<SnapshotHold>) -> Result<Known, CacheError> {
        let upper = self.0.snapshots.snapshotter().upper(hold.key());
        let root = upper.map(Root::open).transpose()?;
        let root = root.ok_or_else(|| SnapshotError::NotFound { key: hold.key().clone() })?;
        Ok(Known::Files { root, hold })
    }

    /// The snapshot of a part's own files, wherever it lies in the state.
    fn open_layer<'a>(
        &'a self,
        ctx: &'a Ctx,
        parts: &'a [Part],
        layer: usize,
        chains: &'a [ChainId],
        handlers: &'a DescHandlers,
    ) -> BoxFuture<'a, Result<Arc<SnapshotHold>, CacheError>> {
        let part = &parts[layer];
        let opened = async move {
            let missing = || CacheError::NotFound { id: part.record };
            let chain = *chains.get(layer).ok_or_else(missing)?;
            let unpacked = match self.part_snapshot(ctx, part, chain, handlers).await {
                Ok(hold) => return Ok(hold),
                Err(CacheError::NeedsLower { unpacked, .. }) => unpacked,
                Err(error) => return Err(error),
            };
            let blob = part.blob().ok_or_else(missing)?;
            let below = &parts[..layer];
            let lower = match &unpacked {
                // It links to files of layers below, whichever these are.
                None => self.stand_on(ctx, &Stack::default().with(below.to_vec()), handlers).await?,
                Some(alone) => {
                    let look = |path: &PathBuf| Look { to_change: true, ..Look::at(path) };
                    let looks: Vec<Look> = alone.implied().iter().map(look).collect();
                    self.stand_on_paths(ctx, below, handlers, &looks, Strange::Open).await?.into()
                }
            };
            let target = Target {
                key: chain_key(chain),
                of: Content::Chain(part.record),
                parents: Parents::default(),
                lower,
                alone: false,
                index: Some(Of::Chain(chain)),
            };
            self.lay_over(ctx, blob, handlers, target, unpacked).await
        };
        opened.boxed()
    }
}

impl State {
    /// What has all that a layer has at `spots`.
    fn hold(&self, spots: &Arc<BTreeSet<Spot>>) -> Option<Arc<SnapshotHold>> {
        match self {
            State::Known(Known::Files { hold, .. }) => Some(Arc::clone(hold)),
            State::Known(Known::Index { part: Some(part), .. }) if part.spots == *spots => {
                Some(Arc::clone(&part.hold))
            }
            State::Known(Known::Index { .. }) | State::Unseen | State::Closed => None,
        }
    }
}
