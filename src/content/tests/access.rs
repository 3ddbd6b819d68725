//! S2: credentials belong to the request.

use futures::poll;

use super::super::*;
use super::harness::*;

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
    assert!(matches!(his, Err(FetchError::Unauthorized { .. })), "{his:?}");
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
    assert_eq!(his.probes(), 1);
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
