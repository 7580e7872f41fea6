//! The configuration: TOML in, typed values with defaults out, clear errors for everything else.
//!
//! The table and key names are a contract (see README). Unknown keys are errors with line, column and the nearest
//! valid key.
//!
//! Here are the types · `load.rs` reads and judges a file · `describe.rs` makes the JSON Schema and the commented
//! defaults.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::Shed;

mod code;
mod describe;
mod gpu;
mod load;
mod process;
mod snapshots;
mod tasks;
mod weights;

pub use code::{
    CodeDiff, DependencyRegression, Endpoint, Environment, PredictedFailure, Repo, TelemetryDrift,
};
pub use gpu::Gpu;
pub use load::{ConfigError, DEFAULT_FILE, Invalid, Problem, Step, quiet_time};
pub use process::{Condition, Hook, Limit, Match, Process, Ready, signal_number};
pub use snapshots::{HardLinks, Snapshots};
pub use tasks::{Check, Http, Sink, SinkKind, Tasks};
pub use weights::{Canary, Model, Notify, Repair, Weights};

/// Whether Grace may change the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Judge and report; change nothing.
    #[default]
    Observe,
    /// Repair what Grace was told to own.
    Repair,
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether Grace may change the host.
    pub mode: Mode,
    /// Processes that Grace starts and keeps running.
    pub process: Vec<Process>,
    /// Commands that Grace runs: to scale what it does not start itself, or as a remedy.
    pub hook: Vec<Hook>,
    /// Configs and secrets whose known-good content Grace keeps.
    pub file: Vec<File>,
    /// How long versions and displaced files are kept, and how the store is checked.
    pub snapshots: Snapshots,
    /// Models whose weights Grace keeps.
    pub model: Vec<Model>,
    /// What is done with all weights.
    pub weights: Weights,
    /// Limits over everything that Grace does.
    pub policy: Policy,
    /// Settings of single triggers.
    pub triggers: Triggers,
    /// How events are recorded for `grace replay`.
    pub record: Record,
    /// The kernel side.
    pub probes: Probes,
    /// When the host is nearly used up, and what is done then.
    pub pressure: Pressure,
    /// GPUs.
    pub gpu: Gpu,
    /// Queues of applications.
    pub queue: Vec<Queue>,
    /// Routes of applications.
    pub route: Vec<Route>,
    /// Who may send what applications say of themselves.
    pub records: Records,
    /// The queue of tasks.
    #[serde(default)]
    pub tasks: Tasks,
    /// Commands that must pass before a task is verified.
    pub check: Vec<Check>,
    /// Where tasks are told beside the local queue.
    pub sink: Vec<Sink>,
    /// HTTP on loopback.
    pub http: Http,
    /// Source trees of services on this host.
    pub repo: Vec<Repo>,
    /// The scan for syntax errors.
    pub scan: Scan,
    /// HTTP endpoints whose answers are watched.
    pub endpoint: Vec<Endpoint>,
    /// Sets of packages and programs that are watched, beside those of the declared processes.
    pub environment: Vec<Environment>,
}

/// A config or a secret that Grace owns. `grace snapshot PATH` adds one at run time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path of a regular file; of a folder, with all files in it and below; or a pattern of paths (`*` stays
    /// within a folder, `**` does not). What comes newly into a folder is told.
    #[schemars(example = &"/etc/app/app.yaml")]
    pub path: PathBuf,
    /// True: content is never shown, only digests, and kept sealed with the key in the state folder.
    #[serde(default)]
    pub secret: bool,
    /// Executables (paths, `*` allowed) whose change, and the change of what they start, becomes the new known-good.
    #[serde(default)]
    pub writers: Vec<String>,
    /// Of a folder or pattern: names of files (`*` allowed) that are left alone.
    #[serde(default)]
    #[schemars(example = ["*.swp", "*~"])]
    pub except: Vec<String>,
    /// Of a folder or pattern: so many files are owned at most; that there are more is said. Default 1000.
    #[serde(default = "File::max_files")]
    pub max_files: u32,
}

impl File {
    fn max_files() -> u32 {
        1_000
    }
}

/// Limits over everything that Grace does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Changes to the host allowed within `host_interval`; past it everything is held. Default 2000.
    pub host_burst: u32,
    /// The window of `host_burst` and `subject_burst`. Default `10m`.
    pub host_interval: Span,
    /// Changes to one subject allowed within `host_interval`; 0: no limit of its own. Default 200.
    pub subject_burst: u32,
    /// So many repairs in a row that failed, of at least three subjects, open the breaker: Grace is the trouble then, or
    /// cannot help. 0: never. Default 20.
    pub breaker_failures: u32,
    /// How long repairs rest then. Default `10m`.
    pub breaker_rest: Span,
    /// A firing of the same trigger and subject within this time after it cleared has come back. Default `10m`.
    pub reopen: Span,
    /// Times of the day at which Grace reports and does not repair.
    pub quiet: Vec<Quiet>,
}

/// A time of the day at which Grace reports and does not repair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quiet {
    /// From, as `HH:MM`.
    #[schemars(example = &"22:00")]
    pub from: String,
    /// To, as `HH:MM`; earlier than `from`: on the next day.
    #[schemars(example = &"06:00")]
    pub to: String,
    /// Days on which it begins: `mon` … `sun`. Default: all.
    #[serde(default)]
    pub days: Vec<String>,
    /// Time zone, such as `Europe/Berlin`. Default: the host's.
    #[serde(default)]
    #[schemars(example = &"Europe/Berlin")]
    pub zone: Option<String>,
    /// Why, for whoever wonders.
    #[serde(default)]
    #[schemars(example = &"the nightly batch may do as it likes")]
    pub why: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            host_burst: 2000,
            host_interval: Span::secs(600),
            subject_burst: 200,
            breaker_failures: 20,
            breaker_rest: Span::secs(600),
            reopen: Span::secs(600),
            quiet: Vec::new(),
        }
    }
}

/// Settings of single triggers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Triggers {
    /// `config_drift`.
    pub config_drift: ConfigDrift,
    /// `health_gap`.
    pub health_gap: HealthGap,
    /// `model_integrity`.
    pub model_integrity: ModelIntegrity,
    /// `latency_spike`.
    pub latency_spike: LatencySpike,
    /// `error_feed`.
    pub error_feed: ErrorFeed,
    /// `telemetry_drift`.
    pub telemetry_drift: TelemetryDrift,
    /// `dependency_regression`.
    pub dependency_regression: DependencyRegression,
    /// `code_diff`.
    pub code_diff: CodeDiff,
    /// `predicted_failure`.
    pub predicted_failure: PredictedFailure,
}

/// Settings of `config_drift`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigDrift {
    /// The same change coming back this often is a fight: stop, file a task. Default 3.
    pub conflict_count: u32,
    /// The window of `conflict_count`, and how long a fight must rest before it is forgotten. Default `10m`.
    pub conflict_window: Span,
    /// How often every owned file is looked at although nothing was noticed. Default `60s`.
    pub sweep: Span,
    /// Executables (paths, `*` allowed) whose change of any owned file becomes the new known-good where root runs them,
    /// and so does a change by what they start: package managers.
    pub package_managers: Vec<String>,
}

impl Default for ConfigDrift {
    fn default() -> Self {
        Self {
            conflict_count: 3,
            conflict_window: Span::secs(600),
            sweep: Span::secs(60),
            package_managers: snapshots::package_managers(),
        }
    }
}

/// Settings of `health_gap`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthGap {
    /// A restarted process that ran this long is seen as running again. Default `2s`.
    pub settle: Span,
    /// A process whose main thread waits for a device without a break for this long makes no progress. Default `2m`.
    pub blocked: Span,
    /// A process that runs without any system call for this long makes no progress. Long computations look the same,
    /// so there is no default.
    #[schemars(example = &"10m")]
    pub spinning: Option<Span>,
    /// A heartbeat is missing after this many times its gap: the declared one, or the learned one. Default 3.
    pub heartbeat_factor: f64,
    /// But after no shorter time than this, where the gap is learned. Default `10s`.
    pub heartbeat_at_least: Span,
    /// A process that was just started may take this long until its first heartbeat. Default `1m`.
    pub startup: Span,
    /// A log is silent after this many times its learned cadence. Default 5.
    pub log_factor: f64,
    /// But after no shorter time than this. Default `1m`.
    pub log_at_least: Span,
    /// A metric stands still after this many times its learned time between two changes, while other work of its process
    /// goes on. Default 5.
    pub flat_factor: f64,
    /// But after no shorter time than this. Default `1m`.
    pub flat_at_least: Span,
    /// A GPU that a process has for itself, and that is at 99 % and more, does nothing below this share of the power that it
    /// normally draws when it is busy. 0: never. Default 0.5.
    pub gpu_busy_share: f64,
    /// See `gpu_busy_share`: for so long. Default `2m`.
    pub gpu_busy_for: Span,
    /// Gaps that are needed to learn what is normal. Default 10.
    pub learn: u32,
}

impl Default for HealthGap {
    fn default() -> Self {
        Self {
            settle: Span::secs(2),
            blocked: Span::secs(120),
            spinning: None,
            heartbeat_factor: 3.0,
            heartbeat_at_least: Span::secs(10),
            startup: Span::secs(60),
            log_factor: 5.0,
            log_at_least: Span::secs(60),
            flat_factor: 5.0,
            flat_at_least: Span::secs(60),
            gpu_busy_share: 0.5,
            gpu_busy_for: Span::secs(120),
            learn: 10,
        }
    }
}

/// Settings of `latency_spike`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LatencySpike {
    /// A queue without a limit is too deep from this many times its learned p95 on. Default 3.
    pub queue_factor: f64,
    /// But never below this depth. Default 50.
    pub queue_at_least: f64,
    /// A route without a budget is too slow from this many times its learned p95 on. Default 3.
    pub route_factor: f64,
    /// But never below this many milliseconds. Default 50.
    pub route_at_least_ms: f64,
    /// Answers of a route that a p95 is taken from, at least. Default 5.
    pub route_calls: u64,
    /// Calls of a process are too slow when their p99 is this many times the learned one. Default 5.
    pub syscall_factor: f64,
    /// But never below this many milliseconds. Default 10.
    pub syscall_at_least_ms: f64,
    /// An accept queue is filling when it is this full, from 0 to 1. Default 0.8.
    pub backlog: f64,
    /// It must last this long to fire. Default `10s`.
    pub sustained: Span,
    /// It clears when it was seen below `clear` times the threshold for this long. Default `10s`.
    pub clear_for: Span,
    /// See `clear_for`; from 0 to 1. Default 0.8.
    pub clear: f64,
    /// Values that are needed to learn what is normal. Default 30.
    pub learn: u32,
    /// What was scaled up for a spike is scaled down by one after this time without one, and so on down to `replicas`.
    /// Default `5m`.
    pub scale_down_after: Span,
    /// A level that lasts this long becomes the new normal, where normal is learned. Default: never, a fault would.
    #[schemars(example = &"6h")]
    pub relearn_after: Option<Span>,
}

impl Default for LatencySpike {
    fn default() -> Self {
        Self {
            queue_factor: 3.0,
            queue_at_least: 50.0,
            route_factor: 3.0,
            route_at_least_ms: 50.0,
            route_calls: 5,
            syscall_factor: 5.0,
            syscall_at_least_ms: 10.0,
            backlog: 0.8,
            sustained: Span::secs(10),
            clear_for: Span::secs(10),
            clear: 0.8,
            learn: 30,
            scale_down_after: Span::secs(300),
            relearn_after: None,
        }
    }
}

/// Settings of `model_integrity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelIntegrity {
    /// A model's accuracy that falls by more than this, in percent of its baseline, fires. Default 15.
    pub accuracy_drop_percent: f64,
    /// Values of accuracy that make a baseline; before that it is learning. Default 3.
    pub samples: u32,
    /// The same change of weights coming back this often is a fight: stop, file a task. Default 3.
    pub conflict_count: u32,
    /// The window of `conflict_count`. Default `10m`.
    pub conflict_window: Span,
}

impl Default for ModelIntegrity {
    fn default() -> Self {
        Self { accuracy_drop_percent: 15.0, samples: 3, conflict_count: 3, conflict_window: Span::secs(600) }
    }
}

/// Settings of `error_feed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ErrorFeed {
    /// The same error this often within `window` fires. Default 5.
    pub count: u32,
    /// The window of `count`, and how long an error must stay away, while its source works, to be over. Default `10m`.
    pub window: Span,
    /// Errors in the kernel's messages (`/dev/kmsg`), too. Takes effect when the agent starts. Default true.
    pub kmsg: bool,
    /// Errors in the journal of systemd, where there is one, too. Takes effect when the agent starts. Default true.
    pub journald: bool,
}

impl Default for ErrorFeed {
    fn default() -> Self {
        Self { count: 5, window: Span::secs(600), kmsg: true, journald: true }
    }
}

/// How events are recorded for `grace replay`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// Keep the event stream on disk. Default true.
    pub enabled: bool,
    /// At most this much of it, in MiB. Default 64.
    pub max_mib: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self { enabled: true, max_mib: 64 }
    }
}

/// How much of the time system calls are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LatencyMode {
    /// As much as the budget pays for: all of it on a quiet host.
    #[default]
    Auto,
    /// All of it, whatever it costs.
    Full,
    /// None of it.
    Off,
}

/// The kernel side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Probes {
    /// The probes run on while no agent does (crash, upgrade), and the next agent takes over what they saw; needs
    /// bpffs. An agent that is stopped with SIGTERM takes them along. Default true.
    pub pin: bool,
    /// How much of the time system calls are timed.
    pub latency: LatencyMode,
    /// What timing may cost, in percent of one core. Default 1.
    pub budget_percent: f64,
    /// What counting and timing may cost a system call on average, in nanoseconds; on a host so quiet that timing every
    /// call costs less than a tenth of `budget_percent` it may be more. Default 60.
    pub budget_ns: u32,
    /// A call of a declared process is slow from this many times its own p99 on, by class of call; 0: from
    /// `slow_at_least` on. Default 5.
    pub slow_factor: u32,
    /// No call is slow that took less. Default `10ms`.
    pub slow_at_least: Span,
    /// Slow calls reported a second and processor; the rest is counted. 0: all. Default 100.
    pub slow_rate: u32,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            pin: true,
            latency: LatencyMode::Auto,
            budget_percent: 1.0,
            budget_ns: 60,
            slow_factor: 5,
            slow_at_least: Span::millis(10),
            slow_rate: 100,
        }
    }
}

/// When a resource of the host is nearly used up, in percent of all there is, and what is done then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pressure {
    /// Busy processors. Default 90.
    pub cpu: f64,
    /// Memory that is not available. Default 85.
    pub memory: f64,
    /// Swap in use. Default 90.
    pub swap: f64,
    /// Time in which nothing got on for want of memory (PSI full, 10 s). Default 10.
    pub memory_stall: f64,
    /// Time in which nothing got on for want of I/O (PSI full, 10 s). Default 60.
    pub io_stall: f64,
    /// Open files of the system's table. Default 90.
    pub files: f64,
    /// Process ids. Default 90.
    pub pids: f64,
    /// Space of a local file system. Default 95.
    pub disk: f64,
    /// Inodes of a local file system. Default 95.
    pub inodes: f64,
    /// Tracked connections (nf_conntrack). Default 90.
    pub conntrack: f64,
    /// Heat of a thermal zone, in percent of the temperature (in °C) at which the kernel switches the host off. Default 95.
    pub thermal: f64,
    /// Memory of a declared process, of what its cgroup may have (`limits.memory`). Default 95.
    pub process_memory: f64,
    /// How long without a break before it fires, and as long before it clears. Default `30s`.
    pub sustained: Span,
    /// So many points below the limit before it clears. Default 5.
    pub margin: f64,
    /// After load was shed for one resource nothing is shed for another one for this long: what was done may have helped
    /// both. Default `15s`.
    pub rest: Span,
    /// How load is shed, gentlest first: `notify`, `throttle`, `freeze`, `terminate`; `[]`: not at all. Default `["throttle"]`: a host
    /// may be meant to be busy, and nothing is stopped or ended unless somebody says so here.
    pub steps: Vec<Shed>,
}

impl Default for Pressure {
    fn default() -> Self {
        Self {
            cpu: 90.0,
            memory: 85.0,
            swap: 90.0,
            memory_stall: 10.0,
            io_stall: 60.0,
            files: 90.0,
            pids: 90.0,
            disk: 95.0,
            inodes: 95.0,
            conntrack: 90.0,
            thermal: 95.0,
            process_memory: 95.0,
            rest: Span::secs(15),
            sustained: Span::secs(30),
            margin: 5.0,
            steps: vec![Shed::Throttle],
        }
    }
}

impl Pressure {
    /// The limit of `resource`, in percent; none: not known.
    #[must_use]
    pub fn limit(&self, resource: &str) -> Option<f64> {
        Some(match resource {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "swap" => self.swap,
            "memory_stall" => self.memory_stall,
            "io_stall" => self.io_stall,
            "files" => self.files,
            "pids" => self.pids,
            "conntrack" => self.conntrack,
            zone if zone.starts_with("thermal ") => self.thermal,
            process if process.starts_with("memory of ") => self.process_memory,
            disk if disk.starts_with("disk ") => self.disk,
            inodes if inodes.starts_with("inodes ") => self.inodes,
            _ => return None,
        })
    }
}
/// A queue whose depth an application reports (`queue.NAME:DEPTH|g`, `grace queue NAME DEPTH`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Its name, as it is reported.
    #[schemars(example = &"message_bus")]
    pub name: String,
    /// Deeper than this is too deep. Default: what is normal is learned.
    #[serde(default)]
    #[schemars(example = &1000)]
    pub limit: Option<u64>,
    /// The [[process]] that works it off, or the [[hook]] that scales what does. Default: none that Grace could do something
    /// about.
    #[serde(default)]
    #[schemars(example = &"worker")]
    pub process: Option<String>,
}

/// A route whose latency an application reports (`latency.ROUTE:MS|ms`, `grace latency ROUTE MS`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name, as it is reported.
    #[schemars(example = &"/api/chat")]
    pub name: String,
    /// Its 95th percentile should not take longer, in milliseconds. Default: what is normal is learned.
    #[serde(default)]
    #[schemars(example = &500)]
    pub budget_ms: Option<f64>,
    /// The [[process]] that answers, or the [[hook]] that scales what does. Default: none that Grace could do something about.
    #[serde(default)]
    #[schemars(example = &"worker")]
    pub process: Option<String>,
}

/// Who may send what applications say of themselves: the datagram socket `grace.dgram` beside the agent's socket.
/// Users that a [[process]] runs as always may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Records {
    /// Its permissions, in octal; who may write may send. Default `0660`; `0666` lets every user of the host send.
    pub mode: String,
    /// Its group, by name or number. Not set: the agent's own.
    #[schemars(example = &"app")]
    pub group: Option<String>,
}

impl Default for Records {
    fn default() -> Self {
        Self { mode: "0660".to_owned(), group: None }
    }
}

impl Records {
    /// The permission bits; none where `mode` says none.
    #[must_use]
    pub fn bits(&self) -> Option<u32> {
        let octal =
            (3..=4).contains(&self.mode.len()) && self.mode.bytes().all(|b| (b'0'..=b'7').contains(&b));
        u32::from_str_radix(&self.mode, 8).ok().filter(|bits| octal && *bits <= 0o777)
    }
}

/// The scan for syntax errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scan {
    /// Scan when the agent starts, in the background. Default true.
    pub at_start: bool,
    /// Folders and files to scan at start. Default: the `[[repo]]` paths.
    pub paths: Vec<PathBuf>,
}

impl Default for Scan {
    fn default() -> Self {
        Self { at_start: true, paths: Vec::new() }
    }
}

impl Config {
    /// What is scanned for syntax errors at start.
    #[must_use]
    pub fn scan_paths(&self) -> Vec<PathBuf> {
        let repos = || self.repo.iter().map(|repo| repo.path.clone()).collect();
        if self.scan.paths.is_empty() { repos() } else { self.scan.paths.clone() }
    }
}

/// A duration as people write it: `10s`, `1m 30s`, `200ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Span(std::time::Duration);

impl Span {
    /// Whole seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(std::time::Duration::from_secs(n))
    }

    /// Whole milliseconds.
    #[must_use]
    pub const fn millis(n: u64) -> Self {
        Self(std::time::Duration::from_millis(n))
    }

    /// As the standard library's type.
    #[must_use]
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// In milliseconds, saturating.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text).map(Self).map_err(|err| {
            serde::de::Error::custom(format!(
                "`{}` is not a duration such as `10s` or `5m`: {err}",
                text.escape_debug()
            ))
        })
    }
}
