//! Where the memory of the programs comes from: jemalloc, for Rust and for the libraries in C. Whoever links the library
//! of this package keeps its own allocator.
//!
//! A build is many small blocks that several threads take and give back. The allocator of glibc took a third of the time
//! of a large build from cache, and gives back only the end of an arena: a few small blocks that stay keep whole bursts
//! of builds below them.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// See `jemalloc(3)`, "TUNING". Few allocations are made at the same time, so one arena does, which takes 15 MiB less for
/// 20,000 records than two; and threads keep little for themselves, as hundreds of them come and go. Pages that nobody
/// uses go back to the system after a tenth of a second, by a thread of the library's own.
const OPTIONS: &[u8] = c"narenas:1,background_thread:true,max_background_threads:1,dirty_decay_ms:100,\
    muzzy_decay_ms:0,lg_tcache_max:13,tcache_nslots_small_max:50"
    .to_bytes_with_nul();

/// The start of [`OPTIONS`].
// SAFETY: nobody else has this name, by which the library looks for a pointer to a text that ends with NUL.
#[unsafe(export_name = "malloc_conf")]
static START: &u8 = &OPTIONS[0];

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::ptr;

    use super::*;

    /// An option that is in force, of the type that the library has it in.
    fn option<T: Default>(name: &CStr) -> T {
        let (mut value, mut size) = (T::default(), size_of::<T>());
        let to = (&raw mut value).cast();
        // SAFETY: the library writes `size` bytes at most, and refuses another size than its own.
        let code =
            unsafe { tikv_jemalloc_sys::mallctl(name.as_ptr(), to, &raw mut size, ptr::null_mut(), 0) };
        assert_eq!((code, size), (0, size_of::<T>()), "{name:?}");
        value
    }

    #[test]
    fn the_allocator_has_the_options() {
        assert_eq!(*START, b'n');
        assert_eq!(option::<u32>(c"opt.narenas"), 1);
        assert_eq!(option::<isize>(c"opt.dirty_decay_ms"), 100);
        assert_eq!(option::<usize>(c"opt.tcache_max"), 1 << 13);
        assert!(option::<bool>(c"opt.background_thread"));
    }
}
