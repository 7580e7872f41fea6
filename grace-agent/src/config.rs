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

use crate::event::{Restart, RestartPolicy};

mod code;
mod describe;
mod load;

pub use code::{
    CodeDiff, DependencyRegression, Endpoint, Environment, PredictedFailure, Repo, TelemetryDrift,
};
pub use load::{ConfigError, DEFAULT_FILE, Invalid, Problem, Step};

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
    /// Configs and secrets whose known-good content Grace keeps.
    pub file: Vec<File>,
    /// Limits over everything that Grace does.
    pub policy: Policy,
    /// Settings of single triggers.
    pub triggers: Triggers,
    /// How events are recorded for `grace replay`.
    pub record: Record,
    /// The kernel side.
    pub probes: Probes,
    /// HTTP endpoints whose answers are watched.
    pub endpoint: Vec<Endpoint>,
    /// Sets of packages and programs that are watched, beside those of the declared processes.
    pub environment: Vec<Environment>,
    /// Git repos whose code is watched.
    pub repo: Vec<Repo>,
}

/// A process that Grace starts and supervises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Name, unique: letters, digits, `-`, `_`, `.`; at most 64.
    #[schemars(example = &"worker")]
    pub name: String,
    /// Program (absolute path) and arguments. No shell.
    #[schemars(example = ["/usr/bin/python3", "/srv/app/worker.py"])]
    pub command: Vec<String>,
    /// Working folder. Default `/`.
    #[serde(default)]
    #[schemars(example = &"/srv/app")]
    pub cwd: Option<PathBuf>,
    /// Environment; it replaces the agent's own but for PATH, HOME and LANG.
    #[serde(default)]
    pub env: std::collections::BTreeMap<String, String>,
    /// User to run as, by name or number. Default: the agent's.
    #[serde(default)]
    #[schemars(example = &"nobody")]
    pub user: Option<String>,
    /// Which ends call for a restart: `always`, `on_failure`, `never`.
    #[serde(default)]
    pub restart: Restart,
    /// Restarts allowed within `interval`. Default 5.
    #[serde(default = "Process::burst")]
    pub burst: u32,
    /// The window of `burst`. Default `10m`.
    #[serde(default = "Process::interval")]
    pub interval: Span,
    /// Delay before the second restart in a row, doubling from there. Default `200ms`.
    #[serde(default = "Process::backoff")]
    pub backoff: Span,
    /// Upper bound of the delay. Default `5m`.
    #[serde(default = "Process::backoff_max")]
    pub backoff_max: Span,
    /// A process that ran this long is healthy again: the next restart is at once. Default `10m`.
    #[serde(default = "Process::stable")]
    pub stable: Span,
    /// 0 is shed first, 100 never. Default 50.
    #[serde(default = "Process::importance")]
    pub importance: u8,
}

impl Process {
    fn burst() -> u32 {
        5
    }
    fn interval() -> Span {
        Span::secs(600)
    }
    fn backoff() -> Span {
        Span::millis(200)
    }
    fn backoff_max() -> Span {
        Span::secs(300)
    }
    fn stable() -> Span {
        Span::secs(600)
    }
    fn importance() -> u8 {
        50
    }

    /// What the engine needs to know of it.
    #[must_use]
    pub fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy {
            burst: self.burst,
            interval_ms: self.interval.as_millis(),
            backoff_ms: self.backoff.as_millis(),
            backoff_max_ms: self.backoff_max.as_millis(),
            stable_ms: self.stable.as_millis(),
            restart: self.restart,
        }
    }
}

/// A config or a secret that Grace owns. `grace snapshot PATH` adds one at run time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path of a regular file.
    #[schemars(example = &"/etc/app/app.yaml")]
    pub path: PathBuf,
    /// True: content is never shown, only digests.
    #[serde(default)]
    pub secret: bool,
    /// Executables (paths, `*` allowed) whose change becomes the new known-good.
    #[serde(default)]
    pub writers: Vec<String>,
}

/// Limits over everything that Grace does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Changes to the host allowed within `host_interval`; past it everything is held. Default 2000.
    pub host_burst: u32,
    /// The window of `host_burst`. Default `10m`.
    pub host_interval: Span,
}

impl Default for Policy {
    fn default() -> Self {
        Self { host_burst: 2000, host_interval: Span::secs(600) }
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
}

impl Default for ConfigDrift {
    fn default() -> Self {
        Self { conflict_count: 3, conflict_window: Span::secs(600), sweep: Span::secs(60) }
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
}

impl Default for HealthGap {
    fn default() -> Self {
        Self { settle: Span::secs(2), blocked: Span::secs(120), spinning: None }
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
