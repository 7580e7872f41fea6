//! What is watched so that owned files are: each file, its folder's entries, and every folder on the way to it.
//!
//! fanotify first, inotify where it refuses. A path is not an object: when a folder on the way is moved, removed or
//! mounted over, what lies at the path now is watched instead ([`Marks::moved`]); where nothing lies there, the nearest
//! folder that does tells when something comes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::fanotify::{Change, Fanotify};
use super::inotify::Fallback;
use crate::event::Via;

/// A folder on the way to an owned file.
#[derive(Default)]
struct Folder {
    /// Owned files right in it.
    files: usize,
    /// Owned files anywhere below it.
    below: usize,
    /// Which object is watched.
    id: Option<(u64, u64)>,
}

/// All marks.
pub(super) struct Marks {
    fanotify: Option<Fanotify>,
    /// Why there is no fanotify.
    pub(super) fanotify_why: Option<String>,
    inotify: Fallback,
    /// What could not be watched at all, and why.
    pub(super) inotify_why: Option<String>,
    folders: BTreeMap<PathBuf, Folder>,
    /// Folders whose entries are watched because one below them is not there.
    awaited: BTreeSet<PathBuf>,
}

impl Marks {
    /// Without files.
    pub(super) fn open() -> Self {
        let (fanotify, fanotify_why) = match Fanotify::open() {
            Ok(fanotify) => (Some(fanotify), None),
            Err(err) => (None, Some(err.to_string())),
        };
        Self {
            fanotify,
            fanotify_why,
            inotify: Fallback::default(),
            inotify_why: None,
            folders: BTreeMap::new(),
            awaited: BTreeSet::new(),
        }
    }

    /// Where changes are announced.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fanotify.as_ref().map(AsFd::as_fd).into_iter().chain(self.inotify.fd())
    }

    /// True where fanotify works.
    pub(super) fn has_fanotify(&self) -> bool {
        self.fanotify.is_some()
    }

    /// Folders with owned files in them.
    pub(super) fn owned_folders(&self) -> usize {
        self.folders.values().filter(|f| f.files > 0).count()
    }

    /// Folders that inotify watches.
    pub(super) fn inotify_folders(&self) -> usize {
        self.inotify.folders()
    }

    /// Whether inotify is in use.
    pub(super) fn has_inotify(&self) -> bool {
        self.inotify.fd().is_some()
    }

    /// Watches the way to `file`.
    pub(super) fn add(&mut self, file: &Path) {
        for (up, folder) in file.ancestors().skip(1).enumerate() {
            let entry = self.folders.entry(folder.to_owned()).or_default();
            let new = entry.below == 0 || (up == 0 && entry.files == 0);
            entry.below += 1;
            entry.files += usize::from(up == 0);
            if new {
                self.place(folder);
            }
        }
    }

    /// Watches the entries of `folder`, and the way to it, as if a file in it were owned.
    pub(super) fn add_folder(&mut self, folder: &Path) {
        self.add(&folder.join(ANY));
    }

    /// Takes [`Marks::add_folder`] back.
    pub(super) fn remove_folder(&mut self, folder: &Path) {
        self.remove(&folder.join(ANY));
    }

    /// Does not watch `file` and the way to it any more.
    pub(super) fn remove(&mut self, file: &Path) {
        if let Some(fanotify) = &mut self.fanotify {
            fanotify.forget_file(file);
        }
        self.inotify.forget_file(file);
        for (up, folder) in file.ancestors().skip(1).enumerate() {
            let Some(entry) = self.folders.get_mut(folder) else { continue };
            entry.below = entry.below.saturating_sub(1);
            entry.files = entry.files.saturating_sub(usize::from(up == 0));
            if entry.below == 0 {
                self.folders.remove(folder);
                self.awaited.remove(folder);
                if let Some(fanotify) = &mut self.fanotify {
                    fanotify.forget_folder(folder);
                }
                self.inotify.forget_folder(folder);
            }
        }
    }

    /// Watches the file that lies at `path` now.
    pub(super) fn file(&mut self, path: &Path) {
        let refused = self.fanotify.as_mut().is_none_or(|fanotify| fanotify.mark_file(path).is_err());
        if refused {
            // It may be gone again: its folder tells.
            drop(self.inotify.watch_file(path));
        }
    }

    /// True where `path` is a folder on the way to an owned file.
    pub(super) fn on_the_way(&self, path: &Path) -> bool {
        self.folders.contains_key(path)
    }

    /// Something else may lie at `path`, a folder on the way, and below: that is watched from now on.
    pub(super) fn moved(&mut self, path: &Path) {
        let below: Vec<PathBuf> = self
            .folders
            .range::<Path, _>((std::ops::Bound::Included(path), std::ops::Bound::Unbounded))
            .map(|(folder, _)| folder)
            .take_while(|folder| folder.starts_with(path))
            .cloned()
            .collect();
        for folder in below {
            self.place(&folder);
        }
        if self.folders.values().all(|f| f.id.is_some()) {
            for folder in std::mem::take(&mut self.awaited) {
                let owned = self.folders.get(&folder).is_some_and(|f| f.files > 0);
                if let Some(fanotify) = self.fanotify.as_mut().filter(|_| !owned) {
                    fanotify.forget_entries(&folder);
                }
            }
        }
    }

    /// Folders on the way where another object lies than the one that is watched: something was mounted.
    pub(super) fn displaced(&self) -> Vec<PathBuf> {
        self.folders.iter().filter(|(path, f)| f.id != id_of(path)).map(|(path, _)| path.clone()).collect()
    }

    /// Everything that the kernel has for us now. True: fanotify has failed, and inotify has taken over.
    pub(super) fn read(&mut self, out: &mut Vec<(Change, Via)>) -> bool {
        let mut changes = Vec::new();
        let failed = self.fanotify.as_mut().and_then(|fanotify| fanotify.read(&mut changes).err());
        out.extend(changes.drain(..).map(|change| (change, Via::Fanotify)));
        self.inotify.read(&mut changes);
        out.extend(changes.into_iter().map(|change| (change, Via::Inotify)));
        let Some(err) = failed else { return false };
        tracing::warn!(%err, "fanotify cannot be read any more; inotify takes over");
        self.fanotify = None;
        self.fanotify_why = Some(err.to_string());
        let folders: Vec<PathBuf> = self.folders.keys().cloned().collect();
        for folder in folders {
            self.place(&folder);
        }
        true
    }

    /// Watches what lies at `folder` now.
    fn place(&mut self, folder: &Path) {
        let Some(entry) = self.folders.get(folder) else { return };
        let entries = entry.files > 0 || self.awaited.contains(folder);
        if let Some(fanotify) = &mut self.fanotify {
            fanotify.displaced(folder);
        }
        self.inotify.forget_folder(folder);
        let mut result = self.watch(folder, entries);
        if result.as_ref().is_err_and(absent) {
            self.wait_for(folder);
            // It may have come before its folder was watched.
            result = self.watch(folder, entries);
        }
        let id = result.is_ok().then(|| id_of(folder)).flatten();
        if let Some(entry) = self.folders.get_mut(folder) {
            entry.id = id;
        }
        if let Some(err) = result.err().filter(|err| !absent(err)) {
            tracing::warn!(folder = %folder.display(), %err, "cannot be watched; only the sweep looks there");
            self.inotify_why = Some(format!("{}: {err}", folder.display()));
        }
    }

    /// `folder` is not there: the nearest one above it that is tells when something comes.
    fn wait_for(&mut self, folder: &Path) {
        for above in folder.ancestors().skip(1) {
            if self.watch(above, true).is_ok() {
                self.awaited.insert(above.to_owned());
                return;
            }
        }
    }

    fn watch(&mut self, folder: &Path, entries: bool) -> io::Result<()> {
        let refused = match &mut self.fanotify {
            Some(fanotify) => match fanotify.mark_folder(folder, entries) {
                Ok(()) => return Ok(()),
                Err(err) => err,
            },
            None => io::Error::other("no fanotify"),
        };
        if absent(&refused) {
            return Err(refused);
        }
        tracing::debug!(folder = %folder.display(), err = %refused, "fanotify refuses this folder; inotify watches it");
        self.inotify.watch_folder(folder, entries)
    }
}

/// Stands for the files of a watched folder. No file can have the name: it is one byte too long.
const ANY: &str = match std::str::from_utf8(&[b'*'; 256]) {
    Ok(name) => name,
    Err(_) => "*",
};

/// Nothing is there, or no folder.
fn absent(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn id_of(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::lstat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
