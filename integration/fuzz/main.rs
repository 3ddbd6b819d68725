//! Looks for inputs that thunk is not ready for, led by which code each of them reaches.
//!
//! One program with several [`Target`]s; the environment says which one runs. libFuzzer calls it with bytes that it
//! makes of those that reached something new before, and that a target makes at the start: its seeds. An input is
//! found guilty if thunk panics, overflows, takes more memory than a stream of limited size may cost, takes longer than
//! a minute, or if what the target states does not hold. The statements are at the top of each target's file.
//!
//! `.ci/fuzz` builds and runs all. An input that was found stays in `target/fuzz/found`; it becomes a test of the crate,
//! and can be run again alone:
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
mod index;
mod jail;
mod members;
mod memory;
mod random;
mod samples;
mod text;
mod tree;
mod unpack;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_mutator;
use libfuzzer_sys::fuzz_target;
use thunk::oci::Digest;

/// Something that takes bytes of strangers.
struct Target {
    name: &'static str,
    /// Panics if a statement does not hold.
    run: fn(&[u8]),
    /// Changes the first bytes of a buffer, as many as the number says, to at most the other number; says how many they
    /// are then.
    mutate: fn(&mut [u8], usize, usize, u32) -> usize,
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: [Target; 5] =
    [archive::TARGET, unpack::TARGET, compressed::TARGET, index::TARGET, text::TARGET];

static CHOSEN: OnceLock<&Target> = OnceLock::new();

fn chosen() -> &'static Target {
    CHOSEN.get_or_init(|| {
        let name = std::env::var("THUNK_FUZZ_TARGET").unwrap_or_default();
        let names = TARGETS.map(|target| target.name).join(", ");
        let target = TARGETS.iter().find(|target| target.name == name);
        target.unwrap_or_else(|| panic!("THUNK_FUZZ_TARGET is {name:?} and has to be one of {names}"))
    })
}

/// Writes the seeds of the target into a corpus, under their digests.
fn sow(target: &Target, corpus: &Path) {
    for seed in (target.seeds)() {
        fs::write(corpus.join(Digest::sha256(&seed).hex()), seed).expect("a seed is written");
    }
}

/// What does not know the form of its input.
fn mutate_bytes(data: &mut [u8], size: usize, max: usize, _seed: u32) -> usize {
    libfuzzer_sys::fuzzer_mutate(data, size, max)
}

fuzz_target!(
    init: {
        jail::let_prisoners_unwind();
        if let Some(corpus) = std::env::var_os("THUNK_FUZZ_SEEDS") {
            sow(chosen(), Path::new(&corpus));
        }
    },
    |data: &[u8]| memory::watched(|| (chosen().run)(data))
);

fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
    (chosen().mutate)(data, size, max.min(data.len()), seed)
});
