//! What is done by the clock: counting losses, timing system calls within the budget, samples of Grace's own cost,
//! self-tests of the probes, progress of declared processes, cutting captured logs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::executor::{Executor, lock};
use super::gauges::Latest;
use super::judge::Judged;
use super::pauses;
use super::supervisor::Watchdog;
use crate::actions::start_process;
use crate::api::view::{CostView, LatencyView};
use crate::clock::{self, Stopwatch};
use crate::config;
use crate::endure;
use crate::event::{Kind, Reading};
use crate::host;
use crate::sources::ebpf::latency::Governor;
use crate::sources::ebpf::reader::Reader;
use crate::sources::ebpf::{Probes, Runs, measure_run_time, self_test};
use crate::sources::gpu::Gpus;
use crate::sources::listeners::Listeners;
use crate::sources::pressure::{self, Sampler};
use crate::sources::round::Rounds;

/// Period of the thread.
const TICK: Duration = Duration::from_secs(1);
/// Seconds between samples of the probes' cost, and when in that cycle: one tick.
const COST_EVERY: u64 = 30;
const COST_AT: u64 = 3;
/// Seconds between self-tests.
const SELF_TEST_EVERY: u64 = 3600;
/// Seconds between looks at the progress of processes, and between lessons of what is slow for them.
const PROGRESS_EVERY: u64 = 5;
/// Seconds between samples of the host's pressure, and of its disks.
const PRESSURE_EVERY: u64 = 2;
const DISKS_EVERY: u64 = 10;
/// Seconds after which a reading far from its limit is told again.
const CALM_EVERY: u64 = 60;
/// Seconds between looks at the wall clock for quiet times: it may be set at any moment.
const QUIET_EVERY: u64 = 5;
/// Seconds between what is told of the latency of processes' calls.
const LATENCIES_EVERY: u64 = 10;
/// Seconds between looks at accept queues, and while one is half full.
const LISTENERS_EVERY: u64 = 5;
const LISTENERS_BUSY: u64 = 2;
/// Seconds after the start at which what an earlier agent watched, and this one does not, is given up.
const LEFTOVERS_AT: u64 = 30;
/// Seconds after the start at which what is in memory is locked there: everything that is needed has been used by then.
const LOCK_AT: u64 = 15;
/// What the way into a program and back costs beside its own run time, in nanoseconds: about half of what empty hooks
/// on both sides of a call cost (see the `syscall` benchmark).
const HOOK_NS: f64 = 10.0;

/// What the thread shares with others.
pub(super) struct Upkeep {
    pub(super) kernel: Option<(Arc<Probes>, Arc<Reader>)>,
    pub(super) executor: Arc<Executor>,
    pub(super) cost: Arc<Mutex<CostView>>,
    pub(super) latency: Arc<Mutex<LatencyView>>,
    pub(super) settings: Arc<Mutex<config::Probes>>,
    pub(super) quiet: Arc<Mutex<Vec<config::Quiet>>>,
    pub(super) pressure: config::Pressure,
    pub(super) gpus: Arc<Gpus>,
    /// What was read last, shared with `grace pressure`.
    pub(super) latest: Arc<Latest>,
    pub(super) judged: Judged,
    pub(super) watchdog: Watchdog,
    /// Looks that somebody asked for.
    pub(super) rounds: Rounds,
    /// Why accept queues cannot be seen, shared with `status`.
    pub(super) blind: Arc<Mutex<Option<String>>>,
    pub(super) stop: Arc<AtomicBool>,
    /// A folder of the agent's own.
    pub(super) scratch: std::path::PathBuf,
}

impl Upkeep {
    /// Runs until `stop`.
    pub(super) fn run(mut self) {
        let settings = lock(&self.settings).clone();
        let mut timer = Timer { governor: Governor::new(settings.clone()), calls: None, settings };
        let mut sample: Option<Sample> = None;
        let mut cpu = (cpu_ns(), Stopwatch::start());
        let (mut sampler, mut told) = (Sampler::default(), Told::default());
        let mut second = 0;
        let mut listeners = Listeners::default();
        while !self.stop.load(Ordering::Acquire) {
            let on = match &self.kernel {
                Some((probes, _)) => self.time_calls(&mut timer, probes),
                None => 0.0,
            };
            self.rest(on);
            self.watchdog.turn(&self.executor, &self.judged);
            second += 1;
            let (asked, begun) = (self.rounds.is_asked(), self.rounds.begin());
            if let Some((probes, reader)) = &self.kernel {
                reader.tell_losses();
                if let Some(sample) = sample.take() {
                    lock(&self.cost).bpf_ns_per_s = Some(sample.end(probes, &mut timer.governor));
                }
                if second % SELF_TEST_EVERY == 1 {
                    self_test::quick(probes, reader, &self.scratch);
                    self_test::with_process(probes, reader, false);
                } else if second % COST_EVERY == COST_AT {
                    sample = Sample::begin(probes);
                }
                if second == LEFTOVERS_AT {
                    probes.forget_leftovers();
                }
            }
            if second == LOCK_AT
                && let Err(err) = endure::stays_in_memory(host::rss_bytes())
            {
                tracing::debug!(%err, "the agent may be paged out");
            }
            self.gpus.check();
            self.executor.look_for_all();
            if second % PROGRESS_EVERY == 0 {
                self.executor.processes.check_progress();
            }
            if asked || second % LATENCIES_EVERY == 0 {
                self.executor.processes.tell_latencies();
            }
            if asked || second % if listeners.busy() { LISTENERS_BUSY } else { LISTENERS_EVERY } == 0 {
                self.look_at_listeners(&mut listeners);
            }
            // What is slow from the first call on needs no lesson, so it is set at once.
            if second % PROGRESS_EVERY == 0 || timer.settings.slow_factor == 0 {
                self.executor.processes.learn_slow(&timer.settings);
            }
            if asked || second % PRESSURE_EVERY == 0 {
                let mut readings = sampler.quick();
                let (loads, of_processes) = pressure::loads(&self.executor.processes);
                readings.extend(of_processes);
                if asked || second % DISKS_EVERY == 0 {
                    readings.extend(sampler.disks());
                    readings.extend(sampler.thermal());
                }
                self.latest.note(&readings);
                if !asked {
                    readings = told.news(readings, &self.pressure, second);
                }
                if !readings.is_empty() {
                    // First: whoever judges what follows knows who takes what.
                    if told.is_close() && !loads.is_empty() {
                        let loads = loads.iter().map(pressure::Load::fact).collect();
                        self.executor.send(Kind::ProcessLoads { loads });
                    }
                    self.executor.send(Kind::Pressure { readings });
                }
            }
            self.rounds.end(begun);
            if second % QUIET_EVERY == 0 {
                let quiet = lock(&self.quiet).clone();
                pauses::check_quiet(&self.executor, &quiet);
            }
            if second % 10 == 0 || second == 2 {
                let now = cpu_ns();
                let wall = cpu.1.elapsed().as_nanos().max(1);
                let mut cost = lock(&self.cost);
                // Two decimals: a sample has no more.
                cost.cpu_percent =
                    (now.saturating_sub(cpu.0) as f64 / wall as f64 * 10_000.0).round() / 100.0;
                cost.rss_bytes = host::rss_bytes();
                drop(cost);
                cpu = (now, Stopwatch::start());
                self.cut_logs();
            }
        }
        if let Some((probes, _)) = &self.kernel {
            probes.time_syscalls(false);
        }
    }

    /// Turns the timing of calls on where the second that begins has a share of it; how long, in seconds.
    fn time_calls(&self, timer: &mut Timer, probes: &Probes) -> f64 {
        let settings = lock(&self.settings).clone();
        if settings != timer.settings {
            probes.set_slow_rate(settings.slow_rate);
            timer.governor.set(settings.clone());
            timer.settings = settings;
        }
        let calls = probes.calls();
        let rate = timer.calls.as_ref().map_or(0.0, |(before, watch)| {
            calls.saturating_sub(*before) as f64 / watch.elapsed().as_secs_f64().max(1e-3)
        });
        // The first second has no rate yet: nothing is timed before it is known what that would cost, unless it may cost
        // anything.
        let known = timer.calls.replace((calls, Stopwatch::start())).is_some()
            || timer.settings.latency == config::LatencyMode::Full;
        let on = if known { timer.governor.next_second(rate) } else { 0.0 };
        let on = if probes.time_syscalls(on > 0.0) { on } else { 0.0 };
        let share = (timer.governor.share() * 1000.0).round() / 1000.0;
        *lock(&self.latency) = LatencyView { share, calls_per_s: rate.round() };
        on
    }

    /// Rests for a tick, of which calls are timed for `on` seconds.
    fn rest(&self, on: f64) {
        let on = Duration::from_secs_f64(on.clamp(0.0, 1.0));
        if on > Duration::ZERO && on < TICK {
            std::thread::park_timeout(on);
            if let Some((probes, _)) = &self.kernel {
                probes.time_syscalls(false);
            }
            std::thread::park_timeout(TICK - on);
        } else {
            std::thread::park_timeout(TICK);
        }
    }

    /// Tells of accept queues. What refuses is said when it begins to.
    fn look_at_listeners(&self, listeners: &mut Listeners) {
        let processes = &self.executor.processes;
        match listeners.look(&processes.families(), clock::boottime()) {
            Ok(facts) => {
                *lock(&self.blind) = None;
                processes.tell(facts);
            }
            Err(err) => {
                if lock(&self.blind).replace(err.to_string()).is_none() {
                    tracing::warn!(%err, "accept queues cannot be seen");
                }
            }
        }
    }

    fn cut_logs(&self) {
        let names: Vec<String> = lock(&self.executor.specs).keys().cloned().collect();
        for name in names {
            if let Err(err) = start_process::cut_logs(&self.executor.logs, &name) {
                tracing::warn!(process = %name, %err, "its captured log cannot be cut");
            }
        }
    }
}

/// Which readings are news: those near their limit always, the others once in a while. What is far from its limit need
/// not wake the engine every two seconds.
#[derive(Default)]
struct Told {
    /// Until which second a reading is followed closely: while it is near, and long enough after to be seen clear.
    close: std::collections::BTreeMap<String, u64>,
}

impl Told {
    /// Whether anything is near its limit.
    fn is_close(&self) -> bool {
        !self.close.is_empty()
    }

    fn news(&mut self, mut readings: Vec<Reading>, limits: &config::Pressure, second: u64) -> Vec<Reading> {
        let settle = limits.sustained.get().as_secs() + 2 * DISKS_EVERY;
        self.close.retain(|_, until| *until > second);
        readings.retain(|reading| {
            let near = limits
                .limit(&reading.resource)
                .is_some_and(|limit| reading.percent > limit - 2.0 * limits.margin);
            if near {
                self.close.insert(reading.resource.clone(), second + settle);
            }
            second.is_multiple_of(CALM_EVERY) || self.close.contains_key(&reading.resource)
        });
        readings
    }
}

/// Decides how much is timed.
struct Timer {
    governor: Governor,
    /// Calls of the host and when they were read.
    calls: Option<(u64, Stopwatch)>,
    settings: config::Probes,
}

/// A sample of what the probes cost, under way.
struct Sample {
    /// Holds the kernel's statistics on.
    _stats: std::os::fd::OwnedFd,
    before: std::collections::BTreeMap<&'static str, Runs>,
    watch: Stopwatch,
}

impl Sample {
    fn begin(probes: &Probes) -> Option<Self> {
        Some(Self { _stats: measure_run_time()?, before: probes.runs(), watch: Stopwatch::start() })
    }

    /// Nanoseconds in probes a second.
    fn end(self, probes: &Probes, governor: &mut Governor) -> u64 {
        let seconds = self.watch.elapsed().as_secs_f64().max(1e-3);
        let mut total = 0.0;
        let (mut enter, mut exit) = (None, None);
        for (name, now) in probes.runs() {
            let before = self.before.get(name).copied().unwrap_or_default();
            let (time, runs) =
                (now.time_ns.saturating_sub(before.time_ns), now.count.saturating_sub(before.count));
            let each = (runs > 0).then(|| time as f64 / runs as f64);
            probes.note_cost(name, each, runs as f64 / seconds, now.missed);
            total += time as f64;
            // A few runs say more about cold caches than about the cost.
            match (name, each.filter(|_| runs > 10_000)) {
                ("syscall_latency", each) => enter = each,
                ("syscall_count", each) => exit = each,
                _ => {}
            }
        }
        if let (Some(enter), Some(exit)) = (enter, exit) {
            governor.measured(enter + exit + 2.0 * HOOK_NS);
        }
        (total / seconds) as u64
    }
}

/// Processor time that this process has used, in nanoseconds.
fn cpu_ns() -> u64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    let (s, n) = (u64::try_from(t.tv_sec).unwrap_or(0), u64::try_from(t.tv_nsec).unwrap_or(0));
    s.saturating_mul(1_000_000_000).saturating_add(n)
}
