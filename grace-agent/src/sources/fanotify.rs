//! fanotify: changes of owned files and of their folders' entries, with the process that made them.
//!
//! The kernel tells file handles, not paths: this file keeps the table from handle to what was marked, and turns
//! records into [`Change`]s. Only the files themselves and their folders are marked, never a file system: a mark
//! costs others nothing (see ebpf.md's figures in the bench).
#![expect(
    unsafe_code,
    reason = "fanotify(7) and name_to_handle_at(2) have no safe wrapper with file handles"
)]

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Masks for a file: what changes its content or metadata.
const FILE: u64 = libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE | libc::FAN_ATTRIB;
/// Masks for a folder: what changes its entries.
const FOLDER: u64 =
    libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO | libc::FAN_ONDIR;

/// Longest file handle (MAX_HANDLE_SZ, include/linux/exportfs.h).
const HANDLE_MAX: usize = 128;

/// Which object: file system id, handle type, handle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Handle {
    fsid: [u8; 8],
    kind: i32,
    bytes: Vec<u8>,
}

/// A change that the kernel reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An entry of a marked folder came, went or was replaced.
    Entry {
        /// Path of the entry.
        path: PathBuf,
        /// Process that did it; 0 where the kernel hides it.
        pid: u32,
    },
    /// A marked file itself was written, or its metadata changed.
    File {
        /// The path under which it was marked.
        path: PathBuf,
        /// Process that did it.
        pid: u32,
    },
    /// The kernel's queue was full: anything may have changed.
    Overflow,
}

/// A notification group.
pub struct Fanotify {
    fd: OwnedFd,
    folders: HashMap<Handle, PathBuf>,
    files: HashMap<Handle, PathBuf>,
    buffer: Vec<u8>,
}

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Fanotify {
    /// A new group; an error where the kernel or the lack of privilege refuses.
    pub fn open() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DIR_FID
            | libc::FAN_REPORT_NAME;
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC) as u32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, folders: HashMap::new(), files: HashMap::new(), buffer: vec![0; 64 << 10] })
    }

    /// Watches the entries of a folder.
    pub fn mark_folder(&mut self, path: &Path) -> io::Result<()> {
        let handle = handle_of(path)?;
        self.mark(path, libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR, FOLDER)?;
        self.folders.insert(handle, path.to_owned());
        Ok(())
    }

    /// Watches the file that lies at `path` now.
    pub fn mark_file(&mut self, path: &Path) -> io::Result<()> {
        let handle = handle_of(path)?;
        self.mark(path, libc::FAN_MARK_ADD, FILE)?;
        // The one that lay there before is displaced: its later writes are nobody's concern.
        self.files.retain(|_, p| p != path);
        self.files.insert(handle, path.to_owned());
        Ok(())
    }

    /// Forgets the file at `path`. Its mark goes with the inode or with the group; its events are ignored.
    pub fn forget_file(&mut self, path: &Path) {
        if self.files.values().any(|p| p == path) {
            // The mark may be gone with its inode already; then there is nothing to take off.
            drop(self.mark(path, libc::FAN_MARK_REMOVE, FILE));
            self.files.retain(|_, p| p != path);
        }
    }

    /// Forgets a folder.
    pub fn forget_folder(&mut self, path: &Path) {
        drop(self.mark(path, libc::FAN_MARK_REMOVE | libc::FAN_MARK_ONLYDIR, FOLDER));
        self.folders.retain(|_, p| p != path);
    }

    fn mark(&self, path: &Path, flags: u32, mask: u64) -> io::Result<()> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let flags = flags | libc::FAN_MARK_DONT_FOLLOW;
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        let rc =
            unsafe { libc::fanotify_mark(self.fd.as_raw_fd(), flags, mask, libc::AT_FDCWD, name.as_ptr()) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Everything that the kernel has for us now.
    pub fn read(&mut self, out: &mut Vec<Change>) -> io::Result<()> {
        loop {
            let length = match rustix::io::read(&self.fd, &mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(err) => return Err(err.into()),
            };
            let mut rest = &self.buffer[..length];
            while let Some((change, after)) = self.decode(rest) {
                out.extend(change);
                rest = after;
            }
        }
    }

    /// The first record of `bytes` and what follows it. Layout: `struct fanotify_event_metadata` and the information
    /// records behind it (include/uapi/linux/fanotify.h).
    fn decode<'a>(&self, bytes: &'a [u8]) -> Option<(Option<Change>, &'a [u8])> {
        let length = u32_at(bytes, 0)? as usize;
        let metadata = usize::from(u16_at(bytes, 6)?);
        let mask = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        let pid = u32_at(bytes, 20)?;
        let event = bytes.get(..length).filter(|e| e.len() >= metadata && metadata >= 24)?;
        let after = &bytes[length..];
        if mask & libc::FAN_Q_OVERFLOW != 0 {
            return Some((Some(Change::Overflow), after));
        }
        let mut infos = &event[metadata..];
        let mut change = None;
        while let Some(length) = u16_at(infos, 2).map(usize::from).filter(|n| *n >= 4 && *n <= infos.len()) {
            let (info, rest) = infos.split_at(length);
            infos = rest;
            let Some((handle, name)) = handle_in(info) else { continue };
            match info[0] {
                libc::FAN_EVENT_INFO_TYPE_DFID_NAME if mask & FOLDER & !libc::FAN_ONDIR != 0 => {
                    if let (Some(folder), Some(name)) = (self.folders.get(&handle), name) {
                        change = Some(Change::Entry { path: folder.join(name), pid });
                    }
                }
                libc::FAN_EVENT_INFO_TYPE_FID if mask & FILE != 0 => {
                    if let Some(path) = self.files.get(&handle) {
                        change = Some(Change::File { path: path.clone(), pid });
                    }
                }
                _ => {}
            }
        }
        Some((change, after))
    }
}

/// File system id, handle and name in an information record.
fn handle_in(info: &[u8]) -> Option<(Handle, Option<OsString>)> {
    let fsid = info.get(4..12)?.try_into().ok()?;
    let length = u32_at(info, 12)? as usize;
    let kind = i32::from_ne_bytes(info.get(16..20)?.try_into().ok()?);
    let bytes = info.get(20..20usize.checked_add(length)?)?.to_vec();
    let name = info.get(20 + length..).and_then(|rest| {
        let end = rest.iter().position(|b| *b == 0)?;
        (end > 0).then(|| OsStr::from_bytes(&rest[..end]).to_owned())
    });
    Some((Handle { fsid, kind, bytes }, name))
}

/// The handle of what lies at `path`, without following a link.
fn handle_of(path: &Path) -> io::Result<Handle> {
    #[repr(C)]
    struct Buffer {
        bytes: u32,
        kind: i32,
        handle: [u8; HANDLE_MAX],
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut buffer = Buffer { bytes: HANDLE_MAX as u32, kind: 0, handle: [0; HANDLE_MAX] };
    let mut mount = 0;
    // SAFETY: `buffer` begins like `struct file_handle` and has room for the `bytes` that it announces; `name` is
    // NUL-terminated; both outlive the call.
    let rc = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, name.as_ptr(), (&raw mut buffer).cast(), &raw mut mount, 0)
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero is a valid `struct statfs`, and the call below fills it.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is NUL-terminated and `fs` is a statfs to write to. The last component may be a link by now;
    // then the id is another one and no event matches: a missed event, which the sweep covers.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut fs) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fsid_t` is two 32-bit integers (statfs(2)) whose fields libc keeps private.
    let fsid: [u8; 8] = unsafe { std::mem::transmute(fs.f_fsid) };
    let length = (buffer.bytes as usize).min(HANDLE_MAX);
    Ok(Handle { fsid, kind: buffer.kind, bytes: buffer.handle[..length].to_vec() })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
