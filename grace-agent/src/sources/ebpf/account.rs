//! What the kernel side did and what it cost: events produced and lost by class and cause, runs and run time of each
//! program, and runs that the kernel left out.

use std::os::fd::{AsRawFd, BorrowedFd};

use grace_common::{CAUSE_NAMES, CAUSES, CLASSES, Counts};

/// Events of one class, summed over the processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Events that a probe wanted to send.
    pub produced: u64,
    /// Of them, those that never reached a ring, by cause in the order of `grace_common::CAUSE_NAMES`.
    pub lost: [u64; CAUSES],
}

impl Account {
    /// Lost for whatever cause.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.iter().sum()
    }

    /// The causes by name, with what each lost.
    #[must_use]
    pub fn causes(&self) -> Vec<(&'static str, u64)> {
        CAUSE_NAMES.iter().copied().zip(self.lost).collect()
    }
}

/// Sums the counters of all processors.
pub(super) fn sum(cpus: impl Iterator<Item = Counts>) -> [Account; CLASSES] {
    let mut out = [Account::default(); CLASSES];
    for counts in cpus {
        for (class, account) in out.iter_mut().enumerate() {
            account.produced += counts.produced[class];
            for (cause, lost) in account.lost.iter_mut().enumerate() {
                *lost += counts.lost[cause][class];
            }
        }
    }
    out
}

/// What the kernel knows of the runs of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Runs {
    /// Nanoseconds, while somebody holds the kernel's statistics on.
    pub time_ns: u64,
    /// Runs, while somebody holds the kernel's statistics on.
    pub count: u64,
    /// Runs that the kernel left out because the program was already running on that processor. Always counted.
    pub missed: u64,
}

/// BPF_OBJ_GET_INFO_BY_FD (include/uapi/linux/bpf.h).
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// Offset of `run_time_ns` in `struct bpf_prog_info`; `run_cnt` and `recursion_misses` follow. A kernel that does not
/// know one of them leaves it 0.
const RUN_TIME_AT: usize = 192;

/// The runs of the program behind `fd`. aya's own reading leaves the missed ones out.
pub(super) fn runs(fd: BorrowedFd<'_>) -> Option<Runs> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = [0u64; 32];
    let attr = Attr {
        fd: u32::try_from(fd.as_raw_fd()).ok()?,
        length: u32::try_from(size_of_val(&info)).ok()?,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: `attr` begins like the part of `union bpf_attr` for this command; `info` has room for the `length` bytes
    // that the kernel may write, any bits are valid for it, and both outlive the call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw const attr, size_of::<Attr>()) };
    if rc != 0 {
        return None;
    }
    let at = RUN_TIME_AT / 8;
    Some(Runs { time_ns: info[at], count: info[at + 1], missed: info[at + 2] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_by_class_and_cause() {
        let cpu = Counts { produced: [1, 2, 3, 4], lost: [[0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0]] };
        let sums = sum([cpu, cpu].into_iter());
        assert_eq!(sums.map(|a| a.produced), [2, 4, 6, 8]);
        assert_eq!(sums.map(|a| a.lost()), [0, 2, 2, 4]);
        assert_eq!(sums[3].causes(), [("full", 0), ("throttled", 4), ("untracked", 0)]);
    }
}
