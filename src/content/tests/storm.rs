//! Everything at once on several threads: askers that come, read and leave at any moment, beside a
//! collector that never rests.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;

use super::super::*;
use super::harness::*;

const BLOBS: u64 = 4;
const ASKERS: u64 = 24;
const ROUNDS: u64 = 200;

/// A small generator, so that a failure can be played again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

async fn ask(store: ContentStore, n: u64, all: Vec<Bytes>, fakes: Vec<Arc<Fake>>, read: Arc<AtomicU64>) {
    let mut dice = Dice(n + 1);
    for _ in 0..ROUNDS {
        let (at, passes, patience) = (dice.below(BLOBS) as usize, dice.below(4) == 0, dice.below(6000));
        let blob = layer(&all[at]);
        let (ctx, handlers) = (client(&format!("client-{n}")), fakes[at].handlers(&blob));
        let work = async {
            if passes {
                let stream = store.stream(&ctx, &blob, &handlers).await?;
                let passed: Vec<Result<Bytes, FetchError>> = stream.collect().await;
                let passed = passed.into_iter().collect::<Result<Vec<_>, _>>()?;
                assert_eq!(passed.concat(), all[at]);
            } else {
                let got = store.read(&ctx, &blob, &handlers, u64::MAX).await?;
                assert_eq!(got, all[at]);
            }
            read.fetch_add(1, Ordering::Relaxed);
            Ok::<_, FetchError>(())
        };
        let patience = Duration::from_micros(patience);
        // Half of them stay to the end.
        if n.is_multiple_of(2) {
            work.await.unwrap();
        } else if let Ok(done) = tokio::time::timeout(patience, work).await {
            done.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn askers_leavers_and_the_collector_never_see_anything_but_whole_blobs() {
    let f = Fixture::new();
    let all: Vec<_> = (0..BLOBS).map(|n| bytes(n, 200_000 + 7 * n)).collect();
    let fakes: Vec<_> = all.iter().zip(0..).map(|(b, n)| Fake::new(origin(&format!("{n}")), b)).collect();
    let (tasks, read) = (Tasks::new(), Arc::<AtomicU64>::default());
    let askers: Vec<_> = (0..ASKERS)
        .map(|n| tasks.spawn("asker", ask(f.store.clone(), n, all.clone(), fakes.clone(), Arc::clone(&read))))
        .collect();
    let (store, token) = (f.store.clone(), tasks.token().clone());
    let collector = tasks.spawn("collector", async move {
        let mut collections = 0;
        while !token.is_cancelled() {
            store.collect(Duration::ZERO).await.unwrap();
            collections += 1;
        }
        collections
    });
    for asker in askers {
        tokio::time::timeout(Duration::from_secs(120), asker).await.expect("somebody hangs").unwrap();
    }
    tasks.shutdown().await;
    let collections: u64 = collector.await.unwrap();
    assert!(read.load(Ordering::Relaxed) >= ASKERS / 2 * ROUNDS && collections > 1);
    assert!(f.store.leases().is_empty());
    f.store.collect(Duration::ZERO).await.unwrap();
    assert_eq!(f.bytes_on_disk(), 0, "nothing is held, so nothing is left");
    assert_eq!(f.store.db().read(rows::all).unwrap(), []);
}
