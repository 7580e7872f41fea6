//! Verb `restart_process`: ends a declared process that runs but does not work, and starts it again.

use super::start_process::{self, Place, StartError, Started};
use super::stop_process::{How, StopError, stop};
use crate::config::Process;
use crate::event::Timestamp;
use crate::sources::processes::{Ending, Processes};

/// Why a process was not restarted.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// It could not be ended, and runs on as before.
    #[error("the process could not be ended")]
    Stop(#[source] StopError),
    /// It was ended, and could not be started.
    #[error("the process was ended and cannot be started")]
    Start(#[source] StartError),
}

/// What was done.
#[derive(Debug)]
pub enum Restarted {
    /// The process with this id was ended, if there was one, and another one was started.
    Done(Option<u32>, Started),
    /// It was started as this process after it was judged: what was judged is gone.
    Meanwhile(u32),
}

/// Restarts `process`, which was judged at `judged`.
pub fn restart(
    processes: &Processes,
    process: &Process,
    judged: Timestamp,
    place: Place<'_>,
) -> Result<Restarted, RestartError> {
    let old = processes.running(&process.name);
    if let Some((pid, since)) = old
        && since > judged
    {
        return Ok(Restarted::Meanwhile(pid));
    }
    if let Err(err) = stop(processes, &process.name, How::of(process), Ending::Restart) {
        // When it ends some day, that is an end like any other: it must be started then.
        if processes.runs_on(&process.name) {
            return Err(RestartError::Stop(err));
        }
    }
    let started = start_process::start(process, place).map_err(RestartError::Start)?;
    Ok(Restarted::Done(old.map(|(pid, _)| pid), started))
}
