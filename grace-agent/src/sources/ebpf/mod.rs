//! The kernel probes, user side: loads and attaches them, reads their ring and maps.
//!
//! The object is embedded by build.rs. Each probe is attached by itself: one that this kernel refuses is reported
//! with what Grace cannot see without it, and the others work on. Nothing here judges.
#![expect(unsafe_code, reason = "aya's Pod is a promise about bytes; each use says why it holds")]

mod btf;
pub mod reader;
mod self_test;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use grace_common::{
    CLASS_NAMES, Counts, FileDirty, InodeKey, KIND_FILE_DIRTY, KIND_TASK_EXIT, Proc, Record,
    SYSCALL_CLASS_NAMES, SYSCALLS, SyscallCounts, SyscallLatency, TaskExit,
};

use crate::api::view::{Health, ProbeView, SyscallView};
use crate::error_chain::chain;

mod syscalls;

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
}

/// What a probe is: where it attaches and what is lost without it.
struct Known {
    name: &'static str,
    /// Programs of the object, each with its tracepoint.
    programs: &'static [(&'static str, &'static str)],
    /// What Grace cannot see when it does not run.
    without: &'static [&'static str],
    /// What it can never see.
    never: &'static [&'static str],
}

const KNOWN: &[Known] = &[
    Known {
        name: "file_dirty",
        programs: &[("file_dirty", "writeback_mark_inode_dirty")],
        without: &[
            "stores through shared mappings, until the next sweep",
            "who wrote, where fanotify is refused",
        ],
        never: &["further stores into an already dirty mapping", "writes to the raw block device"],
    },
    Known {
        name: "task_exit",
        programs: &[("task_exit", "sched_process_exit")],
        without: &["exit code and signal of adopted processes"],
        never: &[],
    },
    Known {
        name: "signal",
        programs: &[("signal", "signal_generate")],
        without: &["who sent a fatal signal"],
        never: &[],
    },
    Known {
        name: "exec",
        programs: &[("exec", "sched_process_exec")],
        without: &["the program of a writer that has already ended"],
        never: &["processes that were forked and never called exec, once they have ended"],
    },
    Known {
        name: "syscall_count",
        programs: &[("syscall_count", "sys_exit")],
        without: &["counts and errors of syscalls"],
        never: &[],
    },
    Known {
        name: "syscall_latency",
        programs: &[("syscall_enter", "sys_enter"), ("syscall_latency", "sys_exit")],
        without: &["latency of syscalls"],
        never: &["calls outside of the duty cycle"],
    },
];

/// The probes of a host whose kernel side could not be loaded at all.
#[must_use]
pub fn unsupported(why: &ProbeError) -> Vec<ProbeView> {
    KNOWN.iter().map(|k| view(k, Health::Unsupported, Some(chain(why)))).collect()
}

fn view(known: &Known, state: Health, why: Option<String>) -> ProbeView {
    let blind = if state == Health::Ok { known.never.iter() } else { known.without.iter() };
    ProbeView {
        name: known.name.to_owned(),
        state,
        attach: if state == Health::Ok {
            known.programs.iter().map(|(_, hook)| format!("tp_btf/{hook}")).collect::<Vec<_>>().join(" + ")
        } else {
            String::new()
        },
        blind_to: blind.map(|s| (*s).to_owned()).collect(),
        why,
        self_test: None,
    }
}

/// An event from the ring.
#[derive(Debug, Clone, Copy)]
pub enum RingEvent {
    /// A watched inode was made dirty.
    Dirty(FileDirty),
    /// A watched process has ended.
    Exit(TaskExit),
}

macro_rules! pod {
    ($($name:ident($inner:ty);)*) => {$(
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $name($inner);
        // SAFETY: transparent over a repr(C) type of grace-common that consists of integers and arrays of
        // integers without implicit padding (its size is asserted there).
        unsafe impl aya::Pod for $name {}
    )*};
}

pod! {
    PodInode(InodeKey);
    PodProc(Proc);
    PodCounts(Counts);
    PodSyscallCounts(SyscallCounts);
    PodSyscallLatency(SyscallLatency);
}

/// The loaded probes. Dropping it detaches them.
pub struct Probes {
    ebpf: Mutex<Ebpf>,
    views: Mutex<Vec<ProbeView>>,
    inodes: Mutex<HashMap<MapData, PodInode, u32>>,
    tasks: Mutex<HashMap<MapData, u32, u32>>,
    procs: HashMap<MapData, u32, PodProc>,
    counts: PerCpuArray<MapData, PodCounts>,
    syscall_counts: PerCpuArray<MapData, PodSyscallCounts>,
    syscall_latency: PerCpuArray<MapData, PodSyscallLatency>,
    /// Links of the latency pair while its duty cycle is on.
    latency: Mutex<Option<[FdLink; 2]>>,
    latency_usable: bool,
}

/// The ring's reading end.
pub struct Ring {
    ring: RingBuf<MapData>,
    /// Records that could not be decoded: another version's.
    pub undecoded: u64,
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Ring {
    /// The next event, if there is one.
    pub fn take_event(&mut self) -> Option<RingEvent> {
        loop {
            let item = self.ring.next()?;
            let event = match grace_common::kind(&item) {
                Some(KIND_FILE_DIRTY) => FileDirty::from_bytes(&item).map(RingEvent::Dirty),
                Some(KIND_TASK_EXIT) => TaskExit::from_bytes(&item).map(RingEvent::Exit),
                _ => None,
            };
            match event {
                Some(event) => return Some(event),
                None => self.undecoded += 1,
            }
        }
    }
}

/// Loads and attaches the probes.
pub fn load() -> Result<(Probes, Ring), ProbeError> {
    if !embedded() {
        return Err(ProbeError::NotEmbedded);
    }
    let blob = std::fs::read("/sys/kernel/btf/vmlinux").map_err(ProbeError::NoBtf)?;
    let offsets = {
        let types = btf::Types::parse(&blob)?;
        let regs_nr = if cfg!(target_arch = "aarch64") { "syscallno" } else { "orig_ax" };
        [
            ("OFF_INODE_SB", "inode", "i_sb"),
            ("OFF_INODE_INO", "inode", "i_ino"),
            ("OFF_SB_DEV", "super_block", "s_dev"),
            ("OFF_REGS_NR", "pt_regs", regs_nr),
            ("OFF_TASK_TGID", "task_struct", "tgid"),
            ("OFF_TASK_EXIT_CODE", "task_struct", "exit_code"),
            ("OFF_TASK_SIGNAL", "task_struct", "signal"),
            ("OFF_TASK_START", "task_struct", "start_boottime"),
            ("OFF_TASK_PARENT", "task_struct", "real_parent"),
            ("OFF_TASK_LEADER", "task_struct", "group_leader"),
            ("OFF_SIGNAL_LIVE", "signal_struct", "live"),
            ("OFF_SIGNAL_GROUP_EXIT", "signal_struct", "group_exit_code"),
            ("OFF_BPRM_FILENAME", "linux_binprm", "filename"),
            ("OFF_SIGINFO_CODE", "kernel_siginfo", "si_code"),
        ]
        .map(|(global, structure, member)| (global, types.offset(structure, member)))
    };
    let btf = Btf::parse(&blob, aya::Endianness::default()).map_err(ProbeError::Btf)?;
    drop(blob);

    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf));
    for (global, offset) in &offsets {
        match offset {
            Ok(offset) => {
                loader.override_global(global, offset, true);
            }
            Err(ProbeError::NoSuchMember { structure, member }) => {
                return Err(ProbeError::NoSuchMember { structure, member });
            }
            Err(_) => return Err(ProbeError::BtfMalformed),
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(|err| ProbeError::Load(Box::new(err)))?;

    let mut classes: Array<_, u32> = take(&mut ebpf, "SYSCALL_CLASS")?;
    for (nr, class) in (0u32..).zip(syscalls::classes()) {
        classes.set(nr, class, 0).map_err(|err| ProbeError::Map("SYSCALL_CLASS", Box::new(err)))?;
    }
    let mut ring = Ring { ring: take(&mut ebpf, "EVENTS")?, undecoded: 0 };
    let inodes = Mutex::new(take(&mut ebpf, "INODES")?);
    let tasks = Mutex::new(take(&mut ebpf, "TASKS")?);
    let procs = take(&mut ebpf, "PROCS")?;
    let counts = take(&mut ebpf, "COUNTS")?;
    let syscall_counts = take(&mut ebpf, "SYSCALL_COUNTS")?;
    let syscall_latency = take(&mut ebpf, "SYSCALL_LAT")?;

    let mut views = Vec::new();
    let mut latency_usable = false;
    for known in KNOWN {
        let later = known.name == "syscall_latency";
        let result: Result<(), ProbeError> = known.programs.iter().try_for_each(|(program, hook)| {
            let program_ref = program_mut(&mut ebpf, program)?;
            program_ref.load(hook, &btf).map_err(|err| ProbeError::Refused(program, Box::new(err)))?;
            // The latency pair is attached by its duty cycle only.
            if !later {
                program_ref.attach().map_err(|err| ProbeError::Refused(program, Box::new(err)))?;
            }
            Ok(())
        });
        latency_usable |= later && result.is_ok();
        views.push(match result {
            Ok(()) => view(known, Health::Ok, None),
            Err(err) => view(known, Health::Degraded, Some(chain(&err))),
        });
    }
    let probes = Probes {
        ebpf: Mutex::new(ebpf),
        views: Mutex::new(views),
        inodes,
        tasks,
        procs,
        counts,
        syscall_counts,
        syscall_latency,
        latency: Mutex::new(None),
        latency_usable,
    };
    self_test::run(&probes, &mut ring);
    Ok((probes, ring))
}

/// `st_dev` of user space as the kernel keeps it in `s_dev` (include/linux/kdev_t.h). On btrfs and overlayfs the two are
/// different numbers altogether: the dirty probe sees nothing there, fanotify and the sweep do.
#[must_use]
pub fn kernel_dev(dev: u64) -> u32 {
    (rustix::fs::major(dev) << 20) | (rustix::fs::minor(dev) & 0xf_ffff)
}

fn take<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, ProbeError> {
    let map = ebpf.take_map(name).ok_or(ProbeError::Missing(name))?;
    M::try_from(map).map_err(|err| ProbeError::Map(name, Box::new(err)))
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint, ProbeError> {
    match ebpf.program_mut(name) {
        Some(Program::BtfTracePoint(program)) => Ok(program),
        _ => Err(ProbeError::Missing(name)),
    }
}

impl Probes {
    /// The probes and how they are.
    #[must_use]
    pub fn views(&self) -> Vec<ProbeView> {
        lock(&self.views).clone()
    }

    /// Notes that the probe `name` saw its canary at `when`, or that it did not.
    pub fn self_tested(&self, name: &str, seen: bool, when: String) {
        if let Some(view) =
            lock(&self.views).iter_mut().find(|v| v.name == name && v.state != Health::Unsupported)
        {
            view.self_test = Some(when);
            if seen {
                view.state = Health::Ok;
                view.why = None;
            } else if view.state == Health::Ok {
                view.state = Health::Degraded;
                view.why = Some("attached, but it did not see its own canary".to_owned());
                if let Some(known) = KNOWN.iter().find(|k| k.name == name) {
                    view.blind_to = known.without.iter().map(|s| (*s).to_owned()).collect();
                }
            }
        }
    }

    /// Hands over the logger of the probes' own diagnostics (aya-log).
    pub fn logger(&self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut lock(&self.ebpf))
    }

    /// Watches an inode. True: it is watched now.
    pub fn watch_inode(&self, key: InodeKey) -> bool {
        lock(&self.inodes).insert(PodInode(key), 1, 0).is_ok()
    }

    /// Does not watch an inode any more.
    pub fn unwatch_inode(&self, key: InodeKey) {
        // It may be gone already: then there is nothing to do.
        drop(lock(&self.inodes).remove(&PodInode(key)));
    }

    /// Watches a process. True: it is watched now.
    pub fn watch_task(&self, tgid: u32) -> bool {
        lock(&self.tasks).insert(tgid, 1, 0).is_ok()
    }

    /// Does not watch a process any more.
    pub fn unwatch_task(&self, tgid: u32) {
        drop(lock(&self.tasks).remove(&tgid));
    }

    /// The program that `tgid` ran when it was last seen.
    #[must_use]
    pub fn proc(&self, tgid: u32) -> Option<Proc> {
        self.procs.get(&tgid, 0).ok().map(|p| p.0)
    }

    /// Events produced and lost in the kernel, by class.
    #[must_use]
    pub fn produced_and_lost(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let mut out: BTreeMap<_, _> = CLASS_NAMES.iter().map(|name| (*name, (0, 0))).collect();
        if let Ok(cpus) = self.counts.get(&0, 0) {
            for counts in cpus.iter() {
                for (i, name) in CLASS_NAMES.iter().enumerate() {
                    let sum = out.entry(name).or_default();
                    sum.0 += counts.0.produced[i];
                    sum.1 += counts.0.lost[i];
                }
            }
        }
        out
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

    /// Attaches or detaches the pair of programs that times syscalls. True: it is as asked now.
    pub fn time_syscalls(&self, on: bool) -> bool {
        let mut links = lock(&self.latency);
        if !self.latency_usable || on == links.is_some() {
            return self.latency_usable;
        }
        if !on {
            *links = None;
            return true;
        }
        let mut ebpf = lock(&self.ebpf);
        let mut attach = |name| -> Option<FdLink> {
            let program = program_mut(&mut ebpf, name).ok()?;
            let id = program.attach().ok()?;
            Some(FdLink::from(program.take_link(id).ok()?))
        };
        // The exit side first: a start that no exit reads would be taken for the next cycle's.
        *links = attach("syscall_latency").zip(attach("syscall_enter")).map(|(exit, enter)| [enter, exit]);
        links.is_some()
    }

    /// Run time of all of Grace's programs since they were loaded, in nanoseconds, as far as the kernel measured it
    /// (`kernel.bpf_stats_enabled`, or while somebody holds its statistics on).
    #[must_use]
    pub fn run_time_ns(&self) -> u64 {
        lock(&self.ebpf)
            .programs()
            .filter_map(|(_, program)| program.info().ok())
            .map(|info| u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX))
            .sum()
    }
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
