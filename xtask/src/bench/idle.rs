//! What the agent takes while nothing happens: processor and memory, with 20 files and 2 processes to look after.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::agent::Agent;
use super::guard::{Guard, Scratch, signal};
use super::report::{Row, Table};
use super::{Bench, fill, now_ns, peers, say};

/// Who looks after what, and what it has taken.
struct Keeper {
    who: &'static str,
    pid: u32,
    since: i64,
    ticks_before: f64,
    /// What each thread had run when last looked at, in nanoseconds.
    threads: BTreeMap<OsString, f64>,
    /// What they have run together since the first look.
    ran: f64,
}

impl Keeper {
    fn new(who: &'static str, pid: u32) -> Result<Self> {
        let threads = threads(pid)?;
        Ok(Self { who, pid, since: now_ns(), ticks_before: ticks(pid)?, threads, ran: 0.0 })
    }

    /// Adds what its threads have run since the last look. Often enough, little of a thread that ends is missed.
    fn look(&mut self) -> Result<()> {
        let now = threads(self.pid)?;
        for (thread, ran) in &now {
            self.ran += ran - self.threads.get(thread).unwrap_or(&0.0);
        }
        self.threads = now;
        Ok(())
    }

    /// Its rows: % of one core, MiB now and at most.
    fn rows(&mut self, table: &mut Table) -> Result<()> {
        self.look()?;
        #[expect(clippy::cast_precision_loss, reason = "a minute in nanoseconds has no 53 bits")]
        let wall = (now_ns() - self.since) as f64;
        let by_ticks = (ticks(self.pid)? - self.ticks_before) / wall * 100.0;
        for (what, value, target) in [
            ("% of a core", self.ran / wall * 100.0, Some("< 0.2")),
            ("% of a core, counted in ticks", by_ticks, None),
            ("MiB resident (VmRSS)", memory(self.pid, "VmRSS:")?, Some("< 30")),
            ("MiB resident at most, since its start (VmHWM)", memory(self.pid, "VmHWM:")?, None),
        ] {
            let row = Row::new(format!("{}: {what}", self.who), [value].into_iter().collect());
            table.row(match target {
                _ if self.who != GRACE => row.beside(&format!("{GRACE}: {what}")),
                Some(target) => row.target(target),
                None => row,
            });
        }
        Ok(())
    }
}

const GRACE: &str = "Grace";
const MONIT: &str = "Monit, every 1 s";
const CONFIG: &str = "[[process]]\nname = \"one\"\ncommand = [\"/bin/sleep\", \"900\"]\n\n\
                      [[process]]\nname = \"two\"\ncommand = [\"/bin/sleep\", \"900\"]\n";

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("idle")?;
    let (etc, good) = (scratch.dir("etc")?, scratch.dir("good")?);
    let files = fill(&etc, 20, 4096)?;
    fill(&good, 20, 4096)?;
    let agent = Agent::start(&bench.grace, &scratch.dir("grace")?, CONFIG)?;
    agent.own(&files)?;
    let processes = Processes::of(&agent.status()?)?;
    let monit = monit(&scratch, &good, &files, &processes);
    let seconds = bench.rounds(60, 15);
    // Both have begun, and what a start costs is over.
    thread::sleep(Duration::from_secs(3));
    let mut keepers = vec![Keeper::new(GRACE, agent.pid())?];
    if let Ok(monit) = &monit {
        keepers.push(Keeper::new(MONIT, monit.pid())?);
    }
    say(&format!("idle: {seconds} s of nothing"));
    for _ in 0..seconds {
        thread::sleep(Duration::from_secs(1));
        keepers.iter_mut().try_for_each(Keeper::look)?;
    }
    let mut table = Table::new(
        "idle",
        "Nothing happens to 20 files and 2 processes: what looking after them takes",
        "value",
    );
    for keeper in &mut keepers {
        keeper.rows(&mut table)?;
    }
    if let Err(err) = monit {
        table.row(Row::missing(MONIT, format!("{err:#}")));
    }
    let status = agent.status()?;
    table.note(format!(
        "Over {seconds} s, both at the same time, by the scheduler's count of each thread's nanoseconds. The work of \
         the probes is done by whom they see, not by the agent; its status says: {}.",
        status["cost"]
    ));
    table.note(peers::versions(&["monit"]));
    agent.stop();
    drop(processes);
    Ok(table)
}

fn monit(scratch: &Scratch, good: &Path, files: &[PathBuf], processes: &Processes) -> Result<Guard> {
    let dir = scratch.dir("monit")?;
    let mut checks = peers::monit_files(good, files);
    for (number, pid) in processes.0.iter().enumerate() {
        let file = dir.join(format!("process-{number}"));
        fs::write(&file, format!("{pid}\n"))?;
        checks += &format!("check process process-{number} with pidfile {}\n", file.display());
    }
    peers::monit(&dir, &checks)
}

/// Those that the agent supervises; they would outlive it.
struct Processes(Vec<u32>);

impl Processes {
    fn of(status: &Value) -> Result<Self> {
        let pids = status["processes"].as_array().into_iter().flatten();
        let pids: Vec<u32> = pids.filter_map(|one| u32::try_from(one["pid"].as_u64()?).ok()).collect();
        let this = Self(pids);
        if this.0.len() != 2 {
            bail!("{} of 2 processes run", this.0.len());
        }
        Ok(this)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for &pid in &self.0 {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if words == b"/bin/sleep\x00900\x00" {
                signal(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// How long each thread of a process has run, in nanoseconds.
fn threads(pid: u32) -> Result<BTreeMap<OsString, f64>> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("is it running?")? {
        let task = task?;
        // It may just have ended.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let ran = text.split(' ').next().and_then(|ns| ns.parse().ok()).context("schedstat")?;
        found.insert(task.file_name(), ran);
    }
    Ok(found)
}

/// All of them by the coarser count of /proc/PID/stat, which has those that have ended too.
pub(super) fn ticks(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = text.rfind(')').map_or("", |at| &text[at + 1..]);
    let fields: Vec<f64> = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
    let [user, system] = fields[..] else { bail!("/proc/{pid}/stat: {text}") };
    #[expect(clippy::cast_precision_loss, reason = "it is 100")]
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok((user + system) / per_second * 1e9)
}

/// A figure of /proc/PID/status, in MiB.
fn memory(pid: u32, what: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib =
        text.lines().find_map(|line| line.strip_prefix(what)?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {what} in /proc/{pid}/status"))? / 1024.0)
}
