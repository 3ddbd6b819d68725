//! Many files and much data: layers that are unpacked and packed, directories of a client.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;
use thunk::archive::Limits;
use thunk::fs::Root;
use thunk::snapshot::ApplyOptions;
use thunk::snapshot::WhiteoutStyle;
use thunk::snapshot::apply;

use super::Bench;
use super::shell;
use super::since;
use crate::containerd::Containerd;
use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::layer::tar_of;
use crate::harness::llb;
use crate::table::Samples;

/// Files of a kilobyte, a hundred in each directory.
fn many_files(count: usize) -> Layer {
    let files = (0..count).map(|n| (format!("d{:04}/f{n:06}", n / 100), format!("{n:08}\n").repeat(114)));
    Layer::gzip(tar_of(files))
}

/// A layer of many files, unpacked by us, by GNU tar and by containerd: the archive is in memory.
pub async fn unpack(bench: &mut Bench) {
    let count = bench.number(100_000);
    let layer = many_files(count);
    let directory = TempDir::with_prefix("bench-").expect("a temporary directory");
    let archive = directory.path().join("layer.tar.gz");
    let blob = layer.source.as_ref().expect("it has bytes").to_bytes();
    std::fs::write(&archive, &blob).expect("write the layer");
    let containerd = Containerd::start(&Image::of([layer])).await;
    let (mut ours, mut tars, mut containerds) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..bench.scale.samples.min(3) {
        let target = fresh(directory.path(), "ours");
        let begin = Instant::now();
        unpack_here(&archive, &target);
        ours.push(since(begin));
        remove(&target);

        let target = fresh(directory.path(), "tar");
        let begin = Instant::now();
        let status = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&target).status();
        assert!(status.expect("start tar").success());
        tars.push(since(begin));
        remove(&target);

        if let Some(containerd) = &containerd {
            rustix::fs::sync();
            containerds.push(containerd.unpack().await);
        }
    }
    let what = format!("unpack of a layer of {count} files");
    bench.table.add(format!("{what}, beside GNU tar"), "ms", [ours.clone(), tars], "1×");
    bench.table.add(format!("{what}, beside `ctr snapshots unpack`"), "ms", [ours, containerds], "1×");
}

fn unpack_here(archive: &Path, target: &Path) {
    let root = Root::open(target).expect("the directory is there");
    let options = ApplyOptions { style: WhiteoutStyle::Overlay, lower: None, limits: Limits::default() };
    let archive = BufReader::with_capacity(256 << 10, File::open(archive).expect("the archive is there"));
    apply(&root, &options, archive).expect("unpack");
}

fn fresh(parent: &Path, name: &str) -> std::path::PathBuf {
    let path = parent.join(name);
    std::fs::create_dir(&path).expect("a directory");
    rustix::fs::sync();
    path
}

fn remove(path: &Path) {
    std::fs::remove_dir_all(path).expect("remove what was unpacked");
}

/// A command on a cold image with a layer of many files.
pub async fn cold_files(bench: &mut Bench) {
    let count = bench.number(100_000);
    bench.registry.put_image("files", "v1", &Image::of([shell(), many_files(count)]));
    let base = llb::image(bench.registry.reference("files", "v1"));
    let definition = llb::sh(&base, "echo ran > /ran").marshal();
    let [times, memory] = bench
        .paired(bench.scale.samples.min(3), async |kind, _| {
            let peer = kind.start().await;
            [peer.build(&definition, &[]).await, peer.peak()]
        })
        .await;
    bench.table.add(format!("a command on a cold layer of {count} files"), "ms", times, "ours");
    bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
}

/// A large file that a command made is exported for the first time.
pub async fn compress(bench: &mut Bench) {
    bench.registry.put_image("compress", "v1", &Image::of([shell()]));
    let base = llb::image(bench.registry.reference("compress", "v1"));
    let megabytes = bench.number(300);
    let [times, memory] = bench
        .paired(bench.scale.samples.min(3), async |kind, _| {
            let peer = kind.start().await;
            // Text of random letters, of which a quarter can be saved.
            let make = format!("dd if=/dev/urandom bs=1M count={megabytes} 2> /dev/null | base64 > /text");
            let state = llb::sh(&base, &make);
            let definition = state.marshal();
            peer.build(&definition, &[]).await;
            rustix::fs::sync();
            peer.forget_peak();
            let output = format!("type=oci,dest={}/image.tar", peer.scratch().display());
            [peer.build(&definition, &[&output]).await, peer.peak()]
        })
        .await;
    let size = megabytes * 4 / 3;
    bench.table.add(format!("export of a new layer of {size} MiB, gzip"), "ms", times, "ours");
    bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
}

/// A directory of the client: all of it, and again with one file changed.
pub async fn local(bench: &mut Bench) {
    let count = bench.number(20_000);
    let context = TempDir::with_prefix("bench-").expect("a temporary directory");
    for n in 0..count {
        let directory = context.path().join(format!("d{:03}", n / 100));
        if n % 100 == 0 {
            std::fs::create_dir(&directory).expect("a directory");
        }
        let text = format!("{n:08}\n").repeat(114);
        std::fs::write(directory.join(format!("f{n:05}")), text).expect("a file");
    }
    let definition = llb::local("context", &[("local.sharedkeyhint", "context")]).marshal();
    let flag = format!("context={}", context.path().display());
    let [cold, warm, memory] = bench
        .paired(bench.scale.samples, async |kind, sample| {
            let peer = kind.start().await;
            let client = peer.client();
            let mut times = [0.0; 2];
            for time in &mut times {
                let changed = context.path().join("d000/f00000");
                std::fs::write(changed, format!("{} {sample}", kind.name)).expect("a file");
                let begin = Instant::now();
                client.build_with(&definition, ["--local", &flag]).await.success();
                *time = since(begin);
            }
            [times[0], times[1], peer.peak()]
        })
        .await;
    bench.table.add(format!("a local source of {count} files, cold"), "ms", cold, "ours");
    bench.table.add("… again, with one changed", "ms", warm, "ours");
    bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
}
