//! What a benchmark starts and makes, and that nothing of it is left behind.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, process};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::places::on_path;

/// Whoever was asked to end has this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A folder for a benchmark's files, on the disk where the temporary files are; removed with everything in it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Result<Self> {
        let base = env::temp_dir().canonicalize().context("the folder for temporary files")?;
        let dir = base.join(format!("grace-bench-{name}-{}", process::id()));
        // Not into what someone else has laid there.
        DirBuilder::new().mode(0o755).create(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A folder in it.
    pub(super) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.join(name);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program that was started here; dropped, it is asked to end, then made to.
pub(super) struct Guard(Child);

impl Guard {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Not reaped yet, so the number is still its own.
        if self.is_running() {
            signal(self.0.id(), Signal::TERM);
            let began = Instant::now();
            while self.is_running() && began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// A program for [`spawn`]. It also ends when we do: interrupted, a benchmark leaves nothing running.
pub(super) fn program(name: impl AsRef<OsStr>) -> Command {
    // setpriv arranges for the signal, then becomes the program.
    let Some(setpriv) = on_path("setpriv") else { return crate::process::program(name) };
    let mut command = crate::process::program(setpriv);
    command.args(["--pdeathsig", "TERM", "--"]).arg(name);
    command
}

/// Starts a program in `dir`; what it says goes to `log`.
pub(super) fn spawn(command: &mut Command, dir: &Path, log: &Path) -> Result<Guard> {
    let log = to(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    start(command, dir)
}

/// Starts two, the second of which reads what the first prints; what else they say goes to `log`.
pub(super) fn spawn_pipe(
    first: &mut Command,
    second: &mut Command,
    dir: &Path,
    log: &Path,
) -> Result<[Guard; 2]> {
    let log = to(log)?;
    let mut from = start(first.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone()?), dir)?;
    let pipe = from.0.stdout.take().context("no pipe")?;
    let into = start(second.stdin(pipe).stdout(log.try_clone()?).stderr(log), dir)?;
    Ok([from, into])
}

fn to(log: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).open(log).with_context(|| log.display().to_string())
}

fn start(command: &mut Command, dir: &Path) -> Result<Guard> {
    // A group of its own: the terminal's Ctrl-C is for us, who then see to the rest.
    let child = command.current_dir(dir).process_group(0).spawn();
    Ok(Guard(child.with_context(|| format!("cannot start `{}`", crate::process::typed(command)))?))
}

/// Sends a signal to a process, which may be gone.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until `done` says so; an error, with `what` did not happen, after `limit`.
pub(super) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > limit {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The last of what a program said, for a message.
pub(super) fn log_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
