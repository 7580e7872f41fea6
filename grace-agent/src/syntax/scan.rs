//! A whole scan: walks the trees, asks the cache, has the rest parsed, and counts what it left out.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ignore::{DirEntry, WalkBuilder, WalkState};

use super::cache::Cache;
use super::check::{Checked, Skip};
use super::language::{self, Language, Named};
use super::worker::{Answer, Job, Key, Told, hand_out};
use crate::clock::{Stopwatch, wall_ns};
use crate::event::SyntaxError;

/// Files that the walk may be ahead of the parsers.
const AHEAD: usize = 4096;

/// Folders and files that could not be read, told by name.
const MAX_UNREADABLE: usize = 20;

/// A file that changed less than this before it was read may change again without another time stamp: the kernel's
/// clock for files ticks every 10 ms or less.
const FRESH: Duration = Duration::from_millis(50);

/// Why there was no scan.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A folder to scan is not there.
    #[error("cannot scan {}", path.display())]
    Root {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing parses.
    #[error("the process that parses does not work")]
    Worker(#[source] std::io::Error),
}

/// What to scan, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folders and files.
    pub roots: Vec<PathBuf>,
    /// The program whose subcommand `syntax-worker` parses: this one.
    pub program: PathBuf,
    /// Processes that parse, and threads that walk.
    pub workers: usize,
}

/// How far it is, for whoever waits.
#[derive(Debug, Default)]
pub struct Counters {
    /// Source files met.
    pub files: AtomicU64,
    /// Of them, that do not parse.
    pub found: AtomicU64,
}

/// What was met and what was done about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Source files met.
    pub files: u64,
    /// Of them, parsed now.
    pub parsed: u64,
    /// Of them, known from an earlier scan.
    pub cached: u64,
    /// By language: files judged.
    pub languages: BTreeMap<&'static str, u64>,
    /// Not judged, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Folders and files that could not be read.
    pub unreadable: u64,
}

/// A file that does not parse.
#[derive(Debug, Clone, PartialEq)]
pub struct Broken {
    /// Its path.
    pub path: PathBuf,
    /// Its language.
    pub language: Language,
    /// The first errors.
    pub errors: Vec<SyntaxError>,
    /// What the file was when it was read: inode, size in bytes, change time in nanoseconds since the epoch.
    pub stamp: Option<(u64, u64, i64)>,
}

/// What a scan found.
#[derive(Debug, Clone, Default)]
pub struct Scanned {
    /// The folders and files scanned, resolved, none of them within another.
    pub roots: Vec<PathBuf>,
    /// What does not parse, by path.
    pub broken: Vec<Broken>,
    /// How many files, and what became of them.
    pub counts: Counts,
    /// The first of what could not be read, in words.
    pub unreadable: Vec<String>,
    /// Why the next scan will have to parse everything again; none: it will not.
    pub not_remembered: Option<String>,
    /// It was told to stop: what it found is not all.
    pub stopped: bool,
    /// How long it took.
    pub took: Duration,
}

/// Scans. `stop` ends it early.
///
/// # Errors
/// Where a root is not there, or nothing can be parsed.
pub fn scan(
    options: &Options,
    cache: &mut Cache,
    counters: &Counters,
    stop: &AtomicBool,
) -> Result<Scanned, ScanError> {
    let clock = Stopwatch::start();
    let roots = resolve(&options.roots)?;
    let mut out = Scanned { roots: roots.clone(), ..Scanned::default() };
    let Some((first, others)) = roots.split_first() else { return Ok(out) };
    let workers = options.workers.max(1);
    let mut walk = WalkBuilder::new(first);
    others.iter().for_each(|root| {
        walk.add(root);
    });
    walk.hidden(false)
        .parents(true)
        .ignore(true)
        .git_ignore(true)
        .git_exclude(true)
        .git_global(false)
        .require_git(false)
        .add_custom_ignore_filename(".graceignore")
        .follow_links(false)
        .same_file_system(true)
        .threads(workers)
        .filter_entry(|entry| !is_skipped_folder(entry));

    let (jobs, to_parse) = sync_channel::<Job>(AHEAD);
    let to_parse = Mutex::new(to_parse);
    let (answers, heard) = channel::<Answer>();
    let known = Mutex::new(Tally::default());
    let shared: &Cache = cache;
    let mut parsed: Vec<Answer> = Vec::new();
    let failed = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..workers)
            .map(|_| {
                let (answers, to_parse) = (answers.clone(), &to_parse);
                scope.spawn(move || {
                    let result = hand_out(&options.program, to_parse, &answers, stop);
                    if result.is_err() {
                        // The walk must not wait for somebody who is gone.
                        let jobs = to_parse.lock().unwrap_or_else(PoisonError::into_inner);
                        while jobs.recv().is_ok() {}
                    }
                    result
                })
            })
            .collect();
        let unparsed = answers;
        let known = &known;
        scope.spawn(move || {
            walk.build_parallel().run(|| {
                let mut visit = Visit {
                    jobs: jobs.clone(),
                    unparsed: unparsed.clone(),
                    shared,
                    counters,
                    known,
                    tally: Tally::default(),
                };
                Box::new(move |entry| {
                    if stop.load(Ordering::Acquire) {
                        return WalkState::Quit;
                    }
                    visit.meet(entry);
                    WalkState::Continue
                })
            });
            // Dropped here: the hands and the ear below then end.
            drop((jobs, unparsed));
        });
        for answer in heard {
            if matches!(answer.told.checked, Checked::Broken(_)) {
                counters.found.fetch_add(1, Ordering::Relaxed);
            }
            if answer.told.language != 0 && answer.told.checked != Checked::Skipped(Skip::NoSource) {
                counters.files.fetch_add(1, Ordering::Relaxed);
            }
            parsed.push(answer);
        }
        hands.into_iter().find_map(|hand| match hand.join() {
            Ok(result) => result.err(),
            Err(_) => Some(ScanError::Worker(std::io::Error::other("a thread panicked"))),
        })
    });
    if let Some(err) = failed {
        return Err(err);
    }

    let tally = known.into_inner().unwrap_or_else(PoisonError::into_inner);
    out.counts.unreadable = tally.unreadable;
    out.unreadable = tally.told;
    out.broken = tally.broken;
    for (language, checked) in &tally.met {
        out.counts.cached += u64::from(count(&mut out.counts, *language, *checked));
    }
    let now = wall_ns();
    let fresh = i64::try_from(FRESH.as_nanos()).unwrap_or(i64::MAX);
    for Answer { path, told: Told { key, language, checked } } in parsed {
        let judged = match &checked {
            Checked::Skipped(skip) => Err(*skip),
            _ => Ok(()),
        };
        out.counts.parsed += u64::from(count(&mut out.counts, language, judged));
        if let (Checked::Broken(errors), Some(language)) = (&checked, Language::from_number(language)) {
            let stamp = key.map(|key| (key.ino, key.size, key.ctime_ns));
            out.broken.push(Broken { path: path.clone(), language, errors: errors.clone(), stamp });
        }
        if let Checked::Skipped(Skip::Unreadable) = checked {
            out.counts.unreadable += 1;
            if out.unreadable.len() < MAX_UNREADABLE {
                out.unreadable.push(format!("{}: cannot be read", path.display()));
            }
        }
        if let Some(key) = key.filter(|key| now.saturating_sub(key.ctime_ns) > fresh) {
            cache.put(path, key, language, checked);
        }
    }
    out.broken.sort_by(|a, b| a.path.cmp(&b.path));
    out.stopped = stop.load(Ordering::Acquire);
    if !out.stopped
        && let Err(err) = cache.keep(&roots)
    {
        out.not_remembered = Some(err.to_string());
    }
    out.took = clock.elapsed();
    Ok(out)
}

/// Counts one file; true where it was judged.
fn count(counts: &mut Counts, language: u8, judged: Result<(), Skip>) -> bool {
    match judged {
        Err(Skip::NoSource) => return false,
        Err(skip) => *counts.skipped.entry(skip.words()).or_default() += 1,
        Ok(()) => {
            let name = Language::from_number(language).map_or("other", Language::name);
            *counts.languages.entry(name).or_default() += 1;
        }
    }
    counts.files += 1;
    judged.is_ok()
}

/// The roots resolved; one that lies within another is left out.
fn resolve(given: &[PathBuf]) -> Result<Vec<PathBuf>, ScanError> {
    let mut all = given
        .iter()
        .map(|path| {
            let fail = |source| ScanError::Root { path: path.clone(), source };
            let real = path.canonicalize().map_err(fail)?;
            if real.is_dir() {
                // One that cannot be read is told now, not as a scan that found nothing.
                drop(std::fs::read_dir(&real).map_err(fail)?);
            }
            Ok(real)
        })
        .collect::<Result<Vec<_>, _>>()?;
    all.sort();
    // Sorted: what contains another comes before it.
    let mut out: Vec<PathBuf> = Vec::new();
    for path in all {
        if !out.last().is_some_and(|last| path.starts_with(last)) {
            out.push(path);
        }
    }
    Ok(out)
}

fn is_skipped_folder(entry: &DirEntry) -> bool {
    if entry.depth() == 0 || !entry.file_type().is_some_and(|kind| kind.is_dir()) {
        return false;
    }
    let path = entry.path();
    let beside = |name: &str| path.parent().is_some_and(|folder| folder.join(name).exists());
    language::is_made_by_tools(entry.file_name().as_bytes(), beside, |name| path.join(name).exists())
}

/// What one thread of the walk met that needs no parsing.
#[derive(Default)]
struct Tally {
    /// Language and what was known.
    met: Vec<(u8, Result<(), Skip>)>,
    broken: Vec<Broken>,
    unreadable: u64,
    told: Vec<String>,
}

/// One thread of the walk.
struct Visit<'a> {
    jobs: SyncSender<Job>,
    unparsed: Sender<Answer>,
    shared: &'a Cache,
    counters: &'a Counters,
    known: &'a Mutex<Tally>,
    tally: Tally,
}

impl Visit<'_> {
    fn meet(&mut self, entry: Result<DirEntry, ignore::Error>) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(err) => {
                self.tally.unreadable += 1;
                if self.tally.told.len() < MAX_UNREADABLE {
                    self.tally.told.push(err.to_string());
                }
                return;
            }
        };
        // Folders, links, pipes, sockets, devices.
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            return;
        }
        let language = match language::by_name(entry.path()) {
            Named::Is(language) => Some(language),
            Named::AskFirstLine => None,
            Named::Other => return,
        };
        let Ok(meta) = entry.metadata() else { return };
        let nanos = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        let key = Key {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime_ns: nanos(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: nanos(meta.ctime(), meta.ctime_nsec()),
        };
        if let Some(entry_known) = self.shared.get(entry.path(), key) {
            let judged = match &entry_known.checked {
                Checked::Skipped(skip) => Err(*skip),
                _ => Ok(()),
            };
            if judged != Err(Skip::NoSource) {
                self.counters.files.fetch_add(1, Ordering::Relaxed);
            }
            if let (Checked::Broken(errors), Some(language)) =
                (&entry_known.checked, Language::from_number(entry_known.language))
            {
                self.counters.found.fetch_add(1, Ordering::Relaxed);
                let path = entry.path().to_owned();
                let stamp = Some((key.ino, key.size, key.ctime_ns));
                self.tally.broken.push(Broken { path, language, errors: errors.clone(), stamp });
            }
            self.tally.met.push((entry_known.language, judged));
            return;
        }
        let path = entry.into_path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let skip = if key.size > super::MAX_FILE {
            // A file without an ending that is this large is no script.
            Some(if language.is_some() { Skip::TooLarge } else { Skip::NoSource })
        } else if name.ends_with(".min.js") || name.ends_with(".bundle.js") || name.ends_with("-min.js") {
            Some(Skip::Minified)
        } else {
            None
        };
        // Neither fails but where the scan has failed.
        match skip {
            Some(skip) => {
                let told = Told {
                    key: Some(key),
                    language: language.map_or(0, |l| l as u8),
                    checked: Checked::Skipped(skip),
                };
                drop(self.unparsed.send(Answer { path, told }));
            }
            None => drop(self.jobs.send(Job { path, language })),
        }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Tally { met, broken, unreadable, told } = std::mem::take(&mut self.tally);
        known.met.extend(met);
        known.broken.extend(broken);
        known.unreadable += unreadable;
        let room = MAX_UNREADABLE.saturating_sub(known.told.len());
        known.told.extend(told.into_iter().take(room));
    }
}

/// A path as text for documents: names need not be UTF-8.
#[must_use]
pub fn told_path(path: &Path) -> PathBuf {
    PathBuf::from(path.to_string_lossy().into_owned())
}
