//! What the allocator of the C library is told.
//!
//! It gives an arena to each thread that allocates, up to eight times the number of cores, and keeps in it what was
//! freed there. A daemon whose blocking threads come and go would hold the peak of each of them for ever. And of an
//! arena it gives back only the end: a few small blocks that stay keep whole bursts of builds below them. So there
//! are few arenas, and their free pages go back to the system when the daemon has grown.

#[cfg(target_env = "gnu")]
use std::time::Duration;

#[cfg(target_env = "gnu")]
use tokio::time::MissedTickBehavior;

use crate::task::Tasks;

/// Arenas for all threads: few allocations are made at the same time.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Free bytes at the end of an arena that are given back.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 512 << 10;

/// Blocks of this size and more are mapped one by one, and their pages come and go with them. The default is less than
/// the buffers that bytes pass through in hundreds.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 1 << 20;

/// How often the daemon looks at its size.
#[cfg(target_env = "gnu")]
const INTERVAL: Duration = Duration::from_secs(3);

/// Bytes that it may grow by until free pages are looked for.
#[cfg(target_env = "gnu")]
const GROWTH: u64 = 8 << 20;

/// To be called before there are threads.
pub(super) fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt(3)` changes settings of the allocator only, and no other thread is there.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

/// Gives free pages back as long as the tasks run. Looking costs one read of a file of the kernel.
#[cfg(target_env = "gnu")]
pub(super) fn watch(tasks: &Tasks) {
    let (owner, token) = (tasks.clone(), tasks.token().clone());
    let watching = async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut least = private();
        loop {
            ticks.tick().await;
            let now = private();
            if now <= least + GROWTH {
                least = least.min(now);
                continue;
            }
            // It takes the lock of an arena while it goes through it.
            // SAFETY: `malloc_trim(3)` may be called by any thread at any time.
            let trimmed = owner.spawn_blocking("trim memory", || unsafe { libc::malloc_trim(0) }).await;
            if trimmed.is_err() {
                return;
            }
            least = private();
            tracing::debug!(before = now, after = least, "free memory given back");
        }
    };
    drop(tasks.spawn("memory", async move { token.run_until_cancelled(watching).await }));
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn watch(_tasks: &Tasks) {}

/// Resident bytes that are no file's (`RssAnon` of `proc_pid_status(5)`).
#[cfg(target_env = "gnu")]
fn private() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_for_itself_is_known() {
        let before = private();
        let block = vec![1u8; 64 << 20];
        assert!(private() >= before + block.len() as u64 / 2, "{before}");
    }
}
