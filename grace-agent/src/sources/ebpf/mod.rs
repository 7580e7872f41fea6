//! The kernel probes, user side: loads and attaches them, reads their rings and maps.
//!
//! The object is embedded by build.rs. Each probe is attached by itself: one that this kernel refuses is reported
//! with what Grace cannot see without it, and the others work on. Nothing here judges.
//!
//! `known.rs` what each probe is · `load.rs`, `programs.rs` bring them up · `ring.rs` events · `reader.rs` the thread that hands them on · `account.rs` what
//! was lost and what it cost · `syscalls.rs`, `latency.rs`, `stacks.rs` calls, how much of them is timed, where they
//! wait · `pins.rs` hot restart · `self_test.rs` canaries · `btf.rs` offsets.
#![expect(unsafe_code, reason = "aya's Pod is a promise about bytes; each use says why it holds")]

mod account;
mod btf;
mod known;
pub mod latency;
mod load;
mod pins;
mod programs;
pub mod reader;
pub mod ring;
pub mod self_test;
mod stacks;
mod syscalls;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, StackTraceMap};
use aya::programs::ProgramError;
use aya::programs::links::FdLink;
use aya::{Btf, Ebpf, EbpfLoader};
use grace_common::{
    CLASSES, Counts, InodeKey, InodeWatch, MAYBE, Proc, ProcStats, SYSCALL_CLASS_NAMES, SYSCALL_CLASSES,
    SYSCALLS, SlowFrom, SyscallCounts, SyscallLatency, Timing, Touch, Watched,
};

use crate::api::view::{Health, ProbeView, SyscallView};
use crate::error_chain::chain;

pub use account::{Account, Runs};
use known::{KNOWN, LATENCY, known, view};
pub use load::load;
use pins::{OWNER_LEN, Pins};
use programs::Programs;
pub use ring::{RingEvent, Rings};
pub use syscalls::quantile;

/// The object with the probes; empty where it was not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("GRACE_BPF_EMBEDDED"));

/// True where the probes are part of this program.
#[must_use]
pub fn embedded() -> bool {
    !OBJECT.is_empty()
}

/// Why a probe does not work.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The program was built without the object.
    #[error("this grace was built without its eBPF object: build it with `cargo xtask build`")]
    NotEmbedded,
    /// The kernel has no type information.
    #[error("cannot read /sys/kernel/btf/vmlinux: the kernel needs CONFIG_DEBUG_INFO_BTF")]
    NoBtf(#[source] std::io::Error),
    /// The kernel's type information cannot be parsed.
    #[error("/sys/kernel/btf/vmlinux is malformed")]
    BtfMalformed,
    /// The kernel's type information cannot be parsed by aya.
    #[error("aya cannot read the kernel's BTF")]
    Btf(#[source] aya::BtfError),
    /// A structure looks different on this kernel.
    #[error("this kernel has no `{structure}.{member}`")]
    NoSuchMember {
        /// Its name.
        structure: &'static str,
        /// Its name.
        member: &'static str,
    },
    /// Maps could not be made.
    #[error("cannot load the probes' maps (root needed)")]
    Load(#[source] Box<aya::EbpfError>),
    /// The object lacks a part: it belongs to another version.
    #[error("the eBPF object has no `{0}`: it belongs to another version of grace")]
    Missing(&'static str),
    /// A map has another type than expected.
    #[error("map `{0}` cannot be used")]
    Map(&'static str, #[source] Box<aya::maps::MapError>),
    /// A program was refused.
    #[error("the kernel refuses `{0}`")]
    Refused(&'static str, #[source] Box<ProgramError>),
    /// A pinned program or link cannot be used.
    #[error("the pinned `{0}` cannot be used: {1}")]
    Pinned(&'static str, String),
}

/// The probes of a host whose kernel side could not be loaded at all.
#[must_use]
pub fn unsupported(why: &ProbeError) -> Vec<ProbeView> {
    KNOWN.iter().map(|k| view(k, &[], Health::Unsupported, Some(chain(why)))).collect()
}

macro_rules! pod {
    ($($name:ident($inner:ty);)*) => {$(
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $name($inner);
        // SAFETY: transparent over an integer array or a repr(C) type of grace-common that consists of integers and
        // arrays of integers without implicit padding (its size is asserted there).
        unsafe impl aya::Pod for $name {}
    )*};
}

pod! {
    PodInode(InodeKey);
    PodInodeWatch(InodeWatch);
    PodTouch(Touch);
    PodWatched(Watched);
    PodMaybe([u8; MAYBE]);
    PodProc(Proc);
    PodCounts(Counts);
    PodSyscallCounts(SyscallCounts);
    PodSyscallLatency(SyscallLatency);
    PodTiming(Timing);
    PodProcStats(ProcStats);
    PodSlowFrom(SlowFrom);
    PodOwner([u8; OWNER_LEN]);
    PodTold([u64; CLASSES]);
}

/// BPF_NOEXIST: leave an entry that is there as it is.
const NOEXIST: u64 = 1;

/// How the kernel side is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Pin the probes for the agent with this state folder.
    pub pin: Option<&'a Path>,
    /// Slow calls reported a second and processor.
    pub slow_rate: u32,
}

/// The loaded probes. Dropping it detaches them, unless they are pinned.
pub struct Probes {
    programs: Mutex<Programs>,
    views: Mutex<Vec<ProbeView>>,
    inodes: Mutex<HashMap<MapData, PodInode, PodInodeWatch>>,
    touched: Mutex<PerCpuHashMap<MapData, PodInode, PodTouch>>,
    tasks: Mutex<HashMap<MapData, u32, PodWatched>>,
    maybe: Mutex<Array<MapData, PodMaybe>>,
    procs: HashMap<MapData, u32, PodProc>,
    counts: PerCpuArray<MapData, PodCounts>,
    syscall_counts: PerCpuArray<MapData, PodSyscallCounts>,
    syscall_latency: PerCpuArray<MapData, PodSyscallLatency>,
    timing: Mutex<Array<MapData, PodTiming>>,
    proc_stats: Mutex<PerCpuHashMap<MapData, u32, PodProcStats>>,
    slow_from: Mutex<HashMap<MapData, u32, PodSlowFrom>>,
    stacks: StackTraceMap<MapData>,
    names: stacks::Names,
    cpus: usize,
    latency_usable: bool,
    /// What an earlier agent watched and this one did not take over yet.
    leftovers: Mutex<(BTreeMap<InodeKey, u64>, BTreeSet<u32>)>,
    /// Why nothing is pinned, or none.
    unpinned: Option<String>,
    /// What was found of earlier agents, in words.
    notes: Vec<String>,
    /// Losses that earlier agents told, by class.
    before: [u64; CLASSES],
    told: Mutex<Array<MapData, PodTold>>,
}

/// What a path is called in the kernel's maps. Only this agent and its successors read it; two paths with the same one
/// would share a last writer.
fn tag(path: &Path) -> u64 {
    let digest = crate::sha256::of_bytes(path.as_os_str().as_encoded_bytes());
    u64::from_str_radix(digest.0.get(..16).unwrap_or_default(), 16).unwrap_or(0)
}

/// `st_dev` of user space as the kernel keeps it in `s_dev` (include/linux/kdev_t.h). On btrfs and overlayfs the two are
/// different numbers altogether.
#[must_use]
pub fn kernel_dev(dev: u64) -> u32 {
    (rustix::fs::major(dev) << 20) | (rustix::fs::minor(dev) & 0xf_ffff)
}

impl Probes {
    /// The probes and how they are.
    #[must_use]
    pub fn views(&self) -> Vec<ProbeView> {
        lock(&self.views).clone()
    }

    /// What was found of earlier agents when this one started, in words.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Why the probes do not run on between two agents; none: they do.
    #[must_use]
    pub fn unpinned(&self) -> Option<&str> {
        self.unpinned.as_deref()
    }

    /// Takes the pins away: with this agent the probes end.
    pub fn unpin(&self) -> std::io::Result<()> {
        lock(&self.programs).pins.as_ref().map_or(Ok(()), Pins::clear)
    }

    /// Notes that the probe `name` saw its canary at `when`, or that it did not.
    pub fn self_tested(&self, name: &str, seen: bool, when: &str) {
        let mut views = lock(&self.views);
        let Some(shown) = views.iter_mut().find(|v| v.name == name) else { return };
        let Some(known) = known(name) else { return };
        // One that is not attached cannot see, and says so already.
        if shown.attach.is_empty() {
            return;
        }
        if seen != (shown.state == Health::Ok) {
            let (state, why) =
                if seen { (Health::Ok, None) } else { (Health::Degraded, Some(BLIND.to_owned())) };
            let attach = std::mem::take(&mut shown.attach);
            *shown = ProbeView { attach, ..view(known, &[], state, why) };
        }
        shown.self_test = Some(when.to_owned());
    }

    /// Hands over the logger of the probes' own diagnostics (aya-log).
    pub fn logger(&self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut lock(&self.programs).ebpf)
    }

    /// Watches the inode at `path`. True: it is watched now. What is known of its last writer stays known.
    pub fn watch_inode(&self, key: InodeKey, generation: Option<u32>, path: &Path) -> bool {
        let watch = InodeWatch {
            tag: tag(path),
            generation: generation.unwrap_or(0),
            generation_known: u32::from(generation.is_some()),
        };
        lock(&self.leftovers).0.remove(&key);
        if let Ok(nobody) = PerCpuValues::try_from(vec![PodTouch(Touch::NONE); self.cpus]) {
            // There already after a hot restart: then it tells who wrote meanwhile.
            drop(lock(&self.touched).insert(PodInode(key), nobody, NOEXIST));
        }
        lock(&self.inodes).insert(PodInode(key), PodInodeWatch(watch), 0).is_ok()
    }

    /// Does not watch an inode any more.
    pub fn unwatch_inode(&self, key: InodeKey) {
        // They may be gone already: then there is nothing to do.
        drop(lock(&self.inodes).remove(&PodInode(key)));
        drop(lock(&self.touched).remove(&PodInode(key)));
    }

    /// Who last made a watched inode dirty, as the kernel side remembers it.
    #[must_use]
    pub fn last_touch(&self, key: InodeKey) -> Option<Touch> {
        let cpus = lock(&self.touched).get(&PodInode(key), 0).ok()?;
        cpus.iter().map(|touch| touch.0).filter(|touch| touch.at_ns != 0).max_by_key(|touch| touch.at_ns)
    }

    /// Who last touched the file that lay at `path` before, where an earlier agent watched it and another one lies there
    /// now: whoever replaced it while no agent ran.
    #[must_use]
    pub fn touch_of_replaced(&self, path: &Path) -> Option<Touch> {
        let tag = tag(path);
        let keys: Vec<InodeKey> =
            lock(&self.leftovers).0.iter().filter(|(_, t)| **t == tag).map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| self.last_touch(key)).max_by_key(|touch| touch.at_ns)
    }

    /// Watches a process and from now on its descendants. True: it is watched now.
    pub fn watch_task(&self, tgid: u32) -> bool {
        lock(&self.leftovers).1.remove(&tgid);
        if let Ok(none) = PerCpuValues::try_from(vec![PodProcStats(ProcStats::NONE); self.cpus]) {
            drop(lock(&self.proc_stats).insert(tgid, none, NOEXIST));
        }
        self.add_task(tgid, Watched { root: tgid, depth: 0 })
    }

    /// Watches a descendant of the watched process `root` that was there before `root` was watched.
    pub fn watch_descendant(&self, tgid: u32, root: u32, depth: u32) -> bool {
        self.add_task(tgid, Watched { root, depth })
    }

    fn add_task(&self, tgid: u32, of: Watched) -> bool {
        let watched = lock(&self.tasks).insert(tgid, PodWatched(of), 0).is_ok();
        let mut maybe = lock(&self.maybe);
        let Ok(mut bytes) = maybe.get(&0, 0) else { return false };
        bytes.0[tgid as usize % MAYBE] = 1;
        watched && maybe.set(0, bytes, 0).is_ok()
    }

    /// Does not watch a process any more. Descendants that live on are watched to their end.
    pub fn unwatch_task(&self, tgid: u32) {
        drop(lock(&self.tasks).remove(&tgid));
        drop(lock(&self.proc_stats).remove(&tgid));
        drop(lock(&self.slow_from).remove(&tgid));
    }

    /// Does not watch any more what an earlier agent watched and this one did not take over.
    pub fn forget_leftovers(&self) {
        let (inodes, roots) = std::mem::take(&mut *lock(&self.leftovers));
        inodes.into_keys().for_each(|key| self.unwatch_inode(key));
        roots.into_iter().for_each(|root| self.unwatch_task(root));
    }

    /// The program that `tgid` ran when it was last seen.
    #[must_use]
    pub fn proc(&self, tgid: u32) -> Option<Proc> {
        self.procs.get(&tgid, 0).ok().map(|p| p.0)
    }

    /// What the kernel side produced and lost by class since the probes were attached, by this agent or an earlier one.
    #[must_use]
    pub fn account(&self) -> [Account; CLASSES] {
        let cpus = self.counts.get(&0, 0);
        account::sum(cpus.iter().flat_map(|cpus| cpus.iter().map(|c| c.0)))
    }

    /// What was lost by class and no earlier agent has told.
    #[must_use]
    pub fn lost_now(&self) -> [u64; CLASSES] {
        let mut out = self.account().map(|account| account.lost());
        for (lost, before) in out.iter_mut().zip(self.before) {
            *lost = lost.saturating_sub(before);
        }
        out
    }

    /// Notes for the next agent that `lost` (as [`Probes::lost_now`] gave it) was told.
    pub fn note_told(&self, lost: [u64; CLASSES]) {
        let mut total = lost;
        for (total, before) in total.iter_mut().zip(self.before) {
            *total += before;
        }
        drop(lock(&self.told).set(0, PodTold(total), 0));
    }

    /// Syscalls of the host by class.
    #[must_use]
    pub fn syscalls(&self) -> Vec<SyscallView> {
        let classes = syscalls::classes();
        let mut out: Vec<SyscallView> = SYSCALL_CLASS_NAMES
            .iter()
            .map(|name| SyscallView {
                class: (*name).to_owned(),
                calls: 0,
                errors: 0,
                timed: 0,
                p50_ns: None,
                p99_ns: None,
            })
            .collect();
        if let Ok(cpus) = self.syscall_counts.get(&0, 0) {
            for counts in cpus.iter() {
                for nr in 0..SYSCALLS {
                    let row = &mut out[classes[nr] as usize];
                    row.calls += counts.0.calls[nr];
                    row.errors += counts.0.errors[nr];
                }
            }
        }
        if let Ok(cpus) = self.syscall_latency.get(&0, 0) {
            for (class, row) in out.iter_mut().enumerate() {
                let hist = syscalls::sum(cpus.iter().map(|cpu| &cpu.0.hist[class]));
                row.timed = hist.iter().sum();
                row.p50_ns = syscalls::quantile(&hist, 0.50);
                row.p99_ns = syscalls::quantile(&hist, 0.99);
            }
        }
        out
    }

    /// Syscalls of the host, all classes.
    #[must_use]
    pub fn calls(&self) -> u64 {
        let Ok(cpus) = self.syscall_counts.get(&0, 0) else { return 0 };
        cpus.iter().map(|counts| counts.0.calls.iter().sum::<u64>()).sum()
    }

    /// What the declared process `root` and its descendants did: calls, errors, and its timed calls by class.
    #[must_use]
    pub fn proc_stats(&self, root: u32) -> Option<ProcStats> {
        let cpus = lock(&self.proc_stats).get(&root, 0).ok()?;
        let mut out = ProcStats::NONE;
        for cpu in cpus.iter() {
            out.calls += cpu.0.calls;
            out.errors += cpu.0.errors;
            for (sum, hist) in out.hist.iter_mut().zip(&cpu.0.hist) {
                for (sum, n) in sum.iter_mut().zip(hist) {
                    *sum = sum.saturating_add(*n);
                }
            }
        }
        Some(out)
    }

    /// From how long on a call of `root` is slow, by class, in nanoseconds.
    pub fn set_slow_from(&self, root: u32, ns: [u64; SYSCALL_CLASSES]) {
        drop(lock(&self.slow_from).insert(root, PodSlowFrom(SlowFrom { ns }), 0));
    }

    /// What a thread waited for, by the id of its kernel stack.
    #[must_use]
    pub fn wait_channel(&self, stack: i32) -> Option<String> {
        let trace = self.stacks.get(&u32::try_from(stack).ok()?, 0).ok()?;
        let ips: Vec<u64> = trace.frames().iter().map(|frame| frame.ip).collect();
        self.names.wait_channel(&ips)
    }

    /// Attaches or detaches the programs that time syscalls. True: it is as asked now.
    pub fn time_syscalls(&self, on: bool) -> bool {
        let mut programs = lock(&self.programs);
        if !self.latency_usable || on == programs.latency.is_some() {
            return self.latency_usable;
        }
        if !on {
            programs.timing.phase = 0;
            self.set_timing(programs.timing);
            programs.latency = None;
            return true;
        }
        programs.last_phase = programs.last_phase.wrapping_add(1).max(1);
        programs.timing.phase = programs.last_phase;
        self.set_timing(programs.timing);
        let form = known(LATENCY).and_then(|k| k.forms.first().copied()).unwrap_or_default();
        let links: Result<Vec<FdLink>, _> = form.iter().map(|(name, _)| programs.attach(name)).collect();
        programs.latency = links.ok();
        programs.latency.is_some()
    }

    /// How many slow calls are reported a second and processor from now on.
    pub fn set_slow_rate(&self, slow_rate: u32) {
        let mut programs = lock(&self.programs);
        programs.timing.slow_rate = slow_rate;
        self.set_timing(programs.timing);
    }

    fn set_timing(&self, timing: Timing) {
        drop(lock(&self.timing).set(0, PodTiming(timing), 0));
    }

    /// Runs of each probe since it was loaded; times and counts only as far as the kernel measured them
    /// (`kernel.bpf_stats_enabled`, or while somebody holds its statistics on).
    #[must_use]
    pub fn runs(&self) -> BTreeMap<&'static str, Runs> {
        let mut programs = lock(&self.programs);
        let mut out = BTreeMap::new();
        for known in KNOWN {
            let mut sum = Runs::default();
            for (name, _) in known.forms.iter().copied().flatten() {
                // A form that is not in use has no descriptor.
                let Some(runs) = programs
                    .get(name)
                    .ok()
                    .and_then(|program| program.fd().ok().and_then(|fd| account::runs(fd.as_fd())))
                else {
                    continue;
                };
                sum.time_ns += runs.time_ns;
                // A pair runs once a call, however many programs it has.
                sum.count = sum.count.max(runs.count);
                sum.missed += runs.missed;
            }
            out.insert(known.name, sum);
        }
        out
    }

    /// Notes what a sample of the probes' cost found: nanoseconds a run, runs a second, runs missed in all.
    pub fn note_cost(&self, name: &str, ns_per_run: Option<f64>, runs_per_s: f64, missed: u64) {
        if let Some(view) = lock(&self.views).iter_mut().find(|v| v.name == name) {
            view.ns_per_run = ns_per_run.map(|ns| (ns * 10.0).round() / 10.0);
            view.runs_per_s = Some(runs_per_s.round());
            view.missed = Some(missed);
        }
    }
}

/// Why an optional probe is off of which no form was refused.
const NO_FORM: &str = "no form of it fits this kernel";

/// Why a probe is degraded that does not see.
const BLIND: &str = "attached, but it did not see its own canary";

/// The state folders of agents whose probes are pinned now, whether such an agent runs or not. Needs root.
#[must_use]
pub fn pinned() -> Vec<std::path::PathBuf> {
    pins::pinned()
}

/// Takes away the probes that agents with this state folder left pinned; how many sets there were. No such agent may
/// run.
pub fn unpin(state: &Path) -> std::io::Result<usize> {
    pins::clear_all(state)
}

/// Turns the kernel's run-time statistics for BPF programs on until the result is dropped. They cost a clock read
/// pair a run, so they are held for samples only.
#[must_use]
pub fn measure_run_time() -> Option<std::os::fd::OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
