//! Images that are moved and named anew: nothing looks into them.

use std::time::Duration;
use std::time::Instant;

use futures::future::join_all;
use prost::Message as _;
use thunk::proto::pb;

use super::Bench;
use super::LIMIT;
use super::milliseconds;
use super::since;
use crate::harness::Build;
use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::llb;
use crate::peer::Peer;
use crate::table::Samples;

const MIB: f64 = 1048576.0;

/// From the start of the process to the first reply, memory when idle, size on disk.
pub async fn start(bench: &mut Bench) {
    let [times, idle] = bench
        .paired(bench.scale.samples, async |kind, _| {
            let mut peer = kind.start().await;
            peer.stop();
            peer.start_again(kind).await;
            let started = milliseconds(peer.started);
            tokio::time::sleep(Duration::from_millis(300)).await;
            [started, peer.memory("VmRSS")]
        })
        .await;
    let size = bench.kinds.iter().map(|kind| std::fs::metadata(&kind.program).expect("the program").len());
    let size: Vec<_> = size.map(|bytes| vec![bytes as f64 / MIB]).collect();
    bench.table.add("first reply after start on a used root", "ms", times, "ours ≤ 25 ms");
    bench.table.add("idle memory", "MiB", idle, "ours ≤ 20 MiB");
    bench.table.add("program on disk", "MiB", size, "ours ≤ 30 MiB");
}

/// An image that was pushed before gets another annotation and is pushed again.
pub async fn relabel(bench: &mut Bench, other: bool) {
    let image = Image::incompressible(1, 12, bench.scale.image);
    let registry = &bench.registry;
    let peers = join_all(bench.kinds.iter().map(|kind| kind.start())).await;
    for (kind, peer) in bench.kinds.iter().zip(&peers) {
        let repository = format!("relabel/{}", kind.name);
        registry.put_image(&repository, "v1", &image);
        push(peer, registry, &repository, registry, &repository, "first").await;
    }
    let [times] = bench
        .paired(2 * bench.scale.samples, async |kind, sample| {
            let peer = &peers[usize::from(kind.name != bench.kinds[0].name)];
            let from = format!("relabel/{}", kind.name);
            let to = if other { format!("relabel-{sample}/{}", kind.name) } else { from.clone() };
            [push(peer, registry, &from, registry, &to, &format!("label-{sample}-{other}")).await]
        })
        .await;
    let name = if other { "another repository of the registry" } else { "the same repository" };
    bench.table.add(format!("push after a label change, to {name}"), "ms", times, "2×");
}

/// A cold image goes from one registry to another.
pub async fn other_registry(bench: &mut Bench) {
    let image = Image::incompressible(2, 12, bench.scale.image);
    bench.registry.put_image("base", "v1", &image);
    let [times, memory] = bench
        .paired(bench.scale.samples, async |kind, sample| {
            let target = TestRegistry::open();
            let peer = kind.start().await;
            let label = format!("label-{sample}");
            let time = push(&peer, &bench.registry, "base", &target, "copy", &label).await;
            [time, peer.peak()]
        })
        .await;
    let size = bench.scale.image >> 20;
    bench.table.add(format!("push of a cold {size} MiB image to another registry"), "ms", times, "1.5×");
    bench.table.add("… and its peak memory", "MiB", memory, "ours ≤ 100 MiB");
}

/// Sixteen builds export an archive of one cold image at the same time.
pub async fn archives(bench: &mut Bench) {
    let image = Image::incompressible(3, 12, 96 << 20);
    bench.registry.put_image("archives", "v1", &image);
    let definition = llb::image(bench.registry.reference("archives", "v1")).marshal();
    let [times, memory] = bench
        .paired(bench.scale.samples, async |kind, _| {
            let peer = kind.start().await;
            let outputs: Vec<_> =
                (0..16).map(|n| format!("type=oci,dest={}/{n}.tar", peer.scratch().display())).collect();
            let begin = Instant::now();
            let builds = outputs.iter().map(async |output| peer.build(&definition, &[output]).await);
            join_all(builds).await;
            [since(begin), peer.peak()]
        })
        .await;
    bench.table.add("sixteen archives of a cold 96 MiB image at once", "ms", times, "1.5×");
    bench.table.add("… and its peak memory", "MiB", memory, "2×");
}

/// Graphs that were solved before, without an export: what the solver itself costs.
pub async fn graphs(bench: &mut Bench) {
    let image = Image::incompressible(4, 1, 1 << 20);
    bench.registry.put_image("graphs", "v1", &image);
    let base = llb::image(bench.registry.reference("graphs", "v1"));
    for length in [10, 100, 1000] {
        let chain = (0..length).fold(base.clone(), |below, _| llb::merge([below, base.clone()]));
        again(bench, &chain.marshal(), &format!("a chain of {length} merges"), "linear").await;
    }
    for tag in 0..1000 {
        bench.registry.put_image("graphs", &format!("wide-{tag}"), &image);
    }
    let sources = (0..1000).map(|tag| llb::image(bench.registry.reference("graphs", &format!("wide-{tag}"))));
    let definition = llb::merge(sources).marshal();
    again(bench, &definition, "a merge of 1000 images", "linear").await;
}

/// A solve by `buildctl`, and the same again. A daemon whose first solve takes too long has no second one.
pub async fn again(bench: &mut Bench, definition: &[u8], what: &str, target: &str) {
    let peers = join_all(bench.kinds.iter().map(|kind| kind.start())).await;
    let mut first = vec![Samples::default(); peers.len()];
    for (peer, first) in peers.iter().zip(&mut first) {
        match tokio::time::timeout(LIMIT, peer.build(definition, &[])).await {
            Ok(time) => first.push(time),
            Err(_) => first.give_up(milliseconds(LIMIT)),
        }
    }
    let mut times = vec![Samples::default(); peers.len()];
    let (mut direct, mut refused) = (times.clone(), times.clone());
    let message = pb::Definition::decode(definition).expect("our own bytes");
    let mut clients = Vec::new();
    for peer in &peers {
        clients.push(peer.direct().await);
    }
    for _ in 0..bench.scale.samples {
        for (index, peer) in peers.iter().enumerate() {
            if first[index].is_given_up() || times[index].is_given_up() {
                continue;
            }
            match tokio::time::timeout(LIMIT, peer.build(definition, &[])).await {
                Ok(time) => times[index].push(time),
                Err(_) => times[index].give_up(milliseconds(LIMIT)),
            }
            let build = Build::of_definition(message.clone());
            let begin = Instant::now();
            clients[index].start(build).await.finish().await.success();
            direct[index].push(since(begin));
            // A daemon refuses this once it has read the definition, and before it looks at it.
            let begin = Instant::now();
            let run = peer.client().build_with(definition, ["--allow", "security.insecure"]).await;
            assert!(!run.status.success(), "no daemon here grants that");
            refused[index].push(since(begin));
        }
    }
    let memory: Vec<_> = peers.iter().map(|peer| vec![peer.peak()]).collect();
    bench.table.add(format!("the first solve: {what}"), "ms", first, "–");
    bench.table.add(format!("the same solve again: {what}"), "ms", times, target);
    bench.table.add("… without a client's process", "ms", direct, "–");
    bench.table.add("… of which buildctl alone takes (it is refused)", "ms", refused, "–");
    bench.table.add("… and the peak memory of both", "MiB", memory, "ours ≤ 100 MiB");
}

/// Milliseconds that it takes.
async fn push(
    peer: &Peer,
    source: &TestRegistry,
    from: &str,
    target: &TestRegistry,
    to: &str,
    label: &str,
) -> f64 {
    let definition = llb::image(source.reference(from, "v1")).marshal();
    let name = target.reference(to, label);
    let output = format!("type=image,name={name},push=true,annotation.org.example.label={label}");
    peer.build(&definition, &[&output]).await
}
