//! The fault for `model_integrity`: `dd` overwrites one byte in the middle of a weights file.

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
use crate::file_state::ContentKind;
use crate::firing::Subject;

/// Size of the weights, in bytes, and which of them is hurt.
const SIZE: usize = 4 << 20;
const HURT: usize = SIZE / 2 + 1;

/// The story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let path = scratch.join("model.safetensors");
    let good: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    fs::write(&path, &good).with_context(|| format!("cannot write {}", path.display()))?;
    let request = SnapshotRequest { paths: vec![path.clone()], kind: Some(ContentKind::Weights) };
    let answers: Vec<PathAnswer> = agent.post("/v1/snapshot", &request).await?;
    let answer = answers.first().ok_or_else(|| anyhow!("the agent answered for no path"))?;
    if let Some(why) = &answer.error {
        return Err(Failure::No(why.clone()));
    }
    let result = stop.or(hurt(agent, &path, &Subject::File(answer.path.clone()), teller)).await;
    let now = fs::read(&path).unwrap_or_default();
    let forgotten: Result<PathAnswer, _> = agent.post("/v1/forget", &PathRequest { path, at: None }).await;
    result?;
    if let Some(why) = forgotten?.error {
        return Err(Failure::No(why));
    }
    if now != good {
        return Err(Failure::No("the firing cleared, but the weights are not what they were".to_owned()));
    }
    teller.tell("verified", &format!("all {SIZE} bytes are what they were"))
}

async fn hurt(
    agent: &Client,
    path: &Path,
    subject: &Subject,
    teller: &mut Teller<'_>,
) -> Result<(), Failure> {
    teller.tell("snapshot", &format!("{} is owned as weights, {SIZE} bytes", path.display()))?;
    let mut follow = agent.follow().await?;
    let dd = program("dd")?;
    let into = format!("of={}", path.display());
    let at = format!("seek={HURT}");
    let other = path.with_extension("other");
    fs::write(&other, [0xff]).context("cannot make the fault")?;
    let from = format!("if={}", other.display());
    teller.fault = Some(Stopwatch::start());
    let pid = spawn_and_wait(Command::new(&dd).args([&from, &into, &at]).args([
        "bs=1",
        "conv=notrunc",
        "status=none",
    ]))?;
    teller.tell("fault", &format!("{} overwrites byte {HURT} (pid {pid})", dd.display()))?;
    watch(&mut follow, subject, teller, None).await
}
