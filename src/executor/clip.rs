//! [`Clip`]: bounds what a step may print.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::progress::LogStream;

/// How much of a stream is passed on; `None` for no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLimits {
    /// In bytes.
    pub size: Option<u64>,
    /// In bytes a second since the step began; each second that began counts whole.
    pub speed: Option<u64>,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits { size: Some(2 << 20), speed: Some(200 << 10) }
    }
}

impl LogLimits {
    /// As `BUILDKIT_STEP_LOG_MAX_SIZE` and `_SPEED` set them: bytes, -1 for no limit.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> LogLimits {
        let set = |name: &str, default: Option<u64>| match variable(name).map(|v| v.parse::<i32>()) {
            Some(Ok(value)) => u64::try_from(value).ok(),
            _ => default,
        };
        let default = LogLimits::default();
        LogLimits {
            size: set("BUILDKIT_STEP_LOG_MAX_SIZE", default.size),
            speed: set("BUILDKIT_STEP_LOG_MAX_SPEED", default.speed),
        }
    }
}

/// What is kept of a clipped stream, to be shown if the step fails.
const TAIL: usize = 256 << 10;

/// Both streams of a step.
#[derive(Debug)]
pub struct Clip {
    limits: LogLimits,
    began: Instant,
    stdout: Stream,
    stderr: Stream,
}

#[derive(Default, Debug)]
struct Stream {
    written: u64,
    clipping: bool,
    /// `None` as long as nothing was left out.
    tail: Option<VecDeque<u8>>,
}

impl Clip {
    pub fn new(limits: LogLimits) -> Clip {
        let (stdout, stderr) = (Stream::default(), Stream::default());
        Clip { limits, began: Instant::now(), stdout, stderr }
    }

    /// What is to be passed on of `data`, a note of what is left out included. Empty for nothing.
    pub fn write(&mut self, stream: LogStream, data: &[u8]) -> Vec<u8> {
        let elapsed = self.began.elapsed();
        self.write_at(stream, data, elapsed)
    }

    fn write_at(&mut self, stream: LogStream, data: &[u8], elapsed: Duration) -> Vec<u8> {
        let limits = self.limits;
        let state = match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        };
        let seconds = elapsed.as_secs() + u64::from(elapsed.subsec_nanos() > 0 || elapsed.is_zero());
        let by_speed = limits.speed.map(|speed| speed.saturating_mul(seconds));
        let (most, reason) = match (by_speed, limits.size) {
            (Some(most), Some(size)) if most <= size => (Some(most), speed_text(limits)),
            (Some(most), None) => (Some(most), speed_text(limits)),
            (_, size) => (size, size.map(text).unwrap_or_default()),
        };
        let room = most.map_or(usize::MAX, |most| {
            usize::try_from(most.saturating_sub(state.written)).unwrap_or(usize::MAX)
        });
        state.written = state.written.saturating_add(data.len() as u64);
        let passed = data.len().min(room);
        if passed < data.len() && state.tail.is_none() {
            state.tail = Some(VecDeque::new());
        }
        if let Some(tail) = &mut state.tail {
            let kept = &data[data.len().saturating_sub(TAIL)..];
            let over = (tail.len() + kept.len()).saturating_sub(TAIL);
            tail.drain(..over);
            tail.extend(kept);
        }
        let mut out = data[..passed].to_vec();
        if passed == data.len() {
            state.clipping = false;
        } else if !state.clipping {
            state.clipping = true;
            out.extend_from_slice(format!("\n[output clipped, log limit {reason} reached]\n").as_bytes());
        }
        out
    }

    /// The end of a stream of which something was left out.
    pub fn tail(&mut self, stream: LogStream) -> Vec<u8> {
        let state = match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        };
        state.tail.take().map(Vec::from).unwrap_or_default()
    }
}

fn speed_text(limits: LogLimits) -> String {
    limits.speed.map(|speed| format!("{}/s", text(speed))).unwrap_or_default()
}

/// As clients show sizes: `2MiB`, `200KiB`.
fn text(bytes: u64) -> String {
    match bytes {
        0x10_0000.. => format!("{}MiB", short(bytes, 0x10_0000)),
        0x400.. => format!("{}KiB", short(bytes, 0x400)),
        _ => format!("{bytes}B"),
    }
}

fn short(bytes: u64, unit: u64) -> String {
    if bytes.is_multiple_of(unit) {
        (bytes / unit).to_string()
    } else {
        format!("{:.2}", bytes as f64 / unit as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn clip(size: u64, speed: u64) -> Clip {
        Clip::new(LogLimits { size: Some(size), speed: Some(speed) })
    }

    fn clipped(data: &[u8]) -> String {
        String::from_utf8_lossy(data).into_owned()
    }

    #[test]
    fn what_is_over_the_speed_is_left_out_once_noted_until_time_has_passed() {
        let mut clip = clip(1 << 20, 4);
        assert_eq!(clip.write_at(LogStream::Stdout, b"abc", Duration::ZERO), b"abc");
        let out = clip.write_at(LogStream::Stdout, b"defg", SECOND / 2);
        assert_eq!(clipped(&out), "d\n[output clipped, log limit 4B/s reached]\n");
        assert_eq!(clip.write_at(LogStream::Stdout, b"h", SECOND), b"");
        // What was left out counts as well.
        assert_eq!(clip.write_at(LogStream::Stdout, b"ijk", SECOND * 3), b"ijk");
        assert_eq!(clip.tail(LogStream::Stdout), b"defghijk");
    }

    #[test]
    fn the_size_ends_a_stream_and_not_the_other() {
        let mut clip = clip(2048, 1 << 30);
        let out = clip.write_at(LogStream::Stdout, &[b'x'; 3000], SECOND);
        assert_eq!(clipped(&out[2048..]), "\n[output clipped, log limit 2KiB reached]\n");
        assert!(clip.write_at(LogStream::Stdout, b"y", SECOND * 100).is_empty());
        assert_eq!(clip.write_at(LogStream::Stderr, b"z", SECOND), b"z");
        assert_eq!(clip.tail(LogStream::Stdout).len(), 3001);
        assert!(clip.tail(LogStream::Stderr).is_empty());
    }

    #[test]
    fn the_tail_is_the_last_of_it_and_bounded() {
        let mut clip = clip(0, 1);
        for byte in 0..=255u8 {
            clip.write_at(LogStream::Stdout, &[byte; 4096], SECOND);
        }
        let tail = clip.tail(LogStream::Stdout);
        assert_eq!(tail.len(), TAIL);
        assert_eq!((tail[0], tail[TAIL - 1]), (192, 255));
        clip.write_at(LogStream::Stderr, &vec![7; TAIL * 2], SECOND);
        assert_eq!(clip.tail(LogStream::Stderr).len(), TAIL);
    }

    #[test]
    fn limits_come_from_the_environment() {
        let limits = LogLimits::from_environment(|name| {
            Some(if name.ends_with("SIZE") { "-1" } else { "10" }.to_owned())
        });
        assert_eq!(limits, LogLimits { size: None, speed: Some(10) });
        assert_eq!(LogLimits::from_environment(|_| Some("x".into())), LogLimits::default());
    }

    #[test]
    fn sizes_are_written_as_clients_show_them() {
        assert_eq!(text(2 << 20), "2MiB");
        assert_eq!(text(200 << 10), "200KiB");
        assert_eq!(text(1536), "1.50KiB");
        assert_eq!(text(12), "12B");
    }
}
