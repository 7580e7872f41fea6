//! The source of process facts: notices the end of declared processes and says how they ended.
//!
//! A pidfd per process tells that it ended; waitid(2) its status, where Grace is the parent; the task_exit probe the
//! status of adopted ones, who sent the fatal signal and the peak of memory. One thread waits on all pidfds. What their
//! descendants do (`lineage.rs`), which calls were slow and whether they make progress (`progress.rs`) comes in here, too.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};

use grace_common::{BUCKETS, ProcExec, ProcFork, SYSCALL_CLASS_NAMES, SYSCALL_CLASSES, SlowCall, TaskExit};
use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};

use super::cgroup;
use super::ebpf::reader::Reader;
use super::ebpf::{Probes, quantile};
use super::lineage::{Descendant, Lineage};
use super::progress::Progress;
use super::who::actor;
use crate::clock;
use crate::config;
use crate::event::{Actor, Event, Exit, Kind, Timestamp};
use crate::prompt::prompt;

/// Lines of stderr kept as evidence, and bytes of each.
const TAIL_LINES: usize = 10;
const TAIL_LINE: usize = 400;
/// Bytes read from the end of the log for them.
const TAIL_BYTES: u64 = 8 << 10;
/// Descendants of a process that are looked for when it begins to be watched.
const DESCENDANTS: usize = 1024;
/// Parents that are asked for their own.
const GENERATIONS: usize = 64;
/// Slow calls told to the engine a second; more are counted.
const SLOW_TOLD: u32 = 20;
/// Timed calls of a class before its p99 says what is normal.
const LEARNED: u64 = 100;

/// A running declared process.
#[derive(Debug)]
struct Running {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
    since: Timestamp,
    stderr: PathBuf,
    /// The folder of its cgroup, where it has one of its own.
    cgroup: Option<PathBuf>,
    /// Who it is beyond its number.
    ticks: Option<StartTicks>,
    /// It said `READY=1`.
    ready: bool,
    /// Grace ends it on purpose.
    ending: Option<Ending>,
    progress: Progress,
    /// From when on a call is slow, by class, in nanoseconds.
    slow_from: [u64; SYSCALL_CLASSES],
    slow_calls: u64,
    /// Its timed calls when they were told last, by class.
    timed: Option<[[u32; BUCKETS]; SYSCALL_CLASSES]>,
}

/// A process that runs and is to be watched.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: u32,
    /// A handle of exactly this process.
    pub pidfd: OwnedFd,
    /// Where its stderr goes.
    pub stderr: PathBuf,
    /// The folder of its cgroup, where it has one of its own.
    pub cgroup: Option<PathBuf>,
}

/// Who said `READY=1` before it was watched: so many of them are remembered.
const EARLY: usize = 64;

/// `PIDFD_SIGNAL_PROCESS_GROUP` of pidfd_send_signal(2), since Linux 6.9.
const PROCESS_GROUP: u32 = 4;

/// Why Grace ends a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It does not get ready: an end like any other.
    NotReady,
    /// It shall not run.
    Stop,
    /// It shall be started again.
    Restart,
}

/// What is known of a running process beyond its number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunningView {
    /// Living descendants, oldest first.
    pub descendants: Vec<Descendant>,
    /// Slow calls, descendants' too.
    pub slow_calls: u64,
    /// System calls, descendants' too; none: no probe counts them.
    pub calls: Option<u64>,
}

/// The processes that are watched now.
pub struct Processes {
    epoll: OwnedFd,
    running: Mutex<BTreeMap<u64, Running>>,
    next: Mutex<u64>,
    probes: Option<Arc<Probes>>,
    reader: Option<Arc<Reader>>,
    out: SyncSender<Event>,
    lineage: Mutex<Lineage>,
    /// The second in which slow calls were told last, and how many of them.
    slow_told: Mutex<(u64, u32)>,
    /// Who said `READY=1` before it was watched: it may be quicker than that.
    early: Mutex<VecDeque<u32>>,
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

/// The parent of `pid`; none where it is gone.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    rest.split_whitespace().nth(1)?.parse().ok()
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
            lineage: Mutex::new(Lineage::default()),
            slow_told: Mutex::new((0, 0)),
            early: Mutex::new(VecDeque::new()),
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
    pub fn watch(&self, name: &str, started: Started) -> io::Result<()> {
        let Started { pid, pidfd, stderr, cgroup } = started;
        lock(&self.lineage).begin(pid);
        if let Some(probes) = &self.probes {
            // Refused only where the map is full; the status then still comes from waitid.
            probes.watch_task(pid);
        }
        self.find_descendants(pid);
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
        let progress = Progress::default();
        let slow_from = [u64::MAX; SYSCALL_CLASSES];
        running.insert(
            slot,
            Running {
                name,
                pid,
                pidfd,
                since,
                stderr,
                cgroup,
                ticks: start_ticks(pid),
                ready: lock(&self.early).contains(&pid),
                ending: None,
                progress,
                slow_from,
                slow_calls: 0,
                timed: None,
            },
        );
        Ok(())
    }

    /// Watches the descendants that `root` has already: it may have been quicker than its being watched, or it was started
    /// by an earlier agent. Later ones are told by the fork probe.
    fn find_descendants(&self, root: u32) {
        let mut next = std::collections::VecDeque::from([(root, 0)]);
        let mut seen = std::collections::BTreeSet::from([root]);
        while let Some((parent, depth)) = next.pop_front() {
            for child in children(parent) {
                if seen.len() > DESCENDANTS || !seen.insert(child) {
                    continue;
                }
                if let Some(probes) = &self.probes {
                    probes.watch_descendant(child, root, depth + 1);
                }
                let comm = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
                let found =
                    Descendant { pid: child, comm: comm.trim_end().to_owned(), since: clock::boottime() };
                lock(&self.lineage).found(root, found);
                // It ended while it was looked at: then nobody tells of its end.
                if start_ticks(child).is_none() {
                    lock(&self.lineage).ended(root, child, clock::boottime());
                }
                next.push_back((child, depth + 1));
            }
        }
    }

    /// How the process `pid`, declared as `name`, ended while no agent ran: the probes remember it where they ran on.
    #[must_use]
    pub fn ended_unseen(&self, pid: u32) -> Exit {
        let seen = self.reader.as_ref().and_then(|reader| reader.exit_of(pid));
        if let Some(probes) = &self.probes {
            probes.unwatch_task(pid);
        }
        let Some(seen) = seen else { return Exit::default() };
        self.exit_from(None, Some(&seen), Timestamp(seen.start_ns), Timestamp(seen.header.at_ns))
    }

    /// What is known of the running process `pid`.
    #[must_use]
    pub fn view(&self, pid: u32) -> RunningView {
        let slow_calls = lock(&self.running).values().find(|r| r.pid == pid).map_or(0, |r| r.slow_calls);
        let (descendants, _) = lock(&self.lineage).of(pid);
        let calls = self.probes.as_ref().and_then(|p| p.proc_stats(pid)).map(|stats| stats.calls);
        RunningView { descendants, slow_calls, calls }
    }

    /// A watched process has a child.
    pub fn forked(&self, record: &ProcFork) {
        lock(&self.lineage).forked(record);
        let mut early = lock(&self.early);
        if let Some(at) = early.iter().position(|pid| *pid == record.child) {
            early.remove(at);
            drop(early);
            self.is_said_ready(record.root);
        }
    }

    /// A watched process runs another program.
    pub fn execed(&self, record: &ProcExec) {
        lock(&self.lineage).execed(record);
    }

    /// A descendant of a watched process has ended.
    pub fn descendant_ended(&self, record: &TaskExit) {
        let at = Timestamp(record.header.at_ns);
        let who = actor(self.probes.as_deref(), record.task.tgid, Some(&record.task));
        let exit = self.exit_from(None, Some(record), Timestamp(record.start_ns), at);
        lock(&self.lineage).ended(record.root, record.task.tgid, at);
        // A build has thousands that end well: the engine is told of the others.
        if exit.code != Some(0)
            && let Some(name) = self.name_of(record.root)
        {
            self.send(Kind::DescendantExited { name, who, exit }, at);
        }
    }

    /// A call was slow.
    pub fn slow(&self, record: &SlowCall) {
        let at = Timestamp(record.header.at_ns);
        let (name, slow_ns) = {
            let mut running = lock(&self.running);
            let Some(found) = running.values_mut().find(|r| r.pid == record.root) else { return };
            found.slow_calls += 1;
            let class = usize::try_from(record.class).unwrap_or(usize::MAX);
            (found.name.clone(), found.slow_from.get(class).copied().unwrap_or(u64::MAX))
        };
        {
            let mut told = lock(&self.slow_told);
            let second = at.0 / 1_000_000_000;
            *told = if told.0 == second { (second, told.1 + 1) } else { (second, 1) };
            if told.1 > SLOW_TOLD {
                return;
            }
        }
        let kind = Kind::SlowCall {
            name,
            who: actor(self.probes.as_deref(), record.task.tgid, Some(&record.task)),
            call: call_name(record.nr),
            took_us: record.ns / 1000,
            slow_us: slow_ns / 1000,
            wait: self.probes.as_ref().and_then(|p| p.wait_channel(record.wait)),
            stack: Some(record.stack).filter(|stack| *stack >= 0),
        };
        self.send(kind, at);
    }

    /// Looks whether each process makes progress. To be called every few seconds.
    pub fn check_progress(&self) {
        let now = clock::boottime();
        let mut changes = Vec::new();
        for running in lock(&self.running).values_mut() {
            let calls = self.probes.as_ref().and_then(|p| p.proc_stats(running.pid)).map(|s| s.calls);
            if let Some((doing, since, wait)) = running.progress.look(running.pid, calls, now) {
                let (name, pid) = (running.name.clone(), running.pid);
                changes.push(Kind::Progress { name, pid, doing, since, wait });
            }
        }
        changes.into_iter().for_each(|kind| self.send(kind, now));
    }

    /// Learns from each process's own calls from when on one is slow. To be called every few seconds.
    pub fn learn_slow(&self, settings: &config::Probes) {
        let Some(probes) = &self.probes else { return };
        let least = u64::try_from(settings.slow_at_least.get().as_nanos()).unwrap_or(u64::MAX);
        for running in lock(&self.running).values_mut() {
            let Some(stats) = probes.proc_stats(running.pid) else { continue };
            let slow_from = stats.hist.map(|hist| {
                let hist = hist.map(u64::from);
                let p99 = quantile(&hist, 0.99).filter(|_| hist.iter().sum::<u64>() >= LEARNED);
                match (settings.slow_factor, p99) {
                    (0, _) => least,
                    (factor, Some(p99)) => least.max(p99.saturating_mul(u64::from(factor))),
                    (_, None) => u64::MAX,
                }
            });
            if slow_from != running.slow_from {
                running.slow_from = slow_from;
                probes.set_slow_from(running.pid, slow_from);
            }
        }
    }

    /// The declared process that `pid` is or descends from; none: it is no descendant of any, or is gone.
    #[must_use]
    pub fn name_of_family(&self, pid: u32) -> Option<String> {
        let root = lock(&self.lineage).root_of(pid);
        if let Some(name) = root.and_then(|root| self.name_of(root)) {
            return Some(name);
        }
        // Without probes, or before they saw it: from parent to parent.
        let mut next = Some(pid);
        for _ in 0..GENERATIONS {
            let Some(pid) = next.filter(|pid| *pid > 1) else { break };
            if let Some(name) = self.name_of(pid) {
                return Some(name);
            }
            next = parent(pid);
        }
        // One that said something and ended is heard of after its end.
        let root = lock(&self.lineage).root_of_ended(pid, clock::boottime())?;
        self.name_of(root)
    }

    fn name_of(&self, root: u32) -> Option<String> {
        lock(&self.running).values().find(|r| r.pid == root).map(|r| r.name.clone())
    }

    fn send(&self, kind: Kind, at: Timestamp) {
        // Fails only when the engine has ended, with the agent.
        drop(self.out.send(Event { at, kind }));
    }

    /// A running process by name: its pid and since when it runs.
    #[must_use]
    pub fn running(&self, name: &str) -> Option<(u32, Timestamp)> {
        lock(&self.running).values().find(|r| r.name == name).map(|r| (r.pid, r.since))
    }

    /// Each declared process that runs, by name, with its and its descendants' process ids.
    #[must_use]
    pub fn families(&self) -> Vec<(String, Vec<u32>)> {
        let roots: Vec<(String, u32)> =
            lock(&self.running).values().map(|r| (r.name.clone(), r.pid)).collect();
        let family = |root| match &self.probes {
            Some(_) => {
                let (descendants, _) = lock(&self.lineage).of(root);
                std::iter::once(root).chain(descendants.into_iter().map(|d| d.pid)).collect()
            }
            None => family(root),
        };
        roots.into_iter().map(|(name, root)| (name, family(root))).collect()
    }

    /// Tells how long the timed calls of each process took since the last time. To be called every few seconds: what is
    /// told of one process is at most one event a class of calls.
    pub fn tell_latencies(&self) {
        let Some(probes) = &self.probes else { return };
        let mut told = Vec::new();
        for running in lock(&self.running).values_mut() {
            let Some(stats) = probes.proc_stats(running.pid) else { continue };
            let Some(before) = running.timed.as_mut() else {
                running.timed = Some(stats.hist);
                continue;
            };
            for (class, (before, now)) in before.iter_mut().zip(&stats.hist).enumerate() {
                let mut lately = [0u64; BUCKETS];
                for (lately, (before, now)) in lately.iter_mut().zip(before.iter().zip(now)) {
                    *lately = u64::from(now.wrapping_sub(*before));
                }
                let calls = lately.iter().sum();
                // Too few say nothing of a p99 yet: they wait for more.
                if calls < LEARNED {
                    continue;
                }
                *before = *now;
                let Some(p99) = quantile(&lately, 0.99) else { continue };
                told.push(Kind::SyscallLatency {
                    process: running.name.clone(),
                    class: SYSCALL_CLASS_NAMES[class].to_owned(),
                    p99_us: p99 as f64 / 1000.0,
                    calls,
                });
            }
        }
        let now = clock::boottime();
        told.into_iter().for_each(|kind| self.send(kind, now));
    }

    /// Tells the engine of `facts` that were found now.
    pub fn tell(&self, facts: Vec<Kind>) {
        let now = clock::boottime();
        facts.into_iter().for_each(|kind| self.send(kind, now));
    }

    /// The process `name` was asked to end and did not: its end, when it comes, is its own. True: it still runs.
    pub fn runs_on(&self, name: &str) -> bool {
        match lock(&self.running).values_mut().find(|r| r.name == name) {
            Some(found) => {
                found.ending = None;
                true
            }
            None => false,
        }
    }

    /// Does something to the process `name` while nobody can take its number: what is not reaped keeps it, and whoever is
    /// not Grace's child is who it was. None: it does not run.
    pub fn held<T>(&self, name: &str, act: impl FnOnce(u32, &OwnedFd) -> T) -> Option<T> {
        let running = lock(&self.running);
        let found = running.values().find(|r| r.name == name)?;
        (found.ticks.is_some() && start_ticks(found.pid) == found.ticks).then(|| act(found.pid, &found.pidfd))
    }

    /// Sends `signal` to the process `name` and, where it leads a process group, to all of that. False: it does not run.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn signal_group(&self, name: &str, signal: rustix::process::Signal) -> io::Result<bool> {
        self.held(name, |pid, pidfd| signal_all(pid, pidfd, signal)).transpose().map(|sent| sent.is_some())
    }

    /// The folder of the cgroup of the process `name`, where it runs and has one of its own.
    #[must_use]
    pub fn cgroup(&self, name: &str) -> Option<PathBuf> {
        lock(&self.running).values().find(|r| r.name == name)?.cgroup.clone()
    }

    /// The process `pid` said that it is ready: it, or whose descendant it is.
    pub fn said_ready(&self, pid: u32) {
        if let Some(name) = self.name_of_family(pid) {
            lock(&self.running).values_mut().filter(|r| r.name == name).for_each(|r| r.ready = true);
            return;
        }
        // Told before it is watched, or by a child of whose begin the probes have not told yet.
        let mut early = lock(&self.early);
        if early.len() >= EARLY {
            early.pop_front();
        }
        early.push_back(pid);
    }

    fn is_said_ready(&self, root: u32) {
        lock(&self.running).values_mut().filter(|r| r.pid == root).for_each(|r| r.ready = true);
    }

    /// Whether the process `name` runs as `pid`, and has said that it is ready.
    #[must_use]
    pub fn is_ready(&self, name: &str, pid: u32) -> Option<bool> {
        lock(&self.running).values().find(|r| r.name == name && r.pid == pid).map(|r| r.ready)
    }

    /// The process `name` is about to be ended by somebody else, for Grace.
    pub fn expect_end(&self, name: &str, ending: Ending) {
        lock(&self.running).values_mut().filter(|r| r.name == name).for_each(|r| r.ending = Some(ending));
    }

    /// Watches the process `name` no more: it runs on.
    pub fn unwatch(&self, name: &str) {
        let mut running = lock(&self.running);
        let slots: Vec<u64> = running.iter().filter(|(_, r)| r.name == name).map(|(slot, _)| *slot).collect();
        for running in slots.iter().filter_map(|slot| running.remove(slot)) {
            let _ = epoll::delete(&self.epoll, &running.pidfd);
            if let Some(probes) = &self.probes {
                probes.unwatch_task(running.pid);
            }
            lock(&self.lineage).end(running.pid);
        }
    }

    /// Sends `signal` to the process `name` through its pidfd, and notes that its end is asked for.
    pub fn ask_to_end(
        &self,
        name: &str,
        signal: rustix::process::Signal,
        ending: Ending,
    ) -> io::Result<bool> {
        let mut running = lock(&self.running);
        let Some(found) = running.values_mut().find(|r| r.name == name) else { return Ok(false) };
        found.ending = Some(ending);
        let sent = rustix::process::pidfd_send_signal(&found.pidfd, signal);
        if sent.is_ok() {
            // One that is stopped hears of no signal but SIGKILL until it goes on. It may be gone already.
            let _ = rustix::process::pidfd_send_signal(&found.pidfd, rustix::process::Signal::CONT);
        }
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(true),
            Err(err) => Err(err.into()),
        }
    }

    fn ended(&self, slot: u64) {
        let Some(pid) = lock(&self.running).get(&slot).map(|r| r.pid) else { return };
        // While it still has its name: what its descendants did just before is told first.
        let seen = self.reader.as_ref().and_then(|r| r.exit_of(pid));
        let Some(running) = lock(&self.running).remove(&slot) else { return };
        let _ = epoll::delete(&self.epoll, &running.pidfd);
        let at = clock::boottime();
        let status = rustix::process::waitid(WaitId::PidFd(running.pidfd.as_fd()), WaitIdOptions::EXITED);
        if let Some(probes) = &self.probes {
            probes.unwatch_task(running.pid);
        }
        let began = seen.map_or(running.since, |s| Timestamp(s.start_ns));
        let mut exit = self.exit_from(status.ok().flatten().as_ref(), seen.as_ref(), began, at);
        exit.asked_for = matches!(running.ending, Some(Ending::Stop | Ending::Restart));
        exit.restarting = running.ending == Some(Ending::Restart);
        lock(&self.lineage).end(running.pid);
        let mut stderr_tail = tail(&running.stderr).unwrap_or_default();
        if running.ending == Some(Ending::NotReady) {
            stderr_tail.push("ended by Grace: it was not ready in time".to_owned());
        }
        let kind = Kind::ProcessExited { name: running.name, pid: running.pid, exit, stderr_tail };
        self.send(kind, at);
    }

    fn exit_from(
        &self,
        waited: Option<&WaitIdStatus>,
        seen: Option<&TaskExit>,
        began: Timestamp,
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
        let ran_ms = u64::try_from(at.since(began).as_millis()).unwrap_or(u64::MAX);
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let max_rss_bytes = seen.map(|s| s.max_rss_pages).filter(|n| *n > 0).map(|n| n.saturating_mul(page));
        let oom = seen.filter(|s| s.oom_victim != 0).map(why_out_of_memory);
        Exit {
            code,
            signal,
            core_dumped,
            sender,
            ran_ms,
            asked_for: false,
            max_rss_bytes,
            oom,
            restarting: false,
        }
    }
}

/// Why the kernel had no memory left when it chose the process of `seen`: its cgroup's limit, or the host's.
fn why_out_of_memory(seen: &TaskExit) -> String {
    let limit = cgroup::path(seen.task.cgroup)
        .and_then(|path| cgroup::memory_limit_that_killed(&path))
        .map(|max| format!("its cgroup's limit of {} MiB was reached", max >> 20));
    let cause = limit.unwrap_or_else(|| "the host had no memory left".to_owned());
    // Whoever asked for memory last made the kernel look for a victim; it may be the victim itself.
    let asker = String::from_utf8_lossy(&seen.sender.task.comm).trim_end_matches('\0').to_owned();
    match seen.sender.at_ns {
        0 => cause,
        _ => format!("{cause} when {} (pid {}) asked for more", asker.escape_debug(), seen.sender.task.tgid),
    }
}

/// The name of a system call.
fn call_name(nr: u32) -> String {
    syscalls::Sysno::new(nr as usize).map_or_else(|| format!("syscall {nr}"), |call| call.name().to_owned())
}

/// The children of `pid`, of all its threads; none where the kernel does not list them (CONFIG_PROC_CHILDREN).
fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// `root` and its descendants, as /proc tells of them; at most as many as are kept of a family.
fn family(root: u32) -> Vec<u32> {
    let mut out = vec![root];
    let mut next = 0;
    while let Some(pid) = out.get(next).copied().filter(|_| out.len() < DESCENDANTS) {
        next += 1;
        for child in children(pid) {
            if !out.contains(&child) {
                out.push(child);
            }
        }
    }
    out
}

/// The signal with this number.
#[must_use]
pub fn signal_of(number: i32) -> Option<rustix::process::Signal> {
    rustix::process::Signal::from_named_raw(number)
}

/// Sends `signal` to `pid` and, where it leads a process group, to all of that. The caller vouches that `pid` is still the
/// process of `pidfd`.
fn signal_all(pid: u32, pidfd: &OwnedFd, signal: rustix::process::Signal) -> io::Result<()> {
    let raw = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
    let Some(raw) = raw else { return Err(io::ErrorKind::InvalidInput.into()) };
    let leads = rustix::process::getpgid(Some(raw)).is_ok_and(|group| group == raw);
    let sent = if leads {
        match signal_group_of(pidfd, signal) {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
                rustix::process::kill_process_group(raw, signal).map_err(Into::into)
            }
            sent => sent,
        }
    } else {
        rustix::process::pidfd_send_signal(pidfd, signal).map_err(Into::into)
    };
    sent.or_else(|err| if err.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(err) })
}

/// Sends `signal` to the group of the process of `pidfd`. EINVAL: the kernel cannot.
#[expect(unsafe_code, reason = "pidfd_send_signal(2) with flags has no safe wrapper")]
fn signal_group_of(pidfd: &OwnedFd, signal: rustix::process::Signal) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a descriptor that is open, three integers and no pointer (none is allowed).
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal.as_raw(), info, PROCESS_GROUP)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
