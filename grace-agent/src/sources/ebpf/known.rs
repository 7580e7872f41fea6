//! What each probe is: its programs and hooks, what Grace is blind to without it, what it can never see. Feeds
//! `status`, `doctor` and the manual.

use crate::api::view::{Health, ProbeView};

/// A probe.
pub(super) struct Known {
    pub(super) name: &'static str,
    /// Programs of the object, each with its tracepoint.
    pub(super) programs: &'static [(&'static str, &'static str)],
    /// What Grace cannot see when it does not run.
    pub(super) without: &'static [&'static str],
    /// What it can never see.
    pub(super) never: &'static [&'static str],
}

/// All probes. The last one is attached by its budget only.
pub(super) const KNOWN: &[Known] = &[
    Known {
        name: "file_dirty",
        programs: &[("file_dirty", "writeback_mark_inode_dirty")],
        without: &[
            "stores through shared mappings, until the next sweep",
            "who wrote, where fanotify is refused",
            "who wrote while no agent ran",
        ],
        never: &["further stores into an already dirty mapping", "writes to the raw block device"],
    },
    Known {
        name: "task_exit",
        programs: &[("task_exit", "sched_process_exit")],
        without: &["exit code and signal of adopted processes", "peak memory", "ends of descendants"],
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
        without: &["the program of a writer that has already ended", "what descendants run"],
        never: &["processes that were forked and never called exec, once they have ended"],
    },
    Known {
        name: "fork",
        programs: &[("fork", "sched_process_fork")],
        without: &["descendants of declared processes"],
        never: &[],
    },
    Known {
        name: "syscall_count",
        programs: &[("syscall_count", "sys_exit")],
        without: &["counts and errors of syscalls", "whether a process still makes calls"],
        never: &[],
    },
    Known {
        name: LATENCY,
        programs: &[
            ("syscall_latency", "sys_exit"),
            ("syscall_wait", "sched_switch"),
            ("syscall_enter", "sys_enter"),
        ],
        without: &["latency of syscalls", "slow calls of declared processes"],
        never: &["calls that begin outside of its share of the time (see `latency`)"],
    },
];

/// The probe whose programs are attached for a share of the time.
pub(super) const LATENCY: &str = "syscall_latency";

/// The probe `name`.
pub(super) fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// How `known` is shown.
pub(super) fn view(known: &Known, state: Health, why: Option<String>) -> ProbeView {
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
        ns_per_run: None,
        runs_per_s: None,
        missed: None,
    }
}
