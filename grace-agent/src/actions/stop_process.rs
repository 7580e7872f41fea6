//! Verb `stop_process`: ends a declared process, through its pidfd, so that nobody else is meant: its stop signal first, and
//! SIGKILL for it and all that it started when it does not follow.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::own_cgroup;
use crate::clock::Stopwatch;
use crate::config::{Process, signal_number};
use crate::sources::processes::{Ending, Processes, signal_of};

/// How long a process that was killed may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// Why a process could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The kernel refused the signal.
    #[error("cannot be signalled")]
    Signal(#[source] std::io::Error),
    /// It is still there.
    #[error("does not end, not even by SIGKILL ({}): it may hang in the kernel", .0.escape_debug())]
    Hangs(String),
}

/// How a process is asked to end.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// With this signal.
    pub signal: Signal,
    /// It has so much time.
    pub patience: Duration,
}

impl How {
    /// As `process` declares it.
    #[must_use]
    pub fn of(process: &Process) -> Self {
        let signal = signal_number(&process.stop_signal).and_then(signal_of);
        Self { signal: signal.unwrap_or(Signal::TERM), patience: process.stop_timeout.get() }
    }
}

/// Ends the process `name`. False: it did not run.
pub fn stop(processes: &Processes, name: &str, how: How, ending: Ending) -> Result<bool, StopError> {
    let mut ran = false;
    let cgroup = processes.cgroup(name);
    for (signal, patience) in [(how.signal, how.patience), (Signal::KILL, KILLED)] {
        let began = Stopwatch::start();
        if !processes.ask_to_end(name, signal, ending).map_err(StopError::Signal)? {
            break;
        }
        ran = true;
        match &cgroup {
            Some(path) if signal == Signal::KILL => kill(path),
            Some(path) => {
                // Whoever is frozen does not hear that it shall end.
                drop(own_cgroup::freeze(path, false));
            }
            None => {}
        }
        let after = if signal == Signal::KILL { Signal::KILL } else { Signal::CONT };
        // It may have ended by now.
        drop(processes.signal_group(name, after));
        while began.elapsed() < patience && processes.running(name).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if processes.running(name).is_none() {
            break;
        }
    }
    if processes.running(name).is_some() {
        return Err(StopError::Hangs(name.to_owned()));
    }
    if let Some(path) = cgroup.filter(|_| ran) {
        // What it started ends with it.
        if !own_cgroup::clear(&path) {
            tracing::warn!(cgroup = %path.display(), "not all of it ends, not even by SIGKILL");
        }
    }
    Ok(ran)
}

fn kill(cgroup: &Path) {
    if let Err(err) = own_cgroup::kill(cgroup) {
        tracing::warn!(cgroup = %cgroup.display(), %err, "not all of it can be killed at once");
    }
}
