//! What an op reads of a state: [`Reads`] names the paths, so that no layer is opened that says nothing of them.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::file::wildcard;
use crate::cache::CacheError;
use crate::cache::ImmutableRef;
use crate::cache::Look;
use crate::cache::Pattern;
use crate::cache::Tree;
use crate::cache::Want;
use crate::ctx::Ctx;
use crate::fs::FsError;
use crate::fs::Last;
use crate::fs::Root;
use crate::pattern::has_wildcards;
use crate::pattern::split_wildcards;
use crate::task::Tasks;

/// Paths of a state, each with all that is at it.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    looks: Vec<Look>,
    /// Patterns; what matches is followed if it is a link.
    followed: Vec<String>,
}

impl Reads {
    /// What is at `path`, as it is.
    pub(super) fn path(&mut self, path: impl Into<PathBuf>, last: Last) {
        self.looks.push(Look { last, want: Want::Tree, ..Look::at(path) });
    }

    /// What a path names, which is a pattern if `wildcard` is true and it looks like one. A pattern that is none is
    /// left to whoever uses it.
    pub(super) fn named(&mut self, path: &str, wildcard: bool, last: Last) {
        if !wildcard || !has_wildcards(path) {
            return self.path(super::file::lexical(Path::new(path)), last);
        }
        let (before, wild) = split_wildcards(&format!("/{path}"));
        let Ok(pattern) = Pattern::new(&wild) else { return };
        self.looks.push(Look { want: Want::Matching(pattern), ..Look::at(before) });
        if last == Last::Follow {
            self.followed.push(path.to_owned());
        }
    }

    /// A tree that has the paths as `state` has them.
    pub(super) async fn mount(
        mut self,
        ctx: &Ctx,
        tasks: &Tasks,
        state: &ImmutableRef,
    ) -> Result<Arc<Tree>, CacheError> {
        let tree = state.mount_paths(ctx, &self.looks).await?;
        if self.followed.is_empty() {
            return Ok(tree);
        }
        let (followed, looked_at) = (std::mem::take(&mut self.followed), Arc::clone(&tree));
        let work = move || links(looked_at.path(), &followed);
        let links = tasks.spawn_blocking("find links", work).await??;
        if links.is_empty() {
            return Ok(tree);
        }
        for link in links {
            self.path(link, Last::Follow);
        }
        drop(tree);
        state.mount_paths(ctx, &self.looks).await
    }
}

/// The links among what matches. A pattern that can't be resolved has none: who uses it is told why.
fn links(root: &Path, patterns: &[String]) -> Result<Vec<PathBuf>, FsError> {
    let root = Root::open(root)?;
    let matches = patterns.iter().flat_map(|p| wildcard::resolve(&root, p, Last::Follow).unwrap_or_default());
    let mut links = Vec::new();
    for path in matches {
        if root.stat(&path, Last::Keep)?.is_some_and(|meta| meta.is_symlink()) {
            links.push(path);
        }
    }
    Ok(links)
}
