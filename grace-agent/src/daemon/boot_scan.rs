//! The scan for syntax errors at start: in the background, at low priority, in no one's way. What it finds become
//! firings; a file that did not parse is looked at again when it has changed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::executor::{Executor, lock};
use crate::api::view::{ScanItem, ScanState, ScanSummary, ScanView, SyntaxView};
use crate::cli::scan::syntax_view;
use crate::clock;
use crate::config::Config;
use crate::error_chain::chain;
use crate::event::{Kind, SyntaxError};
use crate::prompt::patient;
use crate::syntax::{self, Broken, Cache, Counters, Options, told_path};

/// How often files that did not parse are asked whether they have changed.
const AGAIN: Duration = Duration::from_secs(15);

/// Files that become firings, at most; all are counted, and `GET /v1/scan` has them.
const MAX_FIRINGS: usize = 200;

/// Between two firings: each files a task with a commit of its own, and repairs use the same disk.
const PACE: Duration = Duration::from_millis(20);

/// What tells that a file has changed: inode, size, change time in nanoseconds.
type Stamp = (u64, u64, i64);

/// A file that did not parse.
struct Wrong {
    stamp: Option<Stamp>,
    language: String,
    errors: Vec<SyntaxError>,
    /// It has a firing.
    told: bool,
}

#[derive(Default)]
struct Found {
    state: ScanState,
    at: Option<String>,
    why: Option<String>,
    syntax: Option<SyntaxView>,
    not_done: Vec<String>,
    wrong: BTreeMap<PathBuf, Wrong>,
}

/// The scan and what it found.
pub(super) struct BootScan {
    executor: Arc<Executor>,
    cache: PathBuf,
    counters: Counters,
    found: Mutex<Found>,
    stop: Arc<AtomicBool>,
    /// Held while files are looked at again: by the thread, or by whoever asked for a scan.
    looking: Mutex<()>,
}

impl BootScan {
    /// One that has not begun.
    pub(super) fn new(executor: Arc<Executor>, state: &Path, config: &Config, stop: Arc<AtomicBool>) -> Self {
        let (state_now, why) = match (config.scan.at_start, config.scan_paths().is_empty()) {
            (false, _) => (ScanState::Off, Some("[scan] at_start is false".to_owned())),
            (true, true) => (ScanState::Off, Some("no [[repo]], no [scan] paths".to_owned())),
            (true, false) => (ScanState::Running, None),
        };
        Self {
            executor,
            cache: state.join(syntax::CACHE_FILE),
            counters: Counters::default(),
            found: Mutex::new(Found { state: state_now, why, ..Found::default() }),
            stop,
            looking: Mutex::new(()),
        }
    }

    /// Scans, tells `done`, and looks after what was found until the agent stops.
    pub(super) fn run(&self, config: &Config, done: impl FnOnce(ScanView)) {
        if lock(&self.found).state == ScanState::Off {
            return;
        }
        patient();
        let (roots, missing): (Vec<PathBuf>, Vec<PathBuf>) =
            config.scan_paths().into_iter().partition(|path| path.exists());
        let options = Options { roots, workers: workers(), ..self.options() };
        let mut cache = Cache::open(&self.cache);
        let result = syntax::scan(&options, &mut cache, &self.counters, &self.stop);
        // The cache is as large as the trees: not kept in memory.
        drop(cache);
        match result {
            Err(err) => {
                let why = chain(&err);
                tracing::warn!(%why, "no scan for syntax errors");
                self.executor.journal.note("scan", format!("not done: {why}"));
                let mut found = lock(&self.found);
                (found.state, found.why) = (ScanState::Failed, Some(why));
                return;
            }
            Ok(scanned) if scanned.stopped => return,
            Ok(scanned) => {
                let counts = &scanned.counts;
                self.executor.journal.note(
                    "scan",
                    format!(
                        "{} source files, {} parsed, {} unchanged, {} do not parse",
                        counts.files,
                        counts.parsed,
                        counts.cached,
                        scanned.broken.len()
                    ),
                );
                {
                    let mut found = lock(&self.found);
                    found.state = ScanState::Done;
                    found.at = Some(clock::wall_rfc3339());
                    found.syntax = Some(syntax_view(&scanned));
                    found.not_done = missing
                        .iter()
                        .map(|path| format!("{} is not there", path.display()))
                        .chain(scanned.unreadable.iter().map(|why| format!("not read: {why}")))
                        .chain(scanned.not_remembered)
                        .collect();
                    found.wrong = scanned.broken.into_iter().map(wrong).collect();
                    if found.wrong.len() > MAX_FIRINGS {
                        let more = found.wrong.len() - MAX_FIRINGS;
                        found.not_done.push(format!("{more} more files do not parse and have no firing"));
                    }
                }
                done(self.view());
            }
        }
        self.tell_all();
        while !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(AGAIN);
            if !self.stop.load(Ordering::Acquire) {
                self.look_again();
            }
        }
    }

    fn options(&self) -> Options {
        Options { roots: Vec::new(), program: PathBuf::from("/proc/self/exe"), workers: 1 }
    }

    /// A firing for each of the first files.
    fn tell_all(&self) {
        let paths: Vec<PathBuf> = lock(&self.found).wrong.keys().take(MAX_FIRINGS).cloned().collect();
        for path in paths {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let _looking = lock(&self.looking);
            let kind = lock(&self.found).wrong.get_mut(&path).map(|wrong| {
                wrong.told = true;
                seen(&path, &wrong.language, wrong.errors.clone())
            });
            if let Some(kind) = kind {
                self.executor.send(kind);
            }
            std::thread::sleep(PACE);
        }
    }

    /// Looks again at the files that did not parse and have changed. Each file that has a firing, with whether it is
    /// still broken, is returned.
    pub(super) fn look_again(&self) -> Vec<(PathBuf, bool)> {
        let _looking = lock(&self.looking);
        let told = |found: &Found| {
            found.wrong.iter().filter(|(_, w)| w.told).map(|(p, _)| (p.clone(), true)).collect::<Vec<_>>()
        };
        let changed: Vec<PathBuf> = lock(&self.found)
            .wrong
            .iter()
            .filter(|(path, wrong)| stamp(path) != wrong.stamp)
            .map(|(path, _)| path.clone())
            .collect();
        if changed.is_empty() {
            return told(&lock(&self.found));
        }
        let roots: Vec<PathBuf> = changed.iter().filter(|path| stamp(path).is_some()).cloned().collect();
        let options = Options { roots, ..self.options() };
        let scanned = syntax::scan(&options, &mut Cache::none(), &Counters::default(), &self.stop);
        let broken = match scanned {
            Ok(scanned) if !scanned.stopped => scanned.broken,
            // Nothing was seen: nothing is claimed.
            _ => return told(&lock(&self.found)),
        };
        let mut found = lock(&self.found);
        let mut out = Vec::new();
        let mut events = Vec::new();
        for path in changed {
            let Some(old) = found.wrong.remove(&path) else { continue };
            match broken.iter().find(|b| told_path(&b.path) == path) {
                Some(still) => {
                    let (_, mut new) = wrong(still.clone());
                    new.told = old.told;
                    if old.told {
                        events.push(seen(&path, &new.language, new.errors.clone()));
                    }
                    found.wrong.insert(path, new);
                }
                None if old.told => {
                    events.push(seen(&path, &old.language, Vec::new()));
                    out.push((path, false));
                }
                None => {}
            }
        }
        out.extend(told(&found));
        let count = found.wrong.len() as u64;
        if let Some(syntax) = &mut found.syntax {
            syntax.broken = count;
        }
        drop(found);
        events.into_iter().for_each(|event| self.executor.send(event));
        out
    }

    /// How far it is, in short.
    pub(super) fn summary(&self) -> ScanSummary {
        let found = lock(&self.found);
        ScanSummary {
            state: found.state,
            at: found.at.clone(),
            files: match &found.syntax {
                Some(syntax) => syntax.files,
                None => self.counters.files.load(Ordering::Relaxed),
            },
            broken: match &found.syntax {
                Some(syntax) => syntax.broken,
                None => self.counters.found.load(Ordering::Relaxed),
            },
            why: found.why.clone(),
        }
    }

    /// What was found.
    pub(super) fn view(&self) -> ScanView {
        let found = lock(&self.found);
        let coding_agent: Vec<ScanItem> = found
            .wrong
            .iter()
            .map(|(path, wrong)| ScanItem::of_syntax(path.clone(), &wrong.language, wrong.errors.clone()))
            .collect();
        ScanView {
            found: coding_agent.len(),
            self_healing: Vec::new(),
            coding_agent,
            state: found.state,
            at: found.at.clone(),
            triggers: Vec::new(),
            syntax: found.syntax.clone(),
            not_done: found.why.iter().chain(&found.not_done).cloned().collect(),
        }
    }
}

/// Half of the processors: the host has other work.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2).min(4))
}

fn seen(path: &Path, language: &str, errors: Vec<SyntaxError>) -> Kind {
    Kind::SyntaxSeen { path: path.to_owned(), language: language.to_owned(), errors }
}

fn wrong(broken: Broken) -> (PathBuf, Wrong) {
    let path = told_path(&broken.path);
    let wrong = Wrong {
        stamp: broken.stamp,
        language: broken.language.name().to_owned(),
        errors: broken.errors,
        told: false,
    };
    (path, wrong)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((
        meta.ino(),
        meta.size(),
        meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec()),
    ))
}
