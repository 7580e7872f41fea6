//! A 4 KiB config is changed behind its owner's back: how long until its path reads as it should again.
//!
//! This process writes and then reads the path over and over, without a pause: another core than the one where
//! the repair happens. Each file is changed once, since a change that keeps coming back is a fight, which Grace
//! leaves to people.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::agent::{self, Agent};
use super::guard::{Guard, Scratch, wait_until};
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, content, fill, ms, now_ns, peers, say};

const SIZE: usize = 4096;
const CONFIG: &str = "[policy]\nhost_burst = 100000\n";
/// Not restored within this time is not restored.
const LIMIT_NS: i64 = 5_000_000_000;
/// Between one change and the next.
const PAUSE: Duration = Duration::from_millis(5);
/// After one that is still syncing when its file is as it was, which would slow the next one down.
const PAUSE_SYNC: Duration = Duration::from_millis(25);
const FLOOR: &str = "(no repair: write + fsync + rename by this process alone)";
const ALONE: &str = "Grace alone";
const GRACE: [&str; 2] = ["Grace", "Grace, file replaced"];

/// Who restores files, and how quickly so far.
struct Contender {
    who: String,
    /// Changed by renaming another file over it, as `sed -i` does, rather than in place.
    renamed: bool,
    files: Vec<PathBuf>,
    next: usize,
    found: Samples,
    missed: u32,
    pause: Duration,
    _running: Vec<Guard>,
}

impl Contender {
    fn new(who: &str, renamed: bool, files: Vec<PathBuf>, running: Vec<Guard>) -> Self {
        let (who, found) = (who.to_owned(), Samples::default());
        let pause = if who.contains(" sync ") { PAUSE_SYNC } else { PAUSE };
        Self { who, renamed, files, next: 0, found, missed: 0, pause, _running: running }
    }

    /// Changes the next file and waits until it is as before.
    fn once(&mut self, aside: &Path) -> Result<()> {
        let Some(path) = self.files.get(self.next) else { return Ok(()) };
        self.next += 1;
        let good = fs::read(path).with_context(|| path.display().to_string())?;
        match restored(path, &good, self.renamed.then_some(aside))? {
            Some(ns) => self.found.push(ms(ns)),
            None => self.missed += 1,
        }
        thread::sleep(self.pause);
        Ok(())
    }

    fn row(self) -> (Row, Option<String>) {
        let missed =
            (self.missed > 0).then(|| format!("{}: {} changes were not restored.", self.who, self.missed));
        let row = Row::new(&self.who, self.found);
        let base = GRACE[usize::from(self.renamed)];
        let row = if self.who == base { row } else { row.beside(base) };
        (row, missed)
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("drift")?;
    let rounds = bench.rounds(300, 40);
    let count = usize::try_from(rounds)?;
    let (agent, mut files) = agent::with_files(&bench.grace, &scratch, CONFIG, 3 * count, SIZE)?;
    let third = files.split_off(2 * count);
    let second = files.split_off(count);
    let own = third.clone();
    let aside = scratch.dir("rename")?;
    // First with nothing else about: what syncs beside it, syncs with it.
    let mut alone = Contender::new(ALONE, false, third, vec![]);
    let mut alone_floor = Samples::default();
    {
        let _pinned = super::Pinned::to_last()?;
        say("drift: Grace alone");
        for _ in 0..rounds {
            alone.once(&aside)?;
            alone_floor.push(written_durably(&aside)?);
            thread::sleep(PAUSE);
        }
    }
    let mut all = vec![Contender::new(GRACE[0], false, files, vec![])];
    all.push(Contender::new(GRACE[1], true, second, vec![]));
    let mut absent = Vec::new();
    for (who, renamed, durable) in [
        ("inotifywait + cp + mv", false, false),
        ("inotifywait + cp + sync + mv + sync", false, true),
        ("inotifywait + cp + mv, file replaced", true, false),
        ("inotifywait + cp + sync + mv + sync, file replaced", true, true),
    ] {
        match shell(&scratch, who, renamed, durable, count) {
            Ok(shell) => all.push(shell),
            Err(err) => absent.push(Row::missing(who, format!("{err:#}"))),
        }
    }
    match monit(&scratch, usize::try_from(bench.rounds(5, 3))?) {
        Ok(monit) => all.push(monit),
        Err(err) => absent.push(Row::missing(MONIT, format!("{err:#}"))),
    }
    // The peers say nothing when they are ready.
    thread::sleep(Duration::from_millis(1500));
    // What was started runs where it likes, this stays where it is.
    let pinned = super::Pinned::to_last()?;
    let mut floor = Samples::default();
    for round in 0..rounds {
        if round % 100 == 0 {
            say(&format!("drift: round {round} of {rounds}"));
        }
        for at in super::shuffled(round, all.len() + 1) {
            if let Some(one) = all.get_mut(at) {
                one.once(&aside)?;
            } else {
                floor.push(written_durably(&aside)?);
                thread::sleep(PAUSE);
            }
        }
    }
    drop(pinned);
    let mut table = Table::new("drift", "A 4 KiB config is changed: until its path reads as it should", "ms");
    table.row(Row::new(ALONE, alone.found).target("median < 1.5, p99 < 6"));
    table.row(Row::new("Grace alone, until it is also on disk", durable(&agent, &own)?).beside(ALONE));
    table.row(Row::new(FLOOR, alone_floor).beside(ALONE));
    for contender in all {
        let (row, missed) = contender.row();
        table.row(row);
        missed.into_iter().for_each(|missed| table.note(missed));
    }
    absent.into_iter().for_each(|row| table.row(row));
    table.row(Row::new(FLOOR, floor).beside(GRACE[0]));
    table.note(
        "Grace syncs what it restores before the path shows it. \"On disk\" is its own figure (`repaired_us`): from \
         the kernel's event to the end of the repair, its folder synced too. The loops without `sync` may lose what \
         they restored when the power fails. Behind the first three rows all of them ran at the same time, each with \
         files of its own, and were asked in another order each round: what the others leave unsynced, whoever syncs \
         next pays for.",
    );
    table.note(peers::versions(&["inotify-tools", "coreutils", "monit"]));
    Ok(table)
}

const MONIT: &str = "Monit, every 1 s";

fn shell(scratch: &Scratch, who: &str, renamed: bool, durable: bool, count: usize) -> Result<Contender> {
    let name = format!("loop-{}-{}", u8::from(renamed), u8::from(durable));
    let dir = scratch.dir(&name)?;
    let (watched, good) = (dir.join("etc"), dir.join("good"));
    let files = fill(&watched, count, SIZE)?;
    fill(&good, count, SIZE)?;
    let running = peers::shell_loop(&dir, &watched, &good, renamed, durable)?;
    Ok(Contender::new(who, renamed, files, running.into()))
}

fn monit(scratch: &Scratch, count: usize) -> Result<Contender> {
    let dir = scratch.dir("monit")?;
    let files = fill(&dir.join("etc"), count, SIZE)?;
    fill(&dir.join("good"), count, SIZE)?;
    let running = peers::monit(&dir, &peers::monit_files(&dir.join("good"), &files))?;
    Ok(Contender::new(MONIT, false, files, vec![running]))
}

/// Changes `path` and returns how long it took until it was `good` again. With a folder `aside` another file is
/// renamed over it.
fn restored(path: &Path, good: &[u8], aside: Option<&Path>) -> Result<Option<i64>> {
    let bad: Vec<u8> = content(999_999, good.len());
    let began = match aside {
        None => {
            let file = OpenOptions::new().write(true).open(path)?;
            let began = now_ns();
            file.write_all_at(&bad, 0)?;
            began
        }
        Some(aside) => {
            let other = aside.join("new");
            fs::write(&other, &bad)?;
            let began = now_ns();
            fs::rename(&other, path)?;
            began
        }
    };
    let mut seen = vec![0; good.len()];
    loop {
        let file = fs::File::open(path)?;
        let same = file.read_at(&mut seen, 0)? == good.len() && seen == good;
        let took = now_ns() - began;
        if same {
            return Ok(Some(took));
        }
        if took > LIMIT_NS {
            // The next one finds it as it should be.
            fs::write(path, good)?;
            return Ok(None);
        }
    }
}

/// What the disk alone takes for a file of this size that is synced and put in place, in milliseconds.
fn written_durably(dir: &Path) -> Result<f64> {
    let (temp, path) = (dir.join("floor.new"), dir.join("floor"));
    let began = now_ns();
    fs::write(&temp, content(0, SIZE))?;
    fs::File::open(&temp)?.sync_all()?;
    fs::rename(&temp, &path)?;
    Ok(ms(now_ns() - began))
}

/// What the agent says of its repairs of `files`.
fn durable(agent: &Agent, files: &[PathBuf]) -> Result<Samples> {
    let mut found = Samples::default();
    wait_until("a firing with `repaired_us` for each file", Duration::from_secs(5), || {
        let Ok(firings) = agent.firings() else { return false };
        let ours = firings.iter().filter(|firing| {
            let name = firing["subject"]["name"].as_str().unwrap_or_default();
            files.iter().any(|file| file.as_path() == Path::new(name))
        });
        found = ours.filter_map(|firing| firing["repaired_us"].as_f64()).map(|us| us / 1e3).collect();
        found.len() >= files.len()
    })
    .or_else(|err| if found.len() == 0 { bail!("{err:#}") } else { Ok(()) })?;
    Ok(found)
}
