//! Long chains of steps: what each of them costs.

use std::sync::atomic::Ordering;

use futures::TryStreamExt as _;

use super::files::ctx;
use super::files::image;
use super::files::names;
use super::files::written;
use super::fixture::Fixture;
use crate::cache::Cache;
use crate::cache::ImmutableRef;
use crate::cache::Look;
use crate::cache::MutableOptions;
use crate::cache::PruneOptions;
use crate::cache::Strange;
use crate::content::DescHandlers;

const LENGTH: usize = 40;

/// Steps on each other, and what each looked up of those below it.
async fn chain(f: &Fixture, mut below: Option<ImmutableRef>, first: &str) -> (ImmutableRef, Vec<u64>) {
    let mut looked = Vec::new();
    for n in 0..LENGTH {
        let before = f.cache.looked();
        below = Some(written(f, below.as_ref(), &format!("{first}{n}"), MutableOptions::default()).await);
        looked.push(f.cache.looked() - before);
    }
    (below.unwrap(), looked)
}

impl Cache {
    fn looked(&self) -> u64 {
        self.0.snapshots.looked()
    }
}

/// A chain of 3,000 steps took six times as long as one of 1,500: each step looked at all that are below it.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_looks_at_what_nobody_has_seen() {
    let f = Fixture::new();
    let (top, looked) = chain(&f, None, "a").await;
    assert_eq!(looked, [0; LENGTH]);
    // Whoever comes after a restart knows nothing of them, once.
    let id = top.id();
    drop(top);
    let f = f.restart().await;
    let top = f.cache.get(&id, &DescHandlers::new()).unwrap();
    let (branch, looked) = chain(&f, Some(top.clone()), "b").await;
    assert_eq!((looked[0], looked[1..].iter().sum::<u64>()), (LENGTH as u64, 0));
    let (_, looked) = chain(&f, Some(top), "c").await;
    assert_eq!(looked, [0; LENGTH], "another branch of what was seen");
    assert_eq!(names(branch.mount(&ctx()).await.unwrap().path()).len(), 2 * LENGTH);
}

/// On a base that is elsewhere each step looks whether one below it decides: one survey for each of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_through_a_long_chain_takes_few_surveys() {
    let f = Fixture::new();
    let mut below = image(&f, &["x"]).await;
    let mut surveys = 0;
    for n in 0..LENGTH {
        let name = format!("n{n}");
        let options = MutableOptions {
            looks: Some(vec![Look { to_change: true, ..Look::at(&name) }]),
            strange: Strange::Empty,
            ..MutableOptions::default()
        };
        let before = f.cache.0.files.surveys.load(Ordering::Relaxed);
        below = written(&f, Some(&below), &name, options).await;
        surveys = f.cache.0.files.surveys.load(Ordering::Relaxed) - before;
    }
    assert_eq!(f.registries.opens.load(Ordering::Relaxed), 0, "the base stays where it is");
    assert!(surveys <= 10, "{surveys} of {LENGTH} steps");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_below_is_looked_at_again_when_something_was_removed() {
    let f = Fixture::new();
    let (top, _) = chain(&f, None, "a").await;
    let before = f.cache.looked();
    let base = image(&f, &["x"]).await;
    base.extract(&ctx()).await.unwrap();
    drop(base);
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    let removed = f.cache.prune(all).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(removed.len(), 1, "what is used stays");
    let above = written(&f, Some(&top), "above", MutableOptions::default()).await;
    assert_eq!(f.cache.looked() - before, LENGTH as u64);
    assert_eq!(names(above.mount(&ctx()).await.unwrap().path()).len(), LENGTH + 1);
    assert_eq!(f.cache.looked() - before, LENGTH as u64);
}

/// The list of a step holds what a hold of each did.
#[tokio::test(flavor = "multi_thread")]
async fn layers_below_stay_as_long_as_somebody_writes_above_them() {
    let f = Fixture::new();
    let base = image(&f, &["x", "y"]).await;
    let open = f.cache.create(&ctx(), Some(&base), MutableOptions::default()).await.unwrap();
    let doomed = {
        let keys: Vec<_> = f.snapshotter.walk().await.unwrap().into_iter().map(|info| info.key).collect();
        let layers: Vec<_> = keys.into_iter().filter(|key| key.as_str().starts_with("layer-")).collect();
        assert_eq!(layers.len(), 2);
        f.cache.0.snapshots.doom(layers).keys.len()
    };
    assert_eq!(doomed, 0);
    assert_eq!(names(open.mount().await.unwrap().path()), ["x", "y"]);
}
