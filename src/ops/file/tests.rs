use super::*;
use crate::cache::tests::fixture::Fixture;
use crate::ops::op::CopyFiles;
use crate::ops::op::MakeDir;
use crate::ops::op::MakeFile;

fn copy(from: FileInput, src: &str) -> CopyFiles {
    CopyFiles {
        follow_symlink: true,
        create_dest_path: false,
        wildcard: Wildcard::Required,
        include: vec!["i".into()],
        exclude: vec!["e".into()],
        required: vec!["r".into()],
        ..CopyFiles::plain(from, src, "/")
    }
}

fn onto(base: FileInput, copy: CopyFiles) -> FileAction {
    FileAction { base, change: FileChange::Copy(Box::new(copy)) }
}

fn dir(base: FileInput) -> FileAction {
    let made = MakeDir { path: "/d".into(), mode: 0o755, parents: false, owner: None, timestamp: None };
    FileAction { base, change: FileChange::MakeDir(made) }
}

fn op(actions: Vec<FileAction>, outputs: &[usize]) -> FileOp {
    FileOp { actions, outputs: outputs.to_vec(), key: crate::oci::Digest::sha256("") }
}

#[test]
fn an_input_that_is_only_read_counts_with_what_is_read() {
    let named = |name: &str| Principal::Name { name: name.into(), input: FileInput::Input(2) };
    let owner = Owner { user: Some(named("u")), group: Some(named("g")) };
    let first = CopyFiles { owner: Some(owner), ..copy(FileInput::Input(1), "/a*") };
    let second = CopyFiles { wildcard: Wildcard::No, ..copy(FileInput::Input(1), "/b") };
    let op = op(vec![onto(FileInput::Input(0), first), onto(FileInput::Action(0), second)], &[1]);
    assert!(op.selectors(0).is_empty(), "what is changed counts as it is");
    let selectors = op.selectors(1);
    assert_eq!(selectors.len(), 2);
    let expected = Selector {
        path: "/a*".into(),
        wildcard: true,
        follow: true,
        include: vec!["i".into()],
        exclude: vec!["e".into()],
        required: vec!["r".into()],
    };
    assert_eq!(selectors[0], expected);
    assert_eq!((selectors[1].path.as_str(), selectors[1].wildcard), ("/b", false));
    assert_eq!(op.selectors(2), [Selector::file("/etc/passwd"), Selector::file("/etc/group")]);
}

#[test]
fn an_input_that_is_read_and_changed_counts_as_it_is() {
    let op = op(vec![onto(FileInput::Input(0), copy(FileInput::Input(0), "/a"))], &[0]);
    assert!(op.selectors(0).is_empty());
}

#[test]
fn actions_come_after_what_they_need_and_those_that_nobody_needs_do_not_run() {
    let actions = vec![
        dir(FileInput::Action(2)),
        dir(FileInput::Scratch),
        onto(FileInput::Action(4), copy(FileInput::Action(3), "/")),
        dir(FileInput::Action(4)),
        dir(FileInput::Input(0)),
    ];
    let (order, uses) = op(actions, &[0]).plan();
    assert!(!order.contains(&1));
    let place = |n| order.iter().position(|m| *m == n).unwrap();
    assert!(place(4) < place(3) && place(3) < place(2) && place(2) < place(0));
    assert_eq!(order.len(), 4);
    assert_eq!(uses[2], Uses { as_base: 1, other: 0 }, "goes on without a commit");
    assert_eq!(uses[3], Uses { as_base: 0, other: 1 });
    assert_eq!(uses[4], Uses { as_base: 2, other: 0 });
    assert_eq!(uses[0], Uses { as_base: 0, other: 1 });
}

#[test]
fn a_chain_of_many_actions_is_planned_in_no_time() {
    let actions: Vec<_> = (0..20_000)
        .map(|n| dir(if n == 0 { FileInput::Scratch } else { FileInput::Action(n - 1) }))
        .collect();
    let (order, _) = op(actions, &[19_999]).plan();
    assert_eq!(order, (0..20_000).collect::<Vec<_>>());
}

/// A graph of 2,000 file steps had 23 MB of them waiting.
#[tokio::test]
async fn a_step_that_waits_takes_little_memory() {
    let f = Fixture::new();
    let (op, ctx) = (op(vec![dir(FileInput::Scratch)], &[0]), Ctx::background());
    let step = op.run(&f.cache, f.tasks(), &ctx, "step", &[]);
    assert!(size_of_val(&step) <= 4096, "{} bytes", size_of_val(&step));
    assert_eq!(step.await.unwrap().len(), 1);
}

#[test]
fn paths_are_resolved_by_their_text() {
    for (path, expected) in [
        ("", ""),
        ("/", ""),
        ("/a/../b", "b"),
        ("../../a", "a"),
        ("/a/./b/", "a/b"),
        ("/a/.", "a"),
        ("..", ""),
    ] {
        assert_eq!(lexical(Path::new(path)), Path::new(expected), "{path:?}");
    }
}

fn file(base: FileInput, path: &str) -> FileAction {
    let (path, data) = (path.into(), "text".into());
    let made = MakeFile { path, mode: 0o600, data, owner: None, timestamp: None };
    FileAction { base, change: FileChange::MakeFile(made) }
}

async fn failure(f: &Fixture, op: &FileOp, inputs: &[Option<ImmutableRef>]) -> FileActionError {
    match op.run(&f.cache, f.tasks(), &Ctx::background(), "step", inputs).await {
        Err(OpError::Failed { source }) => source.downcast_ref::<FileActionError>().unwrap().clone(),
        other => panic!("{other:?}"),
    }
}

async fn read(left: &Option<LeftFiles>, path: &str) -> Option<String> {
    let state = left.as_ref().unwrap().state().await.unwrap();
    let tree = state.mount(&Ctx::background()).await.unwrap();
    std::fs::read_to_string(tree.path().join(path)).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_failed_shows_what_those_before_it_made_as_it_left_it() {
    let f = Fixture::new();
    let made = op(vec![file(FileInput::Scratch, "/given")], &[0]);
    let given = made.run(&f.cache, f.tasks(), &Ctx::background(), "", &[]).await.unwrap().remove(0);
    let actions = vec![
        dir(FileInput::Input(0)),
        file(FileInput::Action(0), "/d/f"),
        file(FileInput::Action(1), "/none/f"),
        file(FileInput::Action(2), "/after"),
    ];
    let failed = failure(&f, &op(actions, &[3]), &[given.clone(), None]).await;
    assert_eq!(failed.index, 2);
    let FailedMounts { inputs, mounts } = *failed.mounts.clone().unwrap();
    let ids = |refs: &[Option<ImmutableRef>]| {
        refs.iter().map(|r| r.as_ref().map(ImmutableRef::id)).collect::<Vec<_>>()
    };
    assert_eq!(ids(&inputs), ids(&[given.clone(), None]));
    assert_eq!(mounts.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true, false]);
    assert_eq!(read(&mounts[2], "d/f").await.unwrap(), "text");
    assert_eq!(read(&mounts[2], "given").await.unwrap(), "text");
    // The same state for whoever asks.
    let again = failed.mounts.as_ref().unwrap().mounts[2].as_ref().unwrap().state().await.unwrap();
    assert_eq!(again.id(), mounts[2].as_ref().unwrap().state().await.unwrap().id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_failed_shows_what_it_copied_from() {
    let f = Fixture::new();
    let from = FileInput::Action(0);
    let copied = CopyFiles::plain(from, "/none", "/");
    let op = op(vec![file(FileInput::Scratch, "/from"), onto(FileInput::Scratch, copied)], &[1]);
    let failed = failure(&f, &op, &[]).await;
    assert_eq!(failed.index, 1);
    let mounts = &failed.mounts.as_ref().unwrap().mounts;
    assert_eq!(read(&mounts[0], "from").await.unwrap(), "text");
    assert_eq!(read(&mounts[1], "from").await, None);
    assert!(failed.mounts.as_ref().unwrap().inputs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_looked_at_goes_with_the_error() {
    let f = Fixture::new();
    let failed = failure(&f, &op(vec![file(FileInput::Scratch, "/none/f")], &[0]), &[]).await;
    assert_eq!(f.snapshotter.walk().await.unwrap().len(), 1);
    drop(failed);
    f.snapshots_settle(0).await;
}
