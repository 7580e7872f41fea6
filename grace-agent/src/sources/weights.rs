//! Looks at weights: only at the chunks in doubt where it can, at all of them in slices where it must.
//!
//! In doubt are chunks with dirty pages, those that the scrub or an earlier look found, and all of a file whose times have
//! moved since it was last seen whole. A slice takes a fraction of a second, so a hint about another file never waits for
//! a hundred gigabytes. Nothing is claimed whole unless every chunk was compared while the file's times stood still;
//! chunks that were dirty then stay in doubt, because a store into a dirty page moves no time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Stat, fstat};

use super::look::{look, open};
use crate::event::Via;
use crate::file_meta::{self, words};
use crate::file_state::{Digest, FileId, FileState, Hurt, KnownGood, Meta};
use crate::weights::chunks::dirty;
use crate::weights::hash::{Progress, check, size_in_words};
use crate::weights::layout::{Opened, read_layout};
use crate::weights::manifest::chunk_count;
use crate::weights::{CHUNK, Manifest, Manifests};

/// Chunks of one slice, 64 MiB: so long a hint about another file waits.
const SLICE: usize = 16;

/// A file that was written to is compared whole when this long nothing was noticed of it.
const QUIET: Duration = Duration::from_millis(200);

/// Chunks that a state names.
const NAMED: usize = 16;

/// What is in doubt or known to be wrong, by path: shared with the scrub and with the repair.
#[derive(Debug, Clone, Default)]
pub struct Doubts {
    suspects: Arc<Mutex<BTreeMap<PathBuf, BTreeSet<u64>>>>,
    bad: Arc<Mutex<BTreeMap<PathBuf, Vec<u64>>>>,
    looking: Arc<Mutex<BTreeMap<PathBuf, String>>>,
}

impl Doubts {
    /// Chunk `index` of `path` shall be looked at.
    pub fn suspect(&self, path: &Path, index: u64) {
        lock(&self.suspects).entry(path.to_owned()).or_default().insert(index);
    }

    /// The chunks of `path` that were last seen to be wrong.
    #[must_use]
    pub fn bad(&self, path: &Path) -> Vec<u64> {
        lock(&self.bad).get(path).cloned().unwrap_or_default()
    }

    /// What is being compared whole, and how far that is.
    #[must_use]
    pub fn looking(&self) -> Vec<String> {
        lock(&self.looking).iter().map(|(path, how)| format!("{}: {how}", path.display())).collect()
    }

    fn forget(&self, path: &Path) {
        lock(&self.suspects).remove(path);
        lock(&self.bad).remove(path);
        lock(&self.looking).remove(path);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a look.
#[derive(Debug)]
pub(super) enum Looked {
    /// This is the state.
    State(FileState),
    /// Nothing is known yet: look again after this time.
    Later(Duration),
}

/// Looks at weights and remembers what it has compared.
#[derive(Debug)]
pub(super) struct Eye {
    manifests: Manifests,
    doubts: Doubts,
    progress: Progress,
    files: BTreeMap<PathBuf, Seen>,
}

/// What moves when a file is changed by a call, or by the first store into a page.
type Stamp = (u64, u64, i64, i64, u64, i64, u64);

fn stamp(stat: &Stat) -> Stamp {
    let (mtime, ctime) = (stat.st_mtime_nsec, stat.st_ctime_nsec);
    (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, mtime, stat.st_ctime, ctime)
}

#[derive(Debug)]
struct Seen {
    manifest: Arc<Manifest>,
    /// The stamp at which it was seen whole.
    whole: Option<Stamp>,
    /// Chunks that were dirty when they were last compared.
    open: BTreeSet<u64>,
    scan: Option<Scan>,
}

/// A comparison of all chunks under way.
#[derive(Debug)]
struct Scan {
    stamp: Stamp,
    next: u64,
    bad: Vec<u64>,
}

impl Eye {
    pub(super) fn new(manifests: Manifests, doubts: Doubts) -> Self {
        Self { manifests, doubts, progress: Progress::default(), files: BTreeMap::new() }
    }

    pub(super) fn forget(&mut self, path: &Path) {
        self.files.remove(path);
        self.doubts.forget(path);
    }

    /// Looks at the weights at `path`; `quiet` is how long nothing was noticed of it.
    pub(super) fn look(&mut self, path: &Path, known: &KnownGood, via: Via, quiet: Duration) -> Looked {
        let manifest = match self.seen(path, &known.digest) {
            Some(seen) => Arc::clone(&seen.manifest),
            // Of a version without manifests: compared as other files are.
            None => return Looked::State(look(path, Some(known))),
        };
        let (file, before) = match open(path, Some(known)) {
            Ok(opened) => opened,
            Err(state) => return Looked::State(state),
        };
        let state = self.look_into(path, known, &manifest, &file, &before, via, quiet);
        if let Looked::State(FileState::Regular { hurt: None, digest: Some(_), .. }) = &state {
            self.doubts.forget(path);
        }
        state
    }

    fn seen(&mut self, path: &Path, digest: &Digest) -> Option<&mut Seen> {
        if self.files.get(path).is_none_or(|seen| seen.manifest.digest != *digest) {
            let manifest = Arc::new(self.manifests.read(digest).ok()?);
            let seen = Seen { manifest, whole: None, open: BTreeSet::new(), scan: None };
            self.files.insert(path.to_owned(), seen);
        }
        self.files.get_mut(path)
    }

    #[expect(clippy::too_many_arguments, reason = "one look, taken apart for its early ends")]
    fn look_into(
        &mut self,
        path: &Path,
        known: &KnownGood,
        manifest: &Manifest,
        file: &File,
        before: &Stat,
        via: Via,
        quiet: Duration,
    ) -> Looked {
        let unreadable = |why: String| Looked::State(FileState::Unreadable { why });
        let id = file_meta::id(before);
        let meta = match file_meta::read(file, before) {
            Ok(meta) => meta,
            Err(err) => return unreadable(err.to_string()),
        };
        if meta.size != known.meta.size {
            return Looked::State(resized(id, meta, file, path, manifest));
        }
        let right =
            |meta: Meta| FileState::Regular { id, meta, digest: Some(known.digest.clone()), hurt: None };
        let Some(seen) = self.files.get_mut(path) else { return unreadable("not owned any more".to_owned()) };
        let now = stamp(before);
        let proved = seen.whole == Some(now);
        let suspects = lock(&self.doubts.suspects).get(path).cloned().unwrap_or_default();
        let noticed = matches!(via, Via::Probe | Via::Fanotify | Via::Inotify | Via::Mapped);
        // A scan under way asks at its begin and while there is news: each question walks through all pages that are cached.
        let scanning = seen.scan.as_ref().is_some_and(|scan| scan.stamp == now);
        let ask = if scanning { noticed && quiet < QUIET } else { noticed || !proved };
        let dirty_now = if ask { dirty(file, meta.size) } else { Some(BTreeSet::new()) };
        let mut doubtful = suspects;
        doubtful.extend(&seen.open);
        doubtful.extend(dirty_now.iter().flatten());
        let doubtful: Vec<u64> = doubtful.into_iter().filter(|i| *i < chunk_count(meta.size)).collect();
        let bad = match check(file, manifest, &doubtful, &self.progress) {
            Ok(bad) => bad,
            Err(err) => return unreadable(err.to_string()),
        };
        // Those that are not dirty any more were just compared as they are on their way to the disk.
        if ask {
            seen.open = dirty_now.clone().unwrap_or_default();
        }
        if !bad.is_empty() {
            seen.whole = None;
            seen.scan = None;
            lock(&self.doubts.bad).insert(path.to_owned(), bad.clone());
            let complete = chunk_count(meta.size) == doubtful.len() as u64;
            return Looked::State(hurt(id, meta, file, path, manifest, &bad, complete));
        }
        if proved && (dirty_now.is_some() || !noticed) {
            return Looked::State(right(meta));
        }
        if noticed && quiet < QUIET {
            return Looked::Later(QUIET - quiet);
        }
        // All of it, a slice at a time.
        let mut scan = seen.scan.take().filter(|scan| scan.stamp == now).unwrap_or(Scan {
            stamp: now,
            next: 0,
            bad: Vec::new(),
        });
        let count = chunk_count(meta.size);
        let slice: Vec<u64> = (scan.next..count).take(SLICE).collect();
        match check(file, manifest, &slice, &self.progress) {
            Ok(bad) => scan.bad.extend(bad),
            Err(err) => return unreadable(err.to_string()),
        }
        scan.next += slice.len() as u64;
        match fstat(file) {
            Ok(after) if stamp(&after) == now => {}
            Ok(_) => return Looked::Later(QUIET),
            Err(errno) => return unreadable(words(errno)),
        }
        if scan.next < count {
            let how = format!(
                "{:.0} % of {} compared",
                scan.next as f64 / count as f64 * 100.0,
                size_in_words(meta.size)
            );
            lock(&self.doubts.looking).insert(path.to_owned(), how);
            seen.scan = Some(scan);
            return Looked::Later(Duration::ZERO);
        }
        lock(&self.doubts.looking).remove(path);
        if scan.bad.is_empty() {
            seen.whole = Some(now);
            return Looked::State(right(meta));
        }
        seen.whole = None;
        lock(&self.doubts.bad).insert(path.to_owned(), scan.bad.clone());
        Looked::State(hurt(id, meta, file, path, manifest, &scan.bad, true))
    }
}

/// Looks at all of the weights at `path` at once, for whoever asks and waits.
#[must_use]
pub fn look_whole(manifests: &Manifests, path: &Path, known: &KnownGood) -> FileState {
    let mut eye = Eye::new(manifests.clone(), Doubts::default());
    let watch = crate::clock::Stopwatch::start();
    loop {
        match eye.look(path, known, Via::Look, QUIET) {
            Looked::State(state) => return state,
            Looked::Later(_) if watch.elapsed() > PATIENCE => {
                return FileState::Unreadable { why: "it kept changing while it was compared".to_owned() };
            }
            Looked::Later(wait) => std::thread::sleep(wait),
        }
    }
}

/// Longest time that somebody waits for a whole look.
const PATIENCE: Duration = Duration::from_hours(6);

/// The state of a file of another size.
fn resized(id: FileId, meta: Meta, file: &File, path: &Path, manifest: &Manifest) -> FileState {
    let size = meta.size;
    let of = chunk_count(manifest.size);
    let (from, to) = (size.min(manifest.size), manifest.size);
    let ranges = if from < to { vec![(from, to)] } else { Vec::new() };
    let layout = manifest.layout.as_ref();
    let hurt = Hurt {
        chunks: Vec::new(),
        count: of.saturating_sub(size / CHUNK),
        of,
        touched: layout.map(|layout| layout.touched(&ranges)).unwrap_or_default(),
        layers: layout.map(|layout| layout.layers(&ranges)).unwrap_or_default(),
        malformed: Some(format!(
            "{size} bytes instead of {}{}",
            manifest.size,
            malformed(file, size, path).map_or_else(String::new, |why| format!("; {why}"))
        )),
        complete: false,
    };
    FileState::Regular { id, meta, digest: None, hurt: Some(Box::new(hurt)) }
}

/// The state of a file in which the chunks `bad` differ.
fn hurt(
    id: FileId,
    meta: Meta,
    file: &File,
    path: &Path,
    manifest: &Manifest,
    bad: &[u64],
    complete: bool,
) -> FileState {
    let ranges: Vec<(u64, u64)> = bad.iter().map(|index| manifest.range(*index)).collect();
    let layout = manifest.layout.as_ref();
    let in_header = layout.is_some_and(|layout| {
        ranges.iter().any(|(start, _)| *start < layout.header.max(1)) || layout.header == 0
    });
    let hurt = Hurt {
        chunks: bad.iter().copied().take(NAMED).collect(),
        count: bad.len() as u64,
        of: manifest.chunks.len() as u64,
        touched: layout.map(|layout| layout.touched(&ranges)).unwrap_or_default(),
        layers: layout.map(|layout| layout.layers(&ranges)).unwrap_or_default(),
        malformed: if in_header { malformed(file, meta.size, path) } else { None },
        complete,
    };
    FileState::Regular { id, meta, digest: None, hurt: Some(Box::new(hurt)) }
}

fn malformed(file: &File, size: u64, path: &Path) -> Option<String> {
    read_layout(&Opened { file, size }, path).err().map(|err| err.to_string())
}
