//! Reads the probes' rings and hands each record to the source that it belongs to.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use grace_common::{
    ALL_CLASSES, CLASS_NAMES, CLASSES, Class, FLAG_RENAMED, FLAG_UNLINKED, InodeKey, TaskExit,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::{Account, Probes, RingEvent, Rings, lock};
use crate::clock;
use crate::event::{Event, Kind};
use crate::prompt::prompt;
use crate::sources::files::Files;
use crate::sources::processes::Processes;

/// Ends of processes that nobody has asked about yet; an older one is of no use to anybody.
const EXITS_KEPT: usize = 1024;

/// How long the thread sleeps when nothing comes: bounds how late it notices that the agent stops.
const IDLE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// After so many records of one class the more important classes have their turn again.
const TURN: usize = 256;

/// The reading side of the rings, shared by the thread that waits on them and by sources that need them drained now.
pub struct Reader {
    rings: Mutex<Rings>,
    probes: Arc<Probes>,
    exits: Mutex<VecDeque<TaskExit>>,
    files: OnceLock<Files>,
    processes: OnceLock<Arc<Processes>>,
    out: SyncSender<Event>,
    /// What an earlier agent had read, by class; none: it cannot be told, because the rings never were at rest.
    read_before: Option<[u64; CLASSES]>,
    /// What was told of losses, by class.
    told: Mutex<[u64; CLASSES]>,
    gaps: AtomicU64,
    canary: Mutex<Canary>,
}

/// What a self-test waits to see.
#[derive(Debug, Default)]
pub(super) struct Canary {
    pub(super) inode: Option<InodeKey>,
    pub(super) dirty: bool,
    pub(super) renamed: bool,
    pub(super) unlinked: bool,
    /// The process, and what was seen of it.
    pub(super) root: Option<u32>,
    pub(super) fork: bool,
    pub(super) exec: bool,
    pub(super) slow: bool,
    pub(super) exit: Option<TaskExit>,
}

impl Reader {
    /// Reads `rings` from now on, in a thread of its own that lives as long as the program.
    pub fn start(rings: Rings, probes: &Arc<Probes>, out: SyncSender<Event>) -> std::io::Result<Arc<Self>> {
        let fds: Vec<OwnedFd> =
            rings.rings.iter().map(|ring| ring.as_fd().try_clone_to_owned()).collect::<Result<_, _>>()?;
        let mut reader = Self {
            rings: Mutex::new(rings),
            probes: Arc::clone(probes),
            exits: Mutex::new(VecDeque::new()),
            files: OnceLock::new(),
            processes: OnceLock::new(),
            out,
            read_before: None,
            told: Mutex::new([0; CLASSES]),
            gaps: AtomicU64::new(0),
            canary: Mutex::new(Canary::default()),
        };
        reader.read_before = reader.find_read_before();
        let reader = Arc::new(reader);
        let mut logger = match probes.logger() {
            Ok(logger) => Some(logger),
            Err(err) => {
                tracing::debug!(%err, "the probes' own diagnostics cannot be read");
                None
            }
        };
        let this = Arc::downgrade(&reader);
        std::thread::Builder::new().name("grace-ring".into()).spawn(move || {
            prompt();
            while let Some(reader) = this.upgrade() {
                reader.drain();
                drop(reader);
                let mut waits: Vec<PollFd<'_>> =
                    fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
                let logs = logger.as_ref().map(AsFd::as_fd);
                if let Some(logs) = &logs {
                    waits.push(PollFd::new(logs, PollFlags::IN));
                }
                let ready = poll(&mut waits, Some(&IDLE));
                let logged = waits.get(fds.len()).is_some_and(|fd| fd.revents().contains(PollFlags::IN));
                drop(waits);
                if logged && let Some(logger) = &mut logger {
                    logger.flush();
                }
                if ready.is_err() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        })?;
        Ok(reader)
    }

    /// How much an earlier agent had read of rings that were taken over: what was produced, less what was lost, less
    /// what was still in them. For new rings that is nothing.
    fn find_read_before(&self) -> Option<[u64; CLASSES]> {
        for _ in 0..20 {
            let before = self.probes.account();
            self.drain();
            // Nothing came meanwhile: then all that was produced is read or lost.
            if before == self.probes.account() {
                let delivered = lock(&self.rings).delivered();
                let mut out = [0; CLASSES];
                for class in 0..CLASSES {
                    let arrived = before[class].produced.saturating_sub(before[class].lost());
                    out[class] = arrived.saturating_sub(delivered[class]);
                }
                return Some(out);
            }
        }
        None
    }

    /// Where writes to watched files are told.
    pub fn tell(&self, files: Files) {
        // Set once, at start; a second call would change nothing.
        drop(self.files.set(files));
    }

    /// Where facts about watched processes are told.
    pub fn tell_processes(&self, processes: Arc<Processes>) {
        drop(self.processes.set(processes));
    }

    /// Takes everything out of the rings now, the important classes first.
    pub fn drain(&self) {
        // First: a firing that is about to form from what is read now must know. Where the newest are lost, nothing that
        // is in the rings tells it.
        self.tell_losses();
        let mut rings = lock(&self.rings);
        // Bounded: a flood of one class must not keep this from its caller for ever.
        for _ in 0..64 {
            let mut taken = 0;
            for class in ALL_CLASSES {
                let turn = if matches!(class, Class::File | Class::Exit) { usize::MAX } else { TURN };
                let mut here = 0;
                while here < turn
                    && let Some(event) = rings.take(class)
                {
                    self.hand_on(event);
                    here += 1;
                }
                taken += here;
            }
            if taken == 0 {
                break;
            }
        }
        let gaps = rings.gaps();
        drop(rings);
        // The same for what was lost meanwhile: said at once, not with the next count.
        if self.gaps.swap(gaps, Ordering::Relaxed) != gaps {
            self.tell_losses();
        }
    }

    fn hand_on(&self, event: RingEvent) {
        match event {
            RingEvent::Dirty(record) => {
                let mut canary = lock(&self.canary);
                if canary.inode == Some(record.inode) {
                    match record.flags {
                        FLAG_RENAMED => canary.renamed = true,
                        FLAG_UNLINKED => canary.unlinked = true,
                        _ => canary.dirty = true,
                    }
                } else if let Some(files) = self.files.get() {
                    drop(canary);
                    files.dirty(record);
                }
            }
            RingEvent::Exit(record) => {
                let mut canary = lock(&self.canary);
                if canary.root == Some(record.root) {
                    if record.task.tgid == record.root {
                        canary.exit = Some(record);
                    }
                    return;
                }
                drop(canary);
                if record.task.tgid == record.root {
                    let mut exits = lock(&self.exits);
                    if exits.len() >= EXITS_KEPT {
                        exits.pop_front();
                    }
                    exits.push_back(record);
                } else if let Some(processes) = self.processes.get() {
                    processes.descendant_ended(&record);
                }
            }
            RingEvent::Fork(record) => {
                let mut canary = lock(&self.canary);
                if canary.root == Some(record.root) {
                    canary.fork = true;
                } else if let Some(processes) = self.processes.get() {
                    drop(canary);
                    processes.forked(&record);
                }
            }
            RingEvent::Exec(record) => {
                let mut canary = lock(&self.canary);
                if canary.root == Some(record.root) {
                    canary.exec = true;
                } else if let Some(processes) = self.processes.get() {
                    drop(canary);
                    processes.execed(&record);
                }
            }
            RingEvent::Slow(record) => {
                let mut canary = lock(&self.canary);
                if canary.root == Some(record.root) {
                    canary.slow = true;
                } else if let Some(processes) = self.processes.get() {
                    drop(canary);
                    processes.slow(&record);
                }
            }
        }
    }

    /// Tells the engine what was lost since it was told last.
    pub fn tell_losses(&self) {
        let now = self.probes.lost_now();
        let mut told = lock(&self.told);
        if *told == now {
            return;
        }
        for (class, name) in CLASS_NAMES.iter().enumerate() {
            if now[class] > told[class] {
                told[class] = now[class];
                let kind = Kind::Lost { class: (*name).to_owned(), total: now[class] };
                // Fails only when the engine has ended, with the agent.
                drop(self.out.send(Event { at: clock::boottime(), kind }));
            }
        }
        self.probes.note_told(*told);
    }

    /// What the probe saw of the end of `tgid`. The record is in the ring before the kernel tells the parent.
    #[must_use]
    pub fn exit_of(&self, tgid: u32) -> Option<TaskExit> {
        self.drain();
        let mut exits = lock(&self.exits);
        let at = exits.iter().rposition(|exit| exit.task.tgid == tgid)?;
        exits.remove(at)
    }

    /// The account of each class, and how many of its records arrived, at this agent or an earlier one; none where that
    /// cannot be told.
    #[must_use]
    pub fn accounts(&self) -> [(Account, Option<u64>); CLASSES] {
        // What is produced between the two readings is in flight. Taken first, the counts never run ahead.
        let accounts = self.probes.account();
        self.drain();
        let delivered = lock(&self.rings).delivered();
        let mut out = [(Account::default(), None); CLASSES];
        for class in 0..CLASSES {
            let before = self.read_before.map(|before| before[class]);
            out[class] = (accounts[class], before.map(|before| before + delivered[class]));
        }
        out
    }

    /// Records that arrived at this agent, by class.
    #[must_use]
    pub fn delivered(&self) -> [u64; CLASSES] {
        lock(&self.rings).delivered()
    }

    /// Records of another version, which could not be decoded.
    #[must_use]
    pub fn undecoded(&self) -> u64 {
        lock(&self.rings).undecoded()
    }

    /// Reads and changes what the self-test waits for.
    pub(super) fn canary<T>(&self, with: impl FnOnce(&mut Canary) -> T) -> T {
        with(&mut lock(&self.canary))
    }
}
