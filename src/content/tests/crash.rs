//! D1: `kill -9` at each durable step loses nothing that was acknowledged, leaves nothing that looks
//! whole and is not, and leaks nothing.
//!
//! A child process (this test binary once more) works through a scenario and says what was
//! acknowledged; it dies, or is made to fail, at a failpoint. Then the store is opened again here.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::super::*;
use super::harness::*;
use crate::failpoint;
use crate::failpoint::Failpoint;
use crate::lease::Owner;
use crate::lease::hold_rows;

const ROOT: &str = "THUNK_TEST_CRASH_ROOT";
const SIZE: u64 = 100_000;

fn fetched() -> Bytes {
    bytes(1, SIZE)
}

fn written() -> Bytes {
    bytes(2, 100)
}

fn garbage() -> Bytes {
    bytes(3, 100)
}

async fn work(root: &Path) {
    let ways = Arc::<Ways>::default();
    ways.add(&Fake::new(origin("a"), &fetched()));
    let store = open(root, &ways);
    let acknowledge = |what: &str, well: bool| {
        if well {
            println!("acknowledged {what}");
        }
    };
    let lazy = layer(&fetched());
    let registered = store.db().write(move |tx| {
        hold_rows(tx, &Owner::Record("lazy".into()), [&lazy.digest])?;
        register(tx, &lazy, &[origin("a")])
    });
    acknowledge("registered", registered.await.is_ok());
    let lazy = layer(&fetched());
    let lease = store.fetch(&Ctx::background(), &lazy, &DescHandlers::new()).await;
    acknowledge("fetched", lease.is_ok());
    if let Ok((blob, _lease)) = store.write("m", written()).await {
        let hold =
            move |tx: &crate::db::WriteTx| Ok(hold_rows(tx, &Owner::Image("i".into()), [&blob.digest])?);
        acknowledge("written", store.db().write(hold).await.is_ok());
    }
    drop(store.write("m", garbage()).await);
    let collected = store.collect(Duration::ZERO).await;
    acknowledge("collected", collected.is_ok_and(|c| c.blobs == 1));
}

/// Not a test of its own: the child's part.
#[tokio::test]
async fn scenario() {
    if let Ok(root) = std::env::var(ROOT) {
        failpoint::arm_from_environment().unwrap();
        work(Path::new(&root)).await;
    }
}

/// Runs the child. Returns what it acknowledged, and whether it lived.
fn child(root: &Path, failpoint: &str) -> (String, bool) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "content::tests::crash::scenario", "--nocapture"])
        .env(ROOT, root)
        .env("THUNKD_FAILPOINT", failpoint)
        .output()
        .unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

async fn check(root: &Path, acknowledged: &str, at: &str) {
    let ways = Arc::<Ways>::default();
    let fake = Fake::new(origin("a"), &fetched());
    ways.add(&fake);
    let store = open(root, &ways);
    let has = |what: &str| acknowledged.contains(&format!("acknowledged {what}"));

    let fsck = store.fsck().await.unwrap();
    assert_eq!((fsck.deleted, fsck.held), (vec![], vec![]), "{at}: something looks whole and is not");

    let lazy = layer(&fetched());
    if has("registered") {
        assert_eq!(store.origins(&lazy.digest).unwrap().len(), 1, "{at}");
    }
    if has("fetched") {
        assert!(store.is_resident(&lazy), "{at}");
    }
    let ctx = Ctx::background();
    let lease = store.fetch(&ctx, &lazy, &fake.handlers(&lazy)).await.unwrap();
    assert_eq!(store.read(&ctx, &lazy, &DescHandlers::new(), SIZE).await.unwrap(), fetched(), "{at}");
    if has("written") {
        let blob = Descriptor::of("m", &written());
        assert_eq!(store.read(&ctx, &blob, &DescHandlers::new(), 100).await.unwrap(), written(), "{at}");
    }
    if has("collected") {
        assert!(!store.is_resident(&Descriptor::of("m", &garbage())), "{at}");
    }

    drop(lease);
    store.collect(Duration::ZERO).await.unwrap();
    let disk = &store.inner.disk;
    let left: Vec<_> = disk.list_blobs().unwrap().into_iter().map(|f| f.digest).collect();
    let wanted = [lazy.digest, Digest::sha256(written())];
    assert!(left.iter().all(|d| wanted.contains(d)), "{at}: leaked {left:?}");
    assert!(!has("registered") || left.contains(&wanted[0]), "{at}: lost");
    assert_eq!(disk.list_partials().unwrap().len(), 0, "{at}");
    let ingest = disk.partial(&lazy.digest).parent().unwrap().to_path_buf();
    assert_eq!(std::fs::read_dir(ingest).unwrap().count(), 0, "{at}: temporary files are left");
    // Queued behind what the start had to finish.
    store.db().write(|_| Ok(())).await.unwrap();
    assert_eq!(store.db().read(rows::deletions).unwrap(), [], "{at}");
}

#[tokio::test]
async fn a_kill_or_an_error_at_any_durable_step_leaves_a_store_that_holds_its_word() {
    let steps = [
        (Failpoint::IngestCreated, 1),
        (Failpoint::IngestWritten, 3),
        (Failpoint::IngestSynced, 3),
        (Failpoint::BlobRenamed, 3),
        (Failpoint::BlobDirectorySynced, 3),
        (Failpoint::TransactionBuilt, 4),
        (Failpoint::TransactionCommitted, 4),
        (Failpoint::DeletionRecorded, 1),
        (Failpoint::BlobDeleted, 1),
    ];
    for (step, times) in steps {
        for nth in 1..=times {
            for action in ["kill", "error"] {
                let dir = tempfile::tempdir().unwrap();
                let at = format!("{}:{nth}={action}", step.name());
                let (acknowledged, lived) = child(dir.path(), &at);
                assert_eq!(lived, action == "error", "{at} was not met: {acknowledged}");
                check(dir.path(), &acknowledged, &at).await;
            }
        }
    }
}

#[tokio::test]
async fn without_a_fault_everything_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (acknowledged, lived) = child(dir.path(), "");
    assert!(lived);
    assert_eq!(acknowledged.matches("acknowledged").count(), 4, "{acknowledged}");
    check(dir.path(), &acknowledged, "no fault").await;
}
