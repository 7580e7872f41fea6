//! `cargo xtask bench`: how long Grace takes and what it costs, beside the tools that do a part of its work.
//!
//! Peers and Grace take turns, so that whatever slows this machine meets all of them alike, and ratios are only
//! ever formed within one run. Nothing here is a test: times are reported, never asserted.

mod agent;
mod drift;
mod empty_probe;
mod gpu;
mod guard;
mod idle;
pub(crate) mod noise;
mod peers;
mod program;
mod records;
mod report;
mod restart;
mod ring;
mod scan;
mod start;
mod stats;
mod store;
mod syscall;
mod tasks;
mod weights;
mod write;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{build, process};
use report::{Strain, Table};

/// Measures Grace beside its peers, and prints tables (needs root; --quick takes some minutes, else far longer).
///
/// Peers that are missing are installed with apt, as `cargo xtask setup` does: inotify-tools, runit, s6,
/// supervisor, monit, bpfcc-tools, bpftrace, strace, redis; ruff with pip. Everything is done in a folder among the temporary files (TMPDIR), which should lie on a
/// real disk: syncing is a part of what is measured.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer rounds and shorter ones
    #[arg(long)]
    quick: bool,
    /// Only this benchmark (more than once: only these)
    #[arg(long, value_name = "NAME")]
    only: Vec<Name>,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
    /// Measure this grace instead of building one
    #[arg(long, value_name = "PATH")]
    bin: Option<PathBuf>,
}

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// A config is changed: until it is as it was
    Drift,
    /// A process is killed: until it runs again
    Restart,
    /// The agent starts: until its probes are attached
    Start,
    /// What the agent takes while nothing happens
    Idle,
    /// What a system call costs more
    Syscall,
    /// What a write costs more
    Write,
    /// How much longer real programs take
    Program,
    /// How many events a second the probes' ring carries without loss
    Ring,
    /// How many datagrams a second applications can send, and what they cost
    Records,
    /// How many source files a second are checked for syntax errors
    Scan,
    /// What looking at GPUs takes, and how soon a fault is a firing
    Gpu,
    /// Snapshots and their verification; a thousand files changed at once
    Store,
    /// How long claiming a task takes while 100,000 wait
    Tasks,
    /// A page of a large file of weights is changed; hashing it; reading it while it is scrubbed
    Weights,
}

/// What every benchmark needs to know.
struct Bench {
    /// The agent's program.
    grace: PathBuf,
    quick: bool,
}

impl Bench {
    /// How often: `all`, or `quick`.
    fn rounds(&self, all: u32, quick: u32) -> u32 {
        if self.quick { quick } else { all }
    }
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("needs root: without it grace has no kernel probes, and those are what is measured");
    }
    let grace = match &args.bin {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => build::agent(true)?,
    };
    let bench = Bench { grace, quick: args.quick };
    let all: &[Name] = <Name as clap::ValueEnum>::value_variants();
    let began = Instant::now();
    let host = report::host(&bench.grace)?;
    if !args.json {
        println!("{}\n", report::headline(&host));
    }
    let mut tables = Vec::new();
    let mut complete = true;
    for name in all.iter().filter(|name| args.only.is_empty() || args.only.contains(name)) {
        say(&format!("{name:?}…"));
        let this = Instant::now();
        let strain = Strain::start();
        let table = match name {
            Name::Drift => drift::measure(&bench),
            Name::Restart => restart::measure(&bench),
            Name::Start => start::measure(&bench),
            Name::Idle => idle::measure(&bench),
            Name::Syscall => syscall::measure(&bench),
            Name::Write => write::measure(&bench),
            Name::Program => program::measure(&bench),
            Name::Ring => ring::measure(&bench),
            Name::Records => records::measure(&bench),
            Name::Scan => scan::measure(&bench),
            Name::Gpu => gpu::measure(&bench),
            Name::Store => store::measure(&bench),
            Name::Tasks => tasks::measure(&bench),
            Name::Weights => weights::measure(&bench),
        };
        match table {
            Ok(mut table) => {
                table.note(strain.note());
                if !args.json {
                    println!("{}", table.markdown());
                }
                tables.push(table);
            }
            Err(err) => {
                complete = false;
                eprintln!("bench: {name:?}: {err:#}");
            }
        }
        say(&format!("{name:?} took {:.0} s", this.elapsed().as_secs_f64()));
    }
    let took = began.elapsed().as_secs_f64();
    if args.json {
        let tables: Vec<_> = tables.iter().map(Table::json).collect();
        println!("{:#}", json!({ "host": host, "quick": args.quick, "seconds": took, "benchmarks": tables }));
    } else {
        println!("All of it took {took:.0} s{}.", if args.quick { " (--quick)" } else { "" });
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why something could not be measured, short enough for a table.
fn brief(err: &anyhow::Error) -> String {
    let text = format!("{err:#}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    let short: String = text.chars().take(240).collect();
    if short.len() < text.len() { short + "…" } else { short }
}

/// Progress, for whoever waits.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// Nanoseconds of CLOCK_MONOTONIC.
fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// `ns` nanoseconds in milliseconds.
#[expect(clippy::cast_precision_loss, reason = "a measurement has no 53 bits")]
fn ms(ns: i64) -> f64 {
    ns as f64 / 1e6
}

/// What `count` calls took, in nanoseconds for each.
#[expect(clippy::cast_precision_loss, reason = "a measurement has no 53 bits")]
fn per(ns: i64, count: u32) -> f64 {
    ns as f64 / f64::from(count)
}

/// The smallest of `pieces` measurements: everything else that runs on this machine only makes them larger.
fn fastest(pieces: u32, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..pieces).try_fold(f64::INFINITY, |fastest, _| Ok(measure()?.min(fastest)))
}

/// The numbers below `count` in an order that depends on `round`: what one leaves behind for the next (caches, a
/// disk still at work) then meets all alike, and a second run does the same.
fn shuffled(round: u32, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = u64::from(round) + 1;
    // A sort by numbers that look random: splitmix64.
    order.sort_by_cached_key(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    });
    order
}

/// How long an agent is left alone after its start, before something is measured.
const SETTLE: Duration = Duration::from_millis(500);

/// Makes `count` files of `size` bytes, each with content of its own.
fn fill(dir: &Path, count: usize, size: usize) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    (0..count)
        .map(|number| {
            let path = dir.join(format!("app-{number:03}.conf"));
            fs::write(&path, content(number, size)).with_context(|| path.display().to_string())?;
            Ok(path)
        })
        .collect()
}

/// Something like a config, told from every other by its number.
fn content(number: usize, size: usize) -> Vec<u8> {
    let line = format!("key_{number} = \"value {number}\"\n");
    line.bytes().cycle().take(size).collect()
}

/// This thread on one core; dropped, on those where it was before.
struct Pinned(rustix::thread::CpuSet);

impl Pinned {
    /// Pins this thread to the last core that it may use.
    fn to_last() -> Result<Self> {
        let before = rustix::thread::sched_getaffinity(None)?;
        let last = (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|cpu| before.is_set(*cpu));
        let mut only = rustix::thread::CpuSet::new();
        only.set(last.context("no processor")?);
        rustix::thread::sched_setaffinity(None, &only)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = rustix::thread::sched_setaffinity(None, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{content, shuffled};

    #[test]
    fn every_order_has_all_and_they_differ() {
        let orders: Vec<_> = (0..20).map(|round| shuffled(round, 8)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..8).collect::<Vec<_>>());
        }
        assert!(orders.windows(2).all(|pair| pair[0] != pair[1]));
        assert!((0..8).all(|one| orders.iter().any(|order| order[0] == one)), "each comes first some time");
        assert_eq!(shuffled(3, 8), orders[3]);
    }

    #[test]
    fn contents_differ() {
        assert_eq!(content(1, 4096).len(), 4096);
        assert_ne!(content(1, 4096), content(2, 4096));
    }
}
