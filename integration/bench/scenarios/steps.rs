//! Steps on a base of twelve layers, most of it random bytes.

use std::time::Instant;

use futures::future::join_all;

use super::Bench;
use super::EIGHT;
use super::base;
use super::shell;
use super::since;
use crate::harness::Build;
use crate::harness::Image;
use crate::harness::Op;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::runc;

/// One command on a base that nobody has.
pub async fn cold_run(bench: &mut Bench) {
    bench.registry.put_image("cold-run", "v1", &base(10, bench.scale.image));
    let base = llb::image(bench.registry.reference("cold-run", "v1"));
    let definition = llb::sh(&base, "echo ran > /ran").marshal();
    let [times, memory] = bench
        .paired(bench.scale.samples, async |kind, _| {
            let peer = kind.start().await;
            [peer.build(&definition, &[]).await, peer.peak()]
        })
        .await;
    let size = bench.scale.image >> 20;
    bench.table.add(format!("a command on a cold base of {size} MiB in 12 layers"), "ms", times, "2×");
    bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
}

/// Eight builds, each with a command of its own on the same cold base.
pub async fn eight_at_once(bench: &mut Bench) {
    bench.registry.put_image("eight", "v1", &base(11, bench.scale.image));
    let base = llb::image(bench.registry.reference("eight", "v1"));
    let definitions: Vec<_> = (0..8).map(|n| llb::sh(&base, &format!("echo {n} > /ran")).marshal()).collect();
    let [times, memory] = bench
        .paired(bench.scale.samples, async |kind, _| {
            let peer = kind.start().await;
            let begin = Instant::now();
            join_all(definitions.iter().map(|definition| peer.build(definition, &[]))).await;
            [since(begin), peer.peak()]
        })
        .await;
    bench.table.add("eight builds at once, each a command on the same cold base", "ms", times, "2×");
    bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
}

/// One small file on a cold base, pushed to where the base is or beside it.
pub async fn small_file(bench: &mut Bench, other: bool) {
    let base = base(12, bench.scale.image);
    let [times, memory, bytes] = bench
        .paired(bench.scale.samples, async |kind, sample| {
            let from = format!("small-{sample}-{other}/{}", kind.name);
            bench.registry.put_image(&from, "v1", &base);
            let state = llb::image(bench.registry.reference(&from, "v1"));
            let state = llb::file(Some(&state), None, &Action::MkFile { path: "/small", data: b"small\n" });
            let to = if other { format!("{from}-other") } else { from };
            let output = format!("type=image,name={},push=true", bench.registry.reference(&to, "small"));
            let definition = state.marshal();
            let peer = kind.start().await;
            bench.registry.forget();
            let time = peer.build(&definition, &[&output]).await;
            [time, peer.peak(), (bench.registry.bytes_out() >> 10) as f64]
        })
        .await;
    let name = if other { "another repository" } else { "the same repository" };
    let what = format!("one small file added to a cold base and pushed to {name}");
    bench.table.add(what, "ms", times, "20×");
    bench.table.add("… and what it downloads", "KiB", bytes, "none of the base");
    bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
}

/// `COPY --from` of a file of eight bytes, which is in the highest layer of a cold base, and of one in the
/// lowest.
pub async fn copy_one_file(bench: &mut Bench) {
    let base = base(13, bench.scale.image);
    for (path, layer) in [(EIGHT, "highest"), ("etc/group", "lowest")] {
        bench.registry.put_image("copy", "v1", &base);
        let from = llb::image(bench.registry.reference("copy", "v1"));
        let copy = Action::Copy { from: &format!("/{path}"), to: "/copied" };
        let definition = llb::file(None, Some(&from), &copy).marshal();
        let [times, memory, bytes] = bench
            .paired(bench.scale.samples, async |kind, _| {
                let peer = kind.start().await;
                bench.registry.forget();
                let time = peer.build(&definition, &[]).await;
                [time, peer.peak(), (bench.registry.bytes_out() >> 10) as f64]
            })
            .await;
        let what = format!("COPY --from of a few bytes from the {layer} layer of a cold base");
        bench.table.add(what, "ms", times, "5×");
        bench.table.add("… and what it downloads", "KiB", bytes, "the covering layers");
        bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
    }
}

/// A build whose every step is in the cache, with the image exported.
pub async fn again(bench: &mut Bench) {
    bench.registry.put_image("again", "v1", &base(14, 12 << 20));
    let state = llb::image(bench.registry.reference("again", "v1"));
    let state = (0..10).fold(state, |below, n| llb::sh(&below, &format!("echo {n} > /ran-{n}")));
    let definition = state.marshal();
    let output = "type=image,name=again.example/app:v1";
    let peers = join_all(bench.kinds.iter().map(|kind| kind.start())).await;
    let mut clients = Vec::new();
    for peer in &peers {
        peer.build(&definition, &[output]).await;
        clients.push(peer.direct().await);
    }
    let index = |name: &str| usize::from(name != bench.kinds[0].name);
    let [direct, whole, empty] = bench
        .paired(6 * bench.scale.samples, async |kind, _| {
            let (peer, client) = (&peers[index(kind.name)], &clients[index(kind.name)]);
            let build = Build::of(&state).export("image", &[("name", "again.example/app:v1")]);
            let begin = Instant::now();
            client.start(build).await.finish().await.success();
            let direct = since(begin);
            let whole = peer.build(&definition, &[output]).await;
            let begin = Instant::now();
            peer.client().run(["debug", "workers"], b"").await.success();
            [direct, whole, since(begin)]
        })
        .await;
    let what = "the same build of 10 commands again, from cache, exported as an image";
    bench.table.add(format!("{what}; without a client's process"), "ms", direct, "2×");
    bench.table.add(format!("{what}; with buildctl"), "ms", whole, "–");
    bench.table.add("… of which buildctl alone takes (`debug workers`)", "ms", empty, "–");
}

/// What a push of a command's result moves, when its base is in another repository of the registry.
pub async fn push_result(bench: &mut Bench) {
    let base = base(15, 12 << 20);
    for restart in [false, true] {
        let [mounts, uploads] = bench
            .paired(1, async |kind, _| {
                let registry = &bench.registry;
                let repository = format!("result-{restart}/{}", kind.name);
                registry.put_image(&repository, "v1", &base);
                let state = llb::image(registry.reference(&repository, "v1"));
                let definition = llb::sh(&state, "echo ran > /ran").marshal();
                let mut peer = kind.start().await;
                peer.build(&definition, &[]).await;
                if restart {
                    peer.stop();
                    peer.start_again(kind).await;
                }
                registry.forget();
                let to = registry.reference(&format!("{repository}-other"), "v1");
                peer.build(&definition, &[&format!("type=image,name={to},push=true")]).await;
                [registry.mounts_ok() as f64, registry.count(Op::UploadPut) as f64]
            })
            .await;
        let after = if restart { ", after a restart" } else { "" };
        let what = format!("push of a command's result to another repository{after}");
        bench.table.count(format!("{what}: mounts"), mounts, "12");
        bench.table.count(format!("{what}: uploads"), uploads, "2: the new layer and the config");
    }
}

/// Commands one after another, each on the result of the one before, beside the runtime's own cost.
pub async fn execs(bench: &mut Bench) {
    let count = bench.number(200);
    bench.registry.put_image("execs", "v1", &Image::of([shell()]));
    let base = llb::image(bench.registry.reference("execs", "v1"));
    let peers = join_all(bench.kinds.iter().map(|kind| kind.start())).await;
    for peer in &peers {
        peer.build(&llb::sh(&base, "true").marshal(), &[]).await;
    }
    let bare = runc::Bare::like(&peers[0], &base).await;
    let (mut floor, mut layered) = (Vec::new(), Vec::new());
    let [times] = bench
        .paired(bench.scale.samples.min(3), async |kind, sample| {
            let is_ours = kind.name == bench.kinds[0].name;
            if is_ours {
                floor.push(bare.run(count).await / count as f64);
                layered.push(bare.run_on_layers(count).await / count as f64);
            }
            let chain = (0..count)
                .fold(base.clone(), |below, n| llb::sh(&below, &format!("echo {sample} {n} > /ran")));
            let peer = &peers[usize::from(!is_ours)];
            [peer.build(&chain.marshal(), &[]).await / count as f64]
        })
        .await;
    let ours = times[0].clone();
    bench.table.add(format!("{count} commands in a row, each"), "ms", times, "1.4×");
    let bare = "… beside bare `runc run` of an equal specification";
    let bound = "ours ≤ runc + 3 ms";
    bench.table.add(format!("{bare}, in one directory"), "ms", [ours.clone(), floor.into()], bound);
    bench.table.add(format!("{bare}, on as many layers"), "ms", [ours, layered.into()], bound);
    let memory: Vec<_> = peers.iter().map(|peer| vec![peer.peak()]).collect();
    bench.table.add("… and the peak memory", "MiB", memory, "ours ≤ 100 MiB");
}
