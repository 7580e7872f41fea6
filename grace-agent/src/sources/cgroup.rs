//! Control groups (v2): from the id that the probes see to its folder, and whether its memory limit killed.
#![expect(unsafe_code, reason = "open_by_handle_at(2) has no safe wrapper; the call says why it holds")]

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Handle type of kernfs: the 64-bit id itself (`FILEID_KERNFS`, include/linux/exportfs.h).
const FILEID_KERNFS: i32 = 0xfe;

/// Where cgroup v2 is mounted.
pub(crate) fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let at = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(at))
    })
}

/// The folder of the cgroup with this id, while it exists. Needs root.
pub(super) fn path(id: u64) -> Option<PathBuf> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    let folder = fs::File::open(mount()?).ok()?;
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: `handle` begins like `struct file_handle` and holds the `bytes` that it announces; it and the folder's
    // descriptor outlive the call.
    let fd = unsafe {
        libc::open_by_handle_at(folder.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH | libc::O_CLOEXEC)
    };
    if fd < 0 {
        return None;
    }
    // SAFETY: a descriptor that was just opened and that nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

/// The limit in bytes that killed something in the cgroup at `path`: its own or an ancestor's.
pub(super) fn memory_limit_that_killed(path: &Path) -> Option<u64> {
    path.ancestors().take_while(|p| p.join("memory.events").exists()).find_map(|p| {
        let max = fs::read_to_string(p.join("memory.max")).ok()?.trim().parse().ok()?;
        let events = fs::read_to_string(p.join("memory.events")).ok()?;
        let killed = events.lines().filter_map(|l| l.strip_prefix("oom_kill ")).any(|n| n.trim() != "0");
        killed.then_some(max)
    })
}
