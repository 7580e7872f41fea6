//! Threads that must run as soon as they are woken: between a change and its repair stand a few of them.
//!
//! On a busy host a woken thread otherwise waits until whoever has the processor has used up its slice: milliseconds,
//! several times in a row. These threads run for microseconds, so they ask for a short slice (kernels since 6.12 then
//! let them preempt) and, where allowed, for a better nice value. What they start does not inherit it.
#![expect(unsafe_code, reason = "sched_setattr(2) has no safe wrapper")]

/// `struct sched_attr`, its first version (include/uapi/linux/sched/types.h).
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// For work that can wait: a tenth of what another thread gets, not nothing, so that it comes to an end on a busy host.
const PATIENT: i32 = 10;

/// `IOPRIO_CLASS_IDLE` in the upper bits (include/uapi/linux/ioprio.h), for the calling thread (`IOPRIO_WHO_PROCESS`, 0).
const IOPRIO_IDLE: i32 = 3 << 13;
const IOPRIO_WHO_PROCESS: i32 = 1;

/// Children and new threads begin with the default (`SCHED_FLAG_RESET_ON_FORK`, include/uapi/linux/sched.h).
const RESET_ON_FORK: u64 = 1;

/// The shortest slice that the kernel grants a normal thread (kernel/sched/syscalls.c), in nanoseconds.
const SLICE_NS: u64 = 100_000;

/// As much as `earlyoom` and others take for themselves, short of real-time.
const NICE: i32 = -10;

/// Makes the calling thread run promptly when it is woken. A kernel that refuses leaves it as it is: slower under
/// load, nothing else.
pub fn prompt() {
    for nice in [NICE, 0] {
        let attr = SchedAttr {
            size: size_of::<SchedAttr>() as u32,
            flags: RESET_ON_FORK,
            nice,
            runtime_ns: SLICE_NS,
            ..SchedAttr::default()
        };
        // SAFETY: `attr` is a sched_attr of the size that it names and outlives the call; 0 is the calling thread.
        let rc = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
        if rc == 0 {
            return;
        }
    }
}

/// Makes the calling thread, and all that it starts, give way to whoever else wants a processor or the disk. A kernel that
/// refuses leaves it as it is.
pub fn patient() {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, nice: PATIENT, ..SchedAttr::default() };
    // SAFETY: `attr` is a sched_attr of the size that it names and outlives the call; 0 is the calling thread.
    let rc = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    // SAFETY: ioprio_set(2) takes three integers.
    let io = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) };
    if rc != 0 || io != 0 {
        tracing::debug!("no lower priority");
    }
}
