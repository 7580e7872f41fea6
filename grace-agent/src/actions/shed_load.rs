//! Verb `shed_load` and its reverse `give_back`: takes load of a declared process off the host, and puts it back.
//!
//! A process that Grace started has a cgroup of its own, which is held back or frozen as a whole; where there is none, or it has
//! no controllers, the process group that it leads (`start_process.rs`) gets the lowest priority, or is stopped. What was done
//! is noted before it is done, so that the next agent gives back what a killed one took.
#![expect(unsafe_code, reason = "ioprio_set(2) has no safe wrapper")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, setpriority_pgrp, setpriority_process};
use serde::{Deserialize, Serialize};

use super::own_cgroup;
use crate::action::Shed;
use crate::config::signal_number;
use crate::sources::processes::{Processes, signal_of};

/// The lowest priority there is.
const NICEST: i32 = 19;

/// `ioprio_set(2)`: a process or a group; the idle class, and none of its own (include/uapi/linux/ioprio.h).
const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_WHO_PGRP: i32 = 2;
const IOPRIO_IDLE: i32 = 3 << 13;
const IOPRIO_NONE: i32 = 0;

/// Programs that nothing is ever taken from, by the kernel's name of them, whatever a `match` says: without them nobody could
/// mend the host.
const PROTECTED: [&str; 4] = ["init", "systemd", "sshd", "dbus-daemon"];

/// Why load could not be shed or given back.
#[derive(Debug, thiserror::Error)]
pub enum ShedError {
    /// It cannot be noted: then it is not done either, or nobody would give it back.
    #[error("cannot note it in {path}", path = .path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no process to take anything from.
    #[error("pid {0} is the host's way in, or Grace itself or its ancestor: nothing is taken from it")]
    Protected(u32),
    /// It does not run any more.
    #[error("does not run")]
    Gone,
    /// The kernel refuses.
    #[error("cannot {what} process group {pid}")]
    Refused {
        /// Such as `stop`.
        what: &'static str,
        /// Its leader.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was taken from a process, kept in `running/NAME.shed`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// It was told to do with less.
    #[serde(default)]
    pub notified: bool,
    /// Its priority.
    pub throttled: bool,
    /// Its time.
    pub frozen: bool,
    /// Itself.
    pub terminated: bool,
}

impl Taken {
    /// How hard, at most.
    #[must_use]
    pub fn step(&self) -> Option<Shed> {
        let steps = [
            (self.terminated, Shed::Terminate),
            (self.frozen, Shed::Freeze),
            (self.throttled, Shed::Throttle),
            (self.notified, Shed::Notify),
        ];
        steps.into_iter().find(|(taken, _)| *taken).map(|(_, step)| step)
    }
}

/// Notes that `step` will be taken from `name`.
pub fn note(running: &Path, name: &str, step: Shed) -> Result<(), ShedError> {
    let mut taken = taken(running, name).unwrap_or_default();
    match step {
        Shed::Notify => taken.notified = true,
        Shed::Throttle => taken.throttled = true,
        Shed::Freeze => taken.frozen = true,
        Shed::Terminate => taken.terminated = true,
    }
    let path = file(running, name);
    let write = || {
        fs::create_dir_all(running)?;
        let temp = running.join(format!(".{name}.shed"));
        fs::write(&temp, serde_json::to_vec(&taken)?)?;
        fs::rename(temp, &path)
    };
    write().map_err(|source| ShedError::Note { path: path.clone(), source })
}

/// What was taken from `name`; none: nothing.
#[must_use]
pub fn taken(running: &Path, name: &str) -> Option<Taken> {
    serde_json::from_slice(&fs::read(file(running, name)).ok()?).ok()
}

/// Whether anything may be taken from the process `name` at all.
pub fn may(processes: &Processes, name: &str) -> Result<(), ShedError> {
    match processes.held(name, |pid, _| protected(pid)) {
        None => Err(ShedError::Gone),
        Some(Some(pid)) => Err(ShedError::Protected(pid)),
        Some(None) => Ok(()),
    }
}

/// Tells the process `name` to do with less, by `signal` where it has one. What was done, in words.
pub fn notify(processes: &Processes, name: &str, signal: Option<&str>) -> Result<String, ShedError> {
    let Some((word, signal)) = signal.and_then(|word| Some((word, signal_of(signal_number(word)?)?))) else {
        return Ok("was told, if it asks".to_owned());
    };
    // To it alone: what it started was not asked whether it takes a signal.
    let sent = processes.held(name, |pid, pidfd| (pid, rustix::process::pidfd_send_signal(pidfd, signal)));
    match sent {
        None => Err(ShedError::Gone),
        Some((pid, Err(err))) => Err(ShedError::Refused { what: "signal", pid, source: err.into() }),
        Some((_, Ok(()))) => Ok(format!("was told by SIG{}", word.trim_start_matches("SIG"))),
    }
}

/// Holds the process `name` and all that it started back. What was done, in words.
pub fn throttle(processes: &Processes, name: &str) -> Result<String, ShedError> {
    let set = processes.cgroup(name).map(|path| own_cgroup::throttle(&path)).unwrap_or_default();
    renice(processes, name, NICEST, IOPRIO_IDLE)?;
    let mut done = "has the lowest priority".to_owned();
    if !set.is_empty() {
        done.push_str(&format!(" and {}", set.join(", ")));
    }
    Ok(done)
}

/// Stops the process `name` and all that it started.
pub fn freeze(processes: &Processes, name: &str) -> Result<String, ShedError> {
    if let Some(path) = processes.cgroup(name)
        && own_cgroup::freeze(&path, true).is_ok()
    {
        return Ok("is frozen".to_owned());
    }
    signal(processes, name, Signal::STOP, "stop")?;
    Ok("is stopped".to_owned())
}

/// Puts back what was taken from the process `name`, the last first. Its priority was that of the agent, which is the normal
/// one: declared processes begin with it.
pub fn give_back(processes: &Processes, name: &str, taken: &Taken) -> Result<(), ShedError> {
    let cgroup = processes.cgroup(name);
    if let Some(path) = &cgroup {
        own_cgroup::freeze(path, false).map_err(|source| ShedError::Note { path: path.clone(), source })?;
    }
    // Also where no freeze is noted: to a group that runs it does nothing.
    signal(processes, name, Signal::CONT, "continue")?;
    if taken.throttled {
        if let Some(path) = &cgroup {
            own_cgroup::release(path);
        }
        renice(processes, name, 0, IOPRIO_NONE)?;
    }
    Ok(())
}

/// Forgets what was taken.
pub fn forget(running: &Path, name: &str) {
    // There may be nothing to forget.
    drop(fs::remove_file(file(running, name)));
}

fn file(running: &Path, name: &str) -> PathBuf {
    running.join(format!("{name}.shed"))
}

fn renice(processes: &Processes, name: &str, nice: i32, io: i32) -> Result<(), ShedError> {
    let set = |pid: u32, _: &std::os::fd::OwnedFd| {
        let refused = |source| ShedError::Refused { what: "set the priority of", pid, source };
        let raw = raw(pid)?;
        let leads = rustix::process::getpgid(Some(raw)).is_ok_and(|group| group == raw);
        let done =
            if leads { setpriority_pgrp(Some(raw), nice) } else { setpriority_process(Some(raw), nice) };
        done.map_err(|err| refused(err.into()))?;
        let which = if leads { IOPRIO_WHO_PGRP } else { IOPRIO_WHO_PROCESS };
        // SAFETY: ioprio_set(2) takes three integers. Where the kernel has no I/O priorities there are none to set.
        unsafe { libc::syscall(libc::SYS_ioprio_set, which, raw.as_raw_nonzero().get(), io) };
        Ok(())
    };
    processes.held(name, set).unwrap_or(Err(ShedError::Gone))
}

fn signal(processes: &Processes, name: &str, signal: Signal, what: &'static str) -> Result<(), ShedError> {
    let pid = processes.running(name).map_or(0, |(pid, _)| pid);
    match processes.signal_group(name, signal) {
        Ok(true) => Ok(()),
        Ok(false) => Err(ShedError::Gone),
        Err(source) => Err(ShedError::Refused { what, pid, source }),
    }
}

/// The number as the kernel takes it. Never 0 or 1: those mean the caller's own group, and everything.
fn raw(pid: u32) -> Result<Pid, ShedError> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw).ok_or_else(|| ShedError::Refused {
        what: "address",
        pid,
        source: io::ErrorKind::InvalidInput.into(),
    })
}

/// `pid`, where it is one that nothing is taken from: the first process, this one, one that it descends from, or one of
/// those that a host is mended through.
fn protected(pid: u32) -> Option<u32> {
    let stat = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent = |pid: u32| -> Option<u32> {
        let stat = stat(pid)?;
        stat.get(stat.rfind(')')? + 1..)?.split_whitespace().nth(1)?.parse().ok()
    };
    let mut next = Some(std::process::id());
    // No chain of parents is longer; one that changes meanwhile ends somewhere.
    for _ in 0..64 {
        let Some(own) = next.filter(|own| *own > 0) else { break };
        if own == pid {
            return Some(pid);
        }
        next = parent(own);
    }
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let file = exe.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Its name it can choose itself, the file that it runs it cannot: both are asked, for either may be unreadable.
    let named = PROTECTED.iter().any(|name| comm.trim_end() == *name || file == *name);
    (pid <= 1 || named).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_this_one_and_its_ancestors_are_protected() {
        let own = std::process::id();
        assert_eq!(protected(1), Some(1));
        assert_eq!(protected(own), Some(own));
        let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        assert_eq!(protected(parent), Some(parent));
        // Nobody has this number.
        assert_eq!(protected(u32::MAX >> 1), None);
    }
}
