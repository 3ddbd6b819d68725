//! Files of images that were here once: only the ranges of layers that have their bytes are read, counted at the
//! registry.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::GzBuilder;

use crate::builds::assert_no_leak;
use crate::builds::files;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::buildctl::Buildctl;
use crate::harness::daemon::Daemon;
use crate::harness::digest::sha256;
use crate::harness::leaks::prune_files;
use crate::harness::llb;
use crate::harness::llb::State;
use crate::harness::registry::How;
use crate::harness::registry::Op;
use crate::harness::registry::Options;
use crate::paths::copy;

const MIB: usize = 1 << 20;

const SMALL: &str = "8 bytes\n";

/// How a layer is compressed, and in how large members.
#[derive(Clone, Copy, Debug)]
enum Form {
    Uncompressed,
    Gzip { member: usize },
    Zstd { frame: usize },
}

/// Bytes that don't get smaller.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ seed;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// Eight megabytes, with eight bytes at `/etc/small` in the middle of them.
fn tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_600_000_000);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).expect("tar to memory");
    };
    put("before", tar::EntryType::Regular, 0o644, &noise(4 * MIB, 1));
    put("etc/", tar::EntryType::Directory, 0o751, b"");
    put("etc/small", tar::EntryType::Regular, 0o640, SMALL.as_bytes());
    for n in 0..50 {
        put(&format!("etc/{n}"), tar::EntryType::Regular, 0o644, format!("file {n}").as_bytes());
    }
    put("behind", tar::EntryType::Regular, 0o644, &noise(4 * MIB, 2));
    builder.into_inner().expect("tar to memory")
}

fn layer(form: Form) -> Layer {
    let tar = tar();
    let oci = "application/vnd.oci.image.layer.v1.tar";
    match form {
        Form::Uncompressed => Layer::uncompressed(tar),
        Form::Gzip { member } => {
            let members = tar.chunks(member).flat_map(|chunk| {
                let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
                encoder.write_all(chunk).expect("gzip to memory");
                encoder.finish().expect("gzip to memory")
            });
            Layer::with_blob(&format!("{oci}+gzip"), members.collect::<Vec<u8>>(), sha256(&tar))
        }
        Form::Zstd { frame } => {
            let frames =
                tar.chunks(frame).flat_map(|chunk| zstd::bulk::compress(chunk, 1).expect("zstd to memory"));
            Layer::with_blob(&format!("{oci}+zstd"), frames.collect::<Vec<u8>>(), sha256(&tar))
        }
    }
}

struct Fixture {
    layer: String,
    registry: TestRegistry,
    daemon: Daemon,
    client: Buildctl,
}

impl Fixture {
    /// An image of one layer, which was here as files and has gone since. `None` where there is no `buildctl`.
    async fn known(form: Form, options: Options) -> Option<Fixture> {
        let (image, daemon) = (Image::of([layer(form)]), Daemon::start());
        let client = Buildctl::of(&daemon)?;
        let registry = TestRegistry::start(options);
        registry.put_image("base", "v1", &image);
        let layer = image.layer_digests()[0].to_owned();
        let f = Fixture { layer, registry, daemon, client };
        f.files_of(&f.base()).await;
        prune_files(&f.client, &f.daemon).await;
        f.registry.forget();
        Some(f)
    }

    fn base(&self) -> State {
        llb::image(self.registry.reference("base", "v1"))
    }

    /// The files of a result.
    async fn files_of(&self, result: &State) -> std::collections::BTreeMap<String, String> {
        let archive = self.daemon.scratch().join("result.tar");
        let output = format!("type=tar,dest={}", archive.display());
        self.client.build(&result.marshal(), &[&output]).await.success();
        files(Path::new(&archive))
    }

    /// What was asked of the layer: the ranges, nothing for all of it.
    fn asked(&self) -> Vec<Option<String>> {
        self.registry.at(Op::BlobGet.of(&self.layer)).into_iter().map(|request| request.range).collect()
    }

    fn moved(&self) -> u64 {
        self.registry.bytes_of(&self.layer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_bytes_of_a_known_layer_move_the_range_that_has_them() {
    for (form, most) in [
        (Form::Uncompressed, 12 << 10),
        (Form::Gzip { member: MIB / 2 }, MIB / 2 + 4096),
        (Form::Gzip { member: 5000 }, 16 << 10),
        (Form::Zstd { frame: MIB / 4 }, MIB / 4 + 4096),
    ] {
        let Some(f) = Fixture::known(form, Options::default()).await else { return };
        let copied = copy(&f.base(), "/etc/small", |_| ());
        assert_eq!(f.files_of(&copied).await["out/small"], SMALL, "{form:?}");
        assert_eq!(f.asked().len(), 1, "{form:?}: {}", f.registry.story());
        assert!(f.asked()[0].is_some() && f.moved() <= most as u64, "{form:?}: {}", f.registry.story());
        assert_no_leak(&f.client, &f.daemon).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_of_a_known_layer_are_one_range() {
    let Some(f) = Fixture::known(Form::Uncompressed, Options::default()).await else { return };
    let files = f.files_of(&copy(&f.base(), "/etc", |_| ())).await;
    assert_eq!(files["out/etc/49"], "file 49");
    assert_eq!(files["out/etc/small"], SMALL);
    assert_eq!(f.asked().len(), 1, "{}", f.registry.story());
    assert!(f.moved() <= 64 << 10, "{}", f.registry.story());
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_and_a_single_member_are_the_whole_layer() {
    for (form, path) in [(Form::Uncompressed, "/before"), (Form::Gzip { member: 16 * MIB }, "/etc/small")] {
        let Some(f) = Fixture::known(form, Options::default()).await else { return };
        f.client.build(&copy(&f.base(), path, |_| ()).marshal(), &[]).await.success();
        assert_eq!(f.asked(), [None], "{form:?}: {}", f.registry.story());
        assert_no_leak(&f.client, &f.daemon).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_damaged_is_the_whole_layer_instead() {
    let Some(f) = Fixture::known(Form::Uncompressed, Options::default()).await else { return };
    let tar = tar();
    let at = tar.windows(SMALL.len()).position(|bytes| bytes == SMALL.as_bytes()).expect("it is there");
    f.registry.fail(Op::BlobGet.of(&f.layer).once(), How::FlipByte(at as u64));
    assert_eq!(f.files_of(&copy(&f.base(), "/etc/small", |_| ())).await["out/small"], SMALL);
    let asked = f.asked();
    assert!(matches!(&asked[..], [Some(_), None]), "{}", f.registry.story());
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_gives_the_whole_layer() {
    let options = Options { ranges: false, ..Options::default() };
    let Some(f) = Fixture::known(Form::Uncompressed, options).await else { return };
    assert_eq!(f.files_of(&copy(&f.base(), "/etc/small", |_| ())).await["out/small"], SMALL);
    let asked = f.asked();
    assert!(matches!(&asked[..], [Some(_), None]), "{}", f.registry.story());
    assert_no_leak(&f.client, &f.daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_below_a_known_directory_moves_no_byte_of_its_layer() {
    let Some(f) = Fixture::known(Form::Gzip { member: 16 * MIB }, Options::default()).await else { return };
    let change = llb::Action::MkFile { path: "/etc/new", data: b"new\n" };
    let changed = llb::file(Some(&f.base()), None, &change);
    let output = format!("type=image,name={},push=true", f.registry.reference("base", "new"));
    f.client.build(&changed.marshal(), &[&output]).await.success();
    assert!(f.asked().is_empty(), "{}", f.registry.story());
    let files = f.files_of(&changed).await;
    assert_eq!((files["etc/new"].as_str(), files["etc/small"].as_str()), ("new\n", SMALL));
    assert_no_leak(&f.client, &f.daemon).await;
}
