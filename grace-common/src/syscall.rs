//! Probes `syscall_count` and `syscall_latency`: what the host's syscalls do, aggregated in the kernel.

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
