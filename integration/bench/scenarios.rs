//! What is measured.

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use futures::future::join_all;

use crate::harness::Image;
use crate::harness::TestRegistry;
use crate::harness::llb;
use crate::peer::Kind;
use crate::peer::Peer;
use crate::table::Table;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Scale {
    pub samples: usize,
    /// Bytes of the image of twelve layers.
    pub image: u64,
}

impl Scale {
    pub const FULL: Scale = Scale { samples: 7, image: 640 << 20 };
    pub const QUICK: Scale = Scale { samples: 3, image: 96 << 20 };
}

type Scenario = for<'a> fn(
    &'a [Kind; 2],
    &'a TestRegistry,
    Scale,
    &'a mut Table,
) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

pub const ALL: &[(&str, Scenario)] = &[
    ("start", |k, r, s, t| Box::pin(start(k, r, s, t))),
    ("relabel-same-repository", |k, r, s, t| Box::pin(relabel(k, r, s, t, false))),
    ("relabel-other-repository", |k, r, s, t| Box::pin(relabel(k, r, s, t, true))),
    ("other-registry", |k, r, s, t| Box::pin(other_registry(k, r, s, t))),
    ("archives", |k, r, s, t| Box::pin(archives(k, r, s, t))),
    ("graphs", |k, r, s, t| Box::pin(graphs(k, r, s, t))),
];

/// From the start of the process to the first reply, memory when idle, size on disk.
async fn start(kinds: &[Kind; 2], _: &TestRegistry, scale: Scale, table: &mut Table) {
    let mut times = [Vec::new(), Vec::new()];
    let mut idle = [Vec::new(), Vec::new()];
    for _ in 0..scale.samples {
        for (kind, (times, idle)) in kinds.iter().zip(times.iter_mut().zip(&mut idle)) {
            let mut peer = kind.start().await;
            peer.stop();
            peer.start_again(kind).await;
            times.push(peer.started.as_secs_f64() * 1e3);
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            idle.push(peer.memory("VmRSS"));
        }
    }
    let size = kinds.each_ref().map(|kind| {
        vec![std::fs::metadata(&kind.program).expect("the program").len() as f64 / f64::from(1 << 20)]
    });
    let [ours, peers] = times;
    table.add("first reply after start on a used root", "ms", ours, peers, "ours ≤ 25 ms");
    let [ours, peers] = idle;
    table.add("idle memory", "MiB", ours, peers, "ours ≤ 20 MiB");
    let [ours, peers] = size;
    table.add("program on disk", "MiB", ours, peers, "ours ≤ 30 MiB");
}

/// An image that was pushed before gets another annotation and is pushed again.
async fn relabel(kinds: &[Kind; 2], registry: &TestRegistry, scale: Scale, table: &mut Table, other: bool) {
    let image = Image::incompressible(1, 12, scale.image);
    let mut times = [Vec::new(), Vec::new()];
    let peers = join_all(kinds.iter().map(Kind::start)).await;
    for (kind, peer) in kinds.iter().zip(&peers) {
        let repository = format!("relabel/{}", kind.name);
        registry.put_image(&repository, "v1", &image);
        push(peer, registry, &repository, registry, &repository, "first").await;
    }
    for sample in 0..2 * scale.samples {
        for (times, (kind, peer)) in times.iter_mut().zip(kinds.iter().zip(&peers)) {
            let from = format!("relabel/{}", kind.name);
            let to = if other { format!("relabel-{sample}/{}", kind.name) } else { from.clone() };
            let begin = Instant::now();
            push(peer, registry, &from, registry, &to, &format!("label-{sample}-{other}")).await;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [ours, peers] = times;
    let name = if other { "another repository of the registry" } else { "the same repository" };
    table.add(format!("push after a label change, to {name}"), "ms", ours, peers, "2×");
}

/// A cold image goes from one registry to another.
async fn other_registry(kinds: &[Kind; 2], registry: &TestRegistry, scale: Scale, table: &mut Table) {
    let image = Image::incompressible(2, 12, scale.image);
    registry.put_image("base", "v1", &image);
    let mut times = [Vec::new(), Vec::new()];
    let mut memory = [Vec::new(), Vec::new()];
    for sample in 0..scale.samples {
        for (kind, (times, memory)) in kinds.iter().zip(times.iter_mut().zip(&mut memory)) {
            let target = TestRegistry::open();
            let peer = kind.start().await;
            let begin = Instant::now();
            push(&peer, registry, "base", &target, "copy", &format!("label-{sample}")).await;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            memory.push(peer.memory("VmHWM"));
        }
    }
    let [ours, peers] = times;
    let size = scale.image >> 20;
    table.add(format!("push of a cold {size} MiB image to another registry"), "ms", ours, peers, "1.5×");
    let [ours, peers] = memory;
    table.add("… and its peak memory", "MiB", ours, peers, "ours ≤ 100 MiB");
}

/// Sixteen builds export an archive of one cold image at the same time.
async fn archives(kinds: &[Kind; 2], registry: &TestRegistry, scale: Scale, table: &mut Table) {
    let image = Image::incompressible(3, 12, 96 << 20);
    registry.put_image("archives", "v1", &image);
    let mut times = [Vec::new(), Vec::new()];
    let mut memory = [Vec::new(), Vec::new()];
    for _ in 0..scale.samples {
        for (kind, (times, memory)) in kinds.iter().zip(times.iter_mut().zip(&mut memory)) {
            let peer = kind.start().await;
            let clients: Vec<_> = (0..16).map(|_| peer.client()).collect();
            let definition = llb::image(registry.reference("archives", "v1")).marshal();
            let begin = Instant::now();
            let runs = clients.iter().enumerate().map(|(n, client)| {
                let output = format!("type=oci,dest={}/{n}.tar", peer.scratch().display());
                let definition = definition.clone();
                async move { client.build(&definition, &[&output]).await.success() }
            });
            join_all(runs).await;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            memory.push(peer.memory("VmHWM"));
        }
    }
    let [ours, peers] = times;
    table.add("sixteen archives of a cold 96 MiB image at once", "ms", ours, peers, "1.5×");
    let [ours, peers] = memory;
    table.add("… and its peak memory", "MiB", ours, peers, "2×");
}

/// Graphs that were solved before, without an export: what the solver itself costs.
async fn graphs(kinds: &[Kind; 2], registry: &TestRegistry, scale: Scale, table: &mut Table) {
    let image = Image::incompressible(4, 1, 1 << 20);
    registry.put_image("graphs", "v1", &image);
    let base = || llb::image(registry.reference("graphs", "v1"));
    for length in [10, 100, 1000] {
        let chain = (0..length).fold(base(), |below, _| llb::merge([below, base()]));
        let definition = chain.marshal();
        no_op(kinds, scale, table, &definition, format!("a chain of {length} merges")).await;
    }
    for tag in 0..1000 {
        registry.put_image("graphs", &format!("wide-{tag}"), &image);
    }
    let sources = (0..1000).map(|tag| llb::image(registry.reference("graphs", &format!("wide-{tag}"))));
    let definition = llb::merge(sources).marshal();
    no_op(kinds, scale, table, &definition, "a merge of 1000 images".to_owned()).await;
}

async fn no_op(kinds: &[Kind; 2], scale: Scale, table: &mut Table, definition: &[u8], what: String) {
    let peers = join_all(kinds.iter().map(Kind::start)).await;
    let mut times = [Vec::new(), Vec::new()];
    for peer in &peers {
        peer.client().build(definition, &[]).await.success();
    }
    for _ in 0..scale.samples {
        for (peer, times) in peers.iter().zip(&mut times) {
            let begin = Instant::now();
            peer.client().build(definition, &[]).await.success();
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [ours, peers] = times;
    table.add(format!("the same solve again: {what}"), "ms", ours, peers, "linear");
}

async fn push(peer: &Peer, source: &TestRegistry, from: &str, target: &TestRegistry, to: &str, label: &str) {
    let definition = llb::image(source.reference(from, "v1")).marshal();
    let name = target.reference(to, label);
    let output = format!("type=image,name={name},push=true,annotation.org.example.label={label}");
    peer.client().build(&definition, &[&output]).await.success();
}
