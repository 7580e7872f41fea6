//! The faults for `health_gap`: a declared process is killed; the next one hangs, so that its heartbeats stay away.
#![expect(clippy::disallowed_methods, reason = "the fault must be made by another process than the agent")]

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::{Stop, Teller, pid_of, program, signal_by, spawn_and_wait, watch};
use crate::api::client::{Client, ClientError};
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// Tells the story.
pub(super) async fn tell(agent: &Client, teller: &mut Teller<'_>, stop: &mut Stop) -> Result<(), Failure> {
    let name = format!("inject-{}", std::process::id());
    let grace = std::env::current_exe().context("cannot find this program")?;
    let process = serde_json::json!({
        "name": name, "command": [&grace, Path::new("canary"), Path::new("--beat")], "heartbeat": "1s",
    });
    let () = agent.post("/v1/processes", &process).await?;
    let result = stop.or(both(agent, &name, teller)).await;
    let removed: Result<(), ClientError> = agent.delete(&format!("/v1/processes/{name}")).await;
    result?;
    removed?;
    Ok(())
}

async fn both(agent: &Client, name: &str, teller: &mut Teller<'_>) -> Result<(), Failure> {
    let first = pid_of(agent, name, 0).await?;
    teller.tell("process", &format!("{name} runs as pid {first} and tells that it lives"))?;
    let mut follow = agent.follow().await?;
    let subject = Subject::Process(name.to_owned());
    let kill = program("kill")?;
    teller.fault = Some(Stopwatch::start());
    let pid = spawn_and_wait(Command::new(&kill).args(["-9", &first.to_string()]))?;
    teller.tell("fault", &format!("{} -9 {first} (pid {pid})", kill.display()))?;
    watch(&mut follow, &subject, teller, None).await?;
    let second = pid_of(agent, name, first).await?;
    teller.tell("verified", &format!("{name} runs as pid {second}"))?;

    teller.fault = Some(Stopwatch::start());
    let pid = signal_by(&kill, "-STOP", second)?;
    teller.tell(
        "fault",
        &format!("{} -STOP {second} (pid {pid}): it is there, and does nothing", kill.display()),
    )?;
    watch(&mut follow, &subject, teller, None).await?;
    let third = pid_of(agent, name, second).await?;
    teller.tell("verified", &format!("{name} runs as pid {third} and tells that it lives"))
}
