//! [`FileOp`]: files are copied, made and removed, without a process.

use super::mode::ModeChange;
use crate::oci::Digest;

/// Changes of file systems, one after the other or side by side.
///
/// # Invariants
///
/// Every index is one of an input of the vertex or of an action. No action needs its own result. There is an
/// output. No path has a NUL byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileOp {
    pub actions: Vec<FileAction>,
    /// The action that makes each output, as indices into `actions`.
    pub outputs: Vec<usize>,
    /// What the op itself counts for in the cache, inputs left out: that of BuildKit for the same op.
    pub key: Digest,
}

/// A change of a file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileAction {
    /// What is changed: the result is a file system of its own.
    pub base: FileInput,
    pub change: FileChange,
}

/// A file system that an action needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileInput {
    Scratch,
    /// An input of the vertex.
    Input(usize),
    /// The result of an action.
    Action(usize),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileChange {
    Copy(Box<CopyFiles>),
    MakeFile(MakeFile),
    MakeDir(MakeDir),
    Remove(Remove),
    Symlink(Symlink),
}

impl FileAction {
    /// The owner of what is made, where one is stated.
    pub fn owner(&self) -> Option<&Owner> {
        match &self.change {
            FileChange::Copy(copy) => copy.owner.as_ref(),
            FileChange::MakeFile(file) => file.owner.as_ref(),
            FileChange::MakeDir(dir) => dir.owner.as_ref(),
            FileChange::Symlink(link) => link.owner.as_ref(),
            FileChange::Remove(_) => None,
        }
    }

    /// Every file system that the action needs.
    pub fn needs(&self) -> impl Iterator<Item = FileInput> + '_ {
        let source = match &self.change {
            FileChange::Copy(copy) => Some(copy.from),
            _ => None,
        };
        let names = self.owner().into_iter().flat_map(Owner::inputs);
        std::iter::once(self.base).chain(source).chain(names)
    }
}

/// From one file system into another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyFiles {
    pub from: FileInput,
    pub src: String,
    pub dest: String,
    pub owner: Option<Owner>,
    pub mode: CopyMode,
    /// The last part of the source is followed if it is a symbolic link.
    pub follow_symlink: bool,
    /// A directory gives its entries, not itself.
    pub contents_only: bool,
    /// An archive is unpacked instead.
    pub unpack: bool,
    /// The parent of the destination need not be there.
    pub create_dest_path: bool,
    pub wildcard: Wildcard,
    pub timestamp: Option<Timestamp>,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Paths that must be there although patterns choose.
    pub required: Vec<String>,
    /// What is of another type gives way.
    pub replace: bool,
}

#[cfg(test)]
impl CopyFiles {
    /// Without any attribute, and with the directories that the destination lacks.
    pub(in super::super) fn plain(from: FileInput, src: &str, dest: &str) -> CopyFiles {
        CopyFiles {
            from,
            src: src.to_owned(),
            dest: dest.to_owned(),
            owner: None,
            mode: CopyMode::Keep,
            follow_symlink: false,
            contents_only: false,
            unpack: false,
            create_dest_path: true,
            wildcard: Wildcard::No,
            timestamp: None,
            include: Vec::new(),
            exclude: Vec::new(),
            required: Vec::new(),
            replace: false,
        }
    }
}

/// Whether the source is a pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wildcard {
    No,
    /// And must match something.
    Required,
    /// And may match nothing.
    MayBeEmpty,
}

/// The mode of what is copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyMode {
    Keep,
    /// Bits of 07777.
    Set(u32),
    Change(ModeChange),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MakeFile {
    pub path: String,
    /// Bits of 0777.
    pub mode: u32,
    pub data: bytes::Bytes,
    pub owner: Option<Owner>,
    pub timestamp: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MakeDir {
    pub path: String,
    /// Bits of 0777.
    pub mode: u32,
    pub parents: bool,
    pub owner: Option<Owner>,
    pub timestamp: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remove {
    pub path: String,
    pub allow_not_found: bool,
    pub wildcard: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Symlink {
    /// What the link says.
    pub target: String,
    /// Where the link stands.
    pub path: String,
    pub owner: Option<Owner>,
    pub timestamp: Option<Timestamp>,
}

/// Nanoseconds since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Seconds since the epoch, and nanoseconds on top of them.
    pub fn parts(self) -> (i64, u32) {
        let nanos = self.0.rem_euclid(1_000_000_000);
        // Below a billion.
        (self.0.div_euclid(1_000_000_000), u32::try_from(nanos).unwrap_or_default())
    }
}

/// Who owns what is made. A part that is absent is root's; a user stands for its group as well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    pub user: Option<Principal>,
    pub group: Option<Principal>,
}

impl Owner {
    /// The file systems whose files say what names mean.
    pub fn inputs(&self) -> impl Iterator<Item = FileInput> + '_ {
        [&self.user, &self.group].into_iter().flatten().filter_map(|principal| match principal {
            Principal::Name { input, .. } => Some(*input),
            Principal::Id(_) => None,
        })
    }
}

/// A user or a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Principal {
    Id(u32),
    /// As the passwd or group file of `input` has it.
    Name {
        name: String,
        input: FileInput,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_counted_upwards_before_the_epoch_too() {
        assert_eq!(Timestamp(1_500_000_000).parts(), (1, 500_000_000));
        assert_eq!(Timestamp(-2).parts(), (-1, 999_999_998));
    }
}
