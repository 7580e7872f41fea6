//! The source of errors in the journal of systemd: follows what units write, where there is a journal.
//!
//! `journalctl` reads it: the format is its own affair, and a reader here would be larger than the rest of the source. It
//! is a child that ends with the thread that started it, so with the agent, however that ends. The kernel's messages are
//! left to `kmsg.rs`, and what Grace itself writes is not read back.
#![expect(
    clippy::disallowed_methods,
    reason = "journalctl is how the journal is read; it is started for nothing else"
)]
#![expect(unsafe_code, reason = "a child that ends with its parent is asked for between fork and exec")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::tally::Tally;
use crate::api::view::{Health, SourceView};
use crate::clock;
use crate::endure;
use crate::event::{Event, Kind, Timestamp};
use crate::faults::{Assembler, Fault, Lines};

/// Units, with a process each, whose lines are put together at a time.
const STREAMS: usize = 64;
/// Bytes read in a second; what is more waits in the journal, which drops its oldest and says so.
const RATE: usize = 4 << 20;
/// A reader that ended is started again after this time.
const AGAIN: Duration = Duration::from_secs(30);
/// Bytes of an entry that are looked at.
const ENTRY: usize = 256 << 10;

/// The source.
pub struct Journald {
    wake: OwnedFd,
    stop: AtomicBool,
    lost: AtomicU64,
    health: Mutex<(Health, String)>,
}

impl Journald {
    /// Starts the thread, where there is a journal and `wanted`.
    pub fn start(
        wanted: bool,
        out: SyncSender<Event>,
    ) -> io::Result<(Arc<Self>, Option<std::thread::JoinHandle<()>>)> {
        let program = journalctl();
        let health = match &program {
            _ if !wanted => (Health::Off, "triggers.error_feed.journald = false".to_owned()),
            None => (Health::Off, "no journal of systemd on this host".to_owned()),
            Some(program) => (Health::Ok, format!("follows the journal by {}", program.display())),
        };
        let journald = Arc::new(Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            health: Mutex::new(health),
        });
        let Some(program) = program.filter(|_| wanted) else { return Ok((journald, None)) };
        let this = Arc::clone(&journald);
        let thread = std::thread::Builder::new()
            .name("grace-journald".into())
            .spawn(move || Follower::new(out).run(&program, &this))?;
        Ok((journald, Some(thread)))
    }

    /// How it is, for `status`.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let (state, detail) = self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        SourceView { name: "journald".into(), state, detail }
    }

    /// Entries that were too large, and errors that were too many.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Ends the thread and its child.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Full: then it will wake up anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn say(&self, health: Health, detail: String) {
        *self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (health, detail);
    }
}

/// The program that reads the journal, where a journal is kept here.
fn journalctl() -> Option<PathBuf> {
    // A host that merely has the program installed keeps none.
    let kept = Path::new("/run/systemd/journal/socket").exists();
    ["/usr/bin/journalctl", "/bin/journalctl"].iter().map(PathBuf::from).find(|p| kept && p.exists())
}

struct Stream {
    assembler: Assembler,
    used: u64,
}

struct Follower {
    out: SyncSender<Event>,
    streams: BTreeMap<(String, String), Stream>,
    tallies: BTreeMap<String, Tally>,
    turn: u64,
    told: Timestamp,
    lost_told: u64,
}

impl Follower {
    fn new(out: SyncSender<Event>) -> Self {
        Self {
            out,
            streams: BTreeMap::new(),
            tallies: BTreeMap::new(),
            turn: 0,
            told: Timestamp(0),
            lost_told: 0,
        }
    }

    fn run(&mut self, program: &Path, journald: &Journald) {
        while !journald.stop.load(Ordering::Acquire) {
            match start(program) {
                Ok(mut child) => {
                    journald.say(Health::Ok, format!("follows the journal by {}", program.display()));
                    self.source(true);
                    self.follow(&mut child, journald);
                    self.source(false);
                    // It may have ended by itself; then there is nothing to kill.
                    drop(child.kill());
                    drop(child.wait());
                }
                Err(err) => {
                    journald.say(Health::Degraded, format!("{} does not start: {err}", program.display()))
                }
            }
            if journald.stop.load(Ordering::Acquire) {
                return;
            }
            journald.say(Health::Degraded, format!("{} ended; it is started again", program.display()));
            let timeout = Timespec::try_from(AGAIN).ok();
            let mut fds = [PollFd::new(&journald.wake, PollFlags::IN)];
            let _ = poll(&mut fds, timeout.as_ref());
        }
    }

    /// Reads until the child or the agent ends.
    fn follow(&mut self, child: &mut Child, journald: &Journald) {
        let Some(pipe) = child.stdout.take() else { return };
        let mut buffer = vec![0; 64 << 10];
        let mut entry: Vec<u8> = Vec::new();
        let (mut second, mut read_in_it) = (Timestamp(0), 0);
        loop {
            let waiting = self.is_waiting();
            let timeout = waiting.then_some(Timespec { tv_sec: 0, tv_nsec: 500_000_000 });
            let throttled = read_in_it >= RATE && clock::boottime().since(second) < Duration::from_secs(1);
            let events = if throttled { PollFlags::empty() } else { PollFlags::IN };
            let timeout =
                if throttled { Some(Timespec { tv_sec: 0, tv_nsec: 200_000_000 }) } else { timeout };
            let pipe_fd = pipe.as_fd();
            let mut fds = [PollFd::new(&pipe_fd, events), PollFd::new(&journald.wake, PollFlags::IN)];
            if poll(&mut fds, timeout.as_ref()).is_err() {
                return;
            }
            let ready = fds.first().is_some_and(|fd| !fd.revents().is_empty());
            let now = clock::boottime();
            if now.since(second) >= Duration::from_secs(1) {
                (second, read_in_it) = (now, 0);
            }
            let stop = journald.stop.load(Ordering::Acquire);
            let mut ended = false;
            if ready && !throttled && !stop {
                match rustix::io::read(&pipe, &mut buffer) {
                    Ok(0) => ended = true,
                    Ok(n) => {
                        read_in_it += n;
                        for byte in buffer.get(..n).unwrap_or_default() {
                            match byte {
                                b'\n' => {
                                    self.entry(&std::mem::take(&mut entry), now, journald);
                                }
                                _ if entry.len() < ENTRY => entry.push(*byte),
                                _ => {}
                            }
                        }
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => ended = true,
                }
            }
            let over = stop || ended;
            self.rest(now, over, journald);
            if over {
                return;
            }
        }
    }

    fn is_waiting(&self) -> bool {
        self.streams.values().any(|s| s.assembler.is_open()) || !self.tallies.is_empty()
    }

    /// One entry, as JSON.
    fn entry(&mut self, json: &[u8], now: Timestamp, journald: &Journald) {
        let Ok(entry) = serde_json::from_slice::<serde_json::Value>(json) else {
            // Cut because it is too large.
            if !json.is_empty() {
                journald.lost.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        if text("_TRANSPORT") == "kernel" || text("_PID") == std::process::id().to_string() {
            return;
        }
        let unit = [text("_SYSTEMD_UNIT"), text("SYSLOG_IDENTIFIER"), text("_COMM")]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or("unknown");
        let unit: String = unit.chars().take(100).collect();
        // Bytes that are no text come as numbers.
        let message = match entry.get("MESSAGE") {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Array(bytes)) => {
                let bytes: Vec<u8> =
                    bytes.iter().filter_map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => return,
        };
        let key = (unit.clone(), text("_PID").to_owned());
        let mut faults = Vec::new();
        self.make_room(&key, &mut faults, journald);
        self.turn += 1;
        let turn = self.turn;
        let stream =
            self.streams.entry(key).or_insert_with(|| Stream { assembler: Assembler::default(), used: 0 });
        stream.used = turn;
        let mut lines = Lines::default();
        lines.push(message.as_bytes(), |line| stream.assembler.push(line, now, &mut faults));
        lines.finish(|line| stream.assembler.push(line, now, &mut faults));
        self.count(&unit, faults, journald);
    }

    fn make_room(&mut self, key: &(String, String), faults: &mut Vec<Fault>, journald: &Journald) {
        if self.streams.len() < STREAMS || self.streams.contains_key(key) {
            return;
        }
        let oldest = self.streams.iter().min_by_key(|(_, s)| s.used).map(|(key, _)| key.clone());
        if let Some(mut gone) = oldest.as_ref().and_then(|key| self.streams.remove(key)) {
            gone.assembler.finish(faults);
            let ended = std::mem::take(faults);
            self.count(&oldest.unwrap_or_default().0, ended, journald);
        }
    }

    fn count(&mut self, unit: &str, faults: Vec<Fault>, journald: &Journald) {
        for fault in faults {
            let full = self.tallies.len() >= STREAMS && !self.tallies.contains_key(unit);
            let tally = self.tallies.entry(unit.to_owned()).or_insert_with(|| Tally::of(Some(unit)));
            if full || !tally.add(fault, "journald") {
                journald.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends what is silent, and tells once a second.
    fn rest(&mut self, now: Timestamp, over: bool, journald: &Journald) {
        let mut ended = Vec::new();
        for ((unit, _), stream) in &mut self.streams {
            let mut faults = Vec::new();
            if over {
                stream.assembler.finish(&mut faults);
            } else {
                stream.assembler.rest(now, &mut faults);
            }
            if !faults.is_empty() {
                ended.push((unit.clone(), faults));
            }
        }
        for (unit, faults) in ended {
            self.count(&unit, faults, journald);
        }
        if !over && now.since(self.told) < Duration::from_secs(1) {
            return;
        }
        self.told = now;
        let total = journald.lost();
        if total != self.lost_told {
            self.lost_told = total;
            self.send(now, Kind::Lost { class: "journald".to_owned(), total });
        }
        for (_, mut tally) in std::mem::take(&mut self.tallies) {
            for kind in tally.drain(now) {
                self.send(now, kind);
            }
        }
    }

    fn source(&self, works: bool) {
        let kind = Kind::ErrorSource {
            source: "journald".to_owned(),
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

/// Starts the reader, from now on. It ends with the thread that calls this.
fn start(program: &Path) -> io::Result<Child> {
    let mut command = Command::new(program);
    command
        .args(["--follow", "--lines=0", "--output=json", "--quiet", "--no-pager"])
        .args(["--output-fields=MESSAGE,_TRANSPORT,_PID,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER,_COMM"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl(2) is one system call and touches no
    // memory of the parent's.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    endure::is_like_others(child.id());
    Ok(child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_put_together_by_unit_and_process() {
        let (out, told) = std::sync::mpsc::sync_channel(64);
        let (journald, _) = Journald::start(false, out.clone()).unwrap();
        let mut follower = Follower::new(out);
        let at = Timestamp(5_000_000_000);
        let mut say = |pid: u32, transport: &str, message: serde_json::Value| {
            let entry = serde_json::json!({
                "MESSAGE": message, "_PID": pid.to_string(), "_SYSTEMD_UNIT": "app.service", "_TRANSPORT": transport,
            });
            follower.entry(entry.to_string().as_bytes(), at, &journald);
        };
        // Two processes of a unit at once; the second one's lines come as bytes.
        for (pid, bytes) in [(7, false), (8, true)] {
            say(pid, "stdout", "Traceback (most recent call last):".into());
            let line = "  File \"/srv/app.py\", line 3, in serve";
            say(pid, "stdout", if bytes { line.as_bytes().into() } else { line.into() });
        }
        for pid in [7, 8] {
            say(pid, "stdout", format!("ValueError: bad {pid}").into());
        }
        // The kernel's messages are told by another source, and null is what is too large.
        say(0, "kernel", "a[1]: segfault at 0 ip 1 sp 2 error 4 in a[0+1]".into());
        say(7, "stdout", serde_json::Value::Null);
        follower.entry(b"{\"MESSAGE\": \"cut", at, &journald);
        follower.rest(at.after(Duration::from_secs(5)), false, &journald);

        let told: Vec<Kind> = told.try_iter().map(|event| event.kind).collect();
        let [Kind::Lost { total: 1, .. }, Kind::ErrorSeen { kind, frames, process, count: 2, .. }] =
            &told[..]
        else {
            panic!("{told:#?}");
        };
        assert_eq!((kind.as_str(), frames.len()), ("ValueError", 1));
        assert_eq!(process.as_deref(), Some("app.service"));
    }
}
