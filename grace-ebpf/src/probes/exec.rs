//! `exec`: which program a process runs, so that a writer can be named after it is gone. An event where Grace watches
//! the process.

use aya_ebpf::helpers::bpf_probe_read_kernel_str_bytes;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use grace_common::{Class, PATH_LEN, Proc, ProcExec};

use crate::emit::emit;
use crate::kernel::{
    OFF_BPRM_FILENAME, OFF_SIGNAL_MAXRSS, OFF_TASK_PARENT, OFF_TASK_SIGNAL, OFF_TASK_START, OFF_TASK_TGID,
    current, field, watched,
};
use crate::maps::PROCS;

/// (struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm)
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    let bprm: *const u8 = ctx.arg(2);
    let parent: *const u8 = unsafe { field(task, &OFF_TASK_PARENT) };
    let signal: *const u8 = unsafe { field(task, &OFF_TASK_SIGNAL) };
    let who = current();
    let mut note = Proc {
        task: who,
        start_ns: unsafe { field(task, &OFF_TASK_START) },
        ppid: unsafe { field(parent, &OFF_TASK_TGID) },
        inherited_rss_pages: unsafe { field::<u64>(signal, &OFF_SIGNAL_MAXRSS) } as u32,
        path: [0; PATH_LEN],
    };
    let name: *const u8 = unsafe { field(bprm, &OFF_BPRM_FILENAME) };
    // A path that cannot be read stays empty: user space then says that it does not know.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(name, &mut note.path) };
    let _ = PROCS.insert(who.tgid, note, 0);
    if let Some(of) = watched(who.tgid) {
        emit(Class::Process, |header| ProcExec { header, root: of.root, ppid: note.ppid, task: who });
    }
    0
}
