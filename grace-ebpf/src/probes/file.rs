//! `file_dirty`: an inode that Grace watches is being made dirty.
//!
//! tp_btf/writeback_mark_inode_dirty fires for write(2) and its kin, io_uring, O_DIRECT, truncation, fallocate, the
//! first store through a shared mapping, chmod and chown; at most once per inode and timer tick for plain writes.
//! Not for renames and unlinks: fanotify on the folder tells those.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use grace_common::{FileDirty, InodeKey};

use crate::emit::{emit, header};
use crate::kernel::{OFF_INODE_INO, OFF_INODE_SB, OFF_SB_DEV, current, field};
use crate::maps::INODES;

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
    if unsafe { INODES.get(key) }.is_none() {
        return 0;
    }
    emit(FileDirty {
        header: header::<FileDirty>(),
        inode: key,
        flags: ctx.arg(1),
        _pad: 0,
        task: current(),
    });
    0
}
