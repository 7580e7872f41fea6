//! The source of risk: reads the history of each `[[repo]]` at start and when HEAD moved, and has `risk.rs` rate its files.
//!
//! Bounded in commits and in time; merges and commits that touch very many files are left out, exact renames are followed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use gix::ObjectId;
use gix::revision::walk::Sorting;
use gix::traverse::commit::simple::CommitTimeOrder;

use super::git::{Git, GitError};
use crate::api::view::{Health, RiskView, SourceView};
use crate::clock::{self, Stopwatch};
use crate::code_facts::FileRisk;
use crate::config::PredictedFailure;
use crate::error_chain::chain;
use crate::event::{Event, Kind};
use crate::prompt::patient;
use crate::risk::{self, Commit, History};
use crate::sources::round::{Asked, Rounds};

/// How often HEAD is looked at.
const POLL: Duration = Duration::from_secs(5);
/// Files of a commit; one that touches more reformats or moves things.
const MAX_TOUCHED: usize = 100;
/// Files told to the engine.
const MAX_TOLD: usize = 100;
/// Files rated of one repo.
const MAX_RATED: usize = 50_000;
/// What is rated: source code.
const CODE: [&str; 34] = [
    "py", "rs", "go", "js", "jsx", "ts", "tsx", "mjs", "cjs", "c", "cc", "cpp", "cxx", "h", "hpp", "cu",
    "cuh", "java", "kt", "scala", "rb", "php", "cs", "swift", "m", "sh", "bash", "sql", "lua", "pl", "ex",
    "erl", "hs", "zig",
];

/// The ratings of the watched repos.
#[derive(Clone)]
pub struct Risks {
    shared: Arc<Mutex<Shared>>,
    thread: std::thread::Thread,
}

#[derive(Default)]
struct Shared {
    stop: bool,
    rounds: Rounds,
    settings: PredictedFailure,
    repos: BTreeMap<PathBuf, Rated>,
}

/// A repo and its ratings.
#[derive(Default, Clone)]
struct Rated {
    /// The commit that was rated.
    head: Option<ObjectId>,
    files: Vec<FileRisk>,
    model: String,
    /// The repo's own limit.
    threshold: Option<f64>,
    trouble: Option<String>,
}

impl Risks {
    /// Starts the thread. Nothing is rated until [`Risks::set`].
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(events: SyncSender<Event>) -> std::io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("grace-history".into()).spawn(move || {
            // The first time it reads a whole history.
            patient();
            keep_rating(&mine, &events);
        })?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    /// Rates these repos from now on.
    pub fn set(&self, repos: impl Iterator<Item = (PathBuf, Option<f64>)>, settings: &PredictedFailure) {
        let mut shared = lock(&self.shared);
        let same = shared.settings == *settings;
        let mut old = std::mem::take(&mut shared.repos);
        shared.repos = repos
            .map(|(path, threshold)| {
                let rated = old.remove(&path).filter(|old| same && old.threshold == threshold);
                let rated = Rated { threshold, ..rated.unwrap_or_default() };
                (path, rated)
            })
            .collect();
        shared.settings = settings.clone();
        drop(shared);
        self.thread.unpark();
    }

    /// Asks for a whole look now.
    #[must_use]
    pub fn ask(&self) -> Asked {
        let asked = lock(&self.shared).rounds.ask();
        self.thread.unpark();
        asked
    }

    /// Ends the thread, when it next looks.
    pub fn stop(&self) {
        lock(&self.shared).stop = true;
        self.thread.unpark();
    }

    /// The rated files, the riskiest first; only `path` where one is named.
    ///
    /// # Errors
    /// Where it is in no rated repo, or not rated yet, in words.
    pub fn views(&self, path: Option<&Path>) -> Result<Vec<RiskView>, String> {
        let shared = lock(&self.shared);
        let mut out = Vec::new();
        let real = path.map(|path| path.canonicalize().unwrap_or_else(|_| path.to_owned()));
        let mut waiting = None;
        for (repo, rated) in &shared.repos {
            let root = repo.canonicalize().unwrap_or_else(|_| repo.clone());
            let below = match &real {
                Some(real) => match real.strip_prefix(&root) {
                    Ok(below) => Some(below.to_owned()),
                    Err(_) => continue,
                },
                None => None,
            };
            if rated.head.is_none() {
                let why = rated.trouble.clone().unwrap_or_else(|| "its history is being read".to_owned());
                waiting = Some(format!("{}: {why}", repo.display()));
                continue;
            }
            let wanted =
                |file: &&FileRisk| below.as_deref().is_none_or(|below| below == Path::new(&file.path));
            out.extend(rated.files.iter().filter(wanted).map(|file| RiskView::new(repo, file, &rated.model)));
        }
        out.sort_by(|a, b| b.risk.total_cmp(&a.risk).then_with(|| a.path.cmp(&b.path)));
        match (out.is_empty(), waiting) {
            (true, Some(why)) => Err(why),
            (true, None) if path.is_some() => {
                Err("not a rated file: source code below a [[repo]], with a history, is".to_owned())
            }
            _ => Ok(out),
        }
    }

    /// How the source is.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let shared = lock(&self.shared);
        let wrong: Vec<String> = shared
            .repos
            .iter()
            .filter_map(|(path, rated)| Some(format!("{}: {}", path.display(), rated.trouble.as_ref()?)))
            .collect();
        let state = match (shared.repos.is_empty(), wrong.is_empty()) {
            (true, _) => Health::Off,
            (false, true) => Health::Ok,
            (false, false) => Health::Degraded,
        };
        let detail = match state {
            Health::Off => "no [[repo]] declared".to_owned(),
            Health::Ok => {
                let rated: Vec<String> = shared
                    .repos
                    .iter()
                    .filter(|(_, rated)| rated.head.is_some())
                    .map(|(path, rated)| {
                        format!("{}: {} files, {}", path.display(), rated.files.len(), rated.model)
                    })
                    .collect();
                if rated.is_empty() { "reading".to_owned() } else { rated.join("; ") }
            }
            _ => wrong.join("; "),
        };
        SourceView { name: "history".into(), state, detail }
    }
}

/// The thread.
fn keep_rating(shared: &Mutex<Shared>, events: &SyncSender<Event>) {
    loop {
        let (repos, settings, rounds, begun) = {
            let shared = lock(shared);
            if shared.stop {
                return;
            }
            let repos: Vec<_> = shared.repos.iter().map(|(path, rated)| (path.clone(), rated.head)).collect();
            (repos, shared.settings.clone(), shared.rounds.clone(), shared.rounds.begin())
        };
        for (path, before) in repos {
            let result = examine(&path, before, &settings);
            let mut shared = lock(shared);
            let Some(rated) = shared.repos.get_mut(&path) else { continue };
            match result {
                Ok(None) => rated.trouble = None,
                Ok(Some(new)) => {
                    let new = Rated { threshold: rated.threshold, ..new };
                    *rated = new.clone();
                    drop(shared);
                    let kind = told(&path, new, &settings);
                    // Fails only when the engine has ended, with the agent.
                    drop(events.send(Event { at: clock::boottime(), kind }));
                }
                Err(err) => rated.trouble = Some(chain(&err)),
            }
        }
        rounds.end(begun);
        std::thread::park_timeout(POLL);
    }
}

/// What the engine needs to know: the files that fire, or keep a firing up.
fn told(repo: &Path, rated: Rated, settings: &PredictedFailure) -> Kind {
    let mut files = rated.files;
    let (_, clear) = settings.limits(rated.threshold);
    files.retain(|file| file.risk > clear);
    files.truncate(MAX_TOLD);
    let head = rated.head.map(|id| id.to_string()).unwrap_or_default();
    Kind::RiskSeen { repo: repo.to_owned(), head, files, model: rated.model, threshold: rated.threshold }
}

/// Rates the repo at `path`; none where HEAD is still `before`.
fn examine(
    path: &Path,
    before: Option<ObjectId>,
    settings: &PredictedFailure,
) -> Result<Option<Rated>, GitError> {
    let git = Git::open(path)?;
    let head = git.head()?;
    if before == Some(head) {
        return Ok(None);
    }
    let (names, history, cut) = read(&git, head, settings)?;
    let (ratings, basis) = risk::rate(&history);
    let count = ratings.len().max(1) as f64;
    let files = ratings
        .iter()
        .filter_map(|rating| {
            let lower = ratings.len() - ratings.partition_point(|other| other.risk >= rating.risk);
            Some(FileRisk {
                path: names.get(rating.file)?.clone(),
                risk: (rating.risk * 10_000.0).round() / 10_000.0,
                percentile: (lower as f64 / count * 1_000.0).round() / 10.0,
                reasons: rating.reasons.clone(),
            })
        })
        .collect();
    let model = match cut {
        Some(why) => format!("{basis} ({why})"),
        None => basis.to_string(),
    };
    Ok(Some(Rated { head: Some(head), files, model, threshold: None, trouble: None }))
}

/// Paths by number, the history, and why it was not read to its end.
fn read(
    git: &Git,
    head: ObjectId,
    settings: &PredictedFailure,
) -> Result<(Vec<String>, History, Option<String>), GitError> {
    let failed =
        |err: &dyn std::fmt::Display| GitError::Git { what: "read the history", why: err.to_string() };
    let watch = Stopwatch::start();
    let mut names = Vec::new();
    let mut files = Vec::new();
    // Numbers by the path that a file had at the commit that is read: going back, a rename changes it.
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let code = |path: &str| path.rsplit_once('.').is_some_and(|(_, extension)| CODE.contains(&extension));
    for (path, tracked) in git.commit_files(head)?.into_iter().filter(|(path, _)| code(path)).take(MAX_RATED)
    {
        numbers.insert(path.clone(), u32::try_from(names.len()).unwrap_or(u32::MAX));
        names.push(path);
        files.push(git.blob_size(tracked.id));
    }
    let mut authors: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut commits = Vec::new();
    let mut cut = None;
    let walk = git.gix().rev_walk([head]).sorting(Sorting::ByCommitTime(CommitTimeOrder::NewestFirst));
    for step in walk.all().map_err(|err| failed(&err))? {
        if commits.len() >= settings.commits as usize {
            break;
        }
        if watch.elapsed() > settings.patience.get() {
            cut = Some(format!(
                "its history was read for {} and no further",
                humantime::format_duration(settings.patience.get())
            ));
            break;
        }
        // A shallow clone ends where its history was cut off.
        let Ok(step) = step else {
            cut = Some("its history ends where it was cut off".to_owned());
            break;
        };
        let parents: Vec<ObjectId> = step.parent_ids().map(|id| id.detach()).collect();
        if parents.len() > 1 {
            continue;
        }
        let commit = step.object().map_err(|err| failed(&err))?;
        let tree = git.tree_of(step.id)?;
        let Ok(parent) = parents.first().map(|parent| git.tree_of(*parent)).transpose() else {
            cut = Some("its history ends where it was cut off".to_owned());
            break;
        };
        let (mut touched, mut gone, mut came) = (Vec::new(), Vec::new(), Vec::new());
        git.differences(parent, Some(tree), &mut |path, old, new| {
            match (old, new) {
                (Some(old), None) => gone.push((old, path.to_owned())),
                (None, Some(new)) => came.push((new, path.to_owned())),
                _ => {}
            }
            if new.is_some() && (touched.len() <= MAX_TOUCHED || parent.is_none()) {
                touched.push(path.to_owned());
            }
        })?;
        let first = parents.is_empty();
        let few = touched.len() <= MAX_TOUCHED || first;
        let changed: Vec<u32> = touched.iter().filter_map(|path| numbers.get(path).copied()).collect();
        for (id, old) in gone {
            if let Some((_, new)) = came.iter().find(|(new, _)| *new == id)
                && let Some(number) = numbers.remove(new)
            {
                numbers.insert(old, number);
            }
        }
        if !few || changed.is_empty() {
            continue;
        }
        let author = commit.author().map(|author| author.email.to_vec()).unwrap_or_default();
        let next = u32::try_from(authors.len()).unwrap_or(u32::MAX);
        let author = *authors.entry(author).or_insert(next);
        let message = commit.message_raw().map(ToString::to_string).unwrap_or_default();
        commits.push(Commit { author, repairs: !first && risk::says_repair(&message), files: changed });
    }
    commits.reverse();
    Ok((names, History { commits, files }, cut))
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
