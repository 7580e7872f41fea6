//! Probe `file_dirty`: an inode that Grace watches was made dirty.

use crate::{Class, Header, Record, Task};

/// Kind of [`FileDirty`].
pub const KIND_FILE_DIRTY: u32 = 1;

/// A watched inode: key of the map `INODES`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InodeKey {
    /// `super_block.s_dev` as the kernel keeps it: `major << 20 | minor`.
    pub dev: u32,
    /// Always 0.
    pub _pad: u32,
    /// `inode.i_ino`.
    pub ino: u64,
}

const _: () = assert!(size_of::<InodeKey>() == 16);

/// A watched inode is about to change. It fires *before* the data is there: it says who and that, not what.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDirty {
    /// When and what.
    pub header: Header,
    /// Which inode.
    pub inode: InodeKey,
    /// The kernel's `I_DIRTY_…` flags.
    pub flags: u32,
    /// Always 0.
    pub _pad: u32,
    /// Who.
    pub task: Task,
}

const _: () = assert!(size_of::<FileDirty>() == 80);

// SAFETY: repr(C), header first, integers only, padding explicit (asserted by the size).
unsafe impl Record for FileDirty {
    const KIND: u32 = KIND_FILE_DIRTY;
    const CLASS: Class = Class::File;
}
