//! The source of GPU facts: NVML, loaded at run time, on a thread of its own because a driver call can hang.
//!
//! `nvml.rs` are the calls · `xid.rs` the driver's lines in the kernel's messages.
//!
//! The thread looks at every GPU, then waits for events until the next look. Somebody else's clock ([`Gpus::check`])
//! notices that a call does not return: then the source is broken and says so, and nothing else of the agent waits. The
//! thread that hangs cannot be ended; when its call returns after all it ends itself, and a new one begins.

pub mod xid;

mod nvml;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::processes::Processes;
use crate::api::view::{Health, SourceView};
use crate::clock::{self, Stopwatch};
use crate::config;
use crate::event::{Event, Kind, Timestamp};
use crate::gpu_facts::{GpuFault, GpuSample, Teller};
use nvml::{Driver, Gpu, Listener, OpenError};

/// Where there is no driver, or no GPU, it is asked for again this much later: it may be installed, or loaded late.
const AGAIN: Duration = Duration::from_secs(60);
/// What changes rarely is read with every so many looks.
const REST_EVERY: u64 = 10;
/// A look takes at most this share of the time: one that takes longer is made less often.
const SHARE: u32 = 50;
/// But at least this often.
const SELDOM: Duration = Duration::from_secs(30);
/// While nobody uses a GPU it is looked at so many times less often.
const CALM: u32 = 5;
/// A GPU of which nothing is news is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// One that works hard, or fills up, after this time.
const TELL_BUSY: Duration = Duration::from_secs(5);
/// A wait for an event returns after this time at the latest.
const WAIT: Duration = Duration::from_secs(1);
/// After an error of the wait: a driver that only says errors shall not keep a processor busy.
const PAUSE: Duration = Duration::from_secs(1);

/// What `grace gpu` and `status` show.
#[derive(Debug, Clone)]
pub struct GpuState {
    /// The driver's version; empty: not known.
    pub driver: String,
    /// Each GPU as it was last seen, and when.
    pub gpus: Vec<(GpuSample, Timestamp)>,
    /// How well the source works, and why not, or how.
    pub health: (Health, String),
    /// Calls that this driver does not have.
    pub missing: Vec<&'static str>,
    /// How often each GPU is looked at now, in milliseconds.
    pub period_ms: u64,
    /// How long the last look at all of them took, in microseconds.
    pub look_us: u64,
    /// Processor time of it, in microseconds.
    pub look_cpu_us: u64,
}

/// The source.
pub struct Gpus {
    settings: config::Gpu,
    processes: Arc<Processes>,
    out: SyncSender<Event>,
    state: Mutex<GpuState>,
    /// Which thread counts: one that finds another number here ends itself.
    generation: AtomicU64,
    /// When the driver work that goes on now began, in nanoseconds of CLOCK_BOOTTIME; 0: none does.
    busy: AtomicU64,
    /// A thread was given up, and its call has not returned.
    hangs: AtomicBool,
    /// One was given up, and no other has begun.
    given_up: AtomicBool,
    stop: AtomicBool,
}

impl Gpus {
    /// Starts to watch GPUs, unless that is switched off.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn start(
        settings: config::Gpu,
        processes: Arc<Processes>,
        out: SyncSender<Event>,
    ) -> io::Result<Arc<Self>> {
        let health = match settings.enabled {
            true => (Health::Off, "asking the driver".to_owned()),
            false => (Health::Off, "gpu.enabled = false".to_owned()),
        };
        let state = GpuState {
            driver: String::new(),
            gpus: Vec::new(),
            health,
            missing: Vec::new(),
            period_ms: settings.every.as_millis(),
            look_us: 0,
            look_cpu_us: 0,
        };
        let gpus = Arc::new(Self {
            settings,
            processes,
            out,
            state: Mutex::new(state),
            generation: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            hangs: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        if gpus.settings.enabled {
            gpus.begin()?;
        }
        Ok(gpus)
    }

    /// Ends the thread when its call returns. Nobody waits for that.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// How it is, for `status`.
    #[must_use]
    pub fn health(&self) -> SourceView {
        let (state, detail) = lock(&self.state).health.clone();
        SourceView { name: "gpu".into(), state, detail }
    }

    /// All that is known.
    #[must_use]
    pub fn state(&self) -> GpuState {
        lock(&self.state).clone()
    }

    /// Notices that the driver hangs, or that it answers again. To be called every second.
    pub fn check(self: &Arc<Self>) {
        let busy = self.busy.load(Ordering::Acquire);
        if busy != 0 && clock::boottime().since(Timestamp(busy)) > self.settings.patience.get() + WAIT {
            self.give_up();
        }
        let back = self.given_up.load(Ordering::Acquire) && !self.hangs.load(Ordering::Acquire);
        if back && !self.stop.load(Ordering::Acquire) {
            match self.begin() {
                Ok(()) => self.given_up.store(false, Ordering::Release),
                Err(err) => tracing::error!(%err, "no thread to ask the GPU driver"),
            }
        }
    }

    /// The driver has not answered for too long: whatever its thread still says does not count.
    fn give_up(&self) {
        // Before the thread can notice.
        self.hangs.store(true, Ordering::Release);
        self.given_up.store(true, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.busy.store(0, Ordering::Release);
        let patience = humantime::format_duration(self.settings.patience.get());
        let why = format!("the NVIDIA driver has not answered for {patience}");
        tracing::error!(why, "GPUs cannot be seen");
        lock(&self.state).health = (Health::Degraded, why.clone());
        self.send(Kind::GpuDriver { works: false, why });
    }

    /// A thread that counts from now on.
    fn begin(self: &Arc<Self>) -> io::Result<()> {
        let mine = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        let this = Arc::clone(self);
        std::thread::Builder::new().name("grace-nvml".into()).spawn(move || {
            let mut watch = Watch {
                gpus: &this,
                mine,
                told: BTreeMap::new(),
                close: BTreeMap::new(),
                looks: 0,
                families: Families::default(),
            };
            watch.run();
            if !watch.counts() {
                this.hangs.store(false, Ordering::Release);
            }
        })?;
        Ok(())
    }

    fn send(&self, kind: Kind) {
        // Fails only when the engine has ended, with the agent.
        drop(self.out.send(Event { at: clock::boottime(), kind }));
    }
}

/// A thread's own view.
struct Watch<'a> {
    gpus: &'a Gpus,
    mine: u64,
    /// By index: what was told last, and when.
    told: BTreeMap<u32, (GpuSample, Timestamp)>,
    /// By index: until when it is followed closely. What lasts must be seen to last, and to be gone.
    close: BTreeMap<u32, Timestamp>,
    looks: u64,
    families: Families,
}

/// A GPU that is watched.
struct Watched {
    gpu: Gpu,
    /// As it was last read.
    sample: GpuSample,
}

impl Watch<'_> {
    fn counts(&self) -> bool {
        self.gpus.generation.load(Ordering::Acquire) == self.mine
    }

    fn goes_on(&self) -> bool {
        self.counts() && !self.gpus.stop.load(Ordering::Acquire)
    }

    /// Work of the driver, which may not return. None: it took too long, and somebody else counts now.
    fn ask<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        if !self.goes_on() {
            return None;
        }
        self.gpus.busy.store(clock::boottime().0.max(1), Ordering::Release);
        let answer = work();
        if !self.counts() {
            return None;
        }
        self.gpus.busy.store(0, Ordering::Release);
        Some(answer)
    }

    fn run(&mut self) {
        while self.goes_on() {
            let Some(opened) = self.ask(|| Driver::open(self.gpus.settings.library.as_deref())) else {
                return;
            };
            match opened {
                Ok(driver) => {
                    let anew = self.watch(&driver);
                    if !self.counts() {
                        // Giving the library back is a call of its own, into a driver that hung.
                        std::mem::forget(driver);
                    }
                    if anew {
                        continue;
                    }
                }
                Err(err @ OpenError::NoLibrary(_)) => self.is(Health::Off, err.to_string()),
                Err(err @ OpenError::Refused(_)) => {
                    let had_gpus = !self.told.is_empty();
                    self.is(if had_gpus { Health::Degraded } else { Health::Off }, err.to_string());
                }
            }
            self.rest(AGAIN);
        }
    }

    /// Sleeps, as long as this thread is wanted.
    fn rest(&self, time: Duration) {
        let watch = Stopwatch::start();
        while self.goes_on() && watch.elapsed() < time {
            std::thread::sleep(Duration::from_millis(200).min(time));
        }
    }

    fn is(&self, state: Health, detail: String) {
        if self.counts() {
            let mut shown = lock(&self.gpus.state);
            shown.health = (state, detail);
            shown.gpus.clear();
        }
    }

    /// Watches the GPUs of a driver until it does not answer any more. True: it is to be opened anew at once, because a
    /// GPU that was lost may be there again under another handle.
    fn watch(&mut self, driver: &Driver) -> bool {
        let Some((version, count)) = self.ask(|| (driver.version(), driver.count())) else { return false };
        let count = match count {
            Ok(0) => {
                self.is(Health::Off, format!("driver {version}, no GPU"));
                return false;
            }
            Ok(count) => count,
            Err(code) => {
                self.is(Health::Degraded, format!("driver {version}: {code}"));
                return false;
            }
        };
        let mut watched = Vec::new();
        for index in 0..count {
            let found = self.ask(|| {
                let gpu = driver.gpu(index)?;
                Ok::<_, nvml::Code>(Watched { gpu, sample: driver.identity(index, gpu)? })
            });
            match found {
                None => return false,
                Some(Ok(gpu)) => watched.push(gpu),
                // Known from earlier, it is told as lost; else there is nothing to call it by.
                Some(Err(code)) => {
                    if let Some((mut sample, _)) = self.told.get(&index).cloned() {
                        sample.lost = Some(code.to_string());
                        self.tell(sample);
                    }
                }
            }
        }
        let handles: Vec<Gpu> = watched.iter().map(|w| w.gpu).collect();
        let Some(mut listener) = self.ask(|| driver.listen(&handles)) else { return false };
        lock(&self.gpus.state).driver.clone_from(&version);
        self.gpus.send(Kind::GpuDriver { works: true, why: String::new() });
        let missed = watched.len() < count as usize;
        let mut lost: Option<Stopwatch> = missed.then(Stopwatch::start);
        loop {
            let wall = Stopwatch::start();
            let cpu = thread_cpu();
            let all = self.looks.is_multiple_of(REST_EVERY);
            self.looks += 1;
            for one in &mut watched {
                if !self.look(driver, one, all) {
                    return false;
                }
            }
            let any = missed || watched.iter().any(|w| w.sample.lost.is_some());
            let anew = match &lost {
                Some(watch) if any => watch.elapsed() > AGAIN,
                _ => {
                    lost = any.then(Stopwatch::start);
                    false
                }
            };
            let took = wall.elapsed();
            let calm = watched
                .iter()
                .all(|w| w.sample.processes.is_empty() && w.sample.utilization.unwrap_or(0) == 0);
            let period = self.period(took, calm);
            self.show(driver, &version, &watched, period, (took, thread_cpu().saturating_sub(cpu)));
            if anew || !self.listen(driver, &watched, &mut listener, period.saturating_sub(took)) {
                if let Some(listener) = listener {
                    self.ask(|| driver.hang_up(listener));
                }
                return anew;
            }
        }
    }

    /// How often to look, when a look took so long.
    fn period(&self, took: Duration, calm: bool) -> Duration {
        let wanted = self.gpus.settings.every.get();
        let wanted = if calm { wanted.saturating_mul(CALM) } else { wanted };
        wanted.max(took.saturating_mul(SHARE).min(SELDOM))
    }

    /// Looks at one GPU. False: somebody else counts now.
    fn look(&mut self, driver: &Driver, one: &mut Watched, all: bool) -> bool {
        let mut sample = one.sample.clone();
        let read = self.ask(|| {
            driver.quick(one.gpu, &mut sample)?;
            if all || one.sample.lost.is_some() { driver.rest(one.gpu, &mut sample) } else { Ok(()) }
        });
        match read {
            None => return false,
            Some(Ok(())) => sample.lost = None,
            Some(Err(code)) => {
                let GpuSample { index, uuid, name, pci, .. } = sample;
                sample = GpuSample {
                    index,
                    uuid,
                    name,
                    pci,
                    lost: Some(code.to_string()),
                    ..GpuSample::default()
                };
            }
        }
        self.families.name(&self.gpus.processes, &mut sample, all);
        one.sample = sample;
        self.tell_news(&one.sample);
        true
    }

    /// Tells of a GPU where that is news.
    fn tell_news(&mut self, sample: &GpuSample) {
        let now = clock::boottime();
        let settings = &self.gpus.settings;
        let news = match self.told.get(&sample.index) {
            None => true,
            Some((before, at)) => {
                let ago = now.since(*at);
                let fills = sample.memory_used.unwrap_or(0).abs_diff(before.memory_used.unwrap_or(0))
                    > sample.memory_total.unwrap_or(u64::MAX) / 200;
                let full =
                    sample.memory_percent().is_some_and(|percent| percent >= settings.memory_soft - 10.0);
                let busy = sample.utilization.is_some_and(|percent| percent >= 90);
                let hot = sample.temperature_c.is_some_and(|c| c + 10 >= sample.slowdown_c.unwrap_or(90));
                let changed = steady(sample) != steady(before);
                if fills || full || busy || hot || changed || !sample.throttled.is_empty() {
                    let settle = settings.sustained.get() + 2 * TELL_BUSY;
                    self.close.insert(sample.index, now.after(settle));
                }
                let close = self.close.get(&sample.index).is_some_and(|until| *until > now);
                let soon = TELL_BUSY.min(settings.every.get().saturating_mul(5));
                ago >= TELL_AGAIN || changed || fills || (close && ago >= soon)
            }
        };
        if news {
            self.tell(sample.clone());
        }
    }

    fn tell(&mut self, sample: GpuSample) {
        self.told.insert(sample.index, (sample.clone(), clock::boottime()));
        self.gpus.send(Kind::GpuSeen { gpu: Box::new(sample) });
    }

    fn show(
        &self,
        driver: &Driver,
        version: &str,
        watched: &[Watched],
        period: Duration,
        took: (Duration, Duration),
    ) {
        if !self.counts() {
            return;
        }
        let now = clock::boottime();
        let missing = driver.missing();
        let lost = watched.iter().filter(|w| w.sample.lost.is_some()).count();
        let name = watched.first().map_or("", |w| w.sample.name.as_str());
        let millis = took.0.as_secs_f64() * 1000.0;
        let mut detail = format!(
            "driver {version}; {} × {name}; every {}, {millis:.1} ms each time",
            watched.len(),
            humantime::format_duration(Duration::from_millis(u64::try_from(period.as_millis()).unwrap_or(0))),
        );
        if lost > 0 {
            detail.push_str(&format!("; {lost} do not answer"));
        }
        if !missing.is_empty() {
            detail.push_str(&format!("; this driver has no {}", missing.join(", ")));
        }
        let mut state = lock(&self.gpus.state);
        state.gpus = watched.iter().map(|w| (w.sample.clone(), now)).collect();
        state.health = (if lost > 0 { Health::Degraded } else { Health::Ok }, detail);
        state.missing = missing;
        state.period_ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        state.look_us = u64::try_from(took.0.as_micros()).unwrap_or(u64::MAX);
        state.look_cpu_us = u64::try_from(took.1.as_micros()).unwrap_or(u64::MAX);
    }

    /// Waits for events for `time`. False: the driver is to be asked anew, or not at all.
    fn listen(
        &mut self,
        driver: &Driver,
        watched: &[Watched],
        listener: &mut Option<Listener>,
        time: Duration,
    ) -> bool {
        let watch = Stopwatch::start();
        loop {
            let left = time.saturating_sub(watch.elapsed());
            if left.is_zero() {
                return self.goes_on();
            }
            let Some(set) = listener.as_ref() else {
                self.rest(left);
                return self.goes_on();
            };
            let ms = u32::try_from(left.min(WAIT).as_millis()).unwrap_or(0).max(1);
            match self.ask(|| driver.wait(set, ms)) {
                None => return false,
                Some(Ok(None)) => {}
                Some(Ok(Some(told))) => {
                    if let Some(one) =
                        watched.iter().find(|w| w.gpu == told.gpu).filter(|_| told.kind & nvml::XID != 0)
                    {
                        self.faulted(one, &told);
                    }
                    // Whatever it was: what it changed is looked at now.
                    self.looks = 0;
                    return self.goes_on();
                }
                // A GPU that is lost ends the wait of all; the look says which it is.
                Some(Err(_)) => {
                    self.rest(PAUSE.min(left));
                    return self.goes_on();
                }
            }
        }
    }

    fn faulted(&self, one: &Watched, told: &nvml::Told) {
        let Ok(xid) = u32::try_from(told.data) else { return };
        self.gpus.send(Kind::GpuFaulted {
            fault: GpuFault {
                pci: one.sample.pci.clone(),
                xid,
                pid: None,
                process: None,
                gpu_instance: told.gpu_instance,
                via: Teller::Nvml,
                text: String::new(),
            },
        });
    }
}

/// Which declared process a pid belongs to, remembered while the pid uses a GPU.
#[derive(Default)]
struct Families {
    names: BTreeMap<u32, (String, Option<String>)>,
}

impl Families {
    /// Names the processes of `sample`; `anew`: also those that are known.
    fn name(&mut self, processes: &Processes, sample: &mut GpuSample, anew: bool) {
        for one in &mut sample.processes {
            if anew || !self.names.contains_key(&one.pid) {
                let comm = std::fs::read_to_string(format!("/proc/{}/comm", one.pid)).unwrap_or_default();
                let name = (comm.trim_end().to_owned(), processes.name_of_family(one.pid));
                self.names.insert(one.pid, name);
            }
            if let Some((comm, process)) = self.names.get(&one.pid) {
                one.comm.clone_from(comm);
                one.process.clone_from(process);
            }
        }
        // Nobody has so many; who is left out is looked up again.
        if self.names.len() > 16_384 {
            self.names.clear();
        }
    }
}

/// A sample without what changes from moment to moment.
fn steady(sample: &GpuSample) -> GpuSample {
    GpuSample {
        memory_used: None,
        utilization: None,
        memory_utilization: None,
        power_w: None,
        temperature_c: None,
        sm_clock_mhz: None,
        memory_clock_mhz: None,
        pcie_generation: None,
        ecc_corrected: None,
        ecc_corrected_life: None,
        pcie_replays: None,
        // That it runs at its power limit is how it is meant to work.
        throttled: sample.throttled.iter().filter(|why| *why != "sw_power_cap").cloned().collect(),
        processes: sample
            .processes
            .iter()
            .map(|p| crate::gpu_facts::GpuProcess {
                memory: None,
                sm: None,
                comm: String::new(),
                ..p.clone()
            })
            .collect(),
        ..sample.clone()
    }
}

/// Processor time that this thread has used.
fn thread_cpu() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    let (s, n) = (u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0));
    Duration::new(s, n)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
