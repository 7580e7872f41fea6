//! What a system call costs more while somebody watches every one of them: Grace, the floor under it, its peers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::agent::Agent;
use super::empty_probe::{self, EmptyProbes};
use super::guard::{Guard, Scratch, log_of, program, spawn, wait_until};
use super::noise::per_call;
use super::report::{Row, Table};
use super::stats::{Samples, ratio, short};
use super::{Bench, brief, peers, say};
use crate::process;

/// A peer sees calls within this time, or never.
const PATIENCE: Duration = Duration::from_secs(30);
/// What has ended is out of the kernel after this long: detaching waits for whoever is within the probe.
const GONE: Duration = Duration::from_millis(200);

/// The time of each call by thread, as one would write it. It prints once a second: that shows that it sees calls,
/// and is over before most of the pieces that are timed begin.
const HISTOGRAM: &str = "tracepoint:raw_syscalls:sys_enter { @start[tid] = nsecs; } \
     tracepoint:raw_syscalls:sys_exit /@start[tid]/ { @ns = hist(nsecs - @start[tid]); delete(@start[tid]); } \
     interval:s:1 { print(@ns); }";

/// Who watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Nobody,
    Floor,
    HalfFloor,
    Grace,
    GraceFull,
    Syscount,
    Bpftrace,
    Strace,
}

impl Watcher {
    const ALL: [Self; 8] = [
        Self::Nobody,
        Self::Floor,
        Self::HalfFloor,
        Self::Grace,
        Self::GraceFull,
        Self::Syscount,
        Self::Bpftrace,
        Self::Strace,
    ];

    fn row(self) -> &'static str {
        match self {
            Self::Nobody => "getppid, nothing attached",
            Self::Floor => "added by two empty raw tracepoint programs: the floor",
            Self::HalfFloor => "added by one empty program, at the exit alone",
            Self::Grace => "added by Grace (one hook, at the exit)",
            Self::GraceFull => "added by Grace, latency = \"full\"",
            Self::Syscount => "added by syscount -L",
            Self::Bpftrace => "added by bpftrace, histogram of latencies",
            Self::Strace => "added by strace -c",
        }
    }

    /// Nanoseconds a call while it watches.
    fn measure(self, bench: &Bench, scratch: &Scratch, round: u32) -> Result<f64> {
        let (calls, pieces) = (bench.rounds(400_000, 200_000), 10);
        let dir = scratch.dir(&format!("{}-{round}", self as u8))?;
        let grace = |config: &str| -> Result<f64> {
            let agent = Agent::start(&bench.grace, &dir, config)?;
            std::thread::sleep(super::SETTLE);
            let found = per_call(calls, pieces);
            agent.stop();
            found
        };
        let empty = |tracepoints| -> Result<f64> {
            let probes = EmptyProbes::attach(tracepoints)?;
            let found = per_call(calls, pieces);
            drop(probes);
            found
        };
        match self {
            Self::Nobody => per_call(calls, pieces),
            Self::Floor => empty(empty_probe::BOTH),
            Self::HalfFloor => empty(empty_probe::EXIT),
            Self::Grace => grace(""),
            Self::GraceFull => grace("[probes]\nlatency = \"full\"\n"),
            Self::Syscount => {
                let mut command = program(peers::get("syscount-bpfcc", "bpfcc-tools")?);
                command.args(["-L", "-i", "1"]);
                watched_by(&mut command, &dir, "SYSCALL", || per_call(calls, pieces))
            }
            Self::Bpftrace => {
                let mut command = program(peers::get("bpftrace", "bpftrace")?);
                command.args(["-e", HISTOGRAM]);
                watched_by(&mut command, &dir, "|@", || per_call(calls, pieces))
            }
            // It stops its child at each call: a hundredth as many take long enough.
            Self::Strace => under_strace(calls / 100, pieces),
        }
    }
}

/// Measures while a peer runs, from when it has printed `proof`, which it does only once it has seen calls.
fn watched_by(
    command: &mut std::process::Command,
    dir: &Path,
    proof: &str,
    measure: impl FnOnce() -> Result<f64>,
) -> Result<f64> {
    let log = dir.join("log");
    // Python keeps what it prints into a file.
    let mut guard: Guard = spawn(command.env("PYTHONUNBUFFERED", "1"), dir, &log)?;
    let said = || fs::read_to_string(&log).unwrap_or_default().contains(proof);
    let seen = wait_until("it says that it sees calls", PATIENCE, || said() || !guard.is_running());
    if !guard.is_running() {
        bail!("it has ended: {}", log_of(&log));
    }
    seen.with_context(|| log_of(&log))?;
    let found = measure()?;
    if !guard.is_running() {
        bail!("it ended meanwhile: {}", log_of(&log));
    }
    Ok(found)
}

/// strace counts the calls of a child that times itself.
fn under_strace(calls: u32, pieces: u32) -> Result<f64> {
    let strace = peers::get("strace", "strace")?;
    let noise = std::env::current_exe().context("our own program")?;
    let mut command = program(strace);
    command.args(["-c", "-o", "/dev/null", "--"]).arg(noise).arg("noise");
    command.args(["--calls", &calls.to_string(), "--pieces", &pieces.to_string()]);
    let said = process::text(&mut command)?;
    said.parse().with_context(|| format!("no time: {said}"))
}

/// How many times one empty program at the same place Grace adds, in words.
fn own_floor(found: &[Samples]) -> String {
    let of = |watcher| {
        let at = Watcher::ALL.iter().position(|one| *one == watcher)?;
        found.get(at)?.median()
    };
    let times = of(Watcher::Grace).zip(of(Watcher::HalfFloor)).and_then(|(grace, floor)| ratio(grace, floor));
    times.map_or_else(|| "not known".to_owned(), |times| format!("{} ×", short(times)))
}

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("syscall")?;
    let rounds = bench.rounds(8, 5);
    let others = empty_probe::loaded();
    let mut found = Watcher::ALL.map(|_| Samples::default());
    // Why one could not be measured: it is not tried again.
    let mut missing = Watcher::ALL.map(|_| None);
    for round in 0..rounds {
        say(&format!("syscall: round {round} of {rounds}"));
        let mut this = Watcher::ALL.map(|_| None);
        for at in super::shuffled(round, Watcher::ALL.len()) {
            if missing[at].is_some() {
                continue;
            }
            match Watcher::ALL[at].measure(bench, &scratch, round) {
                Ok(ns) => this[at] = Some(ns),
                // Without these nothing can be said of the others.
                Err(err) if at < 2 => return Err(err.context(Watcher::ALL[at].row())),
                Err(err) => missing[at] = Some(brief(&err)),
            }
            std::thread::sleep(GONE);
        }
        let bare = this[0].context("nothing attached was not measured")?;
        for (at, ns) in this.into_iter().enumerate() {
            let base = if Watcher::ALL[at] == Watcher::Nobody { 0.0 } else { bare };
            found[at].extend(ns.map(|ns| ns - base));
        }
    }
    let of_one_hook = own_floor(&found);
    let mut table =
        Table::new("syscall", "The cheapest system call, and what each watcher of all calls adds", "ns");
    for ((watcher, samples), why) in Watcher::ALL.into_iter().zip(found).zip(missing) {
        let row = match why {
            Some(why) => Row::missing(watcher.row(), why),
            None => Row::new(watcher.row(), samples),
        };
        table.row(match watcher {
            Watcher::Nobody | Watcher::Floor => row,
            _ => row.beside(Watcher::Floor.row()),
        });
    }
    table.note(format!(
        "Pinned to one core; {rounds} rounds, each with all of them in another order, each the fastest of 10 times \
         {} calls (strace: a hundredth of that) less the same round's with nothing attached. So Grace's figure has \
         its counting hook and not the seconds in which latencies are sampled too. No call can be hit harder than \
         this one, which does nothing. Ratios are to what the floor of two hooks adds. By default Grace hooks the \
         exit alone, so less than 1 there is no gain on an empty program: to one empty program at the exit its \
         ratio is {of_one_hook}.",
        bench.rounds(400_000, 200_000)
    ));
    table.note(match others {
        Ok(0) => "No BPF program was loaded before.".to_owned(),
        Ok(count) => format!(
            "{count} BPF programs of others were loaded before: where they watch calls, no row is without them."
        ),
        Err(err) => format!("Which BPF programs were loaded before is not known: {err:#}."),
    });
    table.note(peers::versions(&["bpfcc-tools", "bpftrace", "strace"]));
    Ok(table)
}
