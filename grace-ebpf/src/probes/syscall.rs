//! `syscall_count`: returns and errors of every syscall, always on, one hook at the exit side.
//! `syscall_latency`: how long they took, by class; a pair of hooks that user space attaches in a duty cycle,
//! because the two clock reads are most of the cost.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use grace_common::{BUCKETS, SYSCALL_CLASSES, SYSCALLS};

use crate::kernel::{OFF_REGS_NR, field};
use crate::maps::{SYSCALL_CLASS, SYSCALL_COUNTS, SYSCALL_LAT, SYSCALL_START};

/// (struct pt_regs *regs, long ret)
#[btf_tracepoint(function = "sys_exit")]
pub fn syscall_count(ctx: BtfTracePointContext) -> i32 {
    let regs: *const u8 = ctx.arg(0);
    let ret: i64 = ctx.arg(1);
    let nr: i64 = unsafe { field(regs, &OFF_REGS_NR) };
    let Some(counts) = SYSCALL_COUNTS.get_ptr_mut(0) else { return 0 };
    let nr = if (nr as u64) < SYSCALLS as u64 { nr as usize } else { SYSCALLS - 1 };
    unsafe {
        (*counts).calls[nr] += 1;
        if (-4095..0).contains(&ret) {
            (*counts).errors[nr] += 1;
        }
    }
    0
}

/// (struct pt_regs *regs, long id)
#[btf_tracepoint(function = "sys_enter")]
pub fn syscall_enter(_ctx: BtfTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid() as u32;
    let _ = SYSCALL_START.insert(thread, unsafe { bpf_ktime_get_ns() }, 0);
    0
}

/// (struct pt_regs *regs, long ret)
#[btf_tracepoint(function = "sys_exit")]
pub fn syscall_latency(ctx: BtfTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = SYSCALL_START.get_ptr_mut(thread) else { return 0 };
    let began = unsafe { *slot };
    if began == 0 {
        return 0;
    }
    // A call that ends after the duty cycle's next start must not be taken for one of it.
    unsafe { *slot = 0 };
    let ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(began);
    let regs: *const u8 = ctx.arg(0);
    let nr: i64 = unsafe { field(regs, &OFF_REGS_NR) };
    let nr = if (nr as u64) < SYSCALLS as u64 { nr as u32 } else { SYSCALLS as u32 - 1 };
    let class = SYSCALL_CLASS.get(nr).copied().unwrap_or(0) as usize;
    let bucket = (63 - (ns | 1).leading_zeros()) as usize;
    let Some(lat) = SYSCALL_LAT.get_ptr_mut(0) else { return 0 };
    if class < SYSCALL_CLASSES {
        let bucket = if bucket < BUCKETS { bucket } else { BUCKETS - 1 };
        unsafe { (*lat).hist[class][bucket] += 1 };
    }
    0
}
