//! The system calls that a sandboxed process may make: the field's default list, which container engines share.
//!
//! Anything else fails with `EPERM`. Names that the host's runtime doesn't know are passed over by it.
//!
//! The runtime makes a program of the list for each architecture whenever it starts a process, which takes it
//! milliseconds: one that the kernel runs no programs of is not in the list.

use std::env::consts::ARCH;
use std::sync::LazyLock;

use oci_spec::OciSpecError;
use oci_spec::runtime::Arch;
use oci_spec::runtime::LinuxSeccomp;
use oci_spec::runtime::LinuxSeccompAction;
use oci_spec::runtime::LinuxSeccompArg;
use oci_spec::runtime::LinuxSeccompArgBuilder;
use oci_spec::runtime::LinuxSeccompBuilder;
use oci_spec::runtime::LinuxSeccompOperator;
use oci_spec::runtime::LinuxSyscall;
use oci_spec::runtime::LinuxSyscallBuilder;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// Every namespace flag of `clone(2)`: mount, cgroup, UTS, IPC, user, PID and network.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Values of `personality(2)` that only change what a process sees of itself.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Allowed to everybody.
const ALLOWED: &str = "\
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create \
epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 \
execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir \
fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork \
fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area \
getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid \
getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr \
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount \
listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack \
membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 \
mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal \
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev \
pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir \
rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget \
semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list \
set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups \
setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt \
shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat \
stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate \
truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork \
vmsplice wait4 waitid waitpid write writev";

/// Allowed with the default capabilities: of the calls that need one, those whose capability is there.
const WITH_DEFAULT_CAPABILITIES: &str = "chroot";

/// The profile for the default capabilities, on this machine's architecture.
pub fn default_profile() -> Result<LinuxSeccomp, OciSpecError> {
    let mut calls = vec![allow(ALLOWED, Vec::new())?, allow(WITH_DEFAULT_CAPABILITIES, Vec::new())?];
    let arch = architecture_calls();
    if !arch.is_empty() {
        calls.push(allow(arch, Vec::new())?);
    }
    for (value, op) in [
        (AF_ALG, LinuxSeccompOperator::ScmpCmpLt),
        (AF_ALG + 1, LinuxSeccompOperator::ScmpCmpEq),
        (AF_VSOCK, LinuxSeccompOperator::ScmpCmpGt),
    ] {
        calls.push(allow("socket", vec![argument(0, value, op)?])?);
    }
    for value in PERSONALITIES {
        calls.push(allow("personality", vec![argument(0, value, LinuxSeccompOperator::ScmpCmpEq)?])?);
    }
    // The flags are the second argument there.
    let flags = usize::from(ARCH == "s390x");
    let no_namespaces = LinuxSeccompArgBuilder::default()
        .index(flags)
        .value(CLONE_NAMESPACES)
        .value_two(0u64)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()?;
    calls.push(allow("clone", vec![no_namespaces])?);
    // Its flags lie in memory, where a filter can't look: C libraries then fall back to `clone`.
    let clone3 = LinuxSyscallBuilder::default()
        .names(vec!["clone3".to_owned()])
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(ENOSYS)
        .build()?;
    calls.push(clone3);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures())
        .syscalls(calls)
        .build()
}

fn allow(names: &str, args: Vec<LinuxSeccompArg>) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<String> = names.split_ascii_whitespace().map(str::to_owned).collect();
    let mut call = LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow);
    if !args.is_empty() {
        call = call.args(args);
    }
    call.build()
}

fn argument(index: usize, value: u64, op: LinuxSeccompOperator) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default().index(index).value(value).op(op).build()
}

/// The machine's own first, then those whose programs it runs as well.
fn architectures() -> Vec<Arch> {
    match ARCH {
        "x86_64" if runs_x32() => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        "s390x" => vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
        "powerpc64" => vec![Arch::ScmpArchPpc64le],
        _ => Vec::new(),
    }
}

/// Whether the kernel has the x32 ABI, which few do: its system calls have a bit that the others have not. A daemon that
/// is filtered itself does not ask, as its filter may kill who does; it is taken for one that has.
fn runs_x32() -> bool {
    static KNOWN: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        is_filtered(&status) || answers_x32()
    });
    *KNOWN
}

/// Whether a thread with this `proc_pid_status(5)` has a filter of system calls, as far as that can be told.
fn is_filtered(status: &str) -> bool {
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_none_or(|mode| mode.trim() != "0")
}

#[cfg(target_arch = "x86_64")]
fn answers_x32() -> bool {
    const X32_BIT: libc::c_long = 0x4000_0000;
    // SAFETY: `getpid` of the other ABI has no arguments and no effect. A kernel without it answers `ENOSYS`.
    unsafe { libc::syscall(libc::SYS_getpid | X32_BIT) >= 0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn answers_x32() -> bool {
    false
}

fn architecture_calls() -> &'static str {
    match ARCH {
        "x86_64" => "arch_prctl modify_ldt",
        "aarch64" => "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
        "riscv64" => "riscv_flush_icache",
        "s390x" => "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
        "powerpc64" => "sync_file_range2 swapcontext",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_filtered_or_can_not_tell_does_not_ask_the_kernel() {
        assert!(!is_filtered("Name:\tthunkd\nSeccomp:\t0\nSeccomp_filters:\t0\n"));
        assert!(is_filtered("Name:\tthunkd\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(is_filtered("Name:\tthunkd\n") && is_filtered(""));
    }

    #[test]
    fn the_profile_has_the_abi_of_this_machine_and_x32_only_if_it_runs() {
        let archs = architectures();
        assert_eq!(archs.contains(&Arch::ScmpArchX32), ARCH == "x86_64" && runs_x32());
        assert_eq!(archs.first() == Some(&Arch::ScmpArchX86_64), ARCH == "x86_64");
    }
}
