//! One coherent look at a path: what lies there now, without following, waiting for or changing anything.
//!
//! Used by every source of file changes and by `grace verify`. A look never claims a state that was not seen whole:
//! see [`look`] for what is said of a file that keeps changing.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Stat, fstat};
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
    let (mut file, mut before) = match open(path, known) {
        Ok(opened) => opened,
        Err(state) => return state,
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
            return FileState::Regular { id, meta, digest: None, hurt: None };
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
            return FileState::Regular { id, meta, digest: Some(digest), hurt: None };
        }
        tries += 1;
        if tries == TRIES {
            return match known {
                Some(known) if file_meta::size(&after) != known.meta.size => {
                    let meta = Meta { size: file_meta::size(&after), ..meta };
                    FileState::Regular { id, meta, digest: None, hurt: None }
                }
                Some(known) if digest != known.digest => {
                    FileState::Regular { id, meta, digest: Some(digest), hurt: None }
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

/// The regular file at `path`, open, as it is now; else what lies there instead. With `known`, a link on the way is a state
/// like any other.
pub(super) fn open(path: &Path, known: Option<&KnownGood>) -> Result<(File, Stat), FileState> {
    let unreadable = |why: String| FileState::Unreadable { why };
    let parent = match Parent::open(path) {
        Ok(parent) => parent,
        Err(PathError::FolderMissing { .. }) => return Err(FileState::Missing),
        // The file had no link on its way when it was snapshotted: whoever put one there replaced the file.
        Err(err @ PathError::LinkOnTheWay { .. }) => {
            return Err(link_on_the_way(path)
                .filter(|_| known.is_some())
                .unwrap_or_else(|| unreadable(err.to_string())));
        }
        Err(PathError::OpenFolder { source, .. }) => {
            return Err(unreadable(format!("its folder: {}", words(source))));
        }
        Err(err) => return Err(unreadable(err.to_string())),
    };
    match parent.entry() {
        Ok(Entry::Missing) => Err(FileState::Missing),
        Ok(Entry::Other(stat)) => {
            Err(FileState::NotRegular { what: file_meta::kind(&stat).into(), id: file_meta::id(&stat) })
        }
        Ok(Entry::Regular(file, stat)) => Ok((file, stat)),
        Err(Errno::NOENT) => Err(unreadable("/proc is not mounted".into())),
        Err(Errno::AGAIN) => Err(unreadable("another program holds a lease on it".into())),
        Err(errno) => Err(unreadable(words(errno))),
    }
}

/// The first folder on the way to `path` that is none: whatever can be reached through it is not what was owned.
fn link_on_the_way(path: &Path) -> Option<FileState> {
    let mut folders: Vec<&Path> = path.ancestors().skip(1).collect();
    folders.reverse();
    folders.into_iter().find_map(|folder| {
        let stat = rustix::fs::lstat(folder).ok()?;
        (file_meta::kind(&stat) != "directory").then(|| FileState::NotRegular {
            what: "file behind a symbolic link".into(),
            id: file_meta::id(&stat),
        })
    })
}

/// How often a file that changes while it is hashed is read.
const TRIES: u32 = 3;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Seek, Write};
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::file_state::{ContentKind, Digest};

    fn known_of(path: &Path) -> KnownGood {
        let FileState::Regular { meta, digest: Some(digest), .. } = look(path, None) else {
            panic!("not regular")
        };
        let kind = ContentKind::Config;
        KnownGood { snapshot: 1, digest, meta, mtime_ns: 0, kind, writers: Vec::new() }
    }

    fn scratch(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("file");
        fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_is_hashed_where_its_size_does_not_tell() {
        let (_dir, path) = scratch(b"abc");
        let known = known_of(&path);
        assert_eq!(known.digest.short(), "ba7816bf8f01");
        assert!(known.drift(&look(&path, Some(&known))).is_empty());
        fs::write(&path, "abd").unwrap();
        assert_eq!(known.drift(&look(&path, Some(&known))), ["content"]);
        fs::write(&path, "abcd").unwrap();
        let seen = look(&path, Some(&known));
        assert_eq!(seen.digest(), None);
        assert_eq!(known.drift(&seen), ["content: 4 bytes instead of 3"]);
    }

    #[test]
    fn a_link_in_a_folders_place_is_not_followed_and_not_overlooked() {
        let (dir, path) = scratch(b"abc");
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir(top.join("real")).unwrap();
        fs::copy(&path, top.join("real/file")).unwrap();
        symlink("real", top.join("folder")).unwrap();
        let known = known_of(&top.join("real/file"));
        let seen = look(&top.join("folder/file"), Some(&known));
        assert!(matches!(&seen, FileState::NotRegular { what, .. } if what.contains("link")), "{seen:?}");
        assert!(!known.drift(&seen).is_empty());
    }

    #[test]
    fn what_is_not_a_regular_file_is_named_and_not_opened() {
        let (dir, path) = scratch(b"");
        let top = dir.path().canonicalize().unwrap();
        let kind = |name: &str| match look(&top.join(name), None) {
            FileState::NotRegular { what, .. } => what,
            other => panic!("{other:?}"),
        };
        symlink(&path, top.join("link")).unwrap();
        symlink("nowhere", top.join("dangling")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, top.join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
        fs::create_dir(top.join("folder")).unwrap();
        assert_eq!(kind("link"), "symlink");
        assert_eq!(kind("dangling"), "symlink");
        assert_eq!(kind("fifo"), "fifo");
        assert_eq!(kind("socket"), "socket");
        assert_eq!(kind("folder"), "directory");
        assert!(
            matches!(look(Path::new("/dev/null"), None), FileState::NotRegular { what, .. } if what == "device")
        );
        assert_eq!(look(&top.join("none"), None), FileState::Missing);
        assert_eq!(look(&top.join("no folder/none"), None), FileState::Missing);
    }

    #[test]
    fn what_cannot_be_looked_at_is_said() {
        let (dir, _) = scratch(b"");
        let top = dir.path().canonicalize().unwrap();
        let why = |path: &Path| match look(path, None) {
            FileState::Unreadable { why } => why,
            other => panic!("{other:?}"),
        };
        let huge = top.join("huge");
        fs::File::create(&huge).unwrap().set_len(MAX_CONTENT + 1).unwrap();
        assert_eq!(why(&huge), "67108865 bytes: more than the 64 MiB that are compared");
        symlink(&top, top.join("alias")).unwrap();
        assert!(why(&top.join("alias/file")).contains("symbolic link"), "{}", why(&top.join("alias/file")));
        assert!(why(Path::new("relative")).contains("not an absolute path"));
    }

    /// A file that flips between two contents under the look: no digest but theirs is ever reported as seen whole, and
    /// the known-good one is only claimed where it stood there.
    #[test]
    fn a_file_in_motion_is_never_called_clean() {
        const SIZE: usize = 256 * 1024;
        let (_dir, path) = scratch(&vec![b'a'; SIZE]);
        let known = known_of(&path);
        let whole: Vec<Digest> = [b'b', b'c']
            .iter()
            .map(|byte| crate::sha256::of_reader(&mut &vec![*byte; SIZE][..], 0, u64::MAX).unwrap().0)
            .collect();
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(&vec![b'b'; SIZE]).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for byte in [b'c', b'b'] {
                        file.rewind().unwrap();
                        // Piece by piece, so that looks fall between.
                        for _ in 0..16 {
                            file.write_all(&[byte; SIZE / 16]).unwrap();
                        }
                    }
                }
            })
        };
        let (mut coherent, mut torn) = (0, 0);
        for _ in 0..300 {
            let seen = look(&path, Some(&known));
            assert_ne!(seen.digest(), Some(&known.digest));
            match seen {
                FileState::Regular { digest: Some(digest), .. } if whole.contains(&digest) => coherent += 1,
                FileState::Regular { digest: Some(_), .. } => torn += 1,
                other => panic!("{other:?}"),
            }
            assert_eq!(known.drift(&look(&path, Some(&known))), ["content"]);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        println!("{coherent} whole, {torn} in motion");
    }

    /// The known-good bytes, written over and over: matching pieces are not a state that was seen.
    #[test]
    fn matching_pieces_of_a_file_in_motion_claim_nothing() {
        const SIZE: usize = 1024 * 1024;
        let (_dir, path) = scratch(&vec![b'a'; SIZE]);
        let known = known_of(&path);
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    file.rewind().unwrap();
                    file.write_all(b"a").unwrap();
                }
            })
        };
        let mut unclaimed = 0;
        for _ in 0..20 {
            match look(&path, Some(&known)) {
                FileState::Unreadable { why } => {
                    assert_eq!(why, "it changed during each of 3 looks");
                    unclaimed += 1;
                }
                seen => assert!(known.drift(&seen).is_empty(), "{seen:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        assert!(unclaimed > 0);
    }
}
