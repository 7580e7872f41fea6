//! The source of file facts: notices that an owned file may have changed, looks at it, and reports what it is now and
//! who was at it.
//!
//! Hints come from fanotify (with the process), from the dirty-inode probe (with the process, also for mapped
//! stores), from inotify where a file system refuses fanotify, and from a periodic sweep for what no hook can see. A
//! hint is never believed: the file is looked at, and only what was seen is reported. One thread owns all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use grace_common::{FLAG_RENAMED, FLAG_UNLINKED, FileDirty, InodeKey, Touch};
use inotify::{Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;

use super::ebpf::{Probes, kernel_dev};
use super::fanotify::{Change, Fanotify};
use super::inode::{Identity, Mounts};
use super::look::look;
use super::mapped::sole_mapper;
use super::who::actor;
use crate::api::view::{Health, SourceView};
use crate::clock;
use crate::event::{Actor, Event, Inferred, Kind, Timestamp, Via};
use crate::file_state::{FileId, FileState, KnownGood};
use crate::prompt::prompt;

/// After a hint from the dirty probe, which fires before the data is there, the file is looked at again after these
/// times. A store through a mapping gives no other sign.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];

/// A file under a flood of writes is looked at again only after this many times the duration of the last look: bounds
/// the share of a core that one busy file can take.
const REST: u32 = 4;

/// A writer seen longer ago than this is not taken for the author of a change noticed now.
const STALE: Duration = Duration::from_secs(3);

/// A change that the probe noticed waits this long, at most so long in all, for fanotify to name the process: between a
/// rename and its notification a process can lose the processor.
const WAIT_FOR_NAME: [Duration; 2] = [Duration::from_micros(400), Duration::from_millis(50)];

/// What the thread is told.
enum Message {
    Own(PathBuf, Box<KnownGood>),
    Forget(PathBuf),
    Look(PathBuf),
    Dirty(FileDirty),
    Stop,
}

/// Where the thread is told things.
#[derive(Clone)]
pub struct Files {
    tell: Sender<Message>,
    wake: Arc<OwnedFd>,
    health: Arc<Mutex<Vec<SourceView>>>,
    lost: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Files {
    /// How often each kernel queue overflowed: what it would have told is not known, so everything was looked at.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<String, u64> {
        self.lost.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Watches `path` from now on, and looks at it at once.
    pub fn own(&self, path: &Path, known: KnownGood) {
        self.send(Message::Own(path.to_owned(), Box::new(known)));
    }

    /// Does not watch `path` any more.
    pub fn forget(&self, path: &Path) {
        self.send(Message::Forget(path.to_owned()));
    }

    /// Looks at `path` now.
    pub fn look(&self, path: &Path) {
        self.send(Message::Look(path.to_owned()));
    }

    /// The dirty probe saw something.
    pub fn dirty(&self, record: FileDirty) {
        self.send(Message::Dirty(record));
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.send(Message::Stop);
    }

    /// How the ways of noticing are.
    #[must_use]
    pub fn health(&self) -> Vec<SourceView> {
        self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn send(&self, message: Message) {
        // Both fail only after the thread has ended, with the agent.
        if self.tell.send(message).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// Starts the thread.
pub fn start(
    probes: Option<Arc<Probes>>,
    sweep: Duration,
    out: SyncSender<Event>,
) -> io::Result<(Files, std::thread::JoinHandle<()>)> {
    let (tell, told) = channel();
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let health = Arc::new(Mutex::new(Vec::new()));
    let lost = Arc::new(Mutex::new(BTreeMap::new()));
    let files = Files { tell, wake: Arc::clone(&wake), health: Arc::clone(&health), lost: Arc::clone(&lost) };
    let (fanotify, fanotify_why) = match Fanotify::open() {
        Ok(fanotify) => (Some(fanotify), None),
        Err(err) => (None, Some(err.to_string())),
    };
    let watcher = Watcher {
        mounts: Mounts::open().ok(),
        probes,
        out,
        told,
        wake,
        health,
        fanotify,
        fanotify_why,
        tells_who: rustix::process::geteuid().is_root(),
        inotify: None,
        inotify_folders: BTreeMap::new(),
        inotify_why: None,
        files: BTreeMap::new(),
        folders: BTreeMap::new(),
        by_inode: BTreeMap::new(),
        lost,
        sweep,
        next_sweep: clock::boottime().after(sweep),
        stop: false,
    };
    watcher.tell_health();
    let thread = std::thread::Builder::new().name("grace-files".into()).spawn(move || {
        prompt();
        watcher.run();
    })?;
    Ok((files, thread))
}

/// An owned file.
struct Watched {
    known: KnownGood,
    /// What was last reported.
    reported: Option<FileState>,
    /// The inode that is watched.
    inode: Option<InodeKey>,
    /// What it is to the kernel, as of the last look that found another object.
    identity: Option<Identity>,
    marked: Option<FileId>,
    /// As of the last look.
    stamp: Option<Stamp>,
    /// Who was last seen to change it since it was last right.
    writer: Option<Suspect>,
    /// Looks to come, earliest first, and how each was prompted.
    due: BTreeSet<(Timestamp, u8)>,
    /// Not before then: see [`REST`].
    rest_until: Timestamp,
    /// Since when the report waits for the writer's name.
    waits_since: Option<Timestamp>,
    /// When it was last seen to be right.
    right_at: Timestamp,
}

/// A process that was seen at a file.
#[derive(Clone)]
struct Suspect {
    actor: Actor,
    at: Timestamp,
    /// True: it changed the file. The dirty probe alone does not tell: a first read dirties the inode, too. The file's
    /// change time does, which no read moves.
    sure: bool,
    /// True: it was told after the change (fanotify). A look that then finds nothing wrong acquits it; one who was told
    /// before (the dirty probe) may still be about to store.
    told_after: bool,
}

/// An inode and its change time.
type Stamp = (u64, u64, i64, u64);

struct Watcher {
    /// None where /proc is not mounted.
    mounts: Option<Mounts>,
    probes: Option<Arc<Probes>>,
    out: SyncSender<Event>,
    told: Receiver<Message>,
    wake: Arc<OwnedFd>,
    health: Arc<Mutex<Vec<SourceView>>>,
    fanotify: Option<Fanotify>,
    fanotify_why: Option<String>,
    /// The kernel names the process of an event only to root.
    tells_who: bool,
    inotify: Option<Inotify>,
    inotify_folders: BTreeMap<PathBuf, WatchDescriptor>,
    inotify_why: Option<String>,
    files: BTreeMap<PathBuf, Watched>,
    /// Marked folders with the number of owned files in each.
    folders: BTreeMap<PathBuf, usize>,
    by_inode: BTreeMap<InodeKey, PathBuf>,
    lost: Arc<Mutex<BTreeMap<String, u64>>>,
    sweep: Duration,
    next_sweep: Timestamp,
    stop: bool,
}

impl Watcher {
    fn run(mut self) {
        let mut changes = Vec::new();
        while !self.stop {
            self.wait();
            if let Some(fanotify) = &mut self.fanotify
                && let Err(err) = fanotify.read(&mut changes)
            {
                tracing::warn!(%err, "fanotify cannot be read any more; inotify takes over");
                self.fanotify = None;
                self.fanotify_why = Some(err.to_string());
                let folders: Vec<PathBuf> = self.folders.keys().cloned().collect();
                for folder in folders {
                    self.inotify_folder(&folder);
                }
                self.tell_health();
            }
            for change in changes.drain(..) {
                self.hear(change);
            }
            self.read_inotify();
            while let Ok(message) = self.told.try_recv() {
                self.obey(message);
            }
            let now = clock::boottime();
            if now >= self.next_sweep {
                self.next_sweep = now.after(self.sweep);
                for watched in self.files.values_mut() {
                    watched.due.insert((now, via_rank(Via::Sweep)));
                }
            }
            self.look_at_due();
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let next = self
            .files
            .values()
            .filter_map(|w| w.due.first().map(|(at, _)| (*at).max(w.rest_until)))
            .min()
            .map_or(self.next_sweep, |at| at.min(self.next_sweep));
        let timeout = next.since(clock::boottime());
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        if let Some(fanotify) = &self.fanotify {
            fds.push(PollFd::new(fanotify, PollFlags::IN));
        }
        let inotify = self.inotify.as_ref().map(AsFd::as_fd);
        if let Some(inotify) = &inotify {
            fds.push(PollFd::new(inotify, PollFlags::IN));
        }
        // An interrupted wait is a wait that ended early.
        let _ = poll(&mut fds, Some(&timeout));
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
    }

    fn hear(&mut self, change: Change) {
        match change {
            Change::Entry { path, pid } | Change::File { path, pid } => {
                let Some(watched) = self.files.get_mut(&path) else { return };
                let now = clock::boottime();
                if pid != std::process::id() && pid != 0 {
                    let actor = actor(self.probes.as_deref(), pid, None);
                    watched.writer = Some(Suspect { actor, at: now, sure: true, told_after: true });
                }
                watched.due.insert((now, via_rank(Via::Fanotify)));
            }
            Change::Overflow => self.overflow("fanotify"),
        }
    }

    /// A queue was full: count it and look at everything.
    fn overflow(&mut self, class: &'static str) {
        let total = {
            let mut lost = self.lost.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let total = lost.entry(class.to_owned()).or_default();
            *total += 1;
            *total
        };
        self.send(Kind::Lost { class: class.to_owned(), total });
        let now = clock::boottime();
        for watched in self.files.values_mut() {
            watched.due.insert((now, via_rank(Via::Sweep)));
        }
    }

    fn read_inotify(&mut self) {
        let Some(inotify) = &mut self.inotify else { return };
        let mut buffer = [0; 4096];
        let mut names: Vec<PathBuf> = Vec::new();
        let mut overflow = false;
        while let Ok(events) = inotify.read_events(&mut buffer) {
            let mut any = false;
            for event in events {
                any = true;
                overflow |= event.mask.contains(inotify::EventMask::Q_OVERFLOW);
                let folder =
                    self.inotify_folders.iter().find(|(_, wd)| **wd == event.wd).map(|(path, _)| path);
                if let (Some(folder), Some(name)) = (folder, event.name) {
                    names.push(folder.join(name));
                }
            }
            if !any {
                break;
            }
        }
        let now = clock::boottime();
        for path in names {
            if let Some(watched) = self.files.get_mut(&path) {
                watched.due.insert((now, via_rank(Via::Inotify)));
            }
        }
        if overflow {
            self.overflow("inotify");
        }
    }

    fn obey(&mut self, message: Message) {
        let now = clock::boottime();
        match message {
            Message::Own(path, known) => {
                let due = BTreeSet::from([(now, via_rank(Via::Look))]);
                if let Some(watched) = self.files.get_mut(&path) {
                    watched.known = *known;
                    // What was reported was judged against the old snapshot: say it again.
                    watched.reported = None;
                    watched.due.extend(due);
                    return;
                }
                if let Some(folder) = path.parent().map(Path::to_owned) {
                    self.add_folder(&folder);
                }
                let watched = Watched {
                    known: *known,
                    reported: None,
                    inode: None,
                    identity: None,
                    marked: None,
                    stamp: None,
                    writer: None,
                    due,
                    rest_until: now,
                    waits_since: None,
                    right_at: Timestamp::default(),
                };
                self.files.insert(path, watched);
                self.tell_health();
            }
            Message::Forget(path) => self.forget(&path),
            Message::Look(path) => {
                if let Some(watched) = self.files.get_mut(&path) {
                    watched.due.insert((now, via_rank(Via::Look)));
                }
            }
            Message::Dirty(record) => {
                let Some(path) = self.by_inode.get(&record.inode) else { return };
                let Some(watched) = self.files.get_mut(path) else { return };
                if record.task.tgid == std::process::id() {
                    return;
                }
                // One after whom the file was seen to be right did not do what is about to be done.
                let open = |w: &Suspect| {
                    now.since(w.at) <= STALE && (w.at >= watched.right_at || w.actor.pid == record.task.tgid)
                };
                if !watched.writer.as_ref().is_some_and(open) {
                    let actor = actor(self.probes.as_deref(), record.task.tgid, Some(&record.task));
                    // A name that is lost is a change by itself; a dirty inode may have been read only.
                    let sure = record.flags & (FLAG_RENAMED | FLAG_UNLINKED) != 0;
                    watched.writer = Some(Suspect { actor, at: now, sure, told_after: false });
                }
                let rank = via_rank(Via::Probe);
                watched.due.insert((now, rank));
                watched.due.extend(AGAIN.map(|after| (now.after(after), rank)));
            }
            Message::Stop => self.stop = true,
        }
    }

    fn add_folder(&mut self, folder: &Path) {
        let count = self.folders.entry(folder.to_owned()).or_default();
        *count += 1;
        if *count > 1 {
            return;
        }
        let refused = match &mut self.fanotify {
            Some(fanotify) => fanotify.mark_folder(folder).err(),
            None => Some(io::Error::other("no fanotify")),
        };
        if let Some(err) = refused {
            tracing::debug!(folder = %folder.display(), %err, "fanotify refuses this folder; inotify watches it");
            self.inotify_folder(folder);
        }
    }

    fn inotify_folder(&mut self, folder: &Path) {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let result = match &mut self.inotify {
            Some(inotify) => Ok(inotify),
            None => Inotify::init().map(|new| self.inotify.insert(new)),
        }
        .and_then(|inotify| inotify.watches().add(folder, mask));
        match result {
            Ok(watch) => {
                self.inotify_folders.insert(folder.to_owned(), watch);
            }
            Err(err) => {
                tracing::warn!(folder = %folder.display(), %err, "cannot be watched; the sweep looks every {:?}", self.sweep);
                self.inotify_why = Some(format!("{}: {err}", folder.display()));
            }
        }
    }

    fn forget(&mut self, path: &Path) {
        let Some(watched) = self.files.remove(path) else { return };
        if let (Some(probes), Some(inode)) = (&self.probes, watched.inode) {
            probes.unwatch_inode(inode);
            self.by_inode.remove(&inode);
        }
        if let Some(fanotify) = &mut self.fanotify {
            fanotify.forget_file(path);
        }
        if let Some(folder) = path.parent()
            && let Some(count) = self.folders.get_mut(folder)
        {
            *count -= 1;
            if *count == 0 {
                self.folders.remove(folder);
                if let Some(fanotify) = &mut self.fanotify {
                    fanotify.forget_folder(folder);
                }
                if let (Some(inotify), Some(watch)) = (&mut self.inotify, self.inotify_folders.remove(folder))
                {
                    // It may be gone with the folder.
                    drop(inotify.watches().remove(watch));
                }
            }
        }
        self.tell_health();
    }

    fn look_at_due(&mut self) {
        let now = clock::boottime();
        let due: Vec<PathBuf> = self
            .files
            .iter()
            .filter(|(_, w)| w.rest_until <= now && w.due.first().is_some_and(|(at, _)| *at <= now))
            .map(|(path, _)| path.clone())
            .collect();
        for path in due {
            self.look_at(&path, now);
        }
    }

    fn look_at(&mut self, path: &Path, now: Timestamp) {
        let Some(watched) = self.files.get_mut(path) else { return };
        let mut via = via_rank(Via::Sweep);
        while let Some((at, rank)) = watched.due.first().copied().filter(|(at, _)| *at <= now) {
            watched.due.remove(&(at, rank));
            via = via.min(rank);
        }
        let stamp = stamp_of(path);
        if let Some(suspect) = &mut watched.writer
            && !suspect.sure
        {
            suspect.sure = stamp.is_some() && stamp != watched.stamp;
            if !suspect.sure {
                watched.writer = None;
            }
        }
        watched.stamp = stamp;
        let watch = clock::Stopwatch::start();
        let mut state = look(path, Some(&watched.known));
        // A new object at the path must be watched before it is judged, or a change between the two is missed.
        for _ in 0..3 {
            if matches!(state, FileState::Unreadable { .. }) {
                // Perhaps only because it changes all the time: it must stay watched just then.
                break;
            }
            let id = state.id();
            // The first change to a file of an overlay moves its content to another inode.
            let overlaid = watched.identity.is_some_and(|identity| identity.overlaid);
            if watched.marked == id && !overlaid {
                break;
            }
            let identity = id.and_then(|_| identify(&mut self.mounts, path));
            let key = match identity {
                Some(identity) => identity.key,
                // Before 5.8 the kernel does not tell a file's mount.
                None => id.map(inode_key),
            };
            if watched.marked == id && watched.inode == key {
                break;
            }
            watched.marked = id;
            watched.identity = identity;
            if let Some(inode) = watched.inode.take() {
                self.by_inode.remove(&inode);
                if let Some(probes) = &self.probes {
                    probes.unwatch_inode(inode);
                }
            }
            if id.is_none() {
                break;
            }
            if let (Some(probes), Some(inode)) = (&self.probes, key)
                && probes.watch_inode(inode, identity.and_then(|i| i.generation), path)
            {
                watched.inode = Some(inode);
                self.by_inode.insert(inode, path.to_owned());
            }
            if let Some(fanotify) = &mut self.fanotify {
                // Refused on file systems without handles: inotify watches their folders.
                drop(fanotify.mark_file(path));
            }
            state = look(path, Some(&watched.known));
        }
        watched.rest_until = clock::boottime().after(watch.elapsed() * REST);
        let right = watched.known.drift(&state).is_empty() && !matches!(state, FileState::Unreadable { .. });
        if right {
            watched.right_at = now;
            watched.writer.take_if(|suspect| suspect.told_after);
        }
        if watched.reported.as_ref() == Some(&state) {
            return;
        }
        let suspect = if right { watched.writer.take() } else { watched.writer.clone() };
        // Who touched the file long ago did not make a change that was noticed only now.
        let now = clock::boottime();
        let mut writer = suspect.filter(|s| now.since(s.at) < STALE).map(|s| s.actor);
        if !right
            && writer.is_none()
            && via == via_rank(Via::Probe)
            && self.fanotify.is_some()
            && self.tells_who
        {
            // The probe fires before the change, fanotify just after it: its word on who it was is about to come.
            let since = *watched.waits_since.get_or_insert(now);
            if now.since(since) < WAIT_FOR_NAME[1] {
                watched.rest_until = now;
                watched.due.insert((now.after(WAIT_FOR_NAME[0]), via));
                return;
            }
        }
        watched.waits_since = None;
        if !right && writer.is_none() && !matches!(state, FileState::Unreadable { .. }) {
            writer = infer_writer(self.probes.as_deref(), path, watched);
        }
        watched.reported = Some(state.clone());
        self.send(Kind::FileSeen { path: path.to_owned(), state, writer, via: via_of(via) });
    }

    fn send(&self, kind: Kind) {
        // Fails only when the engine has ended, with the agent.
        drop(self.out.send(Event { at: clock::boottime(), kind }));
    }

    fn tell_health(&self) {
        let files = self.files.len();
        let fanotify = SourceView {
            name: "fanotify".into(),
            state: match (&self.fanotify, self.tells_who) {
                (Some(_), true) => Health::Ok,
                (Some(_), false) => Health::Degraded,
                (None, _) => Health::Unsupported,
            },
            detail: match &self.fanotify_why {
                None if !self.tells_who => {
                    format!(
                        "{files} files in {} folders, but without root it does not tell who",
                        self.folders.len()
                    )
                }
                None => format!("{files} owned, with the process that changes them"),
                Some(why) => format!("{why}; inotify works, but does not tell who"),
            },
        };
        let inotify = SourceView {
            name: "inotify".into(),
            state: match (&self.inotify, &self.inotify_why) {
                (_, Some(_)) => Health::Degraded,
                (Some(_), None) => Health::Ok,
                (None, None) => Health::Off,
            },
            detail: match (&self.inotify_why, self.inotify_folders.len()) {
                (Some(why), _) => why.clone(),
                (None, 0) => "not needed".into(),
                (None, n) => format!("on {n} that fanotify cannot watch"),
            },
        };
        let sweep = SourceView {
            name: "sweep".into(),
            state: Health::Ok,
            detail: format!("every file every {}", humantime::format_duration(self.sweep)),
        };
        *self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            vec![fanotify, inotify, sweep];
    }
}

/// What lies at `path`, with the mount table read again where it does not know the file's mount.
fn identify(mounts: &mut Option<Mounts>, path: &Path) -> Option<Identity> {
    let mounts = mounts.as_mut()?;
    mounts.identify(path).or_else(|| {
        mounts.reload().ok()?;
        mounts.identify(path)
    })
}

/// Who changed a file when nobody was seen at it: the one that the kernel remembers, if it was there when the file
/// changed; else the only process that has it mapped shared and writable.
fn infer_writer(probes: Option<&Probes>, path: &Path, watched: &Watched) -> Option<Actor> {
    let remembered = probes.and_then(|probes| {
        let last = watched.inode.and_then(|inode| probes.last_touch(inode));
        let touch = last.into_iter().chain(probes.touch_of_replaced(path)).max_by_key(|touch| touch.at_ns)?;
        let theirs = touch.task.tgid != std::process::id() && touched_then(&touch, path);
        theirs.then(|| Actor {
            inferred: Some(Inferred::LastTouch),
            ..actor(Some(probes), touch.task.tgid, Some(&touch.task))
        })
    });
    remembered.or_else(|| {
        let identity = watched.identity?;
        let names: Vec<InodeKey> = [identity.key, identity.shown].into_iter().flatten().collect();
        let pid = sole_mapper(&names).filter(|pid| *pid != std::process::id())?;
        Some(Actor { inferred: Some(Inferred::Mapping), ..actor(probes, pid, None) })
    })
}

/// Whether `touch` was when the file at `path` changed last: its change time is set by the same system call. A file that
/// is gone has none.
fn touched_then(touch: &Touch, path: &Path) -> bool {
    let Ok(stat) = rustix::fs::lstat(path) else { return true };
    let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let nanos = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    let touched =
        nanos(wall.tv_sec, wall.tv_nsec) - i128::from(clock::boottime().0) + i128::from(touch.at_ns);
    let changed = nanos(stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0));
    (touched - changed).unsigned_abs() < TOUCH_APART
}

/// A touch and a change this near to each other are one, in nanoseconds: coarse clocks tick every 10 ms, and the wall
/// clock may have been slewed since.
const TOUCH_APART: u128 = 500_000_000;

fn inode_key(id: FileId) -> InodeKey {
    InodeKey { dev: kernel_dev(id.dev), _pad: 0, ino: id.ino }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let stat = rustix::fs::lstat(path).ok()?;
    Some((stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec))
}

/// Order of preference for what a look is said to come from.
fn via_rank(via: Via) -> u8 {
    match via {
        Via::Fanotify => 0,
        Via::Probe => 1,
        Via::Inotify => 2,
        Via::Mounts => 3,
        Via::Look => 4,
        Via::Mapped => 5,
        Via::Sweep => 6,
    }
}

fn via_of(rank: u8) -> Via {
    match rank {
        0 => Via::Fanotify,
        1 => Via::Probe,
        2 => Via::Inotify,
        3 => Via::Mounts,
        4 => Via::Look,
        5 => Via::Mapped,
        _ => Via::Sweep,
    }
}
