//! What the socket can ask of the agent: one trait, implemented by `daemon/`, called by `api/server.rs`.
//!
//! The methods block (they hash files, wait for the journal): the server calls them off its event loop.

use std::path::{Path, PathBuf};

use tokio::sync::broadcast;

use super::gpu::{GpusView, PressureView};
use super::store::{DiffView, StoreView, UndoView};
use super::tasks::{ClaimRequest, OutboxView, TasksQuery, UnfiledView};
use super::view::{
    ClaimedView, DependencyView, EndpointView, ExplainView, FiringView, GoodView, IncidentView, PathAnswer,
    PauseView, RecordsAnswer, RiskView, ScanView, SnapshotView, StatusView, TaskView, TriggerView,
    VerifyView,
};
use crate::config::{Config, Process};
use crate::file_state::ContentKind;
use crate::firing::{FiringId, Route, Scope};
use crate::reported::Reported;
use crate::tasks::Change;

/// Which firings to list.
#[derive(Debug, Clone, Default)]
pub struct FiringsQuery {
    /// Only those that began this many seconds ago or later.
    pub since_s: Option<u64>,
    /// Only those of this trigger.
    pub trigger: Option<String>,
    /// At most so many, the newest. Default 1000.
    pub limit: Option<usize>,
    /// Only those that are to be mended by this one now.
    pub route: Option<Route>,
}

/// Who asks, from SO_PEERCRED.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
}

/// Why a request could not be served as a whole. The numbers are those of HTTP.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// 404; exit code 1.
    #[error("{0}")]
    NotFound(String),
    /// 400; exit code 2.
    #[error("{0}")]
    Bad(String),
    /// 403; exit code 4.
    #[error("{0}")]
    Refused(String),
    /// 500.
    #[error("{0}")]
    Failed(String),
}

/// What the agent can be asked.
pub trait Control: Send + Sync + 'static {
    /// How it is.
    fn status(&self) -> StatusView;
    /// Firings, oldest first.
    fn firings(&self, query: &FiringsQuery) -> Result<Vec<FiringView>, ControlError>;
    /// Every change of a firing from now on.
    fn follow(&self) -> broadcast::Receiver<FiringView>;
    /// A firing by id, or a trigger by name.
    fn explain(&self, what: &str) -> Result<ExplainView, ControlError>;
    /// The triggers.
    fn triggers(&self) -> Vec<TriggerView>;
    /// Own `paths` and keep their state as known-good. One answer a path.
    fn snapshot(&self, paths: &[PathBuf], kind: Option<ContentKind>, peer: Peer) -> Vec<PathAnswer>;
    /// The snapshots kept, all versions, by path and number.
    fn snapshots(&self) -> Result<Vec<SnapshotView>, ControlError>;
    /// Compare `paths`, or every owned file, with the known-good state.
    fn verify(&self, paths: &[PathBuf]) -> Vec<VerifyView>;
    /// Put a version back, the current one if `at` is none; that version is the known-good from then on.
    /// Done in `observe` mode too: a person asked for it.
    fn restore(&self, path: &Path, at: Option<u64>, peer: Peer) -> PathAnswer;
    /// A version, the current one if `at` is none, against the file as it is.
    fn diff(&self, path: &Path, at: Option<u64>) -> Result<DiffView, ControlError>;
    /// Take back what was done for a firing, or for the incident that it began. One answer an action.
    fn undo(&self, incident: FiringId, peer: Peer) -> Result<Vec<UndoView>, ControlError>;
    /// Read every kept content and compare it with its digest.
    fn check_store(&self) -> Result<StoreView, ControlError>;
    /// Do not own `path` any more. Its snapshots are dropped.
    fn forget(&self, path: &Path, peer: Peer) -> PathAnswer;
    /// Start and supervise a process until `remove_process` (used by `grace inject`).
    fn add_process(&self, process: Process, peer: Peer) -> Result<(), ControlError>;
    /// Stop supervising a process and end it.
    fn remove_process(&self, name: &str, peer: Peer) -> Result<(), ControlError>;
    /// Firings by incident, oldest first.
    fn incidents(&self, query: &FiringsQuery) -> Result<Vec<IncidentView>, ControlError>;
    /// Nothing is repaired and no task is filed within `scope` for `seconds`.
    fn pause(&self, scope: Scope, seconds: u64, why: &str, peer: Peer) -> Result<PauseView, ControlError>;
    /// Ends a pause early. `Scope::All` also closes the breaker.
    fn resume(&self, scope: &Scope, peer: Peer) -> Result<(), ControlError>;
    /// What rests now.
    fn pauses(&self) -> Result<Vec<PauseView>, ControlError>;
    /// Tasks, oldest first: a page of them.
    fn tasks(&self, query: &TasksQuery) -> Result<Vec<TaskView>, ControlError>;
    /// How many tasks were not filed because there were too many.
    fn refused_tasks(&self) -> Result<Vec<UnfiledView>, ControlError>;
    /// What is to be told to sinks, or was; `dead`: only what was given up.
    fn outbox(&self, dead: bool) -> Result<Vec<OutboxView>, ControlError>;
    /// Have it tried again now: one entry, or all that were given up or wait. How many there were.
    fn retry_outbox(&self, seq: Option<i64>) -> Result<u64, ControlError>;
    /// One task.
    fn task(&self, id: &str) -> Result<TaskView, ControlError>;
    /// Claim a task.
    fn claim_task(&self, request: &ClaimRequest, peer: Peer) -> Result<ClaimedView, ControlError>;
    /// Do something with a task.
    fn change_task(&self, id: &str, change: Change, peer: Peer) -> Result<TaskView, ControlError>;
    /// The GPUs, and what is wrong with them.
    fn gpus(&self) -> Result<GpusView, ControlError>;
    /// How full the host is, and from whom load would be taken.
    fn pressure(&self) -> Result<PressureView, ControlError>;
    /// The configuration in force.
    fn config(&self) -> Config;
    /// Take in what an application says of itself. Of what was not even a record it is said why.
    fn report(&self, records: Vec<Result<Reported, String>>, peer: Peer) -> RecordsAnswer;
    /// Makes every trigger's sources look once, and returns what holds now or fired meanwhile, by route.
    fn scan(&self, peer: Peer) -> Result<ScanView, ControlError>;
    /// The scan at start, as far as it is.
    fn scanned(&self) -> ScanView;
    /// The polled endpoints.
    fn endpoints(&self) -> Result<Vec<EndpointView>, ControlError>;
    /// Take an endpoint's answers as they are now as known.
    fn accept_endpoint(&self, name: &str, peer: Peer) -> Result<EndpointView, ControlError>;
    /// Mark the commit that is checked out in each of `repos`, or in every one, as known-good.
    fn mark_good(&self, repos: &[PathBuf], force: bool, peer: Peer) -> Result<Vec<GoodView>, ControlError>;
    /// How likely `path`, or every file of the declared repos, needs a repair soon, the riskiest first.
    fn risk(&self, path: Option<&Path>) -> Result<Vec<RiskView>, ControlError>;
    /// Compare `environments`, or every one, with their snapshots now.
    fn dependencies(&self, environments: &[String]) -> Result<Vec<DependencyView>, ControlError>;
    /// Take what `environments`, or every one, have now as their snapshots.
    fn snapshot_dependencies(
        &self,
        environments: &[String],
        peer: Peer,
    ) -> Result<Vec<DependencyView>, ControlError>;
}
