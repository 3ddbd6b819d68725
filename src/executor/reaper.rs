//! Collects children that nobody waits for.
//!
//! As a subreaper the daemon inherits whatever its helpers leave running (a credential helper's daemon, a network
//! plugin's). When those end they stay zombies, as nobody knows of them. Waiting for any child would take exit
//! codes from those who wait for theirs; but they do so at once, so that a zombie that is seen twice, with time
//! between, is nobody's.
//!
//! # Locking
//!
//! One looks at a time, and holds the lock meanwhile: two at the same time would see all twice. Who comes then leaves.

use std::collections::HashSet;
use std::fs;
use std::sync::Mutex;
use std::sync::TryLockError;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::WaitOptions;

const INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    /// PID and time of start of the zombies seen last.
    seen: HashSet<(i32, u64)>,
}

impl Reaper {
    /// Looks, if nobody has for a while.
    pub fn sweep(&self) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if state.looked.is_none_or(|looked| looked.elapsed() >= INTERVAL) {
            state.look(zombies());
        }
    }
}

impl State {
    fn look(&mut self, zombies: HashSet<(i32, u64)>) {
        self.looked = Some(Instant::now());
        let seen = std::mem::replace(&mut self.seen, zombies);
        for (pid, _) in self.seen.intersection(&seen) {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
}

/// Children of this process that have ended and were not waited for.
fn zombies() -> HashSet<(i32, u64)> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = fs::read_dir("/proc") else { return HashSet::new() };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name, in parentheses, may hold anything; the fields after it are numbers.
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            let (state, parent) = (fields.next()?, fields.next()?);
            let start = fields.nth(17)?.parse().ok()?;
            (state == "Z" && parent.parse() == Ok(own)).then_some((pid, start))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "that is what is to be collected")]
    fn a_zombie_that_is_seen_twice_is_collected() {
        let child = std::process::Command::new("true").spawn().expect("a child");
        let pid = i32::try_from(child.id()).expect("a PID");
        // Other tests of this process have zombies of their own.
        let own = || zombies().into_iter().filter(|(zombie, _)| *zombie == pid).collect::<HashSet<_>>();
        while own().is_empty() {
            std::thread::yield_now();
        }
        let reaper = Reaper::default();
        let look = || reaper.state.lock().expect("no panic").look(own());
        look();
        assert!(!own().is_empty(), "seen once: somebody may be about to wait");
        reaper.sweep();
        assert!(!own().is_empty(), "no time has passed");
        look();
        assert!(own().is_empty());
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is waited for as the kernel has it")]
    fn those_who_look_at_the_same_time_collect_nothing() {
        let child = std::process::Command::new("true").spawn().expect("a child");
        let pid = i32::try_from(child.id()).expect("a PID");
        while !zombies().iter().any(|(zombie, _)| *zombie == pid) {
            std::thread::yield_now();
        }
        for _ in 0..20 {
            let (reaper, start) = (Reaper::default(), std::sync::Barrier::new(8));
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        start.wait();
                        reaper.sweep();
                    });
                }
            });
        }
        let status = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
        assert!(status.expect("it is there to be waited for").is_some());
    }
}
