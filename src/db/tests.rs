use std::sync::atomic::AtomicU32;
use std::time::Instant;

use redb::TableDefinition;

use super::*;

const ROWS: TableDefinition<'_, &str, u64> = TableDefinition::new("rows");

struct Fixture {
    dir: tempfile::TempDir,
    db: Db,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("meta.redb")).unwrap();
    Fixture { dir, db }
}

fn put(key: &'static str, value: u64) -> impl Fn(&WriteTx) -> Result<(), DbError> + Send + 'static {
    move |tx| {
        tx.table(ROWS)?.insert(key, value)?;
        Ok(())
    }
}

fn get(db: &Db, key: &str) -> Option<u64> {
    db.read(|tx| match tx.table(ROWS)? {
        None => Ok(None),
        Some(rows) => Ok(rows.get(key)?.map(|v| v.value())),
    })
    .unwrap()
}

impl Fixture {
    /// The rows of a copy of the file as it is now: what a crash would leave.
    fn after_a_crash(&self, key: &str) -> Option<u64> {
        let copy = self.dir.path().join("copy.redb");
        std::fs::copy(self.dir.path().join("meta.redb"), &copy).unwrap();
        get(&Db::open(copy).unwrap(), key)
    }

    /// Holds the writer inside a closure until the guard goes.
    fn hold_the_writer(&self) -> mpsc::Sender<()> {
        let (entered, inside) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        drop(self.db.write(move |_| {
            entered.send(()).unwrap();
            let _ = gate.lock().unwrap().recv();
            Ok(())
        }));
        inside.recv().unwrap();
        release
    }
}

#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let f = fixture();
    f.db.write(put("a", 1)).await.unwrap();
    assert_eq!(f.after_a_crash("a"), Some(1));
}

#[tokio::test]
async fn writers_that_wait_together_share_one_commit() {
    let f = fixture();
    f.db.write(put("first", 1)).await.unwrap();
    let release = f.hold_the_writer();
    let (commits, fsyncs) = (f.db.commits(), f.db.fsyncs());
    let waiting: Vec<_> = ["a", "b", "c", "d"].into_iter().map(|k| f.db.write(put(k, 1))).collect();
    drop(release);
    for written in waiting {
        written.await.unwrap();
    }
    // One for the closure that held the writer, one for the four.
    assert_eq!(f.db.commits() - commits, 2);
    assert_eq!(f.db.fsyncs() - fsyncs, 2, "a commit is one fsync");
}

#[tokio::test]
async fn a_refusal_takes_its_own_changes_back_and_nobody_elses() {
    #[derive(Debug)]
    enum Refusal {
        Mine,
        Db(#[expect(dead_code, reason = "shown by the assertion")] DbError),
    }
    impl From<DbError> for Refusal {
        fn from(error: DbError) -> Refusal {
            Refusal::Db(error)
        }
    }
    let f = fixture();
    let release = f.hold_the_writer();
    let before = f.db.write(put("before", 1));
    let refused = f.db.try_write(|tx| {
        put("refused", 1)(tx)?;
        Err::<(), _>(Refusal::Mine)
    });
    let panicked = f.db.write(|tx| -> Result<(), DbError> {
        put("panicked", 1)(tx)?;
        panic!("on purpose")
    });
    let after = f.db.write(put("after", 1));
    drop(release);
    before.await.unwrap();
    assert!(matches!(refused.await, Err(Refusal::Mine)));
    assert!(matches!(panicked.await, Err(DbError::Panicked)));
    after.await.unwrap();
    assert_eq!(
        ["before", "refused", "panicked", "after"].map(|k| get(&f.db, k)),
        [Some(1), None, None, Some(1)]
    );
}

#[tokio::test]
async fn a_write_behind_is_seen_at_once_and_durable_with_the_next_commit() {
    let f = fixture();
    f.db.write(put("first", 1)).await.unwrap();
    let fsyncs = f.db.fsyncs();
    f.db.write_behind(put("behind", 2));
    let deadline = Instant::now() + BEHIND / 2;
    while get(&f.db, "behind").is_none() {
        assert!(Instant::now() < deadline, "not seen soon");
        std::thread::yield_now();
    }
    assert_eq!(f.db.fsyncs(), fsyncs, "nobody paid for it yet");
    assert_eq!(f.after_a_crash("behind"), None);
    f.db.write(put("next", 3)).await.unwrap();
    assert_eq!(f.db.fsyncs() - fsyncs, 1);
    assert_eq!(f.after_a_crash("behind"), Some(2));
}

#[test]
fn a_write_behind_becomes_durable_by_itself() {
    let f = fixture();
    f.db.write_behind(put("behind", 2));
    let deadline = Instant::now() + 10 * BEHIND;
    while f.after_a_crash("behind").is_none() {
        assert!(Instant::now() < deadline, "never durable");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn closing_makes_the_queue_durable_and_refuses_more() {
    let f = fixture();
    f.db.write_behind(put("behind", 2));
    let waited = f.db.write(put("a", 1));
    f.db.close();
    waited.await.unwrap();
    assert_eq!((f.after_a_crash("a"), f.after_a_crash("behind")), (Some(1), Some(2)));
    assert!(matches!(f.db.write(put("late", 1)).await, Err(DbError::Closed)));
    assert!(matches!(f.db.read(|_| Ok(())), Err(DbError::Closed)));
    // A handle is left, and the file is free all the same.
    Db::open(f.dir.path().join("meta.redb")).unwrap();
}

#[tokio::test]
async fn dropping_the_answer_does_not_cancel_the_write() {
    let f = fixture();
    drop(f.db.write(put("a", 1)));
    f.db.write(put("b", 1)).await.unwrap();
    assert_eq!(get(&f.db, "a"), Some(1));
}

#[test]
fn a_second_opening_is_refused_until_the_first_ends() {
    let f = fixture();
    let path = f.dir.path().join("meta.redb");
    assert!(matches!(Db::open(&path), Err(DbError::InUse { .. })));
    drop(f.db);
    Db::open(&path).unwrap();
}

#[test]
fn a_store_that_was_half_made_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("meta.new"), vec![0; 1 << 20]).unwrap();
    let path = dir.path().join("meta.redb");
    drop(Db::open(&path).unwrap());
    assert!(path.exists() && !dir.path().join("meta.new").exists());
    drop(Db::open(&path).unwrap());
}

#[tokio::test]
async fn a_full_disk_is_typed_and_the_store_goes_on_once_there_is_space() {
    let f = fixture();
    f.db.write(put("before", 1)).await.unwrap();
    let failures = f.db.failures();
    f.db.write_visible(put("visible", 1)).await.unwrap();
    f.db.fill_the_disk().unwrap();
    assert!(matches!(f.db.write(put("full", 1)).await, Err(DbError::NoSpace)));
    // What was visible only went with the handle, and whoever minds is told.
    assert_eq!(get(&f.db, "visible"), None);
    assert!(failures.has_changed().unwrap());
    // The writer opened the file anew, and that handle has space.
    assert_eq!(get(&f.db, "before"), Some(1));
    f.db.write(put("after", 1)).await.unwrap();
    assert_eq!(["before", "full", "after"].map(|k| get(&f.db, k)), [Some(1), None, Some(1)]);
    assert_eq!(f.after_a_crash("after"), Some(1));
}

#[tokio::test]
async fn closures_run_in_the_order_of_the_calls() {
    let f = fixture();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let all: Vec<_> =
        (0..100).map(|n| f.db.write(move |_| Ok((n, NEXT.fetch_add(1, Ordering::SeqCst))))).collect();
    for one in all {
        let (called, ran) = one.await.unwrap();
        assert_eq!(called, ran);
    }
}

#[test]
fn a_row_that_cannot_be_read_names_its_key() {
    let error = decode::<Vec<u32>>("blob/x", b"{").unwrap_err();
    assert!(error.to_string().contains("blob/x"), "{error}");
    assert_eq!(decode::<Vec<u32>>("k", &encode(&vec![1u32]).unwrap()).unwrap(), [1]);
}
