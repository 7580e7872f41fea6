//! The datagram socket itself: made with a queue of its own depth, opened to those who may send, read in batches.
//!
//! Of a Unix datagram socket the kernel queues `net.unix.max_dgram_qlen` datagrams (10, usually) and no more: a burst of a
//! few then makes senders wait. That number belongs to a network namespace and is read when a socket is made. So the
//! socket is made in a namespace of its own, in which the number is larger; the host's is not touched. Senders find
//! the socket by its path, whatever namespace they are in. What a queue holds is charged to its senders' buffers.
#![expect(unsafe_code, reason = "recvmmsg(2), and unshare(2) on a thread of its own, have no safe wrapper")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

/// Datagrams that wait for the reader: what a few processes send while it is not scheduled for tens of milliseconds.
const QUEUE: u32 = 8192;
/// Where its depth is set, of the reader's own network namespace.
const QUEUE_SETTING: &str = "/proc/sys/net/unix/max_dgram_qlen";
/// Datagrams read with one call.
pub(super) const BATCH: usize = 32;
/// Longest datagram, in bytes; of a longer one the begin is read.
pub(super) const DATAGRAM_MAX: usize = 16 << 10;
/// Room for a sender's credentials and for nothing else: what a sender passes along besides, descriptors above all,
/// finds no room and is dropped by the kernel.
const CONTROL: usize = 32;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("another program receives at {}", .0.display())]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{} exists and is not a socket: it is left alone", .0.display())]
    NotASocket(PathBuf),
    /// There is no such group.
    #[error("no group `{}` in /etc/group", .0.escape_debug())]
    NoGroup(String),
    /// The system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// Such as `bind`.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who may send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Permission bits.
    pub mode: u32,
    /// The group, by name or number; none: the agent's own.
    pub group: Option<String>,
    /// Users who may send besides: those that declared processes run as.
    pub users: Vec<u32>,
}

/// The socket, bound.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    path: PathBuf,
    /// How many datagrams it queues.
    pub queue: u32,
    removed: AtomicBool,
}

impl Socket {
    /// Makes the socket at `path`, for nobody but the agent's own user until [`Self::open_to`].
    ///
    /// # Errors
    /// Where somebody receives there already, something else lies there, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let fail = |doing| {
            let path = path.to_owned();
            move |source: io::Error| SocketError::Io { doing, path, source }
        };
        match fs::symlink_metadata(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(fail("look at")(err)),
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if someone_receives(path) => return Err(SocketError::InUse(path.to_owned())),
            Ok(_) => fs::remove_file(path).map_err(fail("remove the stale socket"))?,
        }
        let (fd, queue) = make().map_err(|err| fail("make a socket for")(err.into()))?;
        let bound = (|| {
            net::sockopt::set_socket_passcred(&fd, true)?;
            // The file is born with the mode of the socket.
            rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
            net::bind(&fd, &SocketAddrUnix::new(path)?)
        })();
        bound.map_err(|err: Errno| fail("bind")(err.into()))?;
        Ok(Self { fd, path: path.to_owned(), queue, removed: AtomicBool::new(false) })
    }

    /// Lets those send whom `access` names, and nobody else.
    ///
    /// # Errors
    /// Where there is no such group, or the system refuses; then nobody else may send.
    pub fn open_to(&self, access: &Access) -> Result<(), SocketError> {
        let fail = |doing| {
            let path = self.path.clone();
            move |err: Errno| SocketError::Io { doing, path, source: err.into() }
        };
        // Held, so that what is changed is a socket, whatever is put into its place meanwhile.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = rustix::fs::openat(CWD, &self.path, flags, Mode::empty()).map_err(fail("open"))?;
        let stat = rustix::fs::fstat(&held).map_err(fail("look at"))?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket() {
            return Err(SocketError::NotASocket(self.path.clone()));
        }
        let by_fd = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        rustix::fs::chmod(&by_fd, Mode::RUSR | Mode::WUSR).map_err(fail("set the mode of"))?;
        // There is no list, or this file system knows none.
        let _ = rustix::fs::removexattr(&by_fd, ACL);
        let group = access.group.as_deref().map(group_id).transpose()?;
        let group = rustix::fs::Gid::from_raw(group.unwrap_or_else(|| rustix::process::getegid().as_raw()));
        rustix::fs::chown(&by_fd, None, Some(group)).map_err(fail("set the group of"))?;
        rustix::fs::chmod(&by_fd, Mode::from_raw_mode(access.mode)).map_err(fail("set the mode of"))?;
        if access.users.is_empty() {
            return Ok(());
        }
        // After the mode, which would set the list's mask.
        let list = acl(access.mode, &access.users);
        rustix::fs::setxattr(&by_fd, ACL, &list, XattrFlags::empty()).map_err(fail("set the access list of"))
    }

    /// Takes its file away, once: by then another agent's may lie there.
    pub(super) fn remove(&self) {
        if !self.removed.swap(true, Ordering::AcqRel) {
            // Best effort: a stale one is replaced by the next agent.
            drop(fs::remove_file(&self.path));
        }
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A socket with a deep queue where that is allowed, else one with the host's; and how deep it is.
fn make() -> rustix::io::Result<(OwnedFd, u32)> {
    // On a thread of its own: it takes the namespace with it when it ends, but for the socket's hold on it.
    let deep = std::thread::Builder::new().name("grace-socket".into()).spawn(|| {
        // SAFETY: only this thread is moved, which shares no descriptor by number with anyone that relies on where it
        // stands; a network namespace changes nothing about memory or files.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.ok()?;
        fs::write(QUEUE_SETTING, QUEUE.to_string()).ok()?;
        Some((socket().ok()?, QUEUE))
    });
    if let Ok(Ok(Some(deep))) = deep.map(std::thread::JoinHandle::join) {
        return Ok(deep);
    }
    let depth = fs::read_to_string(QUEUE_SETTING).ok().and_then(|text| text.trim().parse().ok());
    Ok((socket()?, depth.unwrap_or(10)))
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
}

fn someone_receives(path: &Path) -> bool {
    let connected = socket().and_then(|fd| net::connect(&fd, &SocketAddrUnix::new(path)?));
    // A stream socket is somebody's, too (EPROTOTYPE).
    connected != Err(Errno::CONNREFUSED)
}

fn group_id(group: &str) -> Result<u32, SocketError> {
    let list = fs::read_to_string("/etc/group").unwrap_or_default();
    let named = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then_some(())?;
        fields.nth(1)?.parse().ok()
    });
    named.or_else(|| group.parse().ok()).ok_or_else(|| SocketError::NoGroup(group.to_owned()))
}

/// Where a file's access list stands.
const ACL: &str = "system.posix_acl_access";

/// An access list (include/uapi/linux/posix_acl_xattr.h) that adds `users` to what `mode` says.
fn acl(mode: u32, users: &[u32]) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NO_ID: u32 = u32::MAX;
    const USER_OBJ: u16 = 0x01;
    const USER: u16 = 0x02;
    const GROUP_OBJ: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    const READ_WRITE: u16 = 6;
    let bits = |shift: u32| (mode >> shift & 7) as u16;
    let mut users = users.to_vec();
    // The kernel wants them in order.
    users.sort_unstable();
    users.dedup();
    let mut out = VERSION.to_le_bytes().to_vec();
    let mut entry = |tag: u16, may: u16, id: u32| {
        out.extend(tag.to_le_bytes());
        out.extend(may.to_le_bytes());
        out.extend(id.to_le_bytes());
    };
    entry(USER_OBJ, bits(6), NO_ID);
    for user in users {
        entry(USER, READ_WRITE, user);
    }
    entry(GROUP_OBJ, bits(3), NO_ID);
    entry(MASK, READ_WRITE | bits(3), NO_ID);
    entry(OTHER, bits(0), NO_ID);
    out
}

/// Room for a batch of datagrams.
pub(super) struct Inbox {
    bytes: Vec<u8>,
    control: Vec<[u8; CONTROL]>,
    /// Of each datagram of the last batch.
    got: Vec<Got>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Got {
    length: usize,
    cut: bool,
    pid: u32,
    uid: u32,
}

/// A datagram.
#[derive(Debug, Clone, Copy)]
pub(super) struct Datagram<'a> {
    pub(super) bytes: &'a [u8],
    /// It was longer than what is read of one.
    pub(super) cut: bool,
    /// The sender's process id in the agent's namespace, from the kernel; 0 where it has none there.
    pub(super) pid: u32,
    /// The sender's user, from the kernel.
    pub(super) uid: u32,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * DATAGRAM_MAX],
            control: vec![[0; CONTROL]; BATCH],
            got: Vec::with_capacity(BATCH),
        }
    }

    /// Reads what is there, at most a batch, without waiting; how many it was.
    pub(super) fn read(&mut self, socket: &Socket) -> rustix::io::Result<usize> {
        self.got.clear();
        let mut parts: [MaybeUninit<libc::iovec>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        let mut heads: [MaybeUninit<libc::mmsghdr>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        let rooms = self.bytes.chunks_exact_mut(DATAGRAM_MAX).zip(&mut self.control);
        for ((part, head), (bytes, control)) in parts.iter_mut().zip(&mut heads).zip(rooms) {
            let part = part.write(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: DATAGRAM_MAX });
            // SAFETY: all-zero bytes are a valid mmsghdr: null pointers, lengths of 0.
            let head = head.write(unsafe { std::mem::zeroed() });
            head.msg_hdr.msg_iov = part;
            head.msg_hdr.msg_iovlen = 1;
            head.msg_hdr.msg_control = control.as_mut_ptr().cast();
            head.msg_hdr.msg_controllen = CONTROL;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `heads` holds BATCH initialized headers; each points to one part and to its own room for control data,
        // of the lengths that it names; all of it outlives the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                heads.as_mut_ptr().cast(),
                BATCH as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return match io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) | None => Ok(0),
                Some(errno) => Err(Errno::from_raw_os_error(errno)),
            };
        };
        for (head, control) in heads.iter().zip(&self.control).take(count) {
            // SAFETY: each of them was written above.
            let head = unsafe { head.assume_init_ref() };
            let (pid, uid) = credentials(control, head.msg_hdr.msg_controllen);
            self.got.push(Got {
                length: (head.msg_len as usize).min(DATAGRAM_MAX),
                cut: head.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                pid,
                uid,
            });
        }
        Ok(count)
    }

    /// The datagrams of the last batch.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        self.bytes.chunks_exact(DATAGRAM_MAX).zip(&self.got).map(|(bytes, got)| Datagram {
            bytes: bytes.get(..got.length).unwrap_or_default(),
            cut: got.cut,
            pid: got.pid,
            uid: got.uid,
        })
    }
}

/// Process and user of the sender: `struct ucred` behind a `struct cmsghdr`. Nobody's where the kernel gave none.
fn credentials(control: &[u8; CONTROL], length: usize) -> (u32, u32) {
    let number =
        |at: usize| control.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    const HEAD: usize = size_of::<libc::cmsghdr>();
    const LEVEL: usize = size_of::<usize>();
    let given = length >= HEAD + 12
        && number(LEVEL) == libc::SOL_SOCKET
        && number(LEVEL + 4) == libc::SCM_CREDENTIALS;
    if given { (number(HEAD).cast_unsigned(), number(HEAD + 4).cast_unsigned()) } else { (0, u32::MAX) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_socket_is_private_until_it_is_opened_and_replaces_only_what_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grace.dgram");
        let mode = || fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777;
        let first = Socket::bind(&path).unwrap();
        assert_eq!(mode(), 0o600);
        first.open_to(&Access { mode: 0o620, ..Access::default() }).unwrap();
        assert_eq!(mode(), 0o620);
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        let none = Access { mode: 0o666, group: Some("no such group".into()), ..Access::default() };
        assert!(matches!(first.open_to(&none), Err(SocketError::NoGroup(_))));
        assert_eq!(mode(), 0o600, "rather for nobody than for the wrong ones");

        drop(first);
        assert!(!path.exists());
        // As after kill -9: the file stays, nobody receives.
        drop(UnixDatagram::bind(&path).unwrap());
        drop(Socket::bind(&path).expect("nobody receives at the file that stayed behind"));

        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn datagrams_come_with_their_sender_and_without_its_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let socket = Socket::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        sender.send(b"a:1|g").unwrap();
        sender.send(&vec![b'x'; DATAGRAM_MAX + 1]).unwrap();
        // One that passes a descriptor along, as sd_notify's barrier does.
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = net::SendAncillaryBuffer::new(&mut space);
        let fds = [writer.as_fd()];
        assert!(control.push(net::SendAncillaryMessage::ScmRights(&fds)));
        let part = [io::IoSlice::new(b"BARRIER=1")];
        net::sendmsg(&sender, &part, &mut control, net::SendFlags::empty()).unwrap();
        drop(writer);

        let mut inbox = Inbox::new();
        assert_eq!(inbox.read(&socket).unwrap(), 3);
        let got: Vec<_> = inbox.datagrams().collect();
        let me = (std::process::id(), rustix::process::geteuid().as_raw());
        assert!(got.iter().all(|d| (d.pid, d.uid) == me), "{:?}", (got[0].pid, got[0].uid));
        assert_eq!((got[0].bytes, got[0].cut), (&b"a:1|g"[..], false));
        assert_eq!((got[1].bytes.len(), got[1].cut), (DATAGRAM_MAX, true));
        // Nobody holds the other end: the sender's barrier is through.
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
        assert_eq!(inbox.read(&socket).unwrap(), 0);
        assert_eq!(inbox.datagrams().count(), 0);
    }

    #[test]
    fn the_queue_is_as_deep_as_it_says_and_the_hosts_setting_is_not_touched() {
        let before = fs::read_to_string(QUEUE_SETTING).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::read_to_string(QUEUE_SETTING).unwrap(), before);
        let mut sent = 0;
        // Each sender's own buffer holds some hundred.
        for _ in 0..200 {
            let sender = UnixDatagram::unbound().unwrap();
            sender.set_nonblocking(true).unwrap();
            while sender.send_to(b"a:1|g", &path).is_ok() {
                sent += 1;
            }
            drop(sender);
        }
        assert!((socket.queue..=socket.queue + 1).contains(&sent), "{sent} of {}", socket.queue);
    }

    #[test]
    fn users_can_be_let_in_by_name_of_the_process_they_run() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let socket = Socket::bind(&path).unwrap();
        let access = Access { mode: 0o600, group: None, users: vec![65534, 1, 65534] };
        if socket.open_to(&access).is_err() {
            // A file system without access lists.
            return;
        }
        let mut list = vec![0; 256];
        let length = rustix::fs::getxattr(&path, ACL, &mut list[..]).unwrap();
        assert_eq!(list[..length], acl(0o600, &[1, 65534]));
        socket.open_to(&Access { users: Vec::new(), ..access }).unwrap();
        assert!(rustix::fs::getxattr(&path, ACL, &mut list[..]).is_err());
    }
}
