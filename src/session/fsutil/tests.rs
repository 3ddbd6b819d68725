//! Both ends in one process, over channels.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures::StreamExt as _;
use futures::stream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::proto::fsutil::Packet;
use crate::proto::fsutil::Stat;
use crate::proto::fsutil::packet::PacketType;
use crate::session::SessionError;
use crate::task::Tasks;

type Packets = Result<Packet, SessionError>;

struct Dirs {
    dir: tempfile::TempDir,
    tasks: Tasks,
}

impl Dirs {
    fn new() -> Dirs {
        let dirs = Dirs { dir: tempfile::tempdir().unwrap(), tasks: Tasks::new() };
        fs::create_dir(dirs.from("")).unwrap();
        fs::create_dir(dirs.to("")).unwrap();
        dirs
    }

    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    async fn transfer(&self, options: ReceiveOptions) -> (Sent, Received) {
        self.transfer_of(Directory::open(self.from("")).unwrap(), options).await.unwrap()
    }

    async fn transfer_of(
        &self,
        source: impl TreeSource,
        options: ReceiveOptions,
    ) -> Result<(Sent, Received), TransferError> {
        let (out, packets) = mpsc::channel(4);
        let (answers, requests) = mpsc::unbounded_channel();
        let packets = ReceiverStream::new(packets).map(Packets::Ok);
        let requests = UnboundedReceiverStream::new(requests).map(Packets::Ok);
        let to = self.to("");
        let received = receive(&self.tasks, packets, answers, &to, options, |_| ());
        let sent = send(&self.tasks, requests, out, Arc::new(source), |_| ());
        let (sent, received) = futures::join!(sent, received);
        Ok((sent?, received?))
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Everything that a transfer keeps, by path; of a link the name of its file.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut files: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let walk = crate::fs::Root::open(root).unwrap().walk("").unwrap();
    for entry in walk {
        let entry = entry.unwrap();
        let path = root.join(&entry.path);
        let meta = fs::symlink_metadata(&path).unwrap();
        if entry.path.as_os_str().is_empty() {
            continue;
        }
        let mut text = format!("{:o} {}.{:09}", meta.mode(), meta.mtime(), meta.mtime_nsec());
        if meta.is_symlink() {
            text = format!("-> {}", fs::read_link(&path).unwrap().display());
        } else if meta.is_file() {
            match files.get(&meta.ino()) {
                Some(first) => text = format!("= {}", first.display()),
                None => {
                    files.insert(meta.ino(), entry.path.clone());
                    text += &format!(" {}", String::from_utf8_lossy(&fs::read(&path).unwrap()));
                }
            }
        }
        found.insert(entry.path.clone(), text);
    }
    found
}

#[tokio::test]
async fn a_tree_arrives_as_it_is() {
    let dirs = Dirs::new();
    fs::create_dir_all(dirs.from("a/b")).unwrap();
    write(&dirs.from("a-b"), "beside");
    write(&dirs.from("a/empty"), "");
    write(&dirs.from("a/b/large"), &"0123456789".repeat(40_000));
    fs::hard_link(dirs.from("a/b/large"), dirs.from("z-link")).unwrap();
    symlink("../nowhere", dirs.from("a/symlink")).unwrap();
    let fifo = dirs.from("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    fs::set_permissions(dirs.from("a-b"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(dirs.from("a/b"), fs::Permissions::from_mode(0o1555)).unwrap();
    let (sent, received) = dirs.transfer(ReceiveOptions::default()).await;
    assert_eq!(tree(&dirs.to("")), tree(&dirs.from("")));
    assert!(fs::symlink_metadata(dirs.to("fifo")).unwrap().file_type().is_fifo());
    assert_eq!((sent.entries, received.entries), (8, 8));
    assert_eq!((sent.files, received.files), (3, 3), "a link's bytes come once");
}

#[tokio::test]
async fn of_two_thousand_files_only_the_changed_one_is_sent_again() {
    let dirs = Dirs::new();
    for directory in 0..20 {
        fs::create_dir(dirs.from(&directory.to_string())).unwrap();
        for file in 0..100 {
            fs::write(dirs.from(&format!("{directory}/{file}")), "x").unwrap();
        }
    }
    let (_, first) = dirs.transfer(ReceiveOptions::default()).await;
    assert_eq!((first.entries, first.files), (2_020, 2_000));
    let (_, same) = dirs.transfer(ReceiveOptions::default()).await;
    assert!(same.is_unchanged() && same.files == 0, "{same:?}");
    write(&dirs.from("7/7"), "changed");
    let (sent, changed) = dirs.transfer(ReceiveOptions::default()).await;
    assert_eq!((sent.files, changed.files, changed.changed), (1, 1, 1));
    assert_eq!(tree(&dirs.to("")), tree(&dirs.from("")));
    let all = ReceiveOptions { differ: Differ::None, ..ReceiveOptions::default() };
    assert_eq!(dirs.transfer(all).await.1.files, 2_000);
}

#[tokio::test]
async fn a_tree_that_is_sent_whole_is_unchanged_if_all_bytes_are_the_same() {
    // The file of a build's steps is always sent. Each build of the same ones had made a state of its own for it.
    let dirs = Dirs::new();
    fs::create_dir(dirs.from("a")).unwrap();
    for (path, text) in [("a/empty", ""), ("a/file", "text"), ("large", &"0123456789".repeat(40_000))] {
        write(&dirs.from(path), text);
    }
    symlink("a", dirs.from("link")).unwrap();
    let all = || ReceiveOptions { differ: Differ::None, ..ReceiveOptions::default() };
    dirs.transfer(all()).await;
    let before = fs::symlink_metadata(dirs.to("a/file")).unwrap().ino();
    let (_, same) = dirs.transfer(all()).await;
    assert!(same.is_unchanged() && same.files == 3, "{same:?}");
    assert_eq!(fs::symlink_metadata(dirs.to("a/file")).unwrap().ino(), before);
    assert_eq!(tree(&dirs.to("")), tree(&dirs.from("")));

    // Neither size nor time tell.
    write(&dirs.from("a/file"), "next");
    let (_, next) = dirs.transfer(all()).await;
    assert_eq!((next.changed, next.removed), (1, 0));
    assert_eq!(tree(&dirs.to("")), tree(&dirs.from("")));
}

#[tokio::test]
async fn a_file_with_two_names_that_it_had_is_unchanged() {
    let dirs = Dirs::new();
    write(&dirs.from("a"), "text");
    fs::hard_link(dirs.from("a"), dirs.from("b")).unwrap();
    let (_, first) = dirs.transfer(ReceiveOptions::default()).await;
    assert_eq!(first.changed, 2);
    let (_, same) = dirs.transfer(ReceiveOptions::default()).await;
    assert!(same.is_unchanged(), "{same:?}");
    fs::hard_link(dirs.from("a"), dirs.from("c")).unwrap();
    let (_, third) = dirs.transfer(ReceiveOptions::default()).await;
    assert_eq!((third.changed, third.files), (1, 0));
    assert_eq!(tree(&dirs.to("")), tree(&dirs.from("")));
}

#[tokio::test]
async fn what_the_sender_has_no_more_is_removed_and_kinds_change() {
    let dirs = Dirs::new();
    for path in ["gone/deep", "kept", "was-dir/x"] {
        fs::create_dir_all(dirs.to(path)).unwrap();
    }
    for path in ["gone/deep/file", "was-dir/x/file", "was-file", "aa", "zz", "kept/old"] {
        write(&dirs.to(path), "old");
    }
    symlink("aa", dirs.to("was-link")).unwrap();
    fs::hard_link(dirs.to("aa"), dirs.to("was-linked")).unwrap();
    fs::create_dir(dirs.from("was-file")).unwrap();
    fs::create_dir(dirs.from("kept")).unwrap();
    for path in ["was-dir", "was-link", "was-file/inside", "was-linked", "aa"] {
        write(&dirs.from(path), "newer");
    }
    let (_, received) = dirs.transfer(ReceiveOptions::default()).await;
    assert_eq!(tree(&dirs.to("")), tree(&dirs.from("")));
    assert_eq!(received.removed, 3, "gone, kept/old, zz");
}

#[tokio::test]
async fn a_merge_keeps_what_is_there_and_goes_through_no_link() {
    let dirs = Dirs::new();
    let outside = dirs.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, dirs.to("a")).unwrap();
    write(&dirs.to("old"), "old");
    write(&dirs.to("both"), "old");
    fs::create_dir(dirs.from("a")).unwrap();
    write(&dirs.from("a/file"), "new");
    write(&dirs.from("both"), "new");
    let options = ReceiveOptions { merge: true, ..ReceiveOptions::default() };
    dirs.transfer(options).await;
    assert_eq!(fs::read_to_string(dirs.to("a/file")).unwrap(), "new");
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    assert_eq!(fs::read_to_string(dirs.to("old")).unwrap(), "old");
    assert_eq!(fs::read_to_string(dirs.to("both")).unwrap(), "new");
}

#[tokio::test]
async fn a_link_that_was_broken_up_is_two_files_and_one_that_is_made_is_one() {
    let dirs = Dirs::new();
    write(&dirs.from("a"), "same");
    fs::hard_link(dirs.from("a"), dirs.from("b")).unwrap();
    write(&dirs.from("c"), "same");
    dirs.transfer(ReceiveOptions::default()).await;
    fs::remove_file(dirs.from("b")).unwrap();
    write(&dirs.from("b"), "same");
    fs::remove_file(dirs.from("c")).unwrap();
    fs::hard_link(dirs.from("b"), dirs.from("c")).unwrap();
    dirs.transfer(ReceiveOptions::default()).await;
    assert_eq!(tree(&dirs.to("")), tree(&dirs.from("")));
}

#[tokio::test]
async fn a_transfer_of_metadata_makes_what_is_excepted_and_lists_all() {
    let dirs = Dirs::new();
    fs::create_dir_all(dirs.from("a/b")).unwrap();
    fs::create_dir_all(dirs.from("c")).unwrap();
    for path in ["a/b/keep.go", "a/b/leave", "c/leave", "keep.go", ".fsutil-metadata"] {
        write(&dirs.from(path), path);
    }
    write(&dirs.to("c"), "of a transfer before");
    let keeps = DataFilter::new(|stat| stat.path.ends_with(b".go"));
    let options = ReceiveOptions { metadata_only: Some(keeps), ..ReceiveOptions::default() };
    let (_, received) = dirs.transfer(options).await;
    assert_eq!(received.files, 2);
    let made: Vec<_> = tree(&dirs.to("")).into_keys().collect();
    let expected = [".fsutil-metadata", "a", "a/b", "a/b/keep.go", "keep.go"].map(PathBuf::from);
    assert_eq!(made, expected);
    assert_eq!(fs::read_to_string(dirs.to("a/b/keep.go")).unwrap(), "a/b/keep.go");
    let metadata = fs::read(dirs.to(METADATA)).unwrap();
    let (mut rest, mut listed) = (metadata.as_slice(), Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (stat, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        listed.push(String::from_utf8(Stat::decode(stat).unwrap().path.to_vec()).unwrap());
        rest = behind;
    }
    assert_eq!(listed, ["a", "a/b", "a/b/keep.go", "a/b/leave", "c", "c/leave", "keep.go"]);
}

fn packet(kind: PacketType) -> Packet {
    Packet { r#type: kind as i32, ..Packet::default() }
}

fn stat(path: &str) -> Packet {
    let stat = FileStat::new(path, FileKind::File, 0o644).encode();
    Packet { stat: Some(stat), ..packet(PacketType::Stat) }
}

fn data(id: u32, text: &'static str) -> Packet {
    Packet { id, data: text.into(), ..packet(PacketType::Data) }
}

/// Receives what a sender says that hears nothing.
async fn told(dirs: &Dirs, packets: Vec<Packet>) -> (TransferError, Vec<Packet>) {
    let (answers, mut answered) = mpsc::unbounded_channel();
    let packets = stream::iter(packets).map(Packets::Ok);
    let options = ReceiveOptions::default();
    let received = receive(&dirs.tasks, packets, answers, &dirs.to(""), options, |_| ()).await;
    let mut all = Vec::new();
    while let Some(packet) = answered.recv().await {
        all.push(packet);
    }
    (received.unwrap_err(), all)
}

#[tokio::test]
async fn a_sender_that_breaks_the_rules_is_told_so() {
    let symlink = FileStat::new("link", FileKind::Symlink { target: "/etc".into() }, 0o777).encode();
    let symlink = Packet { stat: Some(symlink), ..packet(PacketType::Stat) };
    for (packets, expected) in [
        (vec![stat("b"), stat("a")], "out of order"),
        (vec![stat("../a")], "leaves its directory"),
        (vec![stat("/etc/passwd")], "absolute"),
        (vec![symlink, stat("link/passwd")], "out of order"),
        (vec![stat("a"), data(7, "x")], "not asked for"),
        (vec![packet(PacketType::Stat), stat("a")], "makes no sense"),
        (vec![packet(PacketType::Fin)], "makes no sense"),
    ] {
        let dirs = Dirs::new();
        let (error, answers) = told(&dirs, packets).await;
        assert!(error.to_string().contains(expected), "{error}");
        let last = answers.last().unwrap();
        assert_eq!((last.r#type(), last.data.as_ref()), (PacketType::Err, error.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_off_removes_nothing_and_leaves_no_part_of_a_file() {
    let dirs = Dirs::new();
    write(&dirs.to("later"), "old");
    write(&dirs.to("b"), "old");
    let (error, _) = told(&dirs, vec![stat("b"), data(0, "ne")]).await;
    assert!(matches!(error, TransferError::Ended | TransferError::NotAsked { .. }), "{error}");
    assert_eq!(fs::read_to_string(dirs.to("b")).unwrap(), "old");
    assert_eq!(fs::read_to_string(dirs.to("later")).unwrap(), "old");
    assert_eq!(tree(&dirs.to("")).len(), 2);
    let failing = Packet { data: "no more".into(), ..packet(PacketType::Err) };
    let (error, _) = told(&dirs, vec![stat("b"), failing]).await;
    assert_eq!(error.to_string(), "error from the other side of the transfer: no more");
}

#[tokio::test]
async fn giving_up_ends_every_thread_of_both_ends() {
    let dirs = Dirs::new();
    write(&dirs.from("file"), &"x".repeat(1 << 20));
    let (out, mut packets) = mpsc::channel(1);
    let (requests, received) = mpsc::unbounded_channel();
    let received = UnboundedReceiverStream::new(received).map(Packets::Ok);
    let source = Arc::new(Directory::open(dirs.from("")).unwrap());
    let mut sent = Box::pin(send(&dirs.tasks, received, out, source, |_| ()));
    requests.send(Packet::default()).unwrap();
    let (answers, _answered) = mpsc::unbounded_channel();
    let to = dirs.to("");
    let silent = stream::pending::<Packets>();
    let options = ReceiveOptions::default();
    let mut receives = Box::pin(receive(&dirs.tasks, silent, answers, &to, options, |_| ()));
    tokio::select! {
        _ = &mut sent => {}
        _ = &mut receives => panic!("nothing came"),
        first = packets.recv() => assert_eq!(first.unwrap().r#type(), PacketType::Stat),
    }
    drop((sent, receives, packets));
    dirs.tasks.shutdown().await;
    assert_eq!(dirs.tasks.running(), 0);
}

/// A tree that lists a file which is gone when it is asked for.
struct Vanishing;

impl TreeSource for Vanishing {
    fn walk(&self, visit: &mut Visit<'_>) -> Result<(), TransferError> {
        let _ = visit(FileStat::new("gone", FileKind::File, 0o600));
        Ok(())
    }

    fn open(&self, _: &[u8]) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

#[tokio::test]
async fn a_file_that_vanishes_is_empty() {
    let dirs = Dirs::new();
    dirs.transfer_of(Vanishing, ReceiveOptions::default()).await.unwrap();
    assert_eq!(fs::read(dirs.to("gone")).unwrap(), b"");
}

#[test]
fn modes_and_times_survive_the_wire() {
    let kinds = [
        FileKind::File,
        FileKind::Directory,
        FileKind::Symlink { target: b"\xff/x".into() },
        FileKind::HardLink { target: "a".into() },
        FileKind::CharDevice { major: 1, minor: 3 },
        FileKind::BlockDevice { major: 259, minor: 70_000 },
        FileKind::Fifo,
    ];
    for kind in kinds {
        for mode in [0o7777, 0o4755, 0o644, 0] {
            let mut stat = FileStat::new(b"caf\xe9".as_slice(), kind.clone(), mode);
            stat.mtime = crate::fs::FileTime { seconds: -2, nanos: 999_999_999 };
            stat.xattrs.insert("user.x".into(), vec![0, 255]);
            assert_eq!(FileStat::decode(stat.encode()).unwrap(), stat);
        }
    }
    // Go: a setuid directory is 1<<31 | 1<<23 | 0755.
    let dir = FileStat::new("d", FileKind::Directory, 0o4755).encode();
    assert_eq!(dir.mode, 0x8080_01ed);
    for mode in [1 << 19, 1 << 31 | 1 << 27, 1 << 24] {
        assert!(FileStat::decode(Stat { path: "x".into(), mode, ..Stat::default() }).is_err(), "{mode:x}");
    }
}

#[tokio::test]
async fn a_sender_is_done_when_the_receiver_says_so() {
    // A sender that is the server of the call must end before the receiver ends its side.
    let dirs = Dirs::new();
    let (out, packets) = mpsc::channel(4);
    let said = stream::iter([packet(PacketType::Fin)]).chain(stream::pending()).map(Packets::Ok);
    let sent = send(&dirs.tasks, said, out, Arc::new(Vanishing), |_| ()).await.unwrap();
    assert_eq!((sent.files, sent.entries <= 1), (0, true));
    let all: Vec<Packet> = ReceiverStream::new(packets).collect().await;
    assert!(all.iter().any(|packet| packet.r#type() == PacketType::Fin));
}
