//! Plain bytes out of a compressed stream.
//!
//! A layer may be several gzip members or zstd frames one after the other, and may end in zeros that
//! some writer padded it with: all of it is read, up to the end of the source, so that who hashes the
//! source has seen all of it too. Anything else behind the last member is an error.

use std::fmt;
use std::io;
use std::io::BufRead;
use std::io::Read;

use flate2::bufread::GzDecoder;
use zstd::stream::raw::InBuffer;
use zstd::stream::raw::Operation as _;
use zstd::stream::raw::OutBuffer;

use super::ArchiveError;
use super::Compression;
use super::members::Gathered;
use super::members::Member;
use super::members::Members;

/// Bytes that are read from the source at once.
const BUFFER: usize = 128 << 10;

/// Decompresses what it reads, found out by its magic number. zstd windows of up to 128 MiB are taken.
pub struct Decoder<R> {
    /// `None` only while a step runs.
    state: Option<State<R>>,
    compression: Option<Compression>,
    /// Bytes that were given.
    given: u64,
    gathered: Gathered,
}

enum State<R> {
    /// Before the first byte, or between two members.
    Between(Input<R>),
    Plain(Input<R>),
    Gzip(Box<GzDecoder<Input<R>>>),
    Zstd(Input<R>, Box<zstd::stream::raw::Decoder<'static>>),
    Ended(Input<R>),
}

impl<R: Read> Decoder<R> {
    pub fn new(inner: R) -> Decoder<R> {
        Decoder::in_state(State::Between(Input::new(inner)), None)
    }

    /// Passes bytes on as they are, whatever they begin with.
    pub fn uncompressed(inner: R) -> Decoder<R> {
        Decoder::in_state(State::Plain(Input::new(inner)), Some(Compression::Uncompressed))
    }

    fn in_state(state: State<R>, compression: Option<Compression>) -> Decoder<R> {
        Decoder { state: Some(state), compression, given: 0, gathered: Gathered::default() }
    }

    /// Where a member begins, as far as the stream was read. Nothing of one that is not compressed.
    pub fn members(&self) -> &Members {
        self.gathered.members()
    }

    /// What the stream is compressed with. Reads its first bytes.
    pub fn compression(&mut self) -> Result<Compression, ArchiveError> {
        if let Some(compression) = self.compression {
            return Ok(compression);
        }
        let Some(State::Between(input)) = &mut self.state else { unreachable!("nothing was read") };
        let compression = Compression::detect(input.peek(Compression::MAGIC_BYTES)?);
        self.compression = Some(compression);
        Ok(compression)
    }

    /// The source, however far it was read.
    pub fn into_inner(self) -> R {
        match self.state.expect("no step is running") {
            State::Between(input) | State::Plain(input) | State::Zstd(input, _) | State::Ended(input) => {
                input.inner
            }
            State::Gzip(gzip) => gzip.into_inner().inner,
        }
    }

    /// What follows when nothing is half read: a member, zeros up to the end, or the end.
    fn begin(&mut self, mut input: Input<R>) -> Result<State<R>, ArchiveError> {
        let Some(compression) = self.compression else {
            self.state = Some(State::Between(input));
            self.compression()?;
            return Ok(self.state.take().expect("it was put there"));
        };
        if compression == Compression::Uncompressed {
            return Ok(State::Plain(input));
        }
        let start = input.peek(Compression::MAGIC_BYTES)?;
        if start.is_empty() {
            return Ok(State::Ended(input));
        }
        if Compression::detect(start) == compression {
            self.gathered.note(Member { compressed: input.taken, plain: self.given });
            return Ok(match compression {
                Compression::Zstd => {
                    let decoder = zstd::stream::raw::Decoder::new().map_err(|e| corrupt(compression, e))?;
                    State::Zstd(input, Box::new(decoder))
                }
                _ => State::Gzip(Box::new(GzDecoder::new(input))),
            });
        }
        loop {
            let padding = input.peek(1)?;
            if padding.is_empty() {
                return Ok(State::Ended(input));
            }
            if padding.iter().any(|&b| b != 0) {
                return Err(corrupt(compression, "something else follows it"));
            }
            let count = padding.len();
            input.consume(count);
        }
    }

    /// Takes a step: some bytes, or another state and no bytes.
    fn step(&mut self, state: State<R>, buffer: &mut [u8]) -> Result<(State<R>, usize), ArchiveError> {
        match state {
            State::Between(input) => Ok((self.begin(input)?, 0)),
            State::Ended(input) => Ok((State::Ended(input), 0)),
            State::Plain(mut input) => {
                let count = input.read(buffer).map_err(|e| input.error(Compression::Uncompressed, e))?;
                Ok(if count == 0 { (State::Ended(input), 0) } else { (State::Plain(input), count) })
            }
            State::Gzip(mut gzip) => match gzip.read(buffer) {
                Ok(0) => Ok((State::Between(gzip.into_inner()), 0)),
                Ok(count) => Ok((State::Gzip(gzip), count)),
                Err(error) => Err(gzip.get_mut().error(Compression::Gzip, error)),
            },
            State::Zstd(mut input, mut decoder) => {
                let available = match input.fill_buf() {
                    Ok(available) => available,
                    Err(error) => return Err(input.error(Compression::Zstd, error)),
                };
                let at_end = available.is_empty();
                let (mut from, mut to) = (InBuffer::around(available), OutBuffer::around(buffer));
                let hint = decoder.run(&mut from, &mut to).map_err(|e| corrupt(Compression::Zstd, e))?;
                let (taken, given) = (from.pos(), to.pos());
                input.consume(taken);
                if hint == 0 {
                    return Ok((State::Between(input), given));
                }
                if at_end && given == 0 {
                    return Err(corrupt(Compression::Zstd, "it ends too early"));
                }
                Ok((State::Zstd(input, decoder), given))
            }
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let state = self.state.take().ok_or_else(|| io::Error::other("the stream failed before"))?;
            let (state, count) = self.step(state, buffer)?;
            let ended = matches!(state, State::Ended(_));
            self.state = Some(state);
            self.given += count as u64;
            if count > 0 || ended {
                return Ok(count);
            }
        }
    }
}

fn corrupt(compression: Compression, reason: impl ToString) -> ArchiveError {
    ArchiveError::Compressed { compression, reason: reason.to_string() }
}

/// The source, buffered. It keeps its errors, so that they are told from those of a decompressor.
struct Input<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes that were consumed.
    taken: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Input<R> {
    fn new(inner: R) -> Input<R> {
        Input { inner, buffer: vec![0; BUFFER].into(), start: 0, end: 0, taken: 0, failed: None }
    }

    /// What is there, after an attempt to have at least `want` bytes.
    fn peek(&mut self, want: usize) -> io::Result<&[u8]> {
        if self.start + want > self.buffer.len() || self.start == self.end {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < want {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// What an error from above means: the source's, if it failed.
    fn error(&mut self, compression: Compression, error: io::Error) -> ArchiveError {
        match self.failed.take() {
            Some(cause) => cause.into(),
            None if error.kind() == io::ErrorKind::UnexpectedEof => corrupt(compression, "it ends too early"),
            None => corrupt(compression, error),
        }
    }
}

impl<R: Read> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end
            && let Err(error) = self.peek(1)
        {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.taken += count as u64;
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("compression", &self.compression).finish_non_exhaustive()
    }
}
