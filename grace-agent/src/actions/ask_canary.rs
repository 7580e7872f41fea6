//! Asks a model something whose answers are known: runs the canary of a `[[model]]` and takes what it writes to stdout.
//!
//! In a process group of its own, for a limited time and with a limited length of answers: what hangs or floods is ended.
#![expect(clippy::disallowed_methods, reason = "starting programs is this verb's work")]

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::clock::Stopwatch;

/// Answers at most, in bytes.
const ANSWERS_MAX: u64 = 1 << 20;

/// Between two looks whether it has ended.
const STEP: Duration = Duration::from_millis(20);

/// What is still in the pipe when it has ended must come within this time: a descendant may hold the pipe open.
const REST: Duration = Duration::from_secs(1);

/// Why there are no answers.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// It names no program.
    #[error("the canary's command is empty")]
    Empty,
    /// It does not start.
    #[error("the canary {program} does not start", program = .program.escape_debug())]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("the canary ended with {0}")]
    Failed(ExitStatus),
    /// It took too long.
    #[error("the canary gave no answer within {}", humantime::format_duration(*.0))]
    TooLong(Duration),
    /// Its answers are cut.
    #[error("the canary's answers have more than {} KiB", ANSWERS_MAX >> 10)]
    TooMuch,
}

/// Runs `command` and returns what it writes to stdout.
///
/// # Errors
/// Where it does not start, fails, takes longer than `timeout`, or writes too much.
pub fn ask(command: &[String], timeout: Duration) -> Result<Vec<u8>, CanaryError> {
    let (program, arguments) = command.split_first().ok_or(CanaryError::Empty)?;
    let start = |source| CanaryError::Start { program: program.clone(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let Some(stdout) = child.stdout.take() else { return Err(CanaryError::Empty) };
    let (tell, told) = channel();
    let reader = std::thread::Builder::new().name("grace-canary-out".into()).spawn(move || {
        let mut answers = Vec::new();
        // A broken pipe ends it like a closed one.
        drop(stdout.take(ANSWERS_MAX + 1).read_to_end(&mut answers));
        drop(tell.send(answers));
    });
    let watch = Stopwatch::start();
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if watch.elapsed() < timeout => std::thread::sleep(STEP),
            Ok(None) | Err(_) => break None,
        }
    };
    end_group(&mut child, ended.is_some());
    reader.map_err(start)?;
    let answers = told.recv_timeout(REST).unwrap_or_default();
    match ended {
        None => Err(CanaryError::TooLong(timeout)),
        Some(status) if !status.success() => Err(CanaryError::Failed(status)),
        Some(_) if answers.len() as u64 > ANSWERS_MAX => Err(CanaryError::TooMuch),
        Some(_) => Ok(answers),
    }
}

/// Ends what it started, and itself.
fn end_group(child: &mut Child, ended: bool) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // While the leader is not waited for, its number cannot be another's.
    if let Some(group) = group.filter(|_| !ended) {
        if let Err(err) = kill_process_group(group, Signal::KILL) {
            tracing::debug!(%err, "the canary's group is gone");
        }
        drop(child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout_ms: u64) -> Result<Vec<u8>, CanaryError> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        ask(&command, Duration::from_millis(timeout_ms))
    }

    #[test]
    fn a_canary_answers_fails_hangs_or_floods() {
        assert_eq!(sh("echo 4", 10_000).unwrap(), b"4\n");
        assert!(matches!(sh("exit 3", 10_000), Err(CanaryError::Failed(_))));
        assert!(matches!(sh("sleep 100 & sleep 100", 200), Err(CanaryError::TooLong(_))));
        assert!(matches!(sh("head -c 3000000 /dev/zero; true", 10_000), Err(CanaryError::TooMuch)));
        assert!(matches!(ask(&["/nonexistent".to_owned()], Duration::ZERO), Err(CanaryError::Start { .. })));
        assert!(matches!(ask(&[], Duration::ZERO), Err(CanaryError::Empty)));
    }
}
