//! Verb `start_process`: starts a declared command, its output captured in files, and notes it for adoption.
//!
//! Output goes to files in the state folder, not through pipes, so that a process neither blocks on a busy agent nor
//! dies with it. Who it is (pid, start time, boot) is noted beside, so that the next agent adopts it instead of
//! starting a second one.
#![expect(clippy::disallowed_methods, reason = "starting programs is this verb's work")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::config::Process;
use crate::sources::processes::{StartTicks, pidfd_of, start_ticks};

/// A captured log is cut when it is larger than this, in bytes; as much is kept beside as `NAME.stderr.1`.
pub const LOG_MAX: u64 = 16 << 20;

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its log cannot be written.
    #[error("cannot open the log {path}", path = .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its user does not exist.
    #[error("no user `{0}` in /etc/passwd")]
    NoUser(String),
    /// The list of users cannot be read.
    #[error("cannot read /etc/passwd")]
    Users(#[source] io::Error),
    /// The configuration has no program.
    #[error("the command is empty")]
    Empty,
    /// The program does not start.
    #[error("cannot start {program}", program = .program.escape_debug())]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel has no pidfds.
    #[error("cannot open a pidfd of the new process")]
    Pidfd(#[source] io::Error),
}

/// A process that runs.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: u32,
    /// A handle of exactly this process.
    pub pidfd: OwnedFd,
    /// Where its stderr goes.
    pub stderr: PathBuf,
}

/// Who was started, kept in `running/NAME.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    pid: u32,
    start_ticks: u64,
    boot_id: String,
}

/// Where the output of process `name` goes, in the folder of logs: stdout and stderr.
#[must_use]
pub fn log_files(logs: &Path, name: &str) -> [PathBuf; 2] {
    [logs.join(format!("{name}.stdout")), logs.join(format!("{name}.stderr"))]
}

/// Starts `process`.
pub fn start(process: &Process, logs: &Path, running: &Path, boot_id: &str) -> Result<Started, StartError> {
    let (program, args) = process.command.split_first().ok_or(StartError::Empty)?;
    let [stdout, stderr] = log_files(logs, &process.name);
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(open_log(&stdout)?)
        .stderr(open_log(&stderr)?)
        .current_dir(process.cwd.as_deref().unwrap_or(Path::new("/")))
        // Its own group: a Ctrl-C for the agent is not for it.
        .process_group(0)
        .env_clear();
    for name in ["PATH", "HOME", "LANG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(&process.env);
    if let Some(user) = &process.user {
        let (uid, gid) = user_ids(user)?;
        command.uid(uid).gid(gid);
    }
    let child = command.spawn().map_err(|source| StartError::Spawn { program: program.clone(), source })?;
    let pid = child.id();
    // Nobody but Grace reaps it, and not before it has been opened here: the number cannot be another's yet.
    let pidfd = pidfd_of(pid).map_err(StartError::Pidfd)?;
    if let Some(StartTicks(ticks)) = start_ticks(pid) {
        let note = Note { pid, start_ticks: ticks, boot_id: boot_id.to_owned() };
        if let Err(err) = write_note(running, &process.name, &note) {
            tracing::warn!(process = %process.name, %err, "cannot be noted for adoption: after a restart of the agent it would be started twice");
        }
    }
    Ok(Started { pid, pidfd, stderr })
}

/// What became of a process that an earlier agent had started.
#[derive(Debug)]
pub enum Adopted {
    /// It still runs.
    Runs(Started),
    /// It ran in this boot, as this pid, and has ended.
    Ended(u32),
    /// No agent started it in this boot.
    Never,
}

/// Finds the process `name` of an earlier agent.
#[must_use]
pub fn adopt(name: &str, logs: &Path, running: &Path, boot_id: &str) -> Adopted {
    let note = fs::read(running.join(format!("{name}.json")))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok())
        .filter(|note| note.boot_id == boot_id);
    let Some(note) = note else { return Adopted::Never };
    // The handle first, then the identity: checked the other way round the number could change hands in between.
    match pidfd_of(note.pid) {
        Ok(pidfd) if start_ticks(note.pid) == Some(StartTicks(note.start_ticks)) && !is_zombie(note.pid) => {
            let [_, stderr] = log_files(logs, name);
            Adopted::Runs(Started { pid: note.pid, pidfd, stderr })
        }
        _ => Adopted::Ended(note.pid),
    }
}

/// Forgets who ran as `name`.
pub fn forget(name: &str, running: &Path) {
    // It may never have run.
    drop(fs::remove_file(running.join(format!("{name}.json"))));
}

/// Cuts the captured logs of `name` that have grown too large. What is written between the copy and the cut is lost;
/// the log says so by beginning in the middle.
pub fn cut_logs(logs: &Path, name: &str) -> io::Result<()> {
    for path in log_files(logs, name) {
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.size() > LOG_MAX => {
                let mut kept = path.clone().into_os_string();
                kept.push(".1");
                fs::copy(&path, &kept)?;
                OpenOptions::new().write(true).open(&path)?.set_len(0)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn open_log(path: &Path) -> Result<File, StartError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|source| StartError::Log { path: path.to_owned(), source })
}

fn write_note(running: &Path, name: &str, note: &Note) -> io::Result<()> {
    fs::create_dir_all(running)?;
    let temp = running.join(format!(".{name}.json"));
    fs::write(&temp, serde_json::to_vec(note)?)?;
    // No fsync: after a power cut nothing runs that could be adopted.
    fs::rename(temp, running.join(format!("{name}.json")))
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rfind(')').is_some_and(|at| stat[at..].starts_with(") Z")))
}

/// User and group id of a user given by name or number.
/// User and group id of a user, by name or number.
pub fn user_ids(user: &str) -> Result<(u32, u32), StartError> {
    let passwd = fs::read_to_string("/etc/passwd").map_err(StartError::Users)?;
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?;
            (name == user || uid == user).then_some(())?;
            Some((uid.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .ok_or_else(|| StartError::NoUser(user.to_owned()))
}
