//! Probe `fork`: a process that Grace watches has a child, which is watched from its first instruction.

use crate::{Header, Record, Task};

/// What is known of a watched thread group: value of the map `TASKS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Thread group of the declared process that it descends from; its own where it is that process.
    pub root: u32,
    /// Forks between the two.
    pub depth: u32,
}

const _: () = assert!(size_of::<Watched>() == 8);

/// Bytes in the map `MAYBE_WATCHED`: byte `tgid % MAYBE` is not 0 where such a thread group may be in `TASKS`. One load
/// tells almost every system call of the host that nobody watches it.
pub const MAYBE: usize = 4096;

/// Kind of [`ProcFork`].
pub const KIND_FORK: u32 = 3;

/// A watched process has a child.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcFork {
    /// When and what.
    pub header: Header,
    /// Thread group of the declared process that it descends from.
    pub root: u32,
    /// The child's thread group.
    pub child: u32,
    /// Forks between the two.
    pub depth: u32,
    /// Always 0.
    pub _pad: u32,
    /// The parent.
    pub task: Task,
}

const _: () = assert!(size_of::<ProcFork>() == 80);

// SAFETY: repr(C), header first, integers only, padding explicit (asserted by the size).
unsafe impl Record for ProcFork {
    const KIND: u32 = KIND_FORK;
}
