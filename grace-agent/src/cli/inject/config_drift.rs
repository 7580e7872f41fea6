//! The fault for `config_drift`: `sed -i` changes an owned file.
#![expect(clippy::disallowed_methods, reason = "the fault must be made by another process than the agent")]

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, anyhow};

use super::{Stop, Teller, program, spawn_and_wait, watch};
use crate::api::client::Client;
use crate::api::server::{PathRequest, SnapshotRequest};
use crate::api::view::PathAnswer;
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// Tells the story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let path = scratch.join("app.conf");
    let good = "listen = 8080\nworkers = 4\n";
    fs::write(&path, good).with_context(|| format!("cannot write {}", path.display()))?;
    let request = SnapshotRequest { paths: vec![path.clone()], kind: None };
    let answers: Vec<PathAnswer> = agent.post("/v1/snapshot", &request).await?;
    let answer = answers.first().ok_or_else(|| anyhow!("the agent answered for no path"))?;
    if let Some(why) = &answer.error {
        return Err(Failure::No(why.clone()));
    }
    let result = stop.or(changed(agent, &path, &Subject::File(answer.path.clone()), teller)).await;
    let now = fs::read_to_string(&path).unwrap_or_default();
    let forgotten: Result<PathAnswer, _> = agent.post("/v1/forget", &PathRequest { path, at: None }).await;
    result?;
    if let Some(why) = forgotten?.error {
        return Err(Failure::No(why));
    }
    if now != good {
        return Err(Failure::No("the firing cleared, but the file is not what it was".to_owned()));
    }
    teller.tell("verified", "the file has its bytes back")
}

async fn changed(
    agent: &Client,
    path: &Path,
    subject: &Subject,
    teller: &mut Teller<'_>,
) -> Result<(), Failure> {
    teller.tell("snapshot", &format!("{} is owned", path.display()))?;
    let mut follow = agent.follow().await?;
    let sed = program("sed")?;
    teller.fault = Some(Stopwatch::start());
    let pid = spawn_and_wait(Command::new(&sed).args(["-i", "s/8080/666/"]).arg(path))?;
    teller.tell("fault", &format!("{} -i s/8080/666/ (pid {pid})", sed.display()))?;
    watch(&mut follow, subject, teller, None).await
}
