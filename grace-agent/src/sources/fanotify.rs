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
const ENTRIES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
/// Masks for a folder on the way to a file: it goes elsewhere, and the file with it.
const FOLDER: u64 = libc::FAN_MOVE_SELF | libc::FAN_DELETE_SELF | libc::FAN_ONDIR;

/// `AT_HANDLE_FID` (Linux 6.5): a handle that need not be opened again, such as fanotify reports where the file
/// system has no other, overlayfs among them.
const AT_HANDLE_FID: i32 = 0x200;

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
    /// A marked folder itself was moved or removed, and all that is below it.
    Folder {
        /// The path under which it was marked.
        path: PathBuf,
        /// Process that did it; 0 where it is not known.
        pid: u32,
    },
    /// The kernel's queue was full: anything may have changed.
    Overflow,
}

/// A notification group.
pub struct Fanotify {
    fd: OwnedFd,
    // One object can have several paths: hard links, bind mounts.
    folders: Table,
    files: Table,
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
        Ok(Self { fd, folders: Table::default(), files: Table::default(), buffer: vec![0; 64 << 10] })
    }

    /// Watches a folder: whether it stays where it is and, with `entries`, what is in it.
    pub fn mark_folder(&mut self, path: &Path, entries: bool) -> io::Result<()> {
        let handle = handle_of(path)?;
        let mask = if entries { FOLDER | ENTRIES } else { FOLDER };
        self.mark(path, libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR, mask)?;
        self.folders.put(handle, path);
        Ok(())
    }

    /// Does not watch the entries of a folder any more, only whether it stays.
    pub fn forget_entries(&mut self, path: &Path) {
        drop(self.mark(path, libc::FAN_MARK_REMOVE | libc::FAN_MARK_ONLYDIR, ENTRIES));
    }

    /// Watches the file that lies at `path` now.
    pub fn mark_file(&mut self, path: &Path) -> io::Result<()> {
        let handle = handle_of(path)?;
        self.mark(path, libc::FAN_MARK_ADD, FILE)?;
        // The one that lay there before is displaced: its later writes are nobody's concern.
        self.files.put(handle, path);
        Ok(())
    }

    /// Forgets the file at `path`. Its mark goes with the inode or with the group; its events are ignored.
    pub fn forget_file(&mut self, path: &Path) {
        let sole = self.files.is_sole(path);
        if sole {
            // The mark may be gone with its inode already; then there is nothing to take off.
            drop(self.mark(path, libc::FAN_MARK_REMOVE, FILE));
        }
        self.files.forget(path);
    }

    /// Forgets a folder.
    pub fn forget_folder(&mut self, path: &Path) {
        let sole = self.folders.is_sole(path);
        if sole {
            drop(self.mark(path, libc::FAN_MARK_REMOVE | libc::FAN_MARK_ONLYDIR, FOLDER | ENTRIES));
        }
        self.folders.forget(path);
    }

    /// Forgets which folder lay at `path`, for another lies there now. The old one's mark goes with its inode.
    pub fn displaced(&mut self, path: &Path) {
        self.folders.forget(path);
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
            while let Some(after) = self.decode(rest, out) {
                rest = after;
            }
        }
    }

    /// Decodes the first record of `bytes`; what follows it. Layout: `struct fanotify_event_metadata` and the information
    /// records behind it (include/uapi/linux/fanotify.h).
    fn decode<'a>(&self, bytes: &'a [u8], out: &mut Vec<Change>) -> Option<&'a [u8]> {
        let length = u32_at(bytes, 0)? as usize;
        let metadata = usize::from(u16_at(bytes, 6)?);
        let mask = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        let pid = u32_at(bytes, 20)?;
        let event = bytes.get(..length).filter(|e| e.len() >= metadata && metadata >= 24)?;
        let after = &bytes[length..];
        if mask & libc::FAN_Q_OVERFLOW != 0 {
            out.push(Change::Overflow);
            return Some(after);
        }
        let mut infos = &event[metadata..];
        while let Some(length) = u16_at(infos, 2).map(usize::from).filter(|n| *n >= 4 && *n <= infos.len()) {
            let (info, rest) = infos.split_at(length);
            infos = rest;
            let Some((handle, name)) = handle_in(info) else { continue };
            let folders = || self.folders.paths(&handle);
            // A folder tells of itself under the name `.`.
            let name = name.filter(|name| name != ".");
            if let Some(name) = name.filter(|_| mask & ENTRIES != 0) {
                out.extend(folders().map(|folder| Change::Entry { path: folder.join(&name), pid }));
            } else if mask & libc::FAN_ONDIR != 0 {
                if mask & (libc::FAN_MOVE_SELF | libc::FAN_DELETE_SELF) != 0 {
                    out.extend(folders().map(|folder| Change::Folder { path: folder.clone(), pid }));
                }
            } else if mask & FILE != 0 && info[0] == libc::FAN_EVENT_INFO_TYPE_FID {
                let files = self.files.paths(&handle);
                out.extend(files.map(|path| Change::File { path: path.clone(), pid }));
            }
        }
        Some(after)
    }
}

/// What lies where, both ways: of a hundred thousand files none may cost a walk over all.
#[derive(Default)]
struct Table {
    paths: HashMap<Handle, Vec<PathBuf>>,
    handles: HashMap<PathBuf, Handle>,
}

impl Table {
    /// `handle` lies at `path` now, and nothing else does.
    fn put(&mut self, handle: Handle, path: &Path) {
        self.forget(path);
        self.paths.entry(handle.clone()).or_default().push(path.to_owned());
        self.handles.insert(path.to_owned(), handle);
    }

    fn forget(&mut self, path: &Path) {
        let Some(handle) = self.handles.remove(path) else { return };
        if let Some(paths) = self.paths.get_mut(&handle) {
            paths.retain(|p| p != path);
            if paths.is_empty() {
                self.paths.remove(&handle);
            }
        }
    }

    /// Whether what lies at `path` is known by no other path.
    fn is_sole(&self, path: &Path) -> bool {
        self.handles.get(path).and_then(|handle| self.paths.get(handle)).is_some_and(|paths| paths.len() == 1)
    }

    fn paths(&self, handle: &Handle) -> impl Iterator<Item = &PathBuf> {
        self.paths.get(handle).into_iter().flatten()
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
    let mut ask = |flags| {
        buffer.bytes = HANDLE_MAX as u32;
        // SAFETY: `buffer` begins like `struct file_handle` and has room for the `bytes` that it announces; `name` is
        // NUL-terminated; both outlive the call.
        let rc = unsafe {
            let at = (&raw mut buffer).cast();
            libc::name_to_handle_at(libc::AT_FDCWD, name.as_ptr(), at, &raw mut mount, flags)
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // Older kernels do not know the flag.
    ask(AT_HANDLE_FID).or_else(|_| ask(0))?;
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
