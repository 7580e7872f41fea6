//! Probe `signal`: somebody sent a signal to a process that Grace watches.

use crate::Task;

/// Which process got which signal: key of the map `SIGNALS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalKey {
    /// Thread group that got it.
    pub tgid: u32,
    /// Signal number.
    pub signal: u32,
}

const _: () = assert!(size_of::<SignalKey>() == 8);

/// The last sender of a signal: value of the map `SIGNALS`. It is state, not an event, so no flood can lose it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// CLOCK_BOOTTIME, nanoseconds; 0: nobody was seen to send it.
    pub at_ns: u64,
    /// `si_code` (siginfo.h): above 0 the kernel made it (a fault, the OOM killer), else a process asked for it.
    pub code: i32,
    /// Always 0.
    pub _pad: u32,
    /// Who was running then; for a signal of the kernel's own not the cause.
    pub task: Task,
}

const _: () = assert!(size_of::<Sender>() == 56);

impl Sender {
    /// Nobody.
    pub const NONE: Self = Self { at_ns: 0, code: 0, _pad: 0, task: Task::NONE };
}

/// `si_code` of a signal that the kernel itself sent (`SI_KERNEL`, include/uapi/asm-generic/siginfo.h).
pub const SI_KERNEL: i32 = 0x80;
