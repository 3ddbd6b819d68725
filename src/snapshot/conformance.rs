//! What every [`Snapshotter`] must do. An implementation passes by giving a [`Site`] to [`conforms`].
//!
//! The claims know nothing of how snapshots are kept: they work through the trait and what is mounted. Each gets a
//! snapshotter with nothing in it.

mod claims;
mod crash;
mod disk;
mod embedded;
mod measure;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::Mounted;
use super::Parents;
use super::SnapshotKey;
use super::Snapshotter;

/// Where a snapshotter keeps its state.
#[async_trait]
pub(super) trait Site: Send + Sync {
    /// Opens the snapshotter. Once more after all handles of it are gone: a restart.
    async fn open(&self) -> Arc<dyn Snapshotter>;

    /// What is left of snapshots and mounts when there should be none.
    fn leftovers(&self) -> Vec<String>;
}

/// Runs every claim, each on a new site.
pub(super) async fn conforms(mut site: impl FnMut() -> Box<dyn Site>) {
    for (name, claim) in claims::ALL {
        println!("claim: {name}");
        claim(&*site()).await;
    }
}

fn key(text: &str) -> SnapshotKey {
    SnapshotKey::new(text).expect("a valid key")
}

/// What a snapshot on top of `chain` names as its parents.
fn on(snapshotter: &dyn Snapshotter, chain: &[&str]) -> Parents {
    let own = if snapshotter.stacks() { chain } else { &chain[chain.len().saturating_sub(1)..] };
    own.iter().map(|name| key(name)).collect()
}

async fn mount(snapshotter: &dyn Snapshotter, name: &str) -> Mounted {
    snapshotter.mount(&key(name), false).await.expect("mounted")
}

/// Makes `name` on `chain` with what `change` does to it.
async fn commit(snapshotter: &dyn Snapshotter, name: &str, chain: &[&str], change: impl FnOnce(&Path)) {
    let active = key(&format!("{name}.new"));
    snapshotter.prepare(&active, &on(snapshotter, chain)).await.expect("prepared");
    let mounted = snapshotter.mount(&active, false).await.expect("mounted");
    change(mounted.path());
    mounted.unmount().await.expect("unmounted");
    snapshotter.commit(&key(name), &active).await.expect("committed");
}

/// What is seen on top of `chain`: the files by path, with their content.
async fn seen(snapshotter: &dyn Snapshotter, chain: &[&str]) -> Vec<String> {
    let view = key("seen");
    snapshotter.view(&view, &on(snapshotter, chain)).await.expect("viewed");
    let mounted = snapshotter.mount(&view, true).await.expect("mounted");
    let files = files(mounted.path());
    mounted.unmount().await.expect("unmounted");
    snapshotter.remove(&view).await.expect("removed");
    files
}

/// Paths of all that is below, with the content of files: `a/`, `a/b=text`, `c->target`.
fn files(root: &Path) -> Vec<String> {
    let root = crate::fs::Root::open(root).expect("opened");
    let walk = root.walk("/").expect("walked").skip(1);
    walk.map(|entry| {
        let entry = entry.expect("an entry");
        let path = entry.path.display();
        match entry.meta.kind {
            crate::fs::Kind::Directory => format!("{path}/"),
            crate::fs::Kind::File => {
                format!("{path}={}", std::io::read_to_string(entry.open().expect("open")).expect("text"))
            }
            crate::fs::Kind::Symlink => format!("{path}->{}", entry.read_link().expect("link").display()),
            other => format!("{path}: {other:?}"),
        }
    })
    .collect()
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    fs::write(path, text).expect("written");
}
