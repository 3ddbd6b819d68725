//! What the allocator of the C library is told.
//!
//! It gives an arena to each thread that allocates, up to eight times the number of cores, and keeps in it what was
//! freed there. A daemon whose blocking threads come and go would hold the peak of each of them for ever.

/// Arenas for all threads: few allocations are made at the same time.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Free bytes at the end of an arena that are given back.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 512 << 10;

/// To be called before there are threads.
pub(super) fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt(3)` changes settings of the allocator only, and no other thread is there.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
