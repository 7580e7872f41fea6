//! The fault for `error_feed`: a declared program fails five times in the same way.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::{Stop, Teller, pid_of, program, watch_for};
use crate::api::client::{Client, ClientError};
use crate::api::view::TaskView;
use crate::cli::ask::Failure;
use crate::clock::Stopwatch;
use crate::firing::Subject;

/// How long an error of the scratch program must stay away to be over.
const AWAY: &str = "2s";

/// Waits for a file, then fails five times in the same way, each time with another value, and runs on.
const FAILS_IN_PYTHON: &str = r#"import os, sys, time, traceback


def load(number):
    return int(f"shard {number} of {os.getpid()}")


while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
for number in range(5):
    try:
        load(number)
    except ValueError:
        traceback.print_exc()
time.sleep(3600)
"#;

/// The same where there is no Python: five children end by a signal, and the shell says so.
const FAILS_IN_SH: &str = r#"while ! [ -e "$1" ]; do sleep 0.1; done
for number in 1 2 3 4 5; do sh -c 'kill -SEGV $$'; done
exec sleep 3600
"#;

/// Tells the story.
pub(super) async fn tell(
    agent: &Client,
    scratch: &Path,
    teller: &mut Teller<'_>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let name = format!("inject-{}", std::process::id());
    let (interpreter, script, text) = match program("python3") {
        Ok(python) => (python, scratch.join("app.py"), FAILS_IN_PYTHON),
        Err(_) => (program("sh")?, scratch.join("app.sh"), FAILS_IN_SH),
    };
    fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
    let go = scratch.join("go");
    let process = serde_json::json!({
        "name": name, "command": [interpreter, script, go], "error_count": 5, "error_window": AWAY,
    });
    let () = agent.post("/v1/processes", &process).await?;
    let result = stop.or(failed(agent, &name, &go, teller)).await;
    let removed: Result<(), ClientError> = agent.delete(&format!("/v1/processes/{name}")).await;
    result?;
    removed?;
    Ok(())
}

async fn failed(agent: &Client, name: &str, go: &Path, teller: &mut Teller<'_>) -> Result<(), Failure> {
    let pid = pid_of(agent, name, 0).await?;
    teller.tell("process", &format!("{name} runs as pid {pid}"))?;
    let mut follow = agent.follow().await?;
    teller.fault = Some(Stopwatch::start());
    fs::write(go, "").with_context(|| format!("cannot write {}", go.display()))?;
    teller
        .tell("fault", &format!("{name} fails five times in the same way, each time with another value"))?;
    // Which signature it has is the agent's to say: it is the error that this very process wrote.
    let wrote = format!(" of {name}");
    let firing = watch_for(&mut follow, teller, None, |firing| {
        matches!(firing.subject, Subject::Error(_))
            && firing.evidence.iter().any(|line| line.ends_with(&wrote))
    })
    .await?;
    let tasks: Vec<TaskView> = agent.get("/v1/tasks").await?;
    // An injection before this one may have filed it: its count was raised then.
    let Subject::Error(signature) = &firing.subject else {
        return Err(Failure::Other(anyhow!("the firing is about no error")));
    };
    let task = tasks.iter().find(|task| {
        task.trigger == firing.trigger
            && task.evidence.iter().any(|e| e.name == "subject" && e.text.contains(signature))
    });
    match task {
        Some(task) => teller.tell("verified", &format!("{} is {}: {}", task.id, task.state, task.title)),
        None => Err(Failure::No("the firing cleared, but there is no task for it".to_owned())),
    }
}
