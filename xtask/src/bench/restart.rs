//! A supervised process is killed: how long until it runs again.
//!
//! What is supervised is a small C program that, as the first thing it does, takes the time and appends it with
//! its pid to a file where it was started. Everyone starts it directly, in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::agent::Agent;
use super::guard::{Guard, Scratch, log_of, program, signal, spawn, wait_until};
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, ms, now_ns, peers, say};
use crate::process;

/// runsv makes a process wait that did not live for a second.
const LIVES_NS: i64 = 1_250_000_000;
const LIMIT: Duration = Duration::from_secs(10);
/// Monit, who takes his time, is asked in one round of so many.
const MONIT_EVERY: u32 = 4;
const GRACE: &str = "Grace";
const MONIT: &str = "Monit, every 1 s";

/// Ends by itself, in case that nobody is left to end it.
const SOURCE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char line[64];
    int length = snprintf(line, sizeof line, "%d %lld\n", (int)getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
    int file = open("stamps", O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0 || write(file, line, length) != length) return 1;
    close(file);
    alarm(900);
    for (;;) pause();
}
"#;

/// A supervisor with its process.
struct Supervisor {
    who: &'static str,
    dir: PathBuf,
    running: Option<Guard>,
    found: Samples,
}

impl Supervisor {
    fn start(who: &'static str, dir: PathBuf, tick: &Path, start: Start<'_>) -> Result<Self> {
        let running = start(&dir, tick).map(Some)?;
        let this = Self { who, dir, running, found: Samples::default() };
        let began = wait_until("a first start", LIMIT, || this.last().is_some());
        began.with_context(|| log_of(&this.dir.join("log")))?;
        Ok(this)
    }

    /// The process that was started last, and when it ran.
    fn last(&self) -> Option<(u32, i64)> {
        let text = fs::read_to_string(self.dir.join("stamps")).ok()?;
        let line = text.strip_suffix('\n')?.lines().last()?;
        let (pid, stamp) = line.split_once(' ')?;
        Some((pid.parse().ok()?, stamp.parse().ok()?))
    }

    /// Kills the process once it has lived long enough, and waits for the next.
    fn once(&mut self) -> Result<()> {
        let (pid, since) = self.last().context("no process")?;
        let left = LIVES_NS - (now_ns() - since);
        thread::sleep(Duration::from_nanos(u64::try_from(left).unwrap_or(0)));
        let killed = now_ns();
        signal(pid, Signal::KILL);
        wait_until("a new process", LIMIT, || self.last().is_some_and(|(new, _)| new != pid))?;
        let (_, stamp) = self.last().context("no process")?;
        self.found.push(ms(stamp - killed));
        Ok(())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.running = None;
        // Some leave their processes running. Only ours has this program.
        if let Some((pid, _)) = self.last() {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if exe.starts_with(&self.dir) {
                signal(pid, Signal::KILL);
            }
        }
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("restart")?;
    let tick = compile(scratch.path())?;
    let grace = |dir: &Path, tick: &Path| grace(&bench.grace, dir, tick);
    let starts: [(&'static str, Start<'_>); 5] =
        [(GRACE, &grace), ("runit", &runit), ("s6", &s6), ("supervisord", &supervisord), (MONIT, &monit)];
    let mut all = Vec::new();
    for (number, (who, start)) in starts.into_iter().enumerate() {
        let dir = scratch.dir(&format!("at-{number}"))?;
        // A copy each: what runs in a folder is of that folder.
        let own = dir.join("run");
        fs::copy(&tick, &own)?;
        match Supervisor::start(who, dir, &own, start) {
            Ok(supervisor) => all.push(Ok(supervisor)),
            Err(err) if who == GRACE => return Err(err),
            Err(err) => all.push(Err(Row::missing(who, format!("{err:#}")))),
        }
    }
    let rounds = bench.rounds(30, 8);
    for round in 0..rounds {
        if round % 10 == 0 {
            say(&format!("restart: round {round} of {rounds}"));
        }
        let mut late = Vec::new();
        for (at, one) in all.iter_mut().enumerate() {
            let Ok(supervisor) = one else { continue };
            if supervisor.who == MONIT && round % MONIT_EVERY != 0 {
                continue;
            }
            if let Err(err) = supervisor.once() {
                late.push((at, Row::missing(supervisor.who, format!("round {round}: {err:#}"))));
            }
        }
        for (at, row) in late {
            all[at] = Err(row);
        }
    }
    let mut table = Table::new("restart", "A supervised process is killed: until it runs again", "ms");
    for one in all {
        match one {
            Err(row) => table.row(row),
            Ok(mut it) if it.who == GRACE => {
                table.row(Row::new(GRACE, std::mem::take(&mut it.found)).target("median < 3"));
            }
            Ok(mut it) => table.row(Row::new(it.who, std::mem::take(&mut it.found)).beside(GRACE)),
        }
    }
    table.note(
        "From just before `kill -9` to the first instructions of the new process, a statically linked C program \
         that everyone starts directly (Monit through `sh`). It had lived for 1.25 s each time, since runit holds \
         back one that did not live for a second. The others wait whatever it was: s6 (this version) a second \
         between an end and a start, supervisord for its next look, once a second. All of them ran at the same \
         time and were asked in turn.",
    );
    table.note(peers::versions(&["runit", "s6", "supervisor", "monit"]));
    Ok(table)
}

/// Starts a supervisor in a folder, for a program there.
type Start<'a> = &'a dyn Fn(&Path, &Path) -> Result<Guard>;

fn compile(dir: &Path) -> Result<PathBuf> {
    let (source, tick) = (dir.join("tick.c"), dir.join("tick"));
    fs::write(&source, SOURCE)?;
    let cc = |linked: &[&str]| {
        process::output(process::program("cc").args(["-O2", "-o"]).arg(&tick).arg(&source).args(linked))
    };
    cc(&["-static"]).or_else(|_| cc(&[]))?;
    Ok(tick)
}

fn grace(bin: &Path, dir: &Path, tick: &Path) -> Result<Guard> {
    let config = format!(
        "[policy]\nhost_burst = 100000\n\n[[process]]\nname = \"tick\"\ncommand = [{tick:?}]\ncwd = {dir:?}\n\
         burst = 100000\ninterval = \"10m\"\nbackoff = \"1ms\"\nbackoff_max = \"1ms\"\nstable = \"1ms\"\n"
    );
    Ok(Agent::start(bin, dir, &config)?.into_guard())
}

fn runit(dir: &Path, _: &Path) -> Result<Guard> {
    peer(peers::get("runsv", "runit")?, &[dir.as_os_str()], dir)
}

fn s6(dir: &Path, _: &Path) -> Result<Guard> {
    peer(peers::get("s6-supervise", "s6")?, &[dir.as_os_str()], dir)
}

fn supervisord(dir: &Path, tick: &Path) -> Result<Guard> {
    let supervisord = peers::get("supervisord", "supervisor")?;
    let config = dir.join("supervisord.conf");
    let (at, tick) = (dir.display(), tick.display());
    let text = format!(
        "[supervisord]\nnodaemon=true\nuser=root\nlogfile={at}/supervisord.log\npidfile={at}/pid\n\
         [program:tick]\ncommand={tick}\ndirectory={at}\nautorestart=true\nstartsecs=0\n"
    );
    fs::write(&config, text)?;
    peer(supervisord, &["-c".as_ref(), config.as_os_str()], dir)
}

fn monit(dir: &Path, tick: &Path) -> Result<Guard> {
    // It starts what goes into the background and writes its pid.
    let start = dir.join("start");
    let (at, tick) = (dir.display(), tick.display());
    fs::write(
        &start,
        format!("cd '{at}' || exit\n'{tick}' </dev/null >/dev/null 2>&1 &\necho $! >tick.pid\n"),
    )?;
    let check = format!(
        "check process tick with pidfile {at}/tick.pid\n  start program = \"/bin/sh {}\"\n",
        start.display()
    );
    peers::monit(dir, &check)
}

fn peer(program_: PathBuf, words: &[&std::ffi::OsStr], dir: &Path) -> Result<Guard> {
    let mut guard = spawn(program(program_).args(words), dir, &dir.join("log"))?;
    thread::sleep(Duration::from_millis(100));
    if !guard.is_running() {
        bail!("it ended: {}", log_of(&dir.join("log")));
    }
    Ok(guard)
}
