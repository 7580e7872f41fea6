//! Probes `syscall_count` and `syscall_latency`: what the host's syscalls do, aggregated in the kernel; the slow ones of
//! watched processes one by one.

use crate::{Header, Record, Task};

/// Syscall numbers counted one by one; higher ones go to the last.
pub const SYSCALLS: usize = 512;

/// Log2 buckets of latency: bucket i holds calls of [2^i, 2^(i+1)) nanoseconds; the last one all above.
pub const BUCKETS: usize = 40;

/// Classes of syscalls whose latency is kept apart. The mapping from numbers is filled in from user space.
pub const SYSCALL_CLASSES: usize = 12;

/// Names of the classes, by index.
pub const SYSCALL_CLASS_NAMES: [&str; SYSCALL_CLASSES] =
    ["read", "write", "open", "stat", "sync", "net", "poll", "wait", "process", "memory", "signal", "other"];

/// Per-processor counts of every syscall's return: value 0 of the map `SYSCALL_COUNTS`, read in one call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SyscallCounts {
    /// Returns, by syscall number.
    pub calls: [u64; SYSCALLS],
    /// Of them, those with an error (-4095..=-1).
    pub errors: [u64; SYSCALLS],
}

/// Per-processor latencies of the calls that were timed: value 0 of the map `SYSCALL_LAT`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SyscallLatency {
    /// Calls by class and log2 of nanoseconds.
    pub hist: [[u32; BUCKETS]; SYSCALL_CLASSES],
}

/// What one declared process and its descendants do, per processor: value of the map `PROC_STATS`, by thread group of
/// the declared one.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ProcStats {
    /// Returns from system calls. It stands still where a process makes no progress.
    pub calls: u64,
    /// Of them, those with an error.
    pub errors: u64,
    /// Timed calls by class and log2 of nanoseconds.
    pub hist: [[u32; BUCKETS]; SYSCALL_CLASSES],
}

impl ProcStats {
    /// Nothing yet.
    pub const NONE: Self = Self { calls: 0, errors: 0, hist: [[0; BUCKETS]; SYSCALL_CLASSES] };
}

/// From how many nanoseconds on a call of each class is slow: value of the map `SLOW_FROM`, by thread group of the
/// declared process.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowFrom {
    /// By class; `u64::MAX`: never.
    pub ns: [u64; SYSCALL_CLASSES],
}

/// How calls are timed: value 0 of the map `TIMING`. User space writes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Number of the duty cycle; 0: calls are not timed now. A call that began in another one is not timed.
    pub phase: u32,
    /// Slow calls reported a second and processor; more are counted as throttled. 0: without limit.
    pub slow_rate: u32,
}

/// Slots of the map `STARTS`: a power of two, far above the number of threads of most hosts.
pub const STARTS: usize = 1 << 16;

/// When the running call of a thread began: slot `tid % STARTS` of the map `STARTS`. Two threads that share a slot and
/// are in a call at the same time: the earlier one is not timed.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// The thread; 0: no call.
    pub tid: u32,
    /// The duty cycle in which it began.
    pub phase: u32,
    /// Kernel stack at which the thread last gave up its processor in this call, as an id in `STACKS`; -1: none.
    pub wait: i32,
    /// Always 0.
    pub _pad: u32,
}

const _: () = assert!(size_of::<Start>() == 24);

/// Kind of [`SlowCall`].
pub const KIND_SLOW: u32 = 5;

/// A system call of a watched process took longer than is normal for it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowCall {
    /// When it returned, and what.
    pub header: Header,
    /// How long it took, in nanoseconds.
    pub ns: u64,
    /// What it returned.
    pub ret: i64,
    /// Which call, by number.
    pub nr: u32,
    /// Its class.
    pub class: u32,
    /// Thread group of the declared process.
    pub root: u32,
    /// Kernel stack at which it waited, an id in `STACKS`; -1: not known.
    pub wait: i32,
    /// The program's own stack, an id in `STACKS`; -1: not known.
    pub stack: i32,
    /// Always 0.
    pub _pad: u32,
    /// Who.
    pub task: Task,
}

const _: () = assert!(size_of::<SlowCall>() == 104);

// SAFETY: repr(C), header first, integers only, padding explicit (asserted by the size).
unsafe impl Record for SlowCall {
    const KIND: u32 = KIND_SLOW;
}
