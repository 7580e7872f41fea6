//! Carries out orders: the one place that maps the closed enum of actions to the verbs in `actions/`.
//!
//! Runs on blocking threads. What changes the host waits at the gate until the journal holds the decision. Each order
//! ends as an `Outcome` event.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};

use super::canaries::Canaries;
use super::code::Code;
use super::filing::Desk;
use super::gate::Gate;
use super::models::Models;
use crate::action::{Action, Order, Outcome};
use crate::actions::other_names::has_other_links;
use crate::actions::own_cgroup::Cgroups;
use crate::actions::restore_file::{self, Restored};
use crate::actions::start_process;
use crate::clock;
use crate::config::{self, HardLinks, Hook, Process};
use crate::error_chain::chain;
use crate::event::{Event, Kind};
use crate::file_state::{ContentKind, FileId, KnownGood};
use crate::journal::Journal;
use crate::snapshots::{Store, StoreError, Take, Taken};
use crate::sources::files::Files;
use crate::sources::folders::Folder;
use crate::sources::logs::{Limits, Logs, Origin};
use crate::sources::processes::Processes;
use crate::sources::units::Units;
use crate::tasks::Queue;
use crate::weights::hash::Progress;

/// A version that was taken, and what there is to say of it; else why none was.
pub(super) type TakenOrWhy = Result<(Taken, String), String>;

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
    /// Declared processes of which more than one may run, as they were declared.
    pub(super) templates: Mutex<BTreeMap<String, Process>>,
    /// Declared commands by name.
    pub(super) hooks: Mutex<BTreeMap<String, Hook>>,
    /// Held while the number of replicas changes.
    pub(super) scaling: Mutex<()>,
    pub(super) cgroups: Cgroups,
    /// The way to systemd.
    pub(super) units: Units,
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
    /// Watched folders.
    pub(super) folders: Mutex<Vec<Folder>>,
    /// What a restore does to a file with other names.
    pub(super) hard_links: Mutex<HardLinks>,
    /// What is configured of models.
    pub(super) models: Models,
    pub(super) canaries: Arc<Canaries>,
    /// How far hashing for a manifest has come.
    pub(super) hashing: Progress,
    pub(super) tasks: Arc<Queue>,
    /// What of the configuration tasks are filed by, and who is told of them.
    pub(super) desk: Desk,
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
            Action::AcceptFile { path, reason, author } => self.accept(path, reason, author),
            Action::StartProcess { name } => self.start(name),
            Action::ShedLoad { process, step } => self.shed(process, *step),
            Action::GiveBack { process } => self.give_back(process),
            Action::StopProcess { name } => self.stop(name).map(|()| "ended".to_owned()),
            Action::RestartProcess { name, .. } => self.restart(name, order.at),
            Action::Scale { name, to } => self.scale(name, *to, order),
            Action::RunHook { hook, trigger } => self.hook(hook, trigger, order),
            Action::FileTask { title, acceptance } => {
                let firing = match order.firing {
                    Some(id) => self.journal.firing(id).map_err(|err| chain(&err))?.map(|(view, _)| view),
                    None => None,
                };
                let context = firing.as_ref().map(|firing| self.context(firing)).unwrap_or_default();
                let filed = self.tasks.file(firing.as_ref(), title, acceptance, &context);
                self.desk.wake();
                filed.map_err(|err| chain(&err))
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
        let in_place = known.kind == ContentKind::Weights && self.in_place(path, known);
        if judged.is_some()
            && !in_place
            && *lock(&self.hard_links) == HardLinks::Hold
            && has_other_links(path)
        {
            return Err("it has other names (hard links), and `hard_links` is `hold`: a restore would leave them with \
                        what lies there now; put it right by hand, or set `hard_links` to `cut`"
                .into());
        }
        if known.kind == ContentKind::Weights {
            return self.restore_weights(path, known, judged, tag, &|| gate.pass());
        }
        restore_file::restore(&self.store, &self.quarantine, path, known, judged, tag, || gate.pass())
            .map_err(|err| chain(&err))
    }

    /// What the files of the watched folder hold that `path` lies in, and who may write them.
    pub(super) fn folder_of(&self, path: &Path) -> Option<(ContentKind, Vec<String>)> {
        let folders = lock(&self.folders);
        let folder = folders.iter().find(|folder| folder.means(path))?;
        Some((folder.kind, folder.writers.clone()))
    }

    fn accept(&self, path: &Path, reason: &str, author: &str) -> Result<String, String> {
        let old = self.store.current_of(path).map_err(|err| chain(&err))?;
        let old = old.map(|old| (old.known.kind, old.known.writers));
        let (kind, writers) = old.or_else(|| self.folder_of(path)).ok_or("not owned any more")?;
        let take = Take { kind, writers, reason: reason.to_owned(), author: author.to_owned() };
        let snapshot = self.take(path, take)?.0.snapshot;
        self.own(path, snapshot.known);
        Ok(format!("snapshot {} is the known-good state now", snapshot.id))
    }

    /// Keeps the file at `path` as it is; of weights also says what was found, and what it costs.
    fn take(&self, path: &Path, take: Take) -> TakenOrWhy {
        if take.kind != ContentKind::Weights {
            return self
                .store
                .take(path, take)
                .map(|taken| (taken, String::new()))
                .map_err(|err| chain(&err));
        }
        let keep = self.models.of(path).map(|model| model.copy).unwrap_or_default();
        let taken = self.store.take_weights(path, take, keep, &self.hashing);
        taken.map(|(taken, note)| (taken, format!(": {note}"))).map_err(|err| chain(&err))
    }

    /// The same of each of `files`, in the same order: small ones together, weights one by one.
    pub(super) fn take_all(&self, files: Vec<(PathBuf, Take)>) -> Vec<(PathBuf, TakenOrWhy)> {
        let is_small = |take: &Take| take.kind != ContentKind::Weights;
        let small = files.iter().filter(|(_, take)| is_small(take)).cloned().collect();
        let mut small = self.store.take_all(small).into_iter();
        let together = |(path, taken): (PathBuf, Result<Taken, StoreError>)| {
            (path, taken.map(|taken| (taken, String::new())).map_err(|err| chain(&err)))
        };
        files
            .into_iter()
            .filter_map(|(path, take)| {
                if is_small(&take) {
                    return small.next().map(together);
                }
                let taken = self.take(&path, take);
                Some((path, taken))
            })
            .collect()
    }

    /// Tells engine and source that `known` is the state to keep at `path`.
    pub(super) fn own(&self, path: &Path, known: KnownGood) {
        self.send(Kind::FileKnown { path: path.to_owned(), known: known.clone() });
        self.files.own(path, known);
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
