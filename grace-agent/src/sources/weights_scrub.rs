//! The scrub of weights: reads all owned weights over and over, slowly, and compares each chunk. For what no hook can see: rot on the
//! disk, and writes to the raw device.
//!
//! What is kept of them, the store looks through itself. This judges nothing: a chunk that differs is in doubt, and the file is looked at.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::files::Files;
use super::look::open;
use crate::api::view::{Health, SourceView};
use crate::clock::Stopwatch;
use crate::file_meta;
use crate::file_state::KnownGood;
use crate::prompt::patient;
use crate::weights::hash::{Progress, check, size_in_words};
use crate::weights::{CHUNK, Manifests};

/// Between two rounds, and where there is nothing to do.
const PAUSE: Duration = Duration::from_secs(5);

/// The thread, and what it has done.
#[derive(Debug)]
pub struct WeightsScrub {
    /// Bytes a second; 0: not at all.
    rate: AtomicU64,
    read: AtomicU64,
    rounds: AtomicU64,
    at: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl WeightsScrub {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where none can be started.
    pub fn start(
        mib_s: u32,
        files: Files,
        manifests: Manifests,
    ) -> std::io::Result<(Arc<Self>, std::thread::JoinHandle<()>)> {
        let scrub = Arc::new(Self {
            rate: AtomicU64::new(u64::from(mib_s) << 20),
            read: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            at: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let this = Arc::clone(&scrub);
        let thread = std::thread::Builder::new().name("grace-scrub-wts".into()).spawn(move || {
            patient();
            this.run(&files, &manifests);
        })?;
        Ok((scrub, thread))
    }

    /// Reads at most this much a second from now on; 0: nothing.
    pub fn set_rate(&self, mib_s: u32) {
        self.rate.store(u64::from(mib_s) << 20, Ordering::Relaxed);
    }

    /// Tells the thread to end; whoever does wakes it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let rate = self.rate.load(Ordering::Relaxed);
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let read = size_in_words(self.read.load(Ordering::Relaxed));
        let rounds = self.rounds.load(Ordering::Relaxed);
        SourceView {
            name: "scrub".into(),
            state: if rate == 0 || at.is_none() && rounds == 0 { Health::Off } else { Health::Ok },
            detail: match (rate, at) {
                (0, _) => "[weights] scrub_mib_s is 0".into(),
                (_, None) if rounds == 0 => "no weights are owned".into(),
                (rate, at) => format!(
                    "{read} compared at {}/s, {rounds} rounds{}",
                    size_in_words(rate),
                    at.map_or_else(String::new, |at| format!("; at {at}"))
                ),
            },
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn rest(&self, time: Duration) {
        let watch = Stopwatch::start();
        while !self.stopped() && watch.elapsed() < time {
            std::thread::park_timeout(time.saturating_sub(watch.elapsed()));
        }
    }

    fn run(&self, files: &Files, manifests: &Manifests) {
        while !self.stopped() {
            let owned = files.weights();
            let mut any = false;
            for (path, known) in &owned {
                any |= self.file(path, known, files, manifests);
                if self.stopped() {
                    return;
                }
            }
            *self.at.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.rounds.fetch_add(u64::from(any), Ordering::Relaxed);
            self.rest(PAUSE);
        }
    }

    /// Compares one file; false where nothing of it could be.
    fn file(&self, path: &Path, known: &KnownGood, files: &Files, manifests: &Manifests) -> bool {
        let Ok(manifest) = manifests.read(&known.digest) else { return false };
        let Ok((file, stat)) = open(path, Some(known)) else { return false };
        // Its own look tells of another size.
        if file_meta::size(&stat) != manifest.size {
            return false;
        }
        let progress = Progress::default();
        for index in (0_u64..).take(manifest.chunks.len()) {
            let rate = self.rate.load(Ordering::Relaxed);
            if rate == 0 || self.stopped() || files.weights().get(path) != Some(known) {
                return false;
            }
            let watch = Stopwatch::start();
            *self.at.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(format!("chunk {index} of {} of {}", manifest.chunks.len(), path.display()));
            match check(&file, &manifest, &[index], &progress) {
                Ok(bad) if bad.is_empty() => {}
                Ok(_) => {
                    files.doubts().suspect(path, index);
                    files.look(path);
                }
                Err(err) => {
                    tracing::warn!(%err, path = %path.display(), index, "a chunk cannot be read");
                    files.look(path);
                }
            }
            self.read.fetch_add(CHUNK, Ordering::Relaxed);
            let due = Duration::from_secs_f64(CHUNK as f64 / rate as f64);
            self.rest(due.saturating_sub(watch.elapsed()));
        }
        true
    }
}
