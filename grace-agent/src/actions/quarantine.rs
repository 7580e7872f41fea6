//! Where displaced things go: evidence, and the way back from a repair that was wrong. Nothing is ever deleted on the
//! way: it arrives whole in the quarantine, or stays where it was under a name that says so.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Stat, fsync, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::clock;
use crate::file_meta::{self, MAX_CONTENT, words};
use crate::file_state::{Digest, FileId};
use crate::safe_path::{Entry, open_entry};
use crate::sha256::{each_block, hex, of_reader};
use crate::snapshots::displaced::SEALED;

/// Where a displaced thing lies now.
#[derive(Debug)]
pub(super) struct Kept {
    /// Its path.
    pub(super) path: PathBuf,
    /// What should be known about it, where it is not simply in the quarantine.
    pub(super) note: Option<String>,
    folder: OwnedFd,
    name: OsString,
}

impl Kept {
    /// Makes its arrival durable. A crash before leaves it under its old name or its new one.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        fsync(&self.folder)
    }

    /// SHA-256 of a regular file of at most [`MAX_CONTENT`].
    pub(super) fn digest(&self) -> Option<Digest> {
        let Ok(Entry::Regular(mut file, stat)) = open_entry(self.folder.as_fd(), &self.name) else {
            return None;
        };
        let size = file_meta::size(&stat);
        if size > MAX_CONTENT {
            return None;
        }
        of_reader(&mut file, size, MAX_CONTENT).ok().map(|(digest, _)| digest)
    }
}

/// A folder, by handle and by path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folder<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) path: &'a Path,
}

/// Moves `from` out of `folder` into the quarantine, as `<tag>-<name>`, where a rename can do it.
pub(super) fn rename_in(
    folder: Folder<'_>,
    from: &OsStr,
    quarantine: &Path,
    tag: &str,
    name: &OsStr,
) -> Option<Kept> {
    move_in(folder, from, quarantine, tag, name, false).ok()
}

/// Moves `from` out of `folder` into the quarantine, as `<tag>-<name>`, copying it where it must. Where that cannot be
/// done it stays in its folder as `.grace-displaced-<tag>-…`, with a note saying why.
pub(super) fn keep(
    folder: Folder<'_>,
    from: &OsStr,
    quarantine: &Path,
    tag: &str,
    name: &OsStr,
) -> Result<Kept, Errno> {
    let why = match move_in(folder, from, quarantine, tag, name, true) {
        Ok(kept) => return Ok(kept),
        Err(why) => why,
    };
    let beside = OsString::from(format!(".grace-displaced-{}-{}", plain(tag), random_hex()?));
    rename_new(folder.fd, from, folder.fd, &beside)?;
    let path = folder.path.join(&beside);
    let note = Some(format!("what lay there stays at {}, not in the quarantine: {why}", path.display()));
    Ok(Kept { path, note, folder: folder.fd.try_clone_to_owned().map_err(errno_of)?, name: beside })
}

/// Removes what was displaced first, until at most `files` things of at most `bytes` are left, none of them older than
/// `age`; says how many went. Copies that are not complete are left alone.
///
/// # Errors
/// Where the folder cannot be read, or a thing in it not be removed; the others were tried.
pub fn prune(quarantine: &Path, files: usize, bytes: u64, age: Duration) -> io::Result<usize> {
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(quarantine)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(COPYING.as_bytes()) {
            continue;
        }
        let meta = entry.path().symlink_metadata()?;
        // It came by a rename, which sets the change time and nothing else.
        let arrived = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        kept.push((arrived, meta.len(), meta.is_dir(), entry.path()));
    }
    // The newest first.
    kept.sort_by(|a, b| b.cmp(a));
    let oldest = i128::from(clock::wall_ns()) - i128::try_from(age.as_nanos()).unwrap_or(i128::MAX / 2);
    let (mut total, mut removed, mut failed) = (0_u64, 0, None);
    for (nth, (arrived, size, is_folder, path)) in kept.into_iter().enumerate() {
        total = total.saturating_add(size);
        if nth < files && total <= bytes && arrived >= oldest {
            continue;
        }
        // Neither follows a link.
        let result = if is_folder { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match result {
            Ok(()) => removed += 1,
            Err(err) => failed = Some(err),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// What the restores of a firing displaced, the newest first: `tag` is the firing's id.
///
/// # Errors
/// Where the folder cannot be read.
pub fn displaced_by(quarantine: &Path, tag: &str, name: &OsStr) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let (front, back) = (format!("{}-", plain(tag)), name.as_bytes());
    for entry in std::fs::read_dir(quarantine)? {
        let entry = entry?;
        let given = entry.file_name();
        // `f-12-<rung>-<name>`, cut to 200 bytes, perhaps with `-<8 hex>` behind, and sealed with another ending.
        let Some(rest) = given.as_bytes().strip_prefix(front.as_bytes()) else { continue };
        let rung = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let Some(rest) = rest.get(rung..).and_then(|rest| rest.strip_prefix(b"-")) else { continue };
        let back = &back[..back.len().min(200 - (front.len() + rung + 1).min(200))];
        let suffix = rest.strip_prefix(back);
        let fits = |suffix: &[u8]| {
            let suffix = suffix.strip_suffix(SEALED.as_bytes()).unwrap_or(suffix);
            suffix.is_empty() || (suffix.len() == 9 && suffix[0] == b'-')
        };
        if rung > 0 && suffix.is_some_and(fits) {
            let meta = entry.path().symlink_metadata()?;
            found.push(((meta.ctime(), meta.ctime_nsec()), entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Removes copies that a crash cut short: what they were copied from is still where it was.
pub(super) fn remove_torn_copies(quarantine: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(quarantine)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(COPYING.as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// `tag` as a part of a file name: letters, digits, `-` and `_`, at most 40.
pub(super) fn plain(tag: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    tag.chars().take(40).map(fits).collect()
}

/// 8 random hex digits.
pub(super) fn random_hex() -> Result<String, Errno> {
    let mut random = [0_u8; 4];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(hex(&random))
}

fn move_in(
    folder: Folder<'_>,
    from: &OsStr,
    quarantine: &Path,
    tag: &str,
    name: &OsStr,
    may_copy: bool,
) -> Result<Kept, String> {
    let inside = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let into = openat(CWD, quarantine, inside, Mode::empty())
        .map_err(|errno| format!("cannot open {}: {}", quarantine.display(), words(errno)))?;
    let say = |errno: Errno| words(errno);
    let mut to = quarantined_name(tag, name, None);
    for _ in 0..8 {
        let done = match rename_new(folder.fd, from, into.as_fd(), &to) {
            Err(Errno::XDEV) if may_copy => copy_in(folder.fd, from, &into, &to)?,
            Err(Errno::EXIST) => false,
            other => {
                other.map_err(say)?;
                true
            }
        };
        if done {
            return Ok(Kept { path: quarantine.join(&to), note: None, folder: into, name: to });
        }
        to = quarantined_name(tag, name, Some(&random_hex().map_err(say)?));
    }
    Err("no free name".into())
}

/// `<tag>-<name>`, or `<tag>-<name>-<suffix>`, within the 255 bytes of a name.
fn quarantined_name(tag: &str, name: &OsStr, suffix: Option<&str>) -> OsString {
    let mut bytes = plain(tag).into_bytes();
    bytes.push(b'-');
    bytes.extend_from_slice(name.as_bytes());
    bytes.truncate(200);
    if let Some(suffix) = suffix {
        bytes.push(b'-');
        bytes.extend_from_slice(suffix.as_bytes());
    }
    OsString::from_vec(bytes)
}

/// Across file systems: copies, makes the copy durable, then removes the original. False: the name is taken.
fn copy_in(folder: BorrowedFd<'_>, from: &OsStr, into: &OwnedFd, to: &OsStr) -> Result<bool, String> {
    let say = |errno: Errno| words(errno);
    let temp = OsString::from(format!("{COPYING}{}", random_hex().map_err(say)?));
    let original = match open_entry(folder, from).map_err(say)? {
        Entry::Missing => return Err("it is gone".into()),
        Entry::Regular(file, stat) => {
            if file_meta::size(&stat) > MAX_CONTENT {
                return Err(format!(
                    "it lies on another file system and is larger than {} MiB",
                    MAX_CONTENT >> 20
                ));
            }
            if let Err(why) = copy_file(file, &stat, into, &temp) {
                // Only the copy, in Grace's own folder.
                unlinkat(into, &temp, AtFlags::empty()).ok();
                return Err(why);
            }
            stat
        }
        Entry::Other(stat) if file_meta::kind(&stat) == "symlink" => {
            let target = rustix::fs::readlinkat(folder, from, Vec::new()).map_err(say)?;
            rustix::fs::symlinkat(&target, into, &temp).map_err(say)?;
            stat
        }
        Entry::Other(stat) => {
            return Err(format!("it is a {} on another file system", file_meta::kind(&stat)));
        }
    };
    if let Err(errno) = rename_new(into.as_fd(), &temp, into.as_fd(), to) {
        unlinkat(into, &temp, AtFlags::empty()).ok();
        return if errno == Errno::EXIST { Ok(false) } else { Err(words(errno)) };
    }
    fsync(into).map_err(say)?;
    remove_if(folder, from, file_meta::id(&original)).map_err(say)?;
    Ok(true)
}

fn copy_file(mut from: File, stat: &Stat, into: &OwnedFd, temp: &OsStr) -> Result<(), String> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = openat(into, temp, flags, Mode::from_raw_mode(0o600)).map_err(words)?;
    let mut to = File::from(to);
    let size = file_meta::size(stat);
    each_block(&mut from, size, MAX_CONTENT, |block| to.write_all(block)).map_err(|err| err.to_string())?;
    let with_cause = |err: file_meta::MetaError| {
        let why = err.errno().map_or_else(String::new, |errno| format!(": {}", words(errno)));
        format!("{err}{why}")
    };
    let meta = file_meta::read(&from, stat).map_err(with_cause)?;
    file_meta::put(&to, &meta, file_meta::mtime_ns(stat)).map_err(with_cause)?;
    fsync(&to).map_err(words)
}

/// Removes `name` where it still is the object `id`. Somebody who may write to the folder can swap it in between; what
/// they lose then is their own.
pub(super) fn remove_if(folder: BorrowedFd<'_>, name: &OsStr, id: FileId) -> Result<(), Errno> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if file_meta::id(&stat) == id => unlinkat(folder, name, AtFlags::empty()),
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Renames to a name that must be free. File systems that cannot promise that get a check before.
pub(super) fn rename_new(
    from_folder: BorrowedFd<'_>,
    from: &OsStr,
    to_folder: BorrowedFd<'_>,
    to: &OsStr,
) -> Result<(), Errno> {
    match renameat_with(from_folder, from, to_folder, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match statat(to_folder, to, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => rustix::fs::renameat(from_folder, from, to_folder, to),
                Ok(_) => Err(Errno::EXIST),
                Err(errno) => Err(errno),
            }
        }
        other => other,
    }
}

fn errno_of(err: io::Error) -> Errno {
    Errno::from_io_error(&err).unwrap_or(Errno::IO)
}

/// Names of copies that are not complete.
const COPYING: &str = ".copying-";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_oldest_go_first_and_what_a_firing_displaced_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let put = |name: &str, size: usize| {
            fs::write(folder.join(name), vec![b'x'; size]).unwrap();
            // Arrivals are told apart by their change time, which has the grain of the kernel's clock.
            std::thread::sleep(Duration::from_millis(12));
        };
        for name in
            ["f-1-0-a.conf", "f-1-0-a.conf-0123abcd.age", "f-12-0-a.conf", "f-1-0-b.conf", ".copying-1"]
        {
            put(name, 10);
        }
        let found = displaced_by(folder, "f-1", OsStr::new("a.conf")).unwrap();
        let names: Vec<_> = found.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["f-1-0-a.conf-0123abcd.age", "f-1-0-a.conf"]);
        assert!(displaced_by(folder, "f-2", OsStr::new("a.conf")).unwrap().is_empty());

        let day = Duration::from_secs(86_400);
        assert_eq!(prune(folder, 10, 1000, day).unwrap(), 0);
        assert_eq!(prune(folder, 10, 35, day).unwrap(), 1);
        assert!(!folder.join("f-1-0-a.conf").exists());
        fs::create_dir(folder.join("f-3-0-was-a-folder")).unwrap();
        fs::write(folder.join("f-3-0-was-a-folder/x"), "x").unwrap();
        assert_eq!(prune(folder, 1, u64::MAX, day).unwrap(), 3);
        assert!(folder.join("f-3-0-was-a-folder/x").exists());
        assert_eq!(prune(folder, 9, u64::MAX, Duration::ZERO).unwrap(), 1);
        assert!(folder.join(".copying-1").exists());
    }
}
