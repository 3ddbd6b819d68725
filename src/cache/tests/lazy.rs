//! Records whose bytes are elsewhere.

use std::sync::Arc;

use futures::TryStreamExt;
use tokio::sync::Barrier;

use super::fixture::Fixture;
use super::fixture::repository;
use crate::cache::CacheError;
use crate::cache::LayerOptions;
use crate::cache::Part;
use crate::cache::Presence;
use crate::cache::PruneOptions;
use crate::cache::RefOptions;
use crate::content::DescHandlers;
use crate::content::Origin;
use crate::ctx::Ctx;
use crate::oci::ChainId;
use crate::oci::annotation;

#[tokio::test]
async fn registering_an_image_is_one_transaction_whatever_its_layers() {
    let f = Fixture::new();
    for count in [1, 10, 125] {
        let layers = f.layers((0..count).map(|n| format!("{count}/{n}")));
        let handlers = f.handlers(&layers, &repository("app"));
        let (commits, fsyncs) = (f.db.commits(), f.db.fsyncs());
        let image = f.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap();
        assert_eq!(f.db.commits() - commits, 1, "{count} layers");
        assert!(f.db.fsyncs() - fsyncs <= 2, "{count} layers: {} fsyncs", f.db.fsyncs() - fsyncs);
        assert_eq!(image.parts().len(), count);
        assert!(image.is_lazy());
        std::mem::forget(image);
    }
    assert_eq!(f.opens(), 0, "nothing was read");
}

#[tokio::test]
async fn the_same_blobs_are_the_same_record_and_write_nothing_again() {
    let f = Fixture::new();
    let layers = f.layers(["a", "b", "c"]);
    let handlers = f.handlers(&layers, &repository("app"));
    let first = f.cache.get_by_layers(layers.clone(), None, &handlers, RefOptions::default()).await.unwrap();
    let commits = f.db.commits();
    let again = f.cache.get_by_layers(layers.clone(), None, &handlers, RefOptions::default()).await.unwrap();
    assert_eq!(again.id(), first.id());
    let [a, b, c] = <[_; 3]>::try_from(layers).unwrap();
    // A ref that is dropped notes its use, behind.
    let mut one_by_one = Vec::new();
    for layer in [a, b, c] {
        let below = one_by_one.last();
        let next = f.cache.get_by_blob(layer, below, &handlers, RefOptions::default()).await.unwrap();
        one_by_one.push(next);
    }
    let last = &one_by_one[2];
    assert_eq!((last.id(), last.chain()), (first.id(), first.chain()));
    assert_eq!(last.chain(), ChainId::of_all(first.blobs().map(|l| l.diff_id)).unwrap());
    assert_eq!(last.parts(), first.parts());
    assert_eq!(f.db.commits(), commits, "it was all there");
}

#[tokio::test]
async fn a_lazy_record_survives_a_restart_and_a_prune_of_all_else_with_its_origins() {
    let f = Fixture::new();
    let layers = f.layers(["a", "b"]);
    let handlers = f.handlers(&layers, &repository("app"));
    let kept = f.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap();
    let id = kept.id();
    let other = f.layers(["x"]);
    let others = f.handlers(&other, &repository("app"));
    drop(f.cache.get_by_layers(other, None, &others, RefOptions::default()).await.unwrap());
    let pruned: Vec<_> = f.cache.prune(PruneOptions::default()).try_collect().await.unwrap();
    assert_eq!(pruned.len(), 1);
    drop(kept);
    let f = f.restart().await;
    let found = f.cache.get(&id, &DescHandlers::new()).unwrap();
    assert_eq!(f.cache.presence(&id).unwrap(), Some(Presence { layers: 2, resident: 0 }));
    assert_eq!(f.opens(), 0);
    found.unlazy(&Ctx::background()).await.unwrap();
    assert_eq!(f.opens(), 2);
    assert!(!found.is_lazy());
    assert_eq!(f.cache.presence(&id).unwrap(), Some(Presence { layers: 2, resident: 2 }));
}

#[tokio::test]
async fn blobs_of_a_client_need_the_handler_of_somebody_who_knows_the_client() {
    let f = Fixture::new();
    let layers = f.layers(["a", "b"]);
    let store = Origin::SessionStore { store: "oci:base".into() };
    let handlers = f.handlers(&layers, &store);
    let missing =
        f.cache.get_by_layers(layers.clone(), None, &DescHandlers::new(), RefOptions::default()).await;
    let Err(CacheError::NeedsRemoteProvider { digests }) = missing else { panic!("{missing:?}") };
    assert_eq!(digests, [layers[0].blob.digest, layers[1].blob.digest]);
    let id =
        f.cache.get_by_layers(layers.clone(), None, &handlers, RefOptions::default()).await.unwrap().id();
    let Err(CacheError::NeedsRemoteProvider { digests }) = f.cache.get(&id, &DescHandlers::new()) else {
        panic!("a client's store is no durable way")
    };
    assert_eq!(digests.len(), 2);
    f.cache.get(&id, &handlers).unwrap().unlazy(&Ctx::background()).await.unwrap();
    assert!(f.cache.get(&id, &DescHandlers::new()).is_ok(), "what is here needs nobody");
}

#[tokio::test]
async fn all_layers_are_fetched_at_the_same_time() {
    let f = Fixture::new();
    let layers = f.layers((0..12).map(|n| n.to_string()));
    let handlers = f.handlers(&layers, &repository("app"));
    let image = f.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap();
    *f.registries.barrier.lock().unwrap() = Some(Arc::new(Barrier::new(12)));
    image.unlazy(&Ctx::background()).await.unwrap();
    assert_eq!(f.opens(), 12);
}

#[tokio::test]
async fn a_merge_of_lazy_refs_is_lazy_and_lists_the_layers_of_all() {
    let f = Fixture::new();
    let (base, top) = (f.layers(["a", "b"]), f.layers(["c"]));
    let mut made = Vec::new();
    for layers in [base, top] {
        let handlers = f.handlers(&layers, &repository("app"));
        made.push(f.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap());
    }
    let merged = f.cache.merge(&made, RefOptions::default()).await.unwrap();
    assert_eq!(f.opens(), 0);
    assert!(merged.is_lazy());
    let names: Vec<_> = merged.blobs().map(|l| l.diff_id).collect();
    assert_eq!(names, f.layers(["a", "b", "c"]).iter().map(|l| l.diff_id).collect::<Vec<_>>());
    assert_eq!(f.cache.merge(&made, RefOptions::default()).await.unwrap().id(), merged.id());
    assert_eq!(f.cache.merge(&made[..1], RefOptions::default()).await.unwrap().id(), made[0].id());
    assert!(matches!(f.cache.merge(&[], RefOptions::default()).await, Err(CacheError::Empty)));
    let nested = f.cache.merge(&[merged.clone(), made[0].clone()], RefOptions::default()).await.unwrap();
    let found = f.cache.get(&nested.id(), &DescHandlers::new()).unwrap();
    assert_eq!(found.parts(), nested.parts());
    assert_eq!(nested.chain(), ChainId::of_all(nested.parts().iter().map(Part::identity)).unwrap());
    assert_eq!(found.parts().len(), 5);
}

#[tokio::test]
async fn descriptors_that_leave_carry_every_known_repository_lazy_or_not() {
    let f = Fixture::new();
    let layers = f.layers(["a"]);
    let digest = layers[0].blob.digest;
    let mut image = None;
    for name in ["app", "base"] {
        let handlers = f.handlers(&layers, &repository(name));
        image = Some(
            f.cache.get_by_layers(layers.clone(), None, &handlers, RefOptions::default()).await.unwrap(),
        );
    }
    let image = image.unwrap();
    for _ in 0..2 {
        let remote = image.remote(&Ctx::background(), &LayerOptions::default()).await.unwrap();
        let [descriptor] = remote.descriptors() else { panic!() };
        assert_eq!(descriptor.annotations["containerd.io/distribution.source.r.example"], "app,base");
        assert_eq!(descriptor.annotations[annotation::UNCOMPRESSED], layers[0].diff_id.to_string());
        assert_eq!(remote.info(&digest).map(|d| d.size), Some(layers[0].blob.size));
        image.unlazy(&Ctx::background()).await.unwrap();
    }
    assert_eq!(f.opens(), 1);
}

#[tokio::test]
async fn opening_one_blob_leaves_the_others_where_they_are() {
    let f = Fixture::new();
    let layers = f.layers(["a", "b", "c"]);
    let handlers = f.handlers(&layers, &repository("app"));
    let image = f.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap();
    let remote = image.remote(&Ctx::background(), &LayerOptions::default()).await.unwrap();
    let reader = remote.open(&Ctx::background(), &remote.descriptors()[1]).await.unwrap();
    assert_eq!(reader.size(), remote.descriptors()[1].size);
    assert_eq!(f.opens(), 1);
    assert_eq!(f.cache.presence(&image.id()).unwrap(), Some(Presence { layers: 3, resident: 1 }));
    let passed: Vec<_> = remote
        .stream(&Ctx::background(), &remote.descriptors()[2])
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(passed.iter().map(|b| b.len() as u64).sum::<u64>(), remote.descriptors()[2].size);
    assert_eq!(f.cache.presence(&image.id()).unwrap(), Some(Presence { layers: 3, resident: 1 }));
}
