//! Looks for inputs that thunk is not ready for, led by which code each of them reaches.
//!
//! One program with several [`Target`]s; the environment says which one runs. libFuzzer calls it with bytes that it
//! makes of those that reached something new before, and that a target makes at the start: its seeds. An input is
//! found guilty if thunk panics, overflows, takes more memory than a stream of limited size may cost, takes longer than
//! a minute, or if what the target states does not hold. The statements are at the top of each target's file.
//!
//! `.ci/fuzz` builds and runs all: with the seeds and a number of variants, which are the same each time, so that the gate
//! says of a change what it says today; or for as long as it is told to, which is the search. An input that was found
//! stays in `target/fuzz/found`; it becomes a test of the crate, and can be run again alone:
//!
//! ```sh
//! THUNK_FUZZ_TARGET=archive target/fuzz/debug/thunk-fuzz target/fuzz/found/archive-crash-…
//! ```
//!
//! # Invariants
//!
//! A target is a function of its input: no time, no address, no host decides what it does. What it unpacks is in a
//! [jail](jail), so that a finding does not write to the machine that found it.

#![no_main]

mod archive;
mod compressed;
mod definitions;
mod index;
mod jail;
mod llb;
mod members;
mod memory;
mod ops;
mod promises;
mod random;
mod samples;
mod text;
mod tree;
mod unpack;
mod wire;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_mutator;
use libfuzzer_sys::fuzz_target;
use thunk::oci::Digest;

use crate::random::Random;

/// What `.ci/fuzz` says to libFuzzer, too.
const MOST_BYTES: usize = 32768;

/// Something that takes bytes of strangers.
struct Target {
    name: &'static str,
    /// Panics if a statement does not hold.
    run: fn(&[u8]),
    /// Changes the first bytes of a buffer, as many as the number says, to at most the other number; says how many they
    /// are then.
    mutate: fn(&mut [u8], usize, usize, &mut Random) -> usize,
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: [Target; 6] =
    [archive::TARGET, unpack::TARGET, compressed::TARGET, index::TARGET, text::TARGET, llb::TARGET];

static CHOSEN: OnceLock<&Target> = OnceLock::new();

fn chosen() -> &'static Target {
    CHOSEN.get_or_init(|| {
        let name = std::env::var("THUNK_FUZZ_TARGET").unwrap_or_default();
        let names = TARGETS.map(|target| target.name).join(", ");
        let target = TARGETS.iter().find(|target| target.name == name);
        target.unwrap_or_else(|| panic!("THUNK_FUZZ_TARGET is {name:?} and has to be one of {names}"))
    })
}

/// Writes the seeds of the target into a corpus, under their digests, and as many variants of them as are wanted: the
/// same each time.
fn sow(target: &Target, corpus: &Path, variants: u32) {
    let seeds = (target.seeds)();
    let write = |input: &[u8]| {
        fs::write(corpus.join(Digest::sha256(input).hex()), input).expect("an input is written");
    };
    seeds.iter().for_each(|seed| write(seed));
    let mut data = vec![0; MOST_BYTES];
    for variant in 0..variants {
        let mut random = Random::alone(variant);
        let seed = random.pick(&seeds);
        let mut size = seed.len().min(MOST_BYTES);
        data[..size].copy_from_slice(&seed[..size]);
        for _ in 0..=random.below(6) {
            size = (target.mutate)(&mut data, size, MOST_BYTES, &mut random);
        }
        write(&data[..size]);
    }
}

/// What does not know the form of its input.
fn mutate_bytes(data: &mut [u8], size: usize, max: usize, random: &mut Random) -> usize {
    random.change(data, size, max)
}

fuzz_target!(
    init: {
        jail::let_prisoners_unwind();
        if let Some(corpus) = std::env::var_os("THUNK_FUZZ_SEEDS") {
            let variants = std::env::var("THUNK_FUZZ_VARIANTS").unwrap_or_else(|_| "0".to_owned());
            sow(chosen(), Path::new(&corpus), variants.parse().expect("THUNK_FUZZ_VARIANTS is a number"));
        }
    },
    |data: &[u8]| memory::watched(|| (chosen().run)(data))
);

fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
    (chosen().mutate)(data, size, max.min(data.len()), &mut Random::new(seed))
});
