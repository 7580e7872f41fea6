//! What the socket can ask: answers from the shared state, and what a person orders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use grace_common::CLASS_NAMES;
use tokio::sync::broadcast;

use super::boot_scan::BootScan;
use super::executor::{Executor, lock};
use super::gate::Gate;
use super::gauges::Latest;
use super::judge::{Duties, Judged, Notes};
use super::scrub::Scrub;
use super::{declare, degraded, models, pauses};
use crate::actions::{shed_load, start_process};
use crate::api::control::{Control, ControlError, FiringsQuery, Peer};
use crate::api::gpu::{GpusView, PressureView};
use crate::api::store::{DiffView, StoreView, UndoView};
use crate::api::tasks::{ClaimRequest, OutboxView, TasksQuery, UnfiledView};
use crate::api::view::{
    ClaimedView, ConfigView, CostView, DependencyView, DescendantView, EndpointView, ExplainView, FiringView,
    GoodView, Health, IncidentView, LatencyView, PathAnswer, PauseView, ProbeView, ProcessView,
    RecordsAnswer, RefusedView, RingView, RiskView, ScanItem, ScanState, ScanView, SnapshotView, SourceView,
    StatusView, TaskView, TriggerView, VerifyVerdict, VerifyView,
};
use crate::clock::{self, Stopwatch};
use crate::config;
use crate::config::{Config, Process};
use crate::engine;
use crate::error_chain::chain;
use crate::event::Kind;
use crate::file_state::{ContentKind, FileState, KnownGood};
use crate::firing::{FiringId, Route, Scope, State, Subject};
use crate::host;
use crate::journal::Journal;
use crate::reported::Reported;
use crate::safe_path::own_name;
use crate::snapshots::objects::ObjectError;
use crate::snapshots::{Snapshot, Take, Taken};
use crate::sources::ebpf::Probes;
use crate::sources::ebpf::reader::Reader;
use crate::sources::gpu::Gpus;
use crate::sources::journald::Journald;
use crate::sources::kmsg::Kmsg;
use crate::sources::look::look;
use crate::sources::records::{self, Access, Records, Refused};
use crate::sources::round::Rounds;
use crate::sources::weights::look_whole;
use crate::sources::weights_scrub::WeightsScrub;
use crate::tasks::{Change, QueueError};

/// The agent as the socket sees it.
pub(super) struct Agent {
    pub(super) since: String,
    pub(super) ready_us: u64,
    pub(super) host: BTreeMap<String, String>,
    pub(super) probes: Option<Arc<Probes>>,
    /// Where there are no probes: which ones, and why not.
    pub(super) probe_views: Vec<ProbeView>,
    pub(super) reader: Option<Arc<Reader>>,
    pub(super) latency: Arc<Mutex<LatencyView>>,
    /// Settings of the kernel side in force, shared with upkeep.
    pub(super) probe_settings: Arc<Mutex<config::Probes>>,
    /// Quiet times in force, shared with upkeep.
    pub(super) quiet: Arc<Mutex<Vec<config::Quiet>>>,
    pub(super) gpus: Arc<Gpus>,
    /// The host's pressure as it was last read.
    pub(super) latest: Arc<Latest>,
    pub(super) journal: Arc<Journal>,
    pub(super) executor: Arc<Executor>,
    pub(super) kmsg: Arc<Kmsg>,
    pub(super) journald: Arc<Journald>,
    pub(super) judged: Judged,
    /// Asks upkeep for a look.
    pub(super) rounds: Rounds,
    /// Why accept queues cannot be seen.
    pub(super) blind: Arc<Mutex<Option<String>>>,
    pub(super) duties: Duties,
    pub(super) notes: Notes,
    pub(super) firings: broadcast::Sender<FiringView>,
    pub(super) config: Mutex<Config>,
    pub(super) config_view: Mutex<ConfigView>,
    pub(super) cost: Arc<Mutex<CostView>>,
    pub(super) records: Records,
    pub(super) boot_scan: Arc<BootScan>,
    pub(super) scrub: Arc<Scrub>,
    pub(super) weights_scrub: Arc<WeightsScrub>,
}

impl Agent {
    fn sources(&self) -> Vec<SourceView> {
        let mut out = self.executor.files.health();
        if let Some(told) = models::hashing(&self.executor.hashing)
            && let Some(view) = out.iter_mut().find(|view| view.name == "weights")
        {
            view.detail = format!("{}; {told}", view.detail);
        }
        out.push(self.weights_scrub.health());
        out.push(self.scrub.health());
        let specs = lock(&self.executor.specs).len();
        out.push(SourceView {
            name: "processes".into(),
            state: if specs == 0 { Health::Off } else { Health::Ok },
            detail: if specs == 0 {
                "no [[process]] declared".into()
            } else {
                let groups = self.executor.cgroups.describe();
                let groups = groups.unwrap_or_else(|why| format!("no cgroups of their own ({why})"));
                format!("{specs} declared, by pidfd; {groups}")
            },
        });
        let units = lock(&self.executor.specs).values().filter(|p| p.unit.is_some()).count();
        if units > 0 {
            let trouble = self.executor.units.trouble();
            out.push(SourceView {
                name: "systemd".into(),
                state: if trouble.is_some() { Health::Degraded } else { Health::Ok },
                detail: trouble.unwrap_or_else(|| format!("{units} units, over D-Bus")),
            });
        }
        out.push(match (lock(&self.blind).clone(), specs) {
            (Some(why), _) => SourceView {
                name: "listeners".into(),
                state: Health::Degraded,
                detail: format!("accept queues cannot be seen: {why}"),
            },
            (None, 0) => SourceView {
                name: "listeners".into(),
                state: Health::Off,
                detail: "no [[process]] declared".into(),
            },
            (None, _) => SourceView {
                name: "listeners".into(),
                state: Health::Ok,
                detail: "accept queues of declared processes, by sock_diag".into(),
            },
        });
        out.push(self.executor.followed.health());
        out.push(self.kmsg.health());
        out.push(self.journald.health());
        out.push(self.gpus.health());
        out.push(self.records.health());
        let psi: Vec<String> = ["cpu", "memory", "io"]
            .iter()
            .filter_map(|r| host::pressure(r).map(|percent| format!("{r} {percent:.1} %")))
            .collect();
        out.push(SourceView {
            name: "pressure".into(),
            state: if psi.is_empty() { Health::Unsupported } else { Health::Ok },
            detail: if psi.is_empty() {
                "this kernel has no /proc/pressure (psi=1)".into()
            } else {
                format!("waiting over 10 s: {}", psi.join(", "))
            },
        });
        out.extend(self.executor.code.health());
        out
    }

    fn failed(err: &dyn std::error::Error) -> ControlError {
        ControlError::Failed(chain(err))
    }

    fn one(path: &Path, result: Result<(String, Option<Snapshot>, Option<PathBuf>), String>) -> PathAnswer {
        match result {
            Ok((done, snapshot, quarantined)) => PathAnswer {
                path: path.to_owned(),
                done: Some(done),
                error: None,
                snapshot: snapshot.map(view),
                quarantined,
            },
            Err(why) => PathAnswer {
                path: path.to_owned(),
                done: None,
                error: Some(why),
                snapshot: None,
                quarantined: None,
            },
        }
    }

    /// How the version of `path` is taken that a person asks for.
    fn taking(&self, path: &Path, kind: Option<ContentKind>, peer: Peer) -> Result<Take, String> {
        let old = self.executor.store.current_of(path).map_err(|err| chain(&err))?;
        let (as_before, writers) = match old.map(|s| (s.known.kind, s.known.writers)) {
            Some((kind, writers)) => (Some(kind), writers),
            None => {
                self.executor.folder_of(path).map(|(kind, writers)| (Some(kind), writers)).unwrap_or_default()
            }
        };
        Ok(Take {
            kind: kind.or(as_before).unwrap_or_else(|| ContentKind::by_name(path)),
            writers,
            reason: format!("snapshot by uid {} (pid {})", peer.uid, peer.pid),
            author: format!("uid {}", peer.uid),
        })
    }

    /// Owns what was taken; `note` is what there is to say of it.
    fn taken(&self, path: &Path, taken: Taken, note: &str) -> (String, Option<Snapshot>, Option<PathBuf>) {
        let snapshot = taken.snapshot;
        self.executor.own(path, snapshot.known.clone());
        let done = match taken.added {
            false => format!("unchanged since snapshot {}{note}", snapshot.id),
            true => format!("snapshot {} is the known-good state{note}", snapshot.id),
        };
        (done, Some(snapshot), None)
    }

    fn put_back(
        &self,
        path: &Path,
        at: Option<u64>,
    ) -> Result<(String, Option<Snapshot>, Option<PathBuf>), String> {
        let store = &self.executor.store;
        let current = store
            .current_of(path)
            .map_err(|err| chain(&err))?
            .ok_or("not owned: `grace snapshot` it first")?;
        let wanted = match at {
            None => current,
            Some(id) => store
                .get(id)
                .map_err(|err| chain(&err))?
                .filter(|s| s.path == path)
                .ok_or_else(|| format!("it has no snapshot {id}: `grace snapshots` lists them"))?,
        };
        let seen = self.look(path, &wanted.known);
        if let FileState::Unreadable { why } = &seen {
            return Err(format!("cannot be looked at: {why}"));
        }
        let _rest = self.executor.files.rest(path);
        // First what shall be, then the file: a crash between the two restores it at the next start.
        if !wanted.current {
            store.make_current(wanted.id).map_err(|err| chain(&err))?;
        }
        let quarantined = if wanted.known.drift(&seen).is_empty() {
            None
        } else {
            // The watcher may be at it too: then the object that was judged is gone, and one of the two wins.
            let tag = format!("command-{}", wanted.id);
            self.executor.restore(path, &wanted.known, seen.id(), &tag, &Gate::opened())?.quarantined
        };
        self.executor.own(path, wanted.known.clone());
        let done = format!("snapshot {} is in place and is the known-good state", wanted.id);
        Ok((done, Some(Snapshot { current: true, ..wanted }), quarantined))
    }
}

impl Control for Agent {
    fn status(&self) -> StatusView {
        let probes = self.probes.as_ref().map_or_else(|| self.probe_views.clone(), |p| p.views());
        let sources = self.sources();
        let mut why = degraded(&probes, &sources);
        why.extend(self.journal.trouble().map(|t| format!("journal: {t}")));
        let config_view = lock(&self.config_view).clone();
        why.extend(config_view.refused.as_ref().map(|r| format!("config: {r}")));
        let triggers = self.triggers();
        why.extend(
            triggers
                .iter()
                .filter(|t| t.state != Health::Ok)
                .map(|t| format!("trigger {}: disabled after it failed", t.name)),
        );
        let mut lost: BTreeMap<String, u64> =
            BTreeMap::from([("fanotify".to_owned(), 0), ("inotify".to_owned(), 0)]);
        lost.extend(self.executor.files.lost());
        lost.extend(self.executor.followed.lost());
        lost.insert("kmsg".to_owned(), self.kmsg.lost());
        lost.insert("journald".to_owned(), self.journald.lost());
        lost.insert(records::CLASS.to_owned(), self.records.lost());
        let mut delivered = BTreeMap::from([(records::CLASS.to_owned(), self.records.view().records)]);
        let mut ring = Vec::new();
        if let (Some(probes), Some(reader)) = (&self.probes, &self.reader) {
            let (lost_now, arrived) = (probes.lost_now(), reader.delivered());
            for (class, (account, read)) in reader.accounts().into_iter().enumerate() {
                let name = CLASS_NAMES[class];
                lost.insert(name.to_owned(), lost_now[class]);
                delivered.insert(name.to_owned(), arrived[class]);
                let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                ring.push(RingView {
                    class: name.to_owned(),
                    produced: account.produced,
                    delivered: read,
                    lost: account.causes().into_iter().map(|(cause, n)| (cause.to_owned(), n)).collect(),
                    in_flight: read
                        .map(|read| signed(account.produced) - signed(account.lost()) - signed(read)),
                });
            }
            lost.insert("undecoded".to_owned(), reader.undecoded());
        }
        let executor = &self.executor;
        let names: Vec<String> = lock(&executor.specs).keys().cloned().collect();
        let processes = names
            .into_iter()
            .map(|name| {
                let running = executor.processes.running(&name);
                let more = running.map(|r| executor.processes.view(r.0)).unwrap_or_default();
                ProcessView {
                    descendants: more
                        .descendants
                        .into_iter()
                        .take(32)
                        .map(|d| DescendantView { pid: d.pid, comm: d.comm, since: clock::rfc3339(d.since) })
                        .collect(),
                    slow_calls: more.slow_calls,
                    syscalls: more.calls,
                    pid: running.map(|r| r.0),
                    since: running.map(|r| clock::rfc3339(r.1)),
                    shed: shed_load::taken(&executor.running, &name).and_then(|taken| taken.step()),
                    restarts: lock(&executor.starts).get(&name).map_or(0, |n| n.saturating_sub(1)),
                    name,
                }
            })
            .collect();
        let duties = lock(&self.duties);
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: self.since.clone(),
            ready_us: self.ready_us,
            mode: lock(&self.config).mode,
            degraded: why,
            host: self.host.clone(),
            probes,
            sources,
            files: executor.store.current().map_or(0, |owned| owned.len()),
            processes,
            syscalls: self.probes.as_ref().map(|p| p.syscalls()).unwrap_or_default(),
            latency: *lock(&self.latency),
            ring,
            unpinned: self.probes.as_ref().and_then(|p| p.unpinned().map(str::to_owned)),
            holds: duties.iter().map(|d| d.holds).sum(),
            triggers,
            lost,
            delivered,
            cost: CostView { rss_bytes: host::rss_bytes(), ..*lock(&self.cost) },
            pauses: pauses::list(&self.executor).unwrap_or_default(),
            config: config_view,
            records: self.records.view(),
            scan: self.boot_scan.summary(),
        }
    }

    fn firings(&self, query: &FiringsQuery) -> Result<Vec<FiringView>, ControlError> {
        if let Some(name) = &query.trigger
            && !engine::specs().iter().any(|s| s.name == name)
        {
            return Err(ControlError::Bad(format!(
                "no trigger `{}`: `grace triggers` lists them",
                name.escape_debug()
            )));
        }
        self.journal.firings(query).map_err(|err| Self::failed(&err))
    }

    fn gpus(&self) -> Result<GpusView, ControlError> {
        self.show_gpus()
    }

    fn pressure(&self) -> Result<PressureView, ControlError> {
        self.show_pressure()
    }

    fn follow(&self) -> broadcast::Receiver<FiringView> {
        self.firings.subscribe()
    }

    fn explain(&self, what: &str) -> Result<ExplainView, ControlError> {
        let firing = match FiringId::try_from(what.to_owned()) {
            Ok(id) => Some(self.journal.firing(id).map_err(|err| Self::failed(&err))?.ok_or_else(|| {
                ControlError::NotFound(format!("no firing {id}: `grace firings` lists them"))
            })?),
            Err(_) => None,
        };
        let name = firing.as_ref().map_or(what, |(view, _)| view.trigger.as_str());
        let spec = engine::specs().into_iter().find(|s| s.name == name).ok_or_else(|| {
            ControlError::NotFound(format!(
                "`{}` is neither a firing (f-12) nor a trigger: `grace firings` and `grace triggers` list them",
                what.escape_debug()
            ))
        })?;
        let settings = serde_json::to_value(&lock(&self.config).triggers)
            .ok()
            .and_then(|all| toml::to_string(all.get(spec.name)?).ok())
            .unwrap_or_default();
        let holds = if firing.is_some() {
            Vec::new()
        } else {
            let query = FiringsQuery { trigger: Some(spec.name.to_owned()), ..FiringsQuery::default() };
            let mut open = self.firings(&query)?;
            open.retain(|f| f.state == State::Holds);
            open
        };
        let (firing, journal) = firing.map_or((None, Vec::new()), |(view, journal)| (Some(view), journal));
        Ok(ExplainView {
            trigger: spec.name.to_owned(),
            help: format!("{}\nSees: {}.\nRemedy: {}.", spec.help, spec.needs, spec.remedy),
            settings,
            firing,
            journal,
            holds,
            notes: lock(&self.notes).get(spec.name).cloned().unwrap_or_default(),
        })
    }

    fn triggers(&self) -> Vec<TriggerView> {
        let notes = lock(&self.notes).clone();
        lock(&self.duties)
            .iter()
            .map(|duty| TriggerView {
                notes: notes.get(duty.spec.name).cloned().unwrap_or_default(),
                name: duty.spec.name.to_owned(),
                summary: duty.spec.summary.to_owned(),
                state: if duty.works { Health::Ok } else { Health::Degraded },
                subjects: duty.subjects,
                holds: duty.holds,
                route: duty.spec.route,
                remedy: duty.spec.remedy.to_owned(),
            })
            .collect()
    }

    fn snapshot(&self, paths: &[PathBuf], kind: Option<ContentKind>, peer: Peer) -> Vec<PathAnswer> {
        // By its place, so that the answers come in the order of the question.
        let mut answers: BTreeMap<usize, PathAnswer> = BTreeMap::new();
        let (mut wanted, mut places) = (Vec::new(), Vec::new());
        for (place, given) in paths.iter().enumerate() {
            let take = own_name(given, Path::new("/")).map_err(|err| chain(&err));
            match take.and_then(|path| self.taking(&path, kind, peer).map(|take| (path, take))) {
                Ok(one) => {
                    wanted.push(one);
                    places.push(place);
                }
                Err(why) => drop(answers.insert(place, Self::one(given, Err(why)))),
            }
        }
        for (place, (path, taken)) in places.into_iter().zip(self.executor.take_all(wanted)) {
            let answer = Self::one(&path, taken.map(|(taken, note)| self.taken(&path, taken, &note)));
            if let Some(done) = &answer.done {
                self.journal.note("command", format!("{}: {done}, by uid {}", path.display(), peer.uid));
            }
            answers.insert(place, answer);
        }
        // Who was told that a file is owned relies on it: whoever changes it from now on is seen.
        if !self.executor.files.caught_up(WATCHED_WITHIN) {
            for done in answers.values_mut().filter_map(|answer| answer.done.as_mut()) {
                done.push_str(" (not watched yet: the watcher is busy; until then a change is noticed, but not who made it)");
            }
        }
        answers.into_values().collect()
    }

    fn snapshots(&self) -> Result<Vec<SnapshotView>, ControlError> {
        Ok(self.executor.store.all().map_err(|err| Self::failed(&err))?.into_iter().map(view).collect())
    }

    fn verify(&self, paths: &[PathBuf]) -> Vec<VerifyView> {
        let store = &self.executor.store;
        let wanted: Vec<PathBuf> = if paths.is_empty() {
            store.current().unwrap_or_default().into_iter().map(|s| s.path).collect()
        } else {
            paths.iter().map(|p| self.owned_name(p)).collect()
        };
        wanted
            .into_iter()
            .map(|path| {
                let Ok(Some(snapshot)) = store.current_of(&path) else {
                    return VerifyView {
                        path,
                        verdict: VerifyVerdict::NotOwned,
                        drift: Vec::new(),
                        expected: None,
                        actual: None,
                    };
                };
                let expected = Some(snapshot.known.digest.clone());
                let unkept = |err: &ObjectError| {
                    snapshot.known.kind == ContentKind::Weights && matches!(err, ObjectError::Missing { .. })
                };
                if let Err(err) = store.check_object(&snapshot.known.digest)
                    && !unkept(&err)
                {
                    return VerifyView {
                        path,
                        verdict: VerifyVerdict::DamagedObject,
                        drift: vec![chain(&err)],
                        expected,
                        actual: None,
                    };
                }
                let state = self.look(&path, &snapshot.known);
                let drift = snapshot.known.drift(&state);
                let (verdict, drift) = match &state {
                    FileState::Missing => (VerifyVerdict::Missing, drift),
                    FileState::Unreadable { why } => (VerifyVerdict::Unreadable, vec![why.clone()]),
                    _ if drift.is_empty() => (VerifyVerdict::Ok, drift),
                    _ => (VerifyVerdict::Drift, drift),
                };
                // What was seen here the watcher shall see too.
                self.executor.files.look(&path);
                VerifyView { path, verdict, drift, expected, actual: state.digest().cloned() }
            })
            .collect()
    }

    fn restore(&self, path: &Path, at: Option<u64>, peer: Peer) -> PathAnswer {
        let path = self.owned_name(path);
        let answer = Self::one(&path, self.put_back(&path, at));
        let result = answer.done.as_ref().or(answer.error.as_ref()).cloned().unwrap_or_default();
        self.journal.note("command", format!("restore {} by uid {}: {result}", path.display(), peer.uid));
        answer
    }

    fn diff(&self, path: &Path, at: Option<u64>) -> Result<DiffView, ControlError> {
        self.difference(path, at)
    }

    fn undo(&self, incident: FiringId, peer: Peer) -> Result<Vec<UndoView>, ControlError> {
        self.take_back(incident, peer)
    }

    fn check_store(&self) -> Result<StoreView, ControlError> {
        self.read_store()
    }

    fn forget(&self, path: &Path, peer: Peer) -> PathAnswer {
        let path = self.owned_name(path);
        let result = match self.executor.store.forget(&path) {
            Ok(0) => Err("not owned".to_owned()),
            Ok(n) => {
                self.executor.files.forget(&path);
                self.executor.send(Kind::FileForgotten { path: path.clone() });
                self.journal.note(
                    "command",
                    format!("forget {} by uid {}: {n} snapshots dropped", path.display(), peer.uid),
                );
                Ok((format!("not owned any more, {n} snapshots dropped"), None, None))
            }
            Err(err) => Err(chain(&err)),
        };
        Self::one(&path, result)
    }

    fn add_process(&self, process: Process, peer: Peer) -> Result<(), ControlError> {
        if let Some(wrong) = process.validate().into_iter().next() {
            return Err(ControlError::Bad(wrong.message));
        }
        if lock(&self.executor.specs).contains_key(&process.name) {
            return Err(ControlError::Bad(format!("process `{}` is declared already", process.name)));
        }
        if let Some(name) = process.after.iter().find(|name| !lock(&self.executor.specs).contains_key(*name))
        {
            let name = name.escape_debug();
            return Err(ControlError::Bad(format!("after: no process `{name}` is declared")));
        }
        self.journal.note("command", format!("process {} declared by uid {}", process.name, peer.uid));
        declare(&self.executor, process);
        self.admit_senders();
        Ok(())
    }

    fn remove_process(&self, name: &str, peer: Peer) -> Result<(), ControlError> {
        if lock(&self.config).process.iter().any(|p| p.name == name) {
            return Err(ControlError::Refused(format!(
                "process `{}` stands in the configuration: take it out there and reload",
                name.escape_debug()
            )));
        }
        if lock(&self.executor.templates).remove(name).is_none() {
            return Err(ControlError::NotFound(format!("no process `{}` is declared", name.escape_debug())));
        }
        self.journal.note("command", format!("process {name} removed by uid {}", peer.uid));
        self.executor.forget_scale(name);
        let mut stopped = Ok(());
        for name in self.executor.replicas_of(name) {
            stopped = stopped.and(self.executor.disown(&name, true));
        }
        self.admit_senders();
        stopped.map_err(ControlError::Failed)
    }

    fn incidents(&self, query: &FiringsQuery) -> Result<Vec<IncidentView>, ControlError> {
        let firings = self.firings(query)?;
        Ok(by_incident(firings))
    }

    fn pause(&self, scope: Scope, seconds: u64, why: &str, peer: Peer) -> Result<PauseView, ControlError> {
        pauses::pause(&self.executor, scope, seconds, why, peer)
    }

    fn resume(&self, scope: &Scope, peer: Peer) -> Result<(), ControlError> {
        pauses::resume(&self.executor, scope, peer)
    }

    fn pauses(&self) -> Result<Vec<PauseView>, ControlError> {
        pauses::list(&self.executor)
    }

    fn tasks(&self, query: &TasksQuery) -> Result<Vec<TaskView>, ControlError> {
        self.executor.tasks.list(query).map_err(refused)
    }

    fn refused_tasks(&self) -> Result<Vec<UnfiledView>, ControlError> {
        self.executor.tasks.refused().map_err(refused)
    }

    fn outbox(&self, dead: bool) -> Result<Vec<OutboxView>, ControlError> {
        self.executor.tasks.outbox(dead).map_err(refused)
    }

    fn retry_outbox(&self, seq: Option<i64>) -> Result<u64, ControlError> {
        self.executor.tasks.retry(seq).map_err(refused)
    }

    fn task(&self, id: &str) -> Result<TaskView, ControlError> {
        self.executor.tasks.get(id).map_err(refused)
    }

    fn claim_task(&self, request: &ClaimRequest, peer: Peer) -> Result<ClaimedView, ControlError> {
        let ClaimRequest { id, agent, lease_s } = request;
        let lease = lease_s.map(Duration::from_secs);
        let (token, task) = self.executor.tasks.claim(id.as_deref(), agent, lease).map_err(refused)?;
        self.journal.note("command", format!("{} claimed by uid {}", task.id, peer.uid));
        Ok(ClaimedView { token, task })
    }

    fn change_task(&self, id: &str, change: Change, peer: Peer) -> Result<TaskView, ControlError> {
        self.executor.tasks.update(id, change, &format!("uid {}", peer.uid)).map_err(refused)
    }

    fn config(&self) -> Config {
        lock(&self.config).clone()
    }

    fn report(&self, records: Vec<Result<Reported, String>>, peer: Peer) -> RecordsAnswer {
        let mut answer = RecordsAnswer::default();
        let unreadable = records.iter().filter(|record| record.is_err()).count();
        self.records.refuse(Refused::Json, unreadable);
        for (index, record) in records.into_iter().enumerate() {
            let taken = record.and_then(|record| {
                self.records.report(record, peer.pid, peer.uid).map_err(|why| why.to_string())
            });
            match taken {
                Ok(()) => answer.accepted += 1,
                Err(reason) => answer.refused.push(RefusedView { index, reason }),
            }
        }
        answer
    }

    fn scan(&self, peer: Peer) -> Result<ScanView, ControlError> {
        self.journal.note("command", format!("scan by uid {}", peer.uid));
        let began = clock::wall_rfc3339();
        let drifts: Vec<PathBuf> = self
            .verify(&[])
            .into_iter()
            .filter(|view| matches!(view.verdict, VerifyVerdict::Drift | VerifyVerdict::Missing))
            .map(|view| view.path)
            .collect();
        self.executor.processes.check_progress();
        let upkeep = self.rounds.ask();
        let mut not_done = self.executor.code.look(LOOKS);
        if !upkeep.wait(LOOKS) {
            not_done
                .push("pressure, listeners: the look has not ended yet; what it sees will fire".to_owned());
        }
        let broken = self.boot_scan.look_again();
        not_done.extend(self.settle().err());
        // What was seen is on its way to the engine: told when the firings say the same.
        let clock = Stopwatch::start();
        let fired = loop {
            let mut firings =
                self.firings(&FiringsQuery { limit: Some(10_000), ..FiringsQuery::default() })?;
            firings.retain(|f| f.state == State::Holds || f.at >= began);
            let of = |trigger: &str, path: &Path| {
                firings
                    .iter()
                    .rev()
                    .find(|f| f.trigger == trigger && matches!(&f.subject, Subject::File(p) if p == path))
            };
            let settled = drifts.iter().all(|path| of("config_drift", path).is_some())
                && broken.iter().all(|(path, broken)| {
                    of("syntax", path).is_some_and(|f| f.state == State::Holds) == *broken
                });
            if settled || clock.elapsed() > SETTLE {
                break firings;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let (healing, coding): (Vec<_>, Vec<_>) = fired
            .iter()
            // A file that parses again is no finding.
            .filter(|f| f.trigger != "syntax" || f.state == State::Holds)
            .partition(|f| f.route == Route::SelfHealing);
        let items = |of: Vec<&FiringView>| of.into_iter().map(ScanItem::of_firing).collect::<Vec<_>>();
        let (self_healing, coding_agent) = (items(healing), items(coding));
        Ok(ScanView {
            found: self_healing.len() + coding_agent.len(),
            self_healing,
            coding_agent,
            state: ScanState::Done,
            at: Some(clock::wall_rfc3339()),
            triggers: lock(&self.duties).iter().filter(|d| d.works).map(|d| d.spec.name.to_owned()).collect(),
            syntax: None,
            not_done,
        })
    }

    fn scanned(&self) -> ScanView {
        self.boot_scan.view()
    }

    fn endpoints(&self) -> Result<Vec<EndpointView>, ControlError> {
        Ok(self.executor.code.endpoint_views())
    }

    fn accept_endpoint(&self, name: &str, peer: Peer) -> Result<EndpointView, ControlError> {
        self.executor.code.accept_endpoint(name, peer)
    }

    fn mark_good(&self, repos: &[PathBuf], force: bool, peer: Peer) -> Result<Vec<GoodView>, ControlError> {
        self.executor.code.mark_good(repos, force, peer)
    }

    fn risk(&self, path: Option<&Path>) -> Result<Vec<RiskView>, ControlError> {
        self.executor.code.risk(path)
    }

    fn dependencies(&self, environments: &[String]) -> Result<Vec<DependencyView>, ControlError> {
        self.executor.code.dependencies(environments)
    }

    fn snapshot_dependencies(
        &self,
        environments: &[String],
        peer: Peer,
    ) -> Result<Vec<DependencyView>, ControlError> {
        self.executor.code.snapshot_dependencies(environments, peer)
    }
}

/// How long a scan waits for the engine to judge what was seen.
const SETTLE: Duration = Duration::from_secs(5);

/// How long a scan waits for the sources: for an endpoint that does not answer, a large repo that is read first.
const LOOKS: Duration = Duration::from_secs(20);

/// So long a snapshot's answer waits for the file to be watched. Enough for the first look at tens of thousands of files;
/// a caller who gave up earlier loses nothing.
const WATCHED_WITHIN: Duration = Duration::from_secs(10);

impl Agent {
    /// Looks at an owned file, all of it.
    fn look(&self, path: &Path, known: &KnownGood) -> FileState {
        match known.kind {
            ContentKind::Weights => look_whole(self.executor.store.manifests(), path, known),
            ContentKind::Config | ContentKind::Secret => look(path, Some(known)),
        }
    }

    /// Waits until what was told to the engine so far is judged and durable.
    fn settle(&self) -> Result<(), String> {
        let at = clock::boottime().0;
        self.executor.send(Kind::Tick);
        let clock = Stopwatch::start();
        while self.judged.load(Ordering::Acquire) < at {
            if clock.elapsed() > SETTLE {
                return Err("the engine is behind: what it has not judged yet is not in this list".to_owned());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let (done, durable) = std::sync::mpsc::sync_channel(1);
        // Nobody may wait for it any more.
        self.journal.append(Vec::new(), Some(Box::new(move |result| drop(done.try_send(result)))));
        match durable.recv_timeout(SETTLE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(format!("the journal cannot be written: {why}")),
            Err(_) => Err("the journal is behind: the newest firings may not be in this list".to_owned()),
        }
    }

    /// Lets those send records whom the configuration names, and those whom declared processes run as.
    pub(super) fn admit_senders(&self) {
        let users: Vec<String> = lock(&self.executor.specs).values().filter_map(|p| p.user.clone()).collect();
        let settings = lock(&self.config).records.clone();
        let access = Access {
            // Checked when it was read.
            mode: settings.bits().unwrap_or(0o600),
            group: settings.group,
            users: users
                .iter()
                // One that does not exist cannot run a process either, which is said there.
                .filter_map(|user| start_process::user_ids(user).ok())
                .map(|(uid, _)| uid)
                .collect(),
        };
        self.records.open_to(&access);
    }

    /// The name under which `path` is owned: as given, or with its folder resolved. The file itself may be gone.
    pub(super) fn owned_name(&self, path: &Path) -> PathBuf {
        if matches!(self.executor.store.current_of(path), Ok(Some(_))) {
            return path.to_owned();
        }
        let resolved = path.parent().and_then(|folder| folder.canonicalize().ok());
        match (resolved, path.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        }
    }
}

/// Firings with what follows from them, by the first of them; one whose cause is not among them stands alone.
fn by_incident(firings: Vec<FiringView>) -> Vec<IncidentView> {
    let causes: BTreeMap<FiringId, Option<FiringId>> = firings.iter().map(|f| (f.id, f.cause)).collect();
    let root = |id: FiringId| {
        let mut root = id;
        // A chain is no longer than there are firings, whatever the database says.
        for _ in 0..causes.len() {
            match causes.get(&root).copied().flatten().filter(|cause| causes.contains_key(cause)) {
                Some(cause) => root = cause,
                None => break,
            }
        }
        root
    };
    let mut groups: BTreeMap<FiringId, Vec<FiringView>> = BTreeMap::new();
    for firing in firings {
        groups.entry(root(firing.id)).or_default().push(firing);
    }
    let incident = |(id, mut firings): (FiringId, Vec<FiringView>)| {
        firings.sort_by_key(|f| (f.id != id, f.id));
        let first = firings.first()?;
        let holds = firings.iter().any(|f| f.state == State::Holds);
        Some(IncidentView {
            id,
            state: if holds { State::Holds } else { first.state },
            since: firings.iter().map(|f| f.since.clone()).min().unwrap_or_default(),
            cleared: if holds { None } else { firings.iter().filter_map(|f| f.cleared.clone()).max() },
            again: first.again,
            summary: first.summary.clone(),
            firings,
        })
    };
    groups.into_iter().filter_map(incident).collect()
}

/// Why the queue of tasks did not do something, for whoever asked.
fn refused(err: QueueError) -> ControlError {
    let why = chain(&err);
    match err {
        QueueError::NotThere(_) => ControlError::NotFound(why),
        QueueError::State { .. } | QueueError::TooMuch(_) => ControlError::Bad(why),
        QueueError::Token(_) => ControlError::Refused(why),
        QueueError::Database { .. } => ControlError::Failed(why),
    }
}

fn view(snapshot: Snapshot) -> SnapshotView {
    SnapshotView {
        id: snapshot.id,
        path: snapshot.path,
        current: snapshot.current,
        at: snapshot.at,
        reason: snapshot.reason,
        author: snapshot.author,
        known: snapshot.known,
    }
}
