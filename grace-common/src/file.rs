//! Probe `file_dirty`: an inode that Grace watches was made dirty.

use crate::{Header, Record, Task};

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

/// What is known of a watched inode: value of the map `INODES`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeWatch {
    /// `inode.i_generation`: another one is another file that got the number of a deleted one.
    pub generation: u32,
    /// 1: `generation` is known and must match. 0: this file system does not tell it.
    pub generation_known: u32,
    /// What user space calls the file: an agent that takes the map over knows it by its path, not by its inode.
    pub tag: u64,
}

const _: () = assert!(size_of::<InodeWatch>() == 16);

/// The last task that made a watched inode dirty on one processor: value of the map `TOUCHED`. It is state, not an
/// event: neither a full ring nor an agent that does not run loses it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// CLOCK_BOOTTIME, nanoseconds; 0: nobody yet.
    pub at_ns: u64,
    /// How often.
    pub count: u64,
    /// Who.
    pub task: Task,
}

const _: () = assert!(size_of::<Touch>() == 56);

impl Touch {
    /// Nobody.
    pub const NONE: Self = Self { at_ns: 0, count: 0, task: Task::NONE };
}

/// A watched inode is about to change. It fires *before* the data is there: it says who and that, not what.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDirty {
    /// When and what.
    pub header: Header,
    /// Which inode.
    pub inode: InodeKey,
    /// The kernel's `I_DIRTY_…` flags, or one of the `FLAG_…` here.
    pub flags: u32,
    /// Always 0.
    pub _pad: u32,
    /// Who.
    pub task: Task,
}

const _: () = assert!(size_of::<FileDirty>() == 88);

// SAFETY: repr(C), header first, integers only, padding explicit (asserted by the size).
unsafe impl Record for FileDirty {
    const KIND: u32 = KIND_FILE_DIRTY;
}
