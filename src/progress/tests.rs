use std::sync::Arc;
use std::time::Duration;

use super::*;

fn vertex(name: &str) -> Vertex {
    Vertex::new(Digest::sha256(name), name)
}

async fn drain(journal: &Journal) -> Vec<Arc<Update>> {
    journal.close();
    let mut reader = journal.reader();
    let mut all = Vec::new();
    while let Some(batch) = reader.next().await {
        all.extend(batch);
    }
    all
}

/// The states of `name` as letters: announced, started, completed.
fn states(updates: &[Arc<Update>], name: &str) -> String {
    let digest = Digest::sha256(name);
    updates
        .iter()
        .filter_map(|u| match &**u {
            Update::Vertex(v) if v.digest == digest => Some(match (v.started, v.completed) {
                (None, _) => 'a',
                (Some(_), None) => 's',
                (Some(_), Some(_)) => 'c',
            }),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn every_reader_gets_all_from_the_start_and_then_the_end() {
    let journal = Journal::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(journal.clone()));
    let mut early = journal.reader();
    assert_eq!(early.next().await.unwrap().len(), 1);
    progress.start();
    progress.log(LogStream::Stdout, "x".into());
    progress.complete(None);
    let all = drain(&journal).await;
    assert_eq!(states(&all, "v"), "asc");
    assert_eq!(all.len(), 4);
    assert_eq!(early.next().await.unwrap().len(), 3);
    assert!(early.next().await.is_none());
    assert!(early.next().await.is_none());
}

#[tokio::test]
async fn what_a_step_used_is_told_with_its_end_and_not_of_its_next_run() {
    let journal = Journal::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(journal.clone()));
    let sample = Sample {
        at: SystemTime::now(),
        cpu: CpuUsage { usage_nanos: Some(7), ..CpuUsage::default() },
        memory: MemoryUsage::default(),
        io: IoUsage::default(),
        pids: None,
    };
    progress.start();
    progress.used(vec![sample]);
    progress.complete(Some("failed".to_owned()));
    progress.start();
    progress.complete(None);
    let all = drain(&journal).await;
    let used = all.iter().filter_map(|update| match &**update {
        Update::Vertex(vertex) => Some(vertex.usage.as_ref().map(|samples| samples.to_vec())),
        _ => None,
    });
    let used: Vec<_> = used.collect();
    assert_eq!(used, [None, None, Some(vec![sample]), None, None]);
}

#[tokio::test]
async fn a_slow_reader_gets_only_the_newest_value_of_an_item() {
    let journal = Journal::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(journal.clone()));
    let item = progress.item("layer", "");
    item.start(100);
    for n in 0..=100 {
        item.update(n);
    }
    item.complete();
    let all = drain(&journal).await;
    let items: Vec<_> =
        all.iter().filter_map(|u| if let Update::Item(i) = &**u { Some(i) } else { None }).collect();
    let [item] = items.as_slice() else { panic!("{items:?}") };
    assert_eq!((item.current, item.total), (100, 100));
    assert!(item.completed.is_some());
}

#[tokio::test]
async fn an_item_never_comes_before_its_vertex() {
    let journal = Journal::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(journal.clone()));
    progress.start();
    let item = progress.item("layer", "");
    item.set(1, 2);
    progress.complete(None);
    item.set(2, 2);
    let all = drain(&journal).await;
    let first_vertex = all.iter().position(|u| matches!(**u, Update::Vertex(_)));
    let first_item = all.iter().position(|u| matches!(**u, Update::Item(_)));
    assert!(first_vertex < first_item);
}

#[tokio::test]
async fn a_lazy_download_reopens_its_vertex_once_for_all_layers() {
    let journal = Journal::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(journal.clone()));
    progress.start();
    progress.complete(None);
    let (one, two) = (progress.item("1", ""), progress.item("2", ""));
    one.start(1);
    two.start(1);
    one.complete();
    two.complete();
    assert_eq!(states(&drain(&journal).await, "v"), "ascsc");
}

#[tokio::test]
async fn a_step_that_ends_while_somebody_is_busy_completes_with_the_last_of_them() {
    let journal = Journal::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(journal.clone()));
    progress.start();
    let busy = progress.busy();
    progress.complete(Some("no".into()));
    drop(busy);
    let all = drain(&journal).await;
    assert_eq!(states(&all, "v"), "asc");
    let Some(Update::Vertex(last)) = all.last().map(|last| &**last) else { panic!() };
    assert_eq!(last.error.as_deref(), Some("no"));
}

#[tokio::test]
async fn a_journal_attached_late_gets_the_past_once() {
    let fanout = Fanout::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(fanout.clone()));
    let (early, late) = (Journal::new(), Journal::new());
    fanout.attach(&early);
    progress.start();
    fanout.attach(&late);
    fanout.attach(&late);
    fanout.detach(&early);
    progress.complete(None);
    assert_eq!(states(&drain(&early).await, "v"), "as");
    assert_eq!(states(&drain(&late).await, "v"), "asc");
}

#[tokio::test]
async fn a_step_that_is_over_at_once_is_told_once() {
    let journal = Journal::new();
    let progress = VertexProgress::new(vertex("v"), Arc::new(journal.clone()));
    progress.done(None);
    progress.done(Some("no".into()));
    let all = drain(&journal).await;
    assert_eq!(states(&all, "v"), "acc");
    let Some(Update::Vertex(last)) = all.last().map(|last| &**last) else { panic!() };
    assert!(last.started <= last.completed && last.error.as_deref() == Some("no"));
}

/// A reader was woken for each of a thousand steps that were known.
#[tokio::test(start_paused = true)]
async fn what_is_gathered_comes_together_and_no_later_than_the_end() {
    let journal = Journal::new();
    let mut reader = journal.reader();
    let begin = tokio::time::Instant::now();
    let pause = Duration::from_secs(1);
    let send = async {
        for name in ["a", "b", "c"] {
            journal.send(Update::Vertex(vertex(name)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    futures::join!(reader.gather(pause), send);
    assert_eq!((begin.elapsed(), reader.next().await.unwrap().len()), (pause, 3));
    let end = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        journal.send(Update::Vertex(vertex("d")));
        journal.close();
    };
    futures::join!(reader.gather(pause), end);
    reader.gather(pause).await;
    assert_eq!(begin.elapsed(), Duration::from_millis(1200));
    assert_eq!(reader.next().await.unwrap().len(), 1);
    assert!(reader.next().await.is_none());
}
