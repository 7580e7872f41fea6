//! Joins the sources about code (answers, packages, repos) with what is known of them, and answers for them at the socket.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::executor::lock;
use crate::api::control::{ControlError, Peer};
use crate::api::view::{DependencyView, EndpointView, GoodView, RiskView, SourceView};
use crate::clock::{self, Stopwatch};
use crate::code_facts::KnownAnswers;
use crate::config::Config;
use crate::error_chain::chain;
use crate::event::{Event, Kind};
use crate::journal::Journal;
use crate::known::{self, Known};
use crate::shape::Shape;
use crate::sources::dependencies::{Dependencies, Snapshot, of_process};
use crate::sources::endpoints::Endpoints;
use crate::sources::history::Risks;
use crate::sources::repos::{self, Repos};

/// Files that are not as committed, named in an answer.
const MAX_DIRTY: usize = 50;

/// How often a scan asks an endpoint, at most.
const MAX_ASKS: u32 = 5;

/// The sources and what is known.
pub(super) struct Code {
    pub(super) known: Arc<Known>,
    journal: Arc<Journal>,
    events: SyncSender<Event>,
    endpoints: Endpoints,
    repos: Repos,
    dependencies: Dependencies,
    risks: Risks,
    /// Folders of the repos that are declared.
    watched: Mutex<BTreeSet<PathBuf>>,
    /// Answers in a row that a firing takes, the most of all endpoints.
    confirm: AtomicU32,
    /// Names of the endpoints that the engine was told of.
    declared: Mutex<BTreeSet<String>>,
}

impl Code {
    /// Starts the sources' threads. They do nothing until [`Code::set`].
    pub(super) fn start(
        known: Arc<Known>,
        journal: Arc<Journal>,
        events: SyncSender<Event>,
    ) -> std::io::Result<Self> {
        let endpoints = Endpoints::start(events.clone())?;
        let repos = Repos::start(events.clone())?;
        let snapshots = Arc::clone(&known);
        let keep = move |name: &str, snapshot: &Snapshot| {
            snapshots.put(known::PACKAGES, name, snapshot).map_err(|err| chain(&err))
        };
        let dependencies = Dependencies::start(events.clone(), Box::new(keep))?;
        let risks = Risks::start(events.clone())?;
        Ok(Self {
            known,
            journal,
            events,
            endpoints,
            repos,
            dependencies,
            risks,
            watched: Mutex::default(),
            confirm: AtomicU32::new(1),
            declared: Mutex::default(),
        })
    }

    /// Watches what `config` says from now on.
    pub(super) fn set(&self, config: &Config, before: Option<&Config>) {
        self.set_endpoints(config, before);
        self.set_repos(config);
        self.set_dependencies(config);
    }

    fn set_dependencies(&self, config: &Config) {
        let settings = &config.triggers.dependency_regression;
        let of_processes = config.process.iter().filter(|_| settings.processes).flat_map(of_process);
        let environments = config.environment.iter().cloned().chain(of_processes).map(|environment| {
            let snapshot = self.known.get(known::PACKAGES, &environment.name).unwrap_or_else(|err| {
                tracing::warn!(environment = %environment.name, why = %chain(&err), "its snapshot cannot be read");
                None
            });
            (environment, snapshot)
        });
        for environment in self.dependencies.set(environments.collect(), settings.poll.get()) {
            self.send(Kind::EnvironmentForgotten { environment });
        }
    }

    /// How likely `path`, or every file of the declared repos, needs a repair soon.
    pub(super) fn risk(&self, path: Option<&Path>) -> Result<Vec<RiskView>, ControlError> {
        self.risks.views(path).map_err(ControlError::NotFound)
    }

    /// Compares `environments`, or every one, with their snapshots now.
    pub(super) fn dependencies(&self, environments: &[String]) -> Result<Vec<DependencyView>, ControlError> {
        self.dependencies.look(environments, false).map_err(ControlError::NotFound)
    }

    /// Has every source look now, for at most `patience` together. Says which have not ended.
    pub(super) fn look(&self, patience: Duration) -> Vec<String> {
        let clock = Stopwatch::start();
        let asked = [("repos", self.repos.ask()), ("history", self.risks.ask())];
        // As often as it takes to be sure.
        let asks = self.confirm.load(Ordering::Relaxed).clamp(1, MAX_ASKS);
        let answered = (0..asks).all(|_| self.endpoints.ask().wait(patience.saturating_sub(clock.elapsed())));
        // Here: an environment that changes is else looked at when it has settled.
        let mut late: Vec<String> = match self.dependencies.look(&[], false) {
            Ok(_) => Vec::new(),
            Err(why) => vec![format!("dependencies: {why}")],
        };
        let ended = asked.map(|(name, asked)| (name, asked.wait(patience.saturating_sub(clock.elapsed()))));
        late.extend(
            [("endpoints", answered)]
                .iter()
                .chain(&ended)
                .filter(|(_, ended)| !ended)
                .map(|(name, _)| format!("{name}: the look has not ended yet; what it sees will fire")),
        );
        late
    }

    /// Takes what `environments`, or every one, have now as their snapshots.
    pub(super) fn snapshot_dependencies(
        &self,
        environments: &[String],
        peer: Peer,
    ) -> Result<Vec<DependencyView>, ControlError> {
        let views = self.dependencies.look(environments, true).map_err(ControlError::NotFound)?;
        for view in views.iter().filter(|view| view.trouble.is_none()) {
            let text =
                format!("snapshot of {} ({} packages) by uid {}", view.environment, view.total, peer.uid);
            self.journal.note("command", text);
        }
        Ok(views)
    }

    fn set_repos(&self, config: &Config) {
        let mut watched = lock(&self.watched);
        let now: BTreeSet<PathBuf> = config.repo.iter().map(|repo| repo.path.clone()).collect();
        for repo in watched.difference(&now) {
            self.send(Kind::RepoForgotten { repo: repo.clone() });
        }
        *watched = now;
        let repos = config.repo.iter().map(|repo| (repo.clone(), self.good(&repo.path)));
        self.repos.set(repos.collect(), config.triggers.code_diff.poll.get());
        self.risks.set(
            config.repo.iter().map(|repo| (repo.path.clone(), repo.risk_threshold)),
            &config.triggers.predicted_failure,
        );
    }

    /// The known-good commit of a repo.
    fn good(&self, repo: &Path) -> Option<String> {
        self.known.get(known::COMMITS, &repo.to_string_lossy()).unwrap_or_else(|err| {
            tracing::warn!(repo = %repo.display(), why = %chain(&err), "its known-good commit cannot be read");
            None
        })
    }

    /// Marks the commit that is checked out in each of `repos`, or in every one, as known-good.
    pub(super) fn mark_good(
        &self,
        repos: &[PathBuf],
        force: bool,
        peer: Peer,
    ) -> Result<Vec<GoodView>, ControlError> {
        let declared = lock(&self.watched).clone();
        let named = |given: &PathBuf| {
            let real = given.canonicalize().unwrap_or_else(|_| given.clone());
            let same = |path: &&PathBuf| *path == given || path.canonicalize().is_ok_and(|path| path == real);
            declared.iter().find(same).cloned().ok_or_else(|| {
                let given = given.to_string_lossy().escape_debug().to_string();
                ControlError::NotFound(format!(
                    "no [[repo]] with the path {given} is declared in the configuration"
                ))
            })
        };
        let repos: Vec<PathBuf> = match repos.is_empty() {
            true => declared.iter().cloned().collect(),
            false => repos.iter().map(named).collect::<Result<_, _>>()?,
        };
        if repos.is_empty() {
            return Err(ControlError::NotFound(
                "no [[repo]] is declared in the configuration: there is no commit to mark".into(),
            ));
        }
        Ok(repos.iter().map(|repo| self.mark_one_good(repo, force, peer)).collect())
    }

    fn mark_one_good(&self, repo: &Path, force: bool, peer: Peer) -> GoodView {
        let mut view = GoodView {
            repo: repo.to_owned(),
            commit: None,
            before: self.good(repo),
            error: None,
            dirty: Vec::new(),
        };
        let head = match repos::head(repo) {
            Ok(head) => head,
            Err(why) => {
                view.error = Some(why);
                return view;
            }
        };
        let count = head.dirty.len();
        view.dirty = head.dirty.into_iter().take(MAX_DIRTY).collect();
        if count > 0 && !force {
            let first = view.dirty.first().map(|path| path.escape_debug().to_string()).unwrap_or_default();
            view.error = Some(format!(
                "tracked files that are not what they are in the commit: {count} ({first}, …); commit or restore them, or say \
                 --force to mark the commit without them"
            ));
            return view;
        }
        match self.known.put(known::COMMITS, &repo.to_string_lossy(), &head.commit) {
            Ok(()) => {
                self.repos.set_good(repo, &head.commit);
                let text =
                    format!("{}: commit {} is known-good, by uid {}", repo.display(), head.commit, peer.uid);
                self.journal.note("command", text);
                view.commit = Some(head.commit);
            }
            Err(err) => view.error = Some(chain(&err)),
        }
        view
    }

    fn set_endpoints(&self, config: &Config, before: Option<&Config>) {
        let mut declared = lock(&self.declared);
        let same_way = |name: &str| {
            let way = |config: &Config| {
                config.endpoint.iter().find(|e| e.name() == name).map(|e| e.openapi.clone())
            };
            before.and_then(way) == way(config)
        };
        // What was declared by a document and shall be learned now, or the other way round, begins anew.
        declared.retain(|name| {
            let stays = same_way(name);
            if !stays {
                self.send(Kind::EndpointForgotten { name: name.clone() });
            }
            stays
        });
        let confirm = config.triggers.telemetry_drift.confirm;
        let most = config.endpoint.iter().map(|e| e.confirm.unwrap_or(confirm)).max();
        self.confirm.store(most.unwrap_or(1), Ordering::Relaxed);
        for endpoint in &config.endpoint {
            let name = endpoint.name().to_owned();
            self.send(Kind::EndpointDeclared {
                name: name.clone(),
                url: endpoint.url.clone(),
                learn: endpoint.learn,
                confirm: endpoint.confirm,
            });
            if !declared.insert(name.clone()) || endpoint.openapi.is_some() {
                continue;
            }
            match self.known.get::<KnownAnswers>(known::ANSWERS, &name) {
                Ok(Some(known)) => self.send(Kind::EndpointKnown { name, known }),
                Ok(None) => {}
                Err(err) => tracing::warn!(endpoint = %name, why = %chain(&err), "begins to learn anew"),
            }
        }
        self.endpoints.set(&config.endpoint);
    }

    /// Keeps what was learned of an endpoint.
    pub(super) fn keep_shape(&self, name: &str, answers: u32, shape: &Shape) -> Result<String, String> {
        let known = KnownAnswers::Learned { answers, shape: Box::new(shape.clone()) };
        self.known.put(known::ANSWERS, name, &known).map_err(|err| chain(&err))?;
        // For a recording that begins later; the trigger knows already.
        self.send(Kind::EndpointKnown { name: name.to_owned(), known });
        Ok(format!("kept, from {answers} answers"))
    }

    /// The sources, for `status`.
    pub(super) fn health(&self) -> Vec<SourceView> {
        vec![self.endpoints.health(), self.repos.health(), self.dependencies.health(), self.risks.health()]
    }

    /// The endpoints with what is known of them.
    pub(super) fn endpoint_views(&self) -> Vec<EndpointView> {
        let mut views = self.endpoints.views();
        for view in views.iter_mut().filter(|view| view.openapi.is_none()) {
            if let Ok(Some(KnownAnswers::Learned { answers, shape })) =
                self.known.get(known::ANSWERS, &view.name)
            {
                view.learned_from = Some(answers);
                view.schema = Some(shape.schema().to_json());
            }
        }
        views
    }

    /// Takes the answers of an endpoint as they are now as known.
    pub(super) fn accept_endpoint(&self, name: &str, peer: Peer) -> Result<EndpointView, ControlError> {
        let view = self.endpoints.views().into_iter().find(|view| view.name == name).ok_or_else(|| {
            ControlError::NotFound(format!(
                "no endpoint `{}`: `grace endpoint list` lists them",
                name.escape_debug()
            ))
        })?;
        if let Some(document) = &view.openapi {
            return Err(ControlError::Bad(format!(
                "what its answers look like stands in {}: change it there",
                document.display()
            )));
        }
        if view.answers == 0 {
            return Err(ControlError::Bad(
                "it has not answered yet: there is nothing to take as known".into(),
            ));
        }
        self.send(Kind::EndpointAccepted { name: name.to_owned() });
        self.journal.note("command", format!("endpoint {name} accepted by uid {}", peer.uid));
        Ok(view)
    }

    /// The commits of a declared repo: the one that is checked out, and the known-good one.
    pub(super) fn commits(&self, repo: &Path) -> Option<(Option<String>, Option<String>)> {
        self.repos.commits(repo)
    }

    /// Ends the sources' threads.
    pub(super) fn stop(&self) {
        self.endpoints.stop();
        self.repos.stop();
        self.dependencies.stop();
        self.risks.stop();
    }

    fn send(&self, kind: Kind) {
        // Fails only when the engine has ended, with the agent.
        drop(self.events.send(Event { at: clock::boottime(), kind }));
    }
}
