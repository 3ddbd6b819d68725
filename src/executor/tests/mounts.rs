//! What is mounted in a sandbox, and that nothing of it stays.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use super::Fixture;
use crate::executor::ExecError;
use crate::executor::MountSource;
use crate::executor::Process;
use crate::executor::ProcessMount;

fn mount(dest: &str, source: MountSource, read_only: bool) -> ProcessMount {
    ProcessMount { dest: dest.to_owned(), source, read_only }
}

fn directory(fixture: &Fixture, name: &str, selector: &str) -> MountSource {
    let directory = fixture.dir.path().join(name);
    MountSource::Directory { directory, selector: selector.to_owned() }
}

#[tokio::test]
async fn directories_are_written_unless_they_are_read_only() {
    let Some(fixture) = Fixture::new() else { return };
    for name in ["rw", "ro/sub"] {
        fs::create_dir_all(fixture.dir.path().join(name)).expect("a directory");
    }
    fs::write(fixture.dir.path().join("ro/sub/file"), "text").expect("a file");
    let script = "echo new > /rw/file; cat() { busybox cat $1; }; cat /ro/file; cat /one; echo x > /ro/y || echo refused";
    let mounts = vec![
        mount("/rw", directory(&fixture, "rw", "/"), false),
        mount("/ro", directory(&fixture, "ro", "sub"), true),
        mount("/one", directory(&fixture, "ro", "/sub/file"), true),
    ];
    let (done, recording) = fixture.run(Process { mounts, ..fixture.script(script) }).await;
    done.expect("it ends well");
    assert_eq!(recording.stdout(), "texttextrefused\n");
    assert_eq!(fs::read(fixture.dir.path().join("rw/file")).expect("a file"), b"new\n");
    assert!(!fixture.dir.path().join("ro/sub/y").exists());
}

#[tokio::test]
async fn a_selector_that_is_missing_names_the_mount() {
    let Some(fixture) = Fixture::new() else { return };
    let mounts = vec![mount("/at", directory(&fixture, "root", "none"), true)];
    let (done, _) = fixture.run(Process { mounts, ..fixture.script("true") }).await;
    let error = done.expect_err("nothing to mount");
    assert!(matches!(&error, ExecError::Mount { dest, .. } if dest == "/at"), "{error:?}");
}

#[tokio::test]
async fn a_tmpfs_has_its_size_and_goes_with_the_process() {
    let Some(fixture) = Fixture::new() else { return };
    let script = "echo x > /t/file && busybox df -k /t | busybox awk 'NR == 2 { print $2 }'";
    let mounts = vec![mount("/t", MountSource::Tmpfs { size: Some(1 << 20) }, false)];
    assert_eq!(fixture.output(Process { mounts, ..fixture.script(script) }).await, "1024\n");
    assert!(!fixture.root().join("t").exists());
}

#[tokio::test]
async fn a_secret_has_its_owner_and_mode_and_is_on_no_disk() {
    let Some(fixture) = Fixture::new() else { return };
    let script = "busybox stat -c '%u %g %a' /run/secrets/s; busybox cat /run/secrets/s; \
        busybox stat -f -c %T /run/secrets/s; echo > /run/secrets/s || echo refused";
    let source = MountSource::Secret { data: b"hidden\n".as_slice().into(), uid: 5, gid: 6, mode: 0o440 };
    let mounts = vec![mount("/run/secrets/s", source, true)];
    let (done, recording) = fixture.run(Process { mounts, ..fixture.script(script) }).await;
    done.expect("it ends well");
    assert_eq!(recording.stdout(), "5 6 440\nhidden\ntmpfs\nrefused\n");
}

#[tokio::test]
async fn a_socket_of_the_host_can_be_connected_to() {
    let Some(fixture) = Fixture::new() else { return };
    let scratch = fixture.executor.scratch().expect("a directory");
    let path = scratch.path().join("s");
    let _listener = UnixListener::bind(&path).expect("a socket");
    let mounts = vec![mount("/run/agent", MountSource::Socket { path }, false)];
    let script = "[ -S /run/agent ] && echo there";
    assert_eq!(fixture.output(Process { mounts, ..fixture.script(script) }).await, "there\n");
    let path = scratch.path().to_path_buf();
    drop(scratch);
    assert!(!path.exists());
}

#[tokio::test]
async fn mount_points_do_not_stay_in_the_root_and_times_do() {
    let Some(fixture) = Fixture::new() else { return };
    let etc = fixture.root().join("etc");
    fs::create_dir(&etc).expect("a directory");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(&etc).and_then(|f| f.set_modified(old)).expect("a time");
    let mounts = vec![mount("/mnt/deep", MountSource::Tmpfs { size: None }, false)];
    let process = Process { mounts, remove_mount_stubs_recursive: true, ..fixture.script("echo > /made") };
    assert_eq!(fixture.output(process).await, "");
    assert_eq!(fs::read_dir(&etc).expect("etc").count(), 0);
    assert_eq!(fs::metadata(&etc).expect("etc").mtime(), 1_000_000_000);
    assert!(!fixture.root().join("mnt").exists());
    assert!(fixture.root().join("made").exists());
}
