//! `task_exit`: the end of a process. An event where Grace watches it; for all others only a note of who it was.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use grace_common::{PATH_LEN, Proc, Sender, SignalKey, TaskExit};

use crate::emit::{emit, header};
use crate::kernel::{
    OFF_SIGNAL_GROUP_EXIT, OFF_SIGNAL_LIVE, OFF_TASK_EXIT_CODE, OFF_TASK_LEADER, OFF_TASK_PARENT,
    OFF_TASK_SIGNAL, OFF_TASK_START, OFF_TASK_TGID, current, field,
};
use crate::maps::{PROCS, SIGNALS, TASKS};

/// (struct task_struct *task, …): called by each thread for itself, so that task is current.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn task_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let signal: *const u8 = unsafe { field(task, &OFF_TASK_SIGNAL) };
    // Threads still alive; the last one that ends finds 0 (do_exit, kernel/exit.c).
    let live: u32 = unsafe { field(signal, &OFF_SIGNAL_LIVE) };
    if live != 0 {
        return 0;
    }
    let parent: *const u8 = unsafe { field(task, &OFF_TASK_PARENT) };
    let leader: *const u8 = unsafe { field(task, &OFF_TASK_LEADER) };
    let who = current();
    let ppid: u32 = unsafe { field(parent, &OFF_TASK_TGID) };
    let start_ns: u64 = unsafe { field(leader, &OFF_TASK_START) };

    if PROCS.get_ptr(who.tgid).is_none() {
        let note = Proc { task: who, start_ns, ppid, _pad: 0, path: [0; PATH_LEN] };
        let _ = PROCS.insert(who.tgid, note, 0);
    }
    if unsafe { TASKS.get(who.tgid) }.is_none() {
        return 0;
    }
    let group: u32 = unsafe { field(signal, &OFF_SIGNAL_GROUP_EXIT) };
    let own: u32 = unsafe { field(task, &OFF_TASK_EXIT_CODE) };
    let status = if group != 0 { group } else { own };
    let key = SignalKey { tgid: who.tgid, signal: status & 0x7f };
    let sender = unsafe { SIGNALS.get(key) }.copied().unwrap_or(Sender::NONE);
    emit(TaskExit { header: header::<TaskExit>(), status, ppid, start_ns, task: who, sender });
    if TASKS.remove(who.tgid).is_err() {
        debug!(&ctx, "process {} ended twice", who.tgid);
    }
    0
}
