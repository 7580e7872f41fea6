//! How much longer real programs take while Grace runs, and how small a difference this machine can tell.
//!
//! Each round runs a program three times: twice without Grace and once with it. What the two without differ is
//! noise, and so is whatever of the difference with Grace is no larger.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::agent::Agent;
use super::guard::{Guard, Scratch, log_of, program, spawn, wait_until};
use super::report::{Row, Table};
use super::stats::{Samples, short};
use super::{Bench, brief, ms, now_ns, peers, say};
use crate::places::on_path;
use crate::process;

/// A server answers within this time, or is not coming.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is run, and whatever must run beside it.
struct Work {
    command: Box<dyn Fn() -> Command>,
    _server: Option<Guard>,
}

/// How one is made, in a folder of its own.
type Make = fn(&Bench, &Path) -> Result<Work>;

const WORKS: [(&str, Make); 3] =
    [("cc", compile), ("tar of many small files", pack), ("redis-benchmark, unix socket", redis)];

/// What was found of one.
#[derive(Default)]
struct Found {
    /// Milliseconds without Grace, and with it.
    without: Samples,
    with: Samples,
    /// How much longer it took with Grace, and a second time without, in %.
    slower: Samples,
    again: Samples,
}

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("program")?;
    let rounds = bench.rounds(15, 5);
    let mut table = Table::new("program", "Real programs, with and without Grace", "value");
    let mut spreads = Vec::new();
    for (number, (name, make)) in WORKS.into_iter().enumerate() {
        say(&format!("program: {name}, {rounds} rounds"));
        let dir = scratch.dir(&format!("work-{number}"))?;
        let slower = format!("{name}: longer with Grace, %");
        let work = match make(bench, &dir) {
            Ok(work) => work,
            Err(err) => {
                table.row(Row::missing(slower, brief(&err)));
                continue;
            }
        };
        let found = compare(bench, &work, &dir, rounds).with_context(|| name)?;
        let (without, with) = (format!("{name}: ms without Grace"), format!("{name}: ms with Grace"));
        spreads.extend(spread(name, &found));
        table.row(Row::new(&without, found.without));
        table.row(Row::new(with, found.with).beside(&without));
        table.row(Row::new(slower, found.slower));
        table.row(Row::new(format!("{name}: longer a second time without Grace, %"), found.again));
    }
    table.note(format!(
        "{rounds} rounds of three runs (without Grace, with it, without it again) in another order each time; the \
         percentages are of the runs of one round, and a first run is not counted. {}",
        spreads.join(" ")
    ));
    table.note(peers::versions(&["redis-server", "tar", "gcc"]));
    Ok(table)
}

/// Runs it `rounds` times in each of three ways.
fn compare(bench: &Bench, work: &Work, dir: &Path, rounds: u32) -> Result<Found> {
    let mut found = Found::default();
    once(work)?;
    for round in 0..rounds {
        let mut took = [0.0; 3];
        for at in super::shuffled(round, took.len()) {
            // Where nothing runs, nothing is waited for; what follows an agent's end waits for the end to be over.
            let agent = if at == 1 {
                Some(Agent::start(&bench.grace, &dir.join(format!("grace-{round}")), "")?)
            } else {
                None
            };
            std::thread::sleep(super::SETTLE);
            took[at] = once(work)?;
            drop(agent);
        }
        let [without, with, again] = took;
        found.without.push(without);
        found.with.push(with);
        found.slower.push((with / without - 1.0) * 100.0);
        found.again.push((again / without - 1.0) * 100.0);
    }
    Ok(found)
}

/// Milliseconds for one run.
fn once(work: &Work) -> Result<f64> {
    let mut command = (work.command)();
    let began = now_ns();
    process::output(&mut command)?;
    Ok(ms(now_ns() - began))
}

/// How far the percentages lie apart, and what follows.
fn spread(name: &str, found: &Found) -> Option<String> {
    let (low, high) = found.slower.quartiles()?;
    let (quiet, loud) = found.again.quartiles()?;
    let told = (loud - quiet) / 2.0;
    Some(format!(
        "{name}: half of the rounds were {} to {} % longer with Grace, and {} to {} % without it, so differences \
         of less than about {} % cannot be told here.",
        short(low),
        short(high),
        short(quiet),
        short(loud),
        short(told.max(found.again.median()?.abs()))
    ))
}

/// A compiler: much computing, few calls.
fn compile(bench: &Bench, dir: &Path) -> Result<Work> {
    let cc = on_path("cc").context("there is no cc")?;
    let source = dir.join("many.c");
    let mut text = String::new();
    for number in 0..bench.rounds(3000, 1000) {
        let _ = writeln!(
            text,
            "int f{number}(int *a, int n) {{ int s = {number}; for (int i = 0; i < n; i++) s += a[i] * (i ^ s); \
             return s; }}"
        );
    }
    fs::write(&source, text).with_context(|| source.display().to_string())?;
    let out = dir.join("many.o");
    Ok(plain(move || {
        let mut command = process::program(&cc);
        command.args(["-O1", "-c", "-o"]).arg(&out).arg(&source);
        command
    }))
}

/// An archiver: hardly anything but calls.
fn pack(bench: &Bench, dir: &Path) -> Result<Work> {
    let tar = on_path("tar").context("there is no tar")?;
    let tree = dir.join("tree");
    for part in 0..bench.rounds(50, 20) {
        super::fill(&tree.join(part.to_string()), 200, 1024)?;
    }
    Ok(plain(move || {
        let mut command = process::program(&tar);
        // Not /dev/null: tar knows that one and would read no file.
        // Again and again: once is over before a difference could be told.
        command.args(["-c", "-f", "/dev/zero", "-C"]).arg(&tree).args(["."; 20]);
        command
    }))
}

/// A server and its client on a local socket.
fn redis(bench: &Bench, dir: &Path) -> Result<Work> {
    let server = peers::get("redis-server", "redis-server")?;
    let client = peers::get("redis-benchmark", "redis-tools")?;
    let (socket, log): (PathBuf, _) = (dir.join("socket"), dir.join("log"));
    let mut command = program(server);
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
    let mut server = spawn(&mut command, dir, &log)?;
    wait_until("redis-server listens", PATIENCE, || socket.exists() || !server.is_running())?;
    if !server.is_running() {
        bail!("redis-server does not run: {}", log_of(&log));
    }
    let requests = bench.rounds(200_000, 50_000).to_string();
    let command = Box::new(move || {
        let mut command = process::program(&client);
        command.arg("-s").arg(&socket).args(["-t", "get", "-c", "10", "-q", "-n", &requests]);
        command
    });
    Ok(Work { command, _server: Some(server) })
}

fn plain(command: impl Fn() -> Command + 'static) -> Work {
    Work { command: Box::new(command), _server: None }
}
