//! [`StepLog`]: what a process prints and uses, told under its vertex.

use std::sync::Mutex;
use std::sync::PoisonError;

use crate::executor::Clip;
use crate::executor::LogLimits;
use crate::executor::Output;
use crate::progress::LogStream;
use crate::progress::Sample;
use crate::progress::VertexProgress;

/// Passes output on to a vertex, bounded.
#[derive(Debug)]
pub struct StepLog {
    progress: Option<VertexProgress>,
    clip: Mutex<Clip>,
}

impl StepLog {
    pub fn new(progress: Option<VertexProgress>, limits: LogLimits) -> StepLog {
        StepLog { progress, clip: Mutex::new(Clip::new(limits)) }
    }

    /// Shows the end of what was left out: for a step that failed.
    pub fn flush(&self) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let tail = self.clip.lock().unwrap_or_else(PoisonError::into_inner).tail(stream);
            self.log(stream, tail);
        }
    }

    fn log(&self, stream: LogStream, data: Vec<u8>) {
        if let (Some(progress), false) = (&self.progress, data.is_empty()) {
            progress.log(stream, data.into());
        }
    }
}

impl Output for StepLog {
    fn write(&self, stream: LogStream, data: &[u8]) {
        let passed = self.clip.lock().unwrap_or_else(PoisonError::into_inner).write(stream, data);
        self.log(stream, passed);
    }

    fn used(&self, samples: Vec<Sample>) {
        if let Some(progress) = &self.progress {
            progress.used(samples);
        }
    }
}
