//! How processes end, and what is known of it.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::Fixture;
use super::fixture::Recording;
use crate::ctx::Ctx;
use crate::executor::ExecError;
use crate::executor::ExecutorOptions;
use crate::executor::Limits;
use crate::executor::Process;

#[tokio::test]
async fn output_is_streamed_in_order_and_to_its_stream() {
    let Some(fixture) = Fixture::new() else { return };
    let (done, recording) =
        fixture.run(fixture.script("for i in 1 2 3; do echo out $i; echo err $i >&2; done")).await;
    assert_eq!(done.expect("it ends well").code, 0);
    assert_eq!(recording.stdout(), "out 1\nout 2\nout 3\n");
    assert_eq!(recording.stderr(), "err 1\nerr 2\nerr 3\n");
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let Some(fixture) = Fixture::new() else { return };
    let script = "busybox dd if=/dev/zero bs=1024 count=3000 2>/dev/null | busybox tr '\\0' x";
    assert_eq!(fixture.output(fixture.script(script)).await, "x".repeat(3000 * 1024));
}

#[tokio::test]
async fn an_exit_code_is_an_error_unless_it_is_valid() {
    let Some(fixture) = Fixture::new() else { return };
    let (done, _) = fixture.run(fixture.script("exit 7")).await;
    let error = done.expect_err("7 is no success");
    assert_eq!(error.exit_code(), Some(7));
    let expected = "process \"/bin/busybox sh -c exit 7\" did not complete successfully: exit code: 7";
    assert_eq!(error.to_string(), expected);
    let valid =
        |codes: &[i32], script| Process { valid_exit_codes: codes.to_vec(), ..fixture.script(script) };
    assert_eq!(fixture.run(valid(&[0, 7], "exit 7")).await.0.expect("7 is valid").code, 7);
    assert_eq!(fixture.run(valid(&[7], "exit 0")).await.0.expect_err("0 is not").exit_code(), Some(0));
}

#[tokio::test]
async fn a_signal_is_128_and_its_number() {
    let Some(fixture) = Fixture::new() else { return };
    // The first process of a namespace is not killed by its own signals: a child is, and the shell says so.
    let (done, _) = fixture.run(fixture.script("busybox sh -c 'kill -TERM $$'; exit $?")).await;
    assert_eq!(done.expect_err("a failure").exit_code(), Some(143));
}

#[tokio::test]
async fn a_program_that_is_missing_is_said_to_be() {
    let Some(fixture) = Fixture::new() else { return };
    let process = Process { args: vec!["/nothing".to_owned()], ..fixture.script("") };
    let (done, _) = fixture.run(process).await;
    let error = done.expect_err("nothing to run");
    assert!(matches!(&error, ExecError::NotStarted { code: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("/nothing"), "{error}");
    assert!(error.to_string().contains("no such file"), "{error}");
}

#[tokio::test]
async fn a_missing_runtime_is_an_error_of_the_run() {
    let options = ExecutorOptions { runtime: Some("no-such-runtime".to_owned()), ..Default::default() };
    let Some(fixture) = Fixture::with(options) else { return };
    let (done, _) = fixture.run(fixture.script("true")).await;
    assert!(matches!(done, Err(ExecError::RuntimeMissing { .. })), "{done:?}");
}

#[tokio::test]
async fn crun_runs_processes_as_well() {
    if !super::installed("crun") {
        return;
    }
    // Some of its releases refuse a host with cgroups of both versions: they are shown one.
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("crun");
    let script = "#!/bin/sh\nexec unshare --mount sh -c \
        'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun \"$@\"' crun \"$@\"\n";
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let options = ExecutorOptions { runtime: Some(program.display().to_string()), ..Default::default() };
    let Some(fixture) = Fixture::with(options) else { return };
    assert_eq!(fixture.output(fixture.script("echo from $$")).await, "from 1\n");
    let (done, _) = fixture.run(fixture.script("exit 3")).await;
    assert_eq!(done.expect_err("a failure").exit_code(), Some(3));
    let process = Process { args: vec!["/nothing".to_owned()], ..fixture.script("") };
    let error = fixture.run(process).await.0.expect_err("nothing to run");
    assert!(matches!(&error, ExecError::NotStarted { .. }), "{error:?}");
    assert!(error.to_string().contains("/nothing"), "{error}");
}

#[tokio::test]
async fn cancelling_kills_everything_of_the_process() {
    let Some(fixture) = Fixture::new() else { return };
    let ctx = Ctx::background().child();
    let recording = Arc::new(Recording::default());
    // The child ignores signals that can be ignored, and has left the session.
    let script = "busybox setsid busybox sh -c 'trap \"\" TERM HUP INT; echo $$; busybox sleep 10000' & wait";
    let running = fixture.executor.run(&ctx, fixture.script(script), recording.clone());
    let mut running = std::pin::pin!(running);
    tokio::select! {
        done = &mut running => panic!("it ended: {done:?} {:?}", recording.stderr()),
        () = recording.printed() => {}
    }
    let pids = processes(&fixture);
    assert!(pids.len() >= 2, "{pids:?}");
    ctx.cancel().cancel();
    let done = running.await;
    assert!(matches!(done, Err(ExecError::Cancelled(_))), "{done:?}");
    assert_eq!(processes(&fixture), Vec::<u32>::new());
    fixture.executor.cleared().await;
    assert!(fixture.bundles().is_empty());
}

#[tokio::test]
async fn a_caller_that_leaves_takes_the_process_with_it() {
    let Some(fixture) = Fixture::new() else { return };
    let recording = Arc::new(Recording::default());
    {
        let ctx = Ctx::background();
        let running =
            fixture.executor.run(&ctx, fixture.script("echo; busybox sleep 10000"), recording.clone());
        let mut running = std::pin::pin!(running);
        tokio::select! {
            done = &mut running => panic!("it ended: {done:?}"),
            () = recording.printed() => {}
        }
    }
    fixture.tasks.shutdown().await;
    assert_eq!(processes(&fixture), Vec::<u32>::new());
    assert!(fixture.bundles().is_empty());
}

#[tokio::test]
async fn children_that_outlive_the_first_process_die_with_it() {
    let Some(fixture) = Fixture::new() else { return };
    let text = fixture.output(fixture.script("busybox sleep 10000 & echo done")).await;
    assert_eq!(text, "done\n");
    assert_eq!(processes(&fixture), Vec::<u32>::new());
}

#[tokio::test]
async fn what_the_process_used_is_told() {
    let Some(fixture) = Fixture::new() else { return };
    let memory = "busybox dd if=/dev/zero of=/dev/null bs=32M count=4 2>/dev/null";
    for (n, code) in (1..).zip([0, 3]) {
        let before = fixture.executor.totals();
        let script = format!("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; {memory}; exit {code}");
        let (done, recording) = fixture.run(fixture.script(&script)).await;
        assert_eq!(done.is_ok(), code == 0, "{done:?}");
        let used = recording.used();
        let last = used.last().expect("a sample");
        assert!(last.cpu.usage_nanos.is_some_and(|nanos| nanos > 1_000_000), "{last:?}");
        assert!(last.memory.peak.is_some_and(|bytes| bytes > 32 << 20), "{last:?}");
        assert!(used.len() <= 11, "{}", used.len());
        let totals = fixture.executor.totals();
        assert_eq!((totals.steps, totals.oom_kills), (n, 0));
        assert!(totals.cpu_nanos > before.cpu_nanos + 1_000_000, "{totals:?}");
        assert!(totals.peak_memory > 32 << 20, "{totals:?}");
    }
}

#[tokio::test]
async fn a_process_that_takes_more_memory_than_it_may_is_killed_and_that_is_known() {
    let Some(fixture) = Fixture::new() else { return };
    let limits = Limits { memory: 16 << 20, ..Limits::default() };
    // All that `tail` reads it keeps, since there is no line end.
    let script = "busybox dd if=/dev/zero bs=1M count=64 2>/dev/null | busybox tail -n 1 >/dev/null";
    let process = Process { limits, ..fixture.script(&format!("{script}; exit $?")) };
    let (done, _) = fixture.run(process).await;
    let error = done.expect_err("it was killed");
    assert!(matches!(error, ExecError::Exit { oom_killed: true, code: 137, .. }), "{error:?}");
    assert!(error.to_string().ends_with("cannot allocate memory"), "{error}");
}

/// Processes of this machine whose root is the fixture's.
fn processes(fixture: &Fixture) -> Vec<u32> {
    let busybox = fixture.root().join("bin/busybox");
    let wanted = std::fs::metadata(&busybox).expect("busybox");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        use std::os::unix::fs::MetadataExt;
        let same = |m: std::fs::Metadata| m.ino() == wanted.ino() && m.dev() == wanted.dev();
        if std::fs::metadata(entry.path().join("exe")).is_ok_and(same) {
            found.push(pid);
        }
    }
    found
}
