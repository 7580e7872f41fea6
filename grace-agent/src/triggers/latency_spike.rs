//! `latency_spike`: work comes in faster than it is done: a queue is too deep, a route too slow, a process's system calls
//! take long, or connections wait to be accepted.
//!
//! Here is what is seen and said · `latency_spike/level.rs` judges one level · `scale.rs` how many replicas there are, and shall
//! be.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_NAME, MAX_NAMES, MAX_NOTES, Spec, Trigger, unusable};
use crate::action::Action;
use crate::baseline::Baseline;
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{self, Finding, Subject, Verdict};
use crate::sketch::Sketch;
use level::{Change, Level, Rule, for_how_long};
use scale::Scale;

mod level;
mod scale;

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "latency_spike",
    summary: "a queue is too deep, a route, system calls or accepting too slow",
    help: "Watches every queue and route that applications tell of, and every [[process]]. Fires when for `sustained` \
           without a break: the depth of a queue is over its `limit`, or without one over `queue_factor` times its learned \
           p95; the p95 of a route is over its `budget_ms`, or without one over `route_factor` times its learned p95; the \
           p99 of a process's calls that do not wait for others (open, stat, write, sync, memory, process) is \
           `syscall_factor` times its learned one; or one of its listeners' accept queues is filled to `backlog`. Clears \
           when it was seen below `clear` times the threshold for `clear_for`: a level that nobody tells is no recovery. \
           What is learned is learned only while nothing is wrong, and a value counts as normal only when nothing was \
           wrong for ten minutes after it; a lasting new level becomes normal only after `relearn_after`, which is off by \
           default. Where the `process` of a queue, a route or a listener may have more replicas (`max_replicas`) it gets one \
           more, and another one until that helps; `scale_down_after` without a spike later one less, and so on. Else, and \
           then, files a task with the facts.",
    subjects: "queues, routes, declared processes",
    remedy: "scale up by one replica at a time, down again when it cleared → file a task",
    needs: "applications that tell depths and latencies; syscall_latency (root) for calls; sock_diag for accept queues of \
            the agent's own network namespace",
    evidence: &["records"],
    route: firing::Route::SelfHealing,
};

/// A route's p95 is taken of all answers within this time, and longer until there are enough.
const WINDOW: Duration = Duration::from_secs(5);

/// Classes of calls, and listeners, of one process at most.
const MAX_PARTS: usize = 64;

/// Classes of calls that take long because the host is slow, not because a peer is.
const OWN_CALLS: [&str; 6] = ["memory", "open", "process", "stat", "sync", "write"];

/// The trigger.
pub struct LatencySpike {
    settings: config::LatencySpike,
    queues: BTreeMap<String, Queue>,
    routes: BTreeMap<String, Route>,
    processes: BTreeMap<String, Process>,
    /// What more than one of may run, by name.
    scales: BTreeMap<String, Scale>,
    earlier: Kept,
    /// Records under names beyond the limit.
    refused: u64,
}

struct Queue {
    limit: Option<f64>,
    process: Option<String>,
    depth: Level,
}

struct Route {
    budget_ms: Option<f64>,
    process: Option<String>,
    p95: Level,
    /// Answers since `began`, not yet judged.
    took_ms: Sketch,
    began: Option<Timestamp>,
}

/// A declared process.
#[derive(Default)]
struct Process {
    /// By class of calls, in microseconds.
    calls: BTreeMap<String, Level>,
    /// By address, from 0 to 1.
    listeners: BTreeMap<String, Level>,
    said: bool,
}

/// What is kept between two runs: normal levels by name.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Format: 1.
    version: u32,
    queues: BTreeMap<String, Baseline>,
    routes: BTreeMap<String, Baseline>,
    /// By process, then by class.
    calls: BTreeMap<String, BTreeMap<String, Baseline>>,
}

const VERSION: u32 = 1;

impl Kept {
    fn read(state: &serde_json::Value) -> Result<Self, String> {
        let kept = Self::deserialize(state).map_err(|err| err.to_string())?;
        if kept.version != VERSION {
            return Err(format!("it has format {}, not {VERSION}", kept.version));
        }
        let long = |map: &BTreeMap<String, Baseline>| {
            map.len() > 2 * MAX_NAMES || map.keys().any(|name| name.len() > MAX_NAME)
        };
        if long(&kept.queues) || long(&kept.routes) || kept.calls.values().any(long) {
            return Err("more, or longer, names than it may hold".to_owned());
        }
        Ok(kept)
    }
}

impl LatencySpike {
    /// Without subjects.
    #[must_use]
    pub fn new(settings: config::LatencySpike) -> Self {
        Self {
            settings,
            queues: BTreeMap::new(),
            routes: BTreeMap::new(),
            processes: BTreeMap::new(),
            scales: BTreeMap::new(),
            earlier: Kept::default(),
            refused: 0,
        }
    }

    /// Whether one more name beside `have` of them is judged.
    fn has_room(&mut self, name: &str, have: usize) -> bool {
        let room = have < MAX_NAMES && name.len() <= MAX_NAME;
        if !room {
            self.refused = self.refused.saturating_add(1);
        }
        room
    }

    fn queue(&mut self, name: &str) -> Option<&mut Queue> {
        if !self.queues.contains_key(name) {
            if !self.has_room(name, self.queues.len()) {
                return None;
            }
            let normal =
                self.earlier.queues.remove(name).unwrap_or_else(|| Baseline::new(self.settings.learn));
            let queue = Queue { limit: None, process: None, depth: Level::new(normal) };
            self.queues.insert(name.to_owned(), queue);
        }
        self.queues.get_mut(name)
    }

    fn route(&mut self, name: &str) -> Option<&mut Route> {
        if !self.routes.contains_key(name) {
            if !self.has_room(name, self.routes.len()) {
                return None;
            }
            let normal =
                self.earlier.routes.remove(name).unwrap_or_else(|| Baseline::new(self.settings.learn));
            let route = Route {
                budget_ms: None,
                process: None,
                p95: Level::new(normal),
                took_ms: Sketch::default(),
                began: None,
            };
            self.routes.insert(name.to_owned(), route);
        }
        self.routes.get_mut(name)
    }

    fn depth(&mut self, name: &str, depth: f64, max: f64, now: Timestamp) -> Option<Verdict> {
        let settings = self.settings.clone();
        self.queue(name)?;
        let Self { queues, scales, .. } = self;
        let queue = queues.get_mut(name)?;
        let rule =
            Rule { limit: queue.limit, factor: settings.queue_factor, at_least: settings.queue_at_least };
        let change = queue.depth.judge(depth, now, &rule, &settings);
        let subject = Subject::Queue(name.to_owned());
        say(change, subject, now, || Said {
            summary: "more work comes in than is done: it is too deep".into(),
            measured: format!("{} wait, at most {}", number(depth), number(max.max(depth))),
            unit: "",
            rule,
            normal: normal(&queue.depth, ""),
            evidence: works_off(queue.process.as_deref(), "worked off"),
            scale: scale_up(scales, queue.process.as_deref()),
            by: queue.process.clone(),
            title: "Find out why a queue grows faster than it is worked off, and fix it or give it more workers",
            acceptance: "the queue stays below its threshold and latency_spike clear for 10 minutes",
        })
    }

    fn latency(&mut self, name: &str, took_ms: &Sketch, now: Timestamp) -> Option<Verdict> {
        let settings = self.settings.clone();
        self.route(name)?;
        let Self { routes, scales, .. } = self;
        let route = routes.get_mut(name)?;
        route.took_ms.merge(took_ms);
        let began = *route.began.get_or_insert(now);
        let calls = route.took_ms.count();
        if now.since(began) < WINDOW || calls < settings.route_calls {
            return None;
        }
        let window = std::mem::take(&mut route.took_ms);
        route.began = Some(now);
        let p95 = window.quantile(0.95)?;
        let rule = Rule {
            limit: route.budget_ms,
            factor: settings.route_factor,
            at_least: settings.route_at_least_ms,
        };
        let change = route.p95.judge(p95, now, &rule, &settings);
        say(change, Subject::Route(name.to_owned()), now, || Said {
            summary: "its answers take too long".into(),
            measured: format!(
                "p95 {} ms, p50 {} ms, of {calls} answers in {}",
                number(p95),
                number(window.quantile(0.5).unwrap_or(0.0)),
                for_how_long(began, now)
            ),
            unit: " ms",
            rule,
            normal: normal(&route.p95, " ms"),
            evidence: works_off(route.process.as_deref(), "answered"),
            scale: scale_up(scales, route.process.as_deref()),
            by: route.process.clone(),
            title: "Find out why a route answers slowly, and fix it or give it more workers",
            acceptance: "the route's p95 stays below its threshold and latency_spike clear for 10 minutes",
        })
    }

    fn calls(&mut self, name: &str, class: &str, p99_us: f64, calls: u64, now: Timestamp) -> Option<Verdict> {
        if !OWN_CALLS.contains(&class) {
            return None;
        }
        let settings = &self.settings;
        let process = self.processes.get_mut(name)?;
        if !process.calls.contains_key(class) {
            let earlier = self.earlier.calls.get_mut(name).and_then(|classes| classes.remove(class));
            let normal = earlier.unwrap_or_else(|| Baseline::new(settings.learn));
            process.calls.insert(class.to_owned(), Level::new(normal));
        }
        let level = process.calls.get_mut(class)?;
        let least = settings.syscall_at_least_ms * 1000.0;
        let rule = Rule { limit: None, factor: settings.syscall_factor, at_least: least };
        let change = level.judge(p99_us, now, &rule, settings);
        let normal = normal(level, " µs");
        process.hear(name, change, now, || Said {
            summary: format!("its {} calls take long", class.escape_debug()),
            measured: format!("p99 {} µs of {calls} timed calls", number(p99_us)),
            unit: " µs",
            rule,
            normal,
            evidence: Vec::new(),
            scale: Vec::new(),
            by: None,
            title: "Find out why system calls of a declared process take long, and fix it",
            acceptance: "its calls take their usual time and latency_spike stays clear for 10 minutes",
        })
    }

    fn backlog(
        &mut self,
        name: &str,
        listener: &str,
        len: u32,
        limit: u32,
        now: Timestamp,
    ) -> Option<Verdict> {
        let settings = &self.settings;
        let process = self.processes.get_mut(name)?;
        if !process.listeners.contains_key(listener) {
            if process.listeners.len() >= MAX_PARTS || listener.len() > MAX_NAME {
                self.refused = self.refused.saturating_add(1);
                return None;
            }
            process.listeners.insert(listener.to_owned(), Level::new(Baseline::new(settings.learn)));
        }
        let level = process.listeners.get_mut(listener)?;
        let rule = Rule { limit: Some(settings.backlog), factor: 1.0, at_least: 0.0 };
        // A listener with a limit of 0 takes one connection all the same.
        let full = f64::from(len) / f64::from(limit.max(1));
        let change = level.judge(full, now, &rule, settings);
        process.hear(name, change, now, || Said {
            summary: format!("connections to {} wait to be accepted", listener.escape_debug()),
            measured: format!("{len} of at most {limit} wait"),
            unit: " full",
            rule,
            normal: "none waits for long".into(),
            evidence: Vec::new(),
            scale: scale_up(&self.scales, Some(name)),
            by: None,
            title: "Find out why a declared process accepts connections too slowly, and fix it or give it more workers",
            acceptance: "its accept queues stay short and latency_spike clear for 10 minutes",
        })
    }
}

impl LatencySpike {
    /// Takes back one replica of whatever was scaled up and has had no spike for long enough.
    fn scale_down(&mut self, now: Timestamp) -> Vec<Verdict> {
        let mut out = Vec::new();
        if self.scales.values().all(|scale| !scale.is_up()) {
            return out;
        }
        let after = self.settings.scale_down_after.get();
        let Self { queues, routes, processes, scales, .. } = self;
        for (name, scale) in scales.iter_mut().filter(|(_, scale)| scale.is_up()) {
            let by = |process: &Option<String>| process.as_ref() == Some(name);
            let fires = queues.values().any(|q| by(&q.process) && q.depth.fires())
                || routes.values().any(|r| by(&r.process) && r.p95.fires())
                || processes.get(name).is_some_and(|p| p.listeners.values().any(Level::fires));
            if let Some(to) = scale.down(fires, now, after) {
                let action = Action::Scale { name: name.clone(), to };
                out.push(Verdict::Wants(Subject::Process(name.clone()), action));
            }
        }
        out
    }
}

impl Process {
    /// One of its levels has changed.
    fn hear(
        &mut self,
        name: &str,
        change: Change,
        now: Timestamp,
        what: impl FnOnce() -> Said,
    ) -> Option<Verdict> {
        let fires = self.calls.values().chain(self.listeners.values()).any(Level::fires);
        let subject = Subject::Process(name.to_owned());
        match change {
            // One firing for a process: the second cause does not begin it anew.
            Change::Fires { .. } if self.said => None,
            Change::Clears | Change::Accepted if fires || !self.said => None,
            _ => {
                self.said = fires;
                say(change, subject, now, what)
            }
        }
    }

    /// It has ended, and what was measured of it with it.
    fn ended(&mut self, name: &str, how: &str) -> Option<Verdict> {
        self.calls.values_mut().for_each(Level::end);
        self.listeners.clear();
        let said = std::mem::take(&mut self.said);
        said.then(|| Verdict::Cleared(Subject::Process(name.to_owned()), how.to_owned()))
    }
}

/// What is said of a level that is too high.
struct Said {
    summary: String,
    measured: String,
    unit: &'static str,
    rule: Rule,
    normal: String,
    evidence: Vec<String>,
    /// What may help.
    scale: Vec<Action>,
    /// What does the work.
    by: Option<String>,
    title: &'static str,
    acceptance: &'static str,
}

fn say(change: Change, subject: Subject, now: Timestamp, what: impl FnOnce() -> Said) -> Option<Verdict> {
    let (since, threshold) = match change {
        Change::None => return None,
        Change::Clears => {
            return Some(Verdict::Cleared(subject, "seen well below the threshold for long enough".into()));
        }
        Change::Accepted => {
            let how = "lasted so long that it is the new normal (relearn_after)";
            return Some(Verdict::Cleared(subject, how.into()));
        }
        Change::Fires { since, threshold } => (since, threshold),
    };
    let said = what();
    let from = match said.rule.limit {
        Some(_) => "its limit".to_owned(),
        None => format!("{} times its p95, at least {}", said.rule.factor, number(said.rule.at_least)),
    };
    Some(Verdict::Holds(Box::new(Finding {
        subject,
        since,
        summary: said.summary,
        measured: format!("{}; too high for {}", said.measured, for_how_long(since, now)),
        threshold: format!("{}{}, {from}", number(threshold), said.unit),
        baseline: said.normal,
        writer: None,
        noticed_by: None,
        evidence: said.evidence,
        remedy: said
            .scale
            .into_iter()
            .chain([Action::FileTask { title: said.title.into(), acceptance: said.acceptance.into() }])
            .collect(),
        delay: Duration::ZERO,
        hold: None,
        depends_on: said.by.into_iter().map(Subject::Process).collect(),
    })))
}

fn normal(level: &Level, unit: &str) -> String {
    match (level.normal().quantile(0.95), level.normal().learning()) {
        (Some(p95), _) => format!("19 of 20 at most {}{unit}", number(p95)),
        (None, Some((have, need))) => format!("learning, {have} of {need} values"),
        (None, None) => "not known".into(),
    }
}

/// The rungs that let more of `process` run.
fn scale_up(scales: &BTreeMap<String, Scale>, process: Option<&str>) -> Vec<Action> {
    process.and_then(|name| Some(scales.get(name)?.rungs(name))).unwrap_or_default()
}

fn works_off(process: Option<&str>, how: &str) -> Vec<String> {
    process.map(|name| format!("{how} by process {}", name.escape_debug())).into_iter().collect()
}

/// A number as people read it: without digits that say nothing.
fn number(value: f64) -> String {
    if value.abs() >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

impl Trigger for LatencySpike {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.queues.len() + self.routes.len() + self.processes.len()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        let now = event.at;
        let verdict = match &event.kind {
            Kind::QueueDepth { name, depth, max } => self.depth(name, *depth, *max, now),
            Kind::RouteLatency { route, took_ms } => self.latency(route, took_ms, now),
            Kind::SyscallLatency { process, class, p99_us, calls } => {
                self.calls(process, class, *p99_us, *calls, now)
            }
            Kind::Backlog { process, listener, len, limit } => {
                self.backlog(process, listener, *len, *limit, now)
            }
            Kind::QueueDeclared { name, limit, process } => {
                if let Some(queue) = self.queue(name) {
                    (queue.limit, queue.process) = (*limit, process.clone());
                }
                None
            }
            Kind::RouteDeclared { name, budget_ms, process } => {
                if let Some(route) = self.route(name) {
                    (route.budget_ms, route.process) = (*budget_ms, process.clone());
                }
                None
            }
            Kind::ProcessDeclared { name, .. } => {
                self.processes.entry(name.clone()).or_default();
                None
            }
            Kind::ScaleDeclared { name, base, max, now: count } => {
                if base >= max {
                    self.scales.remove(name);
                } else if self.scales.len() < MAX_NAMES {
                    let down = now.after(self.settings.scale_down_after.get());
                    self.scales.insert(name.clone(), Scale::new(*base, *max, *count, down));
                }
                None
            }
            Kind::Scaled { name, to } => {
                if let Some(scale) = self.scales.get_mut(name) {
                    scale.now(*to, now.after(self.settings.scale_down_after.get()));
                }
                None
            }
            Kind::ProcessForgotten { name } => {
                self.scales.remove(name);
                self.processes.remove(name).and_then(|mut p| p.ended(name, "not owned any more"))
            }
            Kind::ProcessExited { name, pid, .. } => {
                let how = format!("pid {pid} has ended, and its waiting connections with it");
                self.processes.get_mut(name).and_then(|p| p.ended(name, &how))
            }
            Kind::Resumed { .. } => {
                self.queues.values_mut().for_each(|q| q.depth.away());
                for route in self.routes.values_mut() {
                    route.p95.away();
                    (route.took_ms, route.began) = (Sketch::default(), None);
                }
                for process in self.processes.values_mut() {
                    process.calls.values_mut().chain(process.listeners.values_mut()).for_each(Level::away);
                }
                None
            }
            Kind::Learned { trigger, state } if trigger == SPEC.name => match Kept::read(state) {
                Ok(kept) => {
                    self.earlier = kept;
                    None
                }
                Err(why) => Some(unusable(&SPEC, &why, now)),
            },
            _ => None,
        };
        verdict.into_iter().chain(self.scale_down(now)).collect()
    }

    fn wake(&self) -> Option<Timestamp> {
        self.scales.values().filter_map(Scale::due).min()
    }

    fn learned(&self) -> Option<serde_json::Value> {
        let mut kept = Kept { version: VERSION, ..self.earlier.clone() };
        let known = |level: &Level| level.normal().learning().is_none();
        for (name, queue) in self.queues.iter().filter(|(_, q)| known(&q.depth)) {
            kept.queues.insert(name.clone(), queue.depth.normal().clone());
        }
        for (name, route) in self.routes.iter().filter(|(_, r)| known(&r.p95)) {
            kept.routes.insert(name.clone(), route.p95.normal().clone());
        }
        for (name, process) in &self.processes {
            for (class, level) in process.calls.iter().filter(|(_, level)| known(level)) {
                let classes = kept.calls.entry(name.clone()).or_default();
                classes.insert(class.clone(), level.normal().clone());
            }
        }
        for map in [&mut kept.queues, &mut kept.routes] {
            while map.len() > 2 * MAX_NAMES {
                map.pop_last();
            }
        }
        serde_json::to_value(kept).ok()
    }

    fn notes(&self) -> Vec<String> {
        let learning = |what: &str, name: &str, fixed: bool, level: &Level| {
            let (have, need) = level.normal().learning().filter(|_| !fixed)?;
            level.last()?;
            Some(format!("{what} {}: learning, {have} of {need} values", name.escape_debug()))
        };
        let queues = self.queues.iter().map(|(name, q)| learning("queue", name, q.limit.is_some(), &q.depth));
        let routes =
            self.routes.iter().map(|(name, r)| learning("route", name, r.budget_ms.is_some(), &r.p95));
        let calls = self.processes.iter().flat_map(|(name, process)| {
            process.calls.iter().map(move |(class, level)| {
                learning("calls of process", &format!("{name}, {class}"), false, level)
            })
        });
        let mut out: Vec<String> = queues.chain(routes).chain(calls).flatten().take(MAX_NOTES).collect();
        if self.refused > 0 {
            out.push(format!("{} records of names beyond {MAX_NAMES} are not judged", self.refused));
        }
        out
    }
}
