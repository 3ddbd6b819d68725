//! [`StepTotals`]: what all processes of this daemon used together.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::progress::Sample;

/// Since the daemon has started; what the kernel did not tell is left out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StepTotals {
    /// Processes that have ended, well or not.
    pub steps: u64,
    pub cpu_nanos: u64,
    /// Of the one that had the most at a time, in bytes.
    pub peak_memory: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// Processes that the kernel killed since memory ran out.
    pub oom_kills: u64,
}

/// The same while it is counted. Each number by itself is right at any time.
#[derive(Default, Debug)]
pub struct Totals {
    steps: AtomicU64,
    cpu_nanos: AtomicU64,
    peak_memory: AtomicU64,
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    oom_kills: AtomicU64,
}

impl Totals {
    /// `last` is the last sample of a process.
    pub fn add(&self, last: Option<&Sample>) {
        let add = |to: &AtomicU64, count: Option<u64>| to.fetch_add(count.unwrap_or(0), Ordering::Relaxed);
        add(&self.steps, Some(1));
        let Some(last) = last else { return };
        add(&self.cpu_nanos, last.cpu.usage_nanos);
        add(&self.read_bytes, last.io.read_bytes);
        add(&self.write_bytes, last.io.write_bytes);
        add(&self.oom_kills, last.memory.oom_kills);
        let peak = last.memory.peak.max(last.memory.current);
        self.peak_memory.fetch_max(peak.unwrap_or(0), Ordering::Relaxed);
    }

    pub fn get(&self) -> StepTotals {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        StepTotals {
            steps: get(&self.steps),
            cpu_nanos: get(&self.cpu_nanos),
            peak_memory: get(&self.peak_memory),
            read_bytes: get(&self.read_bytes),
            write_bytes: get(&self.write_bytes),
            oom_kills: get(&self.oom_kills),
        }
    }
}
