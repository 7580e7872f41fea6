//! `signal`: who sends a signal to a process that Grace watches. Kept as state and read at the process's end.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use grace_common::{SI_KERNEL, Sender, SignalKey};

use crate::kernel::{OFF_SIGINFO_CODE, OFF_TASK_TGID, current, field, watched};
use crate::maps::SIGNALS;

/// The kernel passes these small numbers instead of a pointer (include/linux/sched/signal.h): SEND_SIG_NOINFO for a
/// process's own request, SEND_SIG_PRIV for the kernel's.
const SEND_SIG_PRIV: u64 = 1;

/// (int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)
#[btf_tracepoint(function = "signal_generate")]
pub fn signal(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(2);
    let key = SignalKey { tgid: unsafe { field(task, &OFF_TASK_TGID) }, signal: ctx.arg(0) };
    if watched(key.tgid).is_none() {
        return 0;
    }
    let info: u64 = ctx.arg(1);
    let code = if info == SEND_SIG_PRIV {
        SI_KERNEL
    } else if info > SEND_SIG_PRIV {
        let at = (info + u64::from(OFF_SIGINFO_CODE.load())) as *const i32;
        unsafe { bpf_probe_read_kernel(at) }.unwrap_or(0)
    } else {
        0
    };
    let sender = Sender { at_ns: unsafe { bpf_ktime_get_boot_ns() }, code, _pad: 0, task: current() };
    let _ = SIGNALS.insert(key, sender, 0);
    0
}
