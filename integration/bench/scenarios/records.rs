//! Many small records.

use std::time::Instant;

use futures::StreamExt as _;
use futures::stream;

use super::Bench;
use super::images::again;
use super::since;
use crate::harness::Build;
use crate::harness::Client;
use crate::harness::llb;
use crate::harness::llb::Action;
use crate::harness::llb::State;
use crate::table::Samples;

/// How many builds there are at a time.
const AT_ONCE: usize = 8;

/// A step with one new file.
fn one_file(below: Option<&State>, n: usize) -> State {
    let (path, data) = (format!("/file-{n}"), format!("{n}\n"));
    llb::file(below, None, &Action::MkFile { path: &path, data: data.as_bytes() })
}

/// File steps on each other, from cache.
pub async fn cached_chain(bench: &mut Bench) {
    let length = bench.number(400);
    let chain = (1..length).fold(one_file(None, 0), |below, n| one_file(Some(&below), n));
    again(bench, &chain.marshal(), &format!("a chain of {length} file steps"), "5×").await;
}

/// A merge of file steps, from cache.
pub async fn cached_merge(bench: &mut Bench) {
    let width = bench.number(1000);
    let merge = llb::merge((0..width).map(|n| one_file(None, n)));
    again(bench, &merge.marshal(), &format!("a merge of {width} file steps"), "5×").await;
}

/// File steps on each other, none of them in the cache: twice as many of them, and whether they take twice as long.
pub async fn long_chains(bench: &mut Bench) {
    for length in [1500, 3000, 10_000] {
        let length = bench.number(length);
        let chain = (1..length).fold(one_file(None, 0), |below, n| one_file(Some(&below), n)).definition();
        let peer = bench.kinds[0].start().await;
        let client = peer.direct().await;
        let begin = Instant::now();
        client.start(Build::of_definition(chain)).await.finish().await.success();
        let (time, processor) = (since(begin), peer.processor_time());
        bench.table.add(
            format!("the first solve: a chain of {length} file steps"),
            "ms",
            [vec![time]],
            "linear",
        );
        bench.table.add("… and its processor time", "ms", [vec![processor]], "linear");
        bench.table.add("… and its peak memory", "MiB", [vec![peer.peak()]], "linear");
    }
}

/// Builds of one file each, then the disk usage and the end of all their records.
pub async fn records(bench: &mut Bench) {
    let count = bench.number(2000);
    let [build, usage, prune, memory] = bench
        .paired(bench.scale.samples.min(3), async |kind, _| {
            let peer = kind.start().await;
            let client = peer.direct().await;
            let begin = Instant::now();
            build_all(&client, 0..count).await;
            let build = since(begin);
            let (usage, prune) = usage_and_prune(&client, count).await;
            [build, usage, prune, peer.peak()]
        })
        .await;
    bench.table.add(format!("{count} builds of one file, {AT_ONCE} at a time"), "ms", build, "4×");
    bench.table.add(format!("du of {count} records"), "ms", usage, "4×");
    bench.table.add(format!("prune of {count} records"), "ms", prune, "4×");
    bench.table.add("… and the peak memory of all three", "MiB", memory, "ours ≤ 100 MiB");
}

/// Ten times as many of ours, and whether it takes ten times as long.
pub async fn many_records(bench: &mut Bench) {
    let count = bench.number(20_000);
    let mut measured: [Samples; 4] = Default::default();
    let peer = bench.kinds[0].start().await;
    let client = peer.direct().await;
    let begin = Instant::now();
    build_all(&client, 0..count).await;
    measured[0].push(since(begin));
    let (usage, prune) = usage_and_prune(&client, count).await;
    measured[1].push(usage);
    measured[2].push(prune);
    measured[3].push(peer.peak());
    let [build, usage, prune, memory] = measured;
    bench.table.add(format!("{count} builds of one file, {AT_ONCE} at a time"), "ms", [build], "ours");
    bench.table.add(format!("du of {count} records"), "ms", [usage], "ours");
    bench.table.add(format!("prune of {count} records"), "ms", [prune], "ours");
    bench.table.add("… and the peak memory of all three", "MiB", [memory], "ours ≤ 100 MiB");
}

async fn build_all(client: &Client, files: std::ops::Range<usize>) {
    stream::iter(files)
        .for_each_concurrent(AT_ONCE, async |n| {
            client.start(Build::of(&one_file(None, n))).await.finish().await.success();
        })
        .await;
}

/// Milliseconds of each.
async fn usage_and_prune(client: &Client, count: usize) -> (f64, f64) {
    let begin = Instant::now();
    let records = client.usage().await;
    let usage = since(begin);
    assert!(records.len() >= count, "{} of {count} records", records.len());
    let begin = Instant::now();
    let gone = client.prune_all().await.expect("prune");
    let prune = since(begin);
    assert!(gone.len() >= count, "{} of {count} records", gone.len());
    (usage, prune)
}
