//! `file_name`: a watched inode loses its name, by a rename over it, a rename of its own or an unlink.
//!
//! The dirty tracepoint does not tell of names. fanotify does, but only while an agent runs and as long as its queue
//! lasts; this is kernel-side state like any other write. Two forms of the same: LSM hooks, and fentry on the functions
//! that call them, where the kernel has BPF but not among its security modules. Neither decides anything.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::{fentry, lsm};
use aya_ebpf::programs::{FEntryContext, LsmContext};
use grace_common::{FLAG_RENAMED, FLAG_UNLINKED, InodeKey};

use crate::kernel::{OFF_DENTRY_INODE, OFF_INODE_GENERATION, OFF_INODE_INO, OFF_INODE_SB, OFF_SB_DEV};
use crate::probes::file::touched;

/// (struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry *new_dentry, …)
#[lsm(hook = "inode_rename")]
pub fn rename_lsm(ctx: LsmContext) -> i32 {
    named(ctx.arg(1), FLAG_RENAMED);
    named(ctx.arg(3), FLAG_RENAMED);
    0
}

/// (struct inode *dir, struct dentry *dentry)
#[lsm(hook = "inode_unlink")]
pub fn unlink_lsm(ctx: LsmContext) -> i32 {
    named(ctx.arg(1), FLAG_UNLINKED);
    0
}

/// (struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry *new_dentry, …)
#[fentry(function = "security_inode_rename")]
pub fn rename_fentry(ctx: FEntryContext) -> i32 {
    named(ctx.arg(1), FLAG_RENAMED);
    named(ctx.arg(3), FLAG_RENAMED);
    0
}

/// (struct inode *dir, struct dentry *dentry)
#[fentry(function = "security_inode_unlink")]
pub fn unlink_fentry(ctx: FEntryContext) -> i32 {
    named(ctx.arg(1), FLAG_UNLINKED);
    0
}

/// What `dentry` names is about to lose that name. A name of nothing (the target of a plain rename) has no inode.
///
/// Read by a helper that survives a null pointer, not by a load: 6.12 believes that the inode of a trusted dentry is
/// always there, so it removes a check for null as needless and does not guard the load. The next line of this
/// function would then stop the host.
#[inline(always)]
fn named(dentry: *const u8, flag: u32) {
    let read = |base: *const u8, offset: u32| -> u64 {
        unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<u64>()) }.unwrap_or(0)
    };
    let inode = read(dentry, OFF_DENTRY_INODE.load()) as *const u8;
    let sb = read(inode, OFF_INODE_SB.load()) as *const u8;
    let key =
        InodeKey { dev: read(sb, OFF_SB_DEV.load()) as u32, _pad: 0, ino: read(inode, OFF_INODE_INO.load()) };
    touched(key, read(inode, OFF_INODE_GENERATION.load()) as u32, flag);
}
