//! Numbers that follow from a seed, and changes that follow from them.

use libfuzzer_sys::fuzzer_mutate;

/// Bytes that counters, lengths and signs turn at.
const TURNS: [u8; 8] = [0, 1, 9, 0x20, 0x7f, 0x80, 0xfe, 0xff];

/// SplitMix64.
pub(crate) struct Random {
    state: u64,
    /// True if libFuzzer may not be asked for anything: it knows what was reached, which the seed does not say.
    alone: bool,
}

impl Random {
    pub(crate) fn new(seed: u32) -> Random {
        Random { state: seed.into(), alone: false }
    }

    /// All that is changed with it follows from the seed.
    pub(crate) fn alone(seed: u32) -> Random {
        Random { alone: true, ..Random::new(seed) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, which is not zero.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn pick_mut<'a, T>(&mut self, from: &'a mut [T]) -> &'a mut T {
        let at = self.below(from.len());
        &mut from[at]
    }

    /// Changes the first `size` bytes of a buffer, to at most `max`, whatever they are. Returns how many they are then.
    pub(crate) fn change(&mut self, data: &mut [u8], size: usize, max: usize) -> usize {
        if !self.alone {
            return fuzzer_mutate(data, size, max);
        }
        let mut bytes = data[..size].to_vec();
        let at = self.below(size + 1);
        let end = at + self.below((size - at).min(16) + 1);
        match self.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let copy = bytes[at..end].to_vec();
                let to = self.below(size + 1);
                bytes.splice(to..to, copy);
            }
            2 => bytes.insert(at, *self.pick(&TURNS)),
            _ if at == size => bytes.push(self.next() as u8),
            3 => bytes[at] ^= 1 << self.below(8),
            4 => bytes[at] = *self.pick(&TURNS),
            _ => bytes[at] = self.next() as u8,
        }
        bytes.truncate(max);
        data[..bytes.len()].copy_from_slice(&bytes);
        bytes.len()
    }
}
