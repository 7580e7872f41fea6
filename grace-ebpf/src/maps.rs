//! Every map, with its size and who writes it.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use grace_common::{Counts, InodeKey, Proc, SYSCALLS, Sender, SignalKey, SyscallCounts, SyscallLatency};

/// Rare events to user space. The probes write by `emit` only.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What `emit` sent and lost. One value per processor.
#[map]
pub static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(1, 0);

/// Watched inodes. User space writes.
#[map]
pub static INODES: HashMap<InodeKey, u32> = HashMap::with_max_entries(65_536, 1 /* BPF_F_NO_PREALLOC */);

/// Watched thread groups. User space writes; `task_exit` removes.
#[map]
pub static TASKS: HashMap<u32, u32> = HashMap::with_max_entries(16_384, 1 /* BPF_F_NO_PREALLOC */);

/// Programs seen lately, by thread group.
#[map]
pub static PROCS: LruHashMap<u32, Proc> = LruHashMap::with_max_entries(4096, 0);

/// Who last sent which signal to a watched process.
#[map]
pub static SIGNALS: LruHashMap<SignalKey, Sender> = LruHashMap::with_max_entries(4096, 0);

/// Returns and errors of every syscall.
#[map]
pub static SYSCALL_COUNTS: PerCpuArray<SyscallCounts> = PerCpuArray::with_max_entries(1, 0);

/// When the running syscall of a thread began, by thread: CLOCK_MONOTONIC nanoseconds, 0: not timed. Task storage would
/// be cheaper, but no kernel before 5.11 has it, and one map that is refused refuses all probes.
#[map]
pub static SYSCALL_START: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16_384, 0);

/// Latencies by class.
#[map]
pub static SYSCALL_LAT: PerCpuArray<SyscallLatency> = PerCpuArray::with_max_entries(1, 0);

/// Syscall number to class. User space writes before the probes are attached.
#[map]
pub static SYSCALL_CLASS: Array<u32> = Array::with_max_entries(SYSCALLS as u32, 0);
