//! Looks through the store, slowly: is every content what its name says, and which versions and displaced files are too
//! old to be kept?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::executor::lock;
use crate::actions::quarantine;
use crate::api::store::{RotView, StoreView};
use crate::api::view::{Health, SourceView};
use crate::clock::{self, Stopwatch};
use crate::config;
use crate::error_chain::chain;
use crate::file_state::Digest;
use crate::journal::Journal;
use crate::prompt::patient;
use crate::snapshots::retention::Limits;
use crate::snapshots::scrub::Health as Found;
use crate::snapshots::{Store, StoreError};

/// The first look comes this long after the start, when the start's own work is done.
const FIRST: Duration = Duration::from_secs(60);
/// What was found damaged is looked at again this often: a new snapshot mends it.
const AGAIN: Duration = Duration::from_secs(60);
/// Contents that are listed at once.
const PAGE: u32 = 256;
/// What a content costs beside its bytes: finding and opening it.
const EACH: u64 = 4096;
/// Read without a rest, in bytes.
const STRIDE: u64 = 256 << 10;

/// What the thread shares.
pub(super) struct Scrub {
    store: Arc<Store>,
    journal: Arc<Journal>,
    quarantine: PathBuf,
    settings: Mutex<config::Snapshots>,
    state: Mutex<State>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    /// When the last whole look ended.
    at: Option<String>,
    contents: u64,
    bytes: u64,
    lost: BTreeMap<Digest, RotView>,
    mended: u64,
    /// Why the last look could not be done.
    trouble: Option<String>,
}

impl Scrub {
    pub(super) fn new(
        store: Arc<Store>,
        journal: Arc<Journal>,
        quarantine: PathBuf,
        settings: config::Snapshots,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let (settings, state) = (Mutex::new(settings), Mutex::default());
        Self { store, journal, quarantine, settings, state, stop }
    }

    /// Other settings from now on.
    pub(super) fn set(&self, settings: config::Snapshots) {
        *lock(&self.settings) = settings;
    }

    /// Runs until `stop`; the thread is unparked then.
    pub(super) fn run(&self) {
        patient();
        let mut next = FIRST;
        let mut watch = Stopwatch::start();
        while !self.stop.load(Ordering::Acquire) {
            let elapsed = watch.elapsed();
            if elapsed >= next {
                self.drop_old();
                let rate = u64::from(lock(&self.settings).scrub_mib_per_s) << 20;
                if rate > 0 {
                    let mut pace = Pace { rate, since: Stopwatch::start(), read: 0 };
                    let result = self.look(|n| pace.rest(n, &self.stop));
                    lock(&self.state).trouble = result.err().map(|err| chain(&err));
                }
                (next, watch) = (lock(&self.settings).scrub_every.get(), Stopwatch::start());
                continue;
            }
            let damaged = !lock(&self.state).lost.is_empty();
            std::thread::park_timeout(if damaged { AGAIN.min(next - elapsed) } else { next - elapsed });
            if damaged && !self.stop.load(Ordering::Acquire) {
                self.look_again();
            }
        }
    }

    /// Reads every content now; `rest` is called with how much was read.
    pub(super) fn look(&self, mut rest: impl FnMut(u64)) -> Result<StoreView, StoreError> {
        let watch = Stopwatch::start();
        let mut view = StoreView::default();
        let mut after: Option<Digest> = None;
        loop {
            let page = self.store.digests(after.as_ref(), PAGE)?;
            let Some(last) = page.last().cloned() else { break };
            for digest in page {
                if self.stop.load(Ordering::Acquire) {
                    return Ok(view);
                }
                rest(EACH);
                view.contents += 1;
                match self.store.scrub(&digest, &mut rest)? {
                    Found::Sound(bytes) => view.bytes += bytes,
                    Found::Gone => view.contents -= 1,
                    Found::Mended { why, from } => {
                        self.journal.note("store", format!("{why}; taken anew from {}", from.display()));
                        tracing::warn!(%why, from = %from.display(), "a kept content was mended");
                        view.mended.push(RotView { sha256: digest, why, files: vec![from] });
                    }
                    Found::Lost { why, needed_by } => {
                        if !lock(&self.state).lost.contains_key(&digest) {
                            self.journal.note("store", why.clone());
                            tracing::error!(%why, "a kept content is lost");
                        }
                        view.lost.push(RotView { sha256: digest, why, files: needed_by });
                    }
                }
            }
            after = Some(last);
        }
        view.took_ms = u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut state = lock(&self.state);
        (state.at, state.trouble) = (Some(clock::wall_rfc3339()), None);
        (state.contents, state.bytes) = (view.contents, view.bytes);
        state.mended += view.mended.len() as u64;
        state.lost = view.lost.iter().map(|rot| (rot.sha256.clone(), rot.clone())).collect();
        drop(state);
        Ok(view)
    }

    /// Looks at what was damaged.
    fn look_again(&self) {
        let damaged: Vec<Digest> = lock(&self.state).lost.keys().cloned().collect();
        for digest in damaged {
            match self.store.scrub(&digest, |_| {}) {
                Ok(Found::Lost { .. }) | Err(_) => {}
                Ok(Found::Sound(_) | Found::Gone | Found::Mended { .. }) => {
                    lock(&self.state).lost.remove(&digest);
                    self.journal.note("store", format!("the kept content {} is sound again", digest.short()));
                }
            }
        }
    }

    /// Drops versions and displaced files that the settings do not keep.
    fn drop_old(&self) {
        let settings = lock(&self.settings).clone();
        let limits = Limits { versions: settings.versions, age: settings.version_age.get() };
        match self.store.prune(limits) {
            Ok(0) => {}
            Ok(n) => self.journal.note("store", format!("{n} old versions were dropped")),
            Err(err) => tracing::error!(why = %chain(&err), "old versions cannot be dropped"),
        }
        let (files, bytes) = (settings.displaced as usize, u64::from(settings.displaced_mib) << 20);
        match quarantine::prune(&self.quarantine, files, bytes, settings.displaced_age.get()) {
            Ok(0) => {}
            Ok(n) => self.journal.note("store", format!("{n} displaced files were dropped from quarantine")),
            Err(err) => tracing::error!(%err, "the quarantine cannot be cleared up"),
        }
    }

    /// How the store is, for `status`.
    pub(super) fn health(&self) -> SourceView {
        let state = lock(&self.state);
        let mut detail = match &state.at {
            None => "not looked through yet".to_owned(),
            Some(at) => format!(
                "{} contents, {} bytes, looked through at {}",
                state.contents,
                state.bytes,
                at.get(..19).unwrap_or(at)
            ),
        };
        if state.mended > 0 {
            detail.push_str(&format!("; {} were damaged and taken anew", state.mended));
        }
        for rot in state.lost.values().take(3) {
            let files: Vec<String> = rot.files.iter().take(3).map(|f| f.display().to_string()).collect();
            detail.push_str(&format!("; {} (needed by {})", rot.why, files.join(", ")));
        }
        if state.lost.len() > 3 {
            detail.push_str(&format!("; and {} more", state.lost.len() - 3));
        }
        if let Some(why) = &state.trouble {
            detail.push_str(&format!("; cannot be looked through: {why}"));
        }
        let sound = state.lost.is_empty() && state.trouble.is_none();
        SourceView { name: "store".into(), state: if sound { Health::Ok } else { Health::Degraded }, detail }
    }
}

/// Keeps reading to a rate.
struct Pace {
    /// Bytes a second.
    rate: u64,
    since: Stopwatch,
    read: u64,
}

impl Pace {
    /// `n` more bytes were read: rests until the rate holds.
    fn rest(&mut self, n: u64, stop: &AtomicBool) {
        self.read += n;
        if self.read < STRIDE {
            return;
        }
        let due = Duration::from_secs_f64(self.read as f64 / self.rate as f64);
        while let Some(left) = due.checked_sub(self.since.elapsed()).filter(|left| !left.is_zero()) {
            if stop.load(Ordering::Acquire) {
                return;
            }
            std::thread::park_timeout(left);
        }
        (self.read, self.since) = (0, Stopwatch::start());
    }
}
