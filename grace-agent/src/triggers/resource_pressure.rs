//! `resource_pressure`: the host runs out of something.
//!
//! Sees `Pressure`. Fires when a resource has been above its limit without a break for `sustained`; clears when it was
//! seen `margin` points below the limit for as long. Remedy for processors and memory: shed load of the least important
//! declared processes, gently first, and give it back in reverse when the pressure is gone. A full disk or table cannot
//! be shed: that is a task.
//!
//! GPUs, too: `resource_pressure/gpu.rs` judges what is seen of one, `faults.rs` and `xid.rs` what its driver reports,
//! `vram.rs` its memory.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Spec, Trigger};
use crate::action::{Action, Shed};
use crate::config;
use crate::event::{Event, Kind, ProcessLoad, Reading, Timestamp};
use crate::firing::{Finding, Route, Subject, Verdict};
use gpu::Gpus;

mod faults;
mod gpu;
mod vram;
pub mod xid;

/// What this trigger is.
pub static SPEC: Spec = Spec {
    name: "resource_pressure",
    summary: "processors, memory, disks, tables or GPUs of the host are nearly used up, or a GPU is in trouble",
    help: "Samples processors, memory, swap, stalls (PSI), open files, process ids, and space and inodes of local file \
           systems. Fires when one has been above its limit ([pressure]) without a break for `sustained`. Where load \
           can help it sheds load: of the declared processes the least important ones first (`importance`, 100 never), \
           step by step as `[pressure] steps` says: notify (`shed_signal`), throttle (lowest priority, and a small share where its \
           cgroup can be limited), freeze (stopped), terminate. Clears when \
           the reading was `margin` points below the limit for as long as it took to fire; what was shed is given back \
           then, the last first. Not seen is neither: without samples it keeps its verdict.\n\
           Of each GPU it sees what NVML tells ([gpu]). A fault that its driver reports (an Xid) fires at once: where it \
           is one of a program, the declared process that the driver names is restarted, at most `restart_burst` times an \
           hour; where the GPU needs a reset or the host a reboot, that is a task, and a [[hook]] with a `subject` such as \
           `GPU * xid *` may do it. It clears when it does not come again and the process was started anew, or the GPU is \
           seen to work. Memory that fills up fires at `memory_soft` and again at `memory_hard`, where it would be full \
           within `time_to_full`: declared processes that are less important than another one on the same GPU make room, \
           as `steps` says. Memory of a process that only ever grows, errors of memory, rows of memory to be remapped, \
           heat, throttling, NVLink, fabric, PCIe lanes, a GPU that does not answer and a driver that hangs are tasks.",
    subjects: "resources of the host, GPUs",
    remedy: "shed load of the least important: throttle (notify, freeze, terminate, where allowed); restart the process \
             that a GPU fault names → task",
    needs: "/proc; PSI (psi=1) for stalls; NVML and /dev/kmsg for GPUs",
    evidence: &[],
    route: Route::SelfHealing,
};

/// Resources followed at most: mounts are named by whoever mounts.
const RESOURCES_MAX: usize = 256;

/// Processes that are shed for one firing at most.
const VICTIMS_MAX: usize = 8;

/// The trigger.
pub struct ResourcePressure {
    settings: config::Pressure,
    resources: BTreeMap<String, Resource>,
    /// Importance of each declared process.
    processes: BTreeMap<String, u8>,
    /// What was shed, in order.
    shed: Vec<(String, Shed)>,
    /// What each declared process takes, as it was last told.
    loads: BTreeMap<String, ProcessLoad>,
    /// When load was last shed, and for whose firing nobody can tell.
    last_shed: Option<Timestamp>,
    gpus: Gpus,
}

/// A resource.
#[derive(Default)]
struct Resource {
    /// Since when it has been above its limit without a break.
    over: Option<Timestamp>,
    /// Since when it has been well below, while it fires.
    under: Option<Timestamp>,
    /// Highest reading since it was last below.
    peak: f64,
    fires: bool,
}

impl ResourcePressure {
    /// Without resources.
    #[must_use]
    pub fn new(settings: config::Pressure, gpu: config::Gpu) -> Self {
        Self {
            settings,
            resources: BTreeMap::new(),
            processes: BTreeMap::new(),
            shed: Vec::new(),
            loads: BTreeMap::new(),
            last_shed: None,
            gpus: Gpus::new(gpu),
        }
    }

    fn judge(&mut self, reading: &Reading, now: Timestamp) -> Vec<Verdict> {
        let Some(limit) = self.settings.limit(&reading.resource).filter(|_| reading.percent.is_finite())
        else {
            return Vec::new();
        };
        let sustained = self.settings.sustained.get();
        if !self.resources.contains_key(&reading.resource) && self.resources.len() >= RESOURCES_MAX {
            return Vec::new();
        }
        let resource = self.resources.entry(reading.resource.clone()).or_default();
        if reading.percent > limit {
            resource.under = None;
            resource.peak = resource.peak.max(reading.percent);
            let since = *resource.over.get_or_insert(now);
            if !resource.fires && now.since(since) >= sustained {
                resource.fires = true;
                let peak = resource.peak;
                return vec![Verdict::Holds(Box::new(self.finding(reading, limit, peak, since, now)))];
            }
            return Vec::new();
        }
        resource.over = None;
        if !resource.fires {
            resource.peak = 0.0;
            return Vec::new();
        }
        if reading.percent > limit - self.settings.margin {
            // Between the two marks nothing is decided.
            resource.under = None;
            return Vec::new();
        }
        let since = *resource.under.get_or_insert(now);
        if now.since(since) < sustained {
            return Vec::new();
        }
        *resource = Resource::default();
        let how = format!("{} % for {}", reading.percent, humantime::format_duration(sustained));
        let mut out = vec![Verdict::Cleared(Subject::Host(reading.resource.clone()), how)];
        if can_shed(&reading.resource) && !self.resources.iter().any(|(name, r)| r.fires && can_shed(name)) {
            out.extend(self.give_back());
        }
        out
    }

    /// Everything that was shed, the last first.
    fn give_back(&self) -> Vec<Verdict> {
        let mut names: Vec<&String> = Vec::new();
        for (name, _) in self.shed.iter().rev() {
            // What made room on a GPU gets it back when there is room there.
            if !names.contains(&name) && !self.gpus.holds(name) {
                names.push(name);
            }
        }
        names
            .into_iter()
            .map(|name| {
                Verdict::Wants(Subject::Process(name.clone()), Action::GiveBack { process: name.clone() })
            })
            .collect()
    }

    fn finding(&self, reading: &Reading, limit: f64, peak: f64, since: Timestamp, now: Timestamp) -> Finding {
        let resource = &reading.resource;
        let rest = self.settings.rest.get();
        let rests = self.last_shed.map_or(Duration::ZERO, |at| rest.saturating_sub(now.since(at)));
        let mut remedy = Vec::new();
        if can_shed(resource) {
            // Of the same importance first who asks for it, last who asks to be spared, and who takes the most before others.
            let order = |name: &String| {
                let load = self.loads.get(name);
                (-load.map_or(0, |l| l.prefer), u64::MAX - load.and_then(|l| l.memory).unwrap_or(0))
            };
            let mut victims: Vec<(&u8, (i8, u64), &String)> = self
                .processes
                .iter()
                .filter(|(_, importance)| **importance < 100)
                .map(|(name, importance)| (importance, order(name), name))
                .collect();
            victims.sort();
            victims.truncate(VICTIMS_MAX);
            // Every one is asked gently before any is asked harder.
            for step in &self.settings.steps {
                for (_, _, name) in &victims {
                    remedy.push(Action::ShedLoad { process: (*name).clone(), step: *step });
                }
            }
        }
        remedy.push(Action::FileTask {
            title: match can_shed(resource) {
                true => "Find out what uses this host up, and make it use less or the host larger".into(),
                false => "Free what is nearly used up on this host, or raise its limit".into(),
            },
            acceptance: "resource_pressure stays clear for an hour".into(),
        });
        Finding {
            subject: Subject::Host(resource.clone()),
            since,
            summary: format!("{} is at {} %", resource.escape_debug(), reading.percent),
            measured: format!("{} %, at most {peak} % since it began", reading.percent),
            threshold: format!("{limit} % for {}", humantime::format_duration(self.settings.sustained.get())),
            baseline: format!("below {} %", limit - self.settings.margin),
            writer: None,
            noticed_by: None,
            evidence: Vec::new(),
            remedy,
            delay: if can_shed(resource) { rests } else { Duration::ZERO },
            hold: None,
            depends_on: Vec::new(),
        }
    }
}

impl Trigger for ResourcePressure {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn subjects(&self) -> usize {
        self.resources.len() + self.gpus.count()
    }

    fn wake(&self) -> Option<Timestamp> {
        self.gpus.wake()
    }

    fn notes(&self) -> Vec<String> {
        self.gpus.notes()
    }

    fn on_event(&mut self, event: &Event) -> Vec<Verdict> {
        let mut out = Vec::new();
        match &event.kind {
            Kind::Pressure { readings } => {
                out.extend(readings.iter().flat_map(|reading| self.judge(reading, event.at)));
            }
            Kind::ProcessDeclared { name, importance, .. } => {
                self.processes.insert(name.clone(), *importance);
            }
            Kind::ProcessForgotten { name } => {
                self.processes.remove(name);
                self.shed.retain(|(shed, _)| shed != name);
            }
            Kind::LoadGivenBack { process } => self.shed.retain(|(shed, _)| shed != process),
            Kind::LoadShed { process, step } => {
                self.shed.push((process.clone(), *step));
                self.last_shed = Some(event.at);
            }
            Kind::ProcessLoads { loads } => {
                let known = loads.iter().filter(|load| self.processes.contains_key(&load.process));
                self.loads = known.map(|load| (load.process.clone(), load.clone())).collect();
            }
            _ => {}
        }
        out.extend(self.gpus.on_event(event, &self.processes));
        out
    }
}

/// What to do about what fires about `subject`, for people.
#[must_use]
pub fn advice(subject: &Subject) -> &'static str {
    let Subject::Gpu(what) = subject else { return "see `grace explain`" };
    let (_, what) = what.split_once(' ').unwrap_or(("", what));
    if let Some(code) = what.strip_prefix("xid ").and_then(|code| code.parse().ok()) {
        return xid::of(code).bucket.advice();
    }
    gpu::advice(what)
}

/// Whether less load helps.
fn can_shed(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory" | "swap" | "memory_stall" | "io_stall" | "pids" | "files")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;
    use crate::event::RestartPolicy;

    fn trigger() -> ResourcePressure {
        let settings = config::Pressure {
            sustained: Span::secs(10),
            steps: vec![Shed::Throttle, Shed::Freeze, Shed::Terminate],
            ..config::Pressure::default()
        };
        ResourcePressure::new(settings, config::Gpu::default())
    }

    fn cpu(trigger: &mut ResourcePressure, second: u64, percent: f64) -> Vec<Verdict> {
        let readings = vec![Reading { resource: "cpu".into(), percent }];
        trigger.on_event(&Event { at: Timestamp(second * 1_000_000_000), kind: Kind::Pressure { readings } })
    }

    fn declare(trigger: &mut ResourcePressure, name: &str, importance: u8) {
        let policy = RestartPolicy {
            burst: 5,
            interval_ms: 1,
            backoff_ms: 1,
            backoff_max_ms: 1,
            stable_ms: 1,
            restart: crate::event::Restart::Always,
        };
        let kind = Kind::ProcessDeclared { name: name.into(), policy, pid: Some(1), importance };
        trigger.on_event(&Event { at: Timestamp(0), kind });
    }

    #[test]
    fn a_peak_does_not_fire_and_a_plateau_does_once() {
        let mut t = trigger();
        for second in 0..9 {
            assert_eq!(cpu(&mut t, second, 99.0), []);
        }
        assert_eq!(cpu(&mut t, 9, 80.0), [], "a break: it begins anew");
        for second in 10..20 {
            assert_eq!(cpu(&mut t, second, 99.0), []);
        }
        assert!(matches!(cpu(&mut t, 20, 99.0)[..], [Verdict::Holds(_)]));
        assert_eq!(cpu(&mut t, 21, 99.0), [], "said once");
    }

    #[test]
    fn exactly_the_limit_is_not_above_it_and_what_is_no_number_is_nothing() {
        let mut t = trigger();
        for second in 0..60 {
            for percent in [90.0, f64::NAN, f64::INFINITY] {
                assert_eq!(cpu(&mut t, second, percent), []);
            }
        }
    }

    #[test]
    fn it_clears_below_the_margin_only_and_never_by_silence() {
        let mut t = trigger();
        cpu(&mut t, 0, 95.0);
        cpu(&mut t, 10, 95.0);
        for second in 11..100 {
            assert_eq!(cpu(&mut t, second, 88.0), [], "between the marks");
        }
        let tick = Event { at: Timestamp(5_000_000_000_000), kind: Kind::Tick };
        assert_eq!(t.on_event(&tick), []);
        cpu(&mut t, 6000, 80.0);
        assert!(
            matches!(&cpu(&mut t, 6010, 80.0)[..], [Verdict::Cleared(Subject::Host(name), _)] if name == "cpu")
        );
    }

    #[test]
    fn the_least_important_is_asked_gently_first_and_gets_it_back() {
        let mut t = trigger();
        declare(&mut t, "database", 100);
        declare(&mut t, "trainer", 10);
        declare(&mut t, "batch", 1);
        cpu(&mut t, 0, 95.0);
        let verdicts = cpu(&mut t, 10, 95.0);
        let [Verdict::Holds(finding)] = &verdicts[..] else { panic!("{verdicts:?}") };
        let steps: Vec<String> = finding
            .remedy
            .iter()
            .map(|action| match action {
                Action::ShedLoad { process, step } => format!("{step:?} {process}"),
                other => other.name().to_owned(),
            })
            .collect();
        let expected = [
            "Throttle batch",
            "Throttle trainer",
            "Freeze batch",
            "Freeze trainer",
            "Terminate batch",
            "Terminate trainer",
            "file_task",
        ];
        assert_eq!(steps, expected);
        for (process, step) in
            [("batch", Shed::Throttle), ("trainer", Shed::Throttle), ("batch", Shed::Freeze)]
        {
            let kind = Kind::LoadShed { process: process.into(), step };
            t.on_event(&Event { at: Timestamp(11_000_000_000), kind });
        }
        cpu(&mut t, 20, 10.0);
        let verdicts = cpu(&mut t, 30, 10.0);
        let back: Vec<&Action> = verdicts
            .iter()
            .filter_map(|v| if let Verdict::Wants(_, action) = v { Some(action) } else { None })
            .collect();
        let give = |name: &str| Action::GiveBack { process: name.into() };
        assert_eq!(back, [&give("batch"), &give("trainer")]);
    }

    #[test]
    fn mounts_without_end_take_no_memory_without_end() {
        let mut t = trigger();
        for n in 0..10_000 {
            let readings = vec![Reading { resource: format!("disk /{n}"), percent: 99.0 }];
            t.on_event(&Event { at: Timestamp(1), kind: Kind::Pressure { readings } });
        }
        assert_eq!(t.subjects(), RESOURCES_MAX);
    }
}
