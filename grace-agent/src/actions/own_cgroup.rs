//! A cgroup (v2) for each process that Grace starts: all that it starts is in there, too, so that all of it can be killed,
//! stopped and held back at once, whatever it forks.
//!
//! They lie below the agent's own cgroup, in a folder that is named after the state folder. Where there is no cgroup v2 or it may
//! not be written to, processes have only their process group. What a host's cgroups can do beyond killing and freezing depends
//! on its controllers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::sha256;
use crate::sources::cgroup::mount;

/// What is asked for; what there is stands in `cgroup.controllers`.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];

/// What a process that is throttled gets of one processor, in microseconds of a period; and its weight against others.
const CPU_MAX: &str = "20000 100000";
const LEAST: &str = "1";
/// How long what was killed may take to be gone.
const LEFTOVERS: Duration = Duration::from_secs(2);
/// The share of its memory that it may keep before it is slowed down, in percent.
const KEEPS: u64 = 90;

/// Where the cgroups of this agent's processes are.
#[derive(Debug)]
pub struct Cgroups {
    base: Result<PathBuf, String>,
    controllers: Vec<&'static str>,
}

impl Cgroups {
    /// Those of the agent with this state folder. Nothing is made yet.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let base = base(state);
        let controllers = base.as_ref().map(|base| controllers(base)).unwrap_or_default();
        Self { base, controllers }
    }

    /// What they can do, for people.
    pub fn describe(&self) -> Result<String, String> {
        let base = self.base.as_ref().map_err(Clone::clone)?;
        let more = match self.controllers.as_slice() {
            [] => "no controllers: throttling is by nice value".to_owned(),
            have => format!("controllers {}", have.join(", ")),
        };
        Ok(format!("a cgroup each below {}, {more}", base.display()))
    }

    /// Makes the cgroup of `name`, where that is possible: its folder and the same, opened.
    #[must_use]
    pub fn make(&self, name: &str) -> Option<(PathBuf, OwnedFd)> {
        let base = self.base.as_ref().ok()?;
        let make = || {
            make_folder(base)?;
            for controller in &self.controllers {
                // Refused by one that is not to be had here: then it is not there below either.
                drop(write(base.join("cgroup.subtree_control"), format!("+{controller}")));
            }
            let path = base.join(name);
            // A new one each time: into one that was killed once, kernels from 6.15 on start only what is killed, too. One in
            // which something still runs stays.
            remove(&path);
            make_folder(&path)?;
            Ok::<_, io::Error>((path.clone(), File::open(path)?.into()))
        };
        make().inspect_err(|err| tracing::warn!(process = name, %err, "has no cgroup of its own")).ok()
    }

    /// Takes those away in which nothing runs, and the folder of all where none is left.
    pub fn close(&self) {
        let Ok(base) = &self.base else { return };
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            // Processes that run on keep theirs; what else is there are the cgroup's own files.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        remove(base);
    }
}

/// Writes into a file that is there: to make one in a cgroup is refused in other words than that it is not there.
fn write(path: PathBuf, text: impl AsRef<[u8]>) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_ref())
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The folder in which each process has its own.
fn base(state: &Path) -> Result<PathBuf, String> {
    let mount = mount().ok_or("no cgroup v2 is mounted")?;
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|err| format!("/proc/self/cgroup: {err}"))?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("the agent is in no cgroup v2")?;
    // Where an earlier agent of a delegated unit moved itself to.
    let own = own.strip_suffix("/grace-agent").unwrap_or(own);
    let state = state.canonicalize().map_err(|err| format!("{}: {err}", state.display()))?;
    let digest = sha256::of_bytes(state.as_os_str().as_encoded_bytes()).to_string();
    let name: String = digest.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    let above = mount.join(own);
    rustix::fs::access(&above, rustix::fs::Access::WRITE_OK)
        .map_err(|err| format!("{} cannot be written to: {err}", above.display()))?;
    Ok(above.join(format!("grace-{name}")))
}

/// The controllers that can be handed down to `base`.
fn controllers(base: &Path) -> Vec<&'static str> {
    let Some(above) = base.parent() else { return Vec::new() };
    let listed = |file: &str| fs::read_to_string(above.join(file)).unwrap_or_default();
    let have = listed("cgroup.controllers");
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    let wanted: Vec<&'static str> = CONTROLLERS.into_iter().filter(|name| has(&have, name)).collect();
    for name in &wanted {
        let enable = || write(above.join("cgroup.subtree_control"), format!("+{name}"));
        if enable().is_err_and(|err| err.raw_os_error() == Some(libc::EBUSY)) && step_aside(above) {
            drop(enable());
        }
    }
    let enabled = listed("cgroup.subtree_control");
    wanted.into_iter().filter(|name| has(&enabled, name)).collect()
}

/// A cgroup that hands controllers down may hold no process itself. Where it was delegated to this agent, the agent moves into
/// one beside its processes'.
fn step_aside(above: &Path) -> bool {
    let mut value = [0u8; 8];
    let delegated = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        rustix::fs::getxattr(above, *name, &mut value[..]).is_ok_and(|n| n == 1 && value[0] == b'1')
    });
    let aside = above.join("grace-agent");
    delegated && make_folder(&aside).is_ok() && write(aside.join("cgroup.procs"), "0").is_ok()
}

/// Whether anything runs in the cgroup at `path`.
#[must_use]
pub fn is_populated(path: &Path) -> bool {
    let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Kills all that runs in the cgroup at `path`, waits until it is gone, and takes the cgroup away. False: something stays.
#[must_use]
pub fn clear(path: &Path) -> bool {
    let began = Stopwatch::start();
    while is_populated(path) {
        if let Err(err) = kill(path) {
            tracing::warn!(cgroup = %path.display(), %err, "not all of it can be killed at once");
        }
        if began.elapsed() > LEFTOVERS {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    remove(path);
    true
}

/// Kills all that runs in the cgroup at `path`.
pub fn kill(path: &Path) -> io::Result<()> {
    match write(path.join("cgroup.kill"), "1") {
        // Before Linux 5.14: one after the other, until none is left; who forks meanwhile is met by the next round.
        Err(err) if err.kind() == io::ErrorKind::NotFound && path.is_dir() => kill_each(path),
        done => done,
    }
}

fn kill_each(path: &Path) -> io::Result<()> {
    // Stopped, nobody forks.
    let frozen = freeze(path, true);
    for pid in fs::read_to_string(path.join("cgroup.procs"))?.lines().filter_map(|line| line.parse().ok()) {
        if let Ok(pidfd) = crate::sources::processes::pidfd_of(pid) {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        }
    }
    frozen.and_then(|()| freeze(path, false))
}

/// Stops all that runs in the cgroup at `path`, or lets it run on.
pub fn freeze(path: &Path, freeze: bool) -> io::Result<()> {
    write(path.join("cgroup.freeze"), if freeze { "1" } else { "0" })
}

/// Holds back what runs in the cgroup at `path`: processors, memory, disks. What was set, in words; empty: there are no
/// controllers.
#[must_use]
pub fn throttle(path: &Path) -> Vec<String> {
    let memory: Option<u64> =
        fs::read_to_string(path.join("memory.current")).ok().and_then(|text| text.trim().parse().ok());
    let high = memory.map(|now| (now / 100 * KEEPS).to_string());
    let wanted = [
        ("cpu.max", Some(CPU_MAX.to_owned())),
        ("cpu.weight", Some(LEAST.to_owned())),
        ("io.weight", Some(format!("default {LEAST}"))),
        ("memory.high", high),
    ];
    let set = |(file, value): (&str, Option<String>)| {
        let value = value?;
        write(path.join(file), &value).ok()?;
        Some(format!("{file} = {value}"))
    };
    wanted.into_iter().filter_map(set).collect()
}

/// Takes back what `throttle` did.
pub fn release(path: &Path) {
    let normal =
        [("cpu.max", "max"), ("cpu.weight", "100"), ("io.weight", "default 100"), ("memory.high", "max")];
    for (file, value) in normal {
        // Not there without its controller: then nothing was set.
        if let Err(err) = write(path.join(file), value)
            && path.join(file).exists()
        {
            tracing::error!(path = %path.display(), file, %err, "cannot be set back");
        }
    }
}

/// Takes the cgroup at `path` away, where nothing runs in it.
pub fn remove(path: &Path) {
    // What still runs in it keeps it; the next start uses it again.
    drop(fs::remove_dir(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_set_where_there_are_controllers_and_taken_back() {
        // A folder that looks like a cgroup with three controllers: what is written where is what counts.
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for file in ["cpu.max", "cpu.weight", "io.weight", "memory.high"] {
            write(file, "");
        }
        write("memory.current", "1000000\n");
        let set = throttle(dir.path());
        let was = read("memory.high");
        assert_eq!(
            set,
            ["cpu.max = 20000 100000", "cpu.weight = 1", "io.weight = default 1", "memory.high = 900000"]
        );
        assert_eq!(was, "900000");
        // A file keeps the rest of what was longer; a cgroup does not.
        release(dir.path());
        assert_eq!((&read("cpu.max")[..3], &read("memory.high")[..3]), ("max", "max"));
    }
}
