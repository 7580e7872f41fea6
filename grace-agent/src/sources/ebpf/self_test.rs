//! Each probe that can be provoked from here must see its own canary before it is called `ok`: attached is not yet
//! seeing. The probes for exec, exit and signals would need a process to be started; a source starts none.

use grace_common::InodeKey;
use rustix::fs::{MemfdFlags, Timespec, Timestamps, fstat, futimens, memfd_create};

use super::{Probes, Ring, RingEvent};
use crate::clock;

/// Syscalls made to be counted.
const CALLS: u64 = 64;

/// Provokes `syscall_count` and `file_dirty` and notes what they saw. The ring must not be read by anybody else yet.
pub(super) fn run(probes: &Probes, ring: &mut Ring) {
    let when = clock::wall_rfc3339();
    let before = total(probes);
    for _ in 0..CALLS {
        let _ = rustix::process::getppid();
    }
    probes.self_tested("syscall_count", total(probes) >= before + CALLS, when.clone());
    match dirty_canary(probes, ring) {
        Ok(seen) => probes.self_tested("file_dirty", seen, when),
        Err(err) => tracing::debug!(%err, "no canary for file_dirty"),
    }
}

/// Writes into a file that lives in memory and nowhere else, so that no file system of the host is touched.
fn dirty_canary(probes: &Probes, ring: &mut Ring) -> rustix::io::Result<bool> {
    let file = memfd_create("grace-canary", MemfdFlags::CLOEXEC)?;
    let stat = fstat(&file)?;
    let key = InodeKey { dev: super::kernel_dev(stat.st_dev), _pad: 0, ino: stat.st_ino };
    // A time of change in the past: within one tick of the kernel's clock a second change changes no time, and a kernel
    // with coarse times then has nothing to make dirty.
    let past = Timespec { tv_sec: 1, tv_nsec: 0 };
    futimens(&file, &Timestamps { last_access: past, last_modification: past })?;
    probes.watch_inode(key);
    rustix::io::write(&file, b"canary")?;
    probes.unwatch_inode(key);
    let mut seen = false;
    while let Some(event) = ring.take_event() {
        seen |= matches!(event, RingEvent::Dirty(record) if record.inode == key);
    }
    Ok(seen)
}

fn total(probes: &Probes) -> u64 {
    probes.syscalls().iter().map(|class| class.calls).sum()
}
