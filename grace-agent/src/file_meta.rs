//! What a file carries beside its content: read from, and put on, an open file.
//!
//! Everything goes through a file descriptor, never through a path: whoever walked to the file decided which one it is.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use rustix::fs::{
    FileType, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, XattrFlags, fchmod, fchown, fgetxattr,
    flistxattr, fremovexattr, fsetxattr, futimens,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::file_state::{FileId, Meta};
use crate::sha256::{hex, unhex};

/// The largest file whose content Grace keeps or compares without knowing its size beforehand: 64 MiB.
pub const MAX_CONTENT: u64 = 64 << 20;

/// A step that failed while attributes were read or put on.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// See the message.
    #[error("cannot list the extended attributes")]
    ListXattrs(#[source] Errno),
    /// See the message.
    #[error("cannot read the extended attribute {name}")]
    ReadXattr {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: Errno,
    },
    /// See the message.
    #[error("cannot set the extended attribute {name}")]
    SetXattr {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: Errno,
    },
    /// See the message.
    #[error("the kept value of the extended attribute {name} is not hex: Grace's state is damaged")]
    BadValue {
        /// Its name.
        name: String,
    },
    /// See the message.
    #[error("cannot give the file to {uid}:{gid}")]
    Owner {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// What the kernel said.
        source: Errno,
    },
    /// See the message.
    #[error("cannot set the mode to {mode:04o}")]
    Mode {
        /// Permission bits.
        mode: u32,
        /// What the kernel said.
        source: Errno,
    },
    /// See the message.
    #[error("cannot set the modification time")]
    Times(#[source] Errno),
}

impl MetaError {
    /// What the kernel said, where it said something.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::ListXattrs(errno) | Self::Times(errno) => Some(*errno),
            Self::ReadXattr { source, .. }
            | Self::SetXattr { source, .. }
            | Self::Owner { source, .. }
            | Self::Mode { source, .. } => Some(*source),
            Self::BadValue { .. } => None,
        }
    }
}

/// Which object `stat` describes.
#[must_use]
pub fn id(stat: &Stat) -> FileId {
    FileId { dev: stat.st_dev, ino: stat.st_ino }
}

/// What kind of object `stat` describes, as [`crate::file_state::FileState::NotRegular`] names it.
#[must_use]
pub fn kind(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        _ => "device",
    }
}

/// Modification time in nanoseconds since the epoch.
#[must_use]
pub fn mtime_ns(stat: &Stat) -> i64 {
    stat.st_mtime.saturating_mul(NS).saturating_add(i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

/// Size in bytes.
#[must_use]
pub fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// True where nothing was written, cut or changed between two looks at the same open file.
#[must_use]
pub fn same(before: &Stat, after: &Stat) -> bool {
    let key = |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    key(before) == key(after)
}

/// Owner, mode, size and extended attributes of the open file `fd`, which `stat` describes.
///
/// # Errors
/// Where an attribute cannot be read.
pub fn read(fd: impl AsFd, stat: &Stat) -> Result<Meta, MetaError> {
    Ok(Meta {
        size: size(stat),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        xattrs: xattrs(fd)?,
    })
}

/// Puts owner, mode, extended attributes and modification time on the open file `fd`; says in words what this file
/// system could not take.
///
/// Owner first: changing it clears setuid, setgid and file capabilities. Then the mode, then the attributes, which
/// may refine the mode (ACLs).
///
/// # Errors
/// Where one of them cannot be put on. An attribute that the file system does not know at all is a note instead:
/// the content is worth more than the attribute.
pub fn put(fd: impl AsFd, meta: &Meta, mtime_ns: i64) -> Result<Vec<String>, MetaError> {
    let fd = fd.as_fd();
    let mut notes = Vec::new();
    fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
        .map_err(|source| MetaError::Owner { uid: meta.uid, gid: meta.gid, source })?;
    fchmod(fd, Mode::from_raw_mode(meta.mode))
        .map_err(|source| MetaError::Mode { mode: meta.mode, source })?;

    // A new file may have inherited attributes from its folder (a default ACL, a label).
    let inherited = xattrs(fd)?;
    for (name, value) in &meta.xattrs {
        if inherited.get(name) == Some(value) {
            continue;
        }
        let bytes = unhex(value).ok_or_else(|| MetaError::BadValue { name: name.clone() })?;
        match fsetxattr(fd, name.as_str(), &bytes, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => {
                notes.push(format!("this file system cannot hold the extended attribute {name}"));
            }
            Err(source) => return Err(MetaError::SetXattr { name: name.clone(), source }),
        }
    }
    for name in inherited.keys().filter(|name| !meta.xattrs.contains_key(*name)) {
        if let Err(errno) = fremovexattr(fd, name.as_str()) {
            notes
                .push(format!("the folder's extended attribute {name} stays on the file ({})", words(errno)));
        }
    }

    let modified = Timespec { tv_sec: mtime_ns.div_euclid(NS), tv_nsec: mtime_ns.rem_euclid(NS) };
    let times =
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified };
    futimens(fd, &times).map_err(MetaError::Times)?;
    Ok(notes)
}

/// What the kernel said, without the number.
#[must_use]
pub fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Extended attributes that belong to the file's state, values in hex.
fn xattrs(fd: impl AsFd) -> Result<BTreeMap<String, String>, MetaError> {
    let fd = fd.as_fd();
    let mut names: Vec<u8> = Vec::new();
    let mut room = 512;
    loop {
        names.clear();
        names.reserve(room);
        match flistxattr(fd, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => break,
            // The list grew beyond the buffer; 64 KiB is the kernel's own limit.
            Err(Errno::RANGE) if room < XATTR_MAX => room = XATTR_MAX,
            Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
            Err(errno) => return Err(MetaError::ListXattrs(errno)),
        }
    }
    let mut out = BTreeMap::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        // A name that is not UTF-8 cannot be kept as data that people read; no program is known to use one.
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if !belongs(name) {
            continue;
        }
        let mut value: Vec<u8> = Vec::new();
        let mut room = 256;
        loop {
            value.clear();
            value.reserve(room);
            match fgetxattr(fd, name, rustix::buffer::spare_capacity(&mut value)) {
                Ok(_) => {
                    out.insert(name.to_owned(), hex(&value));
                    break;
                }
                Err(Errno::RANGE) if room < XATTR_MAX => room = XATTR_MAX,
                // It went away between the two calls, or is one of those that are listed but not readable.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => break,
                Err(source) => return Err(MetaError::ReadXattr { name: name.to_owned(), source }),
            }
        }
    }
    Ok(out)
}

/// The kernel computes `security.ima` and `security.evm` itself, and `system.` names are views of what the file
/// system keeps elsewhere; ACLs are the exception.
fn belongs(name: &str) -> bool {
    !matches!(name, "security.ima" | "security.evm")
        && (!name.starts_with("system.") || name.starts_with("system.posix_acl_"))
}

const NS: i64 = 1_000_000_000;
const XATTR_MAX: usize = 64 * 1024;
