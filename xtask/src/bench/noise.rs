//! `cargo xtask noise`: a process that does nothing but the cheapest system call, for the benchmarks to watch.

use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Pinned, fastest, now_ns, per};

/// Calls between two looks at the clock where nothing else bounds them.
const BATCH: u64 = 1000;
/// Paced calls come in bursts this far apart.
const TICK_NS: i64 = 1_000_000;

/// Calls getppid: what the benchmarks put under watch.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Call this often, time it, print nanoseconds a call (of the fastest of --pieces)
    #[arg(long, conflicts_with_all = ["rate", "seconds"])]
    calls: Option<u32>,
    /// How often --calls is done
    #[arg(long, default_value_t = 1)]
    pieces: u32,
    /// Calls a second; 0: as many as there can be
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// For how long
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Do nothing for so long first
    #[arg(long, default_value_t = 0)]
    after_ms: u64,
    /// Where to say how many calls it were
    #[arg(long)]
    report: Option<PathBuf>,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if let Some(calls) = args.calls {
        println!("{}", per_call(calls, args.pieces)?);
        return Ok(ExitCode::SUCCESS);
    }
    thread::sleep(Duration::from_millis(args.after_ms));
    let made = paced(args.rate, args.seconds);
    if let Some(path) = &args.report {
        // Whoever waits for it must not read half of it.
        let part = path.with_extension("part");
        fs::write(&part, made.to_string()).with_context(|| part.display().to_string())?;
        fs::rename(&part, path).with_context(|| path.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Nanoseconds for one call: of the fastest piece, since everything else that runs here only makes it slower.
pub(super) fn per_call(calls: u32, pieces: u32) -> Result<f64> {
    let pinned = Pinned::to_last()?;
    let fastest = fastest(pieces, || {
        let began = now_ns();
        for _ in 0..calls {
            black_box(rustix::process::getppid());
        }
        Ok(per(now_ns() - began, calls))
    });
    drop(pinned);
    fastest
}

/// Calls `rate` times a second and says how many calls it were. A process that fell behind catches up one
/// burst and no more: it would then be faster than it was asked to be.
fn paced(rate: u64, seconds: u32) -> u64 {
    let began = now_ns();
    let end = began + i64::from(seconds) * 1_000_000_000;
    let mut made = 0;
    let mut filled = began;
    loop {
        let now = now_ns();
        if now >= end {
            return made;
        }
        if rate == 0 {
            call(BATCH);
            made += BATCH;
            continue;
        }
        let due = earned(rate, now - filled);
        if due > 0 {
            filled = now;
        }
        let burst = due.min(2 * earned(rate, TICK_NS).max(1));
        call(burst);
        made += burst;
        let next = now + TICK_NS - now_ns();
        thread::sleep(Duration::from_nanos(next.try_into().unwrap_or(0)));
    }
}

/// How many calls `rate` a second allows in `ns`.
fn earned(rate: u64, ns: i64) -> u64 {
    let ns = u128::try_from(ns).unwrap_or(0);
    u64::try_from(u128::from(rate) * ns / 1_000_000_000).unwrap_or(u64::MAX)
}

fn call(times: u64) {
    for _ in 0..times {
        black_box(rustix::process::getppid());
    }
}

#[cfg(test)]
mod tests {
    use super::{earned, paced};

    #[test]
    fn a_rate_is_what_is_earned() {
        assert_eq!(earned(1_000_000, 1_000_000), 1000);
        assert_eq!(earned(0, 1_000_000), 0);
        assert_eq!(earned(1_000, -5), 0);
    }

    #[test]
    fn no_faster_than_asked() {
        let made = paced(10_000, 1);
        assert!((1..=10_100).contains(&made), "{made}");
    }
}
