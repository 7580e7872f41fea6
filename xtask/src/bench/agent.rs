//! A running `grace` for a benchmark, with its own state folder and socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::guard::{Guard, Scratch, log_of, program, spawn};
use crate::process;

/// An agent is there within this time, or is not coming.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent; dropped, it is ended.
pub(super) struct Agent {
    bin: PathBuf,
    socket: PathBuf,
    guard: Guard,
    /// From its start to its first answer.
    pub(super) answered: Duration,
}

impl Agent {
    /// Starts an agent in repair mode whose files lie in `dir`, and waits for its first answer.
    pub(super) fn start(bin: &Path, dir: &Path, config: &str) -> Result<Self> {
        Self::start_in("repair", bin, dir, config)
    }

    /// [`Self::start`] in this mode.
    pub(super) fn start_in(mode: &str, bin: &Path, dir: &Path, config: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let file = dir.join("grace.toml");
        fs::write(&file, config).with_context(|| file.display().to_string())?;
        let socket = dir.join("grace.sock");
        let mut command = program(bin);
        command.arg("run").arg("--config").arg(&file).arg("--state-dir").arg(dir.join("state"));
        command.arg("--socket").arg(&socket).args(["--mode", mode, "--quiet"]);
        let log = dir.join("log");
        let began = Instant::now();
        let guard = spawn(&mut command, dir, &log)?;
        let mut agent = Self { bin: bin.to_owned(), socket, guard, answered: Duration::ZERO };
        loop {
            // No use asking before there is a socket: each question is a process, on few cores.
            if agent.socket.exists() && agent.ask(&["status", "--json"]).is_ok() {
                agent.answered = began.elapsed();
                return Ok(agent);
            }
            if !agent.guard.is_running() || began.elapsed() > PATIENCE {
                bail!("grace does not run:\n{}", log_of(&log));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the command line says to these words.
    pub(super) fn ask(&self, words: &[&str]) -> Result<Vec<u8>> {
        let mut command = self.command();
        process::output(command.args(words))
    }

    /// One document.
    pub(super) fn status(&self) -> Result<Value> {
        serde_json::from_slice(&self.ask(&["status", "--json"])?).context("`grace status --json`")
    }

    /// All firings.
    pub(super) fn firings(&self) -> Result<Vec<Value>> {
        let out = self.ask(&["firings", "--json"])?;
        let lines = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).context("`grace firings --json`")).collect()
    }

    /// Lets the agent own these files as they are.
    pub(super) fn own(&self, files: &[PathBuf]) -> Result<()> {
        for some in files.chunks(100) {
            process::output(self.command().arg("snapshot").args(some))?;
        }
        Ok(())
    }

    /// The agent's process.
    pub(super) fn pid(&self) -> u32 {
        self.guard.pid()
    }

    /// Its process alone, for whoever has nothing to ask.
    pub(super) fn into_guard(self) -> Guard {
        self.guard
    }

    /// Ends the agent and waits for its end.
    pub(super) fn stop(self) {
        drop(self);
    }

    fn command(&self) -> Command {
        let mut command = process::program(&self.bin);
        command.arg("--socket").arg(&self.socket).stdin(Stdio::null());
        command
    }
}

/// An agent with `count` files of its own in `etc/` that it owns, each of `size` bytes; and those files.
pub(super) fn with_files(
    bin: &Path,
    scratch: &Scratch,
    config: &str,
    count: usize,
    size: usize,
) -> Result<(Agent, Vec<PathBuf>)> {
    let files = super::fill(&scratch.dir("etc")?, count, size)?;
    let agent = Agent::start(bin, &scratch.dir("grace")?, config)?;
    agent.own(&files)?;
    Ok((agent, files))
}
