//! What lets the agent act when the host has no memory left: the kernel's out-of-memory killer takes it last, and what it
//! needs is not paged out. What the agent starts inherits neither.
#![expect(unsafe_code, reason = "mlockall(2) with MCL_ONFAULT has no safe wrapper")]

use std::fs;
use std::io;

/// As much as other guards of the host have (`OOMScoreAdjust=-900`): the last but what may never be chosen.
const LAST: i16 = -900;

/// More than this is not locked, in bytes: what the agent holds then is no small guard's memory any more.
const LOCKED_MAX: u64 = 256 << 20;

/// Asks the kernel to choose this process last when there is no memory left. Needs root: without it, it is chosen like any
/// other.
///
/// # Errors
/// Where the kernel refuses.
pub fn chosen_last() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", LAST.to_string())
}

/// Gives back what [`chosen_last`] took, in a process that inherited it: it is chosen like any other, or before by so much.
///
/// # Errors
/// Where the kernel refuses.
pub fn chosen_like_others(before: i16) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", before.max(0).to_string())
}

/// The same for the child `pid`, which another room started.
pub fn is_like_others(pid: u32) {
    // It may have ended.
    drop(fs::write(format!("/proc/{pid}/oom_score_adj"), "0"));
}

/// Keeps what is in memory of this process now where it is, if that is `resident` bytes and not too much: its programs, and
/// what they work with. Whatever is touched later of the same places stays, too; new ones are not locked. Children do not inherit it.
///
/// # Errors
/// Where it is too much, or the kernel refuses.
pub fn stays_in_memory(resident: u64) -> io::Result<()> {
    if resident > LOCKED_MAX {
        return Err(io::Error::other(format!("{} MiB are more than is locked", resident >> 20)));
    }
    // SAFETY: mlockall(2) takes flags and no pointer, and changes no memory.
    let rc = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
