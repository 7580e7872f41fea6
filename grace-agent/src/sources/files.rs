//! The source of file facts: notices that an owned file may have changed, looks at it, and reports what it is now and
//! who was at it.
//!
//! Weights have a thread of their own, which looks at them through `weights.rs`. Hints come from the marks (`marks.rs`: fanotify, with the process; inotify where that is refused), from the
//! dirty-inode probe (with the process, also for mapped stores), from the mount table, and from a periodic sweep for
//! what no hook can see. A hint is never believed: the file is looked at, and only what was seen is reported. One
//! thread owns all of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use grace_common::{FLAG_RENAMED, FLAG_UNLINKED, FileDirty, InodeKey, Touch};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;

use super::ebpf::{Probes, kernel_dev};
use super::fanotify::Change;
use super::folders::{Folder, Folders, Stranger};
use super::inode::{Identity, Mounts};
use super::look::look;
use super::mapped::{is_mapped_by, sole_mapper};
use super::marks::Marks;
use super::weights::{Doubts, Eye, Looked};
use super::who::{actor, lineage};
use crate::api::view::{Health, SourceView};
use crate::clock;
use crate::event::{Actor, Event, Inferred, Kind, Timestamp, Via};
use crate::file_state::{ContentKind, FileId, FileState, KnownGood};
use crate::prompt::prompt;
use crate::weights::Manifests;

/// After a hint from the dirty probe, which fires before the data is there, the file is looked at again after these
/// times. A store through a mapping gives no other sign.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];

/// A file under a flood of writes is looked at again only after this many times the duration of the last look: bounds
/// the share of a core that one busy file can take.
const REST: u32 = 4;

/// Weights rest no longer than this: their looks are slices.
const WEIGHTS_REST: Duration = Duration::from_millis(100);

/// Weights may be looked at so often without rest, once in this time.
const BURST: u32 = 3;
const BURST_EVERY: Duration = Duration::from_secs(1);

/// A writer seen longer ago than this is not taken for the author of a change noticed now.
const STALE: Duration = Duration::from_secs(3);

/// A change that the probe noticed waits this long, at most so long in all, for fanotify to name the process: between a
/// rename and its notification a process can lose the processor.
const WAIT_FOR_NAME: [Duration; 2] = [Duration::from_micros(400), Duration::from_millis(50)];

/// While a process that dirtied a file has it mapped shared and writable, it is looked at this often: further stores
/// call no hook.
const WHILE_MAPPED: Duration = Duration::from_secs(1);

/// A touch and a change this near to each other are one, in nanoseconds: coarse clocks tick every 10 ms, and the wall
/// clock may have been slewed since.
const TOUCH_APART: u128 = 500_000_000;

/// So many processes that dirtied a file are remembered.
const TOUCHES: usize = 8;

/// What the thread is told.
enum Message {
    Own(PathBuf, Box<KnownGood>),
    Forget(PathBuf),
    Look(PathBuf),
    /// What [`Files::rest`] began has ended.
    Rested(PathBuf),
    Folders(Vec<Folder>),
    Restored(PathBuf),
    Dirty(FileDirty),
    /// Answered once everything that was told before is done.
    Ask(SyncSender<()>),
    Stop,
}

/// Where a thread is told things.
#[derive(Clone)]
struct Lane {
    tell: Sender<Message>,
    wake: Arc<OwnedFd>,
    health: Arc<Mutex<Vec<SourceView>>>,
    lost: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// While it lives, what is at a file is not reported: see [`Files::rest`].
pub struct Rest {
    files: Files,
    path: PathBuf,
}

impl Drop for Rest {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        self.files.lane_of(&path).send(Message::Rested(path));
    }
}

impl Lane {
    fn send(&self, message: Message) {
        // Both fail only after the thread has ended, with the agent.
        if self.tell.send(message).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// Where the threads are told things: one owns configs and secrets, the other weights, whose looks take longer.
#[derive(Clone)]
pub struct Files {
    small: Lane,
    weights: Lane,
    owned_weights: Arc<Mutex<BTreeMap<PathBuf, KnownGood>>>,
    doubts: Doubts,
    resting: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Files {
    /// Where `path` is watched.
    fn lane_of(&self, path: &Path) -> &Lane {
        if locked(&self.owned_weights).contains_key(path) { &self.weights } else { &self.small }
    }

    /// How often each kernel queue overflowed: what it would have told is not known, so everything was looked at.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let mut out = locked(&self.small.lost).clone();
        for (class, n) in locked(&self.weights.lost).iter() {
            *out.entry(class.clone()).or_default() += n;
        }
        out
    }

    /// Watches `path` from now on, and looks at it at once.
    pub fn own(&self, path: &Path, known: KnownGood) {
        let (mine, other) = match known.kind {
            ContentKind::Weights => (&self.weights, &self.small),
            ContentKind::Config | ContentKind::Secret => (&self.small, &self.weights),
        };
        if known.kind == ContentKind::Weights {
            locked(&self.owned_weights).insert(path.to_owned(), known.clone());
        } else {
            locked(&self.owned_weights).remove(path);
        }
        other.send(Message::Forget(path.to_owned()));
        mine.send(Message::Own(path.to_owned(), Box::new(known)));
    }

    /// Waits, at most `patience` long, until all that was told of configs and secrets before is done: what [`Files::own`] named
    /// is watched and was looked at. False: not yet.
    #[must_use]
    pub fn caught_up(&self, patience: Duration) -> bool {
        let (done, told) = sync_channel(1);
        self.small.send(Message::Ask(done));
        told.recv_timeout(patience).is_ok()
    }

    /// Does not watch `path` any more.
    pub fn forget(&self, path: &Path) {
        locked(&self.owned_weights).remove(path);
        self.small.send(Message::Forget(path.to_owned()));
        self.weights.send(Message::Forget(path.to_owned()));
    }

    /// Reports nothing of `path` until the answer is dropped, and then looks: somebody puts another version there and
    /// says last ([`Files::own`]) that it is the known-good one.
    #[must_use]
    pub fn rest(&self, path: &Path) -> Rest {
        locked(&self.resting).insert(path.to_owned());
        Rest { files: self.clone(), path: path.to_owned() }
    }

    /// Looks at `path` now.
    pub fn look(&self, path: &Path) {
        self.lane_of(path).send(Message::Look(path.to_owned()));
    }

    /// Looks at `path` after it was restored, and tells what is there also where that is what was told before: it may have
    /// been changed again, in the same way, before anybody saw it right.
    pub fn restored(&self, path: &Path) {
        self.lane_of(path).send(Message::Restored(path.to_owned()));
    }

    /// Watches these folders from now on, and no others: what lies there and is not owned is told. After the files in
    /// them are owned.
    pub fn watch_folders(&self, folders: Vec<Folder>) {
        self.small.send(Message::Folders(folders));
    }

    /// The dirty probe saw something.
    pub fn dirty(&self, record: FileDirty) {
        if !locked(&self.owned_weights).is_empty() {
            self.weights.send(Message::Dirty(record));
        }
        self.small.send(Message::Dirty(record));
    }

    /// Ends the threads.
    pub fn stop(&self) {
        self.small.send(Message::Stop);
        self.weights.send(Message::Stop);
    }

    /// The weights that are owned.
    #[must_use]
    pub fn weights(&self) -> BTreeMap<PathBuf, KnownGood> {
        locked(&self.owned_weights).clone()
    }

    /// What of them is in doubt, or known to be wrong.
    #[must_use]
    pub fn doubts(&self) -> &Doubts {
        &self.doubts
    }

    /// How the ways of noticing are.
    #[must_use]
    pub fn health(&self) -> Vec<SourceView> {
        let mut out = locked(&self.small.health).clone();
        let owned = locked(&self.owned_weights).len();
        let looking = self.doubts.looking();
        out.push(SourceView {
            name: "weights".into(),
            state: if owned == 0 { Health::Off } else { Health::Ok },
            detail: match (owned, looking.first()) {
                (0, _) => "no weights are owned".into(),
                (n, None) => format!("{n} files, by chunks of 4 MiB"),
                (n, Some(one)) => format!("{n} files; {one}"),
            },
        });
        // What only they cannot be watched by must be said, too.
        let troubles = locked(&self.weights.health).clone();
        let broken = |view: &SourceView| matches!(view.state, Health::Degraded | Health::Unsupported);
        if owned > 0 {
            let missing =
                |view: &SourceView| broken(view) && !out.iter().any(|o| o.name == view.name && broken(o));
            let new: Vec<SourceView> = troubles.into_iter().filter(missing).collect();
            out.extend(
                new.into_iter().map(|view| SourceView { name: format!("{} (weights)", view.name), ..view }),
            );
        }
        out
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Starts the threads.
pub fn start(
    probes: Option<Arc<Probes>>,
    sweep: Duration,
    manifests: Manifests,
    out: SyncSender<Event>,
) -> io::Result<(Files, [std::thread::JoinHandle<()>; 2])> {
    let doubts = Doubts::default();
    let eye = Eye::new(manifests, doubts.clone());
    let resting = Arc::new(Mutex::new(BTreeSet::new()));
    let owned_weights = Arc::new(Mutex::new(BTreeMap::new()));
    let shared = || Shared {
        resting: Arc::clone(&resting),
        owned_weights: Arc::clone(&owned_weights),
        out: out.clone(),
    };
    let (small, one) = start_lane("grace-files", probes.clone(), sweep, None, shared())?;
    let (weights, two) = start_lane("grace-weights", probes, sweep, Some(eye), shared())?;
    Ok((Files { small, weights, owned_weights, doubts, resting }, [one, two]))
}

fn start_lane(
    name: &str,
    probes: Option<Arc<Probes>>,
    sweep: Duration,
    eye: Option<Eye>,
    shared: Shared,
) -> io::Result<(Lane, std::thread::JoinHandle<()>)> {
    let (tell, told) = channel();
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let health = Arc::new(Mutex::new(Vec::new()));
    let lost = Arc::new(Mutex::new(BTreeMap::new()));
    let lane = Lane { tell, wake: Arc::clone(&wake), health: Arc::clone(&health), lost: Arc::clone(&lost) };
    let mounts = Mounts::open().inspect_err(|err| {
        tracing::warn!(%err, "the mount table cannot be read: the dirty probe is of no use, and mounts over files wait for the sweep");
    });
    let watcher = Watcher {
        probes,
        shared,
        told,
        wake,
        health,
        marks: Marks::open(),
        mounts: mounts.ok(),
        tells_who: rustix::process::geteuid().is_root(),
        files: BTreeMap::new(),
        by_inode: BTreeMap::new(),
        folders: Folders::default(),
        lost,
        sweep,
        next_sweep: clock::boottime().after(sweep),
        asked: Vec::new(),
        eye,
        stop: false,
    };
    watcher.tell_health();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        prompt();
        watcher.run();
    })?;
    Ok((lane, thread))
}

/// An owned file.
struct Watched {
    known: KnownGood,
    /// What was last reported.
    reported: Option<FileState>,
    /// The inode that is watched, as the kernel knows it.
    identity: Option<Identity>,
    marked: Option<FileId>,
    /// Who dirtied it of late, as the probe told: the kernel remembers only the last one on each processor, and a reader
    /// may have come after the writer.
    touches: VecDeque<Touch>,
    /// One of them that had it mapped shared and writable when last looked.
    mapper: Option<u32>,
    /// As of the last look.
    stamp: Option<Stamp>,
    /// Who was last seen to change it since it was last right.
    writer: Option<Suspect>,
    /// Looks to come, earliest first, and how each was prompted.
    due: BTreeSet<(Timestamp, u8)>,
    /// When something was last noticed of it.
    noticed_at: Timestamp,
    /// When weights began to be looked at without rest, and how often since: see [`BURST`].
    burst: (Timestamp, u32),
    /// Not before then: see [`REST`].
    rest_until: Timestamp,
    /// Since when the report waits for the writer's name.
    waits_since: Option<Timestamp>,
    /// When it was last seen to be right, and its stamp then.
    right_at: Timestamp,
    right_stamp: Option<Stamp>,
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

/// What the threads share.
struct Shared {
    /// Files of which nothing is reported just now.
    resting: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// The weights that are owned.
    owned_weights: Arc<Mutex<BTreeMap<PathBuf, KnownGood>>>,
    out: SyncSender<Event>,
}

struct Watcher {
    probes: Option<Arc<Probes>>,
    shared: Shared,
    told: Receiver<Message>,
    wake: Arc<OwnedFd>,
    health: Arc<Mutex<Vec<SourceView>>>,
    marks: Marks,
    mounts: Option<Mounts>,
    /// The kernel names the process of an event only to root.
    tells_who: bool,
    files: BTreeMap<PathBuf, Watched>,
    /// One inode can be several owned files: hard links.
    by_inode: BTreeMap<InodeKey, BTreeSet<PathBuf>>,
    folders: Folders,
    lost: Arc<Mutex<BTreeMap<String, u64>>>,
    sweep: Duration,
    next_sweep: Timestamp,
    /// Who waits for the end of this round.
    asked: Vec<SyncSender<()>>,
    /// Looks at weights, where this thread owns those.
    eye: Option<Eye>,
    stop: bool,
}

impl Shared {
    /// Whether `path` is among `files`, which this thread owns, or owned by the other one.
    fn owns(&self, files: &BTreeMap<PathBuf, Watched>, path: &Path) -> bool {
        files.contains_key(path) || locked(&self.owned_weights).contains_key(path)
    }
}

impl Watcher {
    fn run(mut self) {
        let mut changes = Vec::new();
        while !self.stop {
            if self.wait() {
                self.remounted();
            }
            if self.marks.read(&mut changes) {
                self.tell_health();
            }
            for (change, via) in changes.drain(..) {
                self.hear(change, via);
            }
            while let Ok(message) = self.told.try_recv() {
                self.obey(message);
            }
            let now = clock::boottime();
            if now >= self.next_sweep {
                self.next_sweep = now.after(self.sweep);
                for watched in self.files.values_mut() {
                    watched.due.insert((now, via_rank(Via::Sweep)));
                }
                self.sweep_folders();
            }
            if self.folders.next().is_some_and(|at| at <= now) {
                let before = self.folders.marked.clone();
                let (files, shared) = (&self.files, &self.shared);
                let came = self.folders.due(now, |path| shared.owns(files, path));
                self.tell_strangers(came, Via::Look, &before);
            }
            self.look_at_due();
            for asked in self.asked.drain(..) {
                // Whoever asked may have lost patience.
                let _ = asked.try_send(());
            }
        }
    }

    /// Waits until there is something to do. True: the mount table has changed.
    fn wait(&self) -> bool {
        let next = self
            .files
            .values()
            .filter_map(|w| w.due.first().map(|(at, _)| (*at).max(w.rest_until)))
            .chain(self.folders.next())
            .min()
            .map_or(self.next_sweep, |at| at.min(self.next_sweep));
        let timeout = next.since(clock::boottime());
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(self.marks.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if let Some(mounts) = &self.mounts {
            fds.push(PollFd::new(mounts, PollFlags::PRI));
        }
        // An interrupted wait is a wait that ended early.
        let _ = poll(&mut fds, Some(&timeout));
        let remounted =
            self.mounts.is_some() && fds.last().is_some_and(|fd| fd.revents().contains(PollFlags::PRI));
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        remounted
    }

    fn hear(&mut self, change: Change, via: Via) {
        if let Change::Entry { path, pid } = &change
            && self.folders.concerns(path)
            && !self.shared.owns(&self.files, path)
            && *pid != std::process::id()
        {
            let writer = self.suspect(*pid).map(|suspect| suspect.actor);
            self.folders.hint(path, writer, clock::boottime());
        }
        match change {
            Change::Entry { path, pid } if self.marks.on_the_way(&path) => self.moved(&path, pid, via),
            Change::Folder { path, pid } => self.moved(&path, pid, via),
            Change::Entry { path, pid } | Change::File { path, pid } => {
                let suspect = self.suspect(pid);
                if let Some(watched) = self.files.get_mut(&path) {
                    watched.hint(suspect, via);
                }
            }
            Change::Overflow if via == Via::Inotify => self.overflow("inotify"),
            Change::Overflow => self.overflow("fanotify"),
        }
    }

    /// A folder on the way to owned files came, went or was replaced.
    fn moved(&mut self, path: &Path, pid: u32, via: Via) {
        self.marks.moved(path);
        let suspect = self.suspect(pid);
        for (_, watched) in self.files.iter_mut().filter(|(file, _)| file.starts_with(path)) {
            watched.hint(suspect.clone(), via);
        }
    }

    /// Whom a mark named: none where it is this program, or not known.
    fn suspect(&self, pid: u32) -> Option<Suspect> {
        (pid != std::process::id() && pid != 0).then(|| Suspect {
            actor: self.with_lineage(actor(self.probes.as_deref(), pid, None)),
            at: clock::boottime(),
            sure: true,
            told_after: true,
        })
    }

    /// With what started it: a package manager's script is the package manager.
    fn with_lineage(&self, actor: Actor) -> Actor {
        Actor { lineage: lineage(self.probes.as_deref(), &actor), ..actor }
    }

    /// Looks at all watched folders.
    fn sweep_folders(&mut self) {
        let before = self.folders.marked.clone();
        let (files, shared) = (&self.files, &self.shared);
        let found = self.folders.sweep(|path| shared.owns(files, path));
        self.tell_strangers(found, Via::Sweep, &before);
    }

    /// Tells of what lies in watched folders and is not owned. `before`: which folders were watched.
    fn tell_strangers(&mut self, strangers: Vec<Stranger>, via: Via, before: &BTreeSet<PathBuf>) {
        let now_watched = self.folders.marked.clone();
        for folder in now_watched.difference(before) {
            self.marks.add_folder(folder);
        }
        for folder in before.difference(&now_watched) {
            self.marks.remove_folder(folder);
        }
        let changed = !strangers.is_empty() || now_watched != *before;
        for Stranger { path, pattern, what, writers, writer } in strangers {
            self.send(Kind::FileUnowned { path, pattern, what, writer, writers, via });
        }
        if changed {
            self.tell_health();
        }
    }

    /// Something was mounted or unmounted: what lies at a path may be another object now. Who did it is not told.
    fn remounted(&mut self) {
        if let Some(mounts) = &mut self.mounts
            && let Err(err) = mounts.reload()
        {
            tracing::warn!(%err, "the mount table cannot be read");
        }
        for folder in self.marks.displaced() {
            self.marks.moved(&folder);
        }
        for (path, watched) in &mut self.files {
            let lies = rustix::fs::lstat(path).ok().map(|stat| crate::file_meta::id(&stat));
            if lies != watched.marked {
                watched.hint(None, Via::Mounts);
            }
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

    fn obey(&mut self, message: Message) {
        let now = clock::boottime();
        match message {
            Message::Own(path, known) => {
                self.folders.owned(&path);
                let due = BTreeSet::from([(now, via_rank(Via::Look))]);
                if let Some(watched) = self.files.get_mut(&path) {
                    watched.known = *known;
                    // What was reported was judged against the old snapshot: say it again.
                    watched.reported = None;
                    watched.due.extend(due);
                    return;
                }
                self.marks.add(&path);
                let watched = Watched {
                    known: *known,
                    reported: None,
                    identity: None,
                    marked: None,
                    touches: VecDeque::new(),
                    mapper: None,
                    stamp: None,
                    writer: None,
                    due,
                    noticed_at: Timestamp::default(),
                    burst: (now, 0),
                    rest_until: now,
                    waits_since: None,
                    right_at: Timestamp::default(),
                    right_stamp: None,
                };
                self.files.insert(path, watched);
                self.tell_health();
            }
            Message::Forget(path) => {
                if locked(&self.shared.owned_weights).contains_key(&path) {
                    self.folders.owned(&path);
                }
                self.forget(&path);
            }
            Message::Rested(path) => {
                locked(&self.shared.resting).remove(&path);
                if let Some(watched) = self.files.get_mut(&path) {
                    watched.due.insert((now, via_rank(Via::Look)));
                }
            }
            Message::Folders(folders) => {
                self.folders.set(folders);
                self.sweep_folders();
                // What came before its folder was watched.
                self.sweep_folders();
                self.tell_health();
            }
            Message::Look(path) => {
                if let Some(watched) = self.files.get_mut(&path) {
                    watched.due.insert((now, via_rank(Via::Look)));
                }
            }
            Message::Restored(path) => {
                if let Some(watched) = self.files.get_mut(&path) {
                    watched.reported = None;
                    watched.due.insert((now, via_rank(Via::Look)));
                }
            }
            Message::Dirty(record) => {
                if record.task.tgid == std::process::id() {
                    return;
                }
                let rank = via_rank(Via::Probe);
                for path in self.by_inode.get(&record.inode).into_iter().flatten() {
                    let Some(watched) = self.files.get_mut(path) else { continue };
                    // One after whom the file was seen to be right did not do what is about to be done.
                    let open = |w: &Suspect| {
                        now.since(w.at) <= STALE
                            && (w.at >= watched.right_at || w.actor.pid == record.task.tgid)
                    };
                    if !watched.writer.as_ref().is_some_and(open) {
                        let probes = self.probes.as_deref();
                        let actor = actor(probes, record.task.tgid, Some(&record.task));
                        let actor = Actor { lineage: lineage(probes, &actor), ..actor };
                        // A name that is lost is a change by itself; a dirty inode may have been read only.
                        let sure = record.flags & (FLAG_RENAMED | FLAG_UNLINKED) != 0;
                        watched.writer = Some(Suspect { actor, at: now, sure, told_after: false });
                    }
                    watched.touches.retain(|touch| touch.task.tgid != record.task.tgid);
                    watched.touches.truncate(TOUCHES - 1);
                    watched.touches.push_front(Touch {
                        at_ns: record.header.at_ns,
                        count: 1,
                        task: record.task,
                    });
                    watched.noticed_at = now;
                    watched.due.insert((now, rank));
                    watched.due.extend(AGAIN.map(|after| (now.after(after), rank)));
                }
            }
            Message::Ask(done) => self.asked.push(done),
            Message::Stop => self.stop = true,
        }
    }

    fn forget(&mut self, path: &Path) {
        let Some(watched) = self.files.remove(path) else { return };
        if let Some(eye) = &mut self.eye {
            eye.forget(path);
        }
        self.unwatch_inode(path, watched.identity);
        self.marks.remove(path);
        self.tell_health();
    }

    /// The dirty probe shall see the inode for `path`.
    fn watch_inode(&mut self, path: &Path, identity: Option<Identity>) {
        let Some(identity) = identity else { return };
        let Some((key, probes)) = identity.key.zip(self.probes.as_ref()) else { return };
        if probes.watch_inode(key, identity.generation, path) {
            self.by_inode.entry(key).or_default().insert(path.to_owned());
        }
    }

    /// It need not see the inode for `path` any more.
    fn unwatch_inode(&mut self, path: &Path, identity: Option<Identity>) {
        let Some(key) = identity.and_then(|i| i.key) else { return };
        let Some(paths) = self.by_inode.get_mut(&key) else { return };
        paths.remove(path);
        if paths.is_empty() {
            self.by_inode.remove(&key);
            if let Some(probes) = &self.probes {
                probes.unwatch_inode(key);
            }
        }
    }

    /// What the kernel knows as the file at `path`, with the mount table read again where it does not know the mount.
    fn identify(&mut self, path: &Path) -> Option<Identity> {
        let mounts = self.mounts.as_mut()?;
        mounts.identify(path).or_else(|| {
            mounts.reload().ok()?;
            mounts.identify(path)
        })
    }

    /// Who may have changed a file when nobody was seen to: less sure than a writer that was seen, and said to be.
    fn infer_writer(&self, path: &Path, identity: Option<Identity>, by_store: bool) -> Option<Actor> {
        self.last_touch(path, identity).or_else(|| {
            let names = identity.filter(|_| by_store)?.names();
            let pid = sole_mapper(&names).filter(|pid| *pid != std::process::id())?;
            let actor = actor(self.probes.as_deref(), pid, None);
            Some(Actor { inferred: Some(Inferred::Mapping), ..actor })
        })
    }

    /// Whom the kernel remembers as the last one at the inode, where its event was lost or came while no agent ran; only
    /// if it was there when the file changed.
    fn last_touch(&self, path: &Path, identity: Option<Identity>) -> Option<Actor> {
        let probes = self.probes.as_deref()?;
        let last = identity.and_then(|i| i.key).and_then(|key| probes.last_touch(key));
        let watched = self.files.get(path)?;
        let touches = watched
            .touches
            .iter()
            .copied()
            .chain(last)
            .chain(probes.touch_of_replaced(path))
            .filter(|touch| touch.task.tgid != std::process::id());
        let touch = if watched.right_stamp.is_some() && watched.right_stamp == stamp_of(path) {
            // Its time is set at the end of the call: a truncation that waits for the disk is still under way. Who touched
            // it first of late did it; others may have read since.
            let now = clock::boottime();
            let lately = |touch: &Touch| u128::from(now.0.saturating_sub(touch.at_ns)) < TOUCH_APART;
            touches.filter(lately).min_by_key(|touch| touch.at_ns)?
        } else {
            touches.filter_map(|touch| Some((apart(&touch, path)?, touch))).min_by_key(|(apart, _)| *apart)?.1
        };
        Some(Actor {
            inferred: Some(Inferred::LastTouch),
            ..actor(Some(probes), touch.task.tgid, Some(&touch.task))
        })
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

    /// Weights are watched before their first look, which may take long.
    fn watch_first(&mut self, path: &Path) {
        let new = self.files.get(path).is_some_and(|watched| watched.marked.is_none());
        if self.eye.is_none() || !new {
            return;
        }
        let Some(id) = rustix::fs::lstat(path).ok().map(|stat| crate::file_meta::id(&stat)) else { return };
        let identity = self.identify(path).or_else(|| by_number(id));
        self.watch_inode(path, identity);
        self.marks.file(path);
        if let Some(watched) = self.files.get_mut(path) {
            (watched.marked, watched.identity) = (Some(id), identity);
        }
    }

    fn look_at(&mut self, path: &Path, now: Timestamp) {
        self.watch_first(path);
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
        let known = watched.known.clone();
        let (mut marked, mut identity, mut mapper) = (watched.marked, watched.identity, watched.mapper);
        let last_hint = watched.due.is_empty();
        let touched_by: Vec<u32> = watched.touches.iter().map(|touch| touch.task.tgid).collect();
        let quiet = now.since(watched.noticed_at);
        let mut state = match &mut self.eye {
            None => look(path, Some(&known)),
            Some(eye) => match eye.look(path, &known, via_of(via), quiet) {
                Looked::State(state) => state,
                Looked::Later(wait) => {
                    watched.rest_until = now;
                    watched.due.insert((clock::boottime().after(wait), via));
                    return;
                }
            },
        };
        // A new object at the path must be watched before it is judged, or a change between the two is missed. On an
        // overlay the first write makes one without changing its number.
        for _ in 0..3 {
            if matches!(state, FileState::Unreadable { .. }) {
                // Perhaps only because it changes all the time: it must stay watched just then.
                break;
            }
            let id = state.id();
            let overlaid = identity.is_some_and(|i| i.overlaid);
            if marked == id && !overlaid {
                break;
            }
            let now_there = id.and_then(|id| self.identify(path).or_else(|| by_number(id)));
            if marked == id && identity == now_there {
                break;
            }
            self.unwatch_inode(path, identity);
            self.watch_inode(path, now_there);
            identity = now_there;
            if marked != id && id.is_some() {
                self.marks.file(path);
            }
            marked = id;
            if id.is_none() {
                break;
            }
            state = match &mut self.eye {
                None => look(path, Some(&known)),
                Some(eye) => match eye.look(path, &known, via_of(via), quiet) {
                    Looked::State(state) => state,
                    // The state of a moment ago; another look follows.
                    Looked::Later(_) => break,
                },
            };
        }
        // Who dirtied it without a word from fanotify may have it mapped, and store more without a word from anyone.
        if let Some(names) = identity.map(|i| i.names()).filter(|_| last_hint) {
            if via == via_rank(Via::Probe) {
                mapper = touched_by.into_iter().find(|pid| is_mapped_by(*pid, &names)).or(mapper);
            } else if let Some(pid) = mapper.filter(|_| via == via_rank(Via::Mapped)) {
                mapper = Some(pid).filter(|pid| is_mapped_by(*pid, &names)).or_else(|| sole_mapper(&names));
            }
        }
        let Some(watched) = self.files.get_mut(path) else { return };
        (watched.marked, watched.identity, watched.mapper) = (marked, identity, mapper);
        if mapper.is_some() && last_hint {
            watched.due.insert((clock::boottime().after(WHILE_MAPPED), via_rank(Via::Mapped)));
        }
        let rest = if self.eye.is_some() {
            // The first hint of a change comes before the change: the look that sees it must not wait for that one's rest.
            if now.since(watched.burst.0) > BURST_EVERY {
                watched.burst = (now, 0);
            }
            watched.burst.1 += 1;
            if watched.burst.1 <= BURST { Duration::ZERO } else { (watch.elapsed() * REST).min(WEIGHTS_REST) }
        } else {
            watch.elapsed() * REST
        };
        watched.rest_until = clock::boottime().after(rest);
        let readable = !matches!(state, FileState::Unreadable { .. });
        let right = readable && watched.known.drift(&state).is_empty();
        if right {
            (watched.right_at, watched.right_stamp) = (now, stamp);
            watched.writer.take_if(|suspect| suspect.told_after);
        }
        if watched.reported.as_ref() == Some(&state) {
            return;
        }
        let suspect = if right { watched.writer.take() } else { watched.writer.clone() };
        // Who touched the file long ago did not make a change that was noticed only now.
        let now = clock::boottime();
        let writer = suspect.filter(|s| now.since(s.at) < STALE).map(|s| s.actor);
        if !right
            && writer.is_none()
            && via == via_rank(Via::Probe)
            && self.marks.has_fanotify()
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
        if locked(&self.shared.resting).contains(path) {
            return;
        }
        watched.reported = Some(state.clone());
        // Only content can be changed through a mapping, and only the object's that was there all along.
        let content =
            matches!(&state, FileState::Regular { digest, .. } if digest.as_ref() != Some(&known.digest));
        let infer = readable && !right;
        let writer = writer.or_else(|| if infer { self.infer_writer(path, identity, content) } else { None });
        self.send(Kind::FileSeen { path: path.to_owned(), state, writer, via: via_of(via) });
    }

    fn send(&self, kind: Kind) {
        // Fails only when the engine has ended, with the agent.
        drop(self.shared.out.send(Event { at: clock::boottime(), kind }));
    }

    fn tell_health(&self) {
        let files = self.files.len();
        let fanotify = SourceView {
            name: "fanotify".into(),
            state: match (self.marks.has_fanotify(), self.tells_who) {
                (true, true) => Health::Ok,
                (true, false) => Health::Degraded,
                (false, _) => Health::Unsupported,
            },
            detail: match &self.marks.fanotify_why {
                None if !self.tells_who => {
                    format!(
                        "{files} files in {} folders, but without root it does not tell who",
                        self.marks.owned_folders()
                    )
                }
                None => format!("{files} owned, with the process that changes them"),
                Some(why) => format!("{why}; inotify works, but does not tell who"),
            },
        };
        let inotify = SourceView {
            name: "inotify".into(),
            state: match (self.marks.has_inotify(), &self.marks.inotify_why) {
                (_, Some(_)) => Health::Degraded,
                (true, None) => Health::Ok,
                (false, None) => Health::Off,
            },
            detail: match (&self.marks.inotify_why, self.marks.inotify_folders()) {
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
        let folders = self.folders.health().map(|(detail, left_out)| SourceView {
            name: "folders".into(),
            state: if left_out { Health::Degraded } else { Health::Ok },
            detail,
        });
        *self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            [fanotify, inotify, sweep].into_iter().chain(folders).collect();
    }
}

impl Watched {
    /// It may have changed now, as `via` tells, by `suspect`.
    fn hint(&mut self, suspect: Option<Suspect>, via: Via) {
        if suspect.is_some() {
            self.writer = suspect;
        }
        self.noticed_at = clock::boottime();
        self.due.insert((self.noticed_at, via_rank(via)));
    }
}

/// What a file is by its number alone: kernels before 5.8 do not tell its mount.
fn by_number(id: FileId) -> Option<Identity> {
    let key = InodeKey { dev: kernel_dev(id.dev), _pad: 0, ino: id.ino };
    Some(Identity { key: Some(key), generation: None, shown: None, overlaid: false })
}

/// How far `touch` is from the last change of the file at `path`, where they may be one: its change time is set by the
/// same system call. A file that is gone has none: then the last touch is the nearest.
fn apart(touch: &Touch, path: &Path) -> Option<u128> {
    let now = clock::boottime();
    let Ok(stat) = rustix::fs::lstat(path) else {
        return Some(u128::from(now.0.saturating_sub(touch.at_ns)));
    };
    let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let nanos = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    let touched = nanos(wall.tv_sec, wall.tv_nsec) - i128::from(now.0) + i128::from(touch.at_ns);
    let changed = nanos(stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0));
    Some((touched - changed).unsigned_abs()).filter(|apart| *apart < TOUCH_APART)
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
