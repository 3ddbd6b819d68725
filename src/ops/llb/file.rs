//! Decodes file ops.
//!
//! An index of an action counts the inputs of the vertex first, then the actions; -1 is the empty file system.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::invalid::InvalidOp;
use super::invalid::index;
use super::invalid::no_nul;
use super::pb;
use super::pb::file_action::Action as Kind;
use crate::oci::Digest;
use crate::ops::op::CopyFiles;
use crate::ops::op::CopyMode;
use crate::ops::op::FileAction;
use crate::ops::op::FileChange;
use crate::ops::op::FileInput;
use crate::ops::op::FileOp;
use crate::ops::op::MakeDir;
use crate::ops::op::MakeFile;
use crate::ops::op::Owner;
use crate::ops::op::Principal;
use crate::ops::op::Remove;
use crate::ops::op::Symlink;
use crate::ops::op::Timestamp;
use crate::ops::op::Wildcard;

/// Reads the op of a vertex with `inputs` inputs.
pub(super) fn file(op: &pb::FileOp, inputs: usize) -> Result<FileOp, InvalidOp> {
    if op.actions.is_empty() {
        return Err(InvalidOp::Missing { what: "action".to_owned() });
    }
    let space = Space { inputs, actions: op.actions.len() };
    let actions =
        op.actions.iter().enumerate().map(|(n, a)| action(n, a, space)).collect::<Result<Vec<_>, _>>()?;
    let outputs = places(op)?;
    check_order(&actions)?;
    Ok(FileOp { actions, outputs, key: key(op, inputs) })
}

/// The number of outputs of a file op.
pub(super) fn outputs(op: &pb::FileOp) -> i64 {
    i64::try_from(op.actions.iter().filter(|action| action.output >= 0).count()).unwrap_or(i64::MAX)
}

/// The actions, for people.
pub(super) fn names(op: &pb::FileOp) -> impl Iterator<Item = String> {
    op.actions.iter().filter_map(|action| {
        Some(match action.action.as_ref()? {
            Kind::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
            Kind::Mkfile(file) => format!("mkfile {}", file.path),
            Kind::Mkdir(dir) => format!("mkdir {}", dir.path),
            Kind::Rm(rm) => format!("rm {}", rm.path),
            Kind::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
        })
    })
}

/// What an index counts.
#[derive(Clone, Copy)]
struct Space {
    inputs: usize,
    actions: usize,
}

impl Space {
    fn input(self, what: impl FnOnce() -> String, sent: i64) -> Result<FileInput, InvalidOp> {
        Ok(match index(what, sent, self.inputs + self.actions)? {
            None => FileInput::Scratch,
            Some(index) if index < self.inputs => FileInput::Input(index),
            Some(index) => FileInput::Action(index - self.inputs),
        })
    }
}

fn action(n: usize, action: &pb::FileAction, space: Space) -> Result<FileAction, InvalidOp> {
    let what = |field: &str| format!("{field} of action {n}");
    let path = |field: &str, text: &str| no_nul(|| what(field), text);
    let base = space.input(|| what("input"), action.input)?;
    let from = space.input(|| what("secondaryInput"), action.secondary_input)?;
    let kind = action.action.as_ref().ok_or_else(|| InvalidOp::Missing { what: what("kind") })?;
    let change = match kind {
        Kind::Copy(copy) => FileChange::Copy(Box::new(CopyFiles {
            from,
            src: path("src", &copy.src)?,
            dest: path("dest", &copy.dest)?,
            owner: owner(n, copy.owner.as_ref(), space)?,
            mode: copy_mode(n, copy)?,
            follow_symlink: copy.follow_symlink,
            contents_only: copy.dir_copy_contents,
            unpack: copy.attempt_unpack_docker_compatibility,
            create_dest_path: copy.create_dest_path,
            wildcard: match (copy.allow_wildcard, copy.allow_empty_wildcard) {
                (false, _) => Wildcard::No,
                (true, false) => Wildcard::Required,
                (true, true) => Wildcard::MayBeEmpty,
            },
            timestamp: timestamp(copy.timestamp),
            include: copy.include_patterns.clone(),
            exclude: copy.exclude_patterns.clone(),
            required: copy.required_paths.clone(),
            replace: copy.always_replace_existing_dest_paths,
        })),
        Kind::Mkfile(file) => FileChange::MakeFile(MakeFile {
            path: path("path", &file.path)?,
            mode: permissions(n, file.mode)?,
            data: file.data.clone(),
            owner: owner(n, file.owner.as_ref(), space)?,
            timestamp: timestamp(file.timestamp),
        }),
        Kind::Mkdir(dir) => FileChange::MakeDir(MakeDir {
            path: path("path", &dir.path)?,
            mode: permissions(n, dir.mode)?,
            parents: dir.make_parents,
            owner: owner(n, dir.owner.as_ref(), space)?,
            timestamp: timestamp(dir.timestamp),
        }),
        Kind::Rm(rm) => FileChange::Remove(Remove {
            path: path("path", &rm.path)?,
            allow_not_found: rm.allow_not_found,
            wildcard: rm.allow_wildcard,
        }),
        Kind::Symlink(link) => FileChange::Symlink(Symlink {
            target: path("oldpath", &link.oldpath)?,
            path: path("newpath", &link.newpath)?,
            owner: owner(n, link.owner.as_ref(), space)?,
            timestamp: timestamp(link.timestamp),
        }),
    };
    Ok(FileAction { base, change })
}

fn timestamp(sent: i64) -> Option<Timestamp> {
    (sent != -1).then_some(Timestamp(sent))
}

/// Go's other bits of a mode say what a file is, which is known here.
fn permissions(n: usize, mode: i32) -> Result<u32, InvalidOp> {
    match u32::try_from(mode) {
        Ok(mode) => Ok(mode & 0o777),
        Err(_) => Err(InvalidOp::Negative { what: format!("mode of action {n}"), value: mode.into() }),
    }
}

fn copy_mode(n: usize, copy: &pb::FileActionCopy) -> Result<CopyMode, InvalidOp> {
    let what = || format!("mode of action {n}");
    if !copy.mode_str.is_empty() {
        let change = copy.mode_str.parse().map_err(|source| InvalidOp::Mode { what: what(), source })?;
        return Ok(CopyMode::Change(change));
    }
    match u32::try_from(copy.mode) {
        Ok(mode) => Ok(CopyMode::Set(mode & 0o7777)),
        Err(_) if copy.mode == -1 => Ok(CopyMode::Keep),
        Err(_) => Err(InvalidOp::Negative { what: what(), value: copy.mode.into() }),
    }
}

fn owner(n: usize, sent: Option<&pb::ChownOpt>, space: Space) -> Result<Option<Owner>, InvalidOp> {
    let Some(sent) = sent else { return Ok(None) };
    let principal = |field: &str, sent: &Option<pb::UserOpt>| -> Result<Option<Principal>, InvalidOp> {
        Ok(match sent.as_ref().and_then(|user| user.user.as_ref()) {
            None => None,
            Some(pb::user_opt::User::ById(id)) => Some(Principal::Id(*id)),
            Some(pb::user_opt::User::ByName(named)) => {
                let what = || format!("input of the {field} of action {n}");
                let input = match space.input(what, named.input)? {
                    FileInput::Scratch => {
                        let count = space.inputs + space.actions;
                        return Err(InvalidOp::Index { what: what(), index: named.input, count });
                    }
                    input => input,
                };
                Some(Principal::Name { name: named.name.clone(), input })
            }
        })
    };
    Ok(Some(Owner { user: principal("user", &sent.user)?, group: principal("group", &sent.group)? }))
}

/// The action of each output: they are numbered from 0 without a gap.
fn places(op: &pb::FileOp) -> Result<Vec<usize>, InvalidOp> {
    let count = op.actions.iter().filter(|action| action.output >= 0).count();
    if count == 0 {
        return Err(InvalidOp::Missing { what: "output".to_owned() });
    }
    let mut places = vec![None; count];
    for (n, action) in op.actions.iter().enumerate() {
        if action.output < -1 {
            let what = format!("output of action {n}");
            return Err(InvalidOp::Negative { what, value: action.output });
        }
        // Beyond the number of outputs there is a gap, which is found below.
        let place = usize::try_from(action.output).ok().and_then(|output| places.get_mut(output));
        if place.is_some_and(|place| place.replace(n).is_some()) {
            return Err(InvalidOp::DuplicateOutput { output: action.output });
        }
    }
    places
        .into_iter()
        .enumerate()
        .map(|(output, action)| action.ok_or(InvalidOp::OutputGap { output, count }))
        .collect()
}

/// Fails if an action needs its own result. Actions may stand in any order.
fn check_order(actions: &[FileAction]) -> Result<(), InvalidOp> {
    let mut consumers = vec![Vec::new(); actions.len()];
    let mut missing = vec![0; actions.len()];
    for (n, action) in actions.iter().enumerate() {
        for input in action.needs() {
            if let FileInput::Action(needed) = input {
                consumers[needed].push(n);
                missing[n] += 1;
            }
        }
    }
    let mut ready: Vec<usize> = (0..actions.len()).filter(|n| missing[*n] == 0).collect();
    while let Some(n) = ready.pop() {
        for &consumer in &consumers[n] {
            missing[consumer] -= 1;
            if missing[consumer] == 0 {
                ready.push(consumer);
            }
        }
    }
    match missing.iter().position(|missing| *missing > 0) {
        Some(action) => Err(InvalidOp::Loop { action }),
        None => Ok(()),
    }
}

/// The digest of the JSON that BuildKit hashes. Of what is copied from an input, only the last part of the path
/// counts here: the rest is in the selector of that input.
fn key(op: &pb::FileOp, inputs: usize) -> Digest {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Key {
        r#type: &'static str,
        actions: Vec<String>,
        #[serde(rename = "indexes", skip_serializing_if = "Vec::is_empty")]
        indexes: Vec<[i64; 3]>,
    }
    let actions = op.actions.iter().map(|action| {
        let json = match &action.action {
            Some(Kind::Copy(copy)) => {
                let from_input = usize::try_from(action.secondary_input).is_ok_and(|input| input < inputs);
                let src = if from_input { base_name(&copy.src) } else { &copy.src };
                super::go_json(&pb::FileActionCopy { src: src.to_owned(), ..copy.clone() })
            }
            Some(Kind::Mkfile(file)) => super::go_json(file),
            Some(Kind::Mkdir(dir)) => super::go_json(dir),
            Some(Kind::Rm(rm)) => super::go_json(rm),
            Some(Kind::Symlink(link)) => super::go_json(link),
            None => Vec::new(),
        };
        STANDARD.encode(json)
    });
    let actions: Vec<String> = actions.collect();
    let mut indexes: Vec<[i64; 3]> =
        op.actions.iter().map(|a| [a.input, a.secondary_input, a.output]).collect();
    if usual(&indexes) {
        indexes.clear();
    }
    Digest::sha256(super::go_json(&Key { r#type: "buildkit.file.v0", actions, indexes }))
}

/// True for the indices of the usual chain of actions, which older versions did not count in the key.
fn usual(indexes: &[[i64; 3]]) -> bool {
    let count = i64::try_from(indexes.len()).unwrap_or(i64::MAX);
    (0..count).zip(indexes).all(|(n, [input, secondary, output])| {
        let (expected_input, last) = (if n == 0 { 0 } else { count + n - 1 }, n == count - 1);
        *input == expected_input
            && (*secondary == -1 || *secondary == 1)
            && *output == if last { 0 } else { -1 }
    })
}

/// The last part of a path, as Go's `path.Base` says it.
fn base_name(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        path => path.rsplit('/').next().unwrap_or(path),
    }
}

#[cfg(test)]
mod tests;
