//! Counts what is allocated.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// Bytes that one input may take at most. Buffers are the largest part: of a decompressor, of a reader, of the thread
/// that reads ahead. zstd's windows are C's, and not among them.
const MOST: usize = 24 << 20;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// All that was ever allocated: with what is freed it goes on.
static SPENT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all of it is the system's; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that are asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(size: usize) {
    let now = NOW.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(now, Ordering::Relaxed);
    SPENT.fetch_add(size, Ordering::Relaxed);
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Panics if the work took more memory at a time than an input may.
pub(crate) fn watched(work: impl FnOnce()) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    let taken = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    assert!(taken <= MOST, "the input took {taken} bytes of memory");
}

/// What work gives, and the bytes that it allocated, one after the other: those that it freed count, so that it is a
/// measure of what was done, too.
pub(crate) fn spent<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = SPENT.load(Ordering::Relaxed);
    let done = work();
    (done, SPENT.load(Ordering::Relaxed) - before)
}
