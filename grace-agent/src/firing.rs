//! The vocabulary of judgement: what a trigger says and what is remembered of it.
//!
//! Plain data. A [`Verdict`] is what a trigger returns; a [`Firing`] is the record that the journal keeps and
//! `grace firings --json` prints: the field names here are a contract.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::Action;
use crate::event::{Actor, Inferred, Timestamp, Via};

/// What a trigger judges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum Subject {
    /// An owned file.
    File(PathBuf),
    /// A declared process, by name.
    Process(String),
    /// One of Grace's own triggers.
    Trigger(String),
    /// A resource of the host: `memory`, `cpu`, `disk /var`, or `repairs`, which is Grace's own work on it.
    Host(String),
    /// A model, by name.
    Model(String),
    /// Whatever sends heartbeats under this name and is no declared process.
    Heartbeat(String),
    /// A queue, by name.
    Queue(String),
    /// A route, by name.
    Route(String),
    /// An error that keeps coming back, by its signature.
    Error(String),
    /// A git repo, by its folder.
    Repo(PathBuf),
    /// A polled endpoint, by name.
    Endpoint(String),
    /// A set of packages, by name.
    Environment(String),
    /// What is wrong with a GPU: `3 xid 79`, `3 memory`; or `driver`, which is all of them.
    Gpu(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Process(name) => write!(f, "process {name}"),
            Self::Trigger(name) => write!(f, "trigger {name}"),
            Self::Repo(path) => write!(f, "repo {}", path.display()),
            Self::Endpoint(name) => write!(f, "endpoint {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Error(signature) => write!(f, "error {signature}"),
            Self::Heartbeat(name) => write!(f, "heartbeat {name}"),
            Self::Queue(name) => write!(f, "queue {name}"),
            Self::Route(name) => write!(f, "route {name}"),
            Self::Model(name) => write!(f, "model {name}"),
            Self::Host(resource) => write!(f, "host {resource}"),
            Self::Gpu(what) => write!(f, "GPU {what}"),
        }
    }
}

/// What a pause is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "of", content = "what", rename_all = "snake_case")]
pub enum Scope {
    /// Everything, because a person said so.
    All,
    /// Everything, because the configuration says so for this time of the day.
    Quiet,
    /// Every firing of a trigger.
    Trigger(String),
    /// One subject and what depends on it.
    Subject(Subject),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::Quiet => f.write_str("everything (quiet time)"),
            Self::Trigger(name) => write!(f, "trigger {name}"),
            Self::Subject(subject) => subject.fmt(f),
        }
    }
}

/// What a trigger says about its subject after an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The condition holds, and will until [`Verdict::Cleared`]. Said again with the same subject it replaces the
    /// remedy where the facts changed.
    Holds(Box<Finding>),
    /// The condition was *seen* not to hold any more, and how. Silence is never a recovery.
    Cleared(Subject, String),
    /// Something happened and is over; there is nothing to wait for and nothing to do.
    Happened(Box<Finding>),
    /// Nothing is wrong, but this should be done: a first start, a legitimate change to take over.
    Wants(Subject, Action),
}

/// What a trigger found: the part of a firing that is the trigger's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// Since when, as far as the trigger knows.
    pub since: Timestamp,
    /// One line in Grace's words. Hostile text in it is already escaped.
    pub summary: String,
    /// What was seen.
    pub measured: String,
    /// What would have been tolerated.
    pub threshold: String,
    /// What is normal.
    pub baseline: String,
    /// Who did it, where a probe could tell.
    pub writer: Option<Actor>,
    /// How it was noticed, where there is more than one way.
    pub noticed_by: Option<Via>,
    /// More facts for the reader: last lines of stderr, for example. Hostile text, capped.
    pub evidence: Vec<String>,
    /// What to do, gentlest first.
    pub remedy: Vec<Action>,
    /// Wait this long before the first rung (backoff). Zero: at once.
    pub delay: std::time::Duration,
    /// Why nothing shall be done at all although there is a remedy; only what does not change the host still runs.
    pub hold: Option<String>,
    /// What else, if it is wrong, too, is the likely cause of this: the process behind a queue.
    pub depends_on: Vec<Subject>,
}

/// Who is to mend what a trigger found.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Route {
    /// Grace itself: restart, restore, scale, shed.
    #[default]
    SelfHealing,
    /// A coding agent, or a person: the code or what it depends on is to be changed.
    CodingAgent,
}

impl Route {
    /// As `--json` and `--route` name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SelfHealing => "self_healing",
            Self::CodingAgent => "coding_agent",
        }
    }

    /// Where a firing goes that its trigger routes to `self` and that has this remedy: without anything in it that
    /// Grace could do itself it goes to a coding agent.
    #[must_use]
    pub fn of(self, remedy: &[Action]) -> Self {
        let asks = remedy.iter().any(|action| matches!(action, Action::FileTask { .. }));
        let acts = remedy.iter().any(|action| !matches!(action, Action::FileTask { .. }));
        if asks && !acts { Self::CodingAgent } else { self }
    }
}

/// Number of a firing, unique on a host across restarts. Shown as `f-12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String")]
pub struct FiringId(pub u64);

impl fmt::Display for FiringId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f-{}", self.0)
    }
}

impl From<FiringId> for String {
    fn from(id: FiringId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for FiringId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.strip_prefix("f-")
            .and_then(|n| n.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("`{}` is not a firing's id, such as f-12", text.escape_debug()))
    }
}

/// Whether a firing still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The condition holds.
    Holds,
    /// It was seen not to hold any more.
    Cleared,
    /// It happened and is over; there was nothing to wait for.
    Happened,
}

/// What became of one rung of a remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RungState {
    /// Not yet its turn.
    Planned,
    /// Not done, and why says why.
    Held,
    /// On its way.
    Running,
    /// Done.
    Done,
    /// Tried, did not work.
    Failed,
}

/// One rung of a firing's remedy and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rung {
    /// The verb.
    pub action: String,
    /// What became of it.
    pub state: RungState,
    /// Why held or failed, or what was done.
    pub why: Option<String>,
    /// From admission to end, in microseconds.
    pub took_us: Option<u64>,
}

/// A firing as it is kept and shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Firing {
    /// Its number.
    pub id: FiringId,
    /// The trigger's name.
    pub trigger: String,
    /// What it is about.
    pub subject: Subject,
    /// Whether it still holds.
    pub state: State,
    /// Since when the condition holds: CLOCK_BOOTTIME in the engine, RFC 3339 where it is shown.
    pub since: Timestamp,
    /// When the trigger fired.
    pub at: Timestamp,
    /// When it cleared.
    pub cleared: Option<Timestamp>,
    /// How it was seen to have cleared.
    pub cleared_by: Option<String>,
    /// When the last rung that changes the host was done.
    pub repaired: Option<Timestamp>,
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
    /// True where events of a class that this firing builds on were lost while it formed.
    pub evidence_gaps: bool,
    /// More facts, hostile text, capped.
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
    /// Who is to mend it now.
    #[serde(default)]
    pub route: Route,
    /// Since when a coding agent is asked, where Grace was to mend it and could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalated: Option<Timestamp>,
}

/// An actor in one phrase: `sed (pid 812, uid 0, /usr/bin/sed)`. What the process chose itself is escaped.
pub(crate) fn who(actor: &Actor) -> String {
    let mut out = format!("{} (pid {}", actor.comm.escape_debug(), actor.pid);
    if let Some(uid) = actor.uid {
        out.push_str(&format!(", uid {uid}"));
    }
    if let Some(exe) = &actor.exe {
        out.push_str(&format!(", {}", exe.escape_debug()));
    }
    out.push(')');
    match actor.inferred {
        Some(Inferred::Mapping) => {
            out.push_str(
                ", not seen in the act, but the only process that has it mapped shared and writable",
            );
        }
        Some(Inferred::LastTouch) => {
            out.push_str(", not seen in the act, but the last one that the kernel saw dirty it");
        }
        None => {}
    }
    out
}
