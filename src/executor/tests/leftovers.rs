//! What a daemon that was killed leaves, and the next one clears up.

use std::fs;
use std::sync::Arc;

use super::Fixture;
use super::fixture::Recording;
use crate::ctx::Ctx;
use crate::executor::ExecError;
use crate::executor::Executor;
use crate::executor::ExecutorOptions;
use crate::task::Tasks;

#[tokio::test]
async fn the_next_start_kills_what_still_runs_and_clears_up() {
    let Some(fixture) = Fixture::new() else { return };
    let ctx = Ctx::background();
    let recording = Arc::new(Recording::default());
    let script = "echo; busybox sleep 10000";
    let running = fixture.executor.run(&ctx, fixture.script(script), recording.clone());
    let mut running = std::pin::pin!(running);
    tokio::select! {
        done = &mut running => panic!("it ended: {done:?}"),
        () = recording.printed() => {}
    }
    assert_eq!(fixture.bundles().len(), 1);
    // As if this process were gone: another executor comes to the same directory.
    let options = ExecutorOptions { directory: fixture.dir.path().join("executor"), ..Default::default() };
    let next = tokio::task::spawn_blocking(|| Executor::open(options, Tasks::new())).await.expect("a thread");
    next.expect("it opens");
    assert!(fixture.bundles().is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&*fixture.dir.path().join("executor").to_string_lossy()));
    // It may have printed before its runtime had left, which is then killed as well.
    let error = running.await.expect_err("it was killed");
    assert!(matches!(error, ExecError::NotStarted { .. }) || error.exit_code() == Some(137), "{error:?}");
}
