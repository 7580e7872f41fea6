//! One coherent look at a path: what lies there now, without following, waiting for or changing anything.
//!
//! Used by every source of file changes and by `grace verify`. A look never claims a state that was not seen whole:
//! see [`look`] for what is said of a file that keeps changing.

use std::path::Path;

use rustix::fs::fstat;
use rustix::io::Errno;

use crate::file_meta::{self, words};
use crate::file_state::{FileState, KnownGood, Meta};
use crate::safe_path::{Entry, Parent, PathError};
use crate::sha256;

pub use crate::file_meta::MAX_CONTENT;

/// Looks at `path`. With `known`, content is hashed only where its size is the known one: another size tells enough.
/// Without, files of up to [`MAX_CONTENT`] are hashed.
///
/// A file that changes while it is hashed is read again, [`TRIES`] times. If it still changes:
/// - its size is not the known one: regular, no digest (the size alone is a drift, and it was seen);
/// - what was read is not the known content: regular, with the digest of what was read (no try saw the known content);
/// - what was read is the known content, or nothing is known: unreadable. The pieces matched but may never have stood
///   there together, so nothing is claimed.
///
/// Writing through a shared mapping moves no time stamp after its first page fault; such a write is seen by the next
/// look, not by this one.
#[must_use]
pub fn look(path: &Path, known: Option<&KnownGood>) -> FileState {
    let unreadable = |why: String| FileState::Unreadable { why };
    let parent = match Parent::open(path) {
        Ok(parent) => parent,
        Err(PathError::FolderMissing { .. }) => return FileState::Missing,
        Err(PathError::OpenFolder { source, .. }) => {
            return unreadable(format!("its folder: {}", words(source)));
        }
        Err(err) => return unreadable(err.to_string()),
    };
    let (mut file, mut before) = match parent.entry() {
        Ok(Entry::Missing) => return FileState::Missing,
        Ok(Entry::Other(stat)) => {
            return FileState::NotRegular { what: file_meta::kind(&stat).into(), id: file_meta::id(&stat) };
        }
        Ok(Entry::Regular(file, stat)) => (file, stat),
        Err(Errno::NOENT) => return unreadable("/proc is not mounted".into()),
        Err(Errno::AGAIN) => return unreadable("another program holds a lease on it".into()),
        Err(errno) => return unreadable(words(errno)),
    };

    let id = file_meta::id(&before);
    let mut tries = 0;
    loop {
        let meta = match file_meta::read(&file, &before) {
            Ok(meta) => meta,
            Err(err) => {
                let why = err.errno().map_or_else(String::new, |errno| format!(": {}", words(errno)));
                return unreadable(format!("{err}{why}"));
            }
        };
        if known.is_some_and(|known| known.meta.size != meta.size) {
            return FileState::Regular { id, meta, digest: None };
        }
        if known.is_none() && meta.size > MAX_CONTENT {
            return unreadable(format!(
                "{} bytes: more than the {} MiB that are compared",
                meta.size,
                MAX_CONTENT >> 20
            ));
        }
        // One byte past the size, so that a file that grew is noticed and an endless one is not read to its end.
        let (digest, read) = match sha256::of_reader(&mut file, meta.size, meta.size + 1) {
            Ok(done) => done,
            Err(err) => return unreadable(err.to_string()),
        };
        let after = match fstat(&file) {
            Ok(after) => after,
            Err(errno) => return unreadable(words(errno)),
        };
        if read == meta.size && file_meta::same(&before, &after) {
            return FileState::Regular { id, meta, digest: Some(digest) };
        }
        tries += 1;
        if tries == TRIES {
            return match known {
                Some(known) if file_meta::size(&after) != known.meta.size => {
                    let meta = Meta { size: file_meta::size(&after), ..meta };
                    FileState::Regular { id, meta, digest: None }
                }
                Some(known) if digest != known.digest => {
                    FileState::Regular { id, meta, digest: Some(digest) }
                }
                _ => unreadable(format!("it changed during each of {TRIES} looks")),
            };
        }
        before = after;
        if let Err(err) = std::io::Seek::rewind(&mut file) {
            return unreadable(err.to_string());
        }
    }
}

/// How often a file that changes while it is hashed is read.
const TRIES: u32 = 3;
