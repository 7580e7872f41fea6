//! `syscall_count`: returns and errors of every syscall, always on, one hook at the exit side. While calls are timed it
//! also ends their timing: a second program at the same hook would cost half as much again.
//! `syscall_latency`: how long they took, by class; hooks that user space attaches for as much of the time as the budget
//! allows. `syscall_enter` notes when a call begins, `syscall_wait` where in the kernel a watched thread waits.

use core::hint::black_box;

use aya_ebpf::bindings::{BPF_F_REUSE_STACKID, BPF_F_USER_STACK};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::{BtfTracePointContext, tracing::StackIdContext};
use grace_common::{
    BUCKETS, Cause, Class, STARTS as START_SLOTS, SYSCALL_CLASSES, SYSCALLS, SlowCall, Start, Timing, Watched,
};

use crate::emit::{emit, lose};
use crate::kernel::{OFF_REGS_NR, OFF_TASK_STATE, current, field, watched};
use crate::maps::{
    PROC_STATS, RATES, SLOW_FROM, STACKS, STARTS, SYSCALL_CLASS, SYSCALL_COUNTS, SYSCALL_LAT, TIMING,
};

/// At least this long between two kernel stacks on one processor, in nanoseconds: a stack costs about half a
/// microsecond, so they take at most half a percent of it.
const STACK_GAP_NS: u64 = 100_000;

/// (struct pt_regs *regs, long ret)
#[btf_tracepoint(function = "sys_exit")]
pub fn syscall_count(ctx: BtfTracePointContext) -> i32 {
    let regs: *const u8 = ctx.arg(0);
    let ret: i64 = ctx.arg(1);
    let nr: i64 = unsafe { field(regs, &OFF_REGS_NR) };
    let Some(counts) = SYSCALL_COUNTS.get_ptr_mut(0) else { return 0 };
    let nr = if (nr as u64) < SYSCALLS as u64 { nr as usize } else { SYSCALLS - 1 };
    let failed = (-4095..0).contains(&ret);
    unsafe {
        (*counts).calls[nr] += 1;
        if failed {
            (*counts).errors[nr] += 1;
        }
    }
    let ids = bpf_get_current_pid_tgid();
    let of = watched((ids >> 32) as u32);
    if let Some(of) = of
        && let Some(stats) = PROC_STATS.get_ptr_mut(of.root)
    {
        unsafe {
            (*stats).calls += 1;
            if failed {
                (*stats).errors += 1;
            }
        }
    }
    if let Some(timing) = TIMING.get(0)
        && timing.phase != 0
    {
        timed(&ctx, ids as u32, nr as u32, of, *timing);
    }
    0
}

/// (struct pt_regs *regs, long id)
#[btf_tracepoint(function = "sys_enter")]
pub fn syscall_enter(_ctx: BtfTracePointContext) -> i32 {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(timing) = TIMING.get(0) else { return 0 };
    let Some(slot) = STARTS.get_ptr_mut(tid % START_SLOTS as u32) else { return 0 };
    unsafe { *slot = Start { at_ns: bpf_ktime_get_ns(), tid, phase: timing.phase, wait: -1, _pad: 0 } };
    0
}

/// (bool preempt, struct task_struct *prev, struct task_struct *next, …): prev is current.
#[btf_tracepoint(function = "sched_switch")]
pub fn syscall_wait(ctx: BtfTracePointContext) -> i32 {
    let ids = bpf_get_current_pid_tgid();
    if watched((ids >> 32) as u32).is_none() {
        return 0;
    }
    let prev: *const u8 = ctx.arg(1);
    // TASK_RUNNING: it was only its turn to pause.
    if unsafe { field::<u32>(prev, &OFF_TASK_STATE) } == 0 {
        return 0;
    }
    let Some(rates) = RATES.get_ptr_mut(0) else { return 0 };
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(unsafe { (*rates).stack }) < STACK_GAP_NS {
        return 0;
    }
    let tid = ids as u32;
    let Some(slot) = STARTS.get_ptr_mut(tid % START_SLOTS as u32) else { return 0 };
    if unsafe { (*slot).tid } != tid {
        return 0;
    }
    unsafe { (*rates).stack = now };
    let id = ctx.get_stackid(&STACKS, u64::from(BPF_F_REUSE_STACKID));
    unsafe { (*slot).wait = id.map_or(-1, |id| id as i32) };
    0
}

/// The call `nr` of thread `tid` returns: how long it took, where its begin was seen in this duty cycle.
#[inline(always)]
fn timed(ctx: &BtfTracePointContext, tid: u32, nr: u32, of: Option<Watched>, timing: Timing) {
    let Some(slot) = STARTS.get_ptr_mut(tid % START_SLOTS as u32) else { return };
    if unsafe { (*slot).tid != tid || (*slot).phase != timing.phase } {
        return;
    }
    let (at, wait) = unsafe { ((*slot).at_ns, (*slot).wait) };
    unsafe { (*slot).tid = 0 };
    let now = unsafe { bpf_ktime_get_ns() };
    let ns = now.wrapping_sub(at);
    let class = SYSCALL_CLASS.get(nr).copied().unwrap_or(0) as usize;
    let bucket = (63 - (ns | 1).leading_zeros()) as usize;
    let bucket = if bucket < BUCKETS { bucket } else { BUCKETS - 1 };
    if let Some(lat) = SYSCALL_LAT.get_ptr_mut(0) {
        count(unsafe { &mut (*lat).hist }, class, bucket);
    }
    let Some(of) = of else { return };
    if let Some(stats) = PROC_STATS.get_ptr_mut(of.root) {
        count(unsafe { &mut (*stats).hist }, class, bucket);
    }
    let Some(from) = (unsafe { SLOW_FROM.get(of.root) }) else { return };
    let index = black_box(class);
    if index >= SYSCALL_CLASSES {
        return;
    }
    let from = from.ns[index];
    if ns >= from {
        slow(ctx, &Call { of, wait, now, ns, nr, class: class as u32 }, timing.slow_rate);
    }
}

/// Counts one in a histogram.
///
/// Verifiers before 5.12 forget the bounds of a number that was kept on the stack over a call, so they are checked
/// again here, unseen by the compiler, which would leave that out.
#[inline(always)]
fn count(hist: &mut [[u32; BUCKETS]; SYSCALL_CLASSES], class: usize, bucket: usize) {
    let (class, bucket) = (black_box(class), black_box(bucket));
    if class < SYSCALL_CLASSES && bucket < BUCKETS {
        hist[class][bucket] += 1;
    }
}

/// A call that was slow.
struct Call {
    of: Watched,
    wait: i32,
    now: u64,
    ns: u64,
    nr: u32,
    class: u32,
}

#[inline(always)]
fn slow(ctx: &BtfTracePointContext, call: &Call, rate: u32) {
    let Some(rates) = RATES.get_ptr_mut(0) else { return };
    if rate != 0 {
        unsafe {
            if call.now.wrapping_sub((*rates).second) > 1_000_000_000 {
                (*rates).second = call.now;
                (*rates).slow = 0;
            }
            (*rates).slow += 1;
            if (*rates).slow > u64::from(rate) {
                lose(Class::Slow, Cause::Throttled);
                return;
            }
        }
    }
    // The program's own stack, not for every call of a flood.
    let stack = if rate == 0 {
        -1
    } else {
        ctx.get_stackid(&STACKS, u64::from(BPF_F_REUSE_STACKID | BPF_F_USER_STACK)).map_or(-1, |id| id as i32)
    };
    emit(Class::Slow, |header| SlowCall {
        header,
        ns: call.ns,
        ret: ctx.arg(1),
        nr: call.nr,
        class: call.class,
        root: call.of.root,
        wait: call.wait,
        stack,
        _pad: 0,
        task: current(),
    });
}
