//! The fault for `predicted_failure`: a real git repo in whose history one file is repaired again and again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::task::{Watcher, git, source};
use super::{Stop, Teller};
use crate::api::client::Client;
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// Files of the repo beside the one that this is about.
const OTHERS: usize = 40;
/// For so many commits the same few files are repaired again and again; then it is the turn of others.
const STRETCH: usize = 150;
/// Stretches before the fault, and files that are repaired in each.
const BEFORE: usize = 6;
const HOT: usize = 4;

/// Makes the repo with its history; what the agent needs to know.
pub(super) fn config(scratch: &Path) -> Result<String, Failure> {
    let repo = repo(scratch);
    fs::create_dir(&repo).context("cannot make the repo")?;
    git(&repo, &["init", "-q", "-b", "main"], "")?;
    let mut history = String::new();
    let mut first = String::new();
    for file in (0..OTHERS).map(name).chain(["hot.py".to_owned()]) {
        change(&mut first, &file, 0);
    }
    commit(&mut history, 0, "begin", &first);
    for n in 0..BEFORE {
        stretch(&mut history, n, &hot(n));
    }
    git(&repo, &["fast-import", "--quiet"], &history)?;
    Ok(format!("[[repo]]\npath = {:?}\n", repo.display().to_string()))
}

/// The files that are repaired in the `n`th stretch.
fn hot(n: usize) -> Vec<String> {
    (n * HOT..(n + 1) * HOT).map(name).collect()
}

/// The commits of the `n`th stretch: two of three repair one of `hot`, the others work on whatever comes.
fn stretch(history: &mut String, n: usize, hot: &[String]) {
    for n in n * STRETCH + 1..(n + 1) * STRETCH + 1 {
        // A fixed walk over the files: the same history every time.
        let step = n.wrapping_mul(2_654_435_761) >> 7;
        let mut work = String::new();
        if step % 3 > 0 {
            let file = hot.get(step / 3 % hot.len().max(1)).map_or("hot.py", String::as_str);
            change(&mut work, file, n);
            commit(history, n, "fix another crash", &work);
        } else {
            change(&mut work, &name(step / 3 % OTHERS), n);
            commit(history, n, if step % 4 == 0 { "fix a crash" } else { "work" }, &work);
        }
    }
}

fn repo(scratch: &Path) -> PathBuf {
    scratch.join("repo")
}

fn name(file: usize) -> String {
    format!("part{file}.py")
}

fn change(out: &mut String, file: &str, n: usize) {
    let text = format!("# {n}\n");
    // A String takes everything.
    let _ = write!(out, "M 100644 inline {file}\ndata {}\n{text}\n", text.len());
}

fn commit(out: &mut String, n: usize, message: &str, changes: &str) {
    let who = format!("author{} <a{}@localhost> {} +0000", n % 4, n % 4, 1_700_000_000 + n * 3600);
    let _ = write!(out, "commit refs/heads/main\nmark :{}\n", n + 1);
    let _ = write!(out, "author {who}\ncommitter {who}\ndata {}\n{message}\n", message.len());
    // Each import begins with a stretch and goes on from what is there.
    if n > BEFORE * STRETCH && n % STRETCH == 1 {
        out.push_str("from refs/heads/main^0\n");
    }
    let _ = writeln!(out, "{changes}");
}

/// The story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let repo = repo(scratch);
    source(agent, "history", stop, |detail| detail.contains("files")).await?;
    teller.tell("rated", &format!("a repo with {} commits, hot.py at rest", BEFORE * STRETCH + 1))?;
    let mut watcher = Watcher::new(agent, Subject::File(repo.join("hot.py"))).await?;
    teller.fault = Some(Stopwatch::start());
    let mut history = String::new();
    stretch(&mut history, BEFORE, &[vec!["hot.py".to_owned()], hot(BEFORE - 1)].concat());
    git(&repo, &["fast-import", "--quiet"], &history)?;
    teller.tell(
        "fault",
        &format!("{STRETCH} commits more, two of three repair hot.py or one of {HOT} others"),
    )?;
    watcher.task(teller, stop).await?;
    let mut history = String::new();
    for n in BEFORE + 1..BEFORE + 3 {
        stretch(&mut history, n, &hot(n));
    }
    git(&repo, &["fast-import", "--quiet"], &history)?;
    teller.tell("undone", &format!("{} commits in which nobody had to touch it", 2 * STRETCH))?;
    watcher.cleared(teller, stop).await
}
