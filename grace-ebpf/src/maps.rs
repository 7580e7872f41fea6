//! Every map, with its size and who writes it.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, StackTrace};
use grace_common::{
    CLASSES, Counts, InodeKey, InodeWatch, MAYBE, Proc, ProcStats, STARTS as START_SLOTS, SYSCALLS, Sender,
    SignalKey, SlowFrom, Start, SyscallCounts, SyscallLatency, Timing, Touch, Watched,
};

/// BPF_F_NO_PREALLOC: memory for what is there, not for what could be.
const NO_PREALLOC: u32 = 1;

/// Events to user space, a ring for each class. The probes write by `emit` only.
#[map]
pub static FILES: RingBuf = RingBuf::with_byte_size(1 << 19, 0);
#[map]
pub static EXITS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);
#[map]
pub static PROCESSES: RingBuf = RingBuf::with_byte_size(1 << 18, 0);
#[map]
pub static SLOW: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What `emit` sent and lost. One value per processor.
#[map]
pub static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(1, 0);

/// Watched inodes. User space writes.
#[map]
pub static INODES: HashMap<InodeKey, InodeWatch> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Who last made a watched inode dirty. User space makes and removes the entries, `file_dirty` fills them in.
#[map]
pub static TOUCHED: PerCpuHashMap<InodeKey, Touch> = PerCpuHashMap::with_max_entries(65_536, NO_PREALLOC);

/// Watched thread groups. User space adds the declared ones, `fork` their descendants, `task_exit` removes.
#[map]
pub static TASKS: HashMap<u32, Watched> = HashMap::with_max_entries(16_384, NO_PREALLOC);

/// See `grace_common::MAYBE`. A byte is set and never cleared: a wrong one costs a lookup.
#[map]
pub static MAYBE_WATCHED: Array<[u8; MAYBE]> = Array::with_max_entries(1, 0);

/// Programs seen lately, by thread group.
#[map]
pub static PROCS: LruHashMap<u32, Proc> = LruHashMap::with_max_entries(4096, 0);

/// Who last sent which signal to a watched process.
#[map]
pub static SIGNALS: LruHashMap<SignalKey, Sender> = LruHashMap::with_max_entries(4096, 0);

/// Returns and errors of every syscall.
#[map]
pub static SYSCALL_COUNTS: PerCpuArray<SyscallCounts> = PerCpuArray::with_max_entries(1, 0);

/// When the running syscall of a thread began. A table by thread id costs as little as task storage and, unlike that,
/// exists on every kernel since 5.10.
#[map]
pub static STARTS: Array<Start> = Array::with_max_entries(START_SLOTS as u32, 0);

/// Latencies by class.
#[map]
pub static SYSCALL_LAT: PerCpuArray<SyscallLatency> = PerCpuArray::with_max_entries(1, 0);

/// Syscall number to class. User space writes before the probes are attached.
#[map]
pub static SYSCALL_CLASS: Array<u32> = Array::with_max_entries(SYSCALLS as u32, 0);

/// How calls are timed. User space writes.
#[map]
pub static TIMING: Array<Timing> = Array::with_max_entries(1, 0);

/// What declared processes do. User space makes and removes the entries, the syscall probes count.
#[map]
pub static PROC_STATS: PerCpuHashMap<u32, ProcStats> = PerCpuHashMap::with_max_entries(4096, NO_PREALLOC);

/// When a call of a declared process is slow. User space writes.
#[map]
pub static SLOW_FROM: HashMap<u32, SlowFrom> = HashMap::with_max_entries(4096, NO_PREALLOC);

/// This second's slow calls, and when a stack was last taken, of this processor.
#[map]
pub static RATES: PerCpuArray<Rates> = PerCpuArray::with_max_entries(1, 0);

/// Stacks of slow calls: where the kernel waited, and where the program was.
#[map]
pub static STACKS: StackTrace = StackTrace::with_max_entries(2048, 0);

/// What agents told of losses, by class: what is lost while none runs is told by the next. User space writes.
#[map]
pub static TOLD: Array<[u64; CLASSES]> = Array::with_max_entries(1, 0);

/// The state folder of the agent that these maps belong to, where they are pinned. User space writes.
#[map]
pub static OWNER: Array<[u8; 512]> = Array::with_max_entries(1, 0);

/// Value of `RATES`: nobody but the probes reads it.
#[repr(C)]
pub struct Rates {
    /// CLOCK_MONOTONIC of the second's begin, nanoseconds.
    pub second: u64,
    /// Slow calls in it.
    pub slow: u64,
    /// CLOCK_MONOTONIC of the last stack, nanoseconds.
    pub stack: u64,
}
