//! The vocabulary of repair: everything that Grace can do to a host, as one closed enum.
//!
//! Triggers name actions, `policy` admits or holds them, and only `actions/` performs them. The whole blast radius
//! of the agent is the list below.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Timestamp;
use crate::file_state::{FileId, KnownGood};
use crate::firing::{FiringId, Subject};
use crate::shape::Shape;

/// What Grace can do to a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Put the known-good content, owner and mode back, and keep what lay there in quarantine.
    RestoreFile {
        /// Absolute path.
        path: PathBuf,
        /// What to put back.
        known: KnownGood,
        /// The object that was judged: displacing any other one is undone. None: nothing lay there.
        judged: Option<FileId>,
    },
    /// Take the file as it is now as the new known-good: a legitimate writer changed it.
    AcceptFile {
        /// Absolute path.
        path: PathBuf,
        /// Who changed it, as the reason kept with the snapshot.
        reason: String,
        /// The same with what started it, in short.
        #[serde(default)]
        author: String,
    },
    /// Start a declared process that is not running.
    StartProcess {
        /// Its name.
        name: String,
    },
    /// End a declared process: its stop signal, then SIGKILL. Only because a person asked for it.
    StopProcess {
        /// Its name.
        name: String,
    },
    /// Take load of a declared process off the host, until it is given back.
    ShedLoad {
        /// Its name.
        process: String,
        /// How hard.
        step: Shed,
    },
    /// Give a declared process back what was shed. Never held.
    GiveBack {
        /// Its name.
        process: String,
    },
    /// Hand the problem to a coding agent or a person, with the evidence.
    FileTask {
        /// What is to be done, in Grace's own words: never text from a log, path or process.
        title: String,
        /// When it is done.
        acceptance: String,
    },
    /// End a declared process that runs but does not work, as `StopProcess` does, and start it again.
    RestartProcess {
        /// Its name.
        name: String,
        /// Why, in Grace's own words.
        reason: String,
    },
    /// Run as many of a declared process, or of what a hook scales, as this says.
    Scale {
        /// The name of the process or the hook.
        name: String,
        /// So many in all.
        to: u32,
    },
    /// Run a declared command (`[[hook]]`) for a firing.
    RunHook {
        /// Its name.
        hook: String,
        /// The trigger that fired.
        trigger: String,
    },
    /// Keep what was learned of an endpoint's answers, for the next start.
    KeepShape {
        /// The endpoint's name.
        endpoint: String,
        /// Answers that it was learned from.
        answers: u32,
        /// What was learned.
        shape: Box<Shape>,
    },
}

impl Action {
    /// The verb, as the journal, `--json` and the documentation name it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::RestoreFile { .. } => "restore_file",
            Self::AcceptFile { .. } => "accept_file",
            Self::StartProcess { .. } => "start_process",
            Self::StopProcess { .. } => "stop_process",
            Self::ShedLoad { .. } => "shed_load",
            Self::GiveBack { .. } => "give_back",
            Self::FileTask { .. } => "file_task",
            Self::RestartProcess { .. } => "restart_process",
            Self::Scale { .. } => "scale",
            Self::RunHook { .. } => "run_hook",
            Self::KeepShape { .. } => "keep_shape",
        }
    }

    /// False for what only writes a note in Grace's own state: allowed in `observe` mode, too.
    #[must_use]
    pub fn changes_host(&self) -> bool {
        changes_host(self.name())
    }
}

/// False for a verb that only writes a note in Grace's own state.
#[must_use]
pub fn changes_host(verb: &str) -> bool {
    !matches!(verb, "file_task" | "accept_file" | "keep_shape")
}

/// How hard load is shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shed {
    /// It is told, so that it can do with less by itself (`shed_signal`, or it asks Grace).
    Notify,
    /// The lowest priority, and a small share of processors, memory and disks where its cgroup can be limited.
    Throttle,
    /// Stopped: it keeps its memory and does nothing.
    Freeze,
    /// Ended, and started again when there is room.
    Terminate,
}

/// An admitted action, on its way to `actions/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The firing that it repairs; none for what needs no firing (a first start, a legitimate change).
    pub firing: Option<FiringId>,
    /// What the firing is about.
    pub subject: Subject,
    /// Which rung of the firing's remedy.
    pub rung: usize,
    /// When it was admitted.
    pub at: Timestamp,
    /// What to do.
    pub action: Action,
}

/// What became of an order. An event like any other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The firing that it repaired, as in its order.
    pub firing: Option<FiringId>,
    /// What it was about.
    pub subject: Subject,
    /// The verb.
    pub action: String,
    /// Which rung of the firing's remedy.
    pub rung: usize,
    /// Done, with what was done in words, or failed, with why.
    pub result: Result<String, String>,
    /// From the order's admission to the action's end, in microseconds.
    pub took_us: u64,
}
