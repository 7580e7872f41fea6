//! The one way in which Grace walks to a path that it may write to: no symbolic link is followed anywhere.
//!
//! [`Parent`] holds the folder open, so that everything after it happens in that very folder, whatever is renamed
//! around it. [`own_name`] turns what a person typed into the path that Grace keeps, or says why it cannot own it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags, fstat, openat,
    openat2, statx,
};
use rustix::io::Errno;

use crate::file_meta;

/// Why a path cannot be walked to, or owned. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// See the message.
    #[error("`{}` is not an absolute path: start it with `/`", shown(path))]
    NotAbsolute {
        /// As given.
        path: PathBuf,
    },
    /// See the message.
    #[error("`{}` has an empty, `.` or `..` part: name the file by its plain absolute path", shown(path))]
    NotPlain {
        /// As given.
        path: PathBuf,
    },
    /// See the message.
    #[error("the folder of `{}` is not there: create it, then try again", shown(path))]
    FolderMissing {
        /// The file's path.
        path: PathBuf,
    },
    /// See the message.
    #[error(
        "a folder on the way to `{}` is a symbolic link or not a folder: Grace follows none; \
         name the file by its real path (`realpath {}`)",
        shown(path),
        shown(path)
    )]
    LinkOnTheWay {
        /// The file's path.
        path: PathBuf,
    },
    /// See the message.
    #[error("cannot open the folder of `{}`", shown(path))]
    OpenFolder {
        /// The file's path.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// See the message.
    #[error("cannot resolve the folder of `{}`", shown(path))]
    ResolveFolder {
        /// The file's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// See the message.
    #[error("`{}` is a folder: name the files in it", shown(path))]
    IsFolder {
        /// The path.
        path: PathBuf,
    },
    /// See the message.
    #[error("`{}` is a symbolic link to `{}`: name the file that it points to", shown(path), shown(target))]
    IsLink {
        /// The path.
        path: PathBuf,
        /// Where the link points, as written in it.
        target: PathBuf,
    },
    /// See the message.
    #[error("`{}` is a {what}: Grace owns regular files only", shown(path))]
    IsSpecial {
        /// The path.
        path: PathBuf,
        /// `fifo`, `socket` or `device`.
        what: &'static str,
    },
    /// See the message.
    #[error(
        "`{}` is a mount point of its own (a bind mount), which cannot be replaced: name the file where it really lies",
        shown(path)
    )]
    IsMount {
        /// The path.
        path: PathBuf,
    },
    /// See the message.
    #[error("`{}` lies on {what}, made up by the kernel: there is nothing to put back", shown(path))]
    IsKernels {
        /// The path.
        path: PathBuf,
        /// The file system's name.
        what: &'static str,
    },
    /// See the message.
    #[error("`{}` is not there: create it first", shown(path))]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// See the message.
    #[error("cannot read `{}`: Grace must be able to read what it keeps", shown(path))]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
}

/// The folder of a path, held open, and the name in it.
#[derive(Debug)]
pub struct Parent {
    fd: OwnedFd,
    path: PathBuf,
    name: OsString,
}

/// What lies under a name, opened without following a link, waiting for a fifo or touching a device.
#[derive(Debug)]
pub enum Entry {
    /// Nothing.
    Missing,
    /// Something that is not a regular file.
    Other(Stat),
    /// A regular file.
    Regular(File, Stat),
}

impl Parent {
    /// Opens the folder of `path`, which must be absolute and plain: no empty, `.` or `..` part.
    ///
    /// # Errors
    /// Where the path is not plain, or a folder on the way is missing, unreadable or a symbolic link.
    pub fn open(path: &Path) -> Result<Self, PathError> {
        let (folder, name) = split(path)?;
        let failed = |errno| match errno {
            Errno::NOENT => PathError::FolderMissing { path: path.to_owned() },
            Errno::LOOP | Errno::NOTDIR => PathError::LinkOnTheWay { path: path.to_owned() },
            source => PathError::OpenFolder { path: path.to_owned(), source },
        };
        let fd = open_folder(folder).map_err(failed)?;
        Ok(Self { fd, path: path.to_owned(), name: name.to_owned() })
    }

    /// The folder, opened with O_PATH.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The name in the folder.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The whole path, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's path, as given.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The same folder, opened so that it can be read and synced.
    ///
    /// # Errors
    /// Where the folder may not be read.
    pub fn readable(&self) -> Result<OwnedFd, PathError> {
        openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| PathError::OpenFolder { path: self.path.clone(), source })
    }

    /// What lies under the name now.
    ///
    /// # Errors
    /// As the kernel says it.
    pub fn entry(&self) -> Result<Entry, Errno> {
        open_entry(self.fd(), &self.name)
    }
}

/// What lies under `name` in `folder`, opened for reading where it is a regular file.
///
/// The name is looked up once, with O_PATH, which touches nothing; only a regular file is then opened for reading,
/// through that handle, so that nobody can slip a fifo or a device in between.
///
/// # Errors
/// As the kernel says it. NOENT after the name was found means that `/proc` is not mounted.
pub fn open_entry(folder: BorrowedFd<'_>, name: &OsStr) -> Result<Entry, Errno> {
    let handle = match openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Ok(Entry::Missing),
        Err(errno) => return Err(errno),
    };
    let stat = fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Entry::Other(stat));
    }
    let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match openat(CWD, &again, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner and CAP_FOWNER may leave the access time alone.
        Err(Errno::PERM) => openat(CWD, &again, flags, Mode::empty())?,
        other => other?,
    };
    Ok(Entry::Regular(File::from(fd), stat))
}

/// The path under which Grace keeps what a person called `path`: absolute (from `cwd`), its folder resolved, so that
/// `/var/run/x` becomes `/run/x`. The file itself must be a readable regular file that can be put back.
///
/// # Errors
/// Where it cannot be owned, with the reason and what to name instead.
pub fn own_name(path: &Path, cwd: &Path) -> Result<PathBuf, PathError> {
    let absolute = cwd.join(path);
    if !absolute.is_absolute() {
        return Err(PathError::NotAbsolute { path: absolute });
    }
    let (Some(folder), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        // `/` and everything that ends in `..`.
        return Err(PathError::IsFolder { path: absolute });
    };
    let folder = folder.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PathError::FolderMissing { path: absolute.clone() },
        _ => PathError::ResolveFolder { path: absolute.clone(), source },
    })?;
    let real = folder.join(name);
    let unreadable = |source| PathError::Unreadable { path: real.clone(), source };
    let parent = Parent::open(&real)?;
    match parent.entry().map_err(unreadable)? {
        Entry::Missing => return Err(PathError::Missing { path: real }),
        Entry::Other(stat) => {
            return Err(match file_meta::kind(&stat) {
                "directory" => PathError::IsFolder { path: real },
                "symlink" => PathError::IsLink { target: link_target(&parent), path: real },
                what => PathError::IsSpecial { path: real, what },
            });
        }
        Entry::Regular(file, _) => {
            let fs = rustix::fs::fstatfs(&file).map_err(unreadable)?;
            if let Some((_, what)) = KERNELS.iter().find(|(magic, _)| i128::from(fs.f_type) == *magic) {
                return Err(PathError::IsKernels { path: real, what });
            }
            let is_mount = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::empty())
                .is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
            if is_mount {
                return Err(PathError::IsMount { path: real });
            }
        }
    }
    Ok(real)
}

fn link_target(parent: &Parent) -> PathBuf {
    match rustix::fs::readlinkat(parent.fd(), parent.name(), Vec::new()) {
        Ok(target) => PathBuf::from(OsStr::from_bytes(target.as_bytes())),
        Err(_) => PathBuf::from("?"),
    }
}

/// Splits a plain absolute path into folder and name.
fn split(path: &Path) -> Result<(&Path, &OsStr), PathError> {
    let bytes = path.as_os_str().as_bytes();
    let Some(rest) = bytes.strip_prefix(b"/") else {
        return Err(PathError::NotAbsolute { path: path.to_owned() });
    };
    // `Path::components` would silently drop `.`, `//` and a trailing `/`.
    if rest.split(|b| *b == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
        return Err(PathError::NotPlain { path: path.to_owned() });
    }
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok((folder, name)),
        _ => Err(PathError::NotPlain { path: path.to_owned() }),
    }
}

fn open_folder(folder: &Path) -> Result<OwnedFd, Errno> {
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        let walk = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(CWD, folder, FOLDER, Mode::empty(), walk) {
            // A kernel before 5.6, or a sandbox that does not know the call: some answer EPERM for that. A real
            // EPERM comes back from the slower walk.
            Err(Errno::NOSYS) => NO_OPENAT2.store(true, Ordering::Relaxed),
            Err(Errno::PERM) => {}
            other => return other,
        }
    }
    open_folder_by_steps(folder)
}

/// What openat2 does, one folder at a time.
fn open_folder_by_steps(folder: &Path) -> Result<OwnedFd, Errno> {
    let mut at = openat(CWD, "/", FOLDER, Mode::empty())?;
    for part in folder.as_os_str().as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty()) {
        at = openat(&at, OsStr::from_bytes(part), FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        // A magic link (`/proc/PID/cwd`) is a symlink to O_NOFOLLOW, so it ends in ENOTDIR like any other.
    }
    Ok(at)
}

fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Set once openat2 turned out to be missing, to save a syscall a walk.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// File systems that the kernel makes up, by `f_type` (linux/magic.h).
const KERNELS: &[(i128, &str)] = &[
    (0x9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x6367_7270, "cgroup2"),
    (0x0027_e0eb, "cgroup"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0x6265_6570, "configfs"),
    (0xcafe_4a11, "bpffs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0xde5e_81e4, "efivarfs"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// What `own_name` answers about a name in a folder with one of everything.
    fn check(name: &str, expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir(top.join("real")).unwrap();
        fs::write(top.join("real/a.conf"), "a").unwrap();
        fs::write(top.join("b.conf"), "b").unwrap();
        symlink("real", top.join("alias")).unwrap();
        symlink("real/a.conf", top.join("link.conf")).unwrap();
        rustix::fs::mknodat(CWD, top.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let answer = match own_name(Path::new(name), &top) {
            Ok(path) => path.display().to_string(),
            Err(err) => err.to_string(),
        };
        assert_eq!(answer.replace(&top.display().to_string(), "TOP"), expect);
    }

    #[test]
    fn a_typed_path_becomes_the_path_that_is_kept() {
        check("b.conf", "TOP/b.conf");
        check("./real/../b.conf", "TOP/b.conf");
        check("alias/a.conf", "TOP/real/a.conf");
    }

    #[test]
    fn what_cannot_be_owned_is_refused_with_what_to_do() {
        check(
            "link.conf",
            "`TOP/link.conf` is a symbolic link to `real/a.conf`: name the file that it points to",
        );
        check("real", "`TOP/real` is a folder: name the files in it");
        check("real/..", "`TOP/real/..` is a folder: name the files in it");
        check("pipe", "`TOP/pipe` is a fifo: Grace owns regular files only");
        check("none.conf", "`TOP/none.conf` is not there: create it first");
        check("gone/x", "the folder of `TOP/gone/x` is not there: create it, then try again");
        check("/dev/null", "`/dev/null` is a device: Grace owns regular files only");
        check(
            "/proc/self/comm",
            &format!(
                "`/proc/{}/comm` lies on procfs, made up by the kernel: there is nothing to put back",
                std::process::id()
            ),
        );
    }

    #[test]
    fn only_plain_absolute_paths_are_walked() {
        for bad in ["", "a", "./a", "/", "/a/../b", "/a/./b", "/a//b", "/a/", "//a", "/..", "/."] {
            let err = Parent::open(Path::new(bad)).unwrap_err();
            assert!(
                matches!(err, PathError::NotAbsolute { .. } | PathError::NotPlain { .. }),
                "{bad:?}: {err:?}"
            );
        }
    }

    #[test]
    fn no_link_on_the_way_is_followed_with_and_without_openat2() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("real/deep")).unwrap();
        symlink("real", top.join("alias")).unwrap();
        fs::write(top.join("plain"), "").unwrap();
        for walk in [open_folder, open_folder_by_steps] {
            assert!(walk(&top.join("real/deep")).is_ok());
            assert!(walk(Path::new("/")).is_ok());
            for bad in ["alias", "alias/deep", "plain"] {
                let err = walk(&top.join(bad)).unwrap_err();
                assert!(matches!(err, Errno::LOOP | Errno::NOTDIR), "{bad}: {err:?}");
            }
            assert_eq!(walk(&top.join("none")).unwrap_err(), Errno::NOENT);
            assert!(walk(Path::new("/proc/self/cwd")).is_err());
        }
    }
}
