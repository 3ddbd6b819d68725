//! Power cuts: the next start is in another boot, and files that nobody had synced are empty.

use std::path::Path;

use super::Site;
use super::is_cached;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::assert_nothing_left;
use crate::harness::disk::files;
use crate::harness::poll;

const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

fn daemon(interval: &str) -> Daemon {
    let flags = vec![format!("--snapshot-sync-interval={interval}")];
    Daemon::start_with(DaemonOptions { flags, boot: Some("first".to_owned()), ..DaemonOptions::default() })
}

/// What the kernel had not written.
fn lose_files(root: &Path) {
    for (file, _) in files(root) {
        std::fs::write(root.join(file), "").expect("a file of a snapshot");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_lost_with_the_power_are_made_again() {
    let Some(site) = Site::new() else { return };
    let mut daemon = daemon("24h");
    let client = Client::connect(&daemon).await;
    client.start(site.push_made()).await.finish().await.success();
    assert_eq!(daemon.counter("snapshot_syncs"), 0, "no step waits for the disk");
    daemon.kill9();
    lose_files(&daemon.root().join("snapshots/overlayfs/committed"));
    daemon.reboot("second");
    daemon.start_again();
    let client = Client::connect(&daemon).await;
    site.source.forget();
    site.target.forget();
    let again = client.start(site.push_made()).await.finish().await.success();
    assert!(!is_cached(&again, &site.ran()), "its files are gone");
    for layer in site.base.layer_digests() {
        assert_eq!(site.source.gets_of(layer), 0, "blobs are synced: {}", site.source.story());
    }
    site.judge_results(&client, "after a power cut").await;
    assert_nothing_left(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_checkpoint_has_synced_outlasts_the_power() {
    let Some(site) = Site::new() else { return };
    let mut daemon = daemon("1ms");
    let client = Client::connect(&daemon).await;
    client.start(site.push_made()).await.finish().await.success();
    assert!(poll(LIMIT, || daemon.counter("snapshots_unsynced") == 0), "{:?}", daemon.counters());
    daemon.kill9();
    daemon.reboot("second");
    daemon.start_again();
    let client = Client::connect(&daemon).await;
    site.source.forget();
    let again = client.start(site.push_made()).await.finish().await.success();
    assert!(is_cached(&again, &site.made()), "{:?}", again.vertex(site.made().digest()));
    site.judge_results(&client, "after a power cut").await;
    assert_eq!(site.source.blob_gets(), 0, "{}", site.source.story());
    assert_nothing_left(&daemon).await;
}
