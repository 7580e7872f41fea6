//! GPUs, as `resource_pressure` judges them: what a look at one says of its health.
//!
//! `faults.rs` judges the faults that the driver reports (Xids, whose meaning `xid.rs` is) · `vram.rs` how full its memory is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::faults::Faults;
use super::vram::Vram;
use crate::action::Action;
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::firing::{Finding, Subject, Verdict};
use crate::gpu_facts::{GpuFault, GpuSample};

/// GPUs judged at most. The largest hosts have less than a hundred.
const GPUS_MAX: usize = 1024;

/// All GPUs of the host.
pub(super) struct Gpus {
    settings: config::Gpu,
    /// By place on the PCI bus.
    gpus: BTreeMap<String, Gpu>,
    faults: Faults,
    vram: Vram,
    /// Since when the driver does not answer.
    silent: Option<Timestamp>,
}

/// A GPU.
struct Gpu {
    sample: GpuSample,
    /// What is wrong with it, or begins to be, by the name that it has in the subject.
    ails: BTreeMap<&'static str, Ail>,
    /// NVLinks that were up at the same time at most.
    links: u32,
}

/// Something that is wrong with a GPU.
#[derive(Default)]
struct Ail {
    /// Since when it is seen without a break.
    since: Option<Timestamp>,
    /// Since when it is seen to be gone, while it fires.
    gone: Option<Timestamp>,
    fires: bool,
}

/// One thing that can be wrong with a GPU, as it is now.
struct Condition {
    name: &'static str,
    /// None: it cannot be seen, so nothing is claimed.
    holds: Option<bool>,
    measured: String,
    threshold: String,
    baseline: &'static str,
    /// What is to be done about it, as a task.
    task: &'static str,
    /// It must last, and be gone as long.
    lasts: bool,
}

impl Gpus {
    pub(super) fn new(settings: config::Gpu) -> Self {
        Self {
            faults: Faults::new(settings.clone()),
            vram: Vram::new(settings.clone()),
            settings,
            gpus: BTreeMap::new(),
            silent: None,
        }
    }

    /// How many GPUs are judged.
    pub(super) fn count(&self) -> usize {
        self.gpus.len()
    }

    /// When time alone changes what is to be said.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        self.faults.wake().into_iter().chain(self.vram.wake()).min()
    }

    /// Whether load of `process` was taken for a GPU, and is given back with its firing.
    pub(super) fn holds(&self, process: &str) -> bool {
        self.vram.holds(process)
    }

    /// What people should know of it.
    pub(super) fn notes(&self) -> Vec<String> {
        self.vram.notes()
    }

    pub(super) fn on_event(&mut self, event: &Event, importance: &BTreeMap<String, u8>) -> Vec<Verdict> {
        let now = event.at;
        let mut out = match &event.kind {
            Kind::GpuSeen { gpu } => self.seen(gpu, now, importance),
            Kind::GpuFaulted { fault } => self.faulted(fault, now),
            Kind::GpuDriver { works: false, why } => self.driver_hangs(why, now),
            Kind::GpuDriver { works: true, .. } => self
                .silent
                .take()
                .map(|_| Verdict::Cleared(Subject::Gpu("driver".into()), "the driver answers again".into()))
                .into_iter()
                .collect(),
            Kind::ProcessStarted { name, pid } => {
                self.faults.started(name, *pid, now);
                Vec::new()
            }
            Kind::ProcessDeclared { name, pid: Some(pid), .. } => {
                self.faults.runs(name, *pid);
                Vec::new()
            }
            Kind::ProcessForgotten { name } => {
                self.vram.forget(name);
                Vec::new()
            }
            Kind::LoadShed { process, step } => {
                self.vram.shed(process, *step);
                Vec::new()
            }
            Kind::LoadGivenBack { process } => {
                self.vram.forget(process);
                Vec::new()
            }
            _ => Vec::new(),
        };
        out.extend(self.faults.tick(now));
        out.extend(self.vram.tick(now));
        out
    }

    fn faulted(&mut self, fault: &GpuFault, now: Timestamp) -> Vec<Verdict> {
        let sample = self.gpus.get(&fault.pci).map(|gpu| &gpu.sample);
        self.faults.told(fault, sample, now)
    }

    fn driver_hangs(&mut self, why: &str, now: Timestamp) -> Vec<Verdict> {
        if self.silent.is_some() {
            return Vec::new();
        }
        self.silent = Some(now);
        let task =
            "Find out why the GPU driver of this host does not answer; until then its GPUs cannot be seen";
        let mut finding = finding(Subject::Gpu("driver".into()), now, "the GPU driver hangs".into(), task);
        finding.measured = why.escape_debug().to_string();
        finding.threshold =
            format!("no answer for {}", humantime::format_duration(self.settings.patience.get()));
        finding.baseline = "it answers within milliseconds".into();
        vec![Verdict::Holds(finding)]
    }

    fn seen(
        &mut self,
        sample: &GpuSample,
        now: Timestamp,
        importance: &BTreeMap<String, u8>,
    ) -> Vec<Verdict> {
        if !self.gpus.contains_key(&sample.pci) && self.gpus.len() >= GPUS_MAX {
            return Vec::new();
        }
        let gpu = self.gpus.entry(sample.pci.clone()).or_insert_with(|| Gpu {
            sample: GpuSample::default(),
            ails: BTreeMap::new(),
            links: 0,
        });
        gpu.sample = sample.clone();
        gpu.links = gpu.links.max(sample.nvlinks_up.unwrap_or(0));
        let mut out = Vec::new();
        for condition in conditions(sample, gpu.links, &self.settings) {
            let ail = gpu.ails.entry(condition.name).or_default();
            out.extend(judge(ail, condition, sample, now, self.settings.sustained.get()));
        }
        self.faults.seen(sample, now);
        out.extend(self.vram.seen(sample, now, importance));
        out
    }
}

/// Everything that a look at a GPU can show to be wrong with it.
fn conditions(gpu: &GpuSample, links: u32, settings: &config::Gpu) -> Vec<Condition> {
    // Of a GPU that does not answer nothing else is known.
    let lost = gpu.lost.is_some();
    let seen = |known: Option<bool>| known.filter(|_| !lost);
    let hot = match (gpu.temperature_c, gpu.slowdown_c) {
        (Some(now), Some(limit)) => Some(now.saturating_add(settings.temperature_margin) >= limit),
        _ => None,
    };
    let slowed: Vec<&str> =
        gpu.throttled.iter().map(String::as_str).filter(|why| *why != "sw_power_cap").collect();
    let number = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    vec![
        Condition {
            name: "lost",
            holds: Some(lost),
            measured: gpu.lost.clone().unwrap_or_default(),
            threshold: "it answers".into(),
            baseline: "it answers",
            task: "A GPU does not answer any more: drain what used it, then reset it or reboot the host",
            lasts: false,
        },
        Condition {
            name: "recovery",
            holds: seen(gpu.recovery.as_ref().map(|action| action != "none")),
            measured: format!("the driver asks for {}", recovery(gpu.recovery.as_deref().unwrap_or("none"))),
            threshold: "the driver asks for nothing".into(),
            baseline: "the driver asks for nothing",
            task: "The driver asks for a recovery of a GPU: drain what uses it, then reset it or reboot the host as it says",
            lasts: false,
        },
        Condition {
            name: "ecc",
            holds: seen(gpu.ecc_uncorrected.map(|errors| errors > 0)),
            measured: format!(
                "{} memory errors that could not be corrected since the driver was loaded, {} in its life",
                number(gpu.ecc_uncorrected),
                number(gpu.ecc_uncorrected_life)
            ),
            threshold: "any".into(),
            baseline: "none",
            task: "A GPU has memory errors that cannot be corrected: drain and reset it; if they come back have it replaced",
            lasts: false,
        },
        Condition {
            name: "remap pending",
            holds: seen(gpu.remap_pending.or(gpu.retire_pending))
                .map(|_| gpu.remap_pending == Some(true) || gpu.retire_pending == Some(true)),
            measured: "a bad row of memory is to be replaced at the next reset".into(),
            threshold: "none waits".into(),
            baseline: "none waits",
            task: "A GPU has a bad row of memory that a reset replaces: drain and reset it when that suits",
            lasts: false,
        },
        Condition {
            name: "remap failed",
            holds: seen(gpu.remap_failed),
            measured: "a bad row of memory could not be replaced".into(),
            threshold: "any".into(),
            baseline: "bad rows are replaced",
            task: "A GPU has no spare rows of memory left where it needs one: have it replaced",
            lasts: false,
        },
        Condition {
            name: "temperature",
            holds: seen(hot),
            measured: format!(
                "{} °C; the hardware slows it down at {} °C",
                gpu.temperature_c.unwrap_or(0),
                gpu.slowdown_c.unwrap_or(0)
            ),
            threshold: format!("{} °C below that", settings.temperature_margin),
            baseline: "well below",
            task: "A GPU is about to be slowed down by its heat: look at fans, air flow and its load",
            lasts: true,
        },
        Condition {
            name: "throttle",
            holds: seen(Some(!slowed.is_empty())),
            measured: format!("its clocks are held back: {}", slowed.join(", ")),
            threshold: "no slowdown by heat or by the power supply".into(),
            baseline: "not held back",
            task: "A GPU is slowed down by its hardware: look at cooling and power supply",
            lasts: true,
        },
        Condition {
            name: "nvlink",
            // Links of a board that has nothing at their other end never were up.
            holds: seen(gpu.nvlinks_up.map(|up| up < links)),
            measured: format!("{} of {links} links are up", gpu.nvlinks_up.unwrap_or(0)),
            threshold: "all that were up".into(),
            baseline: "all that were up",
            task: "An NVLink of a GPU is down: look at the fabric manager, the switch and the cables; a reset may bring it back",
            lasts: true,
        },
        Condition {
            name: "fabric",
            holds: seen(gpu.fabric.as_ref().map(|state| state == "failed")),
            measured: "the GPU could not join its fabric".into(),
            threshold: "completed".into(),
            baseline: "completed",
            task: "A GPU could not join the NVLink fabric: look at the fabric manager",
            lasts: false,
        },
        Condition {
            name: "pcie",
            // The generation goes down with an idle GPU, the lanes do not.
            holds: seen(gpu.pcie_width.zip(gpu.pcie_width_max).map(|(now, most)| now < most)),
            measured: format!(
                "{} of {} PCIe lanes",
                gpu.pcie_width.unwrap_or(0),
                gpu.pcie_width_max.unwrap_or(0)
            ),
            threshold: "all lanes".into(),
            baseline: "all lanes",
            task: "A GPU has lost PCIe lanes: look at its slot and riser",
            lasts: true,
        },
    ]
}

/// What to do, for people.
pub(super) fn advice(what: &str) -> &'static str {
    match what {
        "lost" => "drain what used it, then reset it or reboot the host",
        "recovery" => "drain what uses it, then do what the driver asks for",
        "ecc" => "drain and reset it; have it replaced if the errors come back",
        "remap pending" => "drain and reset it when that suits",
        "remap failed" => "have it replaced",
        "temperature" | "throttle" => "look at fans, air flow, power supply and its load",
        "nvlink" | "fabric" => "look at the fabric manager, the switch and the cables",
        "pcie" => "look at its slot and riser",
        "memory" => "find out what fills it; less important processes make room",
        "driver" => "look at the kernel's messages; a reboot may be needed",
        leak if leak.starts_with("leak") => {
            "find out why its memory only ever grows; a restart gives it back"
        }
        _ => "see `grace explain`",
    }
}

/// What NVML calls a recovery action, in words.
fn recovery(action: &str) -> &str {
    match action {
        "none" => "nothing",
        "gpu_reset" => "a reset of the GPU",
        "node_reboot" => "a reboot of the host",
        "drain_p2p" => "its peers to be drained",
        "drain_and_reset" => "it to be drained and reset",
        _ => "something that this Grace does not know",
    }
}

fn judge(
    ail: &mut Ail,
    now_is: Condition,
    gpu: &GpuSample,
    now: Timestamp,
    sustained: Duration,
) -> Option<Verdict> {
    let lasts = if now_is.lasts { sustained } else { Duration::ZERO };
    let subject = Subject::Gpu(format!("{} {}", gpu.index, now_is.name));
    if now_is.holds? {
        ail.gone = None;
        let since = *ail.since.get_or_insert(now);
        if ail.fires || now.since(since) < lasts {
            return None;
        }
        ail.fires = true;
        let mut finding =
            finding(subject, since, format!("GPU {}: {}", gpu.index, now_is.measured), now_is.task);
        finding.measured = now_is.measured;
        finding.threshold = now_is.threshold;
        finding.baseline = now_is.baseline.into();
        finding.evidence = describe(gpu);
        return Some(Verdict::Holds(finding));
    }
    ail.since = None;
    if !ail.fires {
        return None;
    }
    let since = *ail.gone.get_or_insert(now);
    if now.since(since) < lasts {
        return None;
    }
    *ail = Ail::default();
    Some(Verdict::Cleared(subject, format!("{} again", now_is.baseline)))
}

/// A finding about a GPU that is a task, and what hooks do before.
pub(super) fn finding(subject: Subject, since: Timestamp, summary: String, task: &str) -> Box<Finding> {
    Box::new(Finding {
        subject,
        since,
        summary,
        measured: String::new(),
        threshold: String::new(),
        baseline: String::new(),
        writer: None,
        noticed_by: None,
        evidence: Vec::new(),
        remedy: vec![Action::FileTask {
            title: task.to_owned(),
            acceptance: "resource_pressure stays clear of this GPU for an hour".into(),
        }],
        delay: Duration::ZERO,
        hold: None,
        depends_on: Vec::new(),
    })
}

/// Which GPU it is and who uses it, as evidence.
pub(super) fn describe(gpu: &GpuSample) -> Vec<String> {
    let mut out = vec![format!("{} {} at {}", gpu.name.escape_debug(), gpu.uuid.escape_debug(), gpu.pci)];
    for process in gpu.processes.iter().take(16) {
        let whose = process.process.as_ref().map(|name| format!(", process {name}")).unwrap_or_default();
        let memory =
            process.memory.map_or_else(|| "unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        out.push(format!("{} (pid {}{whose}): {memory}", process.comm.escape_debug(), process.pid));
    }
    out
}
