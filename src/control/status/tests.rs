use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::progress::Journal;
use crate::progress::LogStream;
use crate::progress::TransferProgress as _;
use crate::progress::Vertex;
use crate::progress::VertexProgress;
use crate::progress::Warning;

/// Something that happens in a build.
#[derive(Clone, Debug)]
enum Action {
    Start(usize),
    Complete(usize),
    Cached(usize),
    Item(usize, usize),
    Log(usize, usize),
    Warn(usize),
    /// The reader looks.
    Read,
}

fn action() -> impl Strategy<Value = Action> {
    let vertex = || 0..4usize;
    prop_oneof![
        vertex().prop_map(Action::Start),
        vertex().prop_map(Action::Complete),
        vertex().prop_map(Action::Cached),
        (vertex(), 0..3usize).prop_map(|(v, i)| Action::Item(v, i)),
        (vertex(), 1..600_000usize).prop_map(|(v, size)| Action::Log(v, size)),
        vertex().prop_map(Action::Warn),
        Just(Action::Read),
    ]
}

/// Runs `actions` on a journal and gives the messages of one reader.
fn play(actions: &[Action]) -> Vec<Response> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let journal = Journal::new();
        let mut reader = journal.reader();
        let mut messages = Vec::new();
        let vertices: Vec<VertexProgress> = (0..4)
            .map(|n| {
                let vertex = Vertex::new(Digest::sha256(n.to_string()), n.to_string());
                VertexProgress::new(vertex, Arc::new(journal.clone()))
            })
            .collect();
        for action in actions {
            match action {
                Action::Start(v) => vertices[*v].start(),
                Action::Complete(v) => vertices[*v].complete(None),
                Action::Cached(v) => vertices[*v].cached(),
                Action::Item(v, i) => {
                    let item = vertices[*v].item(i.to_string(), "");
                    item.start(10);
                    item.complete();
                }
                Action::Log(v, size) => {
                    vertices[*v].log(LogStream::Stdout, Bytes::from(vec![b'x'; *size]));
                }
                Action::Warn(v) => vertices[*v].warn(Warning {
                    vertex: Digest::sha256("ignored"),
                    level: 1,
                    short: "careful".into(),
                    detail: Vec::new(),
                    url: String::new(),
                    source: None,
                    ranges: Vec::new(),
                }),
                Action::Read => {
                    if let Some(batch) = reader.next().now_or_never() {
                        messages.extend(responses(&batch.unwrap()));
                    }
                }
            }
        }
        journal.close();
        while let Some(batch) = reader.next().await {
            messages.extend(responses(&batch));
        }
        messages
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A follower drops what it gets of a vertex that it does not know, so that nothing may come
    /// before its vertex; and a message must stay below what a client accepts.
    #[test]
    fn whatever_happens_a_follower_knows_the_vertex_of_all_it_gets(actions in prop::collection::vec(action(), 0..60)) {
        use prost::Message as _;
        let messages = play(&actions);
        let mut known = HashSet::new();
        let (mut logs, mut warnings) = (0, 0);
        for message in &messages {
            prop_assert!(message.encoded_len() < 2 << 20);
            known.extend(message.vertexes.iter().map(|vertex| vertex.digest.clone()));
            let of = message.statuses.iter().map(|status| &status.vertex)
                .chain(message.logs.iter().map(|log| &log.vertex))
                .chain(message.warnings.iter().map(|warning| &warning.vertex));
            for vertex in of {
                prop_assert!(known.contains(vertex));
            }
            logs += message.logs.iter().map(|log| log.msg.len()).sum::<usize>();
            warnings += message.warnings.len();
        }
        let sent = |action: &Action| if let Action::Log(_, size) = action { *size } else { 0 };
        prop_assert_eq!(logs, actions.iter().map(sent).sum::<usize>());
        prop_assert_eq!(warnings, actions.iter().filter(|a| matches!(a, Action::Warn(_))).count());
        prop_assert_eq!(known.len(), 4);
    }

    /// The last word on each vertex is the last thing that happened to it.
    #[test]
    fn the_states_of_a_vertex_keep_their_order(actions in prop::collection::vec(action(), 0..60)) {
        let mut completed = [None; 4];
        for action in &actions {
            match action {
                Action::Start(v) => completed[*v] = Some(false),
                // Reports nothing new for a vertex that ended before, but an item reopens and closes it.
                Action::Complete(v) | Action::Cached(v) => completed[*v] = Some(true),
                Action::Item(v, _) => completed[*v] = Some(completed[*v] != Some(false)),
                Action::Log(..) | Action::Warn(_) | Action::Read => {}
            }
        }
        let mut last = [None; 4];
        for vertex in play(&actions).iter().flat_map(|message| &message.vertexes) {
            let n: usize = vertex.name.parse().unwrap();
            last[n] = (vertex.started.is_some() || vertex.completed.is_some()).then_some(vertex.completed.is_some());
        }
        prop_assert_eq!(last, completed);
    }

    #[test]
    fn what_is_kept_reads_back_and_damage_is_an_error(actions in prop::collection::vec(action(), 0..20), cut in any::<prop::sample::Index>()) {
        let messages = play(&actions);
        let mut kept = BytesMut::new();
        for message in &messages {
            frame(message, &mut kept);
        }
        let kept = kept.freeze();
        let read: Vec<_> = Frames(kept.clone()).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&read, &messages);
        let cut = cut.index(kept.len().max(1));
        let damaged = Frames(kept.slice(..cut.min(kept.len()))).collect::<Result<Vec<_>, _>>();
        match damaged {
            Ok(whole) => prop_assert!(messages.starts_with(&whole)),
            Err(error) => {
                let short = matches!(error, InvalidFrame::Short { .. });
                prop_assert!(short);
            }
        }
    }
}

#[test]
fn vertices_come_in_the_order_of_their_start_and_those_without_one_first() {
    let at = |second| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
    let vertex = |name: &str, started, completed| {
        Arc::new(Update::Vertex(Vertex { started, completed, ..Vertex::new(Digest::sha256(name), name) }))
    };
    let batch = [
        vertex("late", at(9), None),
        vertex("early", at(5), None),
        vertex("early", at(5), at(6)),
        vertex("waiting", None, None),
        vertex("early", at(8), None),
    ];
    let [message] = responses(&batch).try_into().unwrap();
    let told: Vec<(&str, i64, bool)> = message
        .vertexes
        .iter()
        .map(|v| (v.name.as_str(), v.started.map_or(0, |at| at.seconds), v.completed.is_some()))
        .collect();
    let expected = [("waiting", 0, false), ("early", 5, true), ("early", 8, false), ("late", 9, false)];
    assert_eq!(told, expected);
}

/// Each vertex of a known build was told three times: announced, begun, and ended at once.
#[tokio::test]
async fn a_state_that_a_later_one_of_the_same_batch_contains_is_not_told() {
    let journal = Journal::new();
    let vertices: Vec<_> = (0..100)
        .map(|n| {
            let vertex = Vertex::new(Digest::sha256(n.to_string()), n.to_string());
            VertexProgress::new(vertex, Arc::new(journal.clone()))
        })
        .collect();
    let mut follower = journal.reader();
    let announced = responses(&follower.next().await.unwrap());
    assert_eq!(announced.iter().map(|message| message.vertexes.len()).sum::<usize>(), 100);
    for (n, vertex) in vertices.iter().enumerate() {
        vertex.start();
        if n > 0 {
            vertex.complete(None);
        }
    }
    vertices[1].start();
    journal.close();
    let then = responses(&follower.next().await.unwrap());
    let [then] = then.as_slice() else { panic!("{} messages", then.len()) };
    assert_eq!(then.vertexes.len(), 101, "the one that has begun anew ended before");
    let states = |n: &str| {
        let of = then.vertexes.iter().filter(|vertex| vertex.name == n);
        of.map(|vertex| (vertex.started.is_some(), vertex.completed.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(states("0"), [(true, false)]);
    assert_eq!(states("1"), [(true, true), (true, false)]);
    assert_eq!(states("2"), [(true, true)]);
    let late = responses(&journal.reader().next().await.unwrap());
    assert_eq!(late.iter().map(|message| message.vertexes.len()).sum::<usize>(), 101);
}

#[test]
fn steps_are_counted_once_each() {
    let mut count = StepCount::default();
    let v = Vertex::new(Digest::sha256("a"), "a");
    count.see(&Update::Vertex(v.clone()));
    count.see(&Update::Vertex(Vertex { cached: true, completed: Some(SystemTime::now()), ..v }));
    count.see(&Update::Vertex(Vertex::new(Digest::sha256("b"), "b")));
    assert_eq!(count.steps(), Steps { total: 2, cached: 1, completed: 1, warnings: 0 });
}
