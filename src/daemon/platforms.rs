//! [`of_this_machine`]: the platforms whose programs run here, for clients that choose one.

use std::fs::File;
use std::io;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::process::Stdio;

use rustix::fs::MemfdFlags;

use crate::oci::Platform;

/// The machine's own platform, then the levels of its instruction set that it has, then what its kernel runs as well.
pub(super) fn of_this_machine() -> Vec<Platform> {
    let host = Platform::host();
    let mut found = vec![host.clone()];
    if host.architecture == "amd64" {
        let variant = |level: u32| Platform { variant: format!("v{level}"), ..host.clone() };
        found.extend((2..=level()).map(variant));
        match runs(&EXIT_386) {
            Ok(true) => found.push(Platform { architecture: "386".to_owned(), ..host }),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the kernel runs no programs of 32 bits"),
        }
    }
    found
}

/// The level of x86-64 (System V ABI, AMD64 supplement, "Micro-Architecture Levels").
#[cfg(target_arch = "x86_64")]
fn level() -> u32 {
    macro_rules! has {
        ($($feature:tt)*) => { true $(&& std::arch::is_x86_feature_detected!($feature))* };
    }
    let v2 = has!("cmpxchg16b" "popcnt" "sse3" "ssse3" "sse4.1" "sse4.2");
    let v3 = v2 && has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe");
    let v4 = v3 && has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl");
    1 + u32::from(v2) + u32::from(v3) + u32::from(v4)
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> u32 {
    1
}

/// A program for the 386 that does nothing but to end well: a header, one segment, and `exit(0)`.
const EXIT_386: [u8; 93] = {
    const BASE: u32 = 0x0001_0000;
    const CODE: [u8; 9] = [0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80];
    let mut file = [0; 93];
    let words: [(usize, u32); 11] = [
        (0, 0x464c_457f),
        // 32 bits, little-endian, version 1.
        (4, 0x0001_0101),
        // An executable for the 386.
        (16, 0x0003_0002),
        (20, 1),
        // Where it begins, and where the one program header is, of 32 bytes.
        (24, BASE + 84),
        (28, 52),
        (40, 0x0020_0034),
        (44, 1),
        // All of the file is loaded.
        (52, 1),
        (60, BASE),
        (64, BASE),
    ];
    let mut at = 0;
    while at < words.len() {
        let (offset, word) = words[at];
        let bytes = word.to_le_bytes();
        let mut n = 0;
        while n < 4 {
            file[offset + n] = bytes[n];
            n += 1;
        }
        at += 1;
    }
    // Sizes in the file and in memory; readable and executable; alignment.
    file[68] = 93;
    file[72] = 93;
    file[76] = 5;
    file[81] = 0x10;
    let mut n = 0;
    while n < CODE.len() {
        file[84 + n] = CODE[n];
        n += 1;
    }
    file
};

/// Whether a program runs and ends well.
fn runs(program: &[u8]) -> io::Result<bool> {
    let mut written = File::from(rustix::fs::memfd_create("thunk-platform", MemfdFlags::CLOEXEC)?);
    written.write_all(program)?;
    // What somebody may still write to can't be run.
    let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let read_only = File::open(path(&written))?;
    drop(written);
    let mut command = Command::new(path(&read_only));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_lists_itself_first_and_each_level_once() {
        let found: Vec<String> = of_this_machine().iter().map(Platform::to_string).collect();
        assert_eq!(found[0], Platform::host().to_string());
        let levels = ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"];
        for (n, level) in levels.iter().enumerate() {
            let at = found.iter().position(|found| found == level);
            assert!(at.is_none_or(|at| at == n), "{found:?}");
        }
    }

    #[test]
    fn what_is_no_program_does_not_run() {
        assert!(runs(b"no program").is_err());
    }
}
