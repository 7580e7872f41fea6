//! The source of accept queues: which connections wait for a declared process to accept them.
//!
//! The kernel tells over netlink (sock_diag(7)) of each listening TCP and Unix socket how many connections wait and how
//! many may. Whose socket it is, /proc/PID/fd says; that is read only where a socket or a process is new. Sockets in
//! other network namespaces than the agent's are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::event::{Kind, Timestamp};

/// A queue that was half full is told of for this long after it was so last: that it is empty again must be seen.
const AFTER: Duration = Duration::from_secs(60);
/// Sockets of processes that were looked through are not looked through again sooner than this, unless a process is new.
const AGAIN: Duration = Duration::from_secs(10);
/// Descriptors of a process that are looked through at most.
const FDS: usize = 65_536;
/// Characters of a Unix socket's name.
const NAME: usize = 108;
/// The kernel fills this much at once at most.
const BUFFER: usize = 64 << 10;

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    /// Its inode in sockfs.
    inode: u32,
    /// Address and port, or path. Chosen by the process.
    address: String,
    /// Connections that wait.
    len: u32,
    /// Connections that may.
    limit: u32,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Declared process by inode; none: nobody's that is declared.
    owners: BTreeMap<u32, Option<String>>,
    pids: BTreeSet<u32>,
    searched: Option<Timestamp>,
    /// When a queue was half full last, by process and address.
    filled: BTreeMap<(String, String), Timestamp>,
}

impl Listeners {
    /// Whether some queue is, or was lately, half full: then a look every two seconds is worth it.
    #[must_use]
    pub fn busy(&self) -> bool {
        !self.filled.is_empty()
    }

    /// Looks at the listeners of declared processes, each with the process ids of its family.
    pub fn look(&mut self, families: &[(String, Vec<u32>)], now: Timestamp) -> io::Result<Vec<Kind>> {
        if families.is_empty() {
            *self = Self::default();
            return Ok(Vec::new());
        }
        let listeners = listening()?;
        self.find_owners(&listeners, families, now);
        let mut queues = BTreeMap::<(String, String), (u32, u32)>::new();
        for listener in listeners {
            let Some(Some(owner)) = self.owners.get(&listener.inode) else { continue };
            // Several sockets on one address: the fullest, because connections are dealt out before they wait.
            let full = |(len, limit): (u32, u32)| f64::from(len) / f64::from(limit.max(1));
            let queue = queues.entry((owner.clone(), listener.address)).or_default();
            if queue.1 == 0 || full((listener.len, listener.limit)) > full(*queue) {
                *queue = (listener.len, listener.limit);
            }
        }
        for (key, (len, limit)) in &queues {
            if u64::from(*len) * 2 >= u64::from((*limit).max(1)) {
                self.filled.insert(key.clone(), now);
            }
        }
        self.filled.retain(|key, at| queues.contains_key(key) && now.since(*at) <= AFTER);
        let told = queues.into_iter().filter(|(key, _)| self.filled.contains_key(key));
        Ok(told
            .map(|((process, listener), (len, limit))| Kind::Backlog { process, listener, len, limit })
            .collect())
    }

    fn find_owners(&mut self, listeners: &[Listener], families: &[(String, Vec<u32>)], now: Timestamp) {
        let pids: BTreeSet<u32> = families.iter().flat_map(|(_, pids)| pids).copied().collect();
        self.owners.retain(|inode, _| listeners.iter().any(|l| l.inode == *inode));
        let new_pids = pids != self.pids;
        let new = new_pids || listeners.iter().any(|l| !self.owners.contains_key(&l.inode));
        let lately = self.searched.is_some_and(|at| now.since(at) < AGAIN);
        if !new || (lately && !new_pids) {
            return;
        }
        (self.pids, self.searched) = (pids, Some(now));
        let mut owners: BTreeMap<u32, Option<String>> = listeners.iter().map(|l| (l.inode, None)).collect();
        for (name, pids) in families {
            for inode in pids.iter().flat_map(|pid| sockets(*pid)) {
                if let Some(owner) = owners.get_mut(&inode) {
                    owner.get_or_insert_with(|| name.clone());
                }
            }
        }
        self.owners = owners;
    }
}

/// Inodes of the sockets that `pid` has open.
fn sockets(pid: u32) -> Vec<u32> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(FDS);
    fds.filter_map(|fd| {
        let target = std::fs::read_link(fd.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
    .collect()
}

/// Type of a request and its answers: SOCK_DIAG_BY_FAMILY (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// linux/netlink.h: NLM_F_REQUEST | NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE, and the size of a header.
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// A set of states with TCP_LISTEN (net/tcp_states.h), which Unix sockets use, too.
const LISTENING: u32 = 1 << 10;

/// All listening sockets of this network namespace.
fn listening() -> io::Result<Vec<Listener>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let wait = Some(Duration::from_secs(1));
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, wait)?;
    let mut out = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // struct inet_diag_req_v2 (linux/inet_diag.h): family, protocol, extensions, padding, states, and the address
        // of one socket, which a dump leaves empty.
        let mut request = vec![byte(family), byte(libc::IPPROTO_TCP), 0, 0];
        request.extend(LISTENING.to_ne_bytes());
        request.extend([0; 48]);
        dump(&socket, &request, &mut |body| out.extend(inet(body)))?;
    }
    // struct unix_diag_req (linux/unix_diag.h): family, protocol, padding, states, inode, what to show (the name and the
    // queue's length), cookie.
    let mut request = vec![byte(libc::AF_UNIX), 0, 0, 0];
    for word in [LISTENING, 0, 0x1 | 0x10, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    // Not every kernel has it (CONFIG_UNIX_DIAG); TCP was told all the same.
    if let Err(err) = dump(&socket, &request, &mut |body| out.extend(unix(body))) {
        tracing::debug!(%err, "unix sockets are not listed");
    }
    Ok(out)
}

fn byte(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(0)
}

/// Asks for all sockets that `request` describes.
fn dump(socket: &OwnedFd, request: &[u8], found: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let length = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    rustix::net::send(socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let (_, length) = rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() || answers(bytes, found)? {
            return Ok(());
        }
    }
}

/// Reads one datagram of messages. True: it was the last.
fn answers(mut bytes: &[u8], found: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    while let Some(length) = u32_at(bytes, 0) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(HEADER..length) else { return Err(io::ErrorKind::InvalidData.into()) };
        match u16_at(bytes, 4) {
            Some(DONE) => return Ok(true),
            Some(ERROR) => {
                let code = u32_at(body, 0).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            Some(BY_FAMILY) => found(body),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// struct inet_diag_msg: 4 bytes, then the address (port, port, 16 bytes, 16 bytes, …: 48 in all), expiry, both
/// queues, user, inode. Of a listener the queues are how many wait and how many may.
fn inet(body: &[u8]) -> Option<Listener> {
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let source: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let address = if i32::from(*body.first()?) == libc::AF_INET {
        let [a, b, c, d, ..] = source;
        IpAddr::from(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::from(Ipv6Addr::from(source))
    };
    Some(Listener {
        inode: u32_at(body, 68)?,
        address: SocketAddr::new(address, port).to_string(),
        len: u32_at(body, 56)?,
        limit: u32_at(body, 60)?,
    })
}

/// struct unix_diag_msg: family, type, state, padding, inode, cookie (16 bytes in all), then attributes: the name (0)
/// and how many wait and may (4).
fn unix(body: &[u8]) -> Option<Listener> {
    let inode = u32_at(body, 4)?;
    let mut address = format!("unix socket {inode}");
    let mut queue = None;
    let mut rest = body.get(16..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let value = rest.get(4..usize::from(length))?;
        match kind {
            0 if !value.is_empty() => {
                // An abstract name begins with a zero and is shown with `@`, as elsewhere.
                let text = String::from_utf8_lossy(value).replacen('\0', "@", usize::from(value[0] == 0));
                address = text.trim_end_matches('\0').chars().take(NAME).collect();
            }
            4 => queue = Some((u32_at(value, 0)?, u32_at(value, 4)?)),
            _ => {}
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    let (len, limit) = queue?;
    Some(Listener { inode, address, len, limit })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use proptest::prelude::*;

    use super::*;

    fn me() -> Vec<(String, Vec<u32>)> {
        vec![("me".to_owned(), vec![std::process::id()])]
    }

    fn backlog_of(listeners: &mut Listeners, address: &str, now: u64) -> Option<(u32, u32)> {
        let told = listeners.look(&me(), Timestamp(now * 1_000_000_000)).unwrap();
        told.into_iter().find_map(|kind| match kind {
            Kind::Backlog { process, listener, len, limit } if process == "me" && listener == address => {
                Some((len, limit))
            }
            _ => None,
        })
    }

    #[test]
    fn a_real_accept_queue_is_seen_to_fill_and_to_empty() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&tcp, 4).unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        let mut listeners = Listeners::default();
        assert_eq!(backlog_of(&mut listeners, &address, 1), None, "an empty queue is not told of");
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(&address).unwrap()).collect();
        assert_eq!(backlog_of(&mut listeners, &address, 2), Some((3, 4)));
        for _ in &clients {
            tcp.accept().unwrap();
        }
        assert_eq!(backlog_of(&mut listeners, &address, 3), Some((0, 4)), "that it is empty is told");
        assert_eq!(backlog_of(&mut listeners, &address, 64), None, "but not for ever");
        assert!(!listeners.busy());
    }

    #[test]
    fn unix_sockets_have_accept_queues_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&unix, 2).unwrap();
        let _clients: Vec<_> = (0..2).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(backlog_of(&mut Listeners::default(), path.to_str().unwrap(), 1), Some((2, 2)));
    }

    #[test]
    fn sockets_of_others_are_not_told_of() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&tcp, 1).unwrap();
        let _client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let other = [("other".to_owned(), vec![u32::MAX])];
        assert_eq!(Listeners::default().look(&other, Timestamp(1)).unwrap(), []);
    }

    proptest! {
        /// Whatever the bytes are, reading them ends and takes nothing from beyond their end.
        #[test]
        fn no_bytes_confuse_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bodies = Vec::new();
            drop(answers(&bytes, &mut |body| bodies.push(body.to_vec())));
            for body in bodies.iter().chain([&bytes]) {
                drop(inet(body));
                drop(unix(body));
            }
        }
    }
}
