//! The vocabulary of facts: what sources report and the engine judges.
//!
//! Plain data. An [`Event`] is one fact with the time it became true; a recorded stream of them replays to the
//! same orders (`grace replay`). Everything here that came from a path, a process or a log is hostile text:
//! it is carried as data and escaped by whoever shows it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{Outcome, Shed};
use crate::code_facts::{Answer, CodeChange, DependencyChange, Ecosystem, FileRisk, KnownAnswers};
use crate::config::Mode;
use crate::file_state::{FileState, KnownGood};
use crate::firing::Scope;
use crate::gpu_facts::{GpuFault, GpuSample};
use crate::sketch::Sketch;

/// Nanoseconds of CLOCK_BOOTTIME: shared by kernel probes and agent, counts through suspend, never steps back.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time between `earlier` and `self`; zero where `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `self` moved forward by `by`, saturating.
    #[must_use]
    pub fn after(self, by: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// One fact and when it became true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// CLOCK_BOOTTIME.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: Kind,
}

/// Everything that can happen, closed: a new source adds its facts here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Kind {
    /// The agent starts. The first event of every recording; carries what the engine must not look up itself.
    Start {
        /// `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
        /// Version of the agent that recorded.
        version: String,
        /// The first number that this run gives to a firing; higher than any of earlier runs.
        next_firing: u64,
    },
    /// Time passed. Sent when the engine asked to be woken, and once a second while something is pending.
    Tick,
    /// The mode in force, at start and after a reload.
    Mode {
        /// Repair or only observe.
        mode: Mode,
    },
    /// A file is owned from now on, and this is its known-good state (`grace snapshot`, `[[file]]`).
    FileKnown {
        /// Absolute path.
        path: PathBuf,
        /// The state to keep.
        known: KnownGood,
    },
    /// A file is not owned any more (`grace forget`).
    FileForgotten {
        /// Absolute path.
        path: PathBuf,
    },
    /// The state of an owned file was looked at.
    FileSeen {
        /// Absolute path.
        path: PathBuf,
        /// What is there now.
        state: FileState,
        /// Who changed it, where a probe could tell.
        writer: Option<Actor>,
        /// How it was noticed.
        via: Via,
    },
    /// Something that is not owned lies in a watched folder, or does not lie there any more.
    FileUnowned {
        /// Absolute path.
        path: PathBuf,
        /// The folder or pattern, as the configuration writes it.
        pattern: String,
        /// What it is, in words; none: it is gone.
        what: Option<String>,
        /// Who made it, where that was seen.
        writer: Option<Actor>,
        /// The folder's legitimate writers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        writers: Vec<String>,
        /// How it was noticed.
        via: Via,
    },
    /// A process is owned from now on (`[[process]]`).
    ProcessDeclared {
        /// Its name, unique on the host.
        name: String,
        /// How often it may be started again; see config.
        policy: RestartPolicy,
        /// 0 is shed first, 100 never.
        #[serde(default = "middling")]
        importance: u8,
        /// The process id where it already runs (adopted), or ran when the agent last stopped.
        pid: Option<u32>,
    },
    /// A process is not owned any more.
    ProcessForgotten {
        /// Its name.
        name: String,
    },
    /// Grace started a declared process.
    ProcessStarted {
        /// Its name.
        name: String,
        /// Process id in the agent's pid namespace.
        pid: u32,
    },
    /// A declared process is gone.
    ProcessExited {
        /// Its name.
        name: String,
        /// Its process id.
        pid: u32,
        /// How it ended.
        exit: Exit,
        /// Its last lines of stderr: hostile text, capped.
        stderr_tail: Vec<String>,
    },
    /// A descendant of a declared process has ended.
    DescendantExited {
        /// The declared process.
        name: String,
        /// Who ended.
        who: Actor,
        /// How it ended.
        exit: Exit,
    },
    /// A system call of a declared process or a descendant took longer than is normal for it.
    SlowCall {
        /// The declared process.
        name: String,
        /// Who made it.
        who: Actor,
        /// The call's name.
        call: String,
        /// How long it took, in microseconds.
        took_us: u64,
        /// From when on it is slow, in microseconds.
        slow_us: u64,
        /// What it waited for in the kernel, where a stack was taken.
        wait: Option<String>,
        /// The program's own stack, as an id in the probes' stack map.
        stack: Option<i32>,
    },
    /// Whether a declared process makes progress. Told when that changes, and while it makes none.
    Progress {
        /// The declared process.
        name: String,
        /// Its process id.
        pid: u32,
        /// What it does.
        doing: Doing,
        /// Since when it does that.
        since: Timestamp,
        /// What it waits for in the kernel, where that can be read.
        wait: Option<String>,
    },
    /// The kernel side or a queue produced facts that never arrived, counted by class.
    Lost {
        /// The class of events: `file`, `exit`, `signal`, `fanotify`, …
        class: String,
        /// How many, since the agent started.
        total: u64,
    },
    /// An order was carried out, or was not.
    Outcome(Outcome),
    /// Repairs and tasks rest: a person asked for it, or the configuration does at this time of the day.
    Paused {
        /// Of what.
        scope: Scope,
        /// Until then.
        until: Timestamp,
        /// Why, in the words of whoever asked.
        why: String,
    },
    /// How full the resources of the host are.
    Pressure {
        /// Of those that were sampled.
        readings: Vec<Reading>,
    },
    /// A model and its weights (`[[model]]`).
    ModelDeclared {
        /// Its name.
        name: String,
        /// Its weights.
        files: Vec<PathBuf>,
        /// What is reported as its accuracy is an error or a loss.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lower_is_better: bool,
    },
    /// Load of a declared process was taken off the host.
    LoadShed {
        /// Its name.
        process: String,
        /// How.
        step: Shed,
    },
    /// A declared process has back what was shed.
    LoadGivenBack {
        /// Its name.
        process: String,
    },
    /// An application said that it is alive.
    Heartbeat {
        /// What is alive: the application's own name, or the declared process whose `sd_notify` it was. Hostile text.
        name: String,
        /// How often it said so since it was last told.
        count: u64,
    },
    /// How many wait in a queue of an application.
    QueueDepth {
        /// The queue. Hostile text.
        name: String,
        /// What was last reported.
        depth: f64,
        /// The highest since it was last told.
        max: f64,
    },
    /// How long answers on a route of an application took.
    RouteLatency {
        /// The route. Hostile text.
        route: String,
        /// All observations since it was last told, in milliseconds.
        took_ms: Sketch,
    },
    /// Any other number of an application.
    Metric {
        /// Its name. Hostile text.
        name: String,
        /// A gauge's last value; a counter's growth; the mean of what was timed or counted up.
        value: f64,
        /// How many records that is.
        count: u64,
    },
    /// How good a model's answers are, by the application's own measure.
    Accuracy {
        /// The model. Hostile text.
        model: String,
        /// The last value reported.
        value: f64,
    },
    /// An application reported an error of its own.
    ErrorReported {
        /// Its type, such as `ImportError`. Hostile text.
        kind: String,
        /// The trace as it came, at most 64 KiB. Hostile text.
        trace: Option<String>,
        /// The declared process that reported it, else `uid N`.
        source: String,
        /// How often exactly this came since it was last told.
        count: u64,
    },
    /// What a trigger had learned when the agent last ran. Right after the start.
    Learned {
        /// Its name.
        trigger: String,
        /// As the trigger gave it; from disk, so it may be anything.
        state: serde_json::Value,
    },
    /// The host slept, or the agent did not get to run: what should have come meanwhile could not be heard.
    Resumed {
        /// For how long, in milliseconds.
        away_ms: u64,
    },
    /// What is expected of a declared process beyond that it runs. After its `ProcessDeclared`.
    ProcessExpects {
        /// Its name.
        name: String,
        /// Its heartbeats are at most this far apart, in milliseconds; none: learned.
        heartbeat_ms: Option<u64>,
    },
    /// A `[[queue]]` is watched from now on; said again it replaces what was said.
    QueueDeclared {
        /// Its name.
        name: String,
        /// The depth that it may have; none: learned.
        limit: Option<f64>,
        /// The declared process that works it off.
        process: Option<String>,
    },
    /// A `[[route]]` is watched from now on; said again it replaces what was said.
    RouteDeclared {
        /// Its name.
        name: String,
        /// The p95 that it may have, in milliseconds; none: learned.
        budget_ms: Option<f64>,
        /// The declared process that answers.
        process: Option<String>,
    },
    /// A process wrote to its log.
    LogActivity {
        /// The declared process.
        process: String,
        /// Lines in the interval.
        lines: u64,
    },
    /// How long the timed system calls of a declared process and its descendants took lately.
    SyscallLatency {
        /// The declared process.
        process: String,
        /// The class of calls: `open`, `write`, `sync`, …
        class: String,
        /// Upper bound of the p99, in microseconds.
        p99_us: f64,
        /// Calls that it is taken from.
        calls: u64,
    },
    /// Connections that wait for a declared process to accept them. Told while there are any, and for a while after.
    Backlog {
        /// The declared process.
        process: String,
        /// Where it listens, such as `127.0.0.1:8080`.
        listener: String,
        /// How many wait.
        len: u32,
        /// How many may wait.
        limit: u32,
    },
    /// Errors of one signature were written, in about a second.
    ErrorSeen {
        /// The same whenever the same fault comes back: 16 hex digits (`faults/`).
        signature: String,
        /// `python`, `rust`, `go`, `java`, `node`, `native`, `cuda`, `kernel`, `plain`.
        language: String,
        /// The exception's type, or what takes its place. Hostile text, capped.
        kind: String,
        /// The last one's message. Hostile text, capped.
        message: String,
        /// The program's own frames, outermost first. Hostile text, capped.
        frames: Vec<String>,
        /// Where it was written: `stdout`, `stderr`, `log`, `kmsg`, `journald`, `api`.
        source: String,
        /// The declared process, or the unit; none where nobody can tell.
        process: Option<String>,
        /// The last one as it was written, where it was not told a moment ago. Hostile text, capped.
        trace: Vec<String>,
        /// How often.
        count: u64,
    },
    /// Errors are looked for in a source, or are not any more. Told when that changes.
    ErrorSource {
        /// `logs` for all that a declared process writes, `kmsg`, `journald`, `api`.
        source: String,
        /// The declared process.
        process: Option<String>,
        /// It is read.
        works: bool,
        /// Errors of the same signature that are too many, where this source has a number of its own.
        count: Option<u32>,
        /// Within this time, in milliseconds.
        window_ms: Option<u64>,
    },
    /// A source file does not parse, or does (again) where there are no errors.
    SyntaxSeen {
        /// Absolute path.
        path: PathBuf,
        /// Its language.
        language: String,
        /// The first errors, in the order of the file.
        errors: Vec<SyntaxError>,
    },
    /// An endpoint is asked from now on (`[[endpoint]]`).
    EndpointDeclared {
        /// Its name, unique on the host.
        name: String,
        /// Its URL.
        url: String,
        /// Answers to learn from, where it has a setting of its own.
        learn: Option<u32>,
        /// Answers in a row that must be wrong, where it has a setting of its own.
        confirm: Option<u32>,
    },
    /// An endpoint is not asked any more.
    EndpointForgotten {
        /// Its name.
        name: String,
    },
    /// What the answers of an endpoint are measured by: what was learned before, or what a document declares.
    EndpointKnown {
        /// Its name.
        name: String,
        /// What is known.
        known: KnownAnswers,
    },
    /// An endpoint was asked.
    EndpointSeen {
        /// Its name.
        name: String,
        /// What came.
        answer: Answer,
    },
    /// A person takes the answers of an endpoint as they are now (`grace endpoint accept`).
    EndpointAccepted {
        /// Its name.
        name: String,
    },
    /// The packages of an environment were looked at and compared with their snapshot.
    DependenciesSeen {
        /// Its name.
        environment: String,
        /// Where its packages come from.
        ecosystem: Ecosystem,
        /// When the snapshot was taken: RFC 3339.
        snapshot: String,
        /// How many packages it has now.
        total: u64,
        /// What differs, by name; capped.
        changes: Vec<DependencyChange>,
        /// How many more differ.
        more: u64,
    },
    /// An environment is not watched any more.
    EnvironmentForgotten {
        /// Its name.
        environment: String,
    },
    /// The critical files of a repo were compared with its known-good commit.
    CodeSeen {
        /// The repo's folder.
        repo: PathBuf,
        /// The known-good commit.
        good: String,
        /// The commit that is checked out.
        head: String,
        /// What differs, by path; capped.
        changes: Vec<CodeChange>,
        /// How many more differ.
        more: u64,
        /// Tests that are likely to cover what differs, the likeliest first; capped.
        tests: Vec<String>,
        /// The difference as a unified diff, line by line; capped.
        diff: Vec<String>,
    },
    /// The files of a repo were rated.
    RiskSeen {
        /// The repo's folder.
        repo: PathBuf,
        /// The commit that is checked out.
        head: String,
        /// The riskiest files, the riskiest first; capped.
        files: Vec<FileRisk>,
        /// What the rating rests on, in words.
        model: String,
        /// A higher risk fires in this repo; none: as for all.
        #[serde(default)]
        threshold: Option<f64>,
    },
    /// A repo is not watched any more.
    RepoForgotten {
        /// Its folder.
        repo: PathBuf,
    },
    /// What must be so before a declared process is started, and when it counts as running. Before its `ProcessDeclared`;
    /// said again it replaces what was said.
    ProcessNeeds {
        /// Its name.
        name: String,
        /// Declared processes that must be ready first.
        after: Vec<String>,
        /// It runs only when it is ready (`ProcessReady`).
        awaits: bool,
        /// Grace cannot start it, only watch it.
        watched_only: bool,
    },
    /// A declared process is ready.
    ProcessReady {
        /// Its name.
        name: String,
        /// Its process id.
        pid: u32,
        /// How long after it was started, in milliseconds.
        after_ms: u64,
    },
    /// Of a declared process, or of what a hook scales, more than one may run.
    ScaleDeclared {
        /// Its name.
        name: String,
        /// So many normally.
        base: u32,
        /// So many at most.
        max: u32,
        /// So many now.
        now: u32,
    },
    /// Of a declared process, or of what a hook scales, there are now so many.
    Scaled {
        /// Its name.
        name: String,
        /// In all.
        to: u32,
    },
    /// A model was asked what it had been asked before (`canary` of a `[[model]]`).
    CanarySeen {
        /// Its name.
        model: String,
        /// It answers as it did.
        same: bool,
        /// How its answers differ, or why there are none. Hostile text, escaped and capped.
        said: String,
    },
    /// A pause ends early.
    Unpaused {
        /// Which.
        scope: Scope,
    },
    /// What declared processes take of the host. Told while something of it is nearly used up.
    ProcessLoads {
        /// Each.
        loads: Vec<ProcessLoad>,
    },
    /// A GPU was looked at. Told when something of it is news, or once a minute.
    GpuSeen {
        /// What was read.
        gpu: Box<GpuSample>,
    },
    /// A GPU's driver reported a fault.
    GpuFaulted {
        /// Which.
        fault: GpuFault,
    },
    /// Whether the GPU driver answers. Told when that changes.
    GpuDriver {
        /// It does.
        works: bool,
        /// Why not, in Grace's words.
        why: String,
    },
}

/// Importance of a process in recordings that do not tell.
fn middling() -> u8 {
    50
}

/// How full a resource of the host is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// `cpu`, `memory`, `swap`, `memory_stall`, `io_stall`, `files`, `pids`, `conntrack`, `disk /var`, `inodes /var`,
    /// `thermal x86_pkg_temp`, `memory of NAME` (a declared process, of the memory that its cgroup may have).
    pub resource: String,
    /// Of all there is, in percent; of a stall, of the time.
    pub percent: f64,
}

/// What a declared process takes of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLoad {
    /// Its name.
    pub process: String,
    /// Memory, in bytes, where that can be read.
    pub memory: Option<u64>,
    /// Its cgroup asks to be shed before its equals (1), or after them (-1).
    #[serde(default)]
    pub prefer: i8,
}

/// A place where a source does not parse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SyntaxError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The line itself, capped around the column. Hostile text.
    pub text: String,
    /// What was expected, or what does not fit: a parser's words, which may quote the source. Hostile text.
    pub problem: String,
}

/// How a change was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The dirty-inode probe.
    Probe,
    /// fanotify.
    Fanotify,
    /// inotify, where fanotify is refused. It does not say who.
    Inotify,
    /// The mount table changed under it.
    Mounts,
    /// A look while a process has it mapped shared and writable: stores into such a mapping call no hook.
    Mapped,
    /// The periodic sweep.
    Sweep,
    /// The look at start, on `grace verify`, or right after a repair.
    Look,
}

/// A process that did something: wrote a file, sent a signal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Actor {
    /// Process id (thread group).
    pub pid: u32,
    /// Kernel's 15-byte name of the task. Chosen by the process: hostile text.
    pub comm: String,
    /// Path of its executable, where it could still be read or the exec was seen.
    pub exe: Option<String>,
    /// Real user id.
    pub uid: Option<u32>,
    /// Its cgroup's path below the cgroup v2 root, or the cgroup id in hex where the path is gone.
    pub cgroup: Option<String>,
    /// Parent's process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppid: Option<u32>,
    /// Its own script and what started it: executables and scripts, the nearest first. Of writers only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<String>,
    /// Where nobody saw it in the act: what it is concluded from. Enough to look there first, not to trust it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inferred: Option<Inferred>,
}

/// What an actor that nobody saw in the act is concluded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Inferred {
    /// It is the only process that has the file mapped shared and writable.
    Mapping,
    /// The kernel remembers it as the last one that dirtied the file, at a time that nobody noticed.
    LastTouch,
}

/// What a declared process and its descendants do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// It makes system calls, or waits for something as programs do.
    Working,
    /// It runs and makes no system call.
    Spinning,
    /// Its main thread waits for a device or a file system and cannot be interrupted (state D).
    Blocked,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Exit {
    /// Exit code, where it exited by itself.
    pub code: Option<i32>,
    /// Signal number, where a signal ended it.
    pub signal: Option<i32>,
    /// True where the kernel wrote a core dump.
    pub core_dumped: bool,
    /// Who sent the fatal signal, where the probe saw it. The kernel itself is pid 0.
    pub sender: Option<Actor>,
    /// How long the process ran, in milliseconds.
    pub ran_ms: u64,
    /// The signal was sent on behalf of Grace (a stop that was asked for).
    #[serde(default)]
    pub asked_for: bool,
    /// Highest resident memory that it had, in bytes, where the probe saw its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rss_bytes: Option<u64>,
    /// The out-of-memory killer chose it, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom: Option<String>,
    /// Grace ended it to start it again: no crash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restarting: bool,
}

/// How often a declared process may be restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartPolicy {
    /// Restarts allowed within `interval_ms`.
    pub burst: u32,
    /// The window of `burst`, in milliseconds.
    pub interval_ms: u64,
    /// Delay before the second restart in a row, in milliseconds; the first is at once, each further one doubles it.
    pub backoff_ms: u64,
    /// Upper bound of the delay, in milliseconds.
    pub backoff_max_ms: u64,
    /// A process that ran this long is healthy: the next restart is at once again. In milliseconds.
    pub stable_ms: u64,
    /// Which ends call for a restart.
    #[serde(default)]
    pub restart: Restart,
}

/// Which ends of a declared process call for a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Every end.
    #[default]
    Always,
    /// A signal, or an exit code other than 0.
    OnFailure,
    /// None: it is reported, not repaired.
    Never,
}
