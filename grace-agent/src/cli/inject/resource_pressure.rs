//! The fault for `resource_pressure`: a declared process keeps all processors busy, at the lowest priority there is.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::{Stop, Teller, pid_of, program, watch};
use crate::api::client::{Client, ClientError};
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// What the agent needs to know: that it is busy after a second, and that freezing is the first step.
pub(super) const CONFIG: &str =
    "[pressure]\ncpu = 90\nmargin = 5\nsustained = \"1s\"\nsteps = [\"freeze\"]\n";

/// The process that is shed, and the one that must not be.
const HOG: &str = "inject-hog";
const VIP: &str = "inject-vip";

/// The story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let go = scratch.join("go");
    let grace = std::env::current_exe().context("cannot find this program")?;
    let hog = serde_json::json!({
        "name": HOG, "importance": 1, "command": [&grace, Path::new("canary"), Path::new("--spin"), &go],
    });
    let vip = serde_json::json!({ "name": VIP, "importance": 100, "command": [program("sleep")?, Path::new("3600")] });
    for process in [&hog, &vip] {
        let () = agent.post("/v1/processes", process).await?;
    }
    let result = stop.or(busy(agent, &go, teller)).await;
    for name in [HOG, VIP] {
        let removed: Result<(), ClientError> = agent.delete(&format!("/v1/processes/{name}")).await;
        if result.is_ok() {
            removed?;
        }
    }
    result
}

async fn busy(agent: &Client, go: &Path, teller: &mut Teller<'_>) -> Result<(), Failure> {
    let (hog, vip) = (pid_of(agent, HOG, 0).await?, pid_of(agent, VIP, 0).await?);
    teller.tell(
        "process",
        &format!("{HOG} runs as pid {hog}, importance 1; {VIP} as pid {vip}, importance 100"),
    )?;
    let mut follow = agent.follow().await?;
    teller.fault = Some(Stopwatch::start());
    fs::write(go, "").context("cannot make the fault")?;
    teller.tell("fault", &format!("{HOG} keeps every processor busy"))?;
    watch(&mut follow, &Subject::Host("cpu".to_owned()), teller, None).await?;
    teller.tell("verified", &format!("{VIP} runs as pid {}, {HOG} runs on", pid_of(agent, VIP, 0).await?))
}
