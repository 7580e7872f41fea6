//! Verb `start_process`: starts a declared command, its output captured in files, and notes it for adoption.
//!
//! Output goes to files in the state folder, not through pipes, so that a process neither blocks on a busy agent nor
//! dies with it. Who it is (pid, start time, boot) is noted beside, so that the next agent adopts it instead of
//! starting a second one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::own_cgroup::{self, Cgroups};
use super::spawn::{self, Ids, Program, Rlimit, Spawned};
use crate::config::Process;
pub use crate::sources::processes::Started;
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
    /// Its group does not exist.
    #[error("no group `{0}` in /etc/group")]
    NoGroup(String),
    /// The list of users or groups cannot be read.
    #[error("cannot read {0}")]
    Users(&'static str, #[source] io::Error),
    /// The configuration has no program.
    #[error("the command is empty")]
    Empty,
    /// What an earlier run left behind does not end.
    #[error("what an earlier run left in {path} does not end, not even by SIGKILL", path = .0.display())]
    Leftovers(PathBuf),
    /// systemd does not start its unit.
    #[error("{0}")]
    Unit(String),
    /// The program does not start.
    #[error("cannot start {program}", program = .program.escape_debug())]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where what is kept of processes lies.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Captured output.
    pub logs: &'a Path,
    /// Notes for the next agent.
    pub running: &'a Path,
    /// Of this boot.
    pub boot_id: &'a str,
    /// Their cgroups.
    pub cgroups: &'a Cgroups,
}

/// Who was started, kept in `running/NAME.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    pid: u32,
    start_ticks: u64,
    boot_id: String,
    #[serde(default)]
    cgroup: Option<PathBuf>,
}

/// Where the output of process `name` goes, in the folder of logs: stdout and stderr.
#[must_use]
pub fn log_files(logs: &Path, name: &str) -> [PathBuf; 2] {
    [logs.join(format!("{name}.stdout")), logs.join(format!("{name}.stderr"))]
}

/// Starts `process`. What an earlier run of it left in its cgroup is killed first: it would have its ports and files.
pub fn start(process: &Process, place: Place<'_>) -> Result<Started, StartError> {
    let program = process.command.first().ok_or(StartError::Empty)?;
    let [stdout, stderr] = log_files(place.logs, &process.name);
    let output = [open_log(&stdout)?, open_log(&stderr)?];
    let ids = ids(process.user.as_deref(), process.group.as_deref())?;
    let mut own = place.cgroups.make(&process.name);
    if let Some((path, _)) = own.as_ref().filter(|(path, _)| own_cgroup::is_populated(path)) {
        tracing::warn!(process = %process.name, "an earlier run left processes behind: they are killed");
        if !own_cgroup::clear(path) {
            return Err(StartError::Leftovers(path.clone()));
        }
        own = place.cgroups.make(&process.name);
    }
    let limits = limits(process);
    let env = environment(&process.env);
    let started = |cgroup: Option<&OwnedFd>| {
        spawn::spawn(&Program {
            command: &process.command,
            env: &env,
            cwd: process.cwd.as_deref().unwrap_or(Path::new("/")),
            ids: ids.as_ref(),
            limits: &limits,
            oom_score_adj: process.oom_score_adj,
            output: [&output[0], &output[1]],
            cgroup,
        })
        .map_err(|source| StartError::Spawn { program: program.clone(), source })
    };
    let (Spawned { pid, pidfd }, cgroup) = match own {
        None => (started(None)?, None),
        Some((path, folder)) => match started(Some(&folder)) {
            Ok(spawned) => (spawned, Some(path)),
            // Either the program does not start, or the cgroup takes no process: then it starts without one.
            Err(_) => {
                own_cgroup::remove(&path);
                (started(None)?, None)
            }
        },
    };
    if let Some(StartTicks(ticks)) = start_ticks(pid) {
        let note =
            Note { pid, start_ticks: ticks, boot_id: place.boot_id.to_owned(), cgroup: cgroup.clone() };
        if let Err(err) = write_note(place.running, &process.name, &note) {
            tracing::warn!(process = %process.name, %err, "cannot be noted for adoption: after a restart of the agent it would be started twice");
        }
    }
    Ok(Started { pid, pidfd, stderr, cgroup })
}

/// The environment of what Grace starts: `own`, and little of its own.
#[must_use]
pub fn environment(own: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let kept = ["PATH", "HOME", "LANG"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let mut all: BTreeMap<String, String> = kept.collect();
    all.extend(own.clone());
    all.into_iter().collect()
}

fn limits(process: &Process) -> Vec<Rlimit> {
    let number = |name: &str| {
        Some(match name {
            "nofile" => libc::RLIMIT_NOFILE,
            "nproc" => libc::RLIMIT_NPROC,
            "as" => libc::RLIMIT_AS,
            "data" => libc::RLIMIT_DATA,
            "stack" => libc::RLIMIT_STACK,
            "core" => libc::RLIMIT_CORE,
            "cpu" => libc::RLIMIT_CPU,
            "fsize" => libc::RLIMIT_FSIZE,
            "memlock" => libc::RLIMIT_MEMLOCK,
            _ => return None,
        })
    };
    let limits = process.limits.iter();
    limits
        .filter_map(|(name, limit)| Some(Rlimit { resource: number(name)?, value: limit.value() }))
        .collect()
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
pub fn adopt(name: &str, place: Place<'_>) -> Adopted {
    let note = fs::read(place.running.join(format!("{name}.json")))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok())
        .filter(|note| note.boot_id == place.boot_id);
    let Some(note) = note else { return Adopted::Never };
    // The handle first, then the identity: checked the other way round the number could change hands in between.
    match pidfd_of(note.pid) {
        Ok(pidfd) if start_ticks(note.pid) == Some(StartTicks(note.start_ticks)) && !is_zombie(note.pid) => {
            let [_, stderr] = log_files(place.logs, name);
            Adopted::Runs(Started { pid: note.pid, pidfd, stderr, cgroup: note.cgroup })
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

fn open_log(path: &Path) -> Result<OwnedFd, StartError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map(File::into)
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

/// Who runs as `user` and `group`; none: as the agent.
pub fn ids(user: Option<&str>, group: Option<&str>) -> Result<Option<Ids>, StartError> {
    let gid = group.map(group_id).transpose()?;
    let Some(user) = user else {
        let uid = rustix::process::geteuid().as_raw();
        return Ok(gid.map(|gid| Ids { uid, gid, groups: vec![gid] }));
    };
    let (name, uid, own) = account(user)?;
    let gid = gid.unwrap_or(own);
    let mut groups = vec![gid];
    groups.extend(lines("/etc/group")?.iter().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid: u32 = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == name).then_some(gid)
    }));
    groups.dedup();
    Ok(Some(Ids { uid, gid, groups }))
}

/// User and group id of a user, by name or number.
pub fn user_ids(user: &str) -> Result<(u32, u32), StartError> {
    account(user).map(|(_, uid, gid)| (uid, gid))
}

fn account(user: &str) -> Result<(String, u32, u32), StartError> {
    lines("/etc/passwd")?
        .iter()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?;
            (name == user || uid == user).then_some(())?;
            Some((name.to_owned(), uid.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .ok_or_else(|| StartError::NoUser(user.to_owned()))
}

fn group_id(group: &str) -> Result<u32, StartError> {
    lines("/etc/group")?
        .iter()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?;
            (name == group || gid == group).then(|| gid.parse().ok())?
        })
        .ok_or_else(|| StartError::NoGroup(group.to_owned()))
}

fn lines(path: &'static str) -> Result<Vec<String>, StartError> {
    let text = fs::read_to_string(path).map_err(|err| StartError::Users(path, err))?;
    Ok(text.lines().map(str::to_owned).collect())
}
