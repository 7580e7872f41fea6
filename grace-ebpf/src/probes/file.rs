//! `file_dirty`: an inode that Grace watches is being made dirty.
//!
//! tp_btf/writeback_mark_inode_dirty fires for write(2) and its kin, io_uring, O_DIRECT, truncation, fallocate, the
//! first store through a shared mapping, chmod and chown; at most once per inode and timer tick for plain writes.
//! Not for renames and unlinks: fanotify on the folder tells those.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use grace_common::{Class, FileDirty, InodeKey};

use crate::emit::emit;
use crate::kernel::{OFF_INODE_GENERATION, OFF_INODE_INO, OFF_INODE_SB, OFF_SB_DEV, current, field};
use crate::maps::{INODES, TOUCHED};

/// (struct inode *inode, int flags)
#[btf_tracepoint(function = "writeback_mark_inode_dirty")]
pub fn file_dirty(ctx: BtfTracePointContext) -> i32 {
    let inode: *const u8 = ctx.arg(0);
    let sb: *const u8 = unsafe { field(inode, &OFF_INODE_SB) };
    let key = InodeKey {
        dev: unsafe { field(sb, &OFF_SB_DEV) },
        _pad: 0,
        ino: unsafe { field(inode, &OFF_INODE_INO) },
    };
    touched(key, unsafe { field(inode, &OFF_INODE_GENERATION) }, ctx.arg(1));
    0
}

/// The current task changes the inode `key` in the way that `flags` say. Nothing happens unless it is watched.
#[inline(always)]
pub fn touched(key: InodeKey, generation: u32, flags: u32) {
    let Some(watch) = (unsafe { INODES.get(key) }) else { return };
    if watch.generation_known != 0 && watch.generation != generation {
        return;
    }
    let task = current();
    // The state first: whatever becomes of the event, who it was stays known.
    if let Some(touch) = TOUCHED.get_ptr_mut(key) {
        unsafe {
            (*touch).at_ns = bpf_ktime_get_boot_ns();
            (*touch).count += 1;
            (*touch).task = task;
        }
    }
    emit(Class::File, |header| FileDirty { header, inode: key, flags, _pad: 0, task });
}
