//! What an 8-byte write costs more while the agent runs: to a file that it does not own, in a folder where it owns
//! nothing and beside a file that it does own; and to a file that it does own.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::agent::Agent;
use super::guard::Scratch;
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, Pinned, agent, now_ns, say};

const WITHOUT: &str = "pwrite, no Grace";
const WITH: &str = "pwrite, Grace runs, nothing owned in the folder";
const OWNED: &str = "pwrite to an owned file, Grace observes";
const BESIDE: &str = "pwrite, Grace runs, beside an owned file";

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let base = Scratch::new("write")?;
    let (calls, pieces) = (bench.rounds(200_000, 100_000), 10);
    let rounds = bench.rounds(8, 5);
    let mut found: [Samples; 4] = Default::default();
    let mut added: [Samples; 3] = Default::default();
    for round in 0..rounds {
        say(&format!("write: round {round} of {rounds}"));
        let far = target(&base.dir("elsewhere")?)?;
        let without = per_write(&far, calls, pieces)?;
        let scratch = Scratch::new(&format!("write-{round}"))?;
        let (agent, owned) = agent::with_files(&bench.grace, &scratch, "", 20, 4096)?;
        std::thread::sleep(super::SETTLE);
        let with = per_write(&far, calls, pieces)?;
        let near = target(owned.first().and_then(|file| file.parent()).context("no files")?)?;
        let beside = per_write(&near, calls, pieces)?;
        agent.stop();
        let (bare, watched) = per_owned_write(bench, &base, round, calls, pieces)?;
        found[0].push(without);
        found[1].push(with);
        found[2].push(beside);
        found[3].push(watched);
        added[0].push(with - without);
        added[1].push(beside - without);
        added[2].push(watched - bare);
    }
    let [without, with, beside, watched] = found;
    let [added_far, added_near, added_watched] = added;
    let mut table = Table::new(
        "write",
        "An 8-byte write, to files that Grace does not own and to one that it does",
        "ns",
    );
    table.row(Row::new(WITHOUT, without));
    table.row(Row::new(WITH, with).beside(WITHOUT));
    table.row(Row::new("added", added_far));
    table.row(Row::new(BESIDE, beside).beside(WITHOUT));
    table.row(Row::new("added beside an owned file", added_near));
    table.row(Row::new(OWNED, watched).beside(WITHOUT));
    table.row(Row::new("added to an owned file", added_watched));
    table.note(format!(
        "Pinned to one core; {rounds} rounds of starting and stopping Grace with 20 owned files, each the fastest of \
         {pieces} times {calls} writes at the same place of an open file. The owned file is written to under an agent that only observes, and \
         what is added is to the same file before: \
         one that repairs would replace it, and later writes would go to a file that it no longer owns."
    ));
    Ok(table)
}

/// Nanoseconds for one write to a file before an agent owns it, and after: it sees that the file drifts and leaves
/// it as it is.
fn per_owned_write(bench: &Bench, base: &Scratch, round: u32, calls: u32, pieces: u32) -> Result<(f64, f64)> {
    let dir = base.dir(&format!("owned-{round}"))?;
    let files = super::fill(&dir.join("etc"), 20, 4096)?;
    let path = files.first().context("no files")?;
    let file = OpenOptions::new().write(true).open(path).with_context(|| path.display().to_string())?;
    let bare = per_write(&file, calls, pieces)?;
    let agent = Agent::start_in("observe", &bench.grace, &dir.join("grace"), "")?;
    agent.own(&files)?;
    std::thread::sleep(super::SETTLE);
    let watched = per_write(&file, calls, pieces)?;
    agent.stop();
    Ok((bare, watched))
}

/// A file to write to.
fn target(dir: &Path) -> Result<File> {
    let path = dir.join("written");
    fs::write(&path, [0; 4096]).with_context(|| path.display().to_string())?;
    OpenOptions::new().write(true).open(&path).with_context(|| path.display().to_string())
}

/// Nanoseconds for one write: of the fastest piece.
fn per_write(file: &File, calls: u32, pieces: u32) -> Result<f64> {
    let pinned = Pinned::to_last()?;
    let fastest = super::fastest(pieces, || {
        let began = now_ns();
        for _ in 0..calls {
            file.write_all_at(b"8 bytes!", 0)?;
        }
        Ok(super::per(now_ns() - began, calls))
    });
    drop(pinned);
    fastest
}
