//! Sinks: where tasks are told beside the local queue. One file per kind; this one has their threads.
//!
//! Each sink has a thread of its own, which takes its entries from the outbox one by one: one that is down, answers errors or
//! hangs holds up nobody but itself. An entry counts as told only when the sink took it, and is told again after a crash in
//! between; so each sink must know by itself what it has seen (an event's id, a file's name, a mark in an issue).

mod exec;
pub mod github;
mod http;
mod spool;
pub mod webhook;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::actions::own_cgroup::Cgroups;
use crate::config::{Sink, SinkKind};
use crate::error_chain::chain;
use crate::tasks::{Delivery, Entry, Queue, Subscription};

/// Time after which a sink looks for entries by itself: pauses end without a word.
const LOOK: Duration = Duration::from_millis(500);
/// How long one try of a sink may take unless its configuration says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
const EXEC_PATIENCE: Duration = Duration::from_secs(1800);

/// What sinks need beside their configuration.
pub struct Surroundings {
    /// The queue with its outbox.
    pub queue: Arc<Queue>,
    /// Name of the host.
    pub host: String,
    /// Cgroups of what is started.
    pub cgroups: Cgroups,
    /// Folder of the state, for scratch files.
    pub state: std::path::PathBuf,
}

/// The sinks.
pub struct Sinks {
    around: Arc<Surroundings>,
    running: Mutex<BTreeMap<String, Running>>,
    /// Threads that end when their try has, by their sink's name: the next one of that name waits for them.
    leaving: Mutex<Vec<(String, JoinHandle<()>)>>,
    bell: Arc<Bell>,
}

/// A sink's thread.
struct Running {
    config: Sink,
    stop: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

/// Rings when there is something to tell.
#[derive(Default)]
struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Sinks {
    /// None yet.
    #[must_use]
    pub fn new(around: Surroundings) -> Self {
        Self {
            around: Arc::new(around),
            running: Mutex::default(),
            leaving: Mutex::default(),
            bell: Arc::default(),
        }
    }

    /// Tells these from now on. One that is not named any more ends when its try has; what waits for it stays in the outbox.
    pub fn set(&self, sinks: &[Sink]) {
        let wanted = |sink: &&Sink| sink.kind != SinkKind::Exec || sink.enabled;
        let sinks: Vec<Sink> = sinks.iter().filter(wanted).cloned().collect();
        let subscriptions = sinks.iter().map(|sink| Subscription {
            sink: sink.name().to_owned(),
            triggers: sink.triggers.clone(),
            events: events_of(sink.kind),
        });
        self.around.queue.subscribe(subscriptions.collect());
        let mut running = lock(&self.running);
        let mut leaving = lock(&self.leaving);
        leaving.retain(|(_, thread)| !thread.is_finished());
        running.retain(|name, old| {
            let stays = sinks.iter().any(|sink| sink.name() == name && *sink == old.config);
            if !stays {
                *lock(&old.stop) = true;
                leaving.extend(old.thread.take().map(|thread| (name.clone(), thread)));
            }
            stays
        });
        for sink in sinks {
            let name = sink.name().to_owned();
            if running.contains_key(&name) {
                continue;
            }
            let stop = Arc::new(Mutex::new(false));
            let worker = Worker {
                around: Arc::clone(&self.around),
                config: sink.clone(),
                stop: Arc::clone(&stop),
                bell: Arc::clone(&self.bell),
            };
            // Two at once would tell the same entry twice.
            let before: Vec<JoinHandle<()>> =
                leaving.extract_if(.., |(of, _)| *of == name).map(|(_, t)| t).collect();
            let thread = std::thread::Builder::new().name("grace-sink".into()).spawn(move || {
                for thread in before {
                    if thread.join().is_err() {
                        tracing::error!("a sink's thread panicked");
                    }
                }
                worker.run();
            });
            match thread {
                Ok(thread) => {
                    running.insert(name, Running { config: sink, stop, thread: Some(thread) });
                }
                Err(err) => {
                    tracing::error!(sink = %name, %err, "its thread cannot be started: it is not told")
                }
            }
        }
        drop((running, leaving));
        self.wake();
    }

    /// There may be something to tell.
    pub fn wake(&self) {
        *lock(&self.bell.rung) += 1;
        self.bell.changed.notify_all();
    }

    /// Ends those that are between two tries; nobody waits for one that hangs: what it was told is told again.
    pub fn stop(&self) {
        let mut running = lock(&self.running);
        running.values().for_each(|one| *lock(&one.stop) = true);
        self.wake();
        let threads: Vec<JoinHandle<()>> = running.values_mut().filter_map(|one| one.thread.take()).collect();
        drop(running);
        std::thread::sleep(Duration::from_millis(20));
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            if thread.join().is_err() {
                tracing::error!("a sink's thread panicked");
            }
        }
    }
}

/// What a kind of sink wants to hear of.
fn events_of(kind: SinkKind) -> Vec<String> {
    let events: &[&str] = match kind {
        SinkKind::Spool | SinkKind::Webhook | SinkKind::Github => &[],
        SinkKind::Exec => &["filed", "reopened"],
    };
    events.iter().map(|event| (*event).to_owned()).collect()
}

struct Worker {
    around: Arc<Surroundings>,
    config: Sink,
    stop: Arc<Mutex<bool>>,
    bell: Arc<Bell>,
}

impl Worker {
    fn run(&self) {
        let name = self.config.name();
        let mut trouble = false;
        // While a sink as a whole is in trouble, it is not asked for each entry anew.
        let mut rest: Option<(crate::clock::Stopwatch, Duration)> = None;
        while !*lock(&self.stop) {
            let heard = *lock(&self.bell.rung);
            if rest.as_ref().is_some_and(|(since, pause)| since.elapsed() < *pause) {
                self.wait(heard);
                continue;
            }
            rest = None;
            let entry = match self.around.queue.next_for(name) {
                Ok(Some(entry)) => entry,
                Ok(None) => {
                    self.wait(heard);
                    continue;
                }
                Err(err) => {
                    tracing::warn!(sink = %name, why = %chain(&err), "the outbox cannot be read");
                    self.wait(heard);
                    continue;
                }
            };
            let delivery = self.deliver(&entry);
            match &delivery {
                Delivery::Sent => trouble = false,
                Delivery::Later(why, after) => {
                    if !std::mem::replace(&mut trouble, true) {
                        tracing::warn!(sink = %name, task = %entry.task.id, %why, "is told later");
                    }
                    let pause = after.unwrap_or(Duration::from_millis(500));
                    rest = Some((crate::clock::Stopwatch::start(), pause));
                }
                Delivery::Refused(why) => {
                    tracing::error!(sink = %name, task = %entry.task.id, %why, "will not be told: `grace tasks outbox --dead`");
                }
            }
            if let Err(err) = self.around.queue.delivered(&entry, &delivery, self.config.give_up.get()) {
                tracing::error!(sink = %name, why = %chain(&err), "what became of it cannot be kept: it is told again");
                self.wait(heard);
            }
        }
    }

    fn wait(&self, heard: u64) {
        let rung = lock(&self.bell.rung);
        if *rung == heard {
            drop(self.bell.changed.wait_timeout(rung, LOOK));
        } else {
            drop(rung);
            // Rung for somebody else, most likely: no reason to spin.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn deliver(&self, entry: &Entry) -> Delivery {
        let default = if self.config.kind == SinkKind::Exec { EXEC_PATIENCE } else { PATIENCE };
        let patience = self.config.timeout.map_or(default, crate::config::Span::get);
        match self.config.kind {
            SinkKind::Spool => spool::deliver(&self.config, entry),
            SinkKind::Webhook => webhook::deliver(&self.config, entry, &self.around.host, patience),
            SinkKind::Github => github::deliver(&self.config, entry, &self.around.queue, patience),
            SinkKind::Exec => exec::deliver(&self.config, entry, &self.around, patience),
        }
    }
}

/// A secret out of a file that nobody else can read.
fn secret(path: Option<&Path>) -> Result<String, String> {
    let path = path.ok_or("no file with the secret is configured")?;
    let fail = |why: String| format!("{}: {why}", path.display());
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|err| fail(err.to_string()))?;
    let meta = file.metadata().map_err(|err| fail(err.to_string()))?;
    if !meta.is_file() || meta.mode() & 0o077 != 0 {
        return Err(fail("must be a regular file with mode 0600: others could read the secret".to_owned()));
    }
    let mut text = String::new();
    File::take(file, 4096).read_to_string(&mut text).map_err(|err| fail(err.to_string()))?;
    let text = text.trim();
    if text.is_empty() { Err(fail("is empty".to_owned())) } else { Ok(text.to_owned()) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
