use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::oci::Digest;

fn open() -> (tempfile::TempDir, Db, KeyIndex) {
    let directory = tempfile::tempdir().unwrap();
    let db = Db::open(directory.path().join("db")).unwrap();
    let index = KeyIndex::open(db.clone()).unwrap();
    (directory, db, index)
}

fn key(name: &str) -> Key {
    Key::of(&Digest::sha256(name), &[])
}

fn link(from: &str, input: u32) -> Link {
    Link::new(EdgeKey { key: key(from), output: 0 }, input, &Digest::sha256("op"), None)
}

fn stored(to: &str, from: &[&str], results: &[&str]) -> Stored {
    Stored {
        key: key(to),
        links: from.iter().zip(0..).map(|(from, input)| link(from, input)).collect(),
        results: results.iter().map(|id| (0, ResultId((*id).to_owned()))).collect(),
        created: 7,
    }
}

fn leads(index: &KeyIndex, from: &str, input: u32) -> Vec<Key> {
    let query = Query { links: vec![link(from, input)], keys: Vec::new() };
    index.look([&query]).unwrap().remove(0).links.remove(0)
}

fn results(index: &KeyIndex, of: &str) -> Vec<String> {
    let query = Query { links: Vec::new(), keys: vec![key(of)] };
    index.look([&query]).unwrap().remove(0).records.into_iter().map(|record| record.id.0).collect()
}

/// Waits until everything queued so far is in the snapshots.
async fn flush(db: &Db) {
    db.write(|_| Ok(())).await.unwrap();
}

#[tokio::test]
async fn an_addition_is_found_at_once_and_after_it_was_written_and_after_a_restart() {
    let (directory, db, index) = open();
    index.add(stored("p", &["a", "b"], &["r"]));
    for _ in 0..2 {
        assert_eq!(leads(&index, "a", 0), [key("p")]);
        assert_eq!(leads(&index, "b", 1), [key("p")]);
        assert!(leads(&index, "a", 1).is_empty(), "it is the other input");
        assert_eq!(results(&index, "p"), ["r"]);
        flush(&db).await;
    }
    assert!(index.behind().additions.is_empty(), "what snapshots contain is not kept in memory");
    drop(index);
    db.close();
    drop(db);
    let db = Db::open(directory.path().join("db")).unwrap();
    let index = KeyIndex::open(db.clone()).unwrap();
    assert_eq!(leads(&index, "a", 0), [key("p")]);
    index.add(stored("q", &["a"], &["s"]));
    assert_eq!(results(&index, "q"), ["s"]);
    flush(&db).await;
    assert_eq!(results(&index, "q"), ["s"]);
    assert!(index.behind().additions.is_empty());
}

#[tokio::test]
async fn a_lookup_writes_nothing() {
    let (_directory, db, index) = open();
    index.add(stored("p", &["a"], &["r"]));
    flush(&db).await;
    let commits = db.commits();
    for _ in 0..10 {
        leads(&index, "a", 0);
        results(&index, "p");
    }
    flush(&db).await;
    assert_eq!(db.commits(), commits + 1);
}

#[tokio::test]
async fn alternatives_add_up() {
    let (_directory, _db, index) = open();
    index.add(stored("p", &["a"], &["r"]));
    index.add(stored("q", &["a"], &["s"]));
    index.add(stored("p", &["a2"], &[]));
    assert_eq!(leads(&index, "a", 0), [key("p"), key("q")]);
    assert_eq!(leads(&index, "a2", 0), [key("p")]);
    assert_eq!(results(&index, "p"), ["r"]);
}

#[tokio::test]
async fn a_key_that_leads_nowhere_goes_with_its_last_result_and_so_does_the_way_to_it() {
    let (_directory, db, index) = open();
    // a -> p (result r) -> q (result s)
    index.add(stored("p", &["a"], &["r"]));
    index.add(stored("q", &["p"], &["s"]));
    index.forget([ResultId("r".to_owned())]);
    flush(&db).await;
    assert!(results(&index, "p").is_empty());
    assert_eq!(leads(&index, "a", 0), [key("p")], "p leads to q");
    assert_eq!(results(&index, "q"), ["s"]);
    index.forget([ResultId("s".to_owned())]);
    flush(&db).await;
    assert!(leads(&index, "p", 0).is_empty());
    assert!(leads(&index, "a", 0).is_empty(), "p leads nowhere any more");
    let rows = db.read(|tx| {
        let links = tx.multimap(LINKS)?.map_or(0, |t| t.iter().map_or(0, Iterator::count));
        let into = tx.multimap(LINKS_INTO)?.map_or(0, |t| t.iter().map_or(0, Iterator::count));
        let results = tx.multimap(RESULTS)?.map_or(0, |t| t.iter().map_or(0, Iterator::count));
        Ok((links, into, results))
    });
    assert_eq!(rows.unwrap(), (0, 0, 0));
}

/// Keys from which a result can be reached.
fn live(records: &BTreeSet<(usize, usize)>, links: &BTreeSet<(usize, usize, usize)>) -> BTreeSet<usize> {
    let mut live: BTreeSet<usize> = records.iter().map(|(key, _)| *key).collect();
    while let Some(more) = links.iter().find(|(from, _, to)| live.contains(to) && !live.contains(from)) {
        live.insert(more.0);
    }
    live
}

/// What a test does to the index.
#[derive(Clone, Debug)]
enum Act {
    Add { to: usize, from: Vec<usize>, result: Option<usize> },
    Forget { result: usize },
    Flush,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0usize..6, proptest::collection::vec(0usize..6, 0..3), proptest::option::of(0usize..4))
            .prop_map(|(to, mut from, result)| {
                // Keys are hashes of the keys that lead to them, so that none leads to itself.
                from.retain(|from| *from < to);
                Act::Add { to, from, result }
            }),
        1 => (0usize..4).prop_map(|result| Act::Forget { result }),
        1 => Just(Act::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever is added and forgotten: every result that is known is found under its keys, every link
    /// that leads to one as well, and nothing that was forgotten.
    #[test]
    fn what_leads_to_a_result_is_kept_and_nothing_else_is(acts in proptest::collection::vec(act(), 1..25)) {
        const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_directory, db, index) = open();
            let mut records: BTreeSet<(usize, usize)> = BTreeSet::new();
            let mut links: BTreeSet<(usize, usize, usize)> = BTreeSet::new();
            for act in acts {
                match act {
                    Act::Add { to, from, result } => {
                        let names: Vec<&str> = from.iter().map(|f| NAMES[*f]).collect();
                        let id = result.map(|r| format!("r{r}"));
                        index.add(stored(NAMES[to], &names, id.as_deref().as_slice()));
                        links.extend(from.iter().enumerate().map(|(input, from)| (*from, input, to)));
                        records.extend(result.map(|r| (to, r)));
                    }
                    Act::Forget { result } => {
                        index.forget([ResultId(format!("r{result}"))]);
                        flush(&db).await;
                        records.retain(|(_, r)| *r != result);
                        // What leads to no result may go, and does not come back by itself.
                        let live = live(&records, &links);
                        links.retain(|(_, _, to)| live.contains(to));
                    }
                    Act::Flush => flush(&db).await,
                }
            }
            flush(&db).await;
            let live = live(&records, &links);
            for (to, name) in NAMES.iter().enumerate() {
                let expected: BTreeSet<String> =
                    records.iter().filter(|(key, _)| *key == to).map(|(_, r)| format!("r{r}")).collect();
                assert_eq!(results(&index, name).into_iter().collect::<BTreeSet<_>>(), expected);
                for (from, input, _) in links.iter().filter(|(_, _, t)| *t == to && live.contains(t)) {
                    assert!(leads(&index, NAMES[*from], *input as u32).contains(&key(name)));
                }
            }
        });
    }
}
