//! [`Sample`]: what a step has used.

use std::time::SystemTime;

/// What the processes of a step used up to a moment. `None`: the kernel doesn't say.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    pub at: SystemTime,
    pub cpu: CpuUsage,
    pub memory: MemoryUsage,
    pub io: IoUsage,
    /// Processes and threads now.
    pub pids: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuUsage {
    pub usage_nanos: Option<u64>,
    pub user_nanos: Option<u64>,
    pub system_nanos: Option<u64>,
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub throttled_nanos: Option<u64>,
}

/// In bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MemoryUsage {
    pub current: Option<u64>,
    pub peak: Option<u64>,
    pub swap: Option<u64>,
    pub anonymous: Option<u64>,
    pub file: Option<u64>,
    /// Processes that the kernel killed since memory ran out.
    pub oom_kills: Option<u64>,
}

/// Of all block devices together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IoUsage {
    pub read_bytes: Option<u64>,
    pub write_bytes: Option<u64>,
    pub read_operations: Option<u64>,
    pub write_operations: Option<u64>,
}
