//! [`Sample`]s of what a process used are read from cgroups of version 1 and 2.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use super::cgroup::Group;
use crate::progress::CpuUsage;
use crate::progress::IoUsage;
use crate::progress::MemoryUsage;
use crate::progress::Sample;

/// Reads a group of version 2.
pub fn unified(group: &Group) -> Sample {
    let cpu = Files::of(group, "cpu");
    let usec = |key| cpu.field("cpu.stat", key).map(|v| v.saturating_mul(1000));
    let memory = Files::of(group, "memory");
    Sample {
        at: SystemTime::now(),
        cpu: CpuUsage {
            usage_nanos: usec("usage_usec"),
            user_nanos: usec("user_usec"),
            system_nanos: usec("system_usec"),
            periods: cpu.field("cpu.stat", "nr_periods"),
            throttled_periods: cpu.field("cpu.stat", "nr_throttled"),
            throttled_nanos: usec("throttled_usec"),
        },
        memory: MemoryUsage {
            current: memory.number("memory.current"),
            peak: memory.number("memory.peak"),
            swap: memory.number("memory.swap.current"),
            anonymous: memory.field("memory.stat", "anon"),
            file: memory.field("memory.stat", "file"),
            oom_kills: memory.field("memory.events", "oom_kill"),
        },
        io: unified_io(&Files::of(group, "io")),
        pids: Files::of(group, "pids").number("pids.current"),
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …` for each device.
fn unified_io(files: &Files) -> IoUsage {
    let Some(text) = files.read("io.stat") else { return IoUsage::default() };
    let sum = |key: &str| {
        let values = text.split_ascii_whitespace().filter_map(|w| w.split_once('='));
        let values = values.filter(|(k, _)| *k == key).filter_map(|(_, v)| v.parse::<u64>().ok());
        Some(values.fold(0, u64::saturating_add))
    };
    IoUsage {
        read_bytes: sum("rbytes"),
        write_bytes: sum("wbytes"),
        read_operations: sum("rios"),
        write_operations: sum("wios"),
    }
}

/// Reads a group of version 1.
pub fn legacy(group: &Group) -> Sample {
    /// `cpuacct.stat` counts in ticks, of which a second has 100 wherever programs can see them.
    const TICK_NANOS: u64 = 10_000_000;
    let accounting = Files::of(group, "cpuacct");
    let ticks = |key| accounting.field("cpuacct.stat", key).map(|v| v.saturating_mul(TICK_NANOS));
    let cpu = Files::of(group, "cpu");
    let memory = Files::of(group, "memory");
    let block = Files::of(group, "blkio");
    let operations = |file, key| legacy_io(&block, file, key);
    Sample {
        at: SystemTime::now(),
        cpu: CpuUsage {
            usage_nanos: accounting.number("cpuacct.usage"),
            user_nanos: ticks("user"),
            system_nanos: ticks("system"),
            periods: cpu.field("cpu.stat", "nr_periods"),
            throttled_periods: cpu.field("cpu.stat", "nr_throttled"),
            throttled_nanos: cpu.field("cpu.stat", "throttled_time"),
        },
        memory: MemoryUsage {
            current: memory.number("memory.usage_in_bytes"),
            peak: memory.number("memory.max_usage_in_bytes"),
            swap: memory.field("memory.stat", "swap"),
            anonymous: memory.field("memory.stat", "rss"),
            file: memory.field("memory.stat", "cache"),
            oom_kills: memory.field("memory.oom_control", "oom_kill"),
        },
        io: IoUsage {
            read_bytes: operations("blkio.throttle.io_service_bytes", "Read"),
            write_bytes: operations("blkio.throttle.io_service_bytes", "Write"),
            read_operations: operations("blkio.throttle.io_serviced", "Read"),
            write_operations: operations("blkio.throttle.io_serviced", "Write"),
        },
        pids: Files::of(group, "pids").number("pids.current"),
    }
}

/// `8:0 Read 1` for each device and operation.
fn legacy_io(files: &Files, file: &str, operation: &str) -> Option<u64> {
    let text = files.read(file)?;
    let values = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        (words.next()? == operation).then(|| words.next()?.parse::<u64>().ok()).flatten()
    });
    Some(values.fold(0, u64::saturating_add))
}

/// The files of one controller. What can't be read is not known.
struct Files(Option<PathBuf>);

impl Files {
    fn of(group: &Group, controller: &str) -> Files {
        Files(group.directory(controller))
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.as_ref()?.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// The number after `key`, of a file with a pair a line.
    fn field(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.read(file)?;
        let pair = text.lines().filter_map(|line| line.split_once(' ')).find(|(k, _)| *k == key)?;
        pair.1.trim().parse().ok()
    }
}

/// Collects samples of a process that runs for any time: few of them, spread over all of it.
#[derive(Debug)]
pub struct Recorder {
    interval: Duration,
    samples: Vec<Sample>,
}

impl Recorder {
    const INTERVAL: Duration = Duration::from_secs(2);
    const SAMPLES: usize = 10;

    pub fn new() -> Recorder {
        Recorder { interval: Recorder::INTERVAL, samples: Vec::new() }
    }

    /// How long to wait until the next sample.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Once there are too many, every other one goes, and the interval doubles.
    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
        if self.samples.len() > Recorder::SAMPLES {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.interval = self.interval.saturating_mul(2);
        }
    }

    /// `last` is what the process came to; it is never thinned out.
    pub fn finish(mut self, last: Sample) -> Vec<Sample> {
        self.samples.push(last);
        self.samples
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::cgroup::Cgroups;
    use super::*;

    fn group(dir: &Path, kind: &str) -> Group {
        let options = if kind == "cgroup" { "rw,cpu,cpuacct,memory,blkio,pids" } else { "rw" };
        let line = format!("1 1 0:1 / {} rw - {kind} {kind} {options}\n", dir.display());
        Cgroups::parse(&line).group(Path::new("/g"))
    }

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir(dir.join("g")).expect("a group");
        for (name, text) in files {
            fs::write(dir.join("g").join(name), text).expect("a file of the group");
        }
    }

    #[test]
    fn version_2_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        write(
            dir.path(),
            &[
                ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\n"),
                ("memory.current", "4096\n"),
                ("memory.peak", "8192\n"),
                ("memory.stat", "anon 10\nfile 20\n"),
                ("memory.events", "low 0\noom 2\noom_kill 1\n"),
                ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:16 rbytes=10 wbytes=0\n"),
                ("pids.current", "3\n"),
            ],
        );
        let sample = group(dir.path(), "cgroup2").sample();
        assert_eq!(sample.cpu.usage_nanos, Some(5000));
        assert_eq!((sample.cpu.periods, sample.cpu.throttled_nanos), (Some(7), None));
        assert_eq!((sample.memory.current, sample.memory.peak), (Some(4096), Some(8192)));
        assert_eq!((sample.memory.anonymous, sample.memory.oom_kills), (Some(10), Some(1)));
        assert_eq!((sample.io.read_bytes, sample.io.write_operations), (Some(11), Some(4)));
        assert_eq!(sample.pids, Some(3));
    }

    #[test]
    fn version_1_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        write(
            dir.path(),
            &[
                ("cpuacct.usage", "77\n"),
                ("cpuacct.stat", "user 2\nsystem 1\n"),
                ("cpu.stat", "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n"),
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.max_usage_in_bytes", "9000\n"),
                ("memory.stat", "cache 5\nrss 6\nswap 7\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                ("blkio.throttle.io_service_bytes", "8:0 Read 5\n8:0 Write 6\n8:16 Read 1\nTotal 12\n"),
            ],
        );
        let sample = group(dir.path(), "cgroup").sample();
        assert_eq!(sample.cpu.usage_nanos, Some(77));
        assert_eq!((sample.cpu.user_nanos, sample.cpu.throttled_nanos), (Some(20_000_000), Some(3)));
        assert_eq!((sample.memory.peak, sample.memory.oom_kills), (Some(9000), Some(2)));
        assert_eq!((sample.io.read_bytes, sample.io.write_bytes), (Some(6), Some(6)));
        assert_eq!((sample.io.read_operations, sample.pids), (None, None));
    }

    #[test]
    fn a_long_run_keeps_few_samples_and_its_first_and_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let group = group(dir.path(), "cgroup2");
        let mut recorder = Recorder::new();
        let first = group.sample();
        recorder.push(first);
        for _ in 0..100 {
            recorder.push(group.sample());
        }
        assert!(recorder.interval() > Recorder::INTERVAL * 64, "{:?}", recorder.interval());
        let last = group.sample();
        let samples = recorder.finish(last);
        assert!(samples.len() <= Recorder::SAMPLES + 1, "{}", samples.len());
        assert_eq!((samples[0], *samples.last().expect("samples")), (first, last));
    }
}
