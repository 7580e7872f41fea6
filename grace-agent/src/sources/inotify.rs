//! inotify, where a file system refuses fanotify: the same changes, without the process that made them.
//!
//! A folder's watch tells of writes through names in that folder only; so the files are watched themselves, too.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use super::fanotify::Change;

/// For a file: what changes its content or metadata.
const FILE: WatchMask = WatchMask::MODIFY.union(WatchMask::CLOSE_WRITE).union(WatchMask::ATTRIB);
/// For a folder: what changes its entries.
const ENTRIES: WatchMask = WatchMask::CREATE.union(WatchMask::DELETE).union(WatchMask::MOVE);
/// For a folder on the way to a file: it goes elsewhere.
const FOLDER: WatchMask = WatchMask::MOVE_SELF.union(WatchMask::DELETE_SELF).union(WatchMask::ONLYDIR);

/// The fallback. It costs nothing until something is watched.
#[derive(Default)]
pub(super) struct Fallback {
    inotify: Option<Inotify>,
    // One object can have several paths: hard links, bind mounts.
    folders: HashMap<WatchDescriptor, Vec<PathBuf>>,
    files: HashMap<WatchDescriptor, Vec<PathBuf>>,
}

impl Fallback {
    /// The descriptor, once there is one.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// How many folders it watches.
    pub(super) fn folders(&self) -> usize {
        self.folders.values().map(Vec::len).sum()
    }

    /// Watches a folder: whether it stays where it is and, with `entries`, what is in it.
    pub(super) fn watch_folder(&mut self, path: &Path, entries: bool) -> io::Result<()> {
        let mask = if entries { FOLDER | ENTRIES } else { FOLDER };
        let watch = self.add(path, mask)?;
        put(&mut self.folders, watch, path);
        Ok(())
    }

    /// Watches the file that lies at `path` now.
    pub(super) fn watch_file(&mut self, path: &Path) -> io::Result<()> {
        let watch = self.add(path, FILE)?;
        self.forget_file(path);
        put(&mut self.files, watch, path);
        Ok(())
    }

    /// Does not watch a file any more.
    pub(super) fn forget_file(&mut self, path: &Path) {
        let watch = forget(&mut self.files, path);
        self.remove(watch);
    }

    /// Does not watch a folder any more.
    pub(super) fn forget_folder(&mut self, path: &Path) {
        let watch = forget(&mut self.folders, path);
        self.remove(watch);
    }

    fn add(&mut self, path: &Path, mask: WatchMask) -> io::Result<WatchDescriptor> {
        let inotify = match &mut self.inotify {
            Some(inotify) => inotify,
            None => self.inotify.insert(Inotify::init()?),
        };
        // The same object may be watched under another path already.
        inotify.watches().add(path, mask | WatchMask::MASK_ADD | WatchMask::DONT_FOLLOW)
    }

    fn remove(&mut self, watch: Option<WatchDescriptor>) {
        if let (Some(inotify), Some(watch)) = (&mut self.inotify, watch) {
            // It may be gone with what it watched.
            drop(inotify.watches().remove(watch));
        }
    }

    /// Everything that the kernel has for us now.
    pub(super) fn read(&mut self, out: &mut Vec<Change>) {
        let Some(inotify) = &mut self.inotify else { return };
        let mut buffer = [0; 4096];
        while let Ok(events) = inotify.read_events(&mut buffer) {
            let mut any = false;
            for event in events {
                any = true;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    out.push(Change::Overflow);
                }
                let folders = self.folders.get(&event.wd).into_iter().flatten();
                if let Some(name) = event.name {
                    out.extend(folders.map(|folder| Change::Entry { path: folder.join(name), pid: 0 }));
                } else if event.mask.intersects(EventMask::MOVE_SELF | EventMask::DELETE_SELF) {
                    out.extend(folders.map(|folder| Change::Folder { path: folder.clone(), pid: 0 }));
                }
                if event.name.is_none() {
                    let files = self.files.get(&event.wd).into_iter().flatten();
                    out.extend(files.map(|path| Change::File { path: path.clone(), pid: 0 }));
                }
                if event.mask.contains(EventMask::IGNORED) {
                    // The number may be given to another object.
                    self.folders.remove(&event.wd);
                    self.files.remove(&event.wd);
                }
            }
            if !any {
                break;
            }
        }
    }
}

fn put(table: &mut HashMap<WatchDescriptor, Vec<PathBuf>>, watch: WatchDescriptor, path: &Path) {
    let paths = table.entry(watch).or_default();
    if !paths.iter().any(|p| p == path) {
        paths.push(path.to_owned());
    }
}

/// Takes `path` out; the watch that nobody needs any more.
fn forget(table: &mut HashMap<WatchDescriptor, Vec<PathBuf>>, path: &Path) -> Option<WatchDescriptor> {
    let watch = table.iter().find(|(_, paths)| paths.iter().any(|p| p == path))?.0.clone();
    let paths = table.get_mut(&watch)?;
    paths.retain(|p| p != path);
    if !paths.is_empty() {
        return None;
    }
    table.remove(&watch);
    Some(watch)
}
