//! Lifetimes against a model that is small enough to be right by inspection.

use std::time::Duration;

use proptest::prelude::*;

use super::super::*;
use super::harness::*;
use crate::lease::Owner;
use crate::lease::hold_rows;
use crate::lease::release_rows;

const BLOBS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A record notes a lazy blob and holds it.
    Register(usize),
    /// The record is deleted.
    Release(usize),
    /// Somebody reads the blob, and holds it.
    Fetch(usize),
    /// The node makes the blob, and holds it.
    Write(usize),
    /// Those who hold it in the process let go.
    LetGo(usize),
    Collect,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blob = 0..BLOBS;
    let step = prop_oneof![
        3 => blob.clone().prop_map(Step::Register),
        2 => blob.clone().prop_map(Step::Release),
        3 => blob.clone().prop_map(Step::Fetch),
        1 => blob.clone().prop_map(Step::Write),
        2 => blob.prop_map(Step::LetGo),
        3 => Just(Step::Collect),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..24)
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Model {
    known: bool,
    has_origin: bool,
    resident: bool,
    recorded: bool,
    held: bool,
}

impl Model {
    fn collect(&mut self) {
        if !self.recorded && !self.held {
            *self = Model::default();
        }
    }
}

async fn play(steps: Vec<Step>) {
    let all: Vec<Bytes> = (0..BLOBS).map(|n| bytes(n as u64, 50_000 + n as u64)).collect();
    let blobs: Vec<Descriptor> = all.iter().map(layer).collect();
    let mut f = Fixture::new();
    for (n, bytes) in all.iter().enumerate() {
        f.ways.add(&Fake::new(origin(&n.to_string()), bytes));
    }
    let mut model = [Model::default(); BLOBS];
    let mut leases: [Vec<Lease>; BLOBS] = Default::default();
    let ctx = Ctx::background();
    for step in steps {
        match step {
            Step::Register(n) => {
                let blob = blobs[n].clone();
                let register = f.store.db().write(move |tx| {
                    hold_rows(tx, &Owner::Record(n.to_string()), [&blob.digest])?;
                    register(tx, &blob, &[origin(&n.to_string())])
                });
                register.await.unwrap();
                model[n] = Model { known: true, has_origin: true, recorded: true, ..model[n] };
            }
            Step::Release(n) => {
                let release =
                    move |tx: &crate::db::WriteTx| Ok(release_rows(tx, &Owner::Record(n.to_string()))?);
                f.store.db().write(release).await.unwrap();
                model[n].recorded = false;
            }
            Step::Fetch(n) => {
                let fetched = f.store.fetch(&ctx, &blobs[n], &DescHandlers::new()).await;
                let m = &mut model[n];
                assert_eq!(fetched.is_ok(), m.resident || m.has_origin, "{step:?} {m:?}");
                if let Ok(lease) = fetched {
                    leases[n].push(lease);
                    *m = Model { known: true, resident: true, held: true, ..*m };
                }
            }
            Step::Write(n) => {
                let (blob, lease) = f.store.write("m", all[n].clone()).await.unwrap();
                assert_eq!(blob.digest, blobs[n].digest);
                leases[n].push(lease);
                model[n] = Model { known: true, resident: true, held: true, ..model[n] };
            }
            Step::LetGo(n) => {
                leases[n].clear();
                model[n].held = false;
            }
            Step::Collect => {
                f.store.collect(Duration::ZERO).await.unwrap();
                model.iter_mut().for_each(Model::collect);
            }
            Step::Restart => {
                leases.iter_mut().for_each(Vec::clear);
                f = f.restart().await;
                model.iter_mut().for_each(|m| m.held = false);
            }
        }
        let mut expected_bytes = 0;
        for (n, m) in model.iter().enumerate() {
            let stat = f.store.stat(&blobs[n].digest).unwrap();
            assert_eq!(stat.is_some(), m.known, "blob {n} after {step:?}: {m:?}");
            let resident = stat.as_ref().is_some_and(|s| s.residency == Residency::Resident);
            assert_eq!(resident, m.resident, "blob {n} after {step:?}: {m:?}");
            assert_eq!(stat.is_some_and(|s| !s.origins.is_empty()), m.has_origin, "blob {n} after {step:?}");
            expected_bytes += if m.resident { all[n].len() as u64 } else { 0 };
        }
        assert_eq!(f.bytes_on_disk(), expected_bytes, "after {step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_as_the_model_says(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(steps));
    }
}
