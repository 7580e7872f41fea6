//! `task_exit`: the end of a process. An event where Grace watches it or an ancestor; for all others only a note of who
//! it was.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use grace_common::{Class, PATH_LEN, Proc, Sender, SignalKey, TaskExit};

use crate::emit::emit;
use crate::kernel::{
    OFF_SIGNAL_GROUP_EXIT, OFF_SIGNAL_LIVE, OFF_SIGNAL_MAXRSS, OFF_SIGNAL_OOM_MM, OFF_TASK_EXIT_CODE,
    OFF_TASK_LEADER, OFF_TASK_PARENT, OFF_TASK_SIGNAL, OFF_TASK_START, OFF_TASK_TGID, current, field,
    watched,
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

    let inherited = match PROCS.get_ptr(who.tgid) {
        Some(note) => unsafe { (*note).inherited_rss_pages },
        None => {
            let path = [0; PATH_LEN];
            let note = Proc { task: who, start_ns, ppid, inherited_rss_pages: 0, path };
            let _ = PROCS.insert(who.tgid, note, 0);
            0
        }
    };
    let Some(of) = watched(who.tgid) else { return 0 };
    let group: u32 = unsafe { field(signal, &OFF_SIGNAL_GROUP_EXIT) };
    let own: u32 = unsafe { field(task, &OFF_TASK_EXIT_CODE) };
    let status = if group != 0 { group } else { own };
    let key = SignalKey { tgid: who.tgid, signal: status & 0x7f };
    let sender = unsafe { SIGNALS.get(key) }.copied().unwrap_or(Sender::NONE);
    let oom_mm: u64 = unsafe { field(signal, &OFF_SIGNAL_OOM_MM) };
    let peak: u64 = unsafe { field(signal, &OFF_SIGNAL_MAXRSS) };
    let max_rss_pages = if peak > u64::from(inherited) { peak } else { 0 };
    let oom_victim = u32::from(oom_mm != 0);
    let end = |header| TaskExit {
        header,
        status,
        ppid,
        start_ns,
        max_rss_pages,
        root: of.root,
        oom_victim,
        task: who,
        sender,
    };
    // The ring of the declared processes is theirs alone: a storm of ending children cannot fill it.
    if of.depth == 0 {
        emit(Class::Exit, end);
    } else {
        emit(Class::Process, end);
    }
    if TASKS.remove(who.tgid).is_err() {
        debug!(&ctx, "process {} ended twice", who.tgid);
    }
    0
}
