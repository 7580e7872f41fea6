//! `health_gap`: a process that Grace was told to keep running is gone, or makes no progress.
//!
//! Sees `ProcessExited` of declared processes. Fires when one ends although its `restart` says that it should run;
//! clears when it has run for `settle` again. Remedy: start it, at once the first time, then with a growing delay;
//! when the budget is used up, a task, and the next try when the budget is free again.
//!
//! Sees `Progress`. Fires when one is blocked or spins for longer than it may; clears when it works again. Remedy: a
//! task. Its slow calls and the bad ends of its descendants are evidence for both.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Spec, Trigger, who};
use crate::action::Action;
use crate::config;
use crate::event::{Doing, Event, Exit, Kind, Restart, RestartPolicy, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "health_gap",
    summary: "a declared process has ended, or makes no progress",
    help: "Watches every [[process]]. Fires at once when it exits or is killed, and says exit code, signal, who sent \
           it, how long it ran and its last lines of stderr. Repairs by starting it again: at once the first time, then \
           after `backoff`, doubling up to `backoff_max`, at most `burst` times within `interval`; a process that ran \
           for `stable` begins anew. When the budget is used up a task is filed and Grace waits until it is free \
           again. Clears when the process has run for `settle`. Fires too when its main thread waits for a device or a \
           file system (state D) for `blocked`, or, where `spinning` is set, when it runs that long without any system \
           call; that files a task and clears when it works again. Slow system calls and the bad ends of descendants \
           are told as evidence.",
    subjects: "declared processes",
    remedy: "start the process (with backoff and budget) → file a task",
    needs: "pidfd; the task_exit and signal probes (root) for exit codes of adopted processes and for who sent a signal; \
            fork and exec for descendants; syscall_count for spinning; syscall_latency for slow calls",
    evidence: &["exit", "process"],
    route: Route::SelfHealing,
};

/// The trigger.
pub struct HealthGap {
    settings: config::HealthGap,
    processes: BTreeMap<String, Process>,
}

/// A declared process.
struct Process {
    policy: RestartPolicy,
    pid: Option<u32>,
    /// The firing holds since then.
    since: Option<Timestamp>,
    /// What is said while it holds.
    last: Option<(u32, Exit, Vec<String>)>,
    /// When it was, or will be, started again, within the window of the budget; oldest first.
    restarts: VecDeque<Timestamp>,
    /// Restarts in a row without a stable run between.
    streak: u32,
    /// When a run is seen as running again.
    settled: Option<Timestamp>,
    /// When the budget is free again.
    retry: Option<Timestamp>,
    /// It is blocked or spins: since when, and what it waits for.
    stuck: Option<(Doing, Timestamp, Option<String>)>,
    /// That was said.
    stalled: bool,
    /// What was slow or went wrong below it lately, oldest first.
    lately: VecDeque<(Timestamp, String)>,
}

/// Facts kept in `lately`, and how long they have to do with what happens.
const LATELY: usize = 5;
const LATELY_FOR: Duration = Duration::from_secs(60);

impl HealthGap {
    /// Without processes.
    #[must_use]
    pub fn new(settings: config::HealthGap) -> Self {
        Self { settings, processes: BTreeMap::new() }
    }
}

impl Trigger for HealthGap {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.processes.len()
    }

    fn wake(&self) -> Option<Timestamp> {
        let stalls = |p: &Process| p.stalls_at(&self.settings).filter(|_| !p.stalled);
        self.processes.values().flat_map(|p| [p.settled, p.retry, stalls(p)]).flatten().min()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        let now = event.at;
        let mut out = Vec::new();
        match &event.kind {
            Kind::ProcessDeclared { name, policy, pid } => match self.processes.get_mut(name) {
                Some(process) => process.policy = policy.clone(),
                None => {
                    self.processes.insert(name.clone(), Process::new(policy.clone(), *pid));
                    if pid.is_none() {
                        out.push(Verdict::Wants(subject(name), Action::StartProcess { name: name.clone() }));
                    }
                }
            },
            Kind::ProcessForgotten { name } => {
                let held = self.processes.remove(name).and_then(|p| p.since);
                out.extend(held.map(|_| Verdict::Cleared(subject(name), "not owned any more".into())));
            }
            Kind::ProcessStarted { name, pid } => {
                if let Some(process) = self.processes.get_mut(name) {
                    process.pid = Some(*pid);
                    process.retry = None;
                    if process.since.is_some() {
                        process.settled = Some(now.after(self.settings.settle.get()));
                    }
                }
            }
            Kind::ProcessExited { name, pid, exit, stderr_tail } => {
                if let Some(process) = self.processes.get_mut(name) {
                    out.extend(process.ended(name, *pid, exit, stderr_tail, now));
                }
            }
            Kind::DescendantExited { name, who: child, exit } => {
                if let Some(process) = self.processes.get_mut(name) {
                    process.note(now, format!("descendant {}: {}", who(child), describe(child.pid, exit)));
                }
            }
            Kind::SlowCall { name, who: caller, call, took_us, slow_us, wait, .. } => {
                if let Some(process) = self.processes.get_mut(name) {
                    let wait = wait.as_ref().map(|w| format!(" in {}", w.escape_debug())).unwrap_or_default();
                    let line = format!(
                        "{} took {took_us} µs in {call}{wait}; from {slow_us} µs on that is slow",
                        who(caller)
                    );
                    process.note(now, line);
                }
            }
            Kind::Progress { name, pid, doing, since, wait } => {
                if let Some(process) = self.processes.get_mut(name).filter(|p| p.pid == Some(*pid)) {
                    process.stuck = (*doing != Doing::Working).then(|| (*doing, *since, wait.clone()));
                    if process.stuck.is_none() && std::mem::take(&mut process.stalled) {
                        out.push(Verdict::Cleared(subject(name), "makes progress again".into()));
                    }
                }
            }
            _ => {}
        }
        // Any event tells the time.
        for (name, process) in &mut self.processes {
            if !process.stalled && process.stalls_at(&self.settings).is_some_and(|at| at <= now) {
                process.stalled = true;
                out.extend(process.stall(name, &self.settings, now).map(Verdict::Holds));
            }
            if process.settled.is_some_and(|at| at <= now) {
                process.settled = None;
                process.since = None;
                let ran = humantime::format_duration(self.settings.settle.get());
                let pid = process.pid.unwrap_or(0);
                out.push(Verdict::Cleared(subject(name), format!("runs again as pid {pid} for {ran}")));
            }
            if process.retry.is_some_and(|at| at <= now) {
                process.retry = None;
                out.extend(process.start_again(name, now));
            }
        }
        out
    }
}

impl Process {
    fn new(policy: RestartPolicy, pid: Option<u32>) -> Self {
        Self {
            policy,
            pid,
            since: None,
            last: None,
            restarts: VecDeque::new(),
            streak: 0,
            settled: None,
            retry: None,
            stuck: None,
            stalled: false,
            lately: VecDeque::new(),
        }
    }

    fn note(&mut self, now: Timestamp, line: String) {
        if self.lately.len() >= LATELY {
            self.lately.pop_front();
        }
        self.lately.push_back((now, line));
    }

    fn lately(&self, now: Timestamp) -> impl Iterator<Item = String> + '_ {
        self.lately.iter().filter(move |(at, _)| now.since(*at) < LATELY_FOR).map(move |(at, line)| {
            let ago = Duration::from_millis(u64::try_from(now.since(*at).as_millis()).unwrap_or(u64::MAX));
            format!("{line} ({} before)", humantime::format_duration(ago))
        })
    }

    /// How long it may be as it is, where there is a limit.
    fn limit(doing: Doing, settings: &config::HealthGap) -> Option<Duration> {
        match doing {
            Doing::Working => None,
            Doing::Blocked => Some(settings.blocked.get()),
            Doing::Spinning => settings.spinning.map(config::Span::get),
        }
    }

    /// When it will have made no progress for too long.
    fn stalls_at(&self, settings: &config::HealthGap) -> Option<Timestamp> {
        let (doing, since, _) = self.stuck.as_ref()?;
        Some(since.after(Self::limit(*doing, settings)?))
    }

    fn stall(&self, name: &str, settings: &config::HealthGap, now: Timestamp) -> Option<Box<Finding>> {
        let (doing, since, wait) = self.stuck.as_ref()?;
        let limit = humantime::format_duration(Self::limit(*doing, settings)?);
        let pid = self.pid?;
        let how = match doing {
            Doing::Blocked => "is blocked in the kernel and cannot be interrupted",
            _ => "runs without making any system call",
        };
        let wait = wait.as_ref().map(|w| format!(", waits in {}", w.escape_debug())).unwrap_or_default();
        let lasts = humantime::format_duration(Duration::from_secs(now.since(*since).as_secs()));
        Some(Box::new(Finding {
            subject: subject(name),
            since: *since,
            summary: format!("pid {pid} makes no progress: it {how}{wait}"),
            measured: format!("for {lasts}"),
            threshold: format!("for {limit}"),
            baseline: "makes system calls".into(),
            writer: None,
            noticed_by: None,
            evidence: self.lately(now).collect(),
            remedy: vec![Action::FileTask {
                title: "Find out why a declared process makes no progress, and fix it".into(),
                acceptance: "the process makes progress for 10 minutes and health_gap stays clear".into(),
            }],
            delay: Duration::ZERO,
            hold: None,
        }))
    }

    fn ended(
        &mut self,
        name: &str,
        pid: u32,
        exit: &Exit,
        stderr: &[String],
        now: Timestamp,
    ) -> Option<Verdict> {
        self.pid = None;
        self.settled = None;
        self.stuck = None;
        // What is said from now on is that it ended.
        let stalled = std::mem::take(&mut self.stalled);
        if exit.asked_for {
            let gone = || Verdict::Cleared(subject(name), "was ended".into());
            return stalled.then(gone);
        }
        let failed = exit.code != Some(0);
        if self.policy.restart == Restart::OnFailure && !failed {
            let held = self.since.take().is_some() || stalled;
            return held.then(|| Verdict::Cleared(subject(name), "exited with code 0".into()));
        }
        if exit.ran_ms >= self.policy.stable_ms {
            self.streak = 0;
        }
        self.last = Some((pid, exit.clone(), stderr.to_vec()));
        if self.policy.restart == Restart::Never {
            self.since = None;
            return self.finding(name, now, Duration::ZERO, None).map(|mut finding| {
                finding.remedy.clear();
                Verdict::Happened(finding)
            });
        }
        self.since.get_or_insert(now);
        self.start_again(name, now)
    }

    fn start_again(&mut self, name: &str, now: Timestamp) -> Option<Verdict> {
        let interval = Duration::from_millis(self.policy.interval_ms);
        while self.restarts.front().is_some_and(|at| at.after(interval) <= now) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.policy.burst as usize {
            // A budget of 0 is never free: no retry then.
            self.retry = self.restarts.front().map(|at| at.after(interval));
            let hold = format!(
                "budget: {} restarts in {} are used up",
                self.policy.burst,
                humantime::format_duration(interval)
            );
            return self.finding(name, now, Duration::ZERO, Some(hold)).map(Verdict::Holds);
        }
        let delay = self.delay();
        self.streak = self.streak.saturating_add(1);
        self.restarts.push_back(now.after(delay));
        self.finding(name, now, delay, None).map(Verdict::Holds)
    }

    fn delay(&self) -> Duration {
        let Some(doublings) = self.streak.checked_sub(1) else { return Duration::ZERO };
        let factor = 1u64.checked_shl(doublings.min(62)).unwrap_or(u64::MAX);
        Duration::from_millis(self.policy.backoff_ms.saturating_mul(factor).min(self.policy.backoff_max_ms))
    }

    fn finding(
        &self,
        name: &str,
        now: Timestamp,
        delay: Duration,
        hold: Option<String>,
    ) -> Option<Box<Finding>> {
        let (pid, exit, stderr) = self.last.as_ref()?;
        Some(Box::new(Finding {
            subject: subject(name),
            since: self.since.unwrap_or(now),
            summary: describe(*pid, exit),
            measured: format!(
                "ended after {}{}",
                humantime::format_duration(Duration::from_millis(exit.ran_ms)),
                exit.max_rss_bytes
                    .map(|bytes| format!(", peak memory {:.1} MiB", bytes as f64 / f64::from(1 << 20)))
                    .unwrap_or_default()
            ),
            threshold: format!(
                "{} restarts in {}",
                self.policy.burst,
                humantime::format_duration(Duration::from_millis(self.policy.interval_ms))
            ),
            baseline: "running".into(),
            writer: exit.sender.clone(),
            noticed_by: None,
            evidence: stderr.iter().cloned().chain(self.lately(now)).collect(),
            remedy: vec![
                Action::StartProcess { name: name.to_owned() },
                Action::FileTask {
                    title: "Find out why a declared process keeps ending, and fix it".into(),
                    acceptance: "the process runs for 10 minutes and health_gap stays clear".into(),
                },
            ],
            delay,
            hold,
        }))
    }
}

fn subject(name: &str) -> Subject {
    Subject::Process(name.to_owned())
}

/// How a process ended, in one phrase.
fn describe(pid: u32, exit: &Exit) -> String {
    if pid == 0 {
        return "could not be started".to_owned();
    }
    let mut out = match (exit.code, exit.signal) {
        (Some(code), _) => format!("pid {pid} exited with code {code}"),
        (None, Some(signal)) => format!("pid {pid} was killed by {}", signal_name(signal)),
        (None, None) => format!("pid {pid} ended while Grace did not run, or unseen"),
    };
    if exit.core_dumped {
        out.push_str(", core dumped");
    }
    if let Some(why) = &exit.oom {
        out.push_str(&format!(", chosen by the out-of-memory killer: {why}"));
    } else if let Some(sender) = &exit.sender {
        out.push_str(&match sender.pid {
            0 => ", sent by the kernel".to_owned(),
            _ => format!(", sent by {}", who(sender)),
        });
    }
    out
}

/// `SIGKILL` for 9, and so on (signal(7), x86-64 and arm64).
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}
