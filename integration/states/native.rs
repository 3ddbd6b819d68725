//! Whole builds on copies instead of overlays.

use super::Site;
use super::is_cached;
use crate::harness::Client;
use crate::harness::Daemon;
use crate::harness::DaemonOptions;
use crate::harness::assert_nothing_left;

#[tokio::test(flavor = "multi_thread")]
async fn builds_on_copies_give_the_same_files_and_leave_nothing() {
    let Some(site) = Site::new() else { return };
    let config = "[worker.oci]\n  snapshotter = \"native\"\n".to_owned();
    let mut daemon = Daemon::start_with(DaemonOptions { config, ..DaemonOptions::default() });
    let client = Client::connect(&daemon).await;
    site.judge_results(&client, "native").await;
    for layer in site.base.layer_digests() {
        assert_eq!(site.source.gets_of(layer), 1, "{}", site.source.story());
    }
    daemon.restart();
    let client = Client::connect(&daemon).await;
    site.source.forget();
    let again = client.start(site.push_made()).await.finish().await.success();
    assert!(is_cached(&again, &site.made()));
    site.judge_results(&client, "native, after a restart").await;
    assert_eq!(site.source.blob_gets(), 0, "{}", site.source.story());
    assert!(daemon.root().join("snapshots/native/committed").exists());
    assert_nothing_left(&daemon).await;
}
