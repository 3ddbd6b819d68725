use super::*;
use crate::cache::tests::fixture::Fixture;
use crate::ops::op::CopyFiles;
use crate::ops::op::CopyMode;
use crate::ops::op::MakeDir;

fn copy(from: FileInput, src: &str) -> CopyFiles {
    CopyFiles {
        from,
        src: src.to_owned(),
        dest: "/".to_owned(),
        owner: None,
        mode: CopyMode::Keep,
        follow_symlink: true,
        contents_only: false,
        unpack: false,
        create_dest_path: false,
        wildcard: Wildcard::Required,
        timestamp: None,
        include: vec!["i".into()],
        exclude: vec!["e".into()],
        required: vec!["r".into()],
        replace: false,
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
