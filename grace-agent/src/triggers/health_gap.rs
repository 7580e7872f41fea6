//! `health_gap`: a process that Grace was told to keep running is gone, is silent, or makes no progress.
//!
//! Here is what is seen and said · `health_gap/process.rs` judges a declared process · `pulse.rs` notices that something
//! regular is missing · `work.rs` that an output stands still · `busy.rs` that a GPU
//! only says that it is busy.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_NAME, MAX_NAMES, MAX_NOTES, Spec, Trigger, lasting, unusable};
use crate::action::{Action, Shed};
use crate::baseline::Baseline;
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict, who};
use process::{Needs, Process, Wait, describe};
use pulse::{Beat, Pulse, Rule};
use work::Output;

mod busy;
mod process;
mod pulse;
mod work;

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "health_gap",
    summary: "a process has ended, is silent, or makes no progress",
    help: "Watches every [[process]]. Fires at once when it exits or is killed, and says exit code, signal, who sent \
           it, how long it ran and its last lines of stderr. Repairs by starting it again: at once the first time, then \
           after `backoff`, doubling up to `backoff_max`, at most `burst` times within `interval`; a process that ran \
           for `stable` begins anew. When the budget is used up a task is filed and Grace waits until it is free \
           again. Clears when the process has run for `settle`, from when it was ready on (`ready`). What others need \
           (`after`) is started before them; when many are down they are started one after the other. What was shed is not \
           missed.\n\
           Fires when its heartbeats are missing for `heartbeat_factor` times their gap, declared (`heartbeat`) or \
           learned, and when it runs for `spinning` without any system call, where that is set. Repairs by restarting \
           it, within the same budget; then a task. Clears when heartbeats came twice in time, or the new process ran for \
           `settle`.\n\
           Fires when an output that normally changes (a [[queue]] or [[route]] with this `process`, or a metric whose \
           name begins with its name and a dot) stands still for `flat_factor` times its learned cadence although work \
           waits or is answered. Restarts it only if it shows no other sign of life: no heartbeats, no other output; \
           else, and where its log is silent for `log_factor` times its learned cadence or its main thread waits for a \
           device (state D) for `blocked`, a task is filed. A process whose outputs go on while its queue grows is not \
           stuck but saturated: that is latency_spike's. Silence never clears anything.\n\
           Fires when a GPU that it has for itself is at 99 % and more, and below `gpu_busy_share` of the power that it \
           normally draws when it is busy, for `gpu_busy_for`: a collective that waits for ever. Repairs by restarting it; \
           clears when the GPU works again.\n\
           Heartbeats under a name that no [[process]] has are judged the same way; their remedy is a task.",
    subjects: "declared processes, names that send heartbeats",
    remedy: "start or restart the process (with backoff and budget) → file a task",
    needs: "pidfd; the task_exit and signal probes (root) for exit codes of adopted processes and for who sent a signal; \
            fork and exec for descendants; syscall_count for spinning; syscall_latency for slow calls; applications that \
            send heartbeats, depths, latencies or metrics; their logs",
    evidence: &["exit", "process", "records"],
    route: Route::SelfHealing,
};

/// The trigger.
pub struct HealthGap {
    settings: config::HealthGap,
    processes: BTreeMap<String, Process>,
    /// Senders of heartbeats that are no declared processes.
    hearts: BTreeMap<String, Pulse>,
    /// The declared process of a queue or a route.
    owners: BTreeMap<(Output, String), String>,
    /// Outputs of all processes.
    outputs: usize,
    /// What is needed by processes that are not declared yet.
    needs: BTreeMap<String, Needs>,
    /// What earlier runs learned of what did not come yet.
    earlier: Kept,
    /// When hearts and outputs are looked at again; each comes later than it did when this was set, not sooner.
    sweep: Option<Timestamp>,
    /// Records under names beyond the limit.
    refused: u64,
    /// When the names that came once were cleared out last.
    cleared_out: Timestamp,
}

/// A name that sent heartbeats for too short a time to say how often is forgotten after this time, when room is needed.
const PASSING: Duration = Duration::from_secs(600);
/// And that is looked for at most this often.
const CLEAR_OUT: Duration = Duration::from_secs(60);

/// What is kept between two runs: gaps by name.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Format: 1.
    version: u32,
    hearts: BTreeMap<String, Baseline>,
    logs: BTreeMap<String, Baseline>,
    metrics: BTreeMap<String, Baseline>,
    queues: BTreeMap<String, Baseline>,
    routes: BTreeMap<String, Baseline>,
}

const VERSION: u32 = 1;

impl Kept {
    fn outputs(&mut self, what: Output) -> &mut BTreeMap<String, Baseline> {
        match what {
            Output::Metric => &mut self.metrics,
            Output::Queue => &mut self.queues,
            Output::Route => &mut self.routes,
        }
    }

    fn read(state: &serde_json::Value) -> Result<Self, String> {
        let kept = Self::deserialize(state).map_err(|err| err.to_string())?;
        if kept.version != VERSION {
            return Err(format!("it has format {}, not {VERSION}", kept.version));
        }
        let all = [&kept.hearts, &kept.logs, &kept.metrics, &kept.queues, &kept.routes];
        if all.iter().any(|map| map.len() > 2 * MAX_NAMES || map.keys().any(|name| name.len() > MAX_NAME)) {
            return Err("more, or longer, names than it may hold".to_owned());
        }
        Ok(kept)
    }
}

impl HealthGap {
    /// Without processes.
    #[must_use]
    pub fn new(settings: config::HealthGap) -> Self {
        Self {
            settings,
            processes: BTreeMap::new(),
            hearts: BTreeMap::new(),
            owners: BTreeMap::new(),
            outputs: 0,
            needs: BTreeMap::new(),
            earlier: Kept::default(),
            sweep: None,
            refused: 0,
            cleared_out: Timestamp::default(),
        }
    }

    /// At the latest then something may be missing.
    fn arm(&mut self, due: Option<Timestamp>) {
        self.sweep = self.sweep.into_iter().chain(due).min();
    }

    fn heartbeat(&mut self, name: &str, now: Timestamp) -> Option<Verdict> {
        if let Some(process) = self.processes.get_mut(name) {
            return process.heartbeat(name, now, &self.settings);
        }
        let rule = heartbeats(&self.settings, None);
        if !self.hearts.contains_key(name) {
            if !self.has_room(name, now) {
                self.refused = self.refused.saturating_add(1);
                return None;
            }
            let gaps = self.earlier.hearts.remove(name).unwrap_or_else(|| Baseline::new(self.settings.learn));
            self.hearts.insert(name.to_owned(), Pulse::new(gaps, &rule));
        }
        let heart = self.hearts.get_mut(name)?;
        let beat = heart.beat(now, &rule);
        let due = heart.due();
        self.arm(due);
        let back = || Verdict::Cleared(Subject::Heartbeat(name.to_owned()), "its heartbeats are back".into());
        (beat == Beat::Back).then(back)
    }

    /// Whether one more name of heartbeats can be judged.
    fn has_room(&mut self, name: &str, now: Timestamp) -> bool {
        if name.len() > MAX_NAME {
            return false;
        }
        if self.hearts.len() >= MAX_NAMES && now >= self.cleared_out.after(CLEAR_OUT) {
            self.cleared_out = now;
            let passed =
                |p: &Pulse| p.learning().is_some() && p.last().is_none_or(|last| now.since(last) >= PASSING);
            self.hearts.retain(|_, pulse| !passed(pulse));
        }
        self.hearts.len() < MAX_NAMES
    }

    /// The output `name` of a declared process was told.
    fn output(&mut self, what: Output, name: &str, value: f64, now: Timestamp) -> Option<Verdict> {
        if !value.is_finite() || value < 0.0 && what != Output::Metric {
            return None;
        }
        let owner = match self.owners.get(&(what, name.to_owned())) {
            Some(owner) => owner.clone(),
            None => self.owner_by_name(name)?.to_owned(),
        };
        let process = self.processes.get_mut(&owner)?;
        let rule = outputs(&self.settings);
        if !process.work.knows(what, name) {
            if self.outputs >= MAX_NAMES || name.len() > MAX_NAME {
                self.refused = self.refused.saturating_add(1);
                return None;
            }
            let gaps = self.earlier.outputs(what).remove(name);
            process.work.add(what, name, gaps.unwrap_or_else(|| Baseline::new(self.settings.learn)), &rule);
            self.outputs += 1;
        }
        let verdict = process.output(&owner, what, name, value, now, &rule);
        // One that may be flat sooner than those that are looked at already: a new one, or one that has learned.
        let limit = self.settings.flat_at_least.get();
        self.arm(Some(now.after(limit)));
        verdict
    }

    /// The declared process that `name` begins with: `worker` for `worker.jobs`.
    fn owner_by_name(&self, name: &str) -> Option<&str> {
        name.rmatch_indices('.')
            .find_map(|(dot, _)| self.processes.get_key_value(name.get(..dot)?))
            .map(|(owner, _)| owner.as_str())
    }

    /// Says what is missing now, of what does not belong to the few processes.
    fn look(&mut self, now: Timestamp, out: &mut Vec<Verdict>) {
        if self.sweep.is_none_or(|at| at > now) {
            return;
        }
        let rule = heartbeats(&self.settings, None);
        for (name, heart) in &mut self.hearts {
            let last = heart.last();
            if heart.misses(now) {
                out.push(Verdict::Holds(silent(name, heart, &rule, last, now)));
            }
        }
        let rule = outputs(&self.settings);
        for (name, process) in &mut self.processes {
            if let Some(flat) = process.work.look(now, &rule) {
                out.extend(process.flat(name, flat, now));
            }
        }
        let hearts = self.hearts.values().filter_map(Pulse::due);
        let outputs = self.processes.values().filter_map(|p| p.work.due());
        // Not more often than once a second, whatever is due.
        self.sweep = hearts.chain(outputs).min().map(|due| due.max(now.after(Duration::from_secs(1))));
    }

    fn declare(&mut self, name: &str, make: impl FnOnce() -> Process) -> Option<Verdict> {
        let mut process = make();
        let heart = self.hearts.remove(name);
        let gone = heart.as_ref().is_some_and(Pulse::missing).then(|| {
            Verdict::Cleared(Subject::Heartbeat(name.to_owned()), "it is a declared process now".into())
        });
        let gaps = heart.map(|h| h.gaps().clone()).or_else(|| self.earlier.hearts.remove(name));
        process.learn_from(gaps, self.earlier.logs.remove(name), &self.settings);
        self.processes.insert(name.to_owned(), process);
        gone
    }
}

impl HealthGap {
    /// What is not up of that which `name` needs. What is not declared is not waited for.
    fn lacks(&self, name: &str) -> Option<&String> {
        let after = &self.processes.get(name)?.needs.after;
        after.iter().find(|other| self.processes.get(*other).is_some_and(|p| !p.up))
    }

    /// `name` was declared and is to be started, unless it runs already.
    fn first_start(&mut self, name: &str, runs: bool, now: Timestamp) -> Option<Verdict> {
        let needs = self.needs.remove(name);
        let process = self.processes.get_mut(name)?;
        process.needs = needs.unwrap_or_default();
        if runs {
            return None;
        }
        if process.needs.watched_only {
            return process.absent(name, now);
        }
        // Those that it needs may be declared after it.
        process.waits = Wait::First;
        if self.lacks(name).is_some() || !self.all_declared(name) {
            return None;
        }
        self.processes.get_mut(name)?.waits = Wait::None;
        Some(start(name))
    }

    fn all_declared(&self, name: &str) -> bool {
        let after = self.processes.get(name).map(|p| p.needs.after.as_slice()).unwrap_or_default();
        after.iter().all(|other| self.processes.contains_key(other))
    }

    /// Starts what waited for something that is up now.
    fn go_on(&mut self, now: Timestamp, out: &mut Vec<Verdict>) {
        let waiting = self.processes.iter().filter(|(_, p)| p.waits != Wait::None);
        let ready: Vec<String> = waiting
            .map(|(name, _)| name)
            .filter(|name| self.lacks(name).is_none() && self.all_declared(name))
            .cloned()
            .collect();
        for name in ready {
            let Some(process) = self.processes.get_mut(&name) else { continue };
            match std::mem::take(&mut process.waits) {
                Wait::First => out.push(start(&name)),
                Wait::Again => out.extend(process.start_again(&name, now, 0)),
                Wait::None => {}
            }
        }
    }

    /// What is down, and needs something that is down, too, is not started before that.
    fn hold_back(&mut self, now: Timestamp, out: &mut Vec<Verdict>) {
        let down = self
            .processes
            .iter()
            .filter(|(_, p)| !p.up && p.waits == Wait::None && !p.needs.after.is_empty());
        let lacking: Vec<(String, String)> =
            down.filter_map(|(name, _)| Some((name.clone(), self.lacks(name)?.clone()))).collect();
        for (name, first) in lacking {
            if let Some(process) = self.processes.get_mut(&name) {
                out.extend(process.wait_for(&name, &first, now));
            }
        }
    }
}

fn start(name: &str) -> Verdict {
    let action = Action::StartProcess { name: name.to_owned() };
    Verdict::Wants(Subject::Process(name.to_owned()), action)
}

/// When heartbeats are missing.
fn heartbeats(settings: &config::HealthGap, declared: Option<Duration>) -> Rule {
    Rule { declared, factor: settings.heartbeat_factor, at_least: settings.heartbeat_at_least.get() }
}

/// When a log is silent.
fn logs(settings: &config::HealthGap) -> Rule {
    Rule { declared: None, factor: settings.log_factor, at_least: settings.log_at_least.get() }
}

/// When an output stands still.
fn outputs(settings: &config::HealthGap) -> Rule {
    Rule { declared: None, factor: settings.flat_factor, at_least: settings.flat_at_least.get() }
}

/// What is said of a name that sends no heartbeats any more.
fn silent(name: &str, heart: &Pulse, rule: &Rule, last: Option<Timestamp>, now: Timestamp) -> Box<Finding> {
    let last = last.unwrap_or(now);
    Box::new(Finding {
        subject: Subject::Heartbeat(name.to_owned()),
        since: last,
        summary: "its heartbeats are missing".into(),
        measured: format!("none for {}", lasting(now.since(last))),
        threshold: format!("none for {}", lasting(heart.limit().unwrap_or_default())),
        baseline: heart.normal(rule),
        writer: None,
        noticed_by: None,
        evidence: Vec::new(),
        // Grace does not know what sent them, so there is nothing that it could restart.
        remedy: vec![Action::FileTask {
            title: "Find out why heartbeats are missing, and fix their sender".into(),
            acceptance: "heartbeats come again for 10 minutes and health_gap stays clear".into(),
        }],
        delay: Duration::ZERO,
        hold: None,
        depends_on: Vec::new(),
    })
}

impl Trigger for HealthGap {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.processes.len() + self.hearts.len()
    }

    fn wake(&self) -> Option<Timestamp> {
        self.processes.values().filter_map(|p| p.wake(&self.settings)).chain(self.sweep).min()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        let now = event.at;
        let mut out = Vec::new();
        match &event.kind {
            Kind::ProcessDeclared { name, policy, pid, .. } => match self.processes.get_mut(name) {
                Some(process) => process.set_policy(policy.clone()),
                None => {
                    let learn = self.settings.learn;
                    out.extend(self.declare(name, || Process::new(policy.clone(), *pid, learn)));
                    out.extend(self.first_start(name, pid.is_some(), now));
                    self.go_on(now, &mut out);
                }
            },
            Kind::ProcessNeeds { name, after, awaits, watched_only } => {
                let needs = Needs { after: after.clone(), awaits: *awaits, watched_only: *watched_only };
                match self.processes.get_mut(name) {
                    Some(process) => process.needs = needs,
                    None if self.needs.len() < MAX_NAMES => {
                        self.needs.insert(name.clone(), needs);
                    }
                    None => {}
                }
            }
            Kind::ProcessReady { name, pid, .. } => {
                if let Some(process) = self.processes.get_mut(name) {
                    process.ready(*pid, now, &self.settings);
                }
                self.go_on(now, &mut out);
            }
            Kind::LoadShed { process, step } if *step != Shed::Notify => {
                if let Some(process) = self.processes.get_mut(process) {
                    process.shed();
                }
            }
            Kind::LoadGivenBack { process } => {
                if let Some(process) = self.processes.get_mut(process) {
                    process.given_back();
                }
            }
            Kind::ProcessExpects { name, heartbeat_ms } => {
                if let Some(process) = self.processes.get_mut(name) {
                    process.expects(heartbeat_ms.map(Duration::from_millis), now, &self.settings);
                }
            }
            Kind::ProcessForgotten { name } => {
                if let Some(process) = self.processes.remove(name) {
                    self.outputs -= process.work.len();
                    out.extend(process.forgotten(name));
                }
                self.needs.remove(name);
                self.processes.values_mut().for_each(|p| p.needs.after.retain(|other| other != name));
                // Nobody waits for what is not owned any more.
                self.go_on(now, &mut out);
            }
            Kind::ProcessStarted { name, pid } => {
                if let Some(process) = self.processes.get_mut(name) {
                    out.extend(process.started(name, *pid, now, &self.settings));
                }
                self.go_on(now, &mut out);
            }
            Kind::ProcessExited { name, pid, exit, stderr_tail } => {
                let down = self.processes.values().filter(|p| !p.up).count();
                if let Some(process) = self.processes.get_mut(name) {
                    out.extend(process.ended(name, *pid, exit, stderr_tail, now, down));
                }
                self.hold_back(now, &mut out);
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
                if let Some(process) = self.processes.get_mut(name) {
                    out.extend(process.progress(name, *pid, *doing, *since, wait.clone()));
                }
            }
            Kind::GpuSeen { gpu } => {
                // A GPU that several share says nothing of one of them.
                let mut owners = gpu.processes.iter().map(|user| user.process.as_deref());
                let first = owners.next().flatten();
                if let Some(name) = first.filter(|_| owners.all(|owner| owner == first))
                    && let Some(process) = self.processes.get_mut(name)
                {
                    out.extend(process.gpu(name, gpu, &self.settings, now));
                }
            }
            Kind::QueueDeclared { name, process, .. } => self.own(Output::Queue, name, process.as_ref()),
            Kind::RouteDeclared { name, process, .. } => self.own(Output::Route, name, process.as_ref()),
            Kind::Heartbeat { name, .. } => out.extend(self.heartbeat(name, now)),
            Kind::Metric { name, value, .. } => out.extend(self.output(Output::Metric, name, *value, now)),
            Kind::QueueDepth { name, depth, .. } => out.extend(self.output(Output::Queue, name, *depth, now)),
            Kind::RouteLatency { route, took_ms } if took_ms.count() > 0 => {
                out.extend(self.output(Output::Route, route, took_ms.quantile(0.5).unwrap_or(0.0), now));
            }
            Kind::LogActivity { process: name, lines } if *lines > 0 => {
                if let Some(process) = self.processes.get_mut(name) {
                    out.extend(process.logged(name, now, &self.settings));
                }
            }
            Kind::Resumed { away_ms } => {
                let away = Duration::from_millis(*away_ms);
                self.hearts.values_mut().for_each(|h| h.away(away, now));
                self.processes.values_mut().for_each(|p| p.away(away, now));
            }
            Kind::Learned { trigger, state } if trigger == SPEC.name => match Kept::read(state) {
                Ok(kept) => self.earlier = kept,
                Err(why) => out.push(unusable(&SPEC, &why, now)),
            },
            _ => {}
        }
        // Any event tells the time.
        for (name, process) in &mut self.processes {
            process.tick(name, now, &self.settings, &mut out);
        }
        self.look(now, &mut out);
        out
    }

    fn learned(&self) -> Option<serde_json::Value> {
        let mut kept = Kept {
            version: VERSION,
            hearts: self.earlier.hearts.clone(),
            logs: self.earlier.logs.clone(),
            metrics: self.earlier.metrics.clone(),
            queues: self.earlier.queues.clone(),
            routes: self.earlier.routes.clone(),
        };
        // What is known is kept; who only began to learn begins again.
        let known = |gaps: &Baseline| gaps.learning().is_none();
        for (name, heart) in self.hearts.iter().filter(|(_, h)| known(h.gaps())) {
            kept.hearts.insert(name.clone(), heart.gaps().clone());
        }
        for (name, process) in &self.processes {
            for (map, gaps) in
                [(&mut kept.hearts, process.heart_gaps()), (&mut kept.logs, process.log_gaps())]
            {
                if known(gaps) {
                    map.insert(name.clone(), gaps.clone());
                }
            }
            for (what, output, gaps) in process.work.learned().filter(|(_, _, gaps)| known(gaps)) {
                kept.outputs(what).insert(output.to_owned(), gaps.clone());
            }
        }
        for map in [&mut kept.hearts, &mut kept.logs, &mut kept.metrics, &mut kept.queues, &mut kept.routes] {
            while map.len() > 2 * MAX_NAMES {
                map.pop_last();
            }
        }
        serde_json::to_value(kept).ok()
    }

    fn notes(&self) -> Vec<String> {
        let learning = |what: &str, name: &str, pulse: &Pulse| {
            let (have, need) = pulse.learning()?;
            pulse.last()?;
            Some(format!("{what} {}: learning, {have} of {need} gaps", name.escape_debug()))
        };
        let of_processes = self.processes.iter().flat_map(|(name, p)| {
            [learning("heartbeats of process", name, p.heart()), learning("log of process", name, p.log())]
        });
        let of_hearts = self.hearts.iter().map(|(name, heart)| learning("heartbeats of", name, heart));
        let mut out: Vec<String> = of_processes.chain(of_hearts).flatten().take(MAX_NOTES).collect();
        if self.refused > 0 {
            out.push(format!("{} records of names beyond {MAX_NAMES} are not judged", self.refused));
        }
        out
    }
}

impl HealthGap {
    fn own(&mut self, what: Output, name: &str, process: Option<&String>) {
        let key = (what, name.to_owned());
        match process {
            Some(process) => drop(self.owners.insert(key, process.clone())),
            None => drop(self.owners.remove(&key)),
        }
    }
}
