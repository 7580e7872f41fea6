//! Carries out orders: the one place that maps the closed enum of actions to the verbs in `actions/`.
//!
//! Runs on blocking threads. What changes the host waits at the gate until the journal holds the decision. Each order
//! ends as an `Outcome` event.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::code::Code;
use super::gate::Gate;
use crate::action::{Action, Order, Outcome};
use crate::actions::restore_file::{self, Restored};
use crate::actions::start_process::{self, Started};
use crate::clock;
use crate::config::Process;
use crate::error_chain::chain;
use crate::event::{Event, Exit, Kind};
use crate::file_state::{FileId, KnownGood};
use crate::journal::Journal;
use crate::snapshots::{Store, Take};
use crate::sources::files::Files;
use crate::sources::processes::Processes;

/// How long a process that was asked to end may take before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What the verbs need.
pub(super) struct Executor {
    pub(super) store: Arc<Store>,
    pub(super) journal: Arc<Journal>,
    pub(super) files: Files,
    pub(super) processes: Arc<Processes>,
    /// Declared processes by name.
    pub(super) specs: Mutex<BTreeMap<String, Process>>,
    /// Restarts by name, since the agent started.
    pub(super) starts: Mutex<BTreeMap<String, u32>>,
    pub(super) quarantine: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) running: PathBuf,
    pub(super) boot_id: String,
    pub(super) events: SyncSender<Event>,
    pub(super) code: Arc<Code>,
}

impl Executor {
    /// Carries out `order` and reports what became of it.
    pub(super) fn perform(&self, order: Order, gate: &Gate) {
        let name = order.action.name();
        let result = self.act(&order, gate);
        match &result {
            Ok(done) => tracing::info!(action = name, subject = %order.subject, done, "repaired"),
            Err(why) => tracing::warn!(action = name, subject = %order.subject, why, "failed"),
        }
        let now = clock::boottime();
        self.send(Kind::Outcome(Outcome {
            firing: order.firing,
            subject: order.subject,
            action: name.to_owned(),
            rung: order.rung,
            result,
            took_us: u64::try_from(now.since(order.at).as_micros()).unwrap_or(u64::MAX),
        }));
        if let Action::RestoreFile { path, .. } = &order.action {
            // Verified by looking, also where no hook tells of the new file.
            self.files.look(path);
        }
    }

    fn act(&self, order: &Order, gate: &Gate) -> Result<String, String> {
        if !matches!(order.action, Action::RestoreFile { .. }) {
            gate.pass();
        }
        match &order.action {
            Action::RestoreFile { path, known, judged } => {
                let tag =
                    order.firing.map_or_else(|| "command".to_owned(), |id| format!("{id}-{}", order.rung));
                self.restore(path, known, *judged, &tag, gate).map(|restored| describe_restored(&restored))
            }
            Action::AcceptFile { path, reason } => self.accept(path, reason),
            Action::StartProcess { name } => self.start(name),
            Action::StopProcess { name } => self.stop(name).map(|()| "ended".to_owned()),
            Action::FileTask { title, acceptance } => {
                self.journal.file_task(order.firing, title, acceptance).map_err(|err| chain(&err))
            }
            Action::KeepShape { endpoint, answers, shape } => self.code.keep_shape(endpoint, *answers, shape),
        }
    }

    /// Puts `known` back at `path`.
    pub(super) fn restore(
        &self,
        path: &Path,
        known: &KnownGood,
        judged: Option<FileId>,
        tag: &str,
        gate: &Gate,
    ) -> Result<Restored, String> {
        restore_file::restore(&self.store, &self.quarantine, path, known, judged, tag, || gate.pass())
            .map_err(|err| chain(&err))
    }

    fn accept(&self, path: &Path, reason: &str) -> Result<String, String> {
        let old = self.store.current_of(path).map_err(|err| chain(&err))?.ok_or("not owned any more")?;
        let take = Take { kind: old.known.kind, writers: old.known.writers, reason: reason.to_owned() };
        let snapshot = self.store.take(path, take).map_err(|err| chain(&err))?.snapshot;
        self.own(path, snapshot.known);
        Ok(format!("snapshot {} is the known-good state now", snapshot.id))
    }

    /// Tells engine and source that `known` is the state to keep at `path`.
    pub(super) fn own(&self, path: &Path, known: KnownGood) {
        self.send(Kind::FileKnown { path: path.to_owned(), known: known.clone() });
        self.files.own(path, known);
    }

    fn start(&self, name: &str) -> Result<String, String> {
        let Some(process) = lock(&self.specs).get(name).cloned() else {
            return Err("not declared any more".to_owned());
        };
        if let Some((pid, _)) = self.processes.running(name) {
            return Ok(format!("runs already as pid {pid}"));
        }
        match start_process::start(&process, &self.logs, &self.running, &self.boot_id) {
            Ok(Started { pid, pidfd, stderr }) => {
                *lock(&self.starts).entry(name.to_owned()).or_default() += 1;
                self.send(Kind::ProcessStarted { name: name.to_owned(), pid });
                self.watch(name, pid, pidfd, stderr)?;
                Ok(format!("runs as pid {pid}"))
            }
            Err(err) => {
                let why = chain(&err);
                // For the trigger this is an end like any other: it counts and backs off.
                self.send(Kind::ProcessExited {
                    name: name.to_owned(),
                    pid: 0,
                    exit: Exit::default(),
                    stderr_tail: vec![why.clone()],
                });
                Err(why)
            }
        }
    }

    /// Watches a process that runs.
    pub(super) fn watch(&self, name: &str, pid: u32, pidfd: OwnedFd, stderr: PathBuf) -> Result<(), String> {
        self.processes
            .watch(name, pid, pidfd, stderr)
            .map_err(|err| format!("runs as pid {pid}, but cannot be watched: {err}"))
    }

    /// Ends a declared process: SIGTERM, and SIGKILL when it does not follow.
    pub(super) fn stop(&self, name: &str) -> Result<(), String> {
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
            let began = clock::Stopwatch::start();
            if !self.processes.ask_to_end(name, signal).map_err(|err| err.to_string())? {
                return Ok(());
            }
            while began.elapsed() < STOP_PATIENCE {
                if self.processes.running(name).is_none() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Err(format!("does not end, not even by SIGKILL ({}): it may hang in the kernel", name.escape_debug()))
    }

    pub(super) fn send(&self, kind: Kind) {
        // Fails only when the engine has ended, with the agent.
        drop(self.events.send(Event { at: clock::boottime(), kind }));
    }
}

fn describe_restored(restored: &Restored) -> String {
    let mut out = "restored, digest matches".to_owned();
    if let Some(path) = &restored.quarantined {
        out.push_str(&format!("; what lay there is kept in {}", path.display()));
    }
    for note in restored.weaker.iter().chain(&restored.note) {
        out.push_str(&format!("; {note}"));
    }
    out
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
