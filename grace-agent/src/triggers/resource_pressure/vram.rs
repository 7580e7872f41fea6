//! GPU memory: how fast it fills and when it would be full, who makes room for whom, and who leaks.
//!
//! A server that fills its GPU once and stays there is as it should be: only a fill that goes on is judged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::gpu::{describe, finding};
use crate::action::{Action, Shed};
use crate::config;
use crate::event::Timestamp;
use crate::firing::{Subject, Verdict};
use crate::gpu_facts::GpuSample;

/// A fill rate is taken over the last so many looks, within this time, and from no fewer than these.
const LOOKS: usize = 32;
const OVER: Duration = Duration::from_secs(60);
const LOOKS_MIN: usize = 3;
/// Full so soon calls for room at once, from the soft mark on.
const SOON: Duration = Duration::from_secs(10);
/// A fill that has not gone on for this long is over.
const STANDS: Duration = Duration::from_secs(60);
/// So many points below the soft mark it clears.
const MARGIN: f64 = 5.0;
/// Processes that are asked to make room at most.
const VICTIMS_MAX: usize = 8;
/// For a leak: one value in this time, so many at least, and so many at most.
const LEAK_EVERY: Duration = Duration::from_secs(60);
const LEAK_MIN: usize = 30;
const LEAK_MAX: usize = 120;
/// How well a line must fit it: 1 is perfectly (the share of the variance that it explains).
const LEAK_FIT: f64 = 0.95;
/// It must have grown by this share of the GPU's memory.
const LEAK_SHARE: f64 = 0.02;
/// And the memory must be full within this time if it goes on.
const LEAK_FULL: Duration = Duration::from_secs(24 * 3600);
/// Processes followed on one GPU at most.
const PROCESSES_MAX: usize = 256;

/// The memory of all GPUs.
pub(super) struct Vram {
    settings: config::Gpu,
    /// By index.
    gpus: BTreeMap<u32, Memory>,
    /// What was asked to make room, for which GPU, and how hard.
    shed: BTreeMap<String, Room>,
}

/// Room that a process made.
struct Room {
    /// For this GPU.
    gpu: u32,
    /// It was done.
    step: Option<Shed>,
    /// Since when there is room again.
    free: Option<Timestamp>,
}

/// The memory of a GPU.
#[derive(Default)]
struct Memory {
    /// When it was looked at, and what was used, in bytes.
    looks: VecDeque<(Timestamp, u64)>,
    /// What was last said of it.
    said: Mark,
    /// When the fill was last seen to go on.
    filled: Timestamp,
    /// By pid.
    processes: BTreeMap<u32, Growth>,
}

/// How far a fill has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Mark {
    #[default]
    Calm,
    Soft,
    Hard,
}

/// The memory of a process over the last hour or two.
#[derive(Default)]
struct Growth {
    values: VecDeque<(Timestamp, u64)>,
    fires: bool,
}

impl Vram {
    pub(super) fn new(settings: config::Gpu) -> Self {
        Self { settings, gpus: BTreeMap::new(), shed: BTreeMap::new() }
    }

    pub(super) fn holds(&self, process: &str) -> bool {
        self.shed.contains_key(process)
    }

    /// Load of a process was taken: for a GPU, where it was asked to make room there.
    pub(super) fn shed(&mut self, process: &str, step: Shed) {
        if let Some(room) = self.shed.get_mut(process) {
            room.step = Some(step);
        }
    }

    /// A process has back what was taken, or is not owned any more.
    pub(super) fn forget(&mut self, process: &str) {
        self.shed.remove(process);
    }

    /// When time alone changes what is to be said.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        let after = self.settings.give_back_after.get();
        self.shed
            .values()
            .filter(|room| room.step.is_some())
            .filter_map(|room| room.free.map(|at| at.after(after)))
            .min()
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.shed
            .iter()
            .filter(|(_, room)| room.step.is_some())
            .map(|(name, room)| format!("{} made room on GPU {}", name.escape_debug(), room.gpu))
            .take(crate::triggers::MAX_NOTES)
            .collect()
    }

    /// Gives back what was taken, once there was room for long enough.
    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Verdict> {
        let after = self.settings.give_back_after.get();
        let mut out = Vec::new();
        for (name, room) in &mut self.shed {
            if room.step.is_some() && room.free.is_some_and(|at| now.since(at) >= after) {
                // Asked for once; that it was done is told.
                room.free = None;
                let action = Action::GiveBack { process: name.clone() };
                out.push(Verdict::Wants(Subject::Process(name.clone()), action));
            }
        }
        out
    }

    pub(super) fn seen(
        &mut self,
        gpu: &GpuSample,
        now: Timestamp,
        importance: &BTreeMap<String, u8>,
    ) -> Vec<Verdict> {
        let (Some(used), Some(total), Some(percent)) =
            (gpu.memory_used, gpu.memory_total, gpu.memory_percent())
        else {
            return Vec::new();
        };
        let settings = &self.settings;
        let memory = self.gpus.entry(gpu.index).or_default();
        let mut out = memory.leaks(gpu, total, now);
        while memory.looks.len() >= LOOKS || memory.looks.front().is_some_and(|(at, _)| now.since(*at) > OVER)
        {
            memory.looks.pop_front();
        }
        memory.looks.push_back((now, used));
        let rate = memory.rate();
        let full = rate
            .filter(|rate| *rate > 0.0)
            .map(|rate| super::super::seconds((total - used.min(total)) as f64 / rate));
        let fills = full.is_some_and(|full| full <= settings.time_to_full.get());
        let mark = match full.filter(|_| fills && percent >= settings.memory_soft) {
            Some(full) if percent >= settings.memory_hard || full <= SOON => Mark::Hard,
            Some(_) => Mark::Soft,
            None => Mark::Calm,
        };
        if fills {
            memory.filled = now;
        }
        if mark > memory.said {
            memory.said = mark;
            let since = memory.looks.front().map_or(now, |(at, _)| *at);
            let (rate, full) = (rate.unwrap_or(0.0), full.unwrap_or_default());
            let subject = Subject::Gpu(format!("{} memory", gpu.index));
            let summary = format!(
                "GPU {}: memory is at {percent:.1} % and full in {}",
                gpu.index,
                crate::triggers::lasting(full)
            );
            let task =
                "Find out what fills the memory of a GPU, and make it use less, or give it another GPU";
            let mut finding = finding(subject, since, summary, task);
            finding.measured = format!("{percent:.1} %, {:.0} MiB more a second", rate / f64::from(1 << 20));
            finding.threshold = match mark {
                Mark::Hard => {
                    format!("{} %, or full within {}", settings.memory_hard, crate::triggers::lasting(SOON))
                }
                _ => {
                    format!(
                        "{} % and full within {}",
                        settings.memory_soft,
                        settings.time_to_full.get().as_secs_f64().round()
                    ) + " s"
                }
            };
            finding.baseline = "it stands still".into();
            finding.evidence = describe(gpu);
            let victims = victims(gpu, importance);
            // There is no time any more to wait for what was told.
            let ends = mark == Mark::Hard && settings.steps.contains(&Shed::Terminate);
            let step = if ends { Shed::Terminate } else { Shed::Notify };
            let mut remedy: Vec<Action> = victims
                .iter()
                .filter(|_| settings.steps.contains(&step))
                .map(|name| Action::ShedLoad { process: name.clone(), step })
                .collect();
            remedy.append(&mut finding.remedy);
            finding.remedy = remedy;
            for name in victims {
                self.shed.entry(name).or_insert(Room { gpu: gpu.index, step: None, free: None }).free = None;
            }
            out.push(Verdict::Holds(finding));
            return out;
        }
        let stands = now.since(memory.filled) >= STANDS;
        if memory.said != Mark::Calm && (percent < settings.memory_soft - MARGIN || stands) {
            memory.said = Mark::Calm;
            let how = match stands {
                true => format!("at {percent:.1} % and no fuller for {}", crate::triggers::lasting(STANDS)),
                false => format!("{percent:.1} %"),
            };
            out.push(Verdict::Cleared(Subject::Gpu(format!("{} memory", gpu.index)), how));
            for room in self.shed.values_mut().filter(|room| room.gpu == gpu.index) {
                room.free = Some(now);
            }
            // Who was asked and not reached by its rung has nothing to get back.
            self.shed.retain(|_, room| room.gpu != gpu.index || room.step.is_some());
        }
        out
    }
}

/// Declared processes on `gpu` that are less important than another one there, the least important first, and of those the
/// one that holds the most.
fn victims(gpu: &GpuSample, importance: &BTreeMap<String, u8>) -> Vec<String> {
    let mut there: BTreeMap<&String, u64> = BTreeMap::new();
    for process in &gpu.processes {
        if let Some(name) = &process.process {
            *there.entry(name).or_default() += process.memory.unwrap_or(0);
        }
    }
    let of = |name: &String| importance.get(name).copied().unwrap_or(50);
    let most = there.keys().map(|name| of(name)).max().unwrap_or(0);
    let mut out: Vec<(u8, u64, &String)> = there
        .into_iter()
        .map(|(name, held)| (of(name), u64::MAX - held, name))
        .filter(|(importance, ..)| *importance < most && *importance < 100)
        .collect();
    out.sort_unstable();
    out.into_iter().take(VICTIMS_MAX).map(|(_, _, name)| name.clone()).collect()
}

impl Memory {
    /// How fast it fills, in bytes a second; negative: it empties. None: too few looks.
    fn rate(&self) -> Option<f64> {
        (self.looks.len() >= LOOKS_MIN).then(|| line(self.looks.iter()))?.map(|(slope, _)| slope)
    }

    /// Processes whose memory only ever grows.
    fn leaks(&mut self, gpu: &GpuSample, total: u64, now: Timestamp) -> Vec<Verdict> {
        let subject = |pid: u32| Subject::Gpu(format!("{} leak of pid {pid}", gpu.index));
        let mut out = Vec::new();
        self.processes.retain(|pid, growth| {
            let runs = gpu.processes.iter().any(|process| process.pid == *pid);
            if !runs && growth.fires {
                out.push(Verdict::Cleared(subject(*pid), "it does not use the GPU any more".into()));
            }
            runs
        });
        for process in &gpu.processes {
            let Some(held) = process.memory else { continue };
            if !self.processes.contains_key(&process.pid) && self.processes.len() >= PROCESSES_MAX {
                continue;
            }
            let growth = self.processes.entry(process.pid).or_default();
            if growth.values.back().is_some_and(|(at, _)| now.since(*at) < LEAK_EVERY) {
                continue;
            }
            if growth.values.len() >= LEAK_MAX {
                growth.values.pop_front();
            }
            growth.values.push_back((now, held));
            let (Some(first), Some((slope, fit))) = (growth.values.front(), line(growth.values.iter()))
            else {
                continue;
            };
            let grown = held.saturating_sub(first.1) as f64;
            let left = total.saturating_sub(gpu.memory_used.unwrap_or(0)) as f64;
            let full = if slope > 0.0 { super::super::seconds(left / slope) } else { Duration::MAX };
            let leaks = growth.values.len() >= LEAK_MIN
                && slope > 0.0
                && fit >= LEAK_FIT
                && grown >= total as f64 * LEAK_SHARE
                && full <= LEAK_FULL;
            if leaks && !growth.fires {
                growth.fires = true;
                let whose = process.process.as_deref().map_or_else(
                    || format!("{} (pid {})", process.comm.escape_debug(), process.pid),
                    |name| format!("process {name} (pid {})", process.pid),
                );
                let summary = format!("GPU {}: the memory of {whose} grows without a break", gpu.index);
                let task = "Find out why the GPU memory of a process only ever grows, and fix it";
                let mut finding = finding(subject(process.pid), first.0, summary, task);
                finding.measured = format!(
                    "{:.0} MiB more an hour over {}; full in {}",
                    slope * 3600.0 / f64::from(1 << 20),
                    crate::triggers::lasting(now.since(first.0)),
                    crate::triggers::lasting(full)
                );
                finding.threshold =
                    format!("{} % of the GPU, as a line, and full within a day", LEAK_SHARE * 100.0);
                finding.baseline = "it stands still or goes down again".into();
                finding.evidence = describe(gpu);
                out.push(Verdict::Holds(finding));
            } else if growth.fires && slope <= 0.0 {
                growth.fires = false;
                out.push(Verdict::Cleared(subject(process.pid), "it does not grow any more".into()));
            }
        }
        out
    }
}

/// The line that fits `values` best: its slope a second, and how well it fits. None: all at the same time.
fn line<'a>(values: impl Iterator<Item = &'a (Timestamp, u64)> + Clone) -> Option<(f64, f64)> {
    let (first, base) = *values.clone().next()?;
    let points = values.map(|(at, bytes)| (at.since(first).as_secs_f64(), *bytes as f64 - base as f64));
    let count = points.clone().count() as f64;
    let (x_mean, y_mean) =
        points.clone().fold((0.0, 0.0), |sum, p| (sum.0 + p.0 / count, sum.1 + p.1 / count));
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in points {
        let (x, y) = (x - x_mean, y - y_mean);
        (xx, xy, yy) = (xx + x * x, xy + x * y, yy + y * y);
    }
    // Looks within a second of each other say nothing of a rate.
    (xx > 0.5).then(|| (xy / xx, if yy > 0.0 { xy * xy / (xx * yy) } else { 0.0 }))
}
