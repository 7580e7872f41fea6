//! `exec`: which program a process runs, so that a writer can be named after it is gone.

use aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use grace_common::{PATH_LEN, Proc};

use crate::kernel::{OFF_BPRM_FILENAME, OFF_TASK_PARENT, OFF_TASK_START, OFF_TASK_TGID, current, field};
use crate::maps::PROCS;

/// (struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let bprm: *const u8 = ctx.arg(2);
    let parent: *const u8 = unsafe { field(task, &OFF_TASK_PARENT) };
    let who = current();
    let mut note = Proc {
        task: who,
        start_ns: unsafe { field(task, &OFF_TASK_START) },
        ppid: unsafe { field(parent, &OFF_TASK_TGID) },
        _pad: 0,
        path: [0; PATH_LEN],
    };
    let name: *const u8 = unsafe { field(bprm, &OFF_BPRM_FILENAME) };
    // A path that cannot be read stays empty: user space then says that it does not know.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(name, &mut note.path) };
    let _ = PROCS.insert(who.tgid, note, 0);
    0
}
