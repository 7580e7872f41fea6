//! `fork`: the children of watched processes are watched from their first instruction.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use grace_common::{Cause, Class, ProcFork, Watched};

use crate::emit::{emit, lose};
use crate::kernel::{OFF_TASK_PID, OFF_TASK_TGID, current, field, note_watched, watched};
use crate::maps::TASKS;

/// (struct task_struct *parent, struct task_struct *child)
#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork(ctx: BtfTracePointContext) -> i32 {
    let parent: *const u8 = ctx.arg(0);
    let child: *const u8 = ctx.arg(1);
    let Some(of) = watched(unsafe { field(parent, &OFF_TASK_TGID) }) else { return 0 };
    let tgid: u32 = unsafe { field(child, &OFF_TASK_TGID) };
    // A thread belongs to a group that is watched already.
    if unsafe { field::<u32>(child, &OFF_TASK_PID) } != tgid {
        return 0;
    }
    let of = Watched { root: of.root, depth: of.depth + 1 };
    if TASKS.insert(tgid, of, 0).is_err() {
        lose(Class::Process, Cause::Untracked);
        return 0;
    }
    note_watched(tgid);
    emit(Class::Process, |header| ProcFork {
        header,
        root: of.root,
        child: tgid,
        depth: of.depth,
        _pad: 0,
        task: current(),
    });
    0
}
