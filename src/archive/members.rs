//! [`Members`]: where a compressed stream can be entered.

/// Bytes of the plain stream between two places at least.
const APART: u64 = 4 << 10;

/// Places at most. Beyond that, every other one goes.
const MOST: usize = 4096;

/// A gzip member or a zstd frame begins here: a decompressor needs nothing of what is before.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Member {
    /// Bytes of the compressed stream before it.
    pub compressed: u64,
    /// Bytes of the plain stream before it.
    pub plain: u64,
}

/// Places in ascending order. Not every member is among them: the parts between two are several kilobytes long, and
/// there are a few thousand at most, whatever the stream is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Members(Vec<Member>);

impl Members {
    /// `None` unless both positions of each are behind those of the one before.
    pub fn new(members: Vec<Member>) -> Option<Members> {
        let ascends =
            |pair: &[Member]| pair[0].compressed < pair[1].compressed && pair[0].plain < pair[1].plain;
        (members.len() <= MOST && members.windows(2).all(ascends)).then_some(Members(members))
    }

    pub fn as_slice(&self) -> &[Member] {
        &self.0
    }

    /// The last place at or before a position in the plain stream.
    pub fn before(&self, plain: u64) -> Option<Member> {
        let after = self.0.partition_point(|member| member.plain <= plain);
        after.checked_sub(1).map(|at| self.0[at])
    }

    /// The first place at or behind a position in the plain stream.
    pub fn behind(&self, plain: u64) -> Option<Member> {
        self.0.get(self.0.partition_point(|member| member.plain < plain)).copied()
    }
}

/// Gathers places while a stream is read.
#[derive(Debug)]
pub(super) struct Gathered {
    members: Members,
    apart: u64,
}

impl Default for Gathered {
    fn default() -> Gathered {
        Gathered { members: Members::default(), apart: APART }
    }
}

impl Gathered {
    pub(super) fn note(&mut self, member: Member) {
        let members = &mut self.members.0;
        if members.last().is_some_and(|last| member.plain < last.plain + self.apart) {
            return;
        }
        members.push(member);
        if members.len() > MOST {
            self.apart *= 2;
            let mut kept: Option<u64> = None;
            members.retain(|member| {
                let keep = kept.is_none_or(|last| member.plain >= last + self.apart);
                if keep {
                    kept = Some(member.plain);
                }
                keep
            });
        }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_apart_and_bounded_in_number() {
        let mut gathered = Gathered::default();
        for n in 0..100_000 {
            gathered.note(Member { compressed: n * 100, plain: n * 1000 });
        }
        let members = gathered.members().as_slice();
        assert_eq!(members[0], Member::default());
        assert!(members.len() <= MOST && members.len() > MOST / 4, "{}", members.len());
        assert!(members.windows(2).all(|pair| pair[1].plain - pair[0].plain >= APART));
        assert!(members.last().unwrap().plain > 99_000 * 1000);
        assert_eq!(Members::new(members.to_vec()).as_ref(), Some(gathered.members()));
    }

    #[test]
    fn a_position_is_between_two_places() {
        let member = |n: u64| Member { compressed: n * 10, plain: n * 5000 };
        let members = Members::new((0..4).map(member).collect()).unwrap();
        for (plain, before, behind) in [
            (0, 0, Some(0)),
            (1, 0, Some(1)),
            (4999, 0, Some(1)),
            (5000, 1, Some(1)),
            (5001, 1, Some(2)),
            (15_001, 3, None),
        ] {
            assert_eq!(members.before(plain), Some(member(before)), "{plain}");
            assert_eq!(members.behind(plain), behind.map(member), "{plain}");
        }
        assert_eq!(Members::new(vec![member(1), member(1)]), None);
        assert_eq!(Members::default().before(7), None);
    }
}
