//! What the agent shows: the documents of `--json` and of the socket. The field names are a contract.
//!
//! Times are RFC 3339 in UTC. Text that came from the host (paths, process names, stderr) is data: JSON escapes it,
//! and the terminal output escapes control characters (see `cli/show.rs`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::Shed;
use crate::code_facts::{DependencyChange, Ecosystem, FileRisk};
use crate::config::Mode;
use crate::event::{Actor, SyntaxError, Via};
use crate::file_state::{Digest, KnownGood};
use crate::firing::{Firing, FiringId, Route, Rung, State, Subject};

/// `grace firings --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FiringView {
    /// Its number, such as `f-12`.
    pub id: FiringId,
    /// The trigger's name.
    pub trigger: String,
    /// What it is about.
    pub subject: Subject,
    /// Whether it still holds.
    pub state: State,
    /// Since when the condition holds.
    pub since: String,
    /// When the trigger fired.
    pub at: String,
    /// When it cleared.
    pub cleared: Option<String>,
    /// How it was seen to have cleared.
    pub cleared_by: Option<String>,
    /// From `since` to the end of the repair, in microseconds, where a repair was done.
    pub repaired_us: Option<u64>,
    /// One line in Grace's words.
    pub summary: String,
    /// What was seen.
    pub measured: String,
    /// What would have been tolerated.
    pub threshold: String,
    /// What is normal.
    pub baseline: String,
    /// Who did it.
    pub writer: Option<Actor>,
    /// How it was noticed, where there is more than one way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noticed_by: Option<Via>,
    /// True where events that this firing builds on were lost while it formed.
    pub evidence_gaps: bool,
    /// More facts. Untrusted text.
    pub evidence: Vec<String>,
    /// How often the condition came back before it cleared.
    pub count: u32,
    /// The firing that this one follows from: both are one incident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<FiringId>,
    /// The firing of the same trigger and subject that cleared shortly before: it has come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<FiringId>,
    /// The remedy, rung by rung.
    pub remedy: Vec<Rung>,
    /// Who is to mend it now: `self_healing`, `coding_agent`.
    #[serde(default)]
    pub route: Route,
    /// Since when a coding agent is asked, where Grace was to mend it and could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalated: Option<String>,
}

impl FiringView {
    /// `firing` with its times turned into wall time by `wall`.
    #[must_use]
    pub fn new(firing: &Firing, wall: impl Fn(crate::event::Timestamp) -> String) -> Self {
        Self {
            id: firing.id,
            trigger: firing.trigger.clone(),
            subject: firing.subject.clone(),
            state: firing.state,
            since: wall(firing.since),
            at: wall(firing.at),
            cleared: firing.cleared.map(&wall),
            cleared_by: firing.cleared_by.clone(),
            repaired_us: firing
                .repaired
                .map(|t| u64::try_from(t.since(firing.since).as_micros()).unwrap_or(u64::MAX)),
            summary: firing.summary.clone(),
            measured: firing.measured.clone(),
            threshold: firing.threshold.clone(),
            baseline: firing.baseline.clone(),
            writer: firing.writer.clone(),
            noticed_by: firing.noticed_by,
            evidence_gaps: firing.evidence_gaps,
            evidence: firing.evidence.clone(),
            count: firing.count,
            cause: firing.cause,
            again: firing.again,
            remedy: firing.remedy.clone(),
            route: firing.route,
            escalated: firing.escalated.map(&wall),
        }
    }
}

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should.
    Ok,
    /// It should, but does not, or only in part.
    Degraded,
    /// This kernel or host does not offer it.
    Unsupported,
    /// Not asked for.
    Off,
}

/// A kernel probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeView {
    /// Its name: `file_dirty`, `task_exit`, `signal`, `exec`, `syscall_count`, `syscall_latency`.
    pub name: String,
    /// How well it works.
    pub state: Health,
    /// How it is attached, such as `tp_btf/sched_process_exit`; empty where it is not.
    pub attach: String,
    /// What Grace cannot see because of its state, and what this probe can never see.
    pub blind_to: Vec<String>,
    /// Why it is not `ok`.
    pub why: Option<String>,
    /// When the probe last saw its own canary.
    pub self_test: Option<String>,
    /// What a run of it costs, in nanoseconds, in the last sample; none: not sampled yet, or it did not run.
    pub ns_per_run: Option<f64>,
    /// Its runs a second in the last sample.
    pub runs_per_s: Option<f64>,
    /// Runs that the kernel left out, since the probe was attached.
    pub missed: Option<u64>,
}

/// The account of one class of events: `produced = delivered + Σ lost + in_flight`, since the probes were attached (by
/// this agent or an earlier one that left them pinned).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RingView {
    /// `file`, `exit`, `process`, `slow`.
    pub class: String,
    /// Events that a probe wanted to send.
    pub produced: u64,
    /// Events that an agent read; none: an agent was killed during a flood, and what it had read cannot be told.
    pub delivered: Option<u64>,
    /// Events that never reached the ring, by cause: `full`, `throttled`, `untracked`.
    pub lost: BTreeMap<String, u64>,
    /// Events in the ring now.
    pub in_flight: Option<i64>,
}

/// How much of the time system calls are timed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LatencyView {
    /// Share of the time in which every call is timed, of 1. All latencies and slow calls are of this share.
    pub share: f64,
    /// The host's system calls a second, over the last second.
    pub calls_per_s: f64,
}

/// A source in user space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SourceView {
    /// Its name: `fanotify`, `inotify`, `sweep`, `processes`, `gpu`, `pressure`, …
    pub name: String,
    /// How well it works.
    pub state: Health,
    /// What it watches, or why it does not.
    pub detail: String,
}

/// A trigger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TriggerView {
    /// Its name.
    pub name: String,
    /// One line.
    pub summary: String,
    /// `ok`, or `degraded` after it panicked and was disabled.
    pub state: Health,
    /// How many subjects it judges now.
    pub subjects: usize,
    /// How many of its firings hold now.
    pub holds: usize,
    /// What it is still learning, and what it does not judge. Names in it are untrusted text.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Where what it finds is sent: `self_healing`, `coding_agent`.
    #[serde(default)]
    pub route: Route,
    /// Its remedy in words, first rung to last.
    #[serde(default)]
    pub remedy: String,
}

/// What Grace itself costs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CostView {
    /// Share of one core over the last interval, in percent.
    pub cpu_percent: f64,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// Time spent in Grace's probes, in nanoseconds a second of wall time. None: the kernel does not tell.
    pub bpf_ns_per_s: Option<u64>,
}

/// A declared process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessView {
    /// Its name.
    pub name: String,
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// Since when, while it runs.
    pub since: Option<String>,
    /// Restarts by Grace since the agent started.
    pub restarts: u32,
    /// Its living descendants, oldest first, at most 32.
    pub descendants: Vec<DescendantView>,
    /// Its slow system calls, descendants' too, within the share of the time in which calls are timed.
    pub slow_calls: u64,
    /// Its system calls, descendants' too; none: no probe counts them.
    pub syscalls: Option<u64>,
    /// What was taken from it because the host is nearly used up: it should do with less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shed: Option<Shed>,
}

/// A living descendant of a declared process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DescendantView {
    /// Process id.
    pub pid: u32,
    /// Its name. Untrusted text.
    pub comm: String,
    /// When it was forked.
    pub since: String,
}

/// Latency of one class of syscalls over the last measured interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SyscallView {
    /// `read`, `write`, `open`, `sync`, `net`, `wait`, `process`, `memory`, `other`, …
    pub class: String,
    /// Calls counted since the agent started.
    pub calls: u64,
    /// Of them, that returned an error.
    pub errors: u64,
    /// Calls whose time was taken (duty cycle).
    pub timed: u64,
    /// Upper bounds of log2 buckets, in nanoseconds; none where nothing was timed.
    pub p50_ns: Option<u64>,
    /// See `p50_ns`.
    pub p99_ns: Option<u64>,
}

/// A pause. `grace pause --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PauseView {
    /// Of what, as `grace pause` takes it: `all`, `trigger:NAME`, `process:NAME`, a path.
    pub subject: String,
    /// Until then.
    pub until: String,
    /// Why. Untrusted text.
    pub why: String,
    /// Who asked: a user, or the configuration.
    pub by: String,
}

/// Firings that belong together: a cause and what follows from it. `grace incidents --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IncidentView {
    /// The cause's number.
    pub id: FiringId,
    /// `holds` while any of its firings does.
    pub state: State,
    /// Since when the first of them holds.
    pub since: String,
    /// When the last of them cleared.
    pub cleared: Option<String>,
    /// The incident of the same cause that had cleared shortly before: this one is its return.
    pub again: Option<FiringId>,
    /// One line: the cause's.
    pub summary: String,
    /// Its firings, the cause first.
    pub firings: Vec<FiringView>,
}

/// `grace status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusView {
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Since when it runs.
    pub since: String,
    /// From start of the program to all probes attached, in microseconds.
    pub ready_us: u64,
    /// Whether it may change the host.
    pub mode: Mode,
    /// True where something works less well than it should: the reasons are in `degraded`.
    pub degraded: Vec<String>,
    /// Host name, kernel release, processors, memory: for people.
    pub host: BTreeMap<String, String>,
    /// Kernel probes.
    pub probes: Vec<ProbeView>,
    /// Sources in user space.
    pub sources: Vec<SourceView>,
    /// Triggers.
    pub triggers: Vec<TriggerView>,
    /// Owned files.
    pub files: usize,
    /// Declared processes.
    pub processes: Vec<ProcessView>,
    /// Syscalls of the host by class.
    pub syscalls: Vec<SyscallView>,
    /// How much of the time calls are timed.
    pub latency: LatencyView,
    /// The account of the probes' events, by class.
    pub ring: Vec<RingView>,
    /// Why the probes end with the agent; none: they run on for the next one.
    pub unpinned: Option<String>,
    /// Firings that hold now.
    pub holds: usize,
    /// Events that were produced and never arrived, by class. A class that lost none is listed with 0.
    pub lost: BTreeMap<String, u64>,
    /// Events that arrived, by class.
    pub delivered: BTreeMap<String, u64>,
    /// What Grace costs.
    pub cost: CostView,
    /// What rests, and until when.
    pub pauses: Vec<PauseView>,
    /// The configuration in force: its file, or none; and why a newer one was refused.
    pub config: ConfigView,
    /// What applications say of themselves.
    pub records: RecordsView,
    /// The scan at start, without what it found (`GET /v1/scan` has that).
    pub scan: ScanSummary,
}

/// What applications said of themselves since the agent started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RecordsView {
    /// Where datagrams are received; none: nowhere.
    pub socket: Option<PathBuf>,
    /// How many datagrams can wait there before a sender has to.
    pub queue: Option<u32>,
    /// Datagrams received.
    pub datagrams: u64,
    /// Records taken in, in datagrams and over HTTP.
    pub records: u64,
    /// Names that have a place now, by kind: `heartbeat`, `queue`, `latency`, `accuracy`, `metric`.
    pub names: BTreeMap<String, u64>,
    /// What was not taken, by reason: `line`, `type`, `name`, `value`, `rate`, `json`, `too_long`, `sender`, `names`,
    /// `errors`, and by design `set`, `event`. All but those two are in `lost.records`, too.
    pub refused: BTreeMap<String, u64>,
}

/// What became of reported records: the answer of `POST /v1/records` and of `grace heartbeat` and its like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RecordsAnswer {
    /// How many were taken in.
    pub accepted: usize,
    /// Which were not, and why.
    pub refused: Vec<RefusedView>,
}

/// A record that was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedView {
    /// Its place among those sent, from 0.
    pub index: usize,
    /// Why. Quotes the record: untrusted text.
    pub reason: String,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScanState {
    /// Not asked for, or nothing to scan.
    #[default]
    Off,
    /// Under way.
    Running,
    /// Done.
    Done,
    /// It could not be done.
    Failed,
}

/// The agent's scan at start, in short.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ScanSummary {
    /// How far it is.
    pub state: ScanState,
    /// When it ended.
    pub at: Option<String>,
    /// Source files met, so far while it runs.
    pub files: u64,
    /// Source files that do not parse.
    pub broken: u64,
    /// Why it could not be done, or why there is none.
    pub why: Option<String>,
}

/// `grace scan --json`: what was found, by who is to mend it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ScanView {
    /// How many findings there are.
    pub found: usize,
    /// What Grace mends itself, or would.
    pub self_healing: Vec<ScanItem>,
    /// What becomes a task for a coding agent.
    pub coding_agent: Vec<ScanItem>,
    /// How far the scan is.
    pub state: ScanState,
    /// When it ended.
    pub at: Option<String>,
    /// The triggers that were made to look once; empty without an agent.
    pub triggers: Vec<String>,
    /// The syntax scan; none: there was nothing to scan.
    pub syntax: Option<SyntaxView>,
    /// What could not be done, and why.
    pub not_done: Vec<String>,
}

/// One finding of a scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScanItem {
    /// The trigger that fired, or `syntax`.
    pub trigger: String,
    /// What it is about. Untrusted text.
    pub subject: Subject,
    /// What is to be done, in one line; it names the subject: untrusted text.
    pub title: String,
    /// What was found, in one line.
    pub summary: String,
    /// The firing, where an agent has one.
    pub firing: Option<FiringId>,
    /// What was done about it, rung by rung.
    pub remedy: Vec<Rung>,
    /// For `syntax`: the file's language.
    pub language: Option<String>,
    /// For `syntax`: the first errors of the file. Untrusted text.
    pub errors: Vec<SyntaxError>,
}

/// What a syntax scan went through.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SyntaxView {
    /// The folders and files, resolved.
    pub roots: Vec<PathBuf>,
    /// Source files met.
    pub files: u64,
    /// Of them, parsed now.
    pub parsed: u64,
    /// Of them, unchanged since an earlier scan.
    pub cached: u64,
    /// Files that do not parse.
    pub broken: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Files judged, by language.
    pub languages: BTreeMap<String, u64>,
    /// Files not judged, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Folders and files that could not be read.
    pub unreadable: u64,
}

impl ScanItem {
    /// The firing of an agent as a finding.
    #[must_use]
    pub fn of_firing(firing: &FiringView) -> Self {
        let title = match (firing.route, &firing.subject) {
            (Route::SelfHealing, subject) => match firing.remedy.first() {
                Some(rung) => format!("{} {subject}", rung.action.replace('_', " ")),
                None => format!("{} {subject}", firing.trigger.replace('_', " ")),
            },
            (Route::CodingAgent, subject) => format!("{} {subject}", task_words(&firing.trigger)),
        };
        Self {
            trigger: firing.trigger.clone(),
            subject: firing.subject.clone(),
            title,
            summary: firing.summary.clone(),
            firing: Some(firing.id),
            remedy: firing.remedy.clone(),
            language: None,
            errors: Vec::new(),
        }
    }

    /// A source file that does not parse.
    #[must_use]
    pub fn of_syntax(path: PathBuf, language: &str, errors: Vec<SyntaxError>) -> Self {
        let first = errors.first();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self {
            trigger: "syntax".to_owned(),
            title: format!("fix syntax error in {name} at line {}", first.map_or(0, |error| error.line)),
            summary: first.map_or_else(String::new, |error| error.problem.clone()),
            subject: Subject::File(path),
            firing: None,
            remedy: Vec::new(),
            language: Some(language.to_owned()),
            errors,
        }
    }
}

/// What a coding agent is asked to do about what this trigger found, before the subject's name.
fn task_words(trigger: &str) -> &'static str {
    match trigger {
        "syntax" => "fix syntax error in",
        "dependency_regression" => "roll back dependencies of",
        "code_diff" => "run targeted tests for",
        "error_feed" => "fix repeated error",
        "telemetry_drift" => "regenerate the client of",
        "predicted_failure" => "proactive code review for",
        _ => "find out what is wrong with",
    }
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ConfigView {
    /// Its file; none: defaults.
    pub file: Option<PathBuf>,
    /// Why the last reload was refused, while the last good one stays in force.
    pub refused: Option<String>,
}

/// `grace snapshots --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotView {
    /// Its number.
    pub id: u64,
    /// Absolute path.
    pub path: PathBuf,
    /// True for the version that is kept up now.
    pub current: bool,
    /// When it was taken.
    pub at: String,
    /// Why: `snapshot by uid 0`, `config file`, `written by /usr/bin/dpkg (pid 12)`.
    pub reason: String,
    /// Who took it, or whose change it is: `uid 0`, `/usr/bin/sed ← /usr/bin/dpkg ← /usr/bin/apt-get`. Empty: an older
    /// agent took it.
    #[serde(default)]
    pub author: String,
    /// Content, owner, mode.
    #[serde(flatten)]
    pub known: KnownGood,
}

/// Whether an owned file is as it should be. `grace verify --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyView {
    /// Absolute path.
    pub path: PathBuf,
    /// `ok`, `drift`, `missing`, `unreadable`, `not_owned`, `damaged_object`.
    pub verdict: VerifyVerdict,
    /// What differs, in words.
    pub drift: Vec<String>,
    /// What it should be.
    pub expected: Option<Digest>,
    /// What it is.
    pub actual: Option<Digest>,
}

/// See [`VerifyView`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerifyVerdict {
    /// As it should be.
    Ok,
    /// It differs.
    Drift,
    /// It is not there.
    Missing,
    /// It could not be read: nothing is claimed.
    Unreadable,
    /// Grace was never told to own it.
    NotOwned,
    /// The file cannot be judged because the store's own copy is damaged.
    DamagedObject,
}

/// What became of one path of `grace snapshot`, `restore` or `forget`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PathAnswer {
    /// The path as Grace keeps it: absolute, its folder resolved.
    pub path: PathBuf,
    /// What was done.
    pub done: Option<String>,
    /// Why nothing was done.
    pub error: Option<String>,
    /// The snapshot taken or put back.
    pub snapshot: Option<SnapshotView>,
    /// Where the displaced content lies (`restore`).
    pub quarantined: Option<PathBuf>,
}

/// `grace explain --json`: a firing with its journal, or a trigger with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainView {
    /// The trigger's name.
    pub trigger: String,
    /// What it watches, when it fires, what it does.
    pub help: String,
    /// Its settings in force, as TOML.
    pub settings: String,
    /// The firing asked for; none where a trigger was.
    pub firing: Option<FiringView>,
    /// What was decided and done, in order.
    pub journal: Vec<JournalView>,
    /// For a trigger: its firings that hold now.
    pub holds: Vec<FiringView>,
    /// What the trigger is still learning, and what it does not judge. Names in it are untrusted text.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A record of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JournalView {
    /// Position in the journal.
    pub seq: u64,
    /// When.
    pub at: String,
    /// `firing`, `decision`, `outcome`, `cleared`, `command`, `start`.
    pub kind: String,
    /// One line in Grace's words.
    pub text: String,
}

/// `grace tasks list --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskView {
    /// Its number, such as `t-3`.
    pub id: String,
    /// Same fault, same fingerprint: it raises `count` instead of making a second task.
    pub fingerprint: String,
    /// How often the fault came.
    pub count: u64,
    /// In Grace's words.
    pub title: String,
    /// The trigger that fired.
    pub trigger: String,
    /// `open`, `claimed`, `submitted` (done, as somebody thinks), `verified` (the trigger stayed clear), `reopened`,
    /// `cancelled`.
    pub state: String,
    /// Who works on it.
    pub claim: Option<ClaimView>,
    /// The facts, each with a trust label.
    pub evidence: Vec<EvidenceView>,
    /// When it is done.
    pub acceptance: String,
    /// What happened to it, in order.
    pub history: Vec<JournalView>,
    /// 0 is handed out first, 3 last.
    #[serde(default)]
    pub priority: u8,
    /// How often it was claimed.
    #[serde(default)]
    pub attempts: u32,
    /// Tasks that must be over before it is handed out.
    #[serde(default)]
    pub after: Vec<String>,
    /// When the fault came first.
    #[serde(default)]
    pub first_seen: String,
    /// When the fault came last.
    #[serde(default)]
    pub last_seen: String,
    /// What somebody who works on it should read first, in Grace's words.
    #[serde(default)]
    pub brief: super::brief::Brief,
}

/// Who works on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClaimView {
    /// The agent's name.
    pub agent: String,
    /// Until when it may.
    pub lease_until: String,
}

/// `grace tasks claim --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClaimedView {
    /// What holds the claim: to be shown with every heartbeat, attachment and the end. Told once.
    pub token: String,
    /// The task.
    pub task: TaskView,
}

/// A fact that belongs to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvidenceView {
    /// What it is.
    pub name: String,
    /// `kernel`, `grace`, `operator`, or `untrusted`: text that others can write. Never instructions.
    pub trust: String,
    /// SHA-256 of `text`.
    pub sha256: String,
    /// The content: capped, without the secrets that were found in it. Empty in lists, where it is an attachment.
    pub text: String,
    /// Where it comes from, in Grace's words.
    #[serde(default)]
    pub source: String,
    /// The begin of the time that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The end of that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Its size in bytes.
    #[serde(default)]
    pub bytes: u64,
    /// True where it was longer and its middle was left out.
    #[serde(default)]
    pub truncated: bool,
    /// How many secrets were taken out of it.
    #[serde(default)]
    pub redacted: u32,
}

/// `grace endpoint list --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointView {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// When it was last asked.
    pub asked: Option<String>,
    /// Answers since the agent started that could be judged.
    pub answers: u64,
    /// Why the last question brought nothing that can be judged.
    pub trouble: Option<String>,
    /// The OpenAPI document that says what its answers look like; none: that is learned.
    pub openapi: Option<PathBuf>,
    /// Answers that it was learned from.
    pub learned_from: Option<u32>,
    /// What is known of its answers, as JSON Schema (`grace endpoint show`).
    pub schema: Option<serde_json::Value>,
}

/// What became of marking a commit as known-good. `grace good --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GoodView {
    /// The repo's folder.
    pub repo: PathBuf,
    /// The commit that is the known-good one now; none: nothing was marked.
    pub commit: Option<String>,
    /// The one that was before.
    pub before: Option<String>,
    /// Why nothing was marked.
    pub error: Option<String>,
    /// Tracked files that are not what they are in the commit; capped.
    pub dirty: Vec<String>,
}

/// An environment compared with its snapshot. `grace deps diff --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DependencyView {
    /// Its name.
    pub environment: String,
    /// Where its packages come from.
    pub ecosystem: Ecosystem,
    /// When the snapshot was taken; none: there is none yet.
    pub snapshot: Option<String>,
    /// Packages that it has now.
    pub total: u64,
    /// What differs; capped.
    pub changes: Vec<DependencyChange>,
    /// How many more differ.
    pub more: u64,
    /// Why it could not be read.
    pub trouble: Option<String>,
}

/// `grace risk --json`: one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RiskView {
    /// Absolute path.
    pub path: PathBuf,
    /// How likely the next changes include a repair of it: 0 to 1, calibrated where `model` says so.
    pub risk: f64,
    /// Share of the repo's files that have a lower risk, in percent.
    pub percentile: f64,
    /// What raises it, the heaviest first.
    pub reasons: Vec<String>,
    /// What the rating rests on, in words.
    pub model: String,
}

impl RiskView {
    /// A file of the repo at `repo`.
    #[must_use]
    pub fn new(repo: &std::path::Path, file: &FileRisk, model: &str) -> Self {
        Self {
            path: repo.join(&file.path),
            risk: file.risk,
            percentile: file.percentile,
            reasons: file.reasons.clone(),
            model: model.to_owned(),
        }
    }
}
