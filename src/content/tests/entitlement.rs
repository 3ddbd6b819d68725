//! Who gets a blob, against a model: whoever could have had it without us, and nobody else.

use std::sync::atomic::Ordering;

use futures::poll;
use proptest::prelude::*;

use super::super::*;
use super::harness::*;

const SIZE: u64 = 100_000;
const CLIENTS: [&str; 3] = ["alice", "bob", "carol"];

/// Places where the blob is said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// A repository that lets everybody in.
    Public,
    /// One of the same registry, for Alice.
    Private,
    /// One of the same registry that does not have the blob.
    Empty,
    /// One of another registry, for Bob, which has the blob too.
    Bobs,
    /// One of a registry that says that it has everything, and has only the end of this blob.
    Liar,
    /// The client's own store. Bob's says that it has the blob, and has only its end.
    Store,
}

const PLACES: [Place; 6] =
    [Place::Public, Place::Private, Place::Empty, Place::Bobs, Place::Liar, Place::Store];

impl Place {
    fn origin(self) -> Origin {
        match self {
            Place::Public => origin("public"),
            Place::Private => origin("private"),
            Place::Empty => origin("empty"),
            Place::Bobs => Origin::registry("bob.example", "own"),
            Place::Liar => Origin::registry("evil.example", "loot"),
            Place::Store => Origin::SessionStore { store: "oci:a".into() },
        }
    }

    fn strangers(self) -> Vec<&'static str> {
        match self {
            Place::Private => vec!["bob", "carol"],
            Place::Bobs => vec!["alice", "carol"],
            _ => vec![],
        }
    }

    /// True if a client would get all the bytes there.
    fn gives(self, client: &str) -> bool {
        self != Place::Empty && !self.lies_to(client) && !self.strangers().contains(&client)
    }

    fn lies_to(self, client: &str) -> bool {
        self == Place::Liar || self == Place::Store && client == "bob"
    }

    /// As `client` finds it.
    fn fake(self, all: &Bytes, client: &str) -> Arc<Fake> {
        let gone = self == Place::Empty;
        let script = Script { strangers: self.strangers(), gone, ..Script::default() };
        let lie = [&bytes(9, SIZE / 2), &all[SIZE as usize / 2..]].concat().into();
        let bytes = if self.lies_to(client) { &lie } else { all };
        Fake::with(self.origin(), bytes, script)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client with one way to the blob wants it.
    Fetch(&'static str, Place),
    Stream(&'static str, Place),
    /// Two want it at once.
    Both((&'static str, Place), (&'static str, Place)),
    /// One leaves when half of it is here.
    Leave(&'static str, Place),
    /// Somebody says that it is there.
    Say(Place),
    /// The bytes go.
    Evict,
    /// A crash loses what was not durable.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = || prop::sample::select(&CLIENTS[..]);
    let place = || prop::sample::select(&PLACES[..]);
    let asker = || (client(), place());
    let step = prop_oneof![
        6 => asker().prop_map(|(c, p)| Step::Fetch(c, p)),
        2 => asker().prop_map(|(c, p)| Step::Stream(c, p)),
        3 => (asker(), asker()).prop_map(|(a, b)| Step::Both(a, b)),
        2 => asker().prop_map(|(c, p)| Step::Leave(c, p)),
        1 => place().prop_map(Step::Say),
        2 => Just(Step::Evict),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..16)
}

struct World {
    f: Fixture,
    all: Bytes,
    blob: Descriptor,
}

impl World {
    fn new() -> World {
        let all = bytes(1, SIZE);
        let f = Fixture::new();
        for place in PLACES {
            if let Origin::Registry { .. } = place.origin() {
                f.ways.add(&place.fake(&all, "anybody"));
            }
        }
        World { f, blob: layer(&all), all }
    }

    /// Places besides his own that a client is sent to.
    fn known(&self) -> Vec<Place> {
        let known = self.f.store.origins(&self.blob.digest).unwrap();
        let noted = self.f.store.inner.disk.given_blob(&self.blob.digest);
        let known: Vec<Origin> = known.into_iter().map(|known| known.origin).chain(noted).collect();
        let registries = PLACES.into_iter().filter(|p| matches!(p.origin(), Origin::Registry { .. }));
        registries.filter(|place| known.contains(&place.origin())).collect()
    }

    fn may(&self, client: &str, way: Place) -> bool {
        let known = self.known();
        [way].iter().chain(&known).any(|place| place.gives(client))
    }

    async fn fetch(&self, name: &str, way: Place) -> bool {
        let handlers = way.fake(&self.all, name).handlers(&self.blob);
        let got = self.f.store.read(&client(name), &self.blob, &handlers, SIZE).await;
        got.is_ok_and(|bytes| bytes == self.all)
    }

    async fn stream(&self, name: &str, way: Place) -> bool {
        let handlers = way.fake(&self.all, name).handlers(&self.blob);
        let Ok(stream) = self.f.store.stream(&client(name), &self.blob, &handlers).await else {
            return false;
        };
        let got: Vec<Result<Bytes, FetchError>> = futures::StreamExt::collect(stream).await;
        got.into_iter().collect::<Result<Vec<_>, _>>().is_ok_and(|chunks| chunks.concat() == self.all)
    }

    async fn leave(&self, name: &str, way: Place) {
        let fake = way.fake(&self.all, name);
        fake.script.lock().unwrap().stall_at = Some(SIZE / 2);
        let (ctx, handlers) = (client(name), fake.handlers(&self.blob));
        let mut fetch = Box::pin(self.f.store.fetch(&ctx, &self.blob, &handlers));
        // What is refused or here already ends by itself.
        while poll!(&mut fetch).is_pending() && fake.stalls.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn play(steps: Vec<Step>) {
    let mut world = World::new();
    for (at, step) in steps.iter().enumerate() {
        match *step {
            Step::Fetch(name, way) => {
                let may = world.may(name, way);
                assert_eq!(world.fetch(name, way).await, may, "step {at} of {steps:?}");
            }
            Step::Stream(name, way) => {
                let resident = world.f.store.is_resident(&world.blob);
                let may = world.may(name, way);
                let got = world.stream(name, way).await;
                // A broken pass-through is not begun anew, so it may end short of what the client may have.
                assert!(got == may || (!got && !resident), "step {at} of {steps:?}");
            }
            Step::Both((a, his), (b, hers)) => {
                let before = [world.may(a, his), world.may(b, hers)];
                let (one, two) = tokio::join!(world.fetch(a, his), world.fetch(b, hers));
                // What one proves may be a way for the other, who asks there with rights of his own.
                let after = [world.may(a, his), world.may(b, hers)];
                for (got, (before, after)) in [one, two].into_iter().zip(before.into_iter().zip(after)) {
                    assert!(got || !before, "step {at} of {steps:?}");
                    assert!(!got || after, "step {at} of {steps:?}");
                }
            }
            Step::Leave(name, way) => world.leave(name, way).await,
            Step::Say(place) => {
                world.f.store.register(&world.blob, &[place.origin()]).await.unwrap();
            }
            Step::Evict => {
                world.f.store.collect(std::time::Duration::ZERO).await.unwrap();
            }
            Step::Crash => {
                world.f.lose_row(&world.blob.digest).await;
                world.f = world.f.restart().await;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_client_gets_what_it_could_have_had_without_us_and_nothing_else(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(steps));
    }
}
