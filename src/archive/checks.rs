//! [`Checks`]: what verifies a part of a stream.
//!
//! SHA-256 takes a stream in blocks, and keeps eight words from one to the next. A stream that is hashed as a whole
//! passes through a state at every position; some of them are noted. Bytes that lead from one noted state to the next
//! are those of the stream: others that do so would be another stream with the same SHA-256. So the states cost no
//! hashing of their own, and prove as much as the digest of the whole.
//!
//! # Invariant
//!
//! The state of the stream's beginning is SHA-256's own. What is noted is a state of the stream whose digest held.

use std::fmt;
use std::io;
use std::io::Read;
use std::ops::Range;

use sha2::Digest as _;
use sha2::Sha256;
use sha2::block_api::compress256;
use sha2::digest::common::hazmat::SerializableState as _;

/// Bytes that SHA-256 takes at once.
const BLOCK: usize = 64;

/// Bytes between two states at first.
const APART: u64 = 4 << 10;

/// States at most. Beyond that, every other one goes.
const MOST: usize = 4096;

/// Bytes that are hashed at a time where a part is verified.
const BUFFER: usize = 32 << 10;

/// Eight words, each with its lowest byte first.
pub type CheckState = [u8; 32];

/// States of the SHA-256 of a stream, at equal distances and behind its last whole block.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Checks {
    apart: u64,
    states: Vec<CheckState>,
    end: u64,
    last: CheckState,
}

impl Checks {
    /// `states` are those behind each multiple of `apart`, and `last` is that at `end`; `None` if that can't be.
    pub fn new(apart: u64, states: Vec<CheckState>, end: u64, last: CheckState) -> Option<Checks> {
        let whole = |position: u64| position.is_multiple_of(BLOCK as u64);
        let fits = apart.checked_mul(states.len() as u64).is_some_and(|behind| behind <= end);
        (apart > 0 && whole(apart) && whole(end) && fits).then_some(Checks { apart, states, end, last })
    }

    pub fn apart(&self) -> u64 {
        self.apart
    }

    pub fn states(&self) -> &[CheckState] {
        &self.states
    }

    /// The last position that has a state, and that state.
    pub fn last(&self) -> (u64, &CheckState) {
        (self.end, &self.last)
    }

    /// The shortest part that can be verified and has all of `range`.
    pub fn around(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if self.apart == 0 || range.end > self.end {
            return None;
        }
        let most = self.states.len() as u64 * self.apart;
        let start = most.min(range.start / self.apart * self.apart);
        let end = range.end.checked_next_multiple_of(self.apart).filter(|end| *end <= most);
        Some(start..end.unwrap_or(self.end))
    }

    /// Reads a part, which `inner` gives, and fails unless it is that of the stream. `None` if there are no states
    /// at both ends: [`Checks::around`] gives parts that have.
    pub fn verify<R: Read>(&self, part: &Range<u64>, inner: R) -> Option<Verifier<R>> {
        let left = part.end.checked_sub(part.start)?;
        let (state, expected) = (words(&self.at(part.start)?), words(&self.at(part.end)?));
        Some(Verifier { inner, state, expected, block: [0; BLOCK], filled: 0, left })
    }

    fn at(&self, position: u64) -> Option<CheckState> {
        if position == 0 {
            return Some(state_of(&Sha256::new()));
        }
        if position == self.end {
            return Some(self.last);
        }
        if self.apart == 0 || !position.is_multiple_of(self.apart) {
            return None;
        }
        self.states.get(usize::try_from(position / self.apart - 1).ok()?).copied()
    }
}

/// Notes states while a stream is hashed.
#[derive(Debug)]
pub(super) struct Noted {
    apart: u64,
    states: Vec<CheckState>,
}

impl Default for Noted {
    fn default() -> Noted {
        Noted { apart: APART, states: Vec::new() }
    }
}

impl Noted {
    /// The position where a state is noted next.
    pub(super) fn next(&self) -> u64 {
        (self.states.len() as u64 + 1) * self.apart
    }

    pub(super) fn note(&mut self, hasher: &Sha256) {
        self.states.push(state_of(hasher));
        if self.states.len() > MOST {
            let mut n = 0_u64;
            self.states.retain(|_| {
                n += 1;
                n.is_multiple_of(2)
            });
            self.apart *= 2;
        }
    }

    /// Of a stream of `size` bytes, all of them hashed.
    pub(super) fn finish(self, hasher: &Sha256, size: u64) -> Checks {
        let Noted { apart, states } = self;
        Checks { apart, states, end: size / BLOCK as u64 * BLOCK as u64, last: state_of(hasher) }
    }
}

/// Behind the last whole block that was hashed.
fn state_of(hasher: &Sha256) -> CheckState {
    let mut state = CheckState::default();
    let length = state.len();
    state.copy_from_slice(&hasher.serialize()[..length]);
    state
}

fn words(state: &CheckState) -> [u32; 8] {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(state.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// Reads a part of a stream. The last bytes come only if all of them are right.
pub struct Verifier<R> {
    inner: R,
    state: [u32; 8],
    expected: [u32; 8],
    /// What is hashed once a block is full.
    block: [u8; BLOCK],
    filled: usize,
    left: u64,
}

impl<R> Verifier<R> {
    fn update(&mut self, mut bytes: &[u8]) {
        if self.filled > 0 {
            let count = bytes.len().min(BLOCK - self.filled);
            self.block[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
            if self.filled < BLOCK {
                return;
            }
            compress256(&mut self.state, std::slice::from_ref(&self.block));
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        compress256(&mut self.state, blocks);
        self.block[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }
}

impl<R: Read> Read for Verifier<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len()).min(BUFFER);
        if most == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a part of a stream is too short"));
        }
        self.update(&buffer[..count]);
        self.left -= count as u64;
        if self.left == 0 && self.state != self.expected {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a part of a stream is not what it was"));
        }
        Ok(count)
    }
}

impl<R> fmt::Debug for Verifier<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("left", &self.left).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::HashingReader;
    use super::*;

    fn checks_of(bytes: &[u8]) -> Checks {
        let mut reader = HashingReader::new(bytes);
        io::copy(&mut reader, &mut io::sink()).expect("it is read");
        let (_, hashed, checks) = reader.finish();
        assert_eq!(hashed.sha256.as_slice(), Sha256::digest(bytes).as_slice());
        checks
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
    }

    proptest! {
        #[test]
        fn a_part_is_verified_and_a_wrong_one_refused(
            length in 0_usize..200_000,
            ends in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            wrong in any::<prop::sample::Index>(),
        ) {
            let bytes = bytes(length);
            let checks = checks_of(&bytes);
            let (one, other) = (ends.0.index(length + 1) as u64, ends.1.index(length + 1) as u64);
            let range = one.min(other)..one.max(other);
            let Some(part) = checks.around(&range) else {
                prop_assert!(range.end > checks.last().0);
                return Ok(());
            };
            prop_assert!(part.start <= range.start && range.end <= part.end && part.end <= length as u64);
            prop_assert!(part.end - part.start <= range.end - range.start + 2 * checks.apart());
            let mut there = bytes[part.start as usize..part.end as usize].to_vec();
            let read = |given: &[u8]| {
                let mut read = Vec::new();
                checks.verify(&part, given).expect("it has states").read_to_end(&mut read).map(|_| read)
            };
            prop_assert_eq!(&read(&there).expect("they are right"), &there);
            if !there.is_empty() {
                let at = wrong.index(there.len());
                there[at] ^= 1;
                prop_assert_eq!(read(&there).expect_err("one is wrong").kind(), io::ErrorKind::InvalidData);
                there.pop();
                prop_assert_eq!(read(&there).expect_err("one is missing").kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }

    #[test]
    fn there_are_few_states_of_a_long_stream() {
        let bytes = bytes(40 << 20);
        let checks = checks_of(&bytes);
        assert_eq!(checks.apart(), 16 << 10);
        assert_eq!(checks.states().len(), (40 << 20) / (16 << 10));
        let part = checks.around(&(20_000_000..20_000_008)).expect("it is within");
        let given = &bytes[part.start as usize..part.end as usize];
        let mut read = Vec::new();
        checks.verify(&part, given).expect("it has states").read_to_end(&mut read).expect("they are right");
        assert_eq!(part.end - part.start, 16 << 10);
    }

    #[test]
    fn nonsense_is_no_states() {
        let state = CheckState::default();
        assert!(Checks::new(64, vec![state], 128, state).is_some());
        for (apart, count, end) in
            [(0, 0, 0), (63, 1, 128), (64, 3, 128), (64, 1, 127), (u64::MAX / 64 * 64, 2, 64)]
        {
            assert_eq!(Checks::new(apart, vec![state; count], end, state), None, "{apart} {count} {end}");
        }
        assert_eq!(Checks::default().around(&(0..0)), None);
    }

    /// They come from a file, where they may be fewer than a stream of their length has, and further apart.
    #[test]
    fn a_part_has_states_at_its_ends_however_few_there_are() {
        let state = CheckState::default();
        let far = 1 << 63;
        for (apart, count, end, range, part) in [
            (4096, 0, 64_000, 5000..6000, 0..64_000),
            (4096, 1, 64_000, 9000..10_000, 4096..64_000),
            (far, 0, far + 64, far + 1..far + 2, 0..far + 64),
            (far, 1, far + 64, far + 1..far + 2, far..far + 64),
        ] {
            let checks = Checks::new(apart, vec![state; count], end, state).expect("that can be");
            assert_eq!(checks.around(&range), Some(part.clone()));
            assert!(checks.verify(&part, io::empty()).is_some());
        }
    }
}
