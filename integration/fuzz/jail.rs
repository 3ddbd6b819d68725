//! A place to unpack in: a file system of its own, on a thread that sees nothing else.
//!
//! The thread has its own mounts and its own root, so that not even an absolute link leads to the machine's files. Beside
//! the directories that are unpacked into lies what has to stay as it is. `/proc` is there, read-only: the code that sets
//! attributes goes through it. All of it is gone with the process.
//!
//! It is a thread and not the process, since libFuzzer writes what it finds where the machine's files are. A panic of
//! the thread comes to whoever gave it work, and is a panic there.

use std::fs;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;

use rustix::mount::MountFlags;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use thunk::fs::Meta;
use thunk::fs::Root;

/// Where trees are made, in the jail.
const TREES: &str = "/root";

/// What is beside the trees, and beside the directory that they are in.
const OUTSIDE: [&str; 2] = ["/outside", "/root/outside"];

const NAME: &str = "jail";

type Work = Box<dyn FnOnce() + Send>;

static WORK: OnceLock<mpsc::Sender<Work>> = OnceLock::new();

/// A panic ends the process, by a hook of libFuzzer's, where it happens. In the jail it unwinds: the process has to end
/// on a thread from which libFuzzer can write. Threads of the product inherit the jail, and have names.
pub(crate) fn let_prisoners_unwind() {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |cause| match thread::current().name() {
        Some(NAME | "read-ahead") => eprintln!("{cause}\n{}", std::backtrace::Backtrace::force_capture()),
        _ => abort(cause),
    }));
}

/// Does work in the jail, and panics if it does.
pub(crate) fn imprison<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = mpsc::sync_channel(1);
    let work = Box::new(move || {
        let result = panic::catch_unwind(AssertUnwindSafe(work));
        sender.send(result).expect("it is waited for");
    });
    WORK.get_or_init(build).send(work).expect("the jail is there");
    match done.recv() {
        Ok(Ok(done)) => done,
        _ => panic!("the work in the jail panicked, see above"),
    }
}

fn build() -> mpsc::Sender<Work> {
    let (sender, work) = mpsc::channel::<Work>();
    let (ready, is_ready) = mpsc::channel();
    let run = move || {
        enter().expect("unpacking needs root's rights: for mounts, owners and devices");
        ready.send(()).expect("it is waited for");
        work.into_iter().for_each(|work| work());
    };
    thread::Builder::new().name(NAME.to_owned()).spawn(run).expect("a thread starts");
    is_ready.recv().expect("the jail is there");
    sender
}

/// Leaves the machine's file systems.
fn enter() -> std::io::Result<()> {
    let place = std::env::temp_dir().join("thunk-fuzz-jail");
    fs::create_dir_all(&place)?;
    // SAFETY: the thread is this module's own. Nothing that it runs expects to share root and directory with others.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS)? };
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    rustix::mount::mount("thunk-fuzz", &place, "tmpfs", MountFlags::NOSUID, Some(c"size=256m"))?;
    let proc = place.join("proc");
    fs::create_dir(&proc)?;
    rustix::mount::mount_bind("/proc", &proc)?;
    rustix::mount::mount_remount(&proc, MountFlags::BIND | MountFlags::RDONLY, c"")?;
    rustix::process::chroot(&place)?;
    rustix::process::chdir("/")?;
    fs::create_dir(TREES)?;
    for outside in OUTSIDE {
        let outside = Path::new(outside);
        fs::create_dir_all(outside.join("outside"))?;
        for file in ["file", "a", "b", "outside/file"] {
            fs::write(outside.join(file), "precious")?;
        }
    }
    Ok(())
}

/// Removes all trees.
pub(crate) fn clear() {
    let root = Root::open(TREES).expect("it is there");
    for name in root.read_dir("").expect("it is listed") {
        if name != "outside" {
            root.remove_all(&name).expect("a tree is removed");
        }
    }
}

/// Makes an empty tree.
pub(crate) fn tree(name: &str) -> (PathBuf, Root) {
    let path = Path::new(TREES).join(name);
    fs::create_dir(&path).expect("a directory is made");
    let root = Root::open(&path).expect("it is there");
    (path, root)
}

/// Does what may change one tree, and panics if it changed anything else, or left a file open.
pub(crate) fn confined<T>(tree: &Path, work: impl FnOnce() -> T) -> T {
    let before = (outside(tree), open_files());
    let done = work();
    let after = (outside(tree), open_files());
    assert_eq!(before, after, "what is outside changed");
    done
}

/// All files but those of a tree, with their times.
fn outside(tree: &Path) -> Vec<(PathBuf, Meta)> {
    let mut found = Vec::new();
    let mut walk = Root::open("/").expect("it is there").walk("").expect("it is listed");
    while let Some(entry) = walk.next() {
        let entry = entry.expect("it is listed");
        let path = Path::new("/").join(&entry.path);
        if path == Path::new("/proc") || path == tree {
            walk.skip_dir();
        } else {
            found.push((path, entry.meta));
        }
    }
    found
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").expect("it is listed").count()
}
