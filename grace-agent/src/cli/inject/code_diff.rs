//! The fault for `code_diff`: `sed` changes a critical file of a real git repo.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::task::{Watcher, git, source};
use super::{Stop, Teller, program, spawn_and_wait};
use crate::api::client::Client;
use crate::api::code::GoodRequest;
use crate::api::view::GoodView;
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// Makes the repo; what the agent needs to know.
pub(super) fn config(scratch: &Path) -> Result<String, Failure> {
    let repo = repo(scratch);
    let write = |path: &str, text: &str| {
        let path = repo.join(path);
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text))
    };
    write("serve.py", "PORT = 8080\n").context("cannot make the repo")?;
    write("tests/test_serve.py", "import serve\n").context("cannot make the repo")?;
    git(&repo, &["init", "-q"], "")?;
    git(&repo, &["add", "."], "")?;
    git(&repo, &["commit", "-q", "-m", "good"], "")?;
    Ok(format!(
        "[[repo]]\npath = {:?}\ncritical = [\"serve.py\"]\n[triggers.code_diff]\npoll = \"100ms\"\n",
        repo.display().to_string()
    ))
}

fn repo(scratch: &Path) -> PathBuf {
    scratch.join("repo")
}

/// The story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let repo = repo(scratch);
    source(agent, "repos", stop, |detail| detail.contains("known-good")).await?;
    let views: Vec<GoodView> = agent.post("/v1/good", &GoodRequest::default()).await?;
    if let Some(why) = views.iter().find_map(|view| view.error.clone()) {
        return Err(Failure::No(why));
    }
    let commit = views.first().and_then(|view| view.commit.clone()).unwrap_or_default();
    teller.tell("good", &format!("commit {commit} is known-good"))?;
    let mut watcher = Watcher::new(agent, Subject::Repo(repo.clone())).await?;
    let sed = program("sed")?;
    teller.fault = Some(Stopwatch::start());
    let pid = spawn_and_wait(Command::new(&sed).args(["-i", "s/8080/666/"]).arg(repo.join("serve.py")))?;
    teller.tell("fault", &format!("{} -i s/8080/666/ serve.py (pid {pid})", sed.display()))?;
    watcher.task(teller, stop).await?;
    git(&repo, &["checkout", "-q", "--", "serve.py"], "")?;
    teller.tell("undone", "git checkout -- serve.py")?;
    watcher.cleared(teller, stop).await
}
