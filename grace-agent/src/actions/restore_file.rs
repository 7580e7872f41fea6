//! `restore_file`: puts the known-good content, owner, mode, attributes and time of a file back, all at once.
//!
//! Readers see the old file or the new one, never a part, whatever crashes when. Only the object that was judged is
//! displaced: where it turns out to be another one, it is put back. What is displaced goes to the quarantine.
//!
//! The order: write a copy under a temporary name in the same folder, hashing what is written; give it owner, mode,
//! attributes and time; sync it; exchange the two names; look at what came out; sync the folder; only then clear up.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RenameFlags, fstat, fsync, linkat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::other_names;
use super::quarantine::{self, Folder, Kept, plain, random_hex, remove_if, rename_new};
use crate::clock::Stopwatch;
use crate::error_chain::chain;
use crate::file_meta::{self, MAX_CONTENT, MetaError, words};
use crate::file_state::{ContentKind, Digest, FileId, KnownGood};
use crate::safe_path::{Entry, Parent, PathError, open_entry};
use crate::sha256::{Sha256, each_block, of_reader};
use crate::snapshots::Store;
use crate::snapshots::objects::ObjectError;

/// Why a file was not restored, and what to do. The file is as it was, and nothing is left beside it, unless the
/// variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The folder cannot be walked to.
    #[error(transparent)]
    Walk(#[from] PathError),
    /// See the message.
    #[error("the kept content {} is damaged, so nothing was put back: take the snapshot again", digest.short())]
    DamagedObject {
        /// What it should be.
        digest: Digest,
    },
    /// The kept content cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// See the message.
    #[error("cannot {doing} `{}`: {}", path.display(), advice(*source))]
    Write {
        /// The step.
        doing: &'static str,
        /// The folder or the file.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// See the message.
    #[error("cannot give the copy of `{}` its owner, mode and attributes", path.display())]
    Attributes {
        /// The file.
        path: PathBuf,
        /// The step that failed.
        source: MetaError,
    },
    /// Nothing of anybody's was lost. What is there now must be judged anew.
    #[error("`{}` was left alone: {why}{}", path.display(), kept.as_ref().map_or_else(String::new, |kept| format!("; one version is kept at {}", kept.display())))]
    LostRace {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: &'static str,
        /// A version that came between, where one had to be kept.
        kept: Option<PathBuf>,
    },
    /// See the message.
    #[error("`{}` cannot be put back: no copy of it is kept, and no replica has it; set `replica` of its [[model]]", path.display())]
    NoOrigin {
        /// The file.
        path: PathBuf,
    },
    /// See the message. Chunks before this one are repaired.
    #[error("chunk {index} of `{}` cannot be put back: none of the {looked} places that should have it has it as it was", path.display())]
    NoGoodChunk {
        /// The file.
        path: PathBuf,
        /// Which chunk, from 0.
        index: u64,
        /// In how many places it was looked for.
        looked: usize,
    },
    /// The known-good content is in place now, but a power loss may undo it.
    #[error("`{}` was put back, but its folder cannot be synced: {}", path.display(), advice(*source))]
    NotDurable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Where what lay there is kept; none where nothing lay there.
    pub quarantined: Option<PathBuf>,
    /// Content of what lay there, where it was a regular file of at most 64 MiB.
    pub displaced_digest: Option<Digest>,
    /// True: file and folder were synced; a power loss does not undo it.
    pub durable: bool,
    /// How the promise was weaker, where the file system has no atomic exchange of names.
    pub weaker: Option<String>,
    /// What else people should know.
    pub note: Option<String>,
    /// Until readers saw the known-good content, in microseconds.
    pub visible_us: u64,
    /// Until it was durable, in microseconds.
    pub durable_us: u64,
}

/// Puts `known` back at `path`. `judged` is the object that may be displaced; none where nothing lay there. `tag`
/// names the cause (a firing's id) in the names of temporary and quarantined files. `go` returns when the exchange may be
/// made: the copy beside it is prepared meanwhile.
///
/// # Errors
/// See [`RestoreError`]: in all but the named cases the file is as it was.
pub fn restore(
    store: &Store,
    quarantine_dir: &Path,
    path: &Path,
    known: &KnownGood,
    judged: Option<FileId>,
    tag: &str,
    go: impl FnOnce(),
) -> Result<Restored, RestoreError> {
    let object = store.read(&known.digest)?;
    let mut restored = restore_from(object, quarantine_dir, path, known, judged, tag, go)?;
    // What lay in a secret's place may be most of it. Only where it is Grace's own by now.
    if known.kind == ContentKind::Secret
        && let Some(path) = restored.quarantined.as_mut().filter(|path| path.starts_with(quarantine_dir))
    {
        match store.seal_displaced(path) {
            Ok(sealed) => *path = sealed,
            Err(err) => {
                let note = format!("what lay there could not be sealed: {}", chain(&err));
                restored.note =
                    Some(restored.note.map_or_else(|| note.clone(), |old| format!("{old}; {note}")));
            }
        }
    }
    Ok(restored)
}

/// The same with the content of `object`, wherever that comes from: it is checked on its way.
pub(super) fn restore_from(
    object: Box<dyn Read + Send>,
    quarantine_dir: &Path,
    path: &Path,
    known: &KnownGood,
    judged: Option<FileId>,
    tag: &str,
    go: impl FnOnce(),
) -> Result<Restored, RestoreError> {
    let watch = Stopwatch::start();
    let parent = Parent::open(path)?;
    let folder = parent.readable()?;
    let mut copy = Copy::create(&parent, tag)?;
    let mut notes = copy.fill(object, &parent, known)?;
    go();

    let placed = match judged {
        Some(judged) => copy.exchange(&parent, judged),
        None => copy.place(&parent).map(|weaker| Placed { displaced: None, weaker }),
    };
    let visible_us = micros(&watch);
    let kept_beside = |displaced: &OsStr| {
        let at = Folder { fd: folder.as_fd(), path: parent.folder() };
        quarantine::keep(at, displaced, quarantine_dir, tag, parent.name())
    };
    let placed = match placed {
        Ok(placed) => placed,
        Err(Refused::Clean(err)) => return Err(err),
        Err(Refused::Race { why, left }) => {
            let kept = left.and_then(|left| kept_beside(&left).ok()).map(|kept| kept.path);
            return Err(RestoreError::LostRace { path: path.to_owned(), why, kept });
        }
    };
    let other_links =
        placed.displaced.as_deref().map_or(0, |displaced| other_names::links(folder.as_fd(), displaced));
    // Moved before the sync, so that one commit of the file system's journal makes both renames durable. A crash in
    // between leaves the displaced object under the temporary name, where `recover` finds it.
    let moved = placed.displaced.as_deref().and_then(|displaced| {
        let at = Folder { fd: folder.as_fd(), path: parent.folder() };
        quarantine::rename_in(at, displaced, quarantine_dir, tag, parent.name())
    });
    let synced = fsync(&folder);
    let durable_us = micros(&watch);
    // From here on nobody waits for the file.
    let kept = match placed.displaced.as_deref() {
        Some(displaced) if moved.is_none() => kept_beside(displaced).map(Some).unwrap_or_else(|errno| {
            notes.push(format!("what lay there could not be kept: {}", words(errno)));
            None
        }),
        _ => moved,
    };
    synced.map_err(|source| RestoreError::NotDurable { path: path.to_owned(), source })?;
    if let Some(Err(errno)) = kept.as_ref().map(Kept::sync) {
        notes.push(format!("the quarantine cannot be synced: {}", words(errno)));
    }
    notes.extend(kept.as_ref().and_then(|kept| kept.note.clone()));
    // The displaced object lives on under them, as it is.
    notes.extend(judged.and_then(|judged| other_names::told(judged, other_links)));
    Ok(Restored {
        displaced_digest: kept.as_ref().and_then(Kept::digest),
        quarantined: kept.map(|kept| kept.path),
        durable: true,
        weaker: placed.weaker,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        visible_us,
        durable_us,
    })
}

/// Clears up what a crash left in the folders of the `owned` files, and says in words what was done. To be called
/// before anything is restored.
///
/// A left-over that is a whole copy of something known-good in that folder is removed; anything else (displaced
/// content, a torn copy, somebody else's) goes to the quarantine.
#[must_use]
pub fn recover(store: &Store, quarantine_dir: &Path, owned: &[PathBuf]) -> Vec<String> {
    let mut said = Vec::new();
    if let Err(err) = quarantine::remove_torn_copies(quarantine_dir) {
        said.push(format!("could not clear up {}: {err}", quarantine_dir.display()));
    }
    let mut good: BTreeMap<PathBuf, BTreeSet<Digest>> = BTreeMap::new();
    match store.all() {
        Ok(all) => {
            for snapshot in all {
                let folder = snapshot.path.parent().unwrap_or(Path::new("/")).to_owned();
                good.entry(folder).or_default().insert(snapshot.known.digest);
            }
        }
        Err(err) => said.push(format!("without the snapshots every left-over is kept: {err}")),
    }
    let folders: BTreeMap<&Path, &PathBuf> =
        owned.iter().map(|path| (path.parent().unwrap_or(Path::new("/")), path)).collect();
    let none = BTreeSet::new();
    for (folder, a_file) in folders {
        let parent = match Parent::open(a_file) {
            Ok(parent) => parent,
            // Nothing can be left in a folder that is not there.
            Err(PathError::FolderMissing { .. }) => continue,
            Err(err) => {
                said.push(format!("could not look for left-overs in {}: {err}", folder.display()));
                continue;
            }
        };
        if let Err(why) =
            recover_folder(&parent, quarantine_dir, good.get(folder).unwrap_or(&none), &mut said)
        {
            said.push(format!("could not clear up {}: {why}", folder.display()));
        }
    }
    said
}

fn recover_folder(
    parent: &Parent,
    quarantine_dir: &Path,
    good: &BTreeSet<Digest>,
    said: &mut Vec<String>,
) -> Result<(), String> {
    let fd = parent.readable().map_err(|err| err.to_string())?;
    let mut left = Vec::new();
    for entry in Dir::read_from(&fd).map_err(words)? {
        let entry = entry.map_err(words)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if is_temp_name(name) {
            left.push(name.to_owned());
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    for name in left {
        let shown = parent.folder().join(&name);
        let shown = shown.display();
        if is_good_copy(fd.as_fd(), &name, good) {
            match unlinkat(&fd, &name, AtFlags::empty()) {
                Ok(()) => {
                    said.push(format!("removed {shown}: the known-good copy of a restore that was cut short"))
                }
                Err(errno) => said.push(format!("could not remove {shown}: {}", words(errno))),
            }
            continue;
        }
        let at = Folder { fd: fd.as_fd(), path: parent.folder() };
        match quarantine::keep(at, &name, quarantine_dir, "recovered", &name) {
            Ok(kept) => {
                kept.sync().map_err(words)?;
                said.push(format!(
                    "moved {shown}, left by a restore that was cut short, to {}",
                    kept.path.display()
                ));
            }
            Err(errno) => said.push(format!("could not move {shown} to the quarantine: {}", words(errno))),
        }
    }
    fsync(&fd).map_err(words)
}

/// True for a regular file with one name and known-good content: the same bytes are in the store.
fn is_good_copy(folder: BorrowedFd<'_>, name: &OsStr, good: &BTreeSet<Digest>) -> bool {
    let Ok(Entry::Regular(mut file, stat)) = open_entry(folder, name) else { return false };
    let size = file_meta::size(&stat);
    if stat.st_nlink != 1 || size > MAX_CONTENT {
        return false;
    }
    of_reader(&mut file, size, MAX_CONTENT + 1).is_ok_and(|(digest, _)| good.contains(&digest))
}

/// The copy under its temporary name. Dropped before it is in place, it is removed.
struct Copy<'a> {
    folder: BorrowedFd<'a>,
    name: OsString,
    file: File,
    id: FileId,
    in_place: bool,
}

/// What `exchange` did.
struct Placed {
    /// The name under which the displaced object lies in the folder.
    displaced: Option<OsString>,
    weaker: Option<String>,
}

/// Why the copy was not put in place.
enum Refused {
    /// All is as before.
    Clean(RestoreError),
    /// Somebody else was at it. `left`: the name of something in the folder that is not Grace's and must be kept.
    Race { why: &'static str, left: Option<OsString> },
}

impl<'a> Copy<'a> {
    fn create(parent: &'a Parent, tag: &str) -> Result<Self, RestoreError> {
        let failed = |source| RestoreError::Write {
            doing: "write to the folder",
            path: parent.folder().to_owned(),
            source,
        };
        let name = temp_name(tag).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd: OwnedFd = openat(parent.fd(), &name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        Ok(Self {
            folder: parent.fd(),
            name,
            file: File::from(fd),
            id: file_meta::id(&stat),
            in_place: false,
        })
    }

    /// Writes content and attributes and syncs them; says in words what the file system could not take.
    fn fill(
        &mut self,
        mut object: Box<dyn Read + Send>,
        parent: &Parent,
        known: &KnownGood,
    ) -> Result<Vec<String>, RestoreError> {
        let path = || parent.path().to_owned();
        let mut hasher = Sha256::default();
        let mut refused = None;
        let file = &mut self.file;
        // One byte more than there should be: a longer object is damaged, too, and is not copied to its end.
        let limit = known.meta.size.saturating_add(1);
        let read = each_block(&mut object, known.meta.size, limit, |block| {
            hasher.update(block);
            file.write_all(block)
                .inspect_err(|err| refused = Some(Errno::from_io_error(err).unwrap_or(Errno::IO)))
        });
        if let Some(source) = refused {
            return Err(RestoreError::Write { doing: "write the copy of", path: path(), source });
        }
        read.map_err(|source| match ObjectError::of_read(&known.digest, source) {
            ObjectError::Damaged { digest } => RestoreError::DamagedObject { digest },
            err => err.into(),
        })?;
        if hasher.finish() != known.digest {
            return Err(RestoreError::DamagedObject { digest: known.digest.clone() });
        }
        let notes = file_meta::put(&self.file, &known.meta, known.mtime_ns)
            .map_err(|source| RestoreError::Attributes { path: path(), source })?;
        // A failed sync is never tried again: the kernel drops the pages that it could not write.
        fsync(&self.file).map_err(|source| RestoreError::Write {
            doing: "sync the copy of",
            path: path(),
            source,
        })?;
        Ok(notes)
    }

    /// Puts the copy at a name that must be free.
    fn place(&mut self, parent: &Parent) -> Result<Option<String>, Refused> {
        let taken = Refused::Race { why: "something appeared there in the meantime", left: None };
        match renameat_with(self.folder, &self.name, self.folder, parent.name(), RenameFlags::NOREPLACE) {
            Ok(()) => self.in_place = true,
            Err(Errno::EXIST) => return Err(taken),
            Err(errno) if unsupported(errno) => {
                match linkat(self.folder, &self.name, self.folder, parent.name(), AtFlags::empty()) {
                    // The temporary name goes when `self` is dropped.
                    Ok(()) => return Ok(None),
                    Err(Errno::EXIST) => return Err(taken),
                    Err(_) => {}
                }
                match statat(self.folder, parent.name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => self.rename_over(parent)?,
                    _ => return Err(taken),
                }
                return Ok(Some(
                    "the file system can neither link nor rename without replacing: a file made in the same \
                     instant would have been replaced"
                        .into(),
                ));
            }
            Err(errno) => return Err(refused(parent, errno)),
        }
        self.check_place(parent, None)?;
        Ok(None)
    }

    /// Exchanges the copy with what lies at the name, and takes it back where that is not `judged`.
    fn exchange(&mut self, parent: &Parent, judged: FileId) -> Result<Placed, Refused> {
        match self.swap(parent) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                return Err(Refused::Race { why: "it vanished in the meantime", left: None });
            }
            Err(errno) if unsupported(errno) => return self.replace(parent, judged),
            Err(errno) => return Err(refused(parent, errno)),
        }
        match self.under_temp_name() {
            Ok(Some(id)) if id == judged => {}
            Ok(Some(_)) => return Err(self.take_back(parent)),
            // Whoever may write to the folder took the displaced object away, or it cannot be looked at: the copy
            // is in place, and what cannot be seen is not touched.
            Ok(None) | Err(_) => {
                self.in_place = true;
                return Err(Refused::Race {
                    why: "somebody else changed the folder at the same moment",
                    left: None,
                });
            }
        }
        self.in_place = true;
        self.check_place(parent, Some(&self.name))?;
        Ok(Placed { displaced: Some(self.name.clone()), weaker: None })
    }

    /// What came out was not what was judged: puts it back.
    fn take_back(&mut self, parent: &Parent) -> Refused {
        const WHY: &str = "it was replaced in the meantime";
        match self.swap(parent) {
            Ok(()) => {}
            Err(_) => {
                // The copy at the name vanished: the other one goes back by itself, or is kept.
                self.in_place = true;
                let back = rename_new(self.folder, &self.name, self.folder, parent.name());
                return Refused::Race { why: WHY, left: back.is_err().then(|| self.name.clone()) };
            }
        }
        if let Ok(Some(id)) = self.under_temp_name()
            && id == self.id
        {
            // The copy is back under its temporary name and is removed when `self` is dropped.
            return Refused::Race { why: WHY, left: None };
        }
        // A third one replaced the copy between the two exchanges. It is the newest: it belongs at the name.
        self.in_place = true;
        self.swap(parent).ok();
        Refused::Race { why: WHY, left: Some(self.name.clone()) }
    }

    /// For file systems without an exchange: keeps a second name for what lies there, then renames over it.
    fn replace(&mut self, parent: &Parent, judged: FileId) -> Result<Placed, Refused> {
        let aside = temp_name("aside").map_err(|errno| refused(parent, errno))?;
        let at = |name: &OsStr| {
            statat(self.folder, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| file_meta::id(&stat))
        };
        match linkat(self.folder, parent.name(), self.folder, &aside, AtFlags::empty()) {
            Ok(()) => {
                let found = at(&aside);
                if found != Ok(judged) || at(parent.name()) != Ok(judged) {
                    // Where it still has its own name, the second one goes; otherwise it is kept.
                    let spare = found.is_ok() && found == at(parent.name());
                    let gone = spare && unlinkat(self.folder, &aside, AtFlags::empty()).is_ok();
                    let left = (!gone).then_some(aside);
                    return Err(Refused::Race { why: "it was replaced in the meantime", left });
                }
                if let Err(refused) = self.rename_over(parent) {
                    unlinkat(self.folder, &aside, AtFlags::empty()).ok();
                    return Err(refused);
                }
                let weaker =
                    "the file system cannot exchange names: a file put there in the same instant would \
                              have been replaced"
                        .into();
                Ok(Placed { displaced: Some(aside), weaker: Some(weaker) })
            }
            Err(Errno::NOENT) => Err(Refused::Race { why: "it vanished in the meantime", left: None }),
            // A folder, or a file system without links: move it aside, which leaves a moment with nothing there.
            Err(_) => {
                rename_new(self.folder, parent.name(), self.folder, &aside)
                    .map_err(|errno| refused(parent, errno))?;
                let placed = if at(&aside) == Ok(judged) {
                    self.place(parent)
                } else {
                    Err(Refused::Race { why: "it was replaced in the meantime", left: None })
                };
                if let Err(refused) = placed {
                    let back = rename_new(self.folder, &aside, self.folder, parent.name());
                    return Err(match refused {
                        Refused::Race { why, left: None } if back.is_err() => {
                            Refused::Race { why, left: Some(aside) }
                        }
                        other => other,
                    });
                }
                let weaker =
                    "the file system can neither exchange names nor link: for a moment nothing was there"
                        .into();
                Ok(Placed { displaced: Some(aside), weaker: Some(weaker) })
            }
        }
    }

    fn rename_over(&mut self, parent: &Parent) -> Result<(), Refused> {
        renameat(self.folder, &self.name, self.folder, parent.name())
            .map_err(|errno| refused(parent, errno))?;
        self.in_place = true;
        Ok(())
    }

    fn swap(&self, parent: &Parent) -> Result<(), Errno> {
        renameat_with(self.folder, &self.name, self.folder, parent.name(), RenameFlags::EXCHANGE)
    }

    fn under_temp_name(&self) -> Result<Option<FileId>, Errno> {
        match statat(self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(file_meta::id(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// In a folder that others may write to, the temporary name can be made to mean another file before it is
    /// exchanged: what is at the name now must be the copy.
    fn check_place(&self, parent: &Parent, displaced: Option<&OsString>) -> Result<(), Refused> {
        match statat(self.folder, parent.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if file_meta::id(&stat) == self.id => Ok(()),
            _ => Err(Refused::Race {
                why: "somebody else replaced it at the same moment",
                left: displaced.cloned(),
            }),
        }
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if !self.in_place {
            // Only where the name still means the copy. If it cannot be removed, `recover` finds it.
            remove_if(self.folder, &self.name, self.id).ok();
        }
    }
}

fn refused(parent: &Parent, source: Errno) -> Refused {
    Refused::Clean(RestoreError::Write { doing: "replace", path: parent.path().to_owned(), source })
}

/// The file system, or a kernel before 3.15, does not know the flag.
fn unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

fn temp_name(tag: &str) -> Result<OsString, Errno> {
    Ok(OsString::from(format!("{TEMP}{}-{}", plain(tag), random_hex()?)))
}

/// `.grace-restore-<tag>-<8 hex>`: names that merely begin like it are not Grace's.
fn is_temp_name(name: &OsStr) -> bool {
    let Some(rest) = name.as_bytes().strip_prefix(TEMP.as_bytes()) else { return false };
    let Some((tag, random)) = rest.split_last_chunk::<8>().map(|(tag, random)| (tag, random.as_slice()))
    else {
        return false;
    };
    tag.last() == Some(&b'-') && random.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
}

/// What to do about it, in words.
fn advice(errno: Errno) -> String {
    let what = match errno {
        Errno::NOSPC => "the file system is full; free some space",
        Errno::DQUOT => "the quota is used up; raise it or free some space",
        Errno::ROFS => "the file system is mounted read-only; remount it writable",
        Errno::ACCESS => "permission denied; the agent must run as root",
        Errno::PERM => {
            "not permitted; look for an immutable flag (`lsattr`) or a security policy that forbids it"
        }
        Errno::BUSY => {
            "it is a mount point (a bind mount), which cannot be replaced; own the file where it really lies"
        }
        Errno::IO => "the disk failed; look at the kernel log",
        other => return words(other),
    };
    what.to_owned()
}

pub(super) fn micros(watch: &Stopwatch) -> u64 {
    u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX)
}

const TEMP: &str = ".grace-restore-";

#[cfg(test)]
mod tests;
