//! The source of what applications say of themselves: heartbeats, queue depths, latencies, accuracies, errors, metrics.
//!
//! They come as datagrams (`socket.rs`): StatsD lines (`statsd.rs`), `sd_notify` (`notify.rs`), records as JSON; and over
//! the socket of HTTP. One thread reads, and tells the engine at most once a second of each name (`tally.rs`). Nothing
//! that comes is trusted: it is bounded, and what is refused is counted by reason.

mod notify;
mod socket;
mod statsd;
mod tally;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::processes::Processes;
use crate::api::view::{Health, RecordsView, SourceView};
use crate::clock;
use crate::error_chain::chain;
use crate::event::{Event, Kind, Timestamp};
use crate::reported::Reported;
pub use socket::{Access, Socket, SocketError};
use socket::{BATCH, Datagram, Inbox};
use tally::Tally;

/// The class of what is refused, among losses.
pub const CLASS: &str = "records";
/// Where the engine's channel is full it is tried again after this.
const AGAIN: Duration = Duration::from_millis(20);
/// A process is asked for by its number at most this often; numbers are used again.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// The same for one that belongs to no declared process: it may be about to be watched.
const UNKNOWN_FOR: Duration = Duration::from_millis(100);
/// Numbers remembered.
const KNOWN_MAX: usize = 1024;

/// Why something was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It has not the form of a line.
    Line,
    /// Its type is none of StatsD's.
    Type,
    /// Its name is empty, too long, no text, or has control characters.
    Name,
    /// Its value is no number, or none that can be judged.
    Value,
    /// Its rate is not between 0 (more than a millionth) and 1.
    Rate,
    /// It is no record in JSON.
    Json,
    /// The datagram is longer than what is read of one.
    TooLong,
    /// `sd_notify` of a process that is not declared.
    Sender,
    /// All places for names of its kind are taken.
    Names,
    /// Too many different errors within a second.
    Errors,
    /// A set: distinct values are counted by nobody here.
    Set,
    /// DogStatsD's events and service checks.
    Event,
}

impl Refused {
    const ALL: [Self; 12] = [
        Self::Line,
        Self::Type,
        Self::Name,
        Self::Value,
        Self::Rate,
        Self::Json,
        Self::TooLong,
        Self::Sender,
        Self::Names,
        Self::Errors,
        Self::Set,
        Self::Event,
    ];

    /// As `status` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Type => "type",
            Self::Name => "name",
            Self::Value => "value",
            Self::Rate => "rate",
            Self::Json => "json",
            Self::TooLong => "too_long",
            Self::Sender => "sender",
            Self::Names => "names",
            Self::Errors => "errors",
            Self::Set => "set",
            Self::Event => "event",
        }
    }

    /// Whether something that could have been judged is missing now. Sets and events never are.
    fn is_loss(self) -> bool {
        !matches!(self, Self::Set | Self::Event)
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Line => "it has not the form NAME:VALUE|TYPE",
            Self::Type => "its type is none of g, c, ms, h, d, s",
            Self::Name => "its name is empty, too long, or has control characters",
            Self::Value => "its value cannot be judged",
            Self::Rate => "its rate is not between 0 and 1",
            Self::Json => "it is no record in JSON",
            Self::TooLong => "it is too long",
            Self::Sender => "its sender is no declared process",
            Self::Names => "there are too many names of this kind: 10,000 within ten minutes",
            Self::Errors => "there are too many different errors: 64 within a second",
            Self::Set => "sets are not taken",
            Self::Event => "events and service checks are not taken",
        })
    }
}

/// The source, running.
pub struct Records {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    socket: Result<Socket, String>,
    /// Who may send, in words, or why not everybody who should.
    open: Mutex<Result<String, String>>,
    tally: Mutex<Tally>,
    datagrams: std::sync::atomic::AtomicU64,
    processes: Arc<Processes>,
    /// Wakes the thread.
    wake: OwnedFd,
    stop: AtomicBool,
    /// The thread panicked or cannot read.
    failed: Mutex<Option<String>>,
}

impl Records {
    /// Starts to read from `socket`, or only to take what comes over HTTP where there is none.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(
        socket: Result<Socket, SocketError>,
        processes: Arc<Processes>,
        out: SyncSender<Event>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            socket: socket.map_err(|err| chain(&err)),
            open: Mutex::new(Ok(String::new())),
            tally: Mutex::new(Tally::new()),
            datagrams: std::sync::atomic::AtomicU64::new(0),
            processes,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            failed: Mutex::new(None),
        });
        let reader = Reader { shared: Arc::clone(&shared), out, known: HashMap::new() };
        let thread = std::thread::Builder::new().name("grace-records".into()).spawn(move || reader.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Lets those send whom `access` names.
    pub fn open_to(&self, access: &Access) {
        let Ok(socket) = &self.shared.socket else { return };
        let opened = socket.open_to(access).map_err(|err| chain(&err)).map(|()| {
            let group =
                access.group.as_deref().map_or("the agent's own".into(), |g| g.escape_debug().to_string());
            let users = match access.users.len() {
                0 => String::new(),
                n => format!(", {n} users of declared processes"),
            };
            format!("mode {:04o}, group {}{users}", access.mode, group)
        });
        if let Err(why) = &opened {
            tracing::warn!(%why, "not everybody who should can send records");
        }
        *lock(&self.shared.open) = opened;
    }

    /// Takes in a record that came over HTTP from this process.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn report(&self, record: Reported, pid: u32, uid: u32) -> Result<(), Refused> {
        let source = match &record {
            Reported::Error { .. } => source(&self.shared.processes, pid, uid),
            _ => String::new(),
        };
        let mut tally = lock(&self.shared.tally);
        let now = clock::boottime();
        let slept = tally.due_in(now).is_none();
        let result = tally.reported(record, &source, now);
        if let Err(why) = result {
            tally.refuse(why);
        }
        drop(tally);
        if slept {
            self.shared.wake();
        }
        result
    }

    /// Counts `n` records that were no records.
    pub fn refuse(&self, why: Refused, n: usize) {
        let mut tally = lock(&self.shared.tally);
        (0..n).for_each(|_| tally.refuse(why));
        drop(tally);
        self.shared.wake();
    }

    /// The datagram socket's path; none: there is no socket.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.shared.socket.as_ref().ok().map(Socket::path)
    }

    /// What came and what was refused.
    #[must_use]
    pub fn view(&self) -> RecordsView {
        let tally = lock(&self.shared.tally);
        let socket = self.shared.socket.as_ref().ok();
        RecordsView {
            socket: socket.map(|socket| socket.path().to_owned()),
            queue: socket.map(|socket| socket.queue),
            datagrams: self.shared.datagrams.load(Ordering::Relaxed),
            records: tally.records,
            names: tally.names(),
            refused: tally.refused(),
        }
    }

    /// How well it works, for `status`.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let panicked = lock(&self.thread).as_ref().is_some_and(JoinHandle::is_finished);
        let failed = lock(&self.shared.failed).clone().or(panicked.then(|| "its thread panicked".to_owned()));
        let (state, detail) = match (&self.shared.socket, &*lock(&self.shared.open), failed) {
            (_, _, Some(why)) => (Health::Degraded, format!("no more is read: {why}")),
            (Err(why), ..) => (Health::Degraded, format!("no datagrams, only HTTP: {why}")),
            (Ok(socket), Err(why), _) => (
                Health::Degraded,
                format!("{}: not open to all who should send: {why}", socket.path().display()),
            ),
            (Ok(socket), Ok(open), _) => (
                Health::Ok,
                format!("datagrams at {}, {open}, a queue of {}", socket.path().display(), socket.queue),
            ),
        };
        SourceView { name: "records".into(), state, detail }
    }

    /// How many that could have been judged were refused.
    #[must_use]
    pub fn lost(&self) -> u64 {
        lock(&self.shared.tally).lost()
    }

    /// Ends the thread and waits for it. What it has not told is told first, where the engine takes it.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(Err(_panic)) = lock(&self.thread).take().map(JoinHandle::join) {
            tracing::error!("the thread that reads records panicked");
        }
        if let Ok(socket) = &self.shared.socket {
            socket.remove();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // A counter that is full wakes, too.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The thread.
struct Reader {
    shared: Arc<Shared>,
    out: SyncSender<Event>,
    /// Senders of `sd_notify` and errors by number: the process that they belong to, and when that was found.
    known: HashMap<u32, (Option<String>, Timestamp)>,
}

impl Reader {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut inbox = Inbox::new();
        while !shared.stop.load(Ordering::Acquire) {
            let mut full = false;
            if let Ok(socket) = &shared.socket {
                full = match inbox.read(socket) {
                    Ok(0) => false,
                    Ok(count) => {
                        self.take(&inbox, count);
                        count == BATCH
                    }
                    Err(err) => {
                        *lock(&shared.failed) = Some(err.to_string());
                        tracing::error!(%err, "no more records can be read");
                        return;
                    }
                };
            }
            let told = self.flush();
            if full {
                continue;
            }
            let wait = lock(&shared.tally).due_in(clock::boottime());
            self.rest(if told { wait } else { Some(AGAIN) });
        }
        self.flush();
    }

    /// Waits for a datagram, for somebody who wakes, or until it is time to tell.
    fn rest(&self, wait: Option<Duration>) {
        // Rounded up: a wait of a nanosecond would be many of none.
        let wait = wait.and_then(|wait| Timespec::try_from(wait + Duration::from_micros(100)).ok());
        let wake = PollFd::new(&self.shared.wake, PollFlags::IN);
        let waited = match &self.shared.socket {
            Ok(socket) => poll(&mut [wake, PollFd::new(socket, PollFlags::IN)], wait.as_ref()),
            Err(_) => poll(&mut [wake], wait.as_ref()),
        };
        // Interrupted or not, all is looked at again.
        let _ = waited;
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
    }

    fn take(&mut self, inbox: &Inbox, count: usize) {
        let shared = Arc::clone(&self.shared);
        shared.datagrams.fetch_add(count as u64, Ordering::Relaxed);
        let now = clock::boottime();
        let mut tally = lock(&shared.tally);
        for datagram in inbox.datagrams() {
            self.datagram(datagram, &mut tally, now);
        }
    }

    fn datagram(&mut self, datagram: Datagram<'_>, tally: &mut Tally, now: Timestamp) {
        let mut bytes = datagram.bytes;
        if datagram.cut {
            tally.refuse(Refused::TooLong);
            // The lines before the one that was cut are whole.
            let end = bytes.iter().rposition(|b| *b == b'\n').unwrap_or(0);
            bytes = bytes.get(..end).unwrap_or_default();
        }
        if bytes.first().is_some_and(|b| matches!(b, b'{' | b'[')) {
            self.json(Datagram { bytes, ..datagram }, tally, now);
        } else if notify::is_notify(bytes) {
            if notify::is_ready(bytes) {
                self.shared.processes.said_ready(datagram.pid);
            }
            if notify::is_sign_of_life(bytes) {
                let name = self.process_of(datagram.pid, now);
                let said = name.as_deref().ok_or(Refused::Sender);
                let taken = said.and_then(|name| tally.said(statsd::Said::Beat { name, count: 1 }, now));
                taken.unwrap_or_else(|why| tally.refuse(why));
            }
        } else {
            for line in bytes.split(|b| *b == b'\n') {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if !line.is_empty() {
                    statsd::parse(line, &mut |said| tally.said(said, now))
                        .unwrap_or_else(|why| tally.refuse(why));
                }
            }
        }
    }

    /// One record or several, as `POST /v1/records` takes them.
    fn json(&mut self, datagram: Datagram<'_>, tally: &mut Tally, now: Timestamp) {
        let records = match serde_json::from_slice(datagram.bytes) {
            Ok(serde_json::Value::Array(records)) => records,
            Ok(record) => vec![record],
            Err(_) => return tally.refuse(Refused::Json),
        };
        for record in records {
            let checked = serde_json::from_value::<Reported>(record).ok().and_then(|r| r.checked().ok());
            let taken = checked.ok_or(Refused::Json).and_then(|record| {
                let source = match &record {
                    Reported::Error { .. } => {
                        self.process_of(datagram.pid, now).unwrap_or_else(|| format!("uid {}", datagram.uid))
                    }
                    _ => String::new(),
                };
                tally.reported(record, &source, now)
            });
            taken.unwrap_or_else(|why| tally.refuse(why));
        }
    }

    /// The declared process that `pid` is, or descends from.
    fn process_of(&mut self, pid: u32, now: Timestamp) -> Option<String> {
        if let Some((name, at)) = self.known.get(&pid)
            && now.since(*at) < if name.is_some() { KNOWN_FOR } else { UNKNOWN_FOR }
        {
            return name.clone();
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let name = self.shared.processes.name_of_family(pid);
        self.known.insert(pid, (name.clone(), now));
        name
    }

    /// Tells the engine what is due. True: it took all of it.
    fn flush(&self) -> bool {
        let now = clock::boottime();
        let tell = |kind: Kind| match self.out.try_send(Event { at: now, kind }) {
            // Without an engine the agent is about to end.
            Ok(()) | Err(TrySendError::Disconnected(_)) => None,
            Err(TrySendError::Full(event)) => Some(event.kind),
        };
        lock(&self.shared.tally).flush(now, tell)
    }
}

/// Who reports: a declared process or one of its descendants, else a user.
fn source(processes: &Processes, pid: u32, uid: u32) -> String {
    processes.name_of_family(pid).unwrap_or_else(|| format!("uid {uid}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
