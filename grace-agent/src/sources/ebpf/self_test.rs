//! Each probe must see its own canary before it is called `ok`: attached is not yet seeing. At start and every hour.
//!
//! Files and syscall counts are provoked by the agent itself; fork, exec, exit, signals and slow calls by a process
//! that it starts for the purpose (`grace canary`).

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use grace_common::{InodeKey, SYSCALL_CLASS_NAMES, SYSCALL_CLASSES};
use rustix::fs::{MemfdFlags, Timespec, Timestamps, fstat, futimens, memfd_create};
use rustix::process::{Pid, Signal, kill_process};

use super::Probes;
use super::known::LATENCY;
use super::reader::{Canary, Reader};
use crate::clock;

/// Syscalls made to be counted.
const CALLS: u64 = 64;

/// How long the canary process may take for its part.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the process prints when it has done its part.
pub const DONE: &str = "done";

/// Provokes `syscall_count` and `file_dirty` and notes what they saw. Takes well under a millisecond.
pub fn quick(probes: &Probes, reader: &Reader, scratch: &Path) {
    let when = clock::wall_rfc3339();
    let before = probes.calls();
    for _ in 0..CALLS {
        let _ = rustix::process::getppid();
    }
    probes.self_tested("syscall_count", probes.calls() >= before + CALLS, &when);
    match dirty_canary(probes, reader) {
        Ok(seen) => probes.self_tested("file_dirty", seen, &when),
        Err(err) => tracing::debug!(%err, "no canary for file_dirty"),
    }
    match name_canary(probes, reader, scratch) {
        Ok(seen) => probes.self_tested("file_name", seen, &when),
        Err(err) => tracing::debug!(%err, "no canary for file_name"),
    }
}

/// Renames and removes a file in `scratch`, a folder of the agent's own.
fn name_canary(probes: &Probes, reader: &Reader, scratch: &Path) -> std::io::Result<bool> {
    let (before, after) = (scratch.join("canary"), scratch.join("canary-renamed"));
    let file = std::fs::File::create(&before)?;
    let stat = fstat(&file)?;
    let key = InodeKey { dev: super::kernel_dev(stat.st_dev), _pad: 0, ino: stat.st_ino };
    reader.canary(|canary| *canary = Canary { inode: Some(key), ..Canary::default() });
    probes.watch_inode(key, None, Path::new(""));
    let renamed = std::fs::rename(&before, &after).and_then(|()| std::fs::remove_file(&after));
    probes.unwatch_inode(key);
    reader.drain();
    let canary = reader.canary(std::mem::take);
    renamed.map(|()| canary.renamed && canary.unlinked)
}

/// Writes into a file that lives in memory and nowhere else, so that no file system of the host is touched.
fn dirty_canary(probes: &Probes, reader: &Reader) -> rustix::io::Result<bool> {
    let file = memfd_create("grace-canary", MemfdFlags::CLOEXEC)?;
    let stat = fstat(&file)?;
    let key = InodeKey { dev: super::kernel_dev(stat.st_dev), _pad: 0, ino: stat.st_ino };
    // A time of change in the past: within one tick of the kernel's clock a second change changes no time, and a kernel
    // with coarse times then has nothing to make dirty.
    let past = Timespec { tv_sec: 1, tv_nsec: 0 };
    futimens(&file, &Timestamps { last_access: past, last_modification: past })?;
    reader.canary(|canary| *canary = Canary { inode: Some(key), ..Canary::default() });
    probes.watch_inode(key, None, Path::new(""));
    let written = rustix::io::write(&file, b"canary");
    let state = probes.last_touch(key).is_some_and(|touch| touch.task.tgid == std::process::id());
    probes.unwatch_inode(key);
    reader.drain();
    let seen = reader.canary(std::mem::take).dirty;
    written.map(|_| seen && state)
}

/// Starts a process that forks, runs another program, waits in a call and is killed; notes what the probes saw. Call
/// while nobody else turns the timing of calls on or off. `timed`: that shall be on afterwards.
#[expect(
    clippy::disallowed_methods,
    reason = "the one program that is started to be seen, and it is this one"
)]
pub fn with_process(probes: &Probes, reader: &Reader, timed: bool) {
    let when = clock::wall_rfc3339();
    let spawned = Command::new("/proc/self/exe")
        .arg("canary")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(err) => {
            tracing::warn!(%err, "no canary process: exec, fork, exit, signal and latency are not tested");
            return;
        }
    };
    let root = child.id();
    reader.canary(|canary| *canary = Canary { root: Some(root), ..Canary::default() });
    probes.watch_task(root);
    // Waiting for its own child is slow, however short; the rest of its calls would only use up the rate.
    let mut slow_from = [u64::MAX; SYSCALL_CLASSES];
    if let Some(wait) = SYSCALL_CLASS_NAMES.iter().position(|name| *name == "wait") {
        slow_from[wait] = 0;
    }
    probes.set_slow_from(root, slow_from);
    let timing = probes.time_syscalls(true);
    let began = child.stdin.take().is_some_and(|mut stdin| stdin.write_all(b"\n").is_ok());
    let done = began && child.stdout.take().is_some_and(wait_for_done);
    let calls = probes.proc_stats(root).map_or(0, |stats| stats.calls);
    let ours = i32::try_from(root).ok().and_then(Pid::from_raw);
    // Not reaped yet, so the number is still this child's.
    let killed = ours.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    let status = child.wait();
    probes.time_syscalls(timed);
    reader.drain();
    probes.unwatch_task(root);
    let canary = reader.canary(std::mem::take);
    if !done || !killed || !status.is_ok_and(|s| s.signal() == Some(libc::SIGTERM)) {
        tracing::warn!("the canary process did not do its part: exec, fork, exit and signal are not tested");
        return;
    }
    let exit = canary.exit.filter(|exit| exit.status & 0x7f == libc::SIGTERM as u32);
    let sent = exit.is_some_and(|exit| exit.sender.task.tgid == std::process::id());
    let named = probes.proc(root).is_some_and(|proc| !proc.path.starts_with(&[0]));
    probes.self_tested("fork", canary.fork, &when);
    probes.self_tested("exec", canary.exec && named, &when);
    probes.self_tested("task_exit", exit.is_some(), &when);
    probes.self_tested("signal", sent, &when);
    if calls == 0 {
        probes.self_tested("syscall_count", false, &when);
    }
    if timing {
        probes.self_tested(LATENCY, canary.slow, &when);
    }
}

/// Waits for the word, with a deadline.
fn wait_for_done(out: std::process::ChildStdout) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let patience =
        rustix::time::Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut fds = [PollFd::new(&out, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&patience)).is_ok_and(|n| n > 0);
    let mut word = [0; 16];
    ready
        && rustix::io::read(&out, &mut word)
            .is_ok_and(|n| word.get(..n).is_some_and(|w| w.starts_with(DONE.as_bytes())))
}
