//! Verb `run_hook`: runs a declared command without a shell, in a clean environment, as its user, for a bounded time; what it
//! says is kept, up to a bound.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use super::own_cgroup::{self, Cgroups};
use super::spawn::{self, Program};
use super::start_process::{StartError, environment, ids};
use crate::clock::Stopwatch;
use crate::config::Hook;

/// Bytes of what it says that are kept; the rest is read and thrown away, so that it does not wait.
const OUTPUT_MAX: usize = 64 << 10;
/// Characters of it that are told.
const TOLD: usize = 400;

/// What stands for the placeholders of a hook's arguments.
#[derive(Debug, Default)]
pub struct Arguments {
    /// `{replicas}`.
    pub replicas: Option<u32>,
    /// `{trigger}`.
    pub trigger: String,
    /// `{subject}`, as people see it.
    pub subject: String,
    /// `{firing}`.
    pub firing: String,
}

/// Why a hook was not run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be started.
    #[error("cannot be started")]
    Start(#[source] StartError),
    /// An argument would be taken for an option.
    #[error("argument {0} would begin with `-`: what stands for a placeholder must not be an option")]
    Option(usize),
    /// An argument cannot be one.
    #[error("argument {0} would hold a NUL character")]
    Nul(usize),
    /// Its output cannot be read, or its end not waited for.
    #[error("cannot be followed")]
    Io(#[source] io::Error),
    /// It took too long.
    #[error("was killed after {}: {said}", humantime::format_duration(*.after))]
    Timeout {
        /// Its time.
        after: Duration,
        /// What it had said. Untrusted text, escaped.
        said: String,
    },
    /// It failed.
    #[error("{status}: {said}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said. Untrusted text, escaped.
        said: String,
    },
}

/// Runs `hook` and waits for its end. What it said, escaped.
pub fn run(hook: &Hook, arguments: &Arguments, cgroups: &Cgroups) -> Result<String, HookError> {
    let command = fill(&hook.command, arguments)?;
    let ids = ids(hook.user.as_deref(), hook.group.as_deref()).map_err(HookError::Start)?;
    let (reader, writer) = io::pipe().map_err(HookError::Io)?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|err| HookError::Io(err.into()))?;
    let writer: OwnedFd = writer.into();
    let env = environment(&hook.env);
    let own = cgroups.make(&format!("hook.{}", hook.name));
    let program = |cgroup| Program {
        command: &command,
        env: &env,
        cwd: hook.cwd.as_deref().unwrap_or(Path::new("/")),
        ids: ids.as_ref(),
        limits: &[],
        oom_score_adj: 0,
        output: [&writer, &writer],
        cgroup,
    };
    let cgroup = own.as_ref().map(|(path, _)| path.clone());
    let spawned = spawn::spawn(&program(own.as_ref().map(|(_, fd)| fd)))
        .or_else(|_| spawn::spawn(&program(None)))
        .map_err(|source| {
            let program = command.first().cloned().unwrap_or_default();
            HookError::Start(StartError::Spawn { program, source })
        })?;
    drop(writer);
    let mut running = Running { pidfd: spawned.pidfd, cgroup, reader, said: Vec::new() };
    let waited = running.wait(hook.timeout.get());
    running.end();
    let said = shown(&running.said);
    match waited.map_err(HookError::Io)? {
        None => Err(HookError::Timeout { after: hook.timeout.get(), said }),
        Some(status) if status.success() => Ok(said),
        Some(status) => Err(HookError::Failed { status, said }),
    }
}

/// The command with what stands for its placeholders. No argument becomes two, and none an option.
fn fill(command: &[String], arguments: &Arguments) -> Result<Vec<String>, HookError> {
    let replicas = arguments.replicas.map(|n| n.to_string()).unwrap_or_default();
    let values = [
        ("{replicas}", replicas.as_str()),
        ("{trigger}", &arguments.trigger),
        ("{subject}", &arguments.subject),
        ("{firing}", &arguments.firing),
    ];
    let fill = |(index, argument): (usize, &String)| {
        let mut out = String::new();
        let mut rest = argument.as_str();
        // Once from left to right: what was put in is not looked at again.
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            let (taken, value) = values
                .iter()
                .find(|(name, _)| from.starts_with(name))
                .map_or((1, "{"), |(n, v)| (n.len(), *v));
            out.push_str(value);
            rest = &from[taken..];
        }
        out.push_str(rest);
        if out.starts_with('-') && !argument.starts_with('-') {
            return Err(HookError::Option(index));
        }
        if out.contains('\0') {
            return Err(HookError::Nul(index));
        }
        Ok(out)
    };
    command.iter().enumerate().map(fill).collect()
}

/// A hook that runs.
struct Running {
    pidfd: OwnedFd,
    cgroup: Option<PathBuf>,
    reader: io::PipeReader,
    said: Vec<u8>,
}

impl Running {
    /// Reads what it says until it ends. None: it did not within `patience`.
    fn wait(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let began = Stopwatch::start();
        loop {
            let left = patience.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN), PollFd::new(&self.reader, PollFlags::IN)];
            // Once nobody has the other end it is always readable: then only the end is waited for.
            let (ended, readable) = match poll(&mut fds, left.as_ref()) {
                Ok(_) => (!fds[0].revents().is_empty(), !fds[1].revents().is_empty()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(err) => return Err(err.into()),
            };
            if readable && self.read()? && !ended {
                // Closed its output and runs on.
                let mut end = [PollFd::new(&self.pidfd, PollFlags::IN)];
                let left = Timespec::try_from(patience.saturating_sub(began.elapsed())).ok();
                poll(&mut end, left.as_ref())?;
                continue;
            }
            if ended {
                self.read()?;
                let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)?;
                let raw = status.map_or(0, |s| {
                    s.exit_status().map_or_else(|| s.terminating_signal().unwrap_or(0), |code| code << 8)
                });
                return Ok(Some(std::os::unix::process::ExitStatusExt::from_raw(raw)));
            }
        }
    }

    /// Reads what there is. True: there will be no more.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        // A hook that talks without end is looked after in between.
        for _ in 0..64 {
            match self.reader.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => {
                    let room = OUTPUT_MAX.saturating_sub(self.said.len()).min(n);
                    self.said.extend_from_slice(&buffer[..room]);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(false)
    }

    /// Ends all of it that still runs.
    fn end(&self) {
        // Has ended and was waited for: then it means nobody.
        if rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        if let Some(path) = self.cgroup.as_ref().filter(|path| !own_cgroup::clear(path)) {
            tracing::warn!(cgroup = %path.display(), "what a hook started does not end, not even by SIGKILL");
        }
    }
}

/// What it said last, in one line.
fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.trim();
    let from = text.char_indices().rev().take(TOLD).last().map_or(0, |(at, _)| at);
    match text.get(from..).unwrap_or_default() {
        "" => "said nothing".to_owned(),
        said => format!("said: {}", said.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    fn hook(command: &[&str], timeout: Span) -> Hook {
        let command: Vec<String> = command.iter().map(|s| (*s).to_owned()).collect();
        serde_json::from_value(serde_json::json!({ "name": "h", "command": command, "timeout": timeout }))
            .unwrap()
    }

    fn run_it(command: &[&str], timeout: Span, subject: &str) -> Result<String, HookError> {
        let arguments = Arguments { replicas: Some(3), subject: subject.into(), ..Arguments::default() };
        let state = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::open(state.path());
        let said = run(&hook(command, timeout), &arguments, &cgroups);
        cgroups.close();
        said
    }

    #[test]
    fn arguments_stay_one_each_whatever_is_put_in() {
        let hostile = "queue a b; touch /tmp/x $(id) `id` {replicas} '\"";
        let said =
            run_it(&["/usr/bin/printf", "<%s>", "n={replicas}", "{subject}", "{x}"], Span::secs(20), hostile);
        let expected = format!("said: {}", format!("<n=3><{hostile}><{{x}}>").escape_debug());
        assert_eq!(said.unwrap(), expected);
    }

    #[test]
    fn what_is_put_in_becomes_no_option() {
        let refused = run_it(&["/bin/echo", "{subject}"], Span::secs(20), "--help");
        assert!(matches!(refused, Err(HookError::Option(1))), "{refused:?}");
        assert!(run_it(&["/bin/echo", "--to={subject}"], Span::secs(20), "--help").is_ok());
    }

    #[test]
    fn one_that_fails_says_how_and_one_that_talks_without_end_is_cut_and_killed() {
        let failed = run_it(&["/bin/sh", "-c", "echo no >&2; exit 3"], Span::secs(20), "").unwrap_err();
        assert!(
            matches!(&failed, HookError::Failed { status, said } if status.code() == Some(3) && said == "said: no"),
            "{failed}"
        );
        let endless = run_it(&["/bin/sh", "-c", "yes x & yes y"], Span::millis(300), "").unwrap_err();
        assert!(matches!(&endless, HookError::Timeout { .. }), "{endless}");
        assert!(endless.to_string().len() < 1000);
        let quiet =
            run_it(&["/bin/sh", "-c", "exec >&- 2>&-; sleep 100"], Span::millis(300), "").unwrap_err();
        assert!(matches!(&quiet, HookError::Timeout { .. }), "{quiet}");
    }

    #[test]
    fn its_environment_is_its_own() {
        let said = run_it(&["/usr/bin/env"], Span::secs(20), "").unwrap();
        assert!(!said.contains("CARGO") && said.contains("PATH="), "{said}");
    }
}
