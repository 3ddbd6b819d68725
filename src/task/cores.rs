//! Work that is split between cores.

use std::panic;
use std::thread;

/// Items that are worth a thread.
const SHARE: usize = 128;
/// Threads at most, whatever the number of cores: what one caller does is not to keep all others waiting.
const THREADS: usize = 4;

/// What `work` gives for each item and its index, in the order of the items. Blocks, on several threads where there are
/// enough items for them.
///
/// # Panics
///
/// If `work` does.
pub fn map_on_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = items.len().div_ceil(cores).max(SHARE);
    let run = |number: usize, part: &[T]| -> Vec<R> {
        part.iter().enumerate().map(|(at, item)| work(number * share + at, item)).collect()
    };
    thread::scope(|scope| {
        let parts = items.chunks(share).enumerate().skip(1);
        let others: Vec<_> = parts
            .map(|(number, part)| {
                let run = &run;
                let thread = thread::Builder::new().name("share".to_owned());
                // Without one, the caller does it.
                (number, part, thread.spawn_scoped(scope, move || run(number, part)))
            })
            .collect();
        let mut all = items.chunks(share).next().map_or_else(Vec::new, |first| run(0, first));
        for (number, part, thread) in others {
            match thread.map(|thread| thread.join()) {
                Ok(Ok(done)) => all.extend(done),
                Ok(Err(cause)) => panic::resume_unwind(cause),
                Err(_) => all.extend(run(number, part)),
            }
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_in_its_place() {
        for count in [0, 1, SHARE - 1, SHARE, SHARE + 1, 10 * SHARE + 7] {
            let items: Vec<usize> = (0..count).collect();
            let done = map_on_cores(&items, |index, item| {
                assert_eq!(index, *item);
                item * 2
            });
            assert!(done.into_iter().eq((0..count).map(|item| item * 2)), "{count} items");
        }
    }

    #[test]
    fn a_panic_is_the_callers() {
        let items: Vec<usize> = (0..4 * SHARE).collect();
        let failed = panic::catch_unwind(|| {
            map_on_cores(&items, |index, _| assert_ne!(index, 3 * SHARE + 5));
        });
        assert!(failed.is_err());
    }
}
