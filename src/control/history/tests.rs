use futures::StreamExt as _;
use futures::TryStreamExt as _;
use jiff::SignedDuration;

use super::*;
use crate::content::Connect;
use crate::content::Origin;
use crate::content::Provider;
use crate::lease::Leases;

/// Nothing of the history is ever fetched.
#[derive(Debug)]
struct NoWay;

impl Connect for NoWay {
    fn provider(&self, origin: &Origin) -> Option<Arc<dyn Provider>> {
        panic!("a provider for {origin:?}")
    }
}

struct Node {
    directory: tempfile::TempDir,
    tasks: Tasks,
    history: History,
}

fn open(directory: &std::path::Path, limits: HistoryLimits) -> (Tasks, History) {
    let tasks = Tasks::new();
    let db = Db::open(directory.join("db")).unwrap();
    let root = directory.join("content");
    let content = ContentStore::open(&root, db, Leases::new(), Arc::new(NoWay), tasks.clone()).unwrap();
    let history = History::open(content, limits, &tasks);
    (tasks, history)
}

impl Node {
    fn new(limits: HistoryLimits) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let (tasks, history) = open(directory.path(), limits);
        Node { directory, tasks, history }
    }

    async fn restart(self) -> Node {
        self.restart_with(HistoryLimits::default()).await
    }

    async fn restart_with(self, limits: HistoryLimits) -> Node {
        let Node { directory, tasks, history } = self;
        tasks.shutdown().await;
        history.0.db.close();
        drop(history);
        let (tasks, history) = open(directory.path(), limits);
        Node { directory, tasks, history }
    }

    async fn build(&self, name: &str) {
        self.build_at(name, Timestamp::now()).await;
    }

    async fn build_at(&self, name: &str, created: Timestamp) {
        let record = Record { created, ..Record::new(name) };
        let logs = Bytes::from(format!("logs of {name}"));
        self.history
            .begin(record)
            .unwrap()
            .complete(Completion { logs, ..Completion::default() })
            .await
            .unwrap();
    }

    async fn list(&self, query: HistoryQuery) -> Vec<String> {
        let query = HistoryQuery { early_exit: true, ..query };
        let events = self.history.listen(query).await.unwrap();
        events.map_ok(|event| tell(&event)).try_collect().await.unwrap()
    }
}

fn tell(event: &Event) -> String {
    match event {
        Event::Started(record) => format!("started {}", record.build),
        Event::Complete(record) => format!("complete {} {}", record.build, record.generation),
        Event::Deleted(build) => format!("deleted {build}"),
    }
}

#[tokio::test]
async fn a_completed_build_and_its_logs_survive_a_restart() {
    let node = Node::new(HistoryLimits::default());
    let active = node.history.begin(Record::new("one")).unwrap();
    assert_eq!(node.list(HistoryQuery::default()).await, ["started one"]);
    let error = RecordedError { code: 1, message: "no".to_owned() };
    let completion = Completion {
        error: Some(error.clone()),
        external_error: Some(Bytes::from_static(b"details")),
        logs: Bytes::from_static(b"logs"),
        steps: Steps { total: 3, cached: 1, completed: 2, warnings: 0 },
        ..Completion::default()
    };
    active.complete(completion).await.unwrap();
    let node = node.restart().await;
    assert_eq!(node.list(HistoryQuery::default()).await, ["complete one 0"]);
    let record = node.history.get("one").unwrap().unwrap();
    assert_eq!((record.error, record.steps.total), (Some(error), 3));
    assert_eq!(node.history.logs("one").await.unwrap().unwrap().read_all().await.unwrap(), "logs");
    let details = Digest::sha256("details");
    let blob = node.history.blob(details).await.unwrap().unwrap();
    assert_eq!(blob.read_all().await.unwrap(), "details");
    assert!(node.history.blob(Digest::sha256("other")).await.unwrap().is_none());
    assert!(node.history.logs("two").await.unwrap().is_none());
}

#[tokio::test]
async fn a_build_that_was_not_completed_leaves_no_record() {
    let node = Node::new(HistoryLimits::default());
    drop(node.history.begin(Record::new("one")).unwrap());
    assert_eq!(node.restart().await.list(HistoryQuery::default()).await, [""; 0]);
}

#[tokio::test]
async fn a_listener_gets_each_change_once_from_where_it_began() {
    let node = Node::new(HistoryLimits::default());
    node.build("old").await;
    let running = node.history.begin(Record::new("running")).unwrap();
    let mut events = node.history.listen(HistoryQuery::default()).await.unwrap().map_ok(|e| tell(&e)).boxed();
    let mut next = async || events.next().await.unwrap().unwrap();
    assert_eq!(next().await, "started running");
    assert_eq!(next().await, "complete old 0");
    running.complete(Completion::default()).await.unwrap();
    assert_eq!(next().await, "complete running 0");
    node.history.pin("old", true).await.unwrap();
    assert_eq!(next().await, "complete old 1");
    node.history.delete("old").await.unwrap();
    assert_eq!(next().await, "deleted old");
    drop(node.history.begin(Record::new("given up")).unwrap());
    assert_eq!(next().await, "started given up");
    assert_eq!(next().await, "deleted given up");
}

#[tokio::test]
async fn a_query_selects_by_ref_filter_limit_and_activity() {
    let node = Node::new(HistoryLimits::default());
    let day = SignedDuration::from_hours(24);
    node.build_at("a", Timestamp::now() - day * 3).await;
    node.build_at("b", Timestamp::now() - day).await;
    node.build_at("c", Timestamp::now() - day * 2).await;
    let _running = node.history.begin(Record::new("d")).unwrap();
    let newest = HistoryQuery { limit: 2, ..HistoryQuery::default() };
    assert_eq!(node.list(newest).await, ["started d", "complete b 0", "complete c 0"]);
    let active = HistoryQuery { active_only: true, ..HistoryQuery::default() };
    assert_eq!(node.list(active).await, ["started d"]);
    let one = HistoryQuery { build: "a".to_owned(), ..HistoryQuery::default() };
    assert_eq!(node.list(one).await, ["complete a 0"]);
    let filter = HistoryFilter::parse(&["startedAt<36h,ref!=c".to_owned()], Timestamp::now()).unwrap();
    let old = HistoryQuery { filter: Some(filter), ..HistoryQuery::default() };
    assert_eq!(node.list(old).await, ["started d", "complete a 0"]);
}

#[tokio::test]
async fn deleting_releases_the_blobs_and_deleting_nothing_is_no_error() {
    let node = Node::new(HistoryLimits::default());
    node.build("one").await;
    let digest = Digest::sha256("logs of one");
    let held = |node: &Node| {
        let read = node.history.0.db.read(|tx| Ok(lease::has_row(tx, &digest)?));
        read.unwrap()
    };
    assert!(held(&node));
    node.history.delete("one").await.unwrap();
    assert!(!held(&node));
    node.history.delete("one").await.unwrap();
    let one = HistoryQuery { build: "one".to_owned(), ..HistoryQuery::default() };
    let asked = node.history.listen(one.clone()).await.map(drop);
    assert!(matches!(asked, Err(HistoryError::Deleted { .. })), "{asked:?}");
    let error = node.history.pin("one", true).await.unwrap_err();
    assert!(matches!(error, HistoryError::NotFound { .. }));
    node.build("one").await;
    assert_eq!(node.list(one).await, ["complete one 0"], "a ref may be used again");
}

#[tokio::test]
async fn a_record_outlives_one_limit_and_a_pin_outlives_both() {
    let node =
        Node::new(HistoryLimits { max_age: Duration::ZERO, max_entries: 2, ..HistoryLimits::default() });
    for name in ["a", "b"] {
        node.build(name).await;
    }
    node.history.sweep().await.unwrap();
    assert_eq!(node.list(HistoryQuery::default()).await.len(), 2, "old, but few");
    node.history.pin("a", true).await.unwrap();
    for name in ["c", "d"] {
        node.build(name).await;
    }
    node.history.sweep().await.unwrap();
    let kept = ["complete a 1", "complete c 0", "complete d 0"];
    assert_eq!(node.list(HistoryQuery::default()).await, kept, "pinned, and the newest two");

    let node = Node::new(HistoryLimits {
        max_age: Duration::from_secs(3600),
        max_entries: 0,
        ..HistoryLimits::default()
    });
    node.build("young").await;
    node.history.sweep().await.unwrap();
    assert_eq!(node.list(HistoryQuery::default()).await, ["complete young 0"], "beyond, but young");
}

#[tokio::test]
async fn where_nothing_is_recorded_no_build_is_shown_and_older_records_stay() {
    let node = Node::new(HistoryLimits::default());
    node.build("before").await;
    let node = node.restart_with(HistoryLimits { recorded: false, ..HistoryLimits::default() }).await;
    assert!(node.history.begin(Record::new("one")).is_none());
    assert_eq!(node.list(HistoryQuery::default()).await, ["complete before 0"]);
}

/// Each build swept, and each sweep read every record: the 2,000th build read 2,000 of them.
#[tokio::test]
async fn a_build_looks_at_no_other_record() {
    let node = Node::new(HistoryLimits { max_entries: 5, ..HistoryLimits::default() });
    for n in 0..40 {
        node.build(&format!("build {n}")).await;
    }
    node.history.sweep().await.unwrap();
    let looked = node.history.0.looked.load(Ordering::SeqCst);
    // The look of the start may have come in between.
    assert!(looked <= 40, "{looked} rows");
    assert_eq!(node.list(HistoryQuery::default()).await.len(), 40, "beyond, but young");
}

#[tokio::test]
async fn records_of_an_earlier_run_go_when_they_are_old() {
    let node = Node::new(HistoryLimits::default());
    for name in ["a", "b", "c", "d"] {
        node.build(name).await;
    }
    node.history.pin("a", true).await.unwrap();
    let Node { directory, tasks, history } = node;
    tasks.shutdown().await;
    history.0.db.close();
    drop(history);
    let (tasks, history) = open(
        directory.path(),
        HistoryLimits { max_age: Duration::ZERO, max_entries: 1, ..HistoryLimits::default() },
    );
    let node = Node { directory, tasks, history };
    node.history.learn_ages().await.unwrap();
    node.history.sweep().await.unwrap();
    assert_eq!(node.list(HistoryQuery::default()).await, ["complete a 1", "complete d 0"]);
    node.history.pin("a", false).await.unwrap();
    node.history.sweep().await.unwrap();
    assert_eq!(node.list(HistoryQuery::default()).await, ["complete d 0"], "the oldest is no longer pinned");
}

/// What one sweep takes for old may be pinned, deleted or built again before it comes to it.
#[tokio::test]
async fn a_sweep_believes_the_record_and_not_what_was_noted() {
    let node =
        Node::new(HistoryLimits { max_age: Duration::ZERO, max_entries: 0, ..HistoryLimits::default() });
    // The look of the start is over before anything is there.
    node.history.learn_ages().await.unwrap();
    let record = Record { completed: Some(Timestamp::UNIX_EPOCH), ..Record::new("pinned") };
    let row = Record { pinned: true, generation: 1, ..record.clone() };
    let written = node.history.0.db.write(move |tx| {
        tx.table(RECORDS)?.insert(row.build.as_str(), db::encode(&row)?.as_slice())?;
        Ok(())
    });
    written.await.unwrap();
    node.history.live().ages.note(&record);
    node.history.live().ages.note(&Record { build: "gone".to_owned(), ..record.clone() });
    node.history.sweep().await.unwrap();
    assert_eq!(node.list(HistoryQuery::default()).await, ["complete pinned 1"]);
    assert_eq!(node.history.live().ages.beyond(0, Timestamp::MAX), [""; 0]);
}

#[test]
fn the_newest_state_of_a_record_counts_in_whatever_order_it_is_told() {
    let at = |second| Some(Timestamp::from_second(second).unwrap());
    let first = Record { completed: at(1), ..Record::new("one") };
    let pinned = Record { pinned: true, generation: 1, ..first.clone() };
    let free = Record { generation: 2, ..first.clone() };
    let again = Record { completed: at(5), ..first.clone() };
    let mut ages = Ages::default();
    let old = |ages: &Ages| ages.beyond(0, Timestamp::MAX).len();
    for (told, count) in
        [(&first, 1), (&pinned, 0), (&first, 0), (&free, 1), (&pinned, 1), (&again, 1), (&pinned, 1)]
    {
        ages.note(told);
        assert_eq!(old(&ages), count, "{told:?}");
    }
    ages.forget("one", Timestamp::from_second(1).unwrap());
    assert_eq!(old(&ages), 1, "it was built again since");
    assert_eq!(ages.beyond(1, Timestamp::MAX), [""; 0], "it is the newest");
    assert_eq!(ages.beyond(0, Timestamp::from_second(5).unwrap()), [""; 0], "it is young");
    ages.forget("one", Timestamp::from_second(5).unwrap());
    assert_eq!(old(&ages), 0);
}

#[tokio::test]
async fn a_ref_that_is_used_again_is_the_new_build() {
    let node = Node::new(HistoryLimits::default());
    let first = node.history.begin(Record::new("one")).unwrap();
    let second = node.history.begin(Record::new("one")).unwrap();
    drop(first);
    assert_eq!(node.list(HistoryQuery::default()).await, ["started one"], "the second one runs");
    second.complete(Completion { logs: "second".into(), ..Completion::default() }).await.unwrap();
    assert_eq!(node.list(HistoryQuery::default()).await, ["complete one 0"]);
    assert_eq!(node.history.logs("one").await.unwrap().unwrap().read_all().await.unwrap(), "second");
}

#[tokio::test]
async fn a_listener_that_is_too_far_behind_is_told_so() {
    let node = Node::new(HistoryLimits::default());
    let events = node.history.listen(HistoryQuery::default()).await.unwrap();
    for _ in 0..EVENTS {
        drop(node.history.begin(Record::new("x")));
    }
    let mut events = events.boxed();
    assert!(matches!(events.next().await, Some(Err(HistoryError::Behind))));
    assert!(events.next().await.is_none());
}
