//! Lifetimes of records against a small model: a set of records that stand on each other, and the
//! number of holds on each.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use futures::TryStreamExt;
use proptest::prelude::*;

use super::fixture::Fixture;
use super::fixture::repository;
use crate::cache::ImmutableRef;
use crate::cache::PruneOptions;
use crate::cache::RecordId;
use crate::cache::RefOptions;
use crate::cache::UsageOptions;
use crate::content::DescHandlers;
use crate::lease;

#[derive(Clone, Debug)]
enum Step {
    /// An image of layers with these names.
    Image(Vec<u8>),
    /// The layer with this name on top of a ref that is held.
    Layer(u8, prop::sample::Index),
    Merge(prop::sample::Index, prop::sample::Index),
    Clone(prop::sample::Index),
    Drop(prop::sample::Index),
    /// Some record, held or not, by its ID.
    Get(prop::sample::Index),
    Prune,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => proptest::collection::vec(0u8..4, 1..4).prop_map(Step::Image),
        2 => (0u8..4, index()).prop_map(|(name, on)| Step::Layer(name, on)),
        2 => (index(), index()).prop_map(|(a, b)| Step::Merge(a, b)),
        1 => index().prop_map(Step::Clone),
        5 => index().prop_map(Step::Drop),
        2 => index().prop_map(Step::Get),
        3 => Just(Step::Prune),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..24)
}

/// Parents of each record that exists.
type Model = BTreeMap<RecordId, Vec<RecordId>>;

fn with_ancestors(model: &Model, from: impl IntoIterator<Item = RecordId>) -> BTreeSet<RecordId> {
    let mut all = BTreeSet::new();
    let mut stack: Vec<RecordId> = from.into_iter().collect();
    while let Some(id) = stack.pop() {
        if all.insert(id) {
            stack.extend(&model[&id]);
        }
    }
    all
}

async fn learn(f: &Fixture, model: &mut Model) {
    for usage in f.cache.usage(&UsageOptions::default()).await.unwrap() {
        model.entry(usage.id).or_insert(usage.parents);
    }
}

async fn run(steps: Vec<Step>) {
    let mut f = Fixture::new();
    let mut model = Model::new();
    let mut held: Vec<ImmutableRef> = Vec::new();
    for step in steps {
        let before = model.clone();
        match step {
            Step::Image(names) => {
                let layers = f.layers(&names);
                let handlers = f.handlers(&layers, &repository("app"));
                let image =
                    f.cache.get_by_layers(layers, None, &handlers, RefOptions::default()).await.unwrap();
                assert_eq!(image.parts().len(), names.len());
                held.push(image);
                learn(&f, &mut model).await;
            }
            Step::Layer(name, on) if !held.is_empty() => {
                let layer = f.layer(&name.to_string());
                let handlers = f.handlers(std::slice::from_ref(&layer), &repository("app"));
                let below = on.get(&held).clone();
                let made = f.cache.get_by_blob(layer, Some(&below), &handlers, RefOptions::default()).await;
                let made = made.unwrap();
                assert_eq!(made.parts().len(), below.parts().len() + 1);
                held.push(made);
                learn(&f, &mut model).await;
            }
            Step::Merge(a, b) if !held.is_empty() => {
                let both = [a.get(&held).clone(), b.get(&held).clone()];
                held.push(f.cache.merge(&both, RefOptions::default()).await.unwrap());
                learn(&f, &mut model).await;
            }
            Step::Clone(which) if !held.is_empty() => held.push(which.get(&held).clone()),
            Step::Drop(which) if !held.is_empty() => drop(held.swap_remove(which.index(held.len()))),
            Step::Get(which) if !model.is_empty() => {
                let ids: Vec<RecordId> = model.keys().copied().collect();
                held.push(f.cache.get(which.get(&ids), &DescHandlers::new()).unwrap());
            }
            Step::Prune => {
                let kept = with_ancestors(&model, held.iter().map(ImmutableRef::id));
                let pruned: Vec<_> = f.cache.prune(PruneOptions::default()).try_collect().await.unwrap();
                let gone: BTreeSet<RecordId> = pruned.iter().map(|u| u.id).collect();
                assert_eq!(gone.len(), pruned.len(), "each is told once");
                assert!(gone.is_disjoint(&kept), "what is used stays");
                model.retain(|id, _| kept.contains(id));
                for id in gone {
                    assert!(f.cache.get(&id, &DescHandlers::new()).is_err());
                }
            }
            Step::Restart => {
                held.clear();
                f = f.restart().await;
            }
            _ => {}
        }
        assert!(before.iter().all(|(id, parents)| model.get(id).is_none_or(|p| p == parents)));
        let usage = f.cache.usage(&UsageOptions::default()).await.unwrap();
        let exist: Model = usage.iter().map(|u| (u.id, u.parents.clone())).collect();
        assert_eq!(exist, model);
        let used = with_ancestors(&model, held.iter().map(ImmutableRef::id));
        for usage in usage {
            assert_eq!(usage.in_use, used.contains(&usage.id));
            let layers = f.cache.blobs(&usage.id).unwrap().unwrap();
            for layer in layers {
                let leased = f.db.read(|tx| Ok(lease::has_row(tx, &layer.blob.digest)?)).unwrap();
                assert!(leased && f.content.stat(&layer.blob.digest).unwrap().is_some());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn records_live_as_the_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
