//! Reads the probes' ring and hands each record to the source that it belongs to.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use grace_common::TaskExit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::{Probes, Ring, RingEvent, lock};
use crate::prompt::prompt;
use crate::sources::files::Files;

/// Ends of processes that nobody has asked about yet; an older one is of no use to anybody.
const EXITS_KEPT: usize = 1024;

/// How long the thread sleeps when nothing comes: bounds how late it notices that the agent stops.
const IDLE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The reading side of the ring, shared by the thread that waits on it and by sources that need it drained now.
pub struct Reader {
    ring: Mutex<Ring>,
    exits: Mutex<VecDeque<TaskExit>>,
    files: OnceLock<Files>,
    delivered: [AtomicU64; 2],
}

impl Reader {
    /// Reads `ring` from now on, in a thread of its own that lives as long as the program.
    pub fn start(ring: Ring, probes: &Arc<Probes>) -> std::io::Result<Arc<Self>> {
        let fd = ring.as_fd().try_clone_to_owned()?;
        let reader = Arc::new(Self {
            ring: Mutex::new(ring),
            exits: Mutex::new(VecDeque::new()),
            files: OnceLock::new(),
            delivered: [AtomicU64::new(0), AtomicU64::new(0)],
        });
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
                let mut fds = vec![PollFd::new(&fd, PollFlags::IN)];
                let logs = logger.as_ref().map(AsFd::as_fd);
                if let Some(logs) = &logs {
                    fds.push(PollFd::new(logs, PollFlags::IN));
                }
                let ready = poll(&mut fds, Some(&IDLE));
                let logged = fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN));
                drop(fds);
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

    /// Where writes to watched files are told.
    pub fn tell(&self, files: Files) {
        // Set once, at start; a second call would change nothing.
        drop(self.files.set(files));
    }

    /// Takes everything out of the ring now.
    pub fn drain(&self) {
        let mut ring = lock(&self.ring);
        while let Some(event) = ring.take_event() {
            match event {
                RingEvent::Dirty(record) => {
                    self.delivered[0].fetch_add(1, Ordering::Relaxed);
                    if let Some(files) = self.files.get() {
                        files.dirty(record);
                    }
                }
                RingEvent::Exit(record) => {
                    self.delivered[1].fetch_add(1, Ordering::Relaxed);
                    let mut exits = lock(&self.exits);
                    if exits.len() >= EXITS_KEPT {
                        exits.pop_front();
                    }
                    exits.push_back(record);
                }
            }
        }
    }

    /// What the probe saw of the end of `tgid`. The record is in the ring before the kernel tells the parent.
    #[must_use]
    pub fn exit_of(&self, tgid: u32) -> Option<TaskExit> {
        self.drain();
        let mut exits = lock(&self.exits);
        let at = exits.iter().rposition(|exit| exit.task.tgid == tgid)?;
        exits.remove(at)
    }

    /// Records that arrived, by class, in the order of `grace_common::CLASS_NAMES`.
    #[must_use]
    pub fn delivered(&self) -> [u64; 2] {
        [self.delivered[0].load(Ordering::Relaxed), self.delivered[1].load(Ordering::Relaxed)]
    }

    /// Records of another version, which could not be decoded.
    #[must_use]
    pub fn undecoded(&self) -> u64 {
        lock(&self.ring).undecoded
    }
}
