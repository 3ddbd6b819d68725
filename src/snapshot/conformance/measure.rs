//! How long things take. Not a test: run with `--ignored --nocapture`.

use std::time::Duration;
use std::time::Instant;

use super::super::OverlaySnapshotter;
use super::super::Parents;
use super::super::Snapshotter;
use super::key;
use super::write;
use crate::task::Tasks;

fn median(mut times: Vec<Duration>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2].as_micros()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn life_of_an_overlay_snapshot() {
    let dir = tempfile::tempdir().expect("a directory");
    let s = OverlaySnapshotter::open(&dir.path().join("root"), Tasks::new()).expect("opened");
    let mut layers = Vec::new();
    for n in 0..600 {
        s.prepare(&key("new"), &Parents::default()).await.expect("prepared");
        write(&s.upper(&key("new")).expect("it stacks"), &format!("dir-{n}/file"), "x");
        layers.push(key(&format!("layer-{n}")));
        s.commit(&layers[n], &key("new")).await.expect("committed");
    }
    let mut times = [const { Vec::new() }; 6];
    for n in 0..500 {
        let (active, name) = (key(&format!("active-{n}")), key(&format!("name-{n}")));
        let mut last = Instant::now();
        let mut lap = |times: &mut Vec<Duration>| {
            times.push(last.elapsed());
            last = Instant::now();
        };
        let start = Instant::now();
        s.prepare(&active, &layers[..12].iter().cloned().collect()).await.expect("prepared");
        lap(&mut times[0]);
        let mounted = s.mount(&active, false).await.expect("mounted");
        lap(&mut times[1]);
        mounted.unmount().await.expect("unmounted");
        lap(&mut times[2]);
        s.commit(&name, &active).await.expect("committed");
        lap(&mut times[3]);
        s.remove(&name).await.expect("removed");
        lap(&mut times[4]);
        times[5].push(start.elapsed());
    }
    let names = ["prepare", "mount", "unmount", "commit", "remove", "all"];
    for (name, times) in names.iter().zip(times) {
        println!("{name}: {} µs", median(times));
    }
    for depth in [1, 12, 125, 600] {
        let view = key("view");
        s.view(&view, &layers[..depth].iter().cloned().collect()).await.expect("viewed");
        let start = Instant::now();
        drop(s.mount(&view, true).await.expect("mounted"));
        let first = start.elapsed().as_micros();
        let mut times = Vec::new();
        for _ in 0..50 {
            let start = Instant::now();
            let mounted = s.mount(&view, true).await.expect("mounted");
            times.push(start.elapsed());
            drop(mounted);
        }
        println!("mount of {depth} layers: {} µs, the first time {first} µs", median(times));
        s.remove(&view).await.expect("removed");
    }
}
