//! Verb `stop_process`: ends a declared process, through its pidfd, so that nobody else is meant: SIGTERM, and SIGKILL
//! when it does not follow.

use std::time::Duration;

use rustix::process::Signal;

use crate::clock::Stopwatch;
use crate::sources::processes::{Ending, Processes};

/// How long a process that was asked to end may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// Ends the process `name`. False: it did not run.
pub fn stop(processes: &Processes, name: &str, ending: Ending) -> Result<bool, StopError> {
    let mut ran = false;
    for signal in [Signal::TERM, Signal::KILL] {
        let began = Stopwatch::start();
        if !processes.ask_to_end(name, signal, ending).map_err(StopError::Signal)? {
            return Ok(ran);
        }
        ran = true;
        while began.elapsed() < PATIENCE {
            if processes.running(name).is_none() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Err(StopError::Hangs(name.to_owned()))
}
