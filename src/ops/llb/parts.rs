//! Counts the parts of an op before any of them is made: two bytes are one, which takes a hundred times as much when it
//! is decoded.

use prost::encoding::DecodeContext;
use prost::encoding::WireType;
use prost::encoding::decode_key;
use prost::encoding::decode_varint;
use prost::encoding::skip_field;

use super::Limits;
use super::LlbError;
use super::at_most;

/// The inputs of an op.
const INPUTS: u32 = 1;

/// What else an op has any number of: the field of its kind, and the field within that.
const PARTS: [(u32, u32, &str); 3] =
    [(2, 2, "mounts of one op"), (4, 2, "actions of one op"), (6, 1, "merged inputs of one op")];

/// Fails if the encoded op has more of something than is allowed. What comes behind bytes that are not valid is not
/// counted, as it is not decoded either.
pub(super) fn check(op: &[u8], limits: &Limits) -> Result<(), LlbError> {
    let (mut inputs, mut counts) = (0, [0; PARTS.len()]);
    for (number, value) in Fields(op) {
        inputs += usize::from(number == INPUTS);
        for ((kind, part, _), count) in PARTS.iter().zip(&mut counts) {
            if number == *kind {
                *count += Fields(value).filter(|(number, _)| number == part).count();
            }
        }
    }
    at_most("inputs of one op", inputs, limits.inputs)?;
    let limits = [limits.mounts, limits.inputs, limits.inputs];
    PARTS
        .iter()
        .zip(counts)
        .zip(limits)
        .try_for_each(|(((_, _, what), count), limit)| at_most(what, count, limit))
}

/// The fields of a message that have a length, up to what is not valid.
struct Fields<'m>(&'m [u8]);

impl<'m> Iterator for Fields<'m> {
    type Item = (u32, &'m [u8]);

    fn next(&mut self) -> Option<(u32, &'m [u8])> {
        while !self.0.is_empty() {
            let (number, kind) = decode_key(&mut self.0).ok()?;
            if kind != WireType::LengthDelimited {
                skip_field(kind, number, &mut self.0, DecodeContext::default()).ok()?;
                continue;
            }
            let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
            let (value, rest) = self.0.split_at_checked(length)?;
            self.0 = rest;
            return Some((number, value));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::pb;
    use super::*;

    fn refused(op: &[u8], limit: usize) -> Option<&'static str> {
        match check(op, &Limits { inputs: limit, mounts: limit, ..Limits::default() }) {
            Ok(()) => None,
            Err(LlbError::TooLarge { what, .. }) => Some(what),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn parts_of_each_kind_are_counted() {
        let exec = pb::ExecOp { mounts: vec![Default::default(); 3], ..Default::default() };
        let file = pb::FileOp { actions: vec![Default::default(); 3] };
        let merge = pb::MergeOp { inputs: vec![Default::default(); 3] };
        let ops = [
            (pb::op::Op::Exec(exec), "mounts of one op"),
            (pb::op::Op::File(file), "actions of one op"),
            (pb::op::Op::Merge(merge), "merged inputs of one op"),
        ];
        for (op, what) in ops {
            let op = pb::Op { op: Some(op), platform: Some(Default::default()), ..Default::default() };
            let bytes = op.encode_to_vec();
            assert_eq!((refused(&bytes, 3), refused(&bytes, 2)), (None, Some(what)));
            // An op in two pieces is one.
            assert_eq!(refused(&[&bytes[..], &bytes].concat(), 5), Some(what));
        }
    }

    #[test]
    fn the_bytes_of_a_file_are_none() {
        let data = vec![0x12, 0, 0x12, 0, 0x12, 0].into();
        let action = pb::file_action::Action::Mkfile(pb::FileActionMkFile { data, ..Default::default() });
        let file =
            pb::FileOp { actions: vec![pb::FileAction { action: Some(action), ..Default::default() }] };
        let op = pb::Op { op: Some(pb::op::Op::File(file)), ..Default::default() };
        assert_eq!(refused(&op.encode_to_vec(), 1), None);
    }

    /// A decoder leaves out groups, which are of older times, and goes on behind them.
    #[test]
    fn a_group_hides_nothing() {
        let bytes = [0x7b, 0x7c, 0x12, 4, 0x12, 0, 0x12, 0];
        let Some(pb::op::Op::Exec(exec)) = pb::Op::decode(&bytes[..]).unwrap().op else { panic!() };
        assert_eq!((exec.mounts.len(), refused(&bytes, 1)), (2, Some("mounts of one op")));
    }

    /// The decoder has made what comes before.
    #[test]
    fn what_comes_before_bytes_that_are_not_valid_is_counted() {
        let bytes = [0x0a, 0, 0x0a, 0, 0x0a, 9];
        assert_eq!(
            (pb::Op::decode(&bytes[..]).is_err(), refused(&bytes, 1)),
            (true, Some("inputs of one op"))
        );
    }
}
