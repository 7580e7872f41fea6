//! What is kept: how long snapshots and their verification take, beside tools that hash or copy the same files; and a
//! thousand files that one `sed -i` changes, until all of them are as they were.
//!
//! Everything is read from the page cache, by Grace as by its peers; what is kept is synced.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::agent::{self, Agent};
use super::guard::Scratch;
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, brief, content, say};
use crate::places::on_path;
use crate::process;

const TAKE: &str = "Grace, snapshot of the tree";
const VERIFY: &str = "Grace, verify of the tree";
const LARGE_TAKE: &str = "Grace, snapshot of one file of 64 MiB";
const LARGE_VERIFY: &str = "Grace, verify of one file of 64 MiB";
const SED: &str = "Grace, 1,000 files changed by one `sed -i`, from its end until all are restored";

/// Files in one folder of the tree.
const FOLDER: usize = 500;
/// Files that one request names.
const AT_ONCE: usize = 4000;
/// As large as a config may be.
const LARGE: usize = 64 << 20;
/// Files that are changed at once.
const CHANGED: usize = 1000;
/// Not restored within this time is not restored.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("store")?;
    let count = usize::try_from(bench.rounds(100_000, 5_000))?;
    let tree = scratch.dir("tree")?;
    let files = make(&tree, count)?;
    let large = scratch.dir("large")?.join("large.conf");
    fs::write(&large, content(7, LARGE)).with_context(|| large.display().to_string())?;
    let list = scratch.path().join("list");
    let names: Vec<&[u8]> = files.iter().map(|path| path.as_os_str().as_bytes()).collect();
    fs::write(&list, names.join(&0)).with_context(|| list.display().to_string())?;

    let mut took: [Samples; 7] = Default::default();
    let mut peers: Vec<(String, &str, Result<Samples>)> = Vec::new();
    for round in 0..bench.rounds(3, 2) {
        say(&format!("store: round {round}"));
        let agent = Agent::start(&bench.grace, &scratch.dir(&format!("grace-{round}"))?, "")?;
        took[0].push(timed(|| files.chunks(AT_ONCE).try_for_each(|some| agent.own(some)))?);
        took[1].push(timed(|| agent.ask(&["--quiet", "verify"]).map(drop))?);
        took[2].push(timed(|| agent.own(std::slice::from_ref(&large)))?);
        let name = large.to_str().context("the folder for temporary files is not UTF-8")?;
        took[3].push(timed(|| agent.ask(&["--quiet", "verify", name]).map(drop))?);
        agent.stop();
        took[4].push(timed(|| sums(&list))?);
        took[5].push(timed(|| process::output(process::program("sha256sum").arg(&large)).map(drop))?);
    }
    peers.push(("restic, backup of the tree".to_owned(), TAKE, restic(&scratch, &tree)));
    peers.push(("AIDE, database of the tree made".into(), TAKE, aide(&scratch, &tree)));
    took[6] = changed_at_once(bench, &scratch)?;

    let [take, verify, large_take, large_verify, sums, large_sum, sed] = took;
    let mut table =
        Table::new("store", "What is kept: snapshots, their verification, many restores at once", "s");
    table.row(Row::new(TAKE, take));
    table.row(Row::new(VERIFY, verify));
    table.row(Row::new("sha256sum, the tree", sums).beside(VERIFY));
    for (who, base, found) in peers {
        table.row(match found {
            Ok(found) => Row::new(who, found).beside(base),
            Err(err) => Row::missing(who, brief(&err)),
        });
    }
    table.row(Row::new(LARGE_TAKE, large_take));
    table.row(Row::new(LARGE_VERIFY, large_verify));
    table.row(Row::new("sha256sum, one file of 64 MiB", large_sum).beside(LARGE_VERIFY));
    table.row(Row::new(SED, sed).target("< 1"));
    table.note(format!(
        "{count} files of 64 to 2048 bytes in the tree. A snapshot reads, hashes, writes and syncs each content and its \
         version; a verification hashes the file and what is kept of it. sha256sum hashes once and keeps nothing."
    ));
    Ok(table)
}

/// Seconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64())
}

fn make(tree: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let mut out = Vec::with_capacity(count);
    for number in 0..count {
        let folder = tree.join(format!("{:03}", number / FOLDER));
        if number % FOLDER == 0 {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let path = folder.join(format!("{number}.conf"));
        fs::write(&path, content(number, 64 + (number * 37) % 1985))
            .with_context(|| path.display().to_string())?;
        out.push(path);
    }
    Ok(out)
}

fn sums(list: &Path) -> Result<()> {
    let script = "exec xargs -0 sha256sum < \"$0\" > /dev/null";
    process::output(process::program("sh").args(["-c", script]).arg(list)).map(drop)
}

fn restic(scratch: &Scratch, tree: &Path) -> Result<Samples> {
    let restic = on_path("restic").context("restic is not installed")?;
    let repo = scratch.dir("restic")?;
    let run = |words: &[&str]| {
        let mut command = process::program(&restic);
        command
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_REPOSITORY", &repo)
            .args(["-q", "--no-cache"])
            .args(words);
        process::output(&mut command).map(drop)
    };
    run(&["init"])?;
    let tree = tree.to_str().context("the folder for temporary files is not UTF-8")?;
    let mut found = Samples::default();
    found.push(timed(|| run(&["backup", tree]))?);
    Ok(found)
}

fn aide(scratch: &Scratch, tree: &Path) -> Result<Samples> {
    let aide = on_path("aide").context("aide is not installed")?;
    let dir = scratch.dir("aide")?;
    let config = dir.join("aide.conf");
    let text =
        format!("database_out=file:{}/db\ngzip_dbout=no\n{} p+u+g+s+sha256\n", dir.display(), tree.display());
    fs::write(&config, text).with_context(|| config.display().to_string())?;
    let mut found = Samples::default();
    found.push(timed(|| {
        process::output(process::program(aide).arg("--init").arg("-c").arg(&config)).map(drop)
    })?);
    Ok(found)
}

/// Seconds from the end of one `sed -i` over many files until each of them is as it was.
fn changed_at_once(bench: &Bench, scratch: &Scratch) -> Result<Samples> {
    let config = "[policy]\nhost_burst = 1000000\n[triggers.config_drift]\nconflict_count = 1000\n";
    let (_agent, files) = agent::with_files(&bench.grace, scratch, config, CHANGED, 1024)?;
    let good: Vec<Vec<u8>> = (0..CHANGED).map(|number| content(number, 1024)).collect();
    let mut found = Samples::default();
    for round in 0..bench.rounds(10, 3) {
        say(&format!("store: {CHANGED} files at once, round {round}"));
        std::thread::sleep(Duration::from_secs(2));
        process::output(process::program("sed").args(["-i", "s/value/wrong/"]).args(&files))?;
        let began = Instant::now();
        let mut left: Vec<usize> = (0..CHANGED).collect();
        while !left.is_empty() {
            left.retain(|at| fs::read(&files[*at]).ok().as_ref() != Some(&good[*at]));
            if began.elapsed() > PATIENCE {
                bail!("{} of {CHANGED} files were not restored within {PATIENCE:?}", left.len());
            }
        }
        found.push(began.elapsed().as_secs_f64());
    }
    Ok(found)
}
