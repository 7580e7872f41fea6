//! The bytes that cross from the kernel probes to the agent.
//!
//! Integers and byte arrays only, `repr(C)`, padding spelled out, sizes asserted: both sides are compiled by
//! different compilers for different targets. One file per probe, with the same stem as in `grace-ebpf`. User space
//! decodes with [`Record::from_bytes`], which checks length and kind; it never casts a pointer.

#![no_std]
#![expect(unsafe_code, reason = "decoding bytes of the ring; the contract stands at `Record`")]

mod exec;
mod exit;
mod file;
mod fork;
mod name;
mod signal;
mod syscall;

pub use exec::*;
pub use exit::*;
pub use file::*;
pub use fork::*;
pub use name::*;
pub use signal::*;
pub use syscall::*;

/// Length of the kernel's task name, with its NUL (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_LEN: usize = 16;

/// First bytes of every record in a ring.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// CLOCK_BOOTTIME, nanoseconds.
    pub at_ns: u64,
    /// One of the `KIND_…` constants.
    pub kind: u32,
    /// The processor that produced it.
    pub cpu: u32,
    /// Counts what this processor produced of this class, what was lost too: a gap is a loss, and says when it was.
    pub seq: u64,
}

const _: () = assert!(size_of::<Header>() == 24);

/// Who was running when a probe fired.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Thread group: what user space calls the process id.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Always 0.
    pub _pad: u32,
    /// Id of its cgroup v2: the inode number of the cgroup's folder.
    pub cgroup: u64,
    /// Name, NUL padded. Chosen by the process.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<Task>() == 40);

impl Task {
    /// Nobody.
    pub const NONE: Self = Self { tgid: 0, tid: 0, uid: 0, _pad: 0, cgroup: 0, comm: [0; COMM_LEN] };
}

/// Classes of events: each has a ring of its own, so that none can starve another, and is counted by itself. The index
/// into [`Counts`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Writes to watched files.
    File = 0,
    /// Exits of watched processes.
    Exit = 1,
    /// What the descendants of watched processes do: fork, exec, exit.
    Process = 2,
    /// Slow system calls of watched processes.
    Slow = 3,
}

/// How many classes there are.
pub const CLASSES: usize = 4;

/// All classes, by index.
pub const ALL_CLASSES: [Class; CLASSES] = [Class::File, Class::Exit, Class::Process, Class::Slow];

/// Names of the classes, by index.
pub const CLASS_NAMES: [&str; CLASSES] = ["file", "exit", "process", "slow"];

/// Why an event was lost. The index into [`Counts`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its ring was full.
    Full = 0,
    /// There were more of it than the configured rate.
    Throttled = 1,
    /// The map of watched processes was full, so that a descendant is not watched.
    Untracked = 2,
}

/// How many causes there are.
pub const CAUSES: usize = 3;

/// Names of the causes, by index.
pub const CAUSE_NAMES: [&str; CAUSES] = ["full", "throttled", "untracked"];

/// Per-processor counters of the one emit helper: for each class `produced = delivered + Σ lost`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Events that a probe wanted to send, by class.
    pub produced: [u64; CLASSES],
    /// Of them, those that never reached a ring, by cause and class.
    pub lost: [[u64; CLASSES]; CAUSES],
}

const _: () = assert!(size_of::<Counts>() == 128);

/// A record that user space can decode.
///
/// # Safety
///
/// The implementor is `repr(C)`, begins with a [`Header`], has no implicit padding, and every bit pattern of it is a
/// valid value (integers and arrays of integers only).
pub unsafe trait Record: Copy {
    /// Its kind.
    const KIND: u32;

    /// The record in `bytes`, if it is one of this kind and length.
    #[must_use]
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() || kind(bytes) != Some(Self::KIND) {
            return None;
        }
        // SAFETY: the length was checked, the read is unaligned, and by the trait's contract any bits are valid.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

/// The header of the record in `bytes`.
#[must_use]
pub fn header(bytes: &[u8]) -> Option<Header> {
    Some(Header {
        at_ns: u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?),
        kind: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?),
        cpu: u32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?),
        seq: u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?),
    })
}

/// The kind of the record in `bytes`.
#[must_use]
pub fn kind(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?))
}
