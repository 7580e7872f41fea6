//! Probe `task_exit`: a process that Grace watches has ended.

use crate::{Class, Header, Record, Sender, Task};

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
    /// Who ended.
    pub task: Task,
    /// Who sent the signal that ended it; `at_ns` 0 where nobody was seen.
    pub sender: Sender,
}

const _: () = assert!(size_of::<TaskExit>() == 128);

// SAFETY: repr(C), header first, integers only, padding explicit (asserted by the size).
unsafe impl Record for TaskExit {
    const KIND: u32 = KIND_TASK_EXIT;
    const CLASS: Class = Class::Exit;
}
