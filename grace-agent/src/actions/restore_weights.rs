//! `restore_file` for weights: only the chunks that differ, in place, or the file as a whole.
//!
//! In place, because a process that serves has the file mapped: it sees the repaired pages at once, while it would go on with
//! the displaced file. The order, chunk by chunk: the pages that differ go to the quarantine, then they are written; then each
//! chunk is read again and compared; then attributes and times; then the quarantine is synced, and the file after it. A crash
//! in between leaves fewer damaged pages than before, and the next start goes on. (Only a power loss can lose what was
//! displaced, within these milliseconds: whoever serves from the file does not wait for the disk.)
//!
//! The good bytes come from the first of these that has them, chunk by chunk: the store's copy, the replica, the folder of a
//! hub. Whatever they yield counts only if its digest does.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{fdatasync, fstat, fsync};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::quarantine::plain;
use super::restore_file::{RestoreError, Restored, micros, restore_from};
use crate::clock::Stopwatch;
use crate::file_meta;
use crate::file_state::{Digest, FileId, KnownGood};
use crate::safe_path::{Entry, Parent};
use crate::snapshots::Store;
use crate::snapshots::objects::ObjectError;
use crate::weights::chunks::Reader;
use crate::weights::hash::{Progress, check};
use crate::weights::{CHUNK, Manifest};

/// Bytes that are compared and written as one.
const PAGE: usize = 4096;

/// How the store's own copy is called.
const STORE: &str = "the store's copy";

/// Damaged chunks that are kept of one repair; the rest is only counted.
const KEPT: usize = 16;

/// How weights are repaired, and from where.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Only what differs, in place; else the file is replaced.
    pub in_place: bool,
    /// Files or folders with the same content, after the store's own copy, in this order. In a folder it is looked for by
    /// the file's name and, as hubs and Git LFS keep them, by its digest.
    pub replicas: Vec<PathBuf>,
}

/// Somewhere the good bytes may be.
struct Origin {
    what: String,
    file: File,
}

impl Plan {
    /// All that there are, in order.
    fn origins(&self, store: &Store, path: &Path, digest: &Digest) -> Vec<Origin> {
        let mut out = Vec::new();
        if let Ok(Some(file)) = store.plain(digest) {
            out.push(Origin { what: STORE.to_owned(), file });
        }
        for place in &self.replicas {
            let candidates = match place.is_dir() {
                false => vec![place.clone()],
                true => {
                    let by_name = path.file_name().map(|name| place.join(name));
                    let hex = digest.0.as_str();
                    let by_digest = [
                        place.join(hex),
                        place.join("blobs").join(hex),
                        place
                            .join(hex.get(..2).unwrap_or_default())
                            .join(hex.get(2..4).unwrap_or_default())
                            .join(hex),
                    ];
                    by_name.into_iter().chain(by_digest).collect()
                }
            };
            for candidate in candidates {
                // Links are followed: caches of hubs are made of them. A fifo would hang, and is not opened for long.
                let opened = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open(&candidate);
                if let Ok(file) = opened
                    && file.metadata().is_ok_and(|meta| meta.is_file())
                {
                    out.push(Origin { what: candidate.display().to_string(), file });
                }
            }
        }
        out
    }
}

/// Puts the known-good content of the weights at `path` back. `bad` are the chunks that are known to differ; none: all are
/// looked at. The rest is as in [`super::restore_file::restore`].
///
/// # Errors
/// See [`RestoreError`].
#[expect(clippy::too_many_arguments, reason = "what `restore` takes, and what weights need more")]
pub fn restore(
    store: &Store,
    quarantine: &Path,
    path: &Path,
    known: &KnownGood,
    judged: Option<FileId>,
    plan: &Plan,
    bad: &[u64],
    tag: &str,
    go: &dyn Fn(),
) -> Result<Restored, RestoreError> {
    let origins = plan.origins(store, path, &known.digest);
    let in_place = plan.in_place && judged.is_some();
    if let Some(judged) = judged.filter(|_| in_place)
        && let Ok(manifest) = store.manifest(&known.digest)
        && let Some(target) = Target::open(path, judged, known)?
    {
        return target.mend(quarantine, known, &manifest, &origins, bad, tag, go);
    }
    let mut last = None;
    let mut contents: Vec<(String, Box<dyn Read + Send>)> = Vec::new();
    // Also one of which no parts can be read: a secret with the same content.
    match store.read(&known.digest) {
        Ok(content) => contents.push((STORE.to_owned(), content)),
        Err(ObjectError::Missing { .. }) => {}
        Err(err) => last = Some(err.into()),
    }
    for Origin { what, file } in origins.into_iter().filter(|origin| origin.what != STORE) {
        contents.push((what, Box::new(file)));
    }
    for (what, content) in contents {
        match restore_from(content, quarantine, path, known, judged, tag, go) {
            Ok(restored) => {
                let note = format!("replaced from {what}");
                let note = restored.note.map_or(note.clone(), |more| format!("{note}; {more}"));
                return Ok(Restored { note: Some(note), ..restored });
            }
            // Another one may be better.
            Err(err @ (RestoreError::DamagedObject { .. } | RestoreError::Object(_))) => last = Some(err),
            Err(err) => return Err(err),
        }
    }
    Err(last.unwrap_or_else(|| RestoreError::NoOrigin { path: path.to_owned() }))
}

/// The damaged file, open for writing.
struct Target<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Target<'a> {
    /// The regular file at `path`, where it is `judged` and has the size that it should have.
    fn open(path: &'a Path, judged: FileId, known: &KnownGood) -> Result<Option<Self>, RestoreError> {
        let failed = |source| RestoreError::Write { doing: "open", path: path.to_owned(), source };
        let lost = |why| RestoreError::LostRace { path: path.to_owned(), why, kept: None };
        let parent = Parent::open(path)?;
        let (file, stat) = match parent.entry() {
            Ok(Entry::Regular(file, stat)) => (file, stat),
            Ok(Entry::Missing) => return Err(lost("it vanished in the meantime")),
            Ok(Entry::Other(_)) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        if file_meta::id(&stat) != judged {
            return Err(lost("it was replaced in the meantime"));
        }
        if file_meta::size(&stat) != known.meta.size {
            return Ok(None);
        }
        // The same object, through its own handle: nobody can slip another one in between.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(again)
            .map_err(|err| failed(Errno::from_io_error(&err).unwrap_or(Errno::IO)))?;
        Ok(Some(Self { path, file }))
    }

    fn failed(&self, doing: &'static str) -> impl Fn(std::io::Error) -> RestoreError {
        let path = self.path.to_owned();
        move |err| RestoreError::Write {
            doing,
            path: path.clone(),
            source: Errno::from_io_error(&err).unwrap_or(Errno::IO),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "see `restore`")]
    fn mend(
        &self,
        quarantine: &Path,
        known: &KnownGood,
        manifest: &Manifest,
        origins: &[Origin],
        bad: &[u64],
        tag: &str,
        go: &dyn Fn(),
    ) -> Result<Restored, RestoreError> {
        let watch = Stopwatch::start();
        let progress = Progress::default();
        let every: Vec<u64>;
        let suspects = if bad.is_empty() {
            let all: Vec<u64> = (0_u64..).take(manifest.chunks.len()).collect();
            every = check(&self.file, manifest, &all, &progress).map_err(self.failed("read"))?;
            every.as_slice()
        } else {
            bad
        };
        let reader = Reader::default();
        let (mut pages, mut from, mut bad) = (0, Vec::new(), Vec::new());
        let (mut kept, mut unsynced) = (None, Vec::new());
        let mut notes = Vec::new();
        let mut first = true;
        for index in suspects {
            let (start, end) = manifest.range(*index);
            let length = usize::try_from(end - start).unwrap_or(0);
            let good = self.good_chunk(manifest, *index, length, origins, &reader, &mut from)?;
            // As it is now, whatever was seen.
            let mut now = vec![0; length];
            let read = reader.read(&self.file, start, &mut now).map_err(self.failed("read"))?;
            now.truncate(read);
            let differing = differing(&now, &good);
            if differing.is_empty() {
                continue;
            }
            if bad.len() < KEPT {
                match self.keep(quarantine, tag, *index, &now, &differing) {
                    Ok((path, file)) => {
                        kept.get_or_insert(path);
                        unsynced.push(file);
                    }
                    Err(err) => notes.push(format!("a damaged chunk could not be kept: {err}")),
                }
            }
            bad.push(*index);
            if std::mem::take(&mut first) {
                go();
            }
            for at in &differing {
                let page = good.get(*at..good.len().min(at + PAGE)).unwrap_or_default();
                self.file.write_all_at(page, start + *at as u64).map_err(self.failed("write"))?;
            }
            pages += differing.len();
        }
        if first {
            go();
        }
        let visible_us = micros(&watch);
        let still = check(&self.file, manifest, &bad, &progress).map_err(self.failed("read"))?;
        if !still.is_empty() {
            return Err(RestoreError::LostRace {
                path: self.path.to_owned(),
                why: "it was changed again while it was repaired",
                kept,
            });
        }
        notes.extend(
            file_meta::put(&self.file, &known.meta, known.mtime_ns)
                .map_err(|source| RestoreError::Attributes { path: self.path.to_owned(), source })?,
        );
        for file in &unsynced {
            if let Err(errno) = fsync(file) {
                notes.push(format!("a damaged chunk may not be kept: {}", file_meta::words(errno)));
            }
        }
        fdatasync(&self.file)
            .map_err(|source| RestoreError::NotDurable { path: self.path.to_owned(), source })?;
        if bad.len() > KEPT {
            notes.push(format!("of {} damaged chunks the first {KEPT} are kept", bad.len()));
        }
        notes.insert(
            0,
            match bad.len() {
                0 => "no chunk differed any more".to_owned(),
                n => format!(
                    "{n} of {} chunks mended in place, {pages} pages written, from {}; each verified by its digest",
                    manifest.chunks.len(),
                    from.join(" and ")
                ),
            },
        );
        Ok(Restored {
            quarantined: kept,
            displaced_digest: None,
            durable: true,
            weaker: None,
            note: Some(notes.join("; ")),
            visible_us,
            durable_us: micros(&watch),
        })
    }

    /// The bytes of chunk `index` as they should be.
    fn good_chunk(
        &self,
        manifest: &Manifest,
        index: u64,
        length: usize,
        origins: &[Origin],
        reader: &Reader,
        from: &mut Vec<String>,
    ) -> Result<Vec<u8>, RestoreError> {
        let wanted = usize::try_from(index).ok().and_then(|i| manifest.chunks.get(i));
        let mut bytes = vec![0; length];
        for Origin { what, file } in origins {
            let read = reader.read(file, index * CHUNK, &mut bytes);
            if read.is_ok_and(|n| n == length) && wanted.is_some_and(|w| Sha256::digest(&bytes)[..] == w[..])
            {
                if !from.contains(what) {
                    from.push(what.clone());
                }
                return Ok(bytes);
            }
        }
        Err(RestoreError::NoGoodChunk { path: self.path.to_owned(), index, looked: origins.len() })
    }

    /// Keeps the `differing` pages of the damaged chunk `now`, each at its place in it: the rest is a hole. Not synced yet.
    fn keep(
        &self,
        quarantine: &Path,
        tag: &str,
        index: u64,
        now: &[u8],
        differing: &[usize],
    ) -> std::io::Result<(PathBuf, File)> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let path = quarantine.join(format!("{}-{}.chunk-{index}", plain(tag), plain(&name)));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.set_len(now.len() as u64)?;
        for at in differing {
            let page = now.get(*at..now.len().min(at + PAGE)).unwrap_or_default();
            file.write_all_at(page, *at as u64)?;
        }
        Ok((path, file))
    }
}

/// Where the pages begin in which `now` is not `good`.
fn differing(now: &[u8], good: &[u8]) -> Vec<usize> {
    let pages = (0..).step_by(PAGE).zip(good.chunks(PAGE));
    pages.filter(|(at, page)| now.get(*at..at + page.len()) != Some(*page)).map(|(at, _)| at).collect()
}

/// The device and inode of `path`, as user space knows them.
#[must_use]
pub fn object_at(path: &Path) -> Option<FileId> {
    match Parent::open(path).ok()?.entry().ok()? {
        Entry::Regular(file, _) => fstat(&file).ok().map(|stat| file_meta::id(&stat)),
        _ => None,
    }
}
