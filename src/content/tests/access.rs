//! S2: credentials belong to the request.

use std::time::Duration;

use futures::poll;

use super::super::*;
use super::harness::*;
use crate::session::Sessions;

const SIZE: u64 = 1 << 20;

fn only_for_alice() -> Script {
    Script { strangers: vec!["bob"], ..Script::default() }
}

#[tokio::test]
async fn one_clients_401_is_not_anothers_error() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let fake = Fake::with(origin("private"), &all, only_for_alice());
    let handlers = fake.handlers(&blob);
    let (alice, bob) = (client("alice"), client("bob"));
    // Bob comes first and is refused; the fetch that he began goes on with Alice's rights.
    let (his, hers) =
        tokio::join!(f.store.fetch(&bob, &blob, &handlers), f.store.fetch(&alice, &blob, &handlers));
    assert!(matches!(his, Err(FetchError::Unauthorized { .. })), "{his:?}");
    let _lease = hers.unwrap();
    assert_eq!(fake.served(), SIZE);
    assert_eq!(fake.opens(), 2);
    assert_eq!(fake.probes(), 0, "his refusal is known");
}

#[tokio::test]
async fn a_private_blob_is_not_handed_to_who_names_a_repository_of_his_own() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let private = Fake::with(origin("private"), &all, only_for_alice());
    f.ways.add(&private);
    let _hers = f.store.fetch(&client("alice"), &blob, &private.handlers(&blob)).await.unwrap();
    // A manifest can name any digest.
    let own = Fake::with(origin("bob/own"), &all, Script { gone: true, ..Script::default() });
    let his = f.store.fetch(&client("bob"), &blob, &own.handlers(&blob)).await;
    assert!(matches!(his, Err(FetchError::Gone { .. })), "his own place decides what he is told: {his:?}");
    assert!(!format!("{his:?}").contains("private"), "{his:?}");
    assert_eq!((own.probes(), private.probes()), (1, 1), "his ways, with his credentials");
    let his = f.store.stream(&client("bob"), &blob, &own.handlers(&blob)).await;
    assert!(his.is_err());
}

#[tokio::test]
async fn a_late_joiner_without_rights_gets_nothing_though_the_fetch_succeeds() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let private = Fake::with(origin("private"), &all, only_for_alice());
    private.script.lock().unwrap().stall_at = Some(SIZE / 2);
    let own = Fake::with(origin("bob/own"), &all, Script { gone: true, ..Script::default() });
    let (alice, bob) = (client("alice"), client("bob"));
    let (her_way, his_way) = (private.handlers(&blob), own.handlers(&blob));
    let mut hers = Box::pin(f.store.fetch(&alice, &blob, &her_way));
    let mut his = Box::pin(f.store.fetch(&bob, &blob, &his_way));
    assert!(poll!(&mut hers).is_pending() && poll!(&mut his).is_pending());
    private.has_served(SIZE / 2).await;
    private.gate.add_permits(1);
    let _lease = hers.await.unwrap();
    assert!(matches!(his.await, Err(FetchError::Gone { .. })));
}

#[tokio::test]
async fn another_repository_is_asked_once_and_then_proven() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let (a, b) = (Fake::new(origin("a"), &all), Fake::new(origin("b"), &all));
    let _lease = f.store.fetch(&ctx, &blob, &a.handlers(&blob)).await.unwrap();
    for _ in 0..3 {
        let _lease = f.store.fetch(&ctx, &blob, &b.handlers(&blob)).await.unwrap();
    }
    assert_eq!((b.opens(), b.probes()), (0, 1));
    let f = f.restart().await;
    let _lease = f.store.fetch(&ctx, &blob, &b.handlers(&blob)).await.unwrap();
    assert_eq!(b.probes(), 1, "a proof is durable");
}

/// A HEAD was proof enough, of any registry: whoever ran one of his own needed to know a digest only to
/// get what somebody else had fetched.
#[tokio::test]
async fn a_registry_that_was_never_seen_to_have_the_blob_shows_it_and_is_then_believed() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, ctx) = (layer(&all), Ctx::background());
    let a = Fake::new(origin("a"), &all);
    let _lease = f.store.fetch(&ctx, &blob, &a.handlers(&blob)).await.unwrap();
    let elsewhere = |repository| Origin::registry("evil.example", repository);
    let liar = Fake::new(elsewhere("loot"), &bytes(2, SIZE));
    let refused = f.store.fetch(&ctx, &blob, &liar.handlers(&blob)).await;
    assert!(matches!(refused, Err(FetchError::Corrupt { .. })), "{refused:?}");
    assert_eq!((liar.opens(), liar.probes()), (1, 0));
    // What it says as the target of a push is no proof either.
    f.store.note_origin(&blob.digest, elsewhere("loot"));
    let refused = f.store.fetch(&ctx, &blob, &liar.handlers(&blob)).await;
    assert!(matches!(refused, Err(FetchError::Corrupt { .. })), "{refused:?}");
    let [one, two] = ["one", "two"].map(|name| Fake::new(elsewhere(name), &all));
    for _ in 0..3 {
        let _lease = f.store.fetch(&ctx, &blob, &one.handlers(&blob)).await.unwrap();
    }
    assert_eq!((one.opens(), one.probes(), one.served()), (1, 0, SIZE));
    let _lease = f.store.fetch(&ctx, &blob, &two.handlers(&blob)).await.unwrap();
    assert_eq!((two.opens(), two.probes()), (0, 1));
}

#[tokio::test]
async fn a_clients_store_proves_nothing_by_its_name() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let store = || Origin::SessionStore { store: "oci:images".into() };
    let hers = Fake::new(store(), &all);
    let _lease = f.store.fetch(&client("alice"), &blob, &hers.handlers(&blob)).await.unwrap();
    let his = Fake::with(store(), &all, Script { gone: true, ..Script::default() });
    let refused = f.store.fetch(&client("bob"), &blob, &his.handlers(&blob)).await;
    assert!(matches!(refused, Err(FetchError::Gone { .. })), "{refused:?}");
    assert_eq!((his.opens(), his.probes()), (1, 0), "his word is not asked for");
}

/// A store's word was proof enough: whoever knew a digest got the bytes that somebody else had fetched, by
/// a client that claims to have them.
#[tokio::test]
async fn a_clients_store_that_lies_gets_nothing_and_one_that_shows_is_believed_for_its_session() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let script = Script { strangers: vec!["bob", "carol"], ..Script::default() };
    let private = Fake::with(origin("private"), &all, script);
    f.ways.add(&private);
    let _hers = f.store.fetch(&client("alice"), &blob, &private.handlers(&blob)).await.unwrap();

    let sessions = Sessions::new(&f.store.inner.tasks);
    let store = || Origin::SessionStore { store: "oci:images".into() };
    let liar = Fake::new(store(), &bytes(2, SIZE));
    let bob = Client::open(&sessions, "bob").await;
    let refused = f.store.fetch(&bob.ctx, &blob, &liar.handlers(&blob)).await;
    assert!(
        matches!(refused, Err(FetchError::Unauthorized { .. } | FetchError::Corrupt { .. })),
        "{refused:?}"
    );
    assert!(f.store.stream(&bob.ctx, &blob, &liar.handlers(&blob)).await.is_err());
    assert_eq!((liar.opens(), liar.probes()), (2, 0), "what was refused is not remembered");

    let carol = Client::open(&sessions, "carol").await;
    let honest = Fake::new(store(), &all);
    let handlers = honest.handlers(&blob);
    let asked = futures::future::join_all((0..8).map(|_| f.store.fetch(&carol.ctx, &blob, &handlers))).await;
    assert!(asked.iter().all(Result::is_ok));
    let _again = f.store.fetch(&carol.ctx, &blob, &handlers).await.unwrap();
    assert_eq!((honest.opens(), honest.served(), honest.probes()), (1, SIZE, 0), "shown once");
    assert!(f.store.fetch(&bob.ctx, &blob, &liar.handlers(&blob)).await.is_err(), "hers is not his");

    carol.close().await;
    let thief = Client::open(&sessions, "carol").await;
    assert!(f.store.fetch(&thief.ctx, &blob, &liar.handlers(&blob)).await.is_err(), "a name is no session");
}

#[tokio::test]
async fn what_a_clients_store_gave_is_not_asked_of_it_again() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let sessions = Sessions::new(&f.store.inner.tasks);
    let alice = Client::open(&sessions, "alice").await;
    let fake = Fake::new(Origin::SessionStore { store: "oci:images".into() }, &all);
    for _ in 0..3 {
        let _lease = f.store.fetch(&alice.ctx, &blob, &fake.handlers(&blob)).await.unwrap();
    }
    assert_eq!((fake.opens(), fake.probes(), fake.served()), (1, 0, SIZE));
}

/// Of two layers from a client, each waited for a registry that had gone, though the client never named it.
#[tokio::test]
async fn a_registry_that_is_silent_is_waited_for_once_and_not_alone() {
    let (f, one, two) = (Fixture::new(), bytes(1, SIZE), bytes(2, SIZE));
    let blobs = [&one, &two].map(layer);
    let gone = [&one, &two].map(|all| Fake::new(origin("base"), all));
    for (blob, registry) in blobs.iter().zip(&gone) {
        let _lease = f.store.fetch(&client("alice"), blob, &registry.handlers(blob)).await.unwrap();
        registry.script.lock().unwrap().silent = true;
    }
    let sessions = Sessions::new(&f.store.inner.tasks);
    let bob = Client::open(&sessions, "bob").await;
    let stores = [&one, &two].map(|all| Fake::new(Origin::SessionStore { store: "oci:images".into() }, all));
    for ((blob, store), registry) in blobs.iter().zip(&stores).zip(&gone) {
        f.ways.add(registry);
        let handlers = store.handlers(blob);
        let asked = f.store.fetch(&bob.ctx, blob, &handlers);
        let _lease = tokio::time::timeout(Duration::from_secs(30), asked).await.expect("no wait").unwrap();
        assert_eq!((store.opens(), store.served()), (1, SIZE));
    }
    assert_eq!((gone[0].probes(), gone[1].probes()), (1, 0), "the second time others are asked first");

    // Where it is the only one, it is waited for.
    gone[0].script.lock().unwrap().strangers = vec!["carol"];
    let carol = client("carol");
    let handlers = gone[0].handlers(&blobs[0]);
    let mut asked = Box::pin(f.store.fetch(&carol, &blobs[0], &handlers));
    assert!(tokio::time::timeout(Duration::from_millis(1500), &mut asked).await.is_err());
    assert_eq!(gone[0].probes(), 2);
}

#[tokio::test]
async fn one_proof_serves_all_who_wait_for_it_and_each_of_them_is_asked_about_for_itself() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let first = Fake::new(origin("a"), &all);
    let _lease = f.store.fetch(&client("alice"), &blob, &first.handlers(&blob)).await.unwrap();
    let elsewhere = Origin::registry("other.example", "b");
    let script = Script { strangers: vec!["eve"], stall_at: Some(SIZE / 2), ..Script::default() };
    let other = Fake::with(elsewhere, &all, script);
    let handlers = other.handlers(&blob);
    let askers = ["bob", "carol", "dave", "eve"].map(client);
    let mut asked: Vec<_> = askers.iter().map(|ctx| Box::pin(f.store.fetch(ctx, &blob, &handlers))).collect();
    for asker in &mut asked {
        assert!(poll!(asker).is_pending());
    }
    other.has_served(SIZE / 2).await;
    // He with whose rights it is read leaves; the others still wait for it.
    drop(asked.remove(0));
    other.gate.add_permits(1);
    let (eve, others) = (asked.pop().unwrap(), futures::future::join_all(asked).await);
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    let eve = eve.await;
    assert!(matches!(eve, Err(FetchError::Unauthorized { .. })), "{eve:?}");
    assert_eq!((other.opens(), other.served()), (1, SIZE));
}

#[tokio::test]
async fn a_proof_that_fails_for_one_is_read_with_the_rights_of_the_next() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let first = Fake::new(origin("a"), &all);
    let _lease = f.store.fetch(&client("alice"), &blob, &first.handlers(&blob)).await.unwrap();
    let script = Script { strangers: vec!["eve"], ..Script::default() };
    let other = Fake::with(Origin::registry("other.example", "b"), &all, script);
    let handlers = other.handlers(&blob);
    let (eve, bob) = (client("eve"), client("bob"));
    let (hers, his) =
        tokio::join!(f.store.fetch(&eve, &blob, &handlers), f.store.fetch(&bob, &blob, &handlers));
    assert!(matches!(hers, Err(FetchError::Unauthorized { .. })), "{hers:?}");
    let _lease = his.unwrap();
    assert_eq!((other.opens(), other.served()), (2, SIZE));
}

/// The row that proves an origin is written behind the file. A crash in between cost each asker a whole
/// download, for nothing but the proof.
#[tokio::test]
async fn a_blob_whose_row_a_crash_lost_says_itself_where_it_came_from() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let private = Fake::with(origin("private"), &all, only_for_alice());
    let (alice, bob, carol) = (client("alice"), client("bob"), client("carol"));
    drop(f.store.fetch(&alice, &blob, &private.handlers(&blob)).await.unwrap());
    f.lose_row(&blob.digest).await;
    let f = f.restart().await;
    assert!(f.store.is_resident(&blob));
    let handlers = private.handlers(&blob);
    let own = Fake::with(Origin::registry("bob.example", "own"), &bytes(2, SIZE), Script::default());
    let own = own.handlers(&blob);
    let (hers, his, his_own, others) = tokio::join!(
        f.store.fetch(&alice, &blob, &handlers),
        f.store.fetch(&bob, &blob, &handlers),
        f.store.fetch(&bob, &blob, &own),
        f.store.fetch(&carol, &blob, &handlers),
    );
    assert!(hers.is_ok() && others.is_ok(), "{hers:?} {others:?}");
    assert!(his.is_err() && his_own.is_err(), "{his:?} {his_own:?}");
    assert_eq!((private.opens(), private.served()), (1, SIZE), "before the crash");
    let known = f.store.origins(&blob.digest).unwrap();
    assert!(known.contains(&KnownOrigin { origin: origin("private"), proven: true }), "{known:?}");
}

/// Whoever gave the last bytes was taken for somebody who had them all.
#[tokio::test]
async fn nobody_gets_what_others_began_by_giving_its_end() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    let private = Fake::with(origin("private"), &all, only_for_alice());
    private.script.lock().unwrap().stall_at = Some(SIZE / 2);
    {
        let (alice, handlers) = (client("alice"), private.handlers(&blob));
        let mut hers = Box::pin(f.store.fetch(&alice, &blob, &handlers));
        assert!(poll!(&mut hers).is_pending());
        private.has_served(SIZE / 2).await;
    }
    let ending = [&bytes(2, SIZE)[..SIZE as usize / 2], &all[SIZE as usize / 2..]].concat().into();
    let liar = Fake::new(Origin::registry("bob.example", "own"), &ending);
    let his = f.store.fetch(&client("bob"), &blob, &liar.handlers(&blob)).await;
    assert!(matches!(his, Err(FetchError::Corrupt { .. })), "{his:?}");
    assert!(!f.store.is_resident(&blob));
}

#[tokio::test]
async fn one_client_may_mix_what_is_given_to_it_and_that_proves_nobody() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, alice) = (layer(&all), client("alice"));
    let script = || Script { break_at: Some((SIZE / 2, 9)), ..Script::default() };
    for passes in [true, false] {
        let breaks = Fake::with(origin("a"), &all, script());
        let ends = Fake::new(Origin::registry("other.example", "b"), &all);
        let mut handlers = breaks.handlers(&blob);
        handlers.extend(&ends.handlers(&blob));
        if passes {
            let stream = f.store.stream(&alice, &blob, &handlers).await.unwrap();
            assert_eq!(stream.source(), StreamSource::PassThrough);
            let got: Vec<Result<Bytes, FetchError>> = futures::StreamExt::collect(stream).await;
            assert_eq!(got.into_iter().collect::<Result<Vec<_>, _>>().unwrap().concat(), all);
        } else {
            let _lease = f.store.fetch(&alice, &blob, &handlers).await.unwrap();
        }
        assert_eq!(*ends.offsets.lock().unwrap(), [SIZE / 2], "no byte comes twice");
        let known = f.store.origins(&blob.digest).unwrap();
        assert!(known.iter().all(|known| !known.proven), "{known:?}");
    }
    assert_eq!(f.store.inner.disk.given_blob(&blob.digest), None);
}

#[tokio::test]
async fn blobs_made_here_and_the_nodes_own_work_need_no_proof() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let (blob, _lease) = f.store.write("m", all.clone()).await.unwrap();
    let own = Fake::with(origin("x"), &all, Script { gone: true, ..Script::default() });
    let _lease = f.store.fetch(&client("bob"), &blob, &own.handlers(&blob)).await.unwrap();
    assert_eq!(own.probes(), 0);
    let fetched = layer(&bytes(2, 10));
    let a = Fake::new(origin("a"), &bytes(2, 10));
    let _lease = f.store.fetch(&client("alice"), &fetched, &a.handlers(&fetched)).await.unwrap();
    let _lease = f.store.fetch(&Ctx::background(), &fetched, &DescHandlers::new()).await.unwrap();
}

#[tokio::test]
async fn a_candidate_leaves_with_its_client() {
    let (f, all) = (Fixture::new(), bytes(1, SIZE));
    let blob = layer(&all);
    // Alice's way stalls and breaks; Bob offered another one and left before it was needed.
    let script = Script { stall_at: Some(SIZE / 2), break_at: Some((SIZE / 2, 9)), ..Script::default() };
    let hers = Fake::with(origin("a"), &all, script);
    let his = Fake::new(origin("b"), &all);
    let (alice, bob) = (client("alice"), client("bob"));
    let (her_way, his_way) = (hers.handlers(&blob), his.handlers(&blob));
    let mut first = Box::pin(f.store.fetch(&alice, &blob, &her_way));
    let mut second = Box::pin(f.store.fetch(&bob, &blob, &his_way));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    hers.has_served(SIZE / 2).await;
    drop(second);
    hers.gate.add_permits(1);
    assert!(matches!(first.await, Err(FetchError::Unreachable { .. })));
    assert_eq!(his.opens(), 0);
}
