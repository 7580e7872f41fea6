//! Which class a syscall number belongs to, and quantiles of log2 histograms.

use grace_common::{BUCKETS, SYSCALL_CLASS_NAMES, SYSCALLS};

/// Class index by syscall number of this architecture.
pub(super) fn classes() -> [u32; SYSCALLS] {
    let mut out = [index("other"); SYSCALLS];
    for (class, numbers) in MEMBERS {
        for nr in *numbers {
            if let Some(slot) = usize::try_from(*nr).ok().and_then(|nr| out.get_mut(nr)) {
                *slot = index(class);
            }
        }
    }
    out
}

fn index(class: &str) -> u32 {
    let found = SYSCALL_CLASS_NAMES.iter().position(|name| *name == class);
    u32::try_from(found.unwrap_or(SYSCALL_CLASS_NAMES.len() - 1)).unwrap_or(0)
}

/// Calls that block on the same thing are in one class. What both 64-bit architectures have, by their own numbers.
const MEMBERS: &[(&str, &[libc::c_long])] = &[
    (
        "read",
        &[
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_readv,
            libc::SYS_preadv,
            libc::SYS_preadv2,
            libc::SYS_getdents64,
        ],
    ),
    (
        "write",
        &[
            libc::SYS_write,
            libc::SYS_pwrite64,
            libc::SYS_writev,
            libc::SYS_pwritev,
            libc::SYS_pwritev2,
            libc::SYS_sendfile,
            libc::SYS_splice,
            libc::SYS_copy_file_range,
            libc::SYS_ftruncate,
            libc::SYS_truncate,
            libc::SYS_fallocate,
        ],
    ),
    ("open", &[libc::SYS_openat, libc::SYS_openat2, libc::SYS_close]),
    (
        "stat",
        &[libc::SYS_fstat, libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_faccessat, libc::SYS_readlinkat],
    ),
    (
        "sync",
        &[
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_sync_file_range,
            libc::SYS_msync,
        ],
    ),
    (
        "net",
        &[
            libc::SYS_sendto,
            libc::SYS_recvfrom,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_sendmmsg,
            libc::SYS_recvmmsg,
            libc::SYS_connect,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_socket,
        ],
    ),
    ("poll", &[libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2]),
    #[cfg(target_arch = "x86_64")]
    ("poll", &[libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_wait]),
    (
        "wait",
        &[
            libc::SYS_futex,
            libc::SYS_nanosleep,
            libc::SYS_clock_nanosleep,
            libc::SYS_wait4,
            libc::SYS_waitid,
            libc::SYS_flock,
            libc::SYS_io_uring_enter,
        ],
    ),
    #[cfg(target_arch = "x86_64")]
    ("open", &[libc::SYS_open, libc::SYS_creat]),
    #[cfg(target_arch = "x86_64")]
    ("stat", &[libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink]),
    (
        "process",
        &[
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_exit,
            libc::SYS_exit_group,
        ],
    ),
    #[cfg(target_arch = "x86_64")]
    ("process", &[libc::SYS_fork, libc::SYS_vfork]),
    (
        "memory",
        &[
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mprotect,
            libc::SYS_brk,
            libc::SYS_madvise,
            libc::SYS_mremap,
        ],
    ),
    (
        "signal",
        &[
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_pidfd_send_signal,
        ],
    ),
];

/// Buckets summed over processors.
pub(super) fn sum<'a>(cpus: impl Iterator<Item = &'a [u32; BUCKETS]>) -> [u64; BUCKETS] {
    let mut out = [0; BUCKETS];
    for cpu in cpus {
        for (sum, n) in out.iter_mut().zip(cpu) {
            *sum += u64::from(*n);
        }
    }
    out
}

/// Upper bound in nanoseconds of the bucket that holds the quantile `q`; none where nothing was counted.
#[must_use]
pub fn quantile(hist: &[u64; BUCKETS], q: f64) -> Option<u64> {
    let total: u64 = hist.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = ((total as f64 * q).ceil() as u64).clamp(1, total);
    let mut seen = 0;
    let bucket = hist.iter().position(|n| {
        seen += n;
        seen >= rank
    })?;
    Some((2u64 << bucket) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_members_and_numbers_map_to_one() {
        let classes = classes();
        assert_eq!(SYSCALL_CLASS_NAMES[classes[libc::SYS_fsync as usize] as usize], "sync");
        assert_eq!(SYSCALL_CLASS_NAMES[classes[511] as usize], "other");
        for name in SYSCALL_CLASS_NAMES {
            assert!(classes.contains(&index(name)), "{name} has no member");
        }
    }

    #[test]
    fn quantiles_are_upper_bounds_of_buckets() {
        let mut hist = [0; BUCKETS];
        assert_eq!(quantile(&hist, 0.5), None);
        hist[3] = 99;
        hist[10] = 1;
        assert_eq!(quantile(&hist, 0.50), Some(15));
        assert_eq!(quantile(&hist, 0.99), Some(15));
        assert_eq!(quantile(&hist, 1.0), Some(2047));
    }
}
