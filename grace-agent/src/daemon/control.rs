//! What the socket can ask: answers from the shared state, and what a person orders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use grace_common::CLASS_NAMES;
use tokio::sync::broadcast;

use super::executor::{Executor, lock};
use super::gate::Gate;
use super::judge::Duties;
use super::{declare, degraded};
use crate::actions::start_process;
use crate::api::control::{Control, ControlError, FiringsQuery, Peer};
use crate::api::view::{
    ConfigView, CostView, DependencyView, DescendantView, EndpointView, ExplainView, FiringView, GoodView,
    Health, LatencyView, PathAnswer, ProbeView, ProcessView, RingView, RiskView, SnapshotView, SourceView,
    StatusView, TaskView, TriggerView, VerifyVerdict, VerifyView,
};
use crate::clock;
use crate::config;
use crate::config::{Config, Process};
use crate::error_chain::chain;
use crate::event::Kind;
use crate::file_state::{ContentKind, FileState};
use crate::firing::{FiringId, State};
use crate::host;
use crate::journal::Journal;
use crate::safe_path::own_name;
use crate::snapshots::{Snapshot, Take};
use crate::sources::ebpf::Probes;
use crate::sources::ebpf::reader::Reader;
use crate::sources::look::look;
use crate::triggers;

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
    pub(super) gpu: Mutex<SourceView>,
    pub(super) journal: Arc<Journal>,
    pub(super) executor: Arc<Executor>,
    pub(super) duties: Duties,
    pub(super) firings: broadcast::Sender<FiringView>,
    pub(super) config: Mutex<Config>,
    pub(super) config_view: Mutex<ConfigView>,
    pub(super) cost: Arc<Mutex<CostView>>,
}

impl Agent {
    fn sources(&self) -> Vec<SourceView> {
        let mut out = self.executor.files.health();
        let specs = lock(&self.executor.specs).len();
        out.push(SourceView {
            name: "processes".into(),
            state: if specs == 0 { Health::Off } else { Health::Ok },
            detail: if specs == 0 {
                "no [[process]] declared".into()
            } else {
                format!("{specs} declared, by pidfd")
            },
        });
        out.push(lock(&self.gpu).clone());
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

    fn take(
        &self,
        path: &Path,
        kind: Option<ContentKind>,
        peer: Peer,
    ) -> Result<(String, Option<Snapshot>, Option<PathBuf>), String> {
        let old = self.executor.store.current_of(path).map_err(|err| chain(&err))?;
        let take = Take {
            kind: kind.or(old.as_ref().map(|s| s.known.kind)).unwrap_or_default(),
            writers: old.as_ref().map(|s| s.known.writers.clone()).unwrap_or_default(),
            reason: format!("snapshot by uid {} (pid {})", peer.uid, peer.pid),
        };
        let taken = self.executor.store.take(path, take).map_err(|err| chain(&err))?;
        let snapshot = taken.snapshot;
        self.executor.own(path, snapshot.known.clone());
        let done = match taken.added {
            false => format!("unchanged since snapshot {}", snapshot.id),
            true => format!("snapshot {} is the known-good state", snapshot.id),
        };
        Ok((done, Some(snapshot), None))
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
        let seen = look(path, Some(&wanted.known));
        if let FileState::Unreadable { why } = &seen {
            return Err(format!("cannot be looked at: {why}"));
        }
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
        let mut delivered = BTreeMap::new();
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
            config: config_view,
        }
    }

    fn firings(&self, query: &FiringsQuery) -> Result<Vec<FiringView>, ControlError> {
        if let Some(name) = &query.trigger
            && !triggers::specs().iter().any(|s| s.name == name)
        {
            return Err(ControlError::Bad(format!(
                "no trigger `{}`: `grace triggers` lists them",
                name.escape_debug()
            )));
        }
        self.journal.firings(query).map_err(|err| Self::failed(&err))
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
        let spec = triggers::specs().into_iter().find(|s| s.name == name).ok_or_else(|| {
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
        })
    }

    fn triggers(&self) -> Vec<TriggerView> {
        lock(&self.duties)
            .iter()
            .map(|duty| TriggerView {
                name: duty.spec.name.to_owned(),
                summary: duty.spec.summary.to_owned(),
                state: if duty.works { Health::Ok } else { Health::Degraded },
                subjects: duty.subjects,
                holds: duty.holds,
            })
            .collect()
    }

    fn snapshot(&self, paths: &[PathBuf], kind: Option<ContentKind>, peer: Peer) -> Vec<PathAnswer> {
        paths
            .iter()
            .map(|given| match own_name(given, Path::new("/")) {
                Ok(path) => {
                    let answer = Self::one(&path, self.take(&path, kind, peer));
                    if let Some(done) = &answer.done {
                        self.journal
                            .note("command", format!("{}: {done}, by uid {}", path.display(), peer.uid));
                    }
                    answer
                }
                Err(err) => Self::one(given, Err(chain(&err))),
            })
            .collect()
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
                if let Err(err) = store.check_object(&snapshot.known.digest) {
                    return VerifyView {
                        path,
                        verdict: VerifyVerdict::DamagedObject,
                        drift: vec![chain(&err)],
                        expected,
                        actual: None,
                    };
                }
                let state = look(&path, Some(&snapshot.known));
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
        self.journal.note("command", format!("process {} declared by uid {}", process.name, peer.uid));
        declare(&self.executor, process);
        Ok(())
    }

    fn remove_process(&self, name: &str, peer: Peer) -> Result<(), ControlError> {
        if lock(&self.config).process.iter().any(|p| p.name == name) {
            return Err(ControlError::Refused(format!(
                "process `{}` stands in the configuration: take it out there and reload",
                name.escape_debug()
            )));
        }
        if lock(&self.executor.specs).remove(name).is_none() {
            return Err(ControlError::NotFound(format!("no process `{}` is declared", name.escape_debug())));
        }
        self.executor.send(Kind::ProcessForgotten { name: name.to_owned() });
        self.journal.note("command", format!("process {name} removed by uid {}", peer.uid));
        let stopped = self.executor.stop(name);
        start_process::forget(name, &self.executor.running);
        stopped.map_err(ControlError::Failed)
    }

    fn tasks(&self) -> Result<Vec<TaskView>, ControlError> {
        self.journal.tasks().map_err(|err| Self::failed(&err))
    }

    fn config(&self) -> Config {
        lock(&self.config).clone()
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

impl Agent {
    /// The name under which `path` is owned: as given, or with its folder resolved. The file itself may be gone.
    fn owned_name(&self, path: &Path) -> PathBuf {
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

fn view(snapshot: Snapshot) -> SnapshotView {
    SnapshotView {
        id: snapshot.id,
        path: snapshot.path,
        current: snapshot.current,
        at: snapshot.at,
        reason: snapshot.reason,
        known: snapshot.known,
    }
}
