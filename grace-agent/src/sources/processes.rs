//! The source of process facts: notices the end of declared processes and says how they ended.
//!
//! A pidfd per process tells that it ended; waitid(2) its status, where Grace is the parent; the task_exit probe the
//! status of adopted ones and who sent the fatal signal. One thread waits on all pidfds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};

use grace_common::TaskExit;
use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};

use super::ebpf::Probes;
use super::ebpf::reader::Reader;
use super::who::actor;
use crate::clock;
use crate::event::{Actor, Event, Exit, Kind, Timestamp};
use crate::prompt::prompt;

/// Lines of stderr kept as evidence, and bytes of each.
const TAIL_LINES: usize = 10;
const TAIL_LINE: usize = 400;
/// Bytes read from the end of the log for them.
const TAIL_BYTES: u64 = 8 << 10;

/// A running declared process.
#[derive(Debug)]
struct Running {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
    since: Timestamp,
    stderr: PathBuf,
    /// Grace ends it on purpose.
    asked_for: bool,
}

/// The processes that are watched now.
pub struct Processes {
    epoll: OwnedFd,
    running: Mutex<BTreeMap<u64, Running>>,
    next: Mutex<u64>,
    probes: Option<Arc<Probes>>,
    reader: Option<Arc<Reader>>,
    out: SyncSender<Event>,
}

/// Identity of a process beyond its number, which is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartTicks(pub u64);

/// Start time of `pid` in clock ticks since boot (field 22 of /proc/PID/stat); none where it is gone.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<StartTicks> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, parentheses and spaces too: count from its end.
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    rest.split_whitespace().nth(19)?.parse().ok().map(StartTicks)
}

impl Processes {
    /// Starts the thread.
    pub fn start(
        probes: Option<Arc<Probes>>,
        reader: Option<Arc<Reader>>,
        out: SyncSender<Event>,
    ) -> io::Result<Arc<Self>> {
        let this = Arc::new(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            running: Mutex::new(BTreeMap::new()),
            next: Mutex::new(0),
            probes,
            reader,
            out,
        });
        let weak = Arc::downgrade(&this);
        let fd = this.epoll.try_clone()?;
        std::thread::Builder::new().name("grace-processes".into()).spawn(move || {
            prompt();
            let mut events = Vec::with_capacity(64);
            loop {
                events.clear();
                let waited = epoll::wait(&fd, rustix::buffer::spare_capacity(&mut events), None);
                let Some(this) = weak.upgrade() else { return };
                if waited.is_ok() {
                    for event in &events {
                        this.ended(event.data.u64());
                    }
                }
            }
        })?;
        Ok(this)
    }

    /// Watches `pid` as the declared process `name`. The caller vouches that `pidfd` is of that process.
    pub fn watch(&self, name: &str, pid: u32, pidfd: OwnedFd, stderr: PathBuf) -> io::Result<()> {
        if let Some(probes) = &self.probes {
            // Refused only where the map is full; the status then still comes from waitid.
            probes.watch_task(pid);
        }
        let slot = {
            let mut next = lock(&self.next);
            *next += 1;
            *next
        };
        // In the table before the kernel can tell of its end.
        let mut running = lock(&self.running);
        let data = epoll::EventData::new_u64(slot);
        epoll::add(&self.epoll, &pidfd, data, epoll::EventFlags::IN)?;
        let since = clock::boottime();
        let name = name.to_owned();
        running.insert(slot, Running { name, pid, pidfd, since, stderr, asked_for: false });
        Ok(())
    }

    /// A running process by name: its pid and since when it runs.
    #[must_use]
    pub fn running(&self, name: &str) -> Option<(u32, Timestamp)> {
        lock(&self.running).values().find(|r| r.name == name).map(|r| (r.pid, r.since))
    }

    /// Sends `signal` to the process `name` through its pidfd, and notes that its end is asked for.
    pub fn ask_to_end(&self, name: &str, signal: rustix::process::Signal) -> io::Result<bool> {
        let mut running = lock(&self.running);
        let Some(found) = running.values_mut().find(|r| r.name == name) else { return Ok(false) };
        found.asked_for = true;
        match rustix::process::pidfd_send_signal(&found.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(true),
            Err(err) => Err(err.into()),
        }
    }

    fn ended(&self, slot: u64) {
        let Some(running) = lock(&self.running).remove(&slot) else { return };
        let _ = epoll::delete(&self.epoll, &running.pidfd);
        let at = clock::boottime();
        let status = rustix::process::waitid(WaitId::PidFd(running.pidfd.as_fd()), WaitIdOptions::EXITED);
        let seen = self.reader.as_ref().and_then(|r| r.exit_of(running.pid));
        if let Some(probes) = &self.probes {
            probes.unwatch_task(running.pid);
        }
        let exit = self.describe(&running, status.ok().flatten().as_ref(), seen.as_ref(), at);
        let stderr_tail = tail(&running.stderr).unwrap_or_default();
        let kind = Kind::ProcessExited { name: running.name, pid: running.pid, exit, stderr_tail };
        // Fails only when the engine has ended, with the agent.
        drop(self.out.send(Event { at, kind }));
    }

    fn describe(
        &self,
        running: &Running,
        waited: Option<&WaitIdStatus>,
        seen: Option<&TaskExit>,
        at: Timestamp,
    ) -> Exit {
        let (code, signal, core_dumped) = match (waited, seen) {
            (Some(w), _) => (w.exit_status(), w.terminating_signal(), w.dumped()),
            (None, Some(seen)) => {
                let signal = i32::try_from(seen.status & 0x7f).unwrap_or(0);
                let code = i32::try_from(seen.status >> 8 & 0xff).unwrap_or(0);
                if signal == 0 {
                    (Some(code), None, false)
                } else {
                    (None, Some(signal), seen.status & 0x80 != 0)
                }
            }
            (None, None) => (None, None, false),
        };
        let sender = seen.map(|s| s.sender).filter(|s| s.at_ns != 0 && signal.is_some()).map(|s| {
            if s.code > 0 {
                Actor { pid: 0, comm: "kernel".into(), ..Actor::default() }
            } else {
                actor(self.probes.as_deref(), s.task.tgid, Some(&s.task))
            }
        });
        let began = seen.map_or(running.since, |s| Timestamp(s.start_ns));
        let ran_ms = u64::try_from(at.since(began).as_millis()).unwrap_or(u64::MAX);
        Exit { code, signal, core_dumped, sender, ran_ms, asked_for: running.asked_for }
    }
}

/// A pidfd of `pid`.
pub fn pidfd_of(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// The last lines of a log, cut to a bounded size. Hostile text.
fn tail(path: &PathBuf) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    Ok(lines[first..].iter().map(|line| line.chars().take(TAIL_LINE).collect()).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
