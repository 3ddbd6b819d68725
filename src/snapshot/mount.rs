//! What has to be mounted to see a snapshot, and what is.

use std::any::Any;
use std::fmt;
use std::fs;
use std::io;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::FsMountFlags;
use rustix::mount::FsOpenFlags;
use rustix::mount::MountAttrFlags;
use rustix::mount::MountFlags;
use rustix::mount::MoveMountFlags;
use rustix::mount::OpenTreeFlags;
use rustix::mount::UnmountFlags;
use rustix::thread::UnshareFlags;

use super::SnapshotError;
use super::names::Names;
use crate::task::TaskFailed;
use crate::task::Tasks;

/// Lower directories that the kernel takes.
pub(super) const MAX_LOWER: usize = 500;
/// Bytes of all options that the kernel takes as one text: the smallest page.
const MAX_OPTIONS: usize = 4096;
/// The kernel takes a string of 255 bytes for one option; longer paths go by descriptor.
const MAX_VALUE: usize = 255;
/// Both sides of every mount agree on these: an upper directory then says all that was changed in it, in a form that
/// stays readable when it is moved elsewhere.
const OVERLAY_OPTIONS: [(&str, &str); 3] = [("index", "off"), ("metacopy", "off"), ("redirect_dir", "off")];

/// What `mount(8)` would be given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `overlay` or `bind`.
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// A snapshot that can be seen at a path, until this is dropped.
///
/// Dropping it unmounts on the spot: nobody finds the mount afterwards, and the snapshot can be committed or removed if
/// this was the last. It takes a few system calls, none of which waits for a disk; [`Mounted::unmount`] makes them where
/// blocking is allowed.
#[must_use = "dropping it unmounts"]
pub struct Mounted {
    path: PathBuf,
    tasks: Tasks,
    /// Unmounts when it is dropped.
    guard: Option<Box<dyn Any + Send + Sync>>,
}

impl Mounted {
    /// What is mounted at `path` is unmounted when `guard` is dropped.
    pub fn new(path: PathBuf, tasks: Tasks, guard: impl Any + Send + Sync) -> Mounted {
        Mounted { path, tasks, guard: Some(Box::new(guard)) }
    }

    /// A directory of the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cancellation safe: it is unmounted in any case.
    pub async fn unmount(mut self) -> Result<(), TaskFailed> {
        let guard = self.guard.take();
        self.tasks.spawn_blocking("unmount", move || drop(guard)).await
    }
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Mount {
    pub(super) fn bind(source: &Path, read_only: bool) -> Mount {
        Mount {
            kind: "bind".to_owned(),
            source: source.display().to_string(),
            options: vec!["rbind".to_owned(), if read_only { "ro" } else { "rw" }.to_owned()],
        }
    }
}

/// The directories of an overlay mount.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    /// Below them, and not named where the mount is listed in short. With this they are two at least if there is no upper
    /// one, [`MAX_LOWER`] at most.
    pub lowest: Option<PathBuf>,
    /// Where changes go, and an empty directory beside it.
    pub upper: Option<(PathBuf, PathBuf)>,
}

impl Overlay {
    pub(super) fn describe(&self) -> Mount {
        let mut options: Vec<_> =
            OVERLAY_OPTIONS.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let lower: Vec<_> = self.lower.iter().chain(&self.lowest).map(|path| escape(path)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        if let Some((upper, work)) = &self.upper {
            options.push(format!("upperdir={}", escape(upper)));
            options.push(format!("workdir={}", escape(work)));
        }
        Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }
    }

    pub(super) fn mount(&self, names: &Names, target: &Path) -> Result<(), SnapshotError> {
        // The second way has no limit, and says what is wrong.
        let mounted = self.mount_by_names(names, target).or_else(|error| {
            self.mount_by_descriptor(target).map_err(|failed| match failed {
                MountFailed::NotKnown => error,
                MountFailed::Io(error) => error,
            })
        });
        mounted.and_then(|()| self.check(target)).map_err(SnapshotError::io("mount overlay on", target))
    }

    /// The kernel mounts an overlay read-only if it can't make a directory in the working directory, for want of space
    /// for example, and says so in its log alone. Such a mount is undone.
    fn check(&self, target: &Path) -> io::Result<()> {
        let Some((upper, _)) = &self.upper else { return Ok(()) };
        let is_read_only = |path: &Path| -> io::Result<bool> {
            Ok(rustix::fs::statvfs(path)?.f_flag.contains(StatVfsMountFlags::RDONLY))
        };
        if !is_read_only(target)? {
            return Ok(());
        }
        rustix::mount::unmount(target, UnmountFlags::DETACH)?;
        Err(match is_read_only(upper)? {
            true => io::ErrorKind::ReadOnlyFilesystem.into(),
            false => io::ErrorKind::StorageFull.into(),
        })
    }

    /// Every directory is an option of its own, so their number and length don't matter.
    fn mount_by_descriptor(&self, target: &Path) -> Result<(), MountFailed> {
        let context = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
            Err(Errno::NOSYS) => return Err(MountFailed::NotKnown),
            other => other.map_err(io::Error::from)?,
        };
        for (n, lower) in self.lower.iter().chain(&self.lowest).enumerate() {
            match set_path(&context, "lowerdir+", lower) {
                Err(Errno::INVAL) if n == 0 => return Err(MountFailed::NotKnown),
                other => explain(&context, other)?,
            }
        }
        for (name, value) in OVERLAY_OPTIONS {
            explain(&context, rustix::mount::fsconfig_set_string(context.as_fd(), name, value))?;
        }
        if let Some((upper, work)) = &self.upper {
            explain(&context, set_path(&context, "upperdir", upper))?;
            explain(&context, set_path(&context, "workdir", work))?;
            // What is changed is synced once, when it is committed; not whenever somebody syncs or unmounts.
            explain(&context, rustix::mount::fsconfig_set_flag(context.as_fd(), "volatile"))?;
        }
        explain(&context, rustix::mount::fsconfig_create(context.as_fd()))?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let attributes = match self.upper {
            Some(_) => MountAttrFlags::empty(),
            None => MountAttrFlags::MOUNT_ATTR_RDONLY,
        };
        let mount = explain(&context, rustix::mount::fsmount(context.as_fd(), flags, attributes))?;
        attach(mount.as_fd(), target).map_err(io::Error::from)?;
        Ok(())
    }

    /// All directories are in one text: a page at most, and the shorter the better for all who list mounts.
    fn mount_by_names(&self, names: &Names, target: &Path) -> io::Result<()> {
        let mut options: Vec<_> =
            OVERLAY_OPTIONS.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut lower = names.list(&self.lower)?;
        if let Some(lowest) = &self.lowest {
            lower.push(':');
            lower.push_str(&escape(&names.relative(lowest)));
        }
        options.push(format!("lowerdir={lower}"));
        let mut flags = MountFlags::RDONLY;
        if let Some((upper, work)) = &self.upper {
            options.push(format!("upperdir={}", escape(&names.relative(upper))));
            options.push(format!("workdir={}", escape(&names.relative(work))));
            options.push("volatile".to_owned());
            flags = MountFlags::empty();
        }
        let options = std::ffi::CString::new(options.join(","))?;
        if options.as_bytes_with_nul().len() > MAX_OPTIONS {
            // The kernel would cut them off.
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        let target = fs::canonicalize(target)?;
        let mount = || -> io::Result<()> {
            // Safety: this thread shares no file descriptors or memory mappings less than before, only its working
            // directory is its own from here on. It ends with this function.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
            rustix::process::chdir(names.directory())?;
            rustix::mount::mount("overlay", &target, "overlay", flags, Some(options.as_c_str()))?;
            Ok(())
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("mount".to_owned()).spawn_scoped(scope, mount)?;
            thread.join().map_err(|_| io::Error::other("the thread that mounts panicked"))?
        })
    }

    #[cfg(test)]
    pub(super) fn mount_without_names(&self, target: &Path) -> bool {
        self.mount_by_descriptor(target).is_ok()
    }
}

/// Shows `source` at `target` too, read-only.
pub(super) fn bind_read_only(source: &Path, target: &Path) -> rustix::io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags)?;
    attach(tree.as_fd(), target)?;
    let flags = MountFlags::RDONLY | MountFlags::BIND;
    rustix::mount::mount_remount(target, flags, c"").inspect_err(|_| {
        let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
    })
}

fn attach(mount: BorrowedFd<'_>, target: &Path) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", rustix::fs::CWD, target, flags)
}

/// Passes a path as one option. The kernel takes it as it is, without escapes, for lower directories, and with
/// backslashes for the others.
fn set_path(context: &OwnedFd, name: &str, path: &Path) -> rustix::io::Result<()> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= MAX_VALUE && !bytes.iter().any(|b| b"\\:,".contains(b)) {
        return rustix::mount::fsconfig_set_string(context.as_fd(), name, path);
    }
    let dir = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    rustix::mount::fsconfig_set_string(context.as_fd(), name, path)
}

#[derive(Debug)]
enum MountFailed {
    /// The kernel does not have this way to mount.
    NotKnown,
    Io(io::Error),
}

impl From<io::Error> for MountFailed {
    fn from(error: io::Error) -> MountFailed {
        MountFailed::Io(error)
    }
}

/// Adds what the kernel says of a failure.
fn explain<T>(context: &OwnedFd, result: rustix::io::Result<T>) -> io::Result<T> {
    result.map_err(|errno| {
        let error = io::Error::from(errno);
        let mut said = Vec::new();
        if let Ok(context) = context.try_clone() {
            let mut context = fs::File::from(context);
            let mut line = [0; 1024];
            // One message at a time.
            while let Ok(length @ 1..) = context.read(&mut line) {
                said.push(String::from_utf8_lossy(&line[..length]).trim_end().to_owned());
            }
        }
        if said.is_empty() {
            return error;
        }
        io::Error::new(error.kind(), format!("{error}: {}", said.join("; ")))
    })
}

/// As overlay wants paths in one option.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for c in path.display().to_string().chars() {
        if matches!(c, '\\' | ':' | ',') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}
