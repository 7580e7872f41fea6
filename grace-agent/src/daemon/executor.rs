//! Carries out orders: the one place that maps the closed enum of actions to the verbs in `actions/`.
//!
//! Runs on blocking threads. What changes the host waits at the gate until the journal holds the decision. Each order
//! ends as an `Outcome` event.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};

use super::canaries::Canaries;
use super::code::Code;
use super::gate::Gate;
use super::models::Models;
use crate::action::{Action, Order, Outcome, Shed};
use crate::actions::restart_process::{self, RestartError, Restarted};
use crate::actions::restore_file::{self, Restored};
use crate::actions::shed_load::{self, Taken};
use crate::actions::start_process::{self, StartError, Started};
use crate::actions::stop_process;
use crate::clock;
use crate::config::{self, Process};
use crate::error_chain::chain;
use crate::event::{Event, Exit, Kind, Timestamp};
use crate::file_state::{ContentKind, FileId, KnownGood};
use crate::journal::Journal;
use crate::snapshots::{Store, Take};
use crate::sources::files::Files;
use crate::sources::logs::{Limits, Logs, Origin};
use crate::sources::processes::{Ending, Processes};
use crate::tasks::Queue;
use crate::weights::hash::Progress;

/// What the verbs need.
pub(super) struct Executor {
    pub(super) store: Arc<Store>,
    pub(super) journal: Arc<Journal>,
    pub(super) files: Files,
    pub(super) processes: Arc<Processes>,
    /// Follows what declared processes write.
    pub(super) followed: Arc<Logs>,
    /// Declared processes by name.
    pub(super) specs: Mutex<BTreeMap<String, Process>>,
    /// Restarts by name, since the agent started.
    pub(super) starts: Mutex<BTreeMap<String, u32>>,
    /// The quiet time that was last told to the engine: why, and its end in wall time.
    pub(super) quiet: Mutex<Option<(String, i64)>>,
    pub(super) quarantine: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) running: PathBuf,
    pub(super) boot_id: String,
    pub(super) events: SyncSender<Event>,
    /// What processes that Grace starts are told in their environment: where to report to.
    pub(super) tells: BTreeMap<String, String>,
    pub(super) code: Arc<Code>,
    /// What is configured of models.
    pub(super) models: Models,
    pub(super) canaries: Arc<Canaries>,
    /// How far hashing for a manifest has come.
    pub(super) hashing: Progress,
    pub(super) tasks: Arc<Queue>,
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
            self.files.restored(path);
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
            Action::ShedLoad { process, step } => self.shed(process, *step),
            Action::GiveBack { process } => self.give_back(process),
            Action::StopProcess { name } => self.stop(name).map(|()| "ended".to_owned()),
            Action::RestartProcess { name, .. } => self.restart(name, order.at),
            Action::FileTask { title, acceptance } => {
                let firing = match order.firing {
                    Some(id) => self.journal.firing(id).map_err(|err| chain(&err))?.map(|(view, _)| view),
                    None => None,
                };
                self.tasks.file(firing.as_ref(), title, acceptance).map_err(|err| chain(&err))
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
        if known.kind == ContentKind::Weights {
            return self.restore_weights(path, known, judged, tag, &|| gate.pass());
        }
        restore_file::restore(&self.store, &self.quarantine, path, known, judged, tag, || gate.pass())
            .map_err(|err| chain(&err))
    }

    fn accept(&self, path: &Path, reason: &str) -> Result<String, String> {
        let old = self.store.current_of(path).map_err(|err| chain(&err))?.ok_or("not owned any more")?;
        let take = Take { kind: old.known.kind, writers: old.known.writers, reason: reason.to_owned() };
        let keep = self.models.of(path).map(|model| model.copy).unwrap_or_default();
        let snapshot = match take.kind {
            ContentKind::Weights => {
                self.store.take_weights(path, take, keep, &self.hashing).map(|taken| taken.0.snapshot)
            }
            ContentKind::Config | ContentKind::Secret => {
                self.store.take(path, take).map(|taken| taken.snapshot)
            }
        };
        let snapshot = snapshot.map_err(|err| chain(&err))?;
        self.own(path, snapshot.known);
        Ok(format!("snapshot {} is the known-good state now", snapshot.id))
    }

    /// Tells engine and source that `known` is the state to keep at `path`.
    pub(super) fn own(&self, path: &Path, known: KnownGood) {
        self.send(Kind::FileKnown { path: path.to_owned(), known: known.clone() });
        self.files.own(path, known);
    }

    fn start(&self, name: &str) -> Result<String, String> {
        let process = self.declared(name)?;
        if let Some((pid, _)) = self.processes.running(name) {
            return Ok(format!("runs already as pid {pid}"));
        }
        let started = start_process::start(&process, &self.logs, &self.running, &self.boot_id);
        self.begun(name, started)
    }

    /// Starts a declared process again after something that it uses was repaired at `since`.
    pub(super) fn restart_after(&self, name: &str, since: Timestamp) -> Result<String, String> {
        self.restart(name, since)
    }

    /// The process `name` as it is to be started: told where to report to.
    fn declared(&self, name: &str) -> Result<Process, String> {
        let declared = lock(&self.specs).get(name).cloned();
        let mut process = declared.ok_or_else(|| "not declared any more".to_owned())?;
        for (variable, value) in &self.tells {
            process.env.entry(variable.clone()).or_insert_with(|| value.clone());
        }
        Ok(process)
    }

    fn restart(&self, name: &str, judged: Timestamp) -> Result<String, String> {
        let process = self.declared(name)?;
        let (processes, logs) = (&self.processes, &self.logs);
        match restart_process::restart(processes, &process, judged, logs, &self.running, &self.boot_id) {
            Ok(Restarted::Done(old, started)) => {
                let was = old.map(|pid| format!("pid {pid} was ended; ")).unwrap_or_default();
                self.begun(name, Ok(started)).map(|now| format!("{was}{now}"))
            }
            Ok(Restarted::Meanwhile(pid)) => Ok(format!("was started meanwhile and runs as pid {pid}")),
            Err(RestartError::Start(err)) => self.begun(name, Err(err)),
            Err(err) => Err(chain(&err)),
        }
    }

    /// A process was started, or could not be.
    fn begun(&self, name: &str, started: Result<Started, StartError>) -> Result<String, String> {
        match started {
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

    fn shed(&self, name: &str, step: Shed) -> Result<String, String> {
        let Some((pid, _)) = self.processes.running(name) else { return Err("does not run".to_owned()) };
        shed_load::note(&self.running, name, step).map_err(|err| chain(&err))?;
        // Said first: that it makes no progress from now on is no news.
        self.send(Kind::LoadShed { process: name.to_owned(), step });
        let done = match step {
            Shed::Throttle => shed_load::throttle(pid).map(|()| "has the lowest priority"),
            Shed::Freeze => shed_load::freeze(pid).map(|()| "is stopped"),
            Shed::Terminate => {
                // A stopped process would not hear that it shall end.
                let nothing = Taken::default();
                shed_load::give_back(pid, &nothing).map_err(|err| chain(&err))?;
                self.stop(name)?;
                Ok("has ended")
            }
        };
        done.map(|done| format!("{name} {done}, until there is room")).map_err(|err| chain(&err))
    }

    fn give_back(&self, name: &str) -> Result<String, String> {
        let Some(taken) = shed_load::taken(&self.running, name) else {
            return Ok("nothing was taken".to_owned());
        };
        let done = match self.processes.running(name) {
            Some((pid, _)) => {
                shed_load::give_back(pid, &taken).map(|()| "runs on").map_err(|err| chain(&err))?
            }
            None if taken.terminated => self.start(name).map(|_runs| "runs again")?,
            None => "does not run",
        };
        shed_load::forget(&self.running, name);
        self.send(Kind::LoadGivenBack { process: name.to_owned() });
        Ok(format!("{name} {done}"))
    }

    /// Looks for errors in what `process` writes from now on: its logs, or its captured output.
    pub(super) fn follow(&self, process: &Process) {
        let [stdout, stderr] = start_process::log_files(&self.logs, &process.name);
        let files = if process.logs.is_empty() {
            vec![(stdout, Origin::Stdout), (stderr, Origin::Stderr)]
        } else {
            process.logs.iter().map(|path| (path.clone(), Origin::Log)).collect()
        };
        let window_ms = process.error_window.map(config::Span::as_millis);
        self.followed.follow(&process.name, &files, Limits { count: process.error_count, window_ms });
    }

    /// Watches a process that runs.
    pub(super) fn watch(&self, name: &str, pid: u32, pidfd: OwnedFd, stderr: PathBuf) -> Result<(), String> {
        self.processes
            .watch(name, pid, pidfd, stderr)
            .map_err(|err| format!("runs as pid {pid}, but cannot be watched: {err}"))
    }

    /// Ends a declared process.
    pub(super) fn stop(&self, name: &str) -> Result<(), String> {
        stop_process::stop(&self.processes, name, Ending::Stop).map(drop).map_err(|err| chain(&err))
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
