//! The source of packages and programs: reads what is installed, without running anything, and compares it with a snapshot.
//!
//! One file per kind of package; `undo.rs` makes the commands that put a version back. One thread looks at the times of
//! folders and lock files each `poll`, and reads where they changed and have been still for one poll: an installer that is at
//! work is not a regression.

mod binary;
mod binary_owner;
mod cargo;
mod npm;
mod python;
mod system;
mod undo;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::api::view::{DependencyView, Health, SourceView};
use crate::clock;
use crate::code_facts::{DependencyChange, Ecosystem};
use crate::config::{Environment, Process};
use crate::event::{Event, Kind};
use crate::prompt::patient;

/// Packages of one environment.
const MAX_PACKAGES: usize = 50_000;
/// Changes told of one environment.
const MAX_CHANGES: usize = 200;
/// Bytes of a name or a version.
const MAX_NAME: usize = 256;

/// What is installed: version, or digest of a program, by name.
pub type Packages = BTreeMap<String, String>;

/// What was installed when somebody said, or the first look found, that it is right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When: RFC 3339.
    pub taken: String,
    /// What.
    pub packages: Packages,
}

/// Keeps a snapshot of an environment; an error in words.
pub type Keep = Box<dyn Fn(&str, &Snapshot) -> Result<(), String> + Send + Sync>;

/// The watched environments.
#[derive(Clone)]
pub struct Dependencies {
    shared: Arc<Mutex<Shared>>,
    thread: std::thread::Thread,
    keep: Arc<Keep>,
    events: SyncSender<Event>,
}

struct Shared {
    stop: bool,
    poll: Duration,
    environments: BTreeMap<String, Watched>,
}

struct Watched {
    config: Environment,
    snapshot: Option<Snapshot>,
    /// Times of the folders and lock files at the last poll, and when it was last read.
    polled: Option<Marks>,
    read: Option<Marks>,
    trouble: Option<String>,
}

/// Inode, size and times of what changes with the packages; none where it is not there.
type Marks = Vec<Option<(u64, u64, i64, i64, i64, i64)>>;

impl Dependencies {
    /// Starts the thread. Nothing is looked at until [`Dependencies::set`].
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(events: SyncSender<Event>, keep: Keep) -> io::Result<Self> {
        let poll = Duration::from_secs(30);
        let shared = Arc::new(Mutex::new(Shared { stop: false, poll, environments: BTreeMap::new() }));
        let keep = Arc::new(keep);
        let (mine, my_keep, my_events) = (Arc::clone(&shared), Arc::clone(&keep), events.clone());
        let thread = std::thread::Builder::new().name("grace-packages".into()).spawn(move || {
            // It reads whole programs: nobody waits for that.
            patient();
            keep_looking(&mine, &my_keep, &my_events);
        })?;
        Ok(Self { shared, thread: thread.thread().clone(), keep, events })
    }

    /// Watches these environments from now on, each with its snapshot. Says which are not watched any more.
    pub fn set(&self, environments: Vec<(Environment, Option<Snapshot>)>, poll: Duration) -> Vec<String> {
        let mut shared = lock(&self.shared);
        shared.poll = poll;
        let mut old = std::mem::take(&mut shared.environments);
        for (config, snapshot) in environments {
            let name = config.name.clone();
            let watched = match old.remove(&name) {
                Some(same) if same.config == config => same,
                _ => Watched { config, snapshot, polled: None, read: None, trouble: None },
            };
            shared.environments.insert(name, watched);
        }
        drop(shared);
        self.thread.unpark();
        old.into_keys().collect()
    }

    /// Ends the thread, when it next looks.
    pub fn stop(&self) {
        lock(&self.shared).stop = true;
        self.thread.unpark();
    }

    /// Looks at `names`, or at every environment, now; a new snapshot is taken where `take` says so.
    ///
    /// # Errors
    /// Where there is no such environment, in words.
    pub fn look(&self, names: &[String], take: bool) -> Result<Vec<DependencyView>, String> {
        let all: Vec<String> = lock(&self.shared).environments.keys().cloned().collect();
        if let Some(wrong) = names.iter().find(|name| !all.contains(name)) {
            let there = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            return Err(format!("no environment `{}` is watched: there are {there}", wrong.escape_debug()));
        }
        let wanted = if names.is_empty() { all } else { names.to_vec() };
        Ok(wanted
            .iter()
            .filter_map(|name| look(&self.shared, name, take, &self.keep, &self.events))
            .collect())
    }

    /// How the source is.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let shared = lock(&self.shared);
        let wrong: Vec<String> = shared
            .environments
            .iter()
            .filter_map(|(name, w)| Some(format!("{name}: {}", w.trouble.as_ref()?)))
            .collect();
        let state = match (shared.environments.is_empty(), wrong.is_empty()) {
            (true, _) => Health::Off,
            (false, true) => Health::Ok,
            (false, false) => Health::Degraded,
        };
        let detail = match state {
            Health::Off => "no [[environment]] and no [[process]] declared".to_owned(),
            Health::Ok => format!("{} compared with their snapshots", shared.environments.len()),
            _ => wrong.join("; "),
        };
        SourceView { name: "dependencies".into(), state, detail }
    }
}

/// The environments of a declared process: its program with the libraries that it loads, its venv, its `node_modules`.
#[must_use]
pub fn of_process(process: &Process) -> Vec<Environment> {
    let Some(program) = process.command.first().map(PathBuf::from) else { return Vec::new() };
    let name = &process.name;
    let mut out = vec![Environment {
        name: format!("process/{name}"),
        kind: Ecosystem::Binary,
        paths: vec![program.clone()],
        ignore: Vec::new(),
    }];
    let venv = program.parent().and_then(Path::parent).filter(|folder| folder.join("pyvenv.cfg").is_file());
    out.extend(venv.map(|venv| Environment {
        name: format!("process/{name}/python"),
        kind: Ecosystem::Python,
        paths: vec![venv.to_owned()],
        ignore: Vec::new(),
    }));
    let is_node = program.file_name().is_some_and(|name| name == "node" || name == "nodejs");
    let script = process.command.iter().skip(1).map(Path::new).find(|arg| arg.is_absolute());
    let folders = process
        .cwd
        .as_deref()
        .into_iter()
        .chain(script.into_iter().flat_map(Path::ancestors).skip(1).take(3));
    let node = folders.filter(|_| is_node).find(|folder| folder.join("package.json").is_file());
    out.extend(node.map(|folder| Environment {
        name: format!("process/{name}/npm"),
        kind: Ecosystem::Npm,
        paths: vec![folder.to_owned()],
        ignore: Vec::new(),
    }));
    out
}

/// The thread.
fn keep_looking(shared: &Mutex<Shared>, keep: &Keep, events: &SyncSender<Event>) {
    loop {
        let (configs, poll) = {
            let shared = lock(shared);
            if shared.stop {
                return;
            }
            (shared.environments.values().map(|w| w.config.clone()).collect::<Vec<_>>(), shared.poll)
        };
        for config in configs {
            let now = marks(&config);
            let due = lock(shared).environments.get_mut(&config.name).is_some_and(|watched| {
                let still = watched.polled.as_ref() == Some(&now);
                let first = watched.read.is_none() && watched.polled.is_none();
                watched.polled = Some(now.clone());
                watched.read.as_ref() != Some(&now) && (still || first)
            });
            if due {
                look(shared, &config.name, false, keep, events);
            }
        }
        std::thread::park_timeout(poll);
    }
}

/// Reads one environment and says how it differs from its snapshot. The first one that can be read is the snapshot.
fn look(
    shared: &Mutex<Shared>,
    name: &str,
    take: bool,
    keep: &Keep,
    events: &SyncSender<Event>,
) -> Option<DependencyView> {
    let (config, snapshot) = {
        let shared = lock(shared);
        let watched = shared.environments.get(name)?;
        (watched.config.clone(), watched.snapshot.clone())
    };
    // The times first: what changes while it is read is read again.
    let now = marks(&config);
    let mut view = DependencyView {
        environment: name.to_owned(),
        ecosystem: config.kind,
        snapshot: snapshot.as_ref().map(|s| s.taken.clone()),
        total: 0,
        changes: Vec::new(),
        more: 0,
        trouble: None,
    };
    let read = match read(&config) {
        // What was there and is not there at all any more is gone, not unreadable.
        Err(err) if err.kind() == io::ErrorKind::NotFound && snapshot.is_some() && !take => {
            Ok(Packages::new())
        }
        other => other,
    };
    let result = read.map_err(|err| err.to_string()).and_then(|packages| {
        let snapshot = match snapshot {
            Some(snapshot) if !take => snapshot,
            _ => {
                let snapshot = Snapshot { taken: clock::wall_rfc3339(), packages: packages.clone() };
                keep(name, &snapshot)?;
                snapshot
            }
        };
        Ok((packages, snapshot))
    });
    let mut shared = lock(shared);
    let watched = shared.environments.get_mut(name).filter(|watched| watched.config == config)?;
    watched.read = Some(now);
    match result {
        Ok((packages, snapshot)) => {
            let mut changes = changes(&config, &snapshot.packages, &packages);
            view.more = changes.len().saturating_sub(MAX_CHANGES) as u64;
            changes.truncate(MAX_CHANGES);
            view.total = packages.len() as u64;
            view.changes = changes;
            view.snapshot = Some(snapshot.taken.clone());
            watched.trouble = None;
            watched.snapshot = Some(snapshot);
            drop(shared);
            let kind = Kind::DependenciesSeen {
                environment: name.to_owned(),
                ecosystem: config.kind,
                snapshot: view.snapshot.clone().unwrap_or_default(),
                total: view.total,
                changes: view.changes.clone(),
                more: view.more,
            };
            // Fails only when the engine has ended, with the agent.
            drop(events.send(Event { at: clock::boottime(), kind }));
        }
        Err(why) => {
            watched.trouble = Some(why.clone());
            view.trouble = Some(why);
        }
    }
    Some(view)
}

/// What differs, regressions first.
fn changes(config: &Environment, was: &Packages, is: &Packages) -> Vec<DependencyChange> {
    let mut out = Vec::new();
    let ignored = globs(&config.ignore);
    for (name, old) in was.iter().filter(|(name, _)| !ignored.is_match(name)) {
        let new = is.get(name);
        // Not needed any more, or found elsewhere, is not vanished.
        let stays = new.is_none() && old == binary::LIBRARY && Path::new(name).exists();
        if new != Some(old) && !stays {
            out.push(DependencyChange {
                name: name.clone(),
                was: Some(old.clone()),
                is: new.cloned(),
                undo: undo::command(config, name, old, new.map(String::as_str)),
            });
        }
    }
    // A library that nobody loads any more, or that another one replaces, is not what vanished is about.
    for (name, new) in is.iter().filter(|(name, _)| !was.contains_key(*name) && !ignored.is_match(name)) {
        out.push(DependencyChange { name: name.clone(), was: None, is: Some(new.clone()), undo: None });
    }
    out
}

/// The names that may change.
fn globs(patterns: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    // The configuration was checked: what is no glob cannot stand there.
    patterns.iter().filter_map(|pattern| Glob::new(pattern).ok()).for_each(|glob| {
        set.add(glob);
    });
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

fn read(config: &Environment) -> io::Result<Packages> {
    let mut out = Packages::new();
    for path in &config.paths {
        let packages = match config.kind {
            Ecosystem::Python => python::read(path)?,
            Ecosystem::Npm => npm::read(path)?,
            Ecosystem::Cargo => cargo::read(path)?,
            Ecosystem::System => system::read(path)?,
            Ecosystem::Binary => binary::read(path)?,
        };
        for (name, version) in packages {
            if out.len() >= MAX_PACKAGES {
                return Err(io::Error::other(format!("more than {MAX_PACKAGES} packages")));
            }
            if name.len() <= MAX_NAME && version.len() <= MAX_NAME {
                out.insert(name, version);
            }
        }
    }
    Ok(out)
}

fn marks(config: &Environment) -> Marks {
    let files = config.paths.iter().flat_map(|path| match config.kind {
        Ecosystem::Python => python::marks(path),
        Ecosystem::Npm => npm::marks(path),
        Ecosystem::Cargo => vec![cargo::file(path)],
        Ecosystem::System => system::marks(path),
        Ecosystem::Binary => binary::marks(path),
    });
    files
        .map(|file| {
            let meta = file.metadata().ok()?;
            Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
        })
        .collect()
}

/// The first `limit` bytes of a regular file as text; what is no UTF-8 is replaced. A fifo in its place is an error.
fn text(path: &Path, limit: u64) -> io::Result<String> {
    let file = regular(path)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a regular file.
fn regular(path: &Path) -> io::Result<File> {
    let named = |err: io::Error| io::Error::new(err.kind(), format!("{}: {err}", path.display()));
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(named)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(named(io::Error::other("is not a regular file"))),
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
