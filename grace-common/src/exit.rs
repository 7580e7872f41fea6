//! Probe `task_exit`: a process that Grace watches, or a descendant of one, has ended.

use crate::{Header, Record, Sender, Task};

/// Kind of [`TaskExit`].
pub const KIND_TASK_EXIT: u32 = 2;

/// A watched process has ended: its last thread is gone.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskExit {
    /// When and what.
    pub header: Header,
    /// Status as wait(2) gives it: signal in bits 0-6, core-dump flag in bit 7, exit code in bits 8-15.
    pub status: u32,
    /// Parent's thread group.
    pub ppid: u32,
    /// CLOCK_BOOTTIME of its start, nanoseconds: with the thread group its identity.
    pub start_ns: u64,
    /// Highest resident memory that it had, in pages (`signal_struct.maxrss`); 0: no more than what it was before its
    /// last exec, so not known.
    pub max_rss_pages: u64,
    /// Thread group of the declared process that it descends from; its own where it is that process.
    pub root: u32,
    /// 1: the out-of-memory killer had chosen it (`signal_struct.oom_mm`).
    pub oom_victim: u32,
    /// Who ended.
    pub task: Task,
    /// Who sent the signal that ended it; `at_ns` 0 where nobody was seen.
    pub sender: Sender,
}

const _: () = assert!(size_of::<TaskExit>() == 152);

// SAFETY: repr(C), header first, integers only, padding explicit (asserted by the size).
unsafe impl Record for TaskExit {
    const KIND: u32 = KIND_TASK_EXIT;
}
