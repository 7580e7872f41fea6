//! Probe `exec`: which program a process runs, remembered past its end.
//!
//! A writer such as `sed -i` is gone before the agent can ask /proc who it was. The probe keeps the last programs in
//! an LRU map that the agent reads when /proc has nothing any more.

use crate::Task;

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
    /// Always 0.
    pub _pad: u32,
    /// The path given to execve(2): chosen by the caller, may be relative; empty where the exec was not seen.
    pub path: [u8; PATH_LEN],
}

const _: () = assert!(size_of::<Proc>() == 184);
