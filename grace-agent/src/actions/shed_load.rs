//! Verb `shed_load` and its reverse `give_back`: takes load of a declared process off the host, and puts it back.
//!
//! A declared process leads a process group of its own (`start_process.rs`), and all of the group is meant. What was done is
//! noted before it is done, so that the next agent gives back what a killed one took.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process_group, setpriority_pgrp};
use serde::{Deserialize, Serialize};

use crate::action::Shed;

/// The lowest priority there is.
const NICEST: i32 = 19;

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
    /// Its priority.
    pub throttled: bool,
    /// Its time.
    pub frozen: bool,
    /// Itself.
    pub terminated: bool,
}

/// Notes that `step` will be taken from `name`.
pub fn note(running: &Path, name: &str, step: Shed) -> Result<(), ShedError> {
    let mut taken = taken(running, name).unwrap_or_default();
    match step {
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

/// Gives the group that `pid` leads the lowest priority.
pub fn throttle(pid: u32) -> Result<(), ShedError> {
    renice(pid, NICEST)
}

/// Stops the group that `pid` leads.
pub fn freeze(pid: u32) -> Result<(), ShedError> {
    signal(pid, Signal::STOP, "stop")
}

/// Puts back what was taken from the group that `pid` leads. Its priority was that of the agent, which is the normal one:
/// declared processes begin with it.
pub fn give_back(pid: u32, taken: &Taken) -> Result<(), ShedError> {
    if taken.throttled {
        renice(pid, 0)?;
    }
    // Also where no freeze is noted: to a group that runs it does nothing.
    signal(pid, Signal::CONT, "continue")
}

/// Forgets what was taken.
pub fn forget(running: &Path, name: &str) {
    // There may be nothing to forget.
    drop(fs::remove_file(file(running, name)));
}

fn file(running: &Path, name: &str) -> PathBuf {
    running.join(format!("{name}.shed"))
}

fn renice(pid: u32, nice: i32) -> Result<(), ShedError> {
    setpriority_pgrp(Some(group(pid)?), nice).map_err(|err| ShedError::Refused {
        what: "set the priority of",
        pid,
        source: err.into(),
    })
}

fn signal(pid: u32, signal: Signal, what: &'static str) -> Result<(), ShedError> {
    kill_process_group(group(pid)?, signal).map_err(|err| ShedError::Refused {
        what,
        pid,
        source: err.into(),
    })
}

/// The group that `pid` leads. Never 0 or 1: those mean the caller's own group, and everything.
fn group(pid: u32) -> Result<Pid, ShedError> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw).ok_or_else(|| ShedError::Refused {
        what: "address",
        pid,
        source: io::ErrorKind::InvalidInput.into(),
    })
}
