//! Faults that a GPU's driver reports (Xids): once each although two tell of them, to the process whose fault it is, and
//! when they come back, to whoever can look into the hardware.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::gpu::{describe, finding};
use super::xid::{self, Bucket, WINDOW, Xid};
use crate::action::Action;
use crate::config;
use crate::event::Timestamp;
use crate::firing::{Subject, Verdict};
use crate::gpu_facts::{GpuFault, GpuSample, Teller};

/// NVML and the kernel's messages tell of the same fault within this time of each other.
const SAME: Duration = Duration::from_secs(10);
/// The same fault of one process on several GPUs within this time is one of its own, not of the GPUs.
const TOGETHER: Duration = Duration::from_secs(60);
/// A fault that came back must stay away for so long.
const BACK: Duration = Duration::from_secs(300);
/// The window of `restart_burst`.
const RESTARTS: Duration = Duration::from_secs(3600);
/// Faults (a number on a GPU) followed at most; GPUs are few, numbers are less than two hundred.
const FAULTS_MAX: usize = 4096;
/// Repetitions remembered.
const TIMES_MAX: usize = 64;
/// Pids of declared processes remembered.
const PIDS_MAX: usize = 4096;

/// All of them.
pub(super) struct Faults {
    settings: config::Gpu,
    /// By GPU and number.
    faults: BTreeMap<(String, u32), Fault>,
    /// Told by one, not yet by the other.
    single: VecDeque<(Timestamp, String, u32, Teller)>,
    /// Main processes of what is declared.
    pids: VecDeque<(u32, String)>,
}

/// A fault with a number on a GPU.
#[derive(Default)]
struct Fault {
    /// The GPU's index, once it was seen.
    index: Option<u32>,
    /// When it came, within the window; oldest first.
    times: VecDeque<Timestamp>,
    /// Whose it was, as far as that is known.
    pid: Option<u32>,
    process: Option<String>,
    text: String,
    /// When processes were restarted for it.
    restarts: VecDeque<Timestamp>,
    /// It fires, about this subject.
    fires: Option<Subject>,
    /// The process was started anew since.
    started: bool,
    /// The GPU was seen to work since, the last time without the process.
    seen: bool,
}

impl Faults {
    pub(super) fn new(settings: config::Gpu) -> Self {
        Self { settings, faults: BTreeMap::new(), single: VecDeque::new(), pids: VecDeque::new() }
    }

    /// A declared process runs as `pid`.
    pub(super) fn runs(&mut self, name: &str, pid: u32) {
        self.pids.retain(|(known, _)| *known != pid);
        if self.pids.len() >= PIDS_MAX {
            self.pids.pop_front();
        }
        self.pids.push_back((pid, name.to_owned()));
    }

    /// A declared process was started.
    pub(super) fn started(&mut self, name: &str, pid: u32, now: Timestamp) {
        self.runs(name, pid);
        for fault in self.faults.values_mut().filter(|f| f.process.as_deref() == Some(name)) {
            fault.started |= fault.times.back().is_some_and(|last| *last < now);
        }
    }

    /// When time alone changes what is to be said.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        let due = |((_, code), fault): (&(String, u32), &Fault)| {
            fault.fires.as_ref()?;
            fault.is_over().then(|| fault.times.back().map(|last| last.after(fault.settle(*code))))?
        };
        self.faults.iter().filter_map(due).min()
    }

    /// The driver told of a fault; `gpu`: as the GPU was last seen.
    pub(super) fn told(&mut self, told: &GpuFault, gpu: Option<&GpuSample>, now: Timestamp) -> Vec<Verdict> {
        if self.settings.ignore.contains(&told.xid) {
            return Vec::new();
        }
        self.single.retain(|(at, ..)| now.since(*at) < SAME);
        let other = |(_, pci, code, via): &(Timestamp, String, u32, Teller)| {
            *pci == told.pci && *code == told.xid && *via != told.via
        };
        let again = self.single.iter().position(other).map(|at| self.single.remove(at)).is_some();
        if !again && self.single.len() < TIMES_MAX {
            self.single.push_back((now, told.pci.clone(), told.xid, told.via));
        }
        let (process, pid) = self.whose(told, gpu);
        let key = (told.pci.clone(), told.xid);
        if !self.faults.contains_key(&key) && self.faults.len() >= FAULTS_MAX {
            return Vec::new();
        }
        let xid = xid::of(told.xid);
        let job = process.as_deref().map(|name| self.elsewhere(name, &key, now)).unwrap_or_default();
        let fault = self.faults.entry(key).or_default();
        fault.index = gpu.map(|gpu| gpu.index).or(fault.index);
        if !told.text.is_empty() {
            fault.text.clone_from(&told.text);
        }
        let knew = fault.process.clone();
        fault.pid = pid.or(fault.pid.filter(|_| again));
        fault.process = process.or(knew.clone().filter(|_| again));
        if again && fault.process == knew {
            // Nothing that was not known.
            return Vec::new();
        }
        if !again {
            while fault.times.front().is_some_and(|at| now.since(*at) > WINDOW)
                || fault.times.len() >= TIMES_MAX
            {
                fault.times.pop_front();
            }
            fault.times.push_back(now);
            (fault.started, fault.seen) = (false, false);
        }
        fault.verdict(&told.pci, xid, &job, gpu, &self.settings, now).into_iter().collect()
    }

    /// The declared process whose fault it is, and its pid.
    fn whose(&self, told: &GpuFault, gpu: Option<&GpuSample>) -> (Option<String>, Option<u32>) {
        let users = gpu.map(|gpu| gpu.processes.as_slice()).unwrap_or_default();
        if let Some(pid) = told.pid {
            let known = |(known, name): &(u32, String)| (*known == pid).then(|| name.clone());
            let used = users.iter().find(|user| user.pid == pid).and_then(|user| user.process.clone());
            let process = told.process.clone().or(used).or_else(|| self.pids.iter().find_map(known));
            return (process, Some(pid));
        }
        if xid::of(told.xid).bucket != Bucket::RestartApp {
            return (None, None);
        }
        // One of a program, and the driver names nobody: whoever uses the GPU, or its instance, alone.
        let there = |user: &&crate::gpu_facts::GpuProcess| {
            told.gpu_instance.is_none()
                || user.gpu_instance.is_none()
                || user.gpu_instance == told.gpu_instance
        };
        let mut there = users.iter().filter(there);
        match (there.next(), there.next()) {
            (Some(only), None) => (only.process.clone(), Some(only.pid)),
            _ => (None, None),
        }
    }

    /// Subjects of the same fault of the same process on other GPUs.
    fn elsewhere(&self, process: &str, key: &(String, u32), now: Timestamp) -> Vec<Subject> {
        let same = |((pci, code), fault): &(&(String, u32), &Fault)| {
            *pci != key.0
                && *code == key.1
                && fault.process.as_deref() == Some(process)
                && fault.times.back().is_some_and(|last| now.since(*last) < TOGETHER)
        };
        self.faults.iter().filter(same).filter_map(|(_, fault)| fault.fires.clone()).collect()
    }

    /// A GPU was seen.
    pub(super) fn seen(&mut self, gpu: &GpuSample, now: Timestamp) {
        for ((pci, code), fault) in &mut self.faults {
            if *pci != gpu.pci || fault.fires.is_none() {
                continue;
            }
            let gone = fault.pid.is_none_or(|pid| gpu.processes.iter().all(|user| user.pid != pid));
            let asks = gpu.recovery.as_deref().is_some_and(|action| action != "none");
            let later = fault.times.back().is_some_and(|last| *last < now);
            let mended = match xid::of(*code).bucket {
                Bucket::Ignore | Bucket::RestartApp => gone,
                // Only the driver's word says that it was reset.
                Bucket::ResetGpu => gpu.recovery.is_some(),
                Bucket::Inspect => true,
                // Whoever sees it again sees it from another agent.
                Bucket::Reboot => false,
            };
            fault.seen = later && gpu.lost.is_none() && !asks && mended;
        }
    }

    /// Time passed.
    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Verdict> {
        let mut out = Vec::new();
        for ((_, code), fault) in &mut self.faults {
            let settle = fault.settle(*code);
            let quiet = fault.times.back().is_none_or(|last| now.since(*last) >= settle);
            if quiet
                && fault.is_over()
                && let Some(subject) = fault.fires.take()
            {
                let how =
                    if fault.started { "the process was started anew" } else { "the GPU is seen to work" };
                let quiet = humantime::format_duration(settle);
                out.push(Verdict::Cleared(subject, format!("not again for {quiet}, and {how}")));
            }
        }
        out
    }
}

impl Fault {
    /// Something was seen that ends it, if it does not come again.
    fn is_over(&self) -> bool {
        self.started || self.seen
    }

    /// How long it must not come again. What came back is not over with the next restart: help is asked for meanwhile.
    fn settle(&self, code: u32) -> Duration {
        let settle = xid::of(code).bucket.settle();
        if self.times.len() > 1 { settle.max(BACK) } else { settle }
    }

    /// What is said of it now.
    fn verdict(
        &mut self,
        pci: &str,
        xid: Xid,
        job: &[Subject],
        gpu: Option<&GpuSample>,
        settings: &config::Gpu,
        now: Timestamp,
    ) -> Option<Verdict> {
        let code = xid.code;
        let place = self.index.map_or_else(|| pci.to_owned(), |index| index.to_string());
        let subject = self.fires.clone().unwrap_or_else(|| Subject::Gpu(format!("{place} xid {code}")));
        let whose = match (&self.process, self.pid) {
            (Some(name), Some(pid)) => format!(" of process {name} (pid {pid})"),
            (Some(name), None) => format!(" of process {name}"),
            (None, Some(pid)) => format!(" of pid {pid}"),
            (None, None) => String::new(),
        };
        let summary = format!("GPU {place}: Xid {code}, {}{whose}", xid.meaning);
        // A fault of an application that comes again after it was restarted, and on this GPU alone, is the GPU's.
        let hardware = self.times.len() > 1 && job.is_empty() && xid.bucket == Bucket::RestartApp;
        let task = match xid.bucket {
            Bucket::RestartApp if hardware => {
                "A GPU had the same fault again after its application was restarted: inspect the GPU, run its diagnostics"
            }
            Bucket::RestartApp => {
                "Find out what a program does on the GPU that the driver stopped it for, and fix it"
            }
            Bucket::Inspect | Bucket::Ignore => "Inspect a GPU after a fault that its driver reported",
            Bucket::ResetGpu => "A GPU needs a reset after a fault: drain what uses it, then reset it",
            Bucket::Reboot => {
                "A GPU needs its host to be rebooted after a fault: drain the host, then reboot it"
            }
        };
        let since = self.times.back().copied().unwrap_or(now);
        let mut finding = finding(subject.clone(), since, summary, task);
        finding.measured = match self.times.len() {
            0 | 1 => format!("Xid {code}: {}", xid.bucket.advice()),
            times => format!("Xid {code}, {times} times within a day: {}", xid.bucket.advice()),
        };
        finding.threshold = "once".into();
        finding.baseline = "none".into();
        finding.evidence = gpu.map(describe).unwrap_or_default();
        if !self.text.is_empty() {
            finding.evidence.insert(0, format!("the driver: {}", self.text.escape_debug()));
        }
        if !job.is_empty() {
            finding
                .evidence
                .push(format!("the same on {} more GPUs of this process: it is the program's", job.len()));
            finding.depends_on.extend(job.iter().cloned());
        }
        if xid.bucket == Bucket::Ignore {
            finding.remedy.clear();
            return Some(Verdict::Happened(finding));
        }
        if let Some(name) =
            self.process.clone().filter(|_| xid.bucket == Bucket::RestartApp && settings.restart)
        {
            while self.restarts.front().is_some_and(|at| now.since(*at) > RESTARTS) {
                self.restarts.pop_front();
            }
            if self.restarts.len() >= settings.restart_burst as usize {
                finding.hold = Some(format!(
                    "was restarted {} times within an hour for this fault: that does not help",
                    self.restarts.len()
                ));
            } else {
                self.restarts.push_back(now);
            }
            let reason = format!("Xid {code}: {}", xid.meaning);
            finding.remedy.insert(0, Action::RestartProcess { name, reason });
        }
        self.fires = Some(subject);
        Some(Verdict::Holds(finding))
    }
}
