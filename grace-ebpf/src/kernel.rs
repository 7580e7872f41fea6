//! Reading kernel structures whose layout differs from kernel to kernel.
//!
//! Rust has no CO-RE field relocations. The loader reads the offsets from the running kernel's BTF and sets the
//! globals below before the load; they are frozen then, so the verifier knows them as constants and accepts the
//! plain loads on trusted pointers.

use aya_ebpf::Global;
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
};
use grace_common::{MAYBE, Task, Watched};

use crate::maps::{MAYBE_WATCHED, TASKS};

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    /// `struct inode`.
    OFF_INODE_SB;
    /// `struct inode`.
    OFF_INODE_INO;
    /// `struct inode`.
    OFF_INODE_GENERATION;
    /// `struct dentry`.
    OFF_DENTRY_INODE;
    /// `struct super_block`.
    OFF_SB_DEV;
    /// `struct pt_regs`: `orig_ax` on x86-64, `syscallno` on arm64.
    OFF_REGS_NR;
    /// `struct task_struct`.
    OFF_TASK_TGID;
    /// `struct task_struct`.
    OFF_TASK_PID;
    /// `struct task_struct`.
    OFF_TASK_EXIT_CODE;
    /// `struct task_struct`.
    OFF_TASK_SIGNAL;
    /// `struct task_struct`.
    OFF_TASK_START;
    /// `struct task_struct`.
    OFF_TASK_PARENT;
    /// `struct task_struct`.
    OFF_TASK_LEADER;
    /// `struct signal_struct`.
    OFF_SIGNAL_LIVE;
    /// `struct signal_struct`.
    OFF_SIGNAL_GROUP_EXIT;
    /// `struct signal_struct`.
    OFF_SIGNAL_MAXRSS;
    /// `struct signal_struct`.
    OFF_SIGNAL_OOM_MM;
    /// `struct task_struct`: `__state` since 5.14, `state` before.
    OFF_TASK_STATE;
    /// `struct linux_binprm`.
    OFF_BPRM_FILENAME;
    /// `struct kernel_siginfo`.
    OFF_SIGINFO_CODE;
}

/// The `T` at `offset` bytes into the structure at `base`.
///
/// # Safety
///
/// `base` is a pointer that the verifier trusts (a tp_btf argument or a field of one) and is never null where the probe
/// runs. A wrong offset is refused at load. A pointer that may be null is read by `bpf_probe_read_kernel` instead: the
/// kernel guards a load only where it does not trust the pointer, and it trusts some that it should not.
#[inline(always)]
pub unsafe fn field<T: Copy>(base: *const u8, offset: &Global<u32>) -> T {
    unsafe { base.add(offset.load() as usize).cast::<T>().read() }
}

/// Who runs now.
#[inline(always)]
pub fn current() -> Task {
    let ids = bpf_get_current_pid_tgid();
    Task {
        tgid: (ids >> 32) as u32,
        tid: ids as u32,
        uid: bpf_get_current_uid_gid() as u32,
        _pad: 0,
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        comm: bpf_get_current_comm().unwrap_or([0; 16]),
    }
}

/// What is known of thread group `tgid` where Grace watches it.
#[inline(always)]
pub fn watched(tgid: u32) -> Option<Watched> {
    let maybe = MAYBE_WATCHED.get(0)?;
    if maybe[tgid as usize % MAYBE] == 0 {
        return None;
    }
    unsafe { TASKS.get(tgid) }.copied()
}

/// Makes [`watched`] look `tgid` up from now on.
#[inline(always)]
pub fn note_watched(tgid: u32) {
    if let Some(maybe) = MAYBE_WATCHED.get_ptr_mut(0) {
        unsafe { (*maybe)[tgid as usize % MAYBE] = 1 };
    }
}
