//! What the types of ops promise to the solver and to what runs ops, which rely on it.

use std::collections::HashSet;

use thunk::ops::Vertex;
use thunk::ops::op::CopyMode;
use thunk::ops::op::ExecOp;
use thunk::ops::op::FileChange;
use thunk::ops::op::FileInput;
use thunk::ops::op::FileOp;
use thunk::ops::op::MountKind;
use thunk::ops::op::Op;

/// The number of outputs of a vertex.
pub(crate) fn outputs(vertex: &Vertex) -> u32 {
    let count = match &vertex.op {
        Op::Exec(exec) => exec.outputs().count(),
        Op::File(file) => file.outputs.len(),
        _ => 1,
    };
    count.try_into().expect("they are few")
}

/// Panics if one is broken.
pub(crate) fn hold(vertex: &Vertex) {
    let inputs = vertex.inputs.len();
    let known = |input: &usize| *input < inputs;
    assert_eq!(vertex.platform.clone().normalised(), vertex.platform);
    match &vertex.op {
        Op::Image(image) => {
            assert_eq!(inputs, 0);
            assert!(image.layer_limit != Some(0));
            assert!(image.reference.tag.is_some() || image.reference.digest.is_some());
        }
        Op::OciLayout(layout) => {
            assert_eq!(inputs, 0);
            assert!(layout.layer_limit != Some(0));
            assert!(layout.tag.is_some() || layout.digest.is_some());
        }
        Op::Local(_) => assert_eq!(inputs, 0),
        Op::Http(http) => {
            assert_eq!(inputs, 0);
            assert!(http.perm.is_none_or(|perm| perm != 0 && perm <= 0o7777));
            let name = http.filename.as_deref().unwrap_or("f");
            assert!(!name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']));
            assert!(http.headers.is_sorted());
        }
        Op::Exec(exec) => command(exec, inputs),
        Op::File(file) => files(file, inputs),
        Op::Merge(merge) => assert!(merge.inputs.iter().all(known)),
        Op::Diff(diff) => assert!(diff.lower.iter().chain(&diff.upper).all(known)),
    }
}

fn command(exec: &ExecOp, inputs: usize) {
    assert!(!exec.args.is_empty() && !exec.valid_exit_codes.is_empty());
    assert!(exec.root().is_some_and(|root| root.kind == MountKind::Bind));
    let texts = exec.args.iter().chain(&exec.env).chain([&exec.cwd, &exec.user, &exec.hostname]);
    assert!(texts.into_iter().all(|text| !text.contains('\0')));
    for mount in &exec.mounts {
        assert!(!mount.dest.is_empty() && !mount.dest.contains('\0') && !mount.selector.contains('\0'));
        assert!(mount.input.is_none_or(|input| input < inputs));
        match &mount.kind {
            MountKind::Bind | MountKind::Cache { .. } => {}
            MountKind::Tmpfs { size } => assert!(*size != Some(0) && mount.input.is_none()),
            MountKind::Secret(file) | MountKind::Ssh(file) => {
                assert!(file.mode <= 0o7777 && mount.input.is_none() && !mount.gives_output());
            }
        }
    }
}

fn files(file: &FileOp, inputs: usize) {
    let actions = file.actions.len();
    assert!(!file.outputs.is_empty() && file.outputs.iter().all(|action| *action < actions));
    let places: HashSet<_> = file.outputs.iter().collect();
    assert_eq!(places.len(), file.outputs.len(), "an action has one output");
    for action in &file.actions {
        assert!(action.needs().all(|needed| match needed {
            FileInput::Scratch => true,
            FileInput::Input(input) => input < inputs,
            FileInput::Action(action) => action < actions,
        }));
        let (paths, mode) = match &action.change {
            FileChange::Copy(copy) => {
                let mode = if let CopyMode::Set(mode) = copy.mode { mode } else { 0 };
                (vec![&copy.src, &copy.dest], mode)
            }
            FileChange::MakeFile(file) => (vec![&file.path], file.mode),
            FileChange::MakeDir(dir) => (vec![&dir.path], dir.mode),
            FileChange::Remove(remove) => (vec![&remove.path], 0),
            FileChange::Symlink(link) => (vec![&link.target, &link.path], 0),
        };
        assert!(mode <= 0o7777 && paths.into_iter().all(|path| !path.contains('\0')));
    }
    ends(file);
}

/// No action needs its own result: whoever does those that are ready does all of them.
fn ends(file: &FileOp) {
    let mut done = vec![false; file.actions.len()];
    loop {
        let ready = |needed| !matches!(needed, FileInput::Action(action) if !done[action]);
        let next = file.actions.iter().enumerate().position(|(at, a)| !done[at] && a.needs().all(ready));
        match next {
            Some(at) => done[at] = true,
            None => break,
        }
    }
    assert!(done.into_iter().all(|done| done), "actions need one another");
}
