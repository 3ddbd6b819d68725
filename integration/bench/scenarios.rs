//! What is measured.

mod files;
mod images;
mod records;
mod steps;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use std::time::Instant;

use crate::harness::Image;
use crate::harness::Layer;
use crate::harness::TestRegistry;
use crate::harness::layer::busybox;
use crate::peer::Kind;
use crate::table::Samples;
use crate::table::Table;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Scale {
    pub samples: usize,
    /// Bytes of the image of twelve layers.
    pub image: u64,
    /// What the numbers of files, steps and records are divided by.
    pub divisor: usize,
}

impl Scale {
    pub const FULL: Scale = Scale { samples: 5, image: 640 << 20, divisor: 1 };
    pub const QUICK: Scale = Scale { samples: 3, image: 96 << 20, divisor: 10 };
}

/// What every scenario has.
pub struct Bench {
    /// Ours first.
    pub kinds: Vec<Kind>,
    pub registry: TestRegistry,
    pub scale: Scale,
    pub table: Table,
}

type Scenario = for<'a> fn(&'a mut Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

pub const ALL: &[(&str, Scenario)] = &[
    ("start", |b| Box::pin(images::start(b))),
    ("relabel-same-repository", |b| Box::pin(images::relabel(b, false))),
    ("relabel-other-repository", |b| Box::pin(images::relabel(b, true))),
    ("other-registry", |b| Box::pin(images::other_registry(b))),
    ("archives", |b| Box::pin(images::archives(b))),
    ("graphs", |b| Box::pin(images::graphs(b))),
    ("cold-run", |b| Box::pin(steps::cold_run(b))),
    ("eight-at-once", |b| Box::pin(steps::eight_at_once(b))),
    ("small-file-same-repository", |b| Box::pin(steps::small_file(b, false))),
    ("small-file-other-repository", |b| Box::pin(steps::small_file(b, true))),
    ("copy-one-file", |b| Box::pin(steps::copy_one_file(b))),
    ("again", |b| Box::pin(steps::again(b))),
    ("push-result", |b| Box::pin(steps::push_result(b))),
    ("execs", |b| Box::pin(steps::execs(b))),
    ("cached-chain", |b| Box::pin(records::cached_chain(b))),
    ("cached-merge", |b| Box::pin(records::cached_merge(b))),
    ("records-2000", |b| Box::pin(records::records(b))),
    ("own-records-20000", |b| Box::pin(records::many_records(b))),
    ("own-long-chains", |b| Box::pin(records::long_chains(b))),
    ("own-unpack", |b| Box::pin(files::unpack(b))),
    ("own-cold-files", |b| Box::pin(files::cold_files(b))),
    ("own-compress", |b| Box::pin(files::compress(b))),
    ("own-local", |b| Box::pin(files::local(b))),
];

/// The longest that one sample may take; what takes longer is given up, and told as such.
const LIMIT: Duration = Duration::from_secs(100);

impl Bench {
    /// Measures `N` things of each daemon, `samples` times in turn. One that has taken too long is not
    /// measured again.
    async fn paired<const N: usize>(
        &self,
        samples: usize,
        mut measure: impl AsyncFnMut(&Kind, usize) -> [f64; N],
    ) -> [Vec<Samples>; N] {
        let mut all = [(); N].map(|()| vec![Samples::default(); self.kinds.len()]);
        for sample in 0..samples {
            for (index, kind) in self.kinds.iter().enumerate() {
                if all.iter().any(|measured| measured[index].is_given_up()) {
                    continue;
                }
                match tokio::time::timeout(LIMIT, measure(kind, sample)).await {
                    Ok(values) => {
                        all.iter_mut().zip(values).for_each(|(measured, value)| measured[index].push(value));
                    }
                    Err(_) => all[0][index].give_up(milliseconds(LIMIT)),
                }
            }
        }
        all
    }

    /// How many of something, at this scale.
    fn number(&self, full: usize) -> usize {
        (full / self.scale.divisor).max(1)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Milliseconds since `begin`.
fn since(begin: Instant) -> f64 {
    milliseconds(begin.elapsed())
}

const EIGHT: &str = "opt/eight";

/// Twelve layers: a busybox, ten of random bytes, and on top one with a file of eight bytes.
fn base(seed: u64, size: u64) -> Image {
    let middle = (0..10).map(|n| Layer::incompressible(seed << 16 | n, size / 10));
    let top = Layer::tree(&[("opt/", ""), (EIGHT, "8 bytes\n"), ("opt/other", "other\n")]);
    Image::of(std::iter::once(shell()).chain(middle).chain([top]))
}

/// A layer with a shell.
fn shell() -> Layer {
    busybox().expect("the benchmark needs Debian's busybox-static: run .ci/setup first")
}
