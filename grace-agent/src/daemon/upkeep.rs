//! What is done by the clock: counting losses, taking samples of syscall latency and of Grace's own cost, cutting
//! captured logs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::executor::{Executor, lock};
use crate::actions::start_process;
use crate::api::view::CostView;
use crate::clock::Stopwatch;
use crate::event::Kind;
use crate::host;
use crate::sources::ebpf::{Probes, measure_run_time};

/// Period of the thread.
const TICK: Duration = Duration::from_secs(1);
/// Seconds between samples of latency and of the probes' cost.
const CYCLE: u64 = 30;
/// When in the cycle syscalls are timed, and when the probes' run time is measured: one tick each.
const LATENCY_AT: u64 = 3;
const COST_AT: u64 = 18;

/// Runs until `stop`.
pub(super) fn run(
    probes: Option<&Arc<Probes>>,
    executor: &Executor,
    cost: &Mutex<CostView>,
    stop: &AtomicBool,
) {
    let mut lost: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut cpu = (cpu_ns(), Stopwatch::start());
    let mut run_time: Option<(std::os::fd::OwnedFd, u64, Stopwatch)> = None;
    let mut second = 0;
    while !stop.load(Ordering::Acquire) {
        std::thread::park_timeout(TICK);
        second += 1;
        if let Some(probes) = probes {
            for (class, (_, total)) in probes.produced_and_lost() {
                if total > lost.insert(class, total).unwrap_or(0) {
                    executor.send(Kind::Lost { class: class.to_owned(), total });
                }
            }
            probes.time_syscalls(second % CYCLE == LATENCY_AT);
            if let Some((stats, before, watch)) = run_time.take() {
                let spent = probes.run_time_ns().saturating_sub(before);
                drop(stats);
                let wall = u64::try_from(watch.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
                lock(cost).bpf_ns_per_s =
                    u64::try_from(u128::from(spent) * 1_000_000_000 / u128::from(wall)).ok();
            }
            if second % CYCLE == COST_AT
                && let Some(stats) = measure_run_time()
            {
                run_time = Some((stats, probes.run_time_ns(), Stopwatch::start()));
            }
        }
        if second % 10 == 0 || second == 2 {
            let now = cpu_ns();
            let wall = cpu.1.elapsed().as_nanos().max(1);
            let mut cost = lock(cost);
            // Two decimals: a sample has no more.
            cost.cpu_percent = (now.saturating_sub(cpu.0) as f64 / wall as f64 * 10_000.0).round() / 100.0;
            cost.rss_bytes = host::rss_bytes();
            drop(cost);
            cpu = (now, Stopwatch::start());
            let names: Vec<String> = lock(&executor.specs).keys().cloned().collect();
            for name in names {
                if let Err(err) = start_process::cut_logs(&executor.logs, &name) {
                    tracing::warn!(process = %name, %err, "its captured log cannot be cut");
                }
            }
        }
    }
    if let Some(probes) = probes {
        probes.time_syscalls(false);
    }
}

/// Processor time that this process has used, in nanoseconds.
fn cpu_ns() -> u64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    let (s, n) = (u64::try_from(t.tv_sec).unwrap_or(0), u64::try_from(t.tv_nsec).unwrap_or(0));
    s.saturating_mul(1_000_000_000).saturating_add(n)
}
