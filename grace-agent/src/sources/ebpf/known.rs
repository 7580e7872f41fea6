//! What each probe is: its programs and hooks, what Grace is blind to without it, what it can never see. Feeds
//! `status`, `doctor` and the manual.

use std::fmt;

use Hook::{Fentry, Lsm, TpBtf};

use crate::api::view::{Health, ProbeView};

/// A probe.
pub(super) struct Known {
    pub(super) name: &'static str,
    /// Ways to attach it, best first: the programs of the object, each with its hook. The first that this kernel takes is
    /// used.
    pub(super) forms: &'static [&'static [(&'static str, Hook)]],
    /// What Grace cannot see when it does not run.
    pub(super) without: &'static [&'static str],
    /// What it can never see.
    pub(super) never: &'static [&'static str],
    /// True: something else sees the same while an agent runs, so a kernel that refuses all forms is no defect.
    pub(super) optional: bool,
}

/// Where a program is attached.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    /// A tracepoint with types.
    TpBtf(&'static str),
    /// A hook for security modules.
    Lsm(&'static str),
    /// The entry of a function.
    Fentry(&'static str),
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TpBtf(name) => write!(f, "tp_btf/{name}"),
            Self::Lsm(name) => write!(f, "lsm/{name}"),
            Self::Fentry(name) => write!(f, "fentry/{name}"),
        }
    }
}

/// All probes.
pub(super) const KNOWN: &[Known] = &[
    Known {
        name: "file_dirty",
        forms: &[&[("file_dirty", TpBtf("writeback_mark_inode_dirty"))]],
        without: &[
            "stores through shared mappings, until the next sweep",
            "who wrote, where fanotify is refused",
            "who wrote while no agent ran",
        ],
        never: &["further stores into an already dirty mapping", "writes to the raw block device"],
        optional: false,
    },
    Known {
        name: "file_name",
        forms: &[
            &[("rename_lsm", Lsm("inode_rename")), ("unlink_lsm", Lsm("inode_unlink"))],
            &[
                ("rename_fentry", Fentry("security_inode_rename")),
                ("unlink_fentry", Fentry("security_inode_unlink")),
            ],
        ],
        without: &["who replaced or removed a file while no agent ran, or when fanotify's queue was full"],
        never: &[],
        optional: true,
    },
    Known {
        name: "task_exit",
        forms: &[&[("task_exit", TpBtf("sched_process_exit"))]],
        without: &["exit code and signal of adopted processes", "peak memory", "ends of descendants"],
        never: &[],
        optional: false,
    },
    Known {
        name: "signal",
        forms: &[&[("signal", TpBtf("signal_generate"))]],
        without: &["who sent a fatal signal"],
        never: &[],
        optional: false,
    },
    Known {
        name: "exec",
        forms: &[&[("exec", TpBtf("sched_process_exec"))]],
        without: &["the program of a writer that has already ended", "what descendants run"],
        never: &["processes that were forked and never called exec, once they have ended"],
        optional: false,
    },
    Known {
        name: "fork",
        forms: &[&[("fork", TpBtf("sched_process_fork"))]],
        without: &["descendants of declared processes"],
        never: &[],
        optional: false,
    },
    Known {
        name: "syscall_count",
        forms: &[&[("syscall_count", TpBtf("sys_exit"))]],
        without: &["counts and errors of syscalls", "whether a process still makes calls"],
        never: &[],
        optional: false,
    },
    Known {
        name: LATENCY,
        forms: &[&[("syscall_enter", TpBtf("sys_enter")), ("syscall_wait", TpBtf("sched_switch"))]],
        without: &["latency of syscalls", "slow calls of declared processes"],
        never: &["calls that begin outside of its share of the time (see `latency`)"],
        optional: false,
    },
];

/// The probe whose programs are attached for a share of the time.
pub(super) const LATENCY: &str = "syscall_latency";

/// The probe `name`.
pub(super) fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// How `known` is shown; `hooks` are those of the form in use, none where it does not run.
pub(super) fn view(known: &Known, hooks: &[(&str, Hook)], state: Health, why: Option<String>) -> ProbeView {
    let blind = if state == Health::Ok { known.never.iter() } else { known.without.iter() };
    ProbeView {
        name: known.name.to_owned(),
        state,
        attach: hooks.iter().map(|(_, hook)| hook.to_string()).collect::<Vec<_>>().join(" + "),
        blind_to: blind.map(|s| (*s).to_owned()).collect(),
        why,
        self_test: None,
        ns_per_run: None,
        runs_per_s: None,
        missed: None,
    }
}
