//! Source trees are checked for syntax errors: how many files a second, the first time and when little has changed.
//!
//! The tree is made of real sources of this machine: those of this workspace and of cargo's registry, of Python's
//! library and of the system's headers, copied until there are enough. What is measured reads from the page cache, as
//! do the peers; the disk is not a part of it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::guard::Scratch;
use super::report::{Row, Table};
use super::stats::Samples;
use super::{Bench, brief, say, shuffled};
use crate::{places, process};

/// Sources larger than this are left out: a few generated ones would be most of the work, in bytes.
const MAX_SOURCE: u64 = 64 << 10;
/// Sources taken of one language at most, before they are repeated.
const MAX_EACH: usize = 4000;
/// Files in one folder.
const FOLDER: usize = 100;
/// Files that change between two scans.
const CHANGED: usize = 100;

const ALL: &str = "Grace, every file parsed";
const AGAIN: &str = "Grace, again, nothing changed";
const LITTLE: &str = "Grace, again, 100 files changed";
const PYTHON: &str = "Grace, Python only";
const COMPILE: &str = "python3 -m compileall -f, Python only";
const RUFF: &str = "ruff check --select E9 --no-cache, Python only";

pub(super) fn measure(bench: &Bench) -> Result<Table> {
    let scratch = Scratch::new("scan")?;
    let count = usize::try_from(bench.rounds(100_000, 10_000))?;
    let tree = scratch.dir("tree")?;
    let made = make(&tree, count)?;
    let python = made.iter().filter(|path| path.extension().is_some_and(|e| e == "py")).count();
    let mut table = Table::new("scan", "Source trees are checked for syntax errors", "files/s");
    let cache = scratch.dir("cache")?;
    let mut rates: [Samples; 6] = Default::default();
    let peers = [compileall(&tree.join("py")), ruff(&tree.join("py"))];
    for round in 0..bench.rounds(5, 3) {
        say(&format!("scan: round {round}"));
        for at in shuffled(round, 6) {
            let (files, seconds) = match at {
                0 => scan(bench, &cache, &tree, true)?,
                1 => {
                    // The one before leaves what this one finds, whichever it was.
                    scan(bench, &cache, &tree, false)?;
                    scan(bench, &cache, &tree, false)?
                }
                2 => {
                    scan(bench, &cache, &tree, false)?;
                    for path in made.iter().step_by((count / CHANGED).max(1)) {
                        fs::OpenOptions::new().append(true).open(path)?.write_all(b"\n")?;
                    }
                    scan(bench, &cache, &tree, false)?
                }
                3 => scan(bench, &cache, &tree.join("py"), true)?,
                peer => match &peers[peer - 4] {
                    Ok(run) => (python, run()?),
                    Err(_) => continue,
                },
            };
            #[expect(clippy::cast_precision_loss, reason = "a measurement has no 53 bits")]
            rates[at].push(files as f64 / seconds);
        }
    }
    let [all, again, little, of_python, compiled, ruffed] = rates;
    table.row(Row::new(ALL, all).target("100,000 in seconds"));
    table.row(Row::new(AGAIN, again).beside(ALL));
    table.row(Row::new(LITTLE, little).beside(ALL));
    table.row(Row::new(PYTHON, of_python));
    for (who, peer, found) in [(COMPILE, &peers[0], compiled), (RUFF, &peers[1], ruffed)] {
        table.row(match peer {
            Ok(_) => Row::new(who, found).beside(PYTHON),
            Err(err) => Row::missing(who, brief(err)),
        });
    }
    let bytes: u64 = made.iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum();
    table.note(format!(
        "{count} files, {} MiB, {python} of them Python; copies of real sources. compileall and Grace use every \
         processor; compileall also writes what it compiled.",
        bytes >> 20
    ));
    Ok(table)
}

/// Scans `tree`; how many files it met and how long it took from start to end of the program, in seconds.
fn scan(bench: &Bench, cache: &Path, tree: &Path, fresh: bool) -> Result<(usize, f64)> {
    let mut command = process::program(&bench.grace);
    // Nobody's agent is asked, and root's cache is not touched.
    command.args(["--socket", "/nonexistent/grace.sock", "scan", "--json"]);
    command.arg("--cache").arg(cache.join("syntax.cache")).arg(tree);
    if fresh {
        command.arg("--fresh");
    }
    let began = Instant::now();
    let out = command.output().context("grace scan")?;
    let took = began.elapsed().as_secs_f64();
    // 1: something does not parse, which may be so of what lies on this machine.
    ensure!(matches!(out.status.code(), Some(0 | 1)), "grace scan: {}", String::from_utf8_lossy(&out.stderr));
    let found: Value = serde_json::from_slice(&out.stdout)?;
    let files = found["syntax"]["files"].as_u64().context("no number of files")?;
    Ok((usize::try_from(files)?, took))
}

type Run = Box<dyn Fn() -> Result<f64>>;

fn timed(mut make: impl FnMut() -> std::process::Command) -> Result<f64> {
    let began = Instant::now();
    // What they think of the sources is not asked here.
    make().stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status()?;
    Ok(began.elapsed().as_secs_f64())
}

fn compileall(tree: &Path) -> Result<Run> {
    let python = places::on_path("python3").context("there is no python3")?;
    let tree = tree.to_owned();
    Ok(Box::new(move || {
        timed(|| {
            let mut command = process::program(&python);
            command.args(["-m", "compileall", "-q", "-f", "-j", "0"]).arg(&tree);
            command
        })
    }))
}

fn ruff(tree: &Path) -> Result<Run> {
    let folder = places::cache()?.join("bench/ruff");
    let ours = folder.join("bin/ruff");
    let program = match places::on_path("ruff") {
        Some(program) => program,
        None => {
            if !ours.exists() {
                let mut pip = process::program("python3");
                pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&folder).arg("ruff");
                process::output(&mut pip)?;
            }
            ours
        }
    };
    let tree = tree.to_owned();
    Ok(Box::new(move || {
        timed(|| {
            let mut command = process::program(&program);
            command.args([
                "check",
                "--select",
                "E9",
                "--no-cache",
                "--isolated",
                "--no-respect-gitignore",
                "-q",
            ]);
            command.arg(&tree);
            command
        })
    }))
}

/// Fills `tree` with `count` sources, by language and then in small folders.
fn make(tree: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut roots = vec![places::root().join("grace-agent"), places::root().join("xtask")];
    roots.extend(home.map(|home| home.join("registry/src")));
    roots.extend(
        ["/usr/lib/python3", "/usr/lib/python3.11", "/usr/lib/python3.13", "/usr/include", "/usr/share"]
            .map(PathBuf::from),
    );
    let mut sources: std::collections::BTreeMap<&str, Vec<PathBuf>> = Default::default();
    for root in &roots {
        collect(root, &mut sources, 0);
    }
    ensure!(
        sources.values().map(Vec::len).sum::<usize>() > 100,
        "there are hardly any sources on this machine"
    );
    // Half of it Rust and Python, as far as there is any; the rest of everything.
    let mut made = Vec::with_capacity(count);
    let mut turn = 0;
    while made.len() < count {
        for (language, paths) in &sources {
            let Some(from) = paths.get(turn % paths.len()) else { continue };
            if made.len() == count {
                break;
            }
            let folder = tree.join(language).join(format!("d{}", turn / FOLDER));
            if turn % FOLDER == 0 {
                fs::create_dir_all(&folder)?;
            }
            let to = folder.join(format!("f{turn}.{language}"));
            fs::copy(from, &to).with_context(|| from.display().to_string())?;
            made.push(to);
        }
        turn += 1;
    }
    Ok(made)
}

fn collect(folder: &Path, into: &mut std::collections::BTreeMap<&'static str, Vec<PathBuf>>, depth: usize) {
    const LANGUAGES: [&str; 11] = ["py", "rs", "js", "ts", "go", "c", "h", "sh", "json", "yaml", "toml"];
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() && depth < 12 {
            collect(&path, into, depth + 1);
        } else if kind.is_file() {
            let language =
                path.extension().and_then(|e| LANGUAGES.into_iter().find(|language| e == *language));
            let Some(language) = language else { continue };
            let size = entry.metadata().map_or(0, |meta| meta.len());
            let known = into.entry(language).or_default();
            if size > 0 && size <= MAX_SOURCE && known.len() < MAX_EACH {
                known.push(path);
            }
        }
    }
}
