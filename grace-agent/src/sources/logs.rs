//! The source of errors in logs: follows the log files of declared processes and their captured output.
//!
//! A file is known by device and inode, and by the bytes before the place up to which it was read: so a rename, a new
//! file under the name, a truncation and a rewrite are told apart. Places are kept in the state folder, so that the
//! next agent goes on where this one ended. inotify tells of writes; a look a second of everything else. Each file is read
//! at a bounded rate; what is skipped is counted as lost (`logs`, in bytes).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use inotify::{Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde::{Deserialize, Serialize};

use super::tally::Tally;
use crate::api::view::{Health, SourceView};
use crate::clock;
use crate::event::{Event, Kind, Timestamp};
use crate::faults::{Assembler, Fault, Lines};
use crate::safe_path::{Entry, Parent};

/// Bytes read of one file, and of all, in a second.
const RATE: u64 = 16 << 20;
const RATE_ALL: u64 = 64 << 20;
/// Bytes read of one file before the others have their turn and what was found is told.
const AT_ONCE: u64 = 1 << 20;
/// A file that is further behind than this is caught up with by skipping.
const BEHIND: u64 = 32 << 20;
/// What is still read of one that was skipped.
const KEPT: u64 = 1 << 20;
/// Bytes before the place up to which a file was read, by which it is known again.
const TAIL: usize = 64;
/// A file that has another one under its name is read on for so long: its writer may still hold it.
const LINGER: Duration = Duration::from_secs(10);
/// Of one path at most so many of them.
const OLD: usize = 4;
/// Files followed at most.
const FILES: usize = 512;
/// Between two looks at everything.
const LOOK: Duration = Duration::from_secs(1);
/// Writes that follow each other are read together.
const GATHER: Duration = Duration::from_millis(100);
/// How long is read on when the agent ends.
const PATIENCE: Duration = Duration::from_secs(2);
/// Names in a folder that are looked through for a file that was renamed while no agent ran.
const NAMES: usize = 1000;

/// Where a process's lines come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Captured standard output.
    Stdout,
    /// Captured standard error.
    Stderr,
    /// A log file that the configuration names.
    Log,
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Log => "log",
        }
    }
}

/// How often which error of a process may come; none: as `[triggers.error_feed]` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// How often.
    pub count: Option<u32>,
    /// Within this time, in milliseconds.
    pub window_ms: Option<u64>,
}

/// The source.
pub struct Logs {
    state: Mutex<State>,
    wake: OwnedFd,
    stop: AtomicBool,
    note: PathBuf,
    out: SyncSender<Event>,
}

#[derive(Default)]
struct State {
    files: Vec<Followed>,
    processes: BTreeMap<String, Process>,
    /// Where earlier agents ended, by path.
    noted: BTreeMap<PathBuf, Place>,
    told: Option<Timestamp>,
    lost_bytes: u64,
    lost_errors: u64,
    lost_told: (u64, u64),
    /// A file was not read to its end yet.
    more: bool,
    budget: Budget,
    /// The note on disk.
    written: String,
}

struct Process {
    tally: Tally,
    lines: u64,
}

/// What may still be read in this second.
#[derive(Default)]
struct Budget {
    since: Timestamp,
    all: u64,
}

/// A path that is followed.
struct Followed {
    path: PathBuf,
    process: String,
    origin: Origin,
    now: Option<Reader>,
    /// Files that had the name before, and until when they are read.
    old: VecDeque<(Reader, Timestamp)>,
    /// Why it is not read.
    refused: Option<String>,
    watch: Option<WatchDescriptor>,
    /// Files beside it whose names begin like its own, as they were when somebody looked last: a new one among them had
    /// its name since.
    beside: BTreeSet<(u64, u64)>,
}

/// A file and how far it was read.
struct Reader {
    file: File,
    dev: u64,
    ino: u64,
    place: Place,
    /// Up to where everything was told.
    safe: Place,
    lines: Lines,
    assembler: Assembler,
    spent: (Timestamp, u64),
}

/// A place in a file that is found again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    dev: u64,
    ino: u64,
    offset: u64,
    /// The bytes before it, in hex.
    #[serde(default)]
    tail: String,
}

/// What a read gave.
#[derive(Default)]
struct Got {
    faults: Vec<Fault>,
    lines: u64,
    lost: u64,
    rewritten: bool,
    /// There is more to read, and it may be read.
    more: bool,
}

impl Logs {
    /// Starts the thread; `note` is the file that remembers how far was read.
    pub fn start(
        note: PathBuf,
        out: SyncSender<Event>,
    ) -> io::Result<(Arc<Self>, std::thread::JoinHandle<()>)> {
        let noted = std::fs::read(&note).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let logs = Arc::new(Self {
            state: Mutex::new(State { noted: noted.unwrap_or_default(), ..State::default() }),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            note,
            out,
        });
        let this = Arc::clone(&logs);
        let thread = std::thread::Builder::new().name("grace-logs".into()).spawn(move || this.run())?;
        Ok((logs, thread))
    }

    /// Follows `files` for the declared process `process`, instead of those that it had. They are opened here and now:
    /// what it writes from now on is seen.
    pub fn follow(&self, process: &str, files: &[(PathBuf, Origin)], limits: Limits) {
        let mut state = lock(&self.state);
        state.drop_files(process, |path| files.iter().any(|(p, _)| p == path));
        for (path, origin) in files {
            if state.files.iter().any(|f| f.path == *path) || state.files.len() >= FILES {
                continue;
            }
            let mut followed = Followed::new(path, process, *origin);
            let noted = state.noted.remove(path);
            followed.begin(noted.as_ref());
            state.files.push(followed);
        }
        state
            .processes
            .entry(process.to_owned())
            .or_insert_with(|| Process { tally: Tally::of(Some(process)), lines: 0 });
        let works = state.files.iter().any(|f| f.process == process && f.refused.is_none());
        drop(state);
        self.send(Kind::ErrorSource {
            source: "logs".to_owned(),
            process: Some(process.to_owned()),
            works,
            count: limits.count,
            window_ms: limits.window_ms,
        });
        self.wake_up();
    }

    /// Follows nothing of `process` any more.
    pub fn forget(&self, process: &str) {
        let mut state = lock(&self.state);
        state.drop_files(process, |_| false);
        state.processes.remove(process);
    }

    /// How it is, for `status`.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let state = lock(&self.state);
        let refused: Vec<String> = state
            .files
            .iter()
            .filter_map(|f| Some(format!("{}: {}", f.path.display(), f.refused.as_ref()?)))
            .collect();
        let open = state.files.iter().filter(|f| f.now.is_some()).count();
        let (health, detail) = match (state.files.len(), refused.is_empty()) {
            (0, _) => (Health::Off, "no [[process]] whose logs could be read".to_owned()),
            (n, true) => (Health::Ok, format!("{n} files followed, {open} of them there")),
            (_, false) => (Health::Degraded, refused.join("; ")),
        };
        SourceView { name: "logs".into(), state: health, detail }
    }

    /// What was lost: bytes of logs, and errors that were too many to be told apart.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let state = lock(&self.state);
        BTreeMap::from([("logs".to_owned(), state.lost_bytes), ("errors".to_owned(), state.lost_errors)])
    }

    /// Ends the thread; what was read is told first.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake_up();
    }

    fn wake_up(&self) {
        // Full: then it will wake up anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn send(&self, kind: Kind) {
        // Fails only when the engine has ended, with the agent.
        drop(self.out.send(Event { at: clock::boottime(), kind }));
    }

    fn run(&self) {
        // Without inotify everything is seen within a second all the same.
        let mut inotify = Inotify::init().ok();
        loop {
            let idle = lock(&self.state).files.is_empty();
            let (more, open) = {
                let state = lock(&self.state);
                (state.more, state.files.iter().any(Followed::is_open))
            };
            let wait = match (more, open) {
                (true, _) => Duration::ZERO,
                (false, true) => LOOK / 4,
                (false, false) => LOOK,
            };
            let written = wait_for(&self.wake, inotify.as_mut(), (!idle).then_some(wait));
            let stop = self.stop.load(Ordering::Acquire);
            if stop {
                // What is there is read and told first; what takes too long is left to the next agent.
                let began = clock::Stopwatch::start();
                loop {
                    let events = lock(&self.state).look(clock::boottime(), inotify.as_mut(), false);
                    events.into_iter().for_each(|event| drop(self.out.send(event)));
                    if !lock(&self.state).more || began.elapsed() > PATIENCE {
                        break;
                    }
                }
            }
            let events = lock(&self.state).look(clock::boottime(), inotify.as_mut(), stop);
            for event in events {
                // The engine may be busy: then this waits, and the files do.
                drop(self.out.send(event));
            }
            self.write_note();
            if stop {
                return;
            }
            if written && !lock(&self.state).more {
                std::thread::sleep(GATHER);
            }
        }
    }

    /// Keeps how far everything was read. Not synced: after a power cut a second of logs may be told again.
    fn write_note(&self) {
        let mut state = lock(&self.state);
        let mut places = state.noted.clone();
        for followed in &state.files {
            if let Some(reader) = &followed.now {
                places.insert(followed.path.clone(), reader.safe.clone());
            }
        }
        let Ok(text) = serde_json::to_string(&places) else { return };
        if text == state.written {
            return;
        }
        let temporary = self.note.with_extension("new");
        match std::fs::write(&temporary, &text).and_then(|()| std::fs::rename(&temporary, &self.note)) {
            Ok(()) => state.written = text,
            Err(err) => {
                tracing::warn!(%err, note = %self.note.display(), "how far logs were read cannot be kept")
            }
        }
    }
}

/// Waits for a write, a wish or the time; true: there was a write.
fn wait_for(wake: &OwnedFd, inotify: Option<&mut Inotify>, at_most: Option<Duration>) -> bool {
    let timeout = at_most.and_then(|d| Timespec::try_from(d).ok());
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    let borrowed = inotify.as_ref().map(|i| i.as_fd());
    if let Some(fd) = &borrowed {
        fds.push(PollFd::new(fd, PollFlags::IN));
    }
    if poll(&mut fds, timeout.as_ref()).is_err() {
        return false;
    }
    let written = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
    drop(fds);
    let mut count = [0; 8];
    let _ = rustix::io::read(wake, &mut count);
    if let Some(inotify) = inotify {
        let mut buffer = [0; 4096];
        // Which file it was does not matter: a look at one that did not change costs a call.
        while inotify.read_events(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {}
    }
    written
}

impl State {
    /// Ends files of `process` but those that `keeps` says; where they were read up to is remembered.
    fn drop_files(&mut self, process: &str, keeps: impl Fn(&Path) -> bool) {
        let (kept, gone) =
            std::mem::take(&mut self.files).into_iter().partition(|f| f.process != process || keeps(&f.path));
        self.files = kept;
        for followed in gone {
            if let Some(reader) = followed.now {
                self.noted.insert(followed.path, reader.safe);
            }
        }
        while self.noted.len() > FILES {
            self.noted.pop_first();
        }
    }

    /// Looks at every file and reads what is new; what there is to tell.
    fn look(&mut self, now: Timestamp, mut inotify: Option<&mut Inotify>, last: bool) -> Vec<Event> {
        if now.since(self.budget.since) >= Duration::from_secs(1) {
            self.budget = Budget { since: now, all: RATE_ALL };
        }
        self.more = false;
        for followed in &mut self.files {
            let got = followed.look(now, &mut self.budget.all, last);
            followed.watch(inotify.as_deref_mut());
            self.more |= got.more;
            self.lost_bytes = self.lost_bytes.saturating_add(got.lost);
            let Some(process) = self.processes.get_mut(&followed.process) else { continue };
            process.lines = process.lines.saturating_add(got.lines);
            for fault in got.faults {
                if !process.tally.add(fault, followed.origin.name()) {
                    self.lost_errors = self.lost_errors.saturating_add(1);
                }
            }
        }
        if !last && self.told.is_some_and(|at| now.since(at) < Duration::from_secs(1)) {
            return Vec::new();
        }
        self.told = Some(now);
        let mut out = Vec::new();
        let lost = (self.lost_bytes, self.lost_errors);
        if lost != self.lost_told {
            for (class, total) in [("logs", lost.0), ("errors", lost.1)] {
                out.push(Kind::Lost { class: class.to_owned(), total });
            }
            self.lost_told = lost;
        }
        for (name, process) in &mut self.processes {
            let lines = std::mem::take(&mut process.lines);
            if lines > 0 {
                out.push(Kind::LogActivity { process: name.clone(), lines });
            }
            out.extend(process.tally.drain(now));
        }
        out.into_iter().map(|kind| Event { at: now, kind }).collect()
    }
}

impl Followed {
    fn new(path: &Path, process: &str, origin: Origin) -> Self {
        Self {
            path: path.to_owned(),
            process: process.to_owned(),
            origin,
            now: None,
            old: VecDeque::new(),
            refused: None,
            watch: None,
            beside: BTreeSet::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.now.iter().chain(self.old.iter().map(|(r, _)| r)).any(|r| r.assembler.is_open())
    }

    /// Opens it for the first time: where an earlier agent ended, or at the end of what is there already.
    fn begin(&mut self, noted: Option<&Place>) {
        self.beside = self.siblings().into_iter().map(|(_, id)| id).collect();
        let Some(file) = self.open() else {
            if let Some(place) = noted {
                self.find_renamed(place);
            }
            return;
        };
        let Ok(mut reader) = Reader::new(file) else { return };
        match noted {
            Some(place) if reader.is_at(place) => reader.go_to(place.offset),
            Some(place) if (reader.dev, reader.ino) == (place.dev, place.ino) => reader.go_to(0),
            Some(place) => self.find_renamed(place),
            None => {
                let end = reader.file.metadata().map_or(0, |m| m.len());
                reader.go_to(end);
            }
        }
        self.now = Some(reader);
    }

    /// A file that had this name when an earlier agent ended may have another one in the same folder now.
    fn find_renamed(&mut self, place: &Place) {
        let renamed = self
            .siblings()
            .into_iter()
            .find(|(_, id)| *id == (place.dev, place.ino))
            .and_then(|(path, _)| open(&path).ok().flatten());
        if let Some(mut reader) = renamed.and_then(|file| Reader::new(file).ok())
            && reader.is_at(place)
        {
            reader.go_to(place.offset);
            self.old.push_back((reader, clock::boottime().after(LINGER)));
        }
    }

    /// Regular files in the same folder whose names begin with this one's: where rotated logs go. Packed ones are not read.
    fn siblings(&self) -> Vec<(PathBuf, (u64, u64))> {
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Vec::new();
        };
        let name = name.to_string_lossy();
        let packed = [".gz", ".xz", ".bz2", ".zst", ".lz4", ".zip"];
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .take(NAMES)
            .filter(|entry| {
                let other = entry.file_name();
                let other = other.to_string_lossy();
                other.len() > name.len()
                    && other.starts_with(&*name)
                    && !packed.iter().any(|p| other.ends_with(p))
            })
            .filter_map(|entry| {
                let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
                Some((entry.path(), (meta.dev(), meta.ino())))
            })
            .collect()
    }

    /// Files that had the name and lost it again between two looks: they are read from their begin.
    fn find_missed(&mut self, until: Timestamp) {
        let now = self.siblings();
        let known: BTreeSet<(u64, u64)> = self.old.iter().map(|(r, _)| (r.dev, r.ino)).collect();
        for (path, id) in &now {
            if self.beside.contains(id) || known.contains(id) || self.old.len() >= OLD {
                continue;
            }
            if let Some(reader) = open(path).ok().flatten().and_then(|file| Reader::new(file).ok()) {
                self.old.push_back((reader, until));
            }
        }
        self.beside = now.into_iter().map(|(_, id)| id).collect();
    }

    /// The regular file under the name, if there is one; why not is remembered.
    fn open(&mut self) -> Option<File> {
        match open(&self.path) {
            Ok(file) => {
                self.refused = None;
                file
            }
            Err(why) => {
                self.refused = Some(why);
                None
            }
        }
    }

    fn look(&mut self, now: Timestamp, all: &mut u64, last: bool) -> Got {
        let mut got = Got::default();
        // Another file under the name: the old one is read to its end, and on for a while.
        let named = std::fs::symlink_metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
        let known = self.now.as_ref().map(|r| (r.dev, r.ino));
        if named != known || named.is_none() {
            if let Some(reader) = self.now.take() {
                self.old.push_back((reader, now.after(LINGER)));
                self.watch = None;
            }
            if named.is_some() {
                self.find_missed(now.after(LINGER));
                self.now = self.open().and_then(|file| Reader::new(file).ok());
            } else {
                self.refused = None;
            }
        }
        for (reader, _) in &mut self.old {
            reader.read(now, all, last, &mut got);
        }
        while self.old.front().is_some_and(|(_, until)| *until <= now || self.old.len() > OLD) {
            if let Some((mut reader, _)) = self.old.pop_front() {
                reader.finish(&mut got);
            }
        }
        if let Some(reader) = &mut self.now {
            reader.read(now, all, last, &mut got);
        }
        if got.rewritten {
            // Copied, and then truncated: the copy holds what was read already.
            self.beside = self.siblings().into_iter().map(|(_, id)| id).collect();
        }
        got
    }

    /// Watches the file that is read.
    fn watch(&mut self, inotify: Option<&mut Inotify>) {
        if self.watch.is_none()
            && let (Some(inotify), Some(reader)) = (inotify, &self.now)
        {
            // The very file that is open, whatever its name is by now.
            let path = format!("/proc/self/fd/{}", reader.file.as_raw_fd());
            let mask = WatchMask::MODIFY | WatchMask::MOVE_SELF | WatchMask::DELETE_SELF;
            self.watch = inotify.watches().add(path, mask).ok();
        }
    }
}

/// Opens a log. Links on the way, fifos and devices are refused.
fn open(path: &Path) -> Result<Option<File>, String> {
    use crate::safe_path::PathError;
    let parent = match Parent::open(path) {
        Ok(parent) => parent,
        Err(PathError::FolderMissing { .. }) => return Ok(None),
        Err(err) => return Err(err.to_string()),
    };
    match parent.entry() {
        Ok(Entry::Regular(file, _)) => Ok(Some(file)),
        Ok(Entry::Missing) => Ok(None),
        Ok(Entry::Other(_)) => Err("is not a regular file: links, fifos and devices are not read".to_owned()),
        Err(err) => Err(err.to_string()),
    }
}

impl Reader {
    fn new(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let place = Place { dev: meta.dev(), ino: meta.ino(), offset: 0, tail: String::new() };
        Ok(Self {
            file,
            dev: meta.dev(),
            ino: meta.ino(),
            safe: place.clone(),
            place,
            lines: Lines::default(),
            assembler: Assembler::default(),
            spent: (Timestamp(0), 0),
        })
    }

    /// Whether this is the file in which somebody was at `place`, not cut and not rewritten.
    fn is_at(&self, place: &Place) -> bool {
        (self.dev, self.ino) == (place.dev, place.ino) && self.tail(place.offset) == place.tail
    }

    fn go_to(&mut self, offset: u64) {
        self.place.offset = offset;
        self.place.tail = self.tail(offset);
        self.safe = self.place.clone();
    }

    /// The bytes before `offset` in hex; too few where the file ends before.
    fn tail(&self, offset: u64) -> String {
        let length = usize::try_from(offset).unwrap_or(TAIL).min(TAIL);
        let mut bytes = [0; TAIL];
        let part = bytes.get_mut(..length).unwrap_or_default();
        let at = offset - length as u64;
        let read = self.file.read_at(part, at).unwrap_or(0);
        part.get(..read).unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads what is new, within the second's share.
    fn read(&mut self, now: Timestamp, all: &mut u64, last: bool, got: &mut Got) {
        if now.since(self.spent.0) >= Duration::from_secs(1) {
            self.spent = (now, 0);
        }
        let Ok(size) = self.file.metadata().map(|m| m.len()) else { return };
        let rewritten = size < self.place.offset
            || (size > self.place.offset && self.tail(self.place.offset) != self.place.tail);
        if rewritten {
            // Truncated, or copied and truncated: everything in it is new.
            self.assembler.finish(&mut got.faults);
            self.lines.forget();
            self.go_to(0);
            got.rewritten = true;
        }
        let mut buffer = vec![0; 64 << 10];
        let until = self.spent.1.saturating_add(AT_ONCE).min(RATE);
        while self.spent.1 < until && *all > 0 {
            let read = match self.file.read_at(&mut buffer, self.place.offset) {
                Ok(0) | Err(_) => break,
                Ok(read) => read,
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            let (assembler, faults, lines) = (&mut self.assembler, &mut got.faults, &mut got.lines);
            self.lines.push(bytes, |line| {
                *lines += 1;
                assembler.push(line, now, faults);
            });
            self.place.offset += read as u64;
            self.spent.1 += read as u64;
            *all = all.saturating_sub(read as u64);
        }
        got.lost = got.lost.saturating_add(self.lines.take_cut());
        let behind = size.saturating_sub(self.place.offset);
        got.more |= behind > 0 && self.spent.1 < RATE && *all > 0;
        if behind > BEHIND {
            let skipped = behind - KEPT;
            got.lost = got.lost.saturating_add(skipped + self.lines.pending() as u64);
            self.assembler.finish(&mut got.faults);
            self.lines.forget();
            self.place.offset += skipped;
        }
        self.place.tail = self.tail(self.place.offset);
        if last {
            self.assembler.finish(&mut got.faults);
        } else {
            self.assembler.rest(now, &mut got.faults);
        }
        if !self.assembler.is_open() {
            let offset = self.place.offset - (self.lines.pending() as u64).min(self.place.offset);
            let tail = if offset == self.place.offset { self.place.tail.clone() } else { self.tail(offset) };
            self.safe = Place { offset, tail, ..self.place.clone() };
        }
    }

    /// Nothing more will come.
    fn finish(&mut self, got: &mut Got) {
        let (assembler, faults, lines) = (&mut self.assembler, &mut got.faults, &mut got.lines);
        self.lines.finish(|line| {
            *lines += 1;
            assembler.push(line, NEVER, faults);
        });
        self.assembler.finish(&mut got.faults);
    }
}

/// The time of lines after which nothing comes.
const NEVER: Timestamp = Timestamp(0);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
