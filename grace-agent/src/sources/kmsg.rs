//! The source of errors in the kernel's messages: follows /dev/kmsg from its end.
//!
//! Each record has a number, so what was overwritten before it was read is counted as lost (`kmsg`).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::Errno;

use super::gpu::xid;
use super::processes::Processes;
use super::tally::Tally;
use crate::api::view::{Health, SourceView};
use crate::clock;
use crate::event::{Event, Kind, Timestamp};
use crate::faults::Assembler;

/// Bytes of a record at most (`PRINTK_MESSAGE_MAX`, include/linux/printk.h, with room).
const RECORD: usize = 16 << 10;
/// Records read in a second; what is more is skipped and counted.
const RATE: u32 = 20_000;

/// Of them, faults of GPUs: a GPU that is broken may say so without end.
const FAULTS: u32 = 50;

/// The source.
pub struct Kmsg {
    wake: OwnedFd,
    stop: AtomicBool,
    lost: AtomicU64,
    health: Mutex<(Health, String)>,
}

impl Kmsg {
    /// Starts the thread, where /dev/kmsg may be read and `wanted`; `injected`: faults of GPUs are also believed to
    /// whoever else writes there.
    pub fn start(
        wanted: bool,
        injected: bool,
        processes: Arc<Processes>,
        out: SyncSender<Event>,
    ) -> io::Result<(Arc<Self>, Option<std::thread::JoinHandle<()>>)> {
        let device = if wanted {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            open("/dev/kmsg", flags, Mode::empty()).and_then(|fd| seek(&fd, SeekFrom::End(0)).map(|_| fd))
        } else {
            Err(Errno::CANCELED)
        };
        let health = match &device {
            Ok(_) => (Health::Ok, "follows /dev/kmsg".to_owned()),
            Err(_) if !wanted => (Health::Off, "triggers.error_feed.kmsg = false".to_owned()),
            Err(Errno::ACCESS | Errno::PERM) => {
                (Health::Off, "/dev/kmsg may not be read: needs root".to_owned())
            }
            Err(err) => (Health::Off, format!("/dev/kmsg cannot be followed: {err}")),
        };
        let kmsg = Arc::new(Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            health: Mutex::new(health),
        });
        let Ok(device) = device else { return Ok((kmsg, None)) };
        let this = Arc::clone(&kmsg);
        let thread = std::thread::Builder::new().name("grace-kmsg".into()).spawn(move || {
            let mut follower = Follower {
                out,
                injected,
                processes,
                assembler: Assembler::of_kernel(),
                tally: Tally::of(None),
                next: None,
                told: Timestamp(0),
                second: (Timestamp(0), 0),
                gpu_faults: 0,
                lost_told: 0,
            };
            follower.source(true);
            let ended = follower.run(&device, &this);
            follower.source(false);
            if let Err(err) = ended {
                *this.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                    (Health::Degraded, format!("/dev/kmsg cannot be read any more: {err}"));
            }
        })?;
        Ok((kmsg, Some(thread)))
    }

    /// How it is, for `status`.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let (state, detail) = self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        SourceView { name: "kmsg".into(), state, detail }
    }

    /// Records that the kernel overwrote before they were read, or that were too many.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Full: then it will wake up anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

struct Follower {
    out: SyncSender<Event>,
    /// See [`Kmsg::start`].
    injected: bool,
    processes: Arc<Processes>,
    assembler: Assembler,
    tally: Tally,
    /// The number that the next record shall have.
    next: Option<u64>,
    told: Timestamp,
    /// The second that runs, and records read in it.
    second: (Timestamp, u32),
    /// Faults of GPUs in it.
    gpu_faults: u32,
    lost_told: u64,
}

impl Follower {
    fn run(&mut self, device: &OwnedFd, kmsg: &Kmsg) -> Result<(), Errno> {
        let mut buffer = vec![0; RECORD];
        let mut waiting = false;
        loop {
            // What was counted is told a second later at the latest.
            let timeout = waiting.then_some(Timespec { tv_sec: 1, tv_nsec: 0 });
            let mut fds = [PollFd::new(device, PollFlags::IN), PollFd::new(&kmsg.wake, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(err) => return Err(err),
            }
            if kmsg.stop.load(Ordering::Acquire) {
                self.tell(clock::boottime(), kmsg);
                return Ok(());
            }
            let now = clock::boottime();
            waiting |= self.read(device, kmsg, now, &mut buffer)?;
            if waiting && now.since(self.told) >= Duration::from_secs(1) {
                self.tell(now, kmsg);
                waiting = false;
            }
        }
    }

    /// Reads what there is; true where there is something to tell.
    fn read(
        &mut self,
        device: &OwnedFd,
        kmsg: &Kmsg,
        now: Timestamp,
        buffer: &mut [u8],
    ) -> Result<bool, Errno> {
        if now.since(self.second.0) >= Duration::from_secs(1) {
            self.second = (now, 0);
            self.gpu_faults = 0;
        }
        let mut any = false;
        let mut faults = Vec::new();
        loop {
            match rustix::io::read(device, &mut *buffer) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // The reader was overtaken: the number of the next record says by how many.
                Err(Errno::PIPE) => any = true,
                Err(err) => return Err(err),
                Ok(length) => {
                    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                    let Some((kernel, number, message)) = record(&text) else { continue };
                    let missed = self.next.map_or(0, |next| number.saturating_sub(next));
                    self.next = Some(number + 1);
                    self.second.1 += 1;
                    let skipped = u64::from(self.second.1 > RATE);
                    if missed + skipped > 0 {
                        kmsg.lost.fetch_add(missed + skipped, Ordering::Relaxed);
                        any = true;
                    }
                    if let Some(mut fault) = xid::parse(message).filter(|_| kernel || self.injected) {
                        self.gpu_faults += 1;
                        if self.gpu_faults > FAULTS {
                            kmsg.lost.fetch_add(1, Ordering::Relaxed);
                            any = true;
                        } else {
                            // At once: a repair may wait for it.
                            fault.process = fault.pid.and_then(|pid| self.processes.name_of_family(pid));
                            self.send(now, Kind::GpuFaulted { fault });
                        }
                    }
                    if skipped == 0 {
                        self.assembler.push(message, now, &mut faults);
                    }
                }
            }
        }
        for fault in faults {
            any = true;
            if !self.tally.add(fault, "kmsg") {
                kmsg.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(any)
    }

    fn tell(&mut self, now: Timestamp, kmsg: &Kmsg) {
        self.told = now;
        let total = kmsg.lost();
        if total != self.lost_told {
            self.lost_told = total;
            self.send(now, Kind::Lost { class: "kmsg".to_owned(), total });
        }
        for kind in self.tally.drain(now) {
            self.send(now, kind);
        }
    }

    fn source(&self, works: bool) {
        let kind = Kind::ErrorSource {
            source: "kmsg".to_owned(),
            process: None,
            works,
            count: None,
            window_ms: None,
        };
        self.send(clock::boottime(), kind);
    }

    fn send(&self, at: Timestamp, kind: Kind) {
        // Fails only when the engine has ended, with the agent.
        drop(self.out.send(Event { at, kind }));
    }
}

/// Whether it is the kernel's own, number and message of `6,339,5140900,-;message\n KEY=value`
/// (Documentation/ABI/testing/dev-kmsg). What a program writes never has the kernel's facility, which is 0 (syslog(2)).
fn record(text: &str) -> Option<(bool, u64, &str)> {
    let (head, rest) = text.split_once(';')?;
    let mut words = head.split(',');
    let priority: u32 = words.next()?.parse().ok()?;
    let number = words.next()?.parse().ok()?;
    Some((priority >> 3 == 0, number, rest.lines().next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_number_and_a_message() {
        assert_eq!(record("6,339,5140900,-;hello; you\n SUBSYSTEM=x\n"), Some((true, 339, "hello; you")));
        assert_eq!(record("12,339,5140900,-;NVRM: Xid"), Some((false, 339, "NVRM: Xid")));
        assert_eq!(record("garbage"), None);
        assert_eq!(record("6,x,1,-;m"), None);
    }
}
