//! `health_gap`: a process that Grace was told to keep running is gone.
//!
//! Sees `ProcessExited` of declared processes. Fires when one ends although its `restart` says that it should run;
//! clears when it has run for `settle` again. Remedy: start it, at once the first time, then with a growing delay;
//! when the budget is used up, a task, and the next try when the budget is free again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Spec, Trigger, who};
use crate::action::Action;
use crate::config;
use crate::event::{Event, Exit, Kind, Restart, RestartPolicy, Timestamp};
use crate::firing::{Finding, Subject, Verdict};

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "health_gap",
    summary: "a declared process has ended",
    help: "Watches every [[process]]. Fires at once when it exits or is killed, and says exit code, signal, who sent \
           it, how long it ran and its last lines of stderr. Repairs by starting it again: at once the first time, then \
           after `backoff`, doubling up to `backoff_max`, at most `burst` times within `interval`; a process that ran \
           for `stable` begins anew. When the budget is used up a task is filed and Grace waits until it is free \
           again. Clears when the process has run for `settle`.",
    subjects: "declared processes",
    remedy: "start the process (with backoff and budget) → file a task",
    needs: "pidfd; the task_exit and signal probes (root) for exit codes of adopted processes and for who sent a signal",
    evidence: &["exit"],
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
}

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
        self.processes.values().flat_map(|p| [p.settled, p.retry]).flatten().min()
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
            _ => {}
        }
        // Any event tells the time.
        for (name, process) in &mut self.processes {
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
        }
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
        if exit.asked_for {
            return None;
        }
        let failed = exit.code != Some(0);
        if self.policy.restart == Restart::OnFailure && !failed {
            return self.since.take().map(|_| Verdict::Cleared(subject(name), "exited with code 0".into()));
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
                "ended after {}",
                humantime::format_duration(Duration::from_millis(exit.ran_ms))
            ),
            threshold: format!(
                "{} restarts in {}",
                self.policy.burst,
                humantime::format_duration(Duration::from_millis(self.policy.interval_ms))
            ),
            baseline: "running".into(),
            writer: exit.sender.clone(),
            noticed_by: None,
            evidence: stderr.clone(),
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
    if let Some(sender) = &exit.sender {
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
