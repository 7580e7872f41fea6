//! Probe `exec`: which program a process runs, remembered past its end.
//!
//! A writer such as `sed -i` is gone before the agent can ask /proc who it was. The probe keeps the last programs in
//! an LRU map that the agent reads when /proc has nothing any more.

use crate::{Header, Record, Task};

/// Bytes kept of an executable's path, NUL padded; a longer one is cut.
pub const PATH_LEN: usize = 128;

/// A process seen at exec, and at its end: value of the map `PROCS`, by thread group.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proc {
    /// Who.
    pub task: Task,
    /// CLOCK_BOOTTIME of the process's start, nanoseconds.
    pub start_ns: u64,
    /// Parent's thread group.
    pub ppid: u32,
    /// Highest resident memory of what the process was before this exec, in pages: the kernel carries it over into
    /// `signal_struct.maxrss` (setmax_mm_hiwater_rss in exec_mmap, fs/exec.c).
    pub inherited_rss_pages: u32,
    /// The path given to execve(2): chosen by the caller, may be relative; empty where the exec was not seen.
    pub path: [u8; PATH_LEN],
}

const _: () = assert!(size_of::<Proc>() == 184);

/// Kind of [`ProcExec`].
pub const KIND_EXEC: u32 = 4;

/// A descendant of a declared process, or the process itself, runs another program. Which one stands in `PROCS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcExec {
    /// When and what.
    pub header: Header,
    /// Thread group of the declared process that it descends from.
    pub root: u32,
    /// Parent's thread group.
    pub ppid: u32,
    /// Who, already with its new name.
    pub task: Task,
}

const _: () = assert!(size_of::<ProcExec>() == 72);

// SAFETY: repr(C), header first, integers only, padding explicit (asserted by the size).
unsafe impl Record for ProcExec {
    const KIND: u32 = KIND_EXEC;
}
