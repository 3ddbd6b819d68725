//! Protobuf messages as trees of fields, whatever their types: what is changed stays a message.

use crate::random::Random;

/// Bytes of a message, as its fields.
pub(crate) type Message = Vec<Field>;

#[derive(Clone)]
pub(crate) struct Field {
    number: u64,
    value: Value,
}

impl Field {
    /// The bytes of a field of this number.
    pub(crate) fn bytes(&self, number: u64) -> Option<&[u8]> {
        match &self.value {
            Value::Bytes(bytes) if self.number == number => Some(bytes),
            _ => None,
        }
    }
}

#[derive(Clone)]
enum Value {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    /// What could be one: the bytes don't say.
    Message(Message),
}

/// Messages within messages at most.
const DEPTH: usize = 8;
/// Numbers of fields that are made up.
const NUMBERS: usize = 25;
/// Copies of one field at most.
const COPIES: usize = 300;

/// Numbers that indices, modes and sizes turn at.
const TURNS: [u64; 18] = [
    0,
    1,
    2,
    3,
    4,
    0o777,
    0o7777,
    0o10000,
    i32::MAX as u64,
    u32::MAX as u64,
    u32::MAX as u64 + 1,
    i64::MAX as u64,
    i64::MIN as u64,
    i32::MIN as i64 as u64,
    -1_i64 as u64,
    -2_i64 as u64,
    -1_000_000_000_i64 as u64,
    1_600_000_000_000_000_000,
];

/// The fields of a message; nothing if the bytes are none.
pub(crate) fn parse(bytes: &[u8]) -> Option<Message> {
    parse_within(bytes, DEPTH)
}

/// The same with the bytes that the fields have, whatever these are.
pub(crate) fn parse_outermost(bytes: &[u8]) -> Option<Message> {
    parse_within(bytes, 0)
}

fn parse_within(mut rest: &[u8], depth: usize) -> Option<Message> {
    let mut fields = Message::new();
    while !rest.is_empty() {
        let tag = take_number(&mut rest)?;
        let value = match tag & 7 {
            0 => Value::Number(take_number(&mut rest)?),
            1 => Value::Fixed(take(&mut rest, 8)?.to_vec()),
            2 => {
                let length = usize::try_from(take_number(&mut rest)?).ok()?;
                let bytes = take(&mut rest, length)?;
                let within = depth.checked_sub(1).and_then(|depth| parse_within(bytes, depth));
                match within.filter(|fields| !fields.is_empty()) {
                    Some(fields) => Value::Message(fields),
                    None => Value::Bytes(bytes.to_vec()),
                }
            }
            5 => Value::Fixed(take(&mut rest, 4)?.to_vec()),
            _ => return None,
        };
        if tag >> 3 == 0 {
            return None;
        }
        fields.push(Field { number: tag >> 3, value });
    }
    Some(fields)
}

fn take<'b>(rest: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for at in 0..10 {
        let byte = take(rest, 1)?[0];
        if at == 9 && byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

pub(crate) fn encode(message: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for Field { number, value } in message {
        match value {
            Value::Number(value) => {
                put_number(&mut out, number << 3);
                put_number(&mut out, *value);
            }
            Value::Fixed(bytes) => {
                put_number(&mut out, number << 3 | if bytes.len() == 8 { 1 } else { 5 });
                out.extend_from_slice(bytes);
            }
            Value::Bytes(bytes) => put_bytes(&mut out, *number, bytes),
            Value::Message(fields) => put_bytes(&mut out, *number, &encode(fields)),
        }
    }
    out
}

/// Writes a field of bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_number(out, number << 3 | 2);
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Changes a field, wherever it is, or the fields of one message. Texts come from `texts` or are those that are there;
/// whole fields come from `other`.
pub(crate) fn change(message: &mut Message, other: &[Field], texts: &[&str], random: &mut Random) {
    if !message.is_empty() {
        let at = random.below(message.len());
        if let Value::Message(fields) = &mut message[at].value
            && !random.one_in(5)
        {
            return change(fields, other, texts, random);
        }
    }
    let at = random.below(message.len() + 1);
    match random.below(12) {
        0 => message.insert(at, made_up(texts, random)),
        1 if !other.is_empty() => message.insert(at, somewhere(other, random)),
        _ if at == message.len() => message.push(made_up(texts, random)),
        2 => drop(message.remove(at)),
        3 => message.insert(at, message[at].clone()),
        4 => {
            let to = random.below(message.len());
            message.swap(at, to);
        }
        5 if random.one_in(8) => {
            let copies = random.below(COPIES);
            message.splice(at..at, vec![message[at].clone(); copies]);
        }
        5 => message[at].number = 1 + random.below(NUMBERS) as u64,
        _ => message[at].value.change(texts, random),
    }
}

fn made_up(texts: &[&str], random: &mut Random) -> Field {
    let value = match random.below(3) {
        0 => Value::Number(*random.pick(&TURNS)),
        1 => Value::Bytes(Vec::new()),
        _ => Value::Bytes(random.pick(texts).as_bytes().to_vec()),
    };
    Field { number: 1 + random.below(NUMBERS) as u64, value }
}

/// A field of a message, or of one within it.
fn somewhere(message: &[Field], random: &mut Random) -> Field {
    let field = random.pick(message);
    match &field.value {
        Value::Message(fields) if random.one_in(2) => somewhere(fields, random),
        _ => field.clone(),
    }
}

impl Value {
    fn change(&mut self, texts: &[&str], random: &mut Random) {
        match self {
            Value::Number(number) => {
                *number = match random.below(4) {
                    0 => number.wrapping_add(1),
                    1 => number.wrapping_sub(1),
                    _ => *random.pick(&TURNS),
                }
            }
            Value::Bytes(text) if random.one_in(3) => *text = random.pick(texts).as_bytes().to_vec(),
            Value::Fixed(bytes) => *random.pick_mut(bytes) ^= 1 << random.below(8),
            Value::Bytes(text) => *text = changed(text, random),
            Value::Message(fields) => *self = Value::Bytes(changed(&encode(fields), random)),
        }
    }
}

fn changed(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let used = bytes.len();
    bytes.resize(used + 1 + random.below(64), 0);
    let room = bytes.len();
    let used = random.change(&mut bytes, used, room);
    bytes.truncate(used);
    bytes
}
