//! What a person at `buildctl` or `thunk` reads of a build that failed, whole lines; those in BuildKit's words against
//! the real `buildkitd`.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use crate::harness::Buildctl;
use crate::harness::Buildkitd;
use crate::harness::Daemon;
use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::layer::busybox;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;
use crate::harness::tool;

/// A build that fails: what it makes, its output if there is one, and what is told after `error: failed to solve: `.
struct Case {
    state: State,
    output: Option<String>,
    told: String,
    by_both: bool,
}

fn ours(state: State, told: impl Into<String>) -> Case {
    Case { state, output: None, told: told.into(), by_both: false }
}

fn both(state: State, told: &str) -> Case {
    Case { by_both: true, ..ours(state, told) }
}

/// The last line, with the ID of a record as `ID`.
fn told(said: &str) -> String {
    let last = said.lines().rev().find_map(|line| line.strip_prefix("error: failed to solve: "));
    let last = last.unwrap_or_else(|| panic!("it did not fail to solve:\n{said}"));
    let words = last.split(' ').map(|word| match word.strip_suffix(':') {
        Some(id) if id.len() >= 25 && id.bytes().all(|b| b == b':' || b.is_ascii_alphanumeric()) => "ID:",
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn named(state: State, name: &str) -> State {
    state.metadata(|of| drop(of.description.insert("llb.customname".to_owned(), name.to_owned())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_once_and_in_buildkitds_words_where_it_has_some() {
    let (Some(busybox), daemon) = (busybox(), Daemon::start()) else { return };
    let (Some(client), Some(buildkitd)) = (Buildctl::of(&daemon), Buildkitd::start("")) else { return };
    let Some(theirs) = Buildctl::at(buildkitd.address()) else { return };
    let registry = TestRegistry::open();
    registry.put_image("base", "v1", &Image::of([busybox]));
    let base = llb::image(registry.reference("base", "v1"));
    let gone = registry.reference("gone", "v1");
    let page = format!("{}/nothing", registry.url());
    let copy = Action::Copy { from: "/missing", to: "/to" };
    let exit = "process \"/bin/busybox sh -c exit 7\" did not complete successfully: exit code: 7";
    let closed = "127.0.0.1:1/a/b:v1";
    let refused = "127.0.0.1:1 can't be reached: error sending request: client error (Connect): tcp connect error: \
                   Connection refused (os error 111)";
    let cases = [
        both(llb::sh(&base, "exit 7"), exit),
        both(named(llb::sh(&base, "exit 7"), "RUN the thing"), exit),
        ours(
            llb::file(Some(&base), Some(&base), &copy),
            "NotFound: failed to compute cache key: failed to calculate checksum of ref ID: \"/missing\": not found",
        ),
        ours(
            named(llb::file(Some(&base), None, &Action::Rm { path: "/missing" }), "rid of it"),
            "NotFound: /missing: no such file or directory",
        ),
        ours(
            llb::image(&gone),
            format!(
                "NotFound: failed to load cache key: {gone} was not found: check the name, and that it was not deleted"
            ),
        ),
        ours(
            llb::source(&page, &[]),
            format!("failed to load cache key: {page}: invalid response status 404"),
        ),
        ours(
            llb::local("here", &[]),
            "local directory \"here\": method /moby.filesync.v1.FileSync/DiffCopy not supported by the client",
        ),
        ours(llb::image(closed), format!("Unavailable: failed to load cache key: {closed}: {refused}")),
        Case {
            output: Some(format!("type=image,push=true,name={closed}")),
            ..ours(base.clone(), format!("Unavailable: failed to push {closed}: {refused}"))
        },
    ];
    for case in cases {
        let outputs: Vec<&str> = case.output.as_deref().into_iter().collect();
        let definition = case.state.marshal();
        assert_eq!(told(&client.build(&definition, &outputs).await.failure()), case.told);
        if case.by_both {
            assert_eq!(told(&theirs.build(&definition, &outputs).await.failure()), case.told, "buildkitd");
        }
    }
}

/// The last line of `thunk build` without a daemon, as this user.
fn thunk_tells(definition: &[u8], user: u32) -> String {
    let home = tempfile::tempdir().expect("a temporary directory");
    std::os::unix::fs::chown(home.path(), Some(user), Some(user)).expect("its owner");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_thunk"));
    command.args(["build", "--progress=plain", "--root"]).arg(home.path().join("root"));
    command.env("HOME", home.path()).current_dir("/").uid(user).gid(user);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run thunk");
    child.stdin.take().expect("a pipe").write_all(definition).expect("it reads");
    let output = child.wait_with_output().expect("wait for thunk");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.lines().last().unwrap_or_default().to_owned()
}

/// All layers were fetched, and then the owner of the first file could not be changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_root_is_refused_before_its_base_is_fetched() {
    let (Some(busybox), Some(_)) = (busybox(), tool("runc")) else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, NOT CHECKED: becoming another user takes root");
        return;
    }
    let registry = TestRegistry::open();
    let image = Image::of([busybox]);
    registry.put_image("base", "v1", &image);
    let definition = llb::sh(&llb::image(registry.reference("base", "v1")), "exit 7").marshal();
    let told =
        "thunk: the build failed: a command takes root to run, and the daemon is not root's: run it as root";
    assert_eq!(thunk_tells(&definition, 65534), told);
    assert_eq!(registry.gets_of(image.layer_digests()[0]), 0, "{}", registry.story());
    let told = "thunk: the build failed: process \"/bin/busybox sh -c exit 7\" did not complete successfully: exit code: 7";
    assert_eq!(thunk_tells(&definition, 0), told);
}

/// It listed its own architecture alone, at the lowest level.
#[tokio::test(flavor = "multi_thread")]
async fn the_worker_lists_the_platforms_that_buildkitd_lists() {
    let daemon = Daemon::start();
    let (Some(client), Some(buildkitd)) = (Buildctl::of(&daemon), Buildkitd::start("")) else { return };
    let Some(theirs) = Buildctl::at(buildkitd.address()) else { return };
    let (mut said, format) = (Vec::new(), "{{range .}}{{range .Platforms}}{{json .}}\n{{end}}{{end}}");
    for client in [&client, &theirs] {
        let run = client.run(["debug", "workers", "--format", format], b"").await.success();
        said.push(run.stdout_text());
    }
    // Emulators that are installed follow.
    let native = |said: &str| -> Vec<String> {
        let is_native = |line: &&str| line.contains("\"amd64\"") || line.contains("\"386\"");
        said.lines().filter(is_native).map(str::to_owned).collect()
    };
    assert!(!said[0].is_empty());
    assert_eq!(native(&said[0]), native(&said[1]));
}
